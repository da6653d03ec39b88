"""Plots as inline SVG, drawn here: a report needs no script and no network to show them.

Owns scales, ticks, lines and bands. Colours are names of CSS variables, so that a page can be light or dark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Final, Literal

# In units of the drawing; a page scales it. Small enough that its 11-unit text can be read on a telephone.
_WIDTH: Final = 440
_HEIGHT: Final = 190
_LEFT: Final = 48
_RIGHT: Final = 22
_TOP: Final = 14
_BOTTOM: Final = 34
# As many points as a wide screen has pixels for.
_POINTS_MAX: Final = 600
# A band must be seen, however short what it shows.
_BAND_MIN: Final = 2.5
_TICKS: Final = 5

Points = Sequence[tuple[float, float]]
Unit = Literal["count", "percent", "ms", "value"]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a plot, or the area below it; `is_step`: the value stays until the next point."""

    label: str
    points: Points
    colour: str = "line-1"
    is_step: bool = False
    is_dashed: bool = False
    # Filled down to `base`, whose points have the same times, or to the ground where there is none.
    is_area: bool = False
    base: Points = ()


@dataclass(frozen=True, slots=True)
class Band:
    """A shaded stretch of the horizontal axis; `mark` is what stands at its top, in a character or two."""

    start: float
    end: float
    label: str
    kind: Literal["band", "fault", "recovering"] = "band"
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Plot:
    """What a plot shows; the horizontal axis is time in seconds, to `x_max` at least."""

    title: str
    x_label: str
    unit: Unit
    lines: Sequence[Line]
    bands: Sequence[Band] = ()
    x_max: float = 0.0
    from_zero: bool = True


def thin(points: Points, pick: Callable[[Iterable[float]], float], *, count_max: int = _POINTS_MAX) -> Points:
    """Return at most so many points as can be seen, each standing for its stretch by `pick` (min, max or mean)."""
    if len(points) <= count_max:
        return points
    size = -(-len(points) // count_max)
    chunks = [points[start : start + size] for start in range(0, len(points), size)]
    return [(chunk[-1][0], pick(y for _, y in chunk)) for chunk in chunks]


def svg_of(plot: Plot) -> str:
    """Return the plot as one SVG element, or an empty text where there is nothing to show."""
    values = [y for line in plot.lines for _, y in line.points]
    times = [x for line in plot.lines for x, _ in line.points]
    if not values:
        return ""
    x_max = max([plot.x_max, *times]) or 1.0
    y_ticks = _nice_ticks(0.0 if plot.from_zero else min(values), max(values))
    low, high = y_ticks[0], y_ticks[-1]

    def x(value: float) -> float:
        return _LEFT + value / x_max * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    frame = _Frame(x, y, y_ticks, x_max)
    head = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(plot.title)}">'
    parts = [head, *(_band(band, frame) for band in plot.bands), *_axes(plot, frame)]
    for line in plot.lines:
        parts += _line(line, frame)
    return "".join(parts) + "</svg>"


@dataclass(frozen=True, slots=True)
class _Frame:
    """The scales of one plot: from time and value to units of the drawing."""

    x: Callable[[float], float]
    y: Callable[[float], float]
    y_ticks: Sequence[float]
    x_max: float


def _band(band: Band, frame: _Frame) -> str:
    start, end = frame.x(band.start), frame.x(min(band.end, frame.x_max))
    width = max(_BAND_MIN, end - start)
    mark = (
        f'<text class="mark" x="{start + width / 2:.1f}" y="{_TOP - 2}">{escape(band.mark)}</text>'
        if band.mark
        else ""
    )
    return (
        f'<rect class="{band.kind}" x="{start:.1f}" y="{_TOP}" width="{width:.1f}" '
        f'height="{_HEIGHT - _TOP - _BOTTOM}"><title>{escape(band.label)}</title></rect>{mark}'
    )


def _axes(plot: Plot, frame: _Frame) -> Iterator[str]:
    right = _WIDTH - _RIGHT
    for tick in frame.y_ticks:
        height = f"{frame.y(tick):.1f}"
        yield f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{height}" y2="{height}"/>'
        text = format_value(tick, plot.unit)
        yield f'<text class="y" x="{_LEFT - 6}" y="{frame.y(tick) + 3.5:.1f}">{text}</text>'
    for tick in _time_ticks(frame.x_max):
        yield f'<text class="x" x="{frame.x(tick):.1f}" y="{_HEIGHT - _BOTTOM + 14}">{format_time(tick)}</text>'
    middle = (_LEFT + right) / 2
    yield f'<text class="x label" x="{middle:.1f}" y="{_HEIGHT - 5}">{escape(plot.x_label)}</text>'


def _line(line: Line, frame: _Frame) -> Iterator[str]:
    points = [(frame.x(x), frame.y(y)) for x, y in line.points]
    dash = ' stroke-dasharray="5 4"' if line.is_dashed else ""
    path = _path(points, line, end_x=frame.x(frame.x_max))
    if line.is_area and points:
        below = [(frame.x(x), frame.y(y)) for x, y in line.base] or [
            (points[0][0], frame.y(frame.y_ticks[0])),
            (points[-1][0], frame.y(frame.y_ticks[0])),
        ]
        back = "".join(f"L{x:.1f} {y:.1f}" for x, y in reversed(below))
        yield f'<path class="area" style="fill:var(--{line.colour})" d="{path}{back}Z"/>'
    yield f'<path class="line" style="stroke:var(--{line.colour})"{dash} d="{path}"/>'
    if line.is_step and not line.is_dashed:
        for x, y in points:
            yield f'<circle r="2.2" cx="{x:.1f}" cy="{y:.1f}" style="fill:var(--{line.colour})"/>'


def _path(points: Points, line: Line, *, end_x: float) -> str:
    commands = [f"M{points[0][0]:.1f} {points[0][1]:.1f}"] if points else []
    for (_, before), (px, py) in pairwise(points):
        if line.is_step:
            commands.append(f"L{px:.1f} {before:.1f}")
        commands.append(f"L{px:.1f} {py:.1f}")
    if line.is_step and points:
        commands.append(f"L{end_x:.1f} {points[-1][1]:.1f}")
    return "".join(commands)


def _nice_ticks(low: float, high: float) -> list[float]:
    """Return about five round numbers that enclose both bounds."""
    if high - low < 1e-9:
        # A flat line stands in the middle of its plot; one at zero on the ground.
        spread = abs(high) * 0.1 or 1.0
        low, high = (low - spread, high + spread) if low else (0.0, spread)
    step = 10 ** math.floor(math.log10((high - low) / _TICKS))
    for factor in (1, 2, 2.5, 5, 10):
        if (high - low) / (step * factor) <= _TICKS:
            step *= factor
            break
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def _time_ticks(x_max: float) -> list[float]:
    steps = (
        0.01,
        0.05,
        0.1,
        0.5,
        1,
        2,
        5,
        10,
        15,
        30,
        60,
        120,
        300,
        600,
        900,
        1800,
        3600,
        7200,
        21600,
        86400,
    )
    step = next((step for step in steps if x_max / step <= 6), x_max)
    return [index * step for index in range(int(x_max / step + 1e-9) + 1)]


def format_time(seconds: float) -> str:
    """Return a stretch of time as people write it: 0.5 s, 20 s, 2 min, 1:30 min, 3 h."""
    if seconds < 60:
        return f"{seconds:g} s" if seconds else "0"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60 and not rest:
        return f"{minutes // 60}:{minutes % 60:02d} h" if minutes % 60 else f"{minutes // 60} h"
    return f"{minutes}:{rest:02d} min" if rest else f"{minutes} min"


def format_value(value: float, unit: Unit) -> str:
    """Return a number on an axis: short, with its unit where that is not the axis's own."""
    if unit == "percent":
        return f"{value * 100:.4g}%"
    if unit == "ms" and value >= 1000:
        return f"{value / 1000:g} s"
    if unit == "ms":
        return f"{value:g} ms" if value else "0"
    for bound, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= bound:
            return f"{value / bound:g}{suffix}"
    return f"{value:g}"
