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
from scenarios.errors import Problem, ScenarioInvalid
from scenarios.interruption import interruptible
from scenarios.load_orders import Registrar
from scenarios.platform_trouble import PlatformTrouble
from scenarios.reading import load_scenario, reseeded
from scenarios.report import write_reports
from scenarios.result import RunResult
from scenarios.spec import PathKind, Scenario
from scenarios.wire_fleet import WireFleet, WireSite
from scenarios.wire_trouble import wire_for
from scenarios.wire_words import NEEDS_CLOCK

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
        ray_fleet = await connect(endpoints)
        ray_fleet.tick_patience_s = _TICK_PATIENCE_S
        fleet: Fleet = ray_fleet
        try:
            with interruptible() as interrupt:
                async with wire_for(scenario, endpoints) as (through, relay):
                    fleet = _wired(ray_fleet, scenario, through)
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


def _wired(fleet: Fleet, scenario: Scenario, endpoints: Endpoints) -> Fleet:
    """Return the fleet, with load processes where groups of the scenario are on the wire."""
    if all(group.path == "engine" for group in scenario.groups):
        return fleet
    registrar = Registrar(endpoints.api.url, endpoints.operator_token_file)
    return WireFleet(
        fleet, scenario, WireSite(endpoints.mqtts.host, endpoints.mqtts.port, endpoints.ca, registrar)
    )


def on_path(scenario: Scenario, path: PathKind | None, process_count: int | None = None) -> Scenario:
    """Return the scenario with all its groups on one path, and with so many load processes; None leaves it as it is.

    ScenarioInvalid if its clock does not go with the wire.
    """
    wire = scenario.wire
    if process_count is not None:
        wire = dataclasses.replace(wire, processes=process_count)
    groups = scenario.groups
    if path is not None:
        groups = tuple(dataclasses.replace(group, path=path) for group in groups)
    if path == "wire" and scenario.clock.speed is None:
        raise ScenarioInvalid([Problem(scenario.file, 1, 1, "clock", NEEDS_CLOCK)])
    return dataclasses.replace(scenario, groups=groups, wire=wire)


def _command(scenario: Scenario, *arguments: str) -> str:
    """Return what repeats a run, to be pasted into a shell."""
    is_on_wire = scenario.groups and all(group.path == "wire" for group in scenario.groups)
    path = ["--path", "wire"] if is_on_wire and arguments[:1] == ("--data-dir",) else []
    return shlex.join(["twinfleet", "run", scenario.file, "--seed", str(scenario.seed), *path, *arguments])


def version_text() -> str:
    """Return the version of this installation."""
    try:
        return version("twinfleet")
    except PackageNotFoundError:
        # A source tree that was never installed.
        return "unknown"
