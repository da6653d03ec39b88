"""Questions in SQL to a fleet, wherever it is: its twins and their telemetry as tables, the answer as Arrow.

Owns which columns are read from the shards for a question. The engine runs in this process; for questions of others
the gateway has one in a process of its own.
"""

from __future__ import annotations

import asyncio
from typing import Final

import pyarrow as pa

from actors.arrow_tables import marked, shards_read_at
from actors.fleet import Fleet
from actors.sql import SqlPlan, plan_sql, run_sql

# Enough for any answer that is looked at, and for most that are worked on.
ROW_MAX: Final = 100_000


async def fleet_tables(fleet: Fleet, plan: SqlPlan) -> dict[str, pa.Table]:
    """Return what a question reads of `twins` and `telemetry_recent`, by name; see `Fleet.twins_table`."""
    columns = None if plan.columns is None else sorted(plan.columns)
    tables = {}
    if plan.reads("twins"):
        tables["twins"] = await fleet.twins_table(columns)
    if plan.reads("telemetry_recent"):
        tables["telemetry_recent"] = await fleet.telemetry_table(columns)
    return tables


async def ask_fleet(fleet: Fleet, sql: str, *, timeout_s: float = 30.0, row_max: int = ROW_MAX) -> pa.Table:
    """Return the answer to one SELECT over the tables `twins` and `telemetry_recent`.

    Its schema's metadata say when each shard was read: `arrow_tables.shards_read_at`. OperatorError if the question
    can't be answered, takes the engine longer than `timeout_s`, or has more than `row_max` rows.
    """
    plan = await asyncio.to_thread(plan_sql, sql)
    tables = await fleet_tables(fleet, plan)
    answer = await asyncio.to_thread(run_sql, sql, tables, timeout_s=timeout_s, row_max=row_max)
    read_at = {shard: at for table in tables.values() for shard, at in shards_read_at(table).items()}
    return marked(answer, read_at)
