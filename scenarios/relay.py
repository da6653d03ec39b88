"""A TCP relay that stands between devices and their broker, and makes what lies between them as bad as it is told to.

Owns bytes on their way: late, slowly, not at all, or ended with a reset. It carries them as they are, TLS or not, in
their order; nothing is lost of a connection that lasts, because TCP would not lose it either. What is under way is
bounded: a relay that is held holds its senders back.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import time
from dataclasses import dataclass
from typing import Final, Literal

Direction = Literal["up", "down"]

_PIECE_BYTES: Final = 1 << 16
# As many pieces as may be under way in a direction: some megabytes at most, a quarter of a second's small messages.
_UNDER_WAY_MAX: Final = 64
# With a bandwidth, pieces that take about so long: latency and rate are felt evenly.
_PIECE_S: Final = 0.05
# Close with a reset, at once: no lingering, nothing sent any more.
_RESET: Final = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a relay does to what passes, in each direction; nothing, where nothing is said.

    Latency and jitter (more or less, evenly drawn) are in seconds, `loss_ratio` is the share of pieces in whose place
    the connection is reset, `rate` is in bytes a second and connection. `held` directions carry nothing. `is_down`:
    every connection is reset, and so is every new one.
    """

    latency_s: float = 0.0
    jitter_s: float = 0.0
    loss_ratio: float = 0.0
    rate: float = 0.0
    held: frozenset[Direction] = frozenset()
    is_down: bool = False

    def and_also(self, other: Conditions) -> Conditions:
        """Return what both do together."""
        rates = [each.rate for each in (self, other) if each.rate]
        return Conditions(
            self.latency_s + other.latency_s,
            self.jitter_s + other.jitter_s,
            1 - (1 - self.loss_ratio) * (1 - other.loss_ratio),
            min(rates, default=0.0),
            self.held | other.held,
            self.is_down or other.is_down,
        )


class Relay:
    """A relay to one server; `start` first, `close` last. What it does to connections is what `apply` said last."""

    def __init__(self, host: str, port: int, *, seed: int = 0) -> None:
        self.connection_count = 0
        self.reset_count = 0
        self.carried_bytes = 0
        self._target = (host, port)
        self._draws = random.Random(seed)
        self._conditions = Conditions()
        self._changed = asyncio.Event()
        self._links: set[_Link] = set()
        self._server: asyncio.Server | None = None

    async def start(self, address: str = "127.0.0.1") -> int:
        """Begin to listen on a free port of an address of this machine, and return the port."""
        self._server = await asyncio.start_server(self._serve, address, 0, limit=_PIECE_BYTES)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def conditions(self) -> Conditions:
        """Return what is done to connections at present."""
        return self._conditions

    def apply(self, conditions: Conditions) -> None:
        """Do this to connections from now on, also to those that are open."""
        self._conditions = conditions
        self._changed.set()
        self._changed = asyncio.Event()
        if conditions.is_down:
            self.reset_all()

    def reset_all(self) -> None:
        """End every connection with a reset, as a router does that has forgotten them."""
        for link in list(self._links):
            self._reset(link)

    async def close(self) -> None:
        """End the relay and all its connections."""
        if self._server is None:
            return
        self._server.close()
        self.reset_all()
        await asyncio.gather(*(link.ended.wait() for link in self._links))
        await self._server.wait_closed()
        self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connection_count += 1
        if self._conditions.is_down:
            self.reset_count += 1
            _abort(writer)
            return
        link = _Link(writer)
        self._links.add(link)
        try:
            server_reader, server_writer = await asyncio.open_connection(*self._target, limit=_PIECE_BYTES)
            link.writers.append(server_writer)
            async with asyncio.TaskGroup() as ways:
                for way in (
                    _Way(reader, server_writer, link, "up"),
                    _Way(server_reader, writer, link, "down"),
                ):
                    ways.create_task(self._take(way))
                    ways.create_task(self._give(way))
        except* OSError:
            # There is no server, or one end has gone; the other learns that its connection has ended.
            pass
        finally:
            self._links.discard(link)
            for each in link.writers:
                each.close()
            link.ended.set()

    async def _take(self, way: _Way) -> None:
        """Take pieces from a sender until it has ended, each with the time at which it is due at the other end."""
        due_s = 0.0
        while piece := await way.reader.read(self._piece_bytes()):
            if self._conditions.loss_ratio and self._draws.random() < self._conditions.loss_ratio:
                self._reset(way.link)
                break
            due_s = self._due_s(len(piece), due_s)
            await way.pieces.put((due_s, piece))
        await way.pieces.put((due_s, b""))

    async def _give(self, way: _Way) -> None:
        """Give pieces to the receiver, each when it is due and nothing holds it, and tell it of the sender's end."""
        while True:
            due_s, piece = await way.pieces.get()
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            while way.direction in self._conditions.held and not way.link.is_reset:
                await self._changed.wait()
            if way.link.is_reset:
                # Ends the other tasks of this connection too, whatever they wait for.
                raise ConnectionResetError
            if not piece:
                break
            way.writer.write(piece)
            self.carried_bytes += len(piece)
            await way.writer.drain()
        for writer in way.link.writers:
            writer.close()

    def _piece_bytes(self) -> int:
        rate = self._conditions.rate
        return max(1, min(_PIECE_BYTES, int(rate * _PIECE_S))) if rate else _PIECE_BYTES

    def _due_s(self, size: int, last_due_s: float) -> float:
        """Return when a piece that is taken now is due at the other end, never before the one that came before it."""
        conditions, now_s = self._conditions, time.monotonic()
        wait_s = conditions.latency_s + self._draws.uniform(-1.0, 1.0) * conditions.jitter_s
        due_s = max(now_s + max(0.0, wait_s), last_due_s)
        if conditions.rate:
            due_s = max(due_s, max(now_s, last_due_s) + size / conditions.rate)
        return due_s

    def _reset(self, link: _Link) -> None:
        if not link.is_reset:
            self.reset_count += 1
            link.is_reset = True
            for writer in link.writers:
                _abort(writer)
        # Whoever is held learns of it.
        self._changed.set()
        self._changed = asyncio.Event()


class _Link:
    """Two connections that are one to their ends."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writers = [writer]
        self.is_reset = False
        self.ended = asyncio.Event()


class _Way:
    """One direction of a link, and what is under way in it."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: _Link, direction: Direction
    ) -> None:
        self.reader = reader
        self.writer = writer
        self.link = link
        self.direction = direction
        self.pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_UNDER_WAY_MAX)


def _abort(writer: asyncio.StreamWriter) -> None:
    connection: socket.socket | None = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        if connection is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
