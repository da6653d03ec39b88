"""Twins in columns: one NumPy column per field and section, one row per twin of one model.

A value that its column holds exactly lives there; every other value, and every key that the model does not declare,
lives in the row's overflow. `load` puts a shadow together from both, `store` takes one apart; `shadow` is the
reference that both are held to. Which row is whose is the business of `NamedRows` and `PatternRows`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from twins.arena import Arena
from twins.model import DeviceModel, Field
from twins.packed import PackedMapping, fill_trees, pack_attributes, trees_of, unpack_attributes
from twins.program import CELL_ROWS
from twins.shadow import SECTIONS, ShadowDocument, Stamp, Tree, encode_json
from twins.sharding import BLOCK_SIZE, NamePattern

Column = NDArray[Any]
# The top bit of `reported_valid` says that the shadow exists; the other bits are one a field.
EXISTS: Final = 1 << 15
_FIRST_CAPACITY: Final = 64
_MISSING: Final = object()
# Beyond this a float32 has no decimals left to keep.
_FLOAT32_SAFE: Final = 1e7


class Overflow:
    """What the columns of one row cannot say, as the four trees of a shadow."""

    __slots__ = ("desired", "desired_metadata", "reported", "reported_metadata")

    def __init__(self) -> None:
        self.desired: Tree = {}
        self.desired_metadata: Tree = {}
        self.reported: Tree = {}
        self.reported_metadata: Tree = {}

    def trees(self, section: str) -> tuple[Tree, Tree]:
        """Return state and metadata of a section."""
        if section == "reported":
            return self.reported, self.reported_metadata
        return self.desired, self.desired_metadata

    def __bool__(self) -> bool:
        return bool(self.desired or self.reported)

    def pack(self) -> bytes:
        """Return all of it as bytes."""
        return encode_json(trees_of(self))

    @classmethod
    def unpack(cls, packed: bytes) -> Overflow:
        """Return what `pack` packed."""
        kept = cls()
        fill_trees(kept, msgspec.json.decode(packed))
        return kept


class _Codec:
    """Takes a JSON value to a column's value and back; `encode` gives None for a value of another type or range."""

    __slots__ = ("choices", "decimals", "decode", "encode", "greatest", "least", "positions")

    def __init__(self, field: Field) -> None:
        self.decimals = field.decimals
        self.choices = field.choices
        self.positions = {choice: position for position, choice in enumerate(field.choices)}
        kind = field.dtype
        if kind not in ("bool", "choice"):
            kind = "float" if kind.startswith("float") else "integer"
        self.greatest: float = _FLOAT32_SAFE
        if kind == "integer":
            bounds = np.iinfo(field.column_dtype)
            self.least, self.greatest = int(bounds.min), int(bounds.max)
        elif field.dtype == "float16":
            self.greatest = float(np.finfo(np.float16).max)
        self.decode: Callable[[Any], Any] = getattr(self, f"_decode_{kind}")
        self.encode: Callable[[Any], float | int | None] = getattr(self, f"_encode_{kind}")

    def _decode_float(self, value: float) -> float:
        return round(float(value), self.decimals)

    def _encode_float(self, value: Any) -> float | None:
        return value if type(value) is float and -self.greatest < value < self.greatest else None

    def _decode_integer(self, value: int) -> int:
        return value

    def _encode_integer(self, value: Any) -> int | None:
        return value if type(value) is int and self.least <= value <= self.greatest else None

    def _decode_bool(self, value: int) -> bool:
        return bool(value)

    def _encode_bool(self, value: Any) -> int | None:
        return int(value) if type(value) is bool else None

    def _decode_choice(self, value: int) -> str:
        return self.choices[value]

    def _encode_choice(self, value: Any) -> int | None:
        return self.positions.get(value) if type(value) is str else None


def _view(column: Column) -> Any:
    """Return what single values of a column are read and written through; memory views know no float16."""
    return column if column.dtype == np.float16 else column.data


def twin_layout(model: DeviceModel) -> dict[str, np.dtype[Any]]:
    """Return the columns of a model's twins, by name."""
    layout: dict[str, np.dtype[Any]] = {}
    for field in model.fields:
        layout[f"reported.{field.name}"] = field.column_dtype
        layout[f"reported_at.{field.name}"] = np.dtype(np.uint32)
        if field.is_settable:
            layout[f"desired.{field.name}"] = field.column_dtype
            layout[f"desired_at.{field.name}"] = np.dtype(np.uint32)
    layout["reported_valid"] = layout["desired_valid"] = np.dtype(np.uint16)
    layout["version"] = layout["changed_at"] = np.dtype(np.uint32)
    return layout


class TwinTable:
    """The columns of some twins of one model.

    `reported[p]`, `reported_at[p]` (uint32 seconds) stand for field p; `desired[p]`, `desired_at[p]` are None where
    the field is not settable. `reported_valid` and `desired_valid` are bit masks by field. `version` (uint32) and
    `changed_at` (uint32 seconds) are the shadow's. All `columns`, those of `twin_layout`, have `capacity` rows, of
    which `count` are in use.
    """

    def __init__(self, model: DeviceModel, columns: dict[str, Column]) -> None:
        self.model = model
        self.count = 0
        self.overflow: PackedMapping[int, Overflow] = PackedMapping(Overflow.pack, Overflow.unpack)
        self._codecs = [_Codec(field) for field in model.fields]
        self.columns = columns
        self._bind()

    def _bind(self) -> None:
        columns, fields = self.columns, self.model.fields
        self.reported = [columns[f"reported.{field.name}"] for field in fields]
        self.reported_at = [columns[f"reported_at.{field.name}"] for field in fields]
        self.desired = [columns.get(f"desired.{field.name}") for field in fields]
        self.desired_at = [columns.get(f"desired_at.{field.name}") for field in fields]
        self.reported_valid = columns["reported_valid"]
        self.desired_valid = columns["desired_valid"]
        self.version = columns["version"]
        self.changed_at = columns["changed_at"]
        # Single values are read and written through memory views: three times as fast as through the arrays.
        self._views: dict[str, tuple[list[Any], list[Any]]] = {
            "reported": ([_view(c) for c in self.reported], [c.data for c in self.reported_at]),
            "desired": (
                [None if c is None else _view(c) for c in self.desired],
                [None if c is None else c.data for c in self.desired_at],
            ),
        }
        self._valid = {"reported": self.reported_valid.data, "desired": self.desired_valid.data}
        self._version, self._changed_at = self.version.data, self.changed_at.data

    @property
    def capacity(self) -> int:
        """Return the number of rows that the columns have room for."""
        return len(self.version)

    def grow(self, capacity: int) -> None:
        """Make room for `capacity` rows, in place; new rows are empty."""
        for name, column in self.columns.items():
            grown: Column = np.zeros(capacity, column.dtype)
            grown[: len(column)] = column
            self.columns[name] = grown
        self._bind()

    def load(self, row: int) -> ShadowDocument:
        """Return the row's classic shadow; its trees belong to the caller, arrays and objects within them do not."""
        document = ShadowDocument()
        document.version = self._version[row]
        document.changed_at_s = self._changed_at[row]
        document.exists = bool(self._valid["reported"][row] & EXISTS)
        self._load_section(row, "reported", document.reported, document.reported_metadata)
        self._load_section(row, "desired", document.desired, document.desired_metadata)
        document.forget_size()
        return document

    def _load_section(self, row: int, section: str, state: Tree, metadata: Tree) -> None:
        bits = self._valid[section][row] & ~EXISTS
        values, stamps = self._views[section]
        for position, field in enumerate(self.model.fields):
            if bits >> position & 1:
                state[field.name] = self._codecs[position].decode(values[position][row])
                metadata[field.name] = Stamp(stamps[position][row])
        kept = self.overflow.get(row)
        if kept is not None:
            extra, extra_metadata = kept.trees(section)
            state.update(extra)
            metadata.update(extra_metadata)

    def store(self, row: int, document: ShadowDocument, changed: Mapping[str, Any] | None) -> None:
        """Write a shadow into its row, in place.

        `changed` is the state of the update that led to it: only what it names is written; None: everything.
        """
        self._version[row] = document.version
        self._changed_at[row] = document.changed_at_s
        for section in SECTIONS:
            if changed is not None and section not in changed:
                continue
            patch = None if changed is None else changed[section]
            state, metadata = getattr(document, section), getattr(document, f"{section}_metadata")
            if patch is None:
                self._clear_section(row, section)
                patch = state
            for key in patch:
                self._store_key(row, section, key, (state.get(key, _MISSING), metadata.get(key)))
        bits = self._valid["reported"]
        bits[row] = bits[row] | EXISTS if document.exists else 0

    def _clear_section(self, row: int, section: str) -> None:
        self._valid[section][row] = 0
        kept = self.overflow.get(row)
        if kept is not None:
            for tree in kept.trees(section):
                tree.clear()
            if not kept:
                del self.overflow[row]

    def _store_key(self, row: int, section: str, key: str, entry: tuple[Any, Any]) -> None:
        value, stamp = entry
        position = self.model.positions.get(key, -1)
        values, stamps = self._views[section]
        valid = self._valid[section]
        if position >= 0 and values[position] is not None:
            codec = self._codecs[position]
            column = values[position]
            encoded = None if value is _MISSING else codec.encode(value)
            if encoded is not None:
                column[row] = encoded
            if encoded is not None and codec.decode(column[row]) == value:
                stamps[position][row] = stamp.timestamp
                valid[row] |= 1 << position
                value = _MISSING
            else:
                valid[row] &= ~(1 << position)
        if value is not _MISSING:
            state, metadata = self.overflow.setdefault(row, Overflow()).trees(section)
            state[key], metadata[key] = value, stamp
        elif self.overflow:
            self.supersede(row, section, key)

    def supersede(self, row: int, section: str, key: str) -> None:
        """Forget what the overflow of a row says of a key whose column has just been written, in place."""
        kept = self.overflow.get(row)
        if kept is not None:
            for tree in kept.trees(section):
                tree.pop(key, None)
            if not kept:
                del self.overflow[row]

    def supersede_reported(self, row: int) -> None:
        """Forget the overflow of declared fields of a row whose columns have just been written, in place."""
        for key in [key for key in self.overflow[row].reported if key in self.model.positions]:
            self.supersede(row, "reported", key)

    def differs_in_columns(self, row: int) -> bool:
        """Tell whether a desired value of a row that a column holds is not reported so in its column."""
        wanted, agreed = int(self.desired_valid[row]), int(self.reported_valid[row])
        for position, desired in enumerate(self.desired):
            bit = 1 << position
            is_same = agreed & bit and desired is not None and desired[row] == self.reported[position][row]
            if desired is not None and wanted & bit and not is_same:
                return True
        return False


class NamedRows(TwinTable):
    """Twins under names of their own, one row each in no particular order; `attributes` by row."""

    def __init__(self, model: DeviceModel) -> None:
        columns = {name: np.zeros(_FIRST_CAPACITY, dtype) for name, dtype in twin_layout(model).items()}
        super().__init__(model, columns)
        self.names: list[str] = []
        self.attributes: PackedMapping[int, dict[str, str]] = PackedMapping(
            pack_attributes, unpack_attributes
        )
        self.row_of: dict[str, int] = {}

    def add(self, thing_name: str) -> int:
        """Return the row of a twin, adding an empty one if it has none."""
        row = self.row_of.get(thing_name)
        if row is None:
            if self.count == self.capacity:
                self.grow(2 * self.capacity)
            row = self.row_of[thing_name] = self.count
            self.names.append(thing_name)
            self.count += 1
        return row

    def remove(self, thing_name: str) -> None:
        """Remove a twin, in place; the last row takes its place."""
        row, last = self.row_of.pop(thing_name), self.count - 1
        _move(self.overflow, last, row)
        _move(self.attributes, last, row)
        for column in self.columns.values():
            column[row] = column[last]
            column[last] = 0
        last_name = self.names.pop()
        if row != last:
            self.names[row] = last_name
            self.row_of[last_name] = row
        self.count = last


def _move(of_rows: MutableMapping[int, Any], source: int, target: int) -> None:
    """Put what is kept of one row in the place of another's, in place; it may be the same row, which is gone then."""
    of_rows.pop(target, None)
    if source in of_rows:
        of_rows[target] = of_rows.pop(source)


class PatternRows(TwinTable):
    """The twins of a simulated fleet that live in one shard: whole blocks of consecutive numbers, ascending.

    `indices` (uint32) are the devices' numbers by row, computed when asked for. The columns have whole cells
    of rows; those beyond the last device stay empty. All of them stand in one `arena`, as `twin.NAME`, and
    so do the columns of the layout `beside`, under their own names.
    """

    def __init__(
        self,
        model: DeviceModel,
        pattern: NamePattern,
        *,
        fleet_count: int,
        blocks: NDArray[np.uint32],
        beside: Mapping[str, np.dtype[Any]],
    ) -> None:
        count = len(blocks) * BLOCK_SIZE
        if len(blocks) and int(blocks[-1]) == (fleet_count - 1) // BLOCK_SIZE:
            count -= -fleet_count % BLOCK_SIZE
        layout = {f"twin.{name}": dtype for name, dtype in twin_layout(model).items()}
        self.arena = Arena({**layout, **beside}, -(-count // CELL_ROWS) * CELL_ROWS)
        super().__init__(model, {name: self.arena.columns[f"twin.{name}"] for name in twin_layout(model)})
        self.pattern = pattern
        self.blocks = blocks
        self.count = count
        self._row_of_block = {int(block): position * BLOCK_SIZE for position, block in enumerate(blocks)}

    def row(self, index: int) -> int | None:
        """Return the row of device `index`, or None if it does not live here."""
        first = self._row_of_block.get(index // BLOCK_SIZE)
        if first is None or first + index % BLOCK_SIZE >= self.count:
            return None
        return first + index % BLOCK_SIZE

    @property
    def indices(self) -> NDArray[np.uint32]:
        """Return the devices' numbers by row."""
        return self.indices_of(slice(0, self.count))

    def indices_of(self, rows: slice) -> NDArray[np.uint32]:
        """Return the devices' numbers of consecutive rows."""
        first, last = rows.start // BLOCK_SIZE, -(-rows.stop // BLOCK_SIZE)
        starts = self.blocks[first:last, None] * np.uint32(BLOCK_SIZE)
        numbers = np.asarray(starts + np.arange(BLOCK_SIZE, dtype=np.uint32), np.uint32).reshape(-1)
        return numbers[rows.start - first * BLOCK_SIZE : rows.stop - first * BLOCK_SIZE]

    def indices_at(self, rows: NDArray[np.int64]) -> NDArray[np.uint32]:
        """Return the devices' numbers of some rows."""
        places = self.blocks[rows // BLOCK_SIZE] * np.uint32(BLOCK_SIZE)
        return np.asarray(places + (rows % BLOCK_SIZE).astype(np.uint32), np.uint32)

    def name(self, row: int) -> str:
        """Return the thing name of a row."""
        block, offset = divmod(row, BLOCK_SIZE)
        return self.pattern.name(int(self.blocks[block]) * BLOCK_SIZE + offset)
