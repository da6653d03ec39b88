"""What a kind of device is: its fields with quantity, unit, dtype and bounds, and how it reports.

A model declares; `behavior` says how its values move. What a model does not declare may still be reported by a
device: it is kept exactly, beside the columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np

from twins.errors import ModelError
from twins.sharding import NamePattern

# Field validity of a row is one bit a field in a 16-bit column.
FIELD_COUNT_MAX: Final = 16
DTYPES: Final = ("float32", "uint32", "bool", "choice")


@dataclass(frozen=True)
class Field:
    """One value that a device reports.

    `quantity` and `unit` follow SenML (RFC 8428) where it has a name. `decimals` is the resolution of a float32
    field: values with no more decimals are kept exactly in the column. `choices` are the values of a `choice`
    field, stored as their position. `is_settable`: the device obeys a desired value of this field.
    """

    name: str
    quantity: str
    unit: str
    dtype: str = "float32"
    minimum: float = 0.0
    maximum: float = 0.0
    decimals: int = 2
    choices: tuple[str, ...] = ()
    is_settable: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ModelError(f"field {self.name!r}: dtype {self.dtype!r} is not one of {', '.join(DTYPES)}")
        if (self.dtype == "choice") != bool(self.choices) or len(self.choices) > 255:
            raise ModelError(f"field {self.name!r}: a choice field, and no other, has 1 to 255 choices")
        if self.dtype in ("float32", "uint32") and not self.minimum < self.maximum:
            raise ModelError(
                f"field {self.name!r}: minimum {self.minimum} is not below maximum {self.maximum}"
            )

    @property
    def column_dtype(self) -> np.dtype[Any]:
        """Return the NumPy dtype of this field's column."""
        return np.dtype({"float32": "f4", "uint32": "u4", "bool": "u1", "choice": "u1"}[self.dtype])


@dataclass(frozen=True)
class DeviceModel:
    """A kind of device; `fields` in the order of their columns."""

    name: str
    fields: tuple[Field, ...]
    behavior: str = ""

    def __post_init__(self) -> None:
        names = [field.name for field in self.fields]
        if len(set(names)) != len(names) or len(names) > FIELD_COUNT_MAX:
            raise ModelError(
                f"model {self.name!r}: field names must differ, {FIELD_COUNT_MAX} fields at most"
            )

    @cached_property
    def positions(self) -> Mapping[str, int]:
        """Return each field's position by its name."""
        return {field.name: position for position, field in enumerate(self.fields)}

    def position(self, field_name: str) -> int:
        """Return the position of a field; ModelError names the fields that exist."""
        try:
            return self.positions[field_name]
        except KeyError:
            known = ", ".join(self.positions) or "none"
            raise ModelError(f"model {self.name!r} has no field {field_name!r}; it has: {known}") from None


# A twin of which nothing is declared: everything that it reports is kept beside the columns.
UNTYPED: Final = DeviceModel("untyped", ())

# A room thermostat. Resolution and range as usual for such devices (0.01 K displayed from a sensor of 0.1 K;
# relative humidity in %RH; two AA cells last about two years, see `behavior`).
THERMOSTAT: Final = DeviceModel(
    "thermostat",
    (
        Field("temperature", "temperature", "Cel", minimum=-40.0, maximum=85.0),
        Field("humidity", "relative humidity", "%RH", minimum=0.0, maximum=100.0),
        Field("battery", "battery level", "%EL", minimum=0.0, maximum=100.0),
        Field("set_point", "temperature", "Cel", minimum=5.0, maximum=35.0, is_settable=True),
        Field("firmware_version", "version", "", dtype="choice", choices=("1.0.0", "1.1.0", "2.0.0")),
        Field("uptime", "time", "s", dtype="uint32", maximum=float(2**32 - 1)),
    ),
    behavior="thermostat",
)

MODELS: Final[Mapping[str, DeviceModel]] = {model.name: model for model in (UNTYPED, THERMOSTAT)}


def model_named(name: str) -> DeviceModel:
    """Return the model of that name; ModelError names the models that exist."""
    try:
        return MODELS[name]
    except KeyError:
        raise ModelError(f"there is no device model {name!r}; models: {', '.join(sorted(MODELS))}") from None


@dataclass(frozen=True)
class Attribute:
    """A property that each simulated device draws once, for life: one of `values`, by weight."""

    name: str
    values: tuple[str, ...]
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= len(self.values) <= 255 or len(self.weights) not in (0, len(self.values)):
            raise ModelError(f"attribute {self.name!r}: 1 to 255 values, and one weight for each or none")
        if self.weights and (min(self.weights) < 0 or sum(self.weights) <= 0):
            raise ModelError(f"attribute {self.name!r}: weights must not be negative and not all zero")


@dataclass(frozen=True)
class Group:
    """A simulated fleet: `count` devices of one model under computed names.

    `tick_s` is the length of a tick in virtual seconds, `start_s` the virtual time of tick 0 (seconds since the
    Unix epoch), `report_every_ticks` the reporting period of every device.
    """

    name: str
    model: str
    thing_name: str
    count: int
    seed: int
    start_s: int
    tick_s: int = 1
    report_every_ticks: int = 10
    attributes: Sequence[Attribute] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.count <= 2**32 - 1:
            raise ModelError(f"group {self.name!r}: count {self.count} is not between 1 and {2**32 - 1}")
        if self.tick_s < 1 or self.report_every_ticks < 1:
            raise ModelError(f"group {self.name!r}: tick_s and report_every_ticks must be at least 1")
        if not model_named(self.model).behavior:
            raise ModelError(f"group {self.name!r}: model {self.model!r} has no behavior to simulate")
        if len(self.pattern.name(self.count - 1)) > 128:
            raise ModelError(f"group {self.name!r}: its thing names would be longer than 128 characters")

    @cached_property
    def pattern(self) -> NamePattern:
        """Return the parsed form of `thing_name`."""
        return NamePattern.parse(self.thing_name)
