"""Snapshots of shards in their place: whole or not there, and read back newest first; the last two are kept.

A file is named for its shard and for the journal entry up to which it speaks. What stands in it, with checksum and
version of its format, is `twins.snapshot`'s; where it lies, `locations`'. A snapshot that cannot be written costs
nothing but time: the journal is trimmed only behind one that is there, and so it stands for what was not written.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

from actors.errors import LocationError, SnapshotsUnreadable
from actors.journal import parse_position, position_text
from actors.locations import Location
from twins.errors import SnapshotError, SnapshotVersion
from twins.shard import Shard
from twins.snapshot import capture_shard, dump_shard, load_shard, seal

_LOG: Final = logging.getLogger(__name__)
# The one before the newest stands by until the newest has proved readable by being followed by another.
_KEPT_COUNT: Final = 2
_NAME: Final = re.compile(r"shard-(\d+)\.(\d+-\d+)\.snapshot")
# Says whose snapshots these are.
_OWNER_FILE: Final = "platform.id"


class SnapshotStore:
    """The snapshots in one place; methods raise LocationError (retryable) while it does not answer."""

    def __init__(self, location: str) -> None:
        self._location = Location.of(location)

    def claim(self, owner: str) -> None:
        """Make sure that snapshots can be written here, and that no other platform's are: LocationError otherwise.

        `owner` tells platforms apart. To be called while no shard is open: what a killed platform left half written
        is removed.
        """
        names = self._location.names()
        if _OWNER_FILE not in names:
            self._location.write(_OWNER_FILE, owner.encode())
        elif self._location.read(_OWNER_FILE).decode(errors="replace") != owner:
            problem = (
                f"belongs to another platform, see {_OWNER_FILE} there; name a place of this platform's own, "
                "or remove that file if the other one is gone and these are to be used"
            )
            raise LocationError(str(self._location), problem)
        for name in names:
            if name.startswith("."):
                self._location.remove(name)

    def require_owner(self, owner: str) -> None:
        """Raise LocationError unless the snapshots of this platform are here; see `claim`."""
        if _OWNER_FILE not in self._location.names():
            raise LocationError(
                str(self._location), f"holds no {_OWNER_FILE}: it is not where the head writes"
            )
        if self._location.read(_OWNER_FILE).decode(errors="replace") != owner:
            raise LocationError(str(self._location), "belongs to another platform")

    def _files(self, shard: int) -> list[tuple[tuple[int, int], str]]:
        """Return position and name of the shard's snapshots, newest first."""
        found = (_NAME.fullmatch(name) for name in self._location.names())
        return sorted(
            ((parse_position(name[2]), name[0]) for name in found if name and int(name[1]) == shard),
            reverse=True,
        )

    def newest(self, shard: int) -> tuple[Shard, str] | None:
        """Return the newest snapshot that can be read, with its journal position; None where there is none.

        Damaged ones before it are removed, so that they never count as the one that stands by. SnapshotsUnreadable if
        there are some and none can be read: the journal before them is gone, unless they are the first. LocationError
        if one was written by another version of this program, which went on from there.
        """
        damaged: list[str] = []
        for position, name in self._files(shard):
            try:
                found = load_shard(self._location.read(name))
            except SnapshotVersion as error:
                problem = f"{name}: {error}; start the version that wrote it"
                raise LocationError(str(self._location), problem) from None
            except SnapshotError as error:
                _LOG.error("%s: %s is left out: %s", self._location, name, error)
                damaged.append(name)
                continue
            for bad in damaged:
                self._location.remove(bad)
            return found, position_text(position)
        if damaged:
            raise SnapshotsUnreadable(str(self._location), shard, damaged)
        return None

    def remove(self, names: Sequence[str]) -> None:
        """Remove snapshots that are worth nothing, by the names of their files."""
        for name in names:
            self._location.remove(name)

    def positions(self, shard: int) -> list[str]:
        """Return the journal positions of the shard's snapshots, newest first."""
        return [position_text(position) for position, _ in self._files(shard)]

    def content(self, shard: int, position: str) -> bytes:
        """Return the bytes of a snapshot, whatever they are worth."""
        return self._location.read(_name(shard, position))

    def newest_position(self, shard: int) -> str | None:
        """Return the journal position of the newest snapshot, readable or not; None where there is none."""
        files = self._files(shard)
        return position_text(files[0][0]) if files else None

    def second_newest_position(self, shard: int) -> str | None:
        """Return the journal position of the snapshot before the newest; None where there is none."""
        files = self._files(shard)
        return position_text(files[1][0]) if len(files) > 1 else None

    def write(self, shard: Shard, position: str, *, is_only: bool = False) -> None:
        """Write a snapshot that stands for the journal up to `position`; older ones than the last two go.

        With `is_only` all older ones go: the journal between them and this one is about to be dropped.
        """
        self.keep(shard.number, position, dump_shard(shard), kept_count=1 if is_only else _KEPT_COUNT)

    def keep(self, shard: int, position: str, content: bytes, *, kept_count: int = _KEPT_COUNT) -> None:
        """Write the bytes of a snapshot, and remove all but the last `kept_count`."""
        self._location.write(_name(shard, position), content)
        for _, name in self._files(shard)[kept_count:]:
            self._location.remove(name)


def _name(shard: int, position: str) -> str:
    return f"shard-{shard}.{position}.snapshot"


class SnapshotWriter:
    """Writes snapshots one at a time, at once."""

    def __init__(self, store: SnapshotStore) -> None:
        self._store = store
        self._shard = 0
        self._written: Future[str | None] | None = None

    @property
    def is_busy(self) -> bool:
        """Tell whether a snapshot is being written, or has been and its result was not taken."""
        return self._written is not None

    def begin(self, shard: Shard, position: str) -> None:
        """Write a shard down as it is now; only when not busy."""
        self._shard = shard.number
        self._written = Future()
        try:
            self._store.write(shard, position)
            self._written.set_result(self._store.second_newest_position(shard.number))
        except LocationError as error:
            self._written.set_exception(error)

    def take_result(self) -> tuple[int, str | None] | None:
        """Return what was written: a shard, and the position through which its journal may be dropped, if any.

        None while there is no result; LocationError if it could not be written.
        """
        if self._written is None or not self._written.done():
            return None
        written, self._written = self._written, None
        return self._shard, written.result()

    def close(self) -> None:
        """Wait for what is being written; what becomes of it can still be asked for."""


class BackgroundWriter(SnapshotWriter):
    """Writes snapshots in a thread of its own: a place that is slow or away holds up no request."""

    def __init__(self, store: SnapshotStore) -> None:
        super().__init__(store)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="snapshots")

    def begin(self, shard: Shard, position: str) -> None:
        """Begin to write a shard down as it is now; only when not busy."""
        self._shard = shard.number
        self._written = self._thread.submit(self._keep, shard.number, position, capture_shard(shard))

    def _keep(self, shard: int, position: str, parts: list[Any]) -> str | None:
        self._store.keep(shard, position, seal(parts))
        return self._store.second_newest_position(shard)

    def close(self) -> None:
        """Wait for what is being written."""
        self._thread.shutdown()
