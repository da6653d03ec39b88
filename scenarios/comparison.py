"""Two runs of one scenario, or two sets of runs, compared: what got worse by more than noise.

Noise is what runs of one side differ by among themselves, where there are several (other seeds, or the same again).
Where there is one only, stretches of its course are held to the same stretches of the other's, and noise is what these
differences differ by. Either way means are drawn again and again from what was seen (a bootstrap), and a change counts
when zero lies outside 999 of 1,000 differences. Where neither is known, a count may differ by what chance explains.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from scenarios.metrics import metric_of
from scenarios.result import RunResult, WindowSample

Course = Literal["worse", "better", "other", "same"]

# Whether more of it is worse (1) or better (-1), by metric; of what stands in neither nobody knows.
_WORSE_WHEN: Final[Mapping[str, int]] = {
    **dict.fromkeys(
        (
            *("reports_lost", "reports_offline", "reports_refused", "reports_silent", "reports_dropped"),
            *("reports_delayed", "reports_reordered", "reports_duplicated", "reports_resent"),
            *("reports_misdated", "connect_attempts", "reports_in_flight", "reports_buffered"),
            *("report_latency", "delta_outstanding", "tick_lag", "device_rejected", "device_disconnects"),
            *("device_errors", "device_round_trip", "delta_to_reported", "recovery_time", "steady_time"),
            "audit_unknown",
        ),
        1,
    ),
    **dict.fromkeys(("reports", "connected_ratio", "device_reports", "audit_accepted"), -1),
}
# The statistics that are compared: of a trend also its tail, because a mean hides it.
_STATISTICS: Final[Mapping[str, tuple[str, ...]]] = {
    "counter": ("count",),
    "gauge": ("avg", "min", "max"),
    "trend": ("med", "p(95)", "p(99)"),
}
# Of the course of a run, what a metric's statistics are made of.
_COURSES: Final[Mapping[str, Callable[[WindowSample], float | None]]] = {
    "reports": lambda each: each.reports_per_s,
    "reports_lost": lambda each: each.reports_lost_per_s,
    "connected_ratio": lambda each: each.connected_ratio,
    "delta_outstanding": lambda each: float(each.delta_outstanding),
    "tick_lag": lambda each: each.lag_ms,
    "report_latency": lambda each: each.latency_ms_p95,
}
_DRAWS: Final = 5_000
# So sure, because dozens of things are compared at once.
_CONFIDENCE: Final = 0.999
# Windows that follow each other are alike: a run is cut into so many stretches, of which one says little of the next.
_STRETCHES: Final = 20
# Below this share a difference is of no interest, however sure it is.
_SLIGHT: Final = 0.01
# Without any knowledge of noise: what three standard deviations of two counts explain.
_DEVIATIONS: Final = 3.0
# Reports come to grief in clusters: a device that is offline misses several in a row.
_CLUSTER: Final = 10.0
# What is known of a time with one sample on each side: half as long again is no noise.
_SINGLE_FACTOR: Final = 1.5
_SINGLE_MS: Final = 100.0


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that was compared: means over the runs of a side, and what their difference was held to (`why`)."""

    name: str
    course: Course
    before: float | None
    after: float | None
    why: str

    @property
    def ratio(self) -> float | None:
        """Return by what share it has changed; None where there was nothing before."""
        if self.before is None or self.after is None or not self.before:
            return None
        return self.after / self.before - 1


def compare(base: Sequence[RunResult], new: Sequence[RunResult]) -> list[Change]:
    """Return everything that was compared, the worst first; ValueError if they are not of one scenario."""
    names = sorted({result.scenario for result in (*base, *new)})
    if len(names) != 1:
        raise ValueError(f"these are runs of different scenarios: {', '.join(names)}")
    changes = [*_expectations(base, new), *_measurements(base, new)]
    order: dict[Course, int] = {"worse": 0, "better": 1, "other": 2, "same": 3}
    return sorted(changes, key=lambda change: (order[change.course], -abs(change.ratio or 0.0), change.name))


def _expectations(base: Sequence[RunResult], new: Sequence[RunResult]) -> list[Change]:
    """Return what was met in all runs of one side, and not of the other."""
    before, after = _met(base), _met(new)
    changes = []
    for name in sorted(before.keys() & after.keys()):
        was, now = before[name], after[name]
        if was == now:
            continue
        course: Course = "worse" if now < was else "better"
        changes.append(Change(name, course, was, now, "share of the runs in which it was met"))
    return changes


def _met(results: Sequence[RunResult]) -> dict[str, float]:
    """Return in which share of the runs each expectation was met."""
    counts: dict[str, list[bool]] = {}
    for result in results:
        judged = [(one.name, one.outcome) for one in (*result.thresholds, *result.checks, *result.assertions)]
        judged += [(f"step {step.name}", step.outcome) for step in result.steps]
        judged += [(f"recovered from {fault.name}", fault.outcome) for fault in result.faults]
        for name, outcome in judged:
            counts.setdefault(name, []).append(outcome == "PASS")
    return {name: sum(met) / len(met) for name, met in counts.items()}


@dataclass(frozen=True, slots=True)
class _Side:
    """What one side has measured of a statistic of a metric, by run, and its runs."""

    values: Sequence[float]
    results: Sequence[RunResult]

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))


def _measurements(base: Sequence[RunResult], new: Sequence[RunResult]) -> list[Change]:
    shared = [name for name in base[0].metrics if all(name in result.metrics for result in (*base, *new))]
    changes = []
    for name in shared:
        for statistic in _STATISTICS[metric_of(name).kind]:
            before, after = (
                _Side(
                    [each.metrics[name][statistic] for each in side if statistic in each.metrics[name]], side
                )
                for side in (base, new)
            )
            if before.values and after.values:
                changes.append(_change(name, statistic, before, after))
    return changes


def _change(name: str, statistic: str, before: _Side, after: _Side) -> Change:
    label = f"{name} {statistic}"
    difference = after.mean - before.mean
    if abs(difference) <= _SLIGHT * max(abs(before.mean), abs(after.mean)):
        return Change(label, "same", before.mean, after.mean, f"differs by less than {_SLIGHT:.0%}")
    is_beyond, why = _is_beyond_noise(name, statistic, before, after)
    course: Course = "same"
    if is_beyond:
        worse_when = _WORSE_WHEN.get(metric_of(name).name, 0)
        course = "other" if not worse_when else "worse" if difference * worse_when > 0 else "better"
    return Change(label, course, before.mean, after.mean, why)


def _is_beyond_noise(name: str, statistic: str, before: _Side, after: _Side) -> tuple[bool, str]:
    """Tell whether two sides differ by more than noise, and by what that was told."""
    if len(before.values) > 1 and len(after.values) > 1:
        drawn = _means(np.array(after.values), seed=1) - _means(np.array(before.values), seed=2)
        return _is_without_zero(drawn), f"bootstrap over {len(before.values)} and {len(after.values)} runs"
    metric, pick = metric_of(name), _COURSES.get(name)
    if pick is not None and statistic not in ("min", "max"):
        courses = [_course(side.results, pick) for side in (before, after)]
        if all(len(course) >= 2 * _STRETCHES for course in courses):
            was, now = (_stretches(course) for course in courses)
            return _is_without_zero(_means(now - was, seed=1)), "bootstrap over stretches of the two runs"
    difference = abs(after.mean - before.mean)
    if metric.kind == "counter":
        cluster = _CLUSTER if name.startswith("reports_") else 1.0
        chance = _DEVIATIONS * math.sqrt(cluster * (before.mean + after.mean + 1))
        return difference > chance, f"two counts may differ by {chance:,.0f} by chance"
    if metric.kind == "trend":
        larger, smaller = max(before.mean, after.mean), min(before.mean, after.mean)
        is_beyond = larger > smaller * _SINGLE_FACTOR and difference > _SINGLE_MS
        return (
            is_beyond,
            f"one run on a side: {_SINGLE_FACTOR:g} times and {_SINGLE_MS:g} ms count as a change",
        )
    return False, "one run on a side tells nothing of its noise; compare several"


def _course(
    results: Sequence[RunResult], pick: Callable[[WindowSample], float | None]
) -> NDArray[np.float64]:
    values = [pick(window) for result in results for window in result.windows]
    return np.array([value for value in values if value is not None], dtype="f8")


def _stretches(course: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the means of the stretches of a course."""
    return np.array([part.mean() for part in np.array_split(course, _STRETCHES)])


def _means(values: NDArray[np.float64], *, seed: int) -> NDArray[np.float64]:
    """Return means of as many values as these, drawn from them with replacement; the same for the same seed."""
    drawn = np.random.default_rng(seed).choice(values, (_DRAWS, len(values)))
    return np.asarray(drawn.mean(axis=1), dtype="f8")


def _is_without_zero(differences: NDArray[np.float64]) -> bool:
    """Tell whether zero lies outside the interval in which most of the drawn differences lie."""
    rest = (1 - _CONFIDENCE) / 2 * 100
    low, high = np.percentile(differences, (rest, 100 - rest))
    return bool(low > 0 or high < 0)
