"""Clients of the platform's Redis that try nothing twice: only who asks knows what a second time would mean.

A command that breaks with its connection may have been carried out.
"""

from __future__ import annotations

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry


def client_at(url: str, *, answer_timeout_s: float) -> redis.Redis:
    """Return a client of the Redis at a URL, which waits so long for each answer; nothing is asked of it yet."""
    return redis.Redis.from_url(
        url,
        socket_timeout=answer_timeout_s,
        socket_connect_timeout=answer_timeout_s,
        retry=Retry(NoBackoff(), 0),
    )
