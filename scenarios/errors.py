"""The error tree of scenarios.

ScenariosError
├── ScenarioInvalid     a scenario or model file has mistakes: all, each with its place     (exit code 2)
├── NameTaken           a group or device of that name lives in the fleet already           (exit code 2)
├── FaultImpossible     a fault, or a check, needs what the run does not have                (exit code 2)
├── SummaryUnreadable   a summary of a run is not there, is none, or is of another version       (exit code 2)
├── DeviceFailed        a real device could not be registered, started or connected         (exit code 3)
├── Aborted             a rule of the scenario's abort_on ended the run                     (exit code 4)
├── LoadFailed          a load process has ended, or could not do what it was told          (exit code 3)
└── Interrupted         somebody asked the run to stop                                      (exit code 130)
"""

from __future__ import annotations

import copyreg
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class ScenariosError(Exception):
    """Base of every error that scenarios raise; it survives pickling, whatever its constructor takes."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how to make an equal error: its text and its facts, without the constructor that made the text."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]  # not in typeshed


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a file; `line` and `column` count from 1, `path` leads to the key (`groups[0].model`)."""

    file: str
    line: int
    column: int
    path: str
    text: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}"
        return f"{place}: {self.path}: {self.text}" if self.path else f"{place}: {self.text}"


class ScenarioInvalid(ScenariosError):
    """A scenario file, or a model file, has mistakes; `problems` holds all of them in the order of their lines."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda each: (each.file, each.line, each.column)))
        super().__init__("\n".join(map(str, self.problems)))


class NameTaken(ScenariosError):
    """A thing or group of that name lives in the fleet already; running on would mix the two up."""

    def __init__(self, kind: str, name: str, detail: str = "") -> None:
        reason = f" ({detail})" if detail else ""
        super().__init__(
            f"{kind} {name!r} exists in this fleet already{reason}; delete it (`twinfleet fleet delete`, "
            "`twinfleet device delete`), or name it otherwise in the scenario"
        )
        self.kind = kind
        self.name = name
        self.detail = detail


class FaultImpossible(ScenariosError):
    """A fault or check needs a platform that is not there, is not here, or may not be broken by the caller.

    Nothing was broken then.
    """


class SummaryUnreadable(ScenariosError):
    """A summary of a run is not there, is none, or is of a version that this program does not read."""

    def __init__(self, file: Path, problem: str) -> None:
        super().__init__(f"{file}: {problem}")
        self.file = file
        self.problem = problem


class DeviceFailed(ScenariosError):
    """A real device could not be registered, started or connected."""

    def __init__(self, thing_name: str, reason: str) -> None:
        super().__init__(f"device {thing_name!r}: {reason}")
        self.thing_name = thing_name
        self.reason = reason


class Aborted(ScenariosError):
    """A rule of the scenario's `abort_on` ended the run; the text says which, and when."""


class LoadFailed(ScenariosError):
    """A load process has ended, or could not do what it was told."""


class Interrupted(ScenariosError):
    """Somebody asked the run to stop."""

    def __init__(self, virtual_s: int) -> None:
        super().__init__(f"the run was interrupted after {virtual_s} s of virtual time")
        self.virtual_s = virtual_s
