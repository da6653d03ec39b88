"""Requests of devices from the MQTT broker to the shards and back: batched, in order, acknowledged last.

Owns which request travels in which batch and when its PUBLISH is acknowledged; parses topics, never payloads.
How packets travel is `mqtt_link`'s and `mqtt_session`'s; where shards live, and what happens to them, is the
lanes'.

What is promised:

- A request at QoS 1 is acknowledged after its shard has answered for good *and* the broker has taken over
  (PUBACK) all that the answer publishes. Whatever breaks before that, the broker delivers the request again,
  and never is one lost by the bridge. What the same bridge holds or has carried out is not carried out twice when
  it is delivered again, also where its acknowledgement was lost with a connection. After the bridge itself died it
  is (at least once, in the same order); and so are the messages that the answer publishes.
- A broker that is killed forgets what it had not saved. Requests that the bridge holds at that moment are
  carried out all the same; others that were acknowledged just before come again, and the bridge knows them, also where
  it was killed too: what it has taken stands in a file (`mqtt_taken`). What it had not acknowledged may have been
  carried out, and been followed by what the broker has forgotten: then the shard refuses it, because of its place.
- What a bridge had sent to a shard and comes there after its successor was heard is refused: it would come after
  requests that followed it.
- Requests of one thing reach its shard in the order in which the broker delivered them: a lane has one
  submission in flight, and repeats it under the same batch names until it is answered. Meanwhile the next one
  gathers, so submissions grow with the load, and only this lane's things wait. A shard changes its lane when its
  old one has nothing in flight, and takes along what waits.
- A thing has ten shadow requests in flight, and each further one is answered with code 429 at once. Not counted
  out are requests that the broker had stored while the bridge, or its connection, was away: they wait their turn.
- Nothing is buffered without bound. The broker hands over `receive_maximum` messages at QoS 1 until some are
  acknowledged; what mosquitto hands over beyond that is taken up to a bound, and the rest by a new connection later.
  Messages at QoS 0 are dropped beyond a bound, and counted.

With no other bridge on the broker the order per thing is that of the device. The batch's source must be new
for each start of a bridge (its sequence numbers begin at 1) and tell which of two starts is the later, its client id
the same for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Final, NamedTuple
from zlib import crc32

from actors.errors import BrokerError, WorldError
from actors.mqtt_in_flight import ShadowRequests, too_many_requests
from actors.mqtt_link import BrokerConnection
from actors.mqtt_outbox import REQUEST_OVERHEAD_BYTES, Held, Lanes, Outbox, Outboxes
from actors.mqtt_session import MqttSession, until_one_failed
from actors.mqtt_statistics import BridgeStatistics
from actors.mqtt_taken import TakenMessages
from actors.unheard import BYTES_TOPIC, MESSAGES_TOPIC, OVERHEARD_FILTERS, UnheardPublishes, is_heard
from actors.wall_clock import WallClock
from twins import topics
from twins.clock import Clock
from twins.messages import READ_ONLY, SHADOW_OPERATION, Batch, Operation, Outcome, Publish, Request
from twins.sharding import shard_of

__all__ = ["BridgeStatistics", "BrokerConnection", "Lanes", "MqttBridge"]

# Where the bridge tells itself that the backlog has ended; the access lists keep everybody else away.
MARKER_TOPIC: Final = "twinfleet/bridge/marker"
# Bounds what waits here without being in the broker's window: messages at QoS 0, and those of a connection
# that is gone. About a second of the 100,000 small messages that mosquitto delivers at QoS 0.
UNWINDOWED_BYTES_MAX: Final = 16 << 20
# Bounds what waits here and is unacknowledged at the broker. `receive_maximum` does not: after each acknowledgement
# mosquitto 2.0.11 hands over as many messages as the whole window holds, however many are out (of 10,000 stored
# messages and a window of 10 it had 7,490 out at once).
WINDOWED_BYTES_MAX: Final = 64 << 20
# AWS IoT's limit for a payload. The broker lets more pass, for the sake of our own messages (its configuration says
# which). A shadow request goes on all the same, so that it hears why it is refused; telemetry is answered by nobody.
PAYLOAD_BYTES_MAX: Final = 131_072
# What the broker tells first when it has started, before it takes anything in: what comes after it is new.
STARTED_TOPIC: Final = "$SYS/broker/version"
# What is heard only to count by. Totals in their place among the messages; the others are worth no acknowledgement, and
# nobody should keep them for a bridge that is away.
_OVERHEARD: Final = {
    STARTED_TOPIC: 1,
    MESSAGES_TOPIC: 1,
    BYTES_TOPIC: 1,
    **dict.fromkeys(OVERHEARD_FILTERS, 0),
}
_STARTED_TOPIC: Final = STARTED_TOPIC.encode()
_OVERHEARD_PREFIXES: Final = tuple(each.removesuffix("#").encode() for each in OVERHEARD_FILTERS)
_TOTAL_TOPICS: Final = (MESSAGES_TOPIC.encode(), BYTES_TOPIC.encode())
# Reading a topic costs as much as all else that is done for a message here; 65,536 topics are 30 MB. Of the
# topics of 90,000 devices in turn none is ever found, which costs a fifth of the speed.
_ROUTES_MAX: Final = 65_536
# A restarted shard answers after 1.3 to 2.3 s: the first attempts are cheap, the last not too far apart.
RETRY_DELAY_MIN_S: Final = 0.05
RETRY_DELAY_MAX_S: Final = 1.0
# A submission takes milliseconds; what is not answered in this time is delivered again after the next start.
DRAIN_TIMEOUT_S: Final = 5.0


class _Route(NamedTuple):
    operation: Operation
    thing_name: str
    name: str
    shard: int
    overhead_bytes: int
    is_shadow: bool
    # Of the topic.
    digest: int


class MqttBridge:
    """The one bridge of one broker."""

    def __init__(
        self,
        connection: BrokerConnection,
        lanes: Lanes,
        *,
        source: str,
        clock: Clock | None = None,
        taken: TakenMessages | None = None,
    ) -> None:
        """Prepare a bridge; `source` names this incarnation, as client id and the number of its start (see `Batch`).

        `taken` is what earlier incarnations have taken; without it this one knows of itself only.
        """
        self._lanes = lanes
        self._source = source
        self._taken = taken or TakenMessages()
        self._outboxes = Outboxes(lanes, self._taken.memory)
        self._route = lru_cache(_ROUTES_MAX)(self._find_route)
        self._session = MqttSession(
            connection,
            topics.REQUEST_FILTERS,
            connected=self._on_connected,
            arrived=self._on_arrived,
            marker_topic=MARKER_TOPIC,
        )
        self._session.overhear(_OVERHEARD)
        self._shadow_requests = ShadowRequests()
        self._clock = clock or WallClock()
        self._tasks: list[asyncio.Task[None]] = []
        self._is_draining = False
        # By packet id: what the current link delivered, and what the one before did that may be delivered
        # again.
        self._held: dict[int, Held] = {}
        self._orphans: dict[int, Held] = {}
        # Of all that waits and has nothing to acknowledge, so that no window of the broker's bounds it.
        self._unwindowed_bytes = 0
        # Of all that is held, and whether the current link has brought more: nothing is taken from it any more then.
        self._held_bytes = 0
        self._is_overrun = False
        self._received_count = self._rejected_topic_count = self._oversized_count = 0
        self._throttled_count = self._dropped_count = self._redelivered_count = self._overrun_count = 0
        self._repeated_count = 0
        self._batch_count = self._request_count = self._resent_count = 0
        self._acknowledged_count = self._stale_count = 0
        self._unheard, self._unheard_bytes = UnheardPublishes(), UnheardPublishes()
        # Heard beside requests; heard though the broker leaves it out of its count; our own that must not count twice.
        self._overheard_count = self._retained_count = self._own_count = 0
        self._heard_bytes = self._own_bytes = 0
        # The most that was held since the last total, and whether that was so much that the total may have waited.
        self._held_count_max = 0
        self._late_from = connection.receive_maximum // 2
        self._is_late = True
        self._last_shard_error: str | None = None

    def listen_for_retained(self, retained: Callable[[bytes, bytes, int], None]) -> None:
        """Tell `retained(topic, payload, qos)` of what is to be retained (see `LinkEvents`); before `start`."""

        def count_and_tell(topic: bytes, payload: bytes, qos: int) -> None:
            # One without payload does not arrive.
            self._retained_count += bool(payload)
            retained(topic, payload, qos)

        self._session.listen_for_retained(count_and_tell)

    async def start(self) -> None:
        """Connect, subscribe to all requests and serve; BrokerError if the broker does not grant that in time."""
        await self._session.open()
        self._tasks = [
            asyncio.create_task(self._session.keep_open(), name="mqtt session"),
            asyncio.create_task(self._serve_all(), name="mqtt lanes"),
        ]

    async def until_failed(self) -> None:
        """Return when the bridge was stopped; raise what ended a lane (a bug, or an error that lasts) otherwise."""
        await until_one_failed(self._tasks)

    async def publish(self, messages: Sequence[Publish]) -> None:
        """Return when the broker has taken over `messages` (PUBACK), in their order and after all earlier ones.

        Waits while the broker is away or slow; BrokerError when the bridge is stopped first. A caller that
        gives up may find its messages sent later all the same.
        """
        if messages:
            await self._session.publish(messages, finish=partial(self._count_own, messages))

    def _count_own(self, messages: Sequence[Publish], _: BrokerError | None) -> None:
        """Count what the bridge hears itself, or the broker does not count."""
        for message in messages:
            is_own = is_heard(message.topic)
            is_retained = message.delivery is not None and message.delivery.is_retained
            self._own_count += is_own or is_retained
            self._own_bytes += len(message.payload) * is_own

    async def stop(self) -> None:
        """Finish what is under way, for a bounded time, and disconnect; the rest is delivered after the next start."""
        self._is_draining = True
        if not any(task.done() for task in self._tasks):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._drained(), DRAIN_TIMEOUT_S)
        for task in self._tasks:
            task.cancel()
        # Errors of these tasks belong to `until_failed`.
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._session.close()

    async def _drained(self) -> None:
        while busy := [lane for lane in self._outboxes if lane.waiting or lane.in_flight_count]:
            busy[0].idle.clear()
            await busy[0].idle.wait()
        await self._session.drained()

    def statistics(self) -> BridgeStatistics:
        """Return counts since the start, and what is held now."""
        session = self._session
        return BridgeStatistics(
            is_connected=session.is_connected,
            is_catching_up=session.is_catching_up,
            received_count=self._received_count,
            rejected_topic_count=self._rejected_topic_count,
            oversized_count=self._oversized_count,
            throttled_count=self._throttled_count,
            dropped_count=self._dropped_count,
            redelivered_count=self._redelivered_count,
            repeated_count=self._repeated_count,
            overrun_count=self._overrun_count,
            batch_count=self._batch_count,
            request_count=self._request_count,
            resent_count=self._resent_count,
            published_count=session.published_count,
            refused_publish_count=session.refused_count,
            acknowledged_count=self._acknowledged_count,
            stale_count=self._stale_count,
            unheard_count=self._unheard.count,
            unheard_bytes=self._unheard_bytes.count,
            waiting_count=sum(len(lane.waiting) for lane in self._outboxes),
            in_flight_count=sum(lane.in_flight_count for lane in self._outboxes),
            unpublished_count=session.outgoing_count,
            reconnect_count=session.reconnect_count,
            last_shard_error=self._last_shard_error,
            last_broker_error=session.last_error,
        )

    def _on_connected(self, session_present: bool) -> None:
        """Keep what is held from the link before, though its packet ids mean nothing on this one.

        A broker that kept its session delivers all of it again. One that was killed may not know the latest
        of it any more, or none: then the bridge is the only one that does.
        """
        before = {**self._orphans, **self._held} if session_present else {}
        self._taken.connected(session_present=session_present)
        for held in self._held.values():
            held.packet_id = 0
        self._held = {}
        self._held_bytes = self._unwindowed_bytes = 0
        self._is_overrun = False
        dropped = {
            each for lane in self._outboxes for each in self._shorten(lane, comes_again=session_present)
        }
        for held in dropped:
            self._end(held)
        # Out of the outbox, unread: if it comes again it is as good as new.
        self._orphans = {packet_id: held for packet_id, held in before.items() if held not in dropped}
        self._held_count_max, self._is_late = 0, True
        self._unheard.interrupt()
        self._unheard_bytes.interrupt()

    def _shorten(self, lane: Outbox, *, comes_again: bool) -> list[Held]:
        """Leave what waits for a lane as far as it may wait without a window, and return the rest."""
        dropped: list[Held] = []
        kept: deque[Held] = deque()
        for held in lane.waiting:
            is_full = self._unwindowed_bytes + held.size_bytes > UNWINDOWED_BYTES_MAX
            # What stands behind one that comes again goes with it: it would be carried out before it.
            if is_full or (comes_again and dropped):
                dropped.append(held)
            else:
                self._unwindowed_bytes += held.size_bytes
                kept.append(held)
        lane.waiting = kept
        self._dropped_count += len(dropped)
        return dropped

    def _is_held(self, request: Request, packet_id: int) -> bool:
        """Tell whether a request that was delivered again is held already; it then has this packet id from now on.

        Carrying it out a second time would not only be work: it would come after requests that followed it.
        """
        orphan = self._orphans.pop(packet_id, None)
        if orphan is None or orphan.request != request:
            return False
        orphan.packet_id = packet_id
        self._keep(orphan)
        if orphan.is_done:
            self._acknowledge([orphan])
        elif not orphan.was_taken:
            self._unwindowed_bytes -= orphan.size_bytes
        return True

    def _is_finished(self, held: Held, digest: int) -> bool:
        """Tell whether a request was carried out and acknowledged under its packet id before; it is again then.

        If it was taken only, it has the place that it had.
        """
        taken = self._taken.find(held.packet_id, digest)
        if taken is None:
            return False
        held.place, held.is_doubtful = taken.place, taken.is_doubtful
        if taken.is_finished:
            self._repeated_count += 1
            self._decline(held.packet_id)
        return taken.is_finished

    def _keep(self, held: Held) -> None:
        self._held[held.packet_id] = held
        self._held_bytes += held.size_bytes

    def _is_one_too_many(self, size_bytes: int) -> bool:
        """Tell whether a message at QoS 1 is to be left to the next link, as all that follow it on this one are."""
        if not self._is_overrun and self._held_bytes + size_bytes > WINDOWED_BYTES_MAX:
            self._is_overrun = True
            self._overrun_count += 1
        return self._is_overrun

    def _take_up_again(self) -> None:
        """Replace the link once there is room for what it brought in vain: the broker hands that over again."""
        if (
            self._is_overrun
            and self._held_bytes <= WINDOWED_BYTES_MAX // 2
            and self._session.link is not None
        ):
            self._session.link.end("the MQTT broker handed over more than may wait here")

    def _may_keep(self, size_bytes: int) -> bool:
        """Tell whether a message that no window of the broker bounds may wait, and count it either way."""
        if self._unwindowed_bytes + size_bytes > UNWINDOWED_BYTES_MAX:
            self._dropped_count += 1
            return False
        self._unwindowed_bytes += size_bytes
        return True

    def _on_arrived(self, topic: bytes, payload: bytes, packet_id: int, is_redelivered: bool) -> None:
        if self._is_draining:
            return
        route = self._route(topic)
        if route is None and self._is_aside(topic, payload, packet_id):
            return
        self._received_count += 1
        self._heard_bytes += len(payload)
        if is_redelivered:
            self._redelivered_count += 1
        if route is None:
            self._rejected_topic_count += 1
            self._decline(packet_id)
        elif len(payload) > PAYLOAD_BYTES_MAX and route.operation is Operation.TELEMETRY:
            self._oversized_count += 1
            self._decline(packet_id)
        else:
            self._hold(route, payload, packet_id, is_redelivered)

    def _is_aside(self, topic: bytes, payload: bytes, packet_id: int) -> bool:
        """Tell whether a message is nobody's request but a marker, or there to count by; it is dealt with then."""
        if self._session.ends_backlog(topic, payload, packet_id):
            if not self._session.is_catching_up:
                self._taken.caught_up()
            return True
        if topic == _STARTED_TOPIC:
            self._note_start(payload, packet_id)
            return True
        if topic in _TOTAL_TOPICS:
            self._compare(topic, int(payload))
            if self._session.link is not None:
                self._session.link.acknowledge([packet_id])
            return True
        if topic.startswith(_OVERHEARD_PREFIXES):
            self._overheard_count += 1
            self._heard_bytes += len(payload)
            return True
        return False

    def _note_start(self, payload: bytes, packet_id: int) -> None:
        """Learn that the broker has started: what it had stored has come, unless this was heard by a former bridge."""
        digest = crc32(payload, crc32(_STARTED_TOPIC))
        if self._taken.find(packet_id, digest) is None:
            self._taken.add(packet_id, digest)
            self._taken.caught_up()
            self._orphans = {}
        if self._session.link is not None:
            self._session.link.acknowledge([packet_id])

    def _compare(self, topic: bytes, total: int) -> None:
        """Compare what the broker has received with what was heard and sent. It tells messages first, then bytes."""
        session = self._session
        if topic == _TOTAL_TOPICS[0]:
            held_count_max = max(self._held_count_max, len(self._held))
            self._is_late = session.is_catching_up or held_count_max >= self._late_from
            self._held_count_max = len(self._held)
            heard = self._received_count + self._overheard_count - self._retained_count - self._own_count
            accounted = heard + session.published_count + session.refused_count
            self._unheard.received(total, accounted=accounted, is_late=self._is_late)
        else:
            accounted = self._heard_bytes - self._own_bytes + session.sent_bytes
            self._unheard_bytes.received(total, accounted=accounted, is_late=self._is_late)

    def _decline(self, packet_id: int) -> None:
        """Acknowledge a message of which nothing becomes."""
        if packet_id and self._session.link is not None and self._session.link.acknowledge([packet_id]):
            self._acknowledged_count += 1

    def _hold(self, route: _Route, payload: bytes, packet_id: int, is_redelivered: bool) -> None:
        """Put a request into its outbox, unless it is held already or is one too many."""
        operation, thing_name, name, shard, overhead_bytes, is_shadow, digest = route
        request = Request(operation, thing_name, payload, name)
        size_bytes = len(payload) + overhead_bytes
        held = Held(shard, request, packet_id, size_bytes)
        if not packet_id:
            if not self._may_keep(size_bytes):
                return
        elif self._is_one_too_many(size_bytes):
            return
        elif is_redelivered or self._taken.is_restored:
            # A broker that was killed may have forgotten what it delivered: then it does not say so.
            digest = crc32(payload, digest)
            if self._is_held(request, packet_id) or self._is_finished(held, digest):
                return
            self._keep(held)
            held.place = held.place or self._taken.add(packet_id, digest)
        else:
            # The broker delivers in order, so all that comes again has come (MQTT 5, 4.6).
            if self._orphans:
                self._orphans = {}
            self._keep(held)
            held.place = self._taken.add(packet_id, crc32(payload, digest))
        if is_shadow:
            is_bounded = not (is_redelivered or self._session.is_catching_up)
            held.is_counted = self._shadow_requests.begin(thing_name, is_bounded=is_bounded)
            if not held.is_counted:
                self._refuse(held)
                return
        outbox = self._outboxes.of(shard)
        outbox.waiting.append(held)
        outbox.filled.set()

    def _refuse(self, held: Held) -> None:
        """Answer a request that is one too many of its thing; what comes of that is as with any other."""
        self._throttled_count += 1
        held.was_taken = True
        if not held.packet_id:
            self._unwindowed_bytes -= held.size_bytes
            if not self._session.has_room:
                # No window bounds the answers to requests at QoS 0.
                self._dropped_count += 1
                return
        refusal = too_many_requests(held.request, self._clock.now_s())
        self._session.send([refusal], partial(self._settle, [held]))

    def _end(self, held: Held) -> None:
        """Count a request as in flight no more, if it was."""
        if held.is_counted:
            held.is_counted = False
            self._shadow_requests.end(held.request.thing_name)

    def _find_route(self, topic: bytes) -> _Route | None:
        """Return where a topic's requests go; None for one that is no request."""
        found = topics.parse(topic.decode(errors="replace"))
        if found is None:
            return None
        is_shadow = isinstance(found, topics.ShadowTopic)
        operation, name = _asked(found)
        shard = shard_of(found.thing_name, self._lanes.shard_count)
        # Names are part of the topic, so its length bounds theirs.
        overhead_bytes = len(topic) + REQUEST_OVERHEAD_BYTES
        digest = crc32(topic)
        return _Route(operation, found.thing_name, name, shard, overhead_bytes, is_shadow, digest)

    async def _serve_all(self) -> None:
        """Serve every lane, and those that come, until cancelled or until one has failed."""
        try:
            async with asyncio.TaskGroup() as self._serving:
                for lane in self._outboxes:
                    self._begin_serving(lane)
        except ExceptionGroup as group:
            # One ends them all, and is what there is to tell.
            raise group.exceptions[0] from None

    def _begin_serving(self, lane: Outbox) -> None:
        self._serving.create_task(self._serve(lane), name=f"mqtt lane {lane.index}")

    async def _serve(self, lane: Outbox) -> None:
        """Submit what waits in a lane, one submission after another, until cancelled."""
        version: int | None = None
        while True:
            if not lane.waiting:
                lane.idle.set()
                lane.filled.clear()
                await lane.filled.wait()
            await self._session.room()
            if version != self._lanes.version:
                version = self._lanes.version
                # Nothing of the lane is in flight here.
                for new in self._outboxes.send_away(lane):
                    self._begin_serving(new)
            submission = lane.take(self._source)
            if not submission.held:
                continue
            self._unwindowed_bytes -= sum(each.size_bytes for each in submission.held if not each.packet_id)
            lane.in_flight_count = len(submission.held)
            outcome = await self._submit(lane, submission.batches)
            lane.in_flight_count = 0
            self._batch_count += len(submission.batches)
            self._request_count += len(submission.held)
            if outcome.publishes:
                self._session.send(outcome.publishes, partial(self._settle, submission.held))
            else:
                self._acknowledge(submission.held)

    async def _submit(self, lane: Outbox, batches: list[tuple[int, Batch]]) -> Outcome:
        """Return the answer to one submission, repeating it unchanged until there is one."""
        delay_s = RETRY_DELAY_MIN_S
        while True:
            try:
                return await self._lanes.submit(lane.index, batches)
            except (WorldError, TimeoutError) as error:
                if isinstance(error, WorldError) and not error.retryable:
                    raise
                self._last_shard_error = str(error) or f"lane {lane.index} did not answer in time"
            self._resent_count += 1
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, RETRY_DELAY_MAX_S)

    def _settle(self, done: Sequence[Held], error: BrokerError | None) -> None:
        if error is None:
            self._acknowledge(done)

    def _acknowledge(self, done: Sequence[Held]) -> None:
        """Acknowledge on the link that delivered; if that is gone, when the broker delivers again."""
        packet_ids = []
        self._held_count_max = max(self._held_count_max, len(self._held))
        for each in done:
            each.is_done = True
            if each.is_counted:
                self._end(each)
            if each.packet_id:
                packet_ids.append(each.packet_id)
        if not packet_ids:
            return
        link = self._session.link
        if link is None or not link.acknowledge(packet_ids):
            self._stale_count += len(packet_ids)
            return
        self._acknowledged_count += len(packet_ids)
        for packet_id in packet_ids:
            held = self._held.pop(packet_id, None)
            if held is not None:
                self._held_bytes -= held.size_bytes
                # What leaves no trace may well be done again, and is then answered again.
                if held.request.operation not in READ_ONLY:
                    self._taken.finish(packet_id, held.place)
        self._take_up_again()


def _asked(found: topics.DeviceTopic) -> tuple[Operation, str]:
    """Return what a device asks for, and the name that goes with it."""
    match found:
        case topics.ShadowTopic():
            return SHADOW_OPERATION[found.operation], found.shadow_name
        case topics.DefenderTopic():
            return Operation.DEFENDER, found.style
        case topics.JobTopic():
            return Operation.JOB_CHANGE if found.is_change else Operation.JOB_READ, found.request
        case topics.CommandTopic():
            return Operation.COMMAND_ANSWER, found.execution_id
        case topics.TelemetryTopic():
            return Operation.TELEMETRY, found.stream
