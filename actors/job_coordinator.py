"""The process of the job coordinator: `job_coordination.JobCoordinator` as a Ray actor, which looks twice a second."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import Final

import msgspec

from actors.actor_settings import CoordinatorSettings, Pulse
from actors.errors import StoreError, WorldError
from actors.job_coordination import JobCoordinator
from actors.logs import log_to
from actors.ray_fleet import find_fleet
from actors.registry.job_orders import decode_order
from actors.registry.jobs import Jobs
from actors.registry.registry import Registry
from actors.wall_clock import WallClock

# A new job reaches its first things within this time, and a timer that has ended is noticed.
_STEP_EVERY_S: Final = 0.5
_LOG: Final = logging.getLogger(__name__)


class JobCoordinatorActor:
    """The one coordinator of a platform. The constructor can't fail; `open` may be repeated."""

    def __init__(self) -> None:
        self._coordinator: JobCoordinator | None = None
        self._wake = asyncio.Event()

    async def open(self, encoded: bytes) -> None:
        """Take jobs over where the last coordinator was; nobody else changes them any more."""
        await self.close()
        settings = msgspec.msgpack.decode(encoded, type=CoordinatorSettings)
        log_to(Path(settings.log_file))
        clock = WallClock()
        self._jobs = await Jobs.open(settings.redis_url, clock, is_writer=True)
        self._registry = await Registry.open(settings.redis_url, clock, is_writer=False)
        self._coordinator = JobCoordinator(self._jobs, self._registry, find_fleet(settings.redis_url), clock)
        self._task = asyncio.create_task(self._run(self._coordinator))
        self._task.add_done_callback(_end_process)

    async def _run(self, coordinator: JobCoordinator) -> None:
        told = ""
        while True:
            try:
                await coordinator.step()
                told = ""
            except WorldError as error:
                # What is not done is due at the next step; a part that is away is others' to bring back.
                if str(error) != told:
                    _LOG.warning("jobs wait: %s", error)
                told = str(error)
            try:
                await asyncio.wait_for(self._wake.wait(), _STEP_EVERY_S)
            except TimeoutError:
                continue
            self._wake.clear()

    async def order(self, encoded: bytes) -> None:
        """Take in what an operator wants; see `JobCoordinator.order`."""
        if self._coordinator is None:
            raise StoreError("the job coordinator has not been opened yet; try again", retryable=True)
        await self._coordinator.order(decode_order(encoded))
        self._wake.set()

    async def pulse(self) -> bytes:
        """Return its `Pulse`: one that has failed for good ends its process, so it has no other trouble."""
        return msgspec.msgpack.encode(Pulse(os.getpid(), self._coordinator is not None))

    async def close(self) -> None:
        """Stop where it is; the next one goes on from there."""
        if self._coordinator is not None:
            self._coordinator = None
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            await self._jobs.close()
            await self._registry.close()


def _end_process(task: asyncio.Task[None]) -> None:
    """End this process when the coordinator has failed for good: one that looks alive and does nothing helps nobody."""
    if not task.cancelled():
        _LOG.critical("the job coordinator gives up", exc_info=task.exception())
        os._exit(1)
