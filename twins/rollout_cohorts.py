"""Which cohorts of devices fail more than the others: exact tests, corrected for many cohorts and many looks.

Owns the statistics of a rollout and nothing of its course. A cohort is any part of the fleet that has a number, such
as the devices of one hardware revision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

# Chance that a whole rollout of a good release is stopped by mistake: one in a thousand.
FALSE_STOP_CHANCE: Final = 0.001
# A sum of tail terms ends where a term adds less than this part of the sum.
_NEGLIGIBLE: Final = 1e-15


@dataclass(frozen=True, slots=True)
class Suspect:
    """A cohort that is worse than the others: its number, its share and theirs, and how likely that is by luck."""

    cohort: int
    share: float
    other_share: float
    p_value: float


def look_chance(look: int) -> float:
    """Return the part of `FALSE_STOP_CHANCE` that a look by its number, from 1, may spend; all add up to it."""
    return FALSE_STOP_CHANCE / (look * (look + 1))


def failing_cohorts(
    started: NDArray[np.int64], failed: NDArray[np.int64], *, share_max: float, chance: float
) -> list[Suspect]:
    """Return the cohorts that fail more than the rest and more than `share_max`, the likeliest culprit first.

    `started` and `failed` count the devices of each cohort. Fisher's exact test, one-sided, compares a cohort with all
    others together; Holm's step-down method keeps the chance that any good cohort is named below `chance`.
    """
    all_started, all_failed = int(started.sum()), int(failed.sum())
    tested: list[Suspect] = []
    for cohort in np.flatnonzero(started):
        own_started, own_failed = int(started[cohort]), int(failed[cohort])
        others = all_started - own_started
        if not others:
            continue
        share, other_share = own_failed / own_started, (all_failed - own_failed) / others
        p_value = 1.0
        if share > other_share:
            p_value = _hypergeometric_tail(own_failed, own_started, marked=all_failed, total=all_started)
        tested.append(Suspect(int(cohort), share, other_share, p_value))
    return [suspect for suspect in _holm(tested, chance) if suspect.share > share_max]


def erring_cohorts(
    errors: NDArray[np.int64],
    hours: NDArray[np.float64],
    *,
    control_errors: NDArray[np.int64],
    control_hours: NDArray[np.float64],
    chance: float,
) -> list[Suspect]:
    """Return the cohorts whose updated devices err more often, an hour, than those of the same cohort not updated yet.

    Given all errors of a cohort, those of the updated devices are binomial if both err alike (the conditional test of
    two Poisson rates); Holm's method corrects for many cohorts. A cohort without hours on either side is not judged.
    """
    tested: list[Suspect] = []
    for cohort in np.flatnonzero((hours > 0) & (control_hours > 0)):
        own, control = int(errors[cohort]), int(control_errors[cohort])
        own_hours, other_hours = float(hours[cohort]), float(control_hours[cohort])
        rate, other_rate = own / own_hours, control / other_hours
        p_value = 1.0
        if rate > other_rate:
            p_value = _binomial_tail(own, own + control, own_hours / (own_hours + other_hours))
        tested.append(Suspect(int(cohort), rate, other_rate, p_value))
    return _holm(tested, chance)


def _holm(tested: Sequence[Suspect], chance: float) -> list[Suspect]:
    ordered = sorted(tested, key=lambda suspect: suspect.p_value)
    for place, suspect in enumerate(ordered):
        if suspect.p_value > chance / (len(ordered) - place):
            return ordered[:place]
    return ordered


def _hypergeometric_tail(count: int, drawn: int, *, marked: int, total: int) -> float:
    """Return the chance that `drawn` of `total`, of which `marked` are marked, hold `count` marked ones or more."""
    term = math.exp(
        _log_choose(marked, count) + _log_choose(total - marked, drawn - count) - _log_choose(total, drawn)
    )
    tail = 0.0
    for k in range(count, min(drawn, marked) + 1):
        tail += term
        if term < tail * _NEGLIGIBLE:
            break
        term *= (marked - k) * (drawn - k) / ((k + 1) * (total - marked - drawn + k + 1))
    return min(1.0, tail)


def _binomial_tail(count: int, total: int, share: float) -> float:
    """Return the chance of `count` successes or more in `total` trials that succeed with the chance `share`."""
    term = math.exp(
        _log_choose(total, count) + count * math.log(share) + (total - count) * math.log1p(-share)
    )
    tail = 0.0
    for k in range(count, total + 1):
        tail += term
        if term < tail * _NEGLIGIBLE:
            break
        term *= (total - k) / (k + 1) * share / (1 - share)
    return min(1.0, tail)


def _log_choose(total: int, count: int) -> float:
    return math.lgamma(total + 1) - math.lgamma(count + 1) - math.lgamma(total - count + 1)
