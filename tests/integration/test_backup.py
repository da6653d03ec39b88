"""Backups of a platform's store, shards, registry and files: made while it is written to, checked, and restored."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from actors.backup.content import Summary
from actors.backup.create import create_backup
from actors.backup.restore import restore_backup
from actors.backup.verify import opened_backup, verify_backup
from actors.errors import (
    BackupRefused,
    BackupUnusable,
    DataDirectoryBusy,
    LocationError,
    SettingsError,
    SnapshotGone,
    VaultError,
)
from actors.journal import Journal, parse_position
from actors.pki import CertificateAuthority
from actors.processes import wait_until
from actors.registry.registry import Registry
from actors.settings import DataDirectory, Endpoints
from actors.vault import read_or_create_key
from tests.integration.backup_stage import NOW_S, SHARD_COUNT, Busy, Stage, stage_on
from tests.integration.running_s3 import BUCKET, ENVIRONMENT, running_s3
from twins.clock import VirtualClock

NAMES = [f"lamp-{number}" for number in range(12)]
DEADLINE_S = 60.0
MEGABYTE = 1 << 20


def told(_what: str, _done: int, _total: int | None) -> None:
    """Hear of the progress."""


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with stage_on(tmp_path / "data") as made:
        for number, name in enumerate(NAMES):
            made.report(name, {"x": 0, "temperature": 20.5, "deep": {"a": [number, "x", 1 << 80]}})
        yield made


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return tmp_path / "backup.key"


def create(stage: Stage, out: Path | str, key_file: Path) -> Summary:
    return create_backup(stage.settings, str(out), key_file=key_file, version="0.1", progress=told)


def verify(backup: Path | str, key_file: Path) -> Summary:
    return verify_backup(str(backup), key_file=key_file, progress=told)


def restore(backup: Path | str, data_dir: Path, key_file: Path) -> Stage:
    """Restore a backup and start what it is of."""
    restore_backup(str(backup), data_dir, key_file=key_file, progress=told)
    return Stage(data_dir)


def epochs(stage: Stage) -> list[int]:
    journal = Journal.at(stage.store.url)
    try:
        return [journal.last_position(number)[0] for number in range(SHARD_COUNT)]
    finally:
        journal.close()


def everything(url: str) -> dict[bytes, Any]:
    """Return all keys with their content, as one who does not know the code of backups reads them."""
    client: Any = redis.Redis.from_url(url)
    read: dict[bytes, Callable[[bytes], Any]] = {
        b"string": client.get,
        b"hash": client.hgetall,
        b"set": client.smembers,
        b"list": lambda key: client.lrange(key, 0, -1),
        b"zset": lambda key: client.zrange(key, 0, -1, withscores=True),
        b"stream": lambda key: (client.xrange(key), client.xinfo_stream(key)["last-generated-id"]),
    }
    with client:
        return {key: (client.pttl(key) > 0, read[client.type(key)](key)) for key in client.scan_iter()}


def test_all_of_a_stopped_platform_comes_back(stage: Stage, tmp_path: Path, key_file: Path) -> None:
    asyncio.run(stage.register("lamp-0", "lamp-1"))
    documents = stage.documents(NAMES)
    (stage.directory.settings_file).write_text("api_port: 0\nsnapshot_location: snapshots\n")
    client = redis.Redis.from_url(stage.store.url)
    client.rpush("twinfleet:list", "a", "b")
    client.sadd("twinfleet:set", *(str(number) for number in range(2500)))
    client.zadd("twinfleet:zset", {"low": -1.5, "high": float("inf"), "precise": 0.1})
    client.hset("twinfleet:hash", mapping={"bytes": b"\xff\x00", "": ""})
    client.set("twinfleet:passing", "soon", px=3_600_000)
    client.xadd("twinfleet:trimmed", {"a": "b"}, id="7-9")
    client.xtrim("twinfleet:trimmed", maxlen=0, approximate=False)
    content = everything(stage.store.url)
    client.set("twinfleet:placement", "of this machine")
    before = epochs(stage)
    client.close()
    stage.host = type(stage.host)(lambda _: None)  # it just dies: everything is in the journal
    stage.stop()

    made = create(stage, tmp_path / "b", key_file)
    assert verify(tmp_path / "b", key_file) == made
    assert made.records == {"thing": 2, "certificate": 2}
    assert key_file.stat().st_mode & 0o777 == 0o600

    data_dir = tmp_path / "restored"
    assert restore_backup(str(tmp_path / "b"), data_dir, key_file=key_file, progress=told) == made
    assert (data_dir / "settings.yaml").read_text() == "api_port: 0\n"
    again = Stage(data_dir)
    try:
        # The shards have been opened since.
        found = {key: value for key, value in everything(again.store.url).items() if b"journal" not in key}
        assert found == {key: value for key, value in content.items() if b"journal" not in key}
        assert again.documents(NAMES) == documents
        assert [epoch - 1 for epoch in epochs(again)] == before
        assert again.token == stage.token
        authority = CertificateAuthority.open_or_create(again.directory.pki)
        assert authority.certificate_pem() == stage.authority.certificate_pem()
        again.report("lamp-0", {"x": 1})
        (document,) = again.documents(["lamp-0"])
        assert document["version"] == documents[0]["version"] + 1
    finally:
        again.stop()


def test_a_backup_of_a_platform_that_is_written_to_is_one_instant_of_it(
    stage: Stage, tmp_path: Path, key_file: Path
) -> None:
    stage.open_shards(journal_bytes_max=20_000)
    with Busy(stage, NAMES) as busy:
        assert wait_until(lambda: busy.round_count > 20, timeout_s=DEADLINE_S)
        before = busy.round_count
        create(stage, tmp_path / "b", key_file)
        after = busy.round_count
    verify(tmp_path / "b", key_file)
    again = restore(tmp_path / "b", tmp_path / "restored", key_file)
    try:
        values = [document["state"]["reported"]["x"] for document in again.documents([*NAMES, "count"])]
        names = asyncio.run(registered_names(again))
    finally:
        again.stop()
    assert names == [f"new-{number:05d}" for number in range(1, len(names) + 1)]
    # In the order in which they come to be.
    numbers = [*values[:-1], len(names), values[-1]]
    assert before <= numbers[-1]
    assert numbers[0] <= after + 1
    assert numbers == sorted(numbers, reverse=True)
    assert numbers[0] - numbers[-1] <= 1


async def registered_names(stage: Stage) -> list[str]:
    """Return the names of all things whose records and certificates are whole."""
    registry = await Registry.open(stage.store.url, VirtualClock(NOW_S))
    try:
        page = await registry.things.page(limit=10_000)
        for thing in page.things:
            assert len(await registry.certificates.of_thing(thing)) == 1
        assert await registry.things.count() == len(page.things)
        return [thing.name for thing in page.things]
    finally:
        await registry.close()


def test_a_restored_platform_goes_on_from_snapshot_and_journal(
    stage: Stage, tmp_path: Path, key_file: Path
) -> None:
    stage.host.close()
    stage.open_shards()
    stage.report(NAMES[0], {"x": 5})
    summary = create(stage, tmp_path / "b", key_file)
    assert all(shard.snapshot is not None for shard in summary.shards if shard.twin_count)
    assert sum(shard.twin_count for shard in summary.shards) == len(NAMES)
    documents = stage.documents(NAMES)
    again = restore(tmp_path / "b", tmp_path / "restored", key_file)
    try:
        assert again.documents(NAMES) == documents
    finally:
        again.stop()


def test_a_damaged_snapshot_is_not_what_a_backup_relies_on(
    stage: Stage, tmp_path: Path, key_file: Path
) -> None:
    for value in (1, 2):
        stage.host.close()
        stage.open_shards()
        for name in NAMES:
            stage.report(name, {"x": value})
    stage.host.close()
    used = {number for number in range(SHARD_COUNT) if stage_positions(stage, number)}
    for number in used:
        file = stage.directory.snapshots / f"shard-{number}.{stage_positions(stage, number)[0]}.snapshot"
        file.write_bytes(file.read_bytes()[:-1])
    summary = create(stage, tmp_path / "b", key_file)
    for number in used:
        assert summary.shards[number].snapshot == stage_positions(stage, number)[1]
    for file in stage.directory.snapshots.glob("*.snapshot"):
        file.unlink()
    # The journals were never trimmed: they stand for everything.
    assert {shard.snapshot for shard in create(stage, tmp_path / "c", key_file).shards} == {None}
    client = redis.Redis.from_url(stage.store.url)
    client.xtrim(f"twinfleet:journal:{min(used)}", minid="2-0", approximate=False)
    client.close()
    with pytest.raises(SnapshotGone):
        create(stage, tmp_path / "d", key_file)
    assert not (tmp_path / "d").exists()


def stage_positions(stage: Stage, number: int) -> list[str]:
    names = [file.name for file in stage.directory.snapshots.glob(f"shard-{number}.*.snapshot")]
    return sorted((name.split(".")[1] for name in names), key=parse_position, reverse=True)


def test_what_was_changed_or_cut_off_is_refused(stage: Stage, tmp_path: Path, key_file: Path) -> None:
    create(stage, tmp_path / "b", key_file)
    content = (tmp_path / "b").read_bytes()
    changed = tmp_path / "changed"
    for position in range(0, len(content), max(1, len(content) // 30)):
        changed.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises((BackupUnusable, VaultError)):
            verify(changed, key_file)
        changed.write_bytes(content[:position])
        with pytest.raises(BackupUnusable):
            verify(changed, key_file)
    data_dir = tmp_path / "restored"
    with pytest.raises(BackupUnusable):
        restore_backup(str(changed), data_dir, key_file=key_file, progress=told)
    assert list(data_dir.iterdir()) == []


def test_the_key_is_the_operators_own(stage: Stage, tmp_path: Path, key_file: Path) -> None:
    create(stage, tmp_path / "b", key_file)
    with opened_backup(str(tmp_path / "b"), key_file, told) as (records, _):
        held = b"".join(repr(record).encode() for record in records)
    assert stage.directory.key_file.read_text().strip().encode() in held
    assert key_file.read_text().strip().encode() not in held
    other = tmp_path / "other.key"
    read_or_create_key(other)
    with pytest.raises(VaultError, match="is not the key under which"):
        verify(tmp_path / "b", other)
    with pytest.raises(VaultError, match="cannot be used"):
        verify(tmp_path / "b", tmp_path / "none.key")
    assert not (tmp_path / "none.key").exists()
    with pytest.raises(BackupRefused, match="the platform's own key"):
        create(stage, tmp_path / "c", stage.directory.key_file)
    assert not (tmp_path / "c").exists()


def test_nothing_is_overwritten(stage: Stage, tmp_path: Path, key_file: Path) -> None:
    create(stage, tmp_path / "b", key_file)
    with pytest.raises(BackupRefused, match="is there already"):
        create(stage, tmp_path / "b", key_file)
    with pytest.raises(BackupRefused, match="is not empty"):
        restore_backup(str(tmp_path / "b"), stage.directory.path, key_file=key_file, progress=told)
    with pytest.raises(LocationError, match="cannot be written"):
        create(stage, tmp_path / "none" / "b", key_file)
    with pytest.raises(BackupRefused, match="holds no platform"):
        create_backup(
            type(stage.settings).load(tmp_path / "none", {}),
            str(tmp_path / "c"),
            key_file=key_file,
            version="0",
            progress=told,
        )


def test_a_platform_that_is_just_starting_is_left_alone(stage: Stage, tmp_path: Path, key_file: Path) -> None:
    Endpoints.remove(stage.directory.path)
    with stage.directory.lock(), pytest.raises(DataDirectoryBusy):
        create(stage, tmp_path / "b", key_file)


def fill(stage: Stage) -> None:
    """Put so much into the store that a backup takes a while."""
    with redis.Redis.from_url(stage.store.url) as client:
        for number in range(200):
            client.set(f"twinfleet:large:{number}", b"x" * MEGABYTE)


def test_a_directory_that_was_not_restored_to_its_end_is_not_started(
    stage: Stage, tmp_path: Path, key_file: Path
) -> None:
    fill(stage)
    create(stage, tmp_path / "b", key_file)
    data_dir = tmp_path / "restored"
    command = [sys.executable, "-m", "twinfleet", "backup", "restore", str(tmp_path / "b")]
    with subprocess.Popen([*command, "--key-file", str(key_file), "--data-dir", str(data_dir)]) as process:

        def is_half_restored() -> bool:
            return any(file.stat().st_size > 5 * MEGABYTE for file in data_dir.glob("redis/*/*"))

        assert wait_until(is_half_restored, timeout_s=DEADLINE_S)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    with pytest.raises(SettingsError, match="not restored to its end"):
        DataDirectory(data_dir).prepare()
    with pytest.raises(BackupRefused, match="is not empty"):
        restore_backup(str(tmp_path / "b"), data_dir, key_file=key_file, progress=told)


def test_a_backup_that_is_killed_leaves_none(stage: Stage, tmp_path: Path, key_file: Path) -> None:
    fill(stage)
    out = tmp_path / "out" / "b"
    out.parent.mkdir()
    command = [sys.executable, "-m", "twinfleet", "backup", "create", "--data-dir", str(stage.directory.path)]
    with subprocess.Popen([*command, "--out", str(out), "--key-file", str(key_file)]) as process:

        def is_half_written() -> bool:
            return any(file.stat().st_size > 5 * MEGABYTE for file in out.parent.iterdir())

        assert wait_until(is_half_written, timeout_s=DEADLINE_S)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    (half,) = out.parent.iterdir()
    with pytest.raises(BackupUnusable, match="cut off"):
        verify(half, key_file)


def test_a_backup_in_a_bucket_is_made_checked_and_restored(
    stage: Stage, tmp_path: Path, key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    documents = stage.documents(NAMES)
    with running_s3(tmp_path) as s3:
        backup = s3.uri("backups/monday")
        made = create(stage, backup, key_file)
        assert s3.names("backups") == ["monday"]
        assert verify(backup, key_file) == made
        again = restore(backup, tmp_path / "restored", key_file)
        try:
            assert again.documents(NAMES) == documents
        finally:
            again.stop()
        content = s3.client().get_object(Bucket=BUCKET, Key="backups/monday")["Body"].read()
        s3.client().put_object(Bucket=BUCKET, Key="backups/half", Body=content[: len(content) // 2])
        with pytest.raises(BackupUnusable):
            verify(s3.uri("backups/half"), key_file)
        with pytest.raises(BackupRefused, match=re.escape(f"s3://{BUCKET}/backups/monday")):
            create(stage, backup, key_file)
        with pytest.raises(LocationError, match="missing"):
            verify(s3.uri("backups/missing"), key_file)
