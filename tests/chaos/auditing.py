"""The auditor as a process of its own beside a platform under test, and what its history tells while it is written."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from actors.processes import wait_until
from scenarios.audit_progress import AuditProgress
from scenarios.history import Fault as FaultEvent
from scenarios.history import encode_event
from tests.chaos.stage import Stage, TrialFailed

_LOAD_TIMEOUT_S: Final = 120.0
# Until all is quiet and read after the load.
_SETTLE_S: Final = 90
# Longer than any trial: the load ends when it is told to.
_LOAD_DURATION: Final = "1h"
# Between the load's begin, or a recovery, and the next blow: so many accepted updates, as the seed draws.
_ACCEPTED_BETWEEN: Final = (5, 40)


@dataclass(frozen=True)
class Size:
    """How much is done in a trial; `blows` is how often something is killed, a lasting fault strikes once."""

    things: int
    rate: int
    blows: int
    is_full: bool


SHORT: Final = Size(things=6, rate=60, blows=1, is_full=False)
FULL: Final = Size(things=8, rate=120, blows=2, is_full=True)


class Auditor:
    """The auditor's process, and the history that it shares with who breaks things."""

    def __init__(
        self, stage: Stage, directory: Path, *, seed: int, size: Size, others: Sequence[str] = ()
    ) -> None:
        """Begin an audit; `others` are the names of histories in `directory` that are judged with its own."""
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.history = directory / "history.jsonl"
        self.faults = directory / "faults.jsonl"
        self.history.unlink(missing_ok=True)
        beside = [self.faults, *(directory / name for name in others)]
        for path in beside:
            path.write_bytes(b"")
        self.progress = AuditProgress(self.history)
        self._size = size
        options = {
            "data-dir": stage.data_dir,
            "things": size.things,
            "rate": size.rate,
            "duration": _LOAD_DURATION,
            "history": self.history,
            "settle": f"{_SETTLE_S}s",
            "seed": seed,
            "output": "json",
        }
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "twinfleet", "audit", "run", "--keep-things"),
                *(f"--{name}={value}" for name, value in options.items()),
                *(f"--with={path}" for path in beside),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        )

    def thing_names(self) -> list[str]:
        """Return the things that the load is on, once all of them have been served; TrialFailed if they are not."""
        self.wait_until(lambda: self.is_served(0.0), "every thing is served", timeout_s=_LOAD_TIMEOUT_S)
        return self.progress.thing_names

    def note(self, event: FaultEvent) -> None:
        """Write down what was broken or mended; it may be told when it is over."""
        with self.faults.open("ab", buffering=0) as file:
            file.write(encode_event(event))

    def wait_until(self, is_true: Callable[[], bool], what: str, *, timeout_s: float) -> None:
        """Wait for a condition; TrialFailed when time is up or the auditor has ended."""
        if not wait_until(lambda: is_true() or self._process.poll() is not None, timeout_s=timeout_s):
            raise TrialFailed(f"{what}: not within {timeout_s:g} s")
        if self._process.poll() is not None:
            raise TrialFailed(f"the auditor ended early: {self.conclude()}")

    def conclude(self) -> dict[str, Any]:
        """End the load and return what the auditor found once all was quiet."""
        self._process.send_signal(signal.SIGTERM)
        try:
            output, errors = self._process.communicate(timeout=_SETTLE_S + _LOAD_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise TrialFailed("the auditor does not come to an end") from None
        if self._process.returncode not in (0, 1):
            raise TrialFailed(f"the auditor ended with {self._process.returncode}: {errors.strip()}")
        found: dict[str, Any] = msgspec.json.decode(output)
        return found

    def kill(self) -> None:
        """End the process, if it has not ended."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()

    def wait_for_load(self, draws: random.Random) -> None:
        """Return when every thing has been served, and some more updates were accepted, as many as `draws` says."""
        self.thing_names()
        wanted_count = self.progress.accepted_count + draws.randint(*_ACCEPTED_BETWEEN)

        def is_moment() -> bool:
            self.progress.read()
            return self.progress.accepted_count >= wanted_count

        self.wait_until(is_moment, "the load goes on", timeout_s=_LOAD_TIMEOUT_S)

    def longest_silence_s(self, since_s: float) -> float:
        """Return the longest time since then without an answer to what a thing, or an operator for it, had sent."""
        return round(self.progress.longest_silence_s(since_s), 2)

    def is_served(self, since_s: float) -> bool:
        """Tell whether every thing has been served since then, over MQTT and HTTP."""
        return self.progress.is_served(since_s, way_count=2 * self._size.things)
