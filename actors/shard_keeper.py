"""Keeps the shards of one process: opens them, journals what goes into them, writes them down, never loses its place.

A shard's state is always its snapshot plus its journal up to a known entry. Where an append has failed, that is not
known any more; what the journal holds beyond the known entry is then applied first.

Nobody serves a shard beside its successor. That no append of a former host arrives is the journal's to see; that it
answers no question is the lease's: a host answers only while Redis has told it, not longer than half a lease ago, that
its shards are still its own. The time counts from before Redis was asked, by a clock that runs on while the machine is
suspended; Redis is asked at the start of a call, so no timer has to fire in time. Whoever opens a shard waits for a
whole lease from after its marker, unless it is known that the former host is gone, and had waited itself, or had not
had to: else the one before that may live. What is read at the start of a call
was true after the call was made: a process that is held up in the middle of one gives no outdated answer.
"""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from actors.actor_settings import HostSettings
from actors.errors import LocationError, ShardFenced, ShardNotHere, SnapshotsUnreadable, StoreError
from actors.journal import (
    Applied,
    GroupCreated,
    GroupDeleted,
    Journal,
    Record,
    Ticked,
    parse_position,
    position_text,
    reaches,
)
from actors.snapshots import BackgroundWriter, SnapshotStore, SnapshotWriter
from actors.wall_clock import boot_time_s
from twins.errors import InvariantError, ModelError
from twins.messages import Outcome, Publish
from twins.shard import Shard

_LOG: Final = logging.getLogger(__name__)
# How long a shard that changes hands without a word of its former host stands still. Redis is asked every half of it,
# which takes a millisecond.
LEASE_S: Final = 2.0
# While Redis does not answer, callers would queue up behind each other's waiting; most are refused at once.
_PAUSE_S: Final = 0.25
# A snapshot is due when going through the journals of all shards again, which a restart does, would take so long; it
# takes as long as it took at first.
REPLAY_S_MAX: Final = 1.0
# Share of the time that snapshots may take for that: a busy shard with many twins is rather read back a little longer.
_SNAPSHOT_SHARE_MAX: Final = 0.05
_START: Final = "0-0"
# Of a journal from which nothing was ever dropped.
_FIRST_ENTRY: Final = (1, 0)


@dataclass(slots=True)
class _Held:
    """A shard that is open here."""

    shard: Shard
    # The last entry that is known to be kept and is applied.
    position: str
    # Before that its former host may still answer.
    serves_from_s: float = 0.0
    # Since the last snapshot: what replaying would take, and what has been journalled.
    replay_s: float = 0.0
    journal_bytes: int = 0


class ShardKeeper:
    """The shards that are open in this process, with their journals and snapshots."""

    def __init__(
        self,
        settings: HostSettings,
        journal: Journal | None = None,
        snapshots: SnapshotStore | None = None,
        *,
        clock_s: Callable[[], float] = boot_time_s,
    ) -> None:
        """Prepare for shards; their journal and snapshots are where the settings say, unless they are given.

        `clock_s` must never be set, and run on while this process is held up.
        """
        self.entry_count = 0
        # Shards that another process has taken over since they were opened here.
        self.lost: set[int] = set()
        self._settings = settings
        self._journal = journal or Journal.at(settings.redis_url)
        self._snapshots = snapshots or SnapshotStore(settings.snapshot_location)
        self._writer = SnapshotWriter(snapshots) if snapshots else BackgroundWriter(self._snapshots)
        self._clock_s = clock_s
        self._held: dict[int, _Held] = {}
        # Read for shards that are about to come here.
        self._read_ahead: dict[int, _Held] = {}
        # Shards that were opened with a wait for a former host, which may not be over.
        self._waits: set[int] = set()
        self._confirmed_s = float("-inf")
        self._asks_from_s = float("-inf")
        # When the next snapshot may be written to keep the way back short.
        self._rested_at_s = float("-inf")
        self._is_doubtful = False
        self._late: list[Publish] = []

    def open(self) -> None:
        """Take over the shards that the settings name: fence their former keeper, then read their past."""
        self._journal.require_shard_count(self._settings.shard_count)
        self.open_shards(self._settings.shards, is_predecessor_gone=self._settings.is_predecessor_gone)
        # What has been read back stays; the garbage collector need not go through it again and again.
        gc.freeze()

    def open_shards(
        self, numbers: Sequence[int], *, is_predecessor_gone: bool = False, is_released: bool = False
    ) -> None:
        """Take over more shards; those that are open stay so. Who served them last is gone, or has released them."""
        for number in numbers:
            if number not in self._held:
                self._held[number] = self._open_shard(
                    number, is_predecessor_gone=is_predecessor_gone, is_released=is_released
                )
                self.lost.discard(number)

    def read_ahead(self, number: int) -> None:
        """Read a shard's past while another process serves it: opening it here is then a matter of milliseconds.

        May be called beside everything else, in another thread.
        """
        if number not in self._held:
            self._read_ahead[number] = self._read(number)

    @property
    def read_shards(self) -> tuple[int, ...]:
        """Return the shards that were read ahead; may be asked from another thread."""
        return tuple(self._read_ahead.copy())

    def release(self, numbers: Sequence[int]) -> list[int]:
        """Let go of shards, whose journals have all of them; to be called settled.

        Returns those that nobody serves any more: not those that were not open here, nor those that their former host
        might still serve.
        """
        released = [self._held.pop(number) for number in numbers if number in self._held]
        return [held.shard.number for held in released if held.serves_from_s <= self._clock_s()]

    def _open_shard(self, number: int, *, is_predecessor_gone: bool, is_released: bool) -> _Held:
        written = self._snapshots.newest_position(number)
        if written is not None and self._journal.last_position(number) < parse_position(written):
            raise StoreError(
                f"the journal of shard {number} ends before its snapshot {written}: Redis has been emptied or set "
                "back; bring the Redis data back that belongs to the snapshots, or restore a backup"
            )
        is_alone = self._fence(number, is_predecessor_gone=is_predecessor_gone, is_released=is_released)
        marked_s = self._clock_s()
        held = self._read_on(number)
        held.serves_from_s = marked_s if is_alone else marked_s + LEASE_S
        if not is_alone:
            self._waits.add(number)
        return held

    def _fence(self, number: int, *, is_predecessor_gone: bool, is_released: bool) -> bool:
        """Begin a new epoch of a shard, so that no append of an earlier one can arrive any more; see `Journal.open`."""
        begin = partial(
            self._journal.open, number, is_predecessor_gone=is_predecessor_gone, is_released=is_released
        )
        try:
            return begin()
        except StoreError as error:
            if not error.is_full:
                raise
            self._make_room(self._read(number))
            return begin()

    def _read_on(self, number: int) -> _Held:
        """Return a shard as `_read`, from where reading ahead has come, unless the journal was trimmed beyond that."""
        held = self._read_ahead.pop(number, None)
        if held is not None:
            with contextlib.suppress(ShardFenced):
                self._catch_up(held)
                return held
        return self._read(number)

    def _read(self, number: int) -> _Held:
        """Return a shard as its snapshot and its journal have it. The snapshot is the newest after the marker only."""
        while True:
            found = self._newest(number)
            held = _Held(*(found or (Shard(number, self._settings.shard_count), _START)))
            with contextlib.suppress(ShardFenced):
                self._catch_up(held)
                return held
            self._require_newer(number, found[1] if found else None)

    def _newest(self, number: int) -> tuple[Shard, str] | None:
        """Return the newest snapshot, None where there is none, or none that can be read and the journal is whole."""
        try:
            return self._snapshots.newest(number)
        except SnapshotsUnreadable as error:
            if self._journal.first_position(number) != _FIRST_ENTRY:
                raise
            _LOG.warning(
                "shard %d is read from its whole journal, because its snapshots (%s) are damaged",
                number,
                ", ".join(error.names),
            )
            # They must not count as the one that stands by.
            self._snapshots.remove(error.names)
            return None

    def _require_newer(self, number: int, position: str | None) -> None:
        """Raise StoreError unless there is a newer snapshot by now than the one behind which entries are missing."""
        first = self._journal.first_position(number)
        if first is not None and self._snapshots.newest_position(number) == position:
            raise StoreError(
                f"the journal of shard {number} begins at {position_text(first)}, after its newest snapshot "
                f"({position or _START}): the snapshots lie elsewhere; start with --snapshots and the place where they "
                "were written, or move them here"
            )

    def _make_room(self, held: _Held) -> None:
        """Let the journal go that a snapshot can stand for: a full store takes no marker, but that it allows."""
        number = held.shard.number
        self._snapshots.write(held.shard, held.position, is_only=True)
        self._journal.trim(number, through=held.position)

    def _catch_up(self, held: _Held) -> list[Publish]:
        """Apply what the journal holds beyond the known entry; return the messages of what no bridge will resend.

        ShardFenced if another keeper has trimmed the journal beyond that entry meanwhile: the shard is of no use then.
        """
        publishes: list[Publish] = []
        start_s, known = self._clock_s(), held.position
        for entry_id, record, size in self._journal.read(held.shard.number, after=held.position):
            outcome = apply_again(held.shard, record)
            if isinstance(record, Applied) and not record.batch.source:
                publishes.extend(outcome.publishes)
            held.position = entry_id
            held.journal_bytes += size
        held.replay_s += self._clock_s() - start_s
        first = self._journal.first_position(held.shard.number)
        if first is not None and not reaches(known, first):
            raise ShardFenced(held.shard.number, parse_position(known)[0])
        return publishes

    def held(self) -> Mapping[int, Shard]:
        """Return the shards that are open here, also those that may not be served yet."""
        return {number: held.shard for number, held in list(self._held.items())}

    def wait_s(self) -> float:
        """Return how long it takes until every shard that is open here may be served."""
        return max((held.serves_from_s - self._clock_s() for held in self._held.values()), default=0.0)

    def shard(self, number: int) -> Shard:
        """Return a shard to be served; ShardNotHere if it is not open here, or not yet to be served."""
        held = self._held.get(number)
        if held is None:
            where = "another process has taken it over" if number in self.lost else "it is not open here"
            raise ShardNotHere(number, where)
        if self._clock_s() < held.serves_from_s:
            raise ShardNotHere(number, "its former host may still serve it for a moment")
        return held.shard

    def shards(self, numbers: Iterable[int]) -> Mapping[int, Shard]:
        """Return shards to be served; ShardNotHere if that is not so of one of them."""
        return {number: self.shard(number) for number in numbers}

    def settle(self) -> list[Publish]:
        """Make sure that the shards are still ours, and clear up what a failed append has left open.

        To be called before anything else is done with the shards, each time. Returns messages of requests that turn
        out to be kept. StoreError while Redis does not answer: nothing is to be served then.
        """
        now_s = self._clock_s()
        if now_s < self._asks_from_s:
            raise StoreError("Redis has just failed to answer; try again", retryable=True)
        try:
            if self._is_doubtful or now_s - self._confirmed_s > LEASE_S / 2:
                self._confirm(now_s)
            if self._is_doubtful:
                self._clear_up()
            if self._waits:
                self._tell_alone(now_s)
        except StoreError as error:
            self._pause(error)
            raise
        late, self._late = self._late, []
        return late

    def _confirm(self, now_s: float) -> None:
        """Let go of shards that others have opened since; the rest are ours from `now_s` on for half a lease."""
        for number in self._journal.taken_over(list(self._held)):
            self._let_go(number)
        self._confirmed_s = now_s

    def _tell_alone(self, now_s: float) -> None:
        """Spare whoever opens a shard next the wait that is over here; a full store may refuse it."""
        for number in sorted(self._waits):
            held = self._held.get(number)
            if held is not None and held.serves_from_s > now_s:
                continue
            self._waits.remove(number)
            if held is None:
                continue
            try:
                self._journal.mark(number, is_alone=True)
            except ShardFenced:
                self._let_go(number)
            except StoreError as error:
                if not error.is_full:
                    raise

    def _clear_up(self) -> None:
        for number, held in list(self._held.items()):
            try:
                self._mark(held)
                self._late.extend(self._catch_up(held))
            except ShardFenced:
                self._let_go(number)
        self._is_doubtful = False

    def _mark(self, held: _Held) -> None:
        """See to it that none of our earlier appends to a shard's journal can arrive any more."""
        try:
            self._journal.mark(held.shard.number)
        except StoreError as error:
            if not error.is_full:
                raise
            self._late.extend(self._catch_up(held))
            self._make_room(held)
            self._journal.mark(held.shard.number)

    def _let_go(self, number: int) -> None:
        _LOG.warning("shard %d was taken over by another process", number)
        del self._held[number]
        self.lost.add(number)

    def _pause(self, error: StoreError) -> None:
        # A full store answers.
        if not error.is_full:
            self._asks_from_s = self._clock_s() + _PAUSE_S

    def keep(self, records: Sequence[tuple[int, Record]]) -> None:
        """Journal records of open shards; they must be applied then, in this order, before anything else is kept.

        ShardNotHere if nothing was kept. StoreError, or ShardFenced, if it is unknown which were; none of them
        may be applied by the caller then.
        """
        if not records:
            return
        for number, _ in records:
            self.shard(number)
        try:
            sizes = self._journal.append(records)
        except ShardFenced as error:
            # Those of other shards may be kept.
            self._is_doubtful = True
            self._let_go(error.shard)
            raise
        except StoreError as error:
            self._is_doubtful = True
            self._pause(error)
            raise
        self.entry_count += len(records)
        for (number, _), size in zip(records, sizes, strict=True):
            held = self._held[number]
            held.position = self._journal.position(number)
            held.journal_bytes += size

    @contextlib.contextmanager
    def timed(self, number: int) -> Iterator[Shard]:
        """Give a shard to apply something to; the time that it takes is what replaying it will take."""
        start_s = self._clock_s()
        yield self.shard(number)
        self._held[number].replay_s += self._clock_s() - start_s

    def snapshot_where_due(self) -> None:
        """Begin to write down one shard where the journal has become long; one at a time, and nobody waits for it.

        A snapshot that can't be written is tried again later: the journal stands for it meanwhile.
        """
        self._finish_snapshot()
        held = None if self._writer.is_busy else self._due()
        if held is None:
            return
        start_s = self._clock_s()
        self._writer.begin(held.shard, held.position)
        end_s = self._clock_s()
        self._rested_at_s = end_s + (end_s - start_s) / _SNAPSHOT_SHARE_MAX
        held.replay_s = 0.0
        held.journal_bytes = 0
        self._finish_snapshot()

    def _due(self) -> _Held | None:
        """Return the shard to write down now: one whose journal fills the store, or the one that takes longest."""
        for held in self._held.values():
            if held.journal_bytes > self._settings.journal_bytes_max:
                return held
        total_s = sum(held.replay_s for held in self._held.values())
        if total_s <= REPLAY_S_MAX or self._clock_s() < self._rested_at_s:
            return None
        return max(self._held.values(), key=lambda held: held.replay_s)

    def _finish_snapshot(self) -> None:
        """Drop the part of a journal that the snapshot before the one just written covers."""
        try:
            written = self._writer.take_result()
            if written is not None and written[1] is not None:
                self._journal.trim(written[0], through=written[1])
        except (LocationError, StoreError):
            _LOG.exception("a snapshot is put off")

    def close(self) -> None:
        """Write down every shard that has changed, so that the next start is quick, and let go of the journal."""
        held_shards, self._held = self._held, {}
        self._writer.close()
        try:
            for held in held_shards.values():
                if held.journal_bytes and not self._is_doubtful:
                    self._snapshots.write(held.shard, held.position)
        finally:
            self._journal.close()


def apply_again(shard: Shard, record: Record) -> Outcome:
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
            # They were told when the ticks were run, or the device asks.
            shard.announcements.clear()
        else:
            raise InvariantError(f"the journal holds {record!r}")
    return Outcome([], [])
