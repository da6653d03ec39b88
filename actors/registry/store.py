"""How the registry's records lie in Redis, and how they change: whole or not at all, by one writer.

Every change is one script in Redis that checks what it builds on, appends to the stream `registry` who changed what
and when, and writes the records and their indexes. Whoever opens it for writing begins a new epoch in that stream,
and from then on Redis refuses the changes of an older writer. What a record means is its own module's business.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import msgspec
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    ConnectionError,  # noqa: A004 - the client's name for it
    RedisError,
    ResponseError,
)

from actors.errors import StoreError
from actors.store_errors import is_fenced, store_error
from twins.clock import Clock
from twins.errors import InvariantError

_Record = TypeVar("_Record")

# A local store answers in well under a millisecond; beyond this it hangs, and its callers must not.
_ANSWER_TIMEOUT_S: Final = 5.0
# What the indexes of the records are; raised when records of older versions must get new ones at their opening.
LAYOUT: Final = "2"
# Names that Redis hands over at once while a whole index is walked.
WALK_PAGE: Final = 1000

# KEYS[1]: the stream. ARGV: entry id; the entry's fields and values; pairs of key and the content it must
# have ('' for none); the writing commands. Answers 0, or the number of the first condition that does not
# hold. The append goes first: it is what refuses an older epoch, and a refused script has written nothing.
_COMMIT: Final = """
for position, condition in ipairs(cjson.decode(ARGV[3])) do
    if (redis.call('GET', condition[1]) or '') ~= condition[2] then return position end
end
redis.call('XADD', KEYS[1], ARGV[1], unpack(cjson.decode(ARGV[2])))
for _, command in ipairs(cjson.decode(ARGV[4])) do redis.call(unpack(command)) end
return 0
"""


class RegistryStore:
    """The records of one platform, open for reading, and for changing while no later writer has opened them.

    Every method raises StoreError when Redis does not answer or refuses; after a change that failed so,
    whether it was kept is unknown, and the same change may be tried again.
    """

    def __init__(self, client: redis.asyncio.Redis, clock: Clock, *, prefix: str) -> None:
        self._client = client
        self._clock = clock
        self._stream = f"{prefix}registry"
        self._commit = client.register_script(_COMMIT)
        self._epoch = 0
        self._sequence = 0
        # Entry ids must reach Redis in their order, whichever connection carries them.
        self._turn = asyncio.Lock()

    @classmethod
    async def open(
        cls, url: str, clock: Clock, *, prefix: str = "twinfleet:", is_writer: bool = True
    ) -> RegistryStore:
        """Return the records kept in the Redis at `url`; with `is_writer`, this process is now its one writer."""
        client: redis.asyncio.Redis = redis.asyncio.Redis.from_url(
            url,
            decode_responses=True,
            socket_timeout=_ANSWER_TIMEOUT_S,
            socket_connect_timeout=_ANSWER_TIMEOUT_S,
            # A kept connection may be one to a Redis that has ended since: nobody need hear of that. Of a change that
            # was made before its connection broke, the stream tells that it stands (see `change`).
            retry=Retry(NoBackoff(), 1, supported_errors=(ConnectionError,)),
        )
        registry = cls(client, clock, prefix=prefix)
        if is_writer:
            try:
                await registry._begin_epoch()
            except StoreError:
                await registry.close()
                raise
        return registry

    async def close(self) -> None:
        """Let go of the connections to Redis."""
        await self._client.aclose()

    @property
    def client(self) -> redis.asyncio.Redis:
        """Return the connection to Redis, for questions; `store_errors` makes its errors ours."""
        return self._client

    def now_s(self) -> float:
        """Return the time by the registry's clock."""
        return self._clock.now_s()

    def key(self, kind: str, name: str | None = None) -> str:
        """Return the key of a record (`thing`, its name) or of an index (`things`)."""
        return f"{self._stream}:{kind}" if name is None else f"{self._stream}:{kind}:{name}"

    async def _begin_epoch(self) -> None:
        with store_errors():
            newest = await self._client.xrevrange(self._stream, count=1)
        self._epoch = int(str(newest[0][0]).partition("-")[0]) + 1 if newest else 1
        # Older records get their indexes when they are opened; new ones have them from the first.
        commands = [["SET", self.key("layout"), LAYOUT]] if self._epoch == 1 else []
        # Of two that begin the same epoch, each must know whose entry stands.
        told = {"by": "platform", "action": "registry.open", "subject": "", "writer": secrets.token_hex(8)}
        await self.append(told, commands)

    async def change(
        self,
        action: str,
        subject: str,
        commands: Sequence[Sequence[str]],
        *,
        conditions: Sequence[tuple[str, str]] = (),
        by: str,
    ) -> int:
        """Commit one change; return 0, or the number (from 1) of the condition that does not hold."""
        return await self.append({"by": by, "action": action, "subject": subject}, commands, conditions)

    async def append(
        self,
        entry: Mapping[str, str],
        commands: Sequence[Sequence[str]],
        conditions: Sequence[tuple[str, str]] = (),
    ) -> int:
        """Commit one change with what the stream is to tell of it, by field; see `change`."""
        if self._epoch == 0:
            raise InvariantError("the registry was opened for reading only")
        told = {"at": f"{self._clock.now_s():.3f}", **entry}
        fields = [text for pair in told.items() for text in pair]
        parts = [msgspec.json.encode(part).decode() for part in (fields, conditions, commands)]
        async with self._turn:
            entry_id = f"{self._epoch}-{self._sequence}"
            self._sequence += 1
            with store_errors():
                try:
                    outcome = int(await self._commit(keys=[self._stream], args=[entry_id, *parts]))
                except ResponseError as error:
                    if is_fenced(error) and await self._stands(entry_id, told):
                        return 0
                    raise
                # Refused the second time, perhaps, because it was made the first time.
                return 0 if outcome and await self._stands(entry_id, told) else outcome

    async def _stands(self, entry_id: str, told: Mapping[str, str]) -> bool:
        """Tell whether an entry of the stream is the one that this process has tried to append."""
        found: Any = await self._client.xrange(self._stream, min=entry_id, max=entry_id)
        return [fields for _, fields in found] == [told]

    async def read(self, key: str, kind: type[_Record]) -> _Record | None:
        """Return the record under a key, None if there is none."""
        text = await self.text(key)
        return decode(text, kind, key=key) if text else None

    async def text(self, key: str) -> str:
        """Return the very text under a key, '' if there is none: what a change builds its condition on."""
        with store_errors():
            return str(await self._client.get(key) or "")

    async def text_of(self, key: str, record: msgspec.Struct, subject: str) -> str:
        """Return the very text that a record was read from, whatever version of this program wrote it.

        StoreError (retryable), naming the `subject`, if it is another record by now, or none.
        """
        text = await self.text(key)
        if not text or decode(text, type(record), key=key) != record:
            raise changed_meanwhile(subject)
        return text

    async def read_all(self, kind_of_key: str, names: Sequence[str], kind: type[_Record]) -> list[_Record]:
        """Return the records of one kind under these names, in their order, without those that are gone."""
        if not names:
            return []
        keys = [self.key(kind_of_key, name) for name in names]
        with store_errors():
            texts = await self._client.mget(keys)
        # What was removed since its name was read is left out.
        return [
            decode(str(text), kind, key=key)
            for key, text in zip(keys, texts, strict=True)
            if text is not None
        ]

    async def names_after(self, index: str, after: str, limit: int) -> list[str]:
        """Return up to `limit` names of an index, in their order, that follow `after` ('': from the first)."""
        start = f"({after}" if after else "-"
        with store_errors():
            names = await self._client.zrangebylex(self.key(index), start, "+", start=0, num=limit)
        return [str(name) for name in names]

    async def all_names(self, index: str) -> AsyncIterator[str]:
        """Give every name of an index, in their order."""
        after = ""
        while names := await self.names_after(index, after, WALK_PAGE):
            for name in names:
                yield name
            after = names[-1]


def encode(record: msgspec.Struct) -> str:
    """Return a record as it is kept."""
    return msgspec.json.encode(record).decode()


def decode(text: str, kind: type[_Record], *, key: str) -> _Record:
    """Return the record that a text holds; StoreError, naming the key, if it is damaged."""
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.DecodeError as error:
        raise StoreError(f"{key} in Redis is damaged ({error}); restore Redis from a backup") from None


def changed_meanwhile(subject: str) -> StoreError:
    """Return the error of a change that builds on what is no longer so."""
    return StoreError(f"{subject} was changed meanwhile; try again", retryable=True)


async def awaited(answer: Any) -> Any:
    """Return what Redis answered."""
    # redis-py types some answers as "either awaited or not".
    return await answer


@contextmanager
def store_errors() -> Iterator[None]:
    """Turn the errors of the Redis client into StoreError."""
    try:
        yield
    except RedisError as error:
        if is_fenced(error):
            problem = "another process has opened the registry for writing since; restart the platform"
            raise StoreError(problem) from error
        raise store_error(error, "the registry") from error
