"""Simulated fleets: the devices of one group that live in one shard, their twins, and whose turn it is.

A fleet is worked through in cells of `CELL_ROWS` rows; all devices of a cell measure at the same tick, and the cells
of a fleet are spread evenly over its reporting period. A device whose turn it is not costs nothing: its state advances
by the whole period when it is. All draws come from (seed, stream, tick, device), all arithmetic is IEEE 754 single
precision without library functions, so the same seed gives the same bytes everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from twins.arena import Arena
from twins.behavior import (
    ARRIVED,
    DIFFERING,
    DUE,
    OFFLINE,
    SILENT,
    Turn,
    connection_rates,
    device_layout,
    write_comparison,
    write_turn,
)
from twins.draws import INDEX_MULTIPLIER, draws
from twins.errors import InvariantError, ModelError
from twins.expressions import constant_of, parse_formula
from twins.fault_program import FaultWriter, attempts_of, edge_of, is_felt, write_edge
from twins.faults import ACTIONS, Fault
from twins.generators import kind_of, start_column
from twins.interpreter import Rows
from twins.link_program import LATENCY, LOST, MISDATED, REFUSED, Conditions, LinkWriter, post_layout
from twins.messages import TickOrder, TickSummary
from twins.model import Group
from twins.post import Now, Post, PostCounts
from twins.program import CELL_ROWS, HISTOGRAM_BUCKETS, Builder, Moment, Program
from twins.runners import Runner
from twins.selection import drawn_attribute
from twins.sharding import BLOCK_SIZE
from twins.table import EXISTS, PatternRows
from twins.window import BUCKET_S, summarise

# What a row is held for, as bits: by a real device, by a behaviour of its own; and that it was held once, which stays.
HELD_BY_DEVICE: Final = 1
HELD_BY_BEHAVIOR: Final = 2
_HELD_ONCE: Final = 4
# The column that says which rows are held now; it takes no memory until one is.
HELD: Final = "held"
# Cells that are worked through at a time: 65,536 devices, which takes below a millisecond or two.
_PIECE_CELLS: Final = 2048
# Rows that are started at a time, so that a start takes no more memory than the fleet.
_START_ROWS: Final = 1 << 18
# Programs that are kept: faults come and go, and each set of them takes one.
_PROGRAMS_MAX: Final = 16
# Faults that bear upon links or clocks, beside those of the network.
_OF_LINKS: Final = ("malformed_payload", "clock_skew", "bad_time_server")


class SimulatedFleet:
    """The devices of one group that live in one shard, and their twins.

    `table` holds the twins; `state` the devices' own columns; `attributes` one column of value positions each;
    `connected` (bool as uint8) what the platform sees of the connection; `windows` the telemetry statistics. All of
    them are columns of one `arena`.
    """

    def __init__(self, group: Group, shard: int, *, shard_count: int) -> None:
        self.group = group
        self.next_tick = 0
        model = group.model
        blocks = group.pattern.blocks(group.count, shard, shard_count=shard_count)
        self.table = PatternRows(
            model,
            group.pattern,
            fleet_count=group.count,
            blocks=blocks,
            beside=_layout_beside(group),
        )
        self.arena = self.table.arena
        cells = np.arange(BLOCK_SIZE // CELL_ROWS, dtype=np.uint32)
        numbers = (blocks[:, None] * np.uint32(BLOCK_SIZE // CELL_ROWS) + cells).reshape(-1)
        self._cell_numbers = numbers[: self.table.capacity // CELL_ROWS]
        self._cell_spread = self._cell_numbers * np.uint32(CELL_ROWS) * np.uint32(INDEX_MULTIPLIER)
        self._due: dict[int, NDArray[np.int64]] = {}
        self._programs: dict[Any, Program] = {}
        # What rows are held for, by row; few are. The simulation leaves those alone that are held now.
        self.held: dict[int, int] = {}
        self._held_now: list[int] = []
        self._comparison: Program | None = None
        self.has_desired = False
        columns = self.arena.columns
        self.state = {
            name.removeprefix("device."): c for name, c in columns.items() if name.startswith("device.")
        }
        self.connected = columns["connected"]
        self.windows = {
            item.name: WindowColumns(self.arena, item.name) for item in model.fields if item.is_windowed
        }
        self.attributes = {each.name: columns[f"attribute.{each.name}"] for each in group.attributes}
        self.post: Post | None = None
        if group.network is not None:
            self.post = Post(
                self.table,
                self.attributes,
                apply=self._apply_late,
                buffer_count=group.network.buffer_count,
            )
        for first in range(0, self.table.count, _START_ROWS):
            self._start(slice(first, min(first + _START_ROWS, self.table.count)))

    def _start(self, rows: slice) -> None:
        """Give the devices of some rows what they start with, in place."""

        def draw(stream: str) -> NDArray[np.float32]:
            words = draws(
                self.group.seed, f"{self.group.name}/start/{stream}", 0, indices=self.table.indices_of(rows)
            )
            return (words >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)

        for item in self.table.model.fields:
            if item.name in self.state:
                self.state[item.name][rows] = start_column(item, draw)
        self.connected[rows] = draw("connected") < _online_share(self.group)
        for attribute in self.group.attributes:
            self.attributes[attribute.name][rows] = drawn_attribute(
                self.group, attribute, self.table.indices_of(rows)
            )

    def hold(self, row: int, bits: int) -> None:
        """Say what a row is held for, in place; 0: it is the simulation's again."""
        bits |= _HELD_ONCE
        self.held[row] = bits
        self.arena.columns[HELD][row] = bits != _HELD_ONCE
        self._held_now = sorted(row for row, bits in self.held.items() if bits != _HELD_ONCE)

    def run(self, order: TickOrder, runner: Runner) -> TickSummary:
        """Run the ordered ticks, in place, and return what happened; ticks that have been run are not run again.

        ModelError, with nothing changed, if the order desires what the model cannot be told, or has impossible faults.
        """
        self.desire(order)
        return sum(filter(None, self.pieces(order, runner)), TickSummary())

    def pieces(self, order: TickOrder, runner: Runner) -> Iterator[TickSummary | None]:
        """Run the ordered ticks piece by piece, in place; what is yielded, now and then, adds up to what happened.

        Between two pieces every twin is whole and may be read, though some are a tick ahead of others; before anything
        else changes, all pieces must have been run.
        """
        totals = _Totals()
        for tick in range(max(order.first_tick, self.next_tick), order.first_tick + order.tick_count):
            faults = [fault for fault in order.faults if is_felt(self.group, fault, tick)]
            yield from self._run_tick(tick, faults, runner, totals)
            self.next_tick = tick + 1
            totals.device_ticks += self.table.count - len(self._held_now)
            yield None
        connected_count = int(np.count_nonzero(self.connected))
        connected_count -= int(np.count_nonzero(self.connected[self._held_now]))
        delta_count = 0
        if self.has_desired or self.table.overflow:
            for part in self._delta_counts(runner):
                delta_count += part
                yield None
        yield msgspec.structs.replace(
            totals.summary(),
            connected_count=connected_count,
            delta_count=delta_count,
            reports_in_flight=0 if self.post is None else self.post.in_flight_count,
            reports_buffered=0 if self.post is None else self.post.kept_count,
        )

    def check(self, order: TickOrder) -> None:
        """Raise ModelError if an order desires what the model cannot be told, or has faults that make no sense."""
        model = self.table.model
        self._check_faults(order.faults)
        for name, value in order.desired.items():
            item = model.fields[model.position(name)]
            if not item.is_settable:
                raise ModelError(f"field {name!r} of model {model.name!r} cannot be set")
            low, high = item.number_bounds
            if not low <= value <= high:
                raise ModelError(f"{name} {value} is not between {low} and {high}")

    def _check_faults(self, faults: Sequence[Fault]) -> None:
        fields = {item.name: item.dtype for item in self.table.model.fields}
        attributes = {each.name: each.values for each in self.group.attributes}
        names = [fault.name for fault in faults]
        for fault in faults:
            fault.check(fields, attributes)
            if names.count(fault.name) > 1:
                raise ModelError(f"two faults of an order are named {fault.name!r}")
            if ACTIONS[fault.action].needs_network and self.group.network is None:
                raise ModelError(
                    f"fault {fault.name!r}: {fault.action} makes reports late or come twice, and group "
                    f"{self.group.name!r} has no network to carry them; give it one"
                )

    def desire(self, order: TickOrder) -> bool:
        """Write an operator's wish into the desired column of every twin, in place; tell whether there was one.

        ModelError, with nothing changed, if the order is impossible. It is done once, before the first of the ticks.
        """
        table, now_s = self.table, self.time_s(order.first_tick)
        self.check(order)
        if not order.desired or order.first_tick < self.next_tick:
            return False
        for name, value in order.desired.items():
            position = table.model.position(name)
            desired, desired_at = table.desired[position], table.desired_at[position]
            if desired is None or desired_at is None:
                raise InvariantError(f"field {name!r} is settable and has no desired column")
            desired[: table.count] = value
            desired_at[: table.count] = now_s
            table.desired_valid[: table.count] |= np.uint16(1 << position)
            for row in list(table.overflow):
                table.supersede(row, "desired", name)
        table.version[: table.count] += np.uint32(1)
        table.changed_at[: table.count] = now_s
        table.reported_valid[: table.count] |= np.uint16(EXISTS)
        self.has_desired = True
        return True

    def memory_bytes(self) -> int:
        """Return the bytes of everything that is kept for each device: its twin, itself, windows and attributes."""
        return self.arena.bytes.nbytes

    def time_s(self, tick: int) -> int:
        """Return the virtual time at the start of a tick, in whole seconds since the Unix epoch."""
        return self.group.start_s + tick * self.group.tick_s

    def _run_tick(
        self, tick: int, faults: Sequence[Fault], runner: Runner, totals: _Totals
    ) -> Iterator[None]:
        for window in self.windows.values():
            window.roll(self.time_s(tick) // BUCKET_S)
        group, table, post = self.group, self.table, self.post
        moment = Moment(tick, self.time_s(tick), tick * group.tick_s)
        before = {row: int(table.version[row]) for row in table.overflow}
        counts = totals.counts
        at_turn: dict[str, int] = {}
        self._cut_and_connect(moment, faults, runner, counts)
        now = Now(tick, Conditions(group, faults), self.connected, self.arena.columns[HELD])
        if post:
            post.deliver(now, counts)
        for cells in _in_pieces(self._due_cells(tick)):
            rows = Rows(cells, self._cell_spread, table.count)
            effects = runner.run(self._turn(faults), moment, self.arena, rows)
            for name, count in effects.counts.items():
                at_turn[name] = at_turn.get(name, 0) + count
            if post is not None:
                post.take(effects.lists, now, counts)
            yield None
        if post is not None:
            post.flush(now, counts)
        for row, version in before.items():
            if table.version[row] != version:
                self._obey_kept(row)
                table.supersede_reported(row)
        totals.attempts += sum(attempts_of(group, fault, tick, at_turn) for fault in faults)
        for name, count in at_turn.items():
            totals.at_turn[name] = totals.at_turn.get(name, 0) + count

    def _cut_and_connect(
        self, moment: Moment, faults: Sequence[Fault], runner: Runner, counts: PostCounts
    ) -> None:
        """Let all devices of a fault drop out, or come back, together: not each at its next turn."""
        for fault in faults:
            is_back = edge_of(self.group, fault, moment.tick)
            if is_back is None:
                continue
            program = write_edge(Builder(self.arena.place), self.group, fault, is_back=is_back)
            cells = np.arange(len(self._cell_numbers), dtype=np.int64)
            rows = Rows(cells, self._cell_spread, self.table.count)
            hit = runner.run(program, moment, self.arena, rows).lists["hit"]
            if self.post is not None and is_back:
                self.post.resume(self.connected)
            elif self.post is not None and fault.action == "crash":
                counts.dropped += self.post.forget(hit)

    def _turn(self, faults: Sequence[Fault]) -> Program:
        group, has_post = self.group, bool(self.post)
        key = (self.has_desired, bool(self._held_now), has_post, tuple(faults))
        program = self._programs.get(key)
        if program is None:
            builder = Builder(self.arena.place)
            has_link = group.network is not None or any(
                ACTIONS[fault.action].layer == "network" or fault.action in _OF_LINKS for fault in faults
            )
            turn = Turn(
                self.table.model,
                group.name,
                group.seed,
                group.report_every_ticks * group.tick_s,
                builder,
                self.has_desired,
                is_held=bool(self._held_now),
                link=LinkWriter(builder, Conditions(group, faults), has_post=has_post) if has_link else None,
                faults=(lambda live: FaultWriter(builder, group, faults, live)) if faults else None,
            )
            if len(self._programs) >= _PROGRAMS_MAX:
                del self._programs[next(iter(self._programs))]
            program = self._programs[key] = write_turn(turn)
        return program

    def _apply_late(self, records: NDArray[Any], tick: int) -> None:
        """Let twins take in reports that arrive later than at their device's turn, one each, in place."""
        table, now_s = self.table, self.time_s(tick)
        for position, item in enumerate(table.model.fields):
            is_there = (records["valid"] >> np.uint16(position) & np.uint16(1)) != 0
            rows = records["row"][is_there]
            column = table.reported[position]
            bits = records["values"][is_there, position].astype(f"u{column.dtype.itemsize}")
            values = bits.view(column.dtype)
            column[rows] = values
            table.reported_at[position][rows] = now_s
            if item.name in self.windows:
                self.windows[item.name].add(rows, values.astype(np.float32))
        rows = records["row"]
        table.reported_valid[rows] |= records["valid"]
        table.changed_at[rows] = now_s
        table.version[rows] += np.uint32(1)

    def _due_cells(self, tick: int) -> NDArray[np.int64]:
        """Return the cells whose turn it is at a tick, ascending."""
        phase = tick % self.group.report_every_ticks
        due = self._due.get(phase)
        if due is None:
            # Consecutive cells, so that those of one turn lie side by side in memory.
            cell_count = -(-self.group.count // CELL_ROWS)
            turns = self._cell_numbers.astype(np.int64) * self.group.report_every_ticks // cell_count
            due = self._due[phase] = np.flatnonzero(turns == phase).astype(np.int64)
        return due

    def _obey_kept(self, row: int) -> None:
        """Let a device that has just reported take over what is desired of it and no column holds (21, not 21.0)."""
        table = self.table
        for position, item in enumerate(table.model.fields):
            if item.is_settable and kind_of(item) == "float":
                wished: Any = table.overflow[row].desired.get(item.name, False)
                if type(wished) in (int, float) and item.minimum <= wished <= item.maximum:
                    self.state[item.name][row] = wished
                    table.reported[position][row] = wished

    def _delta_counts(self, runner: Runner) -> Iterator[int]:
        """Yield numbers that add up to how many of the simulation's twins have a desired value not reported so."""
        table = self.table
        if self._comparison is None:
            self._comparison = write_comparison(table.model, Builder(self.arena.place))
        moment = Moment(self.next_tick, self.time_s(self.next_tick), self.next_tick * self.group.tick_s)
        for cells in _in_pieces(np.arange(len(self._cell_numbers), dtype=np.int64)):
            rows = Rows(cells, self._cell_spread, table.count)
            yield runner.run(self._comparison, moment, self.arena, rows).counts[DIFFERING]
        # Of rows with an overflow the columns do not tell all.
        held = set(self._held_now)
        yield sum(
            self._has_delta(row) - table.differs_in_columns(row) for row in table.overflow if row not in held
        )
        yield -sum(map(table.differs_in_columns, held))

    def _has_delta(self, row: int) -> bool:
        return "delta" in self.table.load(row).document(0)["state"]

    def telemetry(self, row: int, now_s: int) -> dict[str, dict[str, Any]]:
        """Return what the twin of a row remembers of its device's reports, as `ThingTelemetry.describe` does."""
        document = self.table.load(row)
        fields: dict[str, Any] = {}
        for name, value in document.reported.items():
            stamp = document.reported_metadata[name]
            fields[name] = {"value": value, "timestamp": getattr(stamp, "timestamp", document.changed_at_s)}
            if name in self.windows:
                fields[name].update(summarise(self.windows[name].buckets(row, now_s // BUCKET_S)))
        return {"reported": fields} if fields else {}


def _in_pieces(cells: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    for first in range(0, len(cells), _PIECE_CELLS):
        yield cells[first : first + _PIECE_CELLS]


def _layout_beside(group: Group) -> dict[str, np.dtype[Any]]:
    """Return the columns of a fleet beside those of its twins."""
    model = group.model
    layout = device_layout(model)
    layout["connected"] = np.dtype(np.uint8)
    layout[HELD] = np.dtype(np.uint8)
    layout.update(post_layout(group.network))
    layout.update({f"attribute.{attribute.name}": np.dtype(np.uint8) for attribute in group.attributes})
    for item in model.fields:
        if item.is_windowed:
            layout.update(WindowColumns.layout(item.name))
    return layout


def _online_share(group: Group) -> np.float32:
    """Return which share of the devices is online at the start: as many as later on, where the model fixes that."""
    rates = connection_rates(group.model)
    if rates is None:
        return np.float32(1.0)
    online_s, offline_s = (constant_of(parse_formula(rate)) for rate in rates)
    if online_s is None or offline_s is None:
        return np.float32(1.0)
    return np.float32(online_s / (online_s + offline_s))


@dataclass
class _Totals:
    """What has happened in the ticks of an order: at devices' turns, and to reports that were under way."""

    device_ticks: int = 0
    at_turn: dict[str, int] = field(default_factory=lambda: dict.fromkeys((DUE, ARRIVED, OFFLINE), 0))
    counts: PostCounts = field(default_factory=PostCounts)
    attempts: int = 0

    def summary(self) -> TickSummary:
        """Return it as one summary, without what is there at the end."""
        at_turn, counts = self.at_turn, self.counts
        latency: list[int] = []
        if f"{LATENCY}.0" in at_turn or counts.latency is not None:
            latency = [at_turn.get(f"{LATENCY}.{bucket}", 0) for bucket in range(HISTOGRAM_BUCKETS)]
            if counts.latency is not None:
                latency = [a + b for a, b in zip(latency, counts.latency.tolist(), strict=True)]
        return TickSummary(
            device_ticks=self.device_ticks,
            reports_due=at_turn[DUE],
            reports_arrived=at_turn[ARRIVED] + counts.arrived,
            reports_offline=at_turn[OFFLINE],
            reports_lost=at_turn.get(LOST, 0) + counts.lost,
            reports_refused=at_turn.get(REFUSED, 0) + counts.refused,
            reports_silent=at_turn.get(SILENT, 0),
            reports_dropped=counts.dropped,
            reports_delayed=counts.delayed,
            reports_reordered=counts.reordered,
            reports_misdated=at_turn.get(MISDATED, 0),
            reports_duplicated=counts.duplicated,
            reports_resent=counts.resent,
            connect_attempts=self.attempts,
            latency=latency,
        )


_WINDOW_PARTS: Final = {"count": np.uint16, "sum": np.float32, "min": np.float32, "max": np.float32}


class WindowColumns:
    """Count, sum, minimum and maximum of one field in two buckets of time, a row each: the present one and the last."""

    def __init__(self, arena: Arena, field_name: str) -> None:
        # No bucket of any time: the first roll makes the minimum and maximum those of nothing.
        self.number = -1
        self.columns = {
            name.removeprefix(f"window.{field_name}."): arena.columns[name]
            for name in self.layout(field_name)
        }

    @staticmethod
    def layout(field_name: str) -> dict[str, np.dtype[Any]]:
        """Return the columns of a field's window in a fleet's arena."""
        return {
            f"window.{field_name}.{which}.{name}": np.dtype(dtype)
            for which in ("present", "last")
            for name, dtype in _WINDOW_PARTS.items()
        }

    def roll(self, number: int) -> None:
        """Move on to bucket `number`, in place."""
        if number == self.number:
            return
        for name in _WINDOW_PARTS:
            present, last = self.columns[f"present.{name}"], self.columns[f"last.{name}"]
            if number == self.number + 1:
                last[:] = present
            else:
                last[:] = 0
            present[:] = {"min": np.inf, "max": -np.inf}.get(name, 0)
        self.number = number

    def add(self, rows: NDArray[Any], values: NDArray[np.float32]) -> None:
        """Add one value each of some rows to the present bucket, in place."""
        columns = self.columns
        columns["present.count"][rows] += np.uint16(1)
        columns["present.sum"][rows] += values
        for name, combine in (("present.min", np.minimum), ("present.max", np.maximum)):
            columns[name][rows] = combine(columns[name][rows], values)

    def buckets(self, row: int, number: int) -> list[list[float]]:
        """Return the buckets of a row that are not older than the window at bucket `number`."""
        return [
            [mine, *(float(self.columns[f"{which}.{name}"][row]) for name in _WINDOW_PARTS)]
            for which, mine in (("last", self.number - 1), ("present", self.number))
            if mine >= number - 1
        ]
