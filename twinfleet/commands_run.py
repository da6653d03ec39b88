"""`twinfleet run`: a scenario on the running platform, or on a fleet in this process."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from actors.errors import WorldError
from actors.settings import DataDirectory
from twinfleet import __version__
from twinfleet.errors import PlatformUnreachable, UsageFault
from twinfleet.options import DEFAULT_DATA_DIR, DataDir
from twinfleet.printing import print_line

if TYPE_CHECKING:
    from scenarios.result import RunResult


class FleetKind(StrEnum):
    """Where the shards of a run live."""

    LOCAL = "local"
    RAY = "ray"


class PathWord(StrEnum):
    """How simulated devices reach their twins."""

    ENGINE = "engine"
    WIRE = "wire"


def run(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The scenario.", show_default=False)],
    data_dir: DataDir = DEFAULT_DATA_DIR,
    *,
    fleet: Annotated[
        FleetKind,
        typer.Option(help="ray: on the running platform. local: in this process, real devices played in it."),
    ] = FleetKind.RAY,
    shards: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=1024, help="Number of shards, with --fleet local.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="S", min=0, help="A seed instead of the scenario's.")
    ] = None,
    path: Annotated[
        PathWord | None,
        typer.Option(
            help="All groups on this path, whatever the scenario says. engine: simulated in their twins. wire: "
            "real MQTT connections, each device with its own certificate.",
            show_default=False,
        ),
    ] = None,
    load_processes: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, max=256, help="Processes that have the connections of path wire."),
    ] = None,
    keep_fleet: Annotated[
        bool, typer.Option("--keep-fleet", help="Leave the scenario's groups and things in the platform.")
    ] = False,
) -> None:
    """Run a scenario and judge it; its reports go to DIR/reports.

    Exit codes: 0 pass, 1 a threshold, check, assertion or step failed, 2 usage or invalid scenario, 3 inconclusive
    (the system under test broke, or was not there), 5 nothing ran, 130 interrupted.
    """
    if shards is not None and fleet is FleetKind.RAY:
        raise UsageFault("--shards goes with --fleet local: a platform has its number of shards for good")
    if path is PathWord.WIRE and fleet is FleetKind.LOCAL:
        raise UsageFault(
            "--path wire needs a platform, whose broker devices connect to: leave --fleet local out"
        )
    # DuckDB, Arrow and the report's templates take a second to import, which no other command should wait for.
    from rich.console import Console  # noqa: PLC0415

    from scenarios.engine import RunOptions  # noqa: PLC0415
    from scenarios.errors import FaultImpossible, NameTaken, ScenarioInvalid  # noqa: PLC0415
    from scenarios.progress import progress_for  # noqa: PLC0415
    from scenarios.reading import load_scenario, reseeded  # noqa: PLC0415
    from scenarios.run import DEFAULT_SHARD_COUNT, on_path, run_locally, run_on_platform  # noqa: PLC0415

    reports_dir = DataDirectory(data_dir).reports
    options = RunOptions(
        version=__version__, keep_fleet=keep_fleet, progress=progress_for(Console(stderr=True))
    )
    try:
        scenario = reseeded(load_scenario(file), seed)
        scenario = on_path(scenario, path.value if path else None, load_processes)
        if fleet is FleetKind.RAY:
            result = run_on_platform(scenario, data_dir, options=options)
        else:
            shard_count = shards or DEFAULT_SHARD_COUNT
            result = run_locally(scenario, shard_count, reports_dir=reports_dir, options=options)
    except (ScenarioInvalid, NameTaken, FaultImpossible) as error:
        raise UsageFault(str(error)) from None
    except WorldError as error:
        raise PlatformUnreachable(str(error)) from None
    _print_result(result, reports_dir)
    raise typer.Exit(result.exit_code)


def _print_result(result: RunResult, reports_dir: Path) -> None:
    """Print what a person and a script want to know; the report has the rest."""
    if result.digest:
        print_line(f"digest: {result.digest}")
    for one in (*result.thresholds, *result.checks, *result.assertions):
        if one.outcome != "PASS":
            print_line(f"{one.outcome}: {one.name}: expected {one.expected}, found {one.actual}")
    for step in result.steps:
        if step.outcome != "PASS":
            print_line(f"{step.outcome}: {step.name}: {step.detail}")
    for fault in result.faults:
        what = f"{fault.name} ({fault.action.replace('_', ' ')} of {fault.target})"
        if fault.recovery_s is not None:
            time = "virtual time" if fault.layer == "simulated" else "real time"
            print_line(f"recovered: {what} within {fault.recovery_s:.3g} s of {time}")
        elif fault.outcome == "FAIL":
            print_line(f"FAIL: {what}: not served again")
        else:
            print_line(f"not seen to recover: {what}")
    print_line(f"verdict: {result.verdict} ({result.reason})")
    print_line(f"report: {reports_dir / result.run_id / 'report.html'}")
