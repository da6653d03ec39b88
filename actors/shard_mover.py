"""Brings shards to the actors in which the placement wants them; what it does may be broken off anywhere, and repeated.

The next host reads the shard ahead while the present one serves it. Only then the present one lets go and the next one
opens it: between the two a thing waits some ten milliseconds, however many twins the shard has. Who finds a shard at
neither place opens it again, at the cost of a lease, because somebody may have it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

import msgspec

from actors.errors import StoreError, WorldError
from actors.homes import Homes
from actors.membership import Absences, Membership
from actors.placement import HEAD_NODE, Change, Placement
from actors.shard_actor import HostStatus, ShardOrder

_LOG: Final = logging.getLogger(__name__)
# A shard of 100,000 twins is written down, or read, in about a second; the others of its host wait meanwhile.
_STEP_TIMEOUT_S: Final = 30.0
# While moves take their time, nodes may be lost, and answers.
_LOOK_EVERY_S: Final = 1.0


class ShardMover:
    """Moves shards, one at a time. Two movers at the same time do no harm and no good."""

    def __init__(self, homes: Homes) -> None:
        self._homes = homes

    async def move_shard(self, shard: int, target: str) -> Placement:
        """Return the placement after a shard has moved to an actor, or to a node; the wish stands if it fails.

        PlacementError if there is no such shard, actor or node; WorldError if a part that it takes does not answer.
        """
        told = Change("placement.move", f"shard {shard} to {target}")
        wanted = await self._change(lambda placement: placement.moved_to(shard, target), told)
        await self.carry_out(shard, wanted)
        return self._homes.placement

    async def carry_out_all(self) -> list[str]:
        """Move shards to where they are wanted, and open those that are nowhere; return what was not possible."""
        await self._homes.refresh()
        placement = self._homes.placement
        problems = []
        for shard in placement.pending():
            try:
                await self.carry_out(shard, placement)
            except WorldError as error:
                problems.append(f"shard {shard} stays with {placement.homes[shard]} for now: {error}")
        problems += filter(None, await asyncio.gather(*map(self._open_missing, placement.nodes)))
        return problems

    async def _open_missing(self, actor: str) -> str:
        """Open the shards that an actor should have and has not, because a move was broken off; '' if it has all."""
        try:
            await self._open_where_missing(actor)
        except WorldError as error:
            return f"{actor} lacks shards: {error}"
        return ""

    async def _open_where_missing(self, actor: str) -> None:
        status = await self._homes.call(actor, "status", shard=-1)
        for shard in self._homes.placement.shards_of(actor):
            if shard not in status.shards and status.is_open:
                _LOG.warning("shard %d is opened again in %s", shard, actor)
                await self._open(shard, actor, is_released=False)

    async def carry_out(self, shard: int, placement: Placement) -> None:
        """Bring a shard to where a placement wants it; nothing has changed for its things if an actor does not answer.

        Its present host may have died: all that it has accepted is in the shard's journal.
        """
        home, target = placement.homes[shard], placement.wanted[shard]
        if home != target:
            await self._tell(target, "read_ahead_beside", shard, is_done=lambda now: shard in now.read_shards)
            # Of a node that was lost there is nothing to be heard.
            is_released = home in placement.nodes and await self._is_released(shard, home)
            await self._open(shard, target, is_released=is_released)
            _LOG.info("shard %d moved from %s to %s", shard, home, target)
        await self._homes.refresh()

    async def _is_released(self, shard: int, home: str) -> bool:
        """Tell whether a host has just let go of a shard; if not, it may yet think that it has it."""
        try:
            released = await self._tell(
                home, "release_shards", shard, is_done=lambda now: shard not in now.shards
            )
        except WorldError:
            return False
        # Without an answer it has let go, too; but perhaps of a shard that a former host may still have.
        return released is not None and shard in released

    async def _open(self, shard: int, target: str, *, is_released: bool) -> None:
        order = msgspec.msgpack.encode(ShardOrder((shard,), is_released))
        call = self._homes.call(target, "open_shards", order, shard=shard, timeout_s=_STEP_TIMEOUT_S)
        await self._until_done(call, target, lambda now: shard in now.shards)
        told = Change("placement.moved", f"shard {shard}")
        await self._change(lambda placement: placement.has_moved(shard, target), told)

    async def _change(self, change: Callable[[Placement], Placement], told: Change) -> Placement:
        return await asyncio.to_thread(self._homes.store.change, change, told)

    async def _tell(
        self, actor: str, method: str, shard: int, *, is_done: Callable[[HostStatus], bool]
    ) -> Any:
        call = self._homes.call(actor, method, [shard], shard=shard, timeout_s=_STEP_TIMEOUT_S)
        return await self._until_done(call, actor, is_done)

    async def _until_done(
        self, call: Coroutine[Any, Any, Any], actor: str, is_done: Callable[[HostStatus], bool]
    ) -> Any:
        """Return the answer to a call; None if what it asks for is done, and the answer does not come.

        An answer may be lost. Nobody need wait for it as long as for one that takes its time.
        """
        step = asyncio.ensure_future(call)
        try:
            is_known_done = False
            while not is_known_done:
                await asyncio.wait({step}, timeout=_LOOK_EVERY_S)
                if step.done():
                    return step.result()
                with contextlib.suppress(WorldError):
                    is_known_done = is_done(await self._homes.call(actor, "status", shard=-1))
            # It may be on its way.
            await asyncio.wait({step}, timeout=_LOOK_EVERY_S)
            return step.result() if step.done() else None
        finally:
            step.cancel()


class Placer:
    """The head's part: takes the shards of nodes that are lost, and has moved what is wanted elsewhere."""

    def __init__(self, url: str) -> None:
        """Read the placement from the Redis at a URL; StoreError if there is none."""
        self._homes = Homes(url)
        self._mover = ShardMover(self._homes)
        self._membership = Membership.at(url)
        self._absences = Absences()

    async def place(self) -> list[str]:
        """Do what there is to do at present, and return what was not possible; to be called every second or so."""
        try:
            await self._take_from_lost()
            return await self._until_lost(asyncio.create_task(self._mover.carry_out_all()))
        except StoreError as error:
            self._absences.forget()
            return [str(error)]

    async def _until_lost(self, moving: asyncio.Task[list[str]]) -> list[str]:
        """Return what was not possible; moves that may wait for a node are broken off when that is lost."""
        try:
            while not moving.done():
                await asyncio.wait({moving}, timeout=_LOOK_EVERY_S)
                if not moving.done() and await self._take_from_lost():
                    return []
            return moving.result()
        finally:
            moving.cancel()

    async def _take_from_lost(self) -> bool:
        """Have the shards of nodes that are lost wanted elsewhere; tell whether there are any."""
        await self._homes.refresh()
        nodes = set(self._homes.placement.nodes.values()) - {HEAD_NODE}
        present = await asyncio.to_thread(self._membership.present, nodes)
        lost = self._absences.lost(nodes, present)
        if lost:
            names = ", ".join(sorted(lost))
            _LOG.error("lost, and its shards go to others: %s", names)
            told = Change("placement.lost", names)
            await asyncio.to_thread(
                self._homes.store.change, lambda placement: placement.without_lost(lost), told
            )
        return bool(lost)
