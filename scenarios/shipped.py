"""The scenarios that come with twinfleet: where they are, and what each is for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

LIBRARY: Final = Path(__file__).parent / "library"
# What kinds of scenarios there are, in the order in which they are run.
KINDS: Final = ("smoke", "load", "soak", "chaos", "negative")
# The head of each file: what it is to show, how, and what comes out.
_PARTS: Final = ("Goal.", "Method.", "Expected.")


@dataclass(frozen=True, slots=True)
class ShippedScenario:
    """One scenario of the library, with the three parts of its opening comment."""

    kind: str
    name: str
    file: Path
    goal: str
    method: str
    expected: str


def shipped_scenarios() -> list[ShippedScenario]:
    """Return all scenarios of the library, by kind and name."""
    return [
        ShippedScenario(kind, file.stem, file, *_opening(file))
        for kind in KINDS
        for file in sorted((LIBRARY / kind).glob("*.yaml"))
    ]


def shipped_file(name: str) -> Path | None:
    """Return the file of a scenario of the library by its name, None where there is none."""
    return next((each.file for each in shipped_scenarios() if each.name == name), None)


def _opening(file: Path) -> tuple[str, str, str]:
    """Return goal, method and expected result, as the comment says that opens the file; empty where it does not."""
    told = dict.fromkeys(_PARTS, "")
    part = ""
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        words = line.removeprefix("#").split()
        if words and words[0] in _PARTS:
            part = words.pop(0)
        if part:
            told[part] = " ".join([told[part], *words]).strip()
    return told["Goal."], told["Method."], told["Expected."]
