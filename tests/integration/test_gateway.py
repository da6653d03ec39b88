"""The gateway over real sockets and a real Redis: who may ask what, what is answered, in which order things change."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from actors.errors import PortInUse, StoreError, WorldError
from actors.gateway.operators import OPEN_PATHS
from actors.gateway.server import HttpServer, bind_loopback
from actors.metrics import ProcessStatus
from actors.pki import generate_key_and_csr
from actors.registry.records import FleetRecord, new_thing
from scenarios.source import parse_yaml
from tests.integration.running_gateway import BEARER, Gateway, assert_problem
from twins.messages import GroupOrder, Operation, Request
from twins.model import Group
from twins.model_reading import read_model
from twins.shipped import model_named, shipped_text

DEADLINE_S = 10.0


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    async with gateway.client() as opened:
        yield opened


def thing_body(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "model": "thermostat", "csr": generate_key_and_csr(name).csr_pem, **more}


# Who may ask


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Basic " + BEARER["Authorization"].partition(" ")[2]},
        {"Authorization": BEARER["Authorization"] + "x"},
    ],
)
@pytest.mark.parametrize("path", ["/v1/things", "/things/lamp/shadow", "/openapi.json", "/no/such/path"])
async def test_nothing_is_told_without_the_token(
    gateway: Gateway, headers: dict[str, str], path: str
) -> None:
    async with gateway.client(headers) as client:
        response = await client.get(path)
    assert_problem(response, 401, "UnauthorizedException")
    assert response.headers["www-authenticate"].startswith("Bearer")


async def test_probes_and_metrics_are_open(gateway: Gateway) -> None:
    async with gateway.client({}) as client:
        for path in OPEN_PATHS:
            assert (await client.get(path)).status_code == 200


async def test_the_scheme_of_the_token_is_read_as_http_says(gateway: Gateway) -> None:
    token = BEARER["Authorization"].partition(" ")[2]
    async with gateway.client({"Authorization": f"bearer {token}"}) as client:
        assert (await client.get("/v1/things")).status_code == 200


# Shadows


async def test_a_shadow_is_changed_read_and_deleted_as_on_the_wire(client: httpx.AsyncClient) -> None:
    update = {"state": {"desired": {"set_point": 21.5}}, "clientToken": "t1"}
    accepted = await client.post("/things/lamp/shadow", json=update)
    assert accepted.status_code == 200
    assert accepted.headers["content-type"] == "application/json"
    assert accepted.json()["state"] == {"desired": {"set_point": 21.5}}
    assert (accepted.json()["version"], accepted.json()["clientToken"]) == (1, "t1")
    document = (await client.get("/things/lamp/shadow")).json()
    assert document["state"] == {"desired": {"set_point": 21.5}, "delta": {"set_point": 21.5}}
    deleted = await client.delete("/things/lamp/shadow")
    assert deleted.json()["version"] == 1
    missing = assert_problem(await client.get("/things/lamp/shadow"), 404, "ResourceNotFoundException")
    assert missing["message"] == "No shadow exists with name: 'lamp'"


async def test_a_percent_encoded_thing_name_is_the_name_itself(client: httpx.AsyncClient) -> None:
    body = {"state": {"reported": {"on": True}}}
    assert (await client.post("/things/a%3Ab/shadow", json=body)).status_code == 200
    assert (await client.get("/things/a:b/shadow")).json()["state"] == {"reported": {"on": True}}


async def test_named_shadows_are_apart_and_listed_in_pages(client: httpx.AsyncClient) -> None:
    for name in ("c", "a", "b"):
        update = {"state": {"desired": {"name": name}}}
        assert (await client.post(f"/things/lamp/shadow?name={name}", json=update)).status_code == 200
    assert_problem(await client.get("/things/lamp/shadow"), 404, "ResourceNotFoundException")
    url = "/api/things/shadow/ListNamedShadowsForThing/lamp"
    first = (await client.get(url, params={"pageSize": 2})).json()
    assert (first["results"], isinstance(first["timestamp"], int)) == (["a", "b"], True)
    second = (await client.get(url, params={"pageSize": 2, "nextToken": first["nextToken"]})).json()
    assert (second["results"], "nextToken" in second) == (["c"], False)
    unknown = (await client.get("/api/things/shadow/ListNamedShadowsForThing/nobody")).json()
    assert unknown["results"] == []


@pytest.mark.parametrize(
    ("body", "status", "error_type", "message"),
    [
        (b"{", 400, "InvalidRequestException", "Invalid JSON"),
        (b"", 400, "InvalidRequestException", "Invalid JSON"),
        (b"{}", 400, "InvalidRequestException", "Missing required node: state"),
        (
            b'{"state":{"desired":{}},"version":7,"clientToken":"t"}',
            409,
            "ConflictException",
            "Version conflict",
        ),
        (
            b'{"state":{"desired":{"a":"' + b"x" * 9000 + b'"}}}',
            413,
            "RequestEntityTooLargeException",
            "The payload exceeds the maximum size allowed",
        ),
        (
            b'{"state":{"desired":{"a":"\xff"}}}',
            415,
            "UnsupportedDocumentEncodingException",
            "Unsupported documented encoding; supported encoding is UTF-8",
        ),
    ],
)
async def test_a_refused_update_says_what_the_wire_says(
    client: httpx.AsyncClient, body: bytes, status: int, error_type: str, message: str
) -> None:
    await client.post("/things/lamp/shadow", json={"state": {"desired": {"a": 1}}})
    refused = assert_problem(await client.post("/things/lamp/shadow", content=body), status, error_type)
    assert refused["message"] == message
    if b"clientToken" in body:
        assert refused["clientToken"] == "t"


@pytest.mark.parametrize(
    "path",
    [
        "/things/a.b/shadow",
        "/things/" + "ab" * 32 + "/shadow",
        "/things/" + "n" * 129 + "/shadow",
        "/things/lamp/shadow?name=a.b",
        "/things/lamp/shadow?name=" + "n" * 65,
        "/v1/twins/a.b/telemetry",
        "/v1/things/a.b",
        "/v1/things?limit=0",
        "/v1/things?limit=x",
    ],
)
async def test_a_malformed_name_or_number_is_a_bad_request(client: httpx.AsyncClient, path: str) -> None:
    assert_problem(await client.get(path), 400, "InvalidRequestException")


async def test_unknown_paths_and_methods_are_problems_too(client: httpx.AsyncClient) -> None:
    assert_problem(await client.get("/v1/nothing"), 404, "ResourceNotFoundException")
    refused = await client.put("/things/lamp/shadow")
    assert_problem(refused, 405, "MethodNotAllowedException")
    assert "POST" in refused.headers["allow"] or "GET" in refused.headers["allow"]


async def test_the_api_describes_itself(client: httpx.AsyncClient) -> None:
    described = (await client.get("/openapi.json")).json()
    assert {"/things/{thing}/shadow", "/v1/things", "/v1/fleets", "/v1/cluster"} <= set(described["paths"])


async def test_telemetry_of_a_twin_is_shown(gateway: Gateway, client: httpx.AsyncClient) -> None:
    await gateway.fleet.ask(Request(Operation.TELEMETRY, "lamp", b'{"power": 3.5}', "main"))
    shown = (await client.get("/v1/twins/lamp/telemetry")).json()
    assert "power" in str(shown)


# Bodies


@pytest.mark.parametrize(
    ("header", "body"),
    [
        # Refused for its length alone: not a byte of it was sent.
        (b"Content-Length: 131073", b""),
        # Refused on the way: it has no end.
        (b"Transfer-Encoding: chunked", b"20001\r\n" + b" " * 0x20001 + b"\r\n"),
    ],
)
async def test_a_body_beyond_the_limit_is_refused_before_it_is_read_whole(
    gateway: Gateway, header: bytes, body: bytes
) -> None:
    server = HttpServer(gateway.app, port=0, option="--api-port")
    await server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    token = BEARER["Authorization"].encode()
    head = b"POST /things/lamp/shadow HTTP/1.1\r\nHost: x\r\nAuthorization: " + token + b"\r\n" + header
    writer.write(head + b"\r\n\r\n" + body)
    async with asyncio.timeout(DEADLINE_S):
        answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"application/problem+json" in answer
    writer.close()
    await server.stop()


# Things


async def test_a_created_device_has_a_certificate_of_the_platform(
    gateway: Gateway, client: httpx.AsyncClient
) -> None:
    created = await client.post("/v1/things", json=thing_body("lamp", attributes={"room": "hall"}))
    assert created.status_code == 201
    body = created.json()
    assert (body["thing_name"], body["model"], body["attributes"]) == ("lamp", "thermostat", {"room": "hall"})
    assert body["ca_pem"] == gateway.authority.certificate_pem()
    assert body["mqtts"] == {"host": "127.0.0.1", "port": 8883}
    described = (await client.get("/v1/things/lamp")).json()
    (certificate,) = described["certificates"]
    assert certificate["certificate_pem"] == body["certificate_pem"]
    assert (certificate["status"], described["origin"]) == ("ACTIVE", "real")
    assert gateway.platform.reload_count == 0
    assert (await client.get("/things/lamp/shadow")).status_code in (200, 404)


async def test_the_same_request_again_gets_the_same_certificate(client: httpx.AsyncClient) -> None:
    body = thing_body("lamp")
    first = await client.post("/v1/things", json=body)
    again = await client.post("/v1/things", json=body)
    assert (again.status_code, again.json()) == (201, first.json())
    other = await client.post("/v1/things", json=thing_body("lamp"))
    assert "delete it first" in assert_problem(other, 409, "ConflictException")["detail"]


async def test_a_long_name_has_its_access_entry_before_the_answer(
    gateway: Gateway, client: httpx.AsyncClient
) -> None:
    long_name = "n" * 128
    created = (await client.post("/v1/things", json=thing_body(long_name))).json()
    assert gateway.platform.reload_count == 1
    assert created["certificate_id"] in gateway.platform.device_acl()
    assert long_name in gateway.platform.device_acl()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"name": "a.b"}, "thing name"),
        ({"model": "toaster"}, "toaster"),
        ({"csr": "no request"}, "signing request"),
        ({"attributes": {"a": 1}}, "attributes.a"),
        ({"colour": "red"}, "colour"),
        ({"name": None}, "name"),
    ],
)
async def test_a_thing_described_wrongly_is_refused_and_not_made(
    client: httpx.AsyncClient, change: dict[str, Any], told: str
) -> None:
    refused = await client.post("/v1/things", json=thing_body("lamp") | change)
    assert told in assert_problem(refused, 400, "InvalidRequestException")["detail"]
    assert (await client.get("/v1/things")).json() == {"things": []}


async def test_things_are_listed_in_pages(client: httpx.AsyncClient) -> None:
    for name in ("b", "a", "c"):
        await client.post("/v1/things", json=thing_body(name))
    first = (await client.get("/v1/things?limit=2")).json()
    assert [thing["thing_name"] for thing in first["things"]] == ["a", "b"]
    second = (await client.get("/v1/things", params={"limit": 2, "cursor": first["next_cursor"]})).json()
    assert ([thing["thing_name"] for thing in second["things"]], "next_cursor" in second) == (["c"], False)


async def test_a_deleted_device_is_revoked_forgotten_and_may_come_again(
    gateway: Gateway, client: httpx.AsyncClient
) -> None:
    created = (await client.post("/v1/things", json=thing_body("lamp"))).json()
    certificate = await gateway.registry.certificates.get(created["certificate_id"])
    assert certificate is not None
    await client.post("/things/lamp/shadow", json={"state": {"desired": {"set_point": 20}}})
    assert (await client.delete("/v1/things/lamp")).json() == {"thing_name": "lamp"}
    assert int(certificate.serial) in gateway.authority.revoked_serials()
    # Only a session that ends after the reload cannot come back.
    assert (gateway.platform.reload_count, gateway.platform.ended) == (1, [("lamp", 1)])
    for method, path in (
        ("GET", "/v1/things/lamp"),
        ("DELETE", "/v1/things/lamp"),
        ("GET", "/things/lamp/shadow"),
    ):
        assert_problem(await client.request(method, path), 404, "ResourceNotFoundException")
    assert (await client.post("/v1/things", json=thing_body("lamp"))).status_code == 201


async def test_a_deletion_that_was_cut_off_is_finished_by_the_next_one(
    gateway: Gateway, client: httpx.AsyncClient
) -> None:
    await client.post("/v1/things", json=thing_body("lamp"))
    # As far as a gateway gets that dies after its first step.
    await gateway.registry.things.begin_removal("lamp")
    assert (await client.get("/v1/things/lamp")).json()["status"] == "DELETING"
    refused = await client.post("/v1/things", json=thing_body("lamp"))
    assert "delete it again" in assert_problem(refused, 409, "ConflictException")["detail"]
    assert (await client.delete("/v1/things/lamp")).status_code == 200
    assert len(gateway.authority.revoked_serials()) == 1


async def test_a_deletion_that_was_cut_off_is_finished_at_the_next_start(
    gateway: Gateway, client: httpx.AsyncClient
) -> None:
    for name in ("lamp", "bell"):
        await client.post("/v1/things", json=thing_body(name))
    (certificate,) = await gateway.registry.things.begin_removal("lamp")
    await gateway.app.state.settle()
    assert gateway.authority.revoked_serials() == {int(certificate.serial)}
    listed = (await client.get("/v1/things")).json()["things"]
    assert [thing["thing_name"] for thing in listed] == ["bell"]
    assert await gateway.registry.things.removals() == []


async def test_an_access_entry_that_was_cut_off_is_written_at_the_next_start(gateway: Gateway) -> None:
    long_name = "n" * 128
    issued = gateway.authority.issue_for_thing(generate_key_and_csr("").csr_pem, long_name)
    await gateway.registry.things.add(new_thing(long_name, "untyped", {}, now_s=0), issued)
    await gateway.app.state.settle()
    assert long_name in gateway.platform.device_acl()


async def test_a_creation_that_was_cut_off_before_the_registry_leaves_no_obstacle(
    gateway: Gateway, client: httpx.AsyncClient
) -> None:
    payload = b'{"model":"untyped","attributes":{}}'
    await gateway.fleet.ask(Request(Operation.REGISTER, "lamp", payload, is_direct=True))
    assert (await client.post("/v1/things", json=thing_body("lamp"))).status_code == 201


# Standing fleets


async def test_a_standing_fleet_comes_is_listed_and_goes(gateway: Gateway, client: httpx.AsyncClient) -> None:
    began_s = int(time.time())
    order = {"name": "hall", "model": "thermostat", "count": 300, "seed": 7, "report_every_s": 30}
    created = await client.post("/v1/fleets", json=order)
    assert created.status_code == 201
    fleet = created.json()
    assert (fleet["status"], fleet["thing_name"]) == ("ACTIVE", "hall-{i:06d}")
    assert {key: fleet[key] for key in order} == order
    group = (await gateway.registry.fleets.get("hall")).group.group()
    assert began_s <= group.start_s <= time.time()
    assert (await gateway.fleet.twins_table(["name"])).num_rows == 300
    assert (await client.get("/v1/fleets")).json() == {"fleets": [fleet]}
    described = (await client.get("/v1/things/hall-000299")).json()
    assert (described["origin"], described["fleet"]) == ("simulated", "hall")
    assert_problem(await client.get("/v1/things/hall-000300"), 404, "ResourceNotFoundException")
    assert (await client.delete("/v1/fleets/hall")).status_code == 200
    assert (await gateway.fleet.twins_table(["name"])).num_rows == 0
    assert_problem(await client.delete("/v1/fleets/hall"), 404, "ResourceNotFoundException")


async def test_a_fleet_may_bring_its_model_along_and_keeps_it(
    gateway: Gateway, client: httpx.AsyncClient
) -> None:
    model = parse_yaml(shipped_text("thermostat"), "").plain()
    model["reporting"] = {"every": "30s"}
    created = await client.post("/v1/fleets", json={"name": "hall", "model": model, "count": 10})
    assert created.status_code == 201
    fleet = created.json()
    # Without a period of its own the fleet reports as its model says.
    assert (fleet["model"], fleet["report_every_s"]) == ("thermostat", 30)
    kept = (await gateway.registry.fleets.get("hall")).group.group().model
    assert kept == read_model(model) != model_named("thermostat")
    described = (await client.get("/v1/twins/hall-000003")).json()
    assert (described["model"], described["origin"]) == ("thermostat", "simulated")


async def test_names_of_devices_and_fleets_do_not_collide(client: httpx.AsyncClient) -> None:
    order = {"name": "hall", "model": "thermostat", "count": 10}
    assert (await client.post("/v1/fleets", json=order)).status_code == 201
    assert_problem(await client.post("/v1/fleets", json=order), 409, "ConflictException")
    simulated = await client.delete("/v1/things/hall-000009")
    assert "fleet 'hall'" in assert_problem(simulated, 409, "ConflictException")["detail"]
    assert (await client.post("/v1/things", json=thing_body("hall-000010"))).status_code == 201
    assert (await client.post("/v1/things", json=thing_body("yard-000003"))).status_code == 201
    taken = await client.post("/v1/fleets", json=order | {"name": "yard"})
    assert "yard-000003" in assert_problem(taken, 409, "ConflictException")["detail"]


async def test_a_real_device_takes_a_simulated_ones_place_and_gives_it_back(
    client: httpx.AsyncClient,
) -> None:
    order = {"name": "hall", "model": "thermostat", "count": 10}
    assert (await client.post("/v1/fleets", json=order)).status_code == 201
    refused = await client.post("/v1/twins/hall-000009/give-back")
    assert "not taken over" in assert_problem(refused, 400, "InvalidRequestException")["detail"]
    assert (await client.post("/v1/things", json=thing_body("hall-000009"))).status_code == 201
    assert (await client.get("/v1/things/hall-000009")).json()["origin"] == "real"
    assert (await client.get("/v1/twins/hall-000009")).json()["origin"] == "real"
    assert (await client.post("/v1/twins/hall-000009/give-back")).status_code == 200
    assert (await client.get("/v1/twins/hall-000009")).json()["origin"] == "simulated"
    assert (await client.delete("/v1/things/hall-000009")).status_code == 200
    assert (await client.get("/v1/things/hall-000009")).json()["origin"] == "simulated"
    missing = await client.post("/v1/twins/nobody/give-back")
    assert_problem(missing, 404, "ResourceNotFoundException")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"count": 0}, "count"),
        ({"count": 10_000_001}, "10000000"),
        ({"count": "5"}, "count"),
        ({"model": "untyped"}, "no field to simulate"),
        ({"model": "toaster"}, "toaster"),
        ({"model": {"kind": "DeviceModel"}}, "fields: is missing"),
        ({"model": 5}, "model"),
        ({"name": "a/b"}, "fleet name"),
        ({"report_every_s": 0}, "report_every_s"),
        ({"speed": 3}, "speed"),
    ],
)
async def test_a_fleet_described_wrongly_is_refused_and_not_kept(
    client: httpx.AsyncClient, change: dict[str, Any], told: str
) -> None:
    order = {"name": "hall", "model": "thermostat", "count": 10} | change
    refused = await client.post("/v1/fleets", json=order)
    assert told in assert_problem(refused, 400, "InvalidRequestException")["detail"]
    assert (await client.get("/v1/fleets")).json() == {"fleets": []}


async def test_a_group_of_a_scenario_does_not_become_a_standing_fleet(
    gateway: Gateway, client: httpx.AsyncClient
) -> None:
    await gateway.fleet.create_group(Group("hall", model_named("thermostat"), "x-{i}", 5, seed=1, start_s=0))
    refused = await client.post("/v1/fleets", json={"name": "hall", "model": "thermostat", "count": 10})
    assert_problem(refused, 409, "ConflictException")
    assert (await client.get("/v1/fleets")).json() == {"fleets": []}


async def test_what_a_gateway_left_half_done_is_settled(gateway: Gateway) -> None:
    groups = [
        Group(name, model_named("thermostat"), f"{name}-{{i}}", 5, seed=1, start_s=0)
        for name in ("young", "old")
    ]
    for group in groups:
        await gateway.registry.fleets.add(FleetRecord(GroupOrder.of(group), 0))
    await gateway.fleet.create_group(groups[1])
    await gateway.registry.fleets.set_status("old", "DELETING")
    await gateway.app.state.settle()
    assert [(fleet.group.name, fleet.status) for fleet in await gateway.registry.fleets.all()] == [
        ("young", "ACTIVE")
    ]
    names = (await gateway.fleet.twins_table(["name"]))["name"].to_pylist()
    assert sorted(names) == [f"young-{index}" for index in range(5)]


# The platform


async def test_the_cluster_lists_its_processes(gateway: Gateway, client: httpx.AsyncClient) -> None:
    gateway.platform.statuses = [ProcessStatus("shard_actor", 77, (0, 1), 12, 3, "failed", "no memory")]
    cluster = (await client.get("/v1/cluster")).json()
    (process,) = cluster["processes"]
    assert (process["role"], process["pid"], process["shards"]) == ("shard_actor", 77, [0, 1])
    assert (process["twin_count"], process["queue_length"]) == (12, 3)
    assert (process["state"], process["reason"]) == ("failed", "no memory")


async def test_readiness_names_what_is_missing(gateway: Gateway, client: httpx.AsyncClient) -> None:
    gateway.platform.readiness_reasons = ("it does not answer",)
    unready = await client.get("/readyz")
    assert (unready.status_code, unready.json()["reasons"]) == (503, ["broker: it does not answer"])


async def test_readiness_and_processes_of_one_answer_are_of_one_moment(
    gateway: Gateway, client: httpx.AsyncClient
) -> None:
    gateway.platform.statuses = [ProcessStatus("shard_actor", 77, state="down", reason="no memory")]
    cluster = (await client.get("/v1/cluster")).json()
    assert (cluster["is_ready"], cluster["reasons"]) == (False, ["shard_actor 77: no memory"])
    assert gateway.platform.asked_count == 1


async def test_metrics_count_requests_by_route_and_name_no_device(
    gateway: Gateway, client: httpx.AsyncClient
) -> None:
    gateway.platform.statuses = [
        ProcessStatus("shard_actor", 1, (0,), 5, 2),
        ProcessStatus("shard_actor", 2, (1,), 6, 0),
        ProcessStatus("bridge", 3, totals={"received": 9}),
    ]
    await client.get("/things/secret-lamp/shadow")
    await client.get("/no/such/secret-path")
    await client.request("SECRET-METHOD", "/v1/things")
    text = (await client.get("/metrics")).text
    assert (
        'twinfleet_http_requests_total{listener="operators",method="GET",'
        'route="/things/{thing}/shadow",status="404"} 1.0'
    ) in text
    assert 'route="none"' in text
    assert 'twinfleet_twins{role="shard_actor"} 11.0' in text
    assert 'twinfleet_queue_requests{role="shard_actor"} 2.0' in text
    assert 'twinfleet_processes{role="shard_actor",state="ready"} 2.0' in text
    assert "twinfleet_bridge_received_total 9.0" in text
    assert "secret" not in text.lower()


class _Unreachable:
    """A platform whose parts do not answer."""

    def __init__(self, error: WorldError) -> None:
        self.error = error

    async def processes(self) -> list[ProcessStatus]:
        raise self.error


@pytest.mark.parametrize("retryable", [True, False])
async def test_a_part_that_does_not_answer_is_a_503(
    gateway: Gateway, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, retryable: bool
) -> None:
    error = StoreError("Redis does not answer; try again", retryable=retryable)
    monkeypatch.setattr(gateway.platform, "processes", _Unreachable(error).processes)
    refused = await client.get("/v1/cluster")
    assert_problem(refused, 503, "ServiceUnavailableException")
    assert ("retry-after" in refused.headers) is retryable
    # Monitoring stays of use.
    assert "twinfleet_http_requests_total" in (await client.get("/metrics")).text


# The server


async def test_a_server_stops_and_gives_its_port_back(gateway: Gateway) -> None:
    for _ in range(2):
        server = HttpServer(gateway.app, port=0, option="--api-port")
        await server.start()
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"{server.url}/healthz")).status_code == 200
        await server.stop()
        for bound in bind_loopback(server.port, option="--api-port"):
            bound.close()


def test_a_port_in_use_is_named_with_its_option() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(PortInUse, match="--device-port"),
    ):
        bind_loopback(taken.getsockname()[1], option="--device-port")


async def test_a_server_listens_on_loopback_only_and_on_both_families(gateway: Gateway) -> None:
    server = HttpServer(gateway.app, port=0, option="--api-port")
    await server.start()
    try:
        async with httpx.AsyncClient() as client:
            for host in ("127.0.0.1", "[::1]") if socket.has_dualstack_ipv6() else ("127.0.0.1",):
                assert (await client.get(f"http://{host}:{server.port}/healthz")).status_code == 200
    finally:
        await server.stop()
