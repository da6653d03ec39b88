"""What a run leaves behind: frozen records of everything that was judged, measured and waited for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

Outcome = Literal["PASS", "FAIL", "NO_DATA"]
Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE", "ABORTED", "NOTHING_RAN", "INTERRUPTED"]

EXIT_CODES: Final[Mapping[Verdict, int]] = {
    "PASS": 0,
    "FAIL": 1,
    "INCONCLUSIVE": 3,
    "ABORTED": 4,
    "NOTHING_RAN": 5,
    # As a shell tells that SIGINT (2) ended a program: 128 + 2.
    "INTERRUPTED": 130,
}


@dataclass(frozen=True, slots=True)
class Judgement:
    """The outcome of one threshold, check, assertion or step: what was wanted and what was found."""

    name: str
    outcome: Outcome
    expected: str
    actual: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step as it happened; `held_s` is the wall time for which it held virtual time."""

    at_s: int
    wall_s: float
    name: str
    outcome: Outcome
    detail: str = ""
    held_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Hold:
    """A stretch of wall time in which virtual time stood still, and what was awaited."""

    at_s: int
    wall_s: float
    duration_s: float
    thing_name: str
    awaited: str
    is_fulfilled: bool


@dataclass(frozen=True, slots=True)
class WindowSample:
    """The simulated fleet over one window of ticks that ended at `virtual_s`."""

    virtual_s: int
    wall_s: float
    reports_per_s: float
    connected_ratio: float
    delta_outstanding: int
    lag_ms: float | None


@dataclass(frozen=True, slots=True)
class DevicePoint:
    """A value of a real device at a moment: `desired` when it was asked for, `reported` when it was accepted."""

    thing_name: str
    section: Literal["desired", "reported"]
    field: str
    value: float
    wall_s: float
    virtual_s: float


@dataclass(frozen=True, slots=True)
class Note:
    """Something that an engineer may want to know, `wall_s` after the start."""

    wall_s: float
    text: str


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """One real device: `transport` says whether it was a process on the wire or played in this process."""

    thing_name: str
    model: str
    transport: Literal["mqtt", "in-process"]


@dataclass(frozen=True, slots=True)
class RunResult:
    """Everything about one run; times with `_at` are seconds since the Unix epoch, `wall_s` since its start."""

    run_id: str
    scenario: str
    file: str
    verdict: Verdict
    reason: str
    seed: int
    version: str
    digest: str
    command: str
    fleet: str
    shard_count: int
    clock: str
    started_at: float
    ended_at: float
    duration_s: int
    virtual_s: int
    simulated_count: int
    description: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    devices: tuple[DeviceRecord, ...] = ()
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    thresholds: tuple[Judgement, ...] = ()
    checks: tuple[Judgement, ...] = ()
    assertions: tuple[Judgement, ...] = ()
    steps: tuple[StepRecord, ...] = ()
    holds: tuple[Hold, ...] = ()
    windows: tuple[WindowSample, ...] = ()
    device_points: tuple[DevicePoint, ...] = ()
    notes: tuple[Note, ...] = ()

    @property
    def exit_code(self) -> int:
        """Return what the process should exit with."""
        return EXIT_CODES[self.verdict]

    @property
    def wall_s(self) -> float:
        """Return how long the run took by the wall clock."""
        return self.ended_at - self.started_at

    def outcomes(self) -> list[Outcome]:
        """Return the outcome of everything that was judged."""
        judged: list[Any] = [*self.thresholds, *self.checks, *self.assertions, *self.steps]
        return [record.outcome for record in judged]
