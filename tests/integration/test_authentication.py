"""Who may ask the operators' API: stock boto3 with access keys against a gateway on a real socket."""

from __future__ import annotations

import asyncio
import datetime as dt
import http.client
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import botocore.auth
import botocore.crt.auth
import httpx
import msgspec
import pytest
import redis.asyncio
from botocore.exceptions import ClientError

from actors.errors import StoreError
from actors.gateway.server import HttpServer
from actors.registry.access_keys import AccessKeyRecord, AccessKeys
from actors.registry.store import RegistryStore
from actors.store import RedisServer
from actors.vault import Vault
from actors.wall_clock import WallClock
from tests.integration.boto3_clients import boto3_client, refusal
from tests.integration.running_gateway import Gateway, assert_problem, open_gateway
from tests.running_store import running_store

_PREFIXES = (f"authentication{number}:" for number in itertools.count())


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_store(tmp_path_factory.mktemp("store")) as started:
        yield started


class Site:
    """A gateway on a socket, and the keys to it."""

    def __init__(self, gateway: Gateway, url: str, *, prefix: str = "") -> None:
        self.gateway = gateway
        self.url = url
        self.prefix = prefix

    async def key(self, role: str, name: str | None = None) -> dict[str, Any]:
        async with self.gateway.client() as operator:
            answer = await operator.post("/v1/keys", json={"name": name or f"a-{role}", "role": role})
        assert answer.status_code == 201, answer.text
        made: dict[str, Any] = answer.json()
        return made

    async def ask(self, service: str, operation: str, key: dict[str, Any], **arguments: Any) -> Any:
        """Return what a boto3 client got; ClientError if it was refused."""
        client = boto3_client(service, self.url, key)
        return await asyncio.to_thread(getattr(client, operation), **arguments)

    async def refused(self, service: str, operation: str, key: dict[str, Any], **arguments: Any) -> Any:
        with pytest.raises(ClientError) as caught:
            await self.ask(service, operation, key, **arguments)
        return caught.value


@pytest.fixture
async def site(store: RedisServer, tmp_path: Path) -> AsyncIterator[Site]:
    prefix = next(_PREFIXES)
    async with open_gateway(store.url, tmp_path / "platform", prefix=prefix) as gateway:
        server = HttpServer(gateway.app, port=0, option="--api-port")
        await server.start()
        yield Site(gateway, server.url, prefix=prefix)
        await server.stop()


async def test_a_secret_is_shown_when_it_is_made_and_never_again(site: Site, store: RedisServer) -> None:
    made = await site.key("viewer", "ci")
    assert (len(made["access_key_id"]), made["access_key_id"][:4]) == (20, "AKIA")
    assert len(made["secret_access_key"]) == 40
    async with site.gateway.client() as operator:
        listed = await operator.get("/v1/keys")
        assert_problem(
            await operator.post("/v1/keys", json={"name": "ci", "role": "admin"}), 409, "ConflictException"
        )
    assert [(key["name"], key["role"]) for key in listed.json()["keys"]] == [("ci", "viewer")]
    assert made["secret_access_key"] not in listed.text
    kept = await site.gateway.registry.access_keys.find(made["access_key_id"])
    assert made["secret_access_key"] not in str(kept)


@pytest.mark.parametrize(
    "body",
    [
        {"name": "a b", "role": "viewer"},
        {"name": "operator", "role": "viewer"},
        {"name": "platform", "role": "viewer"},
        {"name": "ci", "role": "root"},
        {"name": "ci"},
    ],
)
async def test_a_key_described_wrongly_is_refused(site: Site, body: dict[str, str]) -> None:
    async with site.gateway.client() as operator:
        assert_problem(await operator.post("/v1/keys", json=body), 400, "InvalidRequestException")


async def test_each_role_may_what_the_table_says(site: Site) -> None:
    await site.gateway.fleet.twin("lamp").update_desired({"on": True})
    viewer, operator, admin = [await site.key(role) for role in ("viewer", "operator", "admin")]
    for key in (viewer, operator, admin):
        assert (await site.ask("iot-data", "get_thing_shadow", key, thingName="lamp"))["payload"].read()
    update = {"thingName": "lamp", "payload": b'{"state":{"desired":{"on":false}}}'}
    error = await site.refused("iot-data", "update_thing_shadow", viewer, **update)
    assert refusal(error) == (403, "ForbiddenException")
    assert "needs the role operator; 'a-viewer' is viewer" in str(error)
    await site.ask("iot-data", "update_thing_shadow", operator, **update)
    await site.ask("iot-data", "update_thing_shadow", admin, **update)
    # What only an admin may do has no place in AWS's API.
    assert (await site.gateway.fleet.twin("lamp").shadow())["version"] == 3


@pytest.mark.parametrize(
    "target",
    [
        "/v1/keys",
        "//v1/keys",
        "/V1/keys",
        "/v1/keys/",
        "/v1/%6beys",
        "/v1/keys%0A",
        "/v1/keys%2F",
        "/v1/keys?path=/v1/things",
        "/v1/things/../keys",
        "/v1/things/%2e%2e/keys",
        "/v1/things%2F..%2Fkeys",
    ],
)
async def test_no_spelling_of_a_path_opens_what_the_role_does_not(site: Site, target: str) -> None:
    key = await site.key("operator")

    def ask(method: str, path: str) -> int:
        request = botocore.awsrequest.AWSRequest(method, site.url + path, data=b"{}")
        request.headers["X-HTTP-Method-Override"] = "GET"
        credentials = botocore.credentials.Credentials(key["access_key_id"], key["secret_access_key"])
        botocore.auth.SigV4Auth(credentials, "execute-api", "eu-central-1").add_auth(request)
        # It sends the path as it is given.
        connection = http.client.HTTPConnection(site.url.removeprefix("http://"))
        connection.request(method, path, b"{}", dict(request.headers.items()))
        status = connection.getresponse().status
        connection.close()
        return status

    assert await asyncio.to_thread(ask, "GET", "/v1/things") == 200
    for method in ("GET", "POST"):
        # Where the path begins as one that the role may use, there is nothing.
        expected = 404 if "things" in target.partition("?")[0] else 403
        assert await asyncio.to_thread(ask, method, target) == expected


async def test_a_wrong_secret_an_unknown_key_and_a_deleted_one_are_forbidden(site: Site) -> None:
    key = await site.key("admin", "ci")
    wrong = key | {"secret_access_key": "x" * 40}
    unknown = key | {"access_key_id": "AKIAAAAAAAAAAAAAAAAA"}
    assert refusal(await site.refused("iot-data", "get_thing_shadow", wrong, thingName="lamp")) == (
        403,
        "ForbiddenException",
    )
    assert refusal(await site.refused("iot-data", "get_thing_shadow", unknown, thingName="lamp")) == (
        403,
        "ForbiddenException",
    )
    assert refusal(await site.refused("iot", "list_things", wrong)) == (403, "InvalidSignatureException")
    assert refusal(await site.refused("iot", "list_things", unknown)) == (403, "UnrecognizedClientException")
    # It holds, so that what follows is refused for the deletion alone.
    assert refusal(await site.refused("iot-data", "get_thing_shadow", key, thingName="lamp"))[0] == 404
    async with site.gateway.client() as operator:
        assert (await operator.delete("/v1/keys/ci")).json()["name"] == "ci"
        assert_problem(await operator.delete("/v1/keys/ci"), 404, "ResourceNotFoundException")
    assert refusal(await site.refused("iot", "list_things", key)) == (403, "UnrecognizedClientException")


class SlowlyRead(AccessKeys):
    """Keys of which a reading takes until it is told to end."""

    def __init__(self, store: RegistryStore) -> None:
        super().__init__(store)
        self.has_read = asyncio.Event()
        self.may_end = asyncio.Event()

    async def all(self) -> list[AccessKeyRecord]:
        found = await super().all()
        self.has_read.set()
        await self.may_end.wait()
        return found


async def test_a_key_that_is_deleted_while_keys_are_read_is_not_found_again(store: RedisServer) -> None:
    opened = await RegistryStore.open(store.url, WallClock(), prefix=next(_PREFIXES))
    await AccessKeys(opened).add(AccessKeyRecord("AKIA", "ci", "admin", b"sealed", 0), by="anna")
    keys = SlowlyRead(opened)
    finding = asyncio.create_task(keys.find("AKIA"))
    await keys.has_read.wait()
    removal = asyncio.create_task(keys.remove("ci", by="anna"))
    # If it does not wait for the reading, it is through by then.
    await asyncio.wait([removal], timeout=0.1)
    keys.may_end.set()
    await asyncio.gather(finding, removal)
    assert await keys.find("AKIA") is None
    await opened.close()


@pytest.mark.parametrize("minutes", [-6, 6])
async def test_a_clock_that_is_wrong_by_more_than_five_minutes_is_told_so(
    site: Site, monkeypatch: pytest.MonkeyPatch, minutes: int
) -> None:
    key = await site.key("viewer")
    moment = dt.datetime.now(dt.UTC) + dt.timedelta(minutes=minutes)
    # botocore signs with one or the other, as awscrt is installed or not.
    for module in (botocore.auth, botocore.crt.auth):
        monkeypatch.setattr(module, "get_current_datetime", lambda **_: moment)
    error = await site.refused("iot", "list_things", key)
    assert refusal(error) == (403, "InvalidSignatureException")
    assert "set your clock" in str(error)


async def test_the_service_of_the_signature_tells_apart_what_shares_a_path(site: Site) -> None:
    key = await site.key("operator")
    pending = await site.refused("iot-jobs-data", "get_pending_job_executions", key, thingName="nobody")
    assert refusal(pending) == (404, "ResourceNotFoundException")
    await _register(site, "lamp")
    pending = await site.ask("iot-jobs-data", "get_pending_job_executions", key, thingName="lamp")
    assert (pending["inProgressJobs"], pending["queuedJobs"]) == ([], [])
    listed = await site.ask("iot", "list_job_executions_for_thing", key, thingName="lamp")
    assert (listed["executionSummaries"], "queuedJobs" in listed) == ([], False)
    described = await site.ask(
        "iot-jobs-data", "describe_job_execution", key, thingName="lamp", jobId="$next"
    )
    started = await site.ask("iot-jobs-data", "start_next_pending_job_execution", key, thingName="lamp")
    assert ("execution" in described, "execution" in started) == (False, False)
    named = {"thingName": "lamp", "jobId": "update-1"}
    for service, operation, more in (
        ("iot-jobs-data", "describe_job_execution", {}),
        ("iot-jobs-data", "update_job_execution", {"status": "SUCCEEDED"}),
        ("iot", "describe_job_execution", {}),
    ):
        error = await site.refused(service, operation, key, **named, **more)
        assert refusal(error) == (404, "ResourceNotFoundException")


async def _register(site: Site, name: str) -> None:
    async with site.gateway.client() as operator:
        made = await operator.post("/v1/things", json={"name": name, "model": "thermostat"})
    assert made.status_code in (200, 201), made.text


async def test_a_service_that_is_not_here_is_named(site: Site) -> None:
    error = await site.refused("lambda", "list_functions", await site.key("admin"))
    assert refusal(error) == (403, "InvalidSignatureException")
    assert "service 'lambda'; here are execute-api, iot, " in str(error)


async def test_a_signed_url_opens_what_it_was_signed_for_and_nothing_else(site: Site) -> None:
    await site.gateway.fleet.twin("lamp").update_desired({"on": True})
    client = boto3_client("iot-data", site.url, await site.key("viewer"))
    url = client.generate_presigned_url("get_thing_shadow", Params={"thingName": "lamp"}, ExpiresIn=60)
    async with httpx.AsyncClient() as anybody:
        assert (await anybody.get(url)).json()["state"]["desired"] == {"on": True}
        assert_problem(await anybody.delete(url), 403, "ForbiddenException")
        assert_problem(await anybody.get(url.replace("/lamp/", "/bell/")), 403, "ForbiddenException")


async def test_a_key_outlives_the_gateway(store: RedisServer, tmp_path: Path) -> None:
    prefix = next(_PREFIXES)
    directory = tmp_path / "platform"
    async with open_gateway(store.url, directory, prefix=prefix) as gateway:
        key = await Site(gateway, "").key("viewer")
    async with open_gateway(store.url, directory, prefix=prefix) as gateway:
        server = HttpServer(gateway.app, port=0, option="--api-port")
        await server.start()
        assert (await Site(gateway, server.url).ask("iot", "list_things", key))["things"] == []
        await server.stop()


async def test_a_key_that_does_not_open_is_told_to_the_log_and_to_nobody_as_a_refusal(site: Site) -> None:
    key = await site.key("viewer")
    keys = site.gateway.registry.access_keys
    kept = await keys.find(key["access_key_id"])
    assert kept is not None
    await keys.remove(kept.name, by="operator")
    # As if it had been put there from another platform's registry.
    other = Vault.open(site.gateway.platform.data_dir / "other.key")
    foreign = msgspec.structs.replace(kept, sealed_secret=other.seal(b"x", b""))
    await keys.add(foreign, by="operator")
    error = await site.refused("iot", "list_things", key)
    assert refusal(error)[0] == 503
    assert "vault.key: is not the key under which the secret was sealed" in str(error)


async def test_a_store_that_does_not_answer_is_no_refusal(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await site.key("viewer")

    async def unanswered(_: str) -> None:
        raise StoreError("Redis does not answer; try again", retryable=True)

    monkeypatch.setattr(site.gateway.registry.access_keys, "find", unanswered)
    assert refusal(await site.refused("iot", "list_things", key))[0] == 503


async def test_changes_of_keys_are_in_the_audit_log_with_who_made_them(
    site: Site, store: RedisServer
) -> None:
    admin = await site.key("admin", "chief")
    url = f"{site.url}/v1/keys"
    request = botocore.awsrequest.AWSRequest(
        "POST", url, data=b'{"name":"ci","role":"viewer"}', headers={"Content-Type": "application/json"}
    )
    credentials = botocore.credentials.Credentials(admin["access_key_id"], admin["secret_access_key"])
    botocore.auth.SigV4Auth(credentials, "execute-api", "eu-central-1").add_auth(request)
    async with httpx.AsyncClient() as chief:
        made = await chief.post(url, content=request.data, headers=dict(request.headers.items()))
    assert made.status_code == 201, made.text
    client: Any = redis.asyncio.Redis.from_url(store.url, decode_responses=True)
    entries = await client.xrevrange(f"{site.prefix}registry", count=1)
    await client.aclose()
    expected = {"by": "chief", "action": "access_key.create", "subject": "ci"}
    assert expected.items() <= entries[0][1].items()
