"""`twinfleet fleet`: simulated fleets that stay and report in real time, beside real devices."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from twinfleet.client import OperatorClient
from twinfleet.documents import parse_duration_s
from twinfleet.errors import UsageFault
from twinfleet.options import DEFAULT_DATA_DIR, DataDir, Output, OutputFormat, example
from twinfleet.printing import print_document, print_line, print_table, time_text

app = typer.Typer(help="Keep simulated fleets beside real devices.", rich_markup_mode=None)

FleetName = Annotated[str, typer.Argument(metavar="NAME", help="The fleet's name.")]


@app.command(
    "create", epilog=example("twinfleet fleet create hall --model thermostat --count 1000 --report-every 30s")
)
def create(
    name: FleetName,
    *,
    count: Annotated[int, typer.Option(min=1, metavar="N", help="How many devices.")],
    model: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="Their device model: a shipped one, or a model file.")
    ] = "thermostat",
    seed: Annotated[int, typer.Option(min=0, metavar="S", help="What their behaviour is drawn from.")] = 0,
    report_every: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="How often each device reports; as its model says, or 10s.",
            show_default=False,
        ),
    ] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Create a standing fleet of simulated devices, named NAME-000000 and on; it survives a restart."""
    report_every_s = None if report_every is None else parse_duration_s(report_every)
    document = OperatorClient.of(data_dir).create_fleet(
        name, _named_or_read(model), count=count, seed=seed, report_every_s=report_every_s
    )
    if output is OutputFormat.JSON:
        print_document(document)
    else:
        print_line(f"fleet {name}: {count} devices named {document.content['thing_name']}")


def _named_or_read(model: str) -> str | Mapping[str, Any]:
    """Return the name of a shipped model as it is, and a file's model as data: the platform keeps it by value."""
    # Reading files brings the scenario language with it, which nobody should wait for who names a model.
    from scenarios.errors import ScenarioInvalid  # noqa: PLC0415
    from scenarios.model_files import is_model_file, load_model  # noqa: PLC0415

    if not is_model_file(model):
        return model
    try:
        return load_model(Path(model))[1]
    except ScenarioInvalid as error:
        raise UsageFault(str(error)) from None


@app.command("list", epilog=example("twinfleet fleet list -o json"))
def list_fleets(data_dir: DataDir = DEFAULT_DATA_DIR, output: Output = OutputFormat.TABLE) -> None:
    """List the standing fleets."""
    document = OperatorClient.of(data_dir).fleets()
    if output is OutputFormat.JSON:
        print_document(document)
        return
    print_table(
        ("NAME", "MODEL", "DEVICES", "NAMED", "EVERY", "SEED", "STATUS", "CREATED"),
        [
            (
                fleet["name"],
                fleet["model"],
                fleet["count"],
                fleet["thing_name"],
                f"{fleet['report_every_s']}s",
                fleet["seed"],
                fleet["status"],
                time_text(fleet["created_at"]),
            )
            for fleet in document.content["fleets"]
        ],
    )


@app.command("delete", epilog=example("twinfleet fleet delete hall"))
def delete(
    name: FleetName, data_dir: DataDir = DEFAULT_DATA_DIR, output: Output = OutputFormat.TABLE
) -> None:
    """Remove a standing fleet with all its twins."""
    document = OperatorClient.of(data_dir).delete_fleet(name)
    if output is OutputFormat.JSON:
        print_document(document)
    else:
        print_line(f"fleet {name} is deleted with all its twins")
