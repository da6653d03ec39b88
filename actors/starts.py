"""How often something has started: numbers that rise from each start to the next, whatever the machine's clock says."""

from __future__ import annotations

from typing import Final

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from actors.store_errors import store_error

# One write to disk.
_ANSWER_TIMEOUT_S: Final = 10.0


async def count_start(url: str, name: str, *, prefix: str = "twinfleet:") -> int:
    """Count one start more of `name` in the Redis at `url`, and return its number; StoreError if it does not answer.

    A number may be left out: what counts is that no later start has a lower one.
    """
    client: redis.asyncio.Redis = redis.asyncio.Redis.from_url(
        url,
        socket_timeout=_ANSWER_TIMEOUT_S,
        socket_connect_timeout=_ANSWER_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
    )
    try:
        return int(await client.incr(f"{prefix}starts:{name}"))
    except RedisError as error:
        raise store_error(error, f"the number of this start of {name}") from error
    finally:
        await client.aclose()
