"""What a kind of device is: its fields with quantity, unit, dtype and bounds, how they move, and how it reports.

A model declares; `behavior` carries it out. What a model does not declare may still be reported by a device: it is
kept exactly, beside the columns. What makes a model sound is told in `model_rules`, how one is written in
`model_reading`. Generators are tagged structures, the rest dataclasses: all of it travels as MessagePack, by value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import msgspec
import numpy as np

from twins.errors import ModelError
from twins.link import Network, report_bytes
from twins.sharding import NamePattern

# Field validity of a row is one bit a field in a 16-bit column, whose last bit says that the shadow exists.
FIELD_COUNT_MAX: Final = 15
# How a field is stored, and the NumPy dtype of its column.
DTYPES: Final[Mapping[str, str]] = {
    "float32": "f4",
    "float16": "f2",
    "uint32": "u4",
    "uint16": "u2",
    "uint8": "u1",
    "int32": "i4",
    "int16": "i2",
    "int8": "i1",
    "bool": "u1",
    "choice": "u1",
}


@dataclass(frozen=True)
class Start:
    """What a device's value is at the start: drawn evenly from `low` to `high`, in steps of `step` where that is not 0.

    For a choice field `weights` says how likely each choice is; without weights it starts at its first choice. A bool
    field starts at `low` (0 or 1), or by weights of false and true.
    """

    low: float = 0.0
    high: float = 0.0
    step: float = 0.0
    weights: tuple[float, ...] = ()


class Constant(msgspec.Struct, frozen=True, tag="constant"):
    """The value stays what it was at the start, or what the device was asked for."""


class Computed(msgspec.Struct, frozen=True, tag="computed"):
    """The value is that of a formula, each time anew."""

    value: str


class Uniform(msgspec.Struct, frozen=True, tag="uniform"):
    """A value between two formulas, drawn anew each time."""

    low: str
    high: str


class Normal(msgspec.Struct, frozen=True, tag="normal"):
    """A normally distributed value, drawn anew each time."""

    mean: str
    deviation: str


class RandomWalk(msgspec.Struct, frozen=True, tag="random_walk"):
    """A random walk that reverts to `toward` (Ornstein-Uhlenbeck); `deviation` is its stationary standard deviation.

    With a deviation of 0 it is the exponential approach to `toward`.
    """

    toward: str
    time_constant_s: float
    deviation: str = "0"


class Sinusoid(msgspec.Struct, frozen=True, tag="sinusoid"):
    """A sine in virtual time, at its highest `peak_s` seconds into each period."""

    mean: str
    amplitude: str
    period_s: float = 86400.0
    peak_s: float = 0.0


class Decay(msgspec.Struct, frozen=True, tag="decay"):
    """A store that empties: it loses `rate` units a second and `per_report` units with each report sent.

    It stops at the field's minimum. A negative rate counts as 0, as it does for a counter.
    """

    rate: str
    per_report: str = "0"


class Counter(msgspec.Struct, frozen=True, tag="counter"):
    """A counter: it gains `rate` units a second and `per_report` with each report; past its maximum it wraps round."""

    rate: str
    per_report: str = "0"


class Weighted(msgspec.Struct, frozen=True, tag="weighted"):
    """One of a choice field's choices, drawn anew each time; `weights` are formulas, one for each choice."""

    weights: tuple[str, ...]


class Markov(msgspec.Struct, frozen=True, tag="markov"):
    """A continuous-time Markov chain over the choices of a choice field, or over false and true.

    `rates` holds (from, to, formula): transitions a second, where `from` and `to` are positions of choices.
    """

    rates: tuple[tuple[int, int, str], ...]


class Replay(msgspec.Struct, frozen=True, tag="replay"):
    """A recorded series, `step_s` seconds between values, again from its start at its end.

    With `is_shifted` each device begins at a place of its own.
    """

    values: tuple[float, ...]
    step_s: float
    is_shifted: bool = True


Generator = (
    Constant
    | Computed
    | Uniform
    | Normal
    | RandomWalk
    | Sinusoid
    | Decay
    | Counter
    | Weighted
    | Markov
    | Replay
)


_CONSTANT: Final = Constant()


@dataclass(frozen=True)
class Connectivity:
    """How a device's connection comes and goes: formulas for the mean seconds online and offline at a stretch.

    `online_s` of "0" stands for a device that is always online.
    """

    online_s: str = "0"
    offline_s: str = "0"


@dataclass(frozen=True)
class Reporting:
    """When a device reports what it measures.

    It samples every `every_s` seconds (0: the group says) and reports each sample, sent up to `jitter_s` later; or,
    where `dead_bands` names fields, only samples in which one of them differs from the last one sent by more than its
    dead band (0 for any difference), and at the latest `at_least_every_s` after the last one sent (0: never for that).
    """

    every_s: int = 0
    jitter_s: float = 0.0
    dead_bands: tuple[tuple[str, float], ...] = ()
    at_least_every_s: int = 0


@dataclass(frozen=True)
class Field:
    """One value that a device reports.

    `quantity` and `unit` follow SenML (RFC 8428) where it has a name. `decimals` is the resolution of a float
    field: values with no more decimals are kept exactly in a float32 column. `choices` are the values of a `choice`
    field, stored as their position. `is_settable`: the device obeys a desired value of this field, which is constant
    but for that, `obey_after_s` seconds after it has heard of it. `generator` says how the value moves from its
    `start` on. `is_windowed`: its twin keeps statistics of a sliding window.
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
    obey_after_s: float = 0.0
    start: Start = Start()
    generator: Generator = _CONSTANT
    is_windowed: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ModelError(f"field {self.name!r}: dtype {self.dtype!r} is not one of {', '.join(DTYPES)}")
        if (self.dtype == "choice") != bool(self.choices) or len(self.choices) > 255:
            raise ModelError(f"field {self.name!r}: a choice field, and no other, has 1 to 255 choices")
        is_bounded = self.dtype not in ("bool", "choice")
        # Where bounds say nothing they are still numbers: NaN would make a model differ from itself.
        is_number = not (math.isnan(self.minimum) or math.isnan(self.maximum))
        if not is_number or (is_bounded and not self.minimum < self.maximum):
            raise ModelError(
                f"field {self.name!r}: minimum {self.minimum} is not below maximum {self.maximum}"
            )

    @property
    def number_bounds(self) -> tuple[float, float]:
        """Return between which numbers its values lie where they are numbers: false and true, positions of choices."""
        if self.dtype == "bool":
            return 0.0, 1.0
        return (0.0, len(self.choices) - 1.0) if self.choices else (self.minimum, self.maximum)

    def as_number(self, value: Any) -> float:
        """Return a value of this field (a number, a truth value, a choice) as the number that stands for it."""
        return float(self.choices.index(value) if self.choices else value)

    @property
    def column_dtype(self) -> np.dtype[Any]:
        """Return the NumPy dtype of this field's column."""
        return np.dtype(DTYPES[self.dtype])


@dataclass(frozen=True)
class DeviceModel:
    """A kind of device; `fields` in the order of their columns, in which they are also advanced.

    A formula may name any field: one that stands before it has its new value there, another (its own field, too) its
    last one. Besides fields it may name what `expressions.NAMES` lists. `behavior` names a Python class
    (`module:Class`) that moves the fields in place of their generators; see `behavior`.
    """

    name: str
    fields: tuple[Field, ...]
    behavior: str = ""
    description: str = ""
    connectivity: Connectivity = Connectivity()
    reporting: Reporting = Reporting()

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

    The group holds the definition itself, so that it lives on whatever becomes of the file that the model was read
    from. `tick_s` is the length of a tick in virtual seconds, `start_s` the virtual time of tick 0 (seconds since the
    Unix epoch), `report_every_ticks` the reporting period of every device. Without a `network` all
    reports arrive at once.
    """

    name: str
    model: DeviceModel
    thing_name: str
    count: int
    seed: int
    start_s: int
    tick_s: int = 1
    report_every_ticks: int = 10
    attributes: Sequence[Attribute] = ()
    network: Network | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.count <= 2**32 - 1:
            raise ModelError(f"group {self.name!r}: count {self.count} is not between 1 and {2**32 - 1}")
        if self.tick_s < 1 or self.report_every_ticks < 1:
            raise ModelError(f"group {self.name!r}: tick_s and report_every_ticks must be at least 1")
        if not self.model.fields:
            raise ModelError(f"group {self.name!r}: model {self.model.name!r} has no field to simulate")
        if len(self.pattern.name(self.count - 1)) > 128:
            raise ModelError(f"group {self.name!r}: its thing names would be longer than 128 characters")
        if self.network is not None:
            self._check_network(self.network)

    def _check_network(self, network: Network) -> None:
        place = f"group {self.name!r}"
        network.check(place)
        values = {each.name: each.values for each in self.attributes}
        for value, _ in network.by_value:
            if value not in values.get(network.attribute, ()):
                raise ModelError(f"{place}: its devices have no {network.attribute!r} of {value!r}")
        size_bytes = report_bytes(len(self.model.fields))
        period_s = self.report_every_ticks * self.tick_s
        for link in (network.link, *(link for _, link in network.by_value)):
            if 0 < link.bandwidth_bytes_s < size_bytes / period_s:
                raise ModelError(
                    f"{place}: a report of about {size_bytes} bytes every {period_s} s needs more than "
                    f"{link.bandwidth_bytes_s:g} bytes/s"
                )

    @cached_property
    def pattern(self) -> NamePattern:
        """Return the parsed form of `thing_name`."""
        return NamePattern.parse(self.thing_name)
