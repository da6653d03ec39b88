"""One trial: a fault and a seed, under the auditor."""

from __future__ import annotations

import random
import shlex
from pathlib import Path
from typing import Any, Final

import msgspec

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

    def run(self) -> TrialResult:
        """Return what comes of it."""
        found: dict[str, Any] = {}
        try:
            for _ in range(self._size.blows):
                self._auditor.wait_for_load(self._draws)
                self._recoveries_s.append(self._strike())
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
            kills=self._fault.is_kill * len(self._recoveries_s),
            recoveries_s=self._recoveries_s,
            operations=found.get("operations", 0),
            accepted=found.get("accepted", 0),
            unknown=found.get("unknown", 0),
            contradiction=found.get("contradiction", ""),
            failure="; ".join(self._failures),
        )

    def _strike(self) -> float:
        """Break something and mend it; return how long it took from then until every thing was served again."""
        auditor, fault = self._auditor, self._fault
        # Noted before: what comes of it cannot be seen earlier.
        auditor.note(fault, fault.name, redelivers=fault.redelivers)
        fault.strike(self._stage, self._draws)
        try:
            fault.last(self._stage, fault.lasts_s[self._size.is_full])
        finally:
            mended_s = auditor.note(fault, "mended")
            fault.mend(self._stage)

        def is_back() -> bool:
            self._start_again_if_ended()
            return auditor.is_served(mended_s) and self._stage.is_whole() and self._stage.is_ready()

        auditor.wait_until(
            is_back, "every thing is served again, by every part", timeout_s=RECOVERY_TIMEOUT_S
        )
        return auditor.served_after_s(mended_s)

    def _start_again_if_ended(self) -> None:
        """Start a platform again that should not have ended: what it had accepted must be there all the same."""
        if self._stage.has_ended:
            last_words = self._stage.platform.output().strip()[-500:]
            self._failures.append(f"`twinfleet up` ended: {last_words}")
            self._auditor.note(self._fault, "started again", redelivers=True)
            self._stage.start_again()


def command_of(fault: Fault, seed: int, size: Size) -> str:
    """Return what repeats a trial, to be pasted into a shell."""
    short = [] if size.is_full else ["--short"]
    return shlex.join(["./dev", "chaos", "--fault", fault.name, "--seed", str(seed), *short])


def line_of(result: TrialResult, size: Size) -> str:
    """Return what came of a trial, and what repeats it if it failed."""
    recoveries = ", ".join(f"{each:.1f}" for each in result.recoveries_s)
    text = (
        f"{result.fault}, seed {result.seed}: {result.accepted} accepted, served again after {recoveries} s"
    )
    if result.holds:
        return text
    repeat = command_of(FAULTS[result.fault], result.seed, size)
    return f"{text}\n  FAILED: {result.failure} {result.contradiction}\n  repeat: {repeat}"
