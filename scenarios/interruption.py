"""How a run learns that somebody wants it to end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interruptible() -> Iterator[asyncio.Event]:
    """Give an event that the first Ctrl-C or SIGTERM sets; a second one ends the process as it always does.

    To be entered in the running loop, after whatever takes over signals itself, as joining Ray does.
    """
    loop = asyncio.get_running_loop()
    interrupt = asyncio.Event()

    def release() -> None:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)

    def on_signal() -> None:
        interrupt.set()
        release()

    for number in _SIGNALS:
        loop.add_signal_handler(number, on_signal)
    try:
        yield interrupt
    finally:
        release()
