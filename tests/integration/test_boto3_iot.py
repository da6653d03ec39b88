"""Stock boto3's `iot` client on the gateway: things, types, groups, search, and what is told of them over MQTT."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from botocore.exceptions import ClientError

from actors.gateway.server import HttpServer
from actors.pki import generate_key_and_csr
from tests.integration.boto3_clients import boto3_client
from tests.integration.running_gateway import Gateway
from twins.messages import Connectivity, Operation, Request

ARN = "arn:aws:iot:local:000000000000"


class Iot:
    """boto3's client, one call after the other in a thread of its own, so that the gateway can answer."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def __call__(self, operation: str, **parameters: Any) -> dict[str, Any]:
        answer: dict[str, Any] = await asyncio.to_thread(getattr(self._client, operation), **parameters)
        assert answer.pop("ResponseMetadata")["HTTPStatusCode"] == 200
        return answer

    async def refused(self, operation: str, **parameters: Any) -> tuple[str, int, str]:
        """Return name, status and text of the error that a call ends in."""
        with pytest.raises(ClientError) as caught:
            await self(operation, **parameters)
        response = caught.value.response
        error: dict[str, str] = response["Error"]
        return error["Code"], response["ResponseMetadata"]["HTTPStatusCode"], error["Message"]

    async def pages(self, operation: str, member: str, **parameters: Any) -> list[list[Any]]:
        """Return the pages of a listing, as long as there is a token for a next one."""
        pages = []
        answer = await self(operation, **parameters)
        pages.append(answer[member])
        while "nextToken" in answer:
            answer = await self(operation, **parameters, nextToken=answer["nextToken"])
            pages.append(answer[member])
        return pages


@pytest.fixture
async def client_for(gateway: Gateway) -> AsyncIterator[Callable[[dict[str, Any]], Any]]:
    server = HttpServer(gateway.app, port=0, option="--api-port")
    await server.start()

    def make(access_key: dict[str, Any]) -> Any:
        return boto3_client("iot", server.url, access_key)

    yield make
    await server.stop()


@pytest.fixture
async def iot(gateway: Gateway, client_for: Callable[[dict[str, Any]], Any]) -> Iot:
    async with gateway.client() as http:
        key = (await http.post("/v1/keys", json={"name": "ops", "role": "operator"})).json()
    return Iot(client_for(key))


def announced(gateway: Gateway) -> list[tuple[str, dict[str, Any]]]:
    """Return topic and body of what was announced since the last question."""
    messages = [(message.topic, json.loads(message.payload)) for message in gateway.platform.announced]
    gateway.platform.announced.clear()
    return messages


async def shadow_of(gateway: Gateway, thing: str, reported: dict[str, Any]) -> None:
    payload = json.dumps({"state": {"reported": reported}}).encode()
    reply = await gateway.fleet.ask(Request(Operation.SHADOW_UPDATE, thing, payload, is_direct=True))
    assert reply.status == 200


# Things


async def test_a_thing_is_created_described_changed_and_deleted(iot: Iot) -> None:
    attributes = {"room": "hall", "site": "ber"}
    created = await iot("create_thing", thingName="a:lamp", attributePayload={"attributes": attributes})
    assert created["thingArn"] == f"{ARN}:thing/a:lamp"
    identity = str(uuid.UUID(created["thingId"]))
    described = await iot("describe_thing", thingName="a:lamp")
    assert described == {
        "defaultClientId": "a:lamp",
        "thingName": "a:lamp",
        "thingId": identity,
        "thingArn": created["thingArn"],
        "attributes": attributes,
        "version": 1,
    }
    merged = {"attributes": {"room": "", "floor": "2"}, "merge": True}
    await iot("update_thing", thingName="a:lamp", attributePayload=merged, expectedVersion=1)
    described = await iot("describe_thing", thingName="a:lamp")
    assert (described["attributes"], described["version"]) == ({"site": "ber", "floor": "2"}, 2)
    assert described["thingId"] == identity
    await iot("update_thing", thingName="a:lamp", attributePayload={"attributes": {"only": "this"}})
    assert (await iot("describe_thing", thingName="a:lamp"))["attributes"] == {"only": "this"}
    await iot("delete_thing", thingName="a:lamp", expectedVersion=3)
    code, status, _ = await iot.refused("describe_thing", thingName="a:lamp")
    assert (code, status) == ("ResourceNotFoundException", 404)
    # As the service: what is wanted is so already.
    await iot("delete_thing", thingName="a:lamp")


async def test_the_same_thing_again_is_the_same_and_another_one_is_refused(iot: Iot) -> None:
    first = await iot("create_thing", thingName="lamp", attributePayload={"attributes": {"room": "hall"}})
    again = await iot("create_thing", thingName="lamp", attributePayload={"attributes": {"room": "hall"}})
    assert again == first
    code, status, text = await iot.refused("create_thing", thingName="lamp")
    assert (code, status) == ("ResourceAlreadyExistsException", 409)
    assert "lamp" in text


async def test_a_thing_that_came_otherwise_is_the_same_where_nothing_else_was_asked(
    gateway: Gateway, iot: Iot
) -> None:
    async with gateway.client() as http:
        made = (await http.post("/v1/things", json={"name": "lamp", "model": "thermostat"})).json()
    await iot("create_thing_group", thingGroupName="hall")
    await iot("add_thing_to_thing_group", thingGroupName="hall", thingName="lamp")
    assert (await iot("create_thing", thingName="lamp"))["thingId"] == made["thing_id"]


async def test_a_version_that_is_not_current_is_a_conflict(iot: Iot) -> None:
    await iot("create_thing", thingName="lamp")
    payload = {"attributes": {"a": "b"}}
    for operation, more in (("update_thing", {"attributePayload": payload}), ("delete_thing", {})):
        code, status, text = await iot.refused(operation, thingName="lamp", expectedVersion=2, **more)
        assert (code, status) == ("VersionConflictException", 409)
        assert "version 1, not 2" in text
    assert (await iot("describe_thing", thingName="lamp"))["version"] == 1


async def test_a_thing_without_certificate_has_a_twin_of_its_types_model(gateway: Gateway, iot: Iot) -> None:
    await iot("create_thing_type", thingTypeName="thermostat")
    await iot("create_thing", thingName="t1", thingTypeName="thermostat")
    await iot("create_thing", thingName="u1", attributePayload={"attributes": {"room": "hall"}})
    await shadow_of(gateway, "t1", {"temperature": 20.5})
    rows = (await gateway.fleet.twins_table()).to_pylist()
    models = {row["name"]: (row["model"], row.get("room")) for row in rows}
    assert models == {"t1": ("thermostat", None), "u1": ("untyped", "hall")}
    await iot("update_thing", thingName="u1", attributePayload={"attributes": {"room": "attic"}})
    rows = (await gateway.fleet.twins_table()).to_pylist()
    assert {row["name"]: row.get("room") for row in rows}["u1"] == "attic"
    await iot("delete_thing", thingName="u1")
    assert [row["name"] for row in (await gateway.fleet.twins_table(["name"])).to_pylist()] == ["t1"]


async def test_things_are_listed_in_pages_and_by_type_and_attribute(iot: Iot) -> None:
    await iot("create_thing_type", thingTypeName="lamp")
    for number in range(5):
        site = "ber" if number % 2 else "berlin"
        more = {"thingTypeName": "lamp"} if number < 2 else {}
        payload = {"attributes": {"site": site}}
        await iot("create_thing", thingName=f"t{number}", attributePayload=payload, **more)
    pages = await iot.pages("list_things", "things", maxResults=2)
    assert [[thing["thingName"] for thing in page] for page in pages] == [["t0", "t1"], ["t2", "t3"], ["t4"]]
    assert pages[0][0] == {
        "thingName": "t0",
        "thingArn": f"{ARN}:thing/t0",
        "thingTypeName": "lamp",
        "attributes": {"site": "berlin"},
        "version": 1,
    }

    async def names(**filters: Any) -> list[str]:
        found = await iot.pages("list_things", "things", maxResults=1, **filters)
        return [thing["thingName"] for page in found for thing in page]

    assert await names(thingTypeName="lamp") == ["t0", "t1"]
    assert await names(attributeName="site", attributeValue="ber") == ["t1", "t3"]
    assert await names(attributeName="site", attributeValue="ber", usePrefixAttributeValue=True) == [
        f"t{number}" for number in range(5)
    ]
    assert await names(attributeName="site", attributeValue="ber", thingTypeName="lamp") == ["t1"]
    assert await names(attributeName="colour", attributeValue="red") == []


@pytest.mark.parametrize(
    ("operation", "parameters", "code", "told"),
    [
        ("create_thing", {"thingName": "x" * 128 + "y"}, "InvalidRequestException", "thing name"),
        ("create_thing", {"thingName": "f" * 64}, "InvalidRequestException", "certificate id"),
        (
            "create_thing",
            {"thingName": "x", "thingTypeName": "no"},
            "ResourceNotFoundException",
            "thing type",
        ),
        (
            "create_thing",
            {"thingName": "x", "attributePayload": {"attributes": {"a b": "c"}}},
            "InvalidRequestException",
            "attribute 'a b'",
        ),
        ("create_thing", {"thingName": "x", "billingGroupName": "b"}, "InvalidRequestException", "billing"),
        ("update_thing", {"thingName": "x"}, "ResourceNotFoundException", "'x'"),
        ("describe_thing_type", {"thingTypeName": "x"}, "ResourceNotFoundException", "thing type 'x'"),
        ("describe_thing_group", {"thingGroupName": "x"}, "ResourceNotFoundException", "thing group 'x'"),
        (
            "create_thing_group",
            {"thingGroupName": "x", "parentGroupName": "no"},
            "ResourceNotFoundException",
            "thing group 'no'",
        ),
        (
            "create_dynamic_thing_group",
            {"thingGroupName": "x", "queryString": "nothing.such:x"},
            "InvalidQueryException",
            "nothing",
        ),
        ("search_index", {"queryString": "a AND ("}, "InvalidQueryException", "column"),
        ("search_index", {"queryString": "*", "indexName": "AWS_Other"}, "InvalidRequestException", "index"),
        ("describe_endpoint", {"endpointType": "iot:CredentialProvider"}, "InvalidRequestException", "iot:"),
        ("list_things_in_thing_group", {"thingGroupName": "x"}, "ResourceNotFoundException", "'x'"),
    ],
)
async def test_what_may_not_be_is_refused_by_its_name(
    iot: Iot, operation: str, parameters: dict[str, Any], code: str, told: str
) -> None:
    refused = await iot.refused(operation, **parameters)
    assert refused[0] == code
    assert told in refused[2]


async def test_a_thing_takes_the_place_of_a_simulated_device(gateway: Gateway, iot: Iot) -> None:
    async with gateway.client() as http:
        order = {"name": "hall", "model": "thermostat", "count": 10}
        assert (await http.post("/v1/fleets", json=order)).status_code == 201
        await iot("create_thing", thingName="hall-000003")
        twin = (await http.get("/v1/twins/hall-000003")).json()
    assert (twin["origin"], twin["model"]) == ("real", "thermostat")


async def test_principals_of_a_thing_and_things_of_a_principal_are_told(gateway: Gateway, iot: Iot) -> None:
    async with gateway.client() as http:
        body = {"name": "lamp", "model": "thermostat", "csr": generate_key_and_csr("lamp").csr_pem}
        created = (await http.post("/v1/things", json=body)).json()
    principal = f"{ARN}:cert/{created['certificate_id']}"
    assert (await iot("list_thing_principals", thingName="lamp"))["principals"] == [principal]
    assert (await iot("list_principal_things", principal=principal))["things"] == ["lamp"]
    await iot("delete_thing", thingName="lamp")
    certificate = await gateway.registry.certificates.get(created["certificate_id"])
    assert certificate is not None
    assert certificate.status == "REVOKED"
    assert (await iot("list_principal_things", principal=principal))["things"] == []


async def test_the_endpoint_of_devices_is_told(iot: Iot) -> None:
    answer = await iot("describe_endpoint", endpointType="iot:Data-ATS")
    assert answer == {"endpointAddress": "127.0.0.1:8883"}


async def test_a_viewer_reads_and_changes_nothing(
    gateway: Gateway, client_for: Callable[[dict[str, Any]], Any]
) -> None:
    async with gateway.client() as http:
        key = (await http.post("/v1/keys", json={"name": "eye", "role": "viewer"})).json()
    viewer = Iot(client_for(key))
    assert (await viewer("list_things"))["things"] == []
    assert (await viewer("search_index", queryString="*"))["things"] == []
    await viewer("describe_endpoint", endpointType="iot:Data-ATS")
    assert (await viewer.refused("create_thing", thingName="lamp"))[1] == 403
    stranger = Iot(client_for(key | {"secret_access_key": "wrong"}))
    assert (await stranger.refused("list_things"))[1] == 403


# Thing types


async def test_a_type_is_created_deprecated_and_deleted_by_the_rules(iot: Iot) -> None:
    properties = {"thingTypeDescription": "A lamp", "searchableAttributes": ["room", "site"]}
    created = await iot("create_thing_type", thingTypeName="lamp", thingTypeProperties=properties)
    assert created["thingTypeArn"] == f"{ARN}:thingtype/lamp"
    assert created == await iot("create_thing_type", thingTypeName="lamp", thingTypeProperties=properties)
    refused = await iot.refused("create_thing_type", thingTypeName="lamp")
    assert refused[:2] == ("ResourceAlreadyExistsException", 409)
    described = await iot("describe_thing_type", thingTypeName="lamp")
    assert described["thingTypeProperties"] == properties
    assert described["thingTypeMetadata"]["deprecated"] is False
    assert described["thingTypeId"] == created["thingTypeId"]
    await iot("create_thing", thingName="l1", thingTypeName="lamp")
    assert "deprecate" in (await iot.refused("delete_thing_type", thingTypeName="lamp"))[2]
    await iot("deprecate_thing_type", thingTypeName="lamp")
    assert "deprecationDate" in (await iot("describe_thing_type", thingTypeName="lamp"))["thingTypeMetadata"]
    code, _, text = await iot.refused("create_thing", thingName="l2", thingTypeName="lamp")
    assert (code, "deprecated" in text) == ("InvalidRequestException", True)
    # Too early: a mistake is not followed by another one within five minutes.
    assert "5 minutes" in (await iot.refused("delete_thing_type", thingTypeName="lamp"))[2]
    await iot("deprecate_thing_type", thingTypeName="lamp", undoDeprecate=True)
    await iot("create_thing", thingName="l2", thingTypeName="lamp")
    await iot("update_thing", thingName="l2", removeThingType=True)
    assert "thingTypeName" not in await iot("describe_thing", thingName="l2")
    await iot("create_thing_type", thingTypeName="bell")
    listed = await iot.pages("list_thing_types", "thingTypes", maxResults=1)
    assert [[found["thingTypeName"] for found in page] for page in listed] == [["bell"], ["lamp"]]
    for name, count in (("bell", 1), ("be", 0)):
        assert len((await iot("list_thing_types", thingTypeName=name))["thingTypes"]) == count


# Thing groups


async def test_static_groups_form_a_tree_with_things_in_it(iot: Iot) -> None:
    await iot("create_thing_group", thingGroupName="berlin")
    properties = {"thingGroupDescription": "Floor 1", "attributePayload": {"attributes": {"level": "1"}}}
    created = await iot(
        "create_thing_group",
        thingGroupName="floor-1",
        parentGroupName="berlin",
        thingGroupProperties=properties,
    )
    assert created["thingGroupArn"] == f"{ARN}:thinggroup/floor-1"
    described = await iot("describe_thing_group", thingGroupName="floor-1")
    assert described["thingGroupProperties"] == properties
    assert (described["version"], described["thingGroupId"]) == (1, created["thingGroupId"])
    metadata = described["thingGroupMetadata"]
    assert metadata["parentGroupName"] == "berlin"
    assert metadata["rootToParentThingGroups"] == [
        {"groupName": "berlin", "groupArn": f"{ARN}:thinggroup/berlin"}
    ]
    for name in ("a", "b", "c"):
        await iot("create_thing", thingName=name)
    for name in ("a", "b"):
        await iot("add_thing_to_thing_group", thingGroupName="floor-1", thingName=name)
        await iot("add_thing_to_thing_group", thingGroupName="floor-1", thingName=name)
    await iot("add_thing_to_thing_group", thingGroupArn=f"{ARN}:thinggroup/berlin", thingArn=f"{ARN}:thing/c")
    assert (await iot("list_things_in_thing_group", thingGroupName="berlin"))["things"] == ["c"]
    pages = await iot.pages(
        "list_things_in_thing_group", "things", thingGroupName="berlin", recursive=True, maxResults=2
    )
    assert pages == [["a", "b"], ["c"]]
    of_thing = (await iot("list_thing_groups_for_thing", thingName="a"))["thingGroups"]
    assert [group["groupName"] for group in of_thing] == ["floor-1"]
    code, _, text = await iot.refused("add_thing_to_thing_group", thingGroupName="berlin", thingName="a")
    assert (code, "floor-1" in text) == ("InvalidRequestException", True)
    assert "child groups" in (await iot.refused("delete_thing_group", thingGroupName="berlin"))[2]
    await iot("remove_thing_from_thing_group", thingGroupName="floor-1", thingName="a")
    await iot("delete_thing", thingName="b")
    assert (await iot("list_things_in_thing_group", thingGroupName="floor-1"))["things"] == []


async def test_groups_are_listed_by_parent_prefix_and_depth(iot: Iot) -> None:
    for name, parent in (("b", ""), ("b1", "b"), ("b2", "b"), ("b21", "b2"), ("m", "")):
        more = {"parentGroupName": parent} if parent else {}
        await iot("create_thing_group", thingGroupName=name, **more)

    async def names(**filters: Any) -> list[str]:
        pages = await iot.pages("list_thing_groups", "thingGroups", maxResults=2, **filters)
        return [group["groupName"] for page in pages for group in page]

    assert await names() == ["b", "b1", "b2", "b21", "m"]
    assert await names(recursive=False) == ["b", "m"]
    assert await names(parentGroup="b") == ["b1", "b2", "b21"]
    assert await names(parentGroup="b", recursive=False) == ["b1", "b2"]
    assert await names(namePrefixFilter="b2") == ["b2", "b21"]


async def test_a_group_is_changed_by_version_and_its_members_outlive_it(iot: Iot) -> None:
    first = await iot("create_thing_group", thingGroupName="g")
    assert await iot("create_thing_group", thingGroupName="g") == first
    other = {"thingGroupDescription": "another"}
    refused = await iot.refused("create_thing_group", thingGroupName="g", thingGroupProperties=other)
    assert refused[:2] == ("ResourceAlreadyExistsException", 409)
    change = {"thingGroupProperties": {"attributePayload": {"attributes": {"a": "1"}, "merge": True}}}
    assert (await iot("update_thing_group", thingGroupName="g", expectedVersion=1, **change)) == {
        "version": 2
    }
    stale = await iot.refused("update_thing_group", thingGroupName="g", expectedVersion=1, **change)
    assert stale[:2] == ("VersionConflictException", 409)
    await iot("create_thing", thingName="t")
    await iot("add_thing_to_thing_group", thingGroupName="g", thingName="t")
    stale = await iot.refused("delete_thing_group", thingGroupName="g", expectedVersion=1)
    assert stale[0] == "VersionConflictException"
    await iot("delete_thing_group", thingGroupName="g", expectedVersion=2)
    await iot("delete_thing_group", thingGroupName="g")
    assert (await iot("list_thing_groups_for_thing", thingName="t"))["thingGroups"] == []


async def test_a_dynamic_group_holds_whatever_its_query_finds_now(gateway: Gateway, iot: Iot) -> None:
    for name, site in (("a", "ber"), ("b", "muc"), ("c", "ber")):
        await iot("create_thing", thingName=name, attributePayload={"attributes": {"site": site}})
    query = "attributes.site:ber AND shadow.reported.temperature>30"
    created = await iot("create_dynamic_thing_group", thingGroupName="hot", queryString=query)
    assert (created["indexName"], created["queryString"]) == ("AWS_Things", query)

    async def members() -> list[str]:
        found: list[str] = (await iot("list_things_in_thing_group", thingGroupName="hot"))["things"]
        return found

    assert await members() == []
    for name, degrees in (("a", 31), ("b", 40), ("c", 20)):
        await shadow_of(gateway, name, {"temperature": degrees})
    assert await members() == ["a"]
    assert [
        group["groupName"]
        for group in (await iot("list_thing_groups_for_thing", thingName="a"))["thingGroups"]
    ] == ["hot"]
    await iot(
        "update_dynamic_thing_group",
        thingGroupName="hot",
        thingGroupProperties={},
        queryString="shadow.reported.temperature>=40",
        expectedVersion=1,
    )
    assert await members() == ["b"]
    described = await iot("describe_thing_group", thingGroupName="hot")
    assert (described["status"], described["version"]) == ("ACTIVE", 2)
    for operation in ("add_thing_to_thing_group", "remove_thing_from_thing_group"):
        refused = await iot.refused(operation, thingGroupName="hot", thingName="b")
        assert (refused[0], "dynamic" in refused[2]) == ("InvalidRequestException", True)
    assert (await iot.refused("delete_thing_group", thingGroupName="hot"))[0] == "InvalidRequestException"
    await iot("delete_dynamic_thing_group", thingGroupName="hot")
    assert (await iot("list_thing_groups"))["thingGroups"] == []


# Search


async def test_search_finds_things_by_name_attribute_type_group_and_shadow(
    gateway: Gateway, iot: Iot
) -> None:
    await iot("create_thing_type", thingTypeName="lamp")
    await iot("create_thing_group", thingGroupName="hall")
    for number in range(4):
        payload = {"attributes": {"site": "ber" if number % 2 else "muc"}}
        more = {"thingTypeName": "lamp"} if number == 0 else {}
        await iot("create_thing", thingName=f"lamp-{number}", attributePayload=payload, **more)
        await shadow_of(gateway, f"lamp-{number}", {"power": number * 10})
    await iot("add_thing_to_thing_group", thingGroupName="hall", thingName="lamp-2")

    async def names(query: str, **more: Any) -> list[list[str]]:
        pages = await iot.pages("search_index", "things", queryString=query, **more)
        return [[thing["thingName"] for thing in page] for page in pages]

    assert await names("thingName:lamp-*") == [["lamp-0", "lamp-1", "lamp-2", "lamp-3"]]
    assert await names("thingName:lamp-*", maxResults=2) == [["lamp-0", "lamp-1"], ["lamp-2", "lamp-3"]]
    assert await names("attributes.site:ber") == [["lamp-1", "lamp-3"]]
    assert await names("thingTypeName:lamp") == [["lamp-0"]]
    assert await names("thingGroupNames:hall") == [["lamp-2"]]
    assert await names("shadow.reported.power>5 AND NOT attributes.site:ber") == [["lamp-2"]]
    assert await names("attributes.site:paris") == [[]]
    (found,) = (await iot("search_index", queryString="thingName:lamp-2"))["things"]
    assert (found["thingGroupNames"], found["attributes"]) == (["hall"], {"site": "muc"})
    shadow = json.loads(found["shadow"])
    assert (shadow["reported"], shadow["version"], shadow["hasDelta"]) == ({"power": 20}, 1, False)
    connected = Connectivity(True, 1_760_000_000_000, session="s", version=1)
    link = msgspec.json.encode(connected)
    await gateway.fleet.ask(Request(Operation.CONNECTIVITY, "lamp-1", link, is_direct=True))
    config = b'{"state":{"desired":{"mode":"eco"}}}'
    await gateway.fleet.ask(Request(Operation.SHADOW_UPDATE, "lamp-3", config, "config", is_direct=True))
    assert await names("connectivity.connected:true") == [["lamp-1"]]
    assert await names("shadow.name.config.desired.mode:eco") == [["lamp-3"]]
    assert await names("shadow.name.config.hasDelta:true OR connectivity.connected:true") == [
        ["lamp-1", "lamp-3"]
    ]
    (found,) = (await iot("search_index", queryString="thingName:lamp-1"))["things"]
    assert found["connectivity"] == {
        "connected": True,
        "timestamp": connected.timestamp,
        "clientId": "lamp-1",
    }
    assert (await iot("describe_index", indexName="AWS_Things"))["indexStatus"] == "ACTIVE"


# What is told over MQTT


async def test_changes_of_a_thing_are_announced(gateway: Gateway, iot: Iot) -> None:
    await iot("create_thing_type", thingTypeName="lamp")
    announced(gateway)
    created = await iot("create_thing", thingName="l", thingTypeName="lamp")
    (topic, body), (association, relation) = announced(gateway)
    assert topic == "$aws/events/thing/l/created"
    assert isinstance(body.pop("timestamp"), int)
    assert uuid.UUID(body.pop("eventId")).version == 4
    assert body == {
        "eventType": "THING_EVENT",
        "operation": "CREATED",
        "accountId": "000000000000",
        "thingId": created["thingId"],
        "thingName": "l",
        "versionNumber": 1,
        "thingTypeName": "lamp",
        "attributes": {},
    }
    assert association == "$aws/events/thingTypeAssociation/thing/l/lamp"
    assert (relation["eventType"], relation["operation"]) == ("THING_TYPE_ASSOCIATION_EVENT", "CREATED")
    await iot("create_thing", thingName="l", thingTypeName="lamp")
    assert announced(gateway) == []
    await iot("update_thing", thingName="l", attributePayload={"attributes": {"a": "b"}})
    ((topic, body),) = announced(gateway)
    assert (topic, body["versionNumber"], body["attributes"]) == (
        "$aws/events/thing/l/updated",
        2,
        {"a": "b"},
    )
    await iot("delete_thing", thingName="l")
    *_, (topic, body) = announced(gateway)
    assert (topic, body["operation"]) == ("$aws/events/thing/l/deleted", "DELETED")


async def test_changes_of_types_and_groups_are_announced(gateway: Gateway, iot: Iot) -> None:
    await iot("create_thing_type", thingTypeName="lamp")
    await iot("deprecate_thing_type", thingTypeName="lamp")
    (first, second) = announced(gateway)
    assert (first[0], first[1]["isDeprecated"], first[1]["deprecationDate"]) == (
        "$aws/events/thingType/lamp/created",
        False,
        None,
    )
    assert (second[0], second[1]["isDeprecated"]) == ("$aws/events/thingType/lamp/updated", True)
    parent = await iot("create_thing_group", thingGroupName="p")
    child = await iot("create_thing_group", thingGroupName="c", parentGroupName="p")
    (_, (topic, body), (place, relation)) = announced(gateway)
    assert topic == "$aws/events/thingGroup/c/created"
    assert (body["parentGroupName"], body["parentGroupId"]) == ("p", parent["thingGroupId"])
    assert body["rootToParentThingGroups"] == [
        {"groupArn": f"{ARN}:thinggroup/p", "groupId": parent["thingGroupId"]}
    ]
    assert (place, relation["childGroupId"]) == (
        "$aws/events/thingGroupHierarchy/thingGroup/p/childThingGroup/c/added",
        child["thingGroupId"],
    )
    thing = await iot("create_thing", thingName="t")
    announced(gateway)
    await iot("add_thing_to_thing_group", thingGroupName="c", thingName="t")
    await iot("delete_thing_group", thingGroupName="c")
    ((topic, joined), (gone, left), (deleted, _), (removed, _)) = announced(gateway)
    assert topic == "$aws/events/thingGroupMembership/thingGroup/c/thing/t/added"
    assert gone == "$aws/events/thingGroupMembership/thingGroup/c/thing/t/removed"
    assert joined["membershipId"] == left["membershipId"]
    assert (joined["groupArn"], joined["thingArn"], joined["thingId"]) == (
        f"{ARN}:thinggroup/c",
        f"{ARN}:thing/t",
        thing["thingId"],
    )
    assert deleted == "$aws/events/thingGroup/c/deleted"
    assert removed == "$aws/events/thingGroupHierarchy/thingGroup/p/childThingGroup/c/removed"
