"""`twinfleet scenario`: scenario files before they run - what comes along, what is wrong, what will be asked for."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from twinfleet.options import Output, OutputFormat, example
from twinfleet.printing import print_json, print_line, print_table

app = typer.Typer(
    help="Look at scenarios, check your own, and see what they will ask for; `twinfleet run` runs them.",
    rich_markup_mode=None,
)

# `scenario_views` and the core take half a second to import, which no other command should wait for.

SetOption = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Another value than the file's, like groups[0].count=1000; repeatable.",
    ),
]
_Name = typer.Argument(
    metavar="FILE|NAME", help="A scenario file, or one of `scenario list`.", show_default=False
)


@app.command("list", epilog=example("twinfleet scenario list"))
def list_scenarios(output: Output = OutputFormat.TABLE) -> None:
    """List the scenarios that come with twinfleet, with what each is for."""
    from twinfleet.scenario_views import library_rows, library_summaries  # noqa: PLC0415

    if output is OutputFormat.JSON:
        print_json({"scenarios": library_summaries()})
    else:
        print_table(("KIND", "NAME", "GOAL"), library_rows())


@app.command("validate", epilog=example("twinfleet scenario validate nightly.yaml --set groups[0].count=10"))
def validate(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE|NAME...", help="Scenario files.", show_default=False)
    ],
    sets: SetOption = [],  # noqa: B006 - typer's default of a repeatable option
    output: Output = OutputFormat.TABLE,
) -> None:
    """Check scenario files: every mistake is told, with file, line, column and the nearest valid word."""
    from twinfleet.scenario_views import read_all, summary  # noqa: PLC0415

    found = read_all(files, sets)
    if output is OutputFormat.JSON:
        print_json({"scenarios": [summary(scenario) for cells in found.values() for scenario in cells]})
        return
    for file, cells in found.items():
        runs = "" if len(cells) == 1 else f", {len(cells)} runs"
        print_line(f"{file}: scenario {cells[0].name!r}{runs}: nothing is wrong with it")


@app.command(
    "plan",
    epilog=example(
        "twinfleet scenario plan million-carrier-outage",
        "twinfleet scenario plan nightly.yaml --set groups[0].count=1000000 -o json",
    ),
)
def plan(file: Annotated[str, _Name], sets: SetOption = [], output: Output = OutputFormat.TABLE) -> None:  # noqa: B006
    """Show what a scenario will ask for, and run nothing: counts, rates, its course, and the memory it takes."""
    from twinfleet.scenario_views import plan_lines, plans  # noqa: PLC0415

    found = plans(file, sets)
    if output is OutputFormat.JSON:
        print_json({"plans": found})
        return
    for each in found:
        for line in plan_lines(each):
            print_line(line)


@app.command("schema", epilog=example("twinfleet scenario schema > scenario.schema.json"))
def schema() -> None:
    """Print the JSON Schema (draft 2020-12) of scenario files, for editors; `validate` finds more."""
    from scenarios.scenario_form import scenario_schema  # noqa: PLC0415

    print(msgspec.json.format(msgspec.json.encode(scenario_schema()), indent=2).decode())
