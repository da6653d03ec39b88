"""Who is there, by a scenario's stages: how many devices of each group at each tick, and the orders that make it so.

Pure. Devices join evenly, in the order of their numbers; in a stage that has fewer than the one before, those with the
highest numbers leave. Twins of all devices exist from the beginning, like those of devices in a warehouse.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from scenarios.spec import TICK_S, GroupSpec, Stage
from twins.faults import Fault, Select

# Longer than anything lasts, and still told apart by seconds where it is added to a tick in 64 bits.
_FOR_GOOD_TICKS: Final = 1_000_000_000
# Not a name that a scenario's fault may have: those have no more than 128 characters, and no colon at their start.
_NAME: Final = ":stages"


def targets(stages: Sequence[Stage], group: GroupSpec, total_count: int) -> list[int]:
    """Return how many devices of a group are there at the end of each stage."""
    found = []
    for stage in stages:
        share = (stage.percent or 0.0) / 100 if stage.count is None else stage.count / total_count
        found.append(min(round(share * group.count), group.count))
    return found


def present_count(stages: Sequence[Stage], group: GroupSpec, total_count: int, time_s: float) -> float:
    """Return how many devices of a group are there at a time by plan; all of them without stages."""
    if not stages:
        return group.count
    before, begin_s = 0, 0.0
    for stage, target in zip(stages, targets(stages, group, total_count), strict=True):
        if time_s < begin_s + stage.duration_s:
            return before + (target - before) * max(0.0, time_s - begin_s) / stage.duration_s
        before, begin_s = target, begin_s + stage.duration_s
    return before


def absences(stages: Sequence[Stage], group: GroupSpec, total_count: int) -> list[Fault]:
    """Return when which devices of a group are not there, as faults of the action `absence`."""
    if not stages:
        return []
    counts = [0, *targets(stages, group, total_count)]
    edges = sorted({*counts, 0, group.count})
    found: list[Fault] = []
    for first, end in pairwise(edges):
        # When these devices, which have the numbers from `first` to `end`, left, and within which time.
        away: tuple[float, float] | None = (0.0, 0.0)
        begin_s = 0.0
        for stage, before, after in zip(stages, counts, counts[1:], strict=False):
            if away is not None and after >= end:
                moved_s, within_s = _part(stage, begin_s, (first - before, end - before), after - before)
                found.append(_absence(group, first, end, away, (moved_s, within_s)))
                away = None
            elif away is None and after <= first:
                away = _part(stage, begin_s, (before - end, before - first), before - after)
            begin_s += stage.duration_s
        if away is not None:
            found.append(_absence(group, first, end, away, None))
    return found


def _part(stage: Stage, begin_s: float, moved: tuple[int, int], count: int) -> tuple[float, float]:
    """Return when the first of some devices move in a stage, of all those that do, and within which time the rest."""
    a_device_s = stage.duration_s / count
    return begin_s + moved[0] * a_device_s, (moved[1] - moved[0]) * a_device_s


def _absence(
    group: GroupSpec, first: int, end: int, away: tuple[float, float], back: tuple[float, float] | None
) -> Fault:
    begin = round(away[0] / TICK_S)
    ticks = _FOR_GOOD_TICKS if back is None else max(1, round(back[0] / TICK_S) - begin)
    # To the end of the stage, however its begin was rounded to ticks; who never comes back does so in no order.
    return_s = away[1] if back is None else max(0.0, back[0] + back[1] - (begin + ticks) * TICK_S)
    parameters = (("leave_s", away[1]), ("return_s", return_s))
    select = Select(first=first, last=end - 1)
    return Fault(f"{_NAME}/{first}/{begin}", "absence", begin, ticks, parameters, select)
