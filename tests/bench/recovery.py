"""How long a killed shard actor is away: until Ray has restarted its process, and until that has read its shards back.

One actor serves all sixteen shards with all the twins, as on a machine of two cores. It has snapshots, and behind them
a journal of five seconds under load. It is killed with SIGKILL; its successor is opened as soon as it answers, and is
then asked for a shadow that only the journal knows. The baseline is reading the same snapshot files and their
checksums, which no recovery that trusts its files less than its memory can do without. Files come from the page cache
in both, as they do when a process dies and the machine does not.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import psutil
import ray
from ray.exceptions import RayError

from actors.actor_settings import HostSettings
from actors.journal import parse_position
from actors.ray_fleet import open_actor, start_shard_actor
from actors.ray_runtime import local_head
from actors.settings import DataDirectory, PlatformSettings, read_or_create_secret
from actors.shard_actor import HostStatus
from actors.store import RedisServer
from tests.bench.real_twins import (
    SHARD_COUNT,
    Submissions,
    first_requests,
    host_settings,
    telemetry,
    thing_name,
    update,
)
from tests.bench.result import BenchResult
from twins.messages import Operation, Reply, Request
from twins.snapshot import load_shard

TWIN_COUNT = 250_000
# Serving again after the process runs: for as many twins, in seconds.
BARS_S = ((250_000, 3.0), (1_000_000, 8.0))
# The load whose journal is to be gone through: in each of so many seconds as many updates, and as much telemetry, in
# submissions as small as the bridge's are then.
TAIL_S = 5
TAIL_RATE = 1_000
TAIL_LENGTH = 20
# Submissions under way to the actor at a time; more only wait there.
_WINDOW = 4
_DEADLINE_S = 120.0


def submit_all(actor: Any, submissions: Iterator[bytes]) -> None:
    """Have the actor apply submissions in their order, a few under way at a time."""
    under_way: list[Any] = []
    for submission in submissions:
        under_way.append(actor.submit.remote(submission))
        if len(under_way) >= _WINDOW:
            ray.get(under_way.pop(0))
    ray.get(under_way)


def status_of(actor: Any) -> HostStatus:
    """Return the status of an actor once it answers; one whose process is being restarted answers with errors."""
    deadline = time.monotonic() + _DEADLINE_S
    while True:
        try:
            status: HostStatus = ray.get(actor.status.remote(), timeout=_DEADLINE_S)
        except RayError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return status


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return how long (s) some work took, and what it gave."""
    start_s = time.perf_counter()
    result = work()
    return time.perf_counter() - start_s, result


def resident_mb(pid: int) -> float:
    """Return the memory of a process in MB."""
    return float(psutil.Process(pid).memory_info().rss) / 1e6


def newest_snapshots(directory: Path) -> list[Path]:
    """Return the file of each shard that would be read."""
    newest: dict[str, Path] = {}
    for path in sorted(
        directory.glob("*.snapshot"), key=lambda path: parse_position(path.name.split(".")[1])
    ):
        newest[path.name.split(".")[0]] = path
    return list(newest.values())


def read_and_check(files: list[Path]) -> int:
    """Return the bytes of files, every one of which has been read and hashed."""
    count = 0
    for path in files:
        content = path.read_bytes()
        hashlib.sha256(content).digest()
        count += len(content)
    return count


def fill(actor: Any, settings: HostSettings, twin_count: int) -> int:
    """Give the actor its twins, snapshots of them, and a journal behind those; return the journal's entries."""
    open_actor(actor, settings=[settings])
    requests = itertools.chain.from_iterable(first_requests(number) for number in range(twin_count))
    submit_all(actor, Submissions("first").in_parts(requests))
    ray.get(actor.close.remote())
    open_actor(actor, settings=[settings])
    tail = itertools.chain.from_iterable(
        (update(step * 7919 % twin_count, step), telemetry(step * 7919 % twin_count, step))
        for step in range(TAIL_S * TAIL_RATE)
    )
    submit_all(actor, Submissions("tail").in_parts(tail, TAIL_LENGTH))
    return status_of(actor).journal_entry_count


def last_change(actor: Any, twin_count: int) -> bool:
    """Ask for the shadow that was updated last, and tell whether it is as it was left."""
    step = TAIL_S * TAIL_RATE - 1
    number = step * 7919 % twin_count
    asked = Request(Operation.SHADOW_GET, thing_name(number), is_direct=True)
    reply = msgspec.msgpack.decode(ray.get(actor.ask.remote(msgspec.msgpack.encode(asked))), type=Reply)
    sent = msgspec.json.decode(update(number, step).payload)["state"]["reported"]
    return reply.status == 200 and msgspec.json.decode(reply.payload)["state"]["reported"] == sent


@dataclass(frozen=True)
class Way:
    """What one way back took, in seconds, and the memory of the process before and after, in MB."""

    restart_s: float
    open_s: float
    answer_s: float
    before_mb: float
    after_mb: float


def kill_and_wait(actor: Any, settings: HostSettings, twin_count: int) -> Way:
    """Kill the actor's process and return how it came back; RuntimeError if it is not what it was."""
    before = status_of(actor)
    before_mb = resident_mb(before.pid)
    os.kill(before.pid, signal.SIGKILL)
    restart_s, restarted = timed(lambda: status_of(actor))
    open_s, _ = timed(lambda: open_actor(actor, settings=[settings]))
    answer_s, is_right = timed(lambda: last_change(actor, twin_count))
    after = status_of(actor)
    if restarted.pid == before.pid or after.twin_count != twin_count or not is_right:
        raise RuntimeError(f"the actor did not come back as it was: {after}")
    return Way(restart_s, open_s, answer_s, before_mb, resident_mb(after.pid))


def measure(twin_count: int = TWIN_COUNT) -> list[BenchResult]:
    """Fill an actor, kill its process, and time its way back."""
    with tempfile.TemporaryDirectory(prefix="tf-bench-") as temporary:
        platform = PlatformSettings.load(Path(temporary) / "data", {})
        directory = DataDirectory(platform.data_dir)
        directory.prepare()
        read_or_create_secret(directory.ray_token_file)
        store = RedisServer(platform)
        store.start()
        settings = host_settings(platform, store)
        try:
            with local_head(directory.ray_token_file):
                actor = start_shard_actor("recovery")
                entry_count = fill(actor, settings, twin_count)
                files = newest_snapshots(directory.snapshots)
                way = kill_and_wait(actor, settings, twin_count)
                ray.kill(actor)
        finally:
            store.stop()
        return [_result(way, files, twin_count, entry_count)]


def _result(way: Way, files: list[Path], twin_count: int, entry_count: int) -> BenchResult:
    load_s, _ = timed(lambda: [load_shard(path.read_bytes()).count for path in files])
    read_s, byte_count = timed(lambda: read_and_check(files))
    back_s = way.open_s + way.answer_s
    details = (
        f"{twin_count:,} real twins in {SHARD_COUNT} shards of one process; {byte_count / 1e6:,.0f} MB of snapshots",
        f"behind them {TAIL_S} s of {TAIL_RATE:,} updates and as much telemetry: {entry_count:,} entries",
        f"restart by Ray: {way.restart_s:.2f} s from SIGKILL until the new process answers",
        f"reading back:   {way.open_s:.2f} s, of which {load_s:.2f} s for the snapshots (measured apart)",
        f"first answer:   {way.answer_s * 1000:.1f} ms, the last change before the kill is there",
        f"memory:         {way.before_mb:,.0f} MB before, {way.after_mb:,.0f} MB after",
    )
    bar_s = next((limit_s for count, limit_s in BARS_S if twin_count <= count), BARS_S[-1][1])
    return BenchResult(
        "recovery",
        back_s,
        "s from the restarted process to the first answer",
        "reading the same snapshots and their checksums",
        read_s,
        back_s / read_s,
        f"< {bar_s:g} s",
        back_s < bar_s,
        details,
    )
