"""Everything that is seen during a run, as it is seen: samples, series for plots, notes, and what invariants say.

Owns what an observation means; when something happens is the engine's business.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from statistics import fmean
from typing import Any, Final, Literal

import numpy as np

from scenarios.abort import AbortWatch
from scenarios.brain import DeviceEvent
from scenarios.checks import Invariants, contains, shown
from scenarios.load_histogram import Histogram
from scenarios.load_orders import LoadNews
from scenarios.metrics import Measurements, histogram_statistic, labelled
from scenarios.result import DevicePoint, DeviceRecord, FaultRecord, LatencySample, Note, WindowSample
from scenarios.spec import Scenario
from scenarios.workloads import expected_count, groups_of
from twins.messages import TickOrder, TickSummary
from twins.shipped import model_named

# More would make a report that nobody reads; the counters say how many there were.
_NOTES_MAX: Final = 200
_DEVICE_COUNTERS: Final = (
    "device_reports",
    "device_deltas",
    "device_rejected",
    "device_disconnects",
    "device_errors",
)
# More stretches than a plot has points would make a file that nobody reads; shorter ones have too few answers.
_LATENCY_SAMPLES_MAX: Final = 600
_LATENCY_WIDTH_S: Final = 0.5
_WINDOW_SAMPLES_MAX: Final = 1200
# What summaries say of reports, by the metric's name.
_REPORT_COUNTS: Final = (
    "reports_lost",
    "reports_offline",
    "reports_refused",
    "reports_silent",
    "reports_dropped",
    "reports_delayed",
    "reports_reordered",
    "reports_duplicated",
    "reports_resent",
    "reports_misdated",
    "connect_attempts",
    "reports_in_flight",
    "reports_buffered",
)
# What load processes tell, by the metric's name: counts, and histograms of durations.
_WIRE_COUNTS: Final[Mapping[str, str]] = {
    "connect_errors": "connect_errors",
    "connections_lost": "lost_connections",
    "messages_sent": "sent",
    "messages_resent": "resent",
    "messages_lost": "lost",
    "deltas_received": "deltas",
}
_WIRE_TIMES: Final[Mapping[str, str]] = {
    "ingest_latency": "ingest",
    "connect_latency": "connecting",
    "send_lag": "late",
}
# What a display shows while a run goes on, by the metric's name.
_SHOWN_LATENCIES: Final[Mapping[str, str]] = {
    "report_latency": "latency",
    "ingest_latency": "latency on the wire",
    "device_round_trip": "round trip",
}
_COUNTER_OF: Final[Mapping[str, str]] = {
    "accepted": "device_reports",
    "obeyed": "device_reports",
    "delta": "device_deltas",
    "rejected": "device_rejected",
    "disconnected": "device_disconnects",
    "unanswered": "device_errors",
    "failed": "device_errors",
}


class Observer:
    """The observations of one run. All methods work in place."""

    def __init__(self, scenario: Scenario) -> None:
        self.measurements = Measurements()
        self.measurements.is_counting = False
        self.invariants = Invariants(groups_of(scenario))
        self.windows: list[WindowSample] = []
        self.device_points: list[DevicePoint] = []
        self.notes: list[Note] = []
        self.virtual_s = 0.0
        self.device_values: dict[str, dict[str, Any]] = {}
        self.report_count = 0
        self.abort_watch = AbortWatch(scenario.abort_on, self.measurements)
        self._scenario = scenario
        self._has_labels = any(
            "{" in metric
            for metric in (
                *(one.metric for one in scenario.thresholds),
                *(one.metric for one in scenario.abort_on),
            )
        )
        self._started_s = time.perf_counter()
        self._has_devices = bool(scenario.devices)
        self._settable = {
            device.thing_name: [field.name for field in model_named(device.model).fields if field.is_settable]
            for device in scenario.devices
        }
        # Of every accepted report of a real device: when it was, and how long that took.
        self._round_trips: dict[str, list[tuple[float, float]]] = {}
        self._device_counts: dict[str, Counter[str]] = {}
        # Of simulated devices on the wire: when news came, and how long answers took, in buckets.
        self._ingest: list[tuple[float, Mapping[int, int]]] = []
        self._wire_errors: dict[str, int] = {}
        self._asked: dict[str, tuple[float, Mapping[str, Any]]] = {}

    @property
    def wall_s(self) -> float:
        """Return the wall time since the run began."""
        return time.perf_counter() - self._started_s

    def begin(self) -> None:
        """Begin the time that plots and notes count from."""
        self._started_s = time.perf_counter()

    def count(self, *, is_counting: bool) -> None:
        """Let samples count from now on, or no longer."""
        self.measurements.is_counting = is_counting
        for name in _DEVICE_COUNTERS if self._has_devices else ():
            # Watched from here on: that nothing happens is an observation too.
            self.measurements.add(name, 0)

    def on_time(self, virtual_s: float) -> None:
        """Take in that virtual time has come to here."""
        if self.measurements.is_counting:
            self.measurements.measured_s += virtual_s - self.virtual_s
        self.virtual_s = virtual_s

    def note(self, text: str) -> None:
        """Keep a remark for the report."""
        if len(self.notes) < _NOTES_MAX:
            self.notes.append(Note(self.wall_s, text))

    def latencies_so_far(self) -> dict[str, str]:
        """Return half and nearly all of each kind of latency that was measured so far, as text."""
        found: dict[str, str] = {}
        for metric, name in _SHOWN_LATENCIES.items():
            half, most = (self.measurements.statistic(metric, each) for each in ("med", "p(99)"))
            if half is not None and most is not None:
                found[name] = f"{shown(metric, 'med', half)}, p(99) {shown(metric, 'p(99)', most)}"
        return found

    def on_window(
        self,
        orders: Sequence[TickOrder],
        summaries: Mapping[str, TickSummary],
        *,
        lag_ms: float | None,
        is_broken: bool = False,
    ) -> None:
        """Take in what happened in one window of ticks of all groups; `is_broken` as in `Invariants.on_window`."""
        total = TickSummary()
        tick_count = orders[0].tick_count
        expected = expected_count(self._scenario, orders[0].first_tick + tick_count)
        for order in orders:
            summary = summaries.get(order.group, TickSummary())
            self.invariants.on_window(order, summary, is_broken=is_broken)
            total += summary
            if self._has_labels:
                self._sample(summary, expected[order.group], group=order.group)
        latencies = _latencies(total)
        connected_ratio = self._sample(total, sum(expected.values()))
        if lag_ms is not None:
            self._add("tick_lag", lag_ms)
        self.report_count += total.reports_arrived
        self.windows.append(
            WindowSample(
                virtual_s=orders[0].first_tick + tick_count,
                wall_s=self.wall_s,
                reports_per_s=total.reports_arrived / tick_count,
                connected_ratio=connected_ratio,
                delta_outstanding=total.delta_count,
                lag_ms=lag_ms,
                reports_lost_per_s=total.reports_lost / tick_count,
                reports_kept=total.reports_in_flight + total.reports_buffered,
                latency_ms_med=latencies.get("med"),
                latency_ms_p95=latencies.get("p(95)"),
                latency_ms_p99=latencies.get("p(99)"),
                expected_count=round(sum(expected.values())),
            )
        )

    def _add(self, name: str, value: float) -> None:
        self.measurements.add(name, value)
        self.abort_watch.recent.add(name, value)

    def _sample(self, summary: TickSummary, expected: float, *, group: str = "") -> float:
        """Take in the samples of one window, of one group or of all; return the share that is connected."""

        def name_of(metric: str) -> str:
            return labelled(metric, "group", group) if group else metric

        self._add(name_of("reports"), summary.reports_arrived)
        for name in _REPORT_COUNTS:
            self._add(name_of(name), getattr(summary, name))
        for measurements in (self.measurements, self.abort_watch.recent):
            measurements.add_histogram(name_of("report_latency"), summary.latency)
        self._add(name_of("delta_outstanding"), summary.delta_count)
        if expected < 1:
            # Nobody has to be there yet: that says nothing of connections.
            return 1.0
        # Who has just come may be connected already, and who is about to go, still.
        connected_ratio = min(1.0, summary.connected_count / expected)
        self._add(name_of("connected_ratio"), connected_ratio)
        return connected_ratio

    def on_fault(self, fault: FaultRecord) -> None:
        """Take in what came of a fault; also after the time that counts, because recovering may take longer."""
        measurements = self.measurements
        is_counting, measurements.is_counting = measurements.is_counting, True
        times = {"recovery_time": fault.recovery_s}
        if fault.layer != "simulated":
            times["steady_time"] = fault.steady_s
        for metric, seconds in times.items():
            if seconds is None:
                measurements.spoil(metric)
            else:
                measurements.add(metric, seconds * 1000)
                measurements.add(labelled(metric, "fault", fault.name), seconds * 1000)
        measurements.is_counting = is_counting

    def on_audit(self, accepted: int, unknown: int) -> None:
        """Take in what the auditor has counted."""
        measurements = self.measurements
        is_counting, measurements.is_counting = measurements.is_counting, True
        measurements.add("audit_accepted", accepted)
        measurements.add("audit_unknown", unknown)
        measurements.is_counting = is_counting

    def on_settled(self, summaries: Mapping[str, TickSummary]) -> None:
        """Take in what became of reports that were still under way when the last tick was over."""
        for group, summary in summaries.items():
            self.invariants.on_settled(group, summary)
            self.measurements.add("reports", summary.reports_arrived)
            self.measurements.add("reports_lost", summary.reports_lost)
            self.measurements.add("reports_refused", summary.reports_refused)
            self.report_count += summary.reports_arrived

    def on_wire(self, news: LoadNews) -> None:
        """Take in what happened on the wire."""
        for metric, name in _WIRE_COUNTS.items():
            self._add(metric, getattr(news, name))
        for metric, name in _WIRE_TIMES.items():
            for measurements in (self.measurements, self.abort_watch.recent):
                measurements.merge(metric, getattr(news, name))
        if news.ingest:
            self._ingest.append((self.wall_s, dict(news.ingest)))
            if len(self._ingest) > 2 * _LATENCY_SAMPLES_MAX:
                self._ingest = _pairs_together(self._ingest)
        for reason, count in news.errors.items():
            if reason not in self._wire_errors:
                self.note(f"wire: {count} connections ended or failed: {reason}")
            self._wire_errors[reason] = self._wire_errors.get(reason, 0) + count

    def note_wire(self) -> None:
        """Note how often each reason was met for which a connection on the wire ended or failed."""
        for reason, count in self._wire_errors.items():
            self.note(f"wire: {count} connections ended or failed in all: {reason}")

    def on_asked(self, thing_name: str, state: Mapping[str, Any]) -> None:
        """Note that a desired change of a real device is about to be asked for."""
        if thing_name in self._settable:
            self._asked[thing_name] = (time.perf_counter(), state)
            self._plot(thing_name, "desired", state)

    def on_event(self, thing_name: str, event: DeviceEvent) -> None:
        """Take in something that a real device has seen."""
        name = _COUNTER_OF.get(event.kind)
        if name is not None:
            self._add(name, 1)
            self._device_counts.setdefault(thing_name, Counter())[name] += 1
        if event.message:
            self.note(f"{thing_name}: {event.kind}: {event.message}")
        if event.kind in ("accepted", "obeyed"):
            self.invariants.on_accepted(thing_name, event.version)
            self._add("device_round_trip", event.latency_ms)
            self._round_trips.setdefault(thing_name, []).append((self.wall_s, event.latency_ms))
            self.device_values.setdefault(thing_name, {}).update(event.state)
            self._plot(thing_name, "reported", event.state)
        if event.kind == "obeyed":
            self._on_obeyed(thing_name, event.state)

    def device_record(
        self, thing_name: str, model: str, transport: Literal["mqtt", "in-process"]
    ) -> DeviceRecord:
        """Return what a real device has done."""
        counts = self._device_counts.get(thing_name, Counter())
        times = [ms for _, ms in self._round_trips.get(thing_name, ())]
        return DeviceRecord(
            thing_name,
            model,
            transport,
            report_count=counts["device_reports"],
            disconnect_count=counts["device_disconnects"],
            error_count=counts["device_errors"] + counts["device_rejected"],
            round_trip_ms_p95=float(np.percentile(times, 95)) if times else None,
            round_trip_ms_max=max(times, default=None),
        )

    def latencies(self) -> tuple[LatencySample, ...]:
        """Return how long answers to real devices, and to those on the wire, took over the course of the run."""
        trips = sorted(trip for trips in self._round_trips.values() for trip in trips)
        last_s = max([at_s for at_s, _ in trips[-1:]] + [at_s for at_s, _ in self._ingest[-1:]], default=0.0)
        width_s = max(_LATENCY_WIDTH_S, last_s / _LATENCY_SAMPLES_MAX)
        samples = []
        for position, stretch in groupby(trips, key=lambda trip: int(trip[0] / width_s)):
            times = [ms for _, ms in stretch]
            med, p95, p99 = (float(value) for value in np.percentile(times, (50, 95, 99)))
            samples.append(LatencySample((position + 1) * width_s, len(times), med, p95, p99, max(times)))
        for position, news in groupby(self._ingest, key=lambda each: int(each[0] / width_s)):
            histogram = Histogram()
            for _, counts in news:
                histogram.merge(counts)
            med, p95, p99 = (histogram.quantile_s(share) * 1000 for share in (0.5, 0.95, 0.99))
            most = histogram.bounds_s()[1] * 1000
            end_s = (position + 1) * width_s
            samples.append(LatencySample(end_s, histogram.count, med, p95, p99, most, "wire"))
        return tuple(samples)

    def sampled_windows(self) -> tuple[WindowSample, ...]:
        """Return windows for the report, put together where there are more of them than anybody can see."""
        size = -(-len(self.windows) // _WINDOW_SAMPLES_MAX) or 1
        parts = [self.windows[start : start + size] for start in range(0, len(self.windows), size)]
        return tuple(_together(part) for part in parts)

    def _on_obeyed(self, thing_name: str, state: Mapping[str, Any]) -> None:
        asked_s, wished = self._asked.get(thing_name, (0.0, {}))
        settable = {name: wished[name] for name in self._settable.get(thing_name, ()) if name in wished}
        if settable and contains(state, settable):
            del self._asked[thing_name]
            self._add("delta_to_reported", (time.perf_counter() - asked_s) * 1000)

    def _plot(
        self, thing_name: str, section: Literal["desired", "reported"], state: Mapping[str, Any]
    ) -> None:
        for name in self._settable.get(thing_name, ()):
            value = state.get(name)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                point = DevicePoint(thing_name, section, name, float(value), self.wall_s, self.virtual_s)
                self.device_points.append(point)


def _pairs_together(news: Sequence[tuple[float, Mapping[int, int]]]) -> list[tuple[float, Mapping[int, int]]]:
    """Return histograms, each with its time, half as many: two that follow each other are one, of the later's time."""
    pairs = [news[start : start + 2] for start in range(0, len(news), 2)]
    merged: list[tuple[float, Mapping[int, int]]] = []
    for pair in pairs:
        histogram = Histogram()
        for _, counts in pair:
            histogram.merge(counts)
        merged.append((pair[-1][0], histogram.counts))
    return merged


def _together(windows: Sequence[WindowSample]) -> WindowSample:
    """Return windows that follow each other as one: rates on average, everything else as bad as it was."""
    if len(windows) == 1:
        return windows[0]

    def most(values: Iterable[float | None]) -> float | None:
        return max((value for value in values if value is not None), default=None)

    last = windows[-1]
    return WindowSample(
        virtual_s=last.virtual_s,
        wall_s=last.wall_s,
        reports_per_s=fmean(each.reports_per_s for each in windows),
        connected_ratio=min(each.connected_ratio for each in windows),
        delta_outstanding=max(each.delta_outstanding for each in windows),
        lag_ms=most(each.lag_ms for each in windows),
        reports_lost_per_s=fmean(each.reports_lost_per_s for each in windows),
        reports_kept=max(each.reports_kept for each in windows),
        latency_ms_med=most(each.latency_ms_med for each in windows),
        latency_ms_p95=most(each.latency_ms_p95 for each in windows),
        latency_ms_p99=most(each.latency_ms_p99 for each in windows),
        expected_count=last.expected_count,
    )


def _latencies(total: TickSummary) -> dict[str, float]:
    """Return percentiles of how long the reports took that arrived, in milliseconds; nothing where none is known."""
    if not any(total.latency):
        return {}
    counts = np.array(total.latency, np.int64)
    return {statistic: histogram_statistic(counts, statistic) for statistic in ("med", "p(95)", "p(99)")}
