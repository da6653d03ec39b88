"""Ticks by turns: how the process that serves shards works off orders of ticks without making anybody wait.

A turn is about ten milliseconds of work. Then the call is answered, whatever waits in the process's queue is served,
and the next call goes on where this one has left off. An order is cut into windows of whole ticks, as many as fit a
turn; the windows of several shards are journalled together. A window that takes longer than a turn is left off in the
middle: questions about its shard are answered meanwhile, and whatever changes the shard has the window finished first.
So a request stands in the journal before or after whole windows, and is replayed in that place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Final

import msgspec

from actors.journal import Ticked
from actors.shard_keeper import ShardKeeper
from twins.messages import TickOrder, TickSummary
from twins.shard import Shard

# Half of the 20 ms that nobody is to wait for longer than: the estimate of a window may be wrong by a factor of two,
# and what is served in between needs time as well.
TURN_S: Final = 0.010
# What a report costs, until it has been measured: rather too much, so that the first turns are short.
_REPORT_S: Final = 60e-9
# What a tick costs a shard, however few report in it.
_TICK_S: Final = 100e-6
# Of a new measurement in what is known: one that was disturbed shall not count for much.
_NEWS: Final = 0.3

# A shard, and the position of the first of the orders that it has not carried out.
Work = tuple[int, int]


class Turn(msgspec.Struct, frozen=True, array_like=True):
    """What a turn has brought about: a summary for each order, to be added up over all turns, and the work left."""

    summaries: list[TickSummary]
    left: list[Work]


@dataclass(slots=True)
class _Window:
    """Some ticks of one order on one shard that are under way."""

    shard: int
    # Of the order among those that the caller has given.
    position: int
    order: TickOrder
    # Whether it is begun in this turn.
    is_new: bool = True


class TickTurns:
    """Works off orders of ticks, a turn at a time; what ticks cost is measured as they are run."""

    def __init__(self, clock_s: Callable[[], float] = perf_counter) -> None:
        self._clock_s = clock_s
        self._report_s: dict[str, float] = {}
        self.longest_s = 0.0
        # By shard that has moved away in mid-order and group: what had come of it, and its next tick.
        self._left_behind: dict[int, dict[str, tuple[TickSummary, int]]] = {}

    def leave(self, shard: Shard) -> None:
        """Keep what has come of a shard's ticks and nobody has been told: it moves away, where that is not known."""
        left = shard.ticking.take_all()
        if left:
            self._left_behind[shard.number] = {
                group: (summary, shard.fleets[group].next_tick)
                for group, summary in left.items()
                if group in shard.fleets
            }

    def told_late(self, work: Sequence[Work], orders: Sequence[TickOrder]) -> Turn | None:
        """Return, as a turn, what shards have left behind whose work this is; None if there is nothing."""
        if not any(number in self._left_behind for number, _ in work):
            return None
        summaries = [TickSummary()] * len(orders)
        left: list[Work] = []
        for number, position in work:
            order = orders[position]
            part, next_tick = self._left_behind.pop(number, {}).get(order.group, (TickSummary(), 0))
            is_over = next_tick >= order.first_tick + order.tick_count
            summaries[position] += part if is_over else _without_end(part)
            left.append((number, position + is_over))
        return Turn(summaries, [each for each in left if each[1] < len(orders)])

    def turn(self, keeper: ShardKeeper, work: Sequence[Work], orders: Sequence[TickOrder]) -> Turn:
        """Do a turn of the work that is left of some orders.

        ModelError if an order can't be carried out, ShardNotHere if a shard isn't served here: nothing was done then.
        """
        start_s = self._clock_s()
        for number, position in work:
            for order in orders[position:]:
                keeper.shard(number).has_work(order)
        summaries = [TickSummary()] * len(orders)
        left = [each for each in work if each[1] < len(orders)]
        budget_s = TURN_S
        # However slow the machine is, each turn brings something about.
        while left and budget_s > 0:
            windows, left = self._begin(keeper, left, orders, summaries, budget_s=budget_s)
            for window in windows:
                position = self._run(keeper, window, orders, summaries, until_s=start_s + 2 * TURN_S)
                left.append((window.shard, position))
            left = [each for each in left if each[1] < len(orders)]
            budget_s = start_s + TURN_S - self._clock_s()
        self.longest_s = max(self.longest_s, self._clock_s() - start_s)
        return Turn(summaries, left)

    def _begin(
        self,
        keeper: ShardKeeper,
        work: Sequence[Work],
        orders: Sequence[TickOrder],
        summaries: list[TickSummary],
        *,
        budget_s: float,
    ) -> tuple[list[_Window], list[Work]]:
        """Begin windows that take about `budget_s`; return them, and the work of which none was begun."""
        windows: list[_Window] = []
        left: list[Work] = []
        for number, position in work:
            if budget_s <= 0:
                left.append((number, position))
                continue
            shard, order = keeper.shard(number), orders[position]
            if not shard.ticking.is_at(order.group):
                # What somebody else's request has had finished.
                part = shard.ticking.take(order.group)
                if part is not None:
                    summaries[position] += _of_whole(part, shard, order)
                    if _is_over(shard, order):
                        left.append((number, position + 1))
                        continue
            window, cost_s = self._window(shard, position, order)
            if window is None:
                # Nothing is to be run; how it ended is still to be told.
                summaries[position] += shard.tick(order) if shard.has_work(order) else TickSummary()
                left.append((number, position + 1))
                continue
            windows.append(window)
            budget_s -= cost_s
        new = [window for window in windows if window.is_new]
        keeper.keep([(window.shard, Ticked(window.order)) for window in new])
        for window in new:
            keeper.shard(window.shard).begin(window.order)
        return windows, left

    def _window(self, shard: Shard, position: int, order: TickOrder) -> tuple[_Window | None, float]:
        """Return the next window of an order on a shard, and what it is likely to cost; None if it has none left."""
        if shard.ticking.is_at(order.group):
            return _Window(shard.number, position, order, is_new=False), TURN_S
        fleet = shard.fleets[order.group]
        first, end = max(order.first_tick, fleet.next_tick), order.first_tick + order.tick_count
        desired = order.desired if first == order.first_tick else {}
        if not shard.has_work(order) or (first >= end and not desired):
            return None, 0.0
        due_count = fleet.table.count / fleet.group.report_every_ticks
        tick_s = _TICK_S + due_count * self._report_s.get(order.group, _REPORT_S)
        count = min(end - first, max(1, int(TURN_S / tick_s)))
        part = msgspec.structs.replace(order, first_tick=first, tick_count=count, desired=desired)
        window = _Window(shard.number, position, part)
        return window, tick_s * count

    def _run(
        self,
        keeper: ShardKeeper,
        window: _Window,
        orders: Sequence[TickOrder],
        summaries: list[TickSummary],
        *,
        until_s: float,
    ) -> int:
        """Run a window, but not beyond a time; return the position of the order that its shard is at then."""
        begin_s, order = self._clock_s(), orders[window.position]
        with keeper.timed(window.shard) as shard:
            while shard.ticking.advance():
                if self._clock_s() > until_s:
                    return window.position
            summary = shard.ticking.take(order.group) or TickSummary()
        if window.is_new:
            self._learn(window.order, summary, self._clock_s() - begin_s)
        summaries[window.position] += _of_whole(summary, shard, order)
        return window.position + _is_over(shard, order)

    def _learn(self, order: TickOrder, summary: TickSummary, took_s: float) -> None:
        if summary.reports_due:
            report_s = max(0.0, took_s - _TICK_S * order.tick_count) / summary.reports_due
            known_s = self._report_s.get(order.group, report_s)
            self._report_s[order.group] = known_s + _NEWS * (report_s - known_s)


def _is_over(shard: Shard, order: TickOrder) -> bool:
    return shard.fleets[order.group].next_tick >= order.first_tick + order.tick_count


def _of_whole(part: TickSummary, shard: Shard, order: TickOrder) -> TickSummary:
    """Return the summary of a part of an order's ticks as it counts: how it ended is told by the last part alone."""
    return part if _is_over(shard, order) else _without_end(part)


def _without_end(part: TickSummary) -> TickSummary:
    return msgspec.structs.replace(part, connected_count=0, delta_count=0)
