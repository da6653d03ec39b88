"""What the bridge holds, counts and acknowledges, over any history of messages, answers, failures and lost links.

The bridge, its session and its links are the real ones; the broker at the other end of the wire is a model of what MQTT
says of one, and so are the shards. Nothing waits for time to pass.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from actors import mqtt_bridge, mqtt_link, mqtt_session
from actors.errors import ShardUnavailable
from actors.mqtt_bridge import MARKER_TOPIC, BrokerConnection, MqttBridge
from actors.mqtt_link import LinkEvents, MqttLink
from twins.messages import Batch, Operation, Outcome, Publish, Request
from twins.sharding import shard_of

THINGS: Final = ("lamp", "door", "fan")
LANE_COUNT: Final = 2
# One that comes when a shard moves to it.
LANE_COUNT_MAX: Final = 3
SHARD_COUNT: Final = 4
# The least that a connection may have: a few messages fill it.
RECEIVE_MAXIMUM: Final = 10
# A few messages: what has to be dropped is dropped often.
UNWINDOWED_BYTES_MAX: Final = 700
REFUSED: Final = 0x97
# Turns of the event loop after which nothing of ours is left to do: a chain of five tasks at most wakes one another.
TURNS: Final = 25


class Message:
    """A message of a device, or the marker, on its way from the broker to the bridge."""

    def __init__(self, topic: str, payload: bytes, qos: int) -> None:
        self.topic = topic
        self.payload = payload
        self.qos = qos

    def packet(self, packet_id: int) -> bytes:
        name = self.topic.encode()
        number = packet_id.to_bytes(2, "big") if self.qos else b""
        return len(name).to_bytes(2, "big") + name + number + b"\0" + self.payload


class Broker:
    """One session of a broker: what it keeps for the bridge, and what the bridge has published."""

    def __init__(self) -> None:
        self.is_reachable = asyncio.Event()
        self.is_reachable.set()
        self.link: ScriptedLink | None = None
        # Nothing that is sent gets here, though nobody knows it yet.
        self.is_deaf = False
        self.has_session = False
        self.stored: deque[Message] = deque()
        self.unacknowledged: dict[int, Message] = {}
        self.published: deque[int] = deque()
        self.answers: list[tuple[str, bytes]] = []
        self.refused_tokens: list[bytes] = []
        self._packet_id = 0

    async def accept(self, link: ScriptedLink) -> None:
        await self.is_reachable.wait()
        self.link, self.is_deaf = link, False
        self.published.clear()
        link.begin(self, has_session=self.has_session)
        self.has_session = True
        for packet_id, message in self.unacknowledged.items():
            link.deliver(message, packet_id, is_redelivered=True)
        self.deliver()

    def deliver(self) -> None:
        while self.link is not None and self.stored and len(self.unacknowledged) < RECEIVE_MAXIMUM:
            self._packet_id += 1
            message = self.stored.popleft()
            self.unacknowledged[self._packet_id] = message
            self.link.deliver(message, self._packet_id, is_redelivered=False)

    def send(self, message: Message) -> None:
        """Take a message of a device in."""
        if message.qos:
            self.stored.append(message)
            self.deliver()
        elif self.link is not None:
            self.link.deliver(message, 0, is_redelivered=False)

    def hear(self, packets: bytes) -> None:
        """Take in what the bridge sends: acknowledgements, its marker, and answers."""
        if self.is_deaf:
            return
        while packets:
            kind, length, start = packets[0], packets[1] & 127, 2
            if packets[1] > 127:
                length, start = length | packets[2] << 7, 3
            body, packets = packets[start : start + length], packets[start + length :]
            if kind == 0x40:
                self.unacknowledged.pop(int.from_bytes(body, "big"))
            else:
                self._publish(body)
        self.deliver()

    def _publish(self, body: bytes) -> None:
        end = 2 + int.from_bytes(body[:2], "big")
        topic, payload = body[2:end].decode(), body[end + 3 :]
        self.published.append(int.from_bytes(body[end : end + 2], "big"))
        if topic == MARKER_TOPIC:
            self.stored.append(Message(topic, payload, 1))
        elif topic.endswith("/rejected"):
            self.refused_tokens.append(payload)
        else:
            self.answers.append((topic, payload))

    def take(self, reason: int = 0) -> None:
        """Acknowledge the oldest message that the bridge has published."""
        if self.published and self.link is not None and not self.is_deaf:
            self.link.hand_over(self.published.popleft(), reason)

    def cut(self) -> None:
        link, self.link = self.link, None
        if link is not None:
            link.abort("cut")


class ScriptedLink(MqttLink):
    """A link whose packets go to a `Broker` of this process."""

    broker: Broker

    async def open(self, topic_filters: Sequence[str]) -> None:
        await self.broker.accept(self)

    def begin(self, broker: Broker, *, has_session: bool) -> None:
        self._wire = _Wire(broker.hear)
        self._is_open = True
        self._events.connected(self, has_session)

    def deliver(self, message: Message, packet_id: int, *, is_redelivered: bool) -> None:
        self._on_publish(0x30 | message.qos << 1 | is_redelivered << 3, message.packet(packet_id))

    def hand_over(self, packet_id: int, reason: int) -> None:
        self._on_puback(0x40, packet_id.to_bytes(2, "big") + bytes([reason]))

    async def close(self) -> None:
        self._flush()
        self._lose("closed")


@dataclass(frozen=True, kw_only=True)
class ScriptedConnection(BrokerConnection):
    """A way to a `Broker` of this process."""

    broker: Broker

    def link(self, events: LinkEvents) -> ScriptedLink:
        made = ScriptedLink(self, events)
        made.broker = self.broker
        return made


class _Wire:
    _last_data_in = float("inf")

    def __init__(self, send_package: Callable[[bytes], None]) -> None:
        self.send_package = send_package

    def is_closing(self) -> bool:
        return False


class Shards:
    """Lanes that answer one submission for each permission, and each message of it with one."""

    shard_count = SHARD_COUNT

    def __init__(self) -> None:
        self.permissions = [asyncio.Semaphore(0) for _ in range(LANE_COUNT_MAX)]
        self.is_failing = [False] * LANE_COUNT_MAX
        self.carried_out: list[Request] = []
        self.version = 0
        self._lanes = [shard % LANE_COUNT for shard in range(SHARD_COUNT)]
        self._batches: dict[int, Batch] = {}
        self._in_flight: set[int] = set()

    @property
    def lane_count(self) -> int:
        return max(LANE_COUNT, *(lane + 1 for lane in self._lanes))

    def lane_of(self, shard: int) -> int:
        return self._lanes[shard]

    def move(self, shard: int, lane: int) -> None:
        self._lanes[shard] = lane
        self.version += 1

    async def submit(self, lane: int, batches: Sequence[tuple[int, Batch]]) -> Outcome:
        shards = {shard for shard, _ in batches}
        assert not shards & self._in_flight
        for shard, batch in batches:
            before = self._batches.setdefault(shard, Batch(batch.source, 0, []))
            # The next one, or the same again.
            assert batch == before or batch.sequence == before.sequence + 1
            self._batches[shard] = batch
        self._in_flight |= shards
        try:
            return await self._answer(lane, batches)
        finally:
            self._in_flight -= shards

    async def _answer(self, lane: int, batches: Sequence[tuple[int, Batch]]) -> Outcome:
        await self.permissions[lane].acquire()
        if self.is_failing[lane]:
            self.is_failing[lane] = False
            raise ShardUnavailable(lane, "it was told to fail")
        requests = [request for _, batch in batches for request in batch.requests]
        self.carried_out += requests
        answered = [each for each in requests if each.operation is not Operation.TELEMETRY]
        return Outcome([Publish(f"answer/{each.thing_name}", each.payload) for each in answered], [])


class BridgeMachine(RuleBasedStateMachine):
    """A bridge between a broker and shards that do what the rules say."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = pytest.MonkeyPatch()
        self.patches.setattr(mqtt_bridge, "UNWINDOWED_BYTES_MAX", UNWINDOWED_BYTES_MAX)
        self.patches.setattr(mqtt_bridge, "RETRY_DELAY_MIN_S", 0.0)
        self.patches.setattr(mqtt_session, "RECONNECT_DELAY_MIN_S", 0.0)
        self.patches.setattr(mqtt_session, "RECONNECT_DELAY_MAX_S", 0.0)
        self.patches.setattr(mqtt_link, "_ACKNOWLEDGE_WITHIN_S", 0.0)
        self.loop = asyncio.new_event_loop()
        self.sent: list[Message] = []
        # Then less is promised.
        self.was_forgotten = False
        self.run(self.begin())

    async def begin(self) -> None:
        self.broker, self.shards = Broker(), Shards()
        connection = ScriptedConnection("nowhere", 1, receive_maximum=RECEIVE_MAXIMUM, broker=self.broker)
        self.bridge = MqttBridge(connection, self.shards, source="bridge/1")
        await self.bridge.start()
        await turns()
        # The marker: there was no backlog.
        self.broker.take()
        await turns()

    def run(self, coroutine: Any) -> None:
        self.loop.run_until_complete(coroutine)

    def turn(self) -> None:
        self.run(turns())

    @rule(
        thing=st.sampled_from(THINGS),
        ending=st.sampled_from(["update", "update", "get", "telemetry", "wrong"]),
        qos=st.sampled_from([1, 1, 0]),
        fill=st.sampled_from([0, 0, 150]),
        count=st.sampled_from([1, 1, 4, 12]),
    )
    def send(self, thing: str, ending: str, qos: int, fill: int, count: int) -> None:
        topics = {"telemetry": f"telemetry/{thing}/s", "wrong": "telemetry/not a thing/s"}
        topic = topics.get(ending, f"$aws/things/{thing}/shadow/{ending}")
        for _ in range(count):
            message = Message(topic, b'{"clientToken":"%d"}' % len(self.sent) + b" " * fill, qos)
            self.sent.append(message)
            self.run(in_loop(partial(self.broker.send, message)))
        self.turn()

    @rule(thing=st.sampled_from(THINGS), lane=st.integers(0, LANE_COUNT_MAX - 1))
    def move(self, thing: str, lane: int) -> None:
        self.shards.move(shard_of(thing, SHARD_COUNT), lane)

    @rule(lane=st.integers(0, LANE_COUNT_MAX - 1), fails=st.sampled_from([False, False, True]))
    def answer(self, lane: int, fails: bool) -> None:
        self.shards.is_failing[lane] = fails
        self.shards.permissions[lane].release()
        self.turn()

    @rule(count=st.integers(1, 8), reason=st.sampled_from([0, 0, 0, REFUSED]))
    def take_over(self, count: int, reason: int) -> None:
        for _ in range(count):
            self.run(in_loop(partial(self.broker.take, reason)))
        self.turn()

    @rule(finds_back=st.booleans())
    def cut(self, finds_back: bool) -> None:
        if not finds_back:
            self.broker.is_reachable.clear()
        self.run(in_loop(self.broker.cut))
        self.turn()

    @precondition(lambda self: not self.broker.is_reachable.is_set())
    @rule()
    def find_back(self) -> None:
        self.broker.is_reachable.set()
        self.turn()

    @precondition(lambda self: self.broker.link is not None and not self.broker.is_deaf)
    @rule()
    def hear_nothing(self) -> None:
        self.broker.is_deaf = True

    @rule()
    def forget_session(self) -> None:
        """Be killed: what had not been saved, here all, is forgotten."""
        self.was_forgotten = True
        self.broker.has_session = False
        self.broker.stored.clear()
        self.broker.unacknowledged.clear()
        self.cut(True)

    @rule()
    def settle(self) -> None:
        """Let everything be answered: then nothing is held, and nothing counted as under way."""
        self.broker.is_reachable.set()
        if self.broker.is_deaf:
            self.run(in_loop(self.broker.cut))
        self.shards.is_failing = [False] * LANE_COUNT_MAX
        for _ in range(len(self.sent) + 5):
            for permission in self.shards.permissions:
                if permission.locked():
                    permission.release()
            while self.broker.published:
                self.run(in_loop(self.broker.take))
            self.turn()
        bridge = self.bridge
        assert bridge._shadow_requests._count_of == {}
        assert bridge._held == {}
        assert bridge._unwindowed_bytes == 0
        statistics = bridge.statistics()
        assert not statistics.is_catching_up
        assert (statistics.waiting_count, statistics.in_flight_count, statistics.unpublished_count) == (
            0,
            0,
            0,
        )
        assert not self.broker.stored
        assert not self.broker.unacknowledged
        self.require_each_carried_out()

    def require_each_carried_out(self) -> None:
        refused = {
            answer.split(b'"clientToken":"')[1].split(b'"')[0] for answer in self.broker.refused_tokens
        }
        for thing in THINGS:
            wanted = [
                each.payload
                for each in self.sent
                if each.qos
                and each.topic.split("/")[-2 if each.topic.startswith("telemetry") else 2] == thing
                and each.payload.split(b'"')[3] not in refused
            ]
            at_qos_0 = {each.payload for each in self.sent if not each.qos}
            found = [
                each.payload
                for each in self.shards.carried_out
                if each.thing_name == thing and each.payload not in at_qos_0
            ]
            first = list(dict.fromkeys(found))
            if not self.was_forgotten:
                # A refusal that nobody acknowledged may be followed by the request's own turn.
                assert [each for each in first if each in wanted] == wanted
            if not self.was_forgotten:
                assert found == first
            answered = [
                each.payload
                for each in self.shards.carried_out
                if each.thing_name == thing and each.operation is not Operation.TELEMETRY
            ]
            # An answer comes again where nobody had acknowledged it, and never after a later one for the first time.
            told = [payload for topic, payload in self.broker.answers if topic == f"answer/{thing}"]
            assert list(dict.fromkeys(told)) == list(dict.fromkeys(answered))

    @invariant()
    def what_waits_without_a_window_is_counted(self) -> None:
        waiting = [held for lane in self.bridge._outboxes for held in lane.waiting]
        assert self.bridge._unwindowed_bytes == sum(each.size_bytes for each in waiting if not each.packet_id)
        assert self.bridge._unwindowed_bytes <= UNWINDOWED_BYTES_MAX

    @invariant()
    def nothing_is_counted_when_nothing_is_under_way(self) -> None:
        # Whatever is counted waits, is being carried out, or an answer of its submission waits for the broker.
        statistics = self.bridge.statistics()
        if not (statistics.waiting_count or statistics.in_flight_count or statistics.unpublished_count):
            assert self.bridge._shadow_requests._count_of == {}

    def teardown(self) -> None:
        try:
            self.settle()
        finally:
            self.run(self.end())
            self.loop.close()
            self.patches.undo()

    async def end(self) -> None:
        self.patches.setattr(mqtt_bridge, "DRAIN_TIMEOUT_S", 0.0)
        await self.bridge.stop()
        await turns()


async def turns() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)


async def in_loop(step: Callable[[], None]) -> None:
    step()


def test_things_of_the_machine_are_of_different_lanes() -> None:
    assert {shard_of(thing, Shards.shard_count) % LANE_COUNT for thing in THINGS} == {0, 1}


TestBridgeBookkeeping = BridgeMachine.TestCase
TestBridgeBookkeeping.settings = settings(max_examples=250, stateful_step_count=40, deadline=None)


def test_what_is_dropped_behind_a_lost_link_is_not_overtaken_by_what_came_after_it() -> None:
    machine = BridgeMachine()
    # The last of the large ones is too much while the connection is gone; the small one after it is not.
    for fill, count in ((0, 1), (150, 4), (0, 1)):
        machine.send(thing="lamp", ending="telemetry", qos=1, fill=fill, count=count)
    machine.cut(finds_back=True)
    assert machine.bridge.statistics().dropped_count == 2
    # Settles, and so requires that each was carried out in its order.
    machine.teardown()


@pytest.mark.parametrize("is_first_word_heard", [True, False])
def test_what_a_broker_took_in_after_its_start_is_new_though_it_looks_like_what_it_has_forgotten(
    is_first_word_heard: bool,
) -> None:
    machine = BridgeMachine()
    machine.was_forgotten = True
    broker, shards = machine.broker, machine.shards
    switched = [Message("telemetry/lamp/s", b'{"on":%b}' % word, 1) for word in (b"true", b"false")]

    def switch(message: Message) -> None:
        machine.run(in_loop(partial(broker.send, message)))
        machine.turn()
        machine.answer(lane=shard_of("lamp", SHARD_COUNT) % LANE_COUNT, fails=False)

    for message in switched:
        switch(message)
    # The marker had the first packet id.
    assert (broker._packet_id, broker.unacknowledged) == (3, {})
    # Killed, it remembers the session as it was before all that, and gives its packet ids again.
    broker._packet_id = 0
    if is_first_word_heard:
        broker.stored.append(Message(mqtt_bridge.STARTED_TOPIC, b"mosquitto", 1))
    else:
        broker._packet_id = 1
    broker.stored.append(switched[0])
    machine.cut(finds_back=True)
    machine.answer(lane=shard_of("lamp", SHARD_COUNT) % LANE_COUNT, fails=False)
    found = [each.payload for each in shards.carried_out]
    # Unheard, the promise is not kept: that shows what hears it is good for.
    assert found == [each.payload for each in (*switched, *switched[: 1 if is_first_word_heard else 0])]
    machine.teardown()


def test_a_shard_takes_along_what_waits_when_its_old_lane_has_nothing_in_flight() -> None:
    machine = BridgeMachine()
    shard = shard_of("lamp", SHARD_COUNT)
    old, new = shard % LANE_COUNT, LANE_COUNT_MAX - 1
    machine.send(thing="lamp", ending="telemetry", qos=1, fill=0, count=3)
    machine.shards.move(shard, new)
    # The old lane is in the middle of a submission.
    machine.send(thing="lamp", ending="telemetry", qos=1, fill=0, count=2)
    machine.answer(lane=new, fails=False)
    assert machine.shards.carried_out == []
    machine.answer(lane=old, fails=False)
    assert len(machine.shards.carried_out) == 5
    machine.teardown()
