"""`twinfleet model`: device models, shipped ones and those of users, and what a model file must look like."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from twinfleet.options import Output, OutputFormat, example
from twinfleet.printing import print_json, print_line, print_table

app = typer.Typer(help="Look at device models, and check your own.", rich_markup_mode=None)

# `model_views` and the core take half a second to import, which no other command should wait for.


@app.command("list", epilog=example("twinfleet model list"))
def list_models(output: Output = OutputFormat.TABLE) -> None:
    """List the device models that come with twinfleet."""
    from twinfleet.model_views import row, shipped_models, summary  # noqa: PLC0415

    if output is OutputFormat.JSON:
        print_json({"models": [summary(model) for model in shipped_models()]})
    else:
        print_table(("NAME", "FIELDS", "EVERY", "DESCRIPTION"), [row(model) for model in shipped_models()])


@app.command("show", epilog=example("twinfleet model show thermostat > my-thermostat.yaml"))
def show(
    model: Annotated[str, typer.Argument(metavar="NAME|FILE", help="A shipped model, or a model file.")],
    output: Output = OutputFormat.TABLE,
) -> None:
    """Show a device model as its file: with comments, to be copied and changed; or, with -o json, as data."""
    from twinfleet.model_views import model_data, model_text  # noqa: PLC0415

    if output is OutputFormat.JSON:
        print_json(model_data(model))
    else:
        print(model_text(model), end="")


@app.command("schema", epilog=example("twinfleet model schema > device-model.schema.json"))
def schema() -> None:
    """Print the JSON Schema (draft 2020-12) of model files, for editors; `validate` finds more."""
    from twins.model_reading import model_schema  # noqa: PLC0415

    print(msgspec.json.format(msgspec.json.encode(model_schema()), indent=2).decode())


@app.command("validate", epilog=example("twinfleet model validate my-thermostat.yaml"))
def validate(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Model files.", show_default=False)],
    output: Output = OutputFormat.TABLE,
) -> None:
    """Check model files: every mistake is told, with line, column and the nearest valid word."""
    from twinfleet.model_views import read_all, summary  # noqa: PLC0415

    models = read_all(files)
    if output is OutputFormat.JSON:
        print_json({"models": [summary(model) for model in models]})
        return
    for file, model in zip(files, models, strict=True):
        print_line(f"{file}: model {model.name!r} with {len(model.fields)} fields: nothing is wrong with it")
