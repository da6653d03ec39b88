"""What a scenario is: frozen objects whose values are of their types and agree with each other.

Reading a file, and refusing what is wrong in it, is `reading`'s; this module owns the words only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

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
class FaultSpec:
    """A fault of simulated devices, in ticks of `TICK_S`, and the groups whose devices it hits."""

    fault: Fault
    groups: tuple[str, ...]

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
class Scenario:
    """A whole scenario, checked."""

    name: str
    file: str
    duration_s: int
    seed: int = 0
    start_s: int = DEFAULT_START_S
    warmup_s: int = 0
    clock: ClockSpec = ClockSpec()
    description: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    groups: tuple[GroupSpec, ...] = ()
    wire: WireSpec = WireSpec()
    devices: tuple[DeviceSpec, ...] = ()
    steps: tuple[Step, ...] = ()
    faults: tuple[FaultSpec | PlatformFault, ...] = ()
    checks: tuple[str, ...] = ()
    thresholds: tuple[Threshold, ...] = ()
    assertions: tuple[Assertion, ...] = ()


CHECKS: Final[Mapping[str, str]] = {
    "version_never_decreases": "the shadow version that a real device is told never goes back",
    "every_report_accounted_for": "every report that was due has arrived, or it is known why not, in every group",
    "no_acknowledged_update_lost": "what the platform accepted from the auditor's devices and operators is never lost, "
    "taken back, or carried out in another order",
}


def _brief(state: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {value!r}" for key, value in state.items())
