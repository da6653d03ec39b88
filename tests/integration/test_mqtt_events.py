"""The events session on the real broker: what happens there is told in order and whole, whoever was away meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from actors import mqtt_events
from actors.broker import AccessList, broker_log_file, end_session, events_listener, write_acl
from actors.broker_log import (
    BrokerEvent,
    BrokerStarted,
    BrokerStopping,
    ClientConnected,
    ClientDisconnected,
    ClientTakenOver,
    ConfigurationReloaded,
    HandshakeFailed,
    ProtocolViolated,
    Subscribed,
    Unsubscribed,
)
from actors.errors import StoreError
from actors.mqtt_events import CLIENT_ID, EventConsumer, EventsSession, StreamInterrupted, StreamResumed
from actors.mqtt_link import BrokerConnection
from actors.pki import generate_key_and_csr
from actors.wall_clock import WallClock
from tests.integration.raw_mqtt import DISCONNECT, Connect, RawClient, RawSession, field, packet
from tests.integration.running_broker import DEADLINE_S, Site
from twins.messages import Delivery, Publish

# A topic that the session may read and write, as those of claims.
TOPIC = "$aws/certificates/create/json"


class Witness(EventConsumer):
    """Keeps all that it is told, and refuses as often as a test says."""

    topic_filters = (TOPIC,)

    def __init__(self) -> None:
        self.told: list[BrokerEvent | bytes] = []
        self.position = ""
        self.failures: list[Exception] = []

    async def on_broker_event(self, event: BrokerEvent) -> None:
        self._may_fail()
        self.told.append(event)

    async def on_message(self, topic: str, payload: bytes) -> None:
        self._may_fail()
        self.told.append(payload)

    async def settle(self, position: str) -> None:
        self._may_fail()
        self.position = position

    def _may_fail(self) -> None:
        if self.failures:
            raise self.failures.pop(0)

    def of(self, client_id: str) -> list[BrokerEvent]:
        """Return what was told of one client, its times aside."""
        return [
            replace(event, at_s=0.0)
            for event in self.told
            if isinstance(event, BrokerEvent) and getattr(event, "client_id", None) == client_id
        ]

    def kinds(self) -> list[type]:
        return [type(each) for each in self.told]


async def until(is_true: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        # What is waited for lies in another process: nothing here could set an event.
        while not is_true():
            await asyncio.sleep(0.005)


def events_session(site: Site) -> EventsSession:
    """Return a session as the gateway's, without consumers."""
    listener = events_listener(site.settings.data_dir)
    connection = BrokerConnection(
        listener.host, listener.port, listener.user_name, listener.password, CLIENT_ID
    )
    return EventsSession(connection, log_file=broker_log_file(site.settings.data_dir), clock=WallClock())


@asynccontextmanager
async def session(
    site: Site, witness: Witness, *others: EventConsumer, position: str = ""
) -> AsyncIterator[EventsSession]:
    opened = events_session(site)
    for consumer in (witness, *others):
        opened.add_consumer(consumer)
    await opened.start(position)
    failed = asyncio.create_task(opened.until_failed())
    try:
        await until(lambda: StreamResumed in witness.kinds() or failed.done())
        yield opened
        assert not failed.done()
    finally:
        await opened.stop()
        await failed


def client(site: Site, name: str, directory: Path) -> RawClient:
    certificate, key = directory / f"{name}.pem", directory / f"{name}.key"
    if not certificate.exists():
        request = generate_key_and_csr(name)
        certificate.write_text(site.authority.issue_for_thing(request.csr_pem, name).certificate_pem)
        key.write_text(request.private_key_pem)
    return RawClient.of(site.broker.port, site.authority.ca_file, certificate=certificate, key=key)


# ---- how a connection ends -----------------------------------------------------------------------------------------


def say_goodbye(_site: Site, session: RawSession) -> None:
    session.send(DISCONNECT)


def close_the_socket(_site: Site, session: RawSession) -> None:
    session.link.close()


def reset_the_socket(_site: Site, session: RawSession) -> None:
    session.link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    session.link.close()


def send_an_unknown_packet(_site: Site, session: RawSession) -> None:
    session.send(packet(0xF0, b""))


def say_nothing(_site: Site, session: RawSession) -> None:
    # The keep-alive of the connection is a second; the broker waits for one and a half, and looks now and then.
    assert session.is_closed()


def be_ended_by_the_platform(site: Site, session: RawSession) -> None:
    end_session(site.settings.data_dir, "lamp")


ENDS = [
    (say_goodbye, ClientDisconnected(0.0, "lamp", "CLIENT_INITIATED_DISCONNECT")),
    (close_the_socket, ClientDisconnected(0.0, "lamp", "CONNECTION_LOST")),
    (reset_the_socket, ClientDisconnected(0.0, "lamp", "CONNECTION_LOST")),
    (say_nothing, ClientDisconnected(0.0, "lamp", "MQTT_KEEP_ALIVE_TIMEOUT")),
    (
        send_an_unknown_packet,
        ProtocolViolated(0.0, "lamp", "Client lamp disconnected due to protocol error."),
    ),
    (be_ended_by_the_platform, ClientTakenOver(0.0, "lamp")),
]


@pytest.mark.parametrize(("end", "event"), ENDS, ids=[end.__name__ for end, _ in ENDS])
async def test_the_end_of_a_connection_is_told_with_its_reason(
    site: Site, tmp_path: Path, end: Callable[[Site, RawSession], None], event: BrokerEvent
) -> None:
    witness = Witness()
    device = client(site, "lamp", tmp_path)

    def come_and_go() -> None:
        # How a socket that was closed here breaks is no matter of this test.
        with contextlib.suppress(OSError), device.session(Connect(b"chosen", keep_alive_s=1)) as connected:
            end(site, connected)
            if end is not close_the_socket and end is not reset_the_socket:
                assert connected.is_closed()

    async with session(site, witness):
        earlier = len(witness.of("lamp"))
        await asyncio.to_thread(come_and_go)
        await until(lambda: event in witness.of("lamp")[earlier:])
    connected, ended = witness.of("lamp")[earlier : earlier + 2]
    assert isinstance(connected, ClientConnected)
    assert (connected.user, connected.protocol, connected.keep_alive_s, connected.is_clean) == (
        "lamp", 4, 1, True,
    )  # fmt: skip
    assert ended == event


# ---- in order and whole --------------------------------------------------------------------------------------------


async def come_and_go(site: Site, directory: Path, name: str) -> None:
    """Connect once and say goodbye."""

    def run() -> None:
        with client(site, name, directory).session(Connect(b"x")) as connected:
            connected.send(DISCONNECT)
            assert connected.is_closed()

    await asyncio.to_thread(run)


GONE = "CLIENT_INITIATED_DISCONNECT"


async def test_what_comes_is_told_in_the_order_in_which_the_broker_let_it_happen(
    site: Site, tmp_path: Path
) -> None:
    witness = Witness()
    async with session(site, witness) as opened:
        for number in range(5):
            await opened.publish([Publish(TOPIC, b"%d" % number)])
            await come_and_go(site, tmp_path, "door")
        await until(lambda: len(witness.of("door")) == 10)
    told = [
        each if isinstance(each, bytes) else type(each)
        for each in witness.told
        if isinstance(each, bytes) or getattr(each, "client_id", "") == "door"
    ]
    expected: list[bytes | type] = []
    for number in range(5):
        expected += [b"%d" % number, ClientConnected, ClientDisconnected]
    assert told == expected


async def test_subscriptions_a_takeover_a_refused_handshake_and_a_reload_are_told(
    site: Site, tmp_path: Path
) -> None:
    witness = Witness()
    device = client(site, "gate", tmp_path)

    def act() -> None:
        stranger = RawClient.of(site.broker.port, site.authority.ca_file)
        assert not stranger.is_admitted(Connect(b"x"))
        with device.session(Connect(b"x")) as first:
            first.subscribe("$aws/things/gate/shadow/#", "a b")
            first.send(packet(0xA2, b"\x00\x02" + field("a b")))
            with device.session(Connect(b"y")):
                assert first.is_closed()
        site.broker.reload()

    async with session(site, witness):
        await asyncio.to_thread(act)
        await until(lambda: ConfigurationReloaded in witness.kinds())
    assert HandshakeFailed in witness.kinds()
    told = [event for event in witness.of("gate") if not isinstance(event, ClientConnected)]
    assert told == [
        Subscribed(0.0, "gate", "$aws/things/gate/shadow/#", 1),
        Subscribed(0.0, "gate", "a b", 1),
        Unsubscribed(0.0, "gate", "a b"),
        ClientTakenOver(0.0, "gate"),
        ClientDisconnected(0.0, "gate", "CONNECTION_LOST"),
    ]


async def test_the_first_session_of_all_begins_with_the_brokers_start(own_site: Site, tmp_path: Path) -> None:
    await come_and_go(own_site, tmp_path, "lamp")
    witness = Witness()
    async with session(own_site, witness):
        assert witness.kinds()[:2] == [StreamInterrupted, BrokerStarted]
        assert [type(event) for event in witness.of("lamp")] == [ClientConnected, ClientDisconnected]
    # Of the time before the broker's last start nobody needs to hear.
    own_site.broker.stop()
    own_site.broker.start()
    again = Witness()
    async with session(own_site, again):
        assert again.kinds().count(BrokerStarted) == 1
        assert again.of("lamp") == []


async def test_a_session_that_was_away_is_told_what_it_missed_and_nothing_twice(
    own_site: Site, tmp_path: Path
) -> None:
    before, after = Witness(), Witness()
    async with session(own_site, before):
        await come_and_go(own_site, tmp_path, "lamp")
        await until(lambda: len(before.of("lamp")) == 2)
        await until(lambda: before.position)
    await come_and_go(own_site, tmp_path, "door")
    async with session(own_site, after, position=before.position):
        await until(lambda: len(after.of("door")) == 2)
        assert after.of("lamp") == []
        interrupted, resumed = (after.kinds().index(kind) for kind in (StreamInterrupted, StreamResumed))
        assert interrupted == 0 < resumed


async def test_what_the_broker_has_forgotten_is_read_from_its_log(own_site: Site, tmp_path: Path) -> None:
    """As when a gateway was away for longer than the 20 s for which mosquitto stores its lines."""
    before, after = Witness(), Witness()
    async with session(own_site, before):
        await until(lambda: before.position)
    await come_and_go(own_site, tmp_path, "lamp")
    own_site.broker.stop()
    (own_site.directory.mosquitto / "mosquitto.db").unlink()
    own_site.broker.start()
    await come_and_go(own_site, tmp_path, "door")
    async with session(own_site, after, position=before.position):
        pass
    kinds = [kind for kind in after.kinds() if kind in (ClientConnected, BrokerStopping, BrokerStarted)]
    names = [event.client_id for event in after.told if isinstance(event, ClientConnected)]
    assert [name for name in names if name in ("lamp", "door")] == ["lamp", "door"]
    assert kinds.index(BrokerStopping) < kinds.index(BrokerStarted)


async def test_a_broker_that_is_killed_and_started_again_is_told_while_the_session_lives(
    own_site: Site, tmp_path: Path
) -> None:
    witness = Witness()
    async with session(own_site, witness):
        await come_and_go(own_site, tmp_path, "lamp")
        await until(lambda: len(witness.of("lamp")) == 2)
        own_site.kill_broker()
        own_site.broker.start()
        await come_and_go(own_site, tmp_path, "lamp")
        await until(lambda: len(witness.of("lamp")) == 4)
        kinds = witness.kinds()
        assert kinds.count(BrokerStarted) == 2
        assert BrokerStopping not in kinds
        await until(lambda: witness.kinds().count(StreamResumed) == 2)
        # And as before from then on.
        await come_and_go(own_site, tmp_path, "lamp")
        await until(lambda: len(witness.of("lamp")) == 6)


async def test_a_consumer_that_can_not_is_told_again_and_the_others_are_not(
    site: Site, tmp_path: Path
) -> None:
    first, second = Witness(), Witness()
    async with session(site, first, second) as opened:
        first.failures = [StoreError("away", retryable=True) for _ in range(3)]
        await opened.publish([Publish(TOPIC, b"once")])
        await come_and_go(site, tmp_path, "bell")
        await until(lambda: len(second.of("bell")) == 2)
    assert first.failures == []
    assert first.told.count(b"once") == second.told.count(b"once") == 1
    assert first.of("bell") == second.of("bell")


async def test_an_error_that_lasts_ends_the_session(own_site: Site) -> None:
    witness = Witness()
    opened = events_session(own_site)
    opened.add_consumer(witness)
    witness.failures = [StoreError("for good")]
    await opened.start()
    with pytest.raises(StoreError, match="for good"):
        await asyncio.wait_for(opened.until_failed(), DEADLINE_S)
    await opened.stop()


async def test_a_message_that_waited_while_nobody_listened_comes_before_the_stream_resumes(
    own_site: Site,
) -> None:
    # The claim may ask at any time; that its answers are for it alone is not decided by this session.
    write_acl(own_site.settings.data_dir, AccessList(claims=("claim.line-1",)))
    own_site.broker.reload()
    before, after = Witness(), Witness()
    async with session(own_site, before):
        await until(lambda: before.position)
    request = generate_key_and_csr("claim.line-1")
    issued = own_site.authority.issue_from_csr(request.csr_pem, "claim.line-1")
    files = own_site.settings.data_dir / "claim.pem", own_site.settings.data_dir / "claim.key"
    files[0].write_text(issued.certificate_pem)
    files[1].write_text(request.private_key_pem)
    claim = RawClient.of(own_site.broker.port, own_site.authority.ca_file, certificate=files[0], key=files[1])

    def ask() -> None:
        with claim.session(Connect(b"x")) as connected:
            connected.publish(TOPIC, b"early")

    await asyncio.to_thread(ask)
    async with session(own_site, after, position=before.position):
        kinds = after.kinds()
        assert kinds.index(StreamInterrupted) < after.told.index(b"early") < kinds.index(StreamResumed)


async def test_devices_hear_nothing_of_the_brokers_log(site: Site, tmp_path: Path) -> None:
    witness = Witness()

    def listen() -> list[str]:
        with client(site, "spy", tmp_path).session(Connect(b"x")) as spy:
            spy.subscribe("$SYS/#", "$SYS/broker/log/N", "twinfleet/#", "$aws/events/#")
            client(site, "lamp", tmp_path).is_admitted(Connect(b"x"))
            return [message.topic for message in spy.messages()]

    async with session(site, witness):
        assert await asyncio.to_thread(listen) == []
        await until(lambda: witness.of("lamp"))


async def test_what_the_broker_hands_over_beyond_what_may_wait_is_told_later_in_order(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt_events, "HELD_BYTES_MAX", 3000)
    witness, gate = Witness(), asyncio.Event()
    numbers = [b"%d" % number for number in range(30)]

    class Turnstile(EventConsumer):
        async def on_message(self, topic: str, payload: bytes) -> None:
            assert opened._held_bytes <= 3000
            await gate.wait()

    async with session(site, witness, Turnstile()) as opened:
        await opened.publish([Publish(TOPIC, number) for number in numbers])
        await until(lambda: opened.overrun_count)
        # Nobody keeps them for anybody: at QoS 0 they come once.
        await opened.publish([Publish(TOPIC, b"once", Delivery(qos=0))])
        await until(lambda: opened.dropped_count == 1)
        gate.set()
        await until(lambda: numbers[-1] in witness.told)
    assert [each for each in witness.told if isinstance(each, bytes)] == numbers
