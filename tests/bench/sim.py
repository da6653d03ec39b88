"""Device-ticks a second: a million thermostats that all report into their twins every tick, one process.

The baselines are the same thermostat without our twins: whoever is online copies its six values, and one version and
one stamp a device move on. No field has a stamp of its own, nothing is valid or not, desired, counted or asked for. One
is a blocked NumPy loop, the other a loop that is compiled as one, which is about what the memory can do.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numba
import numpy as np
from numba import float32, int32, uint8, uint32
from numpy.typing import NDArray

from tests.bench.result import BenchResult, alternate
from twins import interpreter, program
from twins.arena import Arena
from twins.draws import INDEX_MULTIPLIER, draw_key, fill_draws
from twins.link import Link, Network
from twins.messages import TickOrder
from twins.model import Connectivity, DeviceModel, Group
from twins.runners import prepare_compiled
from twins.shard import Shard
from twins.shipped import model_named
from twins.simulated import SimulatedFleet

DEVICE_COUNT = 1_000_000
TICKS_A_ROUND = 5
START_S = 1_767_225_600
BYTES_MAX = 150
COMPILED_RATIO_MIN = 0.3
NUMPY_RATIO_MIN = 0.8
LINKED_RATIO_MIN = 0.1
# How much less an hour costs of a fleet that reports every 15 minutes than of one that reports every 10 seconds.
SPARSE_RATIO_MIN = 20.0
HOUR_S = 3600
BLOCK_ROWS = interpreter.BLOCK_CELLS * program.CELL_ROWS


# What is copied of the six values, in the order of `BareThermostats.values`.
_MIRRORED: tuple[np.dtype[Any], ...] = (
    *(np.dtype(np.float32) for _ in range(4)),
    np.dtype(np.uint32),
    np.dtype(np.uint8),
)


class BareThermostats:
    """Thermostats without our twins."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.tick = 0
        # One after another in one piece, as our twins' are: arrays of their own all begin at the same place of a page,
        # and so many at once drive each other out of the cache.
        floats = ("temperature", "set_point", "humidity", "first_battery", "battery")
        words = ("first_uptime", "uptime", "version", "stamp")
        layout: dict[str, np.dtype[Any]] = {name: np.dtype(np.float32) for name in floats} | {
            name: np.dtype(np.uint32) for name in words
        }
        layout |= {name: np.dtype(np.uint8) for name in ("online", "firmware")}
        layout |= {f"mirrored.{number}": dtype for number, dtype in enumerate(_MIRRORED)}
        columns = Arena(layout, count).columns
        self.temperature, self.set_point, self.humidity, self.first_battery, self.battery = (
            columns[name] for name in floats
        )
        self.first_uptime, self.uptime, self.version, self.stamp = (columns[name] for name in words)
        self.online, self.firmware = columns["online"], columns["firmware"]
        self.mirrored = [columns[f"mirrored.{number}"] for number in range(len(_MIRRORED))]
        for column, value in (
            (self.temperature, 20),
            (self.set_point, 20),
            (self.humidity, 45),
            (self.first_battery, 90),
            (self.online, 1),
        ):
            column[:] = value
        self.spread = np.arange(BLOCK_ROWS, dtype=np.uint32) * np.uint32(INDEX_MULTIPLIER)
        self.words = [np.empty(BLOCK_ROWS, np.uint32) for _ in range(4)]
        self.floats = [np.empty(BLOCK_ROWS, np.float32) for _ in range(2)]

    def values(self) -> list[NDArray[Any]]:
        """Return the columns of what a device reports."""
        return [self.temperature, self.humidity, self.battery, self.set_point, self.uptime, self.firmware]

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
        is_online = online.view(np.bool_)
        for mirror, value in zip(self.mirrored, self.values(), strict=True):
            np.copyto(mirror[rows], value[rows], where=is_online)
        np.add(self.version[rows], online, out=self.version[rows])
        np.copyto(self.stamp[rows], np.uint32(self.tick), where=is_online)


class CompiledThermostats(BareThermostats):
    """The same, each tick one compiled loop over all columns."""

    def run(self) -> int:
        """Run some ticks and return the device-ticks."""
        for _ in range(TICKS_A_ROUND):
            keys = [
                int(word) for stream in ("climate", "humidity") for word in draw_key(1, stream, self.tick)
            ]
            columns = (*self.values(), self.first_battery, self.first_uptime, self.online)
            twins = (*self.mirrored, self.version, self.stamp)
            advance_compiled(columns, twins, np.array(keys, np.uint32), self.tick)
            self.tick += 1
        return TICKS_A_ROUND * self.count


@numba.njit(nogil=True, error_model="numpy", cache=True)
def advance_compiled(columns: Any, twins: Any, keys: Any, tick: Any) -> None:
    """Advance every thermostat by a tick, and copy what it measures if it is online."""
    temperature, humidity, battery, set_point, uptime, firmware, first_battery, first_uptime, online = columns
    swing, drained = float32(0.001 * tick), float32(1e-6 * tick)
    for i in range(len(temperature)):
        spread = uint32(i) * uint32(INDEX_MULTIPLIER)
        word = permute(uint32(spread + keys[0]), keys[1])
        noise = float32(int32((word & uint32(0xFFFF)) - (word >> uint32(16)))) * float32(0.4 / 65536)
        now = temperature[i]
        temperature[i] = now = now + (set_point[i] + swing - now) * float32(5e-4) + noise
        word = permute(uint32(spread + keys[2]), keys[3])
        noise = float32(word & uint32(0xFFFF)) * float32(4e-6)
        damp = humidity[i]
        damp = damp + (damp * float32(-2e-4) + float32(0.01 - 0.13)) + noise
        humidity[i] = damp = min(max(damp, float32(0)), float32(100))
        chance, was = word >> uint32(16), online[i]
        online[i] = uint8((chance >= uint32(3)) if was else (chance < uint32(218)))
        battery[i] = max(first_battery[i] - drained, float32(0))
        uptime[i] = first_uptime[i] + uint32(tick)
        if online[i]:
            twins[0][i], twins[1][i], twins[2][i], twins[3][i] = now, damp, battery[i], set_point[i]
            twins[4][i], twins[5][i] = uptime[i], firmware[i]
            twins[6][i] += uint32(1)
            twins[7][i] = uint32(tick)


@numba.njit(nogil=True, error_model="numpy", inline="always")
def permute(word: Any, key: Any) -> Any:
    """Return the draw of `draws.fill_draws` for a device's spread number to which the first key has been added."""
    word = uint32(uint32(word ^ (word >> uint32(16))) * uint32(0x21F0AAAD))
    word = uint32(word ^ key)
    word = uint32(uint32(word ^ (word >> uint32(15))) * uint32(0xD35A2D97))
    return uint32(word ^ (word >> uint32(16)))


def plain_thermostat() -> DeviceModel:
    """Return the shipped thermostat without statistics of sliding windows, which the baselines do not keep either."""
    model = model_named("thermostat")
    fields = tuple(dataclasses.replace(field, is_windowed=False) for field in model.fields)
    return dataclasses.replace(model, fields=fields)


def unsteady_thermostat() -> DeviceModel:
    """Return the same thermostat, of which 5 % are offline at any time."""
    return dataclasses.replace(plain_thermostat(), connectivity=Connectivity("5700", "300"))


class TwinnedThermostats:
    """Thermostats with twins, in one shard; each reports every `period` ticks."""

    def __init__(
        self,
        count: int,
        *,
        period: int = 1,
        ticks: int = TICKS_A_ROUND,
        network: Network | None = None,
    ) -> None:
        self.shard = Shard(0, 1)
        self.ticks = ticks
        self.group = Group(
            "bench",
            plain_thermostat() if network is None else unsteady_thermostat(),
            "bench-{i:07d}",
            count,
            seed=1,
            start_s=START_S,
            report_every_ticks=period,
            network=network,
        )
        self.shard.create_group(self.group)

    @property
    def fleet(self) -> SimulatedFleet:
        """Return the simulated fleet."""
        return self.shard.fleets["bench"]

    def run(self) -> int:
        """Run some ticks and return the device-ticks; every device that is online has reported when it was due."""
        summary = self.shard.tick(TickOrder("bench", self.fleet.next_tick, self.ticks))
        if summary.reports_arrived < 0.9 * summary.reports_due:
            raise RuntimeError("this benchmark is about reports, and most devices sent none")
        return summary.device_ticks


def measure() -> list[BenchResult]:
    """Measure speed, memory, and what a fleet costs that has little to do."""
    if not prepare_compiled():
        raise RuntimeError("Numba is not installed; run ./dev setup")
    twinned = TwinnedThermostats(DEVICE_COUNT)
    bare, compiled = BareThermostats(DEVICE_COUNT), CompiledThermostats(DEVICE_COUNT)
    linked = TwinnedThermostats(DEVICE_COUNT, network=Network(Link(latency_ms=80, jitter_ms=30, loss=0.01)))
    linked.shard.tick(TickOrder("bench", 0, 1, {"set_point": 21.0}))
    value, in_numpy, in_one_loop, over_links = alternate(twinned.run, bare.run, compiled.run, linked.run)
    twin_bytes = twinned.fleet.memory_bytes() / DEVICE_COUNT
    rare = TwinnedThermostats(DEVICE_COUNT, period=900, ticks=HOUR_S // 4)
    often = TwinnedThermostats(DEVICE_COUNT, period=10, ticks=HOUR_S // 4)
    hours_rare, hours_often = alternate(rare.run, often.run, rounds=3)
    ratio = hours_rare / hours_often
    return [
        _compared("sim.numpy", value, in_numpy, "without our twins, blocked NumPy", NUMPY_RATIO_MIN),
        _compared("sim", value, in_one_loop, "without our twins, one compiled loop", COMPILED_RATIO_MIN),
        _compared(
            "sim.link",
            over_links,
            in_one_loop,
            "with 1 % loss, jitter, 5 % offline and deltas; without our twins, one compiled loop",
            LINKED_RATIO_MIN,
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
        BenchResult(
            "sim.rare",
            hours_rare,
            "device-ticks/s of a fleet that reports every 15 min",
            "one that reports every 10 s",
            hours_often,
            ratio,
            f"a ratio of at least {SPARSE_RATIO_MIN:.0f}",
            ratio >= SPARSE_RATIO_MIN,
        ),
    ]


def _compared(name: str, value: float, baseline: float, what: str, ratio_min: float) -> BenchResult:
    ratio = value / baseline
    bar = f"ratio of at least {ratio_min}"
    return BenchResult(name, value, "device-ticks/s", what, baseline, ratio, bar, ratio >= ratio_min)
