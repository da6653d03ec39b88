"""The head of a snapshot: everything of a shard but its columns, in MessagePack; and the heads of older formats.

What devices may fill as they like stands in JSON: its integers have any size. It is cut up by thing, so that a shard
which is read again takes apart only what somebody asks for.
"""

from __future__ import annotations

from typing import Final

import msgspec

from twins.defender import Report
from twins.handover import Pin, Takeover
from twins.messages import Connectivity, GroupOrder, Outcome
from twins.shadow import encode_json

FORMAT_VERSION: Final = 4
# Versions 1 and 2 had whole dictionaries in JSON; version 1 knew neither connectivity nor reports of metrics nor who
# had gone. Up to version 3 no twin was in other hands.
FORMATS_READ: Final = (1, 2, 3, FORMAT_VERSION)


class TablePart(msgspec.Struct, frozen=True):
    """The twins of one model under names of their own; `attributes` and `overflow` are JSON by row."""

    model: str
    names: list[str]
    attributes: dict[int, bytes]
    overflow: dict[int, bytes]
    stream_bytes: int


class FleetPart(msgspec.Struct, frozen=True):
    """A simulated fleet; `window_numbers` are the present buckets of its telemetry windows, `overflow` JSON by row.

    `held` says what rows are held for.
    """

    order: GroupOrder
    next_tick: int
    has_desired: bool
    window_numbers: dict[str, int]
    overflow: dict[int, bytes]
    stream_bytes: int
    # Since version 4.
    held: dict[int, int] = {}


class Head(msgspec.Struct, frozen=True):
    """Everything but the columns; `named_shadows` and `telemetry` are JSON by thing."""

    number: int
    count: int
    refused_telemetry_count: int
    last_outcomes: list[tuple[str, int, Outcome]]
    named_shadows: dict[str, bytes]
    telemetry: dict[str, bytes]
    tables: list[TablePart]
    fleets: list[FleetPart]
    connectivity: dict[str, Connectivity]
    reports: dict[str, Report]
    unregistered: list[str]
    # Since version 4.
    takeovers: dict[str, Takeover] = {}
    pins: dict[str, Pin] = {}


encode_head: Final = msgspec.msgpack.Encoder().encode
_PACKED_SINCE: Final = 3
_decode_head: Final = msgspec.msgpack.Decoder(Head).decode


def decode_head(data: memoryview, version: int) -> Head:
    """Return a head that was written as one of FORMATS_READ."""
    return _decode_head(data) if version >= _PACKED_SINCE else _decode_head_2(data).as_head()


# Formats 1 and 2


class _TablePart2(msgspec.Struct, frozen=True):
    model: str
    names: list[str]
    attributes: list[dict[str, str]]
    overflow: bytes
    stream_bytes: int

    def as_part(self) -> TablePart:
        attributes = {row: encode_json(each) for row, each in enumerate(self.attributes) if each}
        return TablePart(self.model, self.names, attributes, _by_row(self.overflow), self.stream_bytes)


class _FleetPart2(msgspec.Struct, frozen=True):
    order: GroupOrder
    next_tick: int
    has_desired: bool
    window_numbers: dict[str, int]
    overflow: bytes
    stream_bytes: int

    def as_part(self) -> FleetPart:
        overflow = _by_row(self.overflow)
        return FleetPart(
            self.order, self.next_tick, self.has_desired, self.window_numbers, overflow, self.stream_bytes
        )


class _Head2(msgspec.Struct, frozen=True):
    number: int
    count: int
    refused_telemetry_count: int
    last_outcomes: list[tuple[str, int, Outcome]]
    named_shadows: bytes
    telemetry: bytes
    tables: list[_TablePart2]
    fleets: list[_FleetPart2]
    # Since version 2.
    connectivity: dict[str, Connectivity] = {}
    reports: dict[str, Report] = {}
    unregistered: list[str] = []

    def as_head(self) -> Head:
        return Head(
            self.number,
            self.count,
            self.refused_telemetry_count,
            self.last_outcomes,
            {name: encode_json(shadows) for name, shadows in msgspec.json.decode(self.named_shadows)},
            {name: encode_json(state) for name, state in msgspec.json.decode(self.telemetry)},
            [part.as_part() for part in self.tables],
            [part.as_part() for part in self.fleets],
            self.connectivity,
            self.reports,
            self.unregistered,
        )


_decode_head_2: Final = msgspec.msgpack.Decoder(_Head2).decode


def _by_row(encoded: bytes) -> dict[int, bytes]:
    """Return a JSON array of [row, trees...] as the JSON of the trees by row."""
    return {row: encode_json(trees) for row, *trees in msgspec.json.decode(encoded)}
