"""How long a request waits for an actor that simulates at full speed: a million thermostats that report every tick.

One shard actor has all of them in eight shards, and is given the next ten ticks as soon as the last ones are done.
Meanwhile a real thing's shadow is updated, and a simulated one read, a hundred times a second each. The baseline is the
same without ticks.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from actors.ray_fleet import RayFleet, find_fleet
from tests.bench.result import BenchResult
from tests.contract.fleets import ray_stage, running_ray
from twins.messages import TickOrder
from twins.model import Group
from twins.runners import prepare_compiled
from twins.shipped import model_named

DEVICE_COUNT = 1_000_000
GROUP = Group(
    "turns", model_named("thermostat"), "turns-{i:07d}", DEVICE_COUNT, 1, 1_767_225_600, report_every_ticks=1
)
TICKS_AN_ORDER = 10
MEASURED_S = 10.0
# A request every so often, of each kind.
_EVERY_S = 0.01
P99_MS_MAX = 150.0


def measure() -> list[BenchResult]:
    """Measure how long updates wait, with the ticks that are done meanwhile."""
    # Compiled, once a machine, before anything is measured; the actor only reads it.
    prepare_compiled()
    with (
        tempfile.TemporaryDirectory() as directory,
        running_ray(Path(directory) / "ray"),
        ray_stage(Path(directory) / "stage", 1) as stage,
    ):
        return asyncio.run(_measure(find_fleet(stage.store_url)))


async def _measure(fleet: RayFleet) -> list[BenchResult]:
    await fleet.create_group(GROUP)
    alone, _ = await _waits_ms(fleet)
    ticks = asyncio.create_task(_tick_for_ever(fleet))
    # The first ones read compiled code.
    await asyncio.sleep(MEASURED_S / 2)
    first = (await fleet.status(0)).tick_count
    updates, gets = await _waits_ms(fleet)
    status = await fleet.status(0)
    ticks.cancel()
    await asyncio.gather(ticks, return_exceptions=True)
    rate = (status.tick_count - first) * DEVICE_COUNT / MEASURED_S
    value, baseline = _share(updates, 0.99), _share(alone, 0.99)
    details = tuple(
        f"turns: {kind} of {len(waits)}: {_share(waits, 0.5):.1f} ms median, {_share(waits, 0.99):.1f} ms p99, "
        f"{waits[-1]:.1f} ms longest"
        for kind, waits in (("updates", updates), ("gets", gets))
    )
    more = (
        f"turns: {rate / 1e6:.1f} million device-ticks/s; the longest turn took {status.longest_turn_ms} ms"
    )
    return [
        BenchResult(
            "turns",
            value,
            "ms until an update is accepted (p99), at full speed",
            "without ticks",
            baseline,
            value / baseline,
            f"at most {P99_MS_MAX:.0f} ms",
            value <= P99_MS_MAX,
            (*details, more),
        )
    ]


async def _tick_for_ever(fleet: RayFleet) -> None:
    tick = 0
    while True:
        await fleet.tick([TickOrder(GROUP.name, tick, TICKS_AN_ORDER)])
        tick += TICKS_AN_ORDER


async def _waits_ms(fleet: RayFleet) -> tuple[list[float], list[float]]:
    """Return how long updates of a real thing and reads of simulated ones took, each in ascending order."""
    until_s = time.perf_counter() + MEASURED_S

    async def again_and_again(ask: Callable[[int], Awaitable[object]]) -> list[float]:
        waits: list[float] = []
        while (start_s := time.perf_counter()) < until_s:
            await ask(len(waits))
            waits.append(1e3 * (time.perf_counter() - start_s))
            await asyncio.sleep(_EVERY_S)
        return sorted(waits)

    updates, gets = await asyncio.gather(
        again_and_again(lambda number: fleet.twin("lamp").update_desired({"level": number})),
        again_and_again(
            lambda number: fleet.twin(GROUP.pattern.name(number * 7919 % DEVICE_COUNT)).describe()
        ),
    )
    return updates, gets


def _share(waits: list[float], share: float) -> float:
    return waits[int(len(waits) * share)]
