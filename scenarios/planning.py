"""What a scenario will ask for, before anything runs: counts, rates, its course, and the memory that it takes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Final

from scenarios.spec import (
    TICK_S,
    FaultSpec,
    GroupSpec,
    PlatformFault,
    Scenario,
)
from scenarios.stages import present_count
from scenarios.trouble import AUDITED_CHECK
from scenarios.workloads import group_of
from twins.shard import Shard

# Enough devices for the memory of one to be told from that of a fleet.
_SAMPLE_COUNT: Final = 4096


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """One group: `reports_per_s` with all of its devices there, `reports_due` over the whole run by plan."""

    name: str
    model: str
    count: int
    report_every_s: int
    path: str
    reports_per_s: float
    reports_due: int
    bytes_per_twin: int


@dataclass(frozen=True, slots=True)
class Moment:
    """Something that happens at a virtual time."""

    at_s: int
    text: str


@dataclass(frozen=True, slots=True)
class Plan:
    """A scenario before it runs; `wall_s` is None where it runs as fast as it can be computed."""

    scenario: str
    seed: int
    clock: str
    duration_s: int
    wall_s: float | None
    device_count: int
    real_device_count: int
    reports_per_s: float
    reports_due: int
    memory_bytes: int
    needs_platform: str
    groups: tuple[GroupPlan, ...] = ()
    course: tuple[Moment, ...] = ()
    judged: dict[str, int] = field(default_factory=dict)


def plan_of(scenario: Scenario) -> Plan:
    """Return what a scenario will ask for; a small sample of each group is made to see what its twins take."""
    groups = tuple(_group_plan(scenario, group) for group in scenario.groups)
    speed = scenario.clock.speed
    return Plan(
        scenario=scenario.name,
        seed=scenario.seed,
        clock=str(scenario.clock),
        duration_s=scenario.duration_s,
        wall_s=None if speed is None else scenario.duration_s / speed,
        device_count=sum(group.count for group in groups),
        real_device_count=len(scenario.devices),
        reports_per_s=sum(group.reports_per_s for group in groups),
        reports_due=sum(group.reports_due for group in groups),
        memory_bytes=sum(group.count * group.bytes_per_twin for group in groups),
        needs_platform=_needs_platform(scenario),
        groups=groups,
        course=tuple(sorted(_course(scenario), key=lambda moment: moment.at_s)),
        judged={
            "checks": len(scenario.checks),
            "thresholds": len(scenario.thresholds),
            "assertions": len(scenario.assertions),
            "abort_on": len(scenario.abort_on),
        },
    )


def _group_plan(scenario: Scenario, group: GroupSpec) -> GroupPlan:
    total = sum(each.count for each in scenario.groups)
    there_s = sum(
        present_count(scenario.stages, group, total, tick * TICK_S)
        for tick in range(scenario.duration_s // TICK_S)
    )
    made = group_of(dataclasses.replace(group, count=_SAMPLE_COUNT), seed=0, start_s=scenario.start_s)
    shard = Shard(0, 1)
    shard.create_group(made)
    return GroupPlan(
        name=group.name,
        model=group.model.name,
        count=group.count,
        report_every_s=group.report_every_s,
        path=group.path,
        reports_per_s=group.count / group.report_every_s,
        reports_due=round(there_s * TICK_S / group.report_every_s),
        bytes_per_twin=-(-shard.fleets[group.name].memory_bytes() // _SAMPLE_COUNT),
    )


def _needs_platform(scenario: Scenario) -> str:
    """Return what in a scenario takes a running platform; nothing where it runs in one process, too."""
    if any(group.path == "wire" for group in scenario.groups):
        return "devices on the wire"
    other = next((each for each in scenario.faults if not isinstance(each, FaultSpec)), None)
    if other is not None:
        return f"fault {other.name}"
    return f"check {AUDITED_CHECK}" if AUDITED_CHECK in scenario.checks else ""


def _course(scenario: Scenario) -> list[Moment]:
    course = [Moment(step.at_s, str(step.action)) for step in scenario.steps]
    if scenario.warmup_s:
        course.append(Moment(scenario.warmup_s, "end of the warm-up: thresholds count from here"))
    begin_s = 0
    for number, stage in enumerate(scenario.stages, 1):
        course.append(Moment(begin_s, f"stage {number}: {stage}"))
        begin_s += stage.duration_s
    for fault in scenario.faults:
        if isinstance(fault, FaultSpec):
            end_s = (fault.fault.first_tick + fault.fault.tick_count) * TICK_S
            hit = ", ".join(fault.groups)
            course.append(Moment(fault.at_s, f"fault {fault.name} begins: {fault.fault.action} of {hit}"))
            if end_s <= scenario.duration_s:
                course.append(Moment(end_s, f"fault {fault.name} ends"))
            continue
        target = fault.component if isinstance(fault, PlatformFault) else "connections"
        lasts = f" for {fault.duration_s:g} s of real time" if fault.duration_s else ""
        course.append(Moment(fault.at_s, f"fault {fault.name}: {fault.action} {target}{lasts}"))
    course.append(Moment(scenario.duration_s, "end"))
    return course
