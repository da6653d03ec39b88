"""Which actor is to serve which shard: even, with as few moves as can be, whatever joins, leaves or is drained."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.errors import PlacementError
from actors.placement import Placement

NODES = {"a0": "attic", "a1": "attic", "c0": "cellar"}
FIRST = Placement.first(12, NODES)
counts = st.dictionaries(st.sampled_from("abcdefgh"), st.just("node"), min_size=1)


def test_shards_begin_evenly_in_the_order_of_the_actors() -> None:
    assert FIRST.homes == ("a0", "a1", "c0") * 4
    assert FIRST.wanted == FIRST.homes
    assert FIRST.shards_of("a1") == (1, 4, 7, 10)
    assert FIRST.pending() == []


@given(before=st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=40), nodes=counts)
def test_a_spread_is_even_and_moves_as_few_shards_as_an_even_one_must(
    before: list[str], nodes: dict[str, str]
) -> None:
    placement = Placement(1, dict.fromkeys("abcdefgh", "node"), tuple(before), tuple(before))
    after = placement.spread(nodes)
    sizes = Counter(after.wanted)
    assert set(sizes) <= set(nodes)
    assert max(sizes[actor] for actor in nodes) - min(sizes[actor] for actor in nodes) <= 1
    # The best that any even distribution can do: each actor keeps what it has, up to its part.
    held = sorted((Counter(before)[actor] for actor in nodes), reverse=True)
    each, left_over = divmod(len(before), len(nodes))
    parts = [each + (position < left_over) for position in range(len(nodes))]
    kept = sum(map(min, held, parts))
    assert sum(map(str.__ne__, before, after.wanted)) == len(before) - kept
    assert after.spread(nodes).wanted == after.wanted


def test_a_node_that_joins_gets_its_share_and_one_that_is_lost_leaves_it_to_the_others() -> None:
    joined = FIRST.spread({**NODES, "s0": "shed"})
    assert Counter(joined.wanted) == {"a0": 3, "a1": 3, "c0": 3, "s0": 3}
    assert joined.homes == FIRST.homes
    lost = joined.without_lost({"attic", "shed"})
    assert Counter(lost.wanted) == {"c0": 12}
    assert lost.nodes == {"c0": "cellar"}
    # Until they are opened there, what is true is what was.
    assert lost.homes == joined.homes


def test_a_drained_node_has_no_shards_until_it_is_filled_again() -> None:
    drained = FIRST.without("attic")
    assert Counter(drained.wanted) == {"c0": 12}
    # Not even when another one joins.
    joined = drained.spread({**NODES, "s0": "shed"})
    assert Counter(joined.wanted) == {"c0": 6, "s0": 6}
    assert Counter(joined.again_with("attic").wanted) == {"a0": 3, "a1": 3, "c0": 3, "s0": 3}
    # Better there than nowhere.
    assert Counter(drained.without_lost({"cellar"}).wanted) == {"a0": 6, "a1": 6}
    with pytest.raises(PlacementError, match="no other node"):
        drained.without("cellar")
    with pytest.raises(PlacementError, match="no such node; nodes: attic, cellar"):
        drained.without("shed")


def test_a_shard_goes_to_the_emptiest_actor_of_a_node_and_stays_where_it_is_on_it() -> None:
    moved = FIRST.moved_to(2, "attic")
    assert moved.wanted[2] == "a0"
    assert moved.pending() == [2]
    assert moved.moved_to(5, "attic").wanted[5] == "a1"
    assert moved.moved_to(2, "a1").wanted[2] == "a1"
    assert FIRST.moved_to(0, "attic") == FIRST
    settled = moved.has_moved(2, "a0")
    assert (settled.pending(), settled.homes[2]) == ([], "a0")


@pytest.mark.parametrize("shard", [-1, 12])
def test_a_shard_that_is_none_does_not_move(shard: int) -> None:
    with pytest.raises(PlacementError, match="numbered 0 to 11"):
        FIRST.moved_to(shard, "attic")
