"""What a shard host promises of its journal and its lease, with a real Redis that is stopped, full, or set back."""

from __future__ import annotations

import itertools
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis

from actors import journal, shard_keeper
from actors.actor_settings import HostSettings
from actors.errors import BridgeSuperseded, ShardFenced, ShardNotHere, ShardUnavailable, StoreError
from actors.fleet import shadow_request
from actors.shard_actor import ShardHost, ShardOrder
from actors.shard_keeper import LEASE_S, ShardKeeper
from actors.starts import count_start
from actors.store import RedisServer
from actors.wall_clock import boot_time_s
from tests.integration.running_platform import until
from tests.running_store import running_store
from twins.messages import Batch, Operation, Outcome, Publish, Request, decode_outcome
from twins.sharding import shard_of

MEGABYTE = 1 << 20
LAMPS = ("lamp", "light")


class Host:
    """A shard host on a store, what it has announced, and its lease's clock."""

    def __init__(
        self,
        store: RedisServer,
        data_dir: Path,
        *,
        journal_bytes_max: int = 64 * MEGABYTE,
        shards: tuple[int, ...] = (0,),
        shard_count: int = 1,
        is_predecessor_gone: bool = True,
        clock_s: Callable[[], float] | None = None,
    ) -> None:
        self.announced: list[Publish] = []
        self.now_s = 1000.0
        self.host = ShardHost(self.announced.extend, lease_clock_s=clock_s or (lambda: self.now_s))
        self.shard_count = shard_count
        settings = HostSettings(
            0,
            shards,
            shard_count,
            store.url,
            str(data_dir / "snapshots"),
            journal_bytes_max,
            str(data_dir / "host.log"),
            is_predecessor_gone,
        )
        self.host.open(msgspec.msgpack.encode(settings))
        self.sequence = 0

    def submit(self, *requests: Request, sequence: int | None = None, source: str = "bridge") -> Outcome:
        self.sequence = self.sequence + 1 if sequence is None else sequence
        by_shard: dict[int, list[Request]] = {}
        for request in requests:
            by_shard.setdefault(shard_of(request.thing_name, self.shard_count), []).append(request)
        pairs = [(shard, Batch(source, self.sequence, found)) for shard, found in by_shard.items()]
        return decode_outcome(self.host.submit(msgspec.msgpack.encode(pairs)))

    @property
    def keeper(self) -> ShardKeeper:
        keeper = self.host._keeper
        assert keeper is not None
        return keeper


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
    host.now_s += 1
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
    host.now_s += 1
    again = host.submit(update("lamp", {"x": 1}), sequence=1)
    assert b'"version":1' in again.publishes[0].payload
    assert host.host.shadow("lamp")["version"] == 1
    assert Host(store, tmp_path).host.shadow("lamp")["version"] == 1


def test_a_host_whose_shard_was_taken_over_serves_no_change_any_more(
    store: RedisServer, tmp_path: Path
) -> None:
    old = Host(store, tmp_path)
    old.submit(update("lamp", {"x": 0}))
    new = Host(store, tmp_path)
    # It has not asked yet: the append is refused.
    with pytest.raises(ShardFenced):
        old.submit(update("lamp", {"x": 1}))
    new.submit(update("lamp", {"x": 2}), sequence=3)
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
    with redis.Redis.from_url(store.url) as client:
        return [int(client.xlen(f"twinfleet:journal:{shard}")) for shard in range(shard_count)]


def four_shards(store: RedisServer, data_dir: Path) -> Host:
    return Host(store, data_dir, shards=(0, 1, 2, 3), shard_count=4, clock_s=boot_time_s)


def one_for_each(host: Host, number: int) -> None:
    """Hand one update to each of four shards, each in a call of its own."""
    for shard in range(4):
        batch = Batch("bridge", number, [update("lamp", {"x": number})])
        host.host.submit(msgspec.msgpack.encode([(shard, batch)]))


def test_what_all_shards_together_take_to_read_back_is_bounded(
    store: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = four_shards(store, tmp_path)
    numbers = itertools.count(1)
    for _ in range(20):
        one_for_each(host, next(numbers))
    assert not list((tmp_path / "snapshots").iterdir())
    assert journal_lengths(store, 4) == [21] * 4
    # From now on everything takes too long: a snapshot is due after every batch, unless one is being written.
    monkeypatch.setattr(shard_keeper, "REPLAY_S_MAX", 0.0)
    monkeypatch.setattr(shard_keeper, "_SNAPSHOT_SHARE_MAX", float("inf"))

    def is_short() -> bool:
        one_for_each(host, next(numbers))
        # What the snapshot before the newest stands for is gone; the tail is what came after it.
        return max(journal_lengths(store, 4)) < 21

    until(is_short, "all journals are shorter than they were")
    last = next(numbers) - 1
    again = four_shards(store, tmp_path)
    question = Batch("", 0, [shadow_request("lamp")])
    answers = [shard.apply(question, 0.0).replies[0] for shard in again.keeper.shards(range(4)).values()]
    assert [json.loads(answer.payload)["version"] for answer in answers] == [last] * 4


def test_snapshots_take_a_small_share_of_the_time(
    store: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_keeper, "REPLAY_S_MAX", 0.0)
    # The time of one, a thousand million times over: no second one is written in this test.
    monkeypatch.setattr(shard_keeper, "_SNAPSHOT_SHARE_MAX", 1e-9)
    host = four_shards(store, tmp_path)
    for number in range(1, 11):
        one_for_each(host, number)
    snapshots = tmp_path / "snapshots"
    until(lambda: len(list(snapshots.glob("*.snapshot"))) == 1, "the first is written")
    host.keeper._writer.close()
    assert len(list(snapshots.glob("*.snapshot"))) == 1


def test_a_journal_that_a_killed_host_has_left_counts_towards_the_next_snapshot(
    store: RedisServer, tmp_path: Path
) -> None:
    limit = MEGABYTE
    # Each host is killed before its own part is long enough.
    for life in range(8):
        host = Host(store, tmp_path, journal_bytes_max=limit)
        for number in range(6):
            host.submit(telemetry("lamp", f"{number}" + "x" * 100_000), sequence=100 * life + number + 1)
        host.keeper._writer.close()
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


# The lease


def test_a_host_that_was_fenced_answers_no_question_once_its_confirmation_is_old(
    store: RedisServer, tmp_path: Path
) -> None:
    old = Host(store, tmp_path)
    old.submit(update("lamp", {"x": 1}))
    new = Host(store, tmp_path, is_predecessor_gone=False)
    # Nobody could have changed anything yet.
    assert reported(old, "lamp") == {"x": 1}
    old.now_s += LEASE_S / 2 + 0.001
    with pytest.raises(ShardUnavailable, match="taken it over"):
        reported(old, "lamp")
    assert (old.keeper.held(), old.keeper.lost) == ({}, {0})
    with pytest.raises(ShardUnavailable, match="taken it over"):
        old.submit(update("lamp", {"x": 2}))
    new.now_s += LEASE_S
    assert reported(new, "lamp") == {"x": 1}


def test_a_shard_is_served_when_the_lease_of_its_former_host_is_over(
    store: RedisServer, tmp_path: Path
) -> None:
    # Nobody can have served a shard before its first host.
    first = Host(store, tmp_path, is_predecessor_gone=False)
    first.submit(update("lamp", {"x": 1}))
    second = Host(store, tmp_path, is_predecessor_gone=False)
    second.now_s += LEASE_S - 0.001
    for attempt in (lambda: reported(second, "lamp"), lambda: second.submit(update("lamp", {"x": 2}))):
        with pytest.raises(ShardUnavailable, match="former host") as refusal:
            attempt()
        assert refusal.value.retryable
    second.now_s += 0.001
    assert reported(second, "lamp") == {"x": 1}
    # One that is known to be gone is not waited for.
    third = Host(store, tmp_path, is_predecessor_gone=True)
    assert reported(third, "lamp") == {"x": 1}


@pytest.mark.parametrize("has_served", [False, True])
def test_who_follows_a_host_that_is_gone_waits_for_the_one_before_if_that_had_to(
    store: RedisServer, tmp_path: Path, *, has_served: bool
) -> None:
    first = Host(store, tmp_path)
    first.submit(update("lamp", {"x": 1}))
    second = Host(store, tmp_path, is_predecessor_gone=False)
    if has_served:
        second.now_s += LEASE_S
        reported(second, "lamp")
    third = Host(store, tmp_path, is_predecessor_gone=True)
    if not has_served:
        # It has not asked since.
        assert reported(first, "lamp") == {"x": 1}
        with pytest.raises(ShardUnavailable, match="former host"):
            reported(third, "lamp")
        third.now_s += LEASE_S
    assert reported(third, "lamp") == {"x": 1}
    # One that has let go of a shard says itself that nobody else has it.
    assert third.host.release_shards([0]) == [0]
    fourth = Host(store, tmp_path, shards=())
    fourth.host.open_shards(msgspec.msgpack.encode(ShardOrder((0,), True)))
    assert reported(fourth, "lamp") == {"x": 1}


def test_a_host_that_lets_go_of_a_shard_says_whether_anybody_may_still_serve_it(
    store: RedisServer, tmp_path: Path
) -> None:
    first = Host(store, tmp_path)
    assert first.host.release_shards([0, 5]) == [0]
    assert first.host.release_shards([0]) == []
    with pytest.raises(ShardNotHere, match="not open here"):
        reported(first, "lamp")
    # The one before it is not known to have ended.
    second = Host(store, tmp_path, is_predecessor_gone=False)
    assert second.host.release_shards([0]) == []
    third = Host(store, tmp_path, is_predecessor_gone=False)
    third.now_s += LEASE_S
    assert third.host.release_shards([0]) == [0]


def test_a_shard_that_was_read_ahead_is_what_its_journal_has_become(
    store: RedisServer, tmp_path: Path
) -> None:
    old, new = Host(store, tmp_path), Host(store, tmp_path, shards=())
    old.submit(update("lamp", {"x": 1}))
    new.host.read_ahead([0])
    old.submit(update("lamp", {"x": 2}))
    assert old.host.release_shards([0]) == [0]
    new.host.open_shards(msgspec.msgpack.encode(ShardOrder((0,), True)))
    assert (reported(new, "lamp"), new.host.shadow("lamp")["version"]) == ({"x": 2}, 2)
    # Opening it once more changes nothing.
    new.host.open_shards(msgspec.msgpack.encode(ShardOrder((0,), False)))
    assert reported(new, "lamp") == {"x": 2}


def test_a_host_of_a_stopped_store_answers_no_question_and_serves_again_when_it_goes_on(
    store: RedisServer, tmp_path: Path, short_patience: None
) -> None:
    host = Host(store, tmp_path)
    host.submit(update("lamp", {"x": 1}))
    os.kill(store.pid, signal.SIGSTOP)
    try:
        host.now_s += LEASE_S / 2 + 0.001
        # The second one does not ask, and so does not wait.
        for reason in ("does not answer", "has just failed"):
            with pytest.raises(StoreError, match=reason) as refusal:
                reported(host, "lamp")
            assert refusal.value.retryable
    finally:
        os.kill(store.pid, signal.SIGCONT)
    host.now_s += 1
    assert reported(host, "lamp") == {"x": 1}


def test_a_host_serves_again_after_a_restart_of_its_store(tmp_path: Path) -> None:
    with running_store(tmp_path / "data") as store:
        host = Host(store, tmp_path)
        host.submit(update("lamp", {"x": 1}))
        os.kill(store.pid, signal.SIGKILL)
        until(lambda: not store.is_alive(), "Redis has ended")
        with pytest.raises(StoreError) as refusal:
            host.submit(update("lamp", {"x": 2}))
        assert refusal.value.retryable
        store.start()
        host.now_s += 1
        host.submit(update("lamp", {"x": 3}))
        assert reported(Host(store, tmp_path), "lamp") == {"x": 3}


def test_a_host_that_lost_an_answer_does_not_take_its_shard_back_from_its_successor(
    store: RedisServer, tmp_path: Path, short_patience: None
) -> None:
    old = Host(store, tmp_path)
    os.kill(store.pid, signal.SIGSTOP)
    try:
        with pytest.raises(StoreError):
            old.submit(update("lamp", {"x": 1}))
    finally:
        os.kill(store.pid, signal.SIGCONT)
    new = Host(store, tmp_path)
    old.now_s += 1
    with pytest.raises(ShardUnavailable):
        old.submit(update("lamp", {"x": 2}))
    new.submit(update("lamp", {"x": 3}), sequence=3)
    assert reported(new, "lamp") == {"x": 3}


def test_what_was_kept_beside_a_fenced_shard_is_applied(store: RedisServer, tmp_path: Path) -> None:
    assert [shard_of(name, 2) for name in LAMPS] == [0, 1]
    old = Host(store, tmp_path, shards=(0, 1), shard_count=2)
    old.submit(update("lamp", {"x": 0}), sequence=1)
    Host(store, tmp_path, shards=(0,), shard_count=2)
    with pytest.raises(ShardFenced) as refusal:
        old.submit(*(update(name, {"x": 1}) for name in LAMPS), sequence=2)
    assert (refusal.value.shard, refusal.value.retryable) == (0, True)
    assert set(old.keeper.held()) == {1}
    assert reported(old, "light") == {"x": 1}
    # It comes again, and is known.
    old.submit(update("light", {"x": 1}), sequence=2)
    assert old.host.shadow("light")["version"] == 1
    assert Host(store, tmp_path, shards=(1,), shard_count=2).host.shadow("light")["version"] == 1


def test_a_store_that_is_emptied_under_a_host_is_noticed(store: RedisServer, tmp_path: Path) -> None:
    host = Host(store, tmp_path)
    host.submit(update("lamp", {"x": 1}))
    redis.Redis.from_url(store.url).delete("twinfleet:journal:0")
    host.now_s += LEASE_S
    with pytest.raises(StoreError, match="emptied") as refusal:
        host.submit(update("lamp", {"x": 2}))
    assert not refusal.value.retryable


def test_what_a_bridge_had_sent_comes_too_late_after_its_successor_was_heard(
    store: RedisServer, tmp_path: Path
) -> None:
    host = Host(store, tmp_path)
    host.submit(update("lamp", {"x": 1}), source="bridge/9")
    host.submit(update("lamp", {"x": 1}), update("lamp", {"x": 2}), source="bridge/10")
    for again in (host, Host(store, tmp_path)):
        with pytest.raises(BridgeSuperseded):
            again.submit(update("lamp", {"x": 1}), source="bridge/9")
        assert reported(again, "lamp") == {"x": 2}


async def test_each_start_has_a_higher_number_than_all_before(store: RedisServer) -> None:
    assert [await count_start(store.url, name) for name in ("one", "one", "other", "one")] == [1, 2, 1, 3]
