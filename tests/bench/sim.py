"""Device-ticks a second: a million thermostats that all report into their twins every tick, one process.

The baseline is the same thermostat as a bare blocked NumPy loop: the same draws and the same arithmetic over the
device's own columns, and no twin: nothing is reported, stamped, counted or versioned.
"""

from __future__ import annotations

import math

import numpy as np

from tests.bench.result import BenchResult, alternate
from twins import interpreter, program
from twins.draws import INDEX_MULTIPLIER, draw_key, fill_draws
from twins.messages import TickOrder
from twins.model import Group
from twins.shard import Shard
from twins.simulated import SimulatedFleet

DEVICE_COUNT = 1_000_000
TICKS_A_ROUND = 5
START_S = 1_767_225_600
BYTES_MAX = 150
RATIO_MIN = 0.3
BLOCK_ROWS = interpreter.BLOCK_CELLS * program.CELL_ROWS


class BareThermostats:
    """A million thermostats without twins."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.tick = 0
        self.temperature = np.full(count, 20, np.float32)
        self.set_point = np.full(count, 20, np.float32)
        self.humidity = np.full(count, 45, np.float32)
        self.first_battery = np.full(count, 90, np.float32)
        self.first_uptime = np.zeros(count, np.uint32)
        self.battery = np.zeros(count, np.float32)
        self.uptime = np.zeros(count, np.uint32)
        self.online = np.ones(count, np.uint8)
        self.spread = np.arange(BLOCK_ROWS, dtype=np.uint32) * np.uint32(INDEX_MULTIPLIER)
        self.words = [np.empty(BLOCK_ROWS, np.uint32) for _ in range(4)]
        self.floats = [np.empty(BLOCK_ROWS, np.float32) for _ in range(2)]

    def run(self) -> int:
        """Run some ticks and return the device-ticks."""
        for _ in range(TICKS_A_ROUND):
            for start in range(0, self.count, BLOCK_ROWS):
                self._advance(start, min(start + BLOCK_ROWS, self.count))
            self.tick += 1
        return TICKS_A_ROUND * self.count

    def _advance(self, start: int, stop: int) -> None:
        size, rows = stop - start, slice(start, stop)
        base, word, half, spare = (array[:size] for array in self.words)
        noise, pull = (array[:size] for array in self.floats)
        np.add(self.spread[:size], np.uint32(start * INDEX_MULTIPLIER & 0xFFFFFFFF), out=base)
        fill_draws(base, draw_key(1, "bare/climate", self.tick), out=word, scratch=half)
        np.bitwise_and(word, np.uint32(0xFFFF), out=half)
        np.right_shift(word, np.uint32(16), out=spare)
        np.subtract(half, spare, out=half)
        np.copyto(noise, half.view(np.int32), casting="same_kind")
        np.multiply(noise, np.float32(0.4 / 65536), out=noise)
        temperature = self.temperature[rows]
        np.add(self.set_point[rows], np.float32(math.sin(self.tick)), out=pull)
        np.subtract(pull, temperature, out=pull)
        np.multiply(pull, np.float32(5e-4), out=pull)
        np.add(temperature, pull, out=temperature)
        np.add(temperature, noise, out=temperature)
        fill_draws(base, draw_key(1, "bare/humidity", self.tick), out=word, scratch=half)
        np.bitwise_and(word, np.uint32(0xFFFF), out=half)
        np.copyto(noise, half.view(np.int32), casting="same_kind")
        np.multiply(noise, np.float32(4e-6), out=noise)
        humidity = self.humidity[rows]
        np.multiply(humidity, np.float32(-2e-4), out=pull)
        np.add(pull, np.float32(0.01 - 0.13), out=pull)
        np.add(humidity, pull, out=humidity)
        np.add(humidity, noise, out=humidity)
        np.clip(humidity, np.float32(0), np.float32(100), out=humidity)
        np.right_shift(word, np.uint32(16), out=word)
        online = self.online[rows]
        stays, comes = (word >= np.uint32(3)).view(np.uint8), (word < np.uint32(218)).view(np.uint8)
        online[:] = comes ^ (online & (comes ^ stays))
        np.subtract(self.first_battery[rows], np.float32(1e-6 * self.tick), out=self.battery[rows])
        np.maximum(self.battery[rows], np.float32(0), out=self.battery[rows])
        np.add(self.first_uptime[rows], np.uint32(self.tick), out=self.uptime[rows])


class TwinnedThermostats:
    """A million thermostats with twins, in one shard."""

    def __init__(self, count: int) -> None:
        self.shard = Shard(0, 1)
        self.group = Group(
            "bench", "thermostat", "bench-{i:07d}", count, seed=1, start_s=START_S, report_every_ticks=1
        )
        self.shard.create_group(self.group)

    @property
    def fleet(self) -> SimulatedFleet:
        """Return the simulated fleet."""
        return self.shard.fleets["bench"]

    def run(self) -> int:
        """Run some ticks and return the device-ticks; every device that is online has reported in each."""
        summary = self.shard.tick(TickOrder("bench", self.fleet.next_tick, TICKS_A_ROUND))
        if summary.reports_arrived < 0.9 * summary.device_ticks:
            raise RuntimeError("this benchmark is about reports, and most devices sent none")
        return summary.device_ticks


def measure() -> list[BenchResult]:
    """Measure speed and memory."""
    twinned, bare = TwinnedThermostats(DEVICE_COUNT), BareThermostats(DEVICE_COUNT)
    value, baseline = alternate(twinned.run, bare.run)
    twin_bytes = twinned.fleet.memory_bytes() / DEVICE_COUNT
    return [
        BenchResult(
            "sim",
            value,
            "device-ticks/s",
            "the same thermostats without twins, blocked NumPy",
            baseline,
            value / baseline,
            f"ratio of at least {RATIO_MIN}",
            value / baseline >= RATIO_MIN,
        ),
        BenchResult(
            "sim.memory",
            twin_bytes,
            "bytes per simulated twin",
            "",
            None,
            None,
            f"at most {BYTES_MAX}",
            twin_bytes <= BYTES_MAX,
        ),
    ]
