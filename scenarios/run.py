"""The way in: run a scenario from its file to its reports.

Owns how a run is started, interrupted and recorded. What happens in it is `engine`'s.
"""

from __future__ import annotations

import asyncio
import dataclasses
import shlex
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from actors.fleet import Fleet, LocalFleet
from actors.settings import DataDirectory, Endpoints
from scenarios.devices import DeviceHost, LocalDevices, PlatformDevices
from scenarios.engine import RunOptions, conduct
from scenarios.interruption import interruptible
from scenarios.platform_trouble import PlatformTrouble
from scenarios.reading import load_scenario, reseeded
from scenarios.report import write_reports
from scenarios.result import RunResult
from scenarios.spec import Scenario
from scenarios.wire_trouble import wire_for

# As a platform has by default; the digest does not depend on it.
DEFAULT_SHARD_COUNT: Final = 16
# A shard that a scenario has killed, or that somebody else has, is back long before; a run is worth waiting for it.
_TICK_PATIENCE_S: Final = 120.0


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
    return run_locally(scenario, shard_count, reports_dir=reports_dir)


def run_locally(
    scenario: Scenario, shard_count: int, *, reports_dir: Path, options: RunOptions | None = None
) -> RunResult:
    """Run a scenario on a fleet in this process, real devices played in-process, and return the result."""
    options = options or RunOptions()

    async def main() -> RunResult:
        fleet = LocalFleet(shard_count)
        with interruptible() as interrupt:
            described = dataclasses.replace(
                options,
                fleet="local",
                command=_command(scenario, "--fleet", "local", "--shards", str(shard_count)),
                interrupt=interrupt,
            )
            return await run_scenario(
                scenario, fleet, LocalDevices(fleet), reports_dir=reports_dir, options=described
            )

    return asyncio.run(main())


def run_on_platform(scenario: Scenario, data_dir: Path, *, options: RunOptions | None = None) -> RunResult:
    """Run a scenario on the platform of a data directory, its real devices over MQTT, and return the result.

    PlatformNotRunning if there is none. The reports go to the data directory's own.
    """
    # Ray takes a second to import, which a run in this process need not wait for.
    from actors.ray_fleet import connect  # noqa: PLC0415

    options = options or RunOptions()
    endpoints = Endpoints.read(data_dir)
    reports_dir = DataDirectory(data_dir).reports

    async def main() -> RunResult:
        fleet = await connect(endpoints)
        fleet.tick_patience_s = _TICK_PATIENCE_S
        try:
            with interruptible() as interrupt:
                async with wire_for(scenario, endpoints) as (through, relay):
                    described = dataclasses.replace(
                        options,
                        fleet="ray",
                        command=_command(scenario, "--data-dir", str(data_dir)),
                        interrupt=interrupt,
                        trouble=PlatformTrouble(through, data_dir, relay),
                    )
                    devices = PlatformDevices(through)
                    return await run_scenario(
                        scenario, fleet, devices, reports_dir=reports_dir, options=described
                    )
        finally:
            await fleet.close()

    return asyncio.run(main())


def _command(scenario: Scenario, *arguments: str) -> str:
    """Return what repeats a run, to be pasted into a shell."""
    return shlex.join(["twinfleet", "run", scenario.file, "--seed", str(scenario.seed), *arguments])


def version_text() -> str:
    """Return the version of this installation."""
    try:
        return version("twinfleet")
    except PackageNotFoundError:
        # A source tree that was never installed.
        return "unknown"
