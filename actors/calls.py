"""Calls to actors: how one is made, and a bound for those of this process that are under way.

Ray queues calls without end at an actor that does not keep up, or hangs. Whoever calls for others (the gateway for its
clients) therefore holds on to a few places, and tells the next caller to come again: who waits for a slow actor is
bounded, and nobody who wants another actor waits behind them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import ray
from ray.exceptions import RayActorError

from actors.errors import Overloaded


def submit(method: Any, *arguments: Any, **named: Any) -> Any:
    """Call a method of an actor and return the reference of its answer.

    RayActorError if there is no such actor, as where it dies over the call. Of a handle that is of a Ray that has been
    started again since Ray says so with a bare Exception, at once; without any Ray it knows no better than a mistake.
    """
    try:
        return method.remote(*arguments, **named)
    except Exception as error:
        # Its own errors, and ours, are of a class; what is wrong with the arguments is a TypeError or ValueError.
        if type(error) is not Exception and ray.is_initialized():
            raise
        raise RayActorError(error_msg=str(error)) from error


class CallLimit:
    """At most `count_max` calls under way; `subject` is what they go to, for the text of the refusal."""

    def __init__(self, subject: str, count_max: int) -> None:
        self._subject = subject
        self._count_max = count_max
        self._count = 0

    def begin(self, call: Callable[[], Awaitable[Any]]) -> Awaitable[Any]:
        """Make a call and return an awaitable of its answer; Overloaded, and no call, if too many are under way.

        A call keeps its place until it is answered, also when nobody waits for it any more: the actor has it all the
        same.
        """
        if self._count >= self._count_max:
            raise Overloaded(self._subject)
        under_way = asyncio.ensure_future(call())
        self._count += 1
        under_way.add_done_callback(self._ended)
        return asyncio.shield(under_way)

    def _ended(self, answered: asyncio.Future[Any]) -> None:
        self._count -= 1
        if not answered.cancelled():
            # Or asyncio would complain of an error that nobody has waited for.
            answered.exception()
