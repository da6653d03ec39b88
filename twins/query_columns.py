"""Fleet queries over columns: one answer for each row of a table, without a document a row where columns suffice.

`row_document` says what document a row of columns stands for; `mask` gives the answers of `query.matches` to those
documents, for every query. What columns cannot say (undeclared keys, values of another type, named shadows, groups) is
missing in such a document: whoever has more of some rows asks `matches` about those.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from twins.columns import FIXED_COLUMNS, QueryColumn, column_of_attribute
from twins.query import Query, holds
from twins.query_terms import ANY_FIELD, And, Everything, Exists, Expression, Match, Not, Or, Range, Term
from twins.shadow import json_equal

Mask = NDArray[np.bool_]
Columns = Mapping[str, QueryColumn]

_COLUMN_OF_FIELD: Final = {
    "thingName": "name",
    "model": "model",
    "origin": "origin",
    "connectivity.connected": "connected",
}
_FIELD_OF_COLUMN: Final = {column: field for field, column in _COLUMN_OF_FIELD.items()}
# A float64 holds every whole number up to here; beyond, comparing must not round.
_EXACT_MAX: Final = 2**53
_SECTIONS: Final = ("desired", "reported")
_SECTION_PREFIXES: Final = ("desired_", "reported_")


def columns_of(query: Query) -> frozenset[str] | None:
    """Return the names of the columns that answering takes, as `select_rows` wants them; None: all there are."""
    names: set[str] = set()
    for field in query.fields():
        column = column_name(field)
        if column is None:
            return None
        names.add(column)
        if column.startswith(_SECTION_PREFIXES):
            # The stamp beside a value tells a declared field from another field's stamp.
            names.add(f"{column}_at")
    return frozenset(names)


def mask(query: Query, columns: Columns, count: int) -> Mask:
    """Return, for each of `count` rows, whether `query` matches the document that the row stands for."""
    return _mask(query.expression, columns, count)


def _mask(expression: Expression, columns: Columns, count: int) -> Mask:
    if isinstance(expression, Everything):
        return np.ones(count, np.bool_)
    if isinstance(expression, Not):
        return ~_mask(expression.part, columns, count)
    if isinstance(expression, And | Or):
        join = np.logical_and if isinstance(expression, And) else np.logical_or
        answer = _mask(expression.parts[0], columns, count)
        for part in expression.parts[1:]:
            answer = join(answer, _mask(part, columns, count))
        return answer
    return _term_mask(expression, columns, count)


def _term_mask(term: Term, columns: Columns, count: int) -> Mask:
    if term.field == ANY_FIELD and isinstance(term, Match):
        answer = np.zeros(count, np.bool_)
        for name, column in columns.items():
            if _is_searched(name, columns):
                answer |= _accepted(term, column, count)
        return answer
    if term.field == "shadow.hasDelta":
        return _column_mask(term, _has_delta(columns, count), count)
    wanted = column_name(term.field)
    if wanted is None:
        # A field above those that columns hold, or one that is seldom asked for: row by row.
        answers = (holds(term, row_document(columns, row)) for row in range(count))
        return np.fromiter(answers, np.bool_, count)
    if wanted.startswith(_SECTION_PREFIXES) and f"{wanted}_at" not in columns:
        return np.zeros(count, np.bool_)
    return _column_mask(term, columns.get(wanted), count)


def _column_mask(term: Term, column: QueryColumn | None, count: int) -> Mask:
    if column is None:
        return np.zeros(count, np.bool_)
    return _present(column, count) if isinstance(term, Exists) else _accepted(term, column, count)


def _is_searched(name: str, columns: Columns) -> bool:
    """Tell whether a column is one in which a word without a field is looked for."""
    if name.startswith(_SECTION_PREFIXES):
        return f"{name}_at" in columns
    return name not in FIXED_COLUMNS or name in ("name", "model", "origin")


def _has_delta(columns: Columns, count: int) -> QueryColumn | None:
    """Return whether anything desired is not reported so, as a column of its own."""
    exists = columns.get("updated_at")
    if exists is None:
        return None
    differs = np.zeros(count, np.bool_)
    for name, desired in columns.items():
        if name.startswith("desired_") and f"{name}_at" in columns:
            reported = columns.get(f"reported_{name.removeprefix('desired_')}")
            agrees = np.zeros(count, np.bool_) if reported is None else _equal(desired, reported, count)
            differs |= _present(desired, count) & ~agrees
    return QueryColumn(differs, _present(exists, count))


def _equal(desired: QueryColumn, reported: QueryColumn, count: int) -> Mask:
    """Return where two columns of one field, which have values of the same kind, have the same."""
    ours, theirs = np.asarray(desired.values)[:count], np.asarray(reported.values)[:count]
    if desired.choices != reported.choices:
        positions = {choice: position for position, choice in enumerate(desired.choices)}
        theirs = np.array([positions.get(choice, -1) for choice in reported.choices])[theirs]
    return np.asarray(ours == theirs) & _present(reported, count)


def column_name(field: str) -> str | None:
    """Return the one column that may hold a field's values; None where it is not one column's business."""
    if field in _COLUMN_OF_FIELD:
        return _COLUMN_OF_FIELD[field]
    root, _, rest = field.partition(".")
    if field == ANY_FIELD or not rest:
        return None
    if root == "attributes":
        return column_of_attribute(rest)
    section, _, key = rest.partition(".")
    if root == "shadow" and section in _SECTIONS and key and "." not in key:
        return f"{section}_{key}"
    return None


def _present(column: QueryColumn, count: int) -> Mask:
    if column.is_valid is not None:
        return np.asarray(column.is_valid[:count])
    return np.ones(count, np.bool_)


def _accepted(term: Match | Range, column: QueryColumn, count: int) -> Mask:
    """Return which rows of a column a term accepts."""
    accepts = _by_value(term.accepts)
    if column.choices:
        of_choice = np.fromiter((accepts(choice) for choice in column.choices), np.bool_, len(column.choices))
        answer: Mask = of_choice[np.asarray(column.values)]
    elif isinstance(column.values, list):
        answer = np.fromiter((accepts(text) for text in column.values), np.bool_, count)
    elif column.values.dtype.kind == "S":
        answer = _of_names(term, column.values)
    else:
        answer = _numeric(term, column.values)
    answer = answer[:count]
    return answer if column.is_valid is None else answer & column.is_valid[:count]


def _of_names(term: Match | Range, names: NDArray[Any]) -> Mask:
    """Return which names (ASCII, without white space) a term accepts; those that begin otherwise are not read."""
    words = term.pattern.words if isinstance(term, Match) else ()
    if isinstance(term, Match) and len(words) != 1:
        return np.zeros(len(names), np.bool_)
    prefix = words[0].texts[0] if words else ""
    answer = _begins(names, prefix)
    if words and words[0].texts[1:] == ("",) and words[0].wildcards == ("*",):
        return answer
    rows = np.flatnonzero(answer)
    answer[rows] = [term.accepts(name.decode()) for name in names[rows].tolist()]
    return answer


def _begins(names: NDArray[Any], prefix: str) -> Mask:
    """Return which names (ASCII) begin with a text, whatever the case of the letters."""
    width = names.dtype.itemsize
    answer = np.ones(len(names), np.bool_)
    if not prefix.lower().isascii() or len(prefix) > width:
        return ~answer
    characters = names.view(np.uint8).reshape(-1, width)
    for position, character in enumerate(prefix.lower()):
        column = characters[:, position]
        either = {ord(character), ord(character.upper())}
        answer &= np.logical_or.reduce([column == code for code in either])
    return answer


def _by_value(accepts: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Return the same test, which asks about each text once only: few fleets have many different ones."""
    known: dict[Any, bool] = {}

    def test(text: Any) -> bool:
        answer = known.get(text)
        if answer is None:
            answer = known[text] = accepts(text)
        return answer

    return test


def _numeric(term: Match | Range, values: NDArray[Any]) -> Mask:
    """Return which numbers or booleans a term accepts; NumPy compares where it does so exactly."""
    if isinstance(term, Match):
        constant = term.pattern.constant
        if constant is None or (type(constant) is bool) != (values.dtype == np.bool_):
            return np.zeros(len(values), np.bool_)
        if _is_exact(constant):
            return np.asarray(values == constant)
    elif values.dtype == np.bool_ or term.is_of_text:
        return np.zeros(len(values), np.bool_)
    elif _is_exact(term.low) and _is_exact(term.high):
        return _within(term, values)
    return np.fromiter((term.accepts(value) for value in values.tolist()), np.bool_, len(values))


def _is_exact(bound: object) -> bool:
    return not isinstance(bound, int) or -_EXACT_MAX <= bound <= _EXACT_MAX


def _within(term: Range, values: NDArray[Any]) -> Mask:
    answer = np.ones(len(values), np.bool_)
    if term.low is not None:
        answer &= values >= term.low if term.is_low_included else values > term.low
    if term.high is not None:
        answer &= values <= term.high if term.is_high_included else values < term.high
    return answer


def row_document(columns: Columns, row: int) -> dict[str, Any]:
    """Return the document that a row stands for, as `query.matches` takes it; it has what the columns have.

    A shadow is there where `updated_at` says so; it has a delta where a desired value is not reported so.
    """
    attributes: dict[str, Any] = {}
    document: dict[str, Any] = {}
    for name, column in columns.items():
        value = column.cell(row)
        if value is None or name.startswith(_SECTION_PREFIXES):
            continue
        if name == "connected":
            document["connectivity"] = {"connected": value}
        elif name not in FIXED_COLUMNS:
            attributes[name.removeprefix("attribute_")] = value
        elif name in _FIELD_OF_COLUMN:
            document[_FIELD_OF_COLUMN[name]] = value
    parts = {"attributes": attributes, "shadow": _row_shadow(columns, row)}
    return document | {name: part for name, part in parts.items() if part}


def _row_shadow(columns: Columns, row: int) -> dict[str, Any]:
    state: dict[str, dict[str, Any]] = {section: {} for section in _SECTIONS}
    metadata: dict[str, dict[str, Any]] = {section: {} for section in _SECTIONS}
    for name, column in columns.items():
        section, _, key = name.partition("_")
        if section in state and f"{name}_at" in columns and (value := column.cell(row)) is not None:
            state[section][key] = value
            stamp = columns[f"{name}_at"].cell(row)
            metadata[section][key] = {"timestamp": stamp}
    shadow: dict[str, Any] = {section: values for section, values in state.items() if values}
    if shadow:
        shadow["metadata"] = {section: stamps for section, stamps in metadata.items() if stamps}
    if "updated_at" in columns and columns["updated_at"].cell(row) is not None:
        shadow["hasDelta"] = any(
            key not in state["reported"] or not json_equal(value, state["reported"][key])
            for key, value in state["desired"].items()
        )
        if "version" in columns:
            shadow["version"] = columns["version"].cell(row)
    return shadow
