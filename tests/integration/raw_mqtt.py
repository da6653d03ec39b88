"""MQTT byte by byte over TLS: packets as an attacker writes them, well-formed or not, and what comes back.

Nothing here corrects or refuses what it is told to send. Sessions are synchronous: the tests that use them say in
which order things happen.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, Self

# A local broker answers in milliseconds; a loaded machine gets the rest.
ANSWER_TIMEOUT_S: Final = 20.0
MQTT_311: Final = 4
MQTT_5: Final = 5
# Kinds of packets (MQTT 5, 2.1.2), as they stand in the upper half of a packet's first byte.
CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK = 1, 2, 3, 4, 8, 9
PINGRESP, DISCONNECT_KIND = 13, 14
PING: Final = b"\xc0\x00"
DISCONNECT: Final = b"\xe0\x00"
ACCEPTED: Final = 0


class Refused(Exception):
    """The broker has refused a CONNECT or closed the connection."""


class Packet(NamedTuple):
    """One packet as it came: its first byte, and what follows its length."""

    first: int
    body: bytes

    @property
    def kind(self) -> int:
        """The kind of the packet."""
        return self.first >> 4


class Message(NamedTuple):
    """A PUBLISH that was received."""

    topic: str
    payload: bytes


@dataclass(frozen=True)
class Will:
    """A message that the broker publishes for a client that goes without a word."""

    topic: str
    payload: bytes
    qos: int = 1
    is_retained: bool = False


def length_of(count: int) -> bytes:
    """Return a variable byte integer (MQTT 5, 1.5.5)."""
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


def subscribe(filters: Sequence[str | bytes], *, version: int = MQTT_311, packet_id: int = 1) -> bytes:
    """Return a SUBSCRIBE to all the filters at QoS 1."""
    properties = b"\x00" if version == MQTT_5 else b""
    wanted = b"".join(field(each) + b"\x01" for each in filters)
    return packet(0x82, packet_id.to_bytes(2, "big") + properties + wanted)


class RawSession:
    """One connection: sends what it is given, and keeps count of what comes back."""

    def __init__(self, link: socket.socket, *, version: int = MQTT_311) -> None:
        """Use a connected socket, whose owner closes it; `version` says how messages are to be read."""
        self.link: Final = link
        self._version: Final = version
        self._received = bytearray()
        # Messages that came while something else was waited for.
        self._messages: list[Message] = []

    def send(self, content: bytes) -> None:
        """Send bytes; a connection that the broker has closed meanwhile swallows them."""
        with contextlib.suppress(OSError):
            self.link.sendall(content)

    def next_packet(self) -> Packet | None:
        """Return the next packet, None when the broker has closed the connection; TimeoutError if nothing comes."""
        while True:
            if (found := self._take()) is not None:
                return found
            try:
                chunk = self.link.recv(65_536)
            except TimeoutError:
                raise
            except OSError:
                return None
            if not chunk:
                return None
            self._received += chunk

    def _take(self) -> Packet | None:
        received, length, shift = self._received, 0, 0
        for position in range(1, min(len(received), 5)):
            length |= (received[position] & 127) << shift
            shift += 7
            if received[position] < 128:
                end = position + 1 + length
                if len(received) < end:
                    return None
                found = Packet(received[0], bytes(received[position + 1 : end]))
                del received[:end]
                return found
        return None

    def until(self, kind: int) -> Packet:
        """Return the next packet of a kind; messages before it are acknowledged and kept for `messages`."""
        while True:
            found = self.next_packet()
            if found is None:
                raise Refused(f"the connection was closed before a packet of kind {kind}")
            if found.kind == kind:
                return found
            if found.kind == PUBLISH:
                self._messages.append(self._acknowledged(found))

    def _acknowledged(self, found: Packet) -> Message:
        topic_end = 2 + int.from_bytes(found.body[:2], "big")
        topic, rest = found.body[2:topic_end].decode(), found.body[topic_end:]
        if found.first & 0x06:
            self.send(packet(0x40, rest[:2]))
            rest = rest[2:]
        if self._version == MQTT_5:
            # Those of a message of ours are few, so their length is one byte.
            rest = rest[1 + rest[0] :]
        return Message(topic, rest)

    def messages(self) -> list[Message]:
        """Return all messages that the broker had for this session before now, each of them once.

        The broker deals with a connection's packets in their order, so the answer to a ping comes after whatever it
        had put into this connection's queue before.
        """
        self.send(PING)
        self.until(PINGRESP)
        found, self._messages = self._messages, []
        return found

    def next_message(self) -> Message:
        """Return the next message; TimeoutError if none comes."""
        while not self._messages:
            found = self.next_packet()
            if found is None:
                raise Refused("the connection was closed before a message")
            if found.kind == PUBLISH:
                self._messages.append(self._acknowledged(found))
        return self._messages.pop(0)

    def is_closed(self) -> bool:
        """Wait until the broker closes the connection, whatever it sends before; TimeoutError if it does not."""
        while self.next_packet() is not None:
            pass
        return True

    def subscribe(self, *filters: str) -> list[int]:
        """Return the broker's word on each filter: the granted QoS, or a code of 128 and above."""
        self.send(subscribe(filters, version=self._version))
        answer = self.until(SUBACK).body
        # MQTT 5: the packet id, then properties (none), then the codes.
        return list(answer[3:] if self._version == MQTT_5 else answer[2:])

    def publish(self, topic: str, payload: bytes, *, is_retained: bool = False) -> int:
        """Return the broker's reason code for a message at QoS 1; MQTT 3.1.1 has only 0."""
        self.send(publish(topic, payload, version=self._version, packet_id=7, is_retained=is_retained))
        answer = self.until(PUBACK).body
        return answer[2] if len(answer) > 2 else ACCEPTED


@dataclass(frozen=True)
class RawClient:
    """Where to connect, and with which certificate."""

    port: int
    context: ssl.SSLContext
    host: str = "127.0.0.1"

    @classmethod
    def of(
        cls, port: int, ca_file: Path, *, certificate: Path | None = None, key: Path | None = None
    ) -> Self:
        """Return a client that trusts the authority in `ca_file` and shows a certificate, if it has one."""
        context = ssl.create_default_context(cafile=str(ca_file))
        if certificate is not None:
            context.load_cert_chain(certificate, key)
        return cls(port, context)

    @contextlib.contextmanager
    def link(self) -> Iterator[ssl.SSLSocket]:
        """Give a TLS connection; it is dropped afterwards, without a word to the broker."""
        with (
            socket.create_connection((self.host, self.port), timeout=ANSWER_TIMEOUT_S) as plain,
            self.context.wrap_socket(plain, server_hostname=self.host) as link,
        ):
            yield link

    @contextlib.contextmanager
    def session(self, connect: Connect) -> Iterator[RawSession]:
        """Give a session that the broker has accepted; it is dropped afterwards, unless it was disconnected."""
        with self.link() as link:
            session = RawSession(link, version=connect.version)
            session.send(connect.encode())
            answer = session.until(CONNACK).body
            if answer[1] != ACCEPTED:
                raise Refused(f"CONNECT was refused with code {answer[1]}")
            yield session

    def is_admitted(self, connect: Connect) -> bool:
        """Tell whether the broker accepts a CONNECT; also False where TLS fails."""
        try:
            with self.session(connect) as session:
                session.send(DISCONNECT)
                return True
        except (OSError, Refused):
            return False
