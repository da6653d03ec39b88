"""What a trial may do: each fault alone, or all of them, one after the other under one auditor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from tests.chaos.faults import ClockJump, DiskFull, Down, Fault, Kill, Pause, SlowDisk
from tests.chaos.partition import Partition, PauseNode, StoreCutOff
from tests.chaos.stage import Stage

# How long things last: in a short trial as long as it takes to be noticed, at full size as long as operators fear. Who
# stands still for ten seconds is replaced.
_ALL: Final = (
    Kill("shard actor"),
    Kill("bridge", redelivers=True),
    Kill("gateway"),
    Kill("store"),
    Kill("broker", redelivers=True),
    Kill("supervisor", redelivers=True, ends_platform=True),
    Kill("gcs"),
    Kill("raylet", redelivers=True),
    Pause("shard actor", lasts_s=(4.0, 20.0)),
    Pause("bridge", lasts_s=(2.0, 20.0), redelivers=True),
    Pause("store", lasts_s=(2.0, 20.0)),
    Pause("broker", lasts_s=(2.0, 20.0), redelivers=True),
    Down("store", lasts_s=(2.0, 30.0)),
    Down("broker", lasts_s=(2.0, 30.0), redelivers=True),
    DiskFull(lasts_s=(2.0, 10.0)),
    SlowDisk(lasts_s=(2.0, 20.0)),
    ClockJump(lasts_s=(1.0, 5.0)),
    Partition(lasts_s=(4.0, 30.0)),
    StoreCutOff(lasts_s=(4.0, 30.0)),
    PauseNode(lasts_s=(4.0, 30.0)),
)
FAULTS: Final[Mapping[str, Fault]] = {fault.name: fault for fault in _ALL}
# All faults, in an order that the seed draws: what comes of one meets the next.
STORM: Final = "storm"
PLANS: Final[Mapping[str, Sequence[str]]] = {**{name: [name] for name in FAULTS}, STORM: list(FAULTS)}


def faults_of(plan: str, stage: Stage, *, is_full: bool) -> list[Fault]:
    """Return the faults of a plan that this machine allows; a short storm has no more than it must."""
    possible = {name: FAULTS[name] for name in PLANS[plan] if FAULTS[name].is_possible(stage)}
    is_short_storm = plan == STORM and not is_full
    return [fault for fault in possible.values() if not (is_short_storm and fault.stands_in_for in possible)]
