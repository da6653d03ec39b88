"""One MQTT connection of a simulated device: a socket without threads, tasks or streams: thousands fit a process.

Owns the socket, TLS and CONNECT; what is subscribed to and said is the owner's. It is never used again after its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from actors.mqtt_packets import ACCEPTED, CONNACK, DISCONNECT, Packet, PacketReader

# Linux chooses the port of a bound address only when it connects: then one port serves many addresses (ip(7)).
_IP_BIND_ADDRESS_NO_PORT: Final = 24
# Source addresses in turn, 127.64.0.1 and on: each has 28,000 ports of its own to the broker's address.
_SOURCE_FIRST: Final = int(ipaddress.IPv4Address("127.64.0.1"))
_SOURCE_COUNT: Final = 250
# What is read at once: the most that one record of TLS holds.
_CHUNK_BYTES: Final = 16_384
_WAITING: Final = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class LinkOwner(Protocol):
    """Whose connection it is."""

    def on_open(self) -> None:
        """Take in that the broker has accepted the connection."""

    def on_packet(self, found: Packet) -> None:
        """Take in a packet that came after CONNACK."""

    def on_end(self, reason: str, *, was_open: bool) -> None:
        """Take in that the connection has ended, or was never made."""


@dataclass(frozen=True)
class BrokerAddress:
    """Where the broker listens; `context` makes TLS of it, None is plain TCP.

    The context is shared: a device's certificate is loaded into it just before its connection is made, which takes a
    copy. So no device needs a context of its own, which would be some 50 KB.
    """

    host: str
    port: int
    context: ssl.SSLContext | None = None

    @classmethod
    def of(cls, host: str, port: int, ca_file: str) -> BrokerAddress:
        """Return the address of a broker with TLS whose authority stands in a file; plain TCP without a file."""
        if not ca_file:
            return cls(host, port)
        context = ssl.create_default_context(cafile=ca_file)
        context.options |= ssl.OP_NO_COMPRESSION
        return cls(host, port, context)

    def sources(self) -> Iterator[str]:
        """Give source addresses without end: in turn for a broker on loopback, empty (the system's) for another."""
        is_loopback = self.host.startswith("127.")
        while True:
            for number in range(_SOURCE_COUNT):
                yield str(ipaddress.IPv4Address(_SOURCE_FIRST + number)) if is_loopback else ""


class LoadLink:
    """One connection on the running event loop; `open` begins it, and the owner hears what comes of that."""

    __slots__ = (
        "_address",
        "_backlog",
        "_hello",
        "_is_open",
        "_loop",
        "_owner",
        "_reader",
        "_socket",
        "heard_s",
    )

    def __init__(
        self, loop: asyncio.AbstractEventLoop, address: BrokerAddress, hello: bytes, owner: LinkOwner
    ) -> None:
        """`hello` is the CONNECT that the connection begins with."""
        self._loop = loop
        self._address = address
        self._hello = hello
        self._owner: LinkOwner | None = owner
        self._reader = PacketReader()
        self._socket: socket.socket | None = None
        self._backlog = b""
        self._is_open = False
        # When the broker was last heard, by the machine's monotonic clock.
        self.heard_s = time.monotonic()

    def open(self, *, source: str = "", certificate: str = "") -> None:
        """Begin to connect, from a source address if one is given, with the certificate and key of a PEM file."""
        address = self._address
        try:
            family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
            connection: socket.socket = socket.socket(family, socket.SOCK_STREAM)
            self._socket = connection
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if source:
                with contextlib.suppress(OSError):
                    connection.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
                connection.bind((source, 0))
            code = connection.connect_ex((address.host, address.port))
            if code not in (0, errno.EINPROGRESS):
                raise OSError(code, os.strerror(code))
        except OSError as error:
            self._end(_reason(error))
            return
        self._loop.add_writer(connection.fileno(), self._on_connected, certificate)

    @property
    def is_open(self) -> bool:
        """Tell whether the broker has accepted the connection, and it has not ended."""
        return self._is_open

    def send(self, content: bytes) -> None:
        """Send packets; what the socket does not take now follows when it does."""
        connection = self._socket
        if connection is None:
            return
        if self._backlog:
            self._backlog += content
            return
        try:
            sent = connection.send(content)
        except _WAITING:
            sent = 0
        except OSError as error:
            self._end(_reason(error))
            return
        if sent < len(content):
            self._backlog = content[sent:]
            self._loop.add_writer(connection.fileno(), self._flush)

    def close(self) -> None:
        """Say goodbye and end, without a word to the owner."""
        self._owner = None
        if self._is_open:
            self.send(DISCONNECT)
        self._end("")

    def drop(self, reason: str) -> None:
        """Break the connection without a farewell; the owner hears why."""
        self._end(reason)

    def _on_connected(self, certificate: str) -> None:
        connection = self._socket
        if connection is None:
            return
        self._loop.remove_writer(connection.fileno())
        try:
            code = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code))
            context = self._address.context
            if context is not None:
                if certificate:
                    context.load_cert_chain(certificate)
                connection = context.wrap_socket(
                    connection, do_handshake_on_connect=False, server_hostname=self._address.host
                )
                self._socket = connection
        except OSError as error:
            self._end(_reason(error))
            return
        self._loop.add_reader(connection.fileno(), self._shake_hands)
        self._shake_hands()

    def _shake_hands(self) -> None:
        connection = self._socket
        if isinstance(connection, ssl.SSLSocket):
            descriptor = connection.fileno()
            self._loop.remove_writer(descriptor)
            try:
                connection.do_handshake()
            except ssl.SSLWantReadError:
                return
            except ssl.SSLWantWriteError:
                self._loop.add_writer(descriptor, self._shake_hands)
                return
            except OSError as error:
                self._end(_reason(error))
                return
        if connection is not None:
            self._loop.add_reader(connection.fileno(), self._on_readable)
            self.send(self._hello)

    def _on_readable(self) -> None:
        connection = self._socket
        while connection is not None:
            try:
                chunk = connection.recv(_CHUNK_BYTES)
            except _WAITING:
                return
            except OSError as error:
                self._end(_reason(error))
                return
            if not chunk:
                self._end("the broker closed the connection")
                return
            self._take(chunk)
            # What TLS has decrypted already wakes nobody up.
            if not (
                isinstance(connection, ssl.SSLSocket) and self._socket is not None and connection.pending()
            ):
                return

    def _take(self, chunk: bytes) -> None:
        self.heard_s = time.monotonic()
        for found in self._reader.feed(chunk):
            owner = self._owner
            if owner is None or self._socket is None:
                return
            if self._is_open:
                owner.on_packet(found)
            elif found.kind == CONNACK and found.body[1] == ACCEPTED:
                self._is_open = True
                owner.on_open()
            else:
                self._end(f"CONNECT was refused with code {found.body[1] if len(found.body) > 1 else '?'}")

    def _flush(self) -> None:
        connection = self._socket
        if connection is None:
            return
        try:
            sent = connection.send(self._backlog)
        except _WAITING:
            return
        except OSError as error:
            self._end(_reason(error))
            return
        self._backlog = self._backlog[sent:]
        if not self._backlog:
            self._loop.remove_writer(connection.fileno())

    def _end(self, reason: str) -> None:
        connection, owner, was_open = self._socket, self._owner, self._is_open
        self._socket, self._owner, self._is_open = None, None, False
        if connection is not None:
            if connection.fileno() >= 0:
                self._loop.remove_reader(connection.fileno())
                self._loop.remove_writer(connection.fileno())
            connection.close()
        if owner is not None:
            owner.on_end(reason, was_open=was_open)


def _reason(error: OSError) -> str:
    """Return why a connection ended, in words that are the same for every device."""
    if isinstance(error, ssl.SSLError):
        return f"TLS: {(error.reason or 'the connection ended').lower().replace('_', ' ')}"
    return os.strerror(error.errno) if error.errno else (str(error) or type(error).__name__)
