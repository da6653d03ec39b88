"""What happens at the broker, in order, to whoever in the gateway has to know: the events session.

A lasting MQTT session of its own receives the lines of mosquitto's log, as `broker_log` reads them, and the messages of
a few topics, in the one order in which the broker let them happen. Each is told to all consumers, one after another,
and acknowledged when all have dealt with it.

What is promised:

- No line is missed, whoever was away and for however long: what the stream did not bring comes from the log file, from
  where this session had come. The first session of all begins with the broker's last start. Who keeps `position` with
  what follows from the events (`settle`) sees each event once.
- A message is acknowledged when all consumers have dealt with it; one that waited here when a link broke comes again,
  and what was dealt with already is not told twice unless this process died in between.
- A consumer that cannot do its part at present (a retryable WorldError) is told the same again until it can; nothing
  overtakes. Any other error ends the session: `until_failed` raises it.
- What waits here is bounded. What the broker hands over beyond that is left to a new connection, as soon as half of it
  is dealt with; at QoS 0, which comes once, it is dropped and counted.
- After each connect `StreamInterrupted` comes first and `StreamResumed` after all that was stored by the broker. For
  messages between the two, the order among themselves holds, but not that towards events.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from actors.broker_log import BrokerEvent, parse_line
from actors.broker_log_reader import BrokerLogReader, LogPosition
from actors.errors import BrokerError, WorldError
from actors.mqtt_link import BrokerConnection
from actors.mqtt_session import MqttSession, until_one_failed
from twins.clock import Clock
from twins.messages import Publish

# The broker keeps this session, and with it the messages that came while the gateway was away: it stays the same.
CLIENT_ID: Final = "app.events"
_LOG_PREFIX: Final = b"$SYS/broker/log/"
_LOG_FILTERS: Final = ("$SYS/broker/log/E", "$SYS/broker/log/N", "$SYS/broker/log/I", "$SYS/broker/log/M/+")
# Where this session tells itself that all that was stored for it has come.
_MARKER_TOPIC: Final = "twinfleet/events/marker"
# Bounds what is here and not dealt with, as in the bridge and for its reason: no window of the broker's does.
HELD_BYTES_MAX: Final = 64 << 20
# What a message takes beside topic and payload: three objects and their place in the queue.
_MESSAGE_OVERHEAD_BYTES: Final = 200
# What is dealt with before consumers settle: a thousand connects, with four lines each, are four batches.
_BATCH_MAX: Final = 1_000
# As the bridge does: the first attempts are cheap, the last not too far apart.
_RETRY_DELAY_MIN_S: Final = 0.05
_RETRY_DELAY_MAX_S: Final = 1.0
# A batch takes milliseconds; what is not finished in this time comes again after the next start.
_STOP_TIMEOUT_S: Final = 5.0
_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StreamInterrupted(BrokerEvent):
    """The session has just connected: events of the time in which it was not follow now, and stored messages."""


@dataclass(frozen=True, slots=True)
class StreamResumed(BrokerEvent):
    """Everything stored has come; from now on events and messages come in their order, as they happen."""


class EventConsumer:
    """Somebody in the gateway who has to know; each method may raise WorldError to be called again with the same."""

    # The messages that the session is to receive for it; every consumer is told of all that any of them names.
    topic_filters: Sequence[str] = ()

    async def on_broker_event(self, event: BrokerEvent) -> None:
        """Deal with an event, or note it until `settle`."""

    async def on_message(self, topic: str, payload: bytes) -> None:
        """Deal with a message on one of the topics that the consumers have named."""

    async def settle(self, position: str) -> None:
        """Return when everything told so far is done: it will not be told again.

        `position` is how far the log has been read ('' if nothing was): the next session should be given it.
        """


class _Arrived(NamedTuple):
    topic: bytes
    payload: bytes
    # Of the present link; zero where there is nothing to acknowledge.
    packet_id: int

    @property
    def size_bytes(self) -> int:
        return len(self.topic) + len(self.payload) + _MESSAGE_OVERHEAD_BYTES


# Stands in the queue where the backlog ends.
_END_OF_BACKLOG: Final = _Arrived(b"", b"", 0)


class EventsSession:
    """The session of one gateway on one broker. Consumers are called in the order of the list, one call at a time."""

    def __init__(self, connection: BrokerConnection, *, log_file: Path, clock: Clock) -> None:
        self.event_count = 0
        # How often a link brought more than may be held, and what was dropped for that.
        self.overrun_count = self.dropped_count = 0
        self._connection = connection
        self._log_file = log_file
        self._clock = clock
        self._reader = BrokerLogReader(log_file, None)
        # Lines that the reader has given and the consumers were not all told yet.
        self._untold: deque[bytes] = deque()
        self._consumers: list[EventConsumer] = []
        self._lasting: MqttSession | None = None
        self._waiting: deque[_Arrived] = deque()
        # Of what waits and of the present batch; and whether the present link has brought more.
        self._held_bytes = self._batch_bytes = 0
        self._is_overrun = False
        self._filled = asyncio.Event()
        self._is_idle = asyncio.Event()
        self._is_stopping = False
        # Set when a link opens: before anything else, the file is read up to now.
        self._is_behind = False
        # Dealt with, but on a link that broke: by packet id, as it will be delivered again.
        self._done: dict[int, _Arrived] = {}
        # The present batch by packet id: as delivered by the present link, and by the one before, not yet again.
        self._taken: dict[int, _Arrived] = {}
        self._taken_before: dict[int, _Arrived] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def add_consumer(self, consumer: EventConsumer) -> None:
        """Tell a consumer, after those before it, of everything that comes; for before `start`."""
        self._consumers.append(consumer)

    async def start(self, position: str = "") -> None:
        """Connect, subscribe and begin to tell; BrokerError if the broker does not grant that in time.

        `position` is what a consumer was last told to settle, '' if there was none.
        """
        self.look_from(position)
        wanted = [each for consumer in self._consumers for each in consumer.topic_filters]
        self._lasting = MqttSession(
            self._connection,
            (*_LOG_FILTERS, *dict.fromkeys(wanted)),
            connected=self._on_connected,
            arrived=self._on_arrived,
            marker_topic=_MARKER_TOPIC,
        )
        await self._session.open()
        self._tasks = [
            asyncio.create_task(self._session.keep_open(), name="events session"),
            asyncio.create_task(self._tell(), name="events"),
        ]

    def look_from(self, position: str) -> None:
        """Let `ahead` begin at a position before `start` is given it."""
        self._reader = BrokerLogReader(self._log_file, LogPosition.parse(position))

    def ahead(self) -> list[BrokerEvent]:
        """Return what the broker has logged by now and the consumers have not been told yet, or not all of them."""
        reader = BrokerLogReader(self._log_file, self._reader.position)
        lines = list(self._untold)
        while more := reader.lines(_BATCH_MAX):
            lines += more
        events = (parse_line(line.decode(errors="replace")) for line in lines)
        return [event for event in events if event is not None]

    async def until_failed(self) -> None:
        """Return when the session was stopped; raise what ended it otherwise."""
        await until_one_failed(self._tasks)

    async def publish(self, messages: Sequence[Publish]) -> None:
        """Return when the broker has taken over `messages` (PUBACK), in their order; waits while it is away."""
        if messages:
            await self._session.publish(messages)

    async def stop(self) -> None:
        """Finish what has arrived, for a bounded time, and disconnect; the rest comes after the next start."""
        self._is_stopping = True
        if self._tasks and not any(task.done() for task in self._tasks):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._is_idle.wait(), _STOP_TIMEOUT_S)
        for task in self._tasks:
            task.cancel()
        # Errors of these tasks belong to `until_failed`.
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._lasting is not None:
            await self._lasting.close()

    @property
    def _session(self) -> MqttSession:
        if self._lasting is None:
            raise BrokerError("the events session has not been started; start it first", retryable=True)
        return self._lasting

    def _on_connected(self, session_present: bool) -> None:
        """Forget what is delivered again: what waits, and packet ids, which mean nothing on another link."""
        if session_present:
            self._taken_before |= self._taken
            self._waiting.clear()
        else:
            self._done.clear()
            self._taken_before.clear()
            kept = (each for each in self._waiting if each is not _END_OF_BACKLOG)
            self._waiting = deque(each._replace(packet_id=0) for each in kept)
        self._taken = {}
        self._held_bytes = self._batch_bytes + sum(each.size_bytes for each in self._waiting)
        self._is_overrun = False
        self._is_behind = True
        self._filled.set()

    def _on_arrived(self, topic: bytes, payload: bytes, packet_id: int, is_redelivered: bool) -> None:
        if self._is_stopping:
            return
        arrived = _Arrived(topic, payload, packet_id)
        if self._is_one_too_many(arrived):
            return
        if self._session.ends_backlog(topic, payload, packet_id):
            if not self._session.is_catching_up:
                self._wait(_END_OF_BACKLOG)
            return
        is_taken = self._taken_before.pop(packet_id, None) == arrived
        is_done = self._done.pop(packet_id, None) == arrived
        if is_redelivered and is_taken:
            self._taken[packet_id] = arrived
        elif is_redelivered and is_done:
            self._acknowledge({packet_id: arrived})
        else:
            self._wait(arrived)

    def _is_one_too_many(self, arrived: _Arrived) -> bool:
        """Tell whether a message is not to be held; at QoS 1 the next link brings it, and all that follow it here."""
        is_full = self._held_bytes + arrived.size_bytes > HELD_BYTES_MAX
        if not arrived.packet_id:
            self.dropped_count += is_full
            return is_full
        if is_full and not self._is_overrun:
            self._is_overrun = True
            self.overrun_count += 1
        return self._is_overrun

    def _take_up_again(self) -> None:
        """Replace the link once there is room for what it brought in vain."""
        link = self._session.link
        if self._is_overrun and self._held_bytes <= HELD_BYTES_MAX // 2 and link is not None:
            link.end("the MQTT broker handed over more events than may wait here")

    def _wait(self, arrived: _Arrived) -> None:
        self._held_bytes += arrived.size_bytes
        self._waiting.append(arrived)
        self._is_idle.clear()
        self._filled.set()

    async def _tell(self) -> None:
        """Deal with what arrives, a batch at a time, until cancelled."""
        while True:
            if not self._waiting and not self._is_behind:
                self._is_idle.set()
                self._filled.clear()
                await self._filled.wait()
            if self._is_behind:
                await self._catch_up()
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), _BATCH_MAX))]
            self._taken = {each.packet_id: each for each in batch if each.packet_id}
            self._batch_bytes = sum(each.size_bytes for each in batch)
            for each in batch:
                await self._deal_with(each)
            await self._settle()
            taken, self._taken = self._taken, {}
            self._acknowledge(taken)
            self._held_bytes -= self._batch_bytes
            self._batch_bytes = 0
            self._take_up_again()
            # Where the link has been lost meanwhile, these come again.
            self._done |= self._taken_before
            self._taken_before = {}

    async def _catch_up(self) -> None:
        self._is_behind = False
        await self._tell_event(StreamInterrupted(self._clock.now_s()))
        while lines := self._reader.lines(_BATCH_MAX):
            await self._tell_lines(lines, heard_at_s=None)
            await self._settle()

    async def _deal_with(self, arrived: _Arrived) -> None:
        if arrived.topic.startswith(_LOG_PREFIX):
            heard_at_s = self._clock.now_s()
            await self._tell_lines(self._reader.lines_through(arrived.payload), heard_at_s=heard_at_s)
        elif arrived is _END_OF_BACKLOG:
            await self._tell_event(StreamResumed(self._clock.now_s()))
        else:
            topic = arrived.topic.decode(errors="replace")
            for consumer in self._consumers:
                await _until_done(partial(consumer.on_message, topic, arrived.payload))

    async def _tell_lines(self, lines: Sequence[bytes], *, heard_at_s: float | None) -> None:
        self._untold.extend(lines)
        while self._untold:
            event = parse_line(self._untold[0].decode(errors="replace"), heard_at_s=heard_at_s)
            if event is not None:
                await self._tell_event(event)
            self._untold.popleft()

    async def _tell_event(self, event: BrokerEvent) -> None:
        self.event_count += 1
        for consumer in self._consumers:
            await _until_done(partial(consumer.on_broker_event, event))

    async def _settle(self) -> None:
        position = self._reader.position
        text = "" if position is None else position.text()
        for consumer in self._consumers:
            await _until_done(partial(consumer.settle, text))

    def _acknowledge(self, done: dict[int, _Arrived]) -> None:
        """Acknowledge what this link has delivered; if it is lost, remember it until it is delivered again."""
        link = self._session.link
        if done and (link is None or not link.acknowledge(list(done))):
            self._done |= done


async def _until_done(step: Callable[[], Awaitable[None]]) -> None:
    """Return when a consumer has dealt with something, however often it takes."""
    delay_s = _RETRY_DELAY_MIN_S
    while True:
        try:
            await step()
        except WorldError as error:
            if not error.retryable:
                raise
            _LOG.warning("an event waits: %s", error)
        else:
            return
        await asyncio.sleep(delay_s)
        delay_s = min(2 * delay_s, _RETRY_DELAY_MAX_S)
