"""A shard's whole state as bytes, and back: for a restart, and for a branch of the fleet under another clock.

A snapshot is one container: a magic text, the SHA-256 of all that follows, the version of the format, a head in
MessagePack, and one Arrow stream for each table of twins, its columns as they are in memory. Where the bytes are
kept, and which part of a journal they stand for, is the caller's business.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec
import pyarrow as pa

from twins.behavior import SimulatedFleet
from twins.defender import Report
from twins.errors import ModelError, SnapshotError, SnapshotVersion
from twins.messages import Connectivity, GroupOrder, Outcome
from twins.model import model_named
from twins.shadow import ShadowDocument, Stamp, Tree, encode_json
from twins.shard import Shard
from twins.table import Column, NamedRows, Overflow, TwinTable
from twins.window import ThingTelemetry

FORMAT_VERSION: Final = 2
# Version 1 knew neither connectivity nor reports of metrics nor who had gone; all else is the same.
_FORMATS_READ: Final = (1, FORMAT_VERSION)
_MAGIC: Final = b"twinfleet shard\n"
_DIGEST_BYTES: Final = 32
# Version and length of the head, little-endian: 4 bytes are plenty for a version, 8 for any length.
_VERSION_BYTES: Final = 4
_LENGTH_BYTES: Final = 8
# Arrow's own alignment, so that columns are read where they lie.
_ALIGNMENT: Final = 64


class _TablePart(msgspec.Struct, frozen=True):
    """The twins of one model under names of their own; `overflow` is JSON."""

    model: str
    names: list[str]
    attributes: list[dict[str, str]]
    overflow: bytes
    stream_bytes: int


class _FleetPart(msgspec.Struct, frozen=True):
    """A simulated fleet; `window_numbers` are the present buckets of its telemetry windows, `overflow` is JSON."""

    order: GroupOrder
    next_tick: int
    has_desired: bool
    window_numbers: dict[str, int]
    overflow: bytes
    stream_bytes: int


class _Head(msgspec.Struct, frozen=True):
    """Everything but the columns. What devices may fill as they like stands in JSON: its integers have any size."""

    number: int
    count: int
    model_of: dict[str, str]
    refused_telemetry_count: int
    last_outcomes: list[tuple[str, int, Outcome]]
    named_shadows: bytes
    telemetry: bytes
    tables: list[_TablePart]
    fleets: list[_FleetPart]
    # Since version 2.
    connectivity: dict[str, Connectivity] = {}
    reports: dict[str, Report] = {}
    unregistered: list[str] = []


def dump_shard(shard: Shard) -> bytes:
    """Return the shard's whole state; the shard goes on as before."""
    shard.write_rows()
    streams: list[Any] = []
    tables = [_table_part(table, streams) for table in shard.tables.values()]
    fleets = [_fleet_part(fleet, streams) for fleet in shard.fleets.values()]
    head = msgspec.msgpack.encode(
        _Head(
            shard.number,
            shard.count,
            shard.model_of,
            shard.refused_telemetry_count,
            [(source, sequence, outcome) for source, (sequence, outcome) in shard.last_outcomes.items()],
            encode_json(
                [
                    [thing_name, [[name, *_shadow_state(document)] for name, document in shadows.items()]]
                    for thing_name, shadows in shard.named_shadows.items()
                ]
            ),
            encode_json([[name, telemetry.to_state()] for name, telemetry in shard.telemetry.items()]),
            tables,
            fleets,
            shard.connectivity,
            shard.reports,
            list(shard.unregistered),
        )
    )
    front = FORMAT_VERSION.to_bytes(_VERSION_BYTES, "little") + len(head).to_bytes(_LENGTH_BYTES, "little")
    padding = bytes(-(_first_stream(0) + len(head)) % _ALIGNMENT)
    parts = [front, head, padding, *streams]
    checksum = hashlib.sha256()
    for part in parts:
        checksum.update(part)
    return b"".join([_MAGIC, checksum.digest(), *parts])


def load_shard(data: bytes) -> Shard:
    """Return a shard in the state that `dump_shard` wrote; SnapshotError if it is damaged or of another version."""
    head, streams = _open(data)
    shard = Shard(head.number, head.count)
    shard.model_of = dict(head.model_of)
    shard.refused_telemetry_count = head.refused_telemetry_count
    shard.last_outcomes = {source: (sequence, outcome) for source, sequence, outcome in head.last_outcomes}
    for thing_name, shadows in msgspec.json.decode(head.named_shadows):
        shard.named_shadows[thing_name] = {name: _shadow(state) for name, *state in shadows}
    for thing_name, state in msgspec.json.decode(head.telemetry):
        shard.telemetry[thing_name] = ThingTelemetry.from_state(state)
    shard.connectivity, shard.reports = dict(head.connectivity), dict(head.reports)
    shard.unregistered = dict.fromkeys(head.unregistered)
    try:
        for table in head.tables:
            shard.tables[table.model] = _load_table(table, next(streams))
        for fleet in head.fleets:
            shard.fleets[fleet.order.name] = _load_fleet(fleet, shard, next(streams))
    except ModelError as error:
        raise SnapshotError(f"the snapshot holds what this version does not know: {error}") from None
    return shard


# The container


def _first_stream(head_bytes: int) -> int:
    """Return where the streams begin, but for padding."""
    return len(_MAGIC) + _DIGEST_BYTES + _VERSION_BYTES + _LENGTH_BYTES + head_bytes


def _open(data: bytes) -> tuple[_Head, Iterator[memoryview]]:
    body = memoryview(data)[len(_MAGIC) + _DIGEST_BYTES :]
    if not data.startswith(_MAGIC):
        raise SnapshotError("this is no snapshot of a shard")
    if hashlib.sha256(body).digest() != data[len(_MAGIC) : len(_MAGIC) + _DIGEST_BYTES]:
        raise SnapshotError("the snapshot is damaged: its checksum does not match")
    version = int.from_bytes(body[:_VERSION_BYTES], "little")
    if version not in _FORMATS_READ:
        age = "a newer" if version > FORMAT_VERSION else "an older"
        raise SnapshotVersion(
            f"the snapshot is of {age} version: its format is {version}, this one reads up to {FORMAT_VERSION}"
        )
    head_start = _VERSION_BYTES + _LENGTH_BYTES
    head_bytes = int.from_bytes(body[_VERSION_BYTES:head_start], "little")
    head = msgspec.msgpack.decode(body[head_start : head_start + head_bytes], type=_Head)
    first = _first_stream(head_bytes)
    return head, _streams(memoryview(data)[first + -first % _ALIGNMENT :], [*head.tables, *head.fleets])


def _streams(data: memoryview, parts: Iterable[_TablePart | _FleetPart]) -> Iterator[memoryview]:
    start = 0
    for part in parts:
        yield data[start : start + part.stream_bytes]
        start += part.stream_bytes


def _write_stream(columns: Mapping[str, Column], streams: list[Any]) -> int:
    """Append the columns to the streams, in place, as one batch of rows, and return how many bytes they take."""
    batch = pa.record_batch({name: pa.array(column) for name, column in columns.items()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    stream = sink.getvalue()
    padding = bytes(-stream.size % _ALIGNMENT)
    streams.extend((stream, padding))
    return int(stream.size) + len(padding)


def _read_stream(stream: memoryview, columns: Mapping[str, Column], *, count: int, model: str) -> None:
    """Fill the first `count` rows of the columns, in place; SnapshotError if the stream has other columns or rows."""
    batch = pa.ipc.open_stream(pa.py_buffer(stream)).read_next_batch()
    written = {name: batch.column(name).to_numpy() for name in batch.schema.names}
    for name in sorted(columns.keys() | written.keys()):
        here, there = columns.get(name), written.get(name)
        if here is None or there is None or here.dtype != there.dtype or len(there) != count:
            raise SnapshotError(f"the snapshot describes model {model!r} otherwise: see its column {name}")
        here[:count] = there


# Tables of twins


def _table_part(table: NamedRows, streams: list[Any]) -> _TablePart:
    columns = {name: column[: table.count] for name, column in table.columns.items()}
    size = _write_stream(columns, streams)
    return _TablePart(table.model.name, table.names, table.attributes, _overflow_json(table), size)


def _load_table(part: _TablePart, stream: memoryview) -> NamedRows:
    table = NamedRows(model_named(part.model))
    count = len(part.names)
    if count > table.capacity:
        table.grow(count)
    _read_stream(stream, table.columns, count=count, model=part.model)
    table.names, table.attributes, table.count = part.names, part.attributes, count
    table.row_of = {name: row for row, name in enumerate(part.names)}
    _load_overflow(table, part.overflow)
    return table


def _fleet_columns(fleet: SimulatedFleet) -> dict[str, Column]:
    """Return every column of a fleet, rows that only fill its last cell included."""
    columns = {f"twin.{name}": column for name, column in fleet.table.columns.items()}
    columns.update({f"device.{name}": column for name, column in fleet.state.items()})
    columns.update({f"attribute.{name}": column for name, column in fleet.attributes.items()})
    for field, window in fleet.windows.items():
        columns.update({f"window.{field}.{name}": column for name, column in window.columns.items()})
    columns["connected"] = fleet.connected
    return columns


def _fleet_part(fleet: SimulatedFleet, streams: list[Any]) -> _FleetPart:
    return _FleetPart(
        GroupOrder.of(fleet.group),
        fleet.next_tick,
        fleet.has_desired,
        {field: window.number for field, window in fleet.windows.items()},
        _overflow_json(fleet.table),
        _write_stream(_fleet_columns(fleet), streams),
    )


def _load_fleet(part: _FleetPart, shard: Shard, stream: memoryview) -> SimulatedFleet:
    fleet = SimulatedFleet(part.order.group(), shard.number, shard_count=shard.count)
    _read_stream(stream, _fleet_columns(fleet), count=fleet.table.capacity, model=part.order.model)
    fleet.next_tick, fleet.has_desired = part.next_tick, part.has_desired
    for field, number in part.window_numbers.items():
        fleet.windows[field].number = number
    _load_overflow(fleet.table, part.overflow)
    return fleet


# Documents


def _overflow_json(table: TwinTable) -> bytes:
    return encode_json(
        [
            [row, kept.desired, kept.desired_metadata, kept.reported, kept.reported_metadata]
            for row, kept in table.overflow.items()
        ]
    )


def _load_overflow(table: TwinTable, encoded: bytes) -> None:
    for row, *trees in msgspec.json.decode(encoded):
        kept = table.overflow[row] = Overflow()
        _fill_trees(kept, trees)


def _shadow_state(document: ShadowDocument) -> list[Any]:
    return [
        document.exists,
        document.version,
        document.changed_at_s,
        document.desired,
        document.desired_metadata,
        document.reported,
        document.reported_metadata,
    ]


def _shadow(state: list[Any]) -> ShadowDocument:
    document = ShadowDocument()
    document.exists, document.version, document.changed_at_s, *trees = state
    _fill_trees(document, trees)
    document.forget_size()
    return document


def _fill_trees(target: Overflow | ShadowDocument, trees: list[Tree]) -> None:
    target.desired, desired_metadata, target.reported, reported_metadata = trees
    target.desired_metadata = _restamp(target.desired, desired_metadata)
    target.reported_metadata = _restamp(target.reported, reported_metadata)


def _restamp(state: Any, metadata: Any) -> Any:
    """Return decoded metadata with its stamps; the state tells an object called `timestamp` from a stamp."""
    if type(state) is dict:
        return {key: _restamp(child, metadata[key]) for key, child in state.items()}
    if type(state) is list:
        return [_restamp(child, stamp) for child, stamp in zip(state, metadata, strict=True)]
    return Stamp(metadata["timestamp"])
