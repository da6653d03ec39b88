"""What is done to a platform: how each fault strikes, how long it lasts, and how it is mended."""

from __future__ import annotations

import os
import random
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import psutil

from tests.chaos.stage import Stage, send

# A crash that follows the last one as soon as this does not let a part become useful.
_KILL_AGAIN_EVERY_S: Final = 0.1
# An fsync of a failing disk takes a tenth of a second and more; in between the store works for a moment.
_SLOW_WRITE_S: Final = 0.1
_FAST_S: Final = 0.01
# A clock that was wrong by more than the life of any lease or signature, either way.
_CLOCK_JUMP_S: Final = 3600.0
_FILL_BYTES: Final = 1 << 20


@dataclass
class Fault(ABC):
    """One kind of fault on one part.

    `lasts_s` is how long it lasts in a short trial and in one of full size. `redelivers`: after it the broker may hand
    requests out again that were carried out. `ends_platform`: `twinfleet up` ends, and is started again to mend it.
    """

    part: str
    lasts_s: tuple[float, float] = (0.0, 0.0)
    redelivers: bool = False
    ends_platform: bool = False
    is_kill: bool = False

    @property
    @abstractmethod
    def name(self) -> str:
        """Return what it is called on the command line."""

    def is_possible(self, stage: Stage) -> bool:
        """Tell whether this machine allows it."""
        return True

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
        assert stage.has_small_disk, "the disk of the machine is not for filling"
        ballast = stage.data_dir / "ballast"
        with ballast.open("wb", buffering=0) as file:
            for size in (_FILL_BYTES, 4096, 1):
                while self._fill(file.fileno(), size):
                    pass

    @staticmethod
    def _fill(descriptor: int, size: int) -> bool:
        try:
            return os.write(descriptor, bytes(size)) == size
        except OSError:
            return False

    def mend(self, stage: Stage) -> None:
        (stage.data_dir / "ballast").unlink()


@dataclass
class SlowDisk(Fault):
    """The store stands still most of the time, as one that waits for its disk at every write does."""

    part: str = "disk"

    @property
    def name(self) -> str:
        return "slow disk"

    def strike(self, stage: Stage, draws: random.Random) -> None:
        """Leave it to `last`."""

    def last(self, stage: Stage, duration_s: float) -> int:
        (store,) = stage.processes("store")
        until_s = time.monotonic() + duration_s
        while time.monotonic() < until_s:
            send(store, signal.SIGSTOP)
            time.sleep(_SLOW_WRITE_S)
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


# How long things last: in a short trial as long as it takes to be noticed, at full size as long as operators fear. Who
# stands still for ten seconds is replaced.
_ALL: Final = (
    Kill("shard actor"),
    Kill("bridge", redelivers=True),
    Kill("gateway"),
    Kill("store"),
    Kill("broker", redelivers=True),
    Kill("supervisor", redelivers=True, ends_platform=True),
    Kill("gcs"),
    Kill("raylet", redelivers=True),
    Pause("shard actor", lasts_s=(4.0, 20.0)),
    Pause("bridge", lasts_s=(2.0, 20.0), redelivers=True),
    Pause("store", lasts_s=(2.0, 20.0)),
    Pause("broker", lasts_s=(2.0, 20.0), redelivers=True),
    Down("store", lasts_s=(2.0, 30.0)),
    Down("broker", lasts_s=(2.0, 30.0), redelivers=True),
    DiskFull(lasts_s=(2.0, 10.0)),
    SlowDisk(lasts_s=(2.0, 10.0)),
    ClockJump(lasts_s=(1.0, 5.0)),
)
FAULTS: Final[Mapping[str, Fault]] = {fault.name: fault for fault in _ALL}
