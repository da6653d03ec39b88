"""How faults of the platform strike: real processes get signals, and a small disk is filled, for as long as it lasts.

Owns one blow from its begin to its mending. Who may strike what, and when all is well again, is `platform_trouble`'s.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

from actors.platform_processes import fill_disk, processes_below, processes_of, send
from scenarios.spec import PlatformFault

# Each part may take as long to save what it holds when it is told to end.
_END_TIMEOUT_S: Final = 10.0
# How soon a component that is to stay away is killed again, and how often it is looked whether one has ended.
_LOOK_S: Final = 0.1


@dataclass
class Blow:
    """What one fault has struck: the processes that were `ended`, how many more were killed after, and it in words."""

    ended: list[psutil.Process] = field(default_factory=list)
    again_count: int = 0
    text: str = ""

    @property
    def has_ended_all(self) -> bool:
        """Tell whether none of the very processes that were to end is left."""
        return not any(map(_lives, self.ended))


class PlatformBlows:
    """Strikes the platform whose supervisor has this process id, and that keeps everything in `data_dir`."""

    def __init__(self, supervisor_pid: int, data_dir: Path, *, seed: int) -> None:
        self._supervisor_pid = supervisor_pid
        self._ballast = data_dir / "ballast"
        self._seed = seed

    def running(self, component: str) -> list[psutil.Process]:
        """Return the processes of a component that run at present."""
        return processes_of(component, processes_below(self._supervisor_pid))

    async def carry_out(self, fault: PlatformFault, blow: Blow) -> None:
        """Strike, and return when the fault is over; it is mended in any case, also when this is cancelled."""
        match fault.action:
            case "disk_full":
                await self._fill_disk(fault, blow)
            case "pause":
                await self._pause(fault, blow)
            case "restart":
                blow.ended = self._hit(fault, blow, signal.SIGTERM)
                await _until_ended(blow.ended)
            case "kill":
                # Of several processes, those that are not meant may live.
                spared_count = max(0, len(self.running(fault.component)) - fault.count) if fault.count else 0
                blow.ended = self._hit(fault, blow, signal.SIGKILL)
                await self._keep_down(fault, blow, spared_count=spared_count)

    def _hit(self, fault: PlatformFault, blow: Blow, number: signal.Signals) -> list[psutil.Process]:
        """Send a signal to those that are meant, which the seed draws, and return them."""
        found = self.running(fault.component)
        if fault.count and fault.count < len(found):
            found = random.Random(f"{self._seed}/{fault.name}").sample(found, fault.count)
        for process in found:
            send(process, number)
        pids = ", ".join(str(process.pid) for process in found)
        blow.text = f"process {pids} got {number.name}" if found else f"no process of {fault.component} ran"
        return found

    async def _pause(self, fault: PlatformFault, blow: Blow) -> None:
        paused = self._hit(fault, blow, signal.SIGSTOP)
        try:
            await asyncio.sleep(fault.duration_s)
        finally:
            for process in paused:
                send(process, signal.SIGCONT)

    async def _keep_down(self, fault: PlatformFault, blow: Blow, *, spared_count: int) -> None:
        until_s = time.monotonic() + fault.duration_s
        while (left_s := until_s - time.monotonic()) > 0:
            await asyncio.sleep(min(_LOOK_S, left_s))
            # The oldest are those that were spared.
            for process in self.running(fault.component)[spared_count:]:
                send(process, signal.SIGKILL)
                blow.again_count += 1

    async def _fill_disk(self, fault: PlatformFault, blow: Blow) -> None:
        try:
            await asyncio.to_thread(fill_disk, self._ballast)
            blow.text = "its file system was filled"
            await asyncio.sleep(fault.duration_s)
        finally:
            self._ballast.unlink(missing_ok=True)


async def _until_ended(processes: Sequence[psutil.Process]) -> None:
    """Return when processes have ended that were asked to; whoever takes too long is killed."""
    deadline_s = time.monotonic() + _END_TIMEOUT_S
    while any(map(_lives, processes)):
        if time.monotonic() > deadline_s:
            for process in processes:
                send(process, signal.SIGKILL)
        await asyncio.sleep(_LOOK_S)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
