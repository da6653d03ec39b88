"""Devices that share a claim certificate become things of their own, one by one, and nobody hears their keys."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import signal
import ssl
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from awsiot import V2ServiceException, iotidentity, iotshadow
from cryptography import x509

from actors.pki import certificate_id_of, generate_key_and_csr
from actors.processes import wait_until
from tests.integration.listening import Listener, listening
from tests.integration.provisioning_device import (
    ClaimFiles,
    Refused,
    create_keys,
    identity_over_mqtt3,
    identity_over_mqtt5,
    new_claim,
    provision_in_the_end,
    refusal,
    register,
    write_files,
)
from tests.integration.raw_mqtt import ACCEPTED, ANSWER_TIMEOUT_S, CONNACK, Connect, RawClient, RawSession
from tests.integration.running_platform import DEADLINE_S, RunningPlatform, platform_on
from tests.integration.sdk_device import Device, over_mqtt3, over_mqtt5

_NUMBERS = itertools.count()
Identity = Callable[[ClaimFiles, RunningPlatform], AbstractContextManager[iotidentity.IotIdentityClientV2]]
BAD_TOKEN = (400, "InvalidCertificateOwnershipToken")
DENIED = (403, "ACCESS_DENIED")


@dataclass(frozen=True)
class Protocol:
    """How a device speaks: as a claim, and as the thing that it becomes."""

    identity: Identity
    device: Callable[[str, Path, RunningPlatform], AbstractContextManager[Device]]


@pytest.fixture(
    params=[Protocol(identity_over_mqtt5, over_mqtt5), Protocol(identity_over_mqtt3, over_mqtt3)],
    ids=["mqtt5", "mqtt3"],
)
def protocol(request: pytest.FixtureRequest) -> Protocol:
    """Give each version of MQTT."""
    chosen: Protocol = request.param
    return chosen


@pytest.fixture(scope="module")
def claim(platform: RunningPlatform, tmp_path_factory: pytest.TempPathFactory) -> ClaimFiles:
    """Give a claim that the tests of this file share, one after the other."""
    return new_claim(platform, tmp_path_factory.mktemp("claim"), "line")


def serial() -> str:
    """Return a serial number that no other device has."""
    return f"s{next(_NUMBERS)}"


@pytest.fixture
def admitted(platform: RunningPlatform, claim: ClaimFiles) -> Iterator[iotidentity.IotIdentityClientV2]:
    """Give a device that has connected with the claim; the turn of another test's device is waited for."""
    with until_admitted(identity_over_mqtt5, claim, platform) as identity:
        yield identity


def until_admitted(
    connect: Identity, claim: ClaimFiles, platform: RunningPlatform
) -> AbstractContextManager[iotidentity.IotIdentityClientV2]:
    """Return a connection as soon as the claim is let in."""
    admitted: list[AbstractContextManager[iotidentity.IotIdentityClientV2]] = []

    def is_in() -> bool:
        attempt = _Entered(connect(claim, platform))
        if attempt.is_refused:
            return False
        admitted.append(attempt)
        return True

    assert wait_until(is_in, timeout_s=DEADLINE_S), "the claim is let in"
    return admitted[0]


class _Entered(AbstractContextManager[iotidentity.IotIdentityClientV2]):
    """A connection that is entered already, or refused."""

    def __init__(self, connection: AbstractContextManager[iotidentity.IotIdentityClientV2]) -> None:
        self._connection = connection
        self.is_refused = False
        try:
            self._identity = connection.__enter__()
        except Refused:
            self.is_refused = True

    def __enter__(self) -> iotidentity.IotIdentityClientV2:
        return self._identity

    def __exit__(self, *error: Any) -> None:
        self._connection.__exit__(*error)


def test_a_device_becomes_a_thing_with_keys_made_for_it(
    protocol: Protocol, platform: RunningPlatform, claim: ClaimFiles, tmp_path: Path
) -> None:
    number = serial()
    with until_admitted(protocol.identity, claim, platform) as identity:
        made = create_keys(identity)
        thing = register(
            identity, claim.template, made.certificate_ownership_token, SerialNumber=number, Place="attic"
        )
    assert thing.thing_name == f"lamp-{number}"
    assert thing.device_configuration == {"url": "https://attic.example"}
    certificate = x509.load_pem_x509_certificate(made.certificate_pem.encode())
    assert made.certificate_id == certificate_id_of(certificate.public_key())  # type: ignore[arg-type]
    described = platform.json("device", "describe", thing.thing_name)
    assert described["attributes"] == {"place": "attic"}
    write_files(made, thing.thing_name, claim.directory, tmp_path)
    with protocol.device(thing.thing_name, tmp_path, platform) as device:
        state = iotshadow.ShadowState(reported={"temperature": 20})
        update = iotshadow.UpdateShadowRequest(thing_name=thing.thing_name, state=state)
        assert device.shadows.update_shadow(update).result(DEADLINE_S).version == 1
    assert platform.version_of(thing.thing_name) == 1


def test_a_device_becomes_a_thing_with_a_key_of_its_own(
    protocol: Protocol, platform: RunningPlatform, claim: ClaimFiles, tmp_path: Path
) -> None:
    number, pair = serial(), generate_key_and_csr("")
    request = iotidentity.CreateCertificateFromCsrRequest(certificate_signing_request=pair.csr_pem)
    with until_admitted(protocol.identity, claim, platform) as identity:
        made = identity.create_certificate_from_csr(request).result(DEADLINE_S)
        thing = register(identity, claim.template, made.certificate_ownership_token, SerialNumber=number)
    assert thing.device_configuration == {"url": "https://hall.example"}
    write_files(made, thing.thing_name, claim.directory, tmp_path, key_pem=pair.private_key_pem)
    with protocol.device(thing.thing_name, tmp_path, platform) as device:
        missing = iotshadow.GetShadowRequest(thing_name=thing.thing_name)
        with pytest.raises(V2ServiceException) as caught:
            device.shadows.get_shadow(missing).result(DEADLINE_S)
        assert caught.value.modeled_error.code == 404


def test_a_device_hears_why_it_may_not_become_a_thing(
    admitted: iotidentity.IotIdentityClientV2, claim: ClaimFiles, platform: RunningPlatform
) -> None:
    number = serial()
    made = create_keys(admitted)
    token = made.certificate_ownership_token
    assert refusal(admitted, claim.template, "", SerialNumber=number) == BAD_TOKEN
    assert refusal(admitted, claim.template, token[:-1] + "_", SerialNumber=number) == BAD_TOKEN
    assert refusal(admitted, claim.template, token) == (400, "InvalidParameters")
    assert refusal(admitted, claim.template, token, SerialNumber="no name!") == (400, "InvalidParameters")
    assert refusal(admitted, claim.template, token, SerialNumber=number, Place="cellar")[0] == 400
    assert refusal(admitted, "no-such-template", token, SerialNumber=number) == DENIED
    csr = iotidentity.CreateCertificateFromCsrRequest(certificate_signing_request="no request")
    with pytest.raises(V2ServiceException) as caught:
        admitted.create_certificate_from_csr(csr).result(DEADLINE_S)
    assert caught.value.modeled_error.status_code == 400
    # None of these has cost it its token.
    assert register(admitted, claim.template, token, SerialNumber=number).thing_name == f"lamp-{number}"
    assert refusal(admitted, claim.template, token, SerialNumber=serial()) == BAD_TOKEN


def test_a_claim_provisions_by_its_own_template_only(
    platform: RunningPlatform, claim: ClaimFiles, tmp_path: Path
) -> None:
    other = new_claim(platform, tmp_path, "other-line")
    with until_admitted(identity_over_mqtt5, other, platform) as identity:
        token = create_keys(identity).certificate_ownership_token
        assert refusal(identity, claim.template, token, SerialNumber=serial()) == DENIED
    with until_admitted(identity_over_mqtt5, claim, platform) as identity:
        # The token of another claim.
        assert refusal(identity, claim.template, token, SerialNumber=serial()) == BAD_TOKEN
    platform.done("provisioning", "claim", "revoke", other.name)
    with pytest.raises(Refused), identity_over_mqtt5(other, platform):
        pass


def test_a_thing_that_is_there_gets_another_certificate_and_what_the_template_changes(
    platform: RunningPlatform, claim: ClaimFiles, tmp_path: Path
) -> None:
    number = serial()
    for place in ("hall", "attic"):
        with until_admitted(identity_over_mqtt5, claim, platform) as identity:
            made = create_keys(identity)
            register(
                identity, claim.template, made.certificate_ownership_token, SerialNumber=number, Place=place
            )
        write_files(made, f"lamp-{number}", claim.directory, tmp_path / place)
    described = platform.json("device", "describe", f"lamp-{number}")
    assert described["attributes"] == {"place": "attic"}
    assert [one["status"] for one in described["certificates"]] == ["ACTIVE", "ACTIVE"]
    for place in ("hall", "attic"):
        with over_mqtt5(f"lamp-{number}", tmp_path / place, platform) as device:
            state = iotshadow.ShadowState(reported={"place": place})
            update = iotshadow.UpdateShadowRequest(thing_name=f"lamp-{number}", state=state)
            device.shadows.update_shadow(update).result(DEADLINE_S)
    assert platform.version_of(f"lamp-{number}") == 2


HOOK = """
def decide(question):
    print("printing does no harm")
    assert set(question) == {"claimCertificateId", "certificateId", "certificatePem", "templateArn", "clientId",
                             "parameters"}, question
    serial = question["parameters"].get("SerialNumber")
    if serial == "broken":
        raise ValueError("no such device")
    overrides = {"Place": "attic", "SerialNumber": f"{serial}-by-hook"}
    return {"allowProvisioning": serial != "stolen", "parameterOverrides": overrides}
"""


def test_a_hook_denies_a_device_or_changes_its_parameters(platform: RunningPlatform, tmp_path: Path) -> None:
    # Where the platform runs, and so finds its hooks, is where this test does.
    module = f"hook_of_test_{next(_NUMBERS)}"
    file = Path.cwd() / f"{module}.py"
    file.write_text(HOOK)
    try:
        claim = new_claim(platform, tmp_path, "hooked", hook=f"{module}:decide")
        with until_admitted(identity_over_mqtt5, claim, platform) as identity:
            token = create_keys(identity).certificate_ownership_token
            for number in ("stolen", "broken"):
                assert refusal(identity, claim.template, token, SerialNumber=number) == DENIED
            number = serial()
            thing = register(identity, claim.template, token, SerialNumber=number)
    finally:
        file.unlink()
    assert thing.thing_name == f"lamp-{number}-by-hook"
    assert thing.device_configuration == {"url": "https://attic.example"}


def test_templates_are_checked_listed_and_kept_while_a_claim_needs_them(
    platform: RunningPlatform, claim: ClaimFiles, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps({"Resources": {"thing": {"Type": "AWS::IoT::Thing", "Propertys": {}}}}))
    refused = platform.run("provisioning", "template", "create", "bad", "--file", str(bad))
    assert refused.returncode == 1
    assert "Resources.thing.Propertys" in refused.stderr
    refused = platform.run(
        "provisioning", "template", "create", "bad", "--file", str(claim.directory / f"{claim.template}.json"),
        "--hook", "no_such_module:function",
    )  # fmt: skip
    assert refused.returncode == 1
    assert "no_such_module" in refused.stderr
    names = [one["name"] for one in platform.json("provisioning", "template", "list")["templates"]]
    assert claim.template in names
    assert "bad" not in names
    described = platform.json("provisioning", "template", "describe", claim.template)
    assert described["parameters"] == [{"name": "SerialNumber"}, {"name": "Place", "default": "hall"}]
    assert len(described["notes"]) == 1
    refused = platform.run("provisioning", "template", "delete", claim.template)
    assert refused.returncode == 1
    assert repr(claim.name) in refused.stderr
    refused = platform.run(
        "provisioning", "claim", "create", "x", "--template", "none", "--out", str(tmp_path)
    )
    assert refused.returncode == 1
    claims = platform.json("provisioning", "claim", "list")["certificates"]
    assert (claim.name, claim.template) in {(one["name"], one["template"]) for one in claims}


def test_nobody_else_hears_what_a_device_is_given(
    platform: RunningPlatform, claim: ClaimFiles, tmp_path: Path
) -> None:
    other = new_claim(platform, tmp_path, "listening-line", template=claim.template)
    platform.enrol("listening-device", tmp_path)
    for role in ("observer", "operator"):
        platform.done("certificate", "create", f"listening-{role}", "--role", role, "--out", str(tmp_path))
    # Eight, which is the most that a client may have.
    filters = [
        "#",
        "$aws/#",
        "+/certificates/create/json/accepted",
        "$aws/certificates/create/json/accepted",
        "$aws/provisioning-templates/+/provision/json/accepted",
        f"$aws/provisioning-templates/{claim.template}/provision/json/accepted",
        "$share/all/$aws/certificates/create/json/accepted",
        "$share/all/$aws/#",
    ]
    names = ("listening-device", "listening-observer", "listening-operator")
    listeners: list[Listener] = []
    with listening(platform, tmp_path, names, filters) as heard:
        listeners += heard
        number = serial()
        with until_admitted(identity_over_mqtt5, claim, platform) as identity:
            # Whoever is answered has the turn for certain.
            secrets = [create_keys(identity).certificate_ownership_token.encode()]
            # The other claim, and another device with this one, try all the time.
            with (
                listening(platform, tmp_path, [other.name], filters, is_persistent=True) as others,
                listening(platform, claim.directory, [claim.name], filters, is_persistent=True) as rivals,
            ):
                token = create_keys(identity).certificate_ownership_token
                thing = register(identity, claim.template, token, SerialNumber=number)
                secrets += [token.encode(), b"PRIVATE KEY"]
                listeners += [*others, *rivals]
                assert not any(each.has_subscribed for each in (*others, *rivals))
        # A device that shares the claim, and has kept its session, with all its subscriptions.
        with listening(platform, claim.directory, [claim.name], filters, is_persistent=True) as later:
            listeners += later
            assert wait_until(lambda: later[0].is_connected, timeout_s=DEADLINE_S)
    assert thing.thing_name == f"lamp-{number}"
    for listener in listeners:
        for topic, payload in listener.messages:
            assert not any(secret in payload for secret in secrets), (listener.name, topic)
            assert not topic.startswith(("$aws/certificates", "$aws/provisioning")), (listener.name, topic)


def silent_link(client: RawClient, links: contextlib.ExitStack) -> ssl.SSLSocket:
    """Return a connection that the broker's TLS has let in, and that has said nothing yet."""
    found: list[ssl.SSLSocket] = []

    def is_let_in() -> bool:
        link = links.enter_context(client.link())
        # In TLS 1.3 a client learns only afterwards that it was refused: within milliseconds.
        link.settimeout(0.5)
        try:
            link.recv(1)
        except TimeoutError:
            link.settimeout(ANSWER_TIMEOUT_S)
            found.append(link)
        except OSError:
            return False
        return bool(found)

    assert wait_until(is_let_in, timeout_s=DEADLINE_S), "the gate is open"
    return found[0]


def test_a_connection_that_slips_through_the_gate_is_served_but_hears_nothing_of_the_one_before(
    platform: RunningPlatform, claim: ClaimFiles
) -> None:
    certificate, key = (claim.directory / f"{claim.name}.{end}" for end in ("pem", "key"))
    port = platform.endpoints.mqtts.port
    client = RawClient.of(port, claim.directory / "ca.pem", certificate=certificate, key=key)
    with (
        contextlib.ExitStack() as links,
        # Let in by TLS before the gate closes, it says who it is only afterwards.
        silent_link(client, links) as link,
        until_admitted(identity_over_mqtt5, claim, platform) as identity,
    ):
        made = create_keys(identity)
        rival = RawSession(link)
        rival.send(Connect("x", is_clean=False).encode())
        assert rival.until(CONNACK).body[1] == ACCEPTED
        rival.subscribe("$aws/certificates/#", "$aws/provisioning-templates/#")
        rival.publish("$aws/certificates/create/json", b"{}")
        answer = rival.next_message()
        assert answer.topic == "$aws/certificates/create/json/accepted"
        given = json.loads(answer.payload)
        assert given["certificateId"] != made.certificate_id
        assert rival.messages() == []
    # What had reached the first before it was thrown off is its own.
    number = serial()
    with until_admitted(identity_over_mqtt5, claim, platform) as identity:
        thing = register(identity, claim.template, made.certificate_ownership_token, SerialNumber=number)
    assert thing.thing_name == f"lamp-{number}"


def test_twenty_devices_with_one_claim_are_all_provisioned_within_two_minutes(
    platform: RunningPlatform, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    claim = new_claim(platform, tmp_path, "twenty")
    began_s = time.monotonic()
    luck = random.Random(20)
    pauses = [luck.uniform(0.5, 2.0) for _ in range(20)]

    def provision(number: int) -> tuple[Any, Any, int, float]:
        made, thing, attempts = provision_in_the_end(
            claim, platform, f"twenty-{number}", pause_s=pauses[number], deadline_s=120
        )
        return made, thing, attempts, time.monotonic() - began_s

    with ThreadPoolExecutor(20) as devices:
        results = list(devices.map(provision, range(20)))
    times = sorted(result[3] for result in results)
    record_property("seconds", [round(each, 1) for each in times])
    record_property("attempts", sorted(result[2] for result in results))
    assert times[-1] < 120, times
    assert {result[1].thing_name for result in results} == {f"lamp-twenty-{number}" for number in range(20)}
    # Each has its own key, and can use it.
    assert len({result[0].private_key for result in results}) == 20
    for made, thing, _, _ in results:
        write_files(made, thing.thing_name, tmp_path, tmp_path / thing.thing_name)
    made, thing = results[7][0], results[7][1]
    with over_mqtt5(thing.thing_name, tmp_path / thing.thing_name, platform) as device:
        state = iotshadow.ShadowState(reported={"a": 1})
        update = iotshadow.UpdateShadowRequest(thing_name=thing.thing_name, state=state)
        assert device.shadows.update_shadow(update).result(DEADLINE_S).version == 1


def test_a_token_outlives_a_platform_that_is_killed_in_the_middle_of_a_turn(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with platform_on(data_dir) as platform:
        claim = new_claim(platform, tmp_path, "restarted")
        with until_admitted(identity_over_mqtt5, claim, platform) as identity:
            made = create_keys(identity)
            # Whoever is answered again is known to have got the answer before.
            token = made.certificate_ownership_token
            assert refusal(identity, claim.template, token) == (400, "InvalidParameters")
            platform.stop(signal.SIGKILL)
            platform.expect_nothing_left()
    # What the device alone may know, in whatever the platform leaves on the disk.
    secrets = [made.private_key.splitlines()[1].encode(), token.partition(".")[2].encode()]
    files = [file for file in data_dir.rglob("*") if file.is_file()]
    assert any(file.name == "gateway.log" for file in files)
    for file in files:
        # In the broker's store a request may stand that it has not handed on yet.
        sought = secrets[:1] if file.name == "mosquitto.db" else secrets
        assert not any(secret in file.read_bytes() for secret in sought), file
    with platform_on(data_dir) as platform:
        with until_admitted(identity_over_mqtt3, replace(claim), platform) as identity:
            thing = register(identity, claim.template, made.certificate_ownership_token, SerialNumber="1")
        write_files(made, thing.thing_name, claim.directory, tmp_path / "device")
        with over_mqtt5(thing.thing_name, tmp_path / "device", platform) as device:
            state = iotshadow.ShadowState(reported={"a": 1})
            update = iotshadow.UpdateShadowRequest(thing_name=thing.thing_name, state=state)
            assert device.shadows.update_shadow(update).result(DEADLINE_S).version == 1
