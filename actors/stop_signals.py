"""SIGTERM and Ctrl-C for the processes that run a platform or a node: where they count, and where they have to wait."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Coroutine, Iterator
from typing import Any, Final

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class StopRequested(BaseException):
    """SIGTERM or Ctrl-C: not an error, but the end."""


@contextlib.contextmanager
def signals_caught() -> Iterator[None]:
    """Turn SIGTERM and Ctrl-C into StopRequested, once: a second one does not break off the stopping."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    catch_signals()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def catch_signals() -> None:
    """Turn the next of them into StopRequested."""
    for number in STOP_SIGNALS:
        signal.signal(number, _stop)


def _stop(_number: int, _frame: object) -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise StopRequested


@contextlib.contextmanager
def signals_noted() -> Iterator[list[int]]:
    """Give the signals that came meanwhile: Ray, broken off while it starts, aborts at its exit.

    Whoever handled them before has to be appointed again: Ray puts its own handlers in their place. A second signal
    ends the platform at once.
    """
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        # The handler of Ray's C++ part, which comes before this one, sets an alarm that aborts the process.
        signal.alarm(0)
        if received:
            _stop(number, frame)
        received.append(number)

    for number in STOP_SIGNALS:
        signal.signal(number, note)
    yield received


def set_at_signals(stop: asyncio.Event) -> None:
    """Have the next signals set `stop`; again, where Ray has put its own handlers in their place."""
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.remove_signal_handler(number)
        loop.add_signal_handler(number, stop.set)


async def run_until(stop: asyncio.Event, **work: Coroutine[Any, Any, None]) -> None:
    """Do work of several kinds until `stop` is set, or one of them fails; signals are ignored afterwards."""
    set_at_signals(stop)
    tasks = [asyncio.create_task(each, name=name) for name, each in work.items()]
    tasks.append(asyncio.create_task(_wait(stop), name="stop"))
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for number in STOP_SIGNALS:
            asyncio.get_running_loop().remove_signal_handler(number)
            # From now on everything is being stopped already.
            signal.signal(number, signal.SIG_IGN)


async def _wait(stop: asyncio.Event) -> None:
    await stop.wait()
