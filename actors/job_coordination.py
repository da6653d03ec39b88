"""What becomes of jobs: who gets an execution and when, when a job is over, and which timers have ended.

`JobCoordinator` is the one writer of the jobs' store. It notes what is to be done before it is done, and every order to
a twin may be repeated, so whoever takes over after it died goes on where it was. It reads no clock but the one that it
is given, and waits for nothing: `step` does what is due.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Sequence
from typing import Final

import msgspec

from actors.errors import DescriptionError, RecordExists, RecordNotFound, StoreError
from actors.fleet import Fleet, JobCounts, assign_request
from actors.gateway.searching import FleetSearch
from actors.registry.job_orders import CancelOrder, CreateOrder, DeleteOrder, JobOrder
from actors.registry.jobs import ExponentialRate, JobRecord, Jobs
from actors.registry.registry import Registry
from twins import jobs as wire
from twins.assignments import CancelJob, DefineJob, DeleteJob, Expire, QueueJob, RemoveJob
from twins.clock import Clock
from twins.jobs import JobDefinition
from twins.messages import Reply, Request
from twins.query import parse
from twins.sharding import shard_of

_LOG: Final = logging.getLogger(__name__)
# Things that get an execution between two notes of it: what is repeated after a death in between.
GIVEN_AT_ONCE_MAX: Final = 500
# Batches of one job in a step, so that other jobs and timers have their turn.
_BATCHES_MAX: Final = 20
# Names read at once.
_PAGE: Final = 500
# How often a continuous job looks who belongs to its groups.
_LOOK_EVERY_S: Final = 5.0
# A rate is caught up with for so long after a pause; what lies further back is skipped.
_CATCH_UP_S: Final = 1.0
_BY: Final = "job coordinator"


class JobCoordinator:
    """Carries jobs out; its methods may be called from several tasks, and take turns."""

    def __init__(
        self,
        jobs: Jobs,
        registry: Registry,
        fleet: Fleet,
        clock: Clock,
        *,
        given_at_once: int = GIVEN_AT_ONCE_MAX,
    ) -> None:
        """Prepare; `given_at_once` things get an execution between two notes of it."""
        self._jobs = jobs
        self._given_at_once = given_at_once
        self._registry = registry
        self._fleet = fleet
        self._clock = clock
        self._search = FleetSearch(fleet, registry)
        self._turn = asyncio.Lock()
        # When the groups of a continuous job were looked at last.
        self._looked_at_s: dict[str, float] = {}

    async def order(self, order: JobOrder) -> None:
        """Take in what an operator wants; RecordExists, RecordNotFound or DescriptionError if it cannot be."""
        async with self._turn:
            if isinstance(order, CreateOrder):
                await self._create(order)
            elif isinstance(order, CancelOrder):
                await self._cancel(order)
            else:
                await self._delete(order)

    async def _create(self, order: CreateOrder) -> None:
        try:
            await self._jobs.add(order.record, by=order.by)
        except RecordExists:
            # The same again is an answer that was lost.
            if not _is_same(await self._jobs.get(order.record.job_id), order.record):
                raise

    async def _cancel(self, order: CancelOrder) -> None:
        job = await self._jobs.get(order.job_id)
        if job.status == "CANCELED" and (job.is_forced or not order.force):
            return
        if job.status not in ("IN_PROGRESS", "CANCELED"):
            raise DescriptionError(
                f"job {job.job_id!r}", f"is {job.status}; only one in progress can be cancelled"
            )
        await self._end(job, order.reason_code, order.comment, is_forced=order.force, by=order.by)

    async def _end(self, job: JobRecord, reason: str, comment: str, *, is_forced: bool, by: str) -> None:
        now_s = self._clock.now_s()
        canceled = msgspec.structs.replace(
            job,
            status="CANCELED",
            is_settled=False,
            is_forced=is_forced,
            reason_code=reason,
            comment=comment,
            updated_at_s=now_s,
            completed_at_s=now_s,
        )
        await self._jobs.replace(job, canceled, action="job.cancel", by=by)

    async def _delete(self, order: DeleteOrder) -> None:
        job = await self._jobs.get(order.job_id)
        if job.status == "IN_PROGRESS" and not order.force:
            problem = "is in progress; cancel it first, or delete it with force"
            raise DescriptionError(f"job {job.job_id!r}", problem)
        deleting = msgspec.structs.replace(
            job, status="DELETION_IN_PROGRESS", updated_at_s=self._clock.now_s()
        )
        await self._jobs.replace(job, deleting, action="job.delete", by=order.by)

    # What is due

    async def step(self) -> None:
        """Do what is due now; WorldError if a part that it takes does not answer: what is left is due then."""
        async with self._turn:
            await self._expire()
            open_jobs = await self._jobs.open_jobs()
            # Asked after the jobs were read: whom an earlier step gave one is counted.
            counts = await self._fleet.job_counts() if open_jobs else {}
            for job in open_jobs:
                await self._advance(job, counts)

    async def _expire(self) -> None:
        overdue = await self._fleet.overdue()
        for start in range(0, len(overdue), _PAGE):
            part = overdue[start : start + _PAGE]
            await self._fleet.ask_many([assign_request(name, Expire()) for name in part])

    async def _advance(self, job: JobRecord, counts: JobCounts) -> None:
        if job.status == "DELETION_IN_PROGRESS":
            await self._wipe(job)
        elif job.status == "CANCELED":
            await self._settle(job)
        else:
            await self._go_on(job, counts.get(job.job_id, {}))

    async def _wipe(self, job: JobRecord) -> None:
        order = DeleteJob(job.job_id, force=True)
        async for names in self._concerned(job.job_id):
            _require(await self._fleet.ask_many([assign_request(name, order) for name in names]))
        await self._jobs.remove(job.job_id, by=_BY)
        self._looked_at_s.pop(job.job_id, None)

    async def _settle(self, job: JobRecord) -> None:
        order = CancelJob(job.job_id, force=job.is_forced, is_all=True)
        async for names in self._concerned(job.job_id):
            _require(await self._fleet.ask_many([assign_request(name, order) for name in names]))
        settled = msgspec.structs.replace(job, is_settled=True)
        dropped = [self._jobs.drop_waiting_command(job.job_id)]
        await self._jobs.replace(job, settled, action="job.settle", by=_BY, more=dropped)

    async def _concerned(self, job_id: str) -> AsyncIterator[list[str]]:
        """Give the things that have an execution, in parts; also those that may have got one from who died over it."""
        for index in (self._jobs.waiting, self._jobs.given):
            after = ""
            while names := await index(job_id, after=after, limit=_PAGE):
                yield names
                after = names[-1]

    async def _go_on(self, job: JobRecord, counts: dict[str, int]) -> None:
        if _is_bad(job, counts):
            await self._end(
                job, "JOB_ABORTED", "a criterion of its abort configuration holds", is_forced=False, by=_BY
            )
            return
        if not job.is_resolved or self._is_look_due(job):
            job = await self._resolve(job)
        given_count = job.given_count
        for _ in range(_BATCHES_MAX):
            job, is_done = await self._give(job, counts)
            if is_done:
                break
        # Whoever got one in an earlier step is among those that are counted.
        is_idle = job.given_count == given_count and not any(counts.get(each) for each in wire.PENDING)
        if job.selection == "SNAPSHOT" and is_idle and not await self._jobs.waiting_count(job.job_id):
            now_s = self._clock.now_s()
            over = msgspec.structs.replace(job, status="COMPLETED", completed_at_s=now_s, updated_at_s=now_s)
            await self._jobs.replace(job, over, action="job.complete", by=_BY)

    # Who gets an execution

    def _is_look_due(self, job: JobRecord) -> bool:
        looked_at_s = self._looked_at_s.get(job.job_id, -math.inf)
        return job.selection == "CONTINUOUS" and self._clock.now_s() - looked_at_s >= _LOOK_EVERY_S

    async def _resolve(self, job: JobRecord) -> JobRecord:
        """Note all things that a job is for; of a continuous one, take from those that are no targets any more."""
        self._looked_at_s[job.job_id] = self._clock.now_s()
        members: set[str] = set()
        async for names in self._members(job.targets):
            members.update(names)
            await self._jobs.let_wait(job.job_id, names, by=_BY)
        if job.is_resolved:
            await self._take_back(job.job_id, members)
            return job
        resolved = msgspec.structs.replace(job, is_resolved=True)
        await self._jobs.replace(job, resolved, action="job.resolve", by=_BY)
        return resolved

    async def _take_back(self, job_id: str, members: set[str]) -> None:
        after = ""
        while names := await self._jobs.given(job_id, after=after, limit=_PAGE):
            order = RemoveJob(job_id)
            gone = [assign_request(name, order) for name in names if name not in members]
            if gone:
                _require(await self._fleet.ask_many(gone))
            after = names[-1]

    async def _members(self, targets: Sequence[str]) -> AsyncIterator[list[str]]:
        """Give the things that targets stand for, in parts; a group that is gone has none."""
        yield [target.removeprefix("thing/") for target in targets if target.startswith("thing/")]
        for name in [each.removeprefix("thinggroup/") for each in targets if each.startswith("thinggroup/")]:
            try:
                group = await self._registry.groups.get(name)
            except RecordNotFound:
                continue
            if group.is_dynamic:
                token: str | None = ""
                while token is not None:
                    page = await self._search.page(parse(group.query), after=token, limit=_PAGE)
                    yield [thing.name for thing in page.things]
                    token = page.next_token
            else:
                groups, after = [name, *await self._registry.groups.descendants(name)], ""
                while names := await self._registry.things.members(groups, after=after, limit=_PAGE):
                    yield names
                    after = names[-1]

    async def _give(self, job: JobRecord, counts: dict[str, int]) -> tuple[JobRecord, bool]:
        """Give the next things an execution, as many as the rate lets; tell whether no more are due now."""
        now_s, rate = self._clock.now_s(), _rate(job, counts)
        due_s = max(job.due_s or now_s, now_s - _CATCH_UP_S)
        allowed = self._given_at_once
        if rate:
            allowed = min(allowed, math.floor((now_s - due_s) * rate / 60) + 1 if due_s <= now_s else 0)
        names = await self._jobs.waiting(job.job_id, limit=allowed) if allowed else []
        if not names:
            return job, True
        _require(await self._fleet.ask_many(self._giving(job, names)))
        after = msgspec.structs.replace(
            job,
            given_count=job.given_count + len(names),
            due_s=due_s + 60 * len(names) / rate if rate else now_s,
            updated_at_s=now_s,
        )
        more = self._jobs.give_commands(job.job_id, names)
        await self._jobs.replace(job, after, action="job.give", by=_BY, more=more)
        return after, len(names) < self._given_at_once

    def _giving(self, job: JobRecord, names: Sequence[str]) -> list[Request]:
        """Return the orders that give things an execution; in each shard the first of them makes the job known."""
        definition = JobDefinition(
            job.job_id, job.document.encode(), job.in_progress_minutes, dict(job.retries)
        )
        told: set[int] = set()
        requests = []
        for name in names:
            shard = shard_of(name, self._fleet.shard_count)
            if shard not in told:
                told.add(shard)
                requests.append(assign_request(name, DefineJob(definition)))
            requests.append(assign_request(name, QueueJob(job.job_id)))
        return requests


def _require(replies: Sequence[Reply]) -> None:
    """Raise StoreError (retryable) if an order to a twin, none of which can be wrong, was refused."""
    refused = next((reply for reply in replies if reply.status != 200), None)
    if refused is not None:
        raise StoreError(
            f"a twin refused an order of the job coordinator: {refused.payload.decode()}", retryable=True
        )


def _is_same(one: JobRecord, other: JobRecord) -> bool:
    """Tell whether two records are of the same job as it was asked for."""
    asked = ("document", "targets", "selection", "description", "in_progress_minutes", "retries")
    return all(getattr(one, name) == getattr(other, name) for name in asked)


def _rate(job: JobRecord, counts: dict[str, int]) -> float:
    """Return how many things a minute get an execution at present; 0: as many as there are."""
    if job.exponential is None:
        return job.maximum_per_minute
    rate = exponential_rate(job.exponential, job.given_count, counts.get(wire.SUCCEEDED, 0))
    return min(rate, job.maximum_per_minute) if job.maximum_per_minute else rate


def exponential_rate(rate: ExponentialRate, notified: int, succeeded: int) -> float:
    """Return things a minute: the base, grown by the factor once for each time that the criterion was met."""
    criteria = rate.rate_increase_criteria
    steps = notified // criteria["numberOfNotifiedThings"] if "numberOfNotifiedThings" in criteria else 0
    if "numberOfSucceededThings" in criteria:
        steps = succeeded // criteria["numberOfSucceededThings"]
    # Beyond a few dozen steps it is more than any fleet has.
    return rate.base_rate_per_minute * rate.increment_factor ** min(steps, 64)


def _is_bad(job: JobRecord, counts: dict[str, int]) -> bool:
    """Tell whether a criterion says that a job is to be cancelled."""
    executed = sum(
        counts.get(each, 0) for each in (wire.SUCCEEDED, wire.FAILED, wire.REJECTED, wire.TIMED_OUT)
    )
    for criterion in job.abort:
        kinds = (wire.FAILED, wire.REJECTED, wire.TIMED_OUT)
        bad = sum(counts.get(each, 0) for each in kinds if criterion.failure_type in ("ALL", each))
        is_enough = executed >= criterion.min_number_of_executed_things
        if is_enough and 100 * bad >= criterion.threshold_percentage * executed and bad:
            return True
    return False
