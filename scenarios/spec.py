"""What a scenario is: frozen objects whose values are of their types and agree with each other.

Reading a file, and refusing what is wrong in it, is `reading`'s; this module owns the words only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec

from scenarios.metrics import Comparison, Condition
from twins.faults import Fault
from twins.link import Network
from twins.model import DeviceModel

API_VERSION: Final = "twinfleet/v1"
# 2026-01-01T00:00:00Z. Any fixed instant would do: simulated stamps, and so the digest, must not depend on today.
DEFAULT_START_S: Final = 1_767_225_600
# The length of a tick in virtual time.
TICK_S: Final = 1
# How long a step waits for a real device, in wall time, where the scenario does not say.
DEFAULT_TIMEOUT_S: Final = 10.0


# How a simulated device reaches its twin: within the engine, or over a connection of its own through the broker.
PathKind = Literal["engine", "wire"]
# How a device tries again that has lost its connection, or has got none.
Backoff = Literal["exponential", "none"]


@dataclass(frozen=True, slots=True)
class ClockSpec:
    """How virtual time follows the wall clock; `speed` virtual seconds pass in one second, None with `asap`."""

    mode: Literal["asap", "realtime", "accelerated"] = "asap"
    speed: float | None = None

    def __str__(self) -> str:
        return f"{self.mode}, speed {self.speed:g}" if self.mode == "accelerated" else self.mode


@dataclass(frozen=True, slots=True)
class ChoiceSpec:
    """A property that each simulated device draws once: one of `values`, by weight (evenly where there are none)."""

    values: tuple[str, ...]
    weights: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class GroupSpec:
    """A simulated fleet: `count` devices of one model, shipped or read from a file, with computed names."""

    name: str
    model: DeviceModel
    count: int
    thing_name: str
    report_every_s: int = 10
    attributes: Mapping[str, ChoiceSpec] = field(default_factory=dict)
    network: Network | None = None
    path: PathKind = "engine"


@dataclass(frozen=True, slots=True)
class WireSpec:
    """How devices of groups with `path: wire` connect; see `load_orders.LoadSettings`.

    `processes` is the number of load processes, 0: as few as descriptors allow. `connect_rate` is that of all of them.
    """

    processes: int = 0
    connect_rate: float = 500.0
    qos: int = 1
    keep_alive_s: int = 60
    backoff: Backoff = "exponential"
    retry_first_s: float = 1.0
    retry_max_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Stage:
    """A stretch of time at whose end so many devices are there; in between they join, or leave, evenly.

    Either `percent` of each group or `count` of all groups together, each by its size.
    """

    duration_s: int
    percent: float | None = None
    count: int | None = None

    def __str__(self) -> str:
        target = f"{self.percent:g}%" if self.count is None else f"{self.count:,}"
        return f"to {target} within {self.duration_s:,} s"


@dataclass(frozen=True, slots=True)
class FaultSpec:
    """A fault of simulated devices, in ticks of `TICK_S`, and the groups whose devices it hits.

    `where` has, by group, the values of attributes that a device must have; without it, they are the fault's own.
    """

    fault: Fault
    groups: tuple[str, ...]
    where: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)

    def fault_of(self, group: str) -> Fault:
        """Return the fault as it concerns one of its groups."""
        fault = self.fault
        where = self.where.get(group, fault.select.where)
        if where == fault.select.where:
            return fault
        return msgspec.structs.replace(fault, select=msgspec.structs.replace(fault.select, where=where))

    @property
    def name(self) -> str:
        """Return the fault's name."""
        return self.fault.name

    @property
    def at_s(self) -> int:
        """Return the virtual time at which it begins."""
        return self.fault.first_tick * TICK_S


@dataclass(frozen=True, slots=True)
class PlatformFault:
    """What is done to the processes of a running platform at a virtual time; it lasts in real time, as they do.

    `component` is one of `actors.platform_processes.COMPONENTS`, or "disk". `count` says how many of its processes are
    struck (0: all). A kill that lasts is repeated as often as the component comes back; one that does not happens once.
    """

    name: str
    action: Literal["kill", "pause", "restart", "disk_full"]
    at_s: int
    component: str
    duration_s: float = 0.0
    count: int = 1


@dataclass(frozen=True, slots=True)
class WireFault:
    """What happens to the connections between real devices and the broker; it lasts in real time, as they do.

    `percent` of loss is of the pieces in whose place a connection is reset, `rate` is in bytes a second and connection.
    """

    name: str
    action: Literal["latency", "jitter", "loss", "bandwidth", "partition", "disconnect", "reset_peer", "flap"]
    at_s: int
    duration_s: float
    latency_s: float = 0.0
    jitter_s: float = 0.0
    percent: float = 0.0
    rate: float = 0.0
    direction: Literal["up", "down", "both"] = "both"
    interval_s: float = 0.0


AnyFault = FaultSpec | PlatformFault | WireFault


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """A real device: a process with a certificate of its own; `name` is what steps call it."""

    name: str
    thing_name: str
    model: str = "thermostat"
    # In virtual time, like everything in a scenario; the device waits `report_every_s / speed` by its own clock.
    report_every_s: float = 10.0
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SetDesired:
    """Set desired values of every device of a group (in order with the ticks), or of one thing (a live request)."""

    state: Mapping[str, Any]
    group: str | None = None
    thing_name: str | None = None

    def __str__(self) -> str:
        target = f"group {self.group}" if self.group is not None else str(self.thing_name)
        return f"set desired {_brief(self.state)} of {target}"


@dataclass(frozen=True, slots=True)
class WaitFor:
    """Hold virtual time until a twin's reported values are as given, or its delta is empty."""

    thing_name: str
    reported: Mapping[str, Any] = field(default_factory=dict)
    is_delta_empty: bool = False
    timeout_s: float = DEFAULT_TIMEOUT_S

    def __str__(self) -> str:
        parts = [f"reports {_brief(self.reported)}"] if self.reported else []
        parts += ["has no delta"] if self.is_delta_empty else []
        return f"wait until {self.thing_name} {' and '.join(parts)}"


@dataclass(frozen=True, slots=True)
class Step:
    """Something that happens at a virtual time."""

    at_s: int
    action: SetDesired | WaitFor


@dataclass(frozen=True, slots=True)
class Threshold:
    """A condition on a metric over the whole run but its warm-up."""

    metric: str
    condition: Condition


@dataclass(frozen=True, slots=True)
class Assertion:
    """A question in SQL whose first value must be, or compare, as expected; `within_s`: eventually."""

    name: str
    sql: str
    expect: Comparison | str | int | float | bool | None
    within_s: int = 0


@dataclass(frozen=True, slots=True)
class AbortRule:
    """A condition that ends a run once it has held for `for_s` of virtual time without a break.

    The count of a counter is that of the run so far, every other statistic that of the last window of ticks.
    """

    metric: str
    condition: Condition
    for_s: int = 0

    def __str__(self) -> str:
        return f"{self.metric}: {self.condition.text}" + (f" for {self.for_s} s" if self.for_s else "")


@dataclass(frozen=True, slots=True)
class Scenario:
    """A whole scenario, checked.

    `overrides` are what was said beside the file, as KEY=VALUE, `cell` what its matrix has here.
    """

    name: str
    file: str
    duration_s: int
    seed: int = 0
    start_s: int = DEFAULT_START_S
    warmup_s: int = 0
    clock: ClockSpec = ClockSpec()
    path: PathKind = "engine"
    description: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    groups: tuple[GroupSpec, ...] = ()
    wire: WireSpec = WireSpec()
    devices: tuple[DeviceSpec, ...] = ()
    steps: tuple[Step, ...] = ()
    faults: tuple[AnyFault, ...] = ()
    checks: tuple[str, ...] = ()
    thresholds: tuple[Threshold, ...] = ()
    assertions: tuple[Assertion, ...] = ()
    stages: tuple[Stage, ...] = ()
    abort_on: tuple[AbortRule, ...] = ()
    overrides: tuple[str, ...] = ()
    cell: Mapping[str, str] = field(default_factory=dict)


CHECKS: Final[Mapping[str, str]] = {
    "version_never_decreases": "the shadow version that a real device is told never goes back",
    "every_report_accounted_for": "every report that was due has arrived, or it is known why not, in every group",
    "no_acknowledged_update_lost": "what the platform accepted from the auditor's devices and operators is never lost, "
    "taken back, or carried out in another order",
}


def _brief(state: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {value!r}" for key, value in state.items())
