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
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec
import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError, RayTaskError

from actors.actor_settings import PinSettings, Pulse
from actors.behavior_trial import LOAD_TIMEOUT_S
from actors.behaviors import Behavior, call_behavior, due_step, load_behavior, report_request, state_request
from actors.errors import BehaviorUnusable, WorldError
from actors.fleet import Fleet, PinnedTwin, reply_document
from actors.logs import log_to
from actors.parts import RayOwner, Silence
from actors.placement import HEAD_NODE
from actors.ray_fleet import find_fleet, start_actor
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
_ANSWER_TIMEOUT_S: Final = 2.0
_RESTART_TIMEOUT_S: Final = 60.0
_RESTART_POLL_S: Final = 0.1


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


class PinPart:
    """A pinned twin's actor as its supervisor sees it. Each attempt to bring it back has a process of its own."""

    role = PINNED_ROLE
    needs: Sequence[str] = ("store", "ray")

    def __init__(self, index: int, settings: PinSettings, ray_part: RayOwner) -> None:
        self.index: Final = index
        self.thing_name: Final = settings.thing_name
        self._settings = settings
        self._ray = ray_part
        self._actor: Any = None
        self._start_count = 0
        self._pid = 0
        self._silence = Silence()

    @property
    def pid(self) -> int:
        """Return the process that has answered last."""
        return self._pid

    async def trouble(self) -> str:
        """Return why the behaviour is not called, '' while it is."""
        if self._actor is None or self._start_count != self._ray.start_count:
            return "its actor is being started"
        try:
            pulse = await self._pulse()
        except TimeoutError:
            return self._silence.trouble(self._pid)
        except RayError as error:
            return f"process {self._pid} ended: {_first_line(error)}"
        self._pid = pulse.pid
        self._silence.broken(pulse.pid)
        return pulse.trouble if pulse.is_open else f"process {pulse.pid} is new and has not been opened"

    async def _pulse(self) -> Pulse:
        encoded = await asyncio.wait_for(self._actor.pulse.remote(), _ANSWER_TIMEOUT_S)
        return msgspec.msgpack.decode(encoded, type=Pulse)

    async def revive(self) -> None:
        """Open the behaviour in a new process; WorldError says why that is not possible."""
        if self._actor is None or self._start_count != self._ray.start_count:
            self._create()
        else:
            self._kill()
        await self._until_it_answers(self._pid)
        try:
            call = self._actor.open.remote(msgspec.msgpack.encode(self._settings))
            await asyncio.wait_for(call, LOAD_TIMEOUT_S)
        except RayTaskError as error:
            raise WorldError(_first_line(error.cause), retryable=True) from None
        except RayError as error:
            raise WorldError(f"it died while it was opened: {_first_line(error)}", retryable=True) from error
        except TimeoutError:
            text = f"{self._settings.behavior} was not imported after {LOAD_TIMEOUT_S:.0f} s"
            raise WorldError(text, retryable=True) from None

    def _create(self) -> None:
        # A name of its own: that of a former one may be taken for a moment yet.
        name = f"pinned-{self.thing_name}-{secrets.token_hex(4)}"
        try:
            self._actor = start_actor(PinnedActor, name, node=HEAD_NODE)
        except (RayError, ValueError) as error:
            raise WorldError(_first_line(error), retryable=True) from error
        self._start_count, self._pid = self._ray.start_count, 0
        self._silence = Silence()

    def _kill(self) -> None:
        if self._pid:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)

    async def _until_it_answers(self, former_pid: int) -> None:
        deadline_s, problem = time.monotonic() + _RESTART_TIMEOUT_S, "no answer"
        while time.monotonic() < deadline_s:
            try:
                pulse = await self._pulse()
            except (ActorUnavailableError, TimeoutError) as error:
                problem = _first_line(error)
            except RayActorError as error:
                self._actor = None
                raise WorldError(_first_line(error), retryable=True) from error
            else:
                if pulse.pid != former_pid:
                    self._pid = pulse.pid
                    self._silence.broken(pulse.pid)
                    return
            await asyncio.sleep(_RESTART_POLL_S)
        raise WorldError(f"no process after {_RESTART_TIMEOUT_S:.0f} s: {problem}", retryable=True)

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


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
