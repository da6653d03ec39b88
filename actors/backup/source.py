"""What a backup is made of: a data directory, and a Redis that nobody writes to while it is read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from actors.backup.store_content import client_of
from actors.backup.store_copy import copy_of_store
from actors.errors import BackupRefused, PlatformNotRunning
from actors.settings import DataDirectory, Endpoints, PlatformSettings
from actors.snapshots import SnapshotStore
from actors.store import RedisServer
from actors.store_errors import store_error


@dataclass(frozen=True, slots=True)
class Source:
    """A platform at one instant, which is `cut_s` seconds since the Unix epoch by the clock of its Redis."""

    directory: DataDirectory
    store_url: str
    snapshots: SnapshotStore
    vault_key_file: Path
    shard_count: int
    cut_s: float


@contextlib.contextmanager
def standing_source(settings: PlatformSettings) -> Iterator[Source]:
    """Give the platform of a data directory as it is at one instant after this call, whether it runs or not.

    A running platform's own word on where its snapshots and its key are counts before the settings. BackupRefused if
    there is no platform, DataDirectoryBusy if one is just starting or stopping. For the main thread.
    """
    directory = DataDirectory(settings.data_dir)
    if not directory.format_file.exists():
        raise BackupRefused(str(settings.data_dir), "holds no platform; name its directory with --data-dir")
    directory.prepare()
    location, key_file = settings.snapshot_location, settings.key_file
    with contextlib.ExitStack() as parts:
        try:
            endpoints = Endpoints.read(settings.data_dir)
        except PlatformNotRunning:
            url = parts.enter_context(_store_of_stopped(settings, directory))
        else:
            url = parts.enter_context(copy_of_store(settings, endpoints.redis.url))
            location = endpoints.snapshots or location
            key_file = Path(endpoints.key_file) if endpoints.key_file else key_file
        shard_count, cut_s = _shard_count_and_time(url)
        if not shard_count:
            raise BackupRefused(str(settings.data_dir), "holds a platform that was never started to its end")
        snapshots = SnapshotStore(location or str(directory.snapshots))
        yield Source(directory, url, snapshots, key_file or directory.key_file, shard_count, cut_s)


@contextlib.contextmanager
def _store_of_stopped(settings: PlatformSettings, directory: DataDirectory) -> Iterator[str]:
    with directory.lock():
        server = RedisServer(settings)
        try:
            server.start()
            yield server.url
        finally:
            server.stop()


def _shard_count_and_time(url: str) -> tuple[int, float]:
    try:
        with client_of(url) as client:
            # redis-py types its answers as "either awaited or not".
            count: Any = client.get("twinfleet:shards")
            now: Any = client.time()
    except redis.RedisError as error:
        raise store_error(error, "the backup") from error
    return int(count or 0), now[0] + now[1] / 1e6
