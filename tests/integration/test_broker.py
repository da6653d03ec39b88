"""The managed broker and store on the real programs: who gets in, who reads and writes what, what survives."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from gmqtt import Client
from gmqtt.mqtt.constants import MQTTv311

from actors.broker import AccessList, MosquittoBroker, end_session, reload_broker, write_acl
from actors.broker_log import ConfigurationReloaded, HandshakeFailed, parse_line
from actors.errors import BrokerError, PlatformNotRunning, PortInUse, ProcessEnded
from actors.pki import CertificateAuthority, generate_key_and_csr
from actors.processes import loopback_addresses, wait_until
from actors.settings import DataDirectory, PlatformSettings, is_process_alive, write_atomically
from actors.store import RedisServer
from tests.integration.raw_mqtt import CONNACK, PING, PUBACK, Connect, RawSession, publish
from tests.integration.running_broker import Site, make_site
from twins.topics import is_sendable, publishing_problem

# A local broker answers in milliseconds; a loaded machine gets the rest.
DEADLINE_S = 10.0


def tls_context(site: Site, *, certificate_pem: str = "", key_pem: str = "") -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(site.authority.ca_file))
    if certificate_pem:
        pair = site.settings.data_dir / "client.pem"
        pair.write_text(certificate_pem + key_pem)
        context.load_cert_chain(pair)
        pair.unlink()
    return context


def device_context(site: Site, thing_name: str) -> ssl.SSLContext:
    request = generate_key_and_csr(thing_name)
    issued = site.authority.issue_for_thing(request.csr_pem, thing_name)
    return tls_context(site, certificate_pem=issued.certificate_pem, key_pem=request.private_key_pem)


def is_admitted(
    site: Site, context: ssl.SSLContext, *, host: str = "127.0.0.1", session: ssl.SSLSession | None = None
) -> tuple[bool, ssl.SSLSession | None]:
    """Tell whether an MQTT CONNECT over TLS is answered with success, and give the TLS session to resume."""
    connect = b"\x10\x0f\x00\x04MQTT\x04\x02\x00\x0a\x00\x03abc"
    try:
        with (
            socket.create_connection((host, site.broker.port), timeout=DEADLINE_S) as plain,
            context.wrap_socket(plain, server_hostname=host, session=session) as connection,
        ):
            connection.sendall(connect)
            answer = connection.recv(4)
            return answer == b"\x20\x02\x00\x00", connection.session
    except (ssl.SSLError, ConnectionError):
        return False, None


class Connection:
    """An MQTT connection that keeps what it receives."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.received: list[tuple[str, bytes]] = []
        self._granted: list[int] = []
        client.on_message = self._on_message
        client.on_subscribe = lambda _client, packet_id, _qos, _properties: self._granted.append(packet_id)

    def _on_message(self, _client: object, topic: str, payload: bytes, _qos: int, _properties: object) -> int:
        self.received.append((topic, bytes(payload)))
        return 0

    async def subscribe(self, topic_filter: str) -> None:
        packet_id = self.client.subscribe(topic_filter, qos=1)
        await until(lambda: packet_id in self._granted)

    def publish(self, topic: str, payload: bytes = b"{}") -> None:
        self.client.publish(topic, payload, qos=1)

    async def receive(self, topic: str) -> None:
        await until(lambda: topic in self.topics())

    def topics(self) -> list[str]:
        return [topic for topic, _ in self.received]


async def until(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        # The condition lies with another process, which sets no event of ours.
        while not is_true():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def device(
    site: Site, thing_name: str, *, will_message: object = None, context: ssl.SSLContext | None = None
) -> AsyncIterator[Connection]:
    client = Client("any-id", clean_session=True, will_message=will_message)
    connection = Connection(client)
    async with asyncio.timeout(DEADLINE_S):
        await client.connect("localhost", site.broker.port, ssl=context or device_context(site, thing_name))
    try:
        yield connection
    finally:
        await client.disconnect()


@asynccontextmanager
async def bridge(
    site: Site, *, client_id: str = "app.bridge", is_clean: bool = True
) -> AsyncIterator[Connection]:
    client = Client(client_id, clean_session=is_clean)
    connection = Connection(client)
    client.set_auth_credentials(site.broker.internal.user_name, site.broker.internal.password)
    async with asyncio.timeout(DEADLINE_S):
        # 3.1.1: a session that is not clean is kept without further ado.
        await client.connect(site.broker.internal.host, site.broker.internal.port, version=MQTTv311)
    try:
        yield connection
    finally:
        await client.disconnect()


@asynccontextmanager
async def service(site: Site) -> AsyncIterator[Connection]:
    """Give a connection that may hear and say everything, as the platform's parts together may."""
    acl = site.directory.mosquitto / "internal.acl"
    kept = acl.read_bytes()
    rights = "topic readwrite #\ntopic readwrite $aws/#\n"
    acl.write_bytes(f"user {site.broker.internal.user_name}\n{rights}".encode())
    site.broker.reload()
    try:
        async with bridge(site, client_id="app.service") as connection:
            yield connection
    finally:
        acl.write_bytes(kept)
        site.broker.reload()


# ---- who gets in ---------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_the_common_name_is_user_name_and_client_id_whatever_the_device_says(site: Site) -> None:
    async with device(site, "sensor-1"):
        assert wait_until(lambda: "as sensor-1 (p5, c1" in site.log(), timeout_s=DEADLINE_S)
    assert "u'sensor-1'" in site.log()
    assert "as any-id" not in site.log()


@pytest.mark.parametrize("host", loopback_addresses())
def test_a_device_is_served_on_every_loopback_address(site: Site, host: str) -> None:
    assert is_admitted(site, device_context(site, "sensor-2"), host=host)[0]


def foreign_pair(directory: Path, name: str) -> tuple[str, str]:
    """Return a certificate for `name` of an authority that is not the platform's."""
    request = generate_key_and_csr(name)
    issued = CertificateAuthority.open_or_create(directory).issue_for_thing(request.csr_pem, name)
    return issued.certificate_pem, request.private_key_pem


def test_a_certificate_of_another_authority_is_refused(site: Site, tmp_path: Path) -> None:
    certificate_pem, key_pem = foreign_pair(tmp_path / "other", "sensor-1")
    assert not is_admitted(site, tls_context(site, certificate_pem=certificate_pem, key_pem=key_pem))[0]


def test_a_certificate_of_an_impostor_that_bears_the_authoritys_name_is_refused(
    site: Site, self_made: Callable[..., tuple[str, str]]
) -> None:
    certificate_pem, key_pem = self_made("sensor-1", issuer_of=site.authority.ca_file)
    assert not is_admitted(site, tls_context(site, certificate_pem=certificate_pem, key_pem=key_pem))[0]


def test_a_self_signed_certificate_is_refused(site: Site, self_made: Callable[..., tuple[str, str]]) -> None:
    certificate_pem, key_pem = self_made("sensor-1", issuer_of=None)
    assert not is_admitted(site, tls_context(site, certificate_pem=certificate_pem, key_pem=key_pem))[0]


def test_a_client_without_a_certificate_is_refused(site: Site) -> None:
    assert not is_admitted(site, tls_context(site))[0]


def test_the_servers_own_certificate_does_not_serve_as_a_devices(site: Site) -> None:
    context = tls_context(
        site,
        certificate_pem=site.authority.server_certificate_file.read_text(),
        key_pem=site.authority.server_key_file.read_text(),
    )
    assert not is_admitted(site, context)[0]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_revoked_device_is_refused_after_a_reload_also_when_it_resumes_its_tls_session(
    site: Site, version: ssl.TLSVersion
) -> None:
    request = generate_key_and_csr("stolen")
    issued = site.authority.issue_for_thing(request.csr_pem, "stolen")
    context = tls_context(site, certificate_pem=issued.certificate_pem, key_pem=request.private_key_pem)
    context.maximum_version = version
    admitted, session = is_admitted(site, context)
    assert admitted
    assert session is not None
    site.authority.revoke([issued.serial])
    site.broker.reload()
    assert not is_admitted(site, context, session=session)[0]
    assert not is_admitted(site, context)[0]
    assert is_admitted(site, device_context(site, "honest"))[0]


@pytest.mark.asyncio
@pytest.mark.parametrize("thing_name", ["leaver", "leaver-" + "x" * 100])
async def test_a_revoked_devices_open_session_is_ended_and_cannot_come_back(
    site: Site, thing_name: str
) -> None:
    request = generate_key_and_csr(thing_name)
    issued = site.authority.issue_for_thing(request.csr_pem, thing_name)
    context = tls_context(site, certificate_pem=issued.certificate_pem, key_pem=request.private_key_pem)
    topic = f"$aws/things/{issued.common_name}/shadow/update"
    async with (
        bridge(site) as service,
        device(site, thing_name, context=context) as leaver,
        device(site, "dev-b") as other,
    ):
        await service.subscribe("$aws/things/#")
        leaver.publish(topic)
        await service.receive(topic)
        site.authority.revoke([issued.serial])
        site.broker.reload()
        # What a revocation list alone does not do.
        assert leaver.client.is_connected
        end_session(site.settings.data_dir, issued.common_name)
        async with asyncio.timeout(2.0):
            await until(lambda: not leaver.client.is_connected)
        assert not is_admitted(site, context)[0]
        # gmqtt connects again by itself, and sends what it could not.
        leaver.publish(topic, b"from beyond")
        assert other.client.is_connected
        other.publish("$aws/things/dev-b/shadow/get")
        await service.receive("$aws/things/dev-b/shadow/get")
        assert (topic, b"from beyond") not in service.received


@pytest.mark.asyncio
async def test_a_session_that_is_kept_for_a_device_away_is_ended_too(site: Site) -> None:
    answer = "$aws/things/sleeper/shadow/get/accepted"
    context = device_context(site, "sleeper")
    client = Client("any-id", clean_session=False)
    sleeper = Connection(client)
    async with asyncio.timeout(DEADLINE_S):
        await client.connect("localhost", site.broker.port, ssl=context, version=MQTTv311)
    await sleeper.subscribe(answer)
    await client.disconnect()
    async with bridge(site) as service:
        service.publish(answer, b"for the one before")
        await service.subscribe("telemetry/+/#")
    end_session(site.settings.data_dir, "sleeper")
    successor = Client("any-id", clean_session=False)
    heard = Connection(successor)
    async with asyncio.timeout(DEADLINE_S):
        await successor.connect("localhost", site.broker.port, ssl=context, version=MQTTv311)
    try:
        await heard.subscribe(answer)
        async with bridge(site) as service:
            service.publish(answer, b"for this one")
            await heard.receive(answer)
        assert heard.received == [(answer, b"for this one")]
    finally:
        await successor.disconnect()


def test_ending_a_session_without_a_broker_is_an_error_to_try_again(tmp_path: Path) -> None:
    DataDirectory(tmp_path).prepare()
    with pytest.raises(BrokerError, match="try again") as refusal:
        end_session(tmp_path, "nobody")
    assert refusal.value.retryable


def test_a_reload_from_another_process_finds_the_broker(site: Site) -> None:
    command = "import sys, pathlib; from actors.broker import reload_broker; reload_broker(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", command, str(site.settings.data_dir)], check=True, timeout=60)
    assert site.broker.is_alive()


def test_a_reload_is_nobodys_failed_handshake(site: Site) -> None:
    before = len(site.log())
    for _ in range(3):
        site.broker.reload()
    # The end of a connection may be told after the reload.
    assert wait_until(
        lambda: "app.probe" in site.log()[before:].rpartition("Reloading")[2], timeout_s=DEADLINE_S
    )
    events = [parse_line(line) for line in site.log()[before:].splitlines()]
    assert sum(isinstance(event, ConfigurationReloaded) for event in events) == 3
    assert not [event for event in events if isinstance(event, HandshakeFailed)]


def test_a_reload_without_a_broker_says_that_none_runs(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path)
    directory.prepare()
    with pytest.raises(PlatformNotRunning):
        reload_broker(tmp_path)
    # The pid of something else: this very test.
    write_atomically(directory.mosquitto / "pid", str(os.getpid()).encode())
    with pytest.raises(PlatformNotRunning):
        reload_broker(tmp_path)


def test_a_broken_revocation_list_is_reported_by_the_reload_that_met_it(own_site: Site) -> None:
    crl = own_site.authority.crl_file
    good = crl.read_bytes()
    crl.write_bytes(b"no list")
    with pytest.raises(BrokerError, match="could not reload"):
        own_site.broker.reload()
    crl.write_bytes(good)
    own_site.broker.reload()


def test_the_internal_listener_wants_the_password(site: Site) -> None:
    internal = site.broker.internal
    body = b"\x00\x04MQTT\x04\xc2\x00\x0a" + b"".join(
        len(text).to_bytes(2, "big") + text for text in (b"x", internal.user_name.encode(), b"wrong")
    )
    with socket.create_connection((internal.host, internal.port), timeout=DEADLINE_S) as connection:
        connection.sendall(bytes([0x10, len(body)]) + body)
        # Return code 5: not authorized.
        assert connection.recv(4) == b"\x20\x02\x00\x05"


@pytest.mark.parametrize(
    "character",
    [
        *("\x01", "\x1f", " ", "~", "\x7f", "\x9f", "\xa0", "\ud7ff", "\ue000"),
        *("\ufdcf", "\ufdd0", "\ufdef", "\ufdf0", "\ufeff", "\ufffd", "\ufffe"),
        *("\U0001fffd", "\U0001fffe", "\U00020000", "\U0010fffd", "\U0010ffff"),
    ],
)
def test_the_broker_ends_a_connection_for_the_very_texts_that_we_do_not_send(
    site: Site, character: str
) -> None:
    internal = site.broker.internal
    connect = Connect(b"app.texts", user_name=internal.user_name, password=internal.password)
    with socket.create_connection((internal.host, internal.port), timeout=DEADLINE_S) as link:
        session = RawSession(link)
        session.send(connect.encode())
        session.send(publish(f"texts/{character}", packet_id=1) + PING)
        answers = [session.next_packet() for _ in range(2)]
    kinds = [None if answer is None else answer.kind for answer in answers]
    assert kinds == [CONNACK, PUBACK if is_sendable(character) else None]
    assert (publishing_problem(f"texts/{character}") == "") is is_sendable(character)


# ---- who reads and writes what -------------------------------------------------------------------------------------

REQUESTS = ("get", "update", "delete")
REPLIES = (
    *(f"{r}/{a}" for r in REQUESTS for a in ("accepted", "rejected")),
    "update/delta",
    "update/documents",
)


@pytest.mark.asyncio
@pytest.mark.parametrize("part", ["shadow", "shadow/name/config"])
async def test_a_device_publishes_its_requests_and_receives_its_answers(site: Site, part: str) -> None:
    async with bridge(site) as service, device(site, "dev-a") as dev_a:
        await service.subscribe("$aws/things/#")
        for reply in REPLIES:
            await dev_a.subscribe(f"$aws/things/dev-a/{part}/{reply}")
        for request in REQUESTS:
            dev_a.publish(f"$aws/things/dev-a/{part}/{request}")
        await service.receive(f"$aws/things/dev-a/{part}/delete")
        assert service.topics() == [f"$aws/things/dev-a/{part}/{request}" for request in REQUESTS]
        for reply in REPLIES:
            service.publish(f"$aws/things/dev-a/{part}/{reply}")
        await dev_a.receive(f"$aws/things/dev-a/{part}/update/documents")
        assert dev_a.topics() == [f"$aws/things/dev-a/{part}/{reply}" for reply in REPLIES]


@pytest.mark.asyncio
async def test_telemetry_reaches_the_bridge(site: Site) -> None:
    async with bridge(site) as service, device(site, "dev-a") as dev_a:
        await service.subscribe("telemetry/+/#")
        dev_a.publish("telemetry/dev-a/climate")
        await service.receive("telemetry/dev-a/climate")


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "topic",
    [
        *(f"$aws/things/dev-b/shadow/{request}" for request in REQUESTS),
        "$aws/things/dev-b/shadow/name/config/update",
        "telemetry/dev-b/climate",
        *(f"$aws/things/dev-a/shadow/{reply}" for reply in REPLIES),
        "$aws/things/dev-a/shadow/name/config/update/documents",
    ],
)
async def test_a_device_publishes_on_nothing_but_its_own_request_topics(site: Site, topic: str) -> None:
    """Every connection that could hear the forgery listens: the bridge, the forged device, and the forger itself."""
    async with bridge(site) as service, device(site, "dev-b") as dev_b, device(site, "dev-a") as dev_a:
        await service.subscribe("$aws/things/#")
        await service.subscribe("telemetry/+/#")
        for listener, name in ((dev_a, "dev-a"), (dev_b, "dev-b")):
            for part in ("shadow", "shadow/name/config"):
                for reply in REPLIES:
                    await listener.subscribe(f"$aws/things/{name}/{part}/{reply}")
        dev_a.publish(topic)
        # One connection keeps its order: once this has arrived, the forgery would have too.
        dev_a.publish("$aws/things/dev-a/shadow/name/last/get")
        await service.receive("$aws/things/dev-a/shadow/name/last/get")
        service.publish("$aws/things/dev-a/shadow/get/accepted", b"the service's")
        service.publish("$aws/things/dev-b/shadow/get/accepted", b"the service's")
        for listener, name in ((dev_a, "dev-a"), (dev_b, "dev-b")):
            answer = f"$aws/things/{name}/shadow/get/accepted"
            await listener.receive(answer)
            assert listener.received == [(answer, b"the service's")]
        # The bridge hears what it says itself, too.
        heard = [heard for heard, payload in service.received if payload != b"the service's"]
        assert heard == ["$aws/things/dev-a/shadow/name/last/get"]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "topic_filter",
    [
        "$aws/things/dev-b/shadow/#",
        "$aws/things/+/shadow/#",
        "$aws/#",
        # This broker delivers the next one, and the last one so soon, to nobody at all: here for the day it does.
        "$share/g/$aws/#",
        "$share/g/telemetry/#",
        "telemetry/dev-b/#",
        "telemetry/#",
        "#",
        "+/+/+",
        "$SYS/#",
    ],
)
async def test_a_device_hears_nothing_but_its_own_answers(site: Site, topic_filter: str) -> None:
    async with bridge(site) as service, device(site, "dev-a") as dev_a, device(site, "dev-b") as dev_b:
        await service.subscribe("$aws/things/#")
        await service.subscribe("telemetry/+/#")
        await dev_a.subscribe(topic_filter)
        await dev_a.subscribe("$aws/things/dev-a/shadow/get/accepted")
        # Each reaches who may hear it, so that its silence at dev-a means something.
        dev_b.publish("telemetry/dev-b/climate")
        dev_b.publish("$aws/things/dev-b/shadow/update")
        await service.receive("$aws/things/dev-b/shadow/update")
        await dev_b.subscribe("$aws/things/dev-b/shadow/update/documents")
        service.publish("$aws/things/dev-b/shadow/update/documents")
        await dev_b.receive("$aws/things/dev-b/shadow/update/documents")
        service.publish("$aws/things/dev-a/shadow/get/accepted")
        await dev_a.receive("$aws/things/dev-a/shadow/get/accepted")
        assert set(dev_a.topics()) == {"$aws/things/dev-a/shadow/get/accepted"}


@pytest.mark.asyncio
async def test_a_will_reaches_the_devices_own_request_topics_only(site: Site) -> None:
    async with bridge(site) as service:
        await service.subscribe("$aws/things/#")
        for topic in (b"$aws/things/dev-b/shadow/update", b"$aws/things/dev-a/shadow/update"):
            # MQTT 3.1.1, 3.1.2: clean session, will at QoS 1; no client id, will topic, will message.
            body = (
                b"\x00\x04MQTT\x04\x0e\x00\x0a\x00\x00"
                + len(topic).to_bytes(2, "big")
                + topic
                + b"\x00\x02{}"
            )
            with (
                socket.create_connection(("localhost", site.broker.port), timeout=DEADLINE_S) as plain,
                device_context(site, "dev-a").wrap_socket(plain, server_hostname="localhost") as connection,
            ):
                connection.sendall(bytes([0x10, len(body)]) + body)
                connection.recv(4)
        await service.receive("$aws/things/dev-a/shadow/update")
        assert service.topics() == ["$aws/things/dev-a/shadow/update"]


@pytest.mark.asyncio
async def test_a_long_named_device_works_after_its_entry_is_written_and_reloaded(site: Site) -> None:
    thing_name = "plant-7:line-3:" + "x" * 100
    request = generate_key_and_csr(thing_name)
    issued = site.authority.issue_for_thing(request.csr_pem, thing_name)
    assert issued.common_name == issued.certificate_id
    context = tls_context(site, certificate_pem=issued.certificate_pem, key_pem=request.private_key_pem)
    topic = f"$aws/things/{thing_name}/shadow/update"
    async with bridge(site) as service, device(site, thing_name, context=context) as long_named:
        await service.subscribe("$aws/things/#")
        await long_named.subscribe(f"{topic}/accepted")
        long_named.publish(topic, b"too early")
        # Its own name's pattern lets this through, and tells that the one before has been dropped.
        long_named.publish(f"$aws/things/{issued.common_name}/shadow/get")
        await service.receive(f"$aws/things/{issued.common_name}/shadow/get")
        write_acl(site.settings.data_dir, AccessList([(issued.common_name, thing_name)]))
        site.broker.reload()
        long_named.publish(topic, b"in time")
        await service.receive(topic)
        assert (topic, b"too early") not in service.received
        service.publish(f"{topic}/accepted")
        await long_named.receive(f"{topic}/accepted")


CERTIFICATE_REQUESTS = ("$aws/certificates/create/json", "$aws/certificates/create-from-csr/json")
PROVISIONING = (*CERTIFICATE_REQUESTS, "$aws/provisioning-templates/lamps/provision/json")
SHADOWS = ("$aws/things/dev-a/shadow", "$aws/things/dev-a/shadow/name/config")


def holder_context(site: Site, common_name: str) -> ssl.SSLContext:
    request = generate_key_and_csr(common_name)
    issued = site.authority.issue_from_csr(request.csr_pem, common_name)
    return tls_context(site, certificate_pem=issued.certificate_pem, key_pem=request.private_key_pem)


@pytest.fixture
def access(site: Site) -> Iterator[AccessList]:
    """Make the broker know one application of each role and two claims, until the test is over."""
    made = AccessList(
        observers=["app.wall"],
        operators=["app.desk"],
        claims=["claim.one", "claim.two"],
        provisioning_claim="claim.one",
    )
    write_acl(site.settings.data_dir, made)
    site.broker.reload()
    yield made
    write_acl(site.settings.data_dir, AccessList())
    site.broker.reload()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("name", "heard"),
    [
        ("app.wall", {"update/documents"}),
        ("app.desk", {reply for reply in REPLIES if not reply.startswith("delete")}),
    ],
)
async def test_an_application_hears_what_its_role_may(
    site: Site, access: AccessList, name: str, heard: set[str]
) -> None:
    expected = [f"{shadow}/{reply}" for shadow in SHADOWS for reply in REPLIES if reply in heard]
    async with (
        service(site) as answering,
        device(site, name, context=holder_context(site, name)) as application,
        device(site, "dev-a") as dev_a,
    ):
        for topic_filter in ("$aws/#", "$aws/things/+/shadow/#", "$SYS/#", "telemetry/#", "#"):
            await application.subscribe(topic_filter)
        await answering.subscribe("$aws/things/#")
        # What nobody but the platform hears.
        dev_a.publish("telemetry/dev-a/climate", b"private")
        dev_a.publish("$aws/things/dev-a/shadow/update", b"private")
        await answering.receive("$aws/things/dev-a/shadow/update")
        for claim_topic in PROVISIONING:
            answering.publish(f"{claim_topic}/accepted", b"private")
        for shadow in SHADOWS:
            for reply in REPLIES:
                answering.publish(f"{shadow}/{reply}")
        last = "$aws/events/presence/connected/dev-a"
        answering.publish(last)
        await application.receive(last)
        # Overlapping subscriptions may bring a message once for each.
        assert list(dict.fromkeys(application.topics())) == [*expected, last]


@pytest.mark.asyncio
@pytest.mark.parametrize(("name", "sent"), [("app.wall", ()), ("app.desk", ("get", "update"))])
async def test_an_application_publishes_what_its_role_may(
    site: Site, access: AccessList, name: str, sent: tuple[str, ...]
) -> None:
    async with (
        service(site) as answering,
        device(site, name, context=holder_context(site, name)) as application,
        device(site, "dev-a") as dev_a,
    ):
        await answering.subscribe("$aws/#")
        await answering.subscribe("telemetry/#")
        for shadow in SHADOWS:
            for operation in (*REQUESTS, *REPLIES):
                application.publish(f"{shadow}/{operation}")
        for topic in (*PROVISIONING, "$aws/events/presence/connected/dev-a", "telemetry/dev-a/climate"):
            application.publish(topic)
        # Its own name's pattern lets this through, and tells that those before have been dropped.
        application.publish(f"$aws/things/{name}/shadow/get")
        await answering.receive(f"$aws/things/{name}/shadow/get")
        allowed = [
            f"{shadow}/{operation}" for shadow in SHADOWS for operation in REQUESTS if operation in sent
        ]
        assert answering.topics() == [*allowed, f"$aws/things/{name}/shadow/get"]
        assert dev_a.topics() == []


@pytest.mark.asyncio
async def test_a_claim_asks_for_certificates_and_only_the_one_at_its_turn_hears_the_answers(
    site: Site, access: AccessList
) -> None:
    async with (
        service(site) as answering,
        device(site, "claim.one", context=holder_context(site, "claim.one")) as first,
        device(site, "claim.two", context=holder_context(site, "claim.two")) as second,
    ):
        for request in PROVISIONING:
            await answering.subscribe(request)
        await answering.subscribe("$aws/things/#")
        for claim in (first, second):
            await claim.subscribe("$aws/#")
            for topic in (
                f"{SHADOWS[0]}/update",
                "$aws/events/x",
                *(f"{one}/accepted" for one in PROVISIONING),
            ):
                claim.publish(topic)
            for request in PROVISIONING:
                claim.publish(request)
        await until(lambda: len(answering.received) >= 2 * len(PROVISIONING))
        assert sorted(answering.topics()) == sorted(2 * PROVISIONING)
        for request in PROVISIONING:
            for outcome in ("accepted", "rejected"):
                answering.publish(f"{request}/{outcome}")
        answering.publish(f"{SHADOWS[0]}/update/documents")
        last = [f"$aws/things/{name}/shadow/get/accepted" for name in ("claim.one", "claim.two")]
        for topic in last:
            answering.publish(topic)
        await first.receive(last[0])
        await second.receive(last[1])
        answers = [f"{request}/{outcome}" for request in PROVISIONING for outcome in ("accepted", "rejected")]
        assert first.topics() == [*answers, last[0]]
        assert second.topics() == [last[1]]


# ---- what survives, and what does not ------------------------------------------------------------------------------


@pytest.mark.asyncio
@pytest.mark.parametrize("is_killed", [False, True])
async def test_a_request_that_waits_for_the_bridge_survives_a_restart_of_the_broker(
    own_site: Site, is_killed: bool
) -> None:
    context = device_context(own_site, "dev-a")
    before, after = "$aws/things/dev-a/shadow/update", "$aws/things/dev-a/shadow/get"
    async with bridge(own_site, is_clean=False) as service:
        await service.subscribe("$aws/things/+/shadow/+")
    saved = own_site.directory.mosquitto / "mosquitto.db"
    async with device(own_site, "dev-a", context=context) as dev_a:
        dev_a.publish(before)
        await until(lambda: saved.exists() and before.encode() in saved.read_bytes())
    if is_killed:
        os.kill(own_site.broker.pid, signal.SIGKILL)
    own_site.broker.stop()
    # As another `up` would: with nothing but the data directory.
    again = MosquittoBroker(own_site.settings)
    again.start()
    try:
        restarted = replace(own_site, broker=again)
        assert (again.internal, again.port) == (own_site.broker.internal, own_site.broker.port)
        # The device is back before the bridge.
        async with device(restarted, "dev-a", context=context) as dev_a:
            dev_a.publish(after)
            await until(lambda: after.encode() in saved.read_bytes())
        async with bridge(restarted, is_clean=False) as service:
            await service.receive(after)
            assert service.topics() == [before, after]
    finally:
        again.stop()


def test_nothing_listens_beyond_loopback(site: Site, store: RedisServer) -> None:
    for pid in (site.broker.pid, store.pid):
        listening = [
            c.laddr for c in psutil.Process(pid).net_connections("inet") if c.status == psutil.CONN_LISTEN
        ]
        assert listening
        assert {address.ip for address in listening} <= {"127.0.0.1", "::1"}


_PARENT = """
import pathlib, sys, signal
from actors.broker import MosquittoBroker
from actors.store import RedisServer
from actors.pki import CertificateAuthority
from actors.settings import DataDirectory, PlatformSettings
directory = DataDirectory(pathlib.Path(sys.argv[1]))
directory.prepare()
settings = PlatformSettings(data_dir=directory.path, mqtt_port=0)
CertificateAuthority.open_or_create(directory.pki)
with directory.lock():
    store, broker = RedisServer(settings), MosquittoBroker(settings)
    store.start()
    broker.start()
    print(store.pid, broker.pid, flush=True)
    signal.pause()
"""


def test_the_children_end_with_a_parent_that_is_killed_and_the_next_one_can_start(tmp_path: Path) -> None:
    data_dir = tmp_path / "site"
    command = [sys.executable, "-c", _PARENT, str(data_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2
        assert all(is_process_alive(pid) for pid in pids)
        parent.kill()
    with DataDirectory(data_dir).lock():
        again = make_site(data_dir)
        again.broker.start()
        again.broker.stop()
    assert wait_until(lambda: not any(is_process_alive(pid) for pid in pids), timeout_s=DEADLINE_S)


def test_a_child_that_outlived_its_parent_is_ended_before_the_next_one_uses_its_files(
    own_site: Site, store: RedisServer, tmp_path: Path
) -> None:
    store_settings = PlatformSettings(data_dir=tmp_path / "store")
    pairs = ((store, RedisServer(store_settings)), (own_site.broker, MosquittoBroker(own_site.settings)))
    for leftover, server in pairs:
        server.start()
        assert not is_process_alive(leftover.pid)
        server.stop()


def test_a_port_in_use_is_named_with_the_option_that_changes_it(site: Site, tmp_path: Path) -> None:
    other = make_site(tmp_path / "other")
    broker = MosquittoBroker(replace(other.settings, mqtt_port=site.broker.port))
    with pytest.raises(PortInUse, match=f"port {site.broker.port} .*--mqtt-port"):
        broker.start()
    assert not broker.is_alive()


def test_a_broker_that_ends_at_start_says_what_its_log_says(tmp_path: Path) -> None:
    site = make_site(tmp_path / "site")
    site.authority.crl_file.write_bytes(b"no list")
    with pytest.raises(ProcessEnded, match=r"(?s)mosquitto\.log.*crl"):
        site.broker.start()
