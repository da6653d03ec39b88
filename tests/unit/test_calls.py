"""A few calls under way to one actor, and the next caller is told to come again."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import msgspec
import pytest
import ray
from ray.exceptions import RayActorError

from actors.calls import CallLimit, submit
from actors.errors import Overloaded, ShardUnavailable
from actors.homes import Answer
from actors.parts import ActorPart, ActorPlan

# What Ray 2.60 raises where a handle is of a Ray that has ended; of no class of its own.
FORGOTTEN = 'Failed to submit task to actor ActorID(2c) due to b"Can\'t find actor 2c."'


class Method:
    """A method of an actor whose call fails before it is made."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def remote(self, *_: Any, **__: Any) -> Any:
        raise self._error


class Actor:
    """The handle of an actor that Ray has forgotten."""

    pulse = open = close = Method(Exception(FORGOTTEN))


class RayOwned:
    """Ray, and why it is to be started again."""

    start_count = 1
    loss = ""

    def give_up(self, loss: str) -> None:
        self.loss = loss


def test_a_call_to_an_actor_that_ray_has_forgotten_is_one_to_a_dead_actor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(RayActorError, match="no attribute 'core_worker'"):
        submit(Method(AttributeError("'Worker' object has no attribute 'core_worker'")))
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    with pytest.raises(RayActorError, match="Can't find actor"):
        submit(Method(Exception(FORGOTTEN)))
    with pytest.raises(TypeError, match="two arguments"):
        submit(Method(TypeError("two arguments")))


async def test_a_shard_whose_actor_ray_has_forgotten_is_unavailable() -> None:
    with pytest.raises(ShardUnavailable, match="Can't find actor") as refusal:
        await Answer(lambda: submit(Method(Exception(FORGOTTEN))), 3, 1.0)
    assert refusal.value.shard == 3


async def test_a_part_whose_actor_ray_has_forgotten_has_ended_and_ray_is_started_again() -> None:
    ray_part = RayOwned()
    plan = ActorPlan("bridge", 0, needs=(), create=Actor, settings=lambda _: msgspec.Struct())
    part = ActorPart(plan, ray_part)
    part.create()
    assert "Ray does not start it again" in await part.trouble()
    assert "bridge 0 can't be restarted: Failed to submit task" in ray_part.loss
    # Of an actor of an earlier start nothing is asked.
    ray_part.start_count, ray_part.loss = 2, ""
    assert await part.trouble() == "its actor is being started"
    assert ray_part.loss == ""
    part.close()


async def test_what_is_one_too_many_is_refused_and_not_made() -> None:
    limit, answers = CallLimit("shard actor 0", 2), [asyncio.Future[int]() for _ in range(3)]
    waiting = [asyncio.ensure_future(limit.begin(partial(answers.__getitem__, at))) for at in range(2)]
    made: list[int] = []

    def call() -> asyncio.Future[int]:
        made.append(2)
        return answers[2]

    with pytest.raises(Overloaded, match="shard actor 0") as refusal:
        limit.begin(call)
    assert refusal.value.retryable
    assert made == []
    answers[0].set_result(7)
    assert await waiting[0] == 7
    again = asyncio.ensure_future(limit.begin(call))
    answers[1].set_result(8)
    answers[2].set_result(9)
    assert (await waiting[1], await again) == (8, 9)
    assert made == [2]


async def test_a_call_that_nobody_waits_for_any_more_keeps_its_place() -> None:
    limit, answer = CallLimit("shard actor 0", 1), asyncio.Future[int]()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(limit.begin(lambda: answer), 0)
    with pytest.raises(Overloaded):
        limit.begin(lambda: answer)
    answer.set_exception(ShardUnavailable(0, "it died"))
    # The place is given back in the loop's next turn.
    await asyncio.sleep(0)
    with pytest.raises(ShardUnavailable):
        await limit.begin(lambda: answer)
