"""The records of a backup: what comes out again, and what does not fit together."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from actors.backup.cipher import CHUNK_BYTES, SealedReader, SealedWriter
from actors.backup.content import Content, Summary
from actors.backup.records import (
    FORMAT,
    End,
    Entries,
    FilePart,
    Head,
    Members,
    Record,
    RecordWriter,
    SnapshotPart,
    StreamEnd,
    Text,
    read_records,
)
from actors.errors import BackupUnusable
from actors.journal import Applied
from actors.settings import DATA_FORMAT
from twins.messages import Batch, Operation, Request
from twins.shard import Shard
from twins.snapshot import dump_shard

KEY = bytes(range(32))
HEAD = Head(FORMAT, "0.1", DATA_FORMAT, 1_760_000_000.5, 2)
NEEDED = [FilePart(path, b"x", is_last=True) for path in ("vault.key", "pki/ca.pem", "pki/ca.key")]
JOURNAL = b"twinfleet:journal:0"
RECORD = msgspec.msgpack.encode(Applied(1.0, Batch("b", 1, [Request(Operation.SHADOW_GET, "lamp", b"")])))
SNAPSHOT = dump_shard(Shard(0, 2))


def written(records: Sequence[Record], *, is_ended: bool = True) -> bytes:
    stream = io.BytesIO()
    sealed = SealedWriter(stream, KEY)
    writer = RecordWriter(sealed)
    for record in records:
        writer.write(record)
    if is_ended:
        writer.end()
    else:
        sealed.finish()
    return stream.getvalue()


def read(content: bytes) -> list[Record]:
    reader = SealedReader(io.BytesIO(content), KEY, key_file=Path("k"), name="b")
    return list(read_records(reader, name="b"))


def checked(*records: Record) -> Summary:
    content = Content("b")
    for record in (HEAD, *NEEDED, *records):
        content.take(record)
    return content.finish()


def entries(*ids: str, value: bytes = RECORD) -> Entries:
    return Entries(JOURNAL, [(each, [b"r", value]) for each in ids])


def test_records_come_out_as_they_went_in() -> None:
    records: list[Record] = [
        HEAD,
        FilePart("pki/ca.pem", b"\x00" * (CHUNK_BYTES + 5), is_last=True),
        SnapshotPart(1, "3-7", b"part", is_last=False),
        Text(b"\xff", b"", 17),
        Text(b"key", b"value"),
        Members(b"set", "set", [b"a", b"b"]),
        Entries(JOURNAL, [("1-0", [b"r", b""])]),
        StreamEnd(JOURNAL, "1-0"),
    ]
    assert read(written(records)) == records


def test_a_backup_without_its_end_is_refused() -> None:
    with pytest.raises(BackupUnusable, match="does not know"):
        read(written([HEAD], is_ended=False))


def test_a_record_too_few_or_too_many_is_noticed() -> None:
    with pytest.raises(BackupUnusable, match="ends after 1 records, and should after 2"):
        read(written([HEAD, End(2)]))
    with pytest.raises(BackupUnusable, match="ends after 1 records"):
        read(written([HEAD, End(1)]))


def test_a_snapshot_and_the_journal_after_it_fit() -> None:
    summary = checked(
        SnapshotPart(0, "2-5", SNAPSHOT[:100], is_last=False),
        SnapshotPart(0, "2-5", SNAPSHOT[100:], is_last=True),
        Text(b"twinfleet:registry:thing:a:b", b"{}"),
        Members(b"twinfleet:registry:things", "zset", [b"a:b", b"0.0"]),
        entries("2-5", "2-6"),
        entries("3-0", value=b""),
        entries("3-1"),
        StreamEnd(JOURNAL, "3-4"),
        StreamEnd(b"twinfleet:registry", "9-1"),
    )
    shard = summary.shards[0]
    assert (shard.snapshot, shard.twin_count, shard.first, shard.last, shard.entry_count) == (
        "2-5",
        0,
        "2-5",
        "3-4",
        3,
    )
    assert summary.registry_position == "9-1"
    assert summary.records == {"thing": 1}
    assert summary.key_count == 4


UNFIT: list[tuple[list[Record], str]] = [
    ([entries("1-0", "1-2", "1-1")], "entry 1-1 of the journal of shard 0 is out of order"),
    ([entries("1-0", "1-0")], "out of order"),
    ([entries("1-0", value=b"\x93")], "entry 1-0 of the journal of shard 0"),
    (
        [entries("2-3"), StreamEnd(JOURNAL, "2-3")],
        r"journal of shard 0 \(2-3 to 2-3\) does not fit snapshot 0-0",
    ),
    ([entries("1-0", "1-1"), StreamEnd(JOURNAL, "1-0")], "does not fit"),
    ([SnapshotPart(0, "2-5", SNAPSHOT, is_last=True)], "does not fit snapshot 2-5"),
    ([SnapshotPart(0, "2-5", SNAPSHOT[:-1], is_last=True)], "snapshot 2-5 of shard 0: .*damaged"),
    ([SnapshotPart(1, "2-5", SNAPSHOT, is_last=True)], "is one of shard 0"),
    ([SnapshotPart(2, "2-5", SNAPSHOT, is_last=True)], "holds shard 2 of 2"),
    ([Entries(b"twinfleet:journal:7", [("1-0", [b"r", b""])])], "holds shard 7 of 2"),
    ([Text(b"twinfleet:shards", b"3")], "number of shards"),
    ([FilePart("pki/../lock", b"", is_last=True)], "has no place"),
    ([FilePart("pki/..", b"", is_last=True)], "has no place"),
    ([FilePart("/etc/passwd", b"", is_last=True)], "has no place"),
    ([FilePart("lock", b"", is_last=True)], "has no place"),
]


@pytest.mark.parametrize(("records", "said"), UNFIT)
def test_what_does_not_fit_together_is_refused(records: list[Record], said: str) -> None:
    with pytest.raises(BackupUnusable, match=said):
        checked(*records)


def test_a_backup_of_another_form_is_refused() -> None:
    for head in (msgspec.structs.replace(HEAD, format=9), msgspec.structs.replace(HEAD, data_format=9)):
        with pytest.raises(BackupUnusable, match=r"was made by twinfleet 0\.1"):
            Content("b").take(head)
    with pytest.raises(BackupUnusable, match="does not begin with its head"):
        Content("b").take(Text(b"a", b"b"))


def test_a_backup_without_what_devices_need_is_refused() -> None:
    content = Content("b")
    content.take(HEAD)
    with pytest.raises(BackupUnusable, match=r"lacks pki/ca\.pem, pki/ca\.key, vault\.key"):
        content.finish()
