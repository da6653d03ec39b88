"""A lasting MQTT session: one link after another for ever, and what has to leave in its order.

Owns reconnecting and the outgoing messages. What arrives goes straight from the link to whom it concerns;
nothing that arrived is kept here.

Outgoing messages leave in one order, and again in that order on the next link if the broker had not taken
them over (PUBACK) before the last one broke: at least once, never overtaking within a topic. In flight are
fewer than the broker's receive maximum; what waits behind them is bounded because callers wait for `room`
before they add.

A session that outlives its links has a backlog: what the broker stored while there was no link. It ends where
a marker comes back that the session publishes to itself after each subscription: the broker hands messages
out in their order (MQTT 5, 4.6), so what comes before the marker may be old, and what comes after it is not.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from actors.errors import BrokerError
from actors.mqtt_link import (
    PACKET_ID_MAX,
    PACKET_TOO_LARGE,
    REFUSED_FROM,
    BrokerConnection,
    LinkEvents,
    MqttLink,
    encode_publish,
)
from twins.messages import Delivery, Publish

# The first wait hides a broker's restart from people, the last bounds its log: 12 attempts a minute.
RECONNECT_DELAY_MIN_S: Final = 0.1
RECONNECT_DELAY_MAX_S: Final = 5.0
# Silence in keep-alive periods that ends a link: a ping goes out after one, so half of one is left for the
# answer. With the check every quarter a dead link is found after 1.75 periods at most: 17.5 s at 10 s.
_SILENCE_PERIODS_MAX: Final = 1.5
_CHECKS_PER_PERIOD: Final = 4
# mosquitto takes 48,000 messages a second with 20 in flight and 66,000 with 100 or more (two cores); the rest
# is for a broker that is slow to answer.
SEND_WINDOW_MAX: Final = 500
# About a second of what mosquitto takes in (40,000 small messages); what is added on top, one outcome of each
# lane or one caller's list, is bounded by those who add.
BACKLOG_BYTES_MAX: Final = 16 << 20
# What a waiting message costs beside its payload: tuple, two objects, topic.
_MESSAGE_OVERHEAD_BYTES: Final = 300
_LOG: Final = logging.getLogger(__name__)


class _Handover:
    """Messages that count as handed over together, and who is told: `finish(None)`, or with why not."""

    __slots__ = ("finish", "missing_count")

    def __init__(self, missing_count: int, finish: Callable[[BrokerError | None], None]) -> None:
        self.missing_count = missing_count
        self.finish = finish


class _Outgoing(NamedTuple):
    topic: str
    payload: bytes
    handover: _Handover
    delivery: Delivery | None = None


class MqttSession:
    """The stable session of one client id on one broker."""

    def __init__(
        self,
        connection: BrokerConnection,
        topic_filters: Sequence[str],
        *,
        connected: Callable[[bool], None],
        arrived: Callable[[bytes, bytes, int, bool], None],
        marker_topic: str = "",
    ) -> None:
        """Tell `connected(session_present)` and `arrived(topic, payload, packet_id, is_redelivered)` of events.

        With a `marker_topic` that nobody else reads or writes the session knows when the backlog has come: whoever
        is told of an arrival asks `ends_backlog` first.
        """
        self.published_count = 0
        self.refused_count = 0
        # Payloads of what was published or refused.
        self.sent_bytes = 0
        self.reconnect_count = 0
        self.last_error: str | None = None
        self._settings = connection
        self._topic_filters = (*topic_filters, marker_topic) if marker_topic else topic_filters
        self._overheard: Mapping[str, int] = {}
        # From each login until its marker is back: what arrives may have been stored before.
        self.is_catching_up = False
        self._marker_topic = marker_topic.encode()
        self._marker: _Outgoing | None = None
        self._connected = connected
        self._events = LinkEvents(self._on_connected, arrived, self._on_handed_over)
        self._link: MqttLink | None = None
        # Zero while not connected.
        self._window = 0
        self._packet_bytes_max = 0
        self._waiting: deque[_Outgoing] = deque()
        # By packet id, in the order of sending.
        self._in_flight: dict[int, _Outgoing] = {}
        self._packet_id = 0
        self._backlog_bytes = 0
        self._is_flush_due = False
        self._is_closed = False
        self._changed = asyncio.Event()

    def listen_for_retained(self, retained: Callable[[bytes, bytes, int], None]) -> None:
        """Tell `retained(topic, payload, qos)` of what is to be retained (see `LinkEvents`); before `open`."""
        self._events = replace(self._events, retained=retained)

    def overhear(self, topic_filters: Mapping[str, int]) -> None:
        """Hear also of what others publish on these, at the QoS given, as of any arrival; before `open`."""
        self._overheard = topic_filters

    async def open(self) -> None:
        """Connect and subscribe once; BrokerError if that fails."""
        await self._connect()

    async def keep_open(self) -> None:
        """Replace each link that is lost by a new one, until cancelled."""
        delay_s = RECONNECT_DELAY_MIN_S
        while True:
            link = self._link
            assert link is not None, "keep_open follows open"
            opened_s = asyncio.get_running_loop().time()
            await self._until_lost(link)
            self._window = 0
            self.last_error = link.loss
            _LOG.warning("%s; connecting again", link.loss)
            # What breaks at once again waits longer each time: also two bridges that by mistake share a
            # client id, and throw each other out.
            if link.was_ended_here or asyncio.get_running_loop().time() - opened_s > RECONNECT_DELAY_MAX_S:
                delay_s = RECONNECT_DELAY_MIN_S
            delay_s = await self._reconnect(delay_s)

    async def _reconnect(self, delay_s: float) -> float:
        """Connect, however often it takes, and return the delay that the next loss begins with."""
        while True:
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, RECONNECT_DELAY_MAX_S)
            try:
                await self._connect()
            except BrokerError as error:
                self.last_error = str(error)
                continue
            self.reconnect_count += 1
            return delay_s

    async def _connect(self) -> None:
        link = self._settings.link(self._events)
        link.overhear(self._overheard)
        await link.open(self._topic_filters)
        # A broker ends the connection of a client that exceeds its receive maximum (MQTT 5, 3.3.4).
        self._packet_bytes_max = link.broker_packet_bytes_max
        self._window = min(link.broker_receive_maximum, SEND_WINDOW_MAX)
        self._waiting.extendleft(reversed(self._in_flight.values()))
        self._in_flight.clear()
        self._mark()
        self._flush()
        self._changed.set()

    def _mark(self) -> None:
        """Put a marker of this link before all that is to leave, in place of the one of the last link.

        Each is another: one that the broker took from the last link stands in the middle of the backlog.
        """
        if not self._marker_topic:
            return
        self._waiting = deque(each for each in self._waiting if each is not self._marker)
        handover = _Handover(1, lambda _error: None)
        self._marker = _Outgoing(self._marker_topic.decode(), secrets.token_bytes(8), handover)
        self._waiting.appendleft(self._marker)

    def ends_backlog(self, topic: bytes, payload: bytes, packet_id: int) -> bool:
        """Tell whether a message is a marker, which is acknowledged here and concerns nobody else."""
        if topic != self._marker_topic:
            return False
        if self._marker is not None and payload == self._marker.payload:
            self.is_catching_up = False
        if packet_id and self._link is not None:
            self._link.acknowledge([packet_id])
        return True

    async def _until_lost(self, link: MqttLink) -> None:
        pause_s = self._settings.keepalive_s / _CHECKS_PER_PERIOD
        while not link.lost.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(link.lost.wait(), pause_s)
            if not link.lost.is_set() and link.silence_s > _SILENCE_PERIODS_MAX * self._settings.keepalive_s:
                link.abort(f"the MQTT broker was silent for {link.silence_s:.0f} s")

    async def close(self) -> None:
        """Disconnect cleanly; messages that the broker has not taken over are given up, their senders told."""
        self._is_closed = True
        self._window = 0
        if self._link is not None:
            await self._link.close()
        left = {id(each.handover): each.handover for each in (*self._in_flight.values(), *self._waiting)}
        self._in_flight.clear()
        self._waiting.clear()
        self._backlog_bytes = 0
        for handover in left.values():
            handover.finish(
                BrokerError("the MQTT session was closed before the broker took the message over")
            )
        self._changed.set()

    @property
    def link(self) -> MqttLink | None:
        """Return the link on which messages arrive, or arrived last."""
        return self._link

    @property
    def is_connected(self) -> bool:
        """Tell whether messages can leave: connected and subscribed."""
        return self._window > 0 and self._link is not None and self._link.is_open

    @property
    def outgoing_count(self) -> int:
        """Return how many messages the broker has not taken over yet."""
        return len(self._in_flight) + len(self._waiting)

    @property
    def has_room(self) -> bool:
        """Tell whether a message that is sent now leaves soon: connected, and not too many wait."""
        return self.is_connected and self._backlog_bytes < BACKLOG_BYTES_MAX

    async def room(self) -> None:
        """Return when connected and with room for more to send; BrokerError if the session is closed."""
        while not self.has_room:
            if self._is_closed:
                raise BrokerError("the MQTT session is closed; start the bridge again")
            self._changed.clear()
            await self._changed.wait()

    async def publish(
        self, messages: Sequence[Publish], *, finish: Callable[[BrokerError | None], None] | None = None
    ) -> None:
        """Return when the broker has taken over `messages` (at least one), in their order; wait while it is away.

        BrokerError when the session is closed first. `finish` is told as with `send`, before anybody who waits here: a
        caller that gives up may find its messages sent later all the same.
        """
        await self.room()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def conclude(error: BrokerError | None) -> None:
            if finish is not None:
                finish(error)
            if done.done():
                return
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)

        self.send(messages, conclude)
        await done

    async def drained(self) -> None:
        """Return when the broker has taken over all that was to be sent."""
        while self._in_flight or self._waiting:
            self._changed.clear()
            await self._changed.wait()

    def send(self, messages: Sequence[Publish], finish: Callable[[BrokerError | None], None]) -> None:
        """Queue `messages` (at least one) and call `finish` when the broker has taken all of them over."""
        handover = _Handover(len(messages), finish)
        for message in messages:
            self._waiting.append(_Outgoing(message.topic, message.payload, handover, message.delivery))
            self._backlog_bytes += len(message.payload) + _MESSAGE_OVERHEAD_BYTES
        self._flush()

    def _flush(self) -> None:
        self._is_flush_due = False
        if not self.is_connected or self._link is None:
            return
        waiting, in_flight, packets = self._waiting, self._in_flight, []
        unanswered: list[int] = []
        while waiting and len(in_flight) < self._window:
            message = waiting.popleft()
            self._packet_id = self._packet_id % PACKET_ID_MAX + 1
            while self._packet_id in in_flight:
                self._packet_id = self._packet_id % PACKET_ID_MAX + 1
            packet = encode_publish(message.topic, message.payload, self._packet_id, message.delivery)
            in_flight[self._packet_id] = message
            if len(packet) > self._packet_bytes_max:
                self._on_handed_over(self._packet_id, PACKET_TOO_LARGE)
                continue
            packets.append(packet)
            if message.delivery is not None and message.delivery.qos == 0:
                unanswered.append(self._packet_id)
        if packets:
            self._link.send(b"".join(packets))
        # What is sent at QoS 0 is handed over by that: nobody acknowledges it.
        for packet_id in unanswered:
            self._on_handed_over(packet_id, 0)

    def _on_connected(self, link: MqttLink, session_present: bool) -> None:
        self._link = link
        self.is_catching_up = bool(self._marker_topic)
        self._connected(session_present)

    def _on_handed_over(self, packet_id: int, reason: int) -> None:
        message = self._in_flight.pop(packet_id, None)
        if message is None:
            return
        if reason >= REFUSED_FROM:
            # The broker would refuse it again: counting it is all that is left to do.
            self.refused_count += 1
            self.last_error = (
                f"the MQTT broker refused a message on {message.topic} with reason {reason:#04x}"
            )
        elif message is not self._marker:
            self.published_count += 1
        if message is not self._marker:
            payload_bytes = len(message.payload)
            self.sent_bytes += payload_bytes
            self._backlog_bytes -= payload_bytes + _MESSAGE_OVERHEAD_BYTES
        message.handover.missing_count -= 1
        if message.handover.missing_count == 0:
            message.handover.finish(None)
        # Acknowledgements come many to a read: send once for all of them.
        if self._waiting and not self._is_flush_due:
            self._is_flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)
        if self._backlog_bytes < BACKLOG_BYTES_MAX:
            self._changed.set()


async def until_one_failed(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Return when one of the tasks was cancelled, or there is none; raise what ended it otherwise."""
    if tasks:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if not task.cancelled():
                task.result()
