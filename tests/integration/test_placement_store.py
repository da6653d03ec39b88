"""The placement in a real Redis: one version after the other, whoever changes it at the same time."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from actors.errors import PlacementError, StoreError
from actors.placement import Placement, PlacementStore
from actors.store import RedisServer

NODES = {"a0": "attic", "c0": "cellar"}


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
    moved = placements.change(lambda placement: placement.moved_to(0, "cellar"))
    assert moved.version == begun.version + 1
    again = placements.begin(4, {"a0": "attic"})
    assert (again.homes, again.pending(), again.version) == (("a0",) * 4, [], moved.version + 1)


def test_a_refused_change_changes_nothing(placements: PlacementStore) -> None:
    begun = placements.begin(4, NODES)
    with pytest.raises(PlacementError):
        placements.change(lambda placement: placement.moved_to(0, "shed"))
    assert placements.read() == begun


def test_changes_at_the_same_time_are_all_made(placements: PlacementStore) -> None:
    begun = placements.begin(64, NODES)

    def move(shard: int) -> Placement:
        return placements.change(
            lambda placement: placement.moved_to(shard, "attic" if shard % 2 else "cellar")
        )

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(move, range(64)))
    after = placements.read()
    assert after.pending() == list(range(64))
    assert after.version == begun.version + 64
