"""Asking a shard as a device or an operator does, and reading its answers as JSON."""

from __future__ import annotations

import json
from typing import Any

from twins.messages import Batch, Operation, Outcome, Request
from twins.shard import Shard
from twins.topics import shadow_prefix

NOW_S = 1_700_000_000


def send(
    shard: Shard,
    operation: Operation,
    payload: bytes = b"",
    *,
    thing: str = "lamp",
    now_s: float = NOW_S,
    name: str = "",
) -> Outcome:
    """Return what one message of a device brings about."""
    return shard.apply(Batch("", 0, [Request(operation, thing, payload, name)]), now_s)


def answers(
    shard: Shard,
    operation: Operation,
    body: Any = b"",
    *,
    thing: str = "lamp",
    now_s: float = NOW_S,
    name: str = "",
) -> dict[str, Any]:
    """Return the bodies of all messages that one request of a device brings about, by the end of their topic."""
    payload = body if isinstance(body, bytes) else json.dumps(body).encode()
    outcome = send(shard, operation, payload, thing=thing, now_s=now_s, name=name)
    prefix = shadow_prefix(thing, name) + "/"
    assert all(message.topic.startswith(prefix) for message in outcome.publishes)
    return {message.topic.removeprefix(prefix): json.loads(message.payload) for message in outcome.publishes}


def update(
    shard: Shard, body: Any, *, thing: str = "lamp", now_s: float = NOW_S, name: str = ""
) -> dict[str, Any]:
    """Return the bodies of all messages that one update brings about, by the end of their topic."""
    return answers(shard, Operation.SHADOW_UPDATE, body, thing=thing, now_s=now_s, name=name)


def get(shard: Shard, *, thing: str = "lamp", now_s: float = NOW_S, name: str = "") -> dict[str, Any] | None:
    """Return the shadow document, or None where there is no shadow."""
    document: dict[str, Any] | None = answers(
        shard, Operation.SHADOW_GET, thing=thing, now_s=now_s, name=name
    ).get("get/accepted")
    return document


def delete(
    shard: Shard, body: Any = b"", *, thing: str = "lamp", now_s: float = NOW_S, name: str = ""
) -> dict[str, Any]:
    """Return the bodies of all messages that one deletion brings about, by the end of their topic."""
    return answers(shard, Operation.SHADOW_DELETE, body, thing=thing, now_s=now_s, name=name)
