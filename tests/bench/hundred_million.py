"""A hundred million thermostats and their twins on one small machine: memory, speed, and any one of them at once.

A tenth of the fleet reports in each tick of a second. The process that holds them works through one window of ticks
after another, and answers for one twin between two ticks, as a live platform does.
"""

from __future__ import annotations

import statistics
import time

import psutil

from tests.bench.result import BenchResult
from tests.bench.sim import plain_thermostat
from twins.messages import Batch, Operation, Request, TickOrder, TickSummary
from twins.model import Group
from twins.runners import prepare_compiled
from twins.shard import Shard
from twins.sharding import shard_of

SHARD_COUNT = 16
START_S = 1_767_225_600
VIRTUAL_S = 60
REPORT_EVERY_S = 10
GIB = 1 << 30
MEMORY_MAX_GIB = 16.0
SPEED_MIN = 1.0
GET_P99_MAX_MS = 100.0
START_COUNT = 10_000_000
START_MAX_S = 10.0


def measure(twin_count: int = 100_000_000) -> list[BenchResult]:
    """Measure start, memory, speed and the answer for one twin."""
    if not prepare_compiled():
        raise RuntimeError("Numba is not installed; run ./dev setup")
    started_s = time.perf_counter()
    shards = new_fleet(START_COUNT)
    start_s = time.perf_counter() - started_s
    del shards
    shards = new_fleet(twin_count)
    latencies_ms: list[float] = []
    arrived = 0
    started_s = time.perf_counter()
    for tick in range(VIRTUAL_S):
        total = TickSummary()
        for shard in shards:
            total += shard.tick(TickOrder("bench", tick, 1))
        arrived += total.reports_arrived
        latencies_ms.extend(ask(shards, number * (twin_count // 20) + tick) for number in range(20))
    took_s = time.perf_counter() - started_s
    memory = psutil.Process().memory_full_info().pss / GIB
    speed = VIRTUAL_S / took_s
    p99_ms = statistics.quantiles(latencies_ms, n=100)[98]
    name = f"{twin_count:,} twins"
    return [
        _result("start", start_s, f"s for {START_COUNT:,} twins", START_MAX_S, is_most=True),
        _result("memory", memory, f"GiB (PSS) for {name}", MEMORY_MAX_GIB, is_most=True),
        _result(
            "speed",
            speed,
            f"virtual seconds a second, {arrived / took_s:,.0f} reports/s",
            SPEED_MIN,
            is_most=False,
        ),
        _result("get", p99_ms, "ms p99 for one shadow while they run", GET_P99_MAX_MS, is_most=True),
    ]


def new_fleet(count: int) -> list[Shard]:
    """Return the shards of a fleet at tick 0."""
    shards = [Shard(number, SHARD_COUNT) for number in range(SHARD_COUNT)]
    group = Group(
        "bench",
        plain_thermostat(),
        "b-{i:09d}",
        count,
        seed=1,
        start_s=START_S,
        report_every_ticks=REPORT_EVERY_S,
    )
    for shard in shards:
        shard.create_group(group)
    return shards


def ask(shards: list[Shard], number: int) -> float:
    """Ask for the shadow of one device and return how long that took, in ms."""
    name = f"b-{number:09d}"
    started_s = time.perf_counter()
    request = Request(Operation.SHADOW_GET, name, b"", is_direct=True)
    reply = shards[shard_of(name, SHARD_COUNT)].apply(Batch("", 0, [request]), START_S).replies[0]
    took_ms = (time.perf_counter() - started_s) * 1e3
    if reply.status not in (200, 404) or (reply.status == 200 and b'"uptime"' not in reply.payload):
        raise RuntimeError(f"{name} answered {reply.status}")
    return took_ms


def _result(name: str, value: float, unit: str, bound: float, *, is_most: bool) -> BenchResult:
    bar = f"at {'most' if is_most else 'least'} {bound:g}"
    holds = value <= bound if is_most else value >= bound
    return BenchResult(f"hundred_million.{name}", value, unit, "", None, None, bar, holds)
