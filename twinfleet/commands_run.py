"""`twinfleet run`: a scenario on the running platform, or on a fleet in this process."""

from __future__ import annotations

import asyncio
import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from scenarios.result import RunResult
    from scenarios.spec import Scenario


class FleetKind(StrEnum):
    """Where the shards of a run live."""

    LOCAL = "local"
    RAY = "ray"


def run(
    file: Annotated[Path, typer.Argument(help="The scenario file.", show_default=False)],
    *,
    data_dir: Annotated[
        Path, typer.Option(help="Data directory of the platform; reports go below it.")
    ] = Path(".twinfleet"),
    fleet: Annotated[
        FleetKind,
        typer.Option(
            help="ray: on the running platform. local: in this process, real devices played in it too."
        ),
    ] = FleetKind.RAY,
    shards: Annotated[
        int | None,
        typer.Option(min=1, max=1024, help="Number of shards, with --fleet local.", show_default="16"),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed instead of the scenario's.", show_default=False)
    ] = None,
    keep_fleet: Annotated[
        bool, typer.Option("--keep-fleet", help="Leave the scenario's groups and things in the platform.")
    ] = False,
) -> None:
    """Run a scenario and judge it.

    Exit codes: 0 pass, 1 a threshold, check, assertion or step failed, 2 usage or invalid scenario, 3 inconclusive
    (the system under test broke or was not there), 5 nothing ran, 130 interrupted.
    """
    # The packages behind take a second to load, which `--help` and a mistyped option need not wait for.
    from actors.errors import OperatorError, WorldError  # noqa: PLC0415
    from scenarios.errors import NameTaken, ScenarioInvalid, ScenariosError  # noqa: PLC0415
    from scenarios.reading import load_scenario, reseeded  # noqa: PLC0415
    from scenarios.result import EXIT_CODES, EXIT_INVALID  # noqa: PLC0415

    if shards is not None and fleet is FleetKind.RAY:
        _fail(
            "--shards goes with --fleet local only: a platform has its number of shards for good",
            EXIT_INVALID,
        )
    try:
        scenario = reseeded(load_scenario(file), seed)
        options = _CommandOptions(data_dir, fleet, shards=shards, keep_fleet=keep_fleet)
        result = options.run(scenario)
    except (ScenarioInvalid, NameTaken, OperatorError) as error:
        _fail(str(error), EXIT_INVALID)
    except (ScenariosError, WorldError) as error:
        _fail(str(error), EXIT_CODES["INCONCLUSIVE"])
    _print_result(result, options.reports_dir)
    raise typer.Exit(result.exit_code)


class _CommandOptions:
    """What the command line said, and the run that it asks for."""

    def __init__(self, data_dir: Path, fleet: FleetKind, *, shards: int | None, keep_fleet: bool) -> None:
        from actors.settings import DataDirectory  # noqa: PLC0415

        self.data_dir = data_dir
        self.fleet = fleet
        self.shards = shards
        self.keep_fleet = keep_fleet
        self.reports_dir = DataDirectory(data_dir).reports

    def run(self, scenario: Scenario) -> RunResult:
        """Run the scenario and return its result; its reports are written."""
        from scenarios.run import run_interruptibly  # noqa: PLC0415

        on_fleet = self._on_platform if self.fleet is FleetKind.RAY else self._in_process
        return run_interruptibly(lambda interrupt: on_fleet(scenario, interrupt))

    async def _in_process(self, scenario: Scenario, interrupt: asyncio.Event) -> RunResult:
        from rich.console import Console  # noqa: PLC0415

        from actors.fleet import LocalFleet  # noqa: PLC0415
        from scenarios.devices import LocalDevices  # noqa: PLC0415
        from scenarios.engine import RunOptions  # noqa: PLC0415
        from scenarios.progress import progress_for  # noqa: PLC0415
        from scenarios.run import DEFAULT_SHARD_COUNT, run_scenario  # noqa: PLC0415

        fleet = LocalFleet(self.shards or DEFAULT_SHARD_COUNT)
        options = RunOptions(
            fleet="local",
            command=self._command(scenario, ["--shards", str(fleet.shard_count)]),
            keep_fleet=self.keep_fleet,
            interrupt=interrupt,
            progress=progress_for(Console(stderr=True)),
        )
        return await run_scenario(
            scenario, fleet, LocalDevices(fleet), reports_dir=self.reports_dir, options=options
        )

    async def _on_platform(self, scenario: Scenario, interrupt: asyncio.Event) -> RunResult:
        from rich.console import Console  # noqa: PLC0415

        from actors.ray_fleet import connect  # noqa: PLC0415
        from actors.settings import Endpoints  # noqa: PLC0415
        from scenarios.devices import PlatformDevices  # noqa: PLC0415
        from scenarios.engine import RunOptions  # noqa: PLC0415
        from scenarios.progress import progress_for  # noqa: PLC0415
        from scenarios.run import run_scenario  # noqa: PLC0415

        endpoints = Endpoints.read(self.data_dir)
        fleet = await connect(endpoints)
        try:
            options = RunOptions(
                fleet="ray",
                command=self._command(scenario, ["--data-dir", str(self.data_dir)]),
                keep_fleet=self.keep_fleet,
                interrupt=interrupt,
                progress=progress_for(Console(stderr=True)),
            )
            devices = PlatformDevices(endpoints)
            return await run_scenario(scenario, fleet, devices, reports_dir=self.reports_dir, options=options)
        finally:
            await fleet.close()

    def _command(self, scenario: Scenario, arguments: list[str]) -> str:
        words = ["twinfleet", "run", scenario.file, "--fleet", self.fleet.value]
        words += ["--seed", str(scenario.seed), *arguments]
        return shlex.join(words)


def _print_result(result: RunResult, reports_dir: Path) -> None:
    """Print what a person and a script want to know; the report has the rest."""
    if result.digest:
        print(f"digest: {result.digest}")
    judged = (*result.thresholds, *result.checks, *result.assertions)
    for one in judged:
        if one.outcome != "PASS":
            print(f"{one.outcome}: {one.name}: expected {one.expected}, found {one.actual}")
    for step in result.steps:
        if step.outcome != "PASS":
            print(f"{step.outcome}: {step.name}: {step.detail}")
    print(f"verdict: {result.verdict} ({result.reason})")
    print(f"report: {reports_dir / result.run_id / 'report.html'}")


def _fail(message: str, exit_code: int) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(exit_code)
