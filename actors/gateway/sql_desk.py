"""Questions of others in SQL: which tables there are, what is read for a question, and how old an answer may be.

Owns the tables `twins`, `telemetry_recent`, `things`, `processes`, `jobs` and `job_executions`, and the turn of each
question. Answers come from the engine's own process, in the form that was asked for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from actors.arrow_tables import shards_read_at
from actors.asking import fleet_tables
from actors.errors import AnswerTooLate, Overloaded
from actors.fleet import Fleet
from actors.gateway.platform_view import PlatformView
from actors.registry.registry import Registry
from actors.sql import SqlPlan
from actors.sql_process import SqlProcess
from actors.sql_worker import AnswerForm, Result

# Questions that wait for the one that is answered: some seconds' worth. The next one is told to come again.
_WAITING_COUNT_MAX: Final = 32
# Things read from the registry at once: some hundred kilobytes.
_WALK_PAGE: Final = 1000
_THINGS: Final = pa.schema(
    [
        ("name", pa.string()),
        ("thing_id", pa.string()),
        ("thing_type", pa.string()),
        ("model", pa.string()),
        ("status", pa.string()),
        ("version", pa.int32()),
        ("created_at", pa.int64()),
        ("certificate_count", pa.int32()),
        ("groups", pa.list_(pa.string())),
        ("attributes", pa.map_(pa.string(), pa.string())),
    ]
)
_PROCESSES: Final = pa.schema(
    [
        ("role", pa.string()),
        ("pid", pa.int64()),
        ("state", pa.string()),
        ("reason", pa.string()),
        ("shards", pa.list_(pa.int32())),
        ("twin_count", pa.int64()),
        ("queue_length", pa.int64()),
        ("totals", pa.map_(pa.string(), pa.int64())),
    ]
)


_JOBS: Final = pa.schema(
    [
        ("job_id", pa.string()),
        ("status", pa.string()),
        ("selection", pa.string()),
        ("targets", pa.list_(pa.string())),
        ("description", pa.string()),
        ("given_count", pa.int64()),
        ("created_at", pa.float64()),
        ("updated_at", pa.float64()),
        ("completed_at", pa.float64()),
        ("reason_code", pa.string()),
    ]
)


@dataclass(frozen=True)
class SqlAnswer:
    """An answer in its form, and how old it is: since the first of what it says was read, by this process's clock.

    `read_at` is when each shard was read, by the clock of its own machine (seconds); empty where no twins were read.
    """

    result: Result
    age_s: float
    read_at: Mapping[int, float]


class SqlDesk:
    """Answers questions, one at a time, in their order."""

    def __init__(self, fleet: Fleet, registry: Registry, platform: PlatformView) -> None:
        self._fleet = fleet
        self._registry = registry
        self._platform = platform
        self._turn = asyncio.Lock()
        self._waiting_count = 0
        self.engine: Final = SqlProcess()

    async def ask(self, sql: str, *, form: AnswerForm, timeout_s: float, row_max: int) -> SqlAnswer:
        """Return the answer to a question, which is not older than `timeout_s`.

        OperatorError says what is wrong with the question, AnswerTooLate that it takes longer than that from the first
        reading on; Overloaded that too many wait; SqlEngineError that the engine died over it.
        """
        if self._waiting_count >= _WAITING_COUNT_MAX:
            raise Overloaded("the SQL engine")
        self._waiting_count += 1
        try:
            async with self._turn:
                return await self._ask(sql, form=form, timeout_s=timeout_s, row_max=row_max)
        finally:
            self._waiting_count -= 1

    async def _ask(self, sql: str, *, form: AnswerForm, timeout_s: float, row_max: int) -> SqlAnswer:
        plan = await asyncio.to_thread(self.engine.plan, sql)
        begun_s = time.monotonic()
        try:
            tables = await asyncio.wait_for(self._tables(plan), timeout_s)
            left_s = begun_s + timeout_s - time.monotonic()
            result = await asyncio.to_thread(
                self.engine.answer, sql, tables, form=form, timeout_s=left_s, row_max=row_max
            )
        except (TimeoutError, AnswerTooLate):
            raise AnswerTooLate(timeout_s) from None
        age_s = time.monotonic() - begun_s
        if age_s > timeout_s:
            raise AnswerTooLate(timeout_s)
        read_at = {shard: at for table in tables.values() for shard, at in shards_read_at(table).items()}
        return SqlAnswer(result, age_s, read_at)

    async def _tables(self, plan: SqlPlan) -> dict[str, pa.Table]:
        tables = await fleet_tables(self._fleet, plan)
        if plan.reads("things"):
            tables["things"] = await self._things()
        if plan.reads("processes"):
            tables["processes"] = await self._processes()
        if plan.reads("jobs"):
            tables["jobs"] = await self._all_jobs()
        if plan.reads("job_executions"):
            tables["job_executions"] = await self._fleet.executions_table()
        return tables

    async def _things(self) -> pa.Table:
        rows: list[dict[str, Any]] = []
        cursor: str | None = ""
        while cursor is not None:
            page = await self._registry.things.page(after=cursor, limit=_WALK_PAGE)
            rows.extend(
                {
                    "name": thing.name,
                    "thing_id": thing.thing_id,
                    "thing_type": thing.thing_type or None,
                    "model": thing.model,
                    "status": thing.status,
                    "version": thing.version,
                    "created_at": thing.created_at_s,
                    "certificate_count": len(thing.certificate_ids),
                    "groups": thing.groups,
                    "attributes": list(thing.attributes.items()),
                }
                for thing in page.things
            )
            cursor = page.next_cursor
        return pa.Table.from_pylist(rows, _THINGS)

    async def _all_jobs(self) -> pa.Table:
        rows: list[dict[str, Any]] = []
        after = ""
        while page := await self._platform.jobs.page(after=after, limit=_WALK_PAGE):
            rows.extend(
                {
                    "job_id": job.job_id,
                    "status": job.status,
                    "selection": job.selection,
                    "targets": job.targets,
                    "description": job.description or None,
                    "given_count": job.given_count,
                    "created_at": job.created_at_s,
                    "updated_at": job.updated_at_s,
                    "completed_at": job.completed_at_s or None,
                    "reason_code": job.reason_code or None,
                }
                for job in page
            )
            after = page[-1].job_id
        return pa.Table.from_pylist(rows, _JOBS)

    async def _processes(self) -> pa.Table:
        rows = [
            {
                "role": process.role,
                "pid": process.pid,
                "state": process.state,
                "reason": process.reason or None,
                "shards": list(process.shards),
                "twin_count": process.twin_count,
                "queue_length": process.queue_length,
                "totals": list(process.totals.items()),
            }
            for process in await self._platform.processes()
        ]
        return pa.Table.from_pylist(rows, _PROCESSES)
