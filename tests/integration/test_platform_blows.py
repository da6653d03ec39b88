"""Faults of a platform strike real processes: those of a stand-in, which has a broker and two shards that come back."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from actors.processes import wait_until
from scenarios.platform_blows import Blow, PlatformBlows
from scenarios.spec import PlatformFault

DEADLINE_S = 30.0
# Starts its parts again as they end, under the names that a platform's processes have.
SUPERVISOR = """
import subprocess, time
names = ["mosquitto", "ray::ShardActor", "ray::ShardActor"]
start = lambda name: subprocess.Popen([name, "600"], executable="/bin/sleep")
parts = [start(name) for name in names]
while True:
    parts = [part if part.poll() is None else start(name) for part, name in zip(parts, names)]
    time.sleep(0.02)
"""


@pytest.fixture
def blows(tmp_path: Path) -> Iterator[PlatformBlows]:
    supervisor = subprocess.Popen([sys.executable, "-c", SUPERVISOR])
    made = PlatformBlows(supervisor.pid, tmp_path, seed=3)
    assert wait_until(lambda: len(made.running("shard")) == 2, timeout_s=DEADLINE_S)
    yield made
    children = psutil.Process(supervisor.pid).children()
    supervisor.kill()
    supervisor.wait()
    for child in children:
        child.kill()


async def until(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not is_true():
            await asyncio.sleep(0.01)


def pids(blows: PlatformBlows, component: str) -> set[int]:
    return {process.pid for process in blows.running(component)}


def fault(action: Any, component: str, **more: Any) -> PlatformFault:
    return PlatformFault("fault", action, 0, component, **more)


@pytest.mark.parametrize("action", ["kill", "restart"])
async def test_one_process_ends_and_another_takes_its_place(action: str, blows: PlatformBlows) -> None:
    before, others = pids(blows, "broker"), pids(blows, "shard")
    blow = Blow()
    await blows.carry_out(fault(action, "broker"), blow)
    await until(lambda: blow.has_ended_all)
    assert {process.pid for process in blow.ended} == before
    assert f"process {before.pop()} got SIG" in blow.text
    await until(lambda: len(pids(blows, "broker")) == 1)
    assert pids(blows, "shard") == others


async def test_of_several_processes_the_seed_draws_those_that_are_meant(blows: PlatformBlows) -> None:
    before = pids(blows, "shard")
    blow = Blow()
    await blows.carry_out(fault("kill", "shard"), blow)
    await until(lambda: blow.has_ended_all)
    assert len(pids(blows, "shard") & before) == 1
    await until(lambda: len(pids(blows, "shard")) == 2)
    both = pids(blows, "shard")
    await blows.carry_out(fault("kill", "shard", count=0), Blow())
    await until(lambda: not pids(blows, "shard") & both)


async def test_what_is_kept_down_is_killed_as_often_as_it_comes_back(blows: PlatformBlows) -> None:
    blow = Blow()
    spared = pids(blows, "shard")
    await blows.carry_out(fault("kill", "shard", duration_s=0.5), blow)
    assert blow.again_count >= 1
    # The other one lives on.
    assert len(pids(blows, "shard") & spared) == 1


def states(blows: PlatformBlows, component: str) -> set[str]:
    return {process.status() for process in blows.running(component)}


async def test_a_paused_process_stands_still_and_goes_on_also_when_the_run_ends_early(
    blows: PlatformBlows,
) -> None:
    before = pids(blows, "broker")
    for is_cancelled in (False, True):
        lasting = asyncio.create_task(blows.carry_out(fault("pause", "broker", duration_s=0.5), Blow()))
        await until(lambda: states(blows, "broker") == {psutil.STATUS_STOPPED})
        assert psutil.STATUS_STOPPED not in states(blows, "shard")
        if is_cancelled:
            lasting.cancel()
        await asyncio.gather(lasting, return_exceptions=True)
        await until(lambda: states(blows, "broker") == {psutil.STATUS_SLEEPING})
    assert pids(blows, "broker") == before


async def test_where_nothing_runs_nothing_is_struck_and_that_is_told(blows: PlatformBlows) -> None:
    blow = Blow()
    await blows.carry_out(fault("kill", "redis"), blow)
    assert (blow.ended, blow.text) == ([], "no process of redis ran")
