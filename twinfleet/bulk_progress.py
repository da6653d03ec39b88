"""What a person sees while many devices are created: a bar on a terminal, else a line a second."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from twinfleet import bulk_creation

# A log wants one line a second.
_LINE_EVERY_S: Final = 1.0


@contextlib.contextmanager
def progress_for(title: str, console: Console | None = None) -> Iterator[bulk_creation.Progress]:
    """Give what shows the progress on the console (standard error, unless told otherwise)."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(console, title)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _Lines:
    """Prints one line a second, the first and the last in any case."""

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._title = title
        self._next_s = 0.0

    def __call__(self, done: int, total: int) -> None:
        now_s = time.monotonic()
        if now_s >= self._next_s or done == total:
            self._next_s = now_s + _LINE_EVERY_S
            self._console.print(
                f"{self._title}: {done:,} of {total:,} things", highlight=False, soft_wrap=True
            )
