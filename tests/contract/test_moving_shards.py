"""Shards move between two real actors, under the load of a real bridge: nothing is lost, and order is kept."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
import ray

from actors.errors import PlacementError, ShardNotHere
from actors.fleet import LocalFleet
from actors.placement import HEAD_NODE, Change, PlacementStore
from actors.ray_fleet import RayFleet, RayTwin, find_fleet
from actors.shard_mover import Placer
from tests.contract.conftest import START_S
from tests.contract.fleets import SHARD_COUNT, ray_fleet, ray_stage
from tests.integration.bridge_stage import Device, bridge, device, until
from tests.integration.running_broker import DEADLINE_S, running_site
from twins.messages import Operation, Request, TickOrder
from twins.model import Group
from twins.sharding import shard_of
from twins.shipped import model_named

THINGS = [f"mover-{letter}" for letter in "abcd"]
ROUNDS = 6
# In its snapshot each shard of them has some megabytes.
GROUP = Group("crowd", model_named("thermostat"), "crowd-{i}", 80_000, 7, START_S)


@pytest.fixture
def moving(ray_cluster: None, tmp_path: Path) -> Iterator[RayFleet]:
    """Give a fleet on two actors of its own."""
    with ray_fleet(tmp_path / "fleet", 2) as fleet:
        yield fleet


def other_home(fleet: RayFleet, shard: int) -> str:
    placement = fleet.placement
    return next(actor for actor in placement.nodes if actor != placement.homes[shard])


async def move_about(fleet: RayFleet, done: asyncio.Event) -> None:
    for _ in range(ROUNDS):
        for shard in range(SHARD_COUNT):
            await fleet.move_shard(shard, other_home(fleet, shard))
    done.set()


async def report_on(connected: Device, thing: str, done: asyncio.Event) -> list[float]:
    """Send an update after the other, each when the one before is accepted; return how long each took."""
    await connected.subscribe(f"$aws/things/{thing}/shadow/update/+")
    waits_s: list[float] = []
    while not done.is_set():
        count = len(waits_s) + 1
        start_s = time.monotonic()
        body = {"state": {"reported": {"n": count}}, "clientToken": str(count)}
        connected.publish(f"$aws/things/{thing}/shadow/update", json.dumps(body).encode())
        await until(lambda: len(accepted(connected)) >= count)  # noqa: B023  (awaited in this very turn)
        waits_s.append(time.monotonic() - start_s)
    return waits_s


def accepted(connected: Device) -> list[dict[str, Any]]:
    return [json.loads(payload) for topic, payload in connected.received if topic.endswith("/accepted")]


async def desire(fleet: RayFleet, thing: str, done: asyncio.Event) -> int:
    count = 0
    while not done.is_set():
        count += 1
        await fleet.twin(thing).update_desired({"n": count})
    return count


async def tick(fleet: RayFleet, done: asyncio.Event) -> tuple[int, int]:
    """Tick a simulated group, one tick after the other; return how many and how many reports came of them."""
    count = report_count = 0
    while not done.is_set():
        summaries = await fleet.tick([TickOrder(GROUP.name, count, 1)])
        count, report_count = count + 1, report_count + summaries[GROUP.name].reports_arrived
    return count, report_count


async def test_shards_move_back_and_forth_under_load_and_nothing_is_lost(
    moving: RayFleet, tmp_path: Path
) -> None:
    done = asyncio.Event()
    await moving.create_group(GROUP)
    with running_site(tmp_path / "site") as site:
        async with bridge(site.connection(), moving) as served, AsyncExitStack() as stack:
            senders = [await stack.enter_async_context(device(site, thing)) for thing in THINGS]
            async with asyncio.TaskGroup() as group:
                reports = [
                    group.create_task(report_on(sender, thing, done))
                    for sender, thing in zip(senders, THINGS, strict=True)
                ]
                desires = group.create_task(desire(moving, "operated", done))
                ticks = group.create_task(tick(moving, done))
                group.create_task(move_about(moving, done))
            await until(lambda: served.statistics().unpublished_count == 0)
    for sender, thing, task in zip(senders, THINGS, reports, strict=True):
        count = len(task.result())
        assert [each["clientToken"] for each in accepted(sender)] == [str(n) for n in range(1, count + 1)]
        assert [each["version"] for each in accepted(sender)] == list(range(1, count + 1))
        shadow = await moving.twin(thing).shadow()
        assert (shadow["version"], shadow["state"]["reported"]["n"]) == (count, count)
    assert (await moving.twin("operated").shadow())["version"] == desires.result()
    # Each tick was run once on each shard, wherever that was.
    local = LocalFleet(SHARD_COUNT)
    await local.create_group(GROUP)
    tick_count, report_count = ticks.result()
    summaries = await local.tick([TickOrder(GROUP.name, 0, tick_count)])
    assert summaries[GROUP.name].reports_arrived == report_count
    assert await local.digest() == await moving.digest()
    waits_s = sorted(wait_s for task in reports for wait_s in task.result())
    print(  # noqa: T201 - how long a thing stood still, measured in this run
        f"{ROUNDS * SHARD_COUNT} moves, {len(waits_s)} updates: accepted after "
        f"{waits_s[len(waits_s) // 2] * 1e3:.0f} ms (median), {waits_s[-1] * 1e3:.0f} ms (longest)"
    )


def level_of(document: dict[str, Any]) -> int:
    return int(document["state"]["desired"]["level"])


async def test_a_handle_follows_its_twin(moving: RayFleet) -> None:
    twin = moving.twin("lamp")
    await twin.update_desired({"level": 1})
    shard = shard_of("lamp", SHARD_COUNT)

    @ray.remote(num_cpus=0.01)
    class Reader:
        """Holds a handle, as a process of its own that is told of nothing."""

        def __init__(self, handle: RayTwin) -> None:
            self._handle = handle

        def level(self) -> int:
            deadline_s = time.monotonic() + 20
            while time.monotonic() < deadline_s:
                with contextlib.suppress(ShardNotHere):
                    return level_of(ray.get(self._handle.shadow.remote()))
            raise TimeoutError

        async def awaited_level(self) -> int:
            return level_of(await self._handle.shadow())

    reader_class: Any = Reader
    reader = reader_class.remote(twin)
    assert await reader.level.remote() == 1
    for level in (2, 3, 4):
        await moving.move_shard(shard, other_home(moving, shard))
        await twin.update_desired({"level": level})
        assert await reader.awaited_level.remote() == level
        assert await reader.level.remote() == level
    ray.kill(reader)


async def test_a_shard_that_a_broken_move_has_left_nowhere_is_opened_again(moving: RayFleet) -> None:
    shard = shard_of("lamp", SHARD_COUNT)
    await moving.twin("lamp").update_desired({"level": 1})
    home: Any = ray.get_actor(moving.placement.homes[shard])
    assert await home.release_shards.remote([shard]) == [shard]
    # Here a mover has died. The next one does not know who may have the shard.
    await moving.move_shard(shard, other_home(moving, shard))
    reply = await moving.ask(Request(Operation.SHADOW_GET, "lamp"))
    assert json.loads(reply.payload)["version"] == 1
    assert await home.release_shards.remote([shard]) == []


async def test_a_node_that_is_cut_off_in_the_middle_of_a_move_holds_up_nobody(
    ray_cluster: None, tmp_path: Path
) -> None:
    with ray_stage(tmp_path / "stage", 2) as stage:
        fleet = find_fleet(stage.store_url)
        await fleet.twin("lamp").update_desired({"level": 1})
        here, there = fleet.placement.nodes
        placements = PlacementStore.at(stage.store_url)
        # Nobody has ever heard of the cellar.
        cellar = {here: HEAD_NODE, there: "cellar"}
        placements.change(
            lambda placement: msgspec.structs.replace(placement, nodes=cellar).without(HEAD_NODE),
            Change("placement.drain", HEAD_NODE),
        )
        pid = (await fleet.status(fleet.lane_of(fleet.placement.shards_of(there)[0]))).pid
        os.kill(pid, signal.SIGSTOP)
        try:
            placer = Placer(stage.store_url)
            async with asyncio.timeout(DEADLINE_S):
                # The first move waits for an answer that does not come.
                while placements.read().homes != (here,) * SHARD_COUNT:
                    await placer.place()
                reply = await fleet.ask(Request(Operation.SHADOW_GET, "lamp"))
        finally:
            os.kill(pid, signal.SIGCONT)
        assert json.loads(reply.payload)["version"] == 1


async def test_a_shard_does_not_move_where_there_is_no_place(moving: RayFleet) -> None:
    before = moving.placement
    for shard, target in ((0, "attic"), (SHARD_COUNT, before.homes[0])):
        with pytest.raises(PlacementError):
            await moving.move_shard(shard, target)
    await moving.move_shard(0, before.homes[0])
    assert moving.placement.homes == before.homes
