"""Where a process of the platform writes what happens to it: one file each, a line an event, kept small."""

from __future__ import annotations

import logging
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Final

# A day of warnings of a healthy platform is a few kilobytes; two files of this size hold the story of a bad one.
_LOG_BYTES_MAX: Final = 4 << 20


def log_to(file: Path) -> None:
    """Send this process's log to a file from now on; calling it again changes the file."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handler = RotatingFileHandler(file, maxBytes=_LOG_BYTES_MAX, backupCount=1, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    for earlier in [present for present in root.handlers if isinstance(present, RotatingFileHandler)]:
        root.removeHandler(earlier)
        earlier.close()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
