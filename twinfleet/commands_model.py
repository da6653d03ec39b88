"""`twinfleet model`: device models, shipped ones and those of users, and what a model file must look like."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from scenarios.errors import ScenarioInvalid
from scenarios.model_files import is_model_file, load_model
from scenarios.source import parse_yaml
from twinfleet.errors import UsageFault
from twinfleet.options import Output, OutputFormat, example
from twinfleet.printing import print_json, print_line, print_table
from twins.errors import ModelError
from twins.model import UNTYPED, DeviceModel
from twins.model_reading import model_schema
from twins.shipped import MODELS, shipped_text

app = typer.Typer(help="Look at device models, and check your own.", rich_markup_mode=None)


@app.command("list", epilog=example("twinfleet model list"))
def list_models(output: Output = OutputFormat.TABLE) -> None:
    """List the device models that come with twinfleet."""
    models = [MODELS[name] for name in MODELS if name != UNTYPED.name]
    if output is OutputFormat.JSON:
        print_json({"models": [_summary(model) for model in models]})
        return
    print_table(
        ("NAME", "FIELDS", "EVERY", "DESCRIPTION"),
        [(model.name, len(model.fields), _every(model), model.description) for model in models],
    )


@app.command("show", epilog=example("twinfleet model show thermostat > my-thermostat.yaml"))
def show(
    model: Annotated[str, typer.Argument(metavar="NAME|FILE", help="A shipped model, or a model file.")],
    output: Output = OutputFormat.TABLE,
) -> None:
    """Show a device model as its file: with comments, to be copied and changed; or, with -o json, as data."""
    text = _text(model)
    if output is OutputFormat.JSON:
        print_json(parse_yaml(text, model).plain())
    else:
        print(text, end="")


@app.command("schema", epilog=example("twinfleet model schema > device-model.schema.json"))
def schema() -> None:
    """Print the JSON Schema (draft 2020-12) of model files, for editors; `validate` finds more."""
    print(msgspec.json.format(msgspec.json.encode(model_schema()), indent=2).decode())


@app.command("validate", epilog=example("twinfleet model validate my-thermostat.yaml"))
def validate(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Model files.", show_default=False)],
    output: Output = OutputFormat.TABLE,
) -> None:
    """Check model files: every mistake is told, with line, column and the nearest valid word."""
    models: list[DeviceModel] = []
    problems: list[str] = []
    for file in files:
        try:
            models.append(load_model(file)[0])
        except ScenarioInvalid as error:
            problems.append(str(error))
    if problems:
        raise UsageFault("\n".join(problems))
    if output is OutputFormat.JSON:
        print_json({"models": [_summary(model) for model in models]})
        return
    for file, model in zip(files, models, strict=True):
        print_line(
            f"{file}: model {model.name!r}, {_counted(len(model.fields), 'field')}: nothing is wrong with it"
        )


def _text(model: str) -> str:
    """Return a model's file; UsageFault where there is none, or something else in it."""
    try:
        if not is_model_file(model):
            return shipped_text(model)
        load_model(Path(model))
        return Path(model).read_text(encoding="utf-8")
    except (ModelError, ScenarioInvalid) as error:
        raise UsageFault(str(error)) from None


def _summary(model: DeviceModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "description": model.description,
        "report_every_s": model.reporting.every_s or None,
        "fields": [
            {
                "name": field.name,
                "quantity": field.quantity,
                "unit": field.unit,
                "dtype": field.dtype,
                "is_settable": field.is_settable,
            }
            for field in model.fields
        ],
    }


def _every(model: DeviceModel) -> str:
    """Return how often a device reports, in words; `~` where only what has changed is reported."""
    if not model.reporting.every_s:
        return "as asked"
    return f"{'~' if model.reporting.dead_bands else ''}{model.reporting.every_s}s"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
