"""Ticks by turns: a turn ends in time, what is left is done in the next, and the journal says where requests stood."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from actors.journal import Applied, GroupCreated, Record, Ticked
from actors.shard_keeper import apply_again
from actors.tick_turns import TURN_S, TickTurns, Work
from twins.errors import ModelError
from twins.faults import Fault
from twins.messages import Batch, GroupOrder, Operation, Request, TickOrder, TickSummary
from twins.model import Group
from twins.shard import Shard
from twins.shipped import model_named
from twins.snapshot import dump_shard

START_S = 1_767_225_600
SHARD_COUNT = 3
# Three or four blocks of 256 for each shard.
GROUP = Group("homes", model_named("thermostat"), "home-{i}", 2_500, 3, START_S, report_every_ticks=2)
ORDERS = [TickOrder("homes", 0, 12, {"set_point": 22.5}), TickOrder("homes", 12, 9)]


class Shelf:
    """Keeps shards and their journals as a `ShardKeeper` does, in memory."""

    def __init__(self) -> None:
        self.shards = [Shard(number, SHARD_COUNT) for number in range(SHARD_COUNT)]
        self.records: list[tuple[int, Record]] = []
        self.keep([(number, GroupCreated(GroupOrder.of(GROUP))) for number in range(SHARD_COUNT)])
        for shard in self.shards:
            shard.create_group(GROUP)

    def shard(self, number: int) -> Shard:
        return self.shards[number]

    def keep(self, records: Sequence[tuple[int, Record]]) -> None:
        self.records.extend(records)

    @contextlib.contextmanager
    def timed(self, number: int) -> Iterator[Shard]:
        yield self.shards[number]

    def ask(self, number: int, request: Request) -> None:
        batch = Batch("", 0, [request])
        self.keep([(number, Applied(START_S, batch))])
        self.shards[number].apply(batch, START_S)

    def windows(self) -> int:
        return sum(isinstance(record, Ticked) for _, record in self.records)

    def again(self) -> list[Shard]:
        """Return what shards become that apply the journal."""
        shards = [Shard(number, SHARD_COUNT) for number in range(SHARD_COUNT)]
        for number, record in self.records:
            apply_again(shards[number], record)
        return shards


class Stopwatch:
    """A clock that moves on by as much each time that it is read."""

    def __init__(self, step_s: float) -> None:
        self.now_s = 0.0
        self._step_s = step_s

    def __call__(self) -> float:
        self.now_s += self._step_s
        return self.now_s


def all_turns(shelf: Any, turns: TickTurns, between: Any = None) -> tuple[list[TickSummary], int]:
    """Return what orders bring about, turn by turn, and how many turns that took."""
    left: list[Work] = [(number, 0) for number in range(SHARD_COUNT)]
    totals = [TickSummary()] * len(ORDERS)
    count = 0
    while left:
        turn = turns.turn(shelf, left, ORDERS)
        totals = [total + part for total, part in zip(totals, turn.summaries, strict=True)]
        left, count = turn.left, count + 1
        assert count < 500
        if between is not None:
            between(count)
    return totals, count


def whole() -> tuple[list[TickSummary], list[bytes]]:
    shelf = Shelf()
    totals = [sum((shard.tick(order) for shard in shelf.shards), TickSummary()) for order in ORDERS]
    return totals, [dump_shard(shard) for shard in shelf.shards]


@pytest.mark.parametrize("step_s", [1e-7, 1e-4, TURN_S / 3, 3 * TURN_S])
def test_any_number_of_turns_bring_about_what_one_order_does(step_s: float) -> None:
    shelf = Shelf()
    totals, count = all_turns(shelf, TickTurns(Stopwatch(step_s)))
    expected, dumps = whole()
    assert totals == expected
    assert [dump_shard(shard) for shard in shelf.shards] == dumps
    assert [dump_shard(shard) for shard in shelf.again()] == dumps
    if step_s == 1e-7:
        # Nothing has taken any time.
        assert count == 1
    else:
        assert count > 1


def test_a_turn_that_takes_too_long_ends_in_the_middle_of_a_tick() -> None:
    shelf, clock = Shelf(), Stopwatch(TURN_S)
    turns = TickTurns(clock)
    left = turns.turn(shelf, [(0, 0)], ORDERS[:1]).left  # type: ignore[arg-type]  # all that it needs of a keeper
    assert left == [(0, 0)]
    shard = shelf.shard(0)
    assert shard.ticking.is_at("homes")
    before = shelf.windows()
    left = turns.turn(shelf, left, ORDERS[:1]).left  # type: ignore[arg-type]
    # It goes on with what is in the journal already.
    assert shelf.windows() == before
    assert turns.longest_s > TURN_S


def test_faults_reach_the_shard_by_turns_too_and_stand_in_its_journal() -> None:
    shelf = Shelf()
    order = TickOrder("homes", 0, 12, faults=[Fault("outage", "disconnect", 3, 9)])
    left: list[Work] = [(0, 0)]
    turns, total = TickTurns(Stopwatch(1e-4)), TickSummary()
    while left:
        turn = turns.turn(shelf, left, [order])  # type: ignore[arg-type]  # all that it needs of a keeper
        total, left = total + turn.summaries[0], turn.left
    assert total == Shelf().shard(0).tick(order)
    assert (total.connected_count, total.reports_offline > 0) == (0, True)
    assert dump_shard(shelf.again()[0]) == dump_shard(shelf.shard(0))


@pytest.mark.parametrize("step_s", [1e-4, TURN_S])
def test_requests_between_turns_stand_in_the_journal_where_they_were_carried_out(step_s: float) -> None:
    shelf = Shelf()
    names = [f"home-{i}" for i in range(0, 2_500, 97)]

    def between(count: int) -> None:
        for number, shard in enumerate(shelf.shards):
            name = names[count % len(names)]
            if shard.fleets["homes"].table.row(int(name[5:])) is None:
                continue
            body = b'{"state":{"desired":{"set_point":%d},"reported":{"x":%d}}}' % (18 + count % 7, count)
            shelf.ask(number, Request(Operation.SHADOW_UPDATE, name, body))

    totals, _ = all_turns(shelf, TickTurns(Stopwatch(step_s)), between)
    assert [total.device_ticks for total in totals] == [2_500 * 12, 2_500 * 9]
    assert [dump_shard(shard) for shard in shelf.again()] == [dump_shard(shard) for shard in shelf.shards]


def test_ticks_that_were_run_are_only_counted_how_they_ended() -> None:
    shelf = Shelf()
    totals, _ = all_turns(shelf, TickTurns(Stopwatch(1e-7)))
    entries = len(shelf.records)
    again, _ = all_turns(shelf, TickTurns(Stopwatch(1e-7)))
    assert len(shelf.records) == entries
    assert again[1] == TickSummary(
        connected_count=totals[1].connected_count, delta_count=totals[1].delta_count
    )


@pytest.mark.parametrize(
    "order", [TickOrder("offices", 0, 5), TickOrder("homes", 0, 5, {"temperature": 20.0})]
)
def test_an_order_that_cannot_be_carried_out_leaves_no_trace(order: TickOrder) -> None:
    shelf: Any = Shelf()
    entries = len(shelf.records)
    with pytest.raises(ModelError):
        TickTurns(Stopwatch(1e-7)).turn(shelf, [(0, 0), (1, 0)], [order])
    assert len(shelf.records) == entries
    assert not any(shard.ticking.is_at("homes") for shard in shelf.shards)


def test_what_had_come_of_a_shards_ticks_is_told_when_it_has_moved_away() -> None:
    shelf, turns = Shelf(), TickTurns(Stopwatch(TURN_S))
    any_shelf: Any = shelf
    orders = [TickOrder("homes", 0, 4)]
    turn = turns.turn(any_shelf, [(0, 0)], orders)
    assert turn.left == [(0, 0)]
    assert shelf.shard(0).ticking.is_at("homes")
    turns.leave(shelf.shard(0))
    late = turns.told_late(turn.left, orders)
    assert late is not None
    # Elsewhere the shard is made again from its journal, and goes on.
    shelf.shards = shelf.again()
    left, total = late.left, turn.summaries[0] + late.summaries[0]
    while left:
        turn = TickTurns(Stopwatch(1e-7)).turn(any_shelf, left, orders)
        left, total = turn.left, total + turn.summaries[0]
    assert turns.told_late([(0, 0)], orders) is None
    other = Shelf()
    assert total == other.shard(0).tick(orders[0])
