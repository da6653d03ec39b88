"""Behaviours of pinned twins: Python classes, each object of which plays one device, or steers one.

A behaviour is any class that can be made without arguments and has a method `step(twin)`; nothing has to be imported
for it. It is called every `every_s` seconds of the twin's time (one, where the class does not say) with a `TwinStep`,
and returns the `state` of a shadow update, or None. What it wants to know the next time, in whichever process that is,
it keeps in `twin.memory`. Here its module is found, and its answer becomes a request; who runs it is `pins`'.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from actors.errors import BehaviorUnusable
from twins.handover import PinReport, PinState
from twins.messages import Operation, Request

# Of a class that does not say how often it wants to be called.
_EVERY_S: Final = 1.0


@dataclass
class TwinStep:
    """What a behaviour is called with: its twin as it is now. It may change `memory`, which is kept, and nothing else.

    `now_s` is the twin's time (POSIX seconds): that of its fleet for a simulated device. `elapsed_s` have passed since
    the last call, 0.0 at the first. `desired` and `reported` are the classic shadow's sections. `memory` must be JSON.
    """

    thing_name: str
    origin: str
    now_s: float
    elapsed_s: float
    desired: Mapping[str, Any]
    reported: Mapping[str, Any]
    attributes: Mapping[str, str]
    memory: dict[str, Any]


class Behavior(Protocol):
    """What a behaviour must have; `every_s` may be missing."""

    def step(self, twin: TwinStep) -> Mapping[str, Any] | None:
        """Return `{"reported": {...}}`, `{"desired": {...}}`, both, or None; null removes a field, as on the wire."""
        ...


class Obedient:
    """A device that does at once what is desired of it, and nothing else: the behaviour when none is named."""

    def step(self, twin: TwinStep) -> Mapping[str, Any] | None:
        """Report whatever is desired and not reported so."""
        if twin.origin == "real":
            return None
        wished = {key: value for key, value in twin.desired.items() if twin.reported.get(key) != value}
        return {"reported": wished} if wished else None


def load_behavior(name: str, directory: Path | None = None) -> Behavior:
    """Return a new object of the class `module:Class`; BehaviorUnusable says why there is none.

    The module is an installed one, or a file in `directory`, which must not hide an installed one.
    """
    module_name, _, class_name = name.partition(":")
    if directory is not None and str(directory) not in sys.path:
        sys.path.append(str(directory))
    importlib.invalidate_caches()
    try:
        behavior: Any = getattr(importlib.import_module(module_name), class_name)()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever somebody else's code raises
        raise BehaviorUnusable(name, f"{described(error)}{_where(error, module_name, directory)}") from None
    if not callable(getattr(behavior, "step", None)):
        raise BehaviorUnusable(name, "has no method step(twin)")
    every_s = getattr(behavior, "every_s", _EVERY_S)
    if type(every_s) not in (int, float) or not every_s > 0:
        raise BehaviorUnusable(name, f"every_s is {every_s!r}; it must be a number of seconds above 0")
    found: Behavior = behavior
    return found


def _where(error: BaseException, module_name: str, directory: Path | None) -> str:
    is_missing = isinstance(error, ModuleNotFoundError) and error.name in (
        module_name,
        module_name.partition(".")[0],
    )
    if not is_missing or directory is None:
        return ""
    return f"; install it, or put it into {directory / module_name.replace('.', '/')}.py"


def described(error: BaseException) -> str:
    """Return what to tell of an error of a behaviour, in one line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def state_request(thing_name: str) -> Request:
    """Return the request for what a behaviour is to be called with."""
    return Request(Operation.PIN_STATE, thing_name, is_direct=True)


def due_step(behavior: Behavior, thing_name: str, state: PinState) -> TwinStep | None:
    """Return what a behaviour is to be called with now; None if it is not time, or if it has to rest."""
    elapsed_s = 0.0 if state.stepped_s is None else state.now_s - state.stepped_s
    if state.is_taken_over or (
        state.stepped_s is not None and elapsed_s < getattr(behavior, "every_s", _EVERY_S)
    ):
        return None
    return TwinStep(
        thing_name,
        state.origin,
        state.now_s,
        elapsed_s,
        state.desired,
        state.reported,
        state.attributes,
        state.memory,
    )


def call_behavior(behavior: Behavior, name: str, step: TwinStep) -> Mapping[str, Any]:
    """Return what a behaviour answers, {} for None; BehaviorUnusable if it raises, or answers something else."""
    try:
        answer = behavior.step(step)
    except (Exception, SystemExit) as error:
        raise BehaviorUnusable(name, f"step raised {described(error)}") from error
    if answer is None:
        return {}
    if not isinstance(answer, Mapping):
        raise BehaviorUnusable(
            name, f"step returned {type(answer).__name__}; return {{'reported': ...}} or None"
        )
    return answer


def report_request(name: str, state: PinState, step: TwinStep, answer: Mapping[str, Any]) -> Request:
    """Return the request that brings an answer to its twin; BehaviorUnusable if it can't be written as JSON."""
    report = PinReport(name, state.stepped_s, step.now_s, dict(answer), step.memory)
    try:
        payload = msgspec.json.encode(report)
    except (TypeError, ValueError, msgspec.MsgspecError) as error:
        raise BehaviorUnusable(
            name, f"what step returned, or twin.memory, is not JSON: {described(error)}"
        ) from None
    return Request(Operation.PIN_REPORT, step.thing_name, payload, is_direct=True)
