"""The device models that come with twinfleet, as files of this package; and who has which name.

This is the one module of the core that reads files: they are part of the program, as its code is, and never change
while it runs. The one that parses YAML, too. Models of users come as plain data, from whoever may read files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from typing import Any, Final

import yaml

from twins.errors import ModelError
from twins.model import UNTYPED, DeviceModel
from twins.model_reading import read_model
from twins.words import nearest

# The C parser where the library was built with it: ten times as fast.
_LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_FILES: Final = resources.files("twins") / "models"
_SUFFIX: Final = ".yaml"


@cache
def shipped_text(name: str) -> str:
    """Return the file of a shipped model as it stands, comments included; ModelError where there is none."""
    if name not in _NAMES:
        raise ModelError(
            f"there is no shipped model {name!r}{nearest(name, _NAMES)}; shipped: {', '.join(_NAMES)}"
        )
    return (_FILES / f"{name}{_SUFFIX}").read_text(encoding="utf-8")


@cache
def _shipped(name: str) -> DeviceModel:
    return read_model(yaml.load(shipped_text(name), Loader=_LOADER))


_NAMES: Final = tuple(
    sorted(file.name.removesuffix(_SUFFIX) for file in _FILES.iterdir() if file.name.endswith(_SUFFIX))
)


class _Models(Mapping[str, DeviceModel]):
    """Every model that has a name of its own, each read when it is asked for first: a start needs one or two."""

    def __getitem__(self, name: str) -> DeviceModel:
        if name == UNTYPED.name:
            return UNTYPED
        if name not in _NAMES:
            raise KeyError(name)
        return _shipped(name)

    def __iter__(self) -> Iterator[str]:
        return iter((*_NAMES, UNTYPED.name))

    def __len__(self) -> int:
        return len(_NAMES) + 1

    def __contains__(self, name: object) -> bool:
        return name == UNTYPED.name or name in _NAMES


MODELS: Final[Mapping[str, DeviceModel]] = _Models()


def model_named(name: str) -> DeviceModel:
    """Return the model of that name; ModelError names the models that exist."""
    try:
        return MODELS[name]
    except KeyError:
        raise ModelError(
            f"there is no device model {name!r}{nearest(name, MODELS)}; models: {', '.join(sorted(MODELS))}"
        ) from None
