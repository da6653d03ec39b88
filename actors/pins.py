"""Pinned twins: a Ray actor each that runs a twin's behaviour, and who keeps these actors going.

Which twins are pinned stands in their shards, and so does all that a twin is and its behaviour remembers: an actor
asks for it, calls the behaviour, and sends the answer, which counts only if no other has come since. So an actor may be
killed anywhere, or run twice for a moment; and what a behaviour does to its own process harms nobody else.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
import ray
from ray.exceptions import RayError

from actors.actor_settings import PinSettings, Pulse
from actors.behavior_trial import LOAD_TIMEOUT_S
from actors.behaviors import Behavior, call_behavior, due_step, load_behavior, report_request, state_request
from actors.errors import BehaviorUnusable, WorldError
from actors.fleet import Fleet, PinnedTwin, reply_document
from actors.logs import log_to
from actors.parts import LiveActor, RayOwner
from actors.placement import HEAD_NODE
from actors.ray_fleet import find_fleet, start_actor
from actors.ray_runtime import require_metadata_service
from actors.supervisor import PINNED_ROLE, Supervisor
from twins.errors import RequestError, ShadowNotFound, VersionConflict
from twins.handover import decode_pin_state

_LOG: Final = logging.getLogger(__name__)
# How often an actor looks whether its behaviour is due: a twin's time has no finer steps than a second.
_LOOK_EVERY_S: Final = 0.25
# A model that takes longer for one step than this cannot keep up with anything.
STEP_TIMEOUT_S: Final = 10.0
# While the shard moves or restarts there is nothing to do.
_ASK_AGAIN_S: Final = 1.0


class PinnedActor:
    """Runs one behaviour. The constructor can't fail; `open` comes once in a process."""

    def __init__(self) -> None:
        self._trouble = ""
        self._is_open = False
        # When the call of the behaviour that is under way began.
        self._called_at_s: float | None = None

    async def open(self, encoded: bytes) -> None:
        """Find the behaviour and begin to call it; BehaviorUnusable says why it can't be."""
        settings = msgspec.msgpack.decode(encoded, type=PinSettings)
        log_to(Path(settings.log_file))
        behavior = await asyncio.to_thread(
            load_behavior, settings.behavior, Path(settings.behavior_directory)
        )
        self._fleet: Fleet = find_fleet(settings.redis_url)
        self._task = asyncio.create_task(self._run(settings, behavior))
        self._is_open = True

    async def _run(self, settings: PinSettings, behavior: Behavior) -> None:
        while True:
            try:
                await self._step(settings, behavior)
            except VersionConflict:
                # Somebody else has called it meanwhile, or a real device has come.
                pass
            except ShadowNotFound:
                # It is unpinned; whoever keeps this process ends it.
                pass
            except (BehaviorUnusable, RequestError) as error:
                self._trouble = str(error) if isinstance(error, BehaviorUnusable) else f"refused: {error}"
                _LOG.exception("%s stands still", settings.thing_name)
                return
            except WorldError:
                await asyncio.sleep(_ASK_AGAIN_S)
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _step(self, settings: PinSettings, behavior: Behavior) -> None:
        reply = await self._fleet.ask(state_request(settings.thing_name))
        reply_document(reply)
        state = decode_pin_state(reply.payload)
        step = due_step(behavior, settings.thing_name, state)
        if step is None or state.behavior != settings.behavior:
            return
        self._called_at_s = time.monotonic()
        # In a thread, so that others are answered; one that never returns ends with the process.
        answer = await asyncio.to_thread(call_behavior, behavior, settings.behavior, step)
        self._called_at_s = None
        reply_document(await self._fleet.ask(report_request(settings.behavior, state, step, answer)))

    async def pulse(self) -> bytes:
        """Return its `Pulse`: whether the behaviour is called, and returns."""
        trouble = self._trouble
        if self._called_at_s is not None and time.monotonic() - self._called_at_s > STEP_TIMEOUT_S:
            trouble = f"step has not returned for {STEP_TIMEOUT_S:.0f} s"
        return msgspec.msgpack.encode(Pulse(os.getpid(), self._is_open, trouble))


class PinPart(LiveActor):
    """A pinned twin's actor as its supervisor sees it. Each attempt to bring it back has a process of its own."""

    role = PINNED_ROLE
    needs: Sequence[str] = ("store", "ray")

    def __init__(self, index: int, settings: PinSettings, ray_part: RayOwner) -> None:
        super().__init__(ray_part)
        self.index: Final = index
        self.thing_name: Final = settings.thing_name
        self._settings = settings

    def _give_up(self, reason: str) -> None:
        _LOG.warning("pinned twin %s gets another actor: %s", self.thing_name, reason)
        self._actor = None

    async def revive(self) -> None:
        """Open the behaviour in a new process; WorldError says why that is not possible."""
        if self._is_of_this_ray:
            self._end_process()
        else:
            self._create()
        former_pid = self._pid
        await self._until_it_answers(lambda pulse: pulse.pid != former_pid)
        await self._open(self._settings, LOAD_TIMEOUT_S)

    def _create(self) -> None:
        # A name of its own: that of a former one may be taken for a moment yet.
        name = f"pinned-{self.thing_name}-{secrets.token_hex(4)}"
        try:
            require_metadata_service()
            self._take(start_actor(PinnedActor, name, node=HEAD_NODE))
        except (RayError, ValueError) as error:
            raise WorldError(str(error).partition("\n")[0], retryable=True) from error
        self._pid = 0

    def end(self) -> None:
        """End the actor for good, if there is one."""
        actor, self._actor = self._actor, None
        if actor is not None:
            with suppress(RayError, ValueError):
                ray.kill(actor)


class PinKeeper:
    """Has an actor for each twin that is pinned, and for no other; the supervisor keeps those going."""

    def __init__(
        self, supervisor: Supervisor, ray_part: RayOwner, settings: Callable[[PinnedTwin], PinSettings]
    ) -> None:
        """Begin with no actor; `settings` say what that of a pinned twin is opened with."""
        self._supervisor = supervisor
        self._ray = ray_part
        self._settings = settings
        self._parts: dict[PinnedTwin, PinPart] = {}

    async def keep(self, fleet: Fleet) -> None:
        """Begin with the twins that have been pinned, end with those that have been unpinned; for every second.

        WorldError if the shards don't answer.
        """
        pinned = await fleet.pins()
        for twin in self._parts.keys() - set(pinned):
            part = self._parts.pop(twin)
            await self._supervisor.let_go(part)
            part.end()
        for twin in pinned:
            if twin not in self._parts:
                taken = {part.index for part in self._parts.values()}
                index = next(each for each in range(len(taken) + 1) if each not in taken)
                part = self._parts[twin] = PinPart(index, self._settings(twin), self._ray)
                self._supervisor.take_up(part)

    async def close(self) -> None:
        """End all of the actors; the twins stay pinned."""
        for part in self._parts.values():
            await self._supervisor.let_go(part)
            part.end()
        self._parts = {}
