"""The broker lives on when a device that was away during reloads comes back to the session that was kept for it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from actors.access import BrokerAccess
from actors.broker import end_session, end_sessions, reload_broker
from actors.broker_events import BrokerEvents
from actors.broker_log import ClientConnected, ClientDisconnected, parse_line
from actors.fleet import LocalFleet
from actors.pki import generate_key_and_csr
from actors.processes import wait_until
from actors.registry.registry import Registry
from actors.store import RedisServer
from actors.wall_clock import WallClock
from tests.integration.raw_mqtt import (
    ACCEPTED,
    CONNACK,
    DISCONNECT,
    MQTT_5,
    Connect,
    RawClient,
    RawSession,
    Refused,
    packet,
)
from tests.integration.running_broker import DEADLINE_S, Site


@dataclass(frozen=True)
class Lasting(Connect):
    """A CONNECT of MQTT 5 whose session is to be kept for `expiry_s` after it."""

    is_clean: bool = False
    version: int = MQTT_5
    expiry_s: int = 300

    def encode(self) -> bytes:
        """Return the packet, with the expiry in place of no properties."""
        whole = super().encode()
        # Protocol name and level, flags and keep alive: ten bytes, then the length of the properties.
        at = whole.index(b"\x00\x04MQTT") + 10
        body = whole[2:at] + b"\x05\x11" + self.expiry_s.to_bytes(4, "big") + whole[at + 1 :]
        return packet(0x10, body)


def client_of(site: Site, name: str, files: Path) -> RawClient:
    """Return a client with a new certificate."""
    pair = generate_key_and_csr(name)
    issued = site.authority.issue_from_csr(pair.csr_pem, name)
    certificate, key = files / f"{name}.pem", files / f"{name}.key"
    certificate.write_text(issued.certificate_pem)
    key.write_text(pair.private_key_pem)
    return RawClient.of(site.broker.port, site.authority.ca_file, certificate=certificate, key=key)


def leave(client: RawClient, connect: Connect) -> None:
    """Connect, subscribe to the thing's deltas, and disconnect; the broker has dealt with it."""
    with client.session(connect) as session:
        session.subscribe(delta_of(connect))
        session.send(DISCONNECT)
        assert session.is_closed()


def delta_of(connect: Connect) -> str:
    name = connect.client_id
    return f"$aws/things/{name.decode() if isinstance(name, bytes) else name}/shadow/update/delta"


def publish_inside(site: Site, topic: str, payload: bytes) -> None:
    """Publish as the bridge does."""
    listener = site.broker.internal
    connect = Connect("app.test", user_name=listener.user_name, password=listener.password)
    with socket.create_connection((listener.host, listener.port), timeout=DEADLINE_S) as link:
        session = RawSession(link)
        session.send(connect.encode())
        assert session.until(CONNACK).body[1] == ACCEPTED
        assert session.publish(topic, payload) == ACCEPTED


def lives_on(site: Site) -> bool:
    """Tell whether the broker lives after it has looked through its expiring sessions, which it does every second."""
    # As often it saves, and says so.
    before = site.log().count("Saving in-memory database")
    is_through = wait_until(
        lambda: not site.broker.is_alive() or site.log().count("Saving in-memory database") > before + 1,
        timeout_s=DEADLINE_S,
    )
    return is_through and site.broker.is_alive()


def touched(site: Site) -> list[str]:
    """Return the clients that a reload has "disconnected" though they were not connected: with MQTT 5 a broken broker.

    What it has of them twice, it may read after it was freed: mostly it dies of that, but not always.
    """
    found, connected = [], set()
    for line in site.log().splitlines():
        match parse_line(line):
            case ClientConnected(client_id=name):
                connected.add(name)
            case ClientDisconnected(client_id=name) if name in connected:
                connected.discard(name)
            case ClientDisconnected(client_id=name):
                found.append(name)
    return found


@dataclass
class House:
    """A broker whose lists are reloaded as the gateway does it."""

    site: Site
    events: BrokerEvents
    access: BrokerAccess
    files: Path
    clients: dict[str, RawClient] = field(default_factory=dict)

    def client(self, name: str) -> RawClient:
        """Return the client of that name; its certificate is made once."""
        if name not in self.clients:
            self.clients[name] = client_of(self.site, name, self.files)
        return self.clients[name]

    async def leave(self, connect: Connect) -> None:
        """Let a device connect, subscribe and go."""
        await asyncio.to_thread(leave, self.client(str(connect.client_id)), connect)

    def session_is_kept(self, connect: Connect) -> bool:
        """Connect, and tell whether the broker says that it has kept the session."""
        with self.client(str(connect.client_id)).link() as link:
            session = RawSession(link, version=connect.version)
            session.send(connect.encode())
            kept, code = session.until(CONNACK).body[:2]
            assert code == ACCEPTED
            session.send(DISCONNECT)
            assert session.is_closed()
        return bool(kept)


@asynccontextmanager
async def gateway(site: Site, store: RedisServer) -> AsyncIterator[House]:
    """Give what of a gateway has to do with reloads."""
    registry = await Registry.open(store.url, WallClock())
    directory = site.settings.data_dir
    fleet = LocalFleet(4, clock=WallClock())
    events = BrokerEvents(directory, store.url, registry=registry, fleet=fleet, clock=WallClock())
    # As the gateway's actor does: reloads may come before the session begins to hear.
    await events.open()
    access = BrokerAccess(registry, site.authority, data_dir=directory, clock=WallClock(), away=events.away)
    await events.start()
    try:
        yield House(site, events, access, directory)
    finally:
        await events.close()
        await registry.close()


@pytest.fixture
async def house(own_site: Site, store: RedisServer) -> AsyncIterator[House]:
    async with gateway(own_site, store) as made:
        yield made


async def reload(house: House, *, times: int = 10) -> None:
    for _ in range(times):
        await house.access.reload()


async def test_devices_that_come_back_to_an_expiring_session_after_reloads_do_not_end_the_broker(
    house: House,
) -> None:
    for _ in range(5):
        for name in ("one", "two", "three"):
            await house.leave(Lasting(name))
        await reload(house, times=2)
        for name in ("one", "two", "three"):
            assert not await asyncio.to_thread(house.session_is_kept, Lasting(name))
        assert house.site.broker.is_alive()
    await reload(house)
    for name in ("one", "two", "three"):
        await house.leave(Lasting(name, is_clean=True))
    assert touched(house.site) == []
    assert await asyncio.to_thread(lives_on, house.site)


async def test_an_expiring_session_that_is_ended_after_reloads_does_not_end_the_broker(house: House) -> None:
    for _ in range(5):
        for name in ("one", "two", "three"):
            await house.leave(Lasting(name))
            await reload(house, times=2)
            await asyncio.to_thread(end_session, house.site.settings.data_dir, name)
        assert house.site.broker.is_alive()
    assert touched(house.site) == []
    assert await asyncio.to_thread(lives_on, house.site)


async def test_a_session_that_would_expire_after_reloads_does_not_end_the_broker(house: House) -> None:
    for name in ("one", "two", "three"):
        # Beyond the reloads, which take a tenth of a second each.
        await house.leave(Lasting(name, expiry_s=3))
    await reload(house)
    assert touched(house.site) == []
    for _ in range(2):
        assert await asyncio.to_thread(lives_on, house.site)


async def test_a_session_that_is_kept_over_a_restart_of_broker_and_gateway_is_known(
    own_site: Site, store: RedisServer
) -> None:
    async with gateway(own_site, store) as first:
        with first.client("open").session(Lasting("open")) as session:
            session.subscribe("$aws/things/open/shadow/update/delta")
            await first.leave(Lasting("away"))
            own_site.broker.stop()
            assert session.is_closed()
    own_site.broker.start()
    async with gateway(own_site, store) as second:
        second.clients = first.clients
        assert second.events.away() == ["away", "open"]
        await reload(second, times=2)
        assert second.events.away() == []
        for name in ("away", "open"):
            assert not await asyncio.to_thread(second.session_is_kept, Lasting(name))
        assert touched(own_site) == []
    assert await asyncio.to_thread(lives_on, own_site)


async def test_an_mqtt_311_session_keeps_its_messages_over_reloads(house: House) -> None:
    connect = Connect("lamp", is_clean=False)
    await house.leave(connect)
    await asyncio.to_thread(publish_inside, house.site, delta_of(connect), b'{"before":1}')
    await reload(house)
    await asyncio.to_thread(publish_inside, house.site, delta_of(connect), b'{"after":1}')
    with house.client("lamp").session(connect) as session:
        payloads = [message.payload for message in session.messages()]
    assert payloads == [b'{"before":1}', b'{"after":1}']
    assert await asyncio.to_thread(lives_on, house.site)


async def test_reloads_leave_devices_that_are_connected_alone(house: House) -> None:
    connect = Lasting("lamp")
    with house.client("lamp").session(connect) as session:
        session.subscribe(delta_of(connect))
        await reload(house, times=2)
        await asyncio.to_thread(publish_inside, house.site, delta_of(connect), b"{}")
        assert session.next_message().payload == b"{}"


async def test_a_device_that_comes_and_goes_all_the_time_does_not_end_the_broker(house: House) -> None:
    client, connect = house.client("rogue"), Lasting("rogue")
    is_over = threading.Event()

    def come_and_go() -> None:
        while not is_over.is_set():
            # Whoever ends sessions may end one that is just beginning.
            with contextlib.suppress(OSError, Refused), client.session(connect) as session:
                session.send(DISCONNECT)

    rogue = threading.Thread(target=come_and_go)
    rogue.start()
    try:
        # Without holding the broker still the device was away during one reload in 10 to 90.
        await reload(house, times=20)
    finally:
        is_over.set()
        rogue.join()
    assert touched(house.site) == []
    assert await asyncio.to_thread(lives_on, house.site)


async def test_who_was_ended_is_not_ended_again(house: House) -> None:
    await house.leave(Lasting("lamp"))
    assert house.events.away() == ["lamp"]
    await reload(house, times=3)
    assert house.events.away() == []
    ended = [line for line in house.site.log().splitlines() if " as lamp (" in line and "app.bridge" in line]
    assert len(ended) == 1


def test_many_sessions_are_ended_at_once(own_site: Site) -> None:
    names = [f"device-{number}" for number in range(1_000)]
    end_sessions(own_site.settings.data_dir, names)
    log = own_site.log()
    assert all(f" as {name} (" in log for name in names)


@pytest.mark.parametrize("comes_back", [True, False], ids=["comes back", "is deleted"])
def test_a_reload_while_an_mqtt_311_device_with_a_kept_session_is_away_does_not_end_the_broker(
    own_site: Site, tmp_path: Path, comes_back: bool
) -> None:
    clients = {name: client_of(own_site, name, tmp_path) for name in ("one", "two", "three")}
    # With sessions on the broker's list of those that expire, it died within the first five rounds.
    for _ in range(8):
        for name, client in clients.items():
            leave(client, Connect(name, is_clean=False))
            for _ in range(2):
                reload_broker(own_site.settings.data_dir)
            if not comes_back:
                end_session(own_site.settings.data_dir, name)
            assert own_site.broker.is_alive()
    assert lives_on(own_site)
