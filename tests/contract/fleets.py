"""A Ray cluster for the contract: real Redis, real shard actors, no broker; and fleets over its actors.

Ray can be started once in a process, so all the tests of this package share one head.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from actors.actor_settings import HostSettings
from actors.ray_fleet import RayFleet, open_actor, start_shard_actor
from actors.ray_runtime import local_head
from actors.settings import DataDirectory, read_or_create_secret
from tests.running_store import running_store

SHARD_COUNT = 8
# Small enough for a snapshot to be taken in a test now and then.
_JOURNAL_BYTES_MAX = 1 << 20


@contextlib.contextmanager
def running_ray(data_dir: Path) -> Iterator[None]:
    """Make this process the driver of a Ray head of its own."""
    directory = DataDirectory(data_dir)
    directory.prepare()
    read_or_create_secret(directory.ray_token_file)
    with local_head(directory.ray_token_file):
        yield


@contextlib.contextmanager
def ray_fleet(data_dir: Path, actor_count: int) -> Iterator[RayFleet]:
    """Give a fleet on new shard actors with a new store; Ray must run."""
    with running_store(data_dir) as store:
        # There is no bridge: what it would publish is dropped.
        hosts: list[Any] = [start_shard_actor(f"contract-{secrets.token_hex(4)}") for _ in range(actor_count)]
        settings = [
            HostSettings(
                index,
                tuple(range(index, SHARD_COUNT, actor_count)),
                SHARD_COUNT,
                store.url,
                str(data_dir / "snapshots"),
                _JOURNAL_BYTES_MAX,
                str(data_dir / "logs" / f"shard-actor-{index}.log"),
            )
            for index in range(actor_count)
        ]
        open_actor(*hosts, settings=settings)
        try:
            yield RayFleet(hosts, SHARD_COUNT)
        finally:
            ray.get([host.close.remote() for host in hosts], timeout=30)
            for host in hosts:
                ray.kill(host)
