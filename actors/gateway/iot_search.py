"""SearchIndex on AWS IoT's control plane: fleet queries over the registered things."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from fastapi import APIRouter, HTTPException, Request, Response

from actors.gateway.iot_bodies import SearchBody, given, read_body
from actors.gateway.problems import document
from actors.gateway.searching import INDEX_NAME, FleetSearch, check_index
from twins.query import parse

# AWS IoT's bound, and what it gives who asks for no number.
_PAGE_SIZE_MAX: Final = 100


def iot_search_routes(search: FleetSearch) -> APIRouter:
    """Return the routes of the fleet index."""
    router = APIRouter(tags=["AWS IoT: search"])

    @router.post("/indices/search", summary="SearchIndex")
    async def search_index(request: Request) -> Response:
        body = await read_body(request, SearchBody)
        check_index(body.index_name, body.query_version)
        limit = _PAGE_SIZE_MAX if body.max_results is None else body.max_results
        if not 1 <= limit <= _PAGE_SIZE_MAX:
            raise HTTPException(400, f"maxResults: {limit} is not from 1 to {_PAGE_SIZE_MAX}")
        page = await search.page(parse(body.query_string), after=body.next_token, limit=limit)
        documents = await search.documents(page.things, with_twins=True)
        things = [_thing_view(found) for found in documents]
        return document({"things": things, **given(nextToken=page.next_token)})

    @router.get("/indices/{name}", summary="DescribeIndex")
    async def describe_index(name: str) -> Response:
        if name != INDEX_NAME:
            raise HTTPException(404, f"there is no index {name!r}; there is {INDEX_NAME}")
        # Nothing is ever built: whoever asks gets what is so at that moment.
        # The schema that has more than registry, shadow and connectivity: named shadows and device metrics.
        return document({"indexName": INDEX_NAME, "indexStatus": "ACTIVE", "schema": "MULTI_INDEXING_MODE"})

    return router


def _thing_view(found: dict[str, Any]) -> dict[str, Any]:
    """Return a thing as SearchIndex gives it; there, a shadow is a text."""
    texts = {
        part: msgspec.json.encode(found[part]).decode()
        for part in ("shadow", "deviceDefender")
        if found.get(part)
    }
    return {
        "thingName": found["thingName"],
        "thingId": found["thingId"],
        "thingGroupNames": found["thingGroupNames"],
        "attributes": found["attributes"],
        **given(thingTypeName=found["thingTypeName"], connectivity=found.get("connectivity")),
        **texts,
    }
