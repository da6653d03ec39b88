"""An event loop in virtual time whose every choice is drawn from a seed, and the processes that live in it.

Nothing waits: when nothing is ready, the time moves to the next timer. Which of the callbacks that are ready runs next
is drawn, where the history is to be of that kind; else they run in the order in which they became ready, as under
asyncio's own loop.

Every callback belongs to the process on whose behalf it was scheduled. A process that dies runs no callback any more:
no `finally`, no clean-up, as after kill -9.

What runs may let others go first (`let_others_run`): time passes, and the callbacks of other processes run, while it
stands still in the middle of a call. So synchronous code is interleaved too, at the points where the world around it
would have let others run.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from collections.abc import Callable, Coroutine, Iterator
from contextvars import Context
from random import Random
from typing import Any, Final, TypeVar

from actors.errors import ActorsError

_Result = TypeVar("_Result")
# A history of some twenty seconds takes a few thousand; more is a loop that never ends.
_STEPS_MAX: Final = 60_000
# Calls within calls: a process that stands still in a call, while another is called, and so on.
_DEPTH_MAX: Final = 4


class Process:
    """Something that can die or stand still on its own."""

    __slots__ = ("is_asleep", "is_dead", "name", "put_off")

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_dead = False
        # It stands still in the middle of a call; what has come meanwhile.
        self.is_asleep = False
        self.put_off: list[Handle] = []


class StuckError(Exception):
    """A history does not come to its end."""


class Handle:
    """A callback that is to run; asyncio cancels it."""

    __slots__ = ("_when", "arguments", "callback", "context", "is_cancelled", "process")

    def __init__(
        self,
        process: Process,
        callback: Callable[..., object],
        arguments: tuple[Any, ...],
        context: Context | None,
        when: float,
    ) -> None:
        self.process = process
        self.callback = callback
        self.arguments = arguments
        self.context = context
        self.is_cancelled = False
        self._when = when

    def cancel(self) -> None:
        """Never run."""
        self.is_cancelled = True

    def cancelled(self) -> bool:
        """Tell whether it was cancelled, as asyncio asks."""
        return self.is_cancelled

    def when(self) -> float:
        """Return when it is due, as asyncio asks."""
        return self._when


class VirtualLoop(asyncio.AbstractEventLoop):
    """The loop of one history; `run` makes it the running one."""

    def __init__(self, random: Random, *, is_shuffled: bool) -> None:
        self.current = self.root = Process("world")
        self.errors: list[dict[str, Any]] = []
        # When each step was made, and by whom: equal for equal seeds.
        self.trace: list[tuple[float, str]] = []
        self.last_effect_s = 0.0
        self._random = random
        self._is_shuffled = is_shuffled
        self._now_s = 0.0
        self._ready: list[Handle] = []
        self._timers: list[tuple[float, int, Handle]] = []
        self._timer_count = 0
        self._depth = 0
        # Held until the history ends: a task that nobody holds any more would clean up behind a dead process.
        self._tasks: list[asyncio.Task[Any]] = []

    # What asyncio needs

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self._now_s

    def get_debug(self) -> bool:
        """Return that asyncio need not watch itself."""
        return False

    def is_running(self) -> bool:
        """Return that the loop runs, as it does whenever somebody can ask."""
        return True

    def call_soon(  # type: ignore[override]  # asyncio only ever cancels it
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Handle:
        """Run a callback of the current process when its turn comes."""
        handle = Handle(self.current, callback, args, context, self._now_s)
        self._ready.append(handle)
        return handle

    def call_at(  # type: ignore[override]  # likewise
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Handle:
        """Run a callback of the current process at a time."""
        return self._schedule(Handle(self.current, callback, args, context, when))

    def call_later(  # type: ignore[override]  # likewise
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Handle:
        """Run a callback of the current process after a delay."""
        return self._schedule(Handle(self.current, callback, args, context, self._now_s + delay))

    def create_future(self) -> asyncio.Future[Any]:
        """Return a future of this loop."""
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]  # a coroutine is all that it is given
        self, coro: Coroutine[Any, Any, _Result], *, name: str | None = None, context: Context | None = None
    ) -> asyncio.Task[_Result]:
        """Return a task of the current process."""
        task = asyncio.Task(coro, loop=self, name=name, context=context)
        self._tasks.append(task)
        return task

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Keep an error that nobody has caught: it is a bug."""
        self.errors.append(context)

    def run_in_executor(  # type: ignore[override]  # it is done at once
        self, executor: None, func: Callable[..., _Result], *args: Any
    ) -> asyncio.Future[_Result]:
        """Return what a function returns or raises, as if a thread had run it at once."""
        done: asyncio.Future[_Result] = self.create_future()
        try:
            done.set_result(func(*args))
        except ActorsError as error:
            done.set_exception(error)
        return done

    # What the simulation needs beyond that

    def deliver(
        self, process: Process, delay_s: float, callback: Callable[..., object], *args: Any
    ) -> Handle:
        """Run a callback on behalf of another process after a delay, unless that is dead by then."""
        return self._schedule(Handle(process, callback, args, None, self._now_s + delay_s))

    def start(self, process: Process, coroutine: Coroutine[Any, Any, _Result]) -> asyncio.Task[_Result]:
        """Return a task of another process."""
        with self.acting_as(process):
            return self.create_task(coroutine)

    @contextlib.contextmanager
    def acting_as(self, process: Process) -> Iterator[None]:
        """Let what is scheduled meanwhile belong to a process."""
        before, self.current = self.current, process
        try:
            yield
        finally:
            self.current = before

    def run(self, until_s: float) -> None:
        """Run until a time; StuckError if that takes too many steps."""
        asyncio._set_running_loop(self)
        try:
            self._run_all(until_s)
        finally:
            asyncio._set_running_loop(None)
        self._now_s = max(self._now_s, until_s)

    def let_others_run(self, duration_s: float) -> None:
        """Let time pass in the middle of a synchronous call; who stands still in other calls does so for longer.

        To be called from a plain callback, not from a task: asyncio steps no task within another.
        """
        if self._depth >= _DEPTH_MAX:
            return
        process = self.current
        until_s = self._now_s + duration_s
        self.expect_effect(until_s)
        process.is_asleep = True
        self._depth += 1
        try:
            self._run_all(until_s)
        finally:
            self._depth -= 1
            self.current = process
            process.is_asleep = False
            self._ready += process.put_off
            process.put_off.clear()
        self._now_s = max(self._now_s, until_s)

    def expect_effect(self, at_s: float) -> None:
        """Note that what is under way now may take its effect as late as this, whatever is mended meanwhile."""
        self.last_effect_s = max(self.last_effect_s, at_s)

    def failed_tasks(self) -> Iterator[asyncio.Task[Any]]:
        """Give the tasks that have ended with an error that nobody has asked for."""
        for task in self._tasks:
            if task.done() and task._log_traceback:
                yield task

    def end(self) -> None:
        """Drop all that is left, without running any of it."""
        for task in self._tasks:
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined]  # asyncio's own, for loops
        self._ready.clear()
        self._timers.clear()

    def _schedule(self, handle: Handle) -> Handle:
        self._timer_count += 1
        heapq.heappush(self._timers, (handle._when, self._timer_count, handle))
        return handle

    def _run_all(self, until_s: float) -> None:
        """Run the callbacks that are due until then, one after the other."""
        timers, ready, trace, draw = self._timers, self._ready, self.trace, self._random.random
        is_shuffled = self._is_shuffled
        while ready or (timers and timers[0][0] <= until_s):
            if not ready:
                when, _, handle = heapq.heappop(timers)
                ready.append(handle)
                self._now_s = max(self._now_s, when)
            while timers and timers[0][0] <= self._now_s:
                ready.append(heapq.heappop(timers)[2])
            count = len(ready)
            handle = ready.pop(int(draw() * count) if is_shuffled and count > 1 else 0)
            process = handle.process
            if handle.is_cancelled or process.is_dead:
                continue
            if process.is_asleep:
                process.put_off.append(handle)
                continue
            trace.append((self._now_s, process.name))
            if len(trace) > _STEPS_MAX:
                raise StuckError(f"after {self._now_s:.1f} s the history still goes on")
            self.current = process
            if handle.context is None:
                handle.callback(*handle.arguments)
            else:
                handle.context.run(handle.callback, *handle.arguments)
