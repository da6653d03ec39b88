"""The journal: everything that goes into a shard, in order, kept in Redis before its outcome is shown to anybody.

One stream per shard, with entry ids `<epoch>-<sequence>` of our own. Redis refuses an id that is not above the last
one, so whoever opens a shard with a higher epoch fences its predecessor: the append itself refuses a zombie. To open:
write the marker `<epoch>-0`, then read, then serve. What the state of a shard is, is not known here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec
import redis

from actors.errors import ShardFenced, StoreError
from actors.store_client import client_at
from actors.store_errors import is_fenced, store_error
from twins.messages import Batch, GroupOrder, TickOrder

# Entries read in one round trip when a shard is opened: a few megabytes.
_PAGE_LENGTH: Final = 500
# An append waits for one write to disk. A call of a shard waits twice at most, and must be done before its caller
# gives up; what is written later than this is found when Redis answers again.
_ANSWER_TIMEOUT_S: Final = 2.0
# The field of an entry that holds its record; it is empty where an epoch begins.
_FIELD: Final = b"r"
# Is there in an entry whose writer knew that nobody else served the shard any more.
_ALONE: Final = b"a"
# Markers at the beginning of an epoch that are looked through for a record; its holder writes one more at each failure.
_MARKERS_MAX: Final = 20
_SEQUENCE_MAX: Final = 2**64 - 1


class Applied(msgspec.Struct, frozen=True, array_like=True, tag="apply"):
    """A batch of requests was applied at a time."""

    now_s: float
    batch: Batch


class GroupCreated(msgspec.Struct, frozen=True, array_like=True, tag="create"):
    """A simulated group was created."""

    order: GroupOrder


class GroupDeleted(msgspec.Struct, frozen=True, array_like=True, tag="delete"):
    """A simulated group was removed."""

    name: str


class Ticked(msgspec.Struct, frozen=True, array_like=True, tag="tick"):
    """Ticks of a simulated group were run: they are computed again, so the order is all that is kept."""

    order: TickOrder


Record = Applied | GroupCreated | GroupDeleted | Ticked
_encode: Final = msgspec.msgpack.Encoder().encode
decode_record: Final = msgspec.msgpack.Decoder(Record).decode


class Journal:
    """The journals of those shards that one process serves; not for several threads.

    The client must try nothing twice, as that of `at` does.
    """

    def __init__(self, client: redis.Redis, *, prefix: str = "twinfleet:") -> None:
        self._prefix = prefix
        self._client = client
        self._positions: dict[int, tuple[int, int]] = {}

    @classmethod
    def at(cls, url: str) -> Journal:
        """Return the journals in the Redis at a URL; nothing is asked of it yet."""
        # An append that was made before the connection broke must not be taken for somebody else's.
        return cls(client_at(url, answer_timeout_s=_ANSWER_TIMEOUT_S))

    def _key(self, shard: int) -> str:
        return f"{self._prefix}journal:{shard}"

    def require_shard_count(self, shard_count: int) -> None:
        """Store the number of shards with the data, once; StoreError if the data has another one."""
        try:
            self._client.setnx(f"{self._prefix}shards", shard_count)
            stored = int(self._client.get(f"{self._prefix}shards"))  # type: ignore[arg-type]
        except redis.RedisError as error:
            raise store_error(error, "the number of shards") from error
        if stored != shard_count:
            raise StoreError(
                f"this data has {stored} shards, {shard_count} were asked for; the number can't be changed: "
                f"start with --shards {stored}, or with another data directory"
            )

    def open(self, shard: int, *, is_predecessor_gone: bool, is_released: bool = False) -> bool:
        """Begin a new epoch of a shard, whose former holder can append nothing from now on.

        Tell whether nobody else serves it: there never was anybody, or the former holder has released it, or is gone
        (see `HostSettings`) and was alone itself before it went. ShardFenced if another one opens it at the same time.
        """
        former = self.last_position(shard)[0]
        is_alone = (
            not former or is_released or (is_predecessor_gone and self._came_to_be_alone(shard, former))
        )
        fields = {_FIELD: b"", _ALONE: b""} if is_alone else {_FIELD: b""}
        try:
            self._client.xadd(self._key(shard), fields, id=f"{former + 1}-0")  # type: ignore[arg-type]  # invariant
        except redis.RedisError as error:
            raise self._refusal(shard, error) from error
        self._positions[shard] = (former + 1, 0)
        return is_alone

    def _came_to_be_alone(self, shard: int, epoch: int) -> bool:
        """Tell whether it is certain that the holder of an epoch was the only one: it knew, or has served."""
        try:
            start = f"({epoch - 1}-{_SEQUENCE_MAX}"
            entries: Any = self._client.xrange(self._key(shard), min=start, count=_MARKERS_MAX)
        except redis.RedisError as error:
            raise self._refusal(shard, error) from error
        return any(fields[_FIELD] or _ALONE in fields for _, fields in entries)

    def mark(self, shard: int, *, is_alone: bool = False) -> None:
        """See to it that nothing that this process has tried to append before can arrive any more.

        `is_alone` says, for who opens the shard next, that nobody else serves it any more. ShardFenced if another
        process has opened the shard since.
        """
        epoch, sequence = self._positions[shard]
        self._positions[shard] = epoch, sequence + 1
        fields = {_FIELD: b"", _ALONE: b""} if is_alone else {_FIELD: b""}
        try:
            self._client.xadd(self._key(shard), fields, id=f"{epoch}-{sequence + 1}")  # type: ignore[arg-type]  # invariant
        except redis.RedisError as error:
            raise self._refusal(shard, error) from error

    def taken_over(self, shards: Sequence[int]) -> list[int]:
        """Return those of the shards, opened by this process, that another one has opened since.

        StoreError that is not retryable if their journals have been emptied.
        """
        if not shards:
            return []
        pipeline = self._client.pipeline(transaction=False)
        pipeline.exists(*(self._key(shard) for shard in shards))
        for shard in shards:
            # Beyond all that this process has tried to append; cheaper than XINFO, which returns whole entries.
            pipeline.xrange(self._key(shard), min=f"({self.position(shard)}", count=1)
        try:
            count, *beyond = pipeline.execute()
        except redis.RedisError as error:
            raise self._refusal(shards[0], error) from error
        if count < len(shards):
            raise StoreError("Redis has been emptied under running shards; bring its data back")
        return [shard for shard, entries in zip(shards, beyond, strict=True) if entries]

    def _refusal(self, shard: int, error: redis.RedisError) -> StoreError | ShardFenced:
        if is_fenced(error):
            return ShardFenced(shard, self._positions.get(shard, (0, 0))[0])
        return store_error(error, f"the journal of shard {shard}")

    def last_position(self, shard: int) -> tuple[int, int]:
        """Return epoch and sequence of the last entry that the shard's journal has ever had; (0, 0) if none."""
        try:
            if not self._client.exists(self._key(shard)):
                return 0, 0
            details: Any = self._client.xinfo_stream(self._key(shard))
        except redis.RedisError as error:
            raise self._refusal(shard, error) from error
        return parse_position(details["last-generated-id"].decode())

    def first_position(self, shard: int) -> tuple[int, int] | None:
        """Return epoch and sequence of the first entry that the shard's journal still has; None if it has none."""
        try:
            found: Any = self._client.xrange(self._key(shard), min="(0-0", count=1)
        except redis.RedisError as error:
            raise self._refusal(shard, error) from error
        return parse_position(found[0][0].decode()) if found else None

    def read(self, shard: int, *, after: str = "0-0") -> Iterator[tuple[str, Record, int]]:
        """Yield the entries of a shard's journal after an id, oldest first, each with its id and its size in bytes."""
        start = f"({after}"
        while True:
            try:
                page: Any = self._client.xrange(self._key(shard), min=start, count=_PAGE_LENGTH)
            except redis.RedisError as error:
                raise self._refusal(shard, error) from error
            for entry_id, fields in page:
                if fields[_FIELD]:
                    yield entry_id.decode(), decode_record(fields[_FIELD]), len(fields[_FIELD])
            if len(page) < _PAGE_LENGTH:
                return
            start = f"({page[-1][0].decode()}"

    def append(self, records: Sequence[tuple[int, Record]]) -> list[int]:
        """Append records to the journals of their shards and return their sizes in bytes; all are on disk then.

        ShardFenced if another process has opened one of the shards since. After StoreError it is unknown which were
        kept: open the shards again and read what stands after the last record that is known to have been kept.
        """
        pipeline = self._client.pipeline(transaction=False)
        sizes: list[int] = []
        for shard, record in records:
            epoch, sequence = self._positions[shard]
            self._positions[shard] = epoch, sequence + 1
            encoded = _encode(record)
            sizes.append(len(encoded))
            pipeline.xadd(self._key(shard), {_FIELD: encoded}, id=f"{epoch}-{sequence + 1}")
        try:
            results = pipeline.execute(raise_on_error=False)
        except redis.RedisError as error:
            raise self._refusal(records[0][0], error) from error
        for (shard, _), result in zip(records, results, strict=True):
            if isinstance(result, redis.RedisError):
                raise self._refusal(shard, result) from result
        return sizes

    def position(self, shard: int) -> str:
        """Return the id of the last entry of a shard that this process has opened."""
        return position_text(self._positions[shard])

    def trim(self, shard: int, *, through: str) -> None:
        """Drop the entries before an id: a snapshot that is safely kept stands for them, and for that one.

        That one stays as the first: it tells whether a snapshot reaches the journal.
        """
        try:
            self._client.xtrim(self._key(shard), minid=through, approximate=False)
        except redis.RedisError as error:
            raise self._refusal(shard, error) from error

    def close(self) -> None:
        """Let go of the connection to Redis."""
        self._client.close()


def parse_position(text: str) -> tuple[int, int]:
    """Return epoch and sequence of an entry id."""
    epoch, sequence = text.split("-")
    return int(epoch), int(sequence)


def reaches(position: str, first: tuple[int, int] | None) -> bool:
    """Tell whether a journal whose first entry is `first` (None: it has none) goes on from a snapshot without a gap.

    `0-0` is the position of no snapshot at all.
    """
    epoch, sequence = parse_position(position)
    # Trimming leaves the entry that the snapshot speaks up to; older versions left the one after it as the first,
    # which may be the marker of the next epoch. A journal that was never trimmed begins with 1-0.
    return first is None or first <= (epoch, sequence + 1) or first == (epoch + 1, 0)


def position_text(position: tuple[int, int]) -> str:
    """Return an entry id as it is written."""
    epoch, sequence = position
    return f"{epoch}-{sequence}"
