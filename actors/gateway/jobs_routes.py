"""Jobs as a platform without jobs answers: there are none, for any thing.

Two services of AWS share these paths with other bodies: the data plane of devices (`iot-jobs-data`) and the control
plane (`iot`). The signature says which one is asked; without one it is the control plane.
"""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, HTTPException, Request, Response

from actors.errors import ThingNotFound
from actors.gateway.authentication import caller_of
from actors.gateway.problems import document
from actors.gateway.shadow_routes import check_thing_name
from actors.registry.registry import Registry

_DATA_PLANE: Final = "iot-jobs-data"
_NEXT: Final = "$next"


def jobs_routes(registry: Registry) -> APIRouter:
    """Return the routes of jobs and of their executions on things."""
    router = APIRouter(prefix="/things/{thing}/jobs", tags=["jobs"])

    async def require(thing: str) -> None:
        check_thing_name(thing)
        try:
            await registry.things.get(thing)
        except ThingNotFound as error:
            raise HTTPException(404, str(error)) from None

    @router.get("", summary="List a thing's job executions")
    async def list_executions(thing: str, request: Request) -> Response:
        await require(thing)
        if caller_of(request).service == _DATA_PLANE:
            return document({"inProgressJobs": [], "queuedJobs": []})
        return document({"executionSummaries": []})

    @router.get("/{job}", summary="Describe a job execution")
    async def describe_execution(thing: str, job: str, request: Request) -> Response:
        await require(thing)
        if job == _NEXT and caller_of(request).service == _DATA_PLANE:
            return document({})
        raise _no_execution(thing, job)

    @router.put("/{job}", summary="Start the next job execution")
    async def start_next(thing: str, job: str) -> Response:
        await require(thing)
        if job == _NEXT:
            return document({})
        raise HTTPException(405, f"only {_NEXT} can be started")

    @router.post("/{job}", summary="Update a job execution")
    async def update_execution(thing: str, job: str) -> Response:
        await require(thing)
        raise _no_execution(thing, job)

    return router


def _no_execution(thing: str, job: str) -> HTTPException:
    return HTTPException(404, f"there is no execution of job {job!r} on thing {thing!r}")
