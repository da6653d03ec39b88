"""The steps of a scenario that are live requests: to set what is desired of a thing, and to wait for a real device.

What a step desires of a whole group rides on the group's next order; see `workloads`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from actors.fleet import Fleet
from scenarios.checks import contains
from scenarios.devices import DeviceHost
from scenarios.result import Outcome
from scenarios.spec import SetDesired, WaitFor
from twins.errors import RequestError, ShadowNotFound

# A live request takes milliseconds; a shard that restarts answers within this.
_REQUEST_TIMEOUT_S: Final = 10.0
# How often a shadow is looked at while virtual time is held: below what a person sees, far above what it costs.
_POLL_S: Final = 0.05


async def set_desired(action: SetDesired, fleet: Fleet) -> tuple[Outcome, str]:
    """Set what is desired of one thing, and return how that went."""
    try:
        async with asyncio.timeout(_REQUEST_TIMEOUT_S):
            accepted = await fleet.twin(action.thing_name or "").update_desired(action.state)
    except RequestError as error:
        return "FAIL", f"refused with {error.code}: {error.message}"
    except TimeoutError:
        return "FAIL", f"no answer within {_REQUEST_TIMEOUT_S:g} s"
    return "PASS", f"accepted as version {accepted.get('version')}"


async def wait_for(
    action: WaitFor,
    fleet: Fleet,
    devices: DeviceHost,
    *,
    virtual_s: int,
    rest: Callable[[float], Awaitable[None]],
) -> tuple[Outcome, str]:
    """Wait until the twin is as awaited or the step's time is over; `rest` passes wall time, and may end the run."""
    deadline_s = time.perf_counter() + action.timeout_s
    while True:
        await devices.play(virtual_s)
        document = await _shadow(fleet, action.thing_name, deadline_s)
        missing = _missing(action, document)
        if not missing:
            return "PASS", f"version {document.get('version')}"
        left_s = deadline_s - time.perf_counter()
        if left_s <= 0:
            return "FAIL", f"not within {action.timeout_s:g} s: {missing}"
        await rest(min(_POLL_S, left_s))


async def _shadow(fleet: Fleet, thing_name: str, deadline_s: float) -> Mapping[str, Any]:
    try:
        # At least one look, however late it is.
        async with asyncio.timeout(max(_POLL_S, deadline_s - time.perf_counter())):
            return await fleet.twin(thing_name).shadow()
    except (ShadowNotFound, TimeoutError):
        return {}


def _missing(action: WaitFor, document: Mapping[str, Any]) -> str:
    """Return what is still not as awaited, or nothing."""
    state = document.get("state", {})
    if not document:
        return "its twin has no shadow"
    if action.reported and not contains(state.get("reported", {}), action.reported):
        found = {name: state.get("reported", {}).get(name) for name in action.reported}
        return f"reported is {found}"
    if action.is_delta_empty and state.get("delta"):
        return f"delta is {state['delta']}"
    return ""
