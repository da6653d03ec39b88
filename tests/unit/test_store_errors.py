"""What each refusal of Redis means, in the words that Redis and its client use."""

from __future__ import annotations

import pytest
import redis
from redis.exceptions import BusyLoadingError, OutOfMemoryError, ReadOnlyError, RedisError, ResponseError

from actors.store_errors import store_error

FULL_62 = (
    "Error running script (call to f_6b): @user_script:4: @user_script: 4: -OOM command not allowed when "
    "used memory > 'maxmemory'."
)


@pytest.mark.parametrize(
    ("error", "is_retryable", "is_full"),
    [
        (
            OutOfMemoryError("command not allowed when used memory > 'maxmemory'.", status_code="OOM"),
            True,
            True,
        ),
        (ResponseError("OOM command not allowed when used memory > 'maxmemory'."), True, True),
        (ResponseError(FULL_62, status_code="ERR"), True, True),
        (ResponseError(f"ERR {FULL_62}"), True, True),
        (ResponseError("MISCONF Errors writing to the AOF file: No space left on device"), True, False),
        (ResponseError("BUSY Redis is busy running a script."), True, False),
        (ReadOnlyError("You can't write against a read only replica.", status_code="READONLY"), True, False),
        (BusyLoadingError("Redis is loading the dataset in memory", status_code="LOADING"), True, False),
        (redis.ConnectionError("Connection refused"), True, False),
        (redis.ConnectionError("max number of clients reached", status_code="ERR"), True, False),
        (redis.TimeoutError("Timeout reading from socket"), True, False),
        (ResponseError("BUSYGROUP Consumer Group name already exists"), False, False),
        (ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"), False, False),
        (ResponseError("unknown command 'OOM '", status_code="ERR"), False, False),
        (redis.AuthenticationError("invalid username-password pair", status_code="WRONGPASS"), False, False),
        (redis.AuthenticationError("Authentication required.", status_code="NOAUTH"), False, False),
    ],
)
def test_a_refusal_of_the_store_means(error: RedisError, is_retryable: bool, is_full: bool) -> None:
    meant = store_error(error, "the journal of shard 3")
    assert (meant.retryable, meant.is_full) == (is_retryable, is_full)
    assert "the journal of shard 3" in str(meant)
