"""The parts of a platform as its supervisor sees them: how each is asked how it fares, killed, and brought back.

A part that has ended is started again. One that does not answer is ended first, if it does nothing either: a process
that is stopped or stuck uses no processor time, one that is merely slow does.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

import msgspec
import psutil
import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError, RayTaskError

from actors.actor_settings import Pulse
from actors.calls import submit
from actors.errors import ProcessEnded, WorldError
from actors.ray_fleet import start_shard_actor
from actors.ray_runtime import RayHead, RayNode
from actors.servers import ManagedServer
from actors.settings import is_process_alive

_LOG: Final = logging.getLogger(__name__)
# An answer takes milliseconds, some hundred where all cores are busy.
_ANSWER_TIMEOUT_S: Final = 2.0
# Nobody waits for so long with a reason, unless it works all the time; and nothing works for so long without a word.
_SILENCE_MAX_S: Final = 10.0
_WORK_MAX_S: Final = 120.0
# A process that uses a twentieth of a core is at work; a waiting one with threads of its own uses less.
_WORK_SHARE: Final = 0.05
# Reading back a million twins takes seconds, a long journal after them perhaps a minute.
_OPEN_TIMEOUT_S: Final = 300.0
# Time for a shard actor to write its shards down: a million twins are some 100 MB.
_CLOSE_TIMEOUT_S: Final = 60.0
# Ray starts a process again in one to three seconds, on two busy cores in some more.
_RESTART_TIMEOUT_S: Final = 60.0
_RESTART_POLL_S: Final = 0.1
# Attempts to save the metadata of a Ray whose service does not stay; then all of it is begun anew.
_METADATA_ATTEMPTS_MAX: Final = 3


class Silence:
    """How long a process has not answered, and whether it has been at work meanwhile."""

    def __init__(self) -> None:
        self._since_s = time.monotonic()
        self._used_s = 0.0

    def broken(self, pid: int) -> None:
        """Note that the process has answered just now."""
        self._since_s = time.monotonic()
        self._used_s = _processor_s(pid)

    def trouble(self, pid: int) -> str:
        """Return what to think of a process that does not answer now: '' while there may be a good reason."""
        silent_s = time.monotonic() - self._since_s
        is_at_work = _processor_s(pid) - self._used_s > _WORK_SHARE * silent_s
        if silent_s < (_WORK_MAX_S if is_at_work else _SILENCE_MAX_S):
            return ""
        return f"process {pid} has not answered for {silent_s:.0f} s"


def _processor_s(pid: int) -> float:
    with suppress(psutil.Error):
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)
    return 0.0


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


class ServerPart:
    """The store or the broker: a child process of the supervisor's."""

    index = 0

    def __init__(
        self,
        role: str,
        server: ManagedServer,
        *,
        needs: Sequence[str] = (),
        before_start: Callable[[], Awaitable[None]] | None = None,
        ask_every_s: float = 1.0,
    ) -> None:
        """`before_start` prepares each start; `ask_every_s` because some servers write a line for each question."""
        self.role: Final = role
        self.needs: Final = needs
        self._server = server
        self._before_start = before_start
        self._ask_every_s = ask_every_s
        self._asked_s = time.monotonic()
        self._silence = Silence()

    @property
    def pid(self) -> int:
        """Return the server's process, or its last one."""
        return self._server.pid

    async def trouble(self) -> str:
        """Return why the server does not serve, '' while it does."""
        if not self._server.is_alive():
            return f"process {self.pid} {self._server.end()}"
        now_s = time.monotonic()
        if now_s - self._asked_s < self._ask_every_s:
            return ""
        self._asked_s = now_s
        if await asyncio.to_thread(self._server.answers):
            self._silence.broken(self.pid)
            return ""
        return self._silence.trouble(self.pid)

    def obstacle(self) -> str:
        """Return that the disk is full, if it is."""
        return self._server.obstacle()

    async def revive(self) -> None:
        """Start the server again; WorldError if it does not become ready."""
        if self._server.is_alive():
            _kill(self.pid)
        try:
            if self._before_start is not None:
                await self._before_start()
            # Here, in the main thread: the child ends with the thread that has started it.
            self._server.spawn()
        except OSError as error:
            # A full disk, most likely: nothing can be written of what a server is started with.
            raise WorldError(f"it can't be started: {error}", retryable=True) from error
        try:
            await asyncio.to_thread(self._server.wait_until_ready)
        except ProcessEnded:
            raise
        except WorldError:
            # One that is not ready in time would be in the way of the next.
            _kill(self.pid)
            raise
        self._silence.broken(self.pid)


class RayOwner(Protocol):
    """Whoever keeps the Ray in which actors are made."""

    @property
    def start_count(self) -> int:
        """Return how often Ray has been started: actors of an earlier start are gone."""
        ...

    def give_up(self, loss: str) -> None:
        """Have Ray started again, because it has lost something that it does not bring back."""
        ...


class RayNodePart:
    """The Ray node of this machine, on a machine that is not the head's."""

    role = "ray"
    index = 0
    needs: Sequence[str] = ()

    def __init__(self, node: RayNode, restart: Callable[[], None]) -> None:
        """`restart` starts the node again, and makes its actors again."""
        self._node = node
        self._restart = restart
        self._loss = ""

    @property
    def pid(self) -> int:
        """Return the process of the raylet."""
        return self._node.pid

    @property
    def start_count(self) -> int:
        """Return how often the node has been started."""
        return self._node.start_count

    def give_up(self, loss: str) -> None:
        """Have the node started again."""
        self._loss = loss

    async def trouble(self) -> str:
        """Return what the node lacks, '' if nothing."""
        return self._loss or ("" if self._node.is_alive() else "raylet ended")

    def obstacle(self) -> str:
        """Return nothing: what keeps it from coming back shows when that is tried."""
        return ""

    async def revive(self) -> None:
        """Start the node again, with new actors."""
        try:
            self._restart()
        except (RayError, OSError, RuntimeError) as error:
            raise WorldError(f"Ray does not start: {error}", retryable=True) from error
        self._loss = ""


class RayPart:
    """Ray itself. Its metadata service alone is started again where it was; with anything else, all of it is."""

    role = "ray"
    index = 0
    needs: Sequence[str] = ()

    def __init__(self, head: RayHead, restart: Callable[[], None]) -> None:
        """`restart` starts all of Ray again, and makes its actors again."""
        self._head = head
        self._restart = restart
        self._loss = ""
        self._metadata_attempts = 0
        self._stopped_since_s: dict[int, float] = {}

    @property
    def pid(self) -> int:
        """Return the process of the metadata service."""
        return self._head.pids().get("gcs_server", 0)

    @property
    def start_count(self) -> int:
        """Return how often Ray has been started: actors of an earlier start are gone."""
        return self._head.start_count

    def give_up(self, loss: str) -> None:
        """Have all of Ray started again, because it has lost something that it does not bring back."""
        self._loss = loss

    async def trouble(self) -> str:
        """Return what Ray lacks, '' if nothing."""
        self._end_stopped()
        dead = self._head.dead()
        return self._loss or (f"{' and '.join(dead)} ended" if dead else "")

    def _end_stopped(self) -> None:
        """Kill what is stopped and stays so: nobody would ever notice otherwise."""
        now_s = time.monotonic()
        stopped = {pid for pid in self._head.pids().values() if _is_stopped(pid)}
        since_s = {pid: self._stopped_since_s.get(pid, now_s) for pid in stopped}
        self._stopped_since_s = since_s
        for pid, first_s in since_s.items():
            if now_s - first_s > _SILENCE_MAX_S:
                _kill(pid)

    def obstacle(self) -> str:
        """Return nothing: what keeps it from coming back shows when that is tried."""
        return ""

    async def revive(self) -> None:
        """Bring back the metadata service, or else all of Ray with new actors."""
        only_metadata = self._head.dead() == ["gcs_server"] and not self._loss
        if only_metadata and self._metadata_attempts < _METADATA_ATTEMPTS_MAX:
            self._metadata_attempts += 1
            self._head.restart_metadata_service()
            await asyncio.to_thread(self._head.await_metadata_service)
            return
        try:
            self._restart()
        except (RayError, OSError, RuntimeError) as error:
            raise WorldError(f"Ray does not start: {error}", retryable=True) from error
        self._loss = ""
        self._metadata_attempts = 0


def _is_stopped(pid: int) -> bool:
    with suppress(psutil.Error):
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    return False


@dataclass(frozen=True, slots=True)
class ActorPlan:
    """How an actor of the platform is made and opened: `settings(is_predecessor_gone)` are what it is opened with.

    The predecessor is the process that has done the actor's work before.
    """

    role: str
    index: int
    needs: Sequence[str]
    create: Callable[[], Any]
    settings: Callable[[bool], msgspec.Struct]


class LiveActor(ABC):
    """The process of a Ray actor as its supervisor sees it: how it is asked, waited for and opened."""

    def __init__(self, ray_part: RayOwner) -> None:
        """Begin without an actor."""
        self._ray = ray_part
        self._actor: Any = None
        self._start_count = 0
        self._pid = 0
        self._silence = Silence()

    @property
    def pid(self) -> int:
        """Return the process that has answered last."""
        return self._pid

    @property
    def _is_of_this_ray(self) -> bool:
        """Tell whether the actor is of the Ray that runs now; those of an earlier start are gone."""
        return self._actor is not None and self._start_count == self._ray.start_count

    def _take(self, actor: Any) -> None:
        """Begin anew with an actor that has just been made."""
        self._actor, self._start_count = actor, self._ray.start_count
        self._silence = Silence()

    @abstractmethod
    def _give_up(self, reason: str) -> None:
        """Have the actor made anew: Ray does not start its process again."""

    def _told(self) -> tuple[bytes, ...]:
        """Return what the actor is handed with each pulse."""
        return ()

    async def trouble(self) -> str:
        """Return why the actor does not do its work, '' while it does."""
        if not self._is_of_this_ray:
            return "its actor is being started"
        try:
            pulse = await self._pulse()
        except TimeoutError:
            return self._silence.trouble(self._pid)
        except ActorUnavailableError:
            return f"process {self._pid} ended"
        except RayActorError as error:
            self._give_up(_first_line(error))
            return f"process {self._pid} ended, and Ray does not start it again"
        except RayError as error:
            return _first_line(error)
        self._has_answered(pulse)
        return pulse.trouble if pulse.is_open else f"process {pulse.pid} is new and has not been opened"

    def obstacle(self) -> str:
        """Return nothing: what keeps it from coming back shows when that is tried."""
        return ""

    async def _pulse(self) -> Pulse:
        encoded = await asyncio.wait_for(submit(self._actor.pulse, *self._told()), _ANSWER_TIMEOUT_S)
        return msgspec.msgpack.decode(encoded, type=Pulse)

    def _has_answered(self, pulse: Pulse) -> None:
        self._pid = pulse.pid
        self._silence.broken(pulse.pid)

    def _end_process(self) -> None:
        if self._pid:
            _kill(self._pid)

    async def _until_it_answers(self, is_wanted: Callable[[Pulse], bool]) -> None:
        """Return when a process answers that is wanted; WorldError if none does in time."""
        deadline_s = time.monotonic() + _RESTART_TIMEOUT_S
        problem = "no answer"
        while time.monotonic() < deadline_s:
            try:
                pulse = await self._pulse()
            except (ActorUnavailableError, TimeoutError) as error:
                problem = _first_line(error)
            except RayError as error:
                self._give_up(_first_line(error))
                raise WorldError(_first_line(error), retryable=True) from error
            else:
                if is_wanted(pulse):
                    self._has_answered(pulse)
                    return
            await asyncio.sleep(_RESTART_POLL_S)
        raise WorldError(
            f"its process is not back after {_RESTART_TIMEOUT_S:.0f} s: {problem}", retryable=True
        )

    async def _open(self, settings: msgspec.Struct, timeout_s: float) -> None:
        """Open the actor; WorldError says why that is not possible."""
        call = partial(submit, self._actor.open, msgspec.msgpack.encode(settings))
        try:
            await asyncio.wait_for(call(), timeout_s)
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, WorldError):
                raise cause from None
            raise WorldError(_first_line(cause), retryable=True) from None
        except RayError as error:
            raise WorldError(f"it died while it was opened: {_first_line(error)}", retryable=True) from error
        except TimeoutError:
            self._end_process()
            raise WorldError(
                f"it was not open after {timeout_s:.0f} s; see its log", retryable=True
            ) from None


class ActorPart(LiveActor):
    """A Ray actor of the platform: Ray starts its process again, and this opens it."""

    def __init__(
        self, plan: ActorPlan, ray_part: RayOwner, *, told: Callable[[], bytes] | None = None
    ) -> None:
        """`told` gives what the actor is handed with each pulse."""
        super().__init__(ray_part)
        self._plan = plan
        self._tell = told

    @property
    def role(self) -> str:
        """Return what it is for."""
        return self._plan.role

    @property
    def index(self) -> int:
        """Return its number among the actors of its role."""
        return self._plan.index

    @property
    def needs(self) -> Sequence[str]:
        """Return the roles without which it can't be opened."""
        return self._plan.needs

    @property
    def actor(self) -> Any:
        """Return the handle; the actor must have been created."""
        return self._actor

    def create(self) -> Any:
        """Make the actor in the Ray that runs now, and return its handle; it does nothing until it is opened."""
        self._take(self._plan.create())
        return self._actor

    def settings(self, *, is_predecessor_gone: bool) -> msgspec.Struct:
        """Return what the actor is to be opened with."""
        return self._plan.settings(is_predecessor_gone)

    def _told(self) -> tuple[bytes, ...]:
        return () if self._tell is None else (self._tell(),)

    def _give_up(self, reason: str) -> None:
        self._ray.give_up(f"{self.role} {self.index} can't be restarted: {reason}")

    async def revive(self) -> None:
        """Wait until Ray has brought the process back, and open it; WorldError if either fails."""
        former_pid = self._pid
        if self._is_of_this_ray and self._silence.trouble(former_pid):
            self._end_process()
        await self._until_it_answers(
            lambda pulse: pulse.pid != former_pid or not pulse.is_open or not self._silence.trouble(pulse.pid)
        )
        is_predecessor_gone = not former_pid or not is_process_alive(former_pid)
        await self._open(self._plan.settings(is_predecessor_gone), _OPEN_TIMEOUT_S)

    def close(self) -> None:
        """Let the actor finish; one that has died, hangs or fails over it is left to Ray's own end."""
        try:
            ray.get(submit(self._actor.close), timeout=_CLOSE_TIMEOUT_S)
        except RayActorError:
            # Whoever watches has said so.
            return
        except RayError as error:
            _LOG.warning("a part could not finish: %s", error)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def shard_actor_parts(
    names: Sequence[str],
    node: str,
    ray_part: RayOwner,
    *,
    needs: Sequence[str],
    settings: Callable[[int, str, bool], msgspec.Struct],
) -> list[ActorPart]:
    """Return the shard actors of a node as parts; `settings(index, name, is_predecessor_gone)` opens one of them."""
    return [
        ActorPart(
            ActorPlan(
                "shard_actor",
                index,
                needs=needs,
                create=partial(start_shard_actor, name, node),
                settings=partial(settings, index, name),
            ),
            ray_part,
        )
        for index, name in enumerate(names)
    ]
