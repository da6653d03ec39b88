"""What a rollout is asked to do: its groups, rate, gates, limits and windows; and what of it can't be.

Owns no course of a rollout: `rollout` follows the plan.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from typing import Final

from twins.errors import RolloutError

# A device's group is kept in one byte, of which a value stands for none.
GROUP_COUNT_MAX: Final = 255
_MINUTES_A_DAY: Final = 24 * 60
_DAYS_A_WEEK: Final = 7


@dataclass(frozen=True, slots=True)
class Group:
    """One step of a rollout: who is in it, and what must hold before the next begins.

    Exactly one of `percent` (of all targets, counted with the groups before), `count` (of further devices) and
    `cohorts` (all devices of these, as far as no earlier group has them) is given. `success_share_min` is the share of
    its devices that must have succeeded once all are decided, `soak_s` how long the rollout then waits.
    """

    name: str
    percent: float | None = None
    count: int | None = None
    cohorts: frozenset[int] | None = None
    success_share_min: float = 0.0
    soak_s: int = 0
    needs_approval: bool = False


@dataclass(frozen=True, slots=True)
class Rate:
    """How many devices a minute get their orders; exponential where `factor` is above 1.

    After every `grow_after_count` further successes the rate is multiplied by `factor`, up to `per_minute_max`.
    """

    per_minute: float
    factor: float = 1.0
    grow_after_count: int = 1
    per_minute_max: float = float("inf")

    def now(self, succeeded_count: int) -> float:
        """Return the devices a minute after so many successes."""
        if self.factor == 1.0:
            return self.per_minute
        # Beyond 60 steps any factor that is worth naming has reached any maximum; a float overflows at 1024 doublings.
        steps = min(succeeded_count // self.grow_after_count, 60)
        return min(self.per_minute * self.factor**steps, self.per_minute_max)


@dataclass(frozen=True, slots=True)
class Window:
    """When updates may begin in a device's own time: on these days (0 is Monday), from a minute of the day on."""

    days: frozenset[int]
    start_minute: int
    duration_minutes: int

    def is_open(self, local: dt.datetime) -> bool:
        """Tell whether it is open at this local time; one that is open past midnight belongs to the day it began."""
        minute = local.hour * 60 + local.minute
        if self.start_minute <= minute < self.start_minute + self.duration_minutes:
            return local.weekday() in self.days
        yesterday = (local.weekday() - 1) % _DAYS_A_WEEK
        return minute + _MINUTES_A_DAY < self.start_minute + self.duration_minutes and yesterday in self.days


@dataclass(frozen=True, slots=True)
class AbortRule:
    """Abort when this share of the devices with an order ended as `statuses` say, of `least_count` at least."""

    statuses: frozenset[str]
    share: float
    least_count: int = 100


@dataclass(frozen=True, slots=True)
class HealthGate:
    """How long the query must hold after a reboot, and how long after the report of success it may take until then."""

    hold_s: int
    timeout_s: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole rollout. Without `health` a device's own word is enough.

    An order that is not confirmed is repeated every `repeat_s`; after `timeout_s` the device has timed out.
    `cohort_share_max` is the failing share from which on a cohort that fails more than the others stops the rollout.
    `site_budget` is how many devices of one site may be under way at a time. `zones` are the devices' time zones by
    number. With `is_rolled_back` an abort is followed by a rollback to the previous release.
    A rollout that `is_continuous` takes targets while it runs, and does not end by itself.
    """

    groups: tuple[Group, ...]
    rate: Rate
    health: HealthGate | None = None
    aborts: tuple[AbortRule, ...] = ()
    cohort_share_max: float | None = None
    windows: tuple[Window, ...] = ()
    zones: tuple[dt.tzinfo, ...] = field(default=(dt.UTC,))
    site_budget: int | None = None
    timeout_s: int = 3600
    repeat_s: int = 300
    is_rolled_back: bool = False
    is_continuous: bool = False

    def check(self) -> None:
        """Raise `RolloutError` for what can't be, saying what to change."""
        if not 0 < len(self.groups) <= GROUP_COUNT_MAX:
            raise RolloutError(f"give between 1 and {GROUP_COUNT_MAX} groups, not {len(self.groups)}")
        for group in self.groups:
            _check_group(group)
        percents = [group.percent for group in self.groups if group.percent is not None]
        if percents != sorted(percents):
            raise RolloutError("percents of groups count with the groups before: give them in rising order")
        self._check_numbers()
        if self.health and self.health.timeout_s <= self.health.hold_s:
            raise RolloutError("health.timeout_s must be longer than health.hold_s")
        for window in self.windows:
            if not (window.days and 0 < window.duration_minutes <= _MINUTES_A_DAY):
                raise RolloutError("a window needs days, and a duration between a minute and a day")

    def _check_numbers(self) -> None:
        for number, what in (
            (self.rate.per_minute, "rate.per_minute"),
            (self.rate.grow_after_count, "rate.grow_after_count"),
            (self.timeout_s, "timeout_s"),
            (self.repeat_s, "repeat_s"),
        ):
            if number <= 0:
                raise RolloutError(f"{what} must be above 0, not {number}")
        if self.rate.factor < 1:
            raise RolloutError(f"rate.factor must be 1 or more, not {self.rate.factor}")
        if self.site_budget is not None and self.site_budget < 1:
            raise RolloutError(f"site_budget must be 1 or more, not {self.site_budget}")


def _check_group(group: Group) -> None:
    given = [part for part in (group.percent, group.count, group.cohorts) if part is not None]
    if len(given) != 1:
        raise RolloutError(f"group {group.name}: give one of percent, count and cohorts")
    if group.percent is not None and not 0 < group.percent <= 100:
        raise RolloutError(
            f"group {group.name}: percent must be above 0 and at most 100, not {group.percent}"
        )
    if group.count is not None and group.count < 1:
        raise RolloutError(f"group {group.name}: count must be 1 or more, not {group.count}")
    if not 0 <= group.success_share_min <= 1:
        raise RolloutError(f"group {group.name}: success_share_min must be between 0 and 1")
