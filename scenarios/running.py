"""The way in: run a scenario from its file to its reports.

Owns how a run is started, interrupted and recorded. What happens in it is `engine`'s.
"""

from __future__ import annotations

import asyncio
import dataclasses
import shlex
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, Literal

import msgspec

from actors.fleet import Fleet, LocalFleet
from actors.settings import DataDirectory, Endpoints
from scenarios.devices import DeviceHost, LocalDevices, PlatformDevices
from scenarios.engine import RunOptions, conduct
from scenarios.errors import FaultImpossible, Problem, ScenarioInvalid
from scenarios.interruption import interruptible
from scenarios.load_orders import Registrar
from scenarios.platform_trouble import PlatformTrouble
from scenarios.reading import load_scenario
from scenarios.report import write_reports
from scenarios.result import EXIT_CODES, RunResult, Verdict
from scenarios.spec import PathKind, Scenario
from scenarios.wire_fleet import WireFleet, WireSite
from scenarios.wire_trouble import wire_for
from scenarios.wire_words import NEEDS_CLOCK

# As a platform has by default; the digest does not depend on it.
DEFAULT_SHARD_COUNT: Final = 16
# Of several runs the first of these that any of them has tells how it went in all.
_SEVERITY: Final[Sequence[Verdict]] = (
    "INTERRUPTED",
    "FAIL",
    "ABORTED",
    "INCONCLUSIVE",
    "NOTHING_RAN",
    "PASS",
)
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


def run_file(
    file: Path, *, seed: int | None, overrides: Sequence[str], fleet: Literal["local", "ray"], data_dir: Path
) -> RunResult:
    """Run the scenario of a file and return its result, as `scenarios.run` describes it."""
    settings = [*overrides, *([] if seed is None else [f"seed={seed}"])]
    scenario = load_scenario(file, settings)
    if fleet == "ray":
        return run_on_platform(scenario, data_dir)
    return run_locally(scenario, DEFAULT_SHARD_COUNT, reports_dir=DataDirectory(data_dir).reports)


def run_matrix(
    scenarios: Sequence[Scenario], run_one: Callable[[Scenario], RunResult]
) -> Iterator[tuple[Scenario, RunResult]]:
    """Run the scenarios of a matrix one after the other; after an interruption no further one begins."""
    for scenario in scenarios:
        result = run_one(scenario)
        yield scenario, result
        if result.verdict == "INTERRUPTED":
            return


def write_matrix(runs: Sequence[tuple[Scenario, RunResult]], reports_dir: Path) -> Path:
    """Write what became of each cell of a matrix into a file beside the reports of its runs, and return that."""
    cells = [
        {
            "cell": dict(scenario.cell),
            "verdict": result.verdict,
            "reason": result.reason,
            "exit_code": result.exit_code,
            "seed": result.seed,
            "digest": result.digest,
            "wall_s": result.wall_s,
            "metrics": result.metrics,
            "run_id": result.run_id,
            "command": result.command,
        }
        for scenario, result in runs
    ]
    first = runs[0][1]
    content = {"schema": 1, "scenario": first.scenario, "exit_code": worst_of(runs), "cells": cells}
    reports_dir.mkdir(parents=True, exist_ok=True)
    file = reports_dir / f"{first.run_id}-matrix.json"
    file.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")
    return file


def worst_of(runs: Sequence[tuple[Scenario, RunResult]]) -> int:
    """Return the exit code of several runs: that of the first verdict of `_SEVERITY` that any of them has."""
    verdicts = {result.verdict for _, result in runs}
    return next(
        (EXIT_CODES[verdict] for verdict in _SEVERITY if verdict in verdicts), EXIT_CODES["NOTHING_RAN"]
    )


def run_locally(
    scenario: Scenario, shard_count: int, *, reports_dir: Path, options: RunOptions | None = None
) -> RunResult:
    """Run a scenario on a fleet in this process, real devices played in-process, and return the result.

    FaultImpossible if it needs a platform: for devices on the wire, or for what goes wrong.
    """
    options = options or RunOptions()
    on_wire = [group.name for group in scenario.groups if group.path == "wire"]
    if on_wire:
        raise FaultImpossible(
            f"group {on_wire[0]!r} is on the wire, and there is no broker here; start a platform (`twinfleet up`) and "
            "run the scenario without `--fleet local`, or with `--path engine`"
        )

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
    sets = [part for each in scenario.overrides if not each.startswith("seed=") for part in ("--set", each)]
    is_on_wire = scenario.groups and all(group.path == "wire" for group in scenario.groups)
    path = ["--path", "wire"] if is_on_wire and arguments[:1] == ("--data-dir",) else []
    words = ["twinfleet", "run", scenario.file, *sets, "--seed", str(scenario.seed), *path, *arguments]
    return shlex.join(words)


def version_text() -> str:
    """Return the version of this installation."""
    try:
        return version("twinfleet")
    except PackageNotFoundError:
        # A source tree that was never installed.
        return "unknown"
