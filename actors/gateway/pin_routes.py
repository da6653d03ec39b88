"""Twins with a behaviour of their own: pinning them, and folding them back into their shards."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from fastapi import APIRouter, HTTPException, Response
from pydantic import BaseModel, ConfigDict

from actors.fleet import Fleet, pin_request, unpin_request
from actors.gateway.problems import answer, document
from actors.gateway.shadow_routes import check_thing_name
from twins.handover import DEFAULT_BEHAVIOR, check_behavior_name

# Each has a process of some 100 MB.
_PIN_COUNT_MAX: Final = 32


class PinRequest(BaseModel):
    """The behaviour that a twin is to have, `module:Class`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    behavior: str = DEFAULT_BEHAVIOR


def pin_routes(fleet: Fleet, try_behavior: Callable[[str], Awaitable[None]]) -> APIRouter:
    """Return the routes below /v1/pins; `try_behavior` raises BehaviorUnusable if a behaviour can't be made."""
    router = APIRouter(prefix="/v1/pins", tags=["twins"])

    @router.get("", summary="List the pinned twins with their behaviours")
    async def list_pins() -> Response:
        found = [_view(pin.thing_name, pin.behavior) for pin in await fleet.pins()]
        return document({"pins": found})

    @router.put("/{thing}", summary="Give a twin an actor of its own that runs a behaviour")
    async def pin_twin(thing: str, body: PinRequest) -> Response:
        check_thing_name(thing)
        check_behavior_name(body.behavior)
        pinned = await fleet.pins()
        if len(pinned) >= _PIN_COUNT_MAX and thing not in {pin.thing_name for pin in pinned}:
            text = (
                f"{_PIN_COUNT_MAX} twins are pinned, which is the most: each has a process; unpin one first"
            )
            raise HTTPException(409, text)
        await try_behavior(body.behavior)
        return answer(await fleet.ask(pin_request(thing, body.behavior)))

    @router.delete("/{thing}", summary="Fold a pinned twin back into its shard")
    async def unpin_twin(thing: str) -> Response:
        check_thing_name(thing)
        return answer(await fleet.ask(unpin_request(thing)))

    return router


def _view(thing_name: str, behavior: str) -> dict[str, Any]:
    return {"thingName": thing_name, "behavior": behavior}
