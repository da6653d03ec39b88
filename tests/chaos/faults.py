"""What is done to a platform: how each fault strikes, how long it lasts, and how it is mended."""

from __future__ import annotations

import random
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import psutil

from actors.platform_processes import fill_disk, send
from tests.chaos.stage import Stage

# A crash that follows the last one as soon as this does not let a part become useful.
_KILL_AGAIN_EVERY_S: Final = 0.1
# An fsync of a failing disk takes a tenth of a second, and now and then longer than a journal waits for its answer
# (2 s): then it is unknown for a while what was kept. In between the store works for a moment.
_SLOW_WRITES_S: Final = (0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.5, 3.0)
_FAST_S: Final = 0.01
# A clock that was wrong by more than the life of any lease or signature, either way.
_CLOCK_JUMP_S: Final = 3600.0


class Load(Protocol):
    """The auditor, as faults see it: `directory` is where histories are that are judged with its own."""

    directory: Path

    def thing_names(self) -> list[str]:
        """Return the things that it drives."""
        ...


@dataclass
class Fault(ABC):
    """One kind of fault on one part.

    `lasts_s` is how long it lasts in a short trial and in one of full size. `redelivers`: after it the broker may hand
    requests out again that were carried out. `ends_platform`: `twinfleet up` ends, and is started again to mend it.
    `is_survived`: every thing is served again while it lasts, so the time without service counts from the blow on.
    `stands_in_for` is a fault in whose place this one is in short trials, where the machine does not allow that.
    """

    part: str
    lasts_s: tuple[float, float] = (0.0, 0.0)
    redelivers: bool = False
    ends_platform: bool = False
    is_kill: bool = False
    is_survived: bool = False
    stands_in_for: str = ""
    # The names of histories that are written while it strikes.
    histories: Sequence[str] = ()

    @property
    @abstractmethod
    def name(self) -> str:
        """Return what it is called on the command line."""

    def is_possible(self, stage: Stage) -> bool:
        """Tell whether this machine allows it."""
        return True

    def prepare(self, stage: Stage, load: Load) -> None:  # noqa: B027 - most faults need nothing
        """Bring about what it is to strike; TrialFailed if that is not possible."""

    @abstractmethod
    def strike(self, stage: Stage, draws: random.Random) -> None:
        """Let it happen."""

    def last(self, stage: Stage, duration_s: float) -> int:
        """Let it last so long, and return how often it has struck again: the one place where time alone passes."""
        time.sleep(duration_s)
        return 0

    @abstractmethod
    def mend(self, stage: Stage) -> None:
        """End it, if it has not ended by itself."""

    def is_over(self, stage: Stage) -> bool:
        """Tell whether the platform is what it was when this was prepared, as far as the fault knows more of it."""
        return True

    def clear(self, stage: Stage) -> str:
        """Take back what was prepared, whatever came of it; return what should not have been, '' if nothing."""
        return ""


@dataclass
class Kill(Fault):
    """kill -9; to come back by itself is the platform's business."""

    is_kill: bool = True

    @property
    def name(self) -> str:
        return f"kill {self.part}"

    def strike(self, stage: Stage, draws: random.Random) -> None:
        send(stage.one_of(self.part, draws), signal.SIGKILL)

    def mend(self, stage: Stage) -> None:
        if self.ends_platform:
            stage.platform.process.wait()
            stage.start_again()


@dataclass
class Pause(Fault):
    """SIGSTOP, and SIGCONT later: whoever was replaced meanwhile wakes up as a zombie."""

    _paused: list[psutil.Process] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"pause {self.part}"

    def strike(self, stage: Stage, draws: random.Random) -> None:
        self._paused.append(stage.one_of(self.part, draws))
        send(self._paused[-1], signal.SIGSTOP)

    def mend(self, stage: Stage) -> None:
        while self._paused:
            send(self._paused.pop(), signal.SIGCONT)


@dataclass
class Down(Fault):
    """A part that dies again as soon as it is back, for a while."""

    is_kill: bool = True

    @property
    def name(self) -> str:
        return f"{self.part} down"

    def strike(self, stage: Stage, draws: random.Random) -> None:
        self._kill_all(stage)

    def last(self, stage: Stage, duration_s: float) -> int:
        until_s = time.monotonic() + duration_s
        count = 0
        while time.monotonic() < until_s:
            count += self._kill_all(stage)
            time.sleep(_KILL_AGAIN_EVERY_S)
        return count

    def mend(self, stage: Stage) -> None:
        """Leave it alone: the next start succeeds."""

    def _kill_all(self, stage: Stage) -> int:
        running = stage.processes(self.part)
        for process in running:
            send(process, signal.SIGKILL)
        return len(running)


@dataclass
class DiskFull(Fault):
    """No room is left where the platform keeps everything: journal, sessions, snapshots, logs."""

    part: str = "disk"

    @property
    def name(self) -> str:
        return "disk full"

    def is_possible(self, stage: Stage) -> bool:
        return stage.has_small_disk

    def strike(self, stage: Stage, draws: random.Random) -> None:
        fill_disk(stage.data_dir / "ballast")

    def mend(self, stage: Stage) -> None:
        (stage.data_dir / "ballast").unlink()


@dataclass
class SlowDisk(Fault):
    """The store stands still most of the time, as one that waits for its disk at every write does.

    It is stopped and goes on (SIGSTOP, SIGCONT): the disk is the machine's, and others need it.
    """

    part: str = "disk"
    _draws: random.Random = field(default_factory=random.Random)

    @property
    def name(self) -> str:
        return "slow disk"

    def strike(self, stage: Stage, draws: random.Random) -> None:
        """Leave it to `last`, which draws how long each write takes."""
        self._draws = draws

    def last(self, stage: Stage, duration_s: float) -> int:
        (store,) = stage.processes("store")
        until_s = time.monotonic() + duration_s
        while time.monotonic() < until_s:
            send(store, signal.SIGSTOP)
            time.sleep(self._draws.choice(_SLOW_WRITES_S))
            send(store, signal.SIGCONT)
            time.sleep(_FAST_S)
        return 0

    def mend(self, stage: Stage) -> None:
        """Leave it alone: the store goes on."""


@dataclass
class ClockJump(Fault):
    """The machine's clock jumps by an hour, forwards or backwards, and back."""

    part: str = "clock"

    @property
    def name(self) -> str:
        return "clock jump"

    def strike(self, stage: Stage, draws: random.Random) -> None:
        (stage.seams / "clock").write_text(str(draws.choice((-_CLOCK_JUMP_S, _CLOCK_JUMP_S))))

    def mend(self, stage: Stage) -> None:
        (stage.seams / "clock").unlink()
