"""What a run leaves behind: frozen records of everything that was judged, measured and waited for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    reports_lost_per_s: float = 0.0
    # Reports under way, and those that devices keep because they are offline.
    reports_kept: int = 0
    # Of reports that arrived in this window, groups with a network only: how long that took, in milliseconds.
    latency_ms_med: float | None = None
    latency_ms_p95: float | None = None
    latency_ms_p99: float | None = None
    # How many devices should have been there.
    expected_count: int = 0


@dataclass(frozen=True, slots=True)
class FaultPhase:
    """What was measured before, during or after a fault, by the name of what was measured; empty where nothing was."""

    name: Literal["before", "during", "after"]
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class FaultRecord:
    """One fault as it happened, in both times of the run (seconds since its start).

    `recovery_s` is the time from the fault's end until all was served again, `steady_s` until answers were steadily as
    quick as before it; None where that was not seen. Those of simulated faults are virtual time, the others real time.
    `phases`: from the fault's end on it is *after* until the recovery, or the run's end.
    """

    name: str
    layer: Literal["simulated", "platform", "wire"]
    action: str
    target: str
    virtual_begin_s: float
    virtual_end_s: float
    wall_begin_s: float
    wall_end_s: float
    recovery_s: float | None = None
    steady_s: float | None = None
    phases: tuple[FaultPhase, ...] = ()
    detail: str = ""

    @property
    def outcome(self) -> Outcome:
        """Return whether it was recovered from; of what a simulated fleet did not come back from, nothing is known."""
        if self.recovery_s is not None:
            return "PASS"
        return "NO_DATA" if self.layer == "simulated" else "FAIL"


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
    """One real device: `transport` says whether it was a process on the wire or played in this process.

    `round_trip_ms_p95` and `round_trip_ms_max` are of its accepted reports, from their intended time; None without any.
    """

    thing_name: str
    model: str
    transport: Literal["mqtt", "in-process"]
    report_count: int = 0
    disconnect_count: int = 0
    error_count: int = 0
    round_trip_ms_p95: float | None = None
    round_trip_ms_max: float | None = None


@dataclass(frozen=True, slots=True)
class LatencySample:
    """How long the answers to reports took in a stretch of wall time that ended at `wall_s`.

    `source`: those of real devices, or of simulated ones that are on the wire.
    """

    wall_s: float
    count: int
    ms_med: float
    ms_p95: float
    ms_p99: float
    ms_max: float
    source: Literal["devices", "wire"] = "devices"


@dataclass(frozen=True, slots=True)
class CohortRecord:
    """Simulated devices that have something in common, as they were at the end of the run.

    `by` is "group", "model" or the attribute that they share, `value` what it is. `version_avg` and `version_min` are
    of their shadows' versions: how many reports and changes each twin has taken. `silent_s_max` is the longest virtual
    time that a twin had not changed for.
    """

    group: str
    by: str
    value: str
    device_count: int
    connected_ratio: float
    version_avg: float
    version_min: int
    delta_count: int
    silent_s_max: float


@dataclass(frozen=True, slots=True)
class WorstDevice:
    """A simulated device whose twin had taken fewest reports by the end of the run, or none for longest."""

    thing_name: str
    group: str
    is_connected: bool
    version: int
    silent_s: float
    attributes: Mapping[str, str]


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
    faults: tuple[FaultRecord, ...] = ()
    cohorts: tuple[CohortRecord, ...] = ()
    worst_devices: tuple[WorstDevice, ...] = ()
    latencies: tuple[LatencySample, ...] = ()
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
        return [record.outcome for record in (*judged, *judged_recoveries(self.faults))]


def judged_recoveries(faults: Sequence[FaultRecord]) -> list[FaultRecord]:
    """Return the faults whose recovery is an expectation of its own: those of what is not simulated."""
    return [fault for fault in faults if fault.layer != "simulated"]
