"""What makes a device model sound: names, bounds, dtypes, generators that fit them, formulas that can be carried out.

`mistakes_in` finds all that is wrong at once, whether the model was read from a file, came over a wire or was made in
Python. Its paths are those of a model file.
"""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Final

import numpy as np

from twins.errors import Mistake, ModelError, ModelInvalid, Path
from twins.expressions import FUNCTIONS, INTERPOLATE, NAMES, Formula, Number, names_of, parse_formula
from twins.formula_kinds import TRUTH, Kind, Unknown, kind_of
from twins.model import (
    UNTYPED,
    Computed,
    Constant,
    Counter,
    Decay,
    DeviceModel,
    Field,
    Generator,
    Markov,
    Normal,
    RandomWalk,
    Replay,
    Sinusoid,
    Uniform,
    Weighted,
)
from twins.units import senml_spelling
from twins.words import nearest, one_of

MODEL_NAME_PATTERN: Final = r"^[a-z][a-z0-9-]{0,62}$"
# A name of formulas and of SQL columns; capitals would be two names in JSON and one in SQL.
FIELD_NAME_PATTERN: Final = r"^[a-z][a-z0-9_]{0,62}$"
# More decimals than any column keeps.
DECIMALS_MAX: Final = 6
# Beyond this a float32 column keeps no decimals, and a table of twins does not put numbers there.
_FLOAT32_MAX: Final = 1e7
_SWITCHES: Final = ("bool", "choice")
_FITTING: Final[Mapping[str, tuple[type, ...]]] = {
    "bool": (Constant, Computed, Markov),
    "choice": (Constant, Weighted, Markov),
    "number": (Constant, Computed, Uniform, Normal, RandomWalk, Sinusoid, Decay, Counter, Replay),
}


def mistakes_in(
    model: DeviceModel, *, unsound: Collection[int] = (), has_all_names: bool = True
) -> list[Mistake]:
    """Return everything that is wrong with a model.

    `unsound` are positions of fields whose kind or bounds are known to be wrong: what hangs on them is not asked.
    Without `has_all_names` a field is there whose name is not known, so that a formula may name anything.
    """
    found: list[Mistake] = []
    if not re.search(MODEL_NAME_PATTERN, model.name) or model.name == UNTYPED.name:
        text = f"{model.name!r} must begin with a small letter; small letters, digits and hyphens may follow"
        taken = f"{model.name!r} is the name of what has no model"
        found.append(Mistake(("metadata", "name"), taken if model.name == UNTYPED.name else text))
    if not model.fields:
        found.append(Mistake(("fields",), "a model needs at least one field"))
    for position, field in enumerate(model.fields):
        path: Path = ("fields", position)
        found += [Mistake((*path, "name"), text) for text in _name_mistakes(field.name)]
        found += [Mistake((*path, *below), text) for below, text in _label_mistakes(field)]
        if position not in unsound:
            found += [Mistake((*path, *below), text) for below, text in _field_mistakes(field)]
    found += _formula_mistakes(model, unsound, has_all_names=has_all_names)
    found += [Mistake(("connectivity", *below), text) for below, text in _connectivity_mistakes(model)]
    found += [Mistake(("reporting", *below), text) for below, text in _reporting_mistakes(model)]
    if has_all_names:
        found += [Mistake(("reporting", *below), text) for below, text in _dead_band_mistakes(model, unsound)]
    return found


_Found = Iterator[tuple[Path, str]]


def _name_mistakes(name: str) -> Iterator[str]:
    if not re.search(FIELD_NAME_PATTERN, name):
        yield f"{name!r} must begin with a small letter; small letters, digits and underscores may follow"
    elif keyword.iskeyword(name) or name in FUNCTIONS or name in NAMES or name == INTERPOLATE:
        yield f"{name!r} is a word of formulas; take another name"


def _label_mistakes(field: Field) -> _Found:
    if not field.quantity:
        yield ("quantity",), "must say what is measured"
    other = senml_spelling(field.unit)
    if other:
        yield ("unit",), f"{field.unit!r} is written {other!r} in SenML (RFC 8428)"


def _field_mistakes(field: Field) -> _Found:
    if field.dtype in _SWITCHES:
        yield from _choices_mistakes(field)
    else:
        yield from _bounds_mistakes(field)
    if field.obey_after_s < 0 or (field.obey_after_s and not field.is_settable):
        yield ("settable",), "the delay must not be negative, and belongs to a settable field"
    if field.is_settable and not isinstance(field.generator, Constant):
        word = generator_word(type(field.generator))
        yield (
            ("settable",),
            f"a field that moves by itself ({word}) is not set; set a constant one, and let this one follow it",
        )
    if field.is_windowed and field.dtype in _SWITCHES:
        yield ("window",), f"statistics need numbers, and this is a {field.dtype} field"
    yield from _start_mistakes(field)
    yield from _generator_mistakes(field)


def _choices_mistakes(field: Field) -> _Found:
    if len(set(field.choices)) != len(field.choices) or "" in field.choices:
        yield ("choices",), "choices must differ, and none may be empty"


def _bounds_mistakes(field: Field) -> _Found:
    low, high = field.minimum, field.maximum
    dtype = field.column_dtype
    if not (math.isfinite(low) and math.isfinite(high)):
        yield (), "minimum and maximum must be numbers"
    elif dtype.kind == "f":
        most = _FLOAT32_MAX if dtype.itemsize == 4 else float(np.finfo(np.float16).max)
        largest = max(abs(low), abs(high))
        if largest > most:
            yield ("dtype",), f"{field.dtype} holds {-most:g} to {most:g}, not {low:g} to {high:g}"
            return
        step = float(np.spacing(dtype.type(largest)))
        if not 0 <= field.decimals <= DECIMALS_MAX:
            yield ("decimals",), f"must be from 0 to {DECIMALS_MAX}, not {field.decimals}"
        elif step > 10.0**-field.decimals:
            fitting = max(0, math.floor(-math.log10(step)))
            yield (
                ("decimals",),
                f"{field.dtype} goes in steps of {step:g} near {largest:g}, which is coarser than "
                f"{field.decimals} decimals; allow {fitting} decimals at most, smaller bounds or a larger dtype"
                if step <= 1
                else f"{field.dtype} goes in steps of {step:g} near {largest:g}; take a larger dtype",
            )
    else:
        limits = np.iinfo(dtype)
        if low < limits.min or high > limits.max:
            yield (
                ("dtype",),
                f"{field.dtype} holds {limits.min} to {limits.max}, not {low:g} to {high:g}",
            )
        if low != int(low) or high != int(high):
            yield (), f"minimum and maximum of a {field.dtype} field must be whole numbers"


def _start_mistakes(field: Field) -> _Found:
    start = field.start
    if field.dtype in _SWITCHES and start.weights:
        states = states_of(field)
        if len(start.weights) != len(states):
            yield ("start", "weights"), f"{len(start.weights)} weights for {one_of(states)}"
        if not (all(0 <= weight < math.inf for weight in start.weights) and sum(start.weights) > 0):
            yield ("start", "weights"), "weights must not be negative, and not all 0"
    if field.dtype in _SWITCHES:
        is_one = start.low == start.high and start.low in ((0.0, 1.0) if field.dtype == "bool" else (0.0,))
        if start.step or not is_one or (start.weights and start.low):
            yield (
                ("start",),
                f"a {field.dtype} field starts at one of {one_of(states_of(field))}, or by weights",
            )
        return
    low, high = field.minimum, field.maximum
    if start.weights:
        yield ("start",), "weights belong to choice and bool fields"
    if not low <= start.low <= start.high <= high:
        yield (
            ("start",),
            f"must lie within {low:g} to {high:g}, the lower bound first, not {start.low:g} to {start.high:g}",
        )
    elif not 0 <= start.step <= max(start.high - start.low, 0):
        yield ("start", "step"), f"must be from 0 to {start.high - start.low:g}, not {start.step:g}"
    is_float = field.column_dtype.kind == "f"
    if not is_float and any(value != int(value) for value in (start.low, start.high, start.step)):
        yield ("start",), f"a {field.dtype} field starts at whole numbers, in whole steps"


def _generator_mistakes(field: Field) -> _Found:
    generator = field.generator
    fitting = _FITTING.get(field.dtype, _FITTING["number"])
    word = generator_word(type(generator))
    if not isinstance(generator, fitting):
        words = one_of([generator_word(kind) for kind in fitting])
        yield ("generator", word), f"does not move a {field.dtype} field; take {words}"
        return
    for attribute in _TIMES.get(type(generator), ()):
        if not 0 < getattr(generator, attribute) < math.inf:
            yield ("generator", word, attribute.removesuffix("_s")), "must be longer than 0 s"
    below: Path = ("generator", word)
    match generator:
        case Replay(values=values):
            bounds = f"{field.minimum:g} to {field.maximum:g}"
            wrong = [i for i, value in enumerate(values) if not field.minimum <= value <= field.maximum]
            yield from ((((*below, "values", i), f"must be from {bounds}, not {values[i]:g}")) for i in wrong)
            if not values:
                yield (*below, "values"), "needs at least one value"
        case Weighted(weights=weights) if len(weights) != len(field.choices):
            yield below, f"{len(weights)} weights for {len(field.choices)} choices"
        case Markov(rates=rates):
            yield from (((*below, *path), text) for path, text in _markov_mistakes(field, rates))


# Durations of generators; a file has them under the same names without the unit.
_TIMES: Final[Mapping[type, tuple[str, ...]]] = {
    RandomWalk: ("time_constant_s",),
    Sinusoid: ("period_s",),
    Replay: ("step_s",),
}


def _markov_mistakes(field: Field, rates: tuple[tuple[int, int, str], ...]) -> _Found:
    count = len(states_of(field))
    if not rates:
        yield (), "needs at least one transition"
    pairs = [(source, target) for source, target, _ in rates]
    for source, target in pairs:
        if not (0 <= source < count and 0 <= target < count):
            yield (), f"transition {source} to {target} is between positions 0 to {count - 1} only"
        elif source == target:
            yield (states_of(field)[source],), "leads from a state to itself"
        elif pairs.count((source, target)) > 1:
            yield (states_of(field)[source],), f"says twice how it comes to {states_of(field)[target]!r}"


def states_of(field: Field) -> tuple[str, ...]:
    """Return the states between which a Markov chain moves a bool or choice field, in the order of their positions."""
    return ("false", "true") if field.dtype == "bool" else field.choices


def generator_word(kind: type[Generator]) -> str:
    """Return what a generator is called in a model file."""
    return str(kind.__struct_config__.tag)


# Formulas


def formulas_of(field: Field) -> Iterator[tuple[Path, str]]:
    """Yield the formulas of a field's generator with their paths from the field."""
    generator = field.generator
    path: Path = ("generator", generator_word(type(generator)))
    for name in _FORMULAS.get(type(generator), ()):
        yield (*path, name), getattr(generator, name)
    match generator:
        case Computed(value=value):
            yield path, value
        case Weighted(weights=weights):
            for choice, weight in zip(field.choices, weights, strict=False):
                yield (*path, choice), weight
        case Markov(rates=rates):
            states = states_of(field)
            for source, target, rate in rates:
                if 0 <= source < len(states) and 0 <= target < len(states):
                    yield (*path, states[source], states[target]), rate


_FORMULAS: Final[Mapping[type, tuple[str, ...]]] = {
    Uniform: ("low", "high"),
    Normal: ("mean", "deviation"),
    RandomWalk: ("toward", "deviation"),
    Sinusoid: ("mean", "amplitude"),
    Decay: ("rate", "per_report"),
    Counter: ("rate", "per_report"),
}
# Formulas that stand for amounts, of which none is negative; and those whose value the field takes.
_NOT_NEGATIVE: Final = ("deviation", "rate", "per_report")
_VALUES: Final = ("low", "high", "mean", "toward", "computed")


def _formula_mistakes(
    model: DeviceModel, unsound: Collection[int], *, has_all_names: bool
) -> Iterator[Mistake]:
    kinds: dict[str, Kind] = {name: TRUTH if kind == "truth" else "number" for name, kind in NAMES.items()}
    for position, field in enumerate(model.fields):
        kinds[field.name] = Unknown() if position in unsound else field_kind(field)
    if not has_all_names:
        kinds = _AnyKinds(kinds)
    for position, field in enumerate(model.fields):
        for below, text in formulas_of(field):
            path: Path = ("fields", position, *below)
            target: Kind = "number"
            if isinstance(field.generator, Computed):
                target = Unknown() if position in unsound else field_kind(field)
            problem = _formula_problem(text, kinds, target)
            if not problem and position not in unsound:
                problem = _constant_problem(parse_formula(text), field, below)
            if problem:
                yield Mistake(path, problem)
    for word, text in (("online", model.connectivity.online_s), ("offline", model.connectivity.offline_s)):
        problem = _formula_problem(text, kinds, "number")
        if problem:
            yield Mistake(("connectivity", word), problem)


def field_kind(field: Field) -> Kind:
    """Return the kind of a field's values: 'number', 'truth', or its choices."""
    if field.dtype == "choice":
        return field.choices
    return TRUTH if field.dtype == "bool" else "number"


class _AnyKinds(dict[str, Kind]):
    """Kinds of names where any name may be one: what is not known is of an unknown kind."""

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> Kind:
        return Unknown()


def _formula_problem(text: str, kinds: Mapping[str, Kind], target: Kind) -> str:
    """Return what is wrong with a formula whose value is to be of a kind, or nothing."""
    try:
        formula = parse_formula(text)
    except ModelError as error:
        return str(error)
    unknown = [name for name in names_of(formula) if name not in kinds]
    if unknown:
        advice = nearest(unknown[0], kinds) or f"; there are {', '.join(kinds)}"
        return f"formula {text!r} names {unknown[0]!r}, which is no field{advice}"
    try:
        kind_of(formula, kinds, target)
    except ModelError as error:
        return f"formula {text!r}: {error}"
    return ""


def _constant_problem(formula: Formula, field: Field, below: Path) -> str:
    """Return what is wrong with a formula that is a plain number, or nothing."""
    if not isinstance(formula, Number):
        return ""
    # A choice may be called like anything.
    value, word = formula.value, "rate" if field.dtype in _SWITCHES else below[-1]
    if value < 0 and word in _NOT_NEGATIVE and below[1] != "computed":
        return f"must not be negative, and is {value:g}"
    if word in _VALUES and not field.minimum <= value <= field.maximum:
        return f"must be from {field.minimum:g} to {field.maximum:g} as the field is, not {value:g}"
    return ""


# Connectivity and reporting


def _connectivity_mistakes(model: DeviceModel) -> _Found:
    seconds = {}
    for word, text in (("online", model.connectivity.online_s), ("offline", model.connectivity.offline_s)):
        try:
            formula = parse_formula(text)
        except ModelError:
            continue
        seconds[word] = formula.value if isinstance(formula, Number) else math.nan
    for word, value in seconds.items():
        if value < 0:
            yield (word,), f"must not be negative, and is {value:g}"
    if seconds.get("offline") == 0 and seconds.get("online") != 0:
        yield (
            ("offline",),
            "must be longer than 0 s; leave connectivity out for a device that is always online",
        )


def _reporting_mistakes(model: DeviceModel) -> _Found:
    reporting = model.reporting
    if reporting.every_s < 0:
        yield ("every",), "must not be negative"
    if not 0 <= reporting.jitter_s < math.inf or (
        reporting.every_s and reporting.jitter_s > reporting.every_s
    ):
        yield ("jitter",), f"must be from 0 s to the period, {reporting.every_s} s"
    if reporting.at_least_every_s and not reporting.dead_bands:
        yield ("at_least_every",), "belongs to dead bands: without them every sample is reported"
    if reporting.at_least_every_s and reporting.at_least_every_s < reporting.every_s:
        yield ("at_least_every",), f"must be the period at least, {reporting.every_s} s"


def _dead_band_mistakes(model: DeviceModel, unsound: Collection[int]) -> _Found:
    names = [name for name, _ in model.reporting.dead_bands]
    for name, band in model.reporting.dead_bands:
        path: Path = ("dead_bands", name)
        if name not in model.positions:
            advice = nearest(name, model.positions) or f"; fields: {', '.join(model.positions)}"
            yield path, f"there is no field {name!r}{advice}"
            continue
        field = model.fields[model.positions[name]]
        if names.count(name) > 1:
            yield path, "stands there twice"
        elif not 0 <= band < math.inf:
            yield path, f"must be 0 or more, not {band:g}"
        elif model.positions[name] in unsound:
            continue
        elif field.dtype in _SWITCHES and band:
            yield path, f"must be 0 (any difference) for a {field.dtype} field"
        elif field.dtype not in _SWITCHES and band >= field.maximum - field.minimum:
            yield (
                path,
                f"no two values differ by {band:g}; the field has {field.minimum:g} to {field.maximum:g}",
            )


def check_model(model: DeviceModel) -> None:
    """Refuse, with ModelInvalid, a model that is not sound."""
    found = mistakes_in(model)
    if found:
        raise ModelInvalid(found)
