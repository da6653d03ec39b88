"""What a scenario asks of its simulated fleet: groups to create, and the order for each window of ticks.

Pure: the same scenario and tick give the same orders, whatever the clock or the number of shards.
"""

from __future__ import annotations

from typing import Any, Final

from scenarios.spec import TICK_S, ClockSpec, FaultSpec, GroupSpec, Scenario, SetDesired
from twins.messages import TickOrder
from twins.model import Attribute, Group

# With `asap` a window is this many ticks: enough that the call costs little beside the ticks, few enough that the
# progress display moves and an interruption is heard.
_ASAP_TICKS: Final = 50
# Short scenarios have shorter windows, so that a plot of their course, and when they recovered, can be told.
_WINDOWS_MIN: Final = 120
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
    # So that what was measured during a fault is not mixed with what was before or after it.
    for each in scenario.faults:
        stops.append(each.at_s)
        if isinstance(each, FaultSpec):
            stops.append(each.at_s + each.fault.tick_count * TICK_S)
    stops += [scenario.warmup_s, scenario.duration_s]
    next_stops = [stop for stop in stops if stop > tick]
    return min([tick + window_ticks(scenario.clock, scenario.duration_s), *next_stops])


def orders_for(scenario: Scenario, first_tick: int, tick_count: int) -> list[TickOrder]:
    """Return one order per group for a window; with what steps desire and faults that have begun."""
    return [
        TickOrder(
            group.name,
            first_tick,
            tick_count,
            _desired(scenario, group, first_tick),
            [
                each.fault
                for each in scenario.faults
                if isinstance(each, FaultSpec)
                and group.name in each.groups
                and each.fault.first_tick < first_tick + tick_count
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
