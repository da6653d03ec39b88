"""A shard's whole state as bytes, and back: for a restart, and for a branch of the fleet under another clock.

A snapshot is one container: a magic text, the SHA-256 of all that follows, the version of the format, a head in
MessagePack, and one Arrow stream for each table of twins, its columns as they are in memory. Where the bytes are
kept, and which part of a journal they stand for, is the caller's business.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import pyarrow as pa

from twins.errors import ModelError, SnapshotError, SnapshotVersion
from twins.messages import GroupOrder
from twins.shard import Shard
from twins.shipped import model_named
from twins.simulated import SimulatedFleet
from twins.snapshot_head import (
    FORMAT_VERSION,
    FleetPart,
    Head,
    TablePart,
    decode_head,
    encode_head,
)
from twins.table import Column, NamedRows

_MAGIC: Final = b"twinfleet shard\n"
_DIGEST_BYTES: Final = 32
# Version and length of the head, little-endian: 4 bytes are plenty for a version, 8 for any length.
_VERSION_BYTES: Final = 4
_LENGTH_BYTES: Final = 8
# Arrow's own alignment, so that columns are read where they lie.
_ALIGNMENT: Final = 64


def dump_shard(shard: Shard) -> bytes:
    """Return the shard's whole state; the shard goes on as before."""
    return seal(capture_shard(shard))


def capture_shard(shard: Shard) -> list[Any]:
    """Return copies of all that a shard is, to be made a snapshot by `seal`: this is the quick part of it."""
    shard.write_rows()
    streams: list[Any] = []
    tables = [_table_part(table, streams) for table in shard.tables.values()]
    fleets = [_fleet_part(fleet, streams) for fleet in shard.fleets.values()]
    head = encode_head(
        Head(
            shard.number,
            shard.count,
            shard.refused_telemetry_count,
            [(source, sequence, outcome) for source, (sequence, outcome) in shard.last_outcomes.items()],
            shard.named_shadows.packed(),
            shard.telemetry.packed(),
            tables,
            fleets,
            shard.connectivity,
            shard.reports,
            list(shard.unregistered),
            shard.last_places,
            shard.handover.takeovers,
            shard.handover.pins,
            shard.assignments.dump(),
        )
    )
    front = FORMAT_VERSION.to_bytes(_VERSION_BYTES, "little") + len(head).to_bytes(_LENGTH_BYTES, "little")
    padding = bytes(-(_first_stream(0) + len(head)) % _ALIGNMENT)
    return [front, head, padding, *streams]


def seal(parts: list[Any]) -> bytes:
    """Return the snapshot that `capture_shard` has begun; the shard is not needed, and may be in use."""
    checksum = hashlib.sha256()
    for part in parts:
        checksum.update(part)
    return b"".join([_MAGIC, checksum.digest(), *parts])


def load_shard(data: bytes) -> Shard:
    """Return a shard in the state that `dump_shard` wrote; SnapshotError if it is damaged or of another version."""
    head, streams = _open(data)
    shard = Shard(head.number, head.count)
    shard.refused_telemetry_count = head.refused_telemetry_count
    shard.last_outcomes = {source: (sequence, outcome) for source, sequence, outcome in head.last_outcomes}
    shard.named_shadows.take(head.named_shadows)
    shard.telemetry.take(head.telemetry)
    shard.connectivity, shard.reports = head.connectivity, head.reports
    shard.unregistered = dict.fromkeys(head.unregistered)
    shard.last_places = head.places
    shard.handover.takeovers.update(head.takeovers)
    shard.handover.pins.update(head.pins)
    shard.assignments.load(head.assignments)
    try:
        for table in head.tables:
            shard.tables[table.model] = _load_table(table, next(streams))
            shard.model_of.update(dict.fromkeys(table.names, table.model))
        for fleet in head.fleets:
            shard.fleets[fleet.order.name] = _load_fleet(fleet, shard, next(streams))
    except ModelError as error:
        raise SnapshotError(f"the snapshot holds what this version does not know: {error}") from None
    return shard


# The container


def _first_stream(head_bytes: int) -> int:
    """Return where the streams begin, but for padding."""
    return len(_MAGIC) + _DIGEST_BYTES + _VERSION_BYTES + _LENGTH_BYTES + head_bytes


def _open(data: bytes) -> tuple[Head, Iterator[memoryview]]:
    body = memoryview(data)[len(_MAGIC) + _DIGEST_BYTES :]
    if not data.startswith(_MAGIC):
        raise SnapshotError("this is no snapshot of a shard")
    if hashlib.sha256(body).digest() != data[len(_MAGIC) : len(_MAGIC) + _DIGEST_BYTES]:
        raise SnapshotError("the snapshot is damaged: its checksum does not match")
    version = int.from_bytes(body[:_VERSION_BYTES], "little")
    if version != FORMAT_VERSION:
        age = "a newer" if version > FORMAT_VERSION else "an older"
        raise SnapshotVersion(
            f"the snapshot is of {age} version: its format is {version}, this one reads {FORMAT_VERSION}"
        )
    head_start = _VERSION_BYTES + _LENGTH_BYTES
    head_bytes = int.from_bytes(body[_VERSION_BYTES:head_start], "little")
    head = decode_head(body[head_start : head_start + head_bytes])
    first = _first_stream(head_bytes)
    return head, _streams(memoryview(data)[first + -first % _ALIGNMENT :], [*head.tables, *head.fleets])


def _streams(data: memoryview, parts: Iterable[TablePart | FleetPart]) -> Iterator[memoryview]:
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


def _table_part(table: NamedRows, streams: list[Any]) -> TablePart:
    columns = {name: column[: table.count] for name, column in table.columns.items()}
    size = _write_stream(columns, streams)
    return TablePart(table.model.name, table.names, table.attributes.packed(), table.overflow.packed(), size)


def _load_table(part: TablePart, stream: memoryview) -> NamedRows:
    table = NamedRows(model_named(part.model))
    count = len(part.names)
    if count > table.capacity:
        table.grow(count)
    _read_stream(stream, table.columns, count=count, model=part.model)
    table.names, table.count = part.names, count
    table.row_of = dict(zip(part.names, range(count), strict=True))
    table.attributes.take(part.attributes)
    table.overflow.take(part.overflow)
    return table


def _fleet_part(fleet: SimulatedFleet, streams: list[Any]) -> FleetPart:
    flying, kept = (b"", b"") if fleet.post is None else (part.tobytes() for part in fleet.post.dump())
    return FleetPart(
        GroupOrder.of(fleet.group),
        fleet.next_tick,
        fleet.has_desired,
        {field: window.number for field, window in fleet.windows.items()},
        fleet.table.overflow.packed(),
        _write_stream(fleet.arena.columns, streams),
        fleet.held,
        flying,
        kept,
    )


def _load_fleet(part: FleetPart, shard: Shard, stream: memoryview) -> SimulatedFleet:
    fleet = SimulatedFleet(part.order.group(), shard.number, shard_count=shard.count)
    _read_stream(stream, fleet.arena.columns, count=fleet.table.capacity, model=part.order.model_name)
    fleet.next_tick, fleet.has_desired = part.next_tick, part.has_desired
    for field, number in part.window_numbers.items():
        fleet.windows[field].number = number
    fleet.table.overflow.take(part.overflow)
    for row, bits in part.held.items():
        fleet.hold(row, bits)
    if fleet.post is not None:
        fleet.post.load(part.flying, part.kept, fleet.connected)
    return fleet
