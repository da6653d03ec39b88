"""`twinfleet report` and `twinfleet diff`: reports made again from a recorded run, and two runs compared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import typer

from actors.settings import DataDirectory
from twinfleet.errors import UsageFault
from twinfleet.options import DEFAULT_DATA_DIR, DataDir, Output, OutputFormat
from twinfleet.printing import print_json, print_line, print_table

if TYPE_CHECKING:
    from scenarios.comparison import Change
    from scenarios.result import RunResult

_WORSE: Final = 1

RunArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[RUN]",
        help="A directory with summary.json, or the name of one in DIR/reports (default: the last).",
    ),
]
_SIDE = "A run's directory or summary.json, or a directory of several runs' directories."


def report(
    run: RunArgument = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    *,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of summary.json instead.")
    ] = False,
) -> None:
    """Make report.html and junit.xml again from the summary.json of a recorded run, and print its verdict.

    Exit codes: that of the run itself (0 pass, 1 failed, ...), 2 if there is no such run.
    """
    from scenarios.errors import SummaryUnreadable  # noqa: PLC0415 - the templates need not be waited for by others
    from scenarios.report import read_summary, summary_schema, write_views  # noqa: PLC0415

    if schema:
        print_json(summary_schema())
        return
    directory = _run_directory(run, DataDirectory(data_dir).reports)
    try:
        result = read_summary(directory)
    except SummaryUnreadable as error:
        raise UsageFault(str(error)) from None
    write_views(result, directory)
    print_line(f"verdict: {result.verdict} ({result.reason})")
    print_line(f"report: {directory / 'report.html'}")
    raise typer.Exit(result.exit_code)


def _run_directory(run: str | None, reports: Path) -> Path:
    """Return the directory of a run by its path or name; the last one's without a name."""
    if run is not None:
        path = Path(run) if Path(run).exists() else reports / run
        if path.exists():
            return path if path.is_dir() else path.parent
        raise UsageFault(f"there is no run {run}, neither here nor in {reports}")
    # Names begin with the time at which the run began.
    runs = sorted(file.parent for file in reports.glob("*/summary.json"))
    if not runs:
        raise UsageFault(f"there is no run in {reports} yet; `twinfleet run FILE` makes one")
    return runs[-1]


def diff(
    base: Annotated[Path, typer.Argument(metavar="BASE", help=f"What it was. {_SIDE}", show_default=False)],
    new: Annotated[Path, typer.Argument(metavar="NEW", help=f"What it is now. {_SIDE}", show_default=False)],
    *,
    everything: Annotated[bool, typer.Option("--all", help="Also show what has not changed.")] = False,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Compare two runs of a scenario, or two sets of runs, and say what got worse by more than noise.

    Several runs on a side (other seeds, or the same again) tell what is noise; of one, the stretches of its course do.
    Exit codes: 0 nothing got worse, 1 something did, 2 these cannot be compared.
    """
    from scenarios.comparison import compare  # noqa: PLC0415 - as above

    try:
        changes = compare(_runs(base), _runs(new))
    except ValueError as error:
        raise UsageFault(str(error)) from None
    worse = [change for change in changes if change.course == "worse"]
    shown = [change for change in changes if everything or change.course != "same"]
    if output is OutputFormat.JSON:
        print_json([msgspec.to_builtins(change) | {"ratio": change.ratio} for change in shown])
    else:
        _print_changes(shown)
        better_count = sum(change.course == "better" for change in changes)
        print_line(f"{len(worse)} worse, {better_count} better, of {len(changes)} compared")
    raise typer.Exit(_WORSE if worse else 0)


def _runs(path: Path) -> list[RunResult]:
    from scenarios.errors import SummaryUnreadable  # noqa: PLC0415 - as above
    from scenarios.report import read_summary  # noqa: PLC0415

    several = (
        sorted(path.glob("*/summary.json")) if path.is_dir() and not (path / "summary.json").exists() else []
    )
    try:
        return [read_summary(file) for file in several or [path]]
    except SummaryUnreadable as error:
        raise UsageFault(str(error)) from None


def _print_changes(changes: list[Change]) -> None:
    from scenarios.checks import number  # noqa: PLC0415 - as above

    if not changes:
        return
    print_table(
        ("", "WHAT", "BASE", "NEW", "CHANGE", "HELD TO"),
        [
            (
                change.course,
                change.name,
                "" if change.before is None else number(change.before),
                "" if change.after is None else number(change.after),
                "" if change.ratio is None else f"{change.ratio:+.1%}",
                change.why,
            )
            for change in changes
        ],
    )
