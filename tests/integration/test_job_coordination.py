"""Jobs across the fleet: who gets an execution and when, and that whoever takes over goes on where it was."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import pytest

from actors.errors import DescriptionError, RecordExists, RecordNotFound, ShardUnavailable
from actors.fleet import LocalFleet, assigned_request
from actors.job_coordination import JobCoordinator, exponential_rate
from actors.registry.job_orders import CancelOrder, CreateOrder, DeleteOrder
from actors.registry.jobs import AbortCriterion, ExponentialRate, JobRecord, Jobs
from actors.registry.records import ThingGroupRecord, new_thing
from actors.registry.registry import Registry
from actors.registry.things import Addition
from actors.store import RedisServer
from twins.assignments import AskJobs
from twins.clock import VirtualClock
from twins.messages import Operation, Publish, Reply, Request

NOW_S = 1_700_000_000.0
GIVEN_AT_ONCE = 10
_PREFIXES = (f"jobs{number}:" for number in itertools.count())


class DyingFleet(LocalFleet):
    """A fleet that stops to answer after some orders, as it is for a coordinator that dies."""

    orders_left: float = float("inf")

    async def ask_many(self, requests: Sequence[Request]) -> list[Reply]:
        """Answer, or carry out a part and fail."""
        count = int(min(self.orders_left, len(requests)))
        self.orders_left -= count
        replies = await super().ask_many(requests[:count])
        if count < len(requests):
            raise ShardUnavailable(0, "the test says so")
        return replies


class Scene:
    """A fleet, a registry and a coordinator over them, under one clock."""

    def __init__(self, url: str) -> None:
        self.url, self.prefix = url, next(_PREFIXES)
        self.clock = VirtualClock(NOW_S)
        self.fleet = DyingFleet(shard_count=4, clock=self.clock)
        self.heard: list[Publish] = []
        self.fleet.listen("$aws/things/+/jobs/#", self.heard.append)

    async def open(self) -> None:
        self.registry = await Registry.open(self.url, self.clock, prefix=self.prefix)
        await self.begin()

    async def begin(self) -> None:
        """Begin with a new coordinator: the one before is dead, or thinks that it is alive."""
        self.jobs = await Jobs.open(self.url, self.clock, prefix=self.prefix, is_writer=True)
        self.coordinator = JobCoordinator(
            self.jobs, self.registry, self.fleet, self.clock, given_at_once=GIVEN_AT_ONCE
        )

    async def things(self, *names: str, group: str = "") -> None:
        for start in range(0, len(names), 500):
            records = [new_thing(name, "untyped", {}, now_s=NOW_S) for name in names[start : start + 500]]
            await self.registry.things.add_all([Addition(record) for record in records], by="test")
        if group:
            for name in names:
                await self.join(name, group)

    async def join(self, name: str, group: str) -> None:
        await self.regroup(name, [group])

    async def regroup(self, name: str, groups: list[str]) -> None:
        await self.registry.things.change(
            name,
            lambda thing: msgspec.structs.replace(thing, groups=groups),
            action="thing.update",
            by="test",
        )

    async def create(self, job_id: str, *targets: str, **more: Any) -> None:
        now_s = self.clock.now_s()
        selection = more.pop("selection", "SNAPSHOT")
        record = JobRecord(job_id, '{"do":"it"}', list(targets), selection, now_s, now_s, **more)
        await self.coordinator.order(CreateOrder(record, "test"))

    async def pass_s(self, seconds: float) -> None:
        """Let time pass, a second at a time, as the coordinator looks at it."""
        for _ in range(int(seconds)):
            self.clock.advance_to(self.clock.now_s() + 1)
            await self.coordinator.step()

    async def statuses(self, job_id: str) -> dict[str, int]:
        return (await self.fleet.job_counts()).get(job_id, {})

    async def report(self, thing: str, job_id: str, status: str) -> None:
        payload = json.dumps({"status": status}).encode()
        request = Request(Operation.JOB_CHANGE, thing, payload, f"{job_id}/update", is_direct=True)
        assert (await self.fleet.ask(request)).status == 200

    async def close(self) -> None:
        await self.jobs.close()
        await self.registry.close()


@pytest.fixture
async def scene(shared_store: RedisServer) -> AsyncIterator[Scene]:
    """Give a scene on its own part of the module's store."""
    made = Scene(shared_store.url)
    await made.open()
    yield made
    await made.close()


async def test_a_job_reaches_its_things_and_is_over_when_they_are(scene: Scene) -> None:
    await scene.create("update", "thing/a", "thing/b")
    await scene.coordinator.step()
    assert await scene.statuses("update") == {"QUEUED": 2}
    topics = sorted(message.topic for message in scene.heard)
    assert topics == [
        f"$aws/things/{name}/jobs/{what}" for name in "ab" for what in ("notify", "notify-next")
    ]
    await scene.report("a", "update", "SUCCEEDED")
    await scene.coordinator.step()
    assert (await scene.jobs.get("update")).status == "IN_PROGRESS"
    await scene.report("b", "update", "FAILED")
    await scene.coordinator.step()
    job = await scene.jobs.get("update")
    assert (job.status, job.given_count, job.completed_at_s) == ("COMPLETED", 2, NOW_S)
    assert await scene.jobs.open_jobs() == []


async def test_a_group_is_taken_as_it_is_and_a_continuous_job_follows_it(scene: Scene) -> None:
    await scene.registry.groups.add(ThingGroupRecord("hall", "id", 0), by="test")
    await scene.things("a", "b", group="hall")
    await scene.create("once", "thinggroup/hall")
    await scene.create("always", "thinggroup/hall", selection="CONTINUOUS")
    await scene.coordinator.step()
    await scene.things("c", group="hall")
    await scene.regroup("a", [])
    await scene.pass_s(6)
    assert await scene.statuses("once") == {"QUEUED": 2}
    assert await scene.statuses("always") == {"QUEUED": 2, "REMOVED": 1}
    for name in "bc":
        await scene.report(name, "always", "SUCCEEDED")
    await scene.pass_s(1)
    assert (await scene.jobs.get("always")).status == "IN_PROGRESS"


async def test_a_rate_spreads_executions_over_time(scene: Scene) -> None:
    await scene.create("slow", *(f"thing/t{number}" for number in range(40)), maximum_per_minute=12)
    found = []
    for _ in range(3):
        await scene.pass_s(60)
        found.append((await scene.statuses("slow"))["QUEUED"])
    assert found == [12, 24, 36]


def test_an_exponential_rate_grows_as_its_criterion_is_met() -> None:
    notified = ExponentialRate(50, 2, {"numberOfNotifiedThings": 1000})
    assert [exponential_rate(notified, each, 0) for each in (0, 999, 1000, 2000, 3500)] == [
        50,
        50,
        100,
        200,
        400,
    ]
    succeeded = ExponentialRate(50, 1.5, {"numberOfSucceededThings": 10})
    assert [exponential_rate(succeeded, 500, each) for each in (0, 10, 20)] == [50, 75, 112.5]


@pytest.mark.parametrize("orders", [0, 1, 3, GIVEN_AT_ONCE + 5, GIVEN_AT_ONCE + 9])
async def test_a_coordinator_that_dies_among_its_orders_has_a_successor_that_goes_on(
    scene: Scene, orders: int
) -> None:
    count = 2 * GIVEN_AT_ONCE + 3
    await scene.create("big", *(f"thing/t{number}" for number in range(count)))
    scene.fleet.orders_left = orders
    with pytest.raises(ShardUnavailable):
        await scene.coordinator.step()
    former, scene.fleet.orders_left = scene.jobs, float("inf")
    await scene.begin()
    await scene.coordinator.step()
    await former.close()
    assert await scene.statuses("big") == {"QUEUED": count}
    notified = [message.topic for message in scene.heard if message.topic.endswith("/notify")]
    assert (len(notified), len(set(notified))) == (count, count)
    assert (await scene.jobs.get("big")).given_count == count


async def test_cancelling_leaves_what_is_in_progress_unless_it_is_forced(scene: Scene) -> None:
    await scene.create("update", "thing/a", "thing/b", "thing/c", maximum_per_minute=1)
    await scene.pass_s(61)
    await scene.report("a", "update", "IN_PROGRESS")
    await scene.coordinator.order(CancelOrder("update", "test", comment="recalled"))
    await scene.pass_s(120)
    assert await scene.statuses("update") == {"IN_PROGRESS": 1, "CANCELED": 1}
    await scene.coordinator.order(CancelOrder("update", "test", force=True))
    await scene.pass_s(1)
    assert await scene.statuses("update") == {"CANCELED": 2}
    [reply] = await scene.fleet.ask_many([assigned_request("a", AskJobs("update"))])
    assert json.loads(reply.payload)["executions"][0]["forceCanceled"] is True
    assert await scene.jobs.open_jobs() == []


async def test_deleting_takes_a_job_and_its_executions_and_frees_its_name(scene: Scene) -> None:
    await scene.create("update", "thing/a", "thing/b")
    await scene.coordinator.step()
    with pytest.raises(DescriptionError, match="cancel it first"):
        await scene.coordinator.order(DeleteOrder("update", "test"))
    await scene.coordinator.order(DeleteOrder("update", "test", force=True))
    scene.fleet.orders_left = 1
    with pytest.raises(ShardUnavailable):
        await scene.coordinator.step()
    scene.fleet.orders_left = float("inf")
    await scene.coordinator.step()
    with pytest.raises(RecordNotFound):
        await scene.jobs.get("update")
    assert await scene.fleet.job_counts() == {}
    await scene.create("update", "thing/a", in_progress_minutes=5)
    await scene.coordinator.step()
    assert await scene.statuses("update") == {"QUEUED": 1}


async def test_a_job_that_goes_badly_is_cancelled_by_itself(scene: Scene) -> None:
    criterion = AbortCriterion("ALL", 50, 2)
    await scene.create("bad", *(f"thing/t{number}" for number in range(4)), abort=[criterion])
    await scene.coordinator.step()
    await scene.report("t0", "bad", "FAILED")
    await scene.coordinator.step()
    assert (await scene.jobs.get("bad")).status == "IN_PROGRESS"
    await scene.report("t1", "bad", "REJECTED")
    await scene.pass_s(2)
    assert (await scene.jobs.get("bad")).status == "CANCELED"
    assert await scene.statuses("bad") == {"FAILED": 1, "REJECTED": 1, "CANCELED": 2}


async def test_timers_end_though_no_device_says_anything(scene: Scene) -> None:
    await scene.create("timed", "thing/a", in_progress_minutes=1)
    await scene.coordinator.step()
    await scene.report("a", "timed", "IN_PROGRESS")
    await scene.pass_s(59)
    assert await scene.statuses("timed") == {"IN_PROGRESS": 1}
    await scene.pass_s(2)
    assert await scene.statuses("timed") == {"TIMED_OUT": 1}
    assert (await scene.jobs.get("timed")).status == "COMPLETED"


async def test_a_name_that_is_taken_is_refused_unless_it_is_the_same_job_again(scene: Scene) -> None:
    await scene.create("update", "thing/a")
    await scene.create("update", "thing/a")
    with pytest.raises(RecordExists):
        await scene.create("update", "thing/b")
    with pytest.raises(RecordNotFound):
        await scene.coordinator.order(CancelOrder("other", "test"))
