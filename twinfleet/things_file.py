"""Files of things (CSV): checked as a whole before anything is done with them, then read again row by row."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from actors.errors import OperatorError
from actors.registry.records import ThingDescription
from twinfleet.errors import UsageFault
from twins.errors import ModelError

# Told at once; whoever has more to mend tries again.
_FAULT_COUNT_MAX: Final = 20
# Of a line's fault: a cell may be as long as a book.
_FAULT_LENGTH_MAX: Final = 400
# What `device create` takes where nothing is said.
_DEFAULT_MODEL: Final = "thermostat"
_GROUPS_APART: Final = ";"
_ATTRIBUTE_PREFIX: Final = "attributes."
_OWN_COLUMNS: Final = ("name", "model", "thing_type", "groups")
# What somebody would write who takes one column for all of them.
_NO_COLUMN: Final = "attributes"


@dataclass(frozen=True)
class ThingRow:
    """One thing of a file, with the line on which its row ends."""

    line: int
    description: ThingDescription

    def request(self) -> dict[str, Any]:
        """Return the row as a part of a request to create many."""
        described = self.description
        return {
            "name": described.name,
            "model": described.model,
            "thing_type": described.thing_type,
            "attributes": described.attributes,
            "groups": described.groups,
        }


@dataclass
class FileSummary:
    """What a file holds, each with the line where it is named first."""

    things: dict[str, int] = field(default_factory=dict)
    types: dict[str, int] = field(default_factory=dict)
    groups: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ThingsFile:
    """A CSV file with a thing on each row; `model` is for rows that name neither a model nor a type.

    Columns: `name`, and if wanted `model`, `thing_type`, `groups` (parted by semicolons); any other column, with or
    without `attributes.` before its name, is an attribute, and an empty cell is none. The file is read row by row;
    only the names are held, while it is checked.
    """

    path: Path
    model: str | None = None

    def check(self) -> FileSummary:
        """Return what the file holds; UsageFault tells the lines that break a rule, and what to change."""
        summary = FileSummary()
        faults: list[str] = []
        for line, row in self._rows():
            try:
                description = self._description(row)
                description.check()
            except (OperatorError, ModelError, UsageFault) as error:
                faults.append(f"{self.path}:{line}: {_brief(str(error))}")
            else:
                earlier = summary.things.setdefault(description.name, line)
                if earlier != line:
                    text = f"{description.name!r} is on line {earlier} already; keep one of them"
                    faults.append(f"{self.path}:{line}: {text}")
                if description.thing_type:
                    summary.types.setdefault(description.thing_type, line)
                for group in description.groups:
                    summary.groups.setdefault(group, line)
            if len(faults) >= _FAULT_COUNT_MAX:
                faults.append("... and perhaps more; mend these first")
                break
        if faults:
            raise UsageFault("\n".join(faults) + "\nnothing was sent")
        if not summary.things:
            raise UsageFault(f"{self.path} names no things; write a row for each below the heading")
        return summary

    def rows(self) -> Iterator[ThingRow]:
        """Give the things of a file that was checked."""
        for line, row in self._rows():
            yield ThingRow(line, self._description(row))

    def _rows(self) -> Iterator[tuple[int, dict[str, str]]]:
        try:
            # A pipe gives its content once.
            if self.path.exists() and not self.path.is_file():
                raise UsageFault(f"{self.path} is no file and can not be read twice; name a CSV file")
            with self.path.open(encoding="utf-8-sig", newline="") as stream:
                reader = csv.reader(stream, strict=True)
                columns = _columns(next(reader, []), self.path)
                for row in reader:
                    if not any(cell.strip() for cell in row):
                        continue
                    if len(row) > len(columns):
                        text = (
                            f"has {len(row)} cells for {len(columns)} columns; quote cells that hold a comma"
                        )
                        raise UsageFault(f"{self.path}:{reader.line_num}: {text}\nnothing was sent")
                    yield reader.line_num, dict(zip(columns, (cell.strip() for cell in row), strict=False))
        except OSError as error:
            raise UsageFault(f"{self.path} cannot be read: {error.strerror}; name a CSV file") from None
        except UnicodeDecodeError as error:
            raise UsageFault(f"{self.path} is not UTF-8 ({error.reason}); save it as UTF-8") from None
        except csv.Error as error:
            raise UsageFault(f"{self.path}:{reader.line_num}: is no CSV: {error}; mend the quotes") from None

    def _description(self, row: dict[str, str]) -> ThingDescription:
        attributes: dict[str, str] = {}
        for column, value in row.items():
            name = column.removeprefix(_ATTRIBUTE_PREFIX)
            if column not in _OWN_COLUMNS and value:
                attributes[name] = value
        thing_type = row.get("thing_type", "")
        model = row.get("model") or self.model or ("" if thing_type else _DEFAULT_MODEL)
        groups = [part.strip() for part in row.get("groups", "").split(_GROUPS_APART)]
        return ThingDescription(
            row.get("name", ""),
            model,
            attributes,
            thing_type,
            tuple(dict.fromkeys(group for group in groups if group)),
        )


def _columns(heading: list[str], path: Path) -> list[str]:
    columns = [column.strip() for column in heading]
    if "name" not in columns:
        present = _brief(", ".join(columns) or "nothing")
        text = f"has no column `name` (but: {present}); name the columns on the first line"
        raise UsageFault(f"{path}:1: {text}")
    if _NO_COLUMN in columns:
        text = "each attribute has a column of its own, such as `attributes.site`; name them, in place of `attributes`"
        raise UsageFault(f"{path}:1: {text}")
    seen: set[str] = set()
    for column in columns:
        name = column if column in _OWN_COLUMNS else column.removeprefix(_ATTRIBUTE_PREFIX)
        key = f"own {name}" if column in _OWN_COLUMNS else name
        if not name or key in seen:
            raise UsageFault(
                f"{path}:1: column {_brief(repr(column))} is there twice, or has no name; keep one, and name it"
            )
        seen.add(key)
    return columns


def _brief(text: str) -> str:
    return text if len(text) <= _FAULT_LENGTH_MAX else f"{text[:_FAULT_LENGTH_MAX]} ..."
