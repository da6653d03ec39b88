"""Which snapshot is used, which are kept, and what is refused."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from actors.errors import LocationError
from actors.processes import wait_until
from actors.snapshots import BackgroundWriter, SnapshotStore
from twins.messages import Batch, Operation, Request
from twins.shard import Shard
from twins.snapshot import dump_shard
from twins.snapshot_head import FORMAT_VERSION

# Magic text, checksum: then comes the version of the format.
CHECKSUM_AT, VERSION_AT = 16, 48


def shard_at(version: int) -> Shard:
    """Return a shard in which lamp's shadow has a version."""
    shard = Shard(0, 4)
    for number in range(version):
        body = b'{"state":{"reported":{"x":%d}}}' % number
        shard.apply(Batch("bridge", number + 1, [Request(Operation.SHADOW_UPDATE, "lamp", body)]), 1.0)
    return shard


def used(store: SnapshotStore) -> str:
    found = store.newest(0)
    assert found is not None
    return found[1]


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def names(directory: Path) -> list[str]:
    return sorted(file.name for file in directory.iterdir())


def test_the_newest_snapshot_by_its_position_is_used_and_the_last_two_are_kept(tmp_path: Path) -> None:
    store = SnapshotStore(str(tmp_path))
    for position in ("1-2", "1-10", "2-1"):
        store.write(shard_at(1), position)
    (tmp_path / "shard-0.notes").touch()
    store.write(Shard(1, 4), "9-9")
    assert used(store) == "2-1"
    assert names(tmp_path) == [
        "shard-0.1-10.snapshot",
        "shard-0.2-1.snapshot",
        "shard-0.notes",
        "shard-1.9-9.snapshot",
    ]
    store.write(shard_at(1), "2-2", is_only=True)
    assert names(tmp_path)[0] == "shard-0.2-2.snapshot"
    assert store.newest(2) is None


@pytest.mark.parametrize("damage", [flip, cut, empty])
def test_a_damaged_snapshot_is_left_out_and_the_one_before_it_is_used(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    store = SnapshotStore(str(tmp_path))
    store.write(shard_at(1), "1-1")
    store.write(shard_at(2), "1-2")
    damage(tmp_path / "shard-0.1-2.snapshot")
    assert used(store) == "1-1"
    # It must not stand by for the next one.
    store.keep(0, "1-3", dump_shard(shard_at(3)))
    assert store.second_newest_position(0) == "1-1"


def test_damaged_snapshots_alone_are_refused_and_stay(tmp_path: Path) -> None:
    store = SnapshotStore(str(tmp_path))
    store.write(shard_at(1), "1-1")
    store.write(shard_at(2), "1-2")
    for file in tmp_path.iterdir():
        cut(file)
    with pytest.raises(LocationError, match="no snapshot of shard 0 can be read") as refusal:
        store.newest(0)
    assert not refusal.value.retryable
    assert len(names(tmp_path)) == 2


def test_a_snapshot_of_a_newer_version_is_refused_though_an_older_one_is_there(tmp_path: Path) -> None:
    store = SnapshotStore(str(tmp_path))
    store.write(shard_at(1), "1-1")
    store.write(shard_at(2), "1-2")
    file = tmp_path / "shard-0.1-2.snapshot"
    content = file.read_bytes()
    rest = (FORMAT_VERSION + 1).to_bytes(4, "little") + content[VERSION_AT + 4 :]
    file.write_bytes(content[:CHECKSUM_AT] + hashlib.sha256(rest).digest() + rest)
    with pytest.raises(LocationError, match=r"shard-0\.1-2\.snapshot: .*a newer version.*start the version"):
        store.newest(0)


def test_a_place_belongs_to_the_platform_that_came_first(tmp_path: Path) -> None:
    store = SnapshotStore(str(tmp_path))
    store.claim("mine")
    (tmp_path / ".shard-0.1-1.snapshot.half").touch()
    store.claim("mine")
    assert names(tmp_path) == ["platform.id"]
    with pytest.raises(LocationError, match="belongs to another platform"):
        store.claim("yours")


def test_one_snapshot_is_written_at_a_time_as_the_shard_was_when_it_began(tmp_path: Path) -> None:
    may_write = threading.Event()

    class SlowStore(SnapshotStore):
        def keep(self, shard: int, position: str, content: bytes, *, kept_count: int = 2) -> None:
            may_write.wait()
            super().keep(shard, position, content, kept_count=kept_count)

    store = SlowStore(str(tmp_path))
    writer = BackgroundWriter(store)
    shard = shard_at(1)
    results: list[tuple[int, str | None]] = []

    def has_result() -> bool:
        result = writer.take_result()
        results.extend([result] if result else [])
        return result is not None

    writer.begin(shard, "1-1")
    shard.apply(Batch("bridge", 9, [Request(Operation.SHADOW_UPDATE, "lamp", b'{"state":{}}')]), 1.0)
    assert writer.is_busy
    assert writer.take_result() is None
    may_write.set()
    assert wait_until(has_result, timeout_s=10)
    writer.begin(shard, "1-2")
    assert wait_until(has_result, timeout_s=10)
    assert results == [(0, None), (0, "1-1")]
    assert (tmp_path / "shard-0.1-1.snapshot").read_bytes() == dump_shard(shard_at(1))
    writer.close()


def test_a_snapshot_that_cannot_be_written_is_told_once_and_the_next_is_tried(tmp_path: Path) -> None:
    directory = tmp_path / "away"
    store = SnapshotStore(str(directory))
    directory.rmdir()
    writer = BackgroundWriter(store)
    writer.begin(shard_at(1), "1-1")
    writer.close()
    with pytest.raises(LocationError, match="cannot be written"):
        writer.take_result()
    assert not writer.is_busy
    assert writer.take_result() is None
