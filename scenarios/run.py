"""The way in: run a scenario from its file to its reports.

Owns how a run is started, interrupted and recorded. What happens in it is `engine`'s.
"""

from __future__ import annotations

import asyncio
import dataclasses
import signal
from collections.abc import Callable, Coroutine
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, TypeVar

from actors.fleet import Fleet, LocalFleet
from scenarios.devices import DeviceHost, LocalDevices
from scenarios.engine import RunOptions, conduct
from scenarios.reading import load_scenario, reseeded
from scenarios.report import write_reports
from scenarios.result import RunResult
from scenarios.spec import Scenario

Value = TypeVar("Value")

# As a platform has by default; the digest does not depend on it.
DEFAULT_SHARD_COUNT: Final = 16


async def run_scenario(
    scenario: Scenario,
    fleet: Fleet,
    devices: DeviceHost,
    *,
    reports_dir: Path,
    options: RunOptions | None = None,
) -> RunResult:
    """Run a scenario on a fleet, write its reports to `reports_dir/RUN_ID/`, and return the result.

    NameTaken if a group or device of the scenario lives in the fleet already; nothing is changed then.
    """
    options = options or RunOptions()
    options = dataclasses.replace(options, version=options.version or version_text())
    result = await conduct(scenario, fleet, devices, options)
    write_reports(result, reports_dir)
    return result


def run(
    file: Path, *, reports_dir: Path, seed: int | None = None, shard_count: int = DEFAULT_SHARD_COUNT
) -> RunResult:
    """Run the scenario of a file on a fleet in this process, real devices played in-process, and return the result.

    ScenarioInvalid holds every mistake of the file. Ctrl-C ends the run with a report.
    """
    scenario = reseeded(load_scenario(file), seed)

    async def run_locally(interrupt: asyncio.Event) -> RunResult:
        fleet = LocalFleet(shard_count)
        command = f"twinfleet run {file} --fleet local --shards {shard_count} --seed {scenario.seed}"
        options = RunOptions(fleet="local", command=command, interrupt=interrupt)
        return await run_scenario(
            scenario, fleet, LocalDevices(fleet), reports_dir=reports_dir, options=options
        )

    return run_interruptibly(run_locally)


def run_interruptibly(main: Callable[[asyncio.Event], Coroutine[Any, Any, Value]]) -> Value:
    """Run a coroutine in a loop of its own; the first Ctrl-C or SIGTERM sets its event, the second one ends it."""

    async def with_signals() -> Value:
        loop = asyncio.get_running_loop()
        interrupt = asyncio.Event()
        numbers = (signal.SIGINT, signal.SIGTERM)

        def on_signal() -> None:
            interrupt.set()
            for number in numbers:
                loop.remove_signal_handler(number)

        for number in numbers:
            loop.add_signal_handler(number, on_signal)
        try:
            return await main(interrupt)
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    return asyncio.run(with_signals())


def version_text() -> str:
    """Return the version of this installation."""
    try:
        return version("twinfleet")
    except PackageNotFoundError:
        # A source tree that was never installed.
        return "unknown"
