"""The devices of a rollout in columns: who is in which group and status, and how many of each.

Owns the columns, their counts, and the timers of devices. It decides nothing: that is `rollout`'s.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from twins import rollout_states as states
from twins.draws import draws
from twins.rollout_plan import Group

Rows = NDArray[np.int32]

NO_GROUP: Final = 255
NO_SITE: Final = -1
_STATUS_COUNT: Final = len(states.STATUSES)
_BAD: Final = states.mask_of(states.BAD)
_DISRUPTED: Final = states.mask_of(states.DISRUPTED)

# Column -> its type. `since_s` is when the present status (of those with a timer) began to run, `due_s` when it ends;
# both in whole seconds after the rollout was made, so that four bytes reach for a century.
COLUMNS: Final[Mapping[str, Any]] = {
    "status": np.uint8,
    "group": np.uint8,
    "attempt": np.uint8,
    "zone": np.uint8,
    "cohort": np.uint16,
    "site": np.int32,
    "since_s": np.uint32,
    "due_s": np.uint32,
}


class RolloutColumns:
    """The columns of all devices (one row each, in the order in which they came), and what is counted of them.

    `counts` has a row for each group and a column for each status; `cohort_started` and `cohort_failed` count devices
    that have had an order, and those of them that came to a bad end.
    """

    def __init__(self, group_count: int) -> None:
        self._columns: dict[str, NDArray[Any]] = {name: np.zeros(0, dtype) for name, dtype in COLUMNS.items()}
        self.size = 0
        self.counts = np.zeros((group_count + 1, _STATUS_COUNT), np.int64)
        self.cohort_started = np.zeros(0, np.int64)
        self.cohort_failed = np.zeros(0, np.int64)
        self.site_disrupted = np.zeros(0, np.int64)
        self._timers: dict[int, list[Rows]] = {}
        self._timer_heap: list[int] = []

    def __getitem__(self, column: str) -> NDArray[Any]:
        return self._columns[column][: self.size]

    def append(self, *, cohort: NDArray[np.uint16], site: Rows, zone: NDArray[np.uint8]) -> Rows:
        """Add devices that wait and have no group, and return their rows; the columns given are copied."""
        count = len(cohort)
        rows = np.arange(self.size, self.size + count, dtype=np.int32)
        if self.size + count > len(self._columns["status"]):
            # Half as much again, so that devices that join one by one are copied a few times only.
            capacity = max(self.size + count, self.size + self.size // 2)
            for name, column in self._columns.items():
                grown = np.zeros(capacity, column.dtype)
                grown[: self.size] = column[: self.size]
                self._columns[name] = grown
        self.size += count
        self["cohort"][rows], self["site"][rows], self["zone"][rows] = cohort, site, zone
        self["group"][rows] = NO_GROUP
        self.cohort_started = _grown(self.cohort_started, int(cohort.max(initial=0)) + 1)
        self.cohort_failed = _grown(self.cohort_failed, len(self.cohort_started))
        self.site_disrupted = _grown(self.site_disrupted, int(site.max(initial=-1)) + 1)
        self.counts[-1, 0] += count
        return rows

    def assign(self, groups: tuple[Group, ...], seed: int, rows: Rows) -> Rows:
        """Put devices without a group into groups, by lot, and return all of these rows in the order of their groups.

        A group's percents and counts are of `rows`. Devices of no group come last and keep `NO_GROUP`.
        """
        lots = draws(seed, "rollout", 0, indices=rows.astype(np.uint32))
        shuffled = rows[np.argsort(lots, kind="stable")]
        place, left = 0, shuffled
        ordered: list[Rows] = []
        for number, group in enumerate(groups):
            if group.cohorts is not None:
                chosen = np.isin(self["cohort"][left], list(group.cohorts))
                taken, left = left[chosen], left[~chosen]
            else:
                if group.percent is not None:
                    wanted = max(0, round(len(rows) * group.percent / 100) - place)
                else:
                    wanted = group.count or 0
                taken, left = left[:wanted], left[wanted:]
            place += len(taken)
            self.counts[-1, 0] -= len(taken)
            self.counts[number, 0] += len(taken)
            self["group"][taken] = number
            ordered.append(taken)
        return np.concatenate([*ordered, left])

    def place(self, rows: Rows, group: NDArray[np.uint8]) -> None:
        """Put devices that wait and have no group into groups, in place; `NO_GROUP` leaves one where it is."""
        self["group"][rows] = group
        size = len(self.counts)
        self.counts[-1, 0] -= len(rows)
        self.counts[:, 0] += np.bincount(np.minimum(group, size - 1), minlength=size)

    def move(self, rows: Rows, new: NDArray[np.uint8] | int) -> None:
        """Give devices (each at most once) their new status, in place, and count them anew."""
        status, group, cohort = self["status"], self["group"][rows].astype(np.int64), self["cohort"][rows]
        old = status[rows]
        status[rows] = new
        now = status[rows]
        # `NO_GROUP` counts in the last row.
        places = np.minimum(group, len(self.counts) - 1) * _STATUS_COUNT
        size = self.counts.size
        change = np.bincount(places + now, minlength=size) - np.bincount(places + old, minlength=size)
        self.counts += change.reshape(self.counts.shape)
        size = len(self.cohort_failed)
        self.cohort_failed += np.bincount(cohort[_BAD[now]], minlength=size)
        self.cohort_failed -= np.bincount(cohort[_BAD[old]], minlength=size)
        self.cohort_started += np.bincount(cohort[(old == 0) & (now != 0)], minlength=size)
        self.cohort_started -= np.bincount(cohort[(old != 0) & (now == 0)], minlength=size)
        self._count_sites(rows, old, now)

    def _count_sites(self, rows: Rows, old: NDArray[np.uint8], now: NDArray[np.uint8]) -> None:
        changed = _DISRUPTED[now].astype(np.int64) - _DISRUPTED[old]
        sites = self["site"][rows]
        counted = (changed != 0) & (sites >= 0)
        np.add.at(self.site_disrupted, sites[counted], changed[counted])

    def set_timer(self, rows: Rows, due_s: int | NDArray[np.uint32]) -> None:
        """Let the devices' time be up at `due_s`; a timer that they had is forgotten."""
        self["due_s"][rows] = due_s
        if not len(rows):
            return
        if isinstance(due_s, int):
            self._put_timer(due_s, rows)
            return
        order = np.argsort(due_s, kind="stable")
        ends, starts = np.unique(due_s[order], return_index=True)
        for end, part in zip(ends, np.split(rows[order], starts[1:]), strict=True):
            self._put_timer(int(end), part)

    def _put_timer(self, due_s: int, rows: Rows) -> None:
        if due_s not in self._timers:
            self._timers[due_s] = []
            heapq.heappush(self._timer_heap, due_s)
        self._timers[due_s].append(rows)

    def expired(self, now_s: int, rows_max: int) -> Rows:
        """Return devices whose time is up, some `rows_max` at most at a time; each is told once."""
        found: list[Rows] = []
        count = 0
        while self._timer_heap and self._timer_heap[0] <= now_s and count < rows_max:
            due_s = self._timer_heap[0]
            rows = self._timers[due_s].pop()
            if not self._timers[due_s]:
                heapq.heappop(self._timer_heap)
                del self._timers[due_s]
            rows = rows[self["due_s"][rows] == due_s]
            # Told: no later timer of these rows may be mistaken for this one.
            self["due_s"][rows] = 0
            found.append(rows)
            count += len(rows)
        return np.unique(np.concatenate(found)) if found else np.zeros(0, np.int32)

    def next_due_s(self) -> int | None:
        """Return when the next timer ends, perhaps a forgotten one; None if none runs."""
        return self._timer_heap[0] if self._timer_heap else None

    def saved(self) -> dict[str, NDArray[Any]]:
        """Return copies of the columns: with `restored`, all of this object."""
        return {name: self[name].copy() for name in COLUMNS}

    @classmethod
    def restored(cls, group_count: int, columns: Mapping[str, NDArray[Any]]) -> RolloutColumns:
        """Return the object that `saved` has been called on; counts and timers are made again from the columns."""
        made = cls(group_count)
        made.append(cohort=columns["cohort"], site=columns["site"], zone=columns["zone"])
        for name in COLUMNS:
            made[name][:] = columns[name]
        rows = np.arange(made.size, dtype=np.int32)
        status = made["status"].copy()
        made["status"][:] = 0
        made.counts[:] = 0
        groups = np.minimum(made["group"].astype(np.int64), group_count)
        made.counts[:, 0] = np.bincount(groups, minlength=group_count + 1)
        made.move(rows, status)
        timed = rows[made["due_s"] > 0]
        made.set_timer(timed, made["due_s"][timed])
        return made

    def bytes_per_device(self) -> float:
        """Return what the columns and the timers take for each device, in bytes."""
        timers = sum(rows.nbytes for parts in self._timers.values() for rows in parts)
        return (sum(column.nbytes for column in self._columns.values()) + timers) / max(self.size, 1)


def _grown(column: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    return np.concatenate([column, np.zeros(max(0, size - len(column)), np.int64)])
