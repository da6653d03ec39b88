"""How simulated devices behave, many at once: they advance, connect, obey what is desired, and report to their twins.

A fleet is worked through in cells of `CELL_ROWS` rows; all devices of a cell report at the same tick, and the cells
of a fleet are spread evenly over its reporting period. A device that is not due costs nothing: its state advances by
the whole period when it reports. All draws come from (seed, stream, tick, device), all arithmetic is IEEE 754 single
precision without library functions, so the same seed gives the same bytes everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from twins.draws import INDEX_MULTIPLIER, draw_key, draws, fill_draws
from twins.errors import InvariantError, ModelError
from twins.messages import TickOrder, TickSummary
from twins.model import Attribute, Group, model_named
from twins.sharding import BLOCK_SIZE
from twins.table import EXISTS, Column, PatternRows
from twins.window import BUCKET_S, summarise

# A power of two, so that a cell never crosses a block; 32 rows of a 4-byte column are two cache lines.
CELL_ROWS: Final = 32
# 16,384 rows at a time: the columns and temporaries of a chunk together fit a 1 MiB second-level cache.
CHUNK_CELLS: Final = 512
# What a row is held for, as bits: by a real device, by a behaviour of its own; and that it was held once, which stays.
HELD_BY_DEVICE: Final = 1
HELD_BY_BEHAVIOR: Final = 2
HELD_ONCE: Final = 4

# A room settles within half an hour; the day swings it by 1.5 K, and noise by 0.3 K (standard deviation).
ROOM_TIME_CONSTANT_S: Final = 1800.0
_DAY_SWING_K: Final = 1.5
_TEMPERATURE_NOISE_K: Final = 0.3
# The warmest hour of the day is 16 h, ten hours after the wave's own maximum.
_DAY_LAG_S: Final = 10 * 3600
_HUMIDITY_MEAN: Final = 45.0
_HUMIDITY_TIME_CONSTANT_S: Final = 3600.0
_HUMIDITY_NOISE: Final = 4.0
# Two alkaline cells last about two years.
_BATTERY_PER_S: Final = 100.0 / (2 * 365 * 86400)
# Online for six hours at a stretch, offline for five minutes: 1.4 % of the fleet is offline at any time.
_ONLINE_S: Final = 6 * 3600.0
_OFFLINE_S: Final = 300.0
# A triangular distribution on (-1, 1) has standard deviation 1/sqrt(6), a uniform one 1/sqrt(3).
_SQRT_6: Final = math.sqrt(6.0)
_SQRT_3: Final = math.sqrt(3.0)
_16_BIT: Final = np.float32(1 / 65536)
_LOW_HALF: Final = np.uint32(0xFFFF)
_HALF_SHIFT: Final = np.uint32(16)


def daily_wave(time_s: float) -> float:
    """Return the sine of the time of day, -1 (at 18 h UTC) to 1 (at 6 h), from additions and products alone.

    A library's sine may differ in its last bit between machines; this series (error below 1e-9) does not.
    """
    turn = time_s / 86400.0 % 1.0
    sign = 1.0 if turn < 0.5 else -1.0
    x = turn % 0.5 * 2.0 * math.pi
    x = x if x <= math.pi / 2 else math.pi - x
    square = x * x
    series = 1.0 - square / 156.0
    for denominator in (110.0, 72.0, 42.0, 20.0, 6.0):
        series = 1.0 - square / denominator * series
    return sign * x * series


class Scratch:
    """Temporaries of one chunk, used again and again: `floats` and `words`, each (CHUNK_CELLS, CELL_ROWS)."""

    def __init__(self) -> None:
        shape = (CHUNK_CELLS, CELL_ROWS)
        self.floats = [np.empty(shape, np.float32) for _ in range(3)]
        self.words = [np.empty(shape, np.uint32) for _ in range(3)]


class Chunk:
    """Some cells of a fleet that are due together: `cells` is a slice or an array of cell numbers."""

    def __init__(self, cells: slice | NDArray[np.intp], cell_count: int) -> None:
        self.cells = cells
        self.cell_count = cell_count

    def take(self, column: Column) -> Column:
        """Return the chunk of a column as (cells, CELL_ROWS): a view where the cells are consecutive, else a copy."""
        return column.reshape(-1, CELL_ROWS)[self.cells]

    def put(self, column: Column, values: Any) -> None:
        """Write values over the chunk of a column, in place."""
        column.reshape(-1, CELL_ROWS)[self.cells] = values

    def rows(self, positions: NDArray[np.intp]) -> NDArray[np.intp]:
        """Return the rows of positions counted within the chunk."""
        if isinstance(self.cells, slice):
            consecutive: NDArray[np.intp] = positions + self.cells.start * CELL_ROWS
            return consecutive
        rows: NDArray[np.intp] = self.cells[positions // CELL_ROWS] * CELL_ROWS + positions % CELL_ROWS
        return rows


class SimulatedFleet:
    """The devices of one group that live in one shard, and their twins.

    `table` holds the twins; `state` the devices' own columns; `attributes` one column of value positions each;
    `connected` (bool as uint8) what the platform sees of the connection; `windows` the telemetry statistics.
    """

    def __init__(self, group: Group, shard: int, *, shard_count: int) -> None:
        self.group = group
        self.next_tick = 0
        blocks = group.pattern.blocks(group.count, shard, shard_count=shard_count)
        self.table = PatternRows(
            model_named(group.model),
            group.pattern,
            fleet_count=group.count,
            blocks=blocks,
            row_multiple=CELL_ROWS,
        )
        cells = np.arange(BLOCK_SIZE // CELL_ROWS, dtype=np.uint32)
        numbers = (blocks[:, None] * np.uint32(BLOCK_SIZE // CELL_ROWS) + cells).reshape(-1)
        self._cell_numbers = numbers[: self.table.capacity // CELL_ROWS]
        self._cell_spread = self._cell_numbers * np.uint32(CELL_ROWS) * np.uint32(INDEX_MULTIPLIER)
        self._row_spread = np.arange(CELL_ROWS, dtype=np.uint32) * np.uint32(INDEX_MULTIPLIER)
        self._due: dict[int, NDArray[np.intp]] = {}
        self.has_desired = False
        behavior = _BEHAVIORS.get(self.table.model.behavior)
        if behavior is None:
            raise InvariantError(f"model {group.model!r} names a behavior that does not exist")
        self.behavior = behavior
        rows = self.table.capacity
        self.state = {name: np.zeros(rows, dtype) for name, dtype in behavior.state_layout.items()}
        self.connected = np.zeros(rows, np.uint8)
        self.windows = {name: _WindowColumns(rows) for name in behavior.windowed}
        self.attributes = {attribute.name: self._draw_attribute(attribute) for attribute in group.attributes}
        behavior.start(self, self._start_draw)
        self.connected[self.table.count :] = 0
        # What rows are held for, by row; few are. The simulation leaves those alone that are held now.
        self.held: dict[int, int] = {}
        self._left_alone = np.zeros(0, np.intp)

    def hold(self, row: int, bits: int) -> None:
        """Say what a row is held for, in place; 0: it is the simulation's again."""
        self.held[row] = bits | HELD_ONCE
        held = sorted(row for row, bits in self.held.items() if bits != HELD_ONCE)
        self._left_alone = np.array(held, np.intp)

    def _start_draw(self, stream: str) -> NDArray[np.float32]:
        """Return one uniform number in [0, 1) for each row, the same whatever the number of shards."""
        indices = np.zeros(self.table.capacity, np.uint32)
        indices[: self.table.count] = self.table.indices
        words = draws(self.group.seed, f"{self.group.name}/start/{stream}", 0, indices=indices)
        return (words >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)

    def _draw_attribute(self, attribute: Attribute) -> NDArray[np.uint8]:
        weights = attribute.weights or (1.0,) * len(attribute.values)
        total = math.fsum(weights)
        bounds = np.array([math.fsum(weights[: i + 1]) / total for i in range(len(weights) - 1)], np.float32)
        found = np.searchsorted(bounds, self._start_draw(f"attribute/{attribute.name}"), side="right")
        return found.astype(np.uint8)

    def run(self, order: TickOrder, scratch: Scratch) -> TickSummary:
        """Run the ordered ticks, in place, and return what happened; ticks that have been run are not run again.

        ModelError, with nothing changed, if the order desires what the model cannot be told.
        """
        self.desire(order)
        return sum(filter(None, self.pieces(order, scratch)), TickSummary())

    def pieces(self, order: TickOrder, scratch: Scratch) -> Iterator[TickSummary | None]:
        """Run the ordered ticks piece by piece, in place; what is yielded, now and then, adds up to what happened.

        Between two pieces every twin is whole and may be read, though some are a tick ahead of others; before anything
        else changes, all pieces must have been run.
        """
        for tick in range(max(order.first_tick, self.next_tick), order.first_tick + order.tick_count):
            yield from self._run_tick(tick, scratch)
            self.next_tick = tick + 1
        left = self._left_alone
        connected_count = int(np.count_nonzero(self.connected)) - int(np.count_nonzero(self.connected[left]))
        delta_count = 0
        if self.has_desired or self.table.overflow:
            delta_count = self.table.delta_count() - sum(map(self.table.has_delta, left.tolist()))
        yield TickSummary(connected_count=connected_count, delta_count=delta_count)

    def desire(self, order: TickOrder) -> bool:
        """Write an operator's wish into the desired column of every twin, in place; tell whether there was one.

        ModelError, with nothing changed, if the model cannot be told. It is done once, before the first of the ticks.
        """
        table, now_s = self.table, self.time_s(order.first_tick)
        self.check_desired(order)
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

    def check_desired(self, order: TickOrder) -> None:
        """Raise ModelError if an order desires what the model cannot be told."""
        model = self.table.model
        for name, value in order.desired.items():
            field = model.fields[model.position(name)]
            if not field.is_settable:
                raise ModelError(f"field {name!r} of model {model.name!r} cannot be set")
            if not field.minimum <= value <= field.maximum:
                raise ModelError(f"{name} {value} is not between {field.minimum} and {field.maximum}")

    def memory_bytes(self) -> int:
        """Return the bytes of everything that is kept for each device: its twin, itself, windows and attributes."""
        columns = [*self.state.values(), *self.attributes.values(), self.connected]
        for window in self.windows.values():
            columns.extend(window.columns.values())
        return self.table.memory_bytes() + sum(column.nbytes for column in columns)

    def time_s(self, tick: int) -> int:
        """Return the virtual time at the start of a tick, in whole seconds since the Unix epoch."""
        return self.group.start_s + tick * self.group.tick_s

    def _run_tick(self, tick: int, scratch: Scratch) -> Iterator[TickSummary | None]:
        due_count = connected_count = 0
        for window in self.windows.values():
            window.roll(self.time_s(tick) // BUCKET_S)
        for chunk in self._due_chunks(tick):
            left = self._left_alone_in(chunk)
            kept = [(column, column[left]) for column in self._live_columns()] if len(left) else []
            online = self.behavior.advance(self, chunk, tick, scratch=scratch)
            connected_count += int(np.count_nonzero(online)) - int(np.count_nonzero(self.connected[left]))
            due_count += chunk.cell_count * CELL_ROWS - len(left)
            if self._holds_last_cell(chunk):
                due_count -= self.table.capacity - self.table.count
            for column, values in kept:
                column[left] = values
            yield None
        if self.table.overflow:
            self._settle_overflow(tick)
        yield TickSummary(
            device_ticks=self.table.count - len(self._left_alone),
            reports_due=due_count,
            reports_arrived=connected_count,
            reports_offline=due_count - connected_count,
        )

    def _settle_overflow(self, tick: int) -> None:
        """Let those that have just reported what no column holds obey, and forget what columns say now, in place."""
        left = set(self._left_alone.tolist())
        rows = [
            row
            for row in self.table.overflow
            if self._is_due(row, tick) and self.connected[row] and row not in left
        ]
        self.behavior.obey_kept(self, rows)
        for row in rows:
            self.table.supersede_reported(row)

    def _live_columns(self) -> Iterator[Column]:
        """Yield every column that a tick may change."""
        yield from self.table.columns.values()
        yield from self.state.values()
        yield self.connected
        for window in self.windows.values():
            yield from window.columns.values()

    def _left_alone_in(self, chunk: Chunk) -> NDArray[np.intp]:
        """Return the rows of a chunk that the simulation leaves alone."""
        left = self._left_alone
        if not len(left):
            return left
        cells = left // CELL_ROWS
        if isinstance(chunk.cells, slice):
            is_in = (cells >= chunk.cells.start) & (cells < chunk.cells.stop)
        else:
            is_in = np.isin(cells, chunk.cells)
        found: NDArray[np.intp] = left[is_in]
        return found

    def _is_due(self, row: int, tick: int) -> bool:
        period = self.group.report_every_ticks
        return int(self._cell_numbers[row // CELL_ROWS]) % period == tick % period

    def _holds_last_cell(self, chunk: Chunk) -> bool:
        last = self.table.capacity // CELL_ROWS - 1
        stop = chunk.cells.stop - 1 if isinstance(chunk.cells, slice) else int(chunk.cells[-1])
        return bool(stop == last)

    def _due_chunks(self, tick: int) -> Iterator[Chunk]:
        cell_count = self.table.capacity // CELL_ROWS
        period = self.group.report_every_ticks
        if period == 1:
            for start in range(0, cell_count, CHUNK_CELLS):
                stop = min(start + CHUNK_CELLS, cell_count)
                yield Chunk(slice(start, stop), stop - start)
            return
        phase = tick % period
        due = self._due.get(phase)
        if due is None:
            due = self._due[phase] = np.flatnonzero(self._cell_numbers % period == phase)
        for start in range(0, len(due), CHUNK_CELLS):
            part = due[start : start + CHUNK_CELLS]
            yield Chunk(part, len(part))

    def draw(self, chunk: Chunk, stream: str, tick: int, *, out: Column, scratch: Column) -> None:
        """Fill `out` with one 32-bit draw for each device of the chunk, in place."""
        np.add(self._cell_spread[chunk.cells, None], self._row_spread, out=scratch)
        key = draw_key(self.group.seed, f"{self.group.name}/{stream}", tick)
        # `scratch` is the input and a temporary at once: fill_draws reads it once, first.
        fill_draws(scratch, key, out=out, scratch=scratch)

    def clear_padding(self, chunk: Chunk, online: NDArray[np.uint8]) -> None:
        """Take the rows that stand only to fill the last cell out of `online`, in place."""
        if self.table.count != self.table.capacity and self._holds_last_cell(chunk):
            online[-1, self.table.count % CELL_ROWS :] = 0

    def report(
        self, chunk: Chunk, online: NDArray[np.uint8], values: Mapping[str, Any], *, tick: int
    ) -> None:
        """Let the devices of a chunk that are `online` report `values`: columns, stamps, versions, windows, in place.

        The rows that are offline are few: they are set aside, everything is written, and they are put back.
        """
        table, now_s = self.table, np.uint32(self.time_s(tick))
        offline = chunk.rows(np.flatnonzero(online.reshape(-1) == 0))

        def write(column: Column, written: Any) -> None:
            kept = column[offline]
            chunk.put(column, written)
            column[offline] = kept

        bits = EXISTS
        for name, value in values.items():
            position = table.model.positions[name]
            bits |= 1 << position
            write(table.reported[position], value)
            write(table.reported_at[position], now_s)
        write(table.reported_valid, np.uint16(bits))
        write(table.changed_at, now_s)
        chunk.put(table.version, chunk.take(table.version) + online)
        for name, window in self.windows.items():
            window.add(chunk, values[name], write)

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


class _WindowColumns:
    """Count, sum, minimum and maximum of one field in two buckets of time, a row each: the present one and the last."""

    def __init__(self, rows: int) -> None:
        # No bucket of any time: the first roll makes the minimum and maximum those of nothing.
        self.number = -1
        self.columns = {
            f"{which}.{name}": np.zeros(rows, np.uint16 if name == "count" else np.float32)
            for which in ("present", "last")
            for name in ("count", "sum", "min", "max")
        }

    def roll(self, number: int) -> None:
        """Move on to bucket `number`, in place."""
        if number == self.number:
            return
        for name in ("count", "sum", "min", "max"):
            present, last = self.columns[f"present.{name}"], self.columns[f"last.{name}"]
            if number == self.number + 1:
                last[:] = present
            else:
                last[:] = 0
            present[:] = {"min": np.inf, "max": -np.inf}.get(name, 0)
        self.number = number

    def add(self, chunk: Chunk, values: Column, write: Callable[[Column, Any], None]) -> None:
        """Take in the values of a chunk, in place."""
        columns = self.columns
        write(columns["present.count"], chunk.take(columns["present.count"]) + np.uint16(1))
        write(columns["present.sum"], chunk.take(columns["present.sum"]) + values)
        write(columns["present.min"], np.minimum(chunk.take(columns["present.min"]), values))
        write(columns["present.max"], np.maximum(chunk.take(columns["present.max"]), values))

    def buckets(self, row: int, number: int) -> list[list[float]]:
        """Return the buckets of a row that are not older than the window at bucket `number`."""
        return [
            [mine, *(float(self.columns[f"{which}.{name}"][row]) for name in ("count", "sum", "min", "max"))]
            for which, mine in (("last", self.number - 1), ("present", self.number))
            if mine >= number - 1
        ]


class _Thermostat:
    """A room thermostat: its temperature follows the set point with the day's swing; see `model.THERMOSTAT`."""

    state_layout: Final[Mapping[str, Any]] = {
        "temperature": np.float32,
        "humidity": np.float32,
        "set_point": np.float32,
        "first_battery": np.float32,
        "first_uptime": np.uint32,
        "firmware_version": np.uint8,
    }
    windowed: Final = ("temperature",)

    def start(self, fleet: SimulatedFleet, draw: Callable[[str], NDArray[np.float32]]) -> None:
        """Give every device its state at tick 0, in place."""
        state = fleet.state
        state["set_point"][:] = np.floor(draw("set_point") * np.float32(9)) * np.float32(0.5) + np.float32(
            18.0
        )
        state["temperature"][:] = state["set_point"] + draw("temperature") * np.float32(2) - np.float32(1)
        state["humidity"][:] = draw("humidity") * np.float32(20) + np.float32(35)
        state["first_battery"][:] = draw("battery") * np.float32(60) + np.float32(40)
        state["first_uptime"][:] = (draw("uptime") * np.float32(30 * 86400)).astype(np.uint32)
        # As many are offline at the start as later on.
        fleet.connected[:] = draw("connected") < np.float32(_ONLINE_S / (_ONLINE_S + _OFFLINE_S))
        state["firmware_version"][:] = np.searchsorted(
            np.array([0.2, 0.9], np.float32), draw("firmware_version"), side="right"
        )

    def advance(
        self, fleet: SimulatedFleet, chunk: Chunk, tick: int, *, scratch: Scratch
    ) -> NDArray[np.uint8]:
        """Advance the chunk's devices by one reporting period, let those online report; return who is online."""
        count = chunk.cell_count
        noise, pull, battery = (array[:count] for array in scratch.floats)
        word, half, spare = (array[:count] for array in scratch.words)
        period_s = fleet.group.report_every_ticks * fleet.group.tick_s
        state = fleet.state
        fleet.draw(chunk, "climate", tick, out=word, scratch=half)
        self._triangular(word, half, spare, noise)
        temperature = chunk.take(state["temperature"])
        set_point = chunk.take(state["set_point"])
        swing = _DAY_SWING_K * daily_wave(fleet.time_s(tick) - _DAY_LAG_S)
        np.add(set_point, np.float32(swing), out=pull)
        self._follow(temperature, pull, noise, period_s=period_s)
        fleet.draw(chunk, "humidity", tick, out=word, scratch=half)
        humidity = self._advance_humidity(chunk, state, word, (half, pull, noise), period_s)
        online = self._connect(chunk, fleet, word, period_s)
        if fleet.has_desired:
            self._obey(chunk, fleet, online, set_point)
        elapsed_s = tick * fleet.group.tick_s
        np.subtract(chunk.take(state["first_battery"]), np.float32(_BATTERY_PER_S * elapsed_s), out=battery)
        np.maximum(battery, np.float32(0), out=battery)
        np.add(chunk.take(state["first_uptime"]), np.uint32(elapsed_s), out=word)
        chunk.put(state["temperature"], temperature)
        fleet.report(
            chunk,
            online,
            {
                "temperature": temperature,
                "humidity": humidity,
                "battery": battery,
                "set_point": set_point,
                "firmware_version": chunk.take(state["firmware_version"]),
                "uptime": word,
            },
            tick=tick,
        )
        return online

    @staticmethod
    def _triangular(word: Column, half: Column, spare: Column, noise: Column) -> None:
        """Fill `noise` with a triangular number in (-1, 1) from the two halves of each draw, in place."""
        np.bitwise_and(word, _LOW_HALF, out=half)
        np.right_shift(word, _HALF_SHIFT, out=spare)
        np.subtract(half, spare, out=half)
        np.copyto(noise, half.view(np.int32), casting="same_kind")
        np.multiply(noise, _16_BIT, out=noise)

    @staticmethod
    def _follow(temperature: Column, target: Column, noise: Column, *, period_s: int) -> None:
        """Let the temperature revert towards `target`, with noise, in place; `target` and `noise` are used up."""
        rate = period_s / (ROOM_TIME_CONSTANT_S + period_s)
        np.subtract(target, temperature, out=target)
        np.multiply(target, np.float32(rate), out=target)
        np.add(temperature, target, out=temperature)
        np.multiply(noise, np.float32(_TEMPERATURE_NOISE_K * math.sqrt(2 * rate) * _SQRT_6), out=noise)
        np.add(temperature, noise, out=temperature)

    @staticmethod
    def _advance_humidity(
        chunk: Chunk,
        state: Mapping[str, Column],
        word: Column,
        temporaries: tuple[Column, Column, Column],
        period_s: int,
    ) -> Column:
        half, pull, noise = temporaries
        rate = period_s / (_HUMIDITY_TIME_CONSTANT_S + period_s)
        amplitude = _HUMIDITY_NOISE * math.sqrt(2 * rate) * _SQRT_3
        np.bitwise_and(word, _LOW_HALF, out=half)
        np.copyto(noise, half.view(np.int32), casting="same_kind")
        np.multiply(noise, np.float32(amplitude / 32768), out=noise)
        humidity = chunk.take(state["humidity"])
        np.multiply(humidity, np.float32(-rate), out=pull)
        np.add(pull, np.float32(_HUMIDITY_MEAN * rate - amplitude), out=pull)
        np.add(humidity, pull, out=humidity)
        np.add(humidity, noise, out=humidity)
        np.clip(humidity, np.float32(0), np.float32(100), out=humidity)
        chunk.put(state["humidity"], humidity)
        return humidity

    @staticmethod
    def _connect(chunk: Chunk, fleet: SimulatedFleet, word: Column, period_s: int) -> NDArray[np.uint8]:
        """Let connections drop and come back (a two-state Markov chain), in place; return who is online now."""
        np.right_shift(word, _HALF_SHIFT, out=word)
        drops = np.uint32(round(65536 * period_s / (_ONLINE_S + period_s)))
        returns = np.uint32(round(65536 * period_s / (_OFFLINE_S + period_s)))
        was_online = chunk.take(fleet.connected)
        stays = (word >= drops).view(np.uint8)
        comes = (word < returns).view(np.uint8)
        online: NDArray[np.uint8] = comes ^ (was_online & (comes ^ stays))
        fleet.clear_padding(chunk, online)
        chunk.put(fleet.connected, online)
        return online

    @staticmethod
    def _obey(chunk: Chunk, fleet: SimulatedFleet, online: NDArray[np.uint8], set_point: Column) -> None:
        """Let every device that is online take over the set point that is desired of it, if it can, in place."""
        position = fleet.table.model.positions["set_point"]
        desired = fleet.table.desired[position]
        if desired is None:
            raise InvariantError("set_point of the thermostat is settable")
        obeys = (chunk.take(fleet.table.desired_valid) & np.uint16(1 << position)) != 0
        obeys &= online != 0
        wished, field = chunk.take(desired), fleet.table.model.fields[position]
        obeys &= (wished >= np.float32(field.minimum)) & (wished <= np.float32(field.maximum))
        np.copyto(set_point, wished, where=obeys)
        chunk.put(fleet.state["set_point"], set_point)

    @staticmethod
    def obey_kept(fleet: SimulatedFleet, rows: list[int]) -> None:
        """Let devices that have just reported take over a set point that no column holds (21, not 21.0), in place."""
        position = fleet.table.model.positions["set_point"]
        field = fleet.table.model.fields[position]
        for row in rows:
            wished: Any = fleet.table.overflow[row].desired.get("set_point", False)
            if type(wished) in (int, float) and field.minimum <= wished <= field.maximum:
                fleet.state["set_point"][row] = wished
                fleet.table.reported[position][row] = wished


_BEHAVIORS: Final[Mapping[str, _Thermostat]] = {"thermostat": _Thermostat()}
