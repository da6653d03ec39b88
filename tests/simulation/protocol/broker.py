"""A broker with one lasting session, that of the bridge, and the wire between the two; modelled on mosquitto.

A message gets its packet id when it is queued, and is handed out in its order as far as the window allows; what was
handed out and not acknowledged comes again on the next connection, marked as such. A broker that is killed knows
afterwards what it had saved last: acknowledgements and messages since then are forgotten.

The links of the bridge are the real ones; what they take for the MQTT client stands here.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from actors.mqtt_bridge import MARKER_TOPIC, STARTED_TOPIC
from actors.mqtt_link import PACKET_ID_MAX, BrokerConnection, LinkEvents, MqttLink
from tests.simulation.protocol.chance import Chance
from tests.simulation.protocol.scheduler import Handle, Process, VirtualLoop

# Both ways, as on a loopback or a local network.
LATENCY_S: Final = (0.0002, 0.004)
# What mosquitto announces; the bridge's publishes wait behind it.
_RECEIVE_MAXIMUM: Final = 20
_PUBACK: Final = 0x40
_PUBLISH_QOS_1: Final = 0x32
_DUPLICATE: Final = 0x08
_is_for_bridge: Final = re.compile(
    rf"{MARKER_TOPIC}|\$aws/things/[^/]+/shadow/(?:update|get)|telemetry/.*"
).fullmatch


class Message:
    """A message in the bridge's session."""

    __slots__ = ("packet_id", "payload", "topic", "was_sent")

    def __init__(self, packet_id: int, topic: str, payload: bytes, was_sent: bool = False) -> None:
        self.packet_id = packet_id
        self.topic = topic
        self.payload = payload
        self.was_sent = was_sent


class Broker:
    """The broker; `hear` takes what it hands to its other clients, as (topic, payload) pairs."""

    def __init__(
        self, loop: VirtualLoop, chance: Chance, hear: Callable[[list[tuple[str, bytes]]], None]
    ) -> None:
        self.process = Process("broker")
        self.is_down = False
        self.start_number = 1
        self.loop = loop
        self.chance = chance
        self._hear = hear
        self._wire: Wire | None = None
        self._window = 0
        self._has_session = False
        self._in_flight: dict[int, Message] = {}
        self._waiting: deque[Message] = deque()
        self._packet_id = 0
        self._leaving: list[tuple[str, bytes]] = []
        # What was acknowledged without an answer, which is against what the bridge promises; and what was answered.
        self.unanswered: Message | None = None
        self._answered: set[bytes] = set()
        # After an acknowledgement mosquitto 2.0.11 hands out as much as the whole window holds, however much is out.
        self._keeps_window = chance.random.random() < 0.7
        # How often a change is on disk before the next one comes.
        self.save_odds = self.chance.random.choice((1.0, 0.5, 0.1))
        self._saved: tuple[bool, list[tuple[Message, bool]], int] = (False, [], 0)

    @property
    def is_drained(self) -> bool:
        """Tell whether the bridge is connected, and has taken and acknowledged everything."""
        wire = self._wire
        return wire is not None and not wire.is_cut and not (self._in_flight or self._waiting)

    def publish(self, topic: str, payload: bytes) -> None:
        """Take a message in, from whomever, and hand it on."""
        if _is_for_bridge(topic):
            if self._has_session:
                self._waiting.append(Message(self._next_packet_id(), topic, payload))
                self._hand_out(self._window)
        else:
            if topic.endswith(("/accepted", "/rejected")):
                self._answered.add(_token_of(payload))
            if not self._leaving:
                delay_s = self.chance.between(*LATENCY_S)
                self.loop.deliver(self.process, delay_s, self._hand_to_clients)
            self._leaving.append((topic, payload))
        self._save_now_and_then()

    def _next_packet_id(self) -> int:
        self._packet_id = self._packet_id % PACKET_ID_MAX + 1
        return self._packet_id

    def _hand_to_clients(self) -> None:
        messages, self._leaving = self._leaving, []
        if messages:
            self._hear(messages)

    def connect(self, wire: Wire, receive_maximum: int) -> None:
        """Let the bridge in; whoever was connected in its name is thrown out."""
        if self._wire is not None:
            self._wire.lose("session taken over")
        self._wire, self._window = wire, receive_maximum
        wire.to_link(wire.link.connected, self._has_session)
        self._has_session = True
        for message in self._in_flight.values():
            message.was_sent = True
        self._waiting.extendleft(reversed(self._in_flight.values()))
        self._in_flight = {}
        self._hand_out(self._window)
        self._save_now_and_then()

    def disconnect(self, wire: Wire) -> None:
        """Learn that a connection is gone."""
        if self._wire is wire:
            self._wire = None

    def hear(self, wire: Wire, packets: bytes) -> None:
        """Take in what the bridge sends."""
        if self._wire is not wire:
            return
        while packets:
            kind, length, start = packets[0], packets[1] & 127, 2
            if packets[1] > 127:
                length, start = length | packets[2] << 7, 3
            body, packets = packets[start : start + length], packets[start + length :]
            if kind == _PUBACK:
                self._acknowledge(int.from_bytes(body, "big"))
                if not self._keeps_window:
                    self._hand_out(len(self._in_flight) + self._window)
                self._save_now_and_then()
            else:
                end = 2 + int.from_bytes(body[:2], "big")
                self.publish(body[2:end].decode(), body[end + 3 :])
                wire.to_link(wire.link.handed_over, body[end : end + 2])
        self._hand_out(self._window)

    def _acknowledge(self, packet_id: int) -> None:
        message = self._in_flight.pop(packet_id, None)
        if message is None or not message.topic.startswith("$aws/"):
            return
        if _token_of(message.payload) not in self._answered:
            self.unanswered = message

    def _hand_out(self, in_flight_max: int) -> None:
        wire = self._wire
        if wire is None:
            return
        while self._waiting and len(self._in_flight) < in_flight_max:
            message = self._waiting.popleft()
            self._in_flight[message.packet_id] = message
            wire.to_link(wire.link.arrived, message, message.was_sent)
            message.was_sent = True

    def _save_now_and_then(self) -> None:
        if self.chance.random.random() < self.save_odds:
            self.save()

    def save(self) -> None:
        """Write down all that the next start will know."""
        if not self.is_down:
            kept = [(each, each.was_sent) for each in self._in_flight.values()]
            kept += [(each, each.was_sent) for each in self._waiting]
            self._saved = self._has_session, kept, self._packet_id

    def kill(self) -> None:
        """Die: connections and what is under way are gone, and so is what was not saved."""
        self.is_down = True
        if self._wire is not None:
            self._wire.lose("connection lost")
            self._wire = None
        self._leaving.clear()
        self._has_session, saved, self._packet_id = self._saved
        self._in_flight = {}
        self._waiting = deque(
            Message(each.packet_id, each.topic, each.payload, was_sent) for each, was_sent in saved
        )

    def start(self) -> None:
        """Live again, and say so before anything else."""
        if not self.is_down:
            return
        self.is_down = False
        self.start_number += 1
        if self._has_session:
            self._waiting.append(Message(self._next_packet_id(), STARTED_TOPIC, b"mosquitto"))

    def cut(self) -> None:
        """Break the bridge's connection; each side notices in its time, and what is under way is gone."""
        wire = self._wire
        if wire is None:
            return
        wire.is_cut, wire.cut_at_s = True, self.loop.time()
        self.loop.deliver(self.process, self.chance.between(0.0, 3.0), self.disconnect, wire)
        if self.chance.random.random() < 0.7:
            wire.lose_later(self.chance.between(0.0, 1.5))


def _token_of(payload: bytes) -> bytes:
    return payload.partition(b'"clientToken":"')[2].partition(b'"')[0]


class Wire:
    """One connection, as gmqtt would see it; what is sent arrives in its order, or not at all once it is cut."""

    def __init__(self, broker: Broker, link: SimulatedLink, process: Process) -> None:
        self.link = link
        self.is_cut = False
        self.cut_at_s = 0.0
        self._transport = self
        self._broker = broker
        self._process = process
        self._is_closing = False
        self._leaving: list[bytes] = []
        self._arriving: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._timers: list[Handle] = []

    def is_closing(self) -> bool:
        """Tell whether this end has been closed."""
        return self._is_closing

    def send_package(self, packets: bytes) -> None:
        """Send to the broker."""
        if not self._leaving:
            loop = self._broker.loop
            delay_s = self._broker.chance.between(*LATENCY_S)
            loop.deliver(self._broker.process, delay_s, self._arrive_at_broker)
        self._leaving.append(packets)

    def _arrive_at_broker(self) -> None:
        packets, self._leaving = self._leaving, []
        if not self.is_cut:
            self._broker.hear(self, b"".join(packets))

    def to_link(self, callback: Callable[..., None], *arguments: Any) -> None:
        """Send to the bridge."""
        if not self._arriving:
            delay_s = self._broker.chance.between(*LATENCY_S)
            self._broker.loop.deliver(self._process, delay_s, self._arrive_at_link)
        self._arriving.append((callback, arguments))

    def _arrive_at_link(self) -> None:
        arriving, self._arriving = self._arriving, []
        for callback, arguments in arriving:
            if self.is_cut or self._is_closing:
                return
            callback(*arguments)

    def write_eof(self) -> None:
        """Close this end, but let what was sent arrive first."""
        self._is_closing = True
        delay_s = 2 * LATENCY_S[1]
        self._broker.loop.deliver(self._broker.process, delay_s, self._broker.disconnect, self)

    def abort(self) -> None:
        """Close this end at once; the broker notices a little later."""
        if not self._is_closing:
            self._is_closing = True
            delay_s = self._broker.chance.between(*LATENCY_S)
            self._broker.loop.deliver(self._broker.process, delay_s, self._broker.disconnect, self)

    def lose(self, reason: str) -> None:
        """Break: nothing passes any more, and the link hears of it a little later."""
        self.is_cut, self.cut_at_s = True, self._broker.loop.time()
        self.lose_later(self._broker.chance.between(*LATENCY_S), reason)

    def lose_later(self, delay_s: float, reason: str = "connection lost") -> None:
        """Let the link hear in a while that the connection is gone."""
        self._broker.loop.deliver(self._process, delay_s, self.link.abort, reason)


class _Client:
    """As much of gmqtt's client as a link uses of it, its packet handler included."""

    def __init__(self, link: SimulatedLink, broker: Broker, process: Process) -> None:
        self._package_handler = self
        self._connack_properties = {"receive_maximum": (_RECEIVE_MAXIMUM,)}
        self._connack_received = asyncio.Event()
        self._connection: Wire | None = None
        self._link = link
        self._broker = broker
        self._process = process

    @property
    def current_connection(self) -> Wire | None:
        return self._connection

    async def connect(self, _host: str, _port: int, *, keepalive: int) -> None:
        await asyncio.sleep(self._broker.chance.between(*LATENCY_S))
        if self._broker.is_down:
            raise ConnectionRefusedError("Connection refused")
        self._connection = Wire(self._broker, self._link, self._process)
        self._broker.connect(self._connection, self._link.receive_maximum)
        await self._connack_received.wait()

    def subscribe(self, wanted: Sequence[Any]) -> None:
        if self._connection is not None:
            self._connection.to_link(self._link.subscribed, [each.qos for each in wanted])

    async def disconnect(self) -> None:
        if self._connection is not None:
            self._connection.abort()


@dataclass(frozen=True, kw_only=True)
class SimulatedConnection(BrokerConnection):
    """A way of one process to a simulated broker."""

    broker: Broker
    process: Process

    def link(self, events: LinkEvents) -> SimulatedLink:
        """Return a link to the simulated broker."""
        return SimulatedLink(self, events)


class SimulatedLink(MqttLink):
    """A link whose packets go over a `Wire`."""

    def __init__(self, connection: SimulatedConnection, events: LinkEvents) -> None:
        self._connection = connection
        self.receive_maximum = connection.receive_maximum
        super().__init__(connection, events)

    def _make_client(self) -> Any:
        return _Client(self, self._connection.broker, self._connection.process)

    @property
    def silence_s(self) -> float:
        """Return for how long nothing has come, where pings are answered until the connection is cut."""
        wire: Wire = self._wire
        return asyncio.get_running_loop().time() - wire.cut_at_s if wire.is_cut else 0.0

    def connected(self, session_present: bool) -> None:
        """Take the broker's CONNACK."""
        self._on_connect(self._client, session_present, 0, {})
        self._client._connack_received.set()

    def subscribed(self, granted: Sequence[int]) -> None:
        """Take the broker's SUBACK."""
        self._on_subscribe(self._client, 0, granted, {})

    def arrived(self, message: Message, is_redelivered: bool) -> None:
        """Take a PUBLISH."""
        name = message.topic.encode()
        packet = b"%b%b%b\0%b" % (
            len(name).to_bytes(2, "big"),
            name,
            message.packet_id.to_bytes(2, "big"),
            message.payload,
        )
        self._on_publish(_PUBLISH_QOS_1 | _DUPLICATE * is_redelivered, packet)

    def handed_over(self, packet_id: bytes) -> None:
        """Take a PUBACK."""
        self._on_puback(_PUBACK, packet_id)
