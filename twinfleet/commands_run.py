"""`twinfleet run`: a scenario on the running platform, or on a fleet in this process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from actors.errors import WorldError
from actors.settings import DataDirectory
from twinfleet import __version__
from twinfleet.commands_scenario import SetOption
from twinfleet.errors import PlatformUnreachable, UsageFault
from twinfleet.options import DEFAULT_DATA_DIR, DataDir
from twinfleet.printing import print_line, print_table

if TYPE_CHECKING:
    from scenarios.result import RunResult
    from scenarios.spec import Scenario


class FleetKind(StrEnum):
    """Where the shards of a run live."""

    LOCAL = "local"
    RAY = "ray"


class PathWord(StrEnum):
    """How simulated devices reach their twins."""

    ENGINE = "engine"
    WIRE = "wire"


def run(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE|NAME",
            help="A scenario file, or one of `twinfleet scenario list`.",
            show_default=False,
        ),
    ],
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
    sets: SetOption = [],  # noqa: B006 - typer's default of a repeatable option
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
    """Run a scenario and judge it; its reports go to DIR/reports. A matrix runs cell by cell.

    Exit codes: 0 pass, 1 a threshold, check, assertion or step failed, 2 usage or invalid scenario, 3 inconclusive
    (the system under test broke, or was not there), 4 ended by its abort_on, 5 nothing ran, 130 interrupted. Of a
    matrix: 0 if all passed, else 130, 1, 4, 3 or 5, the first of these that any run has.
    """
    if shards is not None and fleet is FleetKind.RAY:
        raise UsageFault("--shards goes with --fleet local: a platform has its number of shards for good")
    if path is PathWord.WIRE and fleet is FleetKind.LOCAL:
        raise UsageFault(
            "--path wire needs a platform, whose broker devices connect to: leave --fleet local out"
        )
    word: Literal["engine", "wire"] | None = path.value if path else None
    settings = [*sets, *([] if seed is None else [f"seed={seed}"])]
    _run_all(
        _Order(file, settings, word, load_processes),
        _Place(fleet, data_dir, shards, is_kept=keep_fleet),
    )


@dataclass(frozen=True)
class _Order:
    """What is to be run."""

    file: str
    settings: Sequence[str]
    path: Literal["engine", "wire"] | None
    load_processes: int | None


@dataclass(frozen=True)
class _Place:
    """Where it runs."""

    fleet: FleetKind
    data_dir: Path
    shards: int | None
    is_kept: bool

    def run(self, scenario: Scenario) -> RunResult:
        """Run one scenario here."""
        from rich.console import Console  # noqa: PLC0415

        from scenarios.engine import RunOptions  # noqa: PLC0415
        from scenarios.progress import progress_for  # noqa: PLC0415
        from scenarios.running import DEFAULT_SHARD_COUNT, run_locally, run_on_platform  # noqa: PLC0415

        progress = progress_for(Console(stderr=True))
        options = RunOptions(version=__version__, keep_fleet=self.is_kept, progress=progress)
        if self.fleet is FleetKind.RAY:
            return run_on_platform(scenario, self.data_dir, options=options)
        reports_dir = DataDirectory(self.data_dir).reports
        return run_locally(
            scenario, self.shards or DEFAULT_SHARD_COUNT, reports_dir=reports_dir, options=options
        )


def _run_all(order: _Order, place: _Place) -> None:
    """Run a scenario, or each cell of its matrix, and end with the exit code of all."""
    # DuckDB, Arrow and the report's templates take a second to import, which no other command should wait for.
    from scenarios.errors import FaultImpossible, NameTaken, ScenarioInvalid  # noqa: PLC0415
    from scenarios.running import on_path, run_matrix  # noqa: PLC0415
    from twinfleet.scenario_views import read  # noqa: PLC0415

    reports_dir = DataDirectory(place.data_dir).reports
    runs: list[tuple[Scenario, RunResult]] = []
    try:
        cells = [
            on_path(scenario, order.path, order.load_processes)
            for scenario in read(order.file, order.settings)
        ]
        for scenario, result in run_matrix(cells, place.run):
            if len(cells) > 1:
                print_line(f"cell: {_cell_text(scenario)}")
            _print_result(result, reports_dir)
            runs.append((scenario, result))
    except (ScenarioInvalid, NameTaken, FaultImpossible) as error:
        raise UsageFault(str(error)) from None
    except WorldError as error:
        raise PlatformUnreachable(str(error)) from None
    _end(runs, len(cells), reports_dir)


def _end(runs: Sequence[tuple[Scenario, RunResult]], cell_count: int, reports_dir: Path) -> None:
    """End with the exit code of all runs; of a matrix, print what became of each cell before."""
    from scenarios.running import worst_of, write_matrix  # noqa: PLC0415

    if cell_count > 1:
        rows = [
            (_cell_text(scenario), result.verdict, f"{result.wall_s:.1f} s", result.digest[:12])
            for scenario, result in runs
        ]
        print_table(("CELL", "VERDICT", "TOOK", "DIGEST"), rows)
        if len(runs) < cell_count:
            print_line(f"not run: {cell_count - len(runs)} of {cell_count} cells")
        print_line(f"matrix: {write_matrix(runs, reports_dir)}")
    raise typer.Exit(worst_of(runs))


def _cell_text(scenario: Scenario) -> str:
    return ", ".join(f"{key}={value}" for key, value in scenario.cell.items())


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
