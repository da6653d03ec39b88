"""One network connection to the MQTT broker: packets in, packets out, nothing kept when it breaks.

The only module that imports gmqtt, and the only one that uses its private names (a test fails when they move;
the version is pinned to 0.8). gmqtt parses packets, keeps the connection alive and logs in. Three things are
ours:

- acknowledgements: a packet id means something on the connection that delivered it and nowhere else. A link
  writes to its own connection only, so a late acknowledgement can never hit another message after a
  reconnect;
- publishing: gmqtt raises once the broker's receive maximum is reached, so packet ids and the window are the
  session's, and packets are encoded here (a fifth of the time of gmqtt's encoder);
- reconnecting: gmqtt's has no back-off and waits for ever on a socket that does not drain. A link lives once.
"""

from __future__ import annotations

import asyncio
import logging
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from gmqtt import Client, MQTTConnectError, Subscription

from actors.errors import BrokerError, SettingsError
from twins.messages import Delivery

# A broker reads its database back before it answers: seconds for a large one. Longer means that it hangs.
CONNECT_TIMEOUT_S: Final = 10.0
# An acknowledgement waits so long for something to leave with: each write costs the bridge half a millisecond, and what
# comes in that time is far from filling the broker's window (1000 messages).
_ACKNOWLEDGE_WITHIN_S: Final = 0.004
# The socket needs one round trip to close; a broker that hangs is not waited for.
_CLOSE_TIMEOUT_S: Final = 2.0
# The broker keeps messages this long for a bridge that is away: a night's outage or a bad upgrade, not for
# ever, because what it keeps is bounded by its memory.
SESSION_EXPIRY_S: Final = 24 * 3600
# Packet ids are 16 bits, and zero is none.
PACKET_ID_MAX: Final = 65_535
# What MQTT can say about a packet's length, with its header (MQTT 5, 1.5.5).
PACKET_BYTES_MAX: Final = 268_435_460
# From here a reason code is a refusal (MQTT 5, 2.4).
REFUSED_FROM: Final = 0x80
PACKET_TOO_LARGE: Final = 0x95
_PUBLISH: Final = 0x30
_QOS_1: Final = 0x02
_QOS_MASK: Final = 0x06
_DUPLICATE: Final = 0x08
_RETAIN: Final = 0x01
# PUBACK, remaining length 2, and room for the packet id: without a reason it means success (MQTT 5, 3.4.2.1).
_PUBACK_WORD: Final = 0x40020000
# Retained messages are not replayed when a subscription is made again (MQTT 5, 3.8.3.1): a replay is no
# request.
_NEVER_SEND_RETAINED: Final = 2
# What the broker says of itself it says again when it has changed, and until then its last word is wanted.
_SEND_RETAINED: Final = 0
_OF_BROKER: Final = "$SYS/"
# gmqtt's warnings repeat what the session reports; its errors are exceptions in handlers, ours among them.
_GMQTT_LOGGER: Final = logging.getLogger(f"{__name__}.gmqtt")
_GMQTT_LOGGER.setLevel(logging.ERROR)


@dataclass(frozen=True, slots=True)
class BrokerConnection:
    """Where the broker listens and as whom to connect.

    `receive_maximum` bounds the unacknowledged messages that the broker hands over: 10 to 20,000, and no more
    than its own max_inflight_messages, which the default equals.
    """

    host: str
    port: int
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    client_id: str = "app.bridge"
    receive_maximum: int = 1000
    keepalive_s: int = 10

    def __post_init__(self) -> None:
        for key, value, bounds in (
            ("port", self.port, (1, 65535)),
            # Below 10 each message waits for a round trip; 20,000 of a kilobyte are 20 MB of the bridge's
            # memory.
            ("receive_maximum", self.receive_maximum, (10, 20_000)),
            # gmqtt checks twice in this time; 60 s would find a dead link after a minute and a half.
            ("keepalive_s", self.keepalive_s, (2, 60)),
        ):
            if not bounds[0] <= value <= bounds[1]:
                raise SettingsError(
                    "broker connection", key, f"{value} is not between {bounds[0]} and {bounds[1]}"
                )
        if not self.client_id:
            raise SettingsError(
                "broker connection", "client_id", "is empty; a lasting session needs a stable name"
            )

    def link(self, events: LinkEvents) -> MqttLink:
        """Return a link to this broker that has yet to be opened."""
        return MqttLink(self, events)


@dataclass(frozen=True, slots=True)
class LinkEvents:
    """Whom a link calls, synchronously and in the order of the packets.

    `connected(link, session_present)`: logged in, before any message. `arrived(topic, payload, packet_id,
    is_redelivered)`: a message, packet id 0 at QoS 0. `handed_over(packet_id, reason)`: the broker took a
    message. `retained(topic, payload, qos)`: a message is to be retained, and arrives like any other
    afterwards; but where somebody listens for these, one without payload only ends what was retained,
    and does not arrive.
    """

    connected: Callable[[MqttLink, bool], None]
    arrived: Callable[[bytes, bytes, int, bool], None]
    handed_over: Callable[[int, int], None]
    retained: Callable[[bytes, bytes, int], None] | None = None


class MqttLink:
    """One connection, from its CONNECT to its loss."""

    def __init__(self, connection: BrokerConnection, events: LinkEvents) -> None:
        self.lost = asyncio.Event()
        self.loss = ""
        self.was_ended_here = False
        self._settings = connection
        self._events = events
        self._is_open = False
        self._subscribed: asyncio.Future[Sequence[int]] = asyncio.get_running_loop().create_future()
        self._client = self._make_client()
        # gmqtt's connection, once there is one.
        self._wire: Any = None
        # What leaves with the next write.
        self._unsent: list[bytes] = []
        self._is_flush_due = False
        self._overheard: list[Subscription] = []

    def _make_client(self) -> Any:
        client = Client(
            self._settings.client_id,
            # Off from the first connect: mosquitto saves no session that was opened with a clean start.
            clean_session=False,
            optimistic_acknowledgement=False,
            logger=_GMQTT_LOGGER,
            session_expiry_interval=SESSION_EXPIRY_S,
            receive_maximum=self._settings.receive_maximum,
        )
        if self._settings.username is not None:
            client.set_auth_credentials(self._settings.username, self._settings.password)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        handler = client._package_handler
        handler._reconnect_callback = _stay_disconnected
        handler._handle_publish_packet = self._on_publish
        handler._handle_puback_packet = self._on_puback
        return client

    def overhear(self, topic_filters: Mapping[str, int]) -> None:
        """Subscribe also to these, at the QoS given: without what we publish there, all like new; before `open`."""
        self._overheard = [
            Subscription(each, qos=qos, no_local=True, retain_handling_options=_NEVER_SEND_RETAINED)
            for each, qos in topic_filters.items()
        ]

    async def open(self, topic_filters: Sequence[str]) -> None:
        """Connect and subscribe to all of `topic_filters` at QoS 1; BrokerError if either fails or takes too long."""
        place = f"MQTT broker at {self._settings.host}:{self._settings.port}"
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._client.connect(
                    self._settings.host, self._settings.port, keepalive=self._settings.keepalive_s
                )
                await self._subscribe(topic_filters)
        except MQTTConnectError as error:
            self.abort(f"{place} refused {self._settings.client_id}: {error}")
            raise BrokerError(f"{self.loss}; check its user name and password") from error
        except TimeoutError as error:
            self.abort(f"{place} did not answer within {CONNECT_TIMEOUT_S:g} s")
            raise BrokerError(f"{self.loss}; see its log", retryable=True) from error
        except OSError as error:
            self.abort(f"{place} cannot be reached ({error})")
            raise BrokerError(f"{self.loss}; is it running?", retryable=True) from error
        except BrokerError as error:
            self.abort(str(error))
            raise
        except asyncio.CancelledError:
            self.abort("connecting was given up")
            raise

    async def _subscribe(self, topic_filters: Sequence[str]) -> None:
        if not self.is_open:
            raise BrokerError(
                f"{self.loss} before the broker let {self._settings.client_id} in", retryable=True
            )
        wanted = [
            Subscription(
                each,
                qos=1,
                # Or the broker would hide from us which messages it retains.
                retain_as_published=True,
                retain_handling_options=_SEND_RETAINED
                if each.startswith(_OF_BROKER)
                else _NEVER_SEND_RETAINED,
            )
            for each in topic_filters
        ]
        wanted += self._overheard
        # gmqtt writes into them what is granted.
        wanted_qos = [each.qos for each in wanted]
        self._client.subscribe(wanted)
        granted = await self._subscribed
        if not self.is_open:
            raise BrokerError(f"{self.loss} while {self._settings.client_id} subscribed", retryable=True)
        refused = [
            each.topic for each, qos, reason in zip(wanted, wanted_qos, granted, strict=True) if reason != qos
        ]
        if refused:
            raise BrokerError(
                f"the MQTT broker does not grant {self._settings.client_id} its QoS on {', '.join(refused)} "
                f"(reason codes {list(granted)}); check its access list and max_qos"
            )

    @property
    def is_open(self) -> bool:
        """Tell whether packets can be sent: logged in and not lost."""
        return self._is_open and not self._wire.is_closing()

    @property
    def broker_receive_maximum(self) -> int:
        """Return how many unacknowledged messages the broker takes from us (65,535 if it names no number)."""
        return self._announced("receive_maximum", PACKET_ID_MAX)

    @property
    def broker_packet_bytes_max(self) -> int:
        """Return the size of the largest packet that the broker takes; a larger one would end the connection."""
        return self._announced("maximum_packet_size", PACKET_BYTES_MAX)

    @property
    def silence_s(self) -> float:
        """Return for how long the broker has sent nothing, not even the answer to a ping."""
        return time.monotonic() - float(self._wire._last_data_in)

    def _announced(self, name: str, default: int) -> int:
        return int(self._client._package_handler._connack_properties.get(name, (default,))[0])

    def acknowledge(self, packet_ids: Sequence[int]) -> bool:
        """Acknowledge messages that this link delivered; False (and nothing sent) if it is lost: they come again."""
        if not self.is_open:
            return False
        words = [_PUBACK_WORD | packet_id for packet_id in packet_ids]
        if not self._unsent:
            asyncio.get_running_loop().call_later(_ACKNOWLEDGE_WITHIN_S, self._flush)
        self._unsent.append(struct.pack(f"!{len(words)}I", *words))
        return True

    def send(self, packets: bytes) -> None:
        """Send encoded packets, after all earlier ones; they may be lost with the link."""
        # What one turn of the event loop brings leaves in one write: writing was a third of the bridge's time.
        if not self._is_flush_due:
            self._is_flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)
        self._unsent.append(packets)

    def _flush(self) -> None:
        self._is_flush_due = False
        packets, self._unsent = self._unsent, []
        if packets and self.is_open:
            self._wire.send_package(b"".join(packets))

    async def close(self) -> None:
        """Send what is buffered, then DISCONNECT; the broker keeps the session."""
        self._flush()
        self._lose("closed")
        try:
            await asyncio.wait_for(self._client.disconnect(), _CLOSE_TIMEOUT_S)
        except (TimeoutError, OSError):
            self.abort("closed")

    def abort(self, reason: str) -> None:
        """End the connection at once; what is still buffered is not sent."""
        self._lose(reason)
        wire = self._client._connection
        if wire is not None:
            wire._transport.abort()

    def end(self, reason: str) -> None:
        """End the connection at once, but send what is buffered; the broker hands over again what it has not."""
        self._flush()
        self.was_ended_here = True
        self._lose(reason)
        transport = self._client._connection._transport
        # Not closed: with words of the broker unread that would be a reset, which may overtake what was sent.
        transport.write_eof()
        asyncio.get_running_loop().call_later(_CLOSE_TIMEOUT_S, transport.abort)

    def _lose(self, reason: str) -> None:
        if not self.lost.is_set():
            self.loss = reason
        self._is_open = False
        self.lost.set()
        # Wake whoever waits in `open`; it finds the link lost.
        self._client._connack_received.set()
        if not self._subscribed.done():
            self._subscribed.set_result(())

    def _on_connect(self, client: Any, session_present: int, _result: int, _properties: Any) -> None:
        self._wire = client._package_handler.current_connection
        self._is_open = True
        self._events.connected(self, bool(session_present))

    def _on_disconnect(self, _client: Any, packet: object, _error: object = None) -> None:
        reason = packet[0] if isinstance(packet, bytes) and packet else 0
        # mosquitto gives no reason when another client takes over the client id.
        self.abort(
            f"the MQTT broker ended the connection with reason {reason:#04x}" if reason else "connection lost"
        )

    def _on_subscribe(self, _client: Any, _packet_id: int, granted: Sequence[int], _properties: Any) -> None:
        if not self._subscribed.done():
            self._subscribed.set_result(granted)

    def _on_publish(self, command: int, packet: bytes) -> None:
        if not self._is_open:
            return
        end = 2 + (packet[0] << 8 | packet[1])
        topic = packet[2:end]
        packet_id = 0
        if command & _QOS_MASK:
            packet_id = packet[end] << 8 | packet[end + 1]
            end += 2
        # The properties say nothing that a request needs; topic aliases are off unless the client allows
        # them.
        length, end = _variable_length(packet, end)
        payload = packet[end + length :]
        if command & _RETAIN and self._events.retained is not None:
            self._events.retained(topic, payload, (command & _QOS_MASK) >> 1)
            if not payload:
                if packet_id:
                    self.acknowledge([packet_id])
                return
        self._events.arrived(topic, payload, packet_id, bool(command & _DUPLICATE))

    def _on_puback(self, _command: int, packet: bytes) -> None:
        if self._is_open:
            self._events.handed_over(packet[0] << 8 | packet[1], packet[2] if len(packet) > 2 else 0)


def encode_publish(topic: str, payload: bytes, packet_id: int, delivery: Delivery | None = None) -> bytes:
    """Return a PUBLISH packet; without a delivery at QoS 1, not retained, without properties."""
    name = topic.encode()
    if delivery is not None:
        flags = _PUBLISH | delivery.qos << 1 | delivery.is_retained
        number = packet_id.to_bytes(2, "big") if delivery.qos else b""
        properties = encode_variable_length(len(delivery.properties)) + delivery.properties
        variable = len(name).to_bytes(2, "big") + name + number + properties
        return b"%c%b%b%b" % (flags, encode_variable_length(len(variable) + len(payload)), variable, payload)
    # Two bytes for the topic's length, two for the packet id, one for the length of no properties.
    return b"%c%b%b%b%b\0%b" % (
        _PUBLISH | _QOS_1,
        encode_variable_length(len(name) + len(payload) + 5),
        len(name).to_bytes(2, "big"),
        name,
        packet_id.to_bytes(2, "big"),
        payload,
    )


def encode_variable_length(value: int) -> bytes:
    """Return a variable byte integer (MQTT 5, 1.5.5)."""
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _variable_length(packet: bytes, position: int) -> tuple[int, int]:
    """Return the variable byte integer at `position` and the position after it (MQTT 5, 1.5.5)."""
    value = packet[position]
    if value < 128:
        return value, position + 1
    value, shift = value & 127, 7
    while True:
        position += 1
        value |= (packet[position] & 127) << shift
        if packet[position] < 128:
            return value, position + 1
        shift += 7


async def _stay_disconnected(**_options: object) -> None:
    """Take the place of gmqtt's reconnect: the session opens a new link instead."""
