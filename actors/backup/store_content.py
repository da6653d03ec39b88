"""Everything in a Redis that nobody writes to, as records, and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import redis

from actors.backup.records import Entries, Members, Record, StreamEnd, Text
from actors.errors import StoreError
from actors.store_errors import store_error

# Keys or members in one round trip: some hundred kilobytes of what is usual.
_PAGE_LENGTH: Final = 1000
# An entry of a journal is a batch of up to 100 KB.
_ENTRY_PAGE_LENGTH: Final = 20
# Commands that are sent at once, when this much or this many have gathered.
_SENT_BYTES: Final = 4 << 20
_SENT_COUNT: Final = 1000
# One round trip through a large store may take longer than an answer usually does, but not a minute.
_ANSWER_TIMEOUT_S: Final = 60.0
# Which actor on which node serves what: a restored platform has other ones, and begins anew.
_LEFT_OUT: Final = frozenset({b"twinfleet:placement", b"twinfleet:placement:notes"})


def client_of(url: str) -> redis.Redis:
    """Return a client of the Redis at a URL, whose answers are bytes as they are kept."""
    return redis.Redis.from_url(url, socket_timeout=_ANSWER_TIMEOUT_S)


def read_store(client: redis.Redis) -> Iterator[Record]:
    """Yield every key, each whole before the next, but for those that tell of this platform's own processes.

    StoreError if Redis does not answer, or holds an unknown type.
    """
    try:
        # redis-py types its answers as "either awaited or not".
        now: Any = client.time()
        now_ms = now[0] * 1000 + now[1] // 1000
        for keys in _pages(client.scan_iter(count=_PAGE_LENGTH)):
            yield from _read_keys(client, [key for key in keys if key not in _LEFT_OUT], now_ms)
    except redis.RedisError as error:
        raise store_error(error, "the backup") from error


def _pages(values: Iterator[Any]) -> Iterator[list[Any]]:
    page: list[Any] = []
    for value in values:
        page.append(value)
        if len(page) == _PAGE_LENGTH:
            yield page
            page = []
    if page:
        yield page


def _read_keys(client: redis.Redis, keys: Sequence[bytes], now_ms: int) -> Iterator[Record]:
    types, lives_ms = client.pipeline(transaction=False), client.pipeline(transaction=False)
    for key in keys:
        types.type(key)
        lives_ms.pttl(key)
    texts: list[tuple[bytes, int | None]] = []
    for key, kind, life_ms in zip(keys, types.execute(), lives_ms.execute(), strict=True):
        # Below zero it does not expire, or has just done so.
        expires_at_ms = now_ms + life_ms if life_ms >= 0 else None
        if kind == b"string":
            texts.append((key, expires_at_ms))
        elif kind == b"stream":
            yield from _read_stream(client, key)
        elif kind != b"none":
            for members in _pages(_members(client, key, kind.decode())):
                flat = [part for member in members for part in member]
                yield Members(key, kind.decode(), flat, expires_at_ms)
    values: Any = client.mget([key for key, _ in texts]) if texts else []
    for (key, expires_at_ms), value in zip(texts, values, strict=True):
        if value is not None:
            yield Text(key, value, expires_at_ms)


def _members(client: redis.Redis, key: bytes, kind: str) -> Iterator[tuple[bytes, ...]]:
    if kind == "hash":
        yield from client.hscan_iter(key, count=_PAGE_LENGTH)
    elif kind == "zset":
        for member, score in client.zscan_iter(key, count=_PAGE_LENGTH):
            yield member, repr(score).encode()
    elif kind == "set":
        for member in client.sscan_iter(key, count=_PAGE_LENGTH):
            yield (member,)
    elif kind == "list":
        # redis-py types its answers as "either awaited or not".
        values: Any = client.lrange(key, 0, -1)
        for value in values:
            yield (value,)
    else:
        raise StoreError(f"Redis holds {key!r} as a {kind}, which backups do not know")


def _read_stream(client: redis.Redis, key: bytes) -> Iterator[Record]:
    start = "-"
    while True:
        page: Any = client.xrange(key, min=start, count=_ENTRY_PAGE_LENGTH)
        if not page:
            break
        entries = [(entry_id.decode(), _flat(fields)) for entry_id, fields in page]
        yield Entries(key, entries)
        start = f"({entries[-1][0]}"
    details: Any = client.xinfo_stream(key)
    yield StreamEnd(key, details["last-generated-id"].decode())


def _flat(fields: Any) -> list[bytes]:
    return [part for pair in fields.items() for part in pair]


class StoreWriter:
    """Writes records into an empty Redis; after `flush` it has all of them. StoreError if it does not take one."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._waiting: list[tuple[Any, ...]] = []
        self._waiting_bytes = 0
        # Streams that have entries.
        self._filled: set[bytes] = set()

    def write(self, record: Text | Members | Entries | StreamEnd) -> None:
        """Add what a record says of its key."""
        match record:
            case Text(key=key, value=value):
                self._send("SET", key, value)
            case Members(key=key, members=members, kind=kind) if members:
                self._send(*_adding(kind, key, members))
            case Entries(key=key, entries=entries):
                self._filled.add(key)
                for entry_id, fields in entries:
                    self._send("XADD", key, entry_id, *fields)
            case StreamEnd(key=key, last_id=last_id):
                self._end_stream(key, last_id)
        if isinstance(record, Text | Members) and record.expires_at_ms is not None:
            self._send("PEXPIREAT", record.key, record.expires_at_ms)

    def _end_stream(self, key: bytes, last_id: str) -> None:
        if key in self._filled:
            self._send("XSETID", key, last_id)
        else:
            # Everything was trimmed from it.
            self._send("XADD", key, last_id, "", "")
            self._send("XTRIM", key, "MAXLEN", 0)

    def _send(self, *command: Any) -> None:
        self._waiting.append(command)
        self._waiting_bytes += sum(len(part) for part in command if isinstance(part, bytes))
        if len(self._waiting) >= _SENT_COUNT or self._waiting_bytes >= _SENT_BYTES:
            self.flush()

    def flush(self) -> None:
        """Wait until Redis has taken all that was written."""
        pipeline: Any = self._client.pipeline(transaction=False)
        for command in self._waiting:
            pipeline.execute_command(*command)
        self._waiting, self._waiting_bytes = [], 0
        try:
            pipeline.execute()
        except redis.RedisError as error:
            raise store_error(error, "what is restored") from error


def _adding(kind: str, key: bytes, members: Sequence[bytes]) -> tuple[Any, ...]:
    if kind == "hash":
        return "HSET", key, *members
    if kind == "zset":
        scored = zip(members[1::2], members[::2], strict=True)
        return "ZADD", key, *(part for pair in scored for part in pair)
    if kind == "set":
        return "SADD", key, *members
    return "RPUSH", key, *members
