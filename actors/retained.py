"""What the broker retains: since when, and how much of it devices may leave there.

The messages themselves are the broker's, which keeps neither the time nor a bound. Here stands, in the platform's
Redis, which topics are retained since when; and the bridge's keeper ends the retention of what may not be retained:
requests, and telemetry beyond a thing's bound. Whoever publishes to be retained notes it first (the gateway) or when
it sees it (the bridge).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from actors.errors import WorldError
from actors.store_errors import store_error
from twins.clock import Clock
from twins.messages import Delivery, Publish
from twins.sharding import is_thing_name
from twins.topics import is_reserved

# A device has a handful of states worth showing to whoever comes later; each may be 128 KB in the broker's memory.
THING_TOPIC_COUNT_MAX: Final = 10
# All that operators retain outside of things: AWS IoT's bound for an account.
OTHER_TOPIC_COUNT_MAX: Final = 5_000
_TELEMETRY: Final = "telemetry"
# Where devices may have retained something.
RETAINABLE_FILTERS: Final = ("telemetry/#", "$aws/things/#")
# A local store answers in well under a millisecond; beyond this it hangs, and its callers must not.
_ANSWER_TIMEOUT_S: Final = 5.0
# A flood of them is worth no more memory: what is forgotten beyond is found again by reading all that is retained.
_PENDING_MAX: Final = 10_000
_RETRY_DELAY_S: Final = 1.0
_LOG: Final = logging.getLogger(__name__)

# KEYS: the topics of the owner, with their times; all topics. ARGV: topic, time, bound, 1 to keep an older time.
# Answers whether it is noted, or 0 if the owner has too many.
_NOTE: Final = """
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then
    if ARGV[4] == '0' then redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) end
    return 1
end
if redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[3]) then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[2], 0, ARGV[1])
return 1
"""


class RetainedNotes:
    """Which topics are retained, and since when; every method raises StoreError when Redis does not answer."""

    def __init__(self, client: redis.asyncio.Redis, *, prefix: str) -> None:
        self._client = client
        self._prefix = f"{prefix}retained"
        self._note = client.register_script(_NOTE)

    @classmethod
    def open(cls, url: str, *, prefix: str = "twinfleet:") -> RetainedNotes:
        """Return the notes kept in the Redis at `url`."""
        client: redis.asyncio.Redis = redis.asyncio.Redis.from_url(
            url,
            decode_responses=True,
            socket_timeout=_ANSWER_TIMEOUT_S,
            socket_connect_timeout=_ANSWER_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        )
        return cls(client, prefix=prefix)

    async def close(self) -> None:
        """Let go of the connections to Redis."""
        await self._client.aclose()

    async def note(self, topic: str, at_ms: int, *, is_found: bool = False) -> bool:
        """Note that a topic is retained since now, and return True; False (and no note) if it would be one too many.

        `is_found`: it has been retained for an unknown time, so an older note is right.
        """
        owner = _owner(topic)
        bound = THING_TOPIC_COUNT_MAX if owner else OTHER_TOPIC_COUNT_MAX
        arguments: list[str | int] = [topic, at_ms, bound, int(is_found)]
        try:
            return bool(await self._note(keys=[self._times_key(owner), self._prefix], args=arguments))
        except RedisError as error:
            raise store_error(error, "the notes of retained messages") from error

    async def forget(self, topic: str) -> None:
        """Note that nothing is retained on a topic any more."""
        try:
            async with self._client.pipeline(transaction=True) as pipeline:
                pipeline.hdel(self._times_key(_owner(topic)), topic)
                pipeline.zrem(self._prefix, topic)
                await pipeline.execute()
        except RedisError as error:
            raise store_error(error, "the notes of retained messages") from error

    async def times_ms(self, topics: Sequence[str]) -> dict[str, int]:
        """Return since when topics are retained, without those of which nothing is noted."""
        try:
            async with self._client.pipeline(transaction=False) as pipeline:
                for topic in topics:
                    pipeline.hget(self._times_key(_owner(topic)), topic)
                answers = await pipeline.execute()
        except RedisError as error:
            raise store_error(error, "the notes of retained messages") from error
        return {topic: int(time) for topic, time in zip(topics, answers, strict=True) if time is not None}

    async def topics_after(self, after: str, limit: int) -> list[str]:
        """Return up to `limit` retained topics, in their order, that follow `after` ('': from the first)."""
        start = f"({after}" if after else "-"
        try:
            found = await self._client.zrangebylex(self._prefix, start, "+", start=0, num=limit)
        except RedisError as error:
            raise store_error(error, "the notes of retained messages") from error
        return [str(topic) for topic in found]

    async def topics_of(self, thing_name: str) -> list[str]:
        """Return the topics that are retained of a thing, in their order."""
        try:
            # redis-py types some answers as "either awaited or not".
            found: Any = self._client.hkeys(self._times_key(thing_name))
            return sorted(await found)
        except RedisError as error:
            raise store_error(error, "the notes of retained messages") from error

    def _times_key(self, owner: str) -> str:
        return f"{self._prefix}:{owner}"


class RetainedKeeper:
    """Notes what is retained, as it is seen, and ends the retention of what may not be; counts these."""

    def __init__(
        self,
        notes: RetainedNotes,
        publish: Callable[[Sequence[Publish]], Awaitable[None]],
        *,
        all_topics: Callable[[], Awaitable[Sequence[str]]],
        clock: Clock,
    ) -> None:
        """Prepare a keeper; `all_topics` reads off the broker what devices may have retained."""
        self._notes = notes
        self._publish = publish
        self._all_topics = all_topics
        self._clock = clock
        self.cleared_count = 0
        # By topic, in the order in which they were seen: whether it is retained, by the last message.
        self._pending: dict[str, bool] = {}
        # What was retained while nobody looked.
        self._must_read_all = True
        self._has_work = asyncio.Event()
        self._has_work.set()

    def saw(self, topic: bytes, payload: bytes, _qos: int) -> None:
        """Take note of a message that is to be retained, or, without payload, ends a retention."""
        name = topic.decode(errors="replace")
        if name not in self._pending and len(self._pending) >= _PENDING_MAX:
            self._must_read_all = True
        else:
            self._pending[name] = bool(payload)
        self._has_work.set()

    async def run(self) -> None:
        """Do what follows from what was seen, until cancelled."""
        while True:
            await self._has_work.wait()
            try:
                await self._settle_all()
            except WorldError as error:
                _LOG.warning("what is retained is looked after later: %s", error)
                await asyncio.sleep(_RETRY_DELAY_S)

    async def _settle_all(self) -> None:
        # First: reading all may fail for long, where much is retained.
        await self._settle_pending()
        if self._must_read_all:
            # Unset before: what there is no room for while all is read may not be among it.
            self._must_read_all = False
            try:
                for topic in await self._all_topics():
                    await self._settle(topic, is_found=True)
            except WorldError:
                self._must_read_all = True
                raise
        if not self._must_read_all and not self._pending:
            self._has_work.clear()

    async def _settle_pending(self) -> None:
        while self._pending:
            topic = next(iter(self._pending))
            # Taken out before: if it is seen again meanwhile, that is one more to settle.
            is_retained = self._pending.pop(topic)
            try:
                if is_retained:
                    await self._settle(topic, is_found=False)
                else:
                    await self._notes.forget(topic)
            except WorldError:
                self._pending.setdefault(topic, is_retained)
                raise

    async def _settle(self, topic: str, *, is_found: bool) -> None:
        at_ms = int(self._clock.now_s() * 1000)
        if is_retainable(topic) and await self._notes.note(topic, at_ms, is_found=is_found):
            return
        self.cleared_count += 1
        # A retained message without payload ends the retention (MQTT 5, 3.3.1.3), and is itself no request.
        await self._publish([Publish(topic, b"", Delivery(is_retained=True))])


def is_retainable(topic: str) -> bool:
    """Tell whether a message on a topic may be retained: no request, and below `telemetry` only what is a thing's."""
    return not is_reserved(topic) and (topic.partition("/")[0] != _TELEMETRY or bool(_owner(topic)))


def _owner(topic: str) -> str:
    """Return the thing whose device may publish on a topic below `telemetry`, '' if there is none.

    Whether it is a request does not matter: the broker retains what has an empty level, too.
    """
    levels = topic.split("/")
    return levels[1] if levels[0] == _TELEMETRY and len(levels) > 1 and is_thing_name(levels[1]) else ""
