"""What the overflow of a table says of declared fields, as columns over its rows, read again only where it changed.

A device that sends an integer for a field that is a float has it in its row's overflow, where it is kept exactly; in a
fleet of such devices that is every row. To read them all takes microseconds each, so what was read is remembered with
the table and compared with what is there: by identity and by the version of the row's shadow, which rises with every
change.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, Final
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from twins.shadow import SECTIONS, Stamp
from twins.table import Overflow, TwinTable

_FLOAT64_MAX: Final = float(np.finfo(np.float64).max)


class FieldCells:
    """What is kept of one section's field, an entry for each row of the overflow.

    `numbers` and `stamps` count where `has_number` and `has_stamp` say so; `texts` by entry. `is_beyond` says where
    something is kept that is not a number for a float column: columns do not say it.
    """

    __slots__ = ("has_number", "has_stamp", "is_beyond", "numbers", "stamps", "texts")

    def __init__(self, count: int) -> None:
        self.numbers = np.zeros(count)
        self.has_number = np.zeros(count, np.bool_)
        self.stamps = np.zeros(count, np.uint32)
        self.has_stamp = np.zeros(count, np.bool_)
        self.is_beyond = np.zeros(count, np.bool_)
        self.texts: dict[int, str] = {}

    def clear(self, entry: int) -> None:
        """Forget an entry, in place."""
        self.has_number[entry] = self.has_stamp[entry] = self.is_beyond[entry] = False
        self.texts.pop(entry, None)

    def take(self, entry: int, value: Any, stamp: Any, *, is_float: bool) -> None:
        """Remember what is kept in an entry, in place."""
        # A number of a device may have more digits than any float.
        is_number = type(value) in (int, float) and abs(value) <= _FLOAT64_MAX
        if is_number:
            self.numbers[entry], self.has_number[entry] = value, True
        elif type(value) is str:
            self.texts[entry] = value
        self.is_beyond[entry] = not (is_number and is_float)
        if isinstance(stamp, Stamp):
            self.stamps[entry], self.has_stamp[entry] = stamp.timestamp, True


class OverflowColumns:
    """The overflow of one table in columns; `rows` (intp) are the table's rows that have one, in no order.

    `has_dots` says where a key with a dot is kept, which the path of a nested one finds as well.
    """

    def __init__(self) -> None:
        self._kept: Sequence[object] = ()
        self._keys: list[int] = []
        self._versions: NDArray[np.uint64] = np.zeros(0, np.uint64)
        self._cells: dict[tuple[str, str], FieldCells] = {}
        self.rows: NDArray[np.intp] = np.zeros(0, np.intp)
        self.has_dots: NDArray[np.bool_] = np.zeros(0, np.bool_)

    def cells(self, section: str, field_name: str) -> FieldCells | None:
        """Return what is kept of a declared field; None if that is nothing."""
        return self._cells.get((section, field_name))

    def refresh(self, table: TwinTable) -> None:
        """Bring everything up to date with the table, in place."""
        keys, kept = table.overflow.entries()
        if keys != self._keys:
            self._start(keys)
        versions = table.version[self.rows].astype(np.uint64) << np.uint64(32) | table.changed_at[self.rows]
        is_same = (
            np.fromiter(map(operator.is_, kept, self._kept), np.bool_, len(keys)) if self._kept else False
        )
        is_changed = ~(np.asarray(is_same) & (versions == self._versions))
        for entry in np.flatnonzero(is_changed).tolist():
            self._read(table, entry, kept[entry])
        self._kept, self._versions = kept, versions

    def _start(self, keys: list[int]) -> None:
        """Forget everything, in place: rows have come or gone."""
        self._keys, self._kept, self._cells = keys, (), {}
        self.rows = np.array(keys, np.intp)
        self.has_dots = np.zeros(len(keys), np.bool_)
        self._versions = np.zeros(len(keys), np.uint64)

    def _read(self, table: TwinTable, entry: int, packed: object) -> None:
        kept = Overflow.unpack(packed) if isinstance(packed, bytes) else packed
        assert isinstance(kept, Overflow), "an overflow is kept packed or not"
        for cells in self._cells.values():
            cells.clear(entry)
        self.has_dots[entry] = False
        for section in SECTIONS:
            state, metadata = kept.trees(section)
            for name, value in state.items():
                position = table.model.positions.get(name)
                self.has_dots[entry] |= "." in name
                if position is not None:
                    if (section, name) not in self._cells:
                        self._cells[section, name] = FieldCells(len(self._keys))
                    cells = self._cells[section, name]
                    is_float = table.reported[position].dtype.kind == "f"
                    cells.take(entry, value, metadata.get(name), is_float=is_float)


# With each table, for as long as it lives; a table is read by one thread at a time, as all of the core is.
_OF_TABLES: Final[WeakKeyDictionary[TwinTable, OverflowColumns]] = WeakKeyDictionary()


def overflow_columns(table: TwinTable) -> OverflowColumns:
    """Return what the overflow of a table says at this moment."""
    found = _OF_TABLES.get(table)
    if found is None:
        found = _OF_TABLES[table] = OverflowColumns()
    found.refresh(table)
    return found
