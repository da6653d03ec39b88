"""The processes of a running platform on this machine, by component, and the means to break them on purpose.

Owns which command line belongs to which component, signals to processes that may be gone, and a disk that is filled.
Why somebody does that, and what becomes of it, is the caller's: scenarios and the tests of failures both use this.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import psutil

# What can be broken, and how the command lines of its processes begin. Of a node it is Ray's raylet: with it die all
# actors that run there.
COMPONENTS: Final[Mapping[str, str]] = {
    "broker": "mosquitto",
    "redis": "redis-server",
    "shard": "ray::ShardActor",
    "bridge": "ray::BridgeActor",
    "gateway": "ray::GatewayActor",
    "node": "raylet",
    "metadata": "gcs_server",
}
# Room for logs, journal and snapshots of a trial, and little enough to be filled in a moment. A file system that is
# larger is the machine's, and not for filling.
SMALL_DISK_BYTES_MAX: Final = 512 << 20
_FILL_BYTES: Final = (1 << 20, 4096, 1)


def processes_below(supervisor_pid: int) -> list[psutil.Process]:
    """Return all that runs below the process of `twinfleet up`; nothing if that has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(supervisor_pid).children(recursive=True)
    return []


def processes_of(component: str, among: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Return the processes of one of `COMPONENTS` in the order of their ids."""
    found = [process for process in among if is_process_of(component, process)]
    return sorted(found, key=lambda process: process.pid)


def is_process_of(component: str, process: psutil.Process) -> bool:
    """Tell whether a process lives and belongs to one of `COMPONENTS`."""
    begin = COMPONENTS[component]
    try:
        command = process.cmdline()
        is_zombie = process.status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
    if not command or is_zombie:
        return False
    # Ray's workers write a title where others have the path of their program.
    return (command[0] if "::" in begin else Path(command[0]).name).startswith(begin)


def send(process: psutil.Process, number: signal.Signals) -> None:
    """Send a signal to a process, if it still is that process."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def is_small_disk(directory: Path) -> bool:
    """Tell whether a directory lies on a file system that may be filled, because nothing else needs it."""
    system = os.statvfs(directory)
    return system.f_frsize * system.f_blocks <= SMALL_DISK_BYTES_MAX


def fill_disk(ballast: Path) -> None:
    """Write a file until its file system, which must be a small one, has no byte left; deleting it mends that."""
    assert is_small_disk(ballast.parent), "the disk of the machine is not for filling"
    with ballast.open("wb", buffering=0) as file:
        for size in _FILL_BYTES:
            while _is_written(file.fileno(), size):
                pass


def _is_written(descriptor: int, size: int) -> bool:
    try:
        return os.write(descriptor, bytes(size)) == size
    except OSError:
        return False
