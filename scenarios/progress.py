"""What a person sees while a run goes on: one display that moves on a terminal, else one line a second."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

# Often enough to look alive; a terminal over a slow line bears it.
_REDRAWS_PER_S: Final = 5
# A log wants one line a second.
_LINE_EVERY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Frame:
    """A run at a moment; `reports_per_s` counts seconds of the wall clock, `hold` says what is being waited for.

    `latencies` are statistics of the run so far, by what they are of, as text. `judge` tells how many thresholds hold
    so far, and how many there are: it is asked only when a frame is shown, because it may take some milliseconds.
    """

    scenario: str
    stage: str
    virtual_s: float
    duration_s: int
    wall_s: float
    simulated_count: int = 0
    connected_ratio: float | None = None
    delta_outstanding: int = 0
    report_count: int = 0
    reports_per_s: float = 0.0
    lag_ms: float | None = None
    hold: str = ""
    failed_count: int = 0
    faults: tuple[str, ...] = ()
    planned_stage: str = ""
    latencies: Callable[[], Mapping[str, str]] = dict
    judge: Callable[[], tuple[int, int]] = lambda: (0, 0)
    devices: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


class Progress(Protocol):
    """Whoever is told how a run goes; a context that lasts as long as the run."""

    def __enter__(self) -> Self:
        """Begin to show."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the display."""
        ...

    def show(self, frame: Frame) -> None:
        """Show the run as it is now."""
        ...


class SilentProgress:
    """Shows nothing."""

    def __enter__(self) -> Self:
        """Begin to show nothing."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""

    def show(self, frame: Frame) -> None:
        """Do nothing."""


class LineProgress(SilentProgress):
    """Prints one line a second: for logs, and for output that is no terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next_s = 0.0
        self._stage = ""

    def show(self, frame: Frame) -> None:
        """Print the frame if a second has passed since the last, or if another stage has begun."""
        if frame.wall_s < self._next_s and frame.stage == self._stage:
            return
        self._next_s = frame.wall_s + _LINE_EVERY_S
        self._stage = frame.stage
        self._console.print(line_of(frame), highlight=False, soft_wrap=True)


class TerminalProgress:
    """One display on a terminal that is drawn anew in place."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False, transient=False)
        self._next_s = 0.0

    def __enter__(self) -> Self:
        """Take over the last lines of the terminal."""
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the terminal back, with the last frame on it."""
        self._live.stop()

    def show(self, frame: Frame) -> None:
        """Draw the frame, at most so often as an eye follows."""
        now_s = time.perf_counter()
        if now_s >= self._next_s:
            self._next_s = now_s + 1 / _REDRAWS_PER_S
            self._live.update(display_of(frame), refresh=True)


def progress_for(console: Console) -> Progress:
    """Return the progress that suits the console."""
    return TerminalProgress(console) if console.is_terminal else LineProgress(console)


def line_of(frame: Frame) -> str:
    """Return a frame as one line."""
    parts = [f"{frame.stage}: {_time(frame.virtual_s)} of {_time(frame.duration_s)}"]
    parts += [frame.planned_stage] if frame.planned_stage else []
    if frame.connected_ratio is not None:
        parts.append(f"{frame.simulated_count:,} simulated devices, {frame.connected_ratio:.1%} connected")
        parts.append(f"{frame.reports_per_s:,.0f} reports/s")
        parts.append(f"{frame.delta_outstanding:,} deltas")
    if frame.lag_ms is not None:
        parts.append(f"lag {frame.lag_ms:,.0f} ms")
    parts += [f"{name} {text}" for name, text in frame.latencies().items()]
    parts += [f"{name} {_values(values)}" for name, values in frame.devices.items()]
    if frame.faults:
        parts.append(f"faults: {', '.join(frame.faults)}")
    if frame.hold:
        parts.append(f"held: {frame.hold}")
    parts.append(_verdict(frame))
    return " · ".join(parts)


def display_of(frame: Frame) -> RenderableType:
    """Return a frame as a few lines for a terminal."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    times = (
        f"{_time(frame.virtual_s)} of {_time(frame.duration_s)} virtual · {frame.wall_s:.0f} s of wall time"
    )
    table.add_row("time", times)
    if frame.planned_stage:
        table.add_row("stage", frame.planned_stage)
    if frame.connected_ratio is not None:
        fleet = f"{frame.simulated_count:,} devices · {frame.connected_ratio:.1%} connected"
        table.add_row("simulated", f"{fleet} · {frame.delta_outstanding:,} with a delta")
        table.add_row(
            "reports", f"{frame.report_count:,} · {frame.reports_per_s:,.0f} per second of wall time"
        )
    for name, values in frame.devices.items():
        table.add_row("real", f"{name} · {_values(values)}")
    if frame.lag_ms is not None:
        table.add_row("lag", f"{frame.lag_ms:,.0f} ms behind the intended time")
    for name, text in frame.latencies().items():
        table.add_row(name, text)
    if frame.faults:
        table.add_row("faults", Text(", ".join(frame.faults), style="yellow"))
    verdict = _verdict(frame)
    table.add_row("so far", Text(verdict, style="red" if frame.failed_count else "green"))
    head = Text.assemble((frame.scenario, "bold"), "  ", frame.stage)
    if frame.hold:
        head.append(f"  virtual time is held: {frame.hold}", style="yellow")
    bar = ProgressBar(total=frame.duration_s, completed=min(frame.virtual_s, frame.duration_s))
    return Group(head, bar, table)


def _verdict(frame: Frame) -> str:
    failed = f"{frame.failed_count} failed" if frame.failed_count else "nothing failed"
    holding, count = frame.judge()
    return f"{failed}, {holding} of {count} thresholds hold so far" if count else failed


def _values(values: Mapping[str, Any]) -> str:
    shown = ", ".join(f"{name} {values[name]}" for name in ("temperature", "set_point") if name in values)
    return shown or "connecting"


def _time(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"
