"""Which shard actor serves each shard: what is true, what is wanted, and how the shards are spread over the actors.

It stands in Redis, beside the journals, and not in Ray: a Ray that has lost its memory finds the shards again. Here it
is only read and replaced; who carries it out is `shard_mover`. Decisions are pure functions of a `Placement`.

Several processes change it, and the audit log has one writer, the gateway. So each change leaves, in the same step, a
note of who made it and what came of it, which the gateway takes into the audit log.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
import redis

from actors.errors import PlacementError, StoreError
from actors.store_client import client_at
from actors.store_errors import store_error

# It is read when a shard is not where it was: whoever asks has a few seconds for all of it.
_ANSWER_TIMEOUT_S: Final = 1.0
# The node of the machine that the platform is started on.
HEAD_NODE: Final = "head"
_KEY: Final = "twinfleet:placement"
# Notes that the gateway has not taken yet; those of some thousand moves, should it be away for so long.
NOTES_KEY: Final = f"{_KEY}:notes"
_NOTES_MAX: Final = 10_000
_SUBJECT: Final = "the placement of the shards"


class Change(NamedTuple):
    """Who changes the placement, and what for: as in the audit log."""

    action: str
    subject: str
    # Nobody has asked for it.
    by: str = "platform"


class Placement(msgspec.Struct, frozen=True):
    """The place of every shard; `version` rises with each change.

    `nodes` names the node of each shard actor, in the order in which they joined. `homes` and `wanted` have an actor
    for each shard: the one that serves it, and the one that is to; they differ while a shard has to move. Nodes in
    `drained` are to have no shards.
    """

    version: int
    nodes: dict[str, str]
    homes: tuple[str, ...]
    wanted: tuple[str, ...]
    drained: tuple[str, ...] = ()

    @classmethod
    def first(cls, shard_count: int, nodes: Mapping[str, str]) -> Placement:
        """Return the placement of shards that nobody has served yet."""
        actors = list(nodes)
        homes = tuple(actors[shard % len(actors)] for shard in range(shard_count))
        return cls(0, dict(nodes), homes, homes)

    def shards_of(self, actor: str) -> tuple[int, ...]:
        """Return the shards that an actor serves."""
        return tuple(shard for shard, home in enumerate(self.homes) if home == actor)

    def pending(self) -> list[int]:
        """Return the shards that have to move."""
        return [shard for shard, home in enumerate(self.homes) if home != self.wanted[shard]]

    def has_moved(self, shard: int, actor: str) -> Placement:
        """Return the placement after a shard has been opened in an actor."""
        return msgspec.structs.replace(self, homes=_with(self.homes, shard, actor))

    def moved_to(self, shard: int, target: str) -> Placement:
        """Return the placement in which a shard is wanted in an actor, or on a node: where it has the fewest shards.

        PlacementError if there is no such shard, actor or node.
        """
        if not 0 <= shard < len(self.homes):
            raise PlacementError(f"shard {shard}", f"shards are numbered 0 to {len(self.homes) - 1}")
        counts = Counter(self.wanted)
        candidates = [actor for actor, node in self.nodes.items() if target in (actor, node)]
        if not candidates:
            nodes = ", ".join(sorted(set(self.nodes.values())))
            raise PlacementError(target, f"there is no such node; nodes: {nodes}")
        if self.wanted[shard] in candidates:
            return self
        chosen = min(candidates, key=lambda actor: counts[actor])
        return msgspec.structs.replace(self, wanted=_with(self.wanted, shard, chosen))

    def without(self, node: str) -> Placement:
        """Return the placement in which a node is to have no shards; PlacementError if it is the last one."""
        self._require_node(node)
        return self.spread(self.nodes, drained={*self.drained, node})

    def again_with(self, node: str) -> Placement:
        """Return the placement in which a node that was drained has its share again."""
        self._require_node(node)
        return self.spread(self.nodes, drained={*self.drained} - {node})

    def without_lost(self, lost: Collection[str]) -> Placement:
        """Return the placement in which lost nodes are none any more; where only drained ones are left, they serve."""
        nodes = {actor: node for actor, node in self.nodes.items() if node not in lost}
        return self.spread(nodes, drained=() if set(nodes.values()) <= set(self.drained) else None)

    def _require_node(self, node: str) -> None:
        if node not in self.nodes.values():
            nodes = ", ".join(sorted(set(self.nodes.values())))
            raise PlacementError(node, f"there is no such node; nodes: {nodes}")

    def spread(self, nodes: Mapping[str, str], *, drained: Iterable[str] | None = None) -> Placement:
        """Return the placement with these actors and no others, shards spread evenly; as few as can be have to move.

        PlacementError if none of the actors may have shards.
        """
        kept_out = set(self.drained if drained is None else drained) & set(nodes.values())
        actors = [actor for actor, node in nodes.items() if node not in kept_out]
        if not actors:
            raise PlacementError(", ".join(sorted(kept_out)), "no other node is left for its shards")
        return msgspec.structs.replace(
            self,
            nodes=dict(nodes),
            wanted=_evenly(self.wanted, actors),
            drained=tuple(sorted(kept_out)),
        )


def difference(before: Placement | None, after: Placement) -> str:
    """Return for people what a change has brought: which shards are served, or wanted, by another actor."""
    parts = []
    for verb, former, now in (
        ("serves", before.homes if before else (), after.homes),
        ("is to serve", before.wanted if before else (), after.wanted),
    ):
        shards_of: dict[str, list[int]] = {}
        for shard, actor in enumerate(now):
            if not former or former[shard] != actor:
                shards_of.setdefault(actor, []).append(shard)
        parts += [f"{actor} {verb} {', '.join(map(str, shards))}" for actor, shards in shards_of.items()]
    if before is not None and before.nodes != after.nodes:
        parts.append(f"nodes: {', '.join(dict.fromkeys(after.nodes.values()))}")
    if before is not None and before.drained != after.drained:
        parts.append(f"drained: {', '.join(after.drained) or 'none'}")
    return "; ".join(parts)


def _with(actors: tuple[str, ...], shard: int, actor: str) -> tuple[str, ...]:
    return (*actors[:shard], actor, *actors[shard + 1 :])


def _evenly(wanted: Sequence[str], actors: Sequence[str]) -> tuple[str, ...]:
    """Return an actor for each shard: no actor has two more than another, and as few as can be have another one."""
    counts = Counter(wanted)
    each, left_over = divmod(len(wanted), len(actors))
    # One more for those that have the most; of equals, for those that joined first.
    by_count = sorted(actors, key=lambda actor: -counts[actor])
    room = {actor: each + (position < left_over) for position, actor in enumerate(by_count)}
    chosen: list[str | None] = []
    for actor in wanted:
        has_room = room.get(actor, 0) > 0
        chosen.append(actor if has_room else None)
        if has_room:
            room[actor] -= 1
    vacancies = (actor for actor in actors for _ in range(room[actor]))
    return tuple(next(vacancies) if actor is None else actor for actor in chosen)


class PlacementStore:
    """The placement in Redis. For any number of readers and few writers, in any threads."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    @classmethod
    def at(cls, url: str) -> PlacementStore:
        """Return the placement in the Redis at a URL; nothing is asked of it yet."""
        return cls(client_at(url, answer_timeout_s=_ANSWER_TIMEOUT_S))

    def begin(self, shard_count: int, nodes: Mapping[str, str]) -> Placement:
        """Return the placement of a platform that starts with these actors, when nobody serves any shard yet.

        What another number of actors, or other nodes, have left over is spread over them at once.
        """

        def settled(placement: Placement | None) -> Placement:
            if placement is None:
                return Placement.first(shard_count, nodes)
            spread = placement.spread(nodes)
            return msgspec.structs.replace(spread, homes=spread.wanted)

        return self._replace(settled, Change("placement.begin", ""))

    def find(self) -> Placement | None:
        """Return the placement, None if none was ever begun; StoreError if Redis does not answer."""
        try:
            return _decode(self._client.get(_KEY))
        except redis.RedisError as error:
            raise store_error(error, _SUBJECT) from error

    def read(self) -> Placement:
        """Return the placement; StoreError if Redis does not answer, or has none."""
        return _require(self.find())

    def change(self, change: Callable[[Placement], Placement], told: Change) -> Placement:
        """Return the placement after a change, which may be called again when another writer comes between.

        Where it changes anything, `told` is noted for the audit log, with what came of it.
        """
        return self._replace(lambda placement: change(_require(placement)), told)

    def _replace(self, change: Callable[[Placement | None], Placement], told: Change) -> Placement:
        try:
            with self._client.pipeline() as pipeline:
                while True:
                    pipeline.watch(_KEY)  # type: ignore[no-untyped-call]  # untyped in redis-py
                    before = _decode(pipeline.get(_KEY))
                    after = change(before)
                    if after == before:
                        return after
                    after = msgspec.structs.replace(after, version=after.version + 1)
                    pipeline.multi()
                    pipeline.set(_KEY, msgspec.json.encode(after))
                    note: dict[Any, Any] = {**told._asdict(), "result": difference(before, after)}
                    pipeline.xadd(NOTES_KEY, note, maxlen=_NOTES_MAX, approximate=True)
                    try:
                        pipeline.execute()
                    except redis.WatchError:
                        continue
                    return after
        except redis.RedisError as error:
            raise store_error(error, _SUBJECT) from error

    def close(self) -> None:
        """Let go of the connections to Redis."""
        self._client.close()


def _decode(found: object) -> Placement | None:
    return msgspec.json.decode(found, type=Placement) if isinstance(found, bytes) else None


def _require(placement: Placement | None) -> Placement:
    if placement is None:
        raise StoreError("Redis does not say where shards are served; start the platform", retryable=True)
    return placement
