"""From plain data, as a model file holds it, to a `DeviceModel`, and the JSON Schema of such files: one table for both.

All mistakes are found at once, each with its path: first those of shape, then those of meaning (`model_rules`), the
latter without what would only follow from the former.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from twins.errors import Mistake, ModelInvalid, Path
from twins.forms import (
    AnyOf,
    ByType,
    Duration,
    Flag,
    Formula,
    Key,
    ListOf,
    Made,
    MapOf,
    Notes,
    Number,
    OneKey,
    Record,
    Text,
    Words,
)
from twins.model import (
    DTYPES,
    FIELD_COUNT_MAX,
    Computed,
    Connectivity,
    Constant,
    Counter,
    Decay,
    DeviceModel,
    Field,
    Markov,
    Normal,
    RandomWalk,
    Replay,
    Reporting,
    Sinusoid,
    Start,
    Uniform,
    Weighted,
)
from twins.model_rules import (
    DECIMALS_MAX,
    FIELD_NAME_PATTERN,
    MODEL_NAME_PATTERN,
    mistakes_in,
)
from twins.words import nearest

API_VERSION: Final = "twinfleet/v1"
KIND: Final = "DeviceModel"
# A series of a value a minute for a week; it travels with every order that creates a group.
_REPLAY_COUNT_MAX: Final = 10_080
_CHOICE_COUNT_MAX: Final = 255
# Where a float field does not say, and its dtype keeps as many.
_DECIMALS: Final = 2
_TEXT: Final = Text(length_max=64)
_FORMULA: Final = Formula()
_SECONDS: Final = Formula(can_be_duration=True)
_SWITCHES: Final = ("bool", "choice")
# What says which values a field has.
_KIND_KEYS: Final = ("dtype", "minimum", "maximum", "choices")
_DEVICE_MODEL_NAME: Final = Text(MODEL_NAME_PATTERN, "a name of small letters, digits and hyphens", 63)
_FIELD_NAME: Final = Text(FIELD_NAME_PATTERN, "a name of small letters, digits and underscores", 63)


def read_model(data: Any) -> DeviceModel:
    """Return the model that plain data describes; ModelInvalid holds all mistakes in it."""
    notes = Notes()
    values = MODEL_FORM.read(data, (), notes)
    fields = [_field(each, ("fields", position), notes) for position, each in enumerate(values["fields"])]
    model = DeviceModel(
        values["metadata"]["name"],
        tuple(_with_names_apart(fields, notes)),
        description=values["metadata"]["description"],
        connectivity=values["connectivity"],
        reporting=values["reporting"],
    )
    known = list(notes.mistakes)
    unsound = [position for position in range(len(fields)) if _is_unsound(position, known)]
    has_all_names = bool(fields) and all(field.name for field in fields)
    for mistake in mistakes_in(model, unsound=unsound, has_all_names=has_all_names):
        # What is missing or wrong itself is not told twice.
        if not any(_is_on_the_way(mistake.path, other.path) for other in known):
            notes.mistakes.append(mistake)
    if notes.mistakes:
        raise ModelInvalid(notes.mistakes)
    return model


def model_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of model files.

    What it refuses is wrong; what it accepts may still be: bounds that contradict each other, formulas.
    """
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "twinfleet device model",
        "description": "A kind of device: its fields, how their values move, how it connects and reports.",
        **MODEL_FORM.schema(),
    }


def _is_unsound(position: int, mistakes: Sequence[Mistake]) -> bool:
    """Tell whether the kind or the bounds of a field are not what they were meant to be."""
    for mistake in mistakes:
        if mistake.path[:2] == ("fields", position):
            key = str(mistake.path[2]) if len(mistake.path) > 2 else ""
            if not key or key in _KIND_KEYS or (mistake.is_of_key and nearest(key, _KIND_KEYS)):
                return True
    return False


def _is_on_the_way(path: Path, other: Path) -> bool:
    """Tell whether one of two paths leads on from the other."""
    shorter = min(len(path), len(other))
    return path[:shorter] == other[:shorter]


def _with_names_apart(fields: list[Field], notes: Notes) -> list[Field]:
    """Return the fields with names that differ; one that stands there twice is a mistake."""
    apart: dict[str, Field] = {}
    for position, field in enumerate(fields):
        name = field.name
        if name in apart or not name:
            if name:
                notes.blame(("fields", position, "name"), f"another field is named {name!r} already")
            field = replace(field, name=f"?{position}")  # noqa: PLW2901 - a stand-in for what is refused anyway
        apart[field.name] = field
    return list(apart.values())


# From the values of a field's keys to a `Field`


@dataclass(frozen=True)
class _Weights:
    """Weights by choice, before it is known which choices there are."""

    of: Mapping[str, Any]

    def in_order(self, choices: tuple[str, ...], path: Path, notes: Notes, absent: Any) -> tuple[Any, ...]:
        """Return a weight for each choice; one of no choice is a mistake."""
        for choice in self.of:
            if choice not in choices:
                known = ", ".join(choices)
                advice = nearest(choice, choices) or f"; choices: {known}"
                notes.blame((*path, choice), f"is no choice of this field{advice}", is_of_key=True)
        return tuple(self.of.get(choice, absent) for choice in choices)

    def as_generator(self, dtype: str, choices: tuple[str, ...], path: Path, notes: Notes) -> Weighted:
        """Return the generator; a weight of no choice is a mistake, where the field has choices at all."""
        if dtype != "choice":
            return Weighted(())
        return Weighted(self.in_order(choices, (*path, "generator", "weighted"), notes, "0"))


@dataclass(frozen=True)
class _Rates:
    """Transition rates by state and state, before it is known which states there are."""

    of: Mapping[str, Mapping[str, str]]

    def as_generator(self, dtype: str, choices: tuple[str, ...], path: Path, notes: Notes) -> Markov:
        """Return the chain; a state that the field does not have is a mistake."""
        path = (*path, "generator", "markov")
        states = ("false", "true") if dtype == "bool" else choices
        rates: list[tuple[int, int, str]] = []
        if not states:
            # That a field of numbers has no states is told by the rules.
            return Markov(())
        for source, targets in self.of.items():
            for target, rate in targets.items():
                wrong = [
                    (below, state)
                    for below, state in (((source,), source), ((source, target), target))
                    if state not in states
                ]
                for below, state in wrong:
                    advice = nearest(state, states) or f"; it has {', '.join(states)}"
                    notes.blame((*path, *below), f"is no state of this field{advice}", is_of_key=True)
                if not wrong:
                    rates.append((states.index(source), states.index(target), rate))
        return Markov(tuple(rates))


def _field(values: dict[str, Any], path: Path, notes: Notes) -> Field:
    dtype, choices = values["dtype"], values["choices"] or ()
    if (dtype == "choice") != bool(choices) and not notes.has_below((*path, "choices")):
        notes.blame((*path, "choices"), "a field of dtype choice, and no other, has choices")
    # Should they not fit together, something must stand in: it is refused anyway.
    dtype = "choice" if choices else "bool" if dtype == "choice" else dtype
    minimum, maximum = _bounds(values, dtype, path, notes)
    generator: Any = Constant() if values["generator"] == "constant" else values["generator"]
    if isinstance(generator, (_Weights, _Rates)):
        generator = generator.as_generator(dtype, choices, path, notes)
    settable = values["settable"]
    is_settable, obey_after_s = settable if isinstance(settable, tuple) else (settable, 0.0)
    return Field(
        values["name"],
        values["quantity"],
        values["unit"],
        dtype,
        minimum,
        maximum,
        _decimals(values, dtype, max(abs(minimum), abs(maximum)), path, notes),
        choices,
        is_settable,
        obey_after_s,
        _start(values, (minimum, maximum), path, notes),
        generator,
        values["window"],
    )


def _bounds(values: Mapping[str, Any], dtype: str, path: Path, notes: Notes) -> tuple[float, float]:
    """Return minimum and maximum; those of an integer dtype are its own where the field does not say."""
    if notes.has_below((*path, "dtype")):
        return 0.0, 1.0
    kind = np.dtype(DTYPES[dtype]).kind
    low, high = values["minimum"], values["maximum"]
    if dtype in ("bool", "choice"):
        for name in ("minimum", "maximum"):
            if values[name] is not None:
                notes.blame((*path, name), f"belongs to numbers, and this is a {dtype} field")
        return 0.0, 0.0
    if kind == "f":
        for name in ("minimum", "maximum"):
            if values[name] is None:
                notes.blame((*path, name), f"is missing: a {dtype} field needs it")
        low, high = low or 0.0, high if high is not None else (low or 0.0) + 1
    else:
        limits = np.iinfo(np.dtype(DTYPES[dtype]))
        low, high = limits.min if low is None else low, limits.max if high is None else high
    if low >= high:
        if not notes.has_below((*path, "minimum")) and not notes.has_below((*path, "maximum")):
            notes.blame((*path, "minimum"), f"{low:g} is not below the maximum, {high:g}")
        return 0.0, 1.0
    return float(low), float(high)


def _decimals(values: Mapping[str, Any], dtype: str, largest: float, path: Path, notes: Notes) -> int:
    """Return the decimals of a float field: where it does not say, as many as its dtype keeps, but 2 at most."""
    kind = np.dtype(DTYPES[dtype])
    if kind.kind != "f":
        if values["decimals"] is not None:
            notes.blame((*path, "decimals"), f"belongs to float fields, and this is a {dtype} field")
        return 0
    if values["decimals"] is not None:
        return int(values["decimals"])
    step = float(np.spacing(kind.type(min(largest, float(np.finfo(kind).max) / 2))))
    return min(_DECIMALS, max(0, math.floor(-math.log10(step))))


def _start(values: Mapping[str, Any], bounds: tuple[float, float], path: Path, notes: Notes) -> Start:
    raw, dtype = values["start"], values["dtype"]
    choices = ("false", "true") if dtype == "bool" else values["choices"] or ()
    path = (*path, "start")
    match raw:
        case None if dtype == "choice":
            return Start(weights=(1.0, *(0.0 for _ in choices[1:])))
        case None:
            return _start_unsaid(values, bounds, path, notes)
        case str() if dtype == "choice":
            if raw not in choices and not notes.has_below((*path[:-1], "choices")):
                notes.blame(path, f"{raw!r} is no choice of this field{nearest(raw, choices)}")
            return Start(weights=tuple(float(choice == raw) for choice in choices))
        case _Weights() if dtype in _SWITCHES:
            return Start(weights=raw.in_order(choices, (*path, "weights"), notes, 0.0))
        case bool() if dtype == "bool":
            return Start(float(raw), float(raw))
        case int() | float() if dtype not in _SWITCHES and not isinstance(raw, bool):
            return Start(float(raw), float(raw))
        case Start() if dtype not in _SWITCHES:
            return raw
    wanted = {
        "choice": "a choice, or {weights: {CHOICE: WEIGHT}}",
        "bool": "true, false, or {weights: {true: WEIGHT, false: WEIGHT}}",
    }
    of_number = "a number, or {low: NUMBER, high: NUMBER}"
    notes.blame(path, f"must be {wanted.get(dtype, of_number)}: this is a {dtype} field")
    return Start()


def _start_unsaid(values: Mapping[str, Any], bounds: tuple[float, float], path: Path, notes: Notes) -> Start:
    """Return the start of a field that does not say: 0, or its minimum where the first value is drawn anyway."""
    if values["dtype"] == "bool" or bounds[0] <= 0 <= bounds[1]:
        return Start()
    is_from_start = isinstance(values["generator"], (RandomWalk, Decay, Counter))
    if is_from_start or values["generator"] == "constant":
        notes.blame(path, f"is missing: 0 is not from {bounds[0]:g} to {bounds[1]:g}")
    return Start(bounds[0], bounds[0])


# The table


def _only(values: dict[str, Any]) -> Any:
    [value] = values.values()
    return value


def _range(values: dict[str, Any]) -> Start:
    return Start(float(values["low"]), float(values["high"]), float(values["step"]))


def _replay(values: dict[str, Any]) -> Replay:
    return Replay(tuple(map(float, values["values"])), float(values["step"]), values["shifted"])


def _connectivity(values: dict[str, Any]) -> Connectivity:
    return Connectivity(values["online"], values["offline"])


def _reporting(values: dict[str, Any]) -> Reporting:
    bands = tuple((name, float(band)) for name, band in (values["dead_bands"] or {}).items())
    return Reporting(values["every"], float(values["jitter"]), bands, values["at_least_every"])


def _by_name(kind: Any, *renamed: tuple[str, str]) -> Any:
    """Return a function that makes a generator from values by key, whose names are its own but for those `renamed`."""
    names = dict(renamed)
    return lambda values: kind(**{names.get(name, name): value for name, value in values.items()})


_PER_REPORT: Final = Key(_FORMULA, "Units more for each report that the device sends.", "0")
_GENERATORS: Final[Mapping[str, Key]] = {
    "computed": Key(Made(_FORMULA, Computed), "The value of a formula, each time anew."),
    "uniform": Key(
        Record(
            {
                "low": Key(_FORMULA, "The lowest value.", is_needed=True),
                "high": Key(_FORMULA, "The highest value.", is_needed=True),
            },
            _by_name(Uniform),
        ),
        "A value between two formulas, drawn anew each time.",
    ),
    "normal": Key(
        Record(
            {
                "mean": Key(_FORMULA, "The mean.", is_needed=True),
                "deviation": Key(_FORMULA, "The standard deviation.", is_needed=True),
            },
            _by_name(Normal),
        ),
        "A normally distributed value, drawn anew each time.",
    ),
    "random_walk": Key(
        Record(
            {
                "toward": Key(_FORMULA, "What the value reverts to.", is_needed=True),
                "time_constant": Key(Duration(), "In which a distance shrinks to 37 %.", is_needed=True),
                "deviation": Key(_FORMULA, "The standard deviation after a long time.", "0"),
            },
            _by_name(RandomWalk, ("time_constant", "time_constant_s")),
        ),
        "A random walk that reverts to a formula; without deviation the exponential approach to it.",
    ),
    "sinusoid": Key(
        Record(
            {
                "mean": Key(_FORMULA, "The middle.", is_needed=True),
                "amplitude": Key(_FORMULA, "How far it goes up and down.", is_needed=True),
                "period": Key(Duration(), "From one peak to the next.", 86400.0),
                "peak": Key(Duration(), "When in each period it is at its highest (UTC).", 0.0),
            },
            _by_name(Sinusoid, ("period", "period_s"), ("peak", "peak_s")),
        ),
        "A sine in virtual time.",
    ),
    "decay": Key(
        Record(
            {"rate": Key(_FORMULA, "Units lost a second.", is_needed=True), "per_report": _PER_REPORT},
            _by_name(Decay),
        ),
        "A store that empties down to the field's minimum.",
    ),
    "counter": Key(
        Record(
            {"rate": Key(_FORMULA, "Units gained a second.", is_needed=True), "per_report": _PER_REPORT},
            _by_name(Counter),
        ),
        "A counter that begins again at its minimum after its maximum.",
    ),
    "weighted": Key(
        MapOf(_FORMULA, _Weights), "One of the choices, drawn anew each time: a weight for each."
    ),
    "markov": Key(
        MapOf(MapOf(_FORMULA), _Rates),
        "A Markov chain over the choices, or over false and true: {FROM: {TO: transitions a second}}.",
    ),
    "replay": Key(
        Record(
            {
                "values": Key(ListOf(Number(), 1, _REPLAY_COUNT_MAX), "The series.", is_needed=True),
                "step": Key(Duration(), "The time between two values.", is_needed=True),
                "shifted": Key(Flag(), "Whether each device begins at a place of its own.", True),
            },
            _replay,
        ),
        "A recorded series, again from its start at its end.",
    ),
}
_START: Final = ByType(
    "a number, a choice, or a mapping",
    mapping=AnyOf(
        "weights",
        Record(
            {"weights": Key(MapOf(Number(0), _Weights), "How likely each choice is.", is_needed=True)}, _only
        ),
        Record(
            {
                "low": Key(Number(), "The lowest start.", is_needed=True),
                "high": Key(Number(), "The highest start.", is_needed=True),
                "step": Key(Number(0), "Only every so many units; 0 for any value.", 0.0),
            },
            _range,
        ),
    ),
    text=_TEXT,
    flag=Flag(),
    number=Number(),
)
_FIELD: Final = Record(
    {
        "name": Key(
            _FIELD_NAME, "Its key in reports, its column in SQL, its name in formulas.", is_needed=True
        ),
        "quantity": Key(_TEXT, "What is measured, in words.", is_needed=True),
        "unit": Key(
            Text(length_max=16, can_be_empty=True), "Its unit, as in SenML (RFC 8428).", is_needed=True
        ),
        "dtype": Key(Words(tuple(DTYPES)), "How it is stored: as small as it may be.", "float32"),
        "minimum": Key(Number(), "The lowest value; that of the dtype for integers.", None),
        "maximum": Key(Number(), "The highest value; that of the dtype for integers.", None),
        "decimals": Key(Number(0, DECIMALS_MAX, is_whole=True), "The resolution of a float field.", None),
        "choices": Key(ListOf(_TEXT, 1, _CHOICE_COUNT_MAX), "The values of a choice field.", None),
        "start": Key(
            _START, "What a device begins with: 0, or the first choice, where nothing is said.", None
        ),
        "settable": Key(
            ByType(
                "true, false, or {after: DURATION}",
                flag=Flag(),
                mapping=Record(
                    {"after": Key(Duration(), "How long after it has heard of it.", is_needed=True)},
                    lambda values: (True, values["after"]),
                ),
                stand_in=False,
            ),
            "Whether the device obeys a desired value of this field.",
            False,
        ),
        "generator": Key(
            ByType(
                "constant, or a mapping with one generator",
                text=Words(("constant",)),
                mapping=OneKey(_GENERATORS, Constant()),
                stand_in="constant",
            ),
            "How its value moves; constant (or what is desired) where nothing is said.",
            "constant",
        ),
        "window": Key(Flag(), "Whether the twin keeps statistics of the last minutes.", False),
    },
)
MODEL_FORM: Final = Record(
    {
        "apiVersion": Key(Words((API_VERSION,)), "The version of this form.", is_needed=True),
        "kind": Key(Words((KIND,)), "What this file describes.", is_needed=True),
        "metadata": Key(
            Record(
                {
                    "name": Key(_DEVICE_MODEL_NAME, "What the model is called.", is_needed=True),
                    "description": Key(Text(), "What kind of device it is.", ""),
                }
            ),
            "What the model is called, and what it is.",
            is_needed=True,
        ),
        "fields": Key(
            ListOf(_FIELD, 1, FIELD_COUNT_MAX),
            "What it reports, in the order in which it moves.",
            is_needed=True,
        ),
        "connectivity": Key(
            Record(
                {
                    "online": Key(
                        _SECONDS, "How long it is online at a stretch, on average.", is_needed=True
                    ),
                    "offline": Key(
                        _SECONDS, "How long it is offline at a stretch, on average.", is_needed=True
                    ),
                },
                _connectivity,
            ),
            "How its connection comes and goes; always online where nothing is said.",
            Connectivity(),
        ),
        "reporting": Key(
            Record(
                {
                    "every": Key(
                        Duration(is_whole=True), "How often it samples; the group says if nothing does.", 0
                    ),
                    "jitter": Key(Duration(), "Up to how much later it sends.", 0.0),
                    "dead_bands": Key(
                        MapOf(Number(0)), "It sends only what differs from the last report by more.", None
                    ),
                    "at_least_every": Key(Duration(is_whole=True), "It sends after so long in any case.", 0),
                },
                _reporting,
            ),
            "When it reports.",
            Reporting(),
        ),
    }
)
