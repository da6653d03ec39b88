"""MQTT byte by byte over TLS: packets as an attacker writes them, well-formed or not, and what comes back.

Nothing here corrects or refuses what it is told to send. Sessions are synchronous: the tests that use them say in
which order things happen.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, Self

from actors.mqtt_packets import (
    ACCEPTED,
    CONNACK,
    CONNECT,
    DISCONNECT,
    DISCONNECT_KIND,
    MQTT_5,
    MQTT_311,
    PING,
    PINGRESP,
    PUBACK,
    PUBLISH,
    SUBACK,
    SUBSCRIBE,
    Connect,
    Packet,
    PacketReader,
    Will,
    acknowledge,
    field,
    length_of,
    packet,
    publish,
    read_arrival,
    subscribe,
)

# The packets stand here too for the tests that write them.
__all__ = [
    "ACCEPTED",
    "CONNACK",
    "CONNECT",
    "DISCONNECT",
    "DISCONNECT_KIND",
    "MQTT_5",
    "MQTT_311",
    "PING",
    "PINGRESP",
    "PUBACK",
    "PUBLISH",
    "SUBACK",
    "SUBSCRIBE",
    "Connect",
    "Message",
    "Packet",
    "RawClient",
    "RawSession",
    "Refused",
    "Will",
    "field",
    "length_of",
    "packet",
    "publish",
    "subscribe",
]

# A local broker answers in milliseconds; a loaded machine gets the rest.
ANSWER_TIMEOUT_S: Final = 20.0


class Refused(Exception):
    """The broker has refused a CONNECT or closed the connection."""


class Message(NamedTuple):
    """A PUBLISH that was received."""

    topic: str
    payload: bytes


class RawSession:
    """One connection: sends what it is given, and keeps count of what comes back."""

    def __init__(self, link: socket.socket, *, version: int = MQTT_311) -> None:
        """Use a connected socket, whose owner closes it; `version` says how messages are to be read."""
        self.link: Final = link
        self._version: Final = version
        self._reader = PacketReader()
        self._packets: list[Packet] = []
        # Messages that came while something else was waited for.
        self._messages: list[Message] = []

    def send(self, content: bytes) -> None:
        """Send bytes; a connection that the broker has closed meanwhile swallows them."""
        with contextlib.suppress(OSError):
            self.link.sendall(content)

    def next_packet(self) -> Packet | None:
        """Return the next packet, None when the broker has closed the connection; TimeoutError if nothing comes."""
        while not self._packets:
            try:
                chunk = self.link.recv(65_536)
            except TimeoutError:
                raise
            except OSError:
                return None
            if not chunk:
                return None
            self._packets += self._reader.feed(chunk)
        return self._packets.pop(0)

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
        arrival = read_arrival(found, version=self._version)
        if arrival.packet_id:
            self.send(acknowledge(arrival.packet_id))
        return Message(arrival.topic, arrival.payload)

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
