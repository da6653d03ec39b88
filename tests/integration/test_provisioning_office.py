"""What a claim's requests are answered and what is kept of them: real registry, authority and twins, no broker."""

from __future__ import annotations

import base64
import gzip
import http.server
import json
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from msgspec.structs import replace

from actors.errors import BrokerError, DescriptionError, ProvisioningRefused, StoreError, ThingNotFound
from actors.pki import generate_key_and_csr
from actors.processes import wait_until
from actors.provisioning.hook import TIMEOUT_S, ask_hook, check_hook
from actors.provisioning.office import CREATE_FROM_CSR_TOPIC, CREATE_KEYS_TOPIC, ProvisioningOffice
from actors.provisioning.turns import ClaimAnswer, ClaimRequest
from actors.registry.records import CertificateRecord
from actors.registry.templates import TOKEN_LIFE_S, TemplateRecord
from actors.settings import is_process_alive
from actors.store import RedisServer
from tests.integration.provisioning_device import TEMPLATE
from tests.integration.running_gateway import Gateway, open_gateway
from tests.running_store import running_store
from twins.clock import VirtualClock

NOW_S = 1_760_000_000
PROVISION_TOPIC = "$aws/provisioning-templates/lamps/provision/json"
CLAIM = "claim.line"
BAD_TOKEN = (400, "InvalidCertificateOwnershipToken")


@dataclass
class Counter:
    """The office, and those who ask it."""

    gateway: Gateway
    office: ProvisioningOffice
    clock: VirtualClock

    async def ask(self, topic: str, body: Mapping[str, Any], *, claim: str = CLAIM) -> ClaimAnswer:
        """Return the answer to a request."""
        return await self.office.answer(claim, ClaimRequest(topic, json.dumps(body).encode()))

    async def certificate(self, *, csr: str = "", is_handed_over: bool = True) -> dict[str, str]:
        """Return what a device is given that asks for a certificate."""
        topic = CREATE_FROM_CSR_TOPIC if csr else CREATE_KEYS_TOPIC
        answer = await self.ask(topic, {"certificateSigningRequest": csr} if csr else {})
        assert answer.topic == f"{topic}/accepted", answer
        given: dict[str, str] = json.loads(answer.payload)
        assert answer.certificate_id == given["certificateId"]
        if is_handed_over:
            await self.office.hand_over(answer.certificate_id)
        return given

    async def provision(self, given: Mapping[str, str], serial: str, **parameters: str) -> dict[str, Any]:
        """Return the answer to a device that says which thing it is, whatever it is."""
        token = given["certificateOwnershipToken"]
        body = {"certificateOwnershipToken": token, "parameters": {"SerialNumber": serial, **parameters}}
        answered: dict[str, Any] = json.loads((await self.ask(PROVISION_TOPIC, body)).payload)
        return answered

    async def refusal(self, given: Mapping[str, str], serial: str, **parameters: str) -> tuple[int, str]:
        """Return status and code of the refusal that a device must get."""
        answer = await self.provision(given, serial, **parameters)
        assert answer["errorMessage"]
        return answer["statusCode"], answer["errorCode"]

    async def record(self, given: Mapping[str, str]) -> CertificateRecord | None:
        """Return what is kept of a certificate."""
        return await self.gateway.registry.certificates.get(given["certificateId"])

    async def is_barred(self, given: Mapping[str, str], serial: str) -> bool:
        """Tell whether a certificate that is kept no more is refused by the broker from the next reload on."""
        assert await self.record(given) is None
        return int(serial) in await self.gateway.registry.certificates.revoked()


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_store(tmp_path_factory.mktemp("store")) as server:
        yield server


@pytest.fixture
async def counter(
    shared_store: RedisServer, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Counter]:
    clock = VirtualClock(NOW_S)
    prefix = f"{request.node.name}:"
    async with open_gateway(shared_store.url, tmp_path / "data", prefix=prefix) as gateway:
        registry = gateway.registry
        await registry.templates.add(TemplateRecord("lamps", json.dumps(TEMPLATE), NOW_S), by="test")
        for name in ("line", "other"):
            csr = generate_key_and_csr(name).csr_pem
            await gateway.app.state.certificates.create_claim(name, "lamps", csr)
        office = ProvisioningOffice(
            registry,
            gateway.app.state.devices,
            authority=gateway.authority,
            platform=gateway.platform,
            clock=clock,
        )
        yield Counter(gateway, office, clock)


async def test_a_device_is_known_by_its_certificate_before_it_is_answered(counter: Counter) -> None:
    given = await counter.certificate()
    waiting = await counter.record(given)
    assert waiting is not None
    assert (waiting.status, waiting.thing_name) == ("PENDING_ACTIVATION", "")
    assert given["certificateId"] not in counter.gateway.platform.device_acl()
    answer = await counter.provision(given, "1")
    assert answer == {"thingName": "lamp-1", "deviceConfiguration": {"url": "https://hall.example"}}
    active = await counter.record(given)
    assert active is not None
    assert (active.status, active.thing_name) == ("ACTIVE", "lamp-1")
    assert f"user {given['certificateId']}" in counter.gateway.platform.device_acl()


def everything_in(url: str) -> str:
    """Return all that a Redis holds, in one text."""
    with redis.Redis.from_url(url, decode_responses=True) as client:
        readers: dict[str, Callable[[str], Any]] = {
            "string": client.get,
            "hash": client.hgetall,
            "zset": lambda key: client.zrange(key, 0, -1),
            "set": client.smembers,
            "stream": client.xrange,
        }
        return "\n".join(repr(readers[str(client.type(key))](key)) for key in client.scan_iter())


async def test_no_private_key_and_no_token_is_kept(counter: Counter, shared_store: RedisServer) -> None:
    given = await counter.certificate()
    everything = everything_in(shared_store.url)
    secret = given["certificateOwnershipToken"].partition(".")[2]
    assert len(secret) >= 43
    assert given["certificateId"] in everything
    assert secret not in everything
    assert "PRIVATE KEY" not in everything


async def test_a_token_expires_after_an_hour_and_its_certificate_is_deleted(counter: Counter) -> None:
    late, early = await counter.certificate(), await counter.certificate()
    waiting = await counter.record(late)
    assert waiting is not None
    counter.clock.advance_to(NOW_S + TOKEN_LIFE_S - 1)
    assert await counter.office.forget_expired() == 0
    assert (await counter.provision(early, "early"))["thingName"] == "lamp-early"
    counter.clock.advance_to(NOW_S + TOKEN_LIFE_S)
    assert await counter.refusal(late, "late") == BAD_TOKEN
    assert await counter.office.forget_expired() == 1
    assert await counter.is_barred(late, waiting.serial)
    kept = await counter.record(early)
    assert kept is not None
    assert kept.status == "ACTIVE"


async def test_a_token_counts_once_it_has_reached_its_device_and_for_its_claim_only(counter: Counter) -> None:
    given = await counter.certificate(is_handed_over=False)
    assert await counter.refusal(given, "1") == BAD_TOKEN
    await counter.office.hand_over(given["certificateId"])
    body = {
        "certificateOwnershipToken": given["certificateOwnershipToken"],
        "parameters": {"SerialNumber": "1"},
    }
    stolen = await counter.ask(PROVISION_TOPIC, body, claim="claim.other")
    assert json.loads(stolen.payload)["errorCode"] == BAD_TOKEN[1]
    assert (await counter.provision(given, "1"))["thingName"] == "lamp-1"
    assert await counter.refusal(given, "2") == BAD_TOKEN


async def test_what_was_sent_when_the_gateway_died_is_burnt_at_the_next_start(counter: Counter) -> None:
    sent, handed_over = await counter.certificate(is_handed_over=False), await counter.certificate()
    waiting = await counter.record(sent)
    assert waiting is not None
    await counter.office.burn_unsettled()
    assert await counter.is_barred(sent, waiting.serial)
    assert await counter.refusal(sent, "1") == BAD_TOKEN
    assert (await counter.provision(handed_over, "1"))["thingName"] == "lamp-1"


async def test_a_token_counts_until_what_it_is_for_is_done_to_the_end(
    counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = await counter.certificate()
    failed: list[str] = []

    async def fail() -> None:
        failed.append("once")
        raise BrokerError("the broker is away", retryable=True)

    with monkeypatch.context() as away:
        away.setattr(counter.gateway.platform, "reload_access", fail)
        assert await counter.refusal(given, "1") == (503, "ServiceUnavailable")
    assert failed
    # It is a thing's by now, and can be no other's.
    assert await counter.refusal(given, "2") == BAD_TOKEN
    assert (await counter.provision(given, "1"))["thingName"] == "lamp-1"
    assert f"user {given['certificateId']}" in counter.gateway.platform.device_acl()
    assert await counter.refusal(given, "1") == BAD_TOKEN
    thing = await counter.gateway.registry.things.get("lamp-1")
    assert thing.certificate_ids == [given["certificateId"]]


async def test_nothing_is_made_whose_answer_would_not_pass_the_broker(counter: Counter) -> None:
    document = json.loads(json.dumps(TEMPLATE))
    document["Parameters"]["Text"] = {"Type": "String", "Default": "short"}
    document["DeviceConfiguration"] = {f"{number}": {"Ref": "Text"} for number in range(40)}
    templates = counter.gateway.registry.templates
    await templates.remove("lamps", by="test")
    await templates.add(TemplateRecord("lamps", json.dumps(document), NOW_S), by="test")
    given = await counter.certificate()
    assert await counter.refusal(given, "1", Text="x" * 4_000) == (400, "InvalidParameters")
    with pytest.raises(ThingNotFound):
        await counter.gateway.registry.things.get("lamp-1")
    assert (await counter.provision(given, "1"))["thingName"] == "lamp-1"


async def test_a_certificate_that_became_a_things_meanwhile_is_not_forgotten(counter: Counter) -> None:
    given = await counter.certificate()
    waiting = await counter.record(given)
    assert waiting is not None
    await counter.provision(given, "1")
    with pytest.raises(StoreError):
        await counter.gateway.registry.certificates.forget(waiting, by="platform")
    kept = await counter.record(given)
    assert kept is not None
    assert kept.status == "ACTIVE"


async def test_a_burnt_certificate_counts_for_nothing_and_one_in_use_is_not_burnt(counter: Counter) -> None:
    burnt, used = await counter.certificate(), await counter.certificate()
    await counter.provision(used, "used")
    await counter.office.burn(burnt["certificateId"])
    await counter.office.burn(used["certificateId"])
    assert await counter.record(burnt) is None
    assert await counter.refusal(burnt, "1") == BAD_TOKEN
    kept = await counter.record(used)
    assert kept is not None
    assert kept.status == "ACTIVE"


async def test_a_device_that_lost_its_answer_asks_again_with_the_same_key(counter: Counter) -> None:
    csr = generate_key_and_csr("").csr_pem
    first, second = await counter.certificate(csr=csr), await counter.certificate(csr=csr)
    assert first["certificateId"] == second["certificateId"]
    assert first["certificatePem"] != second["certificatePem"]
    assert await counter.refusal(first, "1") == BAD_TOKEN
    assert (await counter.provision(second, "1"))["thingName"] == "lamp-1"


@pytest.mark.parametrize(
    ("topic", "payload", "code"),
    [
        (CREATE_FROM_CSR_TOPIC, b"{}", "InvalidRequest"),
        (CREATE_FROM_CSR_TOPIC, b'{"certificateSigningRequest": "no"}', "InvalidParameters"),
        (CREATE_FROM_CSR_TOPIC, b"\xff", "InvalidRequest"),
        (PROVISION_TOPIC, b"[]", "InvalidRequest"),
        (PROVISION_TOPIC, b'{"certificateOwnershipToken": 1}', "InvalidRequest"),
        (PROVISION_TOPIC, b'{"parameters": {"SerialNumber": 1}}', "InvalidRequest"),
        (PROVISION_TOPIC, b"", BAD_TOKEN[1]),
        (PROVISION_TOPIC, b'{"certificateOwnershipToken": "x\\u0000y.z"}', BAD_TOKEN[1]),
        (PROVISION_TOPIC, b"[" * 16_000, "InvalidRequest"),
        (PROVISION_TOPIC, b" " * 20_000, "PayloadTooLarge"),
        ("$aws/provisioning-templates/other/provision/json", b"{}", "ACCESS_DENIED"),
    ],
)
async def test_a_bad_request_is_refused_on_its_own_topic(
    counter: Counter, topic: str, payload: bytes, code: str
) -> None:
    answer = await counter.office.answer(CLAIM, ClaimRequest(topic, payload))
    assert answer.topic == f"{topic}/rejected"
    assert answer.certificate_id == ""
    body = json.loads(answer.payload)
    assert body.keys() == {"statusCode", "errorCode", "errorMessage"}
    assert body["errorCode"] == code


async def test_no_signing_request_makes_the_office_fail(counter: Counter) -> None:
    lines = generate_key_and_csr("x").csr_pem.splitlines()
    whole = bytearray(base64.b64decode("".join(lines[1:-1])))
    luck = random.Random(1)
    for _ in range(300):
        broken = bytes(whole)
        for _ in range(luck.choice([1, 1, 2, 3])):
            place = luck.randrange(len(whole))
            broken = broken[:place] + luck.randbytes(1) + broken[place + 1 :]
        text = "\n".join([lines[0], base64.b64encode(broken).decode(), lines[-1]])
        answer = await counter.ask(CREATE_FROM_CSR_TOPIC, {"certificateSigningRequest": text})
        assert answer.certificate_id or json.loads(answer.payload)["statusCode"] == 400


async def test_a_revoked_claim_gets_nothing(counter: Counter) -> None:
    await counter.gateway.app.state.certificates.revoke_named("claim", "line", by="test")
    answer = json.loads((await counter.ask(CREATE_KEYS_TOPIC, {})).payload)
    assert (answer["statusCode"], answer["errorCode"]) == (403, "ACCESS_DENIED")


async def use_template(counter: Counter, **thing: Any) -> None:
    """Put a template in the place of the other, with these members of its thing."""
    document = json.loads(json.dumps(TEMPLATE))
    document["Resources"]["thing"] |= thing
    templates = counter.gateway.registry.templates
    await templates.remove("lamps", by="test")
    await templates.add(TemplateRecord("lamps", json.dumps(document), NOW_S), by="test")


@pytest.mark.parametrize(
    ("setting", "attributes"),
    [
        ("DO_NOTHING", {"old": "1", "place": "attic"}),
        ("MERGE", {"old": "1", "place": "hall"}),
        ("REPLACE", {"place": "hall"}),
        ("FAIL", {"old": "1", "place": "attic"}),
    ],
)
async def test_a_thing_that_is_there_is_changed_as_the_template_says(
    counter: Counter, setting: str, attributes: dict[str, str]
) -> None:
    await use_template(counter, OverrideSettings={"AttributePayload": setting})
    csr = generate_key_and_csr("lamp-1").csr_pem
    body = {"name": "lamp-1", "attributes": {"old": "1", "place": "attic"}, "csr": csr}
    async with counter.gateway.client() as client:
        assert (await client.post("/v1/things", json=body)).status_code == 201
    given = await counter.certificate()
    if setting == "FAIL":
        assert await counter.refusal(given, "1") == (409, "ResourceConflict")
    else:
        assert (await counter.provision(given, "1"))["thingName"] == "lamp-1"
    thing = await counter.gateway.registry.things.get("lamp-1")
    assert thing.attributes == attributes
    assert len(thing.certificate_ids) == (1 if setting == "FAIL" else 2)


async def test_a_template_gives_things_their_type_and_groups(counter: Counter) -> None:
    async with counter.gateway.client() as client:
        for path in ("/thing-types/lamp-type", "/thing-groups/one", "/thing-groups/two"):
            assert (await client.post(path, json={})).status_code == 200
    properties = TEMPLATE["Resources"]["thing"]["Properties"]  # type: ignore[index]
    described = {**properties, "ThingTypeName": "lamp-type", "ThingGroups": ["one"]}
    await use_template(counter, Properties=described)
    await counter.provision(await counter.certificate(), "1")
    thing = await counter.gateway.registry.things.get("lamp-1")
    assert (thing.thing_type, thing.groups) == ("lamp-type", ["one"])
    for setting, groups in (("MERGE", ["one", "two"]), ("REPLACE", ["two"])):
        changed = {**described, "ThingGroups": ["two"]}
        await use_template(counter, Properties=changed, OverrideSettings={"ThingGroups": setting})
        await counter.provision(await counter.certificate(), "1")
        assert (await counter.gateway.registry.things.get("lamp-1")).groups == groups
    await use_template(counter, Properties={**described, "ThingTypeName": "nowhere"})
    assert (await counter.refusal(await counter.certificate(), "2"))[0] == 400


async def test_a_simulated_device_keeps_its_name(counter: Counter) -> None:
    async with counter.gateway.client() as client:
        body = {"name": "lamp", "model": "thermostat", "count": 3}
        assert (await client.post("/v1/fleets", json=body)).status_code == 201
        names = (await client.get("/v1/fleets")).json()["fleets"][0]["thing_name"]
    assert names.startswith("lamp-"), names
    simulated = names.format(i=1).removeprefix("lamp-")
    assert (await counter.refusal(await counter.certificate(), simulated))[0] == 409


# Hooks.


@contextmanager
def hook_address(
    status: int, answer: bytes, *, encoding: str = "identity"
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Give the address of a hook that always answers so, and the questions that it gets."""
    questions: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            questions.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            self.send_header("Content-Encoding", encoding)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/hook", questions
        finally:
            server.shutdown()
            thread.join()


async def test_a_hook_over_http_is_told_all_and_decides(counter: Counter) -> None:
    registry = counter.gateway.registry
    answer = {"allowProvisioning": True, "parameterOverrides": {"Place": "attic"}}
    with hook_address(200, json.dumps(answer).encode()) as (address, questions):
        template = await registry.templates.remove("lamps", by="test")
        await registry.templates.add(replace(template, hook=address), by="test")
        given = await counter.certificate()
        answered = await counter.provision(given, "1", Place="hall", Extra="x")
    assert answered["deviceConfiguration"] == {"url": "https://attic.example"}
    (question,) = questions
    (claim,) = [one for one in await registry.certificates.of_kind("claim") if one.common_name == CLAIM]
    assert question == {
        "claimCertificateId": claim.certificate_id,
        "certificateId": given["certificateId"],
        "certificatePem": given["certificatePem"],
        "templateArn": "arn:aws:iot:local:000000000000:provisioningtemplate/lamps",
        "clientId": CLAIM,
        "parameters": {"SerialNumber": "1", "Place": "hall", "Extra": "x"},
    }


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (200, b'{"allowProvisioning": false}'),
        (200, b'{"allowProvisioning": "true"}'),
        (200, b'{"allowProvisioning": 1}'),
        (200, b"{}"),
        (200, b"yes"),
        (200, b'{"allowProvisioning": true, "parameterOverrides": {"a": 1}}'),
        (201, b'{"allowProvisioning": true}'),
        (500, b'{"allowProvisioning": true}'),
        (302, b'{"allowProvisioning": true}'),
        (200, b'{"allowProvisioning": true, "padding": "' + b"x" * 70_000 + b'"}'),
        (200, b'{"allowProvisioning": true, "parameterOverrides": {"a": "\xff"}}'),
        (200, b'{"allowProvisioning": true, "padding": ' + b"[" * 60_000),
    ],
)
async def test_a_hook_that_does_not_clearly_allow_denies(status: int, answer: bytes) -> None:
    with hook_address(status, answer) as (address, _), pytest.raises(ProvisioningRefused) as caught:
        await ask_hook(address, {"parameters": {}})
    assert (caught.value.status, caught.value.error_code) == (403, "ACCESS_DENIED")


async def test_a_hook_that_nobody_serves_denies() -> None:
    with hook_address(200, b"") as (address, _):
        pass
    with pytest.raises(ProvisioningRefused):
        await ask_hook(address, {})


async def test_a_hook_whose_answer_is_compressed_denies() -> None:
    packed = gzip.compress(b'{"allowProvisioning": true}')
    with hook_address(200, packed, encoding="gzip") as (address, _), pytest.raises(ProvisioningRefused):
        await ask_hook(address, {})


async def test_a_python_hook_that_takes_too_long_or_dies_denies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    functions = f"""
import os, subprocess, sys, time
def slow(question): time.sleep({TIMEOUT_S} + 60)
def dead(question): os._exit(0)
def loud(question):
    while True: os.write(1, b"x" * 65536)
def huge(question): return {{"allowProvisioning": True, "padding": "x" * 70000}}
def leaving(question):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with open({str(tmp_path / "child")!r}, "w") as file: file.write(str(child.pid))
    return {{"allowProvisioning": True}}
def allow(question):
    os.write(1, b"printing does no harm")
    return {{"allowProvisioning": True, "parameterOverrides": question["parameters"]}}
"""
    (tmp_path / "hook_of_office_test.py").write_text(functions)
    monkeypatch.setenv("PYTHONPATH", f"{Path.cwd()}:{tmp_path}")
    for name in ("slow", "dead", "loud", "huge", "leaving"):
        with pytest.raises(ProvisioningRefused):
            await ask_hook(f"hook_of_office_test:{name}", {"parameters": {}})
    assert await ask_hook("hook_of_office_test:allow", {"parameters": {"a": "b"}}) == {"a": "b"}
    # It was ended with what it had started, which held its answer open.
    child = int((tmp_path / "child").read_text())
    assert wait_until(lambda: not is_process_alive(child), timeout_s=TIMEOUT_S)


@pytest.mark.parametrize(
    "hook", ["x", "a b:c", "os:nothing", "no_such_module:f", "ftp://x/y", "os:sep", "-c:x"]
)
async def test_what_is_no_hook_is_refused_when_it_is_named(hook: str) -> None:
    with pytest.raises(DescriptionError):
        await check_hook(hook)
