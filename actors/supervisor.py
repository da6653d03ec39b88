"""Supervision: parts that have died or fallen silent are brought back, in the order in which they need each other.

One task watches over each part. What a part is, how it is asked and how it is brought back is `parts`'; this module
owns when that is tried, and what is told of it. Nothing gives up: a part that does not stay is tried again after longer
and longer waits, and until it is back the platform says that it is not ready, and why.

A mistake of ours in the turn of one part, or of anything else that is done beside them, must not be the end of all the
others, with the store and the broker: here, and only here, it is written down with its traceback, and tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from typing import Final, Protocol

import msgspec

from actors.errors import PlacementError, WorldError

# A death is noticed within this time, and so is a part's recovery.
LOOK_EVERY_S: Final = 0.5
# The first attempt follows at once: most deaths are accidents. Each further one waits twice as long: a port that is
# taken stays so for a while, and a start costs seconds of processor time. So much longer than its cause an outage lasts
# at most.
_RETRY_DELAY_MIN_S: Final = 0.5
_RETRY_DELAY_MAX_S: Final = 10.0
# Of somebody's behaviours there may be many that fail, and the platform is whole without them.
_PINNED_RETRY_DELAY_MAX_S: Final = 30.0
# A part that has lived for so many of its longest waits has recovered: its next death counts as the first.
_STABLE_AFTER_DELAYS: Final = 2
# So many attempts in a row without that are no accident any more: the part counts as down, not as restarting.
_ACCIDENTS_MAX: Final = 5
# Of parts that come and go with what operators want, and without which the platform is whole.
PINNED_ROLE: Final = "pinned_twin"
_LOG: Final = logging.getLogger(__name__)
# So that it is found in the log.
MISTAKE: Final = "a mistake in this program"


class PartStatus(msgspec.Struct, frozen=True):
    """How a part fares: `state` is `ready`, `restarting` or `down`, `reason` says why where it is not ready.

    `index` numbers the parts of one role, `restart_count` is since the start of the platform. `thing_name` is that of
    the twin that the part is for, if it is for one.
    """

    role: str
    index: int
    pid: int
    state: str
    reason: str
    restart_count: int
    thing_name: str = ""


class Part(Protocol):
    """Something that the platform consists of; all of these methods take bounded time."""

    @property
    def role(self) -> str:
        """Return what it is for: `store`, `broker`, ..."""
        ...

    @property
    def index(self) -> int:
        """Return its number among the parts of its role, from 0."""
        ...

    @property
    def needs(self) -> Sequence[str]:
        """Return the roles without which it can't be brought back."""
        ...

    @property
    def pid(self) -> int:
        """Return the process that does its work, or did."""
        ...

    async def trouble(self) -> str:
        """Return why the part does not do its work, '' while it does."""
        ...

    def obstacle(self) -> str:
        """Return what plainly keeps it from coming back, '' if nothing is known: cheap, and asked often."""
        ...

    async def revive(self) -> None:
        """Bring the part back; WorldError if that is not possible at present."""
        ...


@contextlib.contextmanager
def mistakes_survived(what: str) -> Iterator[None]:
    """Let out only what the world does not do, or has no place for; anything else is a mistake, and written down."""
    try:
        yield
    except (WorldError, PlacementError):
        raise
    except Exception:  # noqa: BLE001 - see the module's text
        _LOG.exception("%s: %s", what, MISTAKE)


class _Watched:
    """A part, and what has become of it."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.is_ready = asyncio.Event()
        self.is_ready.set()
        self.reason = ""
        self.restart_count = 0
        self.task: asyncio.Task[None] | None = None
        # Since it was last stable.
        self.attempt_count = 0
        self.ready_since_s = time.monotonic()
        # What stood in the way when it was last looked.
        self.obstacle = ""

    @property
    def retry_delay_max_s(self) -> float:
        return _PINNED_RETRY_DELAY_MAX_S if self.part.role == PINNED_ROLE else _RETRY_DELAY_MAX_S

    @property
    def is_stable(self) -> bool:
        lived_s = time.monotonic() - self.ready_since_s
        return lived_s > _STABLE_AFTER_DELAYS * self.retry_delay_max_s

    @property
    def name(self) -> str:
        return f"{self.part.role} {self.part.index}"

    def status(self) -> PartStatus:
        state = "ready"
        if not self.is_ready.is_set():
            state = "restarting" if self.attempt_count <= _ACCIDENTS_MAX else "down"
        part = self.part
        thing_name: str = getattr(part, "thing_name", "")
        return PartStatus(
            part.role, part.index, part.pid, state, self.reason, max(self.restart_count, 0), thing_name
        )


class Supervisor:
    """Watches over the parts of a running platform, given in the order in which they were started."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._watched = [_Watched(part) for part in parts]

        self._group: asyncio.TaskGroup | None = None

    def take_up(self, part: Part) -> None:
        """Watch over one more part, which has yet to be started; while `run` runs."""
        if self._group is None:
            raise RuntimeError("the supervisor does not run")
        watched = _Watched(part)
        # The first start is none.
        watched.restart_count = -1
        watched.is_ready.clear()
        watched.reason = "it has yet to be started"
        self._watched.append(watched)
        self._watch(watched)

    async def let_go(self, part: Part) -> None:
        """Return when a part that was taken up is watched over no more."""
        for watched in [each for each in self._watched if each.part is part]:
            self._watched.remove(watched)
            if watched.task is not None:
                watched.task.cancel()
                await asyncio.wait([watched.task])

    def _watch(self, watched: _Watched) -> None:
        assert self._group is not None, "it runs"
        watched.task = self._group.create_task(self._keep(watched), name=f"watch {watched.name}")

    def statuses(self) -> list[PartStatus]:
        """Return how each part fares, in the order of the parts."""
        return [watched.status() for watched in self._watched]

    def is_ready(self, role: str) -> bool:
        """Tell whether every part of a role does its work."""
        return all(each.is_ready.is_set() for each in self._watched if each.part.role == role)

    async def run(self) -> None:
        """Watch and revive until cancelled."""
        async with asyncio.TaskGroup() as self._group:
            for watched in self._watched:
                self._watch(watched)
            # Also while there is nothing to watch over: more may be taken up.
            await asyncio.Event().wait()

    async def _keep(self, watched: _Watched) -> None:
        while True:
            trouble = await self._trouble(watched)
            if trouble:
                await self._bring_back(watched, trouble)
            elif watched.is_stable:
                watched.attempt_count = 0
            await asyncio.sleep(LOOK_EVERY_S)

    async def _trouble(self, watched: _Watched) -> str:
        try:
            return await watched.part.trouble()
        except Exception as error:  # noqa: BLE001 - see the module's text
            _LOG.exception("%s: %s", watched.name, MISTAKE)
            return f"it can't be asked: {error!r}"

    async def _bring_back(self, watched: _Watched, trouble: str) -> None:
        part, name = watched.part, watched.name
        watched.is_ready.clear()
        watched.reason = trouble
        watched.obstacle = part.obstacle()
        _LOG.error("%s: %s", name, trouble)
        while True:
            watched.attempt_count += 1
            if watched.attempt_count > 1:
                await self._wait_to_retry(watched)
            await self._until_ready(part.needs)
            try:
                await part.revive()
            except WorldError as error:
                problem = str(error)
            except Exception as error:  # noqa: BLE001 - see the module's text
                _LOG.exception("%s: %s", name, MISTAKE)
                problem = repr(error)
            else:
                break
            watched.reason = f"{trouble}; attempt {watched.attempt_count} to bring it back: {problem}"
            _LOG.error("%s does not come back: %s", name, problem)
        watched.restart_count += 1
        watched.ready_since_s = time.monotonic()
        watched.reason = ""
        watched.is_ready.set()
        _LOG.warning("%s is back as process %d", name, part.pid)

    async def _wait_to_retry(self, watched: _Watched) -> None:
        """Return when the next attempt is due: what stood in the way is gone, or the time for it has come."""
        exponent = watched.attempt_count - 2
        delay_s = min(_RETRY_DELAY_MIN_S * 2**exponent, watched.retry_delay_max_s)
        due_s = time.monotonic() + delay_s
        while True:
            before, watched.obstacle = watched.obstacle, watched.part.obstacle()
            if before and not watched.obstacle:
                _LOG.info("%s: not any more: %s", watched.name, before)
                watched.attempt_count = 1
                return
            left_s = due_s - time.monotonic()
            if left_s <= 0:
                return
            await asyncio.sleep(min(left_s, LOOK_EVERY_S))

    async def _until_ready(self, roles: Sequence[str]) -> None:
        for watched in self._watched:
            if watched.part.role in roles:
                await watched.is_ready.wait()
