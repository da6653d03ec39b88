"""What the journal takes of the store's memory and of the disk for a million shadow updates.

Real updates of real twins go through a shard host into a real Redis, in submissions as the bridge makes them under
load. The baseline is what the devices sent: topic and payload.
"""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import redis

from actors.actor_settings import HostSettings
from actors.settings import DataDirectory, PlatformSettings
from actors.shard_actor import ShardHost
from actors.store import RedisServer
from tests.bench.real_twins import SHARD_COUNT, Submissions, first_requests, host_settings, update
from tests.bench.result import BenchResult

TWIN_COUNT = 2_000
# Few enough to be replayed in less time than is left to a journal before a snapshot takes its place.
UPDATE_COUNT = 40_000
# As many as wait at a lane while one submission is under way, at some thousands a second.
SUBMISSION_LENGTH = 200


def _streams(client: Any) -> tuple[int, int]:
    """Return bytes and entries of all journals."""
    keys = [f"twinfleet:journal:{shard}" for shard in range(SHARD_COUNT)]
    return sum(client.memory_usage(key, samples=0) for key in keys), sum(client.xlen(key) for key in keys)


def measure() -> list[BenchResult]:
    """Fill the journals and ask Redis what they take."""
    with tempfile.TemporaryDirectory(prefix="tf-bench-") as temporary:
        platform = PlatformSettings.load(Path(temporary) / "data", {})
        directory = DataDirectory(platform.data_dir)
        directory.prepare()
        store = RedisServer(platform)
        store.start()
        try:
            return _measure(ShardHost(lambda _messages: None), host_settings(platform, store))
        finally:
            store.stop()


def _measure(host: ShardHost, settings: HostSettings) -> list[BenchResult]:
    client = redis.Redis.from_url(settings.redis_url)
    host.open(msgspec.msgpack.encode(settings))
    twins = itertools.chain.from_iterable(first_requests(number) for number in range(TWIN_COUNT))
    for submission in Submissions("first").in_parts(twins):
        host.submit(submission)
    before, _ = _streams(client)
    disk_before = client.info("persistence")["aof_current_size"]
    updates = [update(step * 7919 % TWIN_COUNT, step) for step in range(UPDATE_COUNT)]
    for submission in Submissions("updates").in_parts(iter(updates), SUBMISSION_LENGTH):
        host.submit(submission)
    full, entry_count = _streams(client)
    disk = client.info("persistence")["aof_current_size"] - disk_before
    sent = sum(len(f"$aws/things/{each.thing_name}/shadow/update") + len(each.payload) for each in updates)
    if list(Path(settings.snapshot_location).glob("*.snapshot")):
        raise RuntimeError(
            "a snapshot has taken the place of a part of the journal; measure on a quieter machine"
        )
    host.close()
    million = 1_000_000 / UPDATE_COUNT
    return [
        BenchResult(
            "journal",
            (full - before) * million / 1e6,
            "MB of Redis for a million updates",
            "their topics and payloads",
            sent * million / 1e6,
            (full - before) / sent,
            "",
            None,
            (
                f"{UPDATE_COUNT:,} updates of {sent // UPDATE_COUNT} bytes in {entry_count:,} entries",
                f"{disk * million / 1e6:,.0f} MB of its append-only file for a million, before that is rewritten",
            ),
        )
    ]
