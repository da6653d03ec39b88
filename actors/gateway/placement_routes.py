"""Where shards are served, and where operators want them: what is asked for is carried out by the supervisor."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict

from actors.gateway.authentication import caller_of
from actors.gateway.problems import document
from actors.placement import Change, Placement, PlacementStore


class MoveRequest(BaseModel):
    """Where a shard is to go: a node, or one of its shard actors."""

    model_config = ConfigDict(extra="forbid", strict=True)

    target: str


def placement_routes(store: PlacementStore) -> APIRouter:
    """Return the routes below /v1/cluster/placement; what they change is answered with 202 and takes a moment."""
    router = APIRouter(prefix="/v1/cluster/placement", tags=["cluster"])

    async def change(
        how: Callable[[Placement], Placement], request: Request, action: str, subject: str
    ) -> Response:
        told = Change(f"placement.{action}", subject, by=caller_of(request).name)
        return document(_view(await asyncio.to_thread(store.change, how, told)), status=202)

    @router.get("", summary="Tell which shard actor on which node serves each shard")
    async def get_placement() -> Response:
        return document(_view(await asyncio.to_thread(store.read)))

    @router.post("/shards/{shard}", summary="Move a shard")
    async def move_shard(shard: int, body: MoveRequest, request: Request) -> Response:
        wanted = partial(Placement.moved_to, shard=shard, target=body.target)
        return await change(wanted, request, "move", f"shard {shard} to {body.target}")

    @router.post("/drained/{node}", summary="Move all shards off a node, and keep them off")
    async def drain_node(node: str, request: Request) -> Response:
        return await change(partial(Placement.without, node=node), request, "drain", node)

    @router.delete("/drained/{node}", summary="Give a drained node its share of the shards again")
    async def fill_node(node: str, request: Request) -> Response:
        return await change(partial(Placement.again_with, node=node), request, "fill", node)

    return router


def _view(placement: Placement) -> dict[str, Any]:
    return {
        "version": placement.version,
        "actors": [
            {
                "name": actor,
                "node": node,
                "is_drained": node in placement.drained,
                "shards": placement.shards_of(actor),
            }
            for actor, node in placement.nodes.items()
        ],
        "moves": [
            {"shard": shard, "from": placement.homes[shard], "to": placement.wanted[shard]}
            for shard in placement.pending()
        ],
    }
