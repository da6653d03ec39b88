"""When parts are brought back: in which order, how often, and what is said of them meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from actors import supervisor
from actors.errors import StoreError
from actors.supervisor import Supervisor, mistakes_survived
from twins.errors import ModelError

DEADLINE_S = 5.0


class Lamp:
    """A part that can be broken, and that comes back after so many attempts."""

    def __init__(self, role: str, diary: list[str], *, needs: Sequence[str] = ()) -> None:
        self.role, self.index, self.needs = role, 0, needs
        self.pid = 1
        self.is_broken = False
        self.failures = 0
        self.dark = ""
        self.mistakes: list[Exception] = []
        self._diary = diary

    async def trouble(self) -> str:
        if self.mistakes:
            raise self.mistakes.pop()
        return f"{self.role} broke" if self.is_broken else ""

    def obstacle(self) -> str:
        return self.dark

    async def revive(self) -> None:
        self._diary.append(self.role)
        if self.mistakes:
            raise self.mistakes.pop()
        if self.failures:
            self.failures -= 1
            raise StoreError("no current")
        self.is_broken = False
        self.pid += 1


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOOK_EVERY_S", "_RETRY_DELAY_MIN_S", "_RETRY_DELAY_MAX_S"):
        monkeypatch.setattr(supervisor, name, 0.001)


@asynccontextmanager
async def watching(*parts: Lamp) -> AsyncIterator[Supervisor]:
    found = Supervisor(parts)
    task = asyncio.create_task(found.run())
    try:
        async with asyncio.timeout(DEADLINE_S):
            yield found
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until_ready(found: Supervisor, restart_count: int) -> None:
    while sum(each.restart_count for each in found.statuses()) < restart_count:
        await asyncio.sleep(0)
    assert all(each.state == "ready" and not each.reason for each in found.statuses())


async def test_a_part_is_brought_back_after_those_that_it_needs() -> None:
    diary: list[str] = []
    store = Lamp("store", diary)
    bridge = Lamp("bridge", diary, needs=("store",))
    store.is_broken = bridge.is_broken = True
    store.failures = 3
    async with watching(store, bridge) as found:
        await until_ready(found, 2)
    assert diary == ["store"] * 4 + ["bridge"]
    assert [each.pid for each in found.statuses()] == [2, 2]


async def test_what_fails_again_and_again_is_down_and_tells_why_until_it_is_back() -> None:
    diary: list[str] = []
    store = Lamp("store", diary)
    store.is_broken, store.failures = True, 1000
    async with watching(store) as found:
        seen: list[str] = []
        while not seen or seen[-1] != "down":
            [status] = found.statuses()
            if not seen or status.state != seen[-1]:
                seen.append(status.state)
            await asyncio.sleep(0)
        assert seen[-2:] == ["restarting", "down"]
        assert "store broke" in status.reason
        assert "no current" in status.reason
        store.failures = 0
        await until_ready(found, 1)


async def test_a_part_that_needs_nothing_of_what_is_down_is_brought_back_meanwhile() -> None:
    diary: list[str] = []
    store, broker = Lamp("store", diary), Lamp("broker", diary)
    store.is_broken, store.failures = True, 1_000_000
    async with watching(store, broker) as found:
        broker.is_broken = True
        while found.statuses()[1].restart_count == 0:
            await asyncio.sleep(0)
        assert not found.is_ready("store")
        assert found.is_ready("broker")


async def test_a_mistake_in_the_turn_of_one_part_is_not_the_end_of_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    diary: list[str] = []
    store, broker = Lamp("store", diary), Lamp("broker", diary)
    # The first when it is asked, the second when it is brought back.
    store.mistakes = [KeyError("brought back"), Exception("asked")]
    async with watching(store, broker) as found:
        while not diary:
            await asyncio.sleep(0)
        assert "it can't be asked: Exception('asked')" in found.statuses()[0].reason
        broker.is_broken = True
        await until_ready(found, 2)
    assert sorted(diary) == ["broker", "store", "store"]
    assert [record.message for record in caplog.records if record.exc_info] == [
        "store 0: a mistake in this program"
    ] * 2


@pytest.mark.parametrize("error", [Exception("asked"), ModelError("no such fleet")])
def test_a_mistake_in_what_is_done_beside_the_parts_is_written_down(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(how: Exception) -> None:
        raise how

    with mistakes_survived("standing fleets"):
        fail(error)
    [record] = caplog.records
    assert (record.message, record.exc_info is not None) == (
        "standing fleets: a mistake in this program",
        True,
    )
    with pytest.raises(StoreError), mistakes_survived("standing fleets"):
        fail(StoreError("away"))


async def test_when_what_stood_in_the_way_is_gone_nobody_waits_out_the_back_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Longer than anybody waits here.
    monkeypatch.setattr(supervisor, "_RETRY_DELAY_MAX_S", 3600.0)
    monkeypatch.setattr(supervisor, "_RETRY_DELAY_MIN_S", 3600.0)
    diary: list[str] = []
    store = Lamp("store", diary)
    store.dark, store.is_broken, store.failures = "the disk is full", True, 1
    async with watching(store) as found:
        while diary != ["store"] or "no current" not in found.statuses()[0].reason:
            await asyncio.sleep(0)
        store.dark = ""
        await until_ready(found, 1)
    assert diary == ["store"] * 2


async def test_a_part_is_taken_up_started_watched_and_let_go() -> None:
    diary: list[str] = []
    lamp = Lamp("lamp", diary)
    lamp.is_broken = True
    async with watching() as found:
        await asyncio.sleep(0)
        found.take_up(lamp)
        [status] = found.statuses()
        assert (status.state, status.reason) == ("restarting", "it has yet to be started")
        while not diary or found.statuses()[0].state != "ready":
            await asyncio.sleep(0)
        # Its start is no restart.
        assert [(each.pid, each.restart_count) for each in found.statuses()] == [(2, 0)]
        lamp.is_broken = True
        await until_ready(found, 1)
        lamp.is_broken, lamp.failures = True, 1_000_000
        while found.statuses()[0].state == "ready":
            await asyncio.sleep(0)
        await found.let_go(lamp)
        assert found.statuses() == []
        asked = len(diary)
        await asyncio.sleep(0.01)
        assert len(diary) == asked
