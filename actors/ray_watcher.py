"""Ends what a killed supervisor leaves of Ray: run as a script, with Ray's private directory as its argument.

It imports nothing of ours, so that it costs little memory. Its standard input is a pipe that the supervisor holds
open: the end of the pipe is the end of the supervisor, however that died. Some of Ray's agents would live on for a
minute otherwise.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

# Processes that are killed are gone in milliseconds; one that is not after this time is stuck in the kernel.
_GIVE_UP_AFTER_S = 10.0


def _processes_under(directory: str) -> list[int]:
    """Return Ray's processes that were told to work in `directory`, or have a file open there.

    The one when they have just been started, the other when they have written their title over their arguments.
    """
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
            if not command.startswith(b"ray::") and b"/ray/" not in command:
                continue
            opened = [str(descriptor.readlink()) for descriptor in (entry / "fd").iterdir()]
        except OSError:
            # Gone meanwhile, or another user's.
            continue
        is_told = f"{directory}/".encode() in command
        if is_told or any(path.startswith(f"{directory}/") for path in opened):
            found.append(int(entry.name))
    return found


def end_processes_under(directory: str) -> None:
    """Kill Ray's processes that work in `directory`, and return when they are gone, or cannot be killed."""
    deadline = time.monotonic() + _GIVE_UP_AFTER_S
    while (left := _processes_under(directory)) and time.monotonic() < deadline:
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.1)


def main() -> None:
    """Wait for the end of standard input, then end Ray's processes and remove their directory."""
    directory = sys.argv[1]
    os.read(0, 1)
    end_processes_under(directory)
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
