"""A real store for the tests that need one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from actors.settings import DataDirectory, PlatformSettings
from actors.store import RedisServer


@contextlib.contextmanager
def running_store(data_dir: Path, *, memory_max_bytes: int | None = None) -> Iterator[RedisServer]:
    """Give a running store on a new data directory, with the memory of a platform's unless told otherwise."""
    DataDirectory(data_dir).prepare()
    server = RedisServer(PlatformSettings.load(data_dir, {"store_memory_max_bytes": memory_max_bytes}))
    server.start()
    try:
        yield server
    finally:
        server.stop()
