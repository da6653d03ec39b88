"""Device models in files of users: read with every mistake at its line, for scenarios and for the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from scenarios.errors import Problem, ScenarioInvalid
from scenarios.source import Item, parse_yaml, read_yaml
from twins.errors import ModelInvalid
from twins.model import DeviceModel
from twins.model_reading import read_model

# No name of a model has any of these in it.
_FILE_SIGNS: Final = ("/", "\\", ".")


def is_model_file(text: str) -> bool:
    """Tell whether what stands where a model is named is the path of a file."""
    return any(sign in text for sign in _FILE_SIGNS)


def load_model(file: Path) -> tuple[DeviceModel, dict[str, Any]]:
    """Return the model of a file (YAML or JSON), and the plain data of it; ScenarioInvalid holds every mistake."""
    return _model(read_yaml(file))


def parse_model(text: str, file: str = "model.yaml") -> DeviceModel:
    """Return the model that stands in `text`; mistakes name `file`."""
    return _model(parse_yaml(text, file))[0]


def _model(root: Item) -> tuple[DeviceModel, dict[str, Any]]:
    data = root.plain()
    root.blame_repeated_keys()
    try:
        model = read_model(data)
    except ModelInvalid as error:
        for mistake in error.mistakes:
            root.blame_at(mistake)
        raise ScenarioInvalid(_once(root.source.problems)) from None
    root.source.refuse_if_wrong()
    return model, data


def _once(problems: Sequence[Problem]) -> list[Problem]:
    """Return the problems without those of which one like it stands at the same place already."""
    return list(dict.fromkeys(problems))
