"""Where the shards are served, as one process knows it, and how an answer is got from there.

A shard may move at any time. Nobody is told of it: an actor that does not serve a shard says so, having done nothing,
and whoever asked looks the placement up and asks again. A shard on its way is waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final

from ray.exceptions import RayError, RayTaskError

from actors.calls import CallLimit, submit
from actors.errors import ShardNotHere, ShardUnavailable, StoreError, WorldError
from actors.placement import Placement, PlacementStore
from actors.ray_runtime import find_actor

# A request takes milliseconds; a shard actor that does not answer in this time hangs. A shard that moves without a
# word of its former host stands still for a lease, which is less.
ANSWER_TIMEOUT_S: Final = 5.0
# Whole fleets take longer to create, to tick and to be read: a million twins take about a second.
LONG_ANSWER_TIMEOUT_S: Final = 120.0
# Calls of this process to one shard actor that are under way at a time. One that keeps up has answered so many in less
# than 0.1 s; one that hangs holds so many requests of this process, and no more.
CALL_COUNT_MAX: Final = 64
# A shard that is handed over is served again after some 10 ms.
_ASK_AGAIN_S: Final = 0.02
# Handles whose references nobody awaits have no other way to learn of a move.
_OLD_S: Final = 1.0


class Answer(Awaitable[Any]):
    """Makes a Ray call under asyncio and waits for it; raises the actor's own error, and ShardUnavailable for none."""

    def __init__(self, call: Callable[[], Awaitable[Any]], index: int, timeout_s: float) -> None:
        self._call = call
        self._index = index
        self._timeout_s = timeout_s

    def __await__(self) -> Generator[Any, None, Any]:
        return self._wait().__await__()

    async def _wait(self) -> Any:
        try:
            return await asyncio.wait_for(self._call(), self._timeout_s)
        except RayTaskError as error:
            raise error.cause from None
        except RayError as error:
            raise ShardUnavailable(self._index, str(error).splitlines()[0]) from error
        except TimeoutError as error:
            raise ShardUnavailable(self._index, f"no answer in {self._timeout_s} s") from error


class Homes:
    """The homes of all shards; it can be pickled, and is then the one of the process where it arrives."""

    def __init__(self, url: str) -> None:
        """Read the placement from the Redis at a URL; StoreError if there is none."""
        self._url = url
        self._store = PlacementStore.at(url)
        self._actors: dict[str, Any] = {}
        self._limits: dict[str, CallLimit] = {}
        # By actor; a lane stays what it was when its actor has gone.
        self._lanes: dict[str, int] = {}
        self._take(self._store.read())

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how another process gets its own."""
        return homes_of_this_process, (self._url,)

    @property
    def store(self) -> PlacementStore:
        """Return where the placement stands."""
        return self._store

    @property
    def placement(self) -> Placement:
        """Return the placement as it was last read."""
        return self._placement

    @property
    def lanes(self) -> list[str]:
        """Return the actors that there are or were, in the order in which this process learned of them."""
        return list(self._lanes)

    def lane_of(self, shard: int) -> int:
        """Return the position among the lanes of a shard's actor."""
        return self._lanes[self._placement.homes[shard]]

    def _take(self, placement: Placement) -> None:
        self._placement = placement
        self._read_s = time.monotonic()
        for actor in (*placement.nodes, *placement.homes):
            self._lanes.setdefault(actor, len(self._lanes))

    async def refresh(self) -> None:
        """Read the placement again; StoreError if Redis does not answer."""
        self._take(await asyncio.to_thread(self._store.read))

    def refresh_if_old(self) -> None:
        """Read the placement again if that was long ago; while Redis does not answer, what is known has to do."""
        if time.monotonic() - self._read_s > _OLD_S:
            with contextlib.suppress(StoreError):
                self._take(self._store.read())

    def actor(self, name: str) -> Any:
        """Return the handle of an actor; ShardUnavailable if Ray knows none of that name, or does not say."""
        actor = self._actors.get(name)
        if actor is None:
            try:
                actor = self._actors[name] = find_actor(name)
            except (ValueError, RayError) as error:
                shard = next(iter(self._placement.shards_of(name)), -1)
                raise ShardUnavailable(shard, f"its actor {name} is not found") from error
        return actor

    def actor_of(self, shard: int) -> Any:
        """Return the handle of the actor that serves a shard."""
        return self.actor(self._placement.homes[shard])

    async def call(
        self,
        name: str,
        method: str,
        *arguments: Any,
        shard: int,
        named: Mapping[str, Any] = MappingProxyType({}),
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> Any:
        """Return the answer of an actor; ShardUnavailable, about a shard, if there is none in time.

        Overloaded, and no call, if too many are under way to it.
        """
        try:
            called = getattr(self.actor(name), method)
            limit = self._limits.setdefault(name, CallLimit(f"shard actor {name}", CALL_COUNT_MAX))
            return await Answer(
                lambda: limit.begin(lambda: submit(called, *arguments, **named)), shard, timeout_s
            )
        except ShardNotHere:
            raise
        except ShardUnavailable:
            # Another actor may have the name by now.
            self._actors.pop(name, None)
            raise

    async def ask(self, shard: int, method: str, *arguments: Any, **named: Any) -> Any:
        """Return the answer of the actor that serves a shard; one on its way to another actor is waited for."""
        patience = Patience(self)
        while True:
            home = self._placement.homes[shard]
            try:
                return await self.call(
                    home, method, *arguments, shard=shard, named=named, timeout_s=patience.left_s()
                )
            except WorldError as error:
                await patience.again_after(error)

    async def ask_each(self, method: str, *arguments: Any) -> list[Any]:
        """Return the answers of all actors to a method whose first argument are those of its shards that are meant.

        Each shard is asked for once, though one on its way is waited for.
        """
        await self.refresh()
        patience = Patience(self)
        answers: list[Any] = []
        waiting: Sequence[int] = range(len(self._placement.homes))
        while waiting:
            by_home: dict[str, list[int]] = {}
            for shard in waiting:
                by_home.setdefault(self._placement.homes[shard], []).append(shard)
            results = await asyncio.gather(
                *(
                    self.call(
                        home, method, shards, *arguments, shard=shards[0], timeout_s=LONG_ANSWER_TIMEOUT_S
                    )
                    for home, shards in by_home.items()
                ),
                return_exceptions=True,
            )
            waiting, refusal = [], None
            for shards, result in zip(by_home.values(), results, strict=True):
                if isinstance(result, ShardNotHere):
                    waiting, refusal = [*waiting, *shards], result
                elif isinstance(result, BaseException):
                    raise result
                else:
                    answers.append(result)
            if refusal is not None:
                await patience.again_after(refusal)
        return answers


class Patience:
    """How long a caller waits for shards that are on their way."""

    def __init__(self, homes: Homes) -> None:
        self._homes = homes
        self._deadline_s = time.monotonic() + ANSWER_TIMEOUT_S

    def left_s(self) -> float:
        """Return how much time is left."""
        return max(0.0, self._deadline_s - time.monotonic())

    async def again_after(self, error: WorldError) -> None:
        """Return when it is time to ask again; raise `error` if that can't help, or might do a thing twice."""
        if isinstance(error, ShardNotHere) and self.left_s() > _ASK_AGAIN_S:
            await asyncio.sleep(_ASK_AGAIN_S)
            await self._homes.refresh()
            return
        # The next caller shall not ask there if that is known to be wrong.
        with contextlib.suppress(StoreError):
            await self._homes.refresh()
        raise error


@lru_cache
def homes_of_this_process(url: str) -> Homes:
    """Return the homes by the Redis at a URL that all handles of this process share."""
    return Homes(url)
