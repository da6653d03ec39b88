"""The broker's log file as a reader that knows how far it has come: what the stream of lines has missed is read here.

mosquitto sends each line of its log to subscribers, too, but drops what has waited for one for 20 seconds (2.0.11,
measured). The file has every line, byte for byte the same and in the same order; so a line that arrives tells how far
the file may be read, and nothing is missed however long nobody listened.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final, NamedTuple

# How mosquitto begins: everything before it in the file is of an earlier process.
_START: Final = re.compile(
    rb"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}: mosquitto version \S+ starting$", re.MULTILINE
)
# Read at once while looking for the last start: a file of 16 MB, the size at which it is set aside, takes 16 steps.
_STEP_BYTES: Final = 1 << 20
# A line has 1,000 bytes at most (mosquitto's buffer): one that lies across two steps is found with this overlap.
_LINE_BYTES_MAX: Final = 1_000


class LogPosition(NamedTuple):
    """Where in which file the next line begins; files are told apart by their inode, because they are renamed."""

    inode: int
    offset: int

    def text(self) -> str:
        """Return what `parse` reads."""
        return f"{self.inode}:{self.offset}"

    @classmethod
    def parse(cls, text: str) -> LogPosition | None:
        """Return the position that a text holds, None if it holds none."""
        inode, separator, offset = text.partition(":")
        if not separator or not inode.isdecimal() or not offset.isdecimal():
            return None
        return cls(int(inode), int(offset))


class BrokerLogReader:
    """Reads the log of one broker, each line once.

    Without a position, or where the file of that position is gone, it begins at the broker's last start.
    """

    def __init__(self, log_file: Path, position: LogPosition | None) -> None:
        self._file = log_file
        self._earlier_file = log_file.with_suffix(".log.old")
        self._position = position
        # What was read ahead, and how much of it was taken: of megabytes only the lines are copied.
        self._ahead = b""
        self._taken_bytes = 0

    @property
    def position(self) -> LogPosition | None:
        """Return where the next line begins, None before anything was read."""
        return self._position

    def lines_through(self, line: bytes) -> list[bytes]:
        """Return the lines not read yet, up to and with the one that has arrived; none if it was read before.

        Where the file is gone, because somebody removed it, that is the line alone.
        """
        ended = line + b"\n"
        lines: list[bytes] = []
        end = self._end_of(ended)
        if end < 0:
            while self._open_earlier_file():
                lines += self._take(self._ahead.rfind(b"\n") + 1)
            if not self._read_ahead():
                return [*lines, line]
            end = self._end_of(ended)
        return lines + self._take(end) if end >= 0 else lines

    def lines(self, count_max: int) -> list[bytes]:
        """Return up to `count_max` of the lines not read yet; one that is being written is left for later."""
        if self._ahead.find(b"\n", self._taken_bytes) < 0 and not self._open_earlier_file():
            self._read_ahead()
        end = self._taken_bytes
        for _ in range(count_max):
            following = self._ahead.find(b"\n", end) + 1
            if not following:
                break
            end = following
        return self._take(end)

    def _end_of(self, ended: bytes) -> int:
        """Return where a whole line that was not taken yet ends in what was read ahead, -1 if it is not there."""
        if self._ahead.startswith(ended, self._taken_bytes):
            return self._taken_bytes + len(ended)
        start = self._ahead.find(b"\n" + ended, self._taken_bytes)
        return -1 if start < 0 else start + 1 + len(ended)

    def _take(self, end: int) -> list[bytes]:
        """Return the lines up to `end` in what was read ahead, which are read then."""
        taken = self._ahead[self._taken_bytes : end]
        self._taken_bytes = end
        if self._position is not None:
            self._position = self._position._replace(offset=self._position.offset + len(taken))
        return taken.split(b"\n")[:-1]

    def _read_ahead(self) -> bool:
        """Read all that the present file holds from the position on; False if there is no file."""
        try:
            with self._file.open("rb") as log:
                status = os.fstat(log.fileno())
                position = self._position
                if position is None or position.inode != status.st_ino:
                    position = LogPosition(status.st_ino, _last_start(self._file, status.st_size))
                elif position.offset > status.st_size:
                    # Somebody has emptied it, to save space.
                    position = LogPosition(status.st_ino, 0)
                log.seek(position.offset)
                self._position, self._ahead, self._taken_bytes = position, log.read(), 0
        except FileNotFoundError:
            self._ahead, self._taken_bytes = b"", 0
            return False
        return True

    def _open_earlier_file(self) -> bool:
        """Read the rest of a file that has been set aside since; False if nothing is left of it, or there is none."""
        position, present = self._position, _inode(self._file)
        if position is None or position.inode == present:
            return False
        try:
            with self._earlier_file.open("rb") as log:
                if os.fstat(log.fileno()).st_ino != position.inode:
                    return False
                log.seek(position.offset)
                self._ahead, self._taken_bytes = log.read(), 0
        except FileNotFoundError:
            return False
        if b"\n" in self._ahead:
            return True
        # The present one follows it, from its first line.
        self._position, self._ahead, self._taken_bytes = LogPosition(present, 0), b"", 0
        return False


def _inode(file: Path) -> int:
    """Return the inode of a file, 0 if it does not exist."""
    try:
        return file.stat().st_ino
    except FileNotFoundError:
        return 0


def _last_start(log_file: Path, size: int) -> int:
    """Return where the line begins with which the broker began last, 0 if the file does not hold it."""
    with log_file.open("rb") as log:
        end = size
        while end > 0:
            begin = max(0, end - _STEP_BYTES)
            log.seek(begin)
            found = list(_START.finditer(log.read(end - begin + _LINE_BYTES_MAX)))
            if found:
                return begin + found[-1].start()
            end = begin
    return 0
