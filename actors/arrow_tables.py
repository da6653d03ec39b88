"""Twins as Arrow: the columns that shards give become tables, and the tables of several shards become one.

Owns types and layout: texts that repeat are dictionaries, times and validity are as the shards have them. Each table
carries, in the metadata of its schema, when each shard was read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from twins.columns import QueryColumn
from twins.shard import Shard

# The key of the schema's metadata under which stands a JSON object: shard to the time (seconds) of its reading.
SHARDS_KEY: Final = b"twinfleet.shards_read_at"
# Positions of dictionaries are bytes while all of them fit one, and else words.
_BYTE_MAX: Final = 127
_SMALL: Final = pa.dictionary(pa.int8(), pa.string())
_LARGE: Final = pa.dictionary(pa.int32(), pa.string())


def arrow_table(
    parts: Iterable[Mapping[str, QueryColumn]], *, read_at: Mapping[int, float] | None = None
) -> pa.Table:
    """Return the rows of several tables of twins as one Arrow table; a column that a part lacks is null there.

    `read_at` says when the shards from which they come were read.
    """
    tables = [pa.table({name: _arrow_column(column) for name, column in part.items()}) for part in parts]
    return join_tables([marked(table, read_at or {}) for table in tables])


EXECUTION_COLUMNS: Final = pa.schema(
    [
        ("thing", pa.string()),
        ("job_id", pa.string()),
        ("status", pa.string()),
        ("execution_number", pa.int32()),
        ("version", pa.int32()),
        ("queued_at", pa.int64()),
        ("started_at", pa.int64()),
        ("updated_at", pa.int64()),
        ("details", pa.map_(pa.string(), pa.string())),
    ]
)


def executions_of(shard: Shard, now_s: float) -> pa.Table:
    """Return the job executions of a shard's things, a row each, as they are at `now_s`."""
    rows = [
        {
            "thing": thing_name,
            "job_id": each.job_id,
            "status": each.status,
            "execution_number": each.number,
            "version": each.version,
            "queued_at": each.queued_at_s,
            "started_at": each.started_at_s or None,
            "updated_at": each.updated_at_s,
            "details": list(each.details.items()),
        }
        for thing_name, each in shard.assignments.executions()
    ]
    return marked(pa.Table.from_pylist(rows, EXECUTION_COLUMNS), {shard.number: now_s})


def join_tables(tables: Sequence[pa.Table]) -> pa.Table:
    """Return the rows of all tables as one, which knows when each shard was read.

    Columns of the same name get a type that holds all of them; texts where models disagree.
    """
    if not tables:
        return pa.table({})
    names = list(dict.fromkeys(name for table in tables for name in table.column_names))
    columns = {}
    for name in names:
        kind = _common_type([table[name] for table in tables if name in table.column_names])
        chunks = [chunk for table in tables for chunk in _chunks(table, name, kind)]
        column = pa.chunked_array(chunks, kind)
        columns[name] = column.unify_dictionaries() if pa.types.is_dictionary(kind) else column
    read_at = {shard: at for table in tables for shard, at in shards_read_at(table).items()}
    return marked(pa.table(columns), read_at)


def shards_read_at(table: pa.Table) -> dict[int, float]:
    """Return when each shard was read for a table, in seconds of the clock of its fleet."""
    encoded = (table.schema.metadata or {}).get(SHARDS_KEY, b"{}")
    return msgspec.json.decode(encoded, type=dict[int, float])


def marked(table: pa.Table, read_at: Mapping[int, float]) -> pa.Table:
    """Return the same table, which knows when each shard was read for it."""
    metadata = {
        **(table.schema.metadata or {}),
        SHARDS_KEY: msgspec.json.encode(dict(sorted(read_at.items()))),
    }
    return table.replace_schema_metadata(metadata)


def _common_type(columns: Sequence[pa.ChunkedArray]) -> pa.DataType:
    kinds = list(dict.fromkeys(column.type for column in columns))
    if all(pa.types.is_dictionary(kind) for kind in kinds):
        texts = {
            text for column in columns for chunk in column.chunks for text in chunk.dictionary.to_pylist()
        }
        return _SMALL if len(texts) <= _BYTE_MAX else _LARGE
    if len(kinds) == 1:
        return kinds[0]
    try:
        schemas = [pa.schema([("", kind)]) for kind in kinds]
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.string()


def _chunks(table: pa.Table, name: str, kind: pa.DataType) -> Iterator[pa.Array]:
    if name not in table.column_names:
        yield pa.nulls(table.num_rows, kind)
        return
    for chunk in table[name].chunks:
        yield chunk if chunk.type == kind else _cast(chunk, kind)


def _cast(chunk: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(chunk.type) and pa.types.is_dictionary(kind):
        return pa.DictionaryArray.from_arrays(chunk.indices.cast(kind.index_type), chunk.dictionary)
    return chunk.cast(kind)


def _arrow_column(column: QueryColumn) -> pa.Array:
    if isinstance(column.values, list):
        return pa.array(column.values, pa.string())
    if column.values.dtype.kind == "S":
        return _name_array(column.values)
    mask = None if column.is_valid is None or column.is_valid.all() else ~column.is_valid
    if not column.choices:
        return pa.array(column.values, mask=mask)
    dtype = np.int8 if len(column.choices) <= _BYTE_MAX else np.int32
    positions = column.values.astype(dtype)
    return pa.DictionaryArray.from_arrays(
        pa.array(positions, mask=mask), pa.array(column.choices, pa.string())
    )


def _name_array(names: NDArray[Any]) -> pa.Array:
    """Return texts of ASCII as an Arrow array, without an object a row."""
    width = names.dtype.itemsize
    characters = names.view(np.uint8).reshape(-1, width)
    is_used = characters != 0
    offsets = np.zeros(len(names) + 1, np.int32)
    if is_used[:, -1].all():
        offsets[1:] = np.arange(1, len(names) + 1, dtype=np.int32) * np.int32(width)
    else:
        np.cumsum(is_used.sum(axis=1), out=offsets[1:])
        characters = characters[is_used]
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(characters))]
    return pa.StringArray.from_buffers(len(names), buffers[1], buffers[2])
