"""MQTT packets as bytes, both ways, for clients that write their own: load generators, and tests that attack.

Nothing here opens a socket, and nothing corrects or refuses what it is told to write. Versions 3.1.1 and 5; of an MQTT
5 packet's properties only their absence is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

MQTT_311: Final = 4
MQTT_5: Final = 5
# Kinds of packets (MQTT 5, 2.1.2), as they stand in the upper half of a packet's first byte.
CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK = 1, 2, 3, 4, 8, 9
PINGRESP, DISCONNECT_KIND = 13, 14
PING: Final = b"\xc0\x00"
DISCONNECT: Final = b"\xe0\x00"
ACCEPTED: Final = 0
# Packet ids have two bytes and are never 0 (2.2.1).
PACKET_ID_MAX: Final = 0xFFFF
# What a PUBLISH at QoS 1 that is sent once more has in its first byte (3.3.1.1), where a first one has 0x32.
_AGAIN: Final = 0x08


class Packet(NamedTuple):
    """One packet as it came: its first byte, and what follows its length."""

    first: int
    body: bytes

    @property
    def kind(self) -> int:
        """The kind of the packet."""
        return self.first >> 4


class Arrival(NamedTuple):
    """A PUBLISH that was received; `packet_id` is 0 at QoS 0."""

    topic: str
    payload: bytes
    packet_id: int


@dataclass(frozen=True)
class Will:
    """A message that the broker publishes for a client that goes without a word."""

    topic: str
    payload: bytes
    qos: int = 1
    is_retained: bool = False


def length_of(count: int) -> bytes:
    """Return a variable byte integer (MQTT 5, 1.5.5)."""
    if count < 128:
        return bytes((count,))
    encoded = bytearray()
    while True:
        count, digit = count >> 7, count & 127
        encoded.append(digit | 128 if count else digit)
        if not count:
            return bytes(encoded)


def field(content: str | bytes) -> bytes:
    """Return text or binary content with its length in two bytes before it."""
    content = content.encode() if isinstance(content, str) else content
    return len(content).to_bytes(2, "big") + content


def packet(first: int, body: bytes) -> bytes:
    """Return a packet with its true length."""
    return bytes((first,)) + length_of(len(body)) + body


@dataclass(frozen=True)
class Connect:
    """A CONNECT, field by field; `version` and `protocol` may be ones that do not exist."""

    client_id: str | bytes = b""
    version: int = MQTT_311
    protocol: bytes = b"MQTT"
    is_clean: bool = True
    keep_alive_s: int = 60
    user_name: str | None = None
    password: str | None = None
    will: Will | None = None

    def encode(self) -> bytes:
        """Return the packet."""
        properties = b"\x00" if self.version == MQTT_5 else b""
        flags = 0x02 if self.is_clean else 0
        payload = field(self.client_id)
        if self.will is not None:
            flags |= 0x04 | self.will.qos << 3 | self.will.is_retained << 5
            payload += properties + field(self.will.topic) + field(self.will.payload)
        if self.user_name is not None:
            flags |= 0x80
            payload += field(self.user_name)
        if self.password is not None:
            flags |= 0x40
            payload += field(self.password)
        head = field(self.protocol) + bytes((self.version, flags)) + self.keep_alive_s.to_bytes(2, "big")
        return packet(0x10, head + properties + payload)


def publish(
    topic: str | bytes,
    payload: bytes = b"{}",
    *,
    version: int = MQTT_311,
    packet_id: int = 0,
    is_retained: bool = False,
) -> bytes:
    """Return a PUBLISH, at QoS 1 where it has a packet id and else at QoS 0."""
    identifier = packet_id.to_bytes(2, "big") if packet_id else b""
    properties = b"\x00" if version == MQTT_5 else b""
    first = 0x30 | (0x02 if packet_id else 0) | is_retained
    return packet(first, field(topic) + identifier + properties + payload)


def once_more(published: bytes) -> bytes:
    """Return a PUBLISH at QoS 1 as it is sent a second time: marked as a duplicate (MQTT 3.1.1, 3.3.1.1)."""
    return bytes((published[0] | _AGAIN,)) + published[1:]


def acknowledge(packet_id: int) -> bytes:
    """Return the PUBACK of a message at QoS 1."""
    return b"\x40\x02" + packet_id.to_bytes(2, "big")


def subscribe(
    filters: Sequence[str | bytes], *, version: int = MQTT_311, packet_id: int = 1, qos: int = 1
) -> bytes:
    """Return a SUBSCRIBE to all the filters at one QoS."""
    properties = b"\x00" if version == MQTT_5 else b""
    wanted = b"".join(field(each) + bytes((qos,)) for each in filters)
    return packet(0x82, packet_id.to_bytes(2, "big") + properties + wanted)


def read_arrival(found: Packet, *, version: int = MQTT_311) -> Arrival:
    """Return the message of a PUBLISH."""
    body = found.body
    topic_end = 2 + int.from_bytes(body[:2], "big")
    topic, packet_id = body[2:topic_end].decode(), 0
    if found.first & 0x06:
        packet_id = int.from_bytes(body[topic_end : topic_end + 2], "big")
        topic_end += 2
    if version == MQTT_5:
        # Those of a message of ours are few, so their length is one byte.
        topic_end += 1 + body[topic_end]
    return Arrival(topic, body[topic_end:], packet_id)


class PacketReader:
    """Finds packets in a stream of bytes; what is not whole yet waits for its rest."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> list[Packet]:
        """Return the packets that are whole with this chunk, in their order."""
        received = self._rest + chunk if self._rest else chunk
        packets: list[Packet] = []
        start, count = 0, len(received)
        while start + 2 <= count:
            length, position = received[start + 1], start + 2
            if length > 127:
                length, position = _long_length(received, start + 1)
            if not position or position + length > count:
                break
            packets.append(Packet(received[start], received[position : position + length]))
            start = position + length
        self._rest = received[start:]
        return packets


def _long_length(received: bytes, start: int) -> tuple[int, int]:
    """Return a length of several bytes and where it ends; 0, 0 where it has not come whole."""
    length, shift = 0, 0
    for position in range(start, min(start + 4, len(received))):
        length |= (received[position] & 127) << shift
        shift += 7
        if received[position] < 128:
            return length, position + 1
    return 0, 0
