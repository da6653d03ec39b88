"""Bytes that are no MQTT, and too much of everything: the broker drops who sends them, and the others do not notice."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from actors.attempts import FORBIDDEN_MAX
from tests.integration.attack_scene import ALICE, MALLORY, Scene, client_of, counted
from tests.integration.raw_mqtt import (
    ANSWER_TIMEOUT_S,
    CONNACK,
    MQTT_5,
    MQTT_311,
    PING,
    PUBACK,
    Connect,
    RawSession,
    Will,
    field,
    length_of,
    packet,
    publish,
    subscribe,
)
from tests.integration.running_platform import COMMAND_TIMEOUT_S, until

VERSIONS = pytest.mark.parametrize("version", [MQTT_311, MQTT_5])
CONNECTION_COUNT: Final = 1000
# What a listening socket lets wait; the broker's own bound is 100.
_PIECE: Final = 50


# Bytes that are no MQTT

GOOD = Connect(MALLORY).encode()
# Said instead of a CONNECT; the broker closes the connection.
NO_CONNECT: dict[str, bytes] = {
    "garbage": bytes(range(256)),
    "zeros": bytes(64),
    "http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "publish first": publish(f"$aws/things/{ALICE}/shadow/update", b"{}"),
    "subscribe first": subscribe(["#"]),
    "ping first": PING,
    "connack": b"\x20\x02\x00\x00",
    "unknown protocol": Connect(MALLORY, protocol=b"MQTX").encode(),
    "empty protocol": Connect(MALLORY, protocol=b"").encode(),
    "long protocol": Connect(MALLORY, protocol=b"M" * 60_000).encode(),
    "version 0": Connect(MALLORY, version=0).encode(),
    "version 6": Connect(MALLORY, version=6).encode(),
    "version 255": Connect(MALLORY, version=255).encode(),
    "reserved flag": GOOD.replace(b"MQTT\x04\x02", b"MQTT\x04\x03"),
    "flags of the packet": b"\x1f" + GOOD[1:],
    "will of QoS 3": Connect(MALLORY, will=Will("a", b"b", qos=3)).encode(),
    "will that is not there": GOOD.replace(b"MQTT\x04\x02", b"MQTT\x04\x06"),
    "user name that is not there": GOOD.replace(b"MQTT\x04\x02", b"MQTT\x04\x82"),
    "client id beyond the packet": packet(0x10, b"\x00\x04MQTT\x04\x02\x00\x3c\xff\xffab"),
    "cut": packet(0x10, b"\x00\x04MQTT\x04"),
    "empty": packet(0x10, b""),
    "length of five bytes": b"\x10\xff\xff\xff\xff\x7f" + bytes(64),
    "properties beyond the packet": packet(0x10, b"\x00\x04MQTT\x05\x02\x00\x3c\xff\xff\x7f" + field("")),
    "unknown property": packet(0x10, b"\x00\x04MQTT\x05\x02\x00\x3c\x02\x7e\x01" + field("")),
    "authentication method": packet(0x10, b"\x00\x04MQTT\x05\x02\x00\x3c\x06\x15\x00\x03abc" + field("")),
    "receive maximum of 0": packet(0x10, b"\x00\x04MQTT\x05\x02\x00\x3c\x03\x21\x00\x00" + field("")),
}
# Said by a connected client of each version; the broker closes the connection.
NO_PACKET: dict[str, bytes] = {
    "second connect": GOOD,
    "connack": b"\x20\x02\x00\x00",
    "kind 0": packet(0x00, b"hello"),
    "kind 15 with a body": packet(0xF7, b"hello"),
    "QoS 3": packet(0x36, field("telemetry/mallory/a") + b"\x00\x01{}"),
    "publish without a topic": packet(0x30, b""),
    "publish with half a length": packet(0x30, b"\x00"),
    "topic beyond the packet": packet(0x30, b"\xff\xffab"),
    "publish without its id": packet(0x32, field("telemetry/mallory/a")),
    "publish with id 0": packet(0x32, field("telemetry/mallory/a") + b"\x00\x00"),
    "subscribe without filters": packet(0x82, b"\x00\x01"),
    "subscribe with other flags": b"\x80" + subscribe(["a"])[1:],
    "subscribe to half a filter": packet(0x82, b"\x00\x01\x00\x05ab"),
    "subscribe with QoS 3": packet(0x82, b"\x00\x01" + field("a") + b"\x03"),
    "subscribe to nothing": packet(0x82, b"\x00\x01" + field("") + b"\x00"),
    "unsubscribe without filters": packet(0xA2, b"\x00\x01"),
    "pubrel with other flags": b"\x60\x02\x00\x01",
    "length of five bytes": b"\x30\xff\xff\xff\xff\x7f" + bytes(64),
    "more than any packet": b"\x30" + length_of(268_435_455) + bytes(300_000),
}
# Said by a connected client of MQTT 5; the broker closes the connection.
NO_PACKET_5: dict[str, bytes] = {
    "suback": b"\x90\x03\x00\x01\x00",
    "unsuback": b"\xb0\x02\x00\x01",
    "topic alias 0": packet(0x30, field("telemetry/mallory/a") + b"\x03\x23\x00\x00{}"),
    "topic alias beyond the maximum": packet(0x30, field("telemetry/mallory/a") + b"\x03\x23\xff\xff{}"),
    "topic alias that is not there": packet(0x30, field("") + b"\x03\x23\x00\x05{}"),
    "unknown property": packet(0x30, field("telemetry/mallory/a") + b"\x02\x7e\x01{}"),
    "properties beyond the packet": packet(0x30, field("telemetry/mallory/a") + b"\xff\xff\x7f{}"),
    "property of a connect": packet(0x30, field("telemetry/mallory/a") + b"\x05\x11\x00\x00\x00\x01{}"),
}
# Said by a connected client: nothing comes of it, and the connection goes on.
IGNORED: dict[str, bytes] = {
    "puback of nothing": b"\x40\x02\x12\x34",
    "pubcomp of nothing": b"\x70\x02\x12\x34",
    "ping response and more": b"\xd0\x05hello",
}
IGNORED_311: dict[str, bytes] = {
    "suback": b"\x90\x03\x00\x01\x00",
    "unsuback": b"\xb0\x02\x00\x01",
    "unsubscribe from what was never subscribed": packet(0xA2, b"\x00\x01" + field("never")),
}
# Where the broker waits for the rest, which never comes.
UNFINISHED: dict[str, bytes] = {
    "half a connect": GOOD[: len(GOOD) // 2],
    "one byte": b"\x10",
    "length without an end": b"\x10\xff\xff",
    "as long as a packet may be": b"\x30" + length_of(266_000) + bytes(1000),
}


def test_what_is_no_connect_ends_the_connection(scene: Scene) -> None:
    with scene.alice.undisturbed():
        for name, content in NO_CONNECT.items():
            with scene.mallory.link() as link:
                session = RawSession(link)
                session.send(content)
                assert closes(session), name


@VERSIONS
def test_what_is_no_packet_ends_the_connection_and_is_counted(scene: Scene, version: int) -> None:
    attacks = {**NO_PACKET, **(NO_PACKET_5 if version == MQTT_5 else {})}
    with (
        scene.alice.undisturbed(),
        counted(scene.platform, len(attacks), "twinfleet_broker_protocol_errors_total"),
    ):
        for name, content in attacks.items():
            with scene.mallory.session(Connect(version=version)) as session:
                session.send(content)
                assert closes(session), name


@VERSIONS
def test_what_means_nothing_is_passed_over(scene: Scene, version: int) -> None:
    ignored = {**IGNORED, **(IGNORED_311 if version == MQTT_311 else {})}
    with scene.alice.undisturbed(), scene.mallory.session(Connect(version=version)) as session:
        for name, content in ignored.items():
            session.send(content)
            assert session.messages() == [], name


def test_what_never_ends_holds_nobody_up(scene: Scene) -> None:
    with contextlib.ExitStack() as stack:
        for content in UNFINISHED.values():
            RawSession(stack.enter_context(scene.client(MALLORY).link())).send(content)
        with scene.alice.undisturbed():
            assert scene.mallory.is_admitted(Connect())


def test_garbage_instead_of_tls_ends_the_connection(scene: Scene) -> None:
    with scene.alice.undisturbed():
        for content in (
            GOOD,
            bytes(512),
            b"\x16\x03\x01\xff\xff" + bytes(70_000),
            b"\x16\x03\x01\x00\x05hello",
        ):
            with socket.create_connection(("127.0.0.1", scene.port), timeout=ANSWER_TIMEOUT_S) as link:
                session = RawSession(link)
                session.send(content)
                assert closes(session), content[:20]


def test_packets_that_come_byte_by_byte_are_packets(scene: Scene) -> None:
    with scene.alice.undisturbed(), scene.mallory.link() as link:
        session = RawSession(link)
        for content in (GOOD, publish(f"telemetry/{MALLORY}/slow", b'{"a":1}', packet_id=1), PING):
            for position in range(len(content)):
                session.send(content[position : position + 1])
        assert [session.until(CONNACK).kind, session.until(PUBACK).kind] == [CONNACK, PUBACK]


def test_nobody_renegotiates_tls(scene: Scene) -> None:
    # Python's ssl cannot ask for it, the command-line client can: R.
    client = subprocess.run(
        [
            *("openssl", "s_client", "-connect", f"127.0.0.1:{scene.port}", "-tls1_2"),
            *("-cert", str(scene.files / f"{MALLORY}.pem"), "-key", str(scene.files / f"{MALLORY}.key")),
        ],
        input=b"R\n",
        capture_output=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )
    assert b"RENEGOTIATING" in client.stdout + client.stderr
    assert b"no renegotiation" in client.stderr
    with scene.alice.undisturbed():
        assert scene.mallory.is_admitted(Connect())


def closes(session: RawSession) -> bool:
    """Tell whether the broker closes the connection; what it does not understand it might also wait for."""
    try:
        return session.is_closed()
    except TimeoutError:
        return False


# Connections


@pytest.fixture
def many_files() -> Iterator[None]:
    """Let this process have as many connections as these tests hold."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4 * CONNECTION_COUNT)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def only_connected(plain: socket.socket, _: ssl.SSLContext) -> socket.socket:
    return plain


def hello_sent(plain: socket.socket, context: ssl.SSLContext) -> socket.socket:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1").do_handshake()
    plain.sendall(outgoing.read())
    return plain


def tls_complete(plain: socket.socket, context: ssl.SSLContext) -> socket.socket:
    return context.wrap_socket(plain, server_hostname="127.0.0.1")


@pytest.mark.usefixtures("many_files")
@pytest.mark.parametrize("begin", [only_connected, hello_sent, tls_complete])
def test_a_thousand_half_open_connections_hold_nobody_up(
    scene: Scene, begin: Callable[[socket.socket, ssl.SSLContext], socket.socket], tmp_path: Path
) -> None:
    failed = counted(scene.platform, CONNECTION_COUNT, "twinfleet_broker_handshakes_failed_total")
    with failed, contextlib.ExitStack() as stack:
        for number in range(CONNECTION_COUNT):
            plain = socket.create_connection(("127.0.0.1", scene.port), timeout=ANSWER_TIMEOUT_S)
            stack.callback(plain.close)
            stack.enter_context(begin(plain, scene.mallory.context))
            if number % _PIECE == 0:
                # Not faster than the broker takes them, or the kernel drops some and they take a second each.
                scene.alice.report()
        for _ in range(10):
            scene.alice.report()
        name = f"fresh-{begin.__name__.replace('_', '-')}"
        scene.platform.enrol(name, tmp_path)
        with client_of(scene.platform, tmp_path, name).session(Connect()) as fresh:
            fresh.publish(f"$aws/things/{name}/shadow/update", b'{"state":{"reported":{"a":1}}}')
            until(lambda: scene.platform.version_of(name) == 1, "a device that is new is served")
        with scene.alice.undisturbed():
            pass
    with scene.alice.undisturbed():
        pass


@pytest.mark.usefixtures("many_files")
def test_a_thousand_half_open_connections_to_the_https_listener_hold_nobody_up(scene: Scene) -> None:
    endpoint = scene.platform.endpoints.https_devices
    assert endpoint is not None
    port = int(endpoint.url.rpartition(":")[2])
    with contextlib.ExitStack() as stack:
        for _ in range(CONNECTION_COUNT):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=ANSWER_TIMEOUT_S))
        with scene.alice.undisturbed(), scene.https(scene.mallory) as web:
            assert web.get(f"/things/{MALLORY}/shadow").status_code in (200, 404)


BROKER_WITH_FEW_FILES = """
import resource, socket, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_NOFILE, (400, 400))
from actors.broker import MosquittoBroker, reload_broker
from actors.pki import CertificateAuthority
from actors.processes import loopback_addresses
from actors.settings import DataDirectory, PlatformSettings
directory = DataDirectory(Path(sys.argv[1]))
directory.prepare()
CertificateAuthority.open_or_create(directory.pki)
broker = MosquittoBroker(PlatformSettings(data_dir=directory.path, mqtt_port=0, device_port=0, api_port=0))
broker.start()
try:
    held = [
        socket.create_connection((address, broker.port))
        for address in loopback_addresses()
        for _ in range(170)
    ]
    reload_broker(directory.path)
finally:
    broker.stop()
print((directory.logs / "mosquitto.log").read_text().count("max_connections exceeded") > 0)
"""


def test_connections_to_the_devices_listener_never_take_the_platforms_own_files(tmp_path: Path) -> None:
    # A process of its own, because a limit that was lowered stays low.
    done = subprocess.run(
        [sys.executable, "-c", BROKER_WITH_FEW_FILES, str(tmp_path / "site")],
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert (done.returncode, done.stdout) == (0, "True\n"), done


# Subscriptions


FLOODS = {
    "shared": [f"$share/{number}/telemetry/+/climate" for number in range(3000)],
    "own": [f"$aws/things/{MALLORY}/shadow/name/{number}/update/delta" for number in range(3000)],
    "deep": ["/".join(["+"] * depth) for depth in range(1, 180)],
}


@pytest.mark.parametrize("filters", FLOODS.values(), ids=FLOODS)
def test_a_flood_of_subscriptions_ends_the_session_and_is_counted(scene: Scene, filters: list[str]) -> None:
    with (
        scene.alice.undisturbed(),
        counted(scene.platform, 1, "twinfleet_broker_sessions_ended_total"),
        scene.mallory.session(Connect()) as session,
    ):
        session.send(subscribe(filters))
        assert closes(session)


def test_each_forbidden_subscription_is_counted(scene: Scene) -> None:
    filters = [f"$aws/things/{ALICE}/shadow/#", "#", "$SYS/#", "$share/any/$aws/#", "telemetry/#"]
    assert len(filters) <= FORBIDDEN_MAX
    with (
        scene.alice.undisturbed(),
        counted(scene.platform, len(filters), "twinfleet_broker_subscriptions_forbidden_total"),
        scene.mallory.session(Connect()) as session,
    ):
        session.subscribe(*filters, f"$aws/things/{MALLORY}/shadow/#")
