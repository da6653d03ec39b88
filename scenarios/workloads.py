"""What a scenario asks of its simulated fleet: groups to create, and the order for each window of ticks.

Pure: the same scenario and tick give the same orders, whatever the clock or the number of shards.
"""

from __future__ import annotations

from typing import Any, Final

from scenarios.spec import TICK_S, ClockSpec, FaultSpec, GroupSpec, Scenario, SetDesired
from scenarios.stages import absences, present_count
from twins.messages import TickOrder
from twins.model import Attribute, Group

# With `asap` a window is this many ticks: enough that the call costs little beside the ticks, few enough that the
# progress display moves and an interruption is heard.
_ASAP_TICKS: Final = 50
# So many windows at least, while a rule's condition must hold.
_ABORT_WINDOWS: Final = 5
# Short scenarios have shorter windows, so that a plot of their course, and when they recovered, can be told.
_WINDOWS_MIN: Final = 120
# A device comes at the earliest in the tick after its time, and the first ones a tick later.
_LATE_TICKS: Final = 2
# With a paced clock a window lasts about this long by the wall clock, so that load arrives evenly.
_WINDOW_S: Final = 0.1


def group_of(spec: GroupSpec, *, seed: int, start_s: int) -> Group:
    """Return the simulated group that `spec` describes; ModelError says what is wrong with it."""
    attributes = [Attribute(name, choice.values, choice.weights) for name, choice in spec.attributes.items()]
    return Group(
        name=spec.name,
        model=spec.model,
        thing_name=spec.thing_name,
        count=spec.count,
        seed=seed,
        start_s=start_s,
        tick_s=TICK_S,
        report_every_ticks=spec.report_every_s // TICK_S,
        attributes=tuple(attributes),
        network=spec.network,
    )


def groups_of(scenario: Scenario) -> list[Group]:
    """Return the groups of a scenario in its order."""
    return [group_of(spec, seed=scenario.seed, start_s=scenario.start_s) for spec in scenario.groups]


def window_ticks(clock: ClockSpec, duration_s: int) -> int:
    """Return how many ticks a window has at most under this clock, in a scenario of this length."""
    if clock.speed is None:
        return max(1, min(_ASAP_TICKS, duration_s // TICK_S // _WINDOWS_MIN))
    return max(1, min(_ASAP_TICKS, int(clock.speed * _WINDOW_S / TICK_S)))


def window_end(scenario: Scenario, tick: int) -> int:
    """Return the tick at which the window that begins at `tick` ends: at the next step or change at the latest."""
    stops = [step.at_s for step in scenario.steps]
    stops += _stage_ends(scenario)
    # So that what was measured during a fault is not mixed with what was before or after it.
    for each in scenario.faults:
        stops.append(each.at_s)
        if isinstance(each, FaultSpec):
            stops.append(each.at_s + each.fault.tick_count * TICK_S)
    stops += [scenario.warmup_s, scenario.duration_s]
    next_stops = [stop for stop in stops if stop > tick]
    # A rule that ends the run once a condition has held for some time must not hear of it long after that.
    next_stops += [tick + max(1, rule.for_s // _ABORT_WINDOWS) for rule in scenario.abort_on]
    return min([tick + window_ticks(scenario.clock, scenario.duration_s), *next_stops])


def _stage_ends(scenario: Scenario) -> list[int]:
    ends, end_s = [], 0
    for stage in scenario.stages:
        end_s += stage.duration_s
        ends.append(end_s)
    return ends


def stage_text(scenario: Scenario, tick: int) -> str:
    """Return which stage of a scenario a tick lies in, for people; nothing where it has none."""
    for number, (stage, end_s) in enumerate(zip(scenario.stages, _stage_ends(scenario), strict=True), 1):
        if tick < end_s:
            return f"stage {number} of {len(scenario.stages)} {stage}"
    return "after the last stage" if scenario.stages else ""


def expected_count(scenario: Scenario, time_s: float) -> dict[str, float]:
    """Return how many devices of each group must be connected by plan: there for a reporting period or more."""
    total = sum(group.count for group in scenario.groups)
    return {
        group.name: min(
            present_count(scenario.stages, group, total, time_s),
            present_count(
                scenario.stages, group, total, time_s - group.report_every_s - _LATE_TICKS * TICK_S
            ),
        )
        for group in scenario.groups
    }


def orders_for(scenario: Scenario, first_tick: int, tick_count: int) -> list[TickOrder]:
    """Return one order per group for a window; with what steps desire, faults that have begun, and who is absent."""
    end, total = first_tick + tick_count, sum(group.count for group in scenario.groups)
    return [
        TickOrder(
            group.name,
            first_tick,
            tick_count,
            _desired(scenario, group, first_tick),
            [each for each in absences(scenario.stages, group, total) if each.first_tick < end]
            + [
                each.fault_of(group.name)
                for each in scenario.faults
                if isinstance(each, FaultSpec) and group.name in each.groups and each.fault.first_tick < end
            ],
        )
        for group in scenario.groups
    ]


def _desired(scenario: Scenario, group: GroupSpec, tick: int) -> dict[str, float]:
    desired: dict[str, Any] = {}
    for step in scenario.steps:
        if step.at_s == tick and isinstance(step.action, SetDesired) and step.action.group == group.name:
            desired.update(step.action.state)
    fields = group.model.fields
    return {name: fields[group.model.position(name)].as_number(value) for name, value in desired.items()}
