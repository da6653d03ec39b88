"""Fleet queries answered by a shard: how many twins match, which, and how their values are distributed.

Predicates are evaluated on columns, all rows at once; rows of which columns do not say all that is asked are looked at
as documents, so that the answer is that of `query.matches` for every twin. What only the registry knows (a thing's
type, id and groups) is missing here.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from twins.columns import QueryColumn, select_rows
from twins.description import indexed
from twins.errors import QueryError
from twins.messages import Batch, Operation, Request
from twins.overflow_columns import overflow_columns
from twins.query import Query, matches, parse, values_of
from twins.query_columns import column_name, columns_of, mask
from twins.shard import Shard
from twins.simulated import SimulatedFleet
from twins.table import NamedRows, TwinTable

# Fields that columns answer for every twin, whatever else it has.
_WHOLE: Final = frozenset({"thingName", "model", "origin", "connectivity.connected"})
# Fields whose columns may lack what the overflow of a row has.
_OF_SHADOW: Final = ("shadow.reported.", "shadow.desired.")
_OF_ROWS: Final = frozenset({"shadow.hasDelta", "shadow.version"})


class FleetQuestion(msgspec.Struct, frozen=True):
    """What is asked of the twins that match `query`: their number, and what else is named.

    `field`: the values of a numeric field; `group_by`: how many have each value of a field; `name_count_max`: so many
    names, the first in order after `after`. Real and simulated twins are asked for separately.
    """

    query: str
    field: str = ""
    group_by: str = ""
    name_count_max: int = 0
    after: str = ""
    has_real: bool = True
    has_simulated: bool = True

    def columns(self) -> frozenset[str]:
        """Return the columns that are read of the matching twins; QueryError if a field is in none."""
        names = {"name"} if self.name_count_max else set()
        for asked in filter(None, (self.field, self.group_by)):
            column = column_name(asked)
            if column is None:
                allowed = "shadow.reported.F and shadow.desired.F for a field F of a model"
                text = f"{asked!r} has no statistics; there are those of {allowed}, attributes.NAME, model, origin"
                raise QueryError(f"{text} and connectivity.connected")
            names.add(column)
        return frozenset(names)


@dataclass
class FleetAnswer:
    """The answer of some shards; `values` (float64) in no order, `groups` by value, `names` in order."""

    count: int = 0
    values: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    groups: Counter[str | float | bool] = field(default_factory=Counter)
    names: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, question: FleetQuestion, parts: Sequence[FleetAnswer]) -> FleetAnswer:
        """Return the answer that some parts give together."""
        groups: Counter[str | float | bool] = Counter()
        for part in parts:
            groups.update(part.groups)
        values = np.concatenate([part.values for part in parts]) if parts else np.zeros(0)
        names = heapq.merge(*(part.names for part in parts))
        return cls(sum(part.count for part in parts), values, groups, [*names][: question.name_count_max])


def answer_question(shard: Shard, question: FleetQuestion, now_s: float) -> FleetAnswer:
    """Return a shard's answer; QueryError if the query can't be read, or asks for what has no statistics."""
    shard.write_rows()
    query, extra = parse(question.query), question.columns()
    wanted = columns_of(query)
    names = None if wanted is None else wanted | extra
    is_of_all = question.has_real and question.has_simulated
    if names is not None and not is_of_all:
        names |= {"origin"}
    taken = shard.handover.taken()
    parts = []
    for source in _sources(shard, question):
        table = source if isinstance(source, NamedRows) else source.table
        columns = select_rows(source, names, connectivity=shard.connectivity, taken=taken)
        if "connected" in columns:
            # As the service has it for a thing that never connected.
            columns["connected"] = QueryColumn(columns["connected"].values)
        selected = mask(query, columns, table.count)
        for row in _rows_with_more(shard, source, query):
            selected[row] = matches(query, _document(shard, _name(source, row), now_s))
        if not is_of_all:
            selected &= _is_real(columns["origin"]) == question.has_real
        parts.append(_part(question, columns, selected))
    return FleetAnswer.of(question, parts)


def answer_documents(question: FleetQuestion, documents: Sequence[Mapping[str, Any]]) -> FleetAnswer:
    """Return the answer that matching documents give, as `query.matches` takes them."""
    answer = FleetAnswer(len(documents))
    if question.field:
        found = (value for each in documents for value in values_of(each, question.field))
        answer.values = np.array([value for value in found if type(value) in (int, float)], np.float64)
    if question.group_by:
        answer.groups.update(value for each in documents for value in values_of(each, question.group_by))
    if question.name_count_max:
        names = (each["thingName"] for each in documents if each["thingName"] > question.after)
        answer.names = heapq.nsmallest(question.name_count_max, names)
    return answer


def _sources(shard: Shard, question: FleetQuestion) -> Iterator[NamedRows | SimulatedFleet]:
    if question.has_real:
        yield from (table for table in shard.tables.values() if table.count)
    # Real devices may have the places of simulated ones.
    if question.has_simulated or shard.handover.taken():
        yield from (fleet for fleet in shard.fleets.values() if fleet.table.count)


def _is_real(origin: QueryColumn) -> NDArray[np.bool_]:
    is_real = np.array([choice == "real" for choice in origin.choices], np.bool_)
    rows: NDArray[np.bool_] = is_real[np.asarray(origin.values)]
    return rows


def _rows_with_more(shard: Shard, source: NamedRows | SimulatedFleet, query: Query) -> Iterator[int]:
    """Yield the rows of which the columns may not say all that a query asks."""
    table = source if isinstance(source, NamedRows) else source.table
    asked = {name for name in query.fields() if name not in _WHOLE and not name.startswith("attributes.")}
    if all(name in _OF_ROWS or _key(name) for name in asked):
        if asked:
            yield from _rows_beyond(table, [key for name in asked if (key := _key(name))], asked)
    elif isinstance(source, NamedRows):
        yield from range(table.count)
    else:
        names = {*shard.named_shadows, *shard.reports, *shard.handover.taken()}
        indices = (index for index in map(source.table.pattern.index, names) if index is not None)
        rows = map(source.table.row, indices)
        yield from {*table.overflow, *(row for row in rows if row is not None)}


def _key(name: str) -> tuple[str, str] | None:
    """Return section and key of a field that may have a column of its own."""
    if not name.startswith(_OF_SHADOW):
        return None
    section, _, key = name.removeprefix("shadow.").partition(".")
    return (section, key) if "." not in key else None


def _rows_beyond(table: TwinTable, keys: Sequence[tuple[str, str]], asked: Collection[str]) -> Iterator[int]:
    """Yield the rows whose overflow has something that columns do not say of these sections' keys."""
    if not _OF_ROWS.isdisjoint(asked):
        yield from list(table.overflow)
        return
    undeclared = [(section, key) for section, key in keys if not _has_column(table, section, key)]
    kept = overflow_columns(table)
    is_beyond = kept.has_dots.copy()
    for section, key in keys:
        cells = kept.cells(section, key)
        if cells is not None and (section, key) not in undeclared:
            is_beyond |= cells.is_beyond
    rows = set(kept.rows[is_beyond].tolist())
    if undeclared:
        trees = ((row, each.trees) for row, each in table.overflow.read())
        rows.update(row for row, of in trees if any(key in of(section)[0] for section, key in undeclared))
    yield from rows


def _has_column(table: TwinTable, section: str, key: str) -> bool:
    position = table.model.positions.get(key)
    return position is not None and (section == "reported" or table.desired[position] is not None)


def _name(source: NamedRows | SimulatedFleet, row: int) -> str:
    return source.names[row] if isinstance(source, NamedRows) else source.table.name(row)


def _document(shard: Shard, thing_name: str, now_s: float) -> dict[str, Any]:
    request = Request(Operation.DESCRIBE, thing_name, b"", "", is_direct=True)
    [reply] = shard.apply(Batch("", 0, [request]), now_s).replies
    described = msgspec.json.decode(reply.payload)
    own = {name: described[name] for name in ("thingName", "model", "origin", "attributes")}
    return own | indexed(described)


def _part(
    question: FleetQuestion, columns: Mapping[str, QueryColumn], selected: NDArray[np.bool_]
) -> FleetAnswer:
    answer = FleetAnswer(int(np.count_nonzero(selected)))
    if question.field:
        answer.values = _values(columns.get(column_name(question.field) or ""), selected)
    if question.group_by:
        answer.groups = _groups(columns.get(column_name(question.group_by) or ""), selected)
    if question.name_count_max:
        rows = np.flatnonzero(selected)
        named = columns["name"].values
        found = (
            (named[row] for row in rows.tolist())
            if isinstance(named, list)
            else (name.decode() for name in named[rows].tolist())
        )
        answer.names = heapq.nsmallest(
            question.name_count_max, (name for name in found if name > question.after)
        )
    return answer


def _values(column: QueryColumn | None, selected: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the numbers of the selected rows; rows without one, and columns of something else, have none."""
    if column is None or column.choices or isinstance(column.values, list) or column.values.dtype.kind == "S":
        return np.zeros(0)
    rows = selected if column.is_valid is None else selected & column.is_valid
    return column.values[rows].astype(np.float64)


def _groups(column: QueryColumn | None, selected: NDArray[np.bool_]) -> Counter[str | float | bool]:
    """Return how many of the selected rows have each value; rows without one are in no group."""
    if column is None:
        return Counter()
    rows = selected if column.is_valid is None else selected & column.is_valid
    if isinstance(column.values, list):
        return Counter(column.values[row] for row in np.flatnonzero(rows).tolist())
    values = column.values[rows]
    if column.choices:
        counts = np.bincount(values, minlength=len(column.choices)).tolist()
        return Counter({text: count for text, count in zip(column.choices, counts, strict=True) if count})
    different, counts = np.unique(values, return_counts=True)
    texts = [value.decode() if isinstance(value, bytes) else value for value in different.tolist()]
    return Counter(dict(zip(texts, counts.tolist(), strict=True)))
