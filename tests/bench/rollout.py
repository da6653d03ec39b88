"""A release on its way to 1,000,000 simulated devices over 24 virtual hours, and a bad one that has to be found.

The devices are columns of the bench: they download by their bandwidth, install, reboot, and report every 15 minutes;
2 % fail in the good run. The control loop steps every virtual second, whether there is something to do or not.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tests.bench.result import BenchResult
from twins import rollout_states as states
from twins.rollout import NOTHING, Orders, Progress, Rollout
from twins.rollout_plan import AbortRule, Group, HealthGate, Plan, Rate

DEVICE_COUNT: Final = 1_000_000
DAY_S: Final = 24 * 3600
REPORT_S: Final = 900
INSTALL_S: Final = 120
# Three boots of a minute each, after which the device falls back to the slot that it came from.
FALL_BACK_S: Final = 180
FAILING_SHARE: Final = 0.02
REVISION_COUNT: Final = 20
BAD_REVISION: Final = 7
BAD_SHARE: Final = 0.3
SEEDS: Final = 100
# A group of 1 % of a million, for the runs that are made for each seed.
SMALL_COUNT: Final = 100_000
PLAN: Final = Plan(
    groups=tuple(
        Group(f"{percent} %", percent=percent, success_share_min=0.95, soak_s=3600)
        for percent in (1, 10, 50, 100)
    ),
    rate=Rate(per_minute=1000, factor=2, grow_after_count=5000, per_minute_max=4000),
    health=HealthGate(hold_s=600, timeout_s=7200),
    aborts=(AbortRule(frozenset(states.BAD), 0.04),),
    cohort_share_max=0.02,
    timeout_s=7200,
    repeat_s=1800,
)


@dataclass
class Devices:
    """What devices say after an order, and when: a list of words for each second to come."""

    count: int
    luck: np.random.Generator
    failing: NDArray[np.float64]
    words: dict[int, list[tuple[NDArray[np.int32], NDArray[np.uint8], int]]] = field(default_factory=dict)

    def take(self, now: int, orders: Orders) -> None:
        """Begin the updates that are ordered; an order that is given again changes nothing here."""
        rows, attempts = orders.rows, orders.attempts
        if not len(rows):
            return
        self._say(now + 1, rows, attempts, states.STARTED)
        # 20 MB at 0.1 to 1 MB a second, then the installation.
        updated = now + INSTALL_S + (20 / self.luck.uniform(0.1, 1.0, len(rows))).astype(np.int64)
        fails = self.luck.random(len(rows)) < self.failing[rows]
        self._say_each(updated[fails] + FALL_BACK_S, rows[fails], attempts[fails], states.ROLLED_BACK)
        rows, attempts, updated = rows[~fails], attempts[~fails], updated[~fails]
        self._say_each(updated, rows, attempts, states.UPDATED)
        # The next report after the reboot shows that the device is well.
        reported = updated + 1 + (rows.astype(np.int64) - updated - 1) % REPORT_S
        self._say_each(reported, rows, attempts, states.HEALTHY)

    def _say_each(
        self, at: NDArray[np.int64], rows: NDArray[np.int32], attempts: NDArray[np.uint8], word: str
    ) -> None:
        order = np.argsort(at, kind="stable")
        seconds, starts = np.unique(at[order], return_index=True)
        parts = np.split(order, starts[1:])
        for second, part in zip(seconds.tolist(), parts if len(seconds) else [], strict=True):
            self._say(second, rows[part], attempts[part], word)

    def _say(self, second: int, rows: NDArray[np.int32], attempts: NDArray[np.uint8], word: str) -> None:
        self.words.setdefault(second, []).append((rows, attempts, states.HEARD_CODES[word]))

    def heard(self, now: int) -> Progress:
        """Return what is said in this second."""
        words = self.words.pop(now, None)
        if words is None:
            return NOTHING
        return Progress(
            np.concatenate([rows for rows, _, _ in words]),
            np.concatenate([attempts for _, attempts, _ in words]),
            np.concatenate([np.full(len(rows), word, np.uint8) for rows, _, word in words]),
        )


def _run(
    count: int, seed: int, failing: NDArray[np.float64], *, until_s: int
) -> tuple[Rollout, list[float], float]:
    """Return the rollout at its end or after `until_s`, the seconds of each step, and the most bytes a device."""
    rollout = Rollout(PLAN, made_at_s=0, seed=seed)
    rows = np.arange(count)
    rollout.join(
        cohorts=(rows % REVISION_COUNT).astype(np.uint16),
        sites=np.full(count, -1, np.int32),
        zones=np.zeros(count, np.uint8),
    )
    devices = Devices(count, np.random.default_rng(seed), failing)
    rollout.command("start", 0)
    took: list[float] = []
    bytes_most = rollout.bytes_per_device()
    for now in range(1, until_s + 1):
        progress = devices.heard(now)
        start_s = time.perf_counter()
        orders = rollout.step(now, progress)
        took.append(time.perf_counter() - start_s)
        devices.take(now, orders)
        if now % 3600 == 0:
            bytes_most = max(bytes_most, rollout.bytes_per_device())
        if rollout.state == states.ABORTED:
            break
    return rollout, took, bytes_most


def _bar(name: str, value: float, unit: str, *, most: float, details: tuple[str, ...] = ()) -> BenchResult:
    return BenchResult(
        f"rollout: {name}", value, unit, "", None, None, f"at most {most:g}", value <= most, details
    )


def measure() -> list[BenchResult]:
    """Measure a good release on the whole fleet, a bad one, and how often a good one is stopped."""
    good = np.full(DEVICE_COUNT, FAILING_SHARE)
    start_s = time.perf_counter()
    rollout, took, bytes_most = _run(DEVICE_COUNT, 1, good, until_s=DAY_S)
    whole_s = time.perf_counter() - start_s
    told = f"good release: {rollout.state}, group {rollout.group + 1} of 4, {rollout.status_counts()}"
    bad = np.where(np.arange(DEVICE_COUNT) % REVISION_COUNT == BAD_REVISION, BAD_SHARE, 0.0)
    found, _, _ = _run(DEVICE_COUNT, 1, bad, until_s=DAY_S)
    ordered = DEVICE_COUNT - found.status_counts()[states.WAITING]
    named = [suspect.cohort for suspect in found.suspects]
    told_bad = (
        f"bad release: {found.state} in group {found.group + 1} after {ordered:,} orders: {found.reason}"
    )
    missed = 0 if named == [BAD_REVISION] and found.group == 0 else 1
    stopped = sum(
        _run(SMALL_COUNT, seed, good[:SMALL_COUNT], until_s=3600)[0].state == states.ABORTED
        for seed in range(SEEDS)
    )
    return [
        _bar("24 virtual hours", whole_s, "s", most=120, details=(told,)),
        _bar("a step on average", 1000 * sum(took) / len(took), "ms", most=1),
        _bar("the longest step", 1000 * max(took), "ms", most=50),
        _bar("state", bytes_most, "bytes per device", most=60),
        _bar("bad releases not found in the first group", missed, "of 1", most=0, details=(told_bad,)),
        _bar("good releases stopped in their first hour", stopped, f"of {SEEDS}", most=1),
    ]
