"""The devices of a rollout that wait for their orders: in turn, for their window, or for their site's budget.

Owns the order in which they come, and nothing that is worth saving: all of it is made again from the columns.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int32]

_NONE: Final = -1


class RowQueue:
    """Rows in order; put in and taken out by arrays, without copying those that stay."""

    def __init__(self) -> None:
        self._parts: deque[Rows] = deque()
        self.count = 0

    def put(self, rows: Rows, *, is_first: bool = False) -> None:
        """Add rows at the end, or before all others."""
        if len(rows):
            (self._parts.appendleft if is_first else self._parts.append)(rows)
            self.count += len(rows)

    def take(self, count: int) -> Rows:
        """Remove and return the first `count` rows, or fewer if there are no more."""
        taken: list[Rows] = []
        while count > 0 and self._parts:
            part = self._parts.popleft()
            if len(part) > count:
                self._parts.appendleft(part[count:])
                part = part[:count]
            taken.append(part)
            count -= len(part)
            self.count -= len(part)
        return np.concatenate(taken) if taken else np.zeros(0, np.int32)


class SiteQueues:
    """Rows that wait for their sites, first come first served: linked lists, one for each site, in four bytes a row."""

    def __init__(self, row_count: int, site_count: int) -> None:
        self._next = np.full(row_count, _NONE, np.int32)
        self._head = np.full(site_count, _NONE, np.int32)
        self._tail = np.full(site_count, _NONE, np.int32)
        self.count = 0

    def grow(self, row_count: int, site_count: int) -> None:
        """Make room for further rows and sites."""
        self._next = _filled(self._next, row_count)
        self._head = _filled(self._head, site_count)
        self._tail = _filled(self._tail, site_count)

    def put(self, rows: Rows, sites: Rows) -> None:
        """Let rows wait, each for its site."""
        if not len(rows):
            return
        order = np.argsort(sites, kind="stable")
        rows, sites = rows[order], sites[order]
        is_first = np.append(True, sites[1:] != sites[:-1])
        is_last = np.append(is_first[1:], True)
        self._next[rows[~is_last]] = rows[1:][~is_first[1:]]
        self._next[rows[is_last]] = _NONE
        own, first = sites[is_first], rows[is_first]
        tails = self._tail[own]
        self._next[tails[tails >= 0]] = first[tails >= 0]
        self._head[own[tails < 0]] = first[tails < 0]
        self._tail[own] = rows[is_last]
        self.count += len(rows)

    def take(self, sites: Rows, places: NDArray[np.int64]) -> Rows:
        """Remove and return the first rows of sites (each named once), up to so many of each as it has places."""
        taken: list[Rows] = []
        while len(sites):
            going = (places > 0) & (self._head[sites] >= 0)
            sites, places = sites[going], places[going] - 1
            rows = self._head[sites]
            self._head[sites] = self._next[rows]
            self._tail[sites[self._next[rows] < 0]] = _NONE
            taken.append(rows)
            self.count -= len(rows)
        return np.concatenate(taken) if taken else np.zeros(0, np.int32)

    @property
    def nbytes(self) -> int:
        """Return how much memory the lists take."""
        return self._next.nbytes + self._head.nbytes + self._tail.nbytes


def _filled(column: Rows, size: int) -> Rows:
    if size <= len(column):
        return column
    # Half as much again, so that devices that join one by one are copied a few times only.
    grown = np.full(max(size, len(column) + len(column) // 2), _NONE, np.int32)
    grown[: len(column)] = column
    return grown
