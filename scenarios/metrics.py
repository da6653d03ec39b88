"""What a run measures: the catalogue of metrics, their samples, and conditions on them in the words of k6.

A counter adds up, a gauge has a value over time, a trend keeps every sample, so that its percentiles are those of
the whole run and never averages of averages.
"""

from __future__ import annotations

import math
import operator
import re
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from scenarios.load_histogram import Histogram
from twins.program import HISTOGRAM_BUCKETS, HISTOGRAM_FIRST, HISTOGRAM_SHIFT

Kind = Literal["counter", "gauge", "trend"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One thing that is measured; trends are in milliseconds."""

    name: str
    kind: Kind
    unit: str
    meaning: str
    # The label by which its samples are also kept apart, if any: thresholds name it as `recovery_time{fault:NAME}`.
    label: str = ""
    # Of a counter of what went wrong: the metric that counts what went well. Its `rate` is then a share of both.
    beside: str = ""


def _of_groups(name: str, kind: Kind, meaning: str) -> Metric:
    """Return a metric of simulated devices, whose samples are also kept for each group."""
    return Metric(name, kind, "ms" if kind == "trend" else "", meaning, label="group")


CATALOGUE: Final[Mapping[str, Metric]] = {
    metric.name: metric
    for metric in (
        _of_groups("reports", "counter", "reports of simulated devices that reached their twins"),
        _of_groups("reports_lost", "counter", "reports that were sent and never reached their twin"),
        _of_groups("reports_offline", "counter", "reports that were due while the device was offline"),
        _of_groups("reports_refused", "counter", "reports that arrived damaged or could not be read"),
        _of_groups(
            "reports_silent",
            "counter",
            "reports that were due while the device hung, or was not there by the stages",
        ),
        _of_groups("reports_dropped", "counter", "reports kept while offline that had to make room"),
        _of_groups(
            "reports_delayed", "counter", "reports that arrived in a later second than they were due in"
        ),
        _of_groups("reports_reordered", "counter", "reports that arrived after a newer one"),
        _of_groups("reports_duplicated", "counter", "reports that arrived once more"),
        _of_groups("reports_resent", "counter", "reports that were sent again (QoS 1)"),
        _of_groups("reports_misdated", "counter", "reports whose own time stamp was wrong"),
        _of_groups("connect_attempts", "counter", "attempts to get a connection in reconnect storms"),
        _of_groups("reports_in_flight", "gauge", "reports under way between devices and twins"),
        _of_groups("reports_buffered", "gauge", "reports that devices keep because they are offline"),
        _of_groups(
            "report_latency",
            "trend",
            "virtual time from the moment a simulated report was due to its arrival; groups with a network only",
        ),
        _of_groups(
            "connected_ratio",
            "gauge",
            "share of the simulated devices that are connected, of those that the stages let be there",
        ),
        _of_groups("delta_outstanding", "gauge", "simulated twins whose desired and reported state differ"),
        Metric(
            "tick_lag", "trend", "ms", "how late simulated ticks were finished, behind their intended time"
        ),
        Metric(
            "connect_errors",
            "counter",
            "",
            "attempts of devices on the wire to connect that failed; rate: as a share of all attempts",
            beside="connect_latency",
        ),
        Metric("connections_lost", "counter", "", "connections on the wire that ended without being closed"),
        Metric("messages_sent", "counter", "", "reports that were sent over the wire"),
        Metric("messages_resent", "counter", "", "reports that were sent again after a connection was lost"),
        Metric("messages_lost", "counter", "", "reports sent over the wire that never had an answer"),
        Metric("deltas_received", "counter", "", "deltas that devices on the wire received"),
        Metric(
            "ingest_latency", "trend", "ms", "from the time a report was due on the wire to its `accepted`"
        ),
        Metric("connect_latency", "trend", "ms", "from a device's attempt to connect to its subscription"),
        Metric("send_lag", "trend", "ms", "how late reports left the load processes, behind their due time"),
        Metric("device_reports", "counter", "", "reports of real devices that were accepted"),
        Metric("device_deltas", "counter", "", "deltas that real devices received"),
        Metric("device_rejected", "counter", "", "requests of real devices that were rejected"),
        Metric("device_disconnects", "counter", "", "connections that real devices lost"),
        Metric("device_errors", "counter", "", "requests of real devices without answer, and failed devices"),
        Metric(
            "device_round_trip", "trend", "ms", "from the intended time of a real report to its `accepted`"
        ),
        Metric(
            "delta_to_reported", "trend", "ms", "from a desired change to the real device's obeying report"
        ),
        Metric(
            "recovery_time",
            "trend",
            "ms",
            "from the end of a fault until all is served again; of simulated faults in virtual time",
            label="fault",
        ),
        Metric(
            "steady_time",
            "trend",
            "ms",
            "from the end of a fault of the platform until answers are as quick as they were before",
            label="fault",
        ),
        Metric(
            "audit_accepted", "counter", "", "updates and reads of the auditor that the platform carried out"
        ),
        Metric("audit_unknown", "counter", "", "requests of the auditor of which nobody knows what became"),
    )
}

# A metric's name as thresholds write it: with a value of its label, or without.
_LABELLED: Final = re.compile(r"([a-z_]+)\{\s*([a-z_]+)\s*:\s*([^{}]+?)\s*\}")
LABELS: Final = tuple(sorted({metric.label for metric in CATALOGUE.values() if metric.label}))

_STATISTICS: Final[Mapping[Kind, tuple[str, ...]]] = {
    "counter": ("count", "rate"),
    "gauge": ("value", "min", "max", "avg", "med", "p(N)"),
    "trend": ("avg", "min", "med", "max", "p(N)", "count"),
}
_OPERATORS: Final[Mapping[str, Callable[[float, float], bool]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_OF_SAMPLES: Final[Mapping[str, Callable[[NDArray[np.float64]], float]]] = {
    "count": len,
    "value": lambda samples: samples[-1],
    "min": np.min,
    "max": np.max,
    "avg": np.mean,
    "med": np.median,
}
_NUMBER: Final = r"(-?[0-9][0-9_]*(?:\.[0-9]+)?)"
_COMPARISON: Final = re.compile(rf"(<=|>=|==|!=|<|>)\s*{_NUMBER}\s*(ms|s|m|h|%)?")
_CONDITION: Final = re.compile(r"([a-z]+|p\(\s*[0-9.]+\s*\))\s*((?:<=|>=|==|!=|<|>).*)")
_FACTORS: Final = {"": 1.0, "ms": 1.0, "s": 1e3, "m": 60e3, "h": 3600e3, "%": 0.01}


@dataclass(frozen=True, slots=True)
class Comparison:
    """A relation to a number, such as `> 0` or `< 2s`."""

    text: str
    operator: str
    bound: float

    @classmethod
    def parse(cls, text: str, *, units: tuple[str, ...] = ()) -> Comparison:
        """Return the comparison; ValueError says what is wrong, also with a unit that is not one of `units`."""
        found = _COMPARISON.fullmatch(text.strip())
        if found is None:
            raise ValueError(f"{text!r} is no comparison like '> 0' or '<= 2.5'")
        unit = found[3] or ""
        if unit and unit not in units:
            allowed = f"one of {', '.join(units)}" if units else "no unit"
            raise ValueError(f"{text!r}: the number takes {allowed}, not {unit!r}")
        return cls(text.strip(), found[1], float(found[2].replace("_", "")) * _FACTORS[unit])

    def holds(self, value: float) -> bool:
        """Tell whether `value` stands in this relation to the bound; NaN stands in none."""
        return not math.isnan(value) and _OPERATORS[self.operator](value, self.bound)


@dataclass(frozen=True, slots=True)
class Condition:
    """A statistic of a metric compared with a number, such as `p(99) < 2s` or `count == 0`."""

    text: str
    statistic: str
    comparison: Comparison

    @classmethod
    def parse(cls, text: str, metric: Metric) -> Condition:
        """Return the condition on `metric`; ValueError says what is wrong with it."""
        found = _CONDITION.fullmatch(text.strip())
        if found is None:
            example = {"counter": "count == 0", "gauge": "min > 0.5", "trend": "p(99) < 2s"}[metric.kind]
            raise ValueError(f"{text!r} is no condition like {example!r}")
        statistic = found[1].replace(" ", "")
        allowed = _STATISTICS[metric.kind]
        if statistic.startswith("p("):
            is_known = "p(N)" in allowed and 0 <= float(statistic[2:-1]) <= 100
        else:
            is_known = statistic in allowed
        if not is_known:
            raise ValueError(f"{statistic!r} is no statistic of a {metric.kind}; it has {', '.join(allowed)}")
        units: tuple[str, ...] = ("ms", "s", "m", "h") if metric.unit == "ms" and statistic != "count" else ()
        if metric.kind == "gauge" or (metric.beside and statistic == "rate"):
            units = ("%",)
        return cls(text.strip(), statistic, Comparison.parse(found[2], units=units))


def labelled(name: str, label: str, value: str) -> str:
    """Return the name under which the samples of one value of a label are kept: `recovery_time{fault:outage}`."""
    return f"{name}{{{label}:{value}}}"


def split_label(name: str) -> tuple[str, str, str]:
    """Return a name's metric, label and value; both of these are empty where the name has none."""
    found = _LABELLED.fullmatch(name)
    return (found[1], found[2], found[3]) if found else (name, "", "")


def metric_of(name: str) -> Metric:
    """Return the metric of a name with or without a label; KeyError if there is none."""
    return CATALOGUE[split_label(name)[0]]


class Measurements:
    """The samples of one run; those that come while it is not `is_counting` are passed over.

    `measured_s` is the virtual time over which was counted.
    """

    def __init__(self) -> None:
        self.is_counting = True
        self.measured_s = 0.0
        self._samples: dict[str, array[float]] = {}
        self._counts: dict[str, float] = {}
        self._spoilt: set[str] = set()
        # Of trends with too many samples to keep: how many fell into each bucket of `program.HISTOGRAM_BUCKETS`.
        self._sizes: dict[str, NDArray[np.int64]] = {}
        # Of trends that other processes have measured.
        self._merged: dict[str, Histogram] = {}

    def add(self, name: str, value: float) -> None:
        """Record a sample of a metric, labelled or not; 0 of a counter: it was watched, and nothing happened."""
        metric = metric_of(name)
        if not self.is_counting:
            return
        if metric.kind == "counter":
            self._counts[name] = self._counts.get(name, 0.0) + value
        else:
            self._samples.setdefault(name, array("d")).append(value)

    def spoil(self, name: str) -> None:
        """Let a metric have no statistics: a sample is missing that would have been its worst."""
        self._spoilt.add(name)

    def add_histogram(self, name: str, counts: Sequence[int]) -> None:
        """Record many samples of a trend by their sizes, in the buckets of `program.HISTOGRAM_BUCKETS`."""
        if self.is_counting and any(counts):
            self._sizes[name] = self._sizes.get(name, np.zeros(HISTOGRAM_BUCKETS, np.int64)) + np.array(
                counts
            )

    def merge(self, name: str, counts: Mapping[int, int]) -> None:
        """Record many samples of a trend by the buckets of a `load_histogram.Histogram`."""
        if self.is_counting and counts:
            self._merged.setdefault(name, Histogram()).merge(counts)

    def statistic(self, name: str, statistic: str) -> float | None:
        """Return a statistic over all samples of a metric, or None if there are none."""
        if name in self._spoilt:
            return None
        if metric_of(name).kind == "counter":
            return self._of_counter(name, statistic) if name in self._counts else None
        if name in self._merged:
            return _of_histogram(self._merged[name], statistic)
        if name in self._sizes:
            return histogram_statistic(self._sizes[name], statistic)
        if not self._samples.get(name):
            return None
        samples = np.frombuffer(self._samples[name], dtype="f8")
        if statistic.startswith("p("):
            return float(np.percentile(samples, float(statistic[2:-1])))
        return float(_OF_SAMPLES[statistic](samples))

    def _of_counter(self, name: str, statistic: str) -> float | None:
        count, beside = self._counts[name], metric_of(name).beside
        if statistic == "count":
            return count
        # The rate is per second of virtual time, which is the load that the scenario asked for.
        whole = count + (self.statistic(beside, "count") or 0.0) if beside else self.measured_s
        return count / whole if whole else None

    def statistics(self) -> dict[str, dict[str, float]]:
        """Return the statistics of every metric that has samples, by metric and statistic."""
        shown = {
            **_STATISTICS,
            "gauge": ("value", "min", "max", "avg"),
            "trend": ("count", "min", "avg", "med", "p(95)", "p(99)", "max"),
        }
        result: dict[str, dict[str, float]] = {}
        more = [name for name in (*self._samples, *self._counts) if name not in CATALOGUE]
        for name in (*CATALOGUE, *more):
            metric = metric_of(name)
            values = {statistic: self.statistic(name, statistic) for statistic in shown[metric.kind]}
            present = {statistic: value for statistic, value in values.items() if value is not None}
            if present:
                result[name] = present
        return result


def histogram_statistic(counts: NDArray[np.int64], statistic: str) -> float:
    """Return a statistic of a histogram: a percentile is the upper end of its bucket, at most a quarter too high."""
    bits = np.arange(HISTOGRAM_FIRST, HISTOGRAM_FIRST + HISTOGRAM_BUCKETS + 1, dtype=np.uint32)
    edges = (bits << np.uint32(HISTOGRAM_SHIFT)).view(np.float32).astype(np.float64)
    # The first bucket also has what took no time at all.
    edges[0] = 0.0
    used, total = np.flatnonzero(counts), int(counts.sum())
    if statistic == "count":
        return float(total)
    if statistic == "min":
        return float(edges[used[0]])
    if statistic == "max":
        return float(edges[used[-1] + 1])
    if statistic == "avg":
        return float(((edges[:-1] + edges[1:]) / 2 * counts).sum() / total)
    percent = 50.0 if statistic == "med" else float(statistic[2:-1])
    rank = max(1, math.ceil(percent / 100 * total))
    return float(edges[int(np.searchsorted(np.cumsum(counts), rank)) + 1])


def _of_histogram(histogram: Histogram, statistic: str) -> float:
    """Return a statistic, in milliseconds, of a histogram: at most 3 % too high."""
    if statistic == "count":
        return float(histogram.count)
    if statistic == "avg":
        return histogram.mean_s() * 1000
    if statistic in ("min", "max"):
        return histogram.bounds_s()[statistic == "max"] * 1000
    return histogram.quantile_s(0.5 if statistic == "med" else float(statistic[2:-1]) / 100) * 1000
