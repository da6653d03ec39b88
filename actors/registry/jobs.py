"""Jobs across the fleet: their records, which things they are for, and how both change.

They lie in a store of their own, whose one writer is the job coordinator; everybody else opens it for reading. Beside
the records stand indexes: `jobs` (ids), `open` (ids of jobs with which the coordinator has still to do), and for each
job `waiting:JOB` and `given:JOB`, the things that are to get an execution and those that have got one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from actors.errors import RecordExists, RecordNotFound
from actors.registry.store import RegistryStore, changed_meanwhile, encode, store_errors
from twins.clock import Clock

# Where the store's keys begin, behind the prefix of the platform.
_PREFIX: Final = "jobs:"
# Names in one commit: some hundred kilobytes.
_COMMIT_COUNT: Final = 1000
JobStatus = Literal["IN_PROGRESS", "COMPLETED", "CANCELED", "DELETION_IN_PROGRESS"]


class ExponentialRate(msgspec.Struct, frozen=True, rename="camel"):
    """A rate that grows by a factor each time that so many things more were notified, or have succeeded."""

    base_rate_per_minute: int
    increment_factor: float
    rate_increase_criteria: dict[str, int]


class AbortCriterion(msgspec.Struct, frozen=True, rename="camel"):
    """When a job is cancelled by itself: a share of bad ends among the things that are through with it."""

    failure_type: Literal["FAILED", "REJECTED", "TIMED_OUT", "ALL"]
    threshold_percentage: float
    min_number_of_executed_things: int
    action: Literal["CANCEL"] = "CANCEL"


class JobRecord(msgspec.Struct, frozen=True):
    """A job; times in seconds since the epoch, 0 for not yet.

    `targets` are `thing/NAME` and `thinggroup/NAME`. `is_resolved` once all of them stand in the indexes,
    `is_settled` once a cancellation has reached all executions, `given_count` things have got an execution, and the
    next one is due at `due_s`.
    """

    job_id: str
    document: str
    targets: list[str]
    selection: Literal["SNAPSHOT", "CONTINUOUS"]
    created_at_s: float
    updated_at_s: float
    description: str = ""
    document_source: str = ""
    in_progress_minutes: int = 0
    retries: dict[str, int] = {}
    maximum_per_minute: int = 0
    exponential: ExponentialRate | None = None
    abort: list[AbortCriterion] = []
    status: JobStatus = "IN_PROGRESS"
    completed_at_s: float = 0
    is_forced: bool = False
    reason_code: str = ""
    comment: str = ""
    is_resolved: bool = False
    is_settled: bool = False
    given_count: int = 0
    due_s: float = 0

    @property
    def is_over(self) -> bool:
        """Tell whether nothing more comes of it by itself."""
        return self.status == "COMPLETED" or (self.status == "CANCELED" and self.is_settled)


class Jobs:
    """The jobs of one platform; see `RegistryStore` for who may change them, and for what every method may raise."""

    def __init__(self, store: RegistryStore) -> None:
        self._store = store

    @classmethod
    async def open(
        cls, url: str, clock: Clock, *, prefix: str = "twinfleet:", is_writer: bool = False
    ) -> Jobs:
        """Return the jobs kept in the Redis at `url`; with `is_writer`, this process is now their one writer."""
        return cls(await RegistryStore.open(url, clock, prefix=prefix + _PREFIX, is_writer=is_writer))

    async def close(self) -> None:
        """Let go of the connections to Redis."""
        await self._store.close()

    async def get(self, job_id: str) -> JobRecord:
        """Return a job; RecordNotFound if there is none of that id."""
        record = await self._store.read(self._store.key("job", job_id), JobRecord)
        if record is None:
            raise RecordNotFound("job", job_id)
        return record

    async def page(self, *, after: str = "", limit: int) -> list[JobRecord]:
        """Return up to `limit` jobs in the order of their ids, those after an id."""
        names = await self._store.names_after("jobs", after, limit)
        return await self._store.read_all("job", names, JobRecord)

    async def open_jobs(self) -> list[JobRecord]:
        """Return the jobs with which the coordinator has still to do."""
        names = [name async for name in self._store.all_names("open")]
        return await self._store.read_all("job", names, JobRecord)

    async def waiting(self, job_id: str, *, after: str = "", limit: int) -> list[str]:
        """Return up to `limit` things that are to get an execution, in name order, those after `after`."""
        return await self._store.names_after(f"waiting:{job_id}", after, limit)

    async def given(self, job_id: str, *, after: str = "", limit: int) -> list[str]:
        """Return up to `limit` things that have got an execution, in name order, those after `after`."""
        return await self._store.names_after(f"given:{job_id}", after, limit)

    async def waiting_count(self, job_id: str) -> int:
        """Return how many things are to get an execution."""
        with store_errors():
            return int(await self._store.client.zcard(self._store.key(f"waiting:{job_id}")))

    async def add(self, record: JobRecord, *, by: str) -> None:
        """Keep a new job; RecordExists if its id is taken."""
        key = self._store.key("job", record.job_id)
        commands = [
            ["SET", key, encode(record)],
            ["ZADD", self._store.key("jobs"), "0", record.job_id],
            ["ZADD", self._store.key("open"), "0", record.job_id],
        ]
        if await self._store.change("job.create", record.job_id, commands, conditions=[(key, "")], by=by):
            raise RecordExists("job", record.job_id)

    async def replace(
        self,
        before: JobRecord,
        after: JobRecord,
        *,
        action: str,
        by: str,
        more: Sequence[Sequence[str]] = (),
    ) -> None:
        """Put `after` in the place of `before`; StoreError (retryable) if that was changed meanwhile."""
        key, name = self._store.key("job", before.job_id), before.job_id
        conditions = [(key, await self._store.text_of(key, before, f"job {name!r}"))]
        index = self._store.key("open")
        listed = ["ZREM", index, name] if after.is_over else ["ZADD", index, "0", name]
        commands = [["SET", key, encode(after)], listed, *more]
        if await self._store.change(action, name, commands, conditions=conditions, by=by):
            raise changed_meanwhile(f"job {name!r}")

    async def let_wait(self, job_id: str, names: Sequence[str], *, by: str) -> None:
        """Note things that are to get an execution; those that have got one are left out."""
        for start in range(0, len(names), _COMMIT_COUNT):
            part = names[start : start + _COMMIT_COUNT]
            with store_errors():
                scores = await self._store.client.zmscore(self._store.key(f"given:{job_id}"), list(part))
            new = [name for name, score in zip(part, scores, strict=True) if score is None]
            if new:
                pairs = [word for name in new for word in ("0", name)]
                commands = [["ZADD", self._store.key(f"waiting:{job_id}"), *pairs]]
                await self._store.change("job.resolve", job_id, commands, by=by)

    def give_commands(self, job_id: str, names: Sequence[str]) -> list[list[str]]:
        """Return what `replace` does beside the record when things have got an execution."""
        pairs = [word for name in names for word in ("0", name)]
        return [
            ["ZREM", self._store.key(f"waiting:{job_id}"), *names],
            ["ZADD", self._store.key(f"given:{job_id}"), *pairs],
        ]

    def drop_waiting_command(self, job_id: str) -> list[str]:
        """Return what `replace` does beside the record when nobody is to get an execution any more."""
        return ["DEL", self._store.key(f"waiting:{job_id}")]

    async def remove(self, job_id: str, *, by: str) -> None:
        """Forget a job whose executions are deleted."""
        commands = [
            ["DEL", self._store.key("job", job_id)],
            ["DEL", self._store.key(f"waiting:{job_id}")],
            ["DEL", self._store.key(f"given:{job_id}")],
            ["ZREM", self._store.key("jobs"), job_id],
            ["ZREM", self._store.key("open"), job_id],
        ]
        await self._store.change("job.delete", job_id, commands, by=by)
