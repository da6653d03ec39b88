"""The head of a snapshot: everything of a shard but its columns, in MessagePack.

What devices may fill as they like stands in JSON: its integers have any size. It is cut up by thing, so that a shard
which is read again takes apart only what somebody asks for.
"""

from __future__ import annotations

from typing import Final

import msgspec

from twins.assignments import AssignmentsPart
from twins.defender import Report
from twins.handover import Pin, Takeover
from twins.messages import Connectivity, GroupOrder, Outcome
from twins.places import LastPlaces

# Version 4 has the columns of block programs; what was written before the first release is not read any more.
FORMAT_VERSION: Final = 4


class TablePart(msgspec.Struct, frozen=True):
    """The twins of one model under names of their own; `attributes` and `overflow` are JSON by row."""

    model: str
    names: list[str]
    attributes: dict[int, bytes]
    overflow: dict[int, bytes]
    stream_bytes: int


class FleetPart(msgspec.Struct, frozen=True):
    """A simulated fleet; `window_numbers` are the present buckets of its telemetry windows, `overflow` JSON by row.

    `held` says what rows are held for, `flying` and `kept` are the records of its `post`.
    """

    order: GroupOrder
    next_tick: int
    has_desired: bool
    window_numbers: dict[str, int]
    overflow: dict[int, bytes]
    stream_bytes: int
    held: dict[int, int] = {}
    flying: bytes = b""
    kept: bytes = b""


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
    places: LastPlaces
    takeovers: dict[str, Takeover]
    pins: dict[str, Pin]
    assignments: AssignmentsPart = msgspec.field(default_factory=AssignmentsPart)


encode_head: Final = msgspec.msgpack.Encoder().encode
decode_head: Final = msgspec.msgpack.Decoder(Head).decode
