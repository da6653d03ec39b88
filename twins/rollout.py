"""A release on its way across the fleet: who gets it now, who waits, and when it stops, as one pure state machine.

`Rollout.step` hears what became of earlier orders and gives new ones. It is driven by changes: what it does in a step
grows with what was heard and ordered, never with the fleet. A driver saves the rollout (`saved`) after a step and
before it gives the orders of that step: then it may die at any point, and orders may be lost or given twice. What an
order means to a device, how it is carried there and how its health is asked for, is the driver's.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from twins import rollout_states as states
from twins.errors import RolloutError
from twins.rollout_cohorts import Suspect, erring_cohorts, failing_cohorts, look_chance
from twins.rollout_columns import NO_GROUP, RolloutColumns, Rows
from twins.rollout_plan import Plan
from twins.rollout_queues import RowQueue, SiteQueues

# Devices that a step orders, sends back or lets run out of time, at most: some milliseconds of work.
BLOCK: Final = 16_384
# Devices that are looked at in one go for places to give, where windows and sites hold many back.
_LOOKED_AT: Final = 4_096
_GOES: Final = 4
# The first look for bad cohorts is at so many failures, each further one at half as many again.
_FIRST_LOOK: Final = 10
_LOOK_GROWTH: Final = 1.5
_TABLE: Final = states.transition_codes()
_CODE: Final = states.CODES
_UNDECIDED: Final = states.mask_of((states.WAITING, *states.UNDER_WAY))
_BAD: Final = states.mask_of(states.BAD)
_RETRIED: Final = states.mask_of(states.RETRIED)
_STOPPED: Final = (states.ABORTED, states.ROLLING_BACK, states.RETURNED)
_LIVE: Final = (states.ROLLING, states.SOAKING, states.AWAITING_APPROVAL)
# What is not sent back: it refused the order, or was sent back before.
_NOT_SENT_BACK: Final = states.mask_of((states.REJECTED, states.GOING_BACK, states.BACK, states.STUCK))


def _no_rows() -> Rows:
    return np.zeros(0, np.int32)


def _no_bytes() -> NDArray[np.uint8]:
    return np.zeros(0, np.uint8)


@dataclass(frozen=True, slots=True)
class ErrorCounts:
    """Errors and hours of each cohort's updated devices, and of those that are not updated yet (float hours)."""

    errors: NDArray[np.int64]
    hours: NDArray[np.float64]
    control_errors: NDArray[np.int64]
    control_hours: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Progress:
    """What was heard since the last step, in its order: row, attempt of the order, position in `states.HEARD`.

    It may come late and twice. `errors` are counted since the rollout began.
    """

    rows: Rows = field(default_factory=_no_rows)
    attempts: NDArray[np.uint8] = field(default_factory=_no_bytes)
    heard: NDArray[np.uint8] = field(default_factory=_no_bytes)
    errors: ErrorCounts | None = None


NOTHING: Final = Progress()


@dataclass(slots=True)
class Orders:
    """What to tell devices now: to take the release, and to go back, each with the attempt to answer with; and news.

    An order may be given twice. A device that has carried out an attempt says again what became of it.
    """

    rows: Rows = field(default_factory=_no_rows)
    attempts: NDArray[np.uint8] = field(default_factory=_no_bytes)
    back_rows: Rows = field(default_factory=_no_rows)
    back_attempts: NDArray[np.uint8] = field(default_factory=_no_bytes)
    news: list[str] = field(default_factory=list)


class Rollout:
    """A rollout by its plan. Times are seconds of one clock that does not go back; rows number devices from 0.

    `state` is one of `states.ROLLOUT_STATES`, `reason` why it stopped, `suspects` the cohorts that did it.
    `ignored_count` counts what was heard and changed nothing: too late, twice, or of another attempt.
    """

    def __init__(self, plan: Plan, *, made_at_s: float, seed: int = 0) -> None:
        plan.check()
        self.plan, self._seed, self._made_at_s = plan, seed, made_at_s
        self.columns = RolloutColumns(len(plan.groups))
        self.state = states.DRAFT
        self.group = 0
        self.reason = ""
        self.suspects: list[Suspect] = []
        self.ignored_count = 0
        self._resumed_to = ""
        self._is_waived = False
        self._soak_until = 0
        self._credit, self._credit_at = 0.0, 0
        self._look, self._next_look = 0, float(_FIRST_LOOK)
        self._judged_bad = -1
        self._back_cursor = 0
        self._minute = -1
        self._is_open = np.ones(len(plan.zones), bool)
        self._empty_queues()

    def _empty_queues(self) -> None:
        self._queues = [RowQueue() for _ in self.plan.groups]
        self._ready = RowQueue()
        self._shut: dict[int, RowQueue] = {}
        self._sites = SiteQueues(self.columns.size, len(self.columns.site_disrupted))

    # -------------------------------------------------------------------------------------------- targets and commands

    def join(self, *, cohorts: NDArray[np.uint16], sites: Rows, zones: NDArray[np.uint8]) -> Rows:
        """Add targets and return their rows; `sites` has -1 for none, `zones` positions in `plan.zones`.

        Once started, only a continuous rollout takes more: they are of the first group of their cohort, else the last.
        """
        if self.state != states.DRAFT and not self.plan.is_continuous:
            raise RolloutError("this rollout is of a snapshot: its targets are fixed; make a continuous one")
        rows = self.columns.append(cohort=cohorts, site=sites, zone=zones)
        self._sites.grow(self.columns.size, len(self.columns.site_disrupted))
        if self.state != states.DRAFT:
            self._place_late(rows)
        return rows

    def _place_late(self, rows: Rows) -> None:
        group = np.full(len(rows), NO_GROUP, np.uint8)
        if self.plan.groups[-1].cohorts is None:
            group[:] = len(self.plan.groups) - 1
        for number in range(len(self.plan.groups) - 1, -1, -1):
            named = self.plan.groups[number].cohorts
            if named is not None:
                group[np.isin(self.columns["cohort"][rows], list(named))] = number
        self.columns.place(rows, group)
        for number in np.unique(group[group != NO_GROUP]):
            self._queues[number].put(rows[group == number])

    def command(self, name: str, now_s: float) -> None:
        """Do what an operator asks: a name of `states.COMMANDS`; RolloutError where the state does not allow it."""
        allowed = states.COMMANDS.get(name)
        if allowed is None:
            raise RolloutError(f"a rollout can't {name}; it can {', '.join(states.COMMANDS)}")
        if self.state not in allowed:
            raise RolloutError(f"a rollout that is {self.state} can't {name}: only {', '.join(allowed)}")
        now = self._relative(now_s)
        if name == "start":
            self._start(now)
        elif name == "pause":
            self._resumed_to, self.state, self.reason = self.state, states.PAUSED, "by an operator"
        elif name == "resume":
            self.state, self.reason = self._resumed_to, ""
            # What the gate or the clock held against this group, the operator has seen.
            self._is_waived, self._credit_at = True, now
        elif name == "approve":
            self._begin(self.group + 1, now)
        elif name == "abort":
            self.state, self.reason = states.ABORTED, "by an operator"
        elif name == "retry":
            self._retry(now)
        else:
            self._roll_back()

    def _start(self, now: int) -> None:
        rows = self.columns.assign(self.plan.groups, self._seed, np.arange(self.columns.size, dtype=np.int32))
        self._queue_groups(rows)
        self._begin(0, now)

    def _queue_groups(self, rows: Rows) -> None:
        groups = self.columns["group"][rows]
        for number, queue in enumerate(self._queues):
            queue.put(rows[groups == number])

    def _begin(self, group: int, now: int) -> None:
        self.group, self.state, self._is_waived, self._credit_at = group, states.ROLLING, False, now

    def _retry(self, now: int) -> None:
        rows = np.flatnonzero(_RETRIED[self.columns["status"]]).astype(np.int32)
        self.columns["due_s"][rows] = 0
        self.columns.move(rows, _CODE[states.WAITING])
        self._queue_groups(rows)
        if self.state == states.COMPLETED:
            self._begin(self.group, now)

    def _roll_back(self) -> None:
        self.state, self._back_cursor = states.ROLLING_BACK, 0

    # ------------------------------------------------------------------------------------------------------- the step

    def step(self, now_s: float, progress: Progress = NOTHING) -> Orders:
        """Hear what became of orders, let time pass until `now_s`, and return the orders to give now."""
        now, orders = self._relative(now_s), Orders()
        self._hear(now, progress)
        self._expire(now, orders)
        if self.state in _LIVE:
            self._judge(progress.errors, orders)
        if self.state == states.SOAKING and now >= self._soak_until:
            self._after_soak(now, orders)
        if self.state == states.ROLLING:
            self._close_group(now, orders)
        if self.state == states.ROLLING:
            self._admit(now, now_s, orders)
        elif self.state == states.ROLLING_BACK:
            self._give_back(now, orders)
        return orders

    def _relative(self, now_s: float) -> int:
        return int(now_s - self._made_at_s)

    def _hear(self, now: int, progress: Progress) -> None:
        rows, attempts, heard = progress.rows, progress.attempts, progress.heard
        while len(rows):
            # What was heard of one device is taken one by one, in order.
            _, first = np.unique(rows, return_index=True)
            self._hear_once(now, rows[first], attempts[first], heard[first])
            if len(first) == len(rows):
                return
            rest = np.ones(len(rows), bool)
            rest[first] = False
            rows, attempts, heard = rows[rest], attempts[rest], heard[rest]

    def _hear_once(self, now: int, rows: Rows, attempts: NDArray[np.uint8], heard: NDArray[np.uint8]) -> None:
        old = self.columns["status"][rows]
        new = _TABLE[heard, old]
        is_legal = (new != states.NONE) & (attempts == self.columns["attempt"][rows])
        self.ignored_count += len(rows) - int(is_legal.sum())
        rows, old, new = rows[is_legal], old[is_legal], new[is_legal]
        health, updated = self.plan.health, _CODE[states.UPDATED]
        if health is None:
            new[new == updated] = _CODE[states.SUCCEEDED]
        elif not health.hold_s:
            new[new == _CODE[states.HOLDING]] = _CODE[states.SUCCEEDED]
        if not len(rows):
            return
        self._move(rows, new)
        self.columns["due_s"][rows] = 0
        since = self.columns["since_s"]
        begun = rows[new == _CODE[states.IN_PROGRESS]]
        self.columns.set_timer(begun, since[begun] + np.uint32(self.plan.timeout_s))
        if health is None:
            return
        since[rows[(new == updated) & (old != _CODE[states.HOLDING])]] = now
        waiting = rows[new == updated]
        ends = np.maximum(since[waiting] + np.uint32(health.timeout_s), np.uint32(now + 1))
        self.columns.set_timer(waiting, ends)
        self.columns.set_timer(rows[new == _CODE[states.HOLDING]], now + health.hold_s)

    def _move(self, rows: Rows, new: NDArray[np.uint8] | int) -> None:
        """Move devices, and let those come next that waited for the places of their sites."""
        if not len(rows):
            return
        self.columns.move(rows, new)
        if self.plan.site_budget is None or not self._sites.count:
            return
        sites = np.unique(self.columns["site"][rows])
        sites = sites[sites >= 0]
        places = self.plan.site_budget - self.columns.site_disrupted[sites]
        self._ready.put(self._sites.take(sites, places), is_first=True)

    def _expire(self, now: int, orders: Orders) -> None:
        rows = self.columns.expired(now, BLOCK)
        if not len(rows):
            return
        status = self.columns["status"][rows]
        is_over = now - self.columns["since_s"][rows].astype(np.int64) >= self.plan.timeout_s
        asked = status == _CODE[states.ORDERED]
        back = status == _CODE[states.GOING_BACK]
        # Once stopped, the rollout repeats no order: a device that has not begun by then has timed out.
        again = (asked & (self.state not in _STOPPED) | back) & ~is_over
        for old, end in states.EXPIRIES.items():
            self._move(rows[(status == _CODE[old]) & ~again], _CODE[end])
        self._time_order(now, rows[again])
        orders.rows, orders.back_rows = rows[asked & again], rows[back & again]
        orders.attempts = self.columns["attempt"][orders.rows]
        orders.back_attempts = self.columns["attempt"][orders.back_rows]

    def _time_order(self, now: int, rows: Rows) -> None:
        ends = self.columns["since_s"][rows] + np.uint32(self.plan.timeout_s)
        self.columns.set_timer(rows, np.minimum(ends, np.uint32(now + self.plan.repeat_s)))

    # -------------------------------------------------------------------------------------------------- gates and stops

    def _judge(self, errors: ErrorCounts | None, orders: Orders) -> None:
        counts = self.columns.counts
        bad_count = int(counts[:, _BAD].sum())
        started_count = self.columns.size - int(counts[:, _CODE[states.WAITING]].sum())
        if bad_count != self._judged_bad:
            self._judged_bad = bad_count
            for rule in self.plan.aborts:
                ended = int(counts[:, states.mask_of(rule.statuses)].sum())
                if started_count >= rule.least_count and ended >= rule.share * started_count:
                    named = ", ".join(sorted(rule.statuses))
                    self._stop(
                        f"{ended} of {started_count} devices are {named}: {rule.share:.1%} was the limit",
                        orders,
                    )
                    return
            if bad_count >= self._next_look:
                self._next_look = max(bad_count + 1, bad_count * _LOOK_GROWTH)
                self._look_at_cohorts(orders)
        if errors is not None and self.state in _LIVE:
            self._look += 1
            self.suspects = erring_cohorts(
                errors.errors,
                errors.hours,
                control_errors=errors.control_errors,
                control_hours=errors.control_hours,
                chance=look_chance(self._look),
            )
            if self.suspects:
                worst = self.suspects[0]
                self._stop(
                    f"cohort {worst.cohort} has {worst.share:.3g} errors an hour on the new release, and "
                    f"{worst.other_share:.3g} without it",
                    orders,
                )

    def _look_at_cohorts(self, orders: Orders) -> None:
        if self.plan.cohort_share_max is None:
            return
        self._look += 1
        self.suspects = failing_cohorts(
            self.columns.cohort_started,
            self.columns.cohort_failed,
            share_max=self.plan.cohort_share_max,
            chance=look_chance(self._look),
        )
        if self.suspects:
            worst = self.suspects[0]
            self._stop(
                f"cohort {worst.cohort} fails in {worst.share:.1%}, the others in {worst.other_share:.1%}",
                orders,
            )

    def _stop(self, reason: str, orders: Orders) -> None:
        self.state, self.reason = states.ABORTED, reason
        orders.news.append(f"aborted: {reason}")
        if self.plan.is_rolled_back:
            self._roll_back()

    def _close_group(self, now: int, orders: Orders) -> None:
        """End the group if all of it is decided, and those before: by its gate, its soak time, or the next group."""
        counts = self.columns.counts
        if counts[: self.group + 1, _UNDECIDED].any():
            return
        self._look_at_cohorts(orders)
        if self.state != states.ROLLING:
            return
        group, size = self.plan.groups[self.group], int(counts[self.group].sum())
        succeeded = int(counts[self.group, _CODE[states.SUCCEEDED]])
        if succeeded < group.success_share_min * size and not self._is_waived:
            self._resumed_to, self.state = self.state, states.PAUSED
            least = f"{group.success_share_min:.1%}"
            self.reason = f"group {group.name}: {succeeded} of {size} succeeded, fewer than {least}"
            orders.news.append(f"paused: {self.reason}")
            return
        orders.news.append(f"group {group.name} is done: {succeeded} of {size} succeeded")
        self.state, self._soak_until = states.SOAKING, now + group.soak_s
        if not group.soak_s:
            self._after_soak(now, orders)

    def _after_soak(self, now: int, orders: Orders) -> None:
        is_last = self.group == len(self.plan.groups) - 1
        if is_last and self.plan.is_continuous:
            self.state = states.ROLLING
        elif is_last:
            self.state = states.COMPLETED
            orders.news.append("completed")
        elif self.plan.groups[self.group].needs_approval:
            self.state = states.AWAITING_APPROVAL
            orders.news.append(f"group {self.plan.groups[self.group + 1].name} waits for approval")
        else:
            self._begin(self.group + 1, now)

    # -------------------------------------------------------------------------------------------------------- orders

    def _admit(self, now: int, now_s: float, orders: Orders) -> None:
        if self.plan.windows:
            self._open_windows(now_s)
        rate = self.plan.rate.now(int(self.columns.counts[:, _CODE[states.SUCCEEDED]].sum()))
        # No more than a minute's worth is saved up while nobody could be ordered.
        self._credit = min(self._credit + (now - self._credit_at) * rate / 60, max(rate, 1.0))
        self._credit_at = now
        wanted = min(int(self._credit), BLOCK - len(orders.rows))
        given: list[Rows] = []
        looked_at = wanted
        for _ in range(_GOES):
            rows = self._next_rows(looked_at) if wanted > 0 else _no_rows()
            if not len(rows):
                break
            rows = self._with_place(self._in_window(rows))
            self._ready.put(rows[wanted:], is_first=True)
            self._order(now, rows[:wanted])
            given.append(rows[:wanted])
            wanted -= len(given[-1])
            looked_at = max(wanted, _LOOKED_AT)
        new = np.concatenate([orders.rows, *given]) if given else orders.rows
        self._credit -= len(new) - len(orders.rows)
        orders.rows, orders.attempts = new, self.columns["attempt"][new]

    def _next_rows(self, count: int) -> Rows:
        rows = self._ready.take(count)
        for queue in self._queues[: self.group + 1]:
            if len(rows) < count and queue.count:
                rows = np.concatenate([rows, queue.take(count - len(rows))])
        return rows

    def _open_windows(self, now_s: float) -> None:
        if int(now_s // 60) == self._minute:
            return
        self._minute = int(now_s // 60)
        for number, zone in enumerate(self.plan.zones):
            local = dt.datetime.fromtimestamp(now_s, zone)
            self._is_open[number] = any(window.is_open(local) for window in self.plan.windows)
            if self._is_open[number] and number in self._shut:
                shut = self._shut.pop(number)
                self._ready.put(shut.take(shut.count))

    def _in_window(self, rows: Rows) -> Rows:
        if not self.plan.windows:
            return rows
        zones = self.columns["zone"][rows]
        is_open = self._is_open[zones]
        for zone in np.unique(zones[~is_open]):
            self._shut.setdefault(int(zone), RowQueue()).put(rows[zones == zone])
        within: Rows = rows[is_open]
        return within

    def _with_place(self, rows: Rows) -> Rows:
        budget = self.plan.site_budget
        sites = self.columns["site"][rows]
        if budget is None or not (sites >= 0).any():
            return rows
        order = np.argsort(sites, kind="stable")
        ordered = sites[order]
        starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
        # Position of each among those of its site.
        rank = np.arange(len(rows)) - np.repeat(starts, np.diff(np.append(starts, len(rows))))
        fits = np.ones(len(rows), bool)
        fits[order] = (ordered < 0) | (rank + self.columns.site_disrupted[ordered] < budget)
        self._sites.put(rows[~fits], sites[~fits])
        fitting: Rows = rows[fits]
        return fitting

    def _order(self, now: int, rows: Rows) -> None:
        self.columns["attempt"][rows] += 1
        self.columns["since_s"][rows] = now
        self.columns.move(rows, _CODE[states.ORDERED])
        self._time_order(now, rows)

    def _give_back(self, now: int, orders: Orders) -> None:
        if self._back_cursor < self.columns.size:
            rows = np.arange(
                self._back_cursor, min(self._back_cursor + BLOCK, self.columns.size), dtype=np.int32
            )
            self._back_cursor += len(rows)
            rows = rows[~_NOT_SENT_BACK[self.columns["status"][rows]] & (self.columns["attempt"][rows] > 0)]
            self.columns["attempt"][rows] += 1
            self.columns["since_s"][rows] = now
            self.columns.move(rows, _CODE[states.GOING_BACK])
            self._time_order(now, rows)
            orders.back_rows = np.concatenate([orders.back_rows, rows])
            orders.back_attempts = self.columns["attempt"][orders.back_rows]
        elif not self.columns.counts[:, _CODE[states.GOING_BACK]].any():
            self.state = states.RETURNED
            orders.news.append("returned to the previous release")

    # ---------------------------------------------------------------------------------------------- status and saving

    def status_counts(self) -> dict[str, int]:
        """Return how many devices have each status."""
        totals = self.columns.counts.sum(axis=0)
        return {name: int(count) for name, count in zip(states.STATUSES, totals, strict=True)}

    def held_counts(self) -> dict[str, int]:
        """Return how many devices whose turn it is are held back by their windows, and by their sites' budgets."""
        return {"window": sum(queue.count for queue in self._shut.values()), "site": self._sites.count}

    def bytes_per_device(self) -> float:
        """Return what all columns, timers and queues take for each device, in bytes."""
        queued = sum(queue.count for queue in (*self._queues, self._ready, *self._shut.values()))
        waiting: float = queued * np.dtype(np.int32).itemsize + self._sites.nbytes
        return self.columns.bytes_per_device() + waiting / max(self.columns.size, 1)

    def saved(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Return all that makes the rollout, besides its plan: plain values, and copies of its columns."""
        values = {name: getattr(self, name) for name in _SAVED}
        return values, self.columns.saved()

    @classmethod
    def restored(cls, plan: Plan, values: Mapping[str, Any], columns: Mapping[str, NDArray[Any]]) -> Rollout:
        """Return the rollout that `saved` has been called on; who waits for what is found out anew."""
        made = cls(plan, made_at_s=values["_made_at_s"])
        for name, value in values.items():
            setattr(made, name, value)
        made.columns = RolloutColumns.restored(len(plan.groups), columns)
        made._empty_queues()
        if made.state != states.DRAFT:
            waiting = made.columns["status"] == _CODE[states.WAITING]
            made._queue_groups(np.flatnonzero(waiting).astype(np.int32))
        return made


_SAVED: Final = (
    "state",
    "group",
    "reason",
    "suspects",
    "ignored_count",
    "_seed",
    "_made_at_s",
    "_resumed_to",
    "_is_waived",
    "_soak_until",
    "_credit",
    "_credit_at",
    "_look",
    "_next_look",
    "_back_cursor",
)
