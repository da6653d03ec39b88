"""The states of a rollout and of a device in it, and every transition between them, as data.

A device's status is one byte, the position of its name in `STATUSES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

# Not in turn yet, or held back by a window or its site's budget.
WAITING: Final = "WAITING"
# The order is given; the device has not said that it begins.
ORDERED: Final = "ORDERED"
IN_PROGRESS: Final = "IN_PROGRESS"
# It says that it runs the new release; the health query does not hold yet, or not any more.
UPDATED: Final = "UPDATED"
# The health query holds.
HOLDING: Final = "HOLDING"
SUCCEEDED: Final = "SUCCEEDED"
FAILED: Final = "FAILED"
REJECTED: Final = "REJECTED"
TIMED_OUT: Final = "TIMED_OUT"
UNHEALTHY: Final = "UNHEALTHY"
# The order to go back to the previous release is given, and then confirmed or not.
GOING_BACK: Final = "GOING_BACK"
BACK: Final = "BACK"
STUCK: Final = "STUCK"
STATUSES: Final = (
    WAITING,
    ORDERED,
    IN_PROGRESS,
    UPDATED,
    HOLDING,
    SUCCEEDED,
    FAILED,
    REJECTED,
    TIMED_OUT,
    UNHEALTHY,
    GOING_BACK,
    BACK,
    STUCK,
)
CODES: Final[Mapping[str, int]] = {status: code for code, status in enumerate(STATUSES)}

# Its site does without it.
DISRUPTED: Final = (ORDERED, IN_PROGRESS, UPDATED)
UNDER_WAY: Final = (*DISRUPTED, HOLDING)
BAD: Final = (FAILED, REJECTED, TIMED_OUT, UNHEALTHY)
# An operator may have these tried again.
RETRIED: Final = BAD

# What a device is heard to say, or its twin shows. `ROLLED_BACK`: it runs the old release again by its own decision.
STARTED: Final = "STARTED"
HEALTHY: Final = "HEALTHY"
SICK: Final = "SICK"
ROLLED_BACK: Final = "ROLLED_BACK"
RESTORED: Final = "RESTORED"

_RUNNING: Final = (ORDERED, IN_PROGRESS)
_NEW: Final = (UPDATED, HOLDING, SUCCEEDED, UNHEALTHY)
# What is heard -> from which status -> to which. A device that is heard after its time was up is believed: the state
# shall be the device's, not the clock's. Whatever stands not here changes nothing.
TRANSITIONS: Final[Mapping[str, Mapping[str, str]]] = {
    STARTED: {ORDERED: IN_PROGRESS},
    UPDATED: dict.fromkeys((*_RUNNING, TIMED_OUT), UPDATED),
    HEALTHY: {UPDATED: HOLDING, UNHEALTHY: HOLDING},
    SICK: {HOLDING: UPDATED},
    FAILED: dict.fromkeys((*_RUNNING, *_NEW, TIMED_OUT), FAILED),
    REJECTED: dict.fromkeys((*_RUNNING, TIMED_OUT), REJECTED),
    # Also after it had succeeded: a device that rolled itself back has failed.
    ROLLED_BACK: dict.fromkeys((*_RUNNING, *_NEW, TIMED_OUT), FAILED),
    RESTORED: {GOING_BACK: BACK, STUCK: BACK},
}
HEARD: Final = tuple(TRANSITIONS)
HEARD_CODES: Final[Mapping[str, int]] = {heard: code for code, heard in enumerate(HEARD)}

# What becomes of a device whose time is up; one that is not here has no timer. An `ORDERED` one is asked again first.
EXPIRIES: Final[Mapping[str, str]] = {
    ORDERED: TIMED_OUT,
    IN_PROGRESS: TIMED_OUT,
    UPDATED: UNHEALTHY,
    HOLDING: SUCCEEDED,
    GOING_BACK: STUCK,
}

# The states of the rollout itself.
DRAFT: Final = "DRAFT"
ROLLING: Final = "ROLLING"
SOAKING: Final = "SOAKING"
AWAITING_APPROVAL: Final = "AWAITING_APPROVAL"
PAUSED: Final = "PAUSED"
ABORTED: Final = "ABORTED"
ROLLING_BACK: Final = "ROLLING_BACK"
COMPLETED: Final = "COMPLETED"
RETURNED: Final = "RETURNED"
ROLLOUT_STATES: Final = (
    DRAFT,
    ROLLING,
    SOAKING,
    AWAITING_APPROVAL,
    PAUSED,
    ABORTED,
    ROLLING_BACK,
    COMPLETED,
    RETURNED,
)
_LIVE: Final = (ROLLING, SOAKING, AWAITING_APPROVAL)
# What an operator may do -> in which states. Where it leads to is said by `Rollout.command`.
COMMANDS: Final[Mapping[str, tuple[str, ...]]] = {
    "start": (DRAFT,),
    "pause": _LIVE,
    "resume": (PAUSED,),
    "approve": (AWAITING_APPROVAL,),
    "abort": (DRAFT, *_LIVE, PAUSED),
    "retry": (*_LIVE, PAUSED, COMPLETED),
    "rollback": (*_LIVE, PAUSED, ABORTED, COMPLETED),
}

# No transition.
NONE: Final = 255


def transition_codes() -> NDArray[np.uint8]:
    """Return the device's transitions as (heard, status) -> status, `NONE` where nothing changes."""
    codes = np.full((len(HEARD), len(STATUSES)), NONE, np.uint8)
    for heard, moves in TRANSITIONS.items():
        for old, new in moves.items():
            codes[HEARD_CODES[heard], CODES[old]] = CODES[new]
    return codes


def mask_of(statuses: tuple[str, ...] | frozenset[str]) -> NDArray[np.bool_]:
    """Return which status codes belong to `statuses`."""
    return np.array([status in statuses for status in STATUSES])
