"""A few calls under way to one actor, and the next caller is told to come again."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from actors.calls import CallLimit
from actors.errors import Overloaded, ShardUnavailable


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
