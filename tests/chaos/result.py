"""What many trials came to, and the file that says so: RESULT.json, of one commit, written by one run or by several.

The file holds every trial that was made, also one that failed and was made again; all its counts follow from them. It
names the commit that was run, so it is written only where the files that run are those of a commit.
"""

from __future__ import annotations

import datetime as dt
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from tests.chaos.plans import FAULTS, STORM
from tests.chaos.trial import TrialResult

RESULT: Final = Path(__file__).with_name("RESULT.json")
_ROOT: Final = Path(__file__).parents[2]
# What a trial runs, and what decides with which packages.
_RUN: Final = (
    "actors",
    "broker_config",
    "scenarios",
    "tests",
    "twinfleet",
    "twins",
    "dev",
    "pyproject.toml",
    "requirements.lock",
)


class ResultRefused(Exception):
    """The file cannot say honestly what was run."""


class FaultResult(msgspec.Struct, frozen=True):
    """What one fault came to: alone so many seeds, in so many storms, and how long some thing was not served (s)."""

    seeds: int
    storms: int
    blows: int
    accepted_alone: int
    contradictions: int
    recovery_s_median: float | None
    recovery_s_max: float | None


class Result(msgspec.Struct, frozen=True):
    """What trials at full size came to, all of one commit; `commands` are the runs that made them."""

    date: str
    commit: str
    machine: str
    commands: list[str]
    trials: list[TrialResult]
    trial_count: int = 0
    failed: int = 0
    operations: int = 0
    accepted: int = 0
    unknown: int = 0
    kills: int = 0
    contradictions: int = 0
    # The least number of seeds that any fault has been tried with alone; 0 if one was left out.
    seeds_min: int = 0
    storms: int = 0
    faults: dict[str, FaultResult] = {}

    def counted(self) -> Result:
        """Return the same with all counts as the trials have them."""
        trials = self.trials
        faults = {name: _of_fault(name, trials) for name in FAULTS}
        return msgspec.structs.replace(
            self,
            trial_count=len(trials),
            failed=sum(not trial.holds for trial in trials),
            operations=sum(trial.operations for trial in trials),
            accepted=sum(trial.accepted for trial in trials),
            unknown=sum(trial.unknown for trial in trials),
            kills=sum(trial.kills for trial in trials),
            contradictions=sum(bool(trial.contradiction) for trial in trials),
            seeds_min=min(fault.seeds for fault in faults.values()),
            storms=len({trial.seed for trial in trials if trial.plan == STORM}),
            faults=faults,
        )


def _of_fault(name: str, trials: Sequence[TrialResult]) -> FaultResult:
    struck = [trial for trial in trials if name in trial.recoveries_s]
    alone = [trial for trial in struck if trial.plan == name]
    recoveries_s = [each for trial in struck for each in trial.recoveries_s[name]]
    return FaultResult(
        seeds=len({trial.seed for trial in alone}),
        storms=len({trial.seed for trial in struck if trial.plan == STORM}),
        blows=len(recoveries_s),
        accepted_alone=sum(trial.accepted for trial in alone),
        contradictions=sum(bool(trial.contradiction) for trial in struck),
        recovery_s_median=round(statistics.median(recoveries_s), 2) if recoveries_s else None,
        recovery_s_max=round(max(recoveries_s), 2) if recoveries_s else None,
    )


class ResultFile:
    """RESULT.json while a run writes it: after every trial, so that what was found is not lost with the run."""

    def __init__(self, path: Path, command: str, *, adds: bool, root: Path = _ROOT) -> None:
        """Begin anew, or go on with what the file has; ResultRefused if that is not of the same commit.

        Likewise if what would run is not what stands in the commit.
        """
        self._path = path
        self._root = root
        self._commit = commit_of(root)
        found = read_result(path) if adds and path.exists() else None
        if found is not None and found.commit != self._commit:
            problem = f"{path} is of commit {found.commit[:12]}, this is {self._commit[:12]}"
            raise ResultRefused(f"{problem}; remove the file to begin anew, or go back to that commit")
        self._trials = [] if found is None else found.trials
        self._commands = [*([] if found is None else found.commands), command]

    def add(self, trial: TrialResult) -> Result:
        """Write the file anew with one more trial, and return what it says; ResultRefused if files have changed."""
        if commit_of(self._root) != self._commit:
            raise ResultRefused(f"the commit is not {self._commit[:12]} any more, with which this run began")
        self._trials.append(trial)
        result = Result(
            dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            self._commit,
            f"{os.cpu_count()} cores, {platform.system()} {platform.release()}, Python {platform.python_version()}",
            self._commands,
            self._trials,
        ).counted()
        self._path.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
        return result


def read_result(path: Path) -> Result:
    """Return what a file says; ResultRefused if it is none of ours."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Result)
    except msgspec.DecodeError as error:
        raise ResultRefused(f"{path} is no result of ./dev chaos: {error}; remove it") from None


def commit_of(root: Path) -> str:
    """Return the commit whose files would run in a clone; ResultRefused if they are not those of a commit."""
    changed = _git(root, "status", "--porcelain", "--", *_RUN, f":(exclude){RESULT.relative_to(_ROOT)}")
    if changed:
        first = changed.splitlines()[0].strip()
        raise ResultRefused(
            f"RESULT.json names the commit that was run: commit your changes first ({first} ...)"
        )
    return _git(root, "rev-parse", "HEAD").strip()


def _git(root: Path, *arguments: str) -> str:
    answer = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False, cwd=root)
    if answer.returncode:
        raise ResultRefused(
            f"git {arguments[0]}: {answer.stderr.strip()}; run it in a clone of the repository"
        )
    return answer.stdout
