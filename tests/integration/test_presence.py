"""Presence on the real broker and store: what is announced and what twins know, whatever restarts meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis

from actors.broker import AccessList, end_session, write_acl
from actors.broker_events import BrokerEvents
from actors.fleet import LocalFleet
from actors.pki import generate_key_and_csr
from actors.registry.records import CertificateRecord, new_thing
from actors.registry.registry import Registry
from actors.store import RedisServer
from actors.wall_clock import WallClock
from tests.integration.raw_mqtt import DISCONNECT, Connect, RawClient, RawSession, packet
from tests.integration.running_broker import DEADLINE_S, Site, running_site
from twins.messages import Operation, Registration, Request
from twins.shadow import encode_json

OBSERVER = "app.watcher"
PRESENCE = "$aws/events/presence/#"


@dataclass
class House:
    """A broker, a store with its registry, and a fleet; the gateway's part comes and goes."""

    site: Site
    store: RedisServer
    registry: Registry
    fleet: LocalFleet
    files: Path

    def client(self, common_name: str) -> RawClient:
        """Return the client that holds the certificate of that common name."""
        certificate, key = self.files / f"{common_name}.pem", self.files / f"{common_name}.key"
        return RawClient.of(
            self.site.broker.port, self.site.authority.ca_file, certificate=certificate, key=key
        )

    async def enrol(self, name: str) -> CertificateRecord:
        """Register a thing with a twin and a certificate."""
        request = generate_key_and_csr(name)
        issued = self.site.authority.issue_for_thing(request.csr_pem, name)
        self.keep(issued.common_name, issued.certificate_pem, request.private_key_pem)
        thing = new_thing(name, "thermostat", {}, now_s=time.time())
        payload = encode_json(Registration("thermostat"))
        await self.fleet.ask(Request(Operation.REGISTER, name, payload, is_direct=True))
        return await self.registry.things.add(thing, issued)

    def keep(self, common_name: str, certificate_pem: str, key_pem: str) -> None:
        """Keep a certificate and its key for `client`."""
        (self.files / f"{common_name}.pem").write_text(certificate_pem)
        (self.files / f"{common_name}.key").write_text(key_pem)

    def admit_observer(self) -> None:
        """Let an application hear the events."""
        request = generate_key_and_csr(OBSERVER)
        issued = self.site.authority.issue_from_csr(request.csr_pem, OBSERVER)
        self.keep(OBSERVER, issued.certificate_pem, request.private_key_pem)
        write_acl(self.site.settings.data_dir, AccessList(observers=(OBSERVER,)))

    async def connectivity(self, name: str) -> Any:
        """Return what the twin knows of its connection."""
        return (await self.fleet.twin(name).describe())["connectivity"]

    async def until_connected(self, name: str, is_connected: bool, *, version: int = 0) -> dict[str, Any]:
        """Return what the twin knows, once it knows this, of this connection or a later one."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                known = await self.connectivity(name)
                if known is not None and known["connected"] is is_connected and known["version"] >= version:
                    return dict(known)
                # The twin says nothing of itself: it has to be asked.
                await asyncio.sleep(0.005)

    @asynccontextmanager
    async def gateway(self) -> AsyncIterator[BrokerEvents]:
        """Give the part of a gateway that hears the broker."""
        events = BrokerEvents(
            self.site.settings.data_dir,
            self.store.url,
            registry=self.registry,
            fleet=self.fleet,
            clock=WallClock(),
        )
        await events.start()
        try:
            yield events
        finally:
            await events.close()

    @contextlib.contextmanager
    def observer(self, *filters: str) -> Iterator[RawSession]:
        """Give an application's session that hears the events."""
        with self.client(OBSERVER).session(Connect(b"x")) as session:
            session.subscribe(*(filters or (PRESENCE,)))
            yield session


@pytest.fixture
async def house(tmp_path: Path, store: RedisServer) -> AsyncIterator[House]:
    with running_site(tmp_path / "site") as site:
        registry = await Registry.open(store.url, WallClock())
        made = House(site, store, registry, LocalFleet(4, clock=WallClock()), tmp_path)
        made.admit_observer()
        site.broker.reload()
        try:
            yield made
        finally:
            await registry.close()


async def heard(observer: RawSession, kind: str, client_id: str) -> dict[str, Any]:
    """Return the next event of this kind (`presence/connected`) about this client."""

    def run() -> dict[str, Any]:
        while True:
            message = observer.next_message()
            if message.topic == f"$aws/events/{kind}/{client_id}":
                return dict(json.loads(message.payload))

    return await asyncio.to_thread(run)


async def test_the_events_of_a_session_say_who_came_and_went(house: House) -> None:
    certificate = await house.enrol("lamp")
    began_ms = int(time.time() * 1000)
    async with house.gateway():
        with house.observer() as observer:
            with house.client("lamp").session(Connect(b"x")) as device:
                connected = await heard(observer, "presence/connected", "lamp")
                twin = await house.until_connected("lamp", True)
                device.send(DISCONNECT)
                disconnected = await heard(observer, "presence/disconnected", "lamp")
            twin_after = await house.until_connected("lamp", False)
    identifier, timestamp = connected["sessionIdentifier"], connected["timestamp"]
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", identifier)
    assert began_ms - 1000 <= timestamp <= disconnected["timestamp"] <= time.time() * 1000
    common = {
        "clientId": "lamp",
        "sessionIdentifier": identifier,
        "principalIdentifier": certificate.certificate_id,
        "versionNumber": 1,
    }
    assert connected == common | {
        "timestamp": timestamp,
        "eventType": "connected",
        "ipAddress": "127.0.0.1",
    }
    assert disconnected == common | {
        "timestamp": disconnected["timestamp"],
        "eventType": "disconnected",
        "clientInitiatedDisconnect": True,
        "disconnectReason": "CLIENT_INITIATED_DISCONNECT",
    }
    link = {"session": identifier, "version": 1}
    assert twin == link | {"connected": True, "timestamp": timestamp, "disconnect_reason": None}
    assert twin_after == link | {
        "connected": False,
        "timestamp": disconnected["timestamp"],
        "disconnect_reason": "CLIENT_INITIATED_DISCONNECT",
    }


async def test_each_way_to_go_has_its_reason_and_each_session_its_version(house: House) -> None:
    await house.enrol("lamp")
    lamp = house.client("lamp")

    def cut(device: RawSession) -> None:
        device.link.close()

    def violate(device: RawSession) -> None:
        device.send(packet(0xF0, b""))
        assert device.is_closed()

    def fall_silent(device: RawSession) -> None:
        assert device.is_closed()

    def be_replaced(_: RawSession) -> None:
        with lamp.session(Connect(b"y")) as another:
            another.send(DISCONNECT)

    def be_ended(_: RawSession) -> None:
        end_session(house.site.settings.data_dir, "lamp")

    ways = [
        (cut, ["CONNECTION_LOST"]),
        (violate, ["CLIENT_ERROR"]),
        (fall_silent, ["MQTT_KEEP_ALIVE_TIMEOUT"]),
        (be_replaced, ["DUPLICATE_CLIENTID", "CLIENT_INITIATED_DISCONNECT"]),
        (be_ended, ["SERVER_INITIATED_DISCONNECT"]),
    ]
    told: list[tuple[int, str, bool]] = []
    async with house.gateway():
        with house.observer() as observer:
            for way, reasons in ways:

                def once(way: Any = way) -> None:
                    with contextlib.suppress(OSError), lamp.session(Connect(b"x", keep_alive_s=1)) as device:
                        way(device)

                await asyncio.to_thread(once)
                for _ in reasons:
                    event = await heard(observer, "presence/disconnected", "lamp")
                    told.append(
                        (
                            event["versionNumber"],
                            event["disconnectReason"],
                            event["clientInitiatedDisconnect"],
                        )
                    )
    expected = [reason for _, reasons in ways for reason in reasons]
    assert told == [
        (number, reason, reason == "CLIENT_INITIATED_DISCONNECT")
        for number, reason in enumerate(expected, start=1)
    ]


async def test_a_device_whose_process_is_killed_has_lost_its_connection(house: House) -> None:
    await house.enrol("lamp")
    script = (
        "import sys, time; from pathlib import Path\n"
        "from tests.integration.raw_mqtt import Connect, RawClient\n"
        "port, ca, certificate, key = int(sys.argv[1]), *map(Path, sys.argv[2:])\n"
        "with RawClient.of(port, ca, certificate=certificate, key=key).session(Connect(b'x')):\n"
        "    time.sleep(60)\n"
    )
    files = [house.site.authority.ca_file, house.files / "lamp.pem", house.files / "lamp.key"]
    command = [sys.executable, "-c", script, str(house.site.broker.port), *map(str, files)]
    async with house.gateway():
        with house.observer() as observer:
            device = subprocess.Popen(command)
            try:
                await house.until_connected("lamp", True)
            finally:
                device.send_signal(signal.SIGKILL)
                device.wait()
            event = await heard(observer, "presence/disconnected", "lamp")
            assert event["disconnectReason"] == "CONNECTION_LOST"
            assert (await house.until_connected("lamp", False))["disconnect_reason"] == "CONNECTION_LOST"


async def test_an_application_is_told_by_its_common_name_and_what_it_listens_to(house: House) -> None:
    await house.enrol("lamp")
    async with house.gateway():
        with (
            house.observer("$aws/events/#") as observer,
            house.client("lamp").session(Connect(b"x")) as device,
        ):
            topics = [f"$aws/things/lamp/shadow/name/s{number}/get/accepted" for number in range(10)]
            device.subscribe(*topics)
            connected = await heard(observer, "presence/connected", "lamp")
            first = await heard(observer, "subscriptions/subscribed", "lamp")
            second = await heard(observer, "subscriptions/subscribed", "lamp")
    assert [*first["topics"], *second["topics"]] == topics
    assert len(first["topics"]) == 8
    del first["topics"], first["timestamp"]
    assert first == {
        "clientId": "lamp",
        "eventType": "subscribed",
        "sessionIdentifier": connected["sessionIdentifier"],
        "principalIdentifier": connected["principalIdentifier"],
    }


async def test_a_thing_with_a_long_name_is_told_by_it_and_not_by_its_common_name(house: House) -> None:
    name = "a-name-that-is-too-long-for-a-common-name-" + "x" * 40
    record = await house.enrol(name)
    assert record.common_name == record.certificate_id
    write_acl(house.site.settings.data_dir, AccessList(((record.common_name, name),), observers=(OBSERVER,)))
    house.site.broker.reload()
    async with house.gateway():
        with house.observer() as observer, house.client(record.common_name).session(Connect(b"x")):
            event = await heard(observer, "presence/connected", name)
            await house.until_connected(name, True)
    assert (event["clientId"], event["principalIdentifier"]) == (name, record.certificate_id)


async def test_a_session_that_outlives_the_gateway_keeps_its_identifier_and_version(house: House) -> None:
    await house.enrol("lamp")
    await house.enrol("door")
    with house.observer() as observer, house.client("lamp").session(Connect(b"x")) as lamp:
        async with house.gateway():
            connected = await heard(observer, "presence/connected", "lamp")
        # While nobody listens, one goes and another comes.
        lamp.send(DISCONNECT)
        with house.client("door").session(Connect(b"x")):
            async with house.gateway():
                disconnected = await heard(observer, "presence/disconnected", "lamp")
                await heard(observer, "presence/connected", "door")
                assert (await house.until_connected("lamp", False))["version"] == 1
                assert (await house.until_connected("door", True))["version"] == 1
    for name in ("sessionIdentifier", "versionNumber", "principalIdentifier"):
        assert disconnected[name] == connected[name]


async def test_what_was_told_is_not_told_again_after_a_restart_of_the_gateway(house: House) -> None:
    await house.enrol("lamp")
    with house.observer() as observer, house.client("lamp").session(Connect(b"x")):
        async with house.gateway():
            await heard(observer, "presence/connected", "lamp")
        async with house.gateway() as events:
            # The observer's own connection is the last thing that happened before.
            assert events.presence.session_of("lamp") is not None
            await house.enrol("door")
            with house.client("door").session(Connect(b"x")):
                message = await asyncio.to_thread(observer.next_message)
                assert message.topic == "$aws/events/presence/connected/door"


async def test_a_broker_that_is_killed_ends_every_session_and_twins_follow_its_restart(house: House) -> None:
    await house.enrol("lamp")
    await house.enrol("door")
    async with house.gateway():
        with contextlib.suppress(OSError), house.client("lamp").session(Connect(b"x")):
            await house.until_connected("lamp", True)
            with contextlib.suppress(OSError), house.client("door").session(Connect(b"x")):
                await house.until_connected("door", True)
                house.site.kill_broker()
        house.site.broker.start()
        with house.client("lamp").session(Connect(b"x")):
            assert (await house.until_connected("door", False))["disconnect_reason"] == "SERVER_ERROR"
            async with asyncio.timeout(DEADLINE_S):
                while (await house.until_connected("lamp", True))["version"] != 2:
                    await asyncio.sleep(0.005)


async def test_a_broker_that_is_stopped_while_the_gateway_is_away_ends_every_session(house: House) -> None:
    await house.enrol("lamp")
    with contextlib.suppress(OSError), house.client("lamp").session(Connect(b"x")):
        async with house.gateway():
            await house.until_connected("lamp", True)
        house.site.broker.stop()
    house.site.broker.start()
    async with house.gateway():
        known = await house.until_connected("lamp", False)
    assert known["disconnect_reason"] == "SERVER_INITIATED_DISCONNECT"


async def test_presence_that_has_lost_its_memory_knows_who_is_connected(house: House) -> None:
    await house.enrol("lamp")
    with house.client("lamp").session(Connect(b"x")):
        async with house.gateway():
            await house.until_connected("lamp", True)
        with redis.Redis.from_url(house.store.url) as client:
            assert client.delete("twinfleet:presence") == 1
        await house.fleet.ask(Request(Operation.UNREGISTER, "lamp", is_direct=True))
        await house.fleet.ask(
            Request(Operation.REGISTER, "lamp", encode_json(Registration("thermostat")), is_direct=True)
        )
        assert await house.connectivity("lamp") is None
        async with house.gateway():
            assert (await house.until_connected("lamp", True))["version"] == 1


async def test_the_store_may_be_away_for_a_moment(house: House) -> None:
    await house.enrol("lamp")
    async with house.gateway():
        with house.observer() as observer:
            house.store.stop()
            with house.client("lamp").session(Connect(b"x")):
                house.store.start()
                assert (await heard(observer, "presence/connected", "lamp"))["versionNumber"] == 1
                await house.until_connected("lamp", True)


async def test_a_burst_of_connects_is_told_whole(house: House) -> None:
    """Forty devices that come and go five times each, as fast as TLS lets them."""
    names = [f"burst-{number}" for number in range(40)]
    for name in names:
        await house.enrol(name)

    def burst(name: str) -> None:
        device = house.client(name)
        for _ in range(5):
            with device.session(Connect(b"x")) as session:
                session.send(DISCONNECT)

    async with house.gateway():
        with house.observer() as observer:
            await asyncio.gather(*(asyncio.to_thread(burst, name) for name in names))
            counts = dict.fromkeys(names, 0)

            def collect() -> None:
                while sum(counts.values()) < 5 * len(names):
                    message = observer.next_message()
                    kind, _, name = message.topic.removeprefix("$aws/events/presence/").partition("/")
                    if kind == "disconnected" and name in counts:
                        counts[name] += 1

            await asyncio.to_thread(collect)
        for name in names:
            # The twins are told after the observer.
            assert (await house.until_connected(name, False, version=5))["version"] == 5
