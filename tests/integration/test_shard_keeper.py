"""What a shard host promises of its journal, with a real Redis that is stopped, full, or set back."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis

from actors import journal, shard_keeper
from actors.actor_settings import HostSettings
from actors.errors import ShardFenced, StoreError
from actors.shard_actor import ShardHost
from actors.store import RedisServer
from tests.running_store import running_store
from twins.messages import Batch, Operation, Outcome, Publish, Request, decode_outcome

MEGABYTE = 1 << 20


class Host:
    """A shard host on a store, with one shard unless told otherwise, and what it has announced."""

    def __init__(
        self,
        store: RedisServer,
        data_dir: Path,
        *,
        journal_bytes_max: int = 64 * MEGABYTE,
        shard_count: int = 1,
    ) -> None:
        self.announced: list[Publish] = []
        self.host = ShardHost(self.announced.extend)
        settings = HostSettings(
            0,
            tuple(range(shard_count)),
            shard_count,
            store.url,
            str(data_dir / "snapshots"),
            journal_bytes_max,
            str(data_dir / "host.log"),
        )
        self.host.open(msgspec.msgpack.encode(settings))
        self.sequence = 0

    def submit(self, *requests: Request, sequence: int | None = None, shard: int = 0) -> Outcome:
        self.sequence = self.sequence + 1 if sequence is None else sequence
        batch = Batch("bridge", self.sequence, list(requests))
        return decode_outcome(self.host.submit(msgspec.msgpack.encode([(shard, batch)])))


def update(thing_name: str, state: dict[str, Any], version: int | None = None) -> Request:
    body: dict[str, Any] = {"state": {"reported": state}}
    if version is not None:
        body["version"] = version
    return Request(Operation.SHADOW_UPDATE, thing_name, msgspec.json.encode(body))


def telemetry(thing_name: str, text: str) -> Request:
    return Request(Operation.TELEMETRY, thing_name, msgspec.json.encode({"text": text}), "log")


def reported(host: Host, thing_name: str) -> Any:
    return host.host.shadow(thing_name)["state"]["reported"]


def fill(host: Host) -> None:
    for number in range(1200):
        host.submit(telemetry("lamp", f"{number}" + "x" * 100_000))
        host.submit(update("lamp", {"x": number}))


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    # Redis is stopped on purpose: there is no need to wait for it for long.
    monkeypatch.setattr(journal, "_ANSWER_TIMEOUT_S", 0.3)


@pytest.mark.usefixtures("short_patience")
def test_an_append_whose_answer_was_lost_is_applied_where_the_journal_has_it(
    store: RedisServer, tmp_path: Path
) -> None:
    host = Host(store, tmp_path)
    host.submit(update("lamp", {"x": 0}))
    os.kill(store.pid, signal.SIGSTOP)
    try:
        with pytest.raises(StoreError) as refusal:
            host.submit(update("lamp", {"x": 1}, version=1))
        assert refusal.value.retryable
    finally:
        os.kill(store.pid, signal.SIGCONT)
    # Redis finds the request in its socket. Whoever comes next must see it done.
    rejected = host.submit(update("lamp", {"x": 2}, version=1), sequence=7)
    assert [message.topic.rsplit("/", 1)[1] for message in rejected.publishes] == ["rejected"]
    assert reported(host, "lamp") == {"x": 1}
    assert reported(Host(store, tmp_path), "lamp") == {"x": 1}


@pytest.mark.usefixtures("short_patience")
def test_a_batch_that_is_resent_after_a_lost_answer_is_applied_once(
    store: RedisServer, tmp_path: Path
) -> None:
    host = Host(store, tmp_path)
    os.kill(store.pid, signal.SIGSTOP)
    try:
        with pytest.raises(StoreError):
            host.submit(update("lamp", {"x": 1}), sequence=1)
    finally:
        os.kill(store.pid, signal.SIGCONT)
    again = host.submit(update("lamp", {"x": 1}), sequence=1)
    assert b'"version":1' in again.publishes[0].payload
    assert host.host.shadow("lamp")["version"] == 1
    assert Host(store, tmp_path).host.shadow("lamp")["version"] == 1


def test_a_host_whose_shard_was_taken_over_serves_no_change_any_more(
    store: RedisServer, tmp_path: Path
) -> None:
    old, new = Host(store, tmp_path), Host(store, tmp_path)
    with pytest.raises(ShardFenced):
        old.submit(update("lamp", {"x": 1}))
    new.submit(update("lamp", {"x": 2}))
    assert reported(Host(store, tmp_path), "lamp") == {"x": 2}


def test_a_long_journal_makes_way_for_snapshots_before_the_store_is_full(tmp_path: Path) -> None:
    with running_store(tmp_path / "data", memory_max_bytes=64 * MEGABYTE) as store:
        host = Host(store, tmp_path, journal_bytes_max=16 * MEGABYTE)
        # 120 MB through a store of 64.
        for number in range(1200):
            host.submit(telemetry("lamp", f"{number}" + "x" * 100_000))
        host.submit(update("lamp", {"x": 1}))
        assert reported(Host(store, tmp_path), "lamp") == {"x": 1}


def journal_lengths(store: RedisServer, shard_count: int) -> list[int]:
    """Return how many entries each shard's journal has."""
    client = redis.Redis.from_url(store.url)
    return [int(client.xlen(f"twinfleet:journal:{shard}")) for shard in range(shard_count)]


def test_what_all_shards_together_take_to_read_back_is_bounded(
    store: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(store, tmp_path, shard_count=4)
    for number in range(40):
        host.submit(update("lamp", {"x": number}), shard=number % 4)
    assert not list((tmp_path / "snapshots").iterdir())
    assert journal_lengths(store, 4) == [11] * 4
    # From now on everything takes too long, and a snapshot is due after every batch.
    monkeypatch.setattr(shard_keeper, "REPLAY_S_MAX", 0.0)
    monkeypatch.setattr(shard_keeper, "_SNAPSHOT_SHARE_MAX", float("inf"))
    for number in range(40):
        host.submit(update("lamp", {"x": number}), shard=number % 4)
    # What the snapshot before the newest stands for is gone; the tail is what came after it.
    assert max(journal_lengths(store, 4)) < 11
    again = Host(store, tmp_path, shard_count=4)
    assert [shard.tables["untyped"].version[0] for shard in again.host._settled().shards.values()] == [20] * 4


def test_snapshots_take_a_small_share_of_the_time(
    store: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_keeper, "REPLAY_S_MAX", 0.0)
    # The time of one, a thousand million times over: no second one is written in this test.
    monkeypatch.setattr(shard_keeper, "_SNAPSHOT_SHARE_MAX", 1e-9)
    host = Host(store, tmp_path, shard_count=4)
    for number in range(40):
        host.submit(update("lamp", {"x": number}), shard=number % 4)
    assert len(list((tmp_path / "snapshots").iterdir())) == 1


def test_a_journal_that_a_killed_host_has_left_counts_towards_the_next_snapshot(
    store: RedisServer, tmp_path: Path
) -> None:
    limit = MEGABYTE
    # Each host is killed before its own part is long enough.
    for life in range(8):
        host = Host(store, tmp_path, journal_bytes_max=limit)
        for number in range(6):
            host.submit(telemetry("lamp", f"{number}" + "x" * 100_000), sequence=100 * life + number + 1)
    # Of eight times 0.6 MB, two spans of a limit each have stayed, and what came in the last life.
    length: Any = redis.Redis.from_url(store.url).memory_usage("twinfleet:journal:0", samples=0)
    assert length < 3 * limit


def test_a_full_store_can_be_opened_again(tmp_path: Path) -> None:
    with running_store(tmp_path / "data", memory_max_bytes=64 * MEGABYTE) as store:
        host = Host(store, tmp_path)
        with pytest.raises(StoreError) as refusal:
            fill(host)
        assert refusal.value.is_full
        kept = reported(host, "lamp")
        again = Host(store, tmp_path)
        assert reported(again, "lamp") == kept
        again.submit(update("lamp", {"x": "more"}), sequence=10_000)
        assert reported(Host(store, tmp_path), "lamp") == {"x": "more"}


def test_a_store_that_was_emptied_under_its_snapshots_is_refused(store: RedisServer, tmp_path: Path) -> None:
    host = Host(store, tmp_path)
    host.submit(update("lamp", {"x": 1}))
    host.host.close()
    redis.Redis.from_url(store.url).delete("twinfleet:journal:0")
    with pytest.raises(StoreError, match="emptied or set back"):
        Host(store, tmp_path)
