"""Snapshots in an S3 service: written, read back, and nothing lost when the service breaks off in the middle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis

from actors.actor_settings import HostSettings
from actors.errors import LocationError, SnapshotsUnreadable, StoreError
from actors.journal import Journal
from actors.processes import wait_until
from actors.shard_actor import ShardHost
from actors.snapshots import SnapshotStore
from actors.store import RedisServer
from tests.integration.running_s3 import BUCKET, ENVIRONMENT, S3Server, running_s3
from twins.messages import Batch, Operation, Request

MEGABYTE = 1 << 20
# Arrow sends an object in parts of 10 MB: a snapshot of two or three of them has a middle to break off in.
THING_COUNT = 4_000
PAYLOAD_LENGTH = 6_000
NOTHING_DUE = 1 << 40


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[S3Server]:
    with running_s3(tmp_path) as server:
        yield server


class Host:
    """A shard host with one shard, and what it has accepted."""

    def __init__(self, store: RedisServer, location: str, log_file: Path, *, journal_bytes_max: int) -> None:
        self.host = ShardHost(lambda _: None)
        settings = HostSettings(
            0, (0,), 1, store.url, location, journal_bytes_max, str(log_file), is_predecessor_gone=True
        )
        self.host.open(msgspec.msgpack.encode(settings))
        self._sequence = 0

    def set_all(self, value: int) -> None:
        """Set the same value in all shadows: as much journal as snapshot."""
        body = msgspec.json.encode({"state": {"reported": {"x": value, "y": "y" * PAYLOAD_LENGTH}}})
        for first in range(0, THING_COUNT, 100):
            requests = [
                Request(Operation.SHADOW_UPDATE, f"lamp-{number}", body)
                for number in range(first, first + 100)
            ]
            self.submit(*requests)

    def submit(self, *requests: Request) -> None:
        self._sequence += 1
        batch = Batch("bridge", self._sequence, list(requests))
        self.host.submit(msgspec.msgpack.encode([(0, batch)]))

    def nudge(self) -> None:
        """Let the host look after its snapshots."""
        self.submit(Request(Operation.SHADOW_GET, "lamp-0", b""))

    def documents(self) -> list[Any]:
        return [self.host.shadow(f"lamp-{number}") | {"timestamp": 0} for number in range(THING_COUNT)]


def journal_start(store: RedisServer) -> tuple[int, int] | None:
    journal = Journal.at(store.url)
    try:
        return journal.first_position(0)
    finally:
        journal.close()


def test_snapshots_in_a_bucket_stand_for_the_journal(
    store: RedisServer, s3: S3Server, tmp_path: Path
) -> None:
    uri = s3.uri("some/snap%20shots")
    SnapshotStore(uri).claim("mine")
    host = Host(store, uri, tmp_path / "log", journal_bytes_max=16 * MEGABYTE)

    def is_trimmed() -> bool:
        host.nudge()
        return journal_start(store) != (1, 0)

    host.set_all(1)
    assert wait_until(lambda: len(s3.names("some/snap shots")) == 2, timeout_s=60)
    host.set_all(2)
    assert wait_until(is_trimmed, timeout_s=60)
    expected = host.documents()
    assert s3.names("some/snap shots")[0] == "platform.id"
    again = Host(store, uri, tmp_path / "log", journal_bytes_max=NOTHING_DUE)
    assert again.documents() == expected
    again.host.close()
    # Its journal is not whole any more, so it can't do without them.
    with pytest.raises(StoreError, match="the snapshots lie elsewhere; start with --snapshots"):
        Host(store, str(tmp_path / "empty"), tmp_path / "log", journal_bytes_max=NOTHING_DUE)
    host.host.close()


def test_a_service_that_breaks_off_during_a_snapshot_loses_nothing_of_what_it_has(
    store: RedisServer, s3: S3Server, tmp_path: Path
) -> None:
    uri = s3.uri("snapshots")
    host = Host(store, uri, tmp_path / "log", journal_bytes_max=NOTHING_DUE)
    host.set_all(1)
    host.host.close()
    before = s3.names("snapshots")
    assert len(before) == 1
    host = Host(store, uri, tmp_path / "log", journal_bytes_max=16 * MEGABYTE)
    broke = s3.cut_after(12 * MEGABYTE)
    host.set_all(2)
    assert broke.wait(60)
    # Requests go on meanwhile, and are kept.
    host.set_all(3)
    expected = host.documents()
    assert journal_start(store) == (1, 0)
    with pytest.raises(LocationError, match="cannot be listed"):
        SnapshotStore(uri).newest(0)
    s3.mend()
    assert s3.names("snapshots") == before
    again = Host(store, uri, tmp_path / "log", journal_bytes_max=NOTHING_DUE)
    assert again.documents() == expected
    for one in (again, host):
        one.host.close()


def test_a_service_that_is_killed_during_the_first_snapshot_loses_nothing(
    store: RedisServer, s3: S3Server, tmp_path: Path
) -> None:
    uri = s3.uri("snapshots")
    host = Host(store, uri, tmp_path / "log", journal_bytes_max=16 * MEGABYTE)
    killed = s3.kill_after(12 * MEGABYTE)
    host.set_all(1)
    assert killed.wait(60)
    host.set_all(2)
    expected = host.documents()
    s3.start()
    s3.mend()
    assert s3.names("snapshots") == []
    again = Host(store, uri, tmp_path / "log", journal_bytes_max=NOTHING_DUE)
    assert again.documents() == expected
    for one in (again, host):
        one.host.close()


def test_an_object_that_is_half_there_is_left_out(store: RedisServer, s3: S3Server, tmp_path: Path) -> None:
    uri = s3.uri("snapshots")
    host = Host(store, uri, tmp_path / "log", journal_bytes_max=NOTHING_DUE)
    host.submit(Request(Operation.SHADOW_UPDATE, "lamp", b'{"state":{"reported":{"x":1}}}'))
    host.host.close()
    (name,) = s3.names("snapshots")
    content = s3.client().get_object(Bucket=BUCKET, Key=f"snapshots/{name}")["Body"].read()
    s3.client().put_object(
        Bucket=BUCKET, Key="snapshots/shard-0.1-9.snapshot", Body=content[: len(content) // 2]
    )
    found = SnapshotStore(uri).newest(0)
    assert found is not None
    assert found[1] == "1-1"
    assert s3.names("snapshots") == [name]


def test_a_first_snapshot_that_is_damaged_is_done_without_while_the_journal_is_whole(
    store: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    location = tmp_path / "snapshots"
    host = Host(store, str(location), tmp_path / "log", journal_bytes_max=NOTHING_DUE)
    for number in range(3):
        body = b'{"state":{"reported":{"x":%d}}}' % number
        host.submit(Request(Operation.SHADOW_UPDATE, "lamp", body))
    host.host.close()
    (file,) = location.glob("shard-*")
    file.write_bytes(file.read_bytes()[:-1])
    again = Host(store, str(location), tmp_path / "log", journal_bytes_max=NOTHING_DUE)
    assert again.host.shadow("lamp")["state"]["reported"] == {"x": 2}
    assert "shard 0 is read from its whole journal" in caplog.text
    assert not file.exists()
    again.host.close()
    # With a part of the journal gone there is no doing without.
    (file,) = location.glob("shard-*")
    file.write_bytes(b"")
    redis.Redis.from_url(store.url).xtrim("twinfleet:journal:0", minid="1-2", approximate=False)
    with pytest.raises(SnapshotsUnreadable, match="no snapshot of shard 0 can be read"):
        Host(store, str(location), tmp_path / "log", journal_bytes_max=NOTHING_DUE)
    assert file.exists()


def test_a_bucket_that_is_not_there_is_refused_at_once(s3: S3Server) -> None:
    store = SnapshotStore(s3.uri("snapshots").replace(BUCKET, "elsewhere"))
    with pytest.raises(LocationError, match=r"s3://elsewhere/snapshots: .*bucket does not exist"):
        store.claim("mine")


def test_a_snapshot_whose_journal_was_cut_off_before_it_is_refused(
    store: RedisServer, tmp_path: Path
) -> None:
    location = str(tmp_path / "snapshots")
    host = Host(store, location, tmp_path / "log", journal_bytes_max=NOTHING_DUE)
    update = Request(Operation.SHADOW_UPDATE, "lamp", b'{"state":{"reported":{"x":1}}}')
    for _ in range(5):
        host.submit(update)
    client = redis.Redis.from_url(store.url)
    client.xtrim("twinfleet:journal:0", minid="1-3", approximate=False)
    with pytest.raises(StoreError, match=r"begins at 1-3, after its newest snapshot \(0-0\)"):
        Host(store, location, tmp_path / "log", journal_bytes_max=NOTHING_DUE)
