"""Redis as the journal knows it: streams that refuse an id that is not above the last, and all that can go wrong.

A command whose connection breaks may have taken effect before, may never take effect, or may do so later: when the
client has given up, what it had written stands in Redis' socket. What has taken effect is never lost (`appendfsync
always`), also where Redis dies. What a full store refuses has no effect, and what frees memory is allowed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any, Final, TypeVar

import redis

from actors.journal import parse_position
from tests.simulation.protocol.chance import Chance
from tests.simulation.protocol.scheduler import Process, VirtualLoop

_STALE: Final = "The ID specified in XADD is equal or smaller than the target stream top item"
_OOM: Final = "command not allowed when used memory > 'maxmemory'"
_Answer = TypeVar("_Answer")
Entry = tuple[bytes, dict[bytes, bytes]]


class ProcessDied(BaseException):
    """The process that gave a command was killed over it; nobody may catch this but who runs the process."""


class Stream:
    """One stream, as far as it is used."""

    def __init__(self) -> None:
        self.last = (0, 0)
        self.is_trimmed = False
        self.entries: list[tuple[tuple[int, int], Entry]] = []

    def add(self, fields: dict[Any, bytes], entry_id: str) -> bytes:
        """Append an entry; ResponseError if its id is not above the last."""
        position = parse_position(entry_id)
        if position <= self.last:
            raise redis.ResponseError(_STALE)
        self.last = position
        encoded = entry_id.encode()
        self.entries.append((position, (encoded, dict(fields))))
        return encoded


class Store:
    """What one Redis holds, and in which state it is."""

    def __init__(self, loop: VirtualLoop, chance: Chance) -> None:
        self.streams: defaultdict[str, Stream] = defaultdict(Stream)
        self.values: dict[str, bytes] = {}
        self.is_down = False
        self.is_full = False
        self.loop = loop
        self.chance = chance

    def client(self, process: Process) -> Client:
        """Return the connection of a process."""
        return Client(self, process)

    def stream(self, key: str) -> Stream:
        """Return a stream; it is made where there is none."""
        return self.streams[key]


class Client:
    """As much of `redis.Redis` as the journal uses; each command is a point at which anything can happen."""

    def __init__(self, store: Store, process: Process) -> None:
        self._store = store
        self._process = process

    def setnx(self, key: str, value: int) -> bool:
        """Set what is not set."""
        return self._command(lambda: self._store.values.setdefault(key, b"%d" % value) is not None)

    def get(self, key: str) -> bytes | None:
        """Return what is set."""
        return self._command(lambda: self._store.values.get(key))

    def exists(self, *keys: str) -> int:
        """Count those that there are."""
        return self._command(lambda: sum(key in self._store.streams for key in keys))

    def xinfo_stream(self, key: str) -> dict[str, bytes]:
        """Return the id of the last entry that the stream ever had."""
        return self._command(lambda: {"last-generated-id": b"%d-%d" % self._store.stream(key).last})

    def xadd(self, key: str, fields: dict[Any, bytes], id: str) -> bytes:  # noqa: A002 - the client's name for it
        """Append an entry."""
        return self._command(lambda: self._add(key, fields, id), "append kept, answer lost")

    def _add(self, key: str, fields: dict[Any, bytes], entry_id: str) -> bytes:
        if self._store.is_full:
            raise redis.exceptions.OutOfMemoryError(_OOM)
        return self._store.stream(key).add(fields, entry_id)

    def xrange(self, key: str, min: str, count: int) -> list[Entry]:  # noqa: A002 - the client's name for it
        """Return entries after an id, which is given as `(<id>`."""
        after = parse_position(min[1:])

        def read() -> list[Entry]:
            entries = self._store.stream(key).entries
            found = [entry for position, entry in entries if position > after][:count]
            if self._store.stream(key).is_trimmed and len(found) > 1:
                self._store.chance.count("replayed after a trim")
            return found

        return self._command(read)

    def xtrim(self, key: str, minid: str, approximate: bool) -> int:
        """Drop the entries below an id."""
        assert not approximate, "the journal names exactly what it drops"
        first = parse_position(minid)

        def trim() -> int:
            stream = self._store.stream(key)
            before = len(stream.entries)
            stream.entries = [each for each in stream.entries if each[0] >= first]
            stream.is_trimmed = stream.is_trimmed or len(stream.entries) < before
            return before - len(stream.entries)

        return self._command(trim)

    def pipeline(self, transaction: bool) -> Pipeline:
        """Return commands that travel together; others' may come between them."""
        assert not transaction, "the journal needs none"
        return Pipeline(self)

    def close(self) -> None:
        """Let go of the connection."""

    def _command(self, take_effect: Callable[[], _Answer], loss: str = "") -> _Answer:
        """Do what a command does, before and after whatever the others do meanwhile."""
        self._pass_point()
        store, chance = self._store, self._store.chance
        if store.is_down:
            raise redis.ConnectionError("Connection refused")
        if chance.happens("lost command"):
            raise redis.ConnectionError("Connection reset by peer")
        if chance.happens("late command"):
            # It stands in the socket; who sent it waits for the answer until its patience ends.
            delay_s = chance.between(0.1, 4.0)
            store.loop.expect_effect(store.loop.time() + delay_s)
            store.loop.deliver(store.loop.root, delay_s, _try, take_effect)
            store.loop.let_others_run(chance.between(0.0, 2.0))
            self._require_alive()
            raise redis.TimeoutError("Timeout reading from socket")
        result = take_effect()
        self._pass_point()
        if chance.happens("lost reply"):
            if loss:
                chance.count(loss)
            raise redis.ConnectionError("Connection closed by server")
        return result

    def _pass_point(self) -> None:
        """Be killed, stand still, or let others go first."""
        store, chance = self._store, self._store.chance
        if chance.is_healed:
            pass
        elif chance.happens("crash at a command"):
            self._process.is_dead = True
        elif chance.happens("pause at a command"):
            store.loop.let_others_run(chance.between(0.5, 12.0))
        elif chance.happens("slow command"):
            store.loop.let_others_run(chance.between(0.0, 0.3))
        self._require_alive()

    def _require_alive(self) -> None:
        if self._process.is_dead:
            raise ProcessDied


class Pipeline:
    """Commands that are sent at once: the connection may break between any two."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._commands: list[Callable[[], Any]] = []

    def xadd(self, key: str, fields: dict[Any, bytes], id: str) -> None:  # noqa: A002 - the client's name for it
        """Append an entry when the pipeline is executed."""
        self._commands.append(lambda: self._client.xadd(key, fields, id))

    def exists(self, *keys: str) -> None:
        """Count streams."""
        self._commands.append(lambda: self._client.exists(*keys))

    def xrange(self, key: str, min: str, count: int) -> None:  # noqa: A002 - the client's name for it
        """Read entries after an id."""
        self._commands.append(lambda: self._client.xrange(key, min, count))

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Return the answer to each command, which may be an error unless that is to be raised."""
        results: list[Any] = []
        for command in self._commands:
            try:
                results.append(command())
            except redis.ResponseError as error:
                if raise_on_error:
                    raise
                results.append(error)
        return results


def _try(take_effect: Callable[[], Any]) -> None:
    """Let a late command take effect, if it still can; nobody hears of it."""
    try:
        take_effect()
    except redis.ResponseError:
        return
