"""One trial: a plan of faults and a seed, under the auditor."""

from __future__ import annotations

import random
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from scenarios.history import Fault as FaultEvent
from tests.chaos.auditing import Auditor, Size
from tests.chaos.faults import Fault
from tests.chaos.plans import STORM, faults_of
from tests.chaos.stage import Stage, TrialFailed

# A platform that does not serve every thing again by then does not come back by itself: five times what the slowest
# recovery took on a machine of two slow cores that did much else.
RECOVERY_TIMEOUT_S: Final = 180.0


class TrialResult(msgspec.Struct, frozen=True):
    """What came of a trial; `failure` is '' where all that was accepted is there and the platform came back.

    `recoveries_s`, by fault, is how long some thing was not served, at most, after each blow had been mended.
    """

    plan: str
    seed: int
    kills: int
    recoveries_s: dict[str, list[float]]
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
    """The blows of a plan; the platform serves when it begins, and when it has run."""

    def __init__(self, stage: Stage, plan: str, seed: int, *, size: Size, directory: Path) -> None:
        self._stage = stage
        self._plan = plan
        self._seed = seed
        self._size = size
        self._draws = random.Random(f"{plan}/{seed}")
        self._faults = faults_of(plan, stage, is_full=size.is_full)
        others = [history for fault in self._faults for history in fault.histories]
        self._auditor = Auditor(stage, directory, seed=seed, size=size, others=others)
        self._recoveries_s: dict[str, list[float]] = {}
        self._failures: list[str] = []
        self._kill_count = 0
        # Since when nothing is missing any more that was, but that every thing is served.
        self._whole_since_s: float | None = None

    def run(self) -> TrialResult:
        """Return what comes of it."""
        begun_s = time.monotonic()
        mistake_count = self._stage.mistake_count()
        found: dict[str, Any] = {}
        try:
            for fault in self._blows():
                self._recoveries_s.setdefault(fault.name, []).append(self._strike_prepared(fault))
            found = self._auditor.conclude()
        except TrialFailed as problem:
            self._failures.append(f"{problem}; {self._stage.state()}")
        finally:
            self._auditor.kill()
        self._start_again_if_ended()
        if self._stage.mistake_count() > mistake_count:
            self._failures.append("a mistake was survived; see the traceback in supervisor.log")
        return TrialResult(
            self._plan,
            self._seed,
            kills=self._kill_count,
            recoveries_s=self._recoveries_s,
            took_s=round(time.monotonic() - begun_s, 1),
            operations=found.get("operations", 0),
            accepted=found.get("accepted", 0),
            unknown=found.get("unknown", 0),
            contradiction=found.get("contradiction", ""),
            failure="; ".join(self._failures),
        )

    def _blows(self) -> Iterator[Fault]:
        faults = list(self._faults)
        self._draws.shuffle(faults)
        for fault in faults:
            yield from [fault] * (1 if self._duration_s(fault) else self._size.blows)

    def _duration_s(self, fault: Fault) -> float:
        """Return how long a fault is to last; in a storm not longer than it takes to be noticed: many meet there."""
        return fault.lasts_s[self._size.is_full and self._plan != STORM]

    def _strike_prepared(self, fault: Fault) -> float:
        try:
            fault.prepare(self._stage, self._auditor)
            self._auditor.wait_for_load(self._draws)
            return self._strike(fault)
        finally:
            wrong = fault.clear(self._stage)
            if wrong:
                self._failures.append(f"{fault.name}: {wrong}")

    def _strike(self, fault: Fault) -> float:
        """Break something and mend it; return how long a thing was not served, at most, from then on.

        That is from the mending on, or from the blow on where all is served again while it lasts.
        """
        auditor, stage = self._auditor, self._stage
        again_count = 0
        struck_s = time.monotonic()
        fault.strike(stage, self._draws)
        try:
            again_count = fault.last(stage, self._duration_s(fault))
            if fault.is_survived:
                self._wait_until_survived(fault)
        finally:
            mended_s = time.monotonic()
            fault.mend(stage)
        self._kill_count += fault.is_kill * (1 + again_count)
        self._whole_since_s = None
        try:
            what = f"every thing is served again after {fault.name}"
            auditor.wait_until(lambda: self._is_back(fault), what, timeout_s=RECOVERY_TIMEOUT_S)
        finally:
            event = FaultEvent(struck_s, fault.part, fault.name, fault.redelivers, until_s=time.monotonic())
            for _ in range(1 + again_count):
                auditor.note(event)
            auditor.note(FaultEvent(mended_s, fault.part, "mended"))
        return auditor.longest_silence_s(struck_s if fault.is_survived else mended_s)

    def _wait_until_survived(self, fault: Fault) -> None:
        since_s = time.monotonic()
        self._auditor.wait_until(
            lambda: self._auditor.is_served(since_s),
            f"every thing is served in spite of {fault.name}",
            timeout_s=RECOVERY_TIMEOUT_S,
        )

    def _is_back(self, fault: Fault) -> bool:
        """Tell whether every part is there, ready, and every thing has been served since."""
        self._start_again_if_ended()
        if not (self._stage.is_whole() and self._stage.is_ready() and fault.is_over(self._stage)):
            self._whole_since_s = None
            return False
        if self._whole_since_s is None:
            self._whole_since_s = time.monotonic()
        return self._auditor.is_served(self._whole_since_s)

    def _start_again_if_ended(self) -> None:
        """Start a platform again that should not have ended: what it had accepted must be there all the same."""
        if self._stage.has_ended:
            last_words = self._stage.platform.output().strip()[-500:]
            self._failures.append(f"`twinfleet up` ended: {last_words}")
            self._auditor.note(FaultEvent(time.monotonic(), "platform", "started again", redelivers=True))
            self._stage.start_again()


def line_of(result: TrialResult, size: Size) -> str:
    """Return what came of a trial, and what repeats it if it failed."""
    recoveries = ", ".join(f"{each:.1f}" for times in result.recoveries_s.values() for each in times)
    text = (
        f"{result.plan}, seed {result.seed}: {result.accepted} accepted, not served for {recoveries} s "
        f"(took {result.took_s:.0f} s)"
    )
    if result.holds:
        return text
    short = [] if size.is_full else ["--short"]
    repeat = shlex.join(["./dev", "chaos", "--plan", result.plan, "--seed", str(result.seed), *short])
    return f"{text}\n  FAILED: {result.failure} {result.contradiction}\n  repeat: {repeat}"
