"""What a refusal or a silence of Redis means: the one place that tells those that pass from those that last.

Not here: what an older writer's refusal means to the journal and to the registry, which both fence by it, and whether
anybody tries again.
"""

from __future__ import annotations

import re
from typing import Final

from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,  # noqa: A004 - the client's name for it
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    TimeoutError,  # noqa: A004 - the client's name for it
    TryAgainError,
)

from actors.errors import StoreError

# Refusals that pass without a change of ours: memory is full, the disk is, a script or the start takes long, this is
# a replica for now, a cluster is changing (the codes that Redis documents).
_PASSING: Final = frozenset({"MISCONF", "BUSY", "NOREPLICAS"})
_PASSING_KINDS: Final = (ReadOnlyError, BusyLoadingError, ClusterDownError, TryAgainError)
_FULL: Final = "OOM"
_STALE_ENTRY: Final = "equal or smaller than the target stream top item"
# A refusal begins with its code, where the client has no class of its own for it, which says as much; inside a script
# Redis 6.2 says `Error running script ...: -OOM command ...`, and no class is found for that.
_CODE: Final = re.compile(r"(?:ERR )?Error running script.*?: ?-([A-Z]+) |([A-Z]+) ")


def is_fenced(error: RedisError) -> bool:
    """Tell whether Redis refuses an entry because its id is not above the last: a later writer opened the stream."""
    return _STALE_ENTRY in str(error)


def store_error(error: RedisError, subject: str) -> StoreError:
    """Return what `error` means for `subject` ("the journal of shard 3"): whether it passes, whether Redis is full."""
    found = _CODE.match(str(error))
    code = (found[1] or found[2]) if found else ""
    if isinstance(error, AuthenticationError | NoPermissionError):
        return StoreError(f"Redis refuses the password for {subject} ({error}); restart the platform")
    if isinstance(error, OutOfMemoryError) or code == _FULL:
        problem = f"Redis has no memory left for {subject}: {error}; give it more, or delete things or fleets"
        return StoreError(problem, retryable=True, is_full=True)
    if isinstance(error, _PASSING_KINDS) or code in _PASSING:
        return StoreError(
            f"Redis refuses {subject} for a while: {error}; see its log, try again", retryable=True
        )
    if isinstance(error, ConnectionError | TimeoutError):
        return StoreError(f"Redis does not answer for {subject}: {error}; try again", retryable=True)
    return StoreError(f"Redis refuses {subject}: {error}; see its log")
