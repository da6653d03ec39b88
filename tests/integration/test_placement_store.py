"""The placement in a real Redis: one version after the other, whoever changes it at the same time."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from actors.errors import PlacementError, StoreError
from actors.placement import Change, Placement, PlacementStore
from actors.registry.registry import Registry
from actors.store import RedisServer
from twins.clock import VirtualClock

NODES = {"a0": "attic", "c0": "cellar"}
MOVE = Change("placement.move", "shard 0 to cellar", by="anna")


@pytest.fixture
def placements(store: RedisServer) -> Iterator[PlacementStore]:
    made = PlacementStore.at(store.url)
    yield made
    made.close()


def test_a_placement_that_was_begun_is_found_again(placements: PlacementStore, store: RedisServer) -> None:
    with pytest.raises(StoreError, match="start the platform") as missing:
        placements.read()
    assert missing.value.retryable
    begun = placements.begin(4, NODES)
    assert begun == PlacementStore.at(store.url).read() == placements.begin(4, NODES)
    assert begun.homes == ("a0", "c0", "a0", "c0")


def test_a_platform_that_starts_with_other_actors_spreads_the_shards_at_once(
    placements: PlacementStore,
) -> None:
    begun = placements.begin(4, NODES)
    moved = placements.change(lambda placement: placement.moved_to(0, "cellar"), MOVE)
    assert moved.version == begun.version + 1
    again = placements.begin(4, {"a0": "attic"})
    assert (again.homes, again.pending(), again.version) == (("a0",) * 4, [], moved.version + 1)


def test_a_refused_change_changes_nothing(placements: PlacementStore) -> None:
    begun = placements.begin(4, NODES)
    with pytest.raises(PlacementError):
        placements.change(lambda placement: placement.moved_to(0, "shed"), MOVE)
    assert placements.read() == begun


def test_changes_at_the_same_time_are_all_made(placements: PlacementStore) -> None:
    begun = placements.begin(64, NODES)

    def move(shard: int) -> Placement:
        return placements.change(
            lambda placement: placement.moved_to(shard, "attic" if shard % 2 else "cellar"), MOVE
        )

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(move, range(64)))
    after = placements.read()
    assert after.pending() == list(range(64))
    assert after.version == begun.version + 64


async def test_every_change_stands_once_in_the_audit_log_with_who_made_it_and_what_came_of_it(
    placements: PlacementStore, store: RedisServer
) -> None:
    placements.begin(4, NODES)
    placements.change(lambda placement: placement.moved_to(0, "cellar"), MOVE)
    # Nothing changes, so there is nothing to tell.
    placements.change(lambda placement: placement.moved_to(0, "cellar"), MOVE)
    with pytest.raises(PlacementError):
        placements.change(lambda placement: placement.moved_to(0, "shed"), MOVE)
    placements.change(lambda placement: placement.has_moved(0, "c0"), Change("placement.moved", "shard 0"))
    drain = Change("placement.drain", "cellar", by="bert")
    placements.change(lambda placement: placement.without("cellar"), drain)
    lost = Change("placement.lost", "cellar")
    placements.change(lambda placement: placement.without_lost({"cellar"}), lost)
    registry = await Registry.open(store.url, VirtualClock(1_760_000_000.0))
    try:
        assert await registry.placement_notes.take() == 5
        assert await registry.placement_notes.take() == 0
    finally:
        await registry.close()
    with redis.Redis.from_url(store.url, decode_responses=True) as client:
        entries: Any = client.xrange("twinfleet:registry")
    told = [
        (fields["by"], fields["action"], fields["subject"], fields["result"])
        for _, fields in entries
        if fields["action"].startswith("placement.")
    ]
    assert told == [
        (
            "platform",
            "placement.begin",
            "",
            "a0 serves 0, 2; c0 serves 1, 3; a0 is to serve 0, 2; c0 is to serve 1, 3",
        ),
        ("anna", "placement.move", "shard 0 to cellar", "c0 is to serve 0"),
        ("platform", "placement.moved", "shard 0", "c0 serves 0"),
        ("bert", "placement.drain", "cellar", "a0 is to serve 0, 1, 3; drained: cellar"),
        ("platform", "placement.lost", "cellar", "nodes: attic; drained: none"),
    ]
    # When they were made, not when they were taken.
    assert all(float(fields["at"]) > 1_760_000_000.0 for _, fields in entries if "result" in fields)
