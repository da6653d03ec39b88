"""Twins with a behaviour of their own, in this process and in a Ray actor each: one twin, whoever plays its device."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from actors.actor_settings import PinSettings
from actors.behavior_trial import try_behavior
from actors.errors import BehaviorUnusable
from actors.fleet import (
    Fleet,
    LocalFleet,
    PinnedTwin,
    give_back_request,
    pin_request,
    reply_document,
    unpin_request,
)
from actors.pins import PinKeeper
from actors.ray_fleet import find_fleet
from actors.supervisor import Supervisor
from tests.contract.conftest import START_S
from tests.contract.fleets import RayStage, ray_stage
from twins.errors import ShadowNotFound
from twins.handover import DEFAULT_BEHAVIOR
from twins.messages import Operation, Request, TickOrder
from twins.model import Group
from twins.shipped import model_named

DEADLINE_S = 60.0
_COUNTER = """
import os, time

class Counter:
    every_s = 1

    def step(self, twin):
        count = twin.memory["count"] = twin.memory.get("count", 0) + 1
        if twin.desired.get("fail") == "raise":
            raise RuntimeError("no water")
        if twin.desired.get("fail") == "exit":
            os._exit(3)
        return {"reported": {"count": count}}
"""


class OneRay:
    """A Ray that is started once and never again."""

    start_count = 1

    def give_up(self, loss: str) -> None:
        raise AssertionError(loss)


@dataclass
class Pinning:
    """A fleet whose pinned twins are kept going, with one group of simulated devices that is ticked on and on."""

    fleet: Fleet
    group: Group
    supervisor: Supervisor
    keeper: PinKeeper | None = None
    tick: int = 0

    async def live(self) -> None:
        """Live through some ticks, and have pinned twins looked after."""
        await self.fleet.tick([TickOrder(self.group.name, self.tick, 5)])
        self.tick += 5
        if self.keeper is not None:
            await self.keeper.keep(self.fleet)
            await asyncio.sleep(0.1)

    async def reported(self, name: str) -> dict[str, object]:
        try:
            return dict((await self.fleet.twin(name).shadow())["state"].get("reported", {}))
        except ShadowNotFound:
            return {}

    async def until_counted(self, name: str, count: int) -> int:
        """Return what a `Counter` has reported, once that is more than `count`."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                await self.live()
                found = (await self.reported(name)).get("count", 0)
                if isinstance(found, int) and found > count:
                    return found

    def pid(self) -> int:
        [status] = self.supervisor.statuses()
        return status.pid


@pytest.fixture(scope="module")
def stage(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayStage]:
    """Give an actor with a store of its own."""
    with ray_stage(tmp_path_factory.mktemp("pins"), 1) as made:
        yield made


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Return a directory with a behaviour in it."""
    (tmp_path / "tf_counting.py").write_text(_COUNTER)
    return tmp_path


@contextlib.asynccontextmanager
async def kept(stage: RayStage, group: Group, directory: Path) -> AsyncIterator[Pinning]:
    """Give a fleet on actors with a supervisor for its pinned twins, as a platform has one."""
    fleet = find_fleet(stage.store_url)
    supervisor = Supervisor([])
    running = asyncio.create_task(supervisor.run())
    await asyncio.sleep(0)

    def settings(pinned: PinnedTwin) -> PinSettings:
        log_file = str(directory / "pinned.log")
        return PinSettings(pinned.thing_name, pinned.behavior, str(directory), stage.store_url, log_file)

    keeper = PinKeeper(supervisor, OneRay(), settings)
    await fleet.create_group(group)
    try:
        yield Pinning(fleet, group, supervisor, keeper)
    finally:
        await keeper.close()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await fleet.delete_group(group.name)


@pytest.fixture(params=["local", "ray"])
async def pinning(
    request: pytest.FixtureRequest, prefix: str, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Pinning]:
    """Give a fleet of each kind with a group of 30 thermostats."""
    group = Group(f"{prefix}pins", model_named("thermostat"), f"{prefix}-{{i}}", 30, 5, START_S)
    if request.param == "local":
        monkeypatch.syspath_prepend(str(directory))
        fleet = LocalFleet(shard_count=4)
        await fleet.create_group(group)
        yield Pinning(fleet, group, Supervisor([]))
        return
    async with kept(request.getfixturevalue("stage"), group, directory) as made:
        yield made


async def ask(fleet: Fleet, request: Request) -> None:
    reply_document(await fleet.ask(request))


async def test_a_pinned_twin_lives_by_its_behaviour_behind_the_same_handle(pinning: Pinning) -> None:
    fleet, name = pinning.fleet, pinning.group.pattern.name(7)
    await pinning.live()
    await pinning.live()
    twin = fleet.twin(name)
    before = await twin.shadow()
    await ask(fleet, pin_request(name, "tf_counting:Counter"))
    assert await fleet.pins() == [PinnedTwin(name, "tf_counting:Counter")]
    count = await pinning.until_counted(name, 2)
    after = await twin.shadow()
    assert after["state"]["reported"]["count"] >= count
    # Each call counts once, and the simulation adds nothing of its own.
    assert after["version"] == before["version"] + after["state"]["reported"]["count"]
    assert after["state"]["reported"] == {
        **before["state"]["reported"],
        "count": after["version"] - before["version"],
    }
    assert (await twin.describe())["pin"]["behavior"] == "tf_counting:Counter"
    await ask(fleet, unpin_request(name))
    assert await fleet.pins() == []
    count = (await twin.shadow())["state"]["reported"]["count"]
    version = (await twin.shadow())["version"]
    async with asyncio.timeout(DEADLINE_S):
        while (await twin.shadow())["version"] == version:
            await pinning.live()
    assert (await twin.shadow())["state"]["reported"]["count"] == count


async def test_a_twin_without_a_behaviour_of_its_own_obeys_at_once(pinning: Pinning) -> None:
    name = pinning.group.pattern.name(3)
    await ask(pinning.fleet, pin_request(name))
    assert await pinning.fleet.pins() == [PinnedTwin(name, DEFAULT_BEHAVIOR)]
    await pinning.fleet.twin(name).update_desired({"mode": {"night": True}})
    async with asyncio.timeout(DEADLINE_S):
        while (await pinning.reported(name)).get("mode") != {"night": True}:
            await pinning.live()


async def test_a_behaviour_rests_while_a_real_device_is_there(pinning: Pinning) -> None:
    fleet, name = pinning.fleet, pinning.group.pattern.name(5)
    await ask(fleet, pin_request(name, "tf_counting:Counter"))
    await pinning.until_counted(name, 0)
    await ask(fleet, Request(Operation.REGISTER, name, b'{"model":"thermostat"}'))
    before = await fleet.twin(name).shadow()
    for _ in range(5):
        await pinning.live()
    assert (await fleet.twin(name).shadow())["version"] == before["version"]
    rows = (await fleet.twins_table(["name", "origin"])).to_pylist()
    assert [row["name"] for row in rows if row["origin"] == "real" and row["name"] == name] == [name]
    await ask(fleet, give_back_request(name))
    await pinning.until_counted(name, before["state"]["reported"]["count"])


async def test_a_behaviour_goes_on_where_it_was_when_either_process_is_killed(
    stage: RayStage, prefix: str, directory: Path
) -> None:
    group = Group(f"{prefix}pins", model_named("thermostat"), f"{prefix}-{{i}}", 30, 5, START_S)
    async with kept(stage, group, directory) as pinning:
        name = group.pattern.name(7)
        await ask(pinning.fleet, pin_request(name, "tf_counting:Counter"))
        count = await pinning.until_counted(name, 1)
        os.kill(pid := pinning.pid(), signal.SIGKILL)
        count = await pinning.until_counted(name, count + 1)
        assert pinning.pid() != pid
        await asyncio.to_thread(stage.kill_and_reopen, 0)
        count = await pinning.until_counted(name, count + 1)
        document = await pinning.fleet.twin(name).shadow()
        # Nothing was counted twice or forgotten: each step is one version.
        assert document["version"] == document["state"]["reported"]["count"]


@pytest.mark.parametrize(
    ("failure", "told"), [("raise", "step raised RuntimeError: no water"), ("exit", "ended")]
)
async def test_a_behaviour_that_fails_is_told_of_and_harms_nobody_else(
    stage: RayStage, prefix: str, directory: Path, failure: str, told: str
) -> None:
    group = Group(f"{prefix}pins", model_named("thermostat"), f"{prefix}-{{i}}", 30, 5, START_S)
    async with kept(stage, group, directory) as pinning:
        name = group.pattern.name(7)
        await ask(pinning.fleet, pin_request(name, "tf_counting:Counter"))
        count = await pinning.until_counted(name, 1)
        await pinning.fleet.twin(name).update_desired({"fail": failure})
        async with asyncio.timeout(DEADLINE_S):
            while told not in pinning.supervisor.statuses()[0].reason:
                await pinning.live()
        [status] = pinning.supervisor.statuses()
        assert (status.role, status.thing_name) == ("pinned_twin", name)
        assert status.state in ("restarting", "down")
        # Others live on, and so does this twin.
        assert len(await pinning.fleet.digest()) == 64
        await pinning.fleet.twin(name).update_desired({"fail": None})
        await pinning.until_counted(name, count)


async def test_a_behaviour_is_tried_where_it_harms_nobody(ray_cluster: None, directory: Path) -> None:
    await try_behavior("tf_counting:Counter", directory=directory)
    (directory / "tf_deadly.py").write_text("import os\nos._exit(5)\n")
    for name, told in (
        ("tf_nowhere:Counter", "tf_nowhere.py"),
        ("tf_counting:Boiler", "Boiler"),
        ("tf_deadly:Counter", "ended its process"),
    ):
        with pytest.raises(BehaviorUnusable) as refusal:
            await try_behavior(name, directory=directory)
        assert told in str(refusal.value)
