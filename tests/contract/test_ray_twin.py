"""A twin's handle on a cluster is like an actor handle, and the fleet's digest does not tell where its shards are."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.exceptions import RayError

from actors.fleet import Fleet, LocalFleet
from actors.ray_fleet import RayFleet, RayTwin
from actors.ray_runtime import find_actor
from tests.contract.conftest import START_S
from tests.contract.fleets import ray_fleet
from twins.errors import InvalidRequest, RequestError, ShadowNotFound, VersionConflict
from twins.messages import Operation, Request, TickOrder
from twins.model import Group
from twins.shipped import model_named

# A call takes milliseconds, the first one of a new worker process some seconds.
DEADLINE_S = 30.0


async def set_level(twin: RayTwin, level: int) -> dict[str, Any]:
    return await twin.update_desired({"level": level})


async def test_remote_gives_an_object_ref_of_the_answer(two_actors: RayFleet, prefix: str) -> None:
    twin = two_actors.twin(f"{prefix}-lamp")
    await set_level(twin, 3)
    reference = twin.shadow.remote()
    assert isinstance(reference, ray.ObjectRef)
    document = ray.get(reference, timeout=DEADLINE_S)
    assert document["state"]["desired"] == {"level": 3}
    async with asyncio.timeout(DEADLINE_S):
        awaited = await twin.shadow.remote()
        assert awaited["state"] == document["state"] == (await twin.shadow())["state"]
        accepted = await twin.update_desired.remote({"level": 4}, shadow_name="config", version=None)
    assert (accepted["version"], accepted["state"]) == (1, {"desired": {"level": 4}})
    done, _ = ray.wait(
        [twin.shadow.remote("config"), twin.telemetry.remote()], num_returns=2, timeout=DEADLINE_S
    )
    config, telemetry = ray.get(done)
    assert config["state"]["desired"] == {"level": 4}
    assert telemetry["streams"] == {}


def test_nobody_waits_for_a_metadata_service_that_stands_still(two_actors: RayFleet) -> None:
    name = two_actors.placement.homes[0]
    # Of this process's own Ray; a platform that other tests share may run below it.
    children = psutil.Process().children()
    (service,) = (each for each in children if each.name() == "gcs_server")
    service.suspend()
    try:
        with pytest.raises(RayError):
            find_actor(name)
    finally:
        service.resume()
    assert ray.get(find_actor(name).status.remote(), timeout=DEADLINE_S).is_open
    with pytest.raises(ValueError, match="nobody"):
        find_actor("nobody")


async def test_a_handle_works_inside_a_remote_task_and_an_actor(two_actors: RayFleet, prefix: str) -> None:
    twin = two_actors.twin(f"{prefix}-lamp")
    await set_level(twin, 3)

    @ray.remote(num_cpus=0.01)
    def raise_level(handle: RayTwin) -> tuple[str, int]:
        level = ray.get(handle.shadow.remote())["state"]["desired"]["level"]
        accepted = ray.get(handle.update_desired.remote({"level": level + 1}))
        return handle.thing_name, accepted["version"]

    @ray.remote(num_cpus=0.01)
    class Watcher:
        def __init__(self, handles: list[RayTwin]) -> None:
            self._handles = handles

        async def levels(self) -> list[int]:
            documents = await asyncio.gather(*(handle.shadow() for handle in self._handles))
            return [document["state"]["desired"]["level"] for document in documents]

    assert ray.get(raise_level.remote(twin), timeout=DEADLINE_S) == (f"{prefix}-lamp", 2)
    watcher_class: Any = Watcher
    watcher = watcher_class.remote([twin, twin])
    assert ray.get(watcher.levels.remote(), timeout=DEADLINE_S) == [4, 4]
    ray.kill(watcher)


def test_an_answer_can_be_the_argument_of_a_remote_task(two_actors: RayFleet, prefix: str) -> None:
    twin = two_actors.twin(f"{prefix}-lamp")

    @ray.remote(num_cpus=0.01)
    def version(document: dict[str, Any]) -> int:
        return int(document["version"])

    reference = version.remote(twin.update_desired.remote({"level": 1}))
    assert ray.get(reference, timeout=DEADLINE_S) == 1


def test_a_hundred_thousand_handles_start_no_process_and_ask_nobody(
    two_actors: RayFleet, prefix: str
) -> None:
    def ray_processes() -> set[int]:
        return {process.pid for process in psutil.Process().children(recursive=True)}

    before, asked = ray_processes(), request_count(two_actors)
    # Were each a process, or a question to one, the time-out of the test would end this.
    handles = [two_actors.twin(f"{prefix}-{number}") for number in range(100_000)]
    # Ray itself starts an idle worker now and then.
    assert len(ray_processes() - before) < 10
    assert request_count(two_actors) == asked
    assert handles[-1].thing_name == f"{prefix}-99999"


def request_count(fleet: RayFleet) -> int:
    return sum(asyncio.run(fleet.status(lane)).request_count for lane in range(fleet.lane_count))


@pytest.mark.parametrize("how", ["get", "await"])
async def test_a_refusal_is_raised_as_its_error_from_a_reference_too(
    two_actors: RayFleet, prefix: str, how: str
) -> None:
    async def answer(reference: Any) -> Any:
        async with asyncio.timeout(DEADLINE_S):
            return ray.get(reference, timeout=DEADLINE_S) if how == "get" else await reference

    twin = two_actors.twin(f"{prefix}-lamp")
    with pytest.raises(ShadowNotFound) as missing:
        await answer(twin.shadow.remote())
    assert missing.value.code == 404
    await set_level(twin, 1)
    with pytest.raises(VersionConflict) as conflict:
        await answer(twin.update_desired.remote({"level": 2}, version=7))
    assert isinstance(conflict.value, RequestError)
    assert (conflict.value.code, conflict.value.message) == (409, "Version conflict")
    with pytest.raises(InvalidRequest):
        await answer(twin.update_desired.remote({"level": [None]}))
    assert (await twin.shadow())["version"] == 1


# One history, whoever runs it

GROUP = Group("seeded", model_named("thermostat"), "seeded-{i}", 700, 42, START_S)
ORDERS = [
    TickOrder(GROUP.name, 0, 30),
    TickOrder(GROUP.name, 30, 20, {"set_point": 23.5}),
    TickOrder(GROUP.name, 50, 61),
]
# Changes only with the meaning of a seed, which is a promise: a report repeats years later.
DIGEST = "87717e9226d69f866fa0d20ee783db97fc8d32d85eade30f9c961125dfd7b7d0"


async def digest_after_ticks(fleet: Fleet) -> str:
    await fleet.create_group(GROUP)
    await fleet.tick(ORDERS)
    digest = await fleet.digest()
    await fleet.delete_group(GROUP.name)
    return digest


@pytest.mark.parametrize("shard_count", [1, 2, 8, 64])
async def test_the_digest_does_not_depend_on_the_number_of_shards(shard_count: int) -> None:
    assert await digest_after_ticks(LocalFleet(shard_count)) == DIGEST


async def test_the_digest_of_two_actors_is_that_of_a_fleet_in_one_process(two_actors: RayFleet) -> None:
    assert await digest_after_ticks(two_actors) == DIGEST


async def test_the_digest_of_one_actor_is_that_of_a_fleet_in_one_process(
    ray_cluster: None, tmp_path: Path
) -> None:
    with ray_fleet(tmp_path, 1) as fleet:
        assert await digest_after_ticks(fleet) == DIGEST


async def test_real_twins_stand_outside_the_digest(two_actors: RayFleet, prefix: str) -> None:
    payload = json.dumps({"state": {"reported": {"temperature": 20}}}).encode()
    await two_actors.ask(Request(Operation.SHADOW_UPDATE, f"{prefix}-real", payload))
    assert await digest_after_ticks(two_actors) == DIGEST
