"""Twins as columns to ask questions of: the same names and types for real and simulated twins of every model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from twins.messages import Connectivity
from twins.model import Field
from twins.shadow import Stamp
from twins.simulated import SimulatedFleet
from twins.table import EXISTS, NamedRows, TwinTable

_FLOAT64_MAX: Final = float(np.finfo(np.float64).max)
FIXED_COLUMNS: Final = ("name", "model", "origin", "version", "connected", "updated_at")


@dataclass(frozen=True)
class QueryColumn:
    """One column of some rows: `values` as a NumPy array, or positions into `choices` where that is given.

    `is_valid` (bool, a row each) is None where every row has a value. `values` is a list for texts of their own.
    """

    values: NDArray[Any] | list[str | None]
    is_valid: NDArray[np.bool_] | None = None
    choices: tuple[str, ...] = ()


def column_of_attribute(name: str) -> str:
    """Return the column in which an attribute stands: its name, or `attribute_NAME` where that is taken."""
    # Also what begins like a name that was changed, or two attributes could share a column.
    taken = name in FIXED_COLUMNS or name.startswith(("reported_", "desired_", "attribute_"))
    return f"attribute_{name}" if taken else name


def select_rows(
    source: NamedRows | SimulatedFleet,
    wanted: Collection[str] | None,
    *,
    connectivity: Mapping[str, Connectivity],
    taken: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
) -> dict[str, QueryColumn]:
    """Return the wanted columns (None: all) of every twin of a table, in the order of its rows.

    `connectivity` is of real things, by name; a simulated one knows its own. `taken` are the attributes of real devices
    that have the places of simulated ones.
    """
    guests = () if isinstance(source, NamedRows) else tuple(_guests(source, connectivity, taken))
    columns: dict[str, QueryColumn] = {}
    for name, make in _available(source, connectivity, guests):
        if wanted is None or name in wanted:
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


def _available(
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
    for position, field in enumerate(table.model.fields):
        for section in ("reported", "desired") if field.is_settable else ("reported",):
            yield f"{section}_{field.name}", _value_maker(table, section, position)
            yield f"{section}_{field.name}_at", _stamp_maker(table, section, position)
    yield from _attributes(source, guests)


def _bit(masks: NDArray[np.uint16], bit: int, count: int) -> NDArray[np.bool_]:
    is_set: NDArray[np.bool_] = (masks[:count] & np.uint16(bit)) != 0
    return is_set


def _names(source: NamedRows | SimulatedFleet) -> list[str | None]:
    if isinstance(source, NamedRows):
        return list(source.names)
    pattern = source.table.pattern
    return [f"{pattern.prefix}{i:0{pattern.width}d}{pattern.suffix}" for i in source.table.indices.tolist()]


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
        for row, kept in table.overflow.items():
            stamp = kept.trees(section)[1].get(name)
            if isinstance(stamp, Stamp):
                values[row], is_valid[row] = stamp.timestamp, True
        return QueryColumn(values, is_valid)

    return make


def _value_maker(table: TwinTable, section: str, position: int) -> Callable[[], QueryColumn]:
    def make() -> QueryColumn:
        columns, _, masks = _section(table, section)
        field = table.model.fields[position]
        values, is_valid = columns[position][: table.count], _bit(masks, 1 << position, table.count)
        if field.dtype == "choice":
            return _choice_column(table, section, field, QueryColumn(values.copy(), is_valid, field.choices))
        is_float = field.column_dtype.kind == "f"
        if is_float:
            values = np.round(values.astype(np.float64), field.decimals)
        elif field.dtype == "bool":
            values = values.astype(np.bool_)
        else:
            values = values.copy()
        for row, kept in table.overflow.items():
            exact: Any = kept.trees(section)[0].get(field.name, False)
            # A number of a device may have more digits than any float.
            if is_float and type(exact) in (int, float) and abs(exact) <= _FLOAT64_MAX:
                values[row], is_valid[row] = exact, True
        return QueryColumn(values, is_valid)

    return make


def _choice_column(table: TwinTable, section: str, field: Field, column: QueryColumn) -> QueryColumn:
    """Return a column of texts, with those texts that are none of the model's choices put in."""
    others = {
        row: kept.trees(section)[0][field.name]
        for row, kept in table.overflow.items()
        if type(kept.trees(section)[0].get(field.name)) is str
    }
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
) -> Iterator[tuple[str, Callable[[], QueryColumn]]]:
    if isinstance(source, NamedRows):
        of_rows = [source.attributes.get(row, {}) for row in range(source.count)]
        for name in sorted({name for attributes in of_rows for name in attributes}):
            texts = [attributes.get(name) for attributes in of_rows]
            yield column_of_attribute(name), partial(QueryColumn, texts)
        return
    own = {attribute.name: attribute for attribute in source.group.attributes}
    for attribute in own.values():
        positions = source.attributes[attribute.name][: source.table.count]
        column = QueryColumn(positions, None, attribute.values)
        yield column_of_attribute(attribute.name), partial(_with_guests, column, attribute.name, guests)
    for name in sorted({name for guest in guests for name in guest.attributes} - own.keys()):
        count = source.table.count
        column = QueryColumn(np.zeros(count, np.uint8), np.zeros(count, np.bool_), ("",))
        yield column_of_attribute(name), partial(_with_guests, column, name, guests)


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
