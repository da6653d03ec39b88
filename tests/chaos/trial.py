"""One trial: a fault and a seed, under the auditor."""

from __future__ import annotations

import random
import shlex
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from scenarios.history import Fault as FaultEvent
from tests.chaos.auditing import Auditor, Size, TrialFailed
from tests.chaos.faults import FAULTS, Fault
from tests.chaos.stage import Stage

# A platform that does not serve every thing again by then does not come back by itself.
RECOVERY_TIMEOUT_S: Final = 120.0


class TrialResult(msgspec.Struct, frozen=True):
    """What came of a trial; `failure` is '' where all that was accepted is there and the platform came back."""

    fault: str
    seed: int
    blows: int
    kills: int
    recoveries_s: list[float]
    took_s: float
    operations: int = 0
    accepted: int = 0
    unknown: int = 0
    contradiction: str = ""
    failure: str = ""

    @property
    def holds(self) -> bool:
        """Tell whether all went well."""
        return not (self.contradiction or self.failure)


class Trial:
    """The blows of one fault; the platform serves when it begins, and when it has run."""

    def __init__(self, stage: Stage, fault: Fault, seed: int, *, size: Size, directory: Path) -> None:
        self._stage = stage
        self._fault = fault
        self._seed = seed
        self._size = size
        self._draws = random.Random(f"{fault.name}/{seed}")
        self._auditor = Auditor(stage, directory, seed=seed, size=size)
        self._recoveries_s: list[float] = []
        self._failures: list[str] = []
        self._kill_count = 0

    def run(self) -> TrialResult:
        """Return what comes of it."""
        begun_s = time.monotonic()
        found: dict[str, Any] = {}
        try:
            duration_s = self._fault.lasts_s[self._size.is_full]
            for _ in range(1 if duration_s else self._size.blows):
                self._auditor.wait_for_load(self._draws)
                self._recoveries_s.append(self._strike(duration_s))
            found = self._auditor.conclude()
        except TrialFailed as problem:
            self._failures.append(f"{problem}; {self._stage.state()}")
        finally:
            self._auditor.kill()
        self._start_again_if_ended()
        return TrialResult(
            self._fault.name,
            self._seed,
            blows=len(self._recoveries_s),
            kills=self._kill_count,
            recoveries_s=self._recoveries_s,
            took_s=round(time.monotonic() - begun_s, 1),
            operations=found.get("operations", 0),
            accepted=found.get("accepted", 0),
            unknown=found.get("unknown", 0),
            contradiction=found.get("contradiction", ""),
            failure="; ".join(self._failures),
        )

    def _strike(self, duration_s: float) -> float:
        """Break something and mend it; return how long a thing was not served, at most, from then on."""
        auditor, fault, stage = self._auditor, self._fault, self._stage
        struck_s = time.monotonic()
        fault.strike(stage, self._draws)
        self._kill_count += fault.is_kill
        try:
            again_count = fault.last(stage, duration_s)
            self._kill_count += again_count
        finally:
            mended_s = time.monotonic()
            fault.mend(stage)
        try:
            auditor.wait_until(
                lambda: self._is_back(mended_s),
                "every part is back, and every thing is served again",
                timeout_s=RECOVERY_TIMEOUT_S,
            )
        finally:
            back_s = time.monotonic()
            event = FaultEvent(struck_s, fault.part, fault.name, fault.redelivers, until_s=back_s)
            for _ in range(1 + again_count):
                auditor.note(event)
            auditor.note(FaultEvent(mended_s, fault.part, "mended"))
        return auditor.longest_silence_s(mended_s)

    def _is_back(self, mended_s: float) -> bool:
        self._start_again_if_ended()
        is_served = self._auditor.is_served(mended_s)
        return is_served and self._stage.is_whole() and self._stage.is_ready()

    def _start_again_if_ended(self) -> None:
        """Start a platform again that should not have ended: what it had accepted must be there all the same."""
        if self._stage.has_ended:
            last_words = self._stage.platform.output().strip()[-500:]
            self._failures.append(f"`twinfleet up` ended: {last_words}")
            self._auditor.note(FaultEvent(time.monotonic(), "platform", "started again", redelivers=True))
            self._stage.start_again()


def command_of(fault: Fault, seed: int, size: Size) -> str:
    """Return what repeats a trial, to be pasted into a shell."""
    short = [] if size.is_full else ["--short"]
    return shlex.join(["./dev", "chaos", "--fault", fault.name, "--seed", str(seed), *short])


def line_of(result: TrialResult, size: Size) -> str:
    """Return what came of a trial, and what repeats it if it failed."""
    recoveries = ", ".join(f"{each:.1f}" for each in result.recoveries_s)
    text = f"{result.fault}, seed {result.seed}: {result.accepted} accepted, not served for {recoveries} s"
    if result.holds:
        return text
    repeat = command_of(FAULTS[result.fault], result.seed, size)
    return f"{text}\n  FAILED: {result.failure} {result.contradiction}\n  repeat: {repeat}"
