"""Snapshots of shards as files: written beside, renamed, and read back newest first; the last two are kept.

A file is named for its shard and for the journal entry up to which it speaks. What stands in it is `twins.snapshot`'s.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from actors.journal import parse_position
from actors.settings import write_atomically
from twins.errors import SnapshotError
from twins.shard import Shard
from twins.snapshot import dump_shard, load_shard

# The one before the newest stands by until the newest has proved readable by being followed by another.
_KEPT_COUNT: Final = 2


class SnapshotStore:
    """The snapshots in one directory."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory = directory

    def _files(self, shard: int) -> list[tuple[tuple[int, int], Path]]:
        """Return the shard's snapshots by position, newest first."""
        paths = self._directory.glob(f"shard-{shard}.*.snapshot")
        return sorted(((parse_position(path.name.split(".")[1]), path) for path in paths), reverse=True)

    def newest(self, shard: int) -> tuple[Shard, str] | None:
        """Return the newest snapshot that can be read, with its journal position; None where there is none.

        SnapshotError if there are some and none can be read: the journal before them is gone.
        """
        files = self._files(shard)
        for (epoch, sequence), path in files:
            try:
                return load_shard(path.read_bytes()), f"{epoch}-{sequence}"
            except SnapshotError:
                if path == files[-1][1]:
                    raise
        return None

    def newest_position(self, shard: int) -> str | None:
        """Return the journal position of the newest snapshot, readable or not; None where there is none."""
        files = self._files(shard)
        return "{}-{}".format(*files[0][0]) if files else None

    def second_newest_position(self, shard: int) -> str | None:
        """Return the journal position of the snapshot before the newest; None where there is none."""
        files = self._files(shard)
        if len(files) < 2:
            return None
        epoch, sequence = files[1][0]
        return f"{epoch}-{sequence}"

    def write(self, shard: Shard, position: str, *, is_only: bool = False) -> None:
        """Write a snapshot that stands for the journal up to `position`; older ones than the last two go.

        With `is_only` all older ones go: the journal between them and this one is about to be dropped.
        """
        write_atomically(self._directory / f"shard-{shard.number}.{position}.snapshot", dump_shard(shard))
        for _, path in self._files(shard.number)[1 if is_only else _KEPT_COUNT :]:
            path.unlink(missing_ok=True)
