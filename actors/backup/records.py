"""What stands in a backup, in which order, and how it is written: frames of one record each, none of them large.

First `Head`; then files and snapshots in parts, each whole before the next begins; then keys of the store, long ones in
parts; last `End`, which counts them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from actors.backup.cipher import SealedReader, SealedWriter
from actors.errors import BackupUnusable

FORMAT: Final = 1
# Parts of files and snapshots; with it, the memory that a backup takes does not grow with what it holds.
PART_BYTES: Final = 1 << 20
_LENGTH_BYTES: Final = 4


class Head(msgspec.Struct, frozen=True, array_like=True, tag="head"):
    """What the backup is of; `cut_s` is the time of the cut in seconds since the Unix epoch."""

    format: int
    twinfleet_version: str
    data_format: int
    cut_s: float
    shard_count: int


class FilePart(msgspec.Struct, frozen=True, array_like=True, tag="file"):
    """The next bytes of a file of the data directory; `path` is relative to it."""

    path: str
    content: bytes
    is_last: bool


class SnapshotPart(msgspec.Struct, frozen=True, array_like=True, tag="snapshot"):
    """The next bytes of the snapshot of a shard at a position of its journal."""

    shard: int
    position: str
    content: bytes
    is_last: bool


class Text(msgspec.Struct, frozen=True, array_like=True, tag="text"):
    """A key with one value; `expires_at_ms` is since the Unix epoch, None if it does not expire."""

    key: bytes
    value: bytes
    expires_at_ms: int | None = None


class Members(msgspec.Struct, frozen=True, array_like=True, tag="members"):
    """Some members of a key that has many: of a set, a list, a hash (names and values) or a sorted set (and scores)."""

    key: bytes
    kind: str
    members: list[bytes]
    expires_at_ms: int | None = None


class Entries(msgspec.Struct, frozen=True, array_like=True, tag="entries"):
    """Some entries of a stream, in their order, each with its id, and its names and values in turn."""

    key: bytes
    entries: list[tuple[str, list[bytes]]]


class StreamEnd(msgspec.Struct, frozen=True, array_like=True, tag="stream end"):
    """The end of a stream: the last id that it has ever had, which need not be one of an entry that it still has."""

    key: bytes
    last_id: str


class End(msgspec.Struct, frozen=True, array_like=True, tag="end"):
    """The end of the backup; `record_count` does not count it."""

    record_count: int


Record = Head | FilePart | SnapshotPart | Text | Members | Entries | StreamEnd | End
_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Record).decode


class RecordWriter:
    """Writes records; `end` comes last."""

    def __init__(self, writer: SealedWriter) -> None:
        self._writer = writer
        self._count = 0

    def write(self, record: Record) -> None:
        """Add a record."""
        encoded = _encode(record)
        self._writer.write(len(encoded).to_bytes(_LENGTH_BYTES, "little"))
        self._writer.write(encoded)
        self._count += 1

    def end(self) -> None:
        """Write the end."""
        self.write(End(self._count))
        self._writer.finish()


def read_records(reader: SealedReader, *, name: str) -> Iterator[Record]:
    """Yield the records of the backup of that name but for its end; BackupUnusable if one is missing or unknown."""
    count = 0
    while True:
        length = int.from_bytes(reader.read(_LENGTH_BYTES), "little")
        try:
            record = _decode(reader.read(length))
        except msgspec.DecodeError as error:
            raise BackupUnusable(
                name, f"holds what this version of twinfleet does not know: {error}"
            ) from None
        if isinstance(record, End):
            if record.record_count != count or reader.read(1):
                raise BackupUnusable(
                    name, f"ends after {count} records, and should after {record.record_count}"
                )
            return
        count += 1
        yield record
