"""What twins remember of their telemetry, as columns: a row for each thing, stream and field.

`value` is the last one where it is a number, `text` where it is anything else (as JSON, if it is no text); `count`,
`min`, `max` and `mean` are those of the sliding window, see `window`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from twins.columns import QueryColumn, pattern_names, select_rows
from twins.packed import PackedMapping
from twins.shadow import encode_json
from twins.simulated import SimulatedFleet
from twins.window import BUCKET_S, ThingTelemetry

TELEMETRY_COLUMNS: Final = ("name", "stream", "field", "value", "text", "at", "count", "min", "max", "mean")
# The stream in which simulated devices report.
_REPORTED: Final = "reported"


def select_telemetry(
    telemetry: PackedMapping[str, ThingTelemetry],
    fleets: Iterable[SimulatedFleet],
    wanted: Collection[str] | None,
    *,
    now_s: float,
) -> Iterator[dict[str, QueryColumn]]:
    """Yield the wanted columns (None: all) of what the twins of a shard remember of their telemetry.

    Real things come first, as one table, also if there are none.
    """
    of_things = telemetry_of_things(telemetry.read(), now_s=int(now_s))
    yield {name: column for name, column in of_things.items() if wanted is None or name in wanted}
    for fleet in fleets:
        # Their time is that of their ticks, as for those who ask for one twin.
        yield from telemetry_of_fleet(fleet, wanted, now_s=fleet.time_s(max(fleet.next_tick - 1, 0)))


def telemetry_of_things(
    things: Iterable[tuple[str, ThingTelemetry]], *, now_s: int
) -> dict[str, QueryColumn]:
    """Return all columns for real things by name."""
    rows = [
        (name, stream, field, described)
        for name, telemetry in things
        for stream, fields in telemetry.describe(now_s).items()
        for field, described in fields.items()
    ]
    values = [row[3]["value"] for row in rows]
    return {
        "name": QueryColumn([row[0] for row in rows]),
        "stream": text_column([row[1] for row in rows]),
        "field": text_column([row[2] for row in rows]),
        "value": _numbers([value if _is_number(value) else None for value in values]),
        "text": text_column([_text(value) for value in values]),
        "at": QueryColumn(np.array([row[3]["timestamp"] for row in rows], np.uint32)),
        "count": QueryColumn(np.array([row[3]["count"] for row in rows], np.uint32)),
        **{part: _numbers([row[3].get(part) for row in rows]) for part in ("min", "max", "mean")},
    }


def telemetry_of_fleet(
    fleet: SimulatedFleet, wanted: Collection[str] | None, *, now_s: int
) -> Iterator[dict[str, QueryColumn]]:
    """Yield the wanted columns (None: all) for each field that a fleet's devices report."""
    table = fleet.table
    names: NDArray[Any] | None = None
    if wanted is None or "name" in wanted:
        names = pattern_names(table.pattern, table.indices)
    for field in table.model.fields:
        value, stamp = f"reported_{field.name}", f"reported_{field.name}_at"
        read = select_rows(fleet, {value, stamp}, connectivity={})
        is_valid = read[stamp].is_valid
        rows = np.arange(table.count) if is_valid is None else np.flatnonzero(is_valid)
        columns = {
            "stream": _constant(_REPORTED, len(rows)),
            "field": _constant(field.name, len(rows)),
            **_values(read[value], rows),
            "at": QueryColumn(np.asarray(read[stamp].values)[rows]),
            **_statistics(fleet, field.name, rows, number=now_s // BUCKET_S),
        }
        if names is not None:
            columns["name"] = QueryColumn(names[rows])
        yield {
            part: columns[part]
            for part in TELEMETRY_COLUMNS
            if part in columns and (wanted is None or part in wanted)
        }


def text_column(texts: Sequence[str | None]) -> QueryColumn:
    """Return a column of texts, each different one once; None where a row has none."""
    positions: dict[str, int] = {}
    values = [0 if text is None else positions.setdefault(text, len(positions)) for text in texts]
    is_valid = np.array([text is not None for text in texts], np.bool_)
    return QueryColumn(np.array(values, np.int32), is_valid, tuple(positions) or ("",))


def _values(column: QueryColumn, rows: NDArray[np.intp]) -> dict[str, QueryColumn]:
    """Return `value` and `text` of some rows of a reported column; what it can't hold is missing in both."""
    values = np.asarray(column.values)[rows]
    is_valid = np.ones(len(rows), np.bool_) if column.is_valid is None else column.is_valid[rows]
    choices = ("false", "true") if values.dtype == np.bool_ else column.choices
    if choices:
        nothing = QueryColumn(np.zeros(len(rows)), np.zeros(len(rows), np.bool_))
        return {"value": nothing, "text": QueryColumn(values.astype(np.int32), is_valid, choices)}
    nothing = QueryColumn(np.zeros(len(rows), np.int32), np.zeros(len(rows), np.bool_), ("",))
    return {"value": QueryColumn(values.astype(np.float64), is_valid), "text": nothing}


def _statistics(
    fleet: SimulatedFleet, field_name: str, rows: NDArray[np.intp], *, number: int
) -> dict[str, QueryColumn]:
    """Return the statistics of a window up to bucket `number`, as `window.summarise` has them."""
    counts, sums = np.zeros(len(rows), np.uint32), np.zeros(len(rows))
    least, greatest = np.full(len(rows), np.inf), np.full(len(rows), -np.inf)
    window = fleet.windows.get(field_name)
    for which, age in (("last", 1), ("present", 0)):
        # The window is this bucket and the one before it.
        if window is None or window.number - age < number - 1:
            continue
        columns: dict[str, NDArray[Any]] = {
            part: window.columns[f"{which}.{part}"][rows] for part in ("count", "sum", "min", "max")
        }
        is_filled = columns["count"] > 0
        counts += columns["count"]
        sums += np.where(is_filled, columns["sum"], 0.0)
        np.minimum(least, np.where(is_filled, columns["min"], np.inf), out=least)
        np.maximum(greatest, np.where(is_filled, columns["max"], -np.inf), out=greatest)
    is_counted = counts > 0
    return {
        "count": QueryColumn(counts),
        "min": QueryColumn(np.where(is_counted, least, 0.0), is_counted),
        "max": QueryColumn(np.where(is_counted, greatest, 0.0), is_counted),
        "mean": QueryColumn(sums / np.maximum(counts, 1), is_counted),
    }


def _constant(text: str, count: int) -> QueryColumn:
    return QueryColumn(np.zeros(count, np.uint8), None, (text,))


def _is_number(value: Any) -> bool:
    # Integers of devices have any size; a float has not.
    return type(value) is float or (type(value) is int and abs(value) < 2**1023)


def _text(value: Any) -> str | None:
    if value is None or _is_number(value):
        return None
    return value if type(value) is str else encode_json(value).decode()


def _numbers(numbers: Sequence[float | None]) -> QueryColumn:
    is_valid = np.array([number is not None for number in numbers], np.bool_)
    return QueryColumn(np.array([0.0 if number is None else float(number) for number in numbers]), is_valid)
