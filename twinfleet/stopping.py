"""Stops the platform of a data directory from another process."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Final

from actors.errors import DataDirectoryBusy, PlatformNotRunning
from actors.settings import DataDirectory, is_process_alive
from twinfleet.errors import DoesNotStop

# Each part gets about 10 s to save what it holds, some of them one after the other.
STOP_TIMEOUT_S: Final = 60.0
_POLL_S: Final = 0.05


def stop_platform(data_dir: Path, *, timeout_s: float = STOP_TIMEOUT_S) -> int:
    """Return the process id of the platform that ran on `data_dir`, once it has ended.

    PlatformNotRunning if none runs, also one that is just starting counts as running; DoesNotStop if it takes too
    long.
    """
    directory = DataDirectory(data_dir)
    pid = _holder(directory)
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return pid
    except PermissionError:
        text = f"process {pid}, which holds {data_dir}, belongs to another user; stop it as that user"
        raise DoesNotStop(text) from None
    deadline_s = time.monotonic() + timeout_s
    while is_process_alive(pid):
        if time.monotonic() > deadline_s:
            text = f"process {pid} still runs {timeout_s:.0f} s after it was told to stop"
            raise DoesNotStop(f"{text}; see {directory.logs}, or end it with `kill -9 {pid}`")
        time.sleep(_POLL_S)
    return pid


def _holder(directory: DataDirectory) -> int:
    # Not the pid in endpoints.json: that file comes only when all is ready, and stays after a kill -9.
    if not directory.lock_file.exists():
        raise PlatformNotRunning(directory.path, f"{directory.lock_file} does not exist")
    deadline_s = time.monotonic() + 1.0
    while True:
        try:
            with directory.lock():
                pass
        except DataDirectoryBusy as busy:
            if busy.holder_pid is not None:
                return busy.holder_pid
            if time.monotonic() > deadline_s:
                raise
            # It has just taken the lock and is about to write its id.
            time.sleep(_POLL_S)
        else:
            raise PlatformNotRunning(directory.path, "nobody holds its lock")
