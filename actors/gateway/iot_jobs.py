"""Jobs on AWS IoT's control plane: the paths, bodies and answers of boto3's `iot` client.

Jobs are read from their store and executions from their twins; what changes a job is an order to the job coordinator,
what changes one execution an order to its twin.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, HTTPException, Query, Request, Response

from actors.errors import DescriptionError, RecordNotFound, ThingNotFound
from actors.fleet import Fleet, assign_request, assigned_request
from actors.gateway.arns import group_arn, job_arn, name_in_arn, thing_arn
from actors.gateway.authentication import caller_of
from actors.gateway.iot_bodies import given, read_body
from actors.gateway.iot_things import PAGE_SIZE_MAX, NextToken
from actors.gateway.platform_view import PlatformView
from actors.gateway.problems import answer, document
from actors.registry.job_orders import CancelOrder, CreateOrder, DeleteOrder
from actors.registry.jobs import AbortCriterion, ExponentialRate, JobRecord
from actors.registry.registry import Registry
from twins import jobs as wire
from twins.assignments import AskJobs, CancelJob, DeleteJob
from twins.clock import Clock

# The service's bounds.
_DOCUMENT_LENGTH_MAX: Final = 32_768
_TARGETS_MAX: Final = 100
_DESCRIPTION_LENGTH_MAX: Final = 2028
_RETRIES_MAX: Final = 10
# Things whose twins are asked at once while executions of one status are looked for.
_WALK_PAGE: Final = 500

MaxResults = Annotated[int, Query(alias="maxResults", ge=1, le=PAGE_SIZE_MAX)]
Force = Annotated[bool, Query()]


class _Criteria(msgspec.Struct, frozen=True, rename="camel"):
    criteria_list: list[AbortCriterion]


class _Retry(msgspec.Struct, frozen=True, rename="camel"):
    failure_type: str
    number_of_retries: int


class _Retries(msgspec.Struct, frozen=True, rename="camel"):
    criteria_list: list[_Retry]


class _Rollout(msgspec.Struct, frozen=True, rename="camel"):
    maximum_per_minute: int | None = None
    exponential_rate: ExponentialRate | None = None


class _Timeout(msgspec.Struct, frozen=True, rename="camel"):
    in_progress_timeout_in_minutes: int | None = None


class _JobBody(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """What CreateJob says; what is not kept here is refused by its name."""

    targets: list[str]
    document: str = ""
    description: str = ""
    target_selection: str = "SNAPSHOT"
    job_executions_rollout_config: _Rollout = _Rollout()
    abort_config: _Criteria | None = None
    timeout_config: _Timeout = _Timeout()
    job_executions_retry_config: _Retries | None = None


class _CancelBody(msgspec.Struct, frozen=True, rename="camel"):
    reason_code: str = ""
    comment: str = ""


class _CancelExecutionBody(msgspec.Struct, frozen=True, rename="camel"):
    expected_version: int | None = None
    status_details: dict[str, str] | None = None


class JobOffice:
    """Answers what operators ask of jobs, and hands on what they want."""

    def __init__(self, fleet: Fleet, registry: Registry, platform: PlatformView, clock: Clock) -> None:
        self.jobs: Final = platform.jobs
        self._fleet = fleet
        self._registry = registry
        self._platform = platform
        self._clock = clock

    async def create(self, job_id: str, body: _JobBody, *, by: str) -> JobRecord:
        """Return a job that has just begun; DescriptionError says what is wrong with its description."""
        if not wire.is_job_id(job_id):
            raise DescriptionError(
                f"job id {job_id!r}", "take 1 to 64 letters, digits, underscores and hyphens"
            )
        now_s = self._clock.now_s()
        record = JobRecord(
            job_id,
            _checked_document(body.document),
            await self._targets(body.targets),
            "CONTINUOUS" if body.target_selection == "CONTINUOUS" else "SNAPSHOT",
            now_s,
            now_s,
            description=body.description,
            in_progress_minutes=body.timeout_config.in_progress_timeout_in_minutes or 0,
            retries=_retries(body.job_executions_retry_config),
            maximum_per_minute=body.job_executions_rollout_config.maximum_per_minute or 0,
            exponential=body.job_executions_rollout_config.exponential_rate,
            abort=[] if body.abort_config is None else body.abort_config.criteria_list,
        )
        _check(record, body.target_selection)
        await self._platform.order_job(CreateOrder(record, by))
        return record

    async def _targets(self, arns: Sequence[str]) -> list[str]:
        if not 1 <= len(arns) <= _TARGETS_MAX:
            raise DescriptionError(
                "targets", f"name 1 to {_TARGETS_MAX} things and thing groups by their ARNs"
            )
        targets = []
        for arn in arns:
            kind = "thinggroup" if ":thinggroup/" in arn else "thing"
            name = name_in_arn(arn, kind)
            if kind == "thing":
                await self._registry.things.get(name)
            else:
                await self._registry.groups.get(name)
            targets.append(f"{kind}/{name}")
        return sorted(set(targets))

    async def order(self, order: CancelOrder | DeleteOrder) -> None:
        """Hand on what an operator wants."""
        await self._platform.order_job(order)

    async def counts(self, job_id: str) -> dict[str, int]:
        """Return, by status, how many things have an execution of a job."""
        return (await self._fleet.job_counts()).get(job_id, {})

    async def executions(self, things: Sequence[str], job_id: str = "") -> list[dict[str, Any]]:
        """Return the executions of things, those of one job if it is named."""
        replies = await self._fleet.ask_many([assigned_request(name, AskJobs(job_id)) for name in things])
        return [each for reply in replies for each in msgspec.json.decode(reply.payload)["executions"]]

    async def of_job(
        self, job_id: str, *, status: str, after: str, limit: int
    ) -> tuple[list[dict[str, Any]], str]:
        """Return up to `limit` executions of a job, and the name behind which there are more ('': nowhere)."""
        found: list[dict[str, Any]] = []
        while names := await self.jobs.given(job_id, after=after, limit=_WALK_PAGE):
            for each in await self.executions(names, job_id):
                if status in ("", each["status"]):
                    if len(found) == limit:
                        return found, str(found[-1]["thingName"])
                    found.append(each)
            after = names[-1]
        return found, ""

    async def require_thing(self, thing: str) -> None:
        """Refuse, with RecordNotFound, a thing that is not registered."""
        try:
            await self._registry.things.get(thing)
        except ThingNotFound:
            raise RecordNotFound("thing", thing) from None

    async def assign(self, thing: str, job_id: str, order: CancelJob | DeleteJob, *, by: str) -> Response:
        """Have a twin end or forget an execution, and return its answer; the audit log says who wanted it."""
        action = "execution.cancel" if isinstance(order, CancelJob) else "execution.delete"
        await self._registry.note(action, f"{thing} {job_id}", by=by)
        return answer(await self._fleet.ask(assign_request(thing, order)))


def iot_job_routes(office: JobOffice) -> APIRouter:
    """Return the routes of jobs."""
    router = APIRouter(tags=["AWS IoT: jobs"])

    @router.put("/jobs/{job}", summary="CreateJob")
    async def create_job(job: str, request: Request) -> Response:
        body = await read_body(request, _JobBody)
        record = await office.create(job, body, by=caller_of(request).name)
        described = given(description=record.description)
        return document({"jobArn": job_arn(job), "jobId": job, **described})

    @router.get("/jobs", summary="ListJobs")
    async def list_jobs(
        request: Request, next_token: NextToken = "", max_results: MaxResults = PAGE_SIZE_MAX
    ) -> Response:
        wanted = {name: request.query_params.get(name, "") for name in ("status", "targetSelection")}
        found: list[JobRecord] = []
        after, token = next_token, ""
        while not token and (page := await office.jobs.page(after=after, limit=_WALK_PAGE)):
            after = page[-1].job_id
            for record in page:
                if wanted["status"] in ("", record.status) and wanted["targetSelection"] in (
                    "",
                    record.selection,
                ):
                    if len(found) == max_results:
                        token = found[-1].job_id
                        break
                    found.append(record)
        return document({"jobs": [_summary(record) for record in found], **given(nextToken=token)})

    @router.get("/jobs/{job}", summary="DescribeJob")
    async def describe_job(job: str) -> Response:
        record = await office.jobs.get(job)
        return document({"job": _view(record, await office.counts(job))})

    @router.get("/jobs/{job}/job-document", summary="GetJobDocument")
    async def get_job_document(job: str) -> Response:
        return document({"document": (await office.jobs.get(job)).document})

    _ending_routes(router, office)
    _execution_routes(router, office)
    return router


def _ending_routes(router: APIRouter, office: JobOffice) -> None:
    @router.put("/jobs/{job}/cancel", summary="CancelJob")
    async def cancel_job(job: str, request: Request, *, force: Force = False) -> Response:
        body = await read_body(request, _CancelBody)
        caller = caller_of(request).name
        await office.order(
            CancelOrder(job, caller, force=force, reason_code=body.reason_code, comment=body.comment)
        )
        record = await office.jobs.get(job)
        return document({"jobArn": job_arn(job), "jobId": job, **given(description=record.description)})

    @router.delete("/jobs/{job}", summary="DeleteJob")
    async def delete_job(job: str, request: Request, *, force: Force = False) -> Response:
        await office.order(DeleteOrder(job, caller_of(request).name, force=force))
        return document({})


def _execution_routes(router: APIRouter, office: JobOffice) -> None:
    @router.get("/jobs/{job}/things", summary="ListJobExecutionsForJob")
    async def list_executions_for_job(
        job: str, status: str = "", next_token: NextToken = "", max_results: MaxResults = PAGE_SIZE_MAX
    ) -> Response:
        await office.jobs.get(job)
        found, token = await office.of_job(job, status=status, after=next_token, limit=max_results)
        summaries = [
            {"thingArn": thing_arn(each["thingName"]), "jobExecutionSummary": execution_summary(each)}
            for each in found
        ]
        return document({"executionSummaries": summaries, **given(nextToken=token)})

    @router.put("/things/{thing}/jobs/{job}/cancel", summary="CancelJobExecution")
    async def cancel_execution(thing: str, job: str, request: Request, *, force: Force = False) -> Response:
        await office.require_thing(thing)
        body = await read_body(request, _CancelExecutionBody)
        order = CancelJob(
            job, force=force, expected_version=body.expected_version, details=body.status_details
        )
        return await office.assign(thing, job, order, by=caller_of(request).name)

    @router.delete("/things/{thing}/jobs/{job}/executionNumber/{number}", summary="DeleteJobExecution")
    async def delete_execution(
        thing: str, job: str, number: int, request: Request, *, force: Force = False
    ) -> Response:
        await office.require_thing(thing)
        return await office.assign(thing, job, DeleteJob(job, number, force), by=caller_of(request).name)


async def executions_of_thing(office: JobOffice, thing: str, request: Request) -> Response:
    """Return the answer of ListJobExecutionsForThing."""
    asked = request.query_params
    status, next_token = asked.get("status", ""), asked.get("nextToken", "")
    try:
        limit = int(asked.get("maxResults", PAGE_SIZE_MAX))
    except ValueError:
        limit = 0
    if not 1 <= limit <= PAGE_SIZE_MAX:
        raise DescriptionError("maxResults", f"must be from 1 to {PAGE_SIZE_MAX}")
    found = sorted(
        await office.executions([thing], asked.get("jobId", "")), key=lambda each: str(each["jobId"])
    )
    left = [each for each in found if each["jobId"] > next_token and status in ("", each["status"])]
    summaries = [
        {"jobId": each["jobId"], "jobExecutionSummary": execution_summary(each)} for each in left[:limit]
    ]
    more = {"nextToken": left[limit - 1]["jobId"]} if len(left) > limit else {}
    return document({"executionSummaries": summaries, **more})


async def execution_of_thing(office: JobOffice, thing: str, job: str, request: Request) -> Response:
    """Return the answer of DescribeJobExecution on the control plane."""
    number = request.query_params.get("executionNumber")
    found = [
        each
        for each in await office.executions([thing], job)
        if number in (None, str(each["executionNumber"]))
    ]
    if not found:
        raise HTTPException(404, f"there is no execution of job {job!r} on thing {thing!r}")
    [execution] = found
    details = execution.pop("statusDetails", {})
    execution |= {"thingArn": thing_arn(execution.pop("thingName")), "statusDetails": {"detailsMap": details}}
    return document({"execution": execution})


def execution_summary(execution: dict[str, Any]) -> dict[str, Any]:
    """Return an execution as it stands in a list of the control plane."""
    names = ("status", "queuedAt", "startedAt", "lastUpdatedAt", "executionNumber")
    summary = {name: execution[name] for name in names if name in execution}
    return {**summary, "retryAttempt": execution["executionNumber"] - 1}


def _summary(record: JobRecord) -> dict[str, Any]:
    return {
        "jobArn": job_arn(record.job_id),
        "jobId": record.job_id,
        "targetSelection": record.selection,
        "status": record.status,
        "createdAt": record.created_at_s,
        "lastUpdatedAt": record.updated_at_s,
        **({"completedAt": record.completed_at_s} if record.completed_at_s else {}),
    }


_COUNTED: Final = {
    "numberOfCanceledThings": wire.CANCELED,
    "numberOfSucceededThings": wire.SUCCEEDED,
    "numberOfFailedThings": wire.FAILED,
    "numberOfRejectedThings": wire.REJECTED,
    "numberOfQueuedThings": wire.QUEUED,
    "numberOfInProgressThings": wire.IN_PROGRESS,
    "numberOfRemovedThings": wire.REMOVED,
    "numberOfTimedOutThings": wire.TIMED_OUT,
}


def _view(record: JobRecord, counts: dict[str, int]) -> dict[str, Any]:
    arns = [
        (thing_arn if kind == "thing" else group_arn)(name)
        for kind, _, name in (target.partition("/") for target in record.targets)
    ]
    rollout = given(
        maximumPerMinute=record.maximum_per_minute or None,
        exponentialRate=None if record.exponential is None else msgspec.to_builtins(record.exponential),
    )
    timeout = given(inProgressTimeoutInMinutes=record.in_progress_minutes or None)
    retries = [
        {"failureType": kind, "numberOfRetries": count} for kind, count in sorted(record.retries.items())
    ]
    return {
        **_summary(record),
        "targets": arns,
        **given(
            description=record.description,
            comment=record.comment,
            reasonCode=record.reason_code,
            forceCanceled=record.is_forced or None,
            timeoutConfig=timeout or None,
        ),
        "jobExecutionsRolloutConfig": rollout,
        **given(
            abortConfig={"criteriaList": msgspec.to_builtins(record.abort)} if record.abort else None,
            jobExecutionsRetryConfig={"criteriaList": retries} if retries else None,
        ),
        "jobProcessDetails": {name: counts.get(status, 0) for name, status in _COUNTED.items()},
    }


# What may be a job


def _checked_document(text: str) -> str:
    if not text:
        raise DescriptionError("document", "is missing; a job's document is JSON, and is given as a text")
    if len(text) > _DOCUMENT_LENGTH_MAX:
        raise DescriptionError("document", f"has {len(text)} characters, {_DOCUMENT_LENGTH_MAX} at most")
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise DescriptionError("document", f"is not JSON: {error}") from None
    return text


def _retries(config: _Retries | None) -> dict[str, int]:
    """Return further attempts by status; DescriptionError if they are beyond what the service takes."""
    retries: dict[str, int] = {}
    for each in [] if config is None else config.criteria_list:
        if each.failure_type not in (wire.FAILED, wire.TIMED_OUT, "ALL") or each.number_of_retries < 0:
            problem = "failureType is FAILED, TIMED_OUT or ALL, numberOfRetries from 0 to 10"
            raise DescriptionError("jobExecutionsRetryConfig", problem)
        kinds = (wire.FAILED, wire.TIMED_OUT) if each.failure_type == "ALL" else (each.failure_type,)
        retries |= dict.fromkeys(kinds, each.number_of_retries)
    if sum(retries.values()) > 2 * _RETRIES_MAX or any(count > _RETRIES_MAX for count in retries.values()):
        raise DescriptionError("jobExecutionsRetryConfig", f"has more than {_RETRIES_MAX} retries")
    return retries


def _check(record: JobRecord, selection: str) -> None:
    """Refuse, with DescriptionError, what the service does not take either."""
    if selection not in ("SNAPSHOT", "CONTINUOUS"):
        raise DescriptionError("targetSelection", "must be SNAPSHOT or CONTINUOUS")
    if len(record.description) > _DESCRIPTION_LENGTH_MAX or not record.description.isprintable():
        raise DescriptionError("description", f"at most {_DESCRIPTION_LENGTH_MAX} printable characters")
    if not 0 <= record.in_progress_minutes <= wire.TIMEOUT_MINUTES_MAX:
        problem = f"inProgressTimeoutInMinutes is from 1 to {wire.TIMEOUT_MINUTES_MAX}"
        raise DescriptionError("timeoutConfig", problem)
    if record.maximum_per_minute < 0:
        raise DescriptionError("jobExecutionsRolloutConfig", "maximumPerMinute is 1 or more")
    if record.exponential is not None:
        _check_rate(record.exponential)
    for criterion in record.abort:
        if not 0 < criterion.threshold_percentage <= 100 or criterion.min_number_of_executed_things < 1:
            problem = "thresholdPercentage is above 0, 100 at most; minNumberOfExecutedThings is 1 or more"
            raise DescriptionError("abortConfig", problem)


def _check_rate(rate: ExponentialRate) -> None:
    criteria = rate.rate_increase_criteria
    problem = ""
    if not 1 <= rate.base_rate_per_minute <= 1000:
        problem = "baseRatePerMinute is from 1 to 1000"
    elif not 1.1 <= rate.increment_factor <= 5:
        problem = "incrementFactor is from 1.1 to 5"
    elif (
        len(criteria) != 1
        or not criteria.keys() <= {"numberOfNotifiedThings", "numberOfSucceededThings"}
        or min(criteria.values()) < 1
    ):
        problem = (
            "rateIncreaseCriteria is either numberOfNotifiedThings or numberOfSucceededThings, 1 or more"
        )
    if problem:
        raise DescriptionError("jobExecutionsRolloutConfig", problem)
