"""Keeps the shards of one process: opens them, journals what goes into them, writes them down, never loses its place.

A shard's state is always its snapshot plus its journal up to a known entry. Where an append has failed, that is not
known any more; the shards are then opened again, and what the journal holds beyond the known entry is applied first.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from actors.actor_settings import HostSettings
from actors.errors import ShardUnavailable, StoreError
from actors.journal import Applied, GroupCreated, GroupDeleted, Journal, Record, Ticked, parse_position
from actors.snapshots import SnapshotStore
from twins.errors import InvariantError, ModelError
from twins.messages import Outcome, Publish
from twins.shard import Shard

_LOG: Final = logging.getLogger(__name__)
# A snapshot is due when going through the journals of all shards again, which a restart does, would take so long; it
# takes as long as it took at first.
REPLAY_S_MAX: Final = 1.0
# Share of the time that snapshots may take for that: a busy shard with many twins is rather read back a little longer.
_SNAPSHOT_SHARE_MAX: Final = 0.05
_START: Final = "0-0"


class ShardKeeper:
    """The shards that the settings name, with their journals and snapshots; `shards` are open once `open` returned."""

    def __init__(self, settings: HostSettings) -> None:
        self.shards: dict[int, Shard] = {}
        self.entry_count = 0
        self._settings = settings
        self._journal = Journal(settings.redis_url)
        self._snapshots = SnapshotStore(Path(settings.snapshot_dir))
        # By shard: the last entry known to be kept and applied, and what has come since the last snapshot.
        self._kept: dict[int, str] = {}
        self._replay_s: dict[int, float] = {}
        self._journal_bytes: dict[int, int] = {}
        # When the next snapshot may be written to keep the way back short.
        self._rested_at_s = 0.0
        self._is_doubtful = False

    def open(self) -> None:
        """Take over the shards: fence their former keeper, then read their past."""
        self._journal.require_shard_count(self._settings.shard_count)
        for number in self._settings.shards:
            self._replay_s[number] = 0.0
            self._journal_bytes[number] = 0
            self.shards[number] = self._open_shard(number)
        # What has been read back stays; the garbage collector need not go through it again and again.
        gc.freeze()

    def _open_shard(self, number: int) -> Shard:
        found = self._snapshots.newest(number)
        shard, position = found or (Shard(number, self._settings.shard_count), _START)
        if self._journal.last_position(number) < parse_position(position):
            raise StoreError(
                f"the journal of shard {number} ends before its snapshot {position}: Redis has been emptied or set "
                f"back; bring the Redis data back that belongs to {self._settings.snapshot_dir}"
            )
        self._kept[number] = position
        self._fence(shard)
        start_s = time.monotonic()
        self._catch_up(shard)
        self._replay_s[number] = time.monotonic() - start_s
        return shard

    def _fence(self, shard: Shard) -> None:
        """Begin a new epoch of a shard, so that no append of an earlier one can arrive any more."""
        try:
            self._journal.open(shard.number)
        except StoreError as error:
            if not error.is_full:
                raise
            # A full store takes no marker, but it lets go of entries that a snapshot stands for.
            self._catch_up(shard)
            self._snapshots.write(shard, self._kept[shard.number], is_only=True)
            self._journal.trim(shard.number, through=self._kept[shard.number])
            self._journal.open(shard.number)

    def _catch_up(self, shard: Shard) -> list[Publish]:
        """Apply what the journal holds beyond the known entry; return the messages of what no bridge will resend."""
        publishes: list[Publish] = []
        for entry_id, record, size in self._journal.read(shard.number, after=self._kept[shard.number]):
            outcome = _apply_again(shard, record)
            if isinstance(record, Applied) and not record.batch.source:
                publishes.extend(outcome.publishes)
            self._kept[shard.number] = entry_id
            self._journal_bytes[shard.number] += size
        return publishes

    def shard(self, number: int) -> Shard:
        """Return an open shard; ShardUnavailable if it is not open here, or not yet."""
        try:
            return self.shards[number]
        except KeyError:
            raise ShardUnavailable(number, "it is not open in this process") from None

    def settle(self) -> list[Publish]:
        """Clear up what a failed append has left open; return messages of requests that turn out to be kept.

        To be called before anything else is done with the shards. StoreError while Redis does not answer.
        """
        if not self._is_doubtful:
            return []
        publishes: list[Publish] = []
        for shard in self.shards.values():
            self._fence(shard)
            publishes.extend(self._catch_up(shard))
        self._is_doubtful = False
        return publishes

    def keep(self, records: Sequence[tuple[int, Record]]) -> None:
        """Journal records of open shards; they must be applied then, in this order, before anything else is kept.

        StoreError if it is unknown which were kept; none of them may be applied by the caller then.
        """
        if not records:
            return
        try:
            sizes = self._journal.append(records)
        except StoreError:
            self._is_doubtful = True
            raise
        self.entry_count += len(records)
        for (number, _), size in zip(records, sizes, strict=True):
            self._kept[number] = self._journal.position(number)
            self._journal_bytes[number] += size

    @contextlib.contextmanager
    def timed(self, number: int) -> Iterator[Shard]:
        """Give a shard to apply something to; the time that it takes is what replaying it will take."""
        start_s = time.monotonic()
        yield self.shard(number)
        self._replay_s[number] += time.monotonic() - start_s

    def snapshot_where_due(self) -> None:
        """Write down one shard where the journal has become long; one at a time, so that nobody waits for all of them.

        A snapshot that can't be written is tried again later: the journal stands for it meanwhile.
        """
        number = self._due()
        if number is None:
            return
        start_s = time.monotonic()
        try:
            self._snapshot(number)
        except (OSError, StoreError):
            _LOG.exception("the snapshot of shard %d is put off", number)
            self._replay_s[number] = 0.0
            self._journal_bytes[number] = 0
        end_s = time.monotonic()
        self._rested_at_s = end_s + (end_s - start_s) / _SNAPSHOT_SHARE_MAX

    def _due(self) -> int | None:
        """Return the shard to write down now: one whose journal fills the store, or the one that takes longest."""
        for number, length in self._journal_bytes.items():
            if length > self._settings.journal_bytes_max:
                return number
        if sum(self._replay_s.values()) <= REPLAY_S_MAX or time.monotonic() < self._rested_at_s:
            return None
        return max(self._replay_s, key=self._replay_s.__getitem__)

    def _snapshot(self, number: int) -> None:
        """Write a shard down and drop the part of its journal that the snapshot before this one covers."""
        self._snapshots.write(self.shards[number], self._kept[number])
        self._replay_s[number] = 0.0
        self._journal_bytes[number] = 0
        older = self._snapshots.second_newest_position(number)
        if older is not None:
            self._journal.trim(number, through=older)

    def close(self) -> None:
        """Write down every shard that has changed, so that the next start is quick, and let go of the journal."""
        shards, self.shards = self.shards, {}
        try:
            for number, shard in shards.items():
                if self._journal_bytes[number] and not self._is_doubtful:
                    self._snapshots.write(shard, self._kept[number])
        finally:
            self._journal.close()


def _apply_again(shard: Shard, record: Record) -> Outcome:
    """Apply a journalled input, in place; what was refused when it came in is refused again, and changes nothing."""
    if isinstance(record, Applied):
        return shard.apply(record.batch, record.now_s)
    with contextlib.suppress(ModelError):
        if isinstance(record, GroupCreated):
            shard.create_group(record.order.group())
        elif isinstance(record, GroupDeleted):
            shard.delete_group(record.name)
        elif isinstance(record, Ticked):
            shard.tick(record.order)
        else:
            raise InvariantError(f"the journal holds {record!r}")
    return Outcome([], [])
