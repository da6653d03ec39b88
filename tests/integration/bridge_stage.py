"""What the tests of the bridge play on: lanes that answer when told to, devices, and a way to the broker to be cut."""

from __future__ import annotations

import asyncio
import itertools
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from gmqtt import Client

from actors import mqtt_bridge
from actors.mqtt_bridge import BrokerConnection, MqttBridge
from actors.mqtt_taken import TakenMessages
from actors.pki import generate_key_and_csr
from tests.integration.running_broker import DEADLINE_S, Site
from twins.messages import Batch, Outcome, Publish, Request
from twins.shard import Shard
from twins.sharding import shard_of

SHARD_COUNT = 16
_CLIENT_IDS = itertools.count()


class Desk:
    """Lanes that keep every submission and answer when the gate of the lane is open."""

    shard_count = SHARD_COUNT
    lane_count = 2
    version = 0

    def __init__(self, answer: Callable[[Request], list[Publish]] = lambda _request: []) -> None:
        self.submissions: list[tuple[int, list[tuple[int, Batch]]]] = []
        self.failures: list[Exception] = []
        self.gates = [asyncio.Event() for _ in range(self.lane_count)]
        self._answer = answer
        self.open()

    def lane_of(self, shard: int) -> int:
        return shard % self.lane_count

    def open(self) -> None:
        for gate in self.gates:
            gate.set()

    def close(self) -> None:
        for gate in self.gates:
            gate.clear()

    async def submit(self, lane: int, batches: Sequence[tuple[int, Batch]]) -> Outcome:
        self.submissions.append((lane, list(batches)))
        if self.failures:
            raise self.failures.pop(0)
        await self.gates[lane].wait()
        return Outcome(
            [each for _, batch in batches for request in batch.requests for each in self._answer(request)], []
        )

    @property
    def requests(self) -> list[Request]:
        """Every request so far, in the order of submission."""
        return [
            request for _, batches in self.submissions for _, batch in batches for request in batch.requests
        ]

    def payloads(self, thing_name: str) -> list[bytes]:
        return [request.payload for request in self.requests if request.thing_name == thing_name]


def things_of(lane: int, count: int) -> list[str]:
    """Names whose shards belong to that lane of a `Desk`."""
    names = (f"sensor-{letter}" for letter in map(chr, itertools.count(ord("a"))))
    return list(
        itertools.islice((n for n in names if shard_of(n, SHARD_COUNT) % Desk.lane_count == lane), count)
    )


async def until(is_true: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        # What is waited for lies in another process or comes from it: nothing here could set an event.
        while not is_true():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def bridge(
    connection: BrokerConnection, lanes: mqtt_bridge.Lanes, *, taken: TakenMessages | None = None
) -> AsyncIterator[MqttBridge]:
    source = f"{connection.client_id}/{next(_CLIENT_IDS)}"
    served = MqttBridge(connection, lanes, source=source, taken=taken)
    await served.start()
    try:
        yield served
    finally:
        await served.stop()


class Device:
    """A device's own connection over mutual TLS, which keeps what it receives."""

    def __init__(self, client: Any, thing_name: str) -> None:
        self.received: list[tuple[str, bytes]] = []
        self._client = client
        self._thing_name = thing_name
        self._granted: list[int] = []
        client.on_message = self._on_message
        client.on_subscribe = lambda _client, packet_id, _qos, _properties: self._granted.append(packet_id)

    def _on_message(self, _client: object, topic: str, payload: bytes, _qos: int, _properties: object) -> int:
        self.received.append((topic, bytes(payload)))
        return 0

    async def subscribe(self, topic_filter: str) -> None:
        packet_id = self._client.subscribe(topic_filter, qos=1)
        await until(lambda: packet_id in self._granted)

    async def telemetry(self, *payloads: bytes, stream: str = "climate", qos: int = 1) -> None:
        """Send and return when the broker has them all."""
        for payload in payloads:
            self.publish(f"telemetry/{self._thing_name}/{stream}", payload, qos=qos)
        await self.sent()

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, is_retained: bool = False) -> None:
        self._client.publish(topic, payload, qos=qos, retain=is_retained)

    async def sent(self) -> None:
        """Return when the broker has all that was published at QoS 1."""
        await self._client._persistent_storage.wait_empty()


@asynccontextmanager
async def device(site: Site, thing_name: str) -> AsyncIterator[Device]:
    request = generate_key_and_csr(thing_name)
    issued = site.authority.issue_from_csr(request.csr_pem, thing_name)
    context = ssl.create_default_context(cafile=str(site.authority.ca_file))
    pair = site.settings.data_dir / f"{thing_name}.pem"
    pair.write_text(issued.certificate_pem + request.private_key_pem)
    context.load_cert_chain(pair)
    client = Client(thing_name, clean_session=True)
    connected = Device(client, thing_name)
    async with asyncio.timeout(DEADLINE_S):
        await client.connect("localhost", site.broker.port, ssl=context)
    try:
        yield connected
    finally:
        await client.disconnect()


class Wire:
    """A way to the broker that can be cut or go silent, and that keeps what the bridge sent."""

    def __init__(self, port: int) -> None:
        self.port = 0
        self.sent = bytearray()
        self.answers = asyncio.Event()
        self.answers.set()
        self.is_silent = False
        self.is_first_answer_only = False
        # Of a piece that holds these bytes on, the broker's words are kept back until `answers` is set.
        self.last_words = b""
        self._countdown = 0
        self._when_counted: Callable[[], None] = lambda: None
        self._broker_port = port
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def laid(self) -> AsyncIterator[Wire]:
        server = await asyncio.start_server(self._join, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.cut()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Reset every connection, with all that is under way."""
        while self._writers:
            self._writers.pop().transport.abort()

    def count_down(self, piece_count: int, then: Callable[[], None]) -> None:
        """Call `then` when so many more pieces have passed, in either direction."""
        self._countdown, self._when_counted = piece_count, then

    def _count(self) -> None:
        self._countdown -= 1
        if self._countdown == 0:
            self._when_counted()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        broker_reader, broker_writer = await asyncio.open_connection("127.0.0.1", self._broker_port)
        self._writers += [writer, broker_writer]
        for source, target, is_answer in ((reader, broker_writer, False), (broker_reader, writer, True)):
            task = asyncio.create_task(self._carry(source, target, is_answer=is_answer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _carry(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, is_answer: bool
    ) -> None:
        while True:
            try:
                piece = await source.read(65536)
                if is_answer:
                    await self.answers.wait()
                else:
                    self.sent += piece
                if not piece:
                    target.close()
                    return
                if is_answer and self.is_first_answer_only:
                    # The CONNACK and nothing after it, until the connection is cut.
                    target.write(piece[: 2 + piece[1]])
                    return
                if is_answer and self.last_words and self.last_words in piece:
                    self.answers.clear()
                if not self.is_silent:
                    target.write(piece)
                    await target.drain()
                    self._count()
            except ConnectionError:
                return


def packet_types(stream: bytes | bytearray) -> list[int]:
    """Return the first bytes of the complete MQTT packets in a stream."""
    found, position = [], 0
    while position + 1 < len(stream):
        first, length, shift = stream[position], 0, 0
        while True:
            position += 1
            length |= (stream[position] & 127) << shift
            shift += 7
            if stream[position] < 128:
                break
        position += 1 + length
        if position <= len(stream):
            found.append(first)
    return found


def numbered(count: int, first: int = 0) -> list[bytes]:
    return [b'{"n":%d}' % number for number in range(first, first + count)]


class ShardLanes:
    """Real shards in this process, behind two lanes."""

    shard_count = SHARD_COUNT
    lane_count = 2
    version = 0

    def __init__(self, shards: Sequence[Shard] = ()) -> None:
        self._shards = shards or [Shard(number, SHARD_COUNT) for number in range(SHARD_COUNT)]

    @staticmethod
    def sharing(other: ShardLanes) -> ShardLanes:
        """Return lanes to the shards of others."""
        return ShardLanes(other._shards)

    def lane_of(self, shard: int) -> int:
        return shard % self.lane_count

    async def submit(self, lane: int, batches: Sequence[tuple[int, Batch]]) -> Outcome:
        outcomes = [self._shards[shard].apply(batch, 1_700_000_000.0) for shard, batch in batches]
        return Outcome([each for outcome in outcomes for each in outcome.publishes], [])
