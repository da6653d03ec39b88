"""Twins as columns to ask questions of: the same names and types for real and simulated twins of every model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from twins.messages import Connectivity
from twins.model import Field
from twins.overflow_columns import overflow_columns
from twins.sharding import NamePattern
from twins.shipped import MODELS, model_named
from twins.simulated import SimulatedFleet
from twins.table import EXISTS, NamedRows, TwinTable

FIXED_COLUMNS: Final = ("name", "model", "origin", "version", "connected", "updated_at", "firmware")
# The field that the column `firmware` shows, in models that have it.
_FIRMWARE_FIELD: Final = "firmware_version"
# Every number of up to three digits as text: what the digits of computed names are looked up in.
_THREE_DIGITS: Final = (
    np.array([f"{number:03d}" for number in range(1000)], "S3").view(np.uint8).reshape(-1, 3)
)


@dataclass(frozen=True)
class QueryColumn:
    """One column of some rows: `values` as a NumPy array, or positions into `choices` where that is given.

    `is_valid` (bool, a row each) is None where every row has a value. Texts of their own are a list, or bytes of
    ASCII (dtype S) where they were computed.
    """

    values: NDArray[Any] | list[str]
    is_valid: NDArray[np.bool_] | None = None
    choices: tuple[str, ...] = ()

    def cell(self, row: int) -> Any:
        """Return a row's value as JSON has it, None where it has none."""
        if self.is_valid is not None and not self.is_valid[row]:
            return None
        value: Any = self.values[row]
        if self.choices:
            return self.choices[int(value)]
        if isinstance(value, bytes):
            return value.decode()
        return value.item() if isinstance(value, np.generic) else value


def column_of_attribute(name: str) -> str:
    """Return the column in which an attribute stands: its name, or `attribute_NAME` where that is taken."""
    # Also what begins like a name that was changed, or two attributes could share a column.
    taken = name in FIXED_COLUMNS or name.startswith(("reported_", "desired_", "attribute_"))
    return f"attribute_{name}" if taken else name


def select_tables(
    sources: Iterable[NamedRows | SimulatedFleet],
    wanted: Collection[str] | None,
    *,
    connectivity: Mapping[str, Connectivity],
    taken: Mapping[str, Mapping[str, str]],
) -> Iterator[dict[str, QueryColumn]]:
    """Yield the wanted columns (None: all) of each table that has twins; see `select_rows`.

    A model without twins is there as a table without rows, so that every column can be asked for at any time.
    """
    missing = dict.fromkeys(MODELS)
    for source in sources:
        table = source if isinstance(source, NamedRows) else source.table
        if table.count:
            missing.pop(table.model.name, None)
            yield select_rows(source, wanted, connectivity=connectivity, taken=taken)
    for name in missing:
        yield select_rows(_no_rows(name), wanted, connectivity={})


@cache
def _no_rows(model: str) -> NamedRows:
    """Return a table of a model without rows, made once: many questions are asked, and of each shard."""
    return NamedRows(model_named(model))


def select_rows(
    source: NamedRows | SimulatedFleet,
    wanted: Collection[str] | None,
    *,
    connectivity: Mapping[str, Connectivity],
    taken: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
) -> dict[str, QueryColumn]:
    """Return the wanted columns (None: all) of every twin of a table, in the order of its rows; copies all of them.

    A wanted name in small letters stands for columns of any case. `connectivity` is of real things, by name; a
    simulated one knows its own. `taken` are the attributes of real devices that have the places of simulated ones.
    """
    guests = () if isinstance(source, NamedRows) else tuple(_guests(source, connectivity, taken))
    columns: dict[str, QueryColumn] = {}
    makers = dict(_declared(source, connectivity, guests))
    # Real things' attributes are told apart only by looking at all of them.
    if wanted is None or not {name.lower() for name in makers}.issuperset(name.lower() for name in wanted):
        makers |= _attributes(source, guests)
    for name, make in makers.items():
        if wanted is None or name in wanted or name.lower() in wanted:
            columns[name] = make()
    return columns


@dataclass(frozen=True)
class _Guest:
    """A real device in the row of a simulated one."""

    row: int
    attributes: Mapping[str, str]
    connectivity: Connectivity | None


def _guests(
    fleet: SimulatedFleet,
    connectivity: Mapping[str, Connectivity],
    taken: Mapping[str, Mapping[str, str]],
) -> Iterator[_Guest]:
    for thing_name, attributes in taken.items():
        index = fleet.table.pattern.index(thing_name)
        row = None if index is None else fleet.table.row(index)
        if row is not None:
            yield _Guest(row, attributes, connectivity.get(thing_name))


def _declared(
    source: NamedRows | SimulatedFleet, connectivity: Mapping[str, Connectivity], guests: Sequence[_Guest]
) -> Iterator[tuple[str, Callable[[], QueryColumn]]]:
    table = source if isinstance(source, NamedRows) else source.table
    count = table.count

    def constant(text: str) -> Callable[[], QueryColumn]:
        return lambda: QueryColumn(np.zeros(count, np.uint8), None, (text,))

    yield "name", lambda: QueryColumn(_names(source))
    yield "model", constant(table.model.name)
    yield "origin", constant("real") if isinstance(source, NamedRows) else lambda: _origin(count, guests)
    yield "version", lambda: QueryColumn(table.version[:count].copy())
    yield "connected", lambda: _connected(source, connectivity, guests)
    yield (
        "updated_at",
        lambda: QueryColumn(table.changed_at[:count].copy(), _bit(table.reported_valid, EXISTS, count)),
    )
    if _FIRMWARE_FIELD in table.model.positions:
        yield "firmware", _value_maker(table, "reported", table.model.positions[_FIRMWARE_FIELD])
    for position, field in enumerate(table.model.fields):
        for section in ("reported", "desired") if field.is_settable else ("reported",):
            yield f"{section}_{field.name}", _value_maker(table, section, position)
            yield f"{section}_{field.name}_at", _stamp_maker(table, section, position)


def _bit(masks: NDArray[np.uint16], bit: int, count: int) -> NDArray[np.bool_]:
    is_set: NDArray[np.bool_] = (masks[:count] & np.uint16(bit)) != 0
    return is_set


def _names(source: NamedRows | SimulatedFleet) -> NDArray[Any] | list[str]:
    if isinstance(source, NamedRows):
        return list(source.names)
    return pattern_names(source.table.pattern, source.table.indices)


def pattern_names(pattern: NamePattern, indices: NDArray[np.uint32]) -> NDArray[np.bytes_]:
    """Return the thing names of devices as ASCII (dtype S), given their numbers in ascending order."""
    prefix, suffix = (np.frombuffer(part.encode(), np.uint8) for part in (pattern.prefix, pattern.suffix))
    length = max(pattern.width, len(str(int(indices[-1])))) if len(indices) else pattern.width
    texts = np.zeros((len(indices), len(prefix) + length + len(suffix)), np.uint8)
    start = 0
    for digit_count in range(pattern.width, length + 1):
        # Numbers of as many digits follow each other.
        stop = int(np.searchsorted(indices, 10**digit_count)) if digit_count < length else len(indices)
        part, rest, end = texts[start:stop], indices[start:stop], len(prefix) + digit_count
        part[:, : len(prefix)] = prefix
        part[:, end : end + len(suffix)] = suffix
        while end > len(prefix):
            taken = min(3, end - len(prefix))
            higher = rest // np.uint32(1000)
            part[:, end - taken : end] = _THREE_DIGITS[rest - higher * np.uint32(1000), 3 - taken :]
            rest, end = higher, end - taken
        start = stop
    return texts.view(f"S{texts.shape[1]}").reshape(-1)


def _origin(count: int, guests: Sequence[_Guest]) -> QueryColumn:
    if not guests:
        return QueryColumn(np.zeros(count, np.uint8), None, ("simulated",))
    origins = np.zeros(count, np.uint8)
    origins[[guest.row for guest in guests]] = 1
    return QueryColumn(origins, None, ("simulated", "real"))


def _connected(
    source: NamedRows | SimulatedFleet,
    connectivity: Mapping[str, Connectivity],
    guests: Sequence[_Guest],
) -> QueryColumn:
    if isinstance(source, NamedRows):
        known = [connectivity.get(name) for name in source.names]
        is_connected = np.array([each is not None and each.connected for each in known], np.bool_)
        return QueryColumn(is_connected, np.array([each is not None for each in known], np.bool_))
    is_connected = source.connected[: source.table.count].astype(np.bool_)
    if not guests:
        return QueryColumn(is_connected)
    is_known = np.ones(source.table.count, np.bool_)
    for guest in guests:
        is_known[guest.row] = guest.connectivity is not None
        is_connected[guest.row] = guest.connectivity is not None and guest.connectivity.connected
    return QueryColumn(is_connected, is_known)


def _section(table: TwinTable, section: str) -> tuple[Sequence[Any], Sequence[Any], NDArray[np.uint16]]:
    if section == "reported":
        return table.reported, table.reported_at, table.reported_valid
    return table.desired, table.desired_at, table.desired_valid


def _stamp_maker(table: TwinTable, section: str, position: int) -> Callable[[], QueryColumn]:
    def make() -> QueryColumn:
        _, stamps, masks = _section(table, section)
        values, is_valid = stamps[position][: table.count].copy(), _bit(masks, 1 << position, table.count)
        name = table.model.fields[position].name
        kept = overflow_columns(table)
        cells = kept.cells(section, name)
        if cells is not None:
            rows = kept.rows[cells.has_stamp]
            values[rows], is_valid[rows] = cells.stamps[cells.has_stamp], True
        return QueryColumn(values, is_valid)

    return make


def _value_maker(table: TwinTable, section: str, position: int) -> Callable[[], QueryColumn]:
    def make() -> QueryColumn:
        columns, _, masks = _section(table, section)
        field = table.model.fields[position]
        values, is_valid = columns[position][: table.count], _bit(masks, 1 << position, table.count)
        if field.dtype == "choice":
            return _choice_column(table, section, field, QueryColumn(values.copy(), is_valid, field.choices))
        if values.dtype.kind == "f":
            values = values.astype(np.float64)
            np.round(values, field.decimals, out=values)
        elif field.dtype == "bool":
            values = values.astype(np.bool_)
        else:
            values = values.copy()
        kept = overflow_columns(table)
        cells = kept.cells(section, field.name)
        if cells is not None and values.dtype.kind == "f":
            rows = kept.rows[cells.has_number]
            values[rows], is_valid[rows] = cells.numbers[cells.has_number], True
        return QueryColumn(values, is_valid)

    return make


def _choice_column(table: TwinTable, section: str, field: Field, column: QueryColumn) -> QueryColumn:
    """Return a column of texts, with those texts that are none of the model's choices put in."""
    kept = overflow_columns(table)
    cells = kept.cells(section, field.name)
    others = {} if cells is None else {int(kept.rows[entry]): text for entry, text in cells.texts.items()}
    if not others:
        return column
    choices = (*field.choices, *sorted(set(others.values())))
    values = np.asarray(column.values).astype(np.uint32)
    is_valid = np.asarray(column.is_valid)
    for row, text in others.items():
        values[row], is_valid[row] = choices.index(text), True
    return QueryColumn(values, is_valid, choices)


def _attributes(
    source: NamedRows | SimulatedFleet, guests: Sequence[_Guest]
) -> dict[str, Callable[[], QueryColumn]]:
    if isinstance(source, NamedRows):
        return {
            column_of_attribute(name): partial(_text_column, texts, source.count)
            for name, texts in sorted(_texts_by_attribute(source).items())
        }
    makers: dict[str, Callable[[], QueryColumn]] = {}
    count = source.table.count
    own = {attribute.name: attribute for attribute in source.group.attributes}
    for attribute in own.values():
        column = QueryColumn(source.attributes[attribute.name][:count].copy(), None, attribute.values)
        makers[column_of_attribute(attribute.name)] = partial(_with_guests, column, attribute.name, guests)
    for name in sorted({name for guest in guests for name in guest.attributes} - own.keys()):
        column = QueryColumn(np.zeros(count, np.uint8), np.zeros(count, np.bool_), ("",))
        makers[column_of_attribute(name)] = partial(_with_guests, column, name, guests)
    return makers


def _with_guests(column: QueryColumn, name: str, guests: Sequence[_Guest]) -> QueryColumn:
    """Return a column of an attribute with what real devices in its rows were registered with."""
    own = {guest.row: guest.attributes[name] for guest in guests if name in guest.attributes}
    if not own:
        return column
    choices = (*column.choices, *sorted(set(own.values()) - set(column.choices)))
    values = np.asarray(column.values).astype(np.uint32)
    is_valid = None if column.is_valid is None else column.is_valid.copy()
    for row, text in own.items():
        values[row] = choices.index(text)
        if is_valid is not None:
            is_valid[row] = True
    return QueryColumn(values, is_valid, choices)


def _texts_by_attribute(table: NamedRows) -> dict[str, dict[int, str]]:
    """Return the values of each attribute by row."""
    found: dict[str, dict[int, str]] = {}
    for row, attributes in table.attributes.read():
        for name, text in attributes.items():
            found.setdefault(name, {})[row] = text
    return found


def _text_column(texts: Mapping[int, str], count: int) -> QueryColumn:
    """Return the column of `count` rows that has these texts by row, each different one once."""
    positions: dict[str, int] = {}
    values, is_valid = np.zeros(count, np.int32), np.zeros(count, np.bool_)
    rows = np.fromiter(texts, np.intp, len(texts))
    values[rows] = [positions.setdefault(text, len(positions)) for text in texts.values()]
    is_valid[rows] = True
    return QueryColumn(values, is_valid, tuple(positions) or ("",))
