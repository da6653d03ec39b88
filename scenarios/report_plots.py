"""Which plots a report has: the load, the states of devices, latencies, with every fault as a shaded band.

Owns what of a result goes into which plot; how a plot is drawn is `plots`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Final

from scenarios.plots import Band, Line, Plot, Points, Unit, format_time, thin
from scenarios.result import FaultRecord, RunResult

_VIRTUAL: Final = "virtual time"
_WALL: Final = "wall time"
_MEANS_MAX: Final = 150
_Pick = Callable[[Iterable[float]], float]


def plots_of(result: RunResult) -> list[Plot]:
    """Return the plots of a run; those without a point are shown by nobody."""
    plots = [*_fleet_plots(result), *_answer_plots(result)]
    for device in result.devices:
        plots += _device_plots(result, device.thing_name)
    return plots


def _fleet_plots(result: RunResult) -> Iterator[Plot]:
    windows = result.windows
    counts = [float(each.expected_count or result.simulated_count) for each in windows]

    def series(pick: _Pick, values: Sequence[float | None]) -> Points:
        points = [(float(w.virtual_s), v) for w, v in zip(windows, values, strict=True) if v is not None]
        # A mean is of a stretch: of one so short that a few reports more or less make it jump, it tells nothing.
        return thin(points, pick, count_max=_MEANS_MAX) if pick is fmean else thin(points, pick)

    def plot(title: str, unit: Unit, lines: Sequence[Line]) -> Plot:
        bands = fault_bands(result.faults, is_wall=False)
        return Plot(title, _VIRTUAL, unit, lines, bands, x_max=float(result.duration_s))

    lines = [Line("arrived", series(fmean, [each.reports_per_s for each in windows]))]
    if any(each.reports_lost_per_s for each in windows):
        lost = series(fmean, [each.reports_lost_per_s for each in windows])
        lines.append(Line("lost", lost, colour="line-2"))
    yield plot("Load: reports per second of virtual time", "count", lines)
    connected = series(min, [w.connected_ratio * count for w, count in zip(windows, counts, strict=True)])
    # Thinned like those who are connected, so that their points are at the same times.
    everybody = series(max, counts)
    states = [
        Line("connected", connected, is_area=True),
        Line("offline", everybody, colour="line-2", is_area=True, base=connected),
    ]
    yield plot("Device states", "count", states)
    for title, values in (
        ("Twins with an outstanding delta", [float(each.delta_outstanding) for each in windows]),
        (
            "Reports under way, or kept by devices that are offline",
            [float(each.reports_kept) for each in windows],
        ),
    ):
        if any(values):
            yield plot(title, "count", [Line("number", series(max, values))])
    percentiles = (
        Line("median", series(max, [each.latency_ms_med for each in windows])),
        Line("95 of 100", series(max, [each.latency_ms_p95 for each in windows]), colour="line-3"),
        Line("99 of 100", series(max, [each.latency_ms_p99 for each in windows]), colour="line-2"),
    )
    yield plot("Latency of simulated reports", "ms", [line for line in percentiles if line.points])
    lags = series(max, [each.lag_ms for each in windows])
    yield plot("Ticks behind their intended time", "ms", [Line("lag", lags)])


def _answer_plots(result: RunResult) -> Iterator[Plot]:
    """Give the latencies of what goes over the wire, over wall time, because that is the time it lives in."""
    bands = [*_hold_bands(result), *fault_bands(result.faults, is_wall=True)]
    for source, who in (("devices", "real devices"), ("wire", "simulated devices on the wire")):
        samples = [each for each in result.latencies if each.source == source]
        lines = [
            Line("median", thin([(each.wall_s, each.ms_med) for each in samples], max)),
            Line("95 of 100", thin([(each.wall_s, each.ms_p95) for each in samples], max), colour="line-3"),
            Line("99 of 100", thin([(each.wall_s, each.ms_p99) for each in samples], max), colour="line-2"),
        ]
        label = f"{_WALL}, from the intended time of a report to its answer"
        yield Plot(
            f"Latency of answers to {who}", label, "ms", [line for line in lines if line.points], bands
        )


def fault_bands(faults: Sequence[FaultRecord], *, is_wall: bool) -> list[Band]:
    """Return a band for each fault, marked with its number, and one for the time that it took to recover.

    A recovery is shown in the time that it was measured in: of simulated devices in virtual time, else in wall time.
    """
    bands = []
    for number, fault in enumerate(faults, 1):
        begin, end = (
            (fault.wall_begin_s, fault.wall_end_s)
            if is_wall
            else (fault.virtual_begin_s, fault.virtual_end_s)
        )
        label = (
            f"{fault.name}: {fault.action} of {fault.target}, from {format_time(begin)} to {format_time(end)}"
        )
        if fault.recovery_s and (fault.layer != "simulated") == is_wall:
            text = f"{fault.name}: recovering for {fault.recovery_s:.3g} s"
            bands.append(Band(end, end + fault.recovery_s, text, kind="recovering"))
        bands.append(Band(begin, end, label, kind="fault", mark=str(number)))
    return bands


def _steps(points: Points) -> Points:
    """Return the points of a line of steps, without those that change nothing, if they are many."""
    if len(points) <= _MEANS_MAX:
        return points
    turns = [point for before, point in pairwise(points) if point[1] != before[1]]
    return thin([points[0], *turns, points[-1]], max)


def _hold_bands(result: RunResult) -> list[Band]:
    return [
        Band(hold.wall_s, hold.wall_s + hold.duration_s, f"held for {hold.duration_s:.3f} s: {hold.awaited}")
        for hold in result.holds
    ]


def _device_plots(result: RunResult, thing_name: str) -> list[Plot]:
    points = [point for point in result.device_points if point.thing_name == thing_name]
    plots = []
    for name in dict.fromkeys(point.field for point in points):
        lines = [
            Line(
                section,
                _steps([(p.wall_s, p.value) for p in points if p.field == name and p.section == section]),
                colour=colour,
                is_step=True,
                is_dashed=section == "desired",
            )
            for section, colour in (("reported", "line-1"), ("desired", "line-2"))
        ]
        plots.append(
            Plot(
                f"{thing_name}: {name}, desired and reported",
                f"{_WALL}; shaded: virtual time was held" if result.holds else _WALL,
                "value",
                [line for line in lines if line.points],
                [*_hold_bands(result), *fault_bands(result.faults, is_wall=True)],
                from_zero=False,
            )
        )
    return plots
