"""What a backup holds, checked while it is read or written: one check for `create`, `verify` and `restore`."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Final

import msgspec

from actors.backup.records import (
    FORMAT,
    Entries,
    FilePart,
    Head,
    Members,
    Record,
    SnapshotPart,
    StreamEnd,
    Text,
)
from actors.errors import BackupUnusable
from actors.journal import decode_record, parse_position, position_text, reaches
from actors.settings import DATA_FORMAT
from twins.errors import SnapshotError
from twins.snapshot import load_shard

# Where files of a data directory stand in a backup: every one of them where it does in the directory.
VAULT_KEY: Final = "vault.key"
TOKEN: Final = "operator.token"
SETTINGS: Final = "settings.yaml"
RETAINED: Final = "mosquitto/mosquitto.db"
PKI: Final = "pki"
# Without these nothing can be served that was: devices would have to be given new certificates.
_NEEDED: Final = (f"{PKI}/ca.pem", f"{PKI}/ca.key", VAULT_KEY)
_KNOWN_FILES: Final = frozenset({VAULT_KEY, SETTINGS, RETAINED, TOKEN})
_JOURNAL: Final = re.compile(rb"twinfleet:journal:(\d+)")
_REGISTRY: Final = b"twinfleet:registry"
_REGISTRY_RECORD: Final = re.compile(rb"twinfleet:registry:([^:]+):.+", re.DOTALL)
_SHARDS: Final = b"twinfleet:shards"
_NO_SNAPSHOT: Final = "0-0"
_START: Final = (0, 0)


class ShardContent(msgspec.Struct):
    """What a backup has of a shard: its snapshot, up to a position, and its journal, from `first` to `last`."""

    snapshot: str | None = None
    twin_count: int = 0
    first: str | None = None
    last: str | None = None
    entry_count: int = 0


class Summary(msgspec.Struct):
    """What a backup holds; `records` counts the registry's by their kind."""

    twinfleet_version: str
    cut_s: float
    shards: list[ShardContent]
    registry_position: str | None = None
    records: dict[str, int] = {}
    key_count: int = 0
    files: list[str] = []


class Content:
    """Checks the records of one backup, in their order; BackupUnusable says what is wrong with the one of that name."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._summary: Summary | None = None
        self._parts: list[bytes] = []
        # By shard: the first and the last entry that its journal has, and the last that it ever had.
        self._bounds: dict[int, tuple[tuple[int, int], tuple[int, int]]] = {}
        self._last_ids: dict[int, tuple[int, int]] = {}
        self._last_key = b""

    def take(self, record: Record) -> bytes | None:
        """Check the next record; with the last part of a snapshot, return the snapshot."""
        if isinstance(record, Head):
            self._take_head(record)
        elif isinstance(record, FilePart):
            self._take_file(record)
        elif isinstance(record, SnapshotPart):
            return self._take_snapshot_part(record)
        elif isinstance(record, Text | Members | Entries | StreamEnd):
            self._take_key(record)
        return None

    def _take_head(self, head: Head) -> None:
        if head.format != FORMAT or head.data_format != DATA_FORMAT:
            problem = f"was made by twinfleet {head.twinfleet_version}, whose form this version does not read"
            raise self._unusable(problem)
        shards = [ShardContent() for _ in range(head.shard_count)]
        self._summary = Summary(head.twinfleet_version, head.cut_s, shards)

    def _take_file(self, part: FilePart) -> None:
        path = PurePosixPath(part.path)
        is_certificate = path.parent == PurePosixPath(PKI) and path.name not in {"", "..", "."}
        if part.path not in _KNOWN_FILES and not is_certificate:
            raise self._unusable(f"holds the file {part.path!r}, which has no place in a data directory")
        if part.is_last:
            self.summary.files.append(part.path)

    def _take_snapshot_part(self, part: SnapshotPart) -> bytes | None:
        self._parts.append(part.content)
        if not part.is_last:
            return None
        content, self._parts = b"".join(self._parts), []
        self.take_snapshot(part.shard, part.position, content)
        return content

    def take_snapshot(self, number: int, position: str, content: bytes) -> None:
        """Check a whole snapshot by loading it."""
        shard = self._shard(number)
        try:
            loaded = load_shard(content)
        except SnapshotError as error:
            raise self._unusable(f"snapshot {position} of shard {number}: {error}") from None
        if (loaded.number, loaded.count) != (number, len(self.summary.shards)):
            raise self._unusable(f"snapshot {position} of shard {number} is one of shard {loaded.number}")
        shard.snapshot, shard.twin_count = position, loaded.twin_count()

    def _take_key(self, record: Text | Members | Entries | StreamEnd) -> None:
        if record.key != self._last_key:
            self.summary.key_count += 1
            self._last_key = record.key
        if isinstance(record, Text):
            self._take_text(record)
        elif match := _JOURNAL.fullmatch(record.key):
            if isinstance(record, Entries):
                self._take_entries(int(match[1]), record)
            elif isinstance(record, StreamEnd):
                self._last_ids[int(match[1])] = parse_position(record.last_id)
        elif record.key == _REGISTRY and isinstance(record, StreamEnd):
            self.summary.registry_position = record.last_id

    def _take_text(self, record: Text) -> None:
        if record.key == _SHARDS and record.value != str(len(self.summary.shards)).encode():
            raise self._unusable("does not agree with itself about the number of shards")
        if match := _REGISTRY_RECORD.fullmatch(record.key):
            kind = match[1].decode(errors="replace")
            self.summary.records[kind] = self.summary.records.get(kind, 0) + 1

    def _take_entries(self, number: int, record: Entries) -> None:
        shard = self._shard(number)
        for entry_id, fields in record.entries:
            position = parse_position(entry_id)
            first, last = self._bounds.get(number, (position, _START))
            if position <= last:
                raise self._unusable(f"entry {entry_id} of the journal of shard {number} is out of order")
            self._bounds[number] = (first, position)
            encoded = fields[1] if len(fields) == 2 else b""
            if not encoded:
                # The beginning of an epoch.
                continue
            try:
                decode_record(encoded)
            except msgspec.DecodeError as error:
                raise self._unusable(f"entry {entry_id} of the journal of shard {number}: {error}") from None
            shard.entry_count += 1

    def finish(self) -> Summary:
        """Return what the backup holds, once all of it was taken."""
        for number, shard in enumerate(self.summary.shards):
            self._finish_shard(number, shard)
        missing = [path for path in _NEEDED if path not in self.summary.files]
        if missing:
            raise self._unusable(f"lacks {', '.join(missing)}")
        return self.summary

    def _finish_shard(self, number: int, shard: ShardContent) -> None:
        bounds, last_id = self._bounds.get(number), self._last_ids.get(number, _START)
        position = shard.snapshot or _NO_SNAPSHOT
        first, last = bounds or (None, _START)
        if last_id < max(last, parse_position(position)) or not reaches(position, first):
            journal = f"{position_text(first or last_id)} to {position_text(last_id)}"
            raise self._unusable(
                f"the journal of shard {number} ({journal}) does not fit snapshot {position}"
            )
        if first is not None:
            shard.first = position_text(first)
        if last_id != _START:
            shard.last = position_text(last_id)

    @property
    def summary(self) -> Summary:
        """What the backup holds, as far as it was taken; its head must have been."""
        if self._summary is None:
            raise self._unusable("does not begin with its head")
        return self._summary

    def _shard(self, number: int) -> ShardContent:
        if not 0 <= number < len(self.summary.shards):
            raise self._unusable(f"holds shard {number} of {len(self.summary.shards)}")
        return self.summary.shards[number]

    def _unusable(self, problem: str) -> BackupUnusable:
        return BackupUnusable(self._name, problem)
