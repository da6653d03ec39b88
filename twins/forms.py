"""The shape of plain data (as from YAML or JSON), as a table from which it is read and its JSON Schema is made.

One table for both, so that they cannot say different things. Reading notes every mistake with its path and goes on
with a stand-in, so that all mistakes are told at once. What values mean together is not the business of a form.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from twins.errors import Mistake, Path
from twins.words import DURATION_PATTERN, duration_s, nearest, one_of


@dataclass
class Notes:
    """The mistakes found so far, in the order of finding."""

    mistakes: list[Mistake] = field(default_factory=list)

    def blame(self, path: Path, text: str, *, is_of_key: bool = False) -> None:
        """Note a mistake."""
        self.mistakes.append(Mistake(path, text, is_of_key))

    def has_below(self, path: Path) -> bool:
        """Tell whether a mistake was noted at a path or below it."""
        return any(mistake.path[: len(path)] == path for mistake in self.mistakes)


class Form(Protocol):
    """One shape of a value."""

    def read(self, value: Any, path: Path, notes: Notes) -> Any:
        """Return what the value means; a mistake is noted, and a stand-in of the same type returned."""

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of the values that `read` takes without a mistake, as far as it can say it."""


def described(value: Any) -> str:
    """Return what stands in the data, in a few words."""
    if value is None or value == "":
        return "nothing"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return str(value).lower() if isinstance(value, bool) else repr(value)


@dataclass(frozen=True)
class Text:
    """A text; with a `pattern` (whole, as in JSON Schema) one that `wanted` describes."""

    pattern: str = ""
    wanted: str = "a text"
    length_max: int = 1000
    can_be_empty: bool = False

    def read(self, value: Any, path: Path, notes: Notes) -> str:
        """Return the text."""
        if not isinstance(value, str):
            hint = "; put it in quotes" if isinstance(value, (bool, int, float)) else ""
            notes.blame(path, f"must be {self.wanted}, not {described(value)}{hint}")
        elif (not value and not self.can_be_empty) or (self.pattern and not re.search(self.pattern, value)):
            notes.blame(path, f"must be {self.wanted}, not {described(value)}")
        elif len(value) > self.length_max:
            notes.blame(path, f"has {len(value)} characters; {self.length_max} are the most")
        else:
            return value
        return ""

    def schema(self) -> dict[str, Any]:
        """Return the schema of the text."""
        pattern = {"pattern": self.pattern} if self.pattern else {}
        shortest = {} if self.can_be_empty else {"minLength": 1}
        return {"type": "string", **shortest, "maxLength": self.length_max, **pattern}


@dataclass(frozen=True)
class Words:
    """One of some words; the stand-in is the first."""

    words: tuple[str, ...]

    def read(self, value: Any, path: Path, notes: Notes) -> str:
        """Return the word."""
        if isinstance(value, str) and value in self.words:
            return value
        advice = nearest(value, self.words) if isinstance(value, str) else ""
        notes.blame(path, f"must be {one_of(self.words)}, not {described(value)}{advice}")
        return self.words[0]

    def schema(self) -> dict[str, Any]:
        """Return the schema of the words."""
        return {"enum": list(self.words)}


@dataclass(frozen=True)
class Number:
    """A finite number between two bounds, which true and false are not."""

    minimum: float = -1e18
    maximum: float = 1e18
    is_whole: bool = False

    def read(self, value: Any, path: Path, notes: Notes) -> float:
        """Return the number."""
        allowed = int if self.is_whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, allowed):
            notes.blame(
                path, f"must be {'a whole number' if self.is_whole else 'a number'}, not {described(value)}"
            )
        elif not (math.isfinite(value) and self.minimum <= value <= self.maximum):
            notes.blame(path, f"must be from {self.minimum:g} to {self.maximum:g}, not {value}")
        else:
            return value
        return min(max(0, self.minimum), self.maximum)

    def schema(self) -> dict[str, Any]:
        """Return the schema of the number."""
        kind = "integer" if self.is_whole else "number"
        return {"type": kind, "minimum": self.minimum, "maximum": self.maximum}


@dataclass(frozen=True)
class Flag:
    """True or false."""

    def read(self, value: Any, path: Path, notes: Notes) -> bool:
        """Return the truth value."""
        if not isinstance(value, bool):
            notes.blame(path, f"must be true or false, not {described(value)}")
        return value is True

    def schema(self) -> dict[str, Any]:
        """Return the schema of the truth value."""
        return {"type": "boolean"}


@dataclass(frozen=True)
class Anything:
    """Any value, as it is: what it means is somebody else's business."""

    known_schema: Mapping[str, Any] = field(default_factory=dict)

    def read(self, value: Any, path: Path, notes: Notes) -> Any:
        """Return the value."""
        return value

    def schema(self) -> dict[str, Any]:
        """Return what is known of the values."""
        return dict(self.known_schema)


@dataclass(frozen=True)
class Share:
    """A part of a whole, written like 0.5%, or as a number from 0 to `whole`, which is what it is read as."""

    whole: float = 1.0

    def read(self, value: Any, path: Path, notes: Notes) -> float:
        """Return the part of `whole`."""
        if isinstance(value, (int, float)):
            return Number(0, self.whole).read(value, path, notes)
        found = re.search(_PERCENT_PATTERN, value) if isinstance(value, str) else None
        if found is None or float(found[1]) > 100:
            notes.blame(path, f"must be a share like 0.5%, from 0% to 100%, not {described(value)}")
            return 0.0
        return float(found[1]) / 100 * self.whole

    def schema(self) -> dict[str, Any]:
        """Return the schema of the share."""
        return {
            "anyOf": [
                {"type": "number", "minimum": 0, "maximum": self.whole},
                {"type": "string", "pattern": _PERCENT_PATTERN},
            ]
        }


_PERCENT_PATTERN: Final = r"^([0-9]+(?:\.[0-9]+)?)%$"


@dataclass(frozen=True)
class Duration:
    """A duration like 10s, read as its seconds; `is_whole` where they must be whole."""

    is_whole: bool = False
    minimum_s: float = 0

    def read(self, value: Any, path: Path, notes: Notes) -> float:
        """Return the seconds."""
        seconds = duration_s(value) if isinstance(value, str) else None
        if seconds is None:
            notes.blame(path, f"must be a duration like 10s, 2m, 1h or 7d, not {described(value)}")
        elif self.is_whole and seconds != int(seconds):
            notes.blame(path, f"must be whole seconds, not {value}: virtual time goes in ticks of 1 s")
        elif seconds < self.minimum_s:
            notes.blame(path, f"must be at least {self.minimum_s:g}s, not {value}")
        elif seconds > _DURATION_MAX_S:
            notes.blame(path, f"must be at most {_DURATION_MAX_S:,} s, not {value}")
        else:
            return int(seconds) if self.is_whole else seconds
        return self.minimum_s

    def schema(self) -> dict[str, Any]:
        """Return the schema of the duration."""
        return {"type": "string", "pattern": DURATION_PATTERN}


# A hundred years: far beyond what is simulated, and small enough for every column that counts seconds.
_DURATION_MAX_S: Final = 100 * 366 * 86400


@dataclass(frozen=True)
class Formula:
    """A formula as text, or a number; with `can_be_duration` also a duration, which stands for its seconds.

    Whether the formula can be carried out is not asked here.
    """

    can_be_duration: bool = False

    def read(self, value: Any, path: Path, notes: Notes) -> str:
        """Return the formula's text."""
        if isinstance(value, bool):
            return str(value)
        if isinstance(value, (int, float)):
            return str(Number().read(value, path, notes))
        if isinstance(value, str) and value:
            seconds = duration_s(value) if self.can_be_duration else None
            return value if seconds is None else f"{seconds!r}"
        wanted = "a duration, a number or a formula" if self.can_be_duration else "a number or a formula"
        notes.blame(path, f"must be {wanted}, not {described(value)}")
        return "0"

    def schema(self) -> dict[str, Any]:
        """Return the schema of the formula."""
        return {"type": ["string", "number", "boolean"], "minLength": 1}


@dataclass(frozen=True)
class Made:
    """A value of one form, of which `make` makes what it means."""

    form: Form
    make: Callable[[Any], Any]

    def read(self, value: Any, path: Path, notes: Notes) -> Any:
        """Return what `make` makes of the value."""
        return self.make(self.form.read(value, path, notes))

    def schema(self) -> dict[str, Any]:
        """Return the schema of the form."""
        return self.form.schema()


@dataclass(frozen=True)
class ListOf:
    """A list of values of one form, as a tuple."""

    form: Form
    count_min: int = 1
    count_max: int = 1000

    def read(self, value: Any, path: Path, notes: Notes) -> tuple[Any, ...]:
        """Return the values."""
        if not isinstance(value, list):
            notes.blame(path, f"must be a list, not {described(value)}")
            return ()
        if not self.count_min <= len(value) <= self.count_max:
            notes.blame(path, f"must have {self.count_min} to {self.count_max} elements, not {len(value)}")
            return ()
        return tuple(self.form.read(element, (*path, i), notes) for i, element in enumerate(value))

    def schema(self) -> dict[str, Any]:
        """Return the schema of the list."""
        items = self.form.schema()
        return {"type": "array", "items": items, "minItems": self.count_min, "maxItems": self.count_max}


@dataclass(frozen=True)
class MapOf:
    """A mapping of free keys to values of one form; `make` turns it into what it means."""

    form: Form
    make: Callable[[dict[str, Any]], Any] = dict

    def read(self, value: Any, path: Path, notes: Notes) -> Any:
        """Return what `make` makes of the values by key."""
        entries = _entries(value, path, notes)
        return self.make({key: self.form.read(each, (*path, key), notes) for key, each in entries.items()})

    def schema(self) -> dict[str, Any]:
        """Return the schema of the mapping."""
        return {"type": "object", "additionalProperties": self.form.schema(), "minProperties": 1}


@dataclass(frozen=True)
class Key:
    """One key of a record: its form, what it means, and what stands for it where it is absent and need not be there."""

    form: Form
    meaning: str
    default: Any = None
    is_needed: bool = False


@dataclass(frozen=True)
class Record:
    """A mapping of known keys; `make` turns the values, by key, into what they mean."""

    keys: Mapping[str, Key]
    make: Callable[[dict[str, Any]], Any] = dict

    def read(self, value: Any, path: Path, notes: Notes) -> Any:
        """Return what `make` makes of the values; unknown and missing keys are mistakes."""
        entries = _entries(value, path, notes, is_needed=any(key.is_needed for key in self.keys.values()))
        mistyped: list[str] = []
        for name in entries:
            if name not in self.keys:
                advice = nearest(name, self.keys)
                mistyped.append(advice)
                known = f"; known here: {', '.join(self.keys)}"
                notes.blame((*path, name), f"unknown key{advice or known}", is_of_key=True)
        values: dict[str, Any] = {}
        for name, key in self.keys.items():
            if name in entries:
                values[name] = key.form.read(entries[name], (*path, name), notes)
            elif key.is_needed:
                # A mistyped key has been named already.
                if isinstance(value, Mapping) and not any(repr(name) in advice for advice in mistyped):
                    notes.blame((*path, name), "is missing")
                values[name] = key.form.read(None, (*path, name), Notes())
            else:
                values[name] = key.default
        return self.make(values)

    def schema(self) -> dict[str, Any]:
        """Return the schema of the record."""
        needed = [name for name, key in self.keys.items() if key.is_needed]
        return {
            "type": "object",
            "properties": {
                name: {**key.form.schema(), "description": key.meaning} for name, key in self.keys.items()
            },
            **({"required": needed} if needed else {}),
            "additionalProperties": False,
        }


@dataclass(frozen=True)
class OneKey:
    """A mapping with exactly one of some keys; read as what that key's form makes of its value."""

    keys: Mapping[str, Key]
    stand_in: Any

    def read(self, value: Any, path: Path, notes: Notes) -> Any:
        """Return what the one key stands for."""
        if not isinstance(value, Mapping) or len(value) != 1:
            notes.blame(path, f"must be a mapping with one of {one_of(self.keys)}, not {_counted(value)}")
            return self.stand_in
        [(name, each)] = _entries(value, path, notes).items() or [("", None)]
        if name not in self.keys:
            notes.blame(
                (*path, name), f"must be {one_of(self.keys)}{nearest(name, self.keys)}", is_of_key=True
            )
            return self.stand_in
        return self.keys[name].form.read(each, (*path, name), notes)

    def schema(self) -> dict[str, Any]:
        """Return the schema of the mapping."""
        return {
            "type": "object",
            "properties": {
                name: {**key.form.schema(), "description": key.meaning} for name, key in self.keys.items()
            },
            "minProperties": 1,
            "maxProperties": 1,
            "additionalProperties": False,
        }


@dataclass(frozen=True)
class ByWord:
    """A mapping whose form depends on the word at its `key`; each of the `records` takes that key, too."""

    key: str
    records: Mapping[str, Record]
    meaning: str
    stand_in: Any = None

    def read(self, value: Any, path: Path, notes: Notes) -> Any:
        """Return what the record for the word makes of the mapping."""
        entries = _entries(value, path, notes)
        word = entries.get(self.key)
        if isinstance(word, str) and word in self.records:
            return self.records[word].read(value, path, notes)
        if self.key in entries:
            Words(tuple(self.records)).read(word, (*path, self.key), notes)
        elif entries:
            notes.blame((*path, self.key), f"is missing; it is {one_of(self.records)}")
        return self.stand_in

    def schema(self) -> dict[str, Any]:
        """Return the schema of a mapping that is as the record for its word says."""
        words = {"enum": list(self.records), "description": self.meaning}
        return {
            "type": "object",
            "properties": {self.key: words},
            "required": [self.key],
            "allOf": [
                {"if": {"properties": {self.key: {"const": word}}}, "then": record.schema()}
                for word, record in self.records.items()
            ],
        }


@dataclass(frozen=True)
class AnyOf:
    """One of two mappings: `first` where a key is there, else `second`."""

    key: str
    first: Form
    second: Form

    def read(self, value: Any, path: Path, notes: Notes) -> Any:
        """Return what the form that fits makes of the mapping."""
        form = self.first if isinstance(value, Mapping) and self.key in value else self.second
        return form.read(value, path, notes)

    def schema(self) -> dict[str, Any]:
        """Return the schema of either form."""
        return {"anyOf": [self.first.schema(), self.second.schema()]}


@dataclass(frozen=True)
class ByType:
    """A value whose form depends on whether it is a mapping, a text, a truth value or a number; None: not allowed."""

    wanted: str
    mapping: Form | None = None
    text: Form | None = None
    flag: Form | None = None
    number: Form | None = None
    stand_in: Any = None

    def read(self, value: Any, path: Path, notes: Notes) -> Any:
        """Return what the form for the value's type makes of it."""
        form = None
        if isinstance(value, bool):
            form = self.flag
        elif isinstance(value, (int, float)):
            form = self.number
        elif isinstance(value, str):
            form = self.text
        elif isinstance(value, Mapping):
            form = self.mapping
        if form is not None:
            return form.read(value, path, notes)
        notes.blame(path, f"must be {self.wanted}, not {described(value)}")
        return self.stand_in

    def schema(self) -> dict[str, Any]:
        """Return the schema of any of the forms."""
        forms = (self.mapping, self.text, self.flag, self.number)
        return {"anyOf": [form.schema() for form in forms if form is not None]}


def _counted(value: Any) -> str:
    return f"{len(value)} of them" if isinstance(value, Mapping) and value else described(value)


def _entries(value: Any, path: Path, notes: Notes, *, is_needed: bool = True) -> dict[str, Any]:
    """Return the entries of a mapping with texts as keys; YAML reads a bare true or false as a truth value."""
    if not isinstance(value, Mapping) or (is_needed and not value):
        notes.blame(path, f"must be a mapping of keys, not {described(value) if value else 'an empty one'}")
        return {}
    entries: dict[str, Any] = {}
    for key, each in value.items():
        if isinstance(key, (str, bool)):
            entries[key if isinstance(key, str) else str(key).lower()] = each
        else:
            notes.blame(path, f"key {key!r} must be a text; put it in quotes")
    return entries
