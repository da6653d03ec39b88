"""How long a question about the whole fleet takes, over HTTP, from a platform with a million simulated twins.

Two questions: how many connected twins there are at each site, with their mean temperature, in SQL; and how many twins
at one site are warm, as a fleet query. Every answer is made of the twins as they are at that moment. The baselines have
the same rows: DuckDB alone has them in a table of its own, made once, on one thread; SQLite has a JSON document a row.
"""

from __future__ import annotations

import asyncio
import functools
import json
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import duckdb
import pyarrow as pa
import ray

from actors.ray_fleet import connect
from actors.settings import Endpoints
from tests.bench.result import BenchResult
from tests.bench.running import platform
from twins.messages import TickOrder
from twins.model import Attribute, Group
from twins.shipped import model_named

TWIN_COUNT = 1_000_000
ROUNDS = 40
# SQLite takes seconds for a million documents.
SQLITE_ROUNDS = 3
# Documents of more rows would fill the memory; its time is proportional to them.
SQLITE_ROWS_MAX = 1_000_000
# By the number of twins up to which they hold: for SQL, and for a count.
BARS_MS = {1_000_000: (100.0, 30.0), 10_000_000: (600.0, 600.0)}
SITES = Attribute("site", ("ams", "ber", "cdg", "lon", "rom"), (5.0, 3.0, 2.0, 1.0, 1.0))
SQL = "select site, count(*), avg(reported_temperature) from twins where connected group by site"
QUERY = "shadow.reported.temperature>20.5 AND attributes.site:ber"
COUNT_SQL = "select count(*) from twins where reported_temperature > 20.5 and site = 'ber'"
SQLITE_SQL = """select doc ->> 'site', count(*), avg(doc ->> 'reported_temperature') from twins
    where doc ->> 'connected' group by 1"""
SQLITE_COUNT = """select count(*) from twins
    where doc ->> 'reported_temperature' > 20.5 and doc ->> 'site' = 'ber'"""


class Asker:
    """One connection to the operators' API, which stays open."""

    def __init__(self, endpoints: Endpoints) -> None:
        address = urlsplit(endpoints.api.url)
        self._connection = HTTPConnection(address.hostname or "", address.port, timeout=120)
        token = Path(endpoints.operator_token_file).read_text(encoding="utf-8").strip()
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}

    def ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a question."""
        self._connection.request("POST", path, body=json.dumps(body), headers=self._headers)
        response = self._connection.getresponse()
        content: dict[str, Any] = json.loads(response.read())
        if response.status != 200:
            raise RuntimeError(f"{path}: {content}")
        return content


async def _live(twin_count: int, endpoints: Endpoints) -> pa.Table:
    """Let simulated twins live until each that is online has reported; return the rows that the questions read."""
    fleet = await connect(endpoints)
    group = Group(
        "bench", model_named("thermostat"), "bench-{i:08d}", twin_count, 1, 1_767_225_600, attributes=(SITES,)
    )
    await fleet.create_group(group)
    for tick in range(12):
        await fleet.tick([TickOrder("bench", tick, 1)])
    table = await fleet.twins_table(["site", "connected", "reported_temperature"])
    await fleet.close()
    return table


def _duckdb(rows: pa.Table) -> Callable[[str], Any]:
    connection = duckdb.connect(":memory:", config={"threads": 1})
    connection.register("given", rows)
    connection.execute("create table twins as select * from given")
    return lambda sql: connection.execute(sql).fetchall()


def _sqlite(rows: pa.Table) -> Callable[[str], Any]:
    connection = sqlite3.connect(":memory:")
    connection.execute("create table twins (doc text)")
    for batch in rows.slice(0, SQLITE_ROWS_MAX).to_batches(max_chunksize=50_000):
        connection.executemany(
            "insert into twins values (?)", ((json.dumps(row),) for row in batch.to_pylist())
        )
    return lambda sql: connection.execute(sql).fetchall()


def _times_ms(work: Callable[[], Any], rounds: int) -> list[float]:
    """Return how long each round took, sorted, after one that does not count."""
    times = []
    for _ in range(rounds + 1):
        start_s = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - start_s))
    return sorted(times[1:])


def _same(ours: list[list[Any]], theirs: list[tuple[Any, ...]]) -> bool:
    """Tell whether two answers say the same of every site, but for the last digits of a mean."""
    left, right = ({row[0]: row[1:] for row in rows} for rows in (ours, theirs))
    return left.keys() == right.keys() and all(
        left[site][0] == right[site][0] and abs(left[site][1] - right[site][1]) < 1e-9 for site in left
    )


def measure(twin_count: int = TWIN_COUNT) -> list[BenchResult]:
    """Measure both questions."""
    with tempfile.TemporaryDirectory(prefix="tf-bench-") as temporary, platform(Path(temporary)) as endpoints:
        rows = asyncio.run(_live(twin_count, endpoints))
        # A copy of ours: what lies in Ray's store goes with it.
        rows = pa.ipc.open_stream(_stream(rows)).read_all()
        ray.shutdown()
        asker, alone = Asker(endpoints), _duckdb(rows)
        ages: list[int] = []

        def ask(path: str, body: dict[str, Any]) -> dict[str, Any]:
            answer = asker.ask(path, body)
            ages.append(answer["age_ms"])
            return answer

        if not _same(ask("/v1/sql", {"sql": SQL})["rows"], alone(SQL)):
            raise RuntimeError("the answers differ")
        if [[ask("/v1/query", {"query": QUERY})["count"]]] != [list(row) for row in alone(COUNT_SQL)]:
            raise RuntimeError("the counts differ")
        sql_ms = _times_ms(lambda: ask("/v1/sql", {"sql": SQL}), ROUNDS)
        count_ms = _times_ms(lambda: ask("/v1/query", {"query": QUERY}), ROUNDS)
        alone_ms = _times_ms(lambda: alone(SQL), ROUNDS), _times_ms(lambda: alone(COUNT_SQL), ROUNDS)
    documents = _sqlite(rows)
    sqlite_ms = [
        _times_ms(functools.partial(documents, sql), SQLITE_ROUNDS) for sql in (SQLITE_SQL, SQLITE_COUNT)
    ]

    bars = BARS_MS[min((size for size in BARS_MS if size >= twin_count), default=max(BARS_MS))]
    names = ("sql: filter and group-by", "sql: count by a fleet query")
    results = []
    for name, ours, theirs, slow, bar_ms in zip(
        names, (sql_ms, count_ms), alone_ms, sqlite_ms, bars, strict=True
    ):
        spread = f"p50 {ours[len(ours) // 2]:.1f} ms, p90 {ours[len(ours) * 9 // 10]:.1f} ms, max {ours[-1]:.1f} ms"
        documents_ms = f"{statistics.median(slow):.0f} ms for {min(twin_count, SQLITE_ROWS_MAX):,} rows"
        details = (
            f"{name}: {twin_count:,} twins; {spread}; oldest answer {max(ages)} ms",
            f"{name}: SQLite with JSON: {documents_ms}",
        )
        value, baseline = statistics.median(ours), statistics.median(theirs)
        is_young = max(ages) <= 2000
        results.append(
            BenchResult(
                name,
                value,
                "ms (p50, over HTTP)",
                "DuckDB alone on the same rows",
                baseline,
                value / baseline,
                f"< {bar_ms:g} ms, no answer older than 2 s",
                is_young and value < bar_ms,
                details,
            )
        )
    return results


def _stream(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()
