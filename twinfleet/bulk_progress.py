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
    """Give what shows the progress on the console (standard error, unless told otherwise).

    When the run is cut off, by an error or by the person, a last line says how far it has come.
    """
    console = console or Console(stderr=True)
    reached = (0, 0)
    with _shown(title, console) as show:

        def note(done: int, total: int) -> None:
            nonlocal reached
            reached = (done, total)
            show(done, total)

        try:
            yield note
        finally:
            done, total = reached
            if done < total:
                text = f"{title}: cut off after {done:,} of {total:,} things; the same command goes on from there"
                _print(console, text)


@contextlib.contextmanager
def _shown(title: str, console: Console) -> Iterator[bulk_creation.Progress]:
    if not console.is_terminal:
        yield _Lines(console, title)
        return
    name = TextColumn("{task.description}", markup=False)
    with Progress(name, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _print(console: Console, text: str) -> None:
    # A file's name may have what the console would take for markup.
    console.print(text, highlight=False, soft_wrap=True, markup=False)


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
            _print(self._console, f"{self._title}: {done:,} of {total:,} things")
