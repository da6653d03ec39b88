"""Jobs of one thing over HTTP: what devices ask of the data plane, and what operators ask of the control plane.

Two services of AWS share these paths with other bodies: the data plane of devices (`iot-jobs-data`) and the control
plane (`iot`). The signature says which one is asked; without one it is the control plane. A device, which comes with
its certificate, asks the data plane only.
"""

from __future__ import annotations

from typing import Final

import msgspec
from fastapi import APIRouter, HTTPException, Request, Response

from actors.errors import RecordNotFound
from actors.fleet import Fleet
from actors.gateway.authentication import caller_of
from actors.gateway.iot_jobs import JobOffice, execution_of_thing, executions_of_thing
from actors.gateway.problems import answer
from actors.gateway.shadow_routes import check_thing_name
from twins import messages
from twins.jobs import NEXT
from twins.messages import Operation

_DATA_PLANE: Final = "iot-jobs-data"


class JobsData:
    """The data plane: every answer is the twin's own."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def _ask(self, operation: Operation, thing: str, name: str, payload: bytes = b"") -> Response:
        check_thing_name(thing)
        request = messages.Request(operation, thing, payload, name, is_direct=True)
        return answer(await self._fleet.ask(request))

    async def pending(self, thing: str) -> Response:
        """Answer GetPendingJobExecutions."""
        return await self._ask(Operation.JOB_READ, thing, "get")

    async def describe(self, thing: str, job: str, request: Request) -> Response:
        """Answer DescribeJobExecution."""
        asked = request.query_params
        body: dict[str, object] = {}
        if "includeJobDocument" in asked:
            body["includeJobDocument"] = asked["includeJobDocument"].lower() == "true"
        if "executionNumber" in asked:
            if not asked["executionNumber"].isdecimal():
                raise HTTPException(400, "executionNumber must be a number")
            body["executionNumber"] = int(asked["executionNumber"])
        return await self._ask(Operation.JOB_READ, thing, f"{job}/get", msgspec.json.encode(body))

    async def start_next(self, thing: str, job: str, request: Request) -> Response:
        """Answer StartNextPendingJobExecution."""
        if job != NEXT:
            raise HTTPException(405, f"only {NEXT} can be started")
        return await self._ask(Operation.JOB_CHANGE, thing, "start-next", await request.body())

    async def update(self, thing: str, job: str, request: Request) -> Response:
        """Answer UpdateJobExecution."""
        return await self._ask(Operation.JOB_CHANGE, thing, f"{job}/update", await request.body())


def jobs_data_routes(fleet: Fleet) -> APIRouter:
    """Return the routes of the data plane alone, for devices."""
    router = APIRouter(prefix="/things/{thing}/jobs", tags=["jobs"])
    data = JobsData(fleet)

    @router.get("", summary="Get the pending job executions")
    async def get_pending(thing: str) -> Response:
        return await data.pending(thing)

    @router.get("/{job}", summary="Describe a job execution")
    async def describe_execution(thing: str, job: str, request: Request) -> Response:
        return await data.describe(thing, job, request)

    _changing_routes(router, data)
    return router


def jobs_routes(fleet: Fleet, office: JobOffice) -> APIRouter:
    """Return the routes of both planes, for operators."""
    router = APIRouter(prefix="/things/{thing}/jobs", tags=["jobs"])
    data = JobsData(fleet)

    @router.get("", summary="List a thing's job executions")
    async def list_executions(thing: str, request: Request) -> Response:
        check_thing_name(thing)
        await _require(office, thing)
        if caller_of(request).service == _DATA_PLANE:
            return await data.pending(thing)
        return await executions_of_thing(office, thing, request)

    @router.get("/{job}", summary="Describe a job execution")
    async def describe_execution(thing: str, job: str, request: Request) -> Response:
        check_thing_name(thing)
        await _require(office, thing)
        if caller_of(request).service == _DATA_PLANE:
            return await data.describe(thing, job, request)
        return await execution_of_thing(office, thing, job, request)

    _changing_routes(router, data)
    return router


async def _require(office: JobOffice, thing: str) -> None:
    try:
        await office.require_thing(thing)
    except RecordNotFound as error:
        raise HTTPException(404, str(error)) from None


def _changing_routes(router: APIRouter, data: JobsData) -> None:
    @router.put("/{job}", summary="Start the next job execution")
    async def start_next(thing: str, job: str, request: Request) -> Response:
        return await data.start_next(thing, job, request)

    @router.post("/{job}", summary="Update a job execution")
    async def update_execution(thing: str, job: str, request: Request) -> Response:
        return await data.update(thing, job, request)
