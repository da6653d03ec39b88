"""A Ray cluster for the contract: real Redis, real shard actors, no broker; and fleets over its actors.

Ray can be started once in a process, so all the tests of this package share one head.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import ray

from actors.actor_settings import HostSettings
from actors.placement import HEAD_NODE, PlacementStore
from actors.processes import wait_until
from actors.ray_fleet import RayFleet, find_fleet, open_actor, start_shard_actor
from actors.ray_runtime import local_head
from actors.settings import DataDirectory, read_or_create_secret
from tests.running_store import running_store

SHARD_COUNT = 8
# Small enough for a snapshot to be taken in a test now and then.
_JOURNAL_BYTES_MAX = 1 << 20
# Ray starts a process again in one to three seconds.
_RESTART_TIMEOUT_S = 60.0


@contextlib.contextmanager
def running_ray(data_dir: Path) -> Iterator[None]:
    """Make this process the driver of a Ray head of its own."""
    directory = DataDirectory(data_dir)
    directory.prepare()
    read_or_create_secret(directory.ray_token_file)
    with local_head(directory.ray_token_file):
        yield


class RayStage:
    """Shard actors with a store of their own, which can be killed and opened again as a supervisor does it."""

    def __init__(self, store_url: str, data_dir: Path, actor_count: int) -> None:
        self.store_url = store_url
        # There is no bridge: what it would publish is dropped.
        names = [f"contract-{secrets.token_hex(4)}" for _ in range(actor_count)]
        placement = PlacementStore.at(store_url).begin(SHARD_COUNT, dict.fromkeys(names, HEAD_NODE))
        self.actors: list[Any] = [start_shard_actor(name) for name in names]
        self._settings = [
            HostSettings(
                index,
                placement.shards_of(name),
                SHARD_COUNT,
                store_url,
                str(data_dir / "snapshots"),
                _JOURNAL_BYTES_MAX,
                str(data_dir / "logs" / f"shard-actor-{index}.log"),
            )
            for index, name in enumerate(names)
        ]
        open_actor(*self.actors, settings=self._settings)

    def _pid(self, index: int) -> int:
        return int(ray.get(self.actors[index].status.remote(), timeout=_RESTART_TIMEOUT_S).pid)

    def kill_and_reopen(self, index: int) -> None:
        """End an actor's process with kill -9, and open the one that Ray starts in its place."""
        os.kill(self._pid(index), signal.SIGKILL)

        def is_back() -> bool:
            with contextlib.suppress(ray.exceptions.ActorUnavailableError):
                return self._pid(index) > 0
            return False

        assert wait_until(is_back, timeout_s=_RESTART_TIMEOUT_S), "Ray starts the process again"
        open_actor(
            self.actors[index],
            settings=[msgspec.structs.replace(self._settings[index], is_predecessor_gone=True)],
        )


@contextlib.contextmanager
def ray_stage(data_dir: Path, actor_count: int) -> Iterator[RayStage]:
    """Give new shard actors with a new store; Ray must run."""
    with running_store(data_dir) as store:
        stage = RayStage(store.url, data_dir, actor_count)
        try:
            yield stage
        finally:
            ray.get([host.close.remote() for host in stage.actors], timeout=30)
            for host in stage.actors:
                ray.kill(host)


@contextlib.contextmanager
def ray_fleet(data_dir: Path, actor_count: int) -> Iterator[RayFleet]:
    """Give a fleet on new shard actors with a new store; Ray must run."""
    with ray_stage(data_dir, actor_count) as stage:
        yield find_fleet(stage.store_url)
