"""`twinfleet fleet`: simulated fleets that stay and report in real time, beside real devices."""

from __future__ import annotations

from typing import Annotated

import typer

from twinfleet.client import OperatorClient
from twinfleet.documents import parse_duration_s
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
    # It takes half a second to import, which no other command should wait for.
    from twinfleet.model_views import named_or_read  # noqa: PLC0415

    # A mistake in a file is told whether or not there is a platform.
    definition = named_or_read(model)
    report_every_s = None if report_every is None else parse_duration_s(report_every)
    document = OperatorClient.of(data_dir).create_fleet(
        name, definition, count=count, seed=seed, report_every_s=report_every_s
    )
    if output is OutputFormat.JSON:
        print_document(document)
    else:
        print_line(f"fleet {name}: {count} devices named {document.content['thing_name']}")


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
