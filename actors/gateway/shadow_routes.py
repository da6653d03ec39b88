"""Shadows over HTTP, with paths and bodies as on AWS IoT's data plane; the same for operators and devices."""

from __future__ import annotations

from bisect import bisect_right
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, HTTPException, Query, Request, Response

from actors.fleet import Fleet
from actors.gateway.problems import answer, document
from twins import messages
from twins.messages import Operation
from twins.sharding import is_thing_name
from twins.topics import is_shadow_name

# AWS IoT lets a client ask for 1 to 100 names; 25 is what its own edge service takes when nothing is asked.
_PAGE_SIZE_MAX: Final = 100
_PAGE_SIZE: Final = 25

ShadowName = Annotated[str, Query(alias="name", description="the named shadow; absent: the classic shadow")]


def shadow_routes(fleet: Fleet) -> APIRouter:
    """Return the routes that read, change and delete a thing's shadow."""
    router = APIRouter(tags=["shadows"])

    @router.get("/things/{thing}/shadow", summary="Get a shadow")
    async def get_shadow(thing: str, shadow: ShadowName = "") -> Response:
        return await ask(fleet, Operation.SHADOW_GET, thing, shadow_name=shadow)

    @router.post("/things/{thing}/shadow", summary="Update a shadow")
    async def update_shadow(thing: str, request: Request, shadow: ShadowName = "") -> Response:
        body = await request.body()
        return await ask(fleet, Operation.SHADOW_UPDATE, thing, shadow_name=shadow, payload=body)

    @router.delete("/things/{thing}/shadow", summary="Delete a shadow")
    async def delete_shadow(thing: str, shadow: ShadowName = "") -> Response:
        return await ask(fleet, Operation.SHADOW_DELETE, thing, shadow_name=shadow)

    return router


def listing_routes(fleet: Fleet) -> APIRouter:
    """Return the route that lists a thing's named shadows."""
    router = APIRouter(tags=["shadows"])

    @router.get(
        "/api/things/shadow/ListNamedShadowsForThing/{thing}", summary="List the named shadows of a thing"
    )
    async def list_named_shadows(
        thing: str,
        after: Annotated[str, Query(alias="nextToken")] = "",
        page_size: Annotated[int, Query(alias="pageSize", ge=1, le=_PAGE_SIZE_MAX)] = _PAGE_SIZE,
    ) -> Response:
        check_thing_name(thing)
        reply = await fleet.ask(messages.Request(Operation.SHADOW_LIST, thing, is_direct=True))
        if reply.status >= 400:
            return answer(reply)
        listing = msgspec.json.decode(reply.payload, type=dict[str, Any])
        names = sorted(listing["results"])
        # The token is the last name of the page before: still good when a shadow has come or gone since.
        first = bisect_right(names, after) if after else 0
        page = names[first : first + page_size]
        more = {"nextToken": page[-1]} if first + page_size < len(names) else {}
        return document({"results": page, **more, "timestamp": listing["timestamp"]})

    return router


async def ask(
    fleet: Fleet, operation: Operation, thing: str, *, shadow_name: str = "", payload: bytes = b""
) -> Response:
    """Return the twin's answer to one request, or the problem that it has with it."""
    check_thing_name(thing)
    if shadow_name and not is_shadow_name(shadow_name):
        raise HTTPException(400, f"{shadow_name!r} is no shadow name: 1 to 64 of letters, digits, :, _ and -")
    request = messages.Request(operation, thing, payload, shadow_name, is_direct=True)
    return answer(await fleet.ask(request))


def check_thing_name(thing: str) -> None:
    """Refuse what cannot be a thing name."""
    if not is_thing_name(thing):
        text = "1 to 128 of letters, digits, :, _ and -, and unlike the id of a certificate"
        raise HTTPException(400, f"{thing!r} is no thing name: {text}")
