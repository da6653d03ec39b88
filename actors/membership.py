"""Which nodes belong to the platform at present: each says so every second, in Redis, and what the head says to them.

A node is a machine, or a part of one, with Ray's processes and shard actors of its own, under one process that starts
and watches them. The head is the node that has the store, the broker, the bridge and the gateway as well.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Final

import msgspec
import redis

from actors.errors import NodeNameTaken, StoreError
from actors.store_client import client_at
from actors.store_errors import store_error

BEAT_EVERY_S: Final = 1.0
# What a node has said counts for so long. Whoever looks for absent ones has to miss them for the same time again:
# after an outage of Redis nobody has said anything.
_BEAT_COUNTS_S: Final = 3
LOST_AFTER_S: Final = 3.0
_ANSWER_TIMEOUT_S: Final = 1.0
_HEAD: Final = "twinfleet:head"
_SUBJECT: Final = "the nodes"


class HeadRecord(msgspec.Struct, frozen=True):
    """What the nodes have to know: where Ray's head is, and how shards are kept (see `HostSettings`)."""

    ray_address: str
    shard_count: int
    snapshot_location: str
    platform_id: str
    journal_bytes_max: int


class Membership:
    """The nodes, as Redis knows them."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    @classmethod
    def at(cls, url: str) -> Membership:
        """Return the nodes in the Redis at a URL; nothing is asked of it yet."""
        return cls(client_at(url, answer_timeout_s=_ANSWER_TIMEOUT_S))

    def tell(self, record: HeadRecord) -> None:
        """Tell the nodes what they have to know, from now on."""
        try:
            self._client.set(_HEAD, msgspec.json.encode(record))
        except redis.RedisError as error:
            raise store_error(error, _SUBJECT) from error

    def head(self) -> HeadRecord:
        """Return what the head has told last; StoreError if Redis does not answer, or knows of none."""
        try:
            found = self._client.get(_HEAD)
        except redis.RedisError as error:
            raise store_error(error, _SUBJECT) from error
        if not isinstance(found, bytes):
            raise StoreError("Redis knows of no head; start the platform", retryable=True)
        return msgspec.json.decode(found, type=HeadRecord)

    def beat(self, node: str, identity: str) -> None:
        """Say that a node is there; NodeNameTaken if another one says so under its name."""
        key = f"twinfleet:node:{node}"
        try:
            known = self._client.get(key)
            if known is not None and known != identity.encode():
                raise NodeNameTaken(node)
            self._client.set(key, identity, ex=_BEAT_COUNTS_S)
        except redis.RedisError as error:
            raise store_error(error, _SUBJECT) from error

    def leave(self, node: str) -> None:
        """Say that a node is not there any more."""
        try:
            self._client.delete(f"twinfleet:node:{node}")
        except redis.RedisError as error:
            raise store_error(error, _SUBJECT) from error

    def present(self, nodes: Collection[str]) -> set[str]:
        """Return those of the nodes that have said within the last seconds that they are there."""
        names = sorted(nodes)
        try:
            found = self._client.mget([f"twinfleet:node:{node}" for node in names]) if names else []
        except redis.RedisError as error:
            raise store_error(error, _SUBJECT) from error
        assert isinstance(found, list)
        return {node for node, identity in zip(names, found, strict=True) if identity is not None}

    def close(self) -> None:
        """Let go of the connections to Redis."""
        self._client.close()


class Absences:
    """How long nodes have been missed."""

    def __init__(self) -> None:
        self._since_s: dict[str, float] = {}

    def lost(self, nodes: Collection[str], present: Collection[str]) -> set[str]:
        """Return those of the nodes that have been missed for too long, now that some are present."""
        now_s = time.monotonic()
        absent = set(nodes) - set(present)
        self._since_s = {node: self._since_s.get(node, now_s) for node in absent}
        return {node for node, since_s in self._since_s.items() if now_s - since_s >= LOST_AFTER_S}

    def forget(self) -> None:
        """Begin anew: for a while it was not known who is present."""
        self._since_s = {}
