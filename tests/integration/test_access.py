"""Who is let in, on a real broker and a real store: revocation lists that break or expire, and what slips through."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from actors.access import BrokerAccess
from actors.broker import broker_log_file, end_session, events_listener
from actors.errors import ProcessEnded, StoreError
from actors.gateway.certificates import CertificateOffice
from actors.mqtt_events import CLIENT_ID, EventsSession
from actors.mqtt_link import BrokerConnection
from actors.pki import generate_key_and_csr
from actors.registry.records import CertificateRecord, ThingDescription
from actors.registry.registry import Registry
from actors.registry.things import thing_certificate
from actors.store import RedisServer
from actors.wall_clock import WallClock
from tests.integration.running_broker import DEADLINE_S, Site, make_site
from tests.running_store import running_store
from twins.clock import VirtualClock

DAY_S: Final = 86_400.0
# From the answer of a revocation to the end of what it is against.
ENDED_WITHIN_S: Final = 2.0
CONNECT: Final = b"\x10\x0f\x00\x04MQTT\x04\x02\x00\x0a\x00\x03abc"
CONNACK: Final = b"\x20\x02\x00\x00"


@dataclass
class Door:
    """The broker's door as the gateway has it on the whole platform."""

    access: BrokerAccess
    data_dir: Path
    ended: list[str] = field(default_factory=list)

    async def reload_access(self) -> None:
        await self.access.reload()

    async def end_sessions(self, client_ids: Sequence[str]) -> None:
        for client_id in client_ids:
            await asyncio.to_thread(end_session, self.data_dir, client_id)
            self.ended.append(client_id)


@dataclass(frozen=True)
class Holder:
    """Who has a certificate of the platform, with its key."""

    record: CertificateRecord
    context: ssl.SSLContext


class Place:
    """A broker, a registry and the office between them."""

    def __init__(self, site: Site, registry: Registry) -> None:
        self.site = site
        self.registry = registry
        self.access = BrokerAccess(
            registry, site.authority, data_dir=site.settings.data_dir, clock=WallClock()
        )
        self.door = Door(self.access, site.settings.data_dir)
        self.office = CertificateOffice(registry, authority=site.authority, platform=self.door)

    async def thing(self, name: str) -> Holder:
        """Register a thing as the device office does, and give its holder."""
        pair = generate_key_and_csr(name)
        thing = ThingDescription(name, "thermostat").record(now_s=WallClock().now_s())
        issued = self.office.sign(pair.csr_pem, name)
        await self.registry.things.add(thing, issued)
        return self._holder(thing_certificate(thing, issued), pair.private_key_pem)

    async def rotated(self, name: str) -> Holder:
        """Give the holder of a further certificate of a thing."""
        pair = generate_key_and_csr(name)
        return self._holder(await self.office.rotate(name, pair.csr_pem, by="anna"), pair.private_key_pem)

    def _holder(self, record: CertificateRecord, key_pem: str) -> Holder:
        context = ssl.create_default_context(cafile=str(self.site.authority.ca_file))
        file = self.site.settings.data_dir / "client.pem"
        file.write_text(record.pem + key_pem)
        context.load_cert_chain(file)
        file.unlink()
        return Holder(record, context)

    async def admits(self, holder: Holder) -> bool:
        """Tell whether an MQTT CONNECT of the holder is answered with success."""
        return await asyncio.to_thread(self._admits, holder)

    def _admits(self, holder: Holder) -> bool:
        try:
            with self.connect(holder) as connection:
                connection.sendall(CONNECT)
                return connection.recv(4) == CONNACK
        except (ssl.SSLError, ConnectionError):
            return False

    def connect(self, holder: Holder) -> ssl.SSLSocket:
        plain = self.dial()
        return holder.context.wrap_socket(plain, server_hostname="localhost")

    def dial(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.site.broker.port), timeout=DEADLINE_S)

    async def status(self, holder: Holder) -> str:
        record = await self.registry.certificates.get(holder.record.certificate_id)
        assert record is not None
        return record.status


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_store(tmp_path_factory.mktemp("store")) as started:
        yield started


@pytest.fixture
async def place(store: RedisServer, tmp_path: Path) -> AsyncIterator[Place]:
    registry = await Registry.open(store.url, WallClock(), prefix=f"{tmp_path.name}:")
    site = make_site(tmp_path / "site")
    site.broker.start()
    yield Place(site, registry)
    site.broker.stop()
    await registry.close()


@pytest.fixture
async def watched(place: Place) -> AsyncIterator[Place]:
    """Give a place whose office hears the events of the broker."""
    listener = events_listener(place.site.settings.data_dir)
    session = EventsSession(
        BrokerConnection(listener.host, listener.port, listener.user_name, listener.password, CLIENT_ID),
        log_file=broker_log_file(place.site.settings.data_dir),
        clock=WallClock(),
    )
    session.add_consumer(place.office)
    await session.start()
    yield place
    await session.stop()
    await place.office.close()


async def until(is_true: Callable[[], bool], within_s: float = DEADLINE_S) -> None:
    async with asyncio.timeout(within_s):
        # What is waited for lies in another process: nothing here could set an event.
        while not is_true():
            await asyncio.sleep(0.005)


async def until_status(place: Place, holder: Holder, status: str) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while await place.status(holder) != status:
            await asyncio.sleep(0.005)


# ---- lists that break or expire ------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [None, b"", b"no list"])
async def test_a_broken_list_on_disk_is_made_again_by_the_next_reload(
    place: Place, content: bytes | None
) -> None:
    stolen, honest = await place.thing("stolen"), await place.thing("honest")
    await place.office.revoke_thing("stolen", by="anna")
    list_file = place.site.authority.crl_file
    list_file.unlink() if content is None else list_file.write_bytes(content)
    await place.access.reload()
    assert not await place.admits(stolen)
    assert await place.admits(honest)
    assert place.site.authority.is_list_whole({int(stolen.record.serial)})


async def test_a_list_that_breaks_while_the_broker_is_told_is_mended_and_told_again(place: Place) -> None:
    stolen, honest = await place.thing("stolen"), await place.thing("honest")
    await place.office.revoke_thing("stolen", by="anna")

    async def vandalise() -> None:
        # Each time it has been mended, so that the broker may have met it whole or broken.
        for _ in range(3):
            await until(place.site.authority.is_list_whole)
            place.site.authority.crl_file.write_bytes(b"no list")

    vandal = asyncio.create_task(vandalise())
    keeping = asyncio.create_task(place.access.keep(every_s=0.01))
    await vandal
    try:
        async with asyncio.timeout(DEADLINE_S):
            while await place.admits(stolen):
                await asyncio.sleep(0.01)
        assert await place.admits(honest)
    finally:
        keeping.cancel()


async def test_an_expired_list_locks_nobody_out_who_may_come_in(place: Place) -> None:
    stolen, honest = await place.thing("stolen"), await place.thing("honest")
    await place.office.revoke_thing("stolen", by="anna")
    place.site.broker.stop()
    past = VirtualClock(WallClock().now_s() - 40 * DAY_S)
    place.site.authority.renew_list(await place.registry.certificates.revoked(), clock=past)
    # What this is about: the broker refuses everybody with such a list.
    place.site.broker.start()
    assert not await place.admits(honest)
    place.site.broker.stop()
    await place.access.write()
    place.site.broker.start()
    assert not await place.admits(stolen)
    assert await place.admits(honest)


async def test_an_expired_list_is_renewed_while_the_broker_runs(place: Place) -> None:
    honest = await place.thing("honest")
    past = VirtualClock(WallClock().now_s() - 40 * DAY_S)
    place.site.authority.renew_list({}, clock=past)
    place.site.broker.reload()
    assert not await place.admits(honest)
    tending = asyncio.create_task(place.access.keep(every_s=0.01))
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not await place.admits(honest):
                await asyncio.sleep(0.01)
    finally:
        tending.cancel()


async def test_a_lost_list_is_made_again_before_the_broker_starts(place: Place) -> None:
    stolen, honest = await place.thing("stolen"), await place.thing("honest")
    await place.office.revoke_thing("stolen", by="anna")
    place.site.broker.stop()
    place.site.authority.crl_file.write_bytes(b"no list")
    with pytest.raises(ProcessEnded, match="crl"):
        place.site.broker.start()
    await place.access.write()
    place.site.broker.start()
    assert not await place.admits(stolen)
    assert await place.admits(honest)


async def test_a_list_that_is_behind_the_registry_is_made_again(place: Place) -> None:
    stolen = await place.thing("stolen")
    before = place.site.authority.crl_file.read_bytes()
    await place.office.revoke_thing("stolen", by="anna")
    # As from a backup.
    place.site.authority.crl_file.write_bytes(before)
    await place.access.reload()
    assert not await place.admits(stolen)


# ---- sessions ------------------------------------------------------------------------------------------------------


async def test_an_open_session_ends_with_its_certificate(place: Place) -> None:
    holder = await place.thing("leaver")
    with place.connect(holder) as connection:
        connection.sendall(CONNECT)
        assert connection.recv(4) == CONNACK
        await place.office.revoke_thing("leaver", by="anna")
        connection.settimeout(ENDED_WITHIN_S)
        assert connection.recv(1) == b""
    assert not await place.admits(holder)


def cut_off_once(monkeypatch: pytest.MonkeyPatch, owner: object, method: str) -> None:
    """Make the next call of a method do its work and then fail, as one whose answer is lost."""
    whole = getattr(owner, method)

    async def without_answer(*arguments: Any, **options: Any) -> None:
        monkeypatch.setattr(owner, method, whole)
        await whole(*arguments, **options)
        raise StoreError("the answer was lost; try again", retryable=True)

    monkeypatch.setattr(owner, method, without_answer)


@pytest.mark.parametrize("step", ["registry", "reload"])
async def test_a_revocation_that_was_cut_off_is_completed_without_another_attempt(
    place: Place, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    stolen = await place.thing("stolen")
    with place.connect(stolen) as connection:
        connection.sendall(CONNECT)
        assert connection.recv(4) == CONNACK
        if step == "registry":
            cut_off_once(monkeypatch, place.registry.certificates, "change")
        else:
            cut_off_once(monkeypatch, place.door, "reload_access")
        with pytest.raises(StoreError):
            await place.office.revoke_thing("stolen", by="anna")
        await until(lambda: place.door.ended == ["stolen"])
        assert await asyncio.to_thread(connection.recv, 1) == b""
    assert not await place.admits(stolen)
    await place.office.close()


async def test_one_certificate_of_two_is_revoked_and_the_other_works_on(watched: Place) -> None:
    first = await watched.thing("lamp")
    second = await watched.rotated("lamp")
    with watched.connect(first) as connection:
        connection.sendall(CONNECT)
        assert connection.recv(4) == CONNACK
        await watched.office.revoke_thing("lamp", second.record.certificate_id, by="anna")
        assert not await watched.admits(second)
        # A ping is answered: the other session is still there.
        connection.sendall(b"\xc0\x00")
        assert connection.recv(2) == b"\xd0\x00"
    assert await watched.status(first) == "ACTIVE"


async def test_the_first_use_of_a_new_certificate_retires_all_before_it(watched: Place) -> None:
    first = await watched.thing("lamp")
    second = await watched.rotated("lamp")
    third = await watched.rotated("lamp")
    assert len({holder.record.common_name for holder in (first, second, third)}) == 3
    with watched.connect(first) as old:
        old.sendall(CONNECT)
        assert old.recv(4) == CONNACK
        with watched.connect(third) as new:
            new.sendall(CONNECT)
            assert new.recv(4) == CONNACK
            old.settimeout(DEADLINE_S)
            assert await asyncio.to_thread(old.recv, 1) == b""
            for holder in (first, second):
                await until_status(watched, holder, "INACTIVE")
                assert not await watched.admits(holder)
            # The session that retired them is not theirs.
            new.sendall(b"\xc0\x00")
            assert new.recv(2) == b"\xd0\x00"
    # Its name is free again.
    fourth = await watched.rotated("lamp")
    assert fourth.record.common_name == "lamp"
    assert await watched.admits(fourth)
    await until_status(watched, third, "INACTIVE")
    assert await watched.admits(fourth)


async def test_an_office_that_begins_anew_knows_what_is_to_be_retired(place: Place) -> None:
    first = await place.thing("lamp")
    second = await place.rotated("lamp")
    successor = CertificateOffice(place.registry, authority=place.site.authority, platform=place.door)
    await successor.begin()
    # As the devices' HTTPS listener tells it.
    await successor.used(second.record.certificate_id)
    await until_status(place, first, "INACTIVE")
    await successor.close()


class SlowClient:
    """A client that takes its steps, TCP, TLS and MQTT, when it is told to."""

    def __init__(self, holder: Holder, plain: socket.socket) -> None:
        self._plain = plain
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = holder.context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")

    def begin_tls(self) -> None:
        """Say hello, and hear that the server asks for a certificate."""
        with pytest.raises(ssl.SSLWantReadError):
            self._tls.do_handshake()
        self._send()
        self._incoming.write(self._plain.recv(65536))

    def finish_tls(self) -> None:
        """Send the certificate; in TLS 1.3 the server's opinion of it comes later."""
        self._step(self._tls.do_handshake)
        self._send()

    def connect(self) -> bytes:
        """Send a CONNECT and return the answer, b'' if the connection is ended instead."""
        try:
            self._tls.write(CONNECT)
            self._send()
            return self._step(lambda: self._tls.read(4)) or b""
        except (ssl.SSLError, ConnectionError):
            return b""

    def _send(self) -> None:
        self._plain.sendall(self._outgoing.read())

    def _step(self, action: Callable[[], bytes | None]) -> bytes | None:
        while True:
            try:
                return action()
            except ssl.SSLWantReadError:
                self._send()
                received = self._plain.recv(65536)
                if not received:
                    return b""
                self._incoming.write(received)


STEPS: Final = ("begin_tls", "finish_tls")


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("is_revoked", [False, True])
async def test_a_connection_from_before_the_revocation_does_not_stay(
    watched: Place, count: int, is_revoked: bool
) -> None:
    stolen = await watched.thing("stolen")
    with watched.dial() as plain:
        client = SlowClient(stolen, plain)
        await until(lambda: f":{plain.getsockname()[1]} on port" in watched.site.log())
        for step in STEPS[:count]:
            await asyncio.to_thread(getattr(client, step))
        if is_revoked:
            await watched.office.revoke_thing("stolen", by="anna")
        for step in STEPS[count:]:
            await asyncio.to_thread(getattr(client, step))
        answer = await asyncio.to_thread(client.connect)
        if not is_revoked:
            assert answer == CONNACK
            return
        # Whether it got as far as this or not, it is out.
        plain.settimeout(ENDED_WITHIN_S)
        with contextlib.suppress(ConnectionError):
            while await asyncio.to_thread(plain.recv, 4096):
                pass
        if answer:
            await until(lambda: watched.door.ended == ["stolen", "stolen"])
    assert not await watched.admits(stolen)
