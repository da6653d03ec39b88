"""Device models as the command line shows them. What it imports takes time, so commands import it when they run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scenarios.errors import ScenarioInvalid
from scenarios.model_files import is_model_file, load_model
from scenarios.source import parse_yaml
from twinfleet.errors import UsageFault
from twins.errors import ModelError
from twins.model import UNTYPED, DeviceModel
from twins.shipped import MODELS, shipped_text


def shipped_models() -> list[DeviceModel]:
    """Return the models that come with twinfleet."""
    return [MODELS[name] for name in MODELS if name != UNTYPED.name]


def model_text(model: str) -> str:
    """Return a model's file, by its name or path; UsageFault where there is none, or something else in it."""
    try:
        if not is_model_file(model):
            return shipped_text(model)
        load_model(Path(model))
        return Path(model).read_text(encoding="utf-8")
    except (ModelError, ScenarioInvalid) as error:
        raise UsageFault(str(error)) from None


def model_data(model: str) -> Any:
    """Return a model's file as plain data; UsageFault as `model_text`."""
    return parse_yaml(model_text(model), model).plain()


def named_or_read(model: str) -> str | dict[str, Any]:
    """Return the name of a shipped model as it is, the model of a file as data; UsageFault if that is wrong."""
    return model_data(model) if is_model_file(model) else model


def read_all(files: Sequence[Path]) -> list[DeviceModel]:
    """Return the models of some files; UsageFault holds every mistake in any of them."""
    models: list[DeviceModel] = []
    problems: list[str] = []
    for file in files:
        try:
            models.append(load_model(file)[0])
        except ScenarioInvalid as error:
            problems.append(str(error))
    if problems:
        raise UsageFault("\n".join(problems))
    return models


def summary(model: DeviceModel) -> dict[str, Any]:
    """Return what a model is, in a few words for programs."""
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


def row(model: DeviceModel) -> tuple[str, int, str, str]:
    """Return what a model is, as a row: name, fields, how often its devices report, description.

    A `~` says that they report only what has changed, and something now and then.
    """
    every_s = model.reporting.every_s
    mark = "~" if model.reporting.dead_bands else ""
    return model.name, len(model.fields), f"{mark}{every_s}s" if every_s else "as asked", model.description
