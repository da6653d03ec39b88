"""How full the platform's store is, so that somebody hears of it before it refuses writes."""

from __future__ import annotations

from typing import Any, Final

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from actors.metrics import ProcessStatus

# Snapshots keep the journals below half of the store's memory; what is beyond this share will fill the rest one day.
FILLED_SHARE_MAX: Final = 0.8
# It answers in well under a millisecond, and a probe should not wait for one that hangs.
_ANSWER_TIMEOUT_S: Final = 2.0


class StoreWatch:
    """Asks the Redis at a URL how much of its memory is in use."""

    def __init__(self, url: str) -> None:
        self._client: redis.asyncio.Redis = redis.asyncio.Redis.from_url(
            url,
            socket_timeout=_ANSWER_TIMEOUT_S,
            socket_connect_timeout=_ANSWER_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        )

    async def status(self) -> ProcessStatus:
        """Return the store's state: `filling` from FILLED_SHARE_MAX on, `down` if it does not answer."""
        try:
            memory: Any = await self._client.info("memory")
            server: Any = await self._client.info("server")
        except RedisError as error:
            return ProcessStatus("store", 0, state="down", reason=f"it does not answer: {error}")
        used, limit = int(memory["used_memory"]), int(memory["maxmemory"])
        is_filling = bool(limit) and used > FILLED_SHARE_MAX * limit
        reason = (
            f"{used:,} of its {limit:,} bytes are in use, and it refuses writes when they are full; start with a "
            "larger store_memory_max_bytes"
        )
        return ProcessStatus(
            "store",
            int(server["process_id"]),
            state="filling" if is_filling else "ready",
            reason=reason if is_filling else "",
            levels={"memory_used_bytes": used, "memory_max_bytes": limit},
        )

    async def close(self) -> None:
        """Let go of the connections to Redis."""
        await self._client.aclose()
