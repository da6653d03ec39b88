"""How each field of a device moves, written as block programs: generators, formulas, and what a device starts with.

A device's own values stand in columns `device.FIELD`, apart from what its twin says that it reported. Random numbers
are drawn from a stream of the field's own, so that a model with one field more moves all others as before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from twins import model_rules
from twins.draws import key_at, stream_state
from twins.errors import ModelError
from twins.expressions import Call, Formula, Name, Number, Text, constant_of, names_of, parse_formula
from twins.model import (
    Computed,
    Constant,
    Counter,
    Decay,
    DeviceModel,
    Field,
    Markov,
    Normal,
    RandomWalk,
    Replay,
    Sinusoid,
    Start,
    Uniform,
    Weighted,
)
from twins.program import Builder, Op, Operand, Register, Shared

# A triangular distribution on (-1, 1) has standard deviation 1/sqrt(6).
_SQRT_6: Final = math.sqrt(6.0)
# What a formula may name besides fields: whether the device is connected, whether it sent a report when it last
# measured, and how long the simulation has run.
ONLINE: Final = "online"
REPORTED: Final = "reported"
ELAPSED: Final = "elapsed_s"
SPECIAL_NAMES: Final = (ONLINE, REPORTED, ELAPSED)
# A float field that counts or empties is kept as a share of its range in 32 bits: a float32 of 100 % would not notice
# what a cell that lasts two years loses in ten seconds.
_WORD_RANGE: Final = 2.0**32
# Steps of the normal distribution's table: its greatest value is 3.7 standard deviations.
_NORMAL_STEPS: Final = 4096


def wave(time_s: float, period_s: float, peak_s: float) -> float:
    """Return a sine of time: 1 at `peak_s` seconds into each period, -1 half a period later.

    From additions and products alone: a library's sine may differ in its last bit between machines; this series
    (error below 1e-8) does not.
    """
    turn = ((time_s - peak_s) / period_s + 0.25) % 1.0
    sign = 1.0 if turn < 0.5 else -1.0
    x = turn % 0.5 * 2.0 * math.pi
    x = x if x <= math.pi / 2 else math.pi - x
    square = x * x
    series = 1.0 - square / 156.0
    for denominator in (110.0, 72.0, 42.0, 20.0, 6.0):
        series = 1.0 - square / denominator * series
    return sign * x * series


def kind_of(item: Field) -> str:
    """Return what a field's values are in a program: "float", "word", "mask" (bool) or "choice"."""
    if item.dtype in ("bool", "choice"):
        return "mask" if item.dtype == "bool" else "choice"
    return "word" if item.dtype == "uint32" else "float"


def is_steady(item: Field) -> bool:
    """Tell whether a field counts or empties at one rate for ever: then its start and the time say what it is."""
    generator = item.generator
    if not isinstance(generator, Counter | Decay) or constant_of(parse_formula(generator.per_report)) != 0:
        return False
    rate = constant_of(parse_formula(generator.rate))
    if rate is None or isinstance(generator, Decay):
        return rate is not None
    # It wraps round by itself, and gains whole units in whole seconds.
    return item.dtype == "uint32" and item.maximum == _WORD_RANGE - 1 and rate == int(rate)


def state_layout(model: DeviceModel) -> dict[str, np.dtype[Any]]:
    """Return the device's own columns, by field name: of those whose next value depends on the one before."""
    # The connection is asked for before any field moves.
    link = (model.connectivity.online_s, model.connectivity.offline_s)
    read_before = {name for text in link for name in names_of(parse_formula(text))}
    seen: set[str] = set()
    for item in model.fields:
        read_before.update(name for name in _names(item) if name not in seen)
        seen.add(item.name)
    layout = {}
    for item in model.fields:
        if item.name in read_before or not isinstance(
            item.generator, Computed | Uniform | Normal | Sinusoid | Weighted
        ):
            layout[item.name] = _state_dtype(item)
    return layout


def _state_dtype(item: Field) -> np.dtype[Any]:
    if isinstance(item.generator, Replay):
        return np.dtype(np.uint16)
    if isinstance(item.generator, Counter | Decay) and not is_steady(item):
        return np.dtype(np.uint32)
    if kind_of(item) == "float":
        return np.dtype(np.float32)
    return item.column_dtype


def formulas_of(item: Field) -> Iterator[str]:
    """Yield the texts of all formulas of a field."""
    return (text for _, text in model_rules.formulas_of(item))


def _names(item: Field) -> Iterator[str]:
    for text in formulas_of(item):
        yield from names_of(parse_formula(text))


# What devices start with


def start_column(item: Field, draw: Callable[[str], NDArray[np.float32]]) -> NDArray[Any]:
    """Return what each device starts with in its own column; `draw` gives numbers in [0, 1) of a stream."""
    start: Start = item.start
    if isinstance(item.generator, Replay):
        count = len(item.generator.values) if item.generator.is_shifted else 1
        return np.asarray(np.floor(draw(item.name) * np.float32(count)), np.uint16)
    if item.dtype == "choice" or (item.dtype == "bool" and start.weights):
        weights = start.weights or (1.0,)
        bounds = np.array(
            [math.fsum(weights[: i + 1]) / math.fsum(weights) for i in range(len(weights) - 1)], "f4"
        )
        return np.asarray(np.searchsorted(bounds, draw(item.name), side="right"), np.uint8)
    if start.step:
        steps = math.floor((start.high - start.low) / start.step + 1e-9) + 1
        values = np.floor(draw(item.name) * np.float32(steps)) * np.float32(start.step) + np.float32(
            start.low
        )
    else:
        values = draw(item.name) * np.float32(start.high - start.low) + np.float32(start.low)
    if isinstance(item.generator, Counter | Decay) and not is_steady(item):
        if item.dtype == "uint32":
            return np.asarray(values, np.uint32)
        share = (values.astype(np.float64) - item.minimum) / (item.maximum - item.minimum)
        return np.asarray(np.minimum(share * _WORD_RANGE, _WORD_RANGE - 1), np.uint32)
    return np.asarray(values, _state_dtype(item))


# How they move on


@dataclass
class FieldWriter:
    """Writes how the fields of a model move by one period of `period_s` seconds; `values` holds what they are then.

    `seed` and `group` name the draws; `is_online` and `has_reported` are masks. A value is a float (or one that is the
    same for all), a word, a mask, or the position of a choice, as `kind_of` says.
    """

    builder: Builder
    model: DeviceModel
    seed: int
    group: str
    period_s: int
    is_online: Register
    has_reported: Register
    values: dict[str, Operand] = field(default_factory=dict)
    # What is to be written back, by field; not in place: a formula may still want the old value.
    states: dict[str, Register] = field(default_factory=dict)
    _olds: dict[str, Operand] = field(default_factory=dict)

    def advance(self) -> None:
        """Write the steps of all fields, in the order of the model."""
        for item in self.model.fields:
            value = self._fitted(item, _ADVANCERS[type(item.generator)](self, item, item.generator))
            self.values[item.name] = value
            if item.name in self._layout and item.name not in self.states:
                self._keep(item, value)

    @cached_property
    def _layout(self) -> Mapping[str, np.dtype[Any]]:
        return state_layout(self.model)

    def _fitted(self, item: Field, value: Operand) -> Operand:
        """Return what a generator gave as a value that the field may have."""
        kind = kind_of(item)
        if kind not in ("float", "word") or isinstance(item.generator, Constant):
            return value
        if isinstance(value, Register) and value.kind == "word":
            return value
        low, high = Shared.of(item.minimum), Shared.of(item.maximum)
        bounded = self.builder.emit(Op.CLIP, self.builder.register(value), low, high)
        return self.builder.emit(Op.F2U, bounded) if kind == "word" else bounded

    def _keep(self, item: Field, value: Operand) -> None:
        if not isinstance(item.generator, Constant | Replay) and not is_steady(item):
            self.states[item.name] = self.builder.register(value)

    def stream(self, name: str) -> Register:
        """Return a drawn word a device, from a stream of the field's or another's own."""
        state = stream_state(self.seed, f"{self.group}/{name}")
        return self.builder.draw(lambda moment: key_at(state, moment.tick))

    def store_states(self, live: Register | None) -> None:
        """Write the devices' own columns back, where `live` holds if it is given, in place."""
        for name, value in self.states.items():
            store = {4: Op.ST4, 2: Op.ST2, 1: Op.STM if value.kind == "mask" else Op.ST1}[
                self._layout[name].itemsize
            ]
            if live is None:
                self.builder.do(store, f"device.{name}", value)
            else:
                self.builder.do(Op[f"{store.name}_W"], f"device.{name}", value, live)

    # Formulas

    def old(self, item: Field) -> Operand:
        """Return what a field was before this period."""
        if item.name not in self._olds:
            self._olds[item.name] = self._load_old(item)
        return self._olds[item.name]

    def _load_old(self, item: Field) -> Operand:
        b, place = self.builder, f"device.{item.name}"
        kind = kind_of(item)
        if isinstance(item.generator, Replay):
            return _replay(self, item, item.generator)
        if kind == "mask":
            return b.emit(Op.LDM, place)
        if kind == "choice":
            return b.emit(Op.LD1, place)
        if isinstance(item.generator, Counter | Decay) and not is_steady(item) and kind == "float":
            return self.of_share(item, b.emit(Op.LD4, place))
        loaded = b.emit(Op.LD4, place, kind="word" if kind == "word" else None)
        if isinstance(item.generator, Counter | Decay) and is_steady(item):
            return _steady(self, item.generator, loaded)
        return loaded

    def of_share(self, item: Field, share: Register) -> Operand:
        """Return the value of a float field that is kept as a share of its range."""
        scale = (item.maximum - item.minimum) / _WORD_RANGE
        return self.builder.affine(self.builder.emit(Op.U2F, share), scale, item.minimum)

    def number(self, text: str) -> Operand:
        """Write a formula and return its value as a number; a truth value counts 1 or 0."""
        return self._number(parse_formula(text), text)

    def truth(self, text: str) -> Register:
        """Write a formula and return whether it holds; a number holds if it is not 0."""
        return self._truth(parse_formula(text), text)

    def _number(self, formula: Formula, text: str) -> Operand:
        value = self._value(formula, text)
        if isinstance(value, Register) and value.kind == "mask":
            return self.builder.emit(Op.NUMBER, value)
        return value

    def _truth(self, formula: Formula, text: str) -> Register:
        value = self._value(formula, text)
        if isinstance(value, Register) and value.kind == "mask":
            return value
        return self.builder.compare("!=", value, Shared.of(0.0))

    def _value(self, formula: Formula, text: str) -> Operand:
        match formula:
            case Number(value=value):
                return Shared.of(value)
            case Name(name=name):
                return self._named(name, text)
            case Call(operation=operation, arguments=arguments):
                return self._call(operation, arguments, text)
        raise ModelError(f"formula {text!r}: a text can only be compared with a choice field")

    def _named(self, name: str, text: str) -> Operand:
        if name in self.model.positions:
            item = self.model.fields[self.model.positions[name]]
            if kind_of(item) == "choice":
                raise ModelError(
                    f"formula {text!r}: {name} is a choice and can only be compared with one of its choices"
                )
            value = self.values[name] if name in self.values else self.old(item)
            return self.builder.emit(Op.U2F, value) if kind_of(item) == "word" else value
        if name == ONLINE:
            return self.is_online
        if name == REPORTED:
            return self.has_reported
        if name == ELAPSED:
            return Shared(lambda moment: np.float32(moment.elapsed_s))
        raise ModelError(f"formula {text!r}: there is no field {name!r}")

    def _call(self, operation: str, arguments: Sequence[Formula], text: str) -> Operand:
        b = self.builder
        if operation in ("and", "or"):
            op = Op.MAND if operation == "and" else Op.MOR
            masks = [self._truth(argument, text) for argument in arguments]
            result = masks[0]
            for mask in masks[1:]:
                result = b.emit(op, result, mask)
            return result
        if operation == "not":
            return b.emit(Op.MNOT, self._truth(arguments[0], text))
        if operation == "if":
            condition = self._truth(arguments[0], text)
            return b.select(condition, *(self._number(argument, text) for argument in arguments[1:]))
        if operation in ("==", "!=") and any(isinstance(argument, Text) for argument in arguments):
            return self._is_choice(operation, arguments, text)
        if operation == "wave":
            return self._wave(arguments, text)
        numbers = [self._number(argument, text) for argument in arguments]
        if operation in ("<", "<=", ">", ">=", "==", "!="):
            return b.compare(operation, *numbers)
        return self._arithmetic(operation, numbers)

    def _arithmetic(self, operation: str, numbers: Sequence[Operand]) -> Operand:
        b = self.builder
        if operation == "abs":
            return b.absolute(numbers[0])
        function = {
            "+": b.add,
            "-": b.subtract,
            "*": b.multiply,
            "/": b.divide,
            "min": b.minimum,
            "max": b.maximum,
        }[operation]
        result = numbers[0]
        for number in numbers[1:]:
            result = function(result, number)
        return result

    def _is_choice(self, operation: str, arguments: Sequence[Formula], text: str) -> Register:
        match sorted(arguments, key=lambda argument: isinstance(argument, Text)):
            case [Name(name=name), Text(value=choice)] if name in self.model.positions:
                item = self.model.fields[self.model.positions[name]]
                if choice in item.choices:
                    value = self.values[name] if name in self.values else self.old(item)
                    same = self.builder.emit(Op.IEQ_K, value, item.choices.index(choice))
                    return same if operation == "==" else self.builder.emit(Op.MNOT, same)
        raise ModelError(f"formula {text!r}: only a choice field can be compared with one of its choices")

    def _wave(self, arguments: Sequence[Formula], text: str) -> Operand:
        period_s, peak_s = (constant_of(argument) for argument in arguments)
        if period_s is not None and peak_s is not None and period_s > 0:
            return _wave_of(period_s, peak_s)
        raise ModelError(
            f"formula {text!r}: wave takes two numbers, a period above 0 and the place of its peak"
        )


def _wave_of(period_s: float, peak_s: float) -> Shared:
    return Shared(lambda moment: np.float32(wave(moment.time_s, period_s, peak_s)))


# Generators


def _keep_constant(writer: FieldWriter, item: Field, _: Constant) -> Operand:
    return writer.old(item)


def _compute(writer: FieldWriter, item: Field, generator: Computed) -> Operand:
    return writer.truth(generator.value) if kind_of(item) == "mask" else writer.number(generator.value)


def _draw_uniform(writer: FieldWriter, item: Field, generator: Uniform) -> Operand:
    b = writer.builder
    low, high = writer.number(generator.low), writer.number(generator.high)
    share = b.emit(Op.UNIT, writer.stream(item.name))
    return b.add(low, b.multiply(share, b.subtract(high, low)))


def _draw_normal(writer: FieldWriter, item: Field, generator: Normal) -> Operand:
    b = writer.builder
    position = b.emit(Op.IAND_K, writer.stream(item.name), _NORMAL_STEPS - 1)
    noise = b.lookup(position, _normal_table())
    return b.add(writer.number(generator.mean), b.multiply(noise, writer.number(generator.deviation)))


def _normal_table() -> tuple[float, ...]:
    """Return the middles of equally likely slices of the normal distribution, ascending.

    Found by bisection of a series (Marsaglia 2004), whose error and whose rounding are far below the digits kept.
    """
    if not _TABLE:
        half = [
            _quantile((slice_ + 0.5) / _NORMAL_STEPS) for slice_ in range(_NORMAL_STEPS // 2, _NORMAL_STEPS)
        ]
        _TABLE.extend([-value for value in reversed(half)] + half)
    return tuple(_TABLE)


_TABLE: Final[list[float]] = []


def _quantile(probability: float) -> float:
    low, high = 0.0, 6.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if _probability(middle) < probability else (low, middle)
    return round(low, 6)


def _probability(x: float) -> float:
    total = term = x
    divisor = 3
    while term > 1e-17 * total:
        term *= x * x / divisor
        total += term
        divisor += 2
    return 0.5 + total * math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _walk(writer: FieldWriter, item: Field, generator: RandomWalk) -> Operand:
    b = writer.builder
    share = writer.period_s / (generator.time_constant_s + writer.period_s)
    moved = b.blend(b.register(writer.old(item)), writer.number(generator.toward), share)
    deviation = writer.number(generator.deviation)
    if isinstance(deviation, Shared) and deviation.fixed == 0:
        return moved
    # As much noise as keeps the standard deviation: of a process that keeps 1 - share of itself each time.
    noise = b.emit(Op.TRIANGLE, writer.stream(item.name))
    scale = _SQRT_6 * math.sqrt(share * (2 - share))
    return b.add_scaled(moved, noise, b.multiply(deviation, Shared.of(scale)))


def _swing(writer: FieldWriter, item: Field, generator: Sinusoid) -> Operand:
    now = _wave_of(generator.period_s, generator.peak_s)
    b = writer.builder
    return b.add(writer.number(generator.mean), b.multiply(writer.number(generator.amplitude), now))


def _steady(writer: FieldWriter, generator: Counter | Decay, first: Register) -> Operand:
    """Return what a field that counts or empties at one rate is by now, from what it was at the start."""
    per_s = constant_of(parse_formula(generator.rate)) or 0.0
    if isinstance(generator, Counter):
        return writer.builder.emit(Op.IADD_K, first, lambda moment: int(per_s) * moment.elapsed_s)
    return writer.builder.subtract(first, Shared(lambda moment: np.float32(per_s * moment.elapsed_s)))


def _count_on(writer: FieldWriter, item: Field, generator: Counter | Decay) -> Operand:
    """Let a counter or a store move on; a draw settles what is less than a unit, so that on average none is lost."""
    if is_steady(item):
        return writer.old(item)
    b = writer.builder
    amount = b.multiply(writer.number(generator.rate), Shared.of(writer.period_s))
    sent = b.emit(Op.NUMBER, writer.has_reported)
    amount = b.add(amount, b.multiply(sent, writer.number(generator.per_report)))
    is_whole = item.dtype == "uint32"
    scale = 1.0 if is_whole else _WORD_RANGE / (item.maximum - item.minimum)
    dither = b.emit(Op.UNIT, writer.stream(item.name))
    units = b.emit(Op.F2U, b.register(b.add(b.multiply(amount, Shared.of(scale)), dither)))
    before = b.emit(Op.LD4, f"device.{item.name}")
    if isinstance(generator, Decay):
        is_left = b.emit(Op.ILT, units, before)
        after = b.emit(Op.SELECT, is_left, b.emit(Op.ISUB, before, units), b.emit(Op.IFILL, 0))
    else:
        after = b.emit(Op.IADD, before, units)
        if is_whole and item.maximum < _WORD_RANGE - 1:
            is_within = b.emit(Op.ILT_K, after, int(item.maximum) + 1)
            wrapped = b.emit(Op.ISUB_K, after, int(item.maximum) + 1 - int(item.minimum))
            after = b.emit(Op.SELECT, is_within, after, wrapped)
    writer.states[item.name] = after
    return after if is_whole else writer.of_share(item, after)


def _draw_weighted(writer: FieldWriter, item: Field, generator: Weighted) -> Operand:
    b = writer.builder
    weights = [b.maximum(writer.number(weight), Shared.of(0.0)) for weight in generator.weights]
    total = weights[0]
    for weight in weights[1:]:
        total = b.add(total, weight)
    place = b.multiply(b.emit(Op.UNIT, writer.stream(item.name)), total)
    return _position_of(b, place, weights)


def _position_of(b: Builder, place: Operand, weights: Sequence[Operand]) -> Register:
    """Return into which of consecutive stretches a place falls."""
    position = b.emit(Op.IFILL, 0)
    bound: Operand = Shared.of(0.0)
    for weight in weights[:-1]:
        bound = b.add(bound, weight)
        position = b.emit(Op.STEP, position, b.register(b.subtract(place, bound)), Shared.of(0.0))
    return position


def _hop(writer: FieldWriter, item: Field, generator: Markov) -> Operand:
    """Let a Markov chain move on by one step of the backward Euler method: any period keeps probabilities in bounds."""
    b = writer.builder
    period = Shared.of(writer.period_s)
    share = b.emit(Op.UNIT, writer.stream(item.name))
    if item.dtype == "bool":
        rates = {(source, target): writer.number(rate) for source, target, rate in generator.rates}
        return toggled(b, writer.old(item), share, (rates.get((0, 1)), rates.get((1, 0))), period)
    before = after = b.register(writer.old(item))
    for source in sorted({source for source, _, _ in generator.rates}):
        total: Operand = Shared.of(1.0)
        bounds: list[tuple[int, Operand]] = []
        reached: Operand = Shared.of(0.0)
        for start, target, rate in generator.rates:
            if start == source:
                leaving = b.multiply(b.maximum(writer.number(rate), Shared.of(0.0)), period)
                total, reached = b.add(total, leaving), b.add(reached, leaving)
                bounds.append((target, reached))
        # The place falls into the stretch of one of the targets, or beyond them all: then the state stays.
        place, next_state = b.multiply(share, total), b.emit(Op.IFILL, source)
        for target, bound in reversed(bounds):
            next_state = b.emit(Op.SELECT, b.compare("<", place, bound), b.emit(Op.IFILL, target), next_state)
        after = b.emit(Op.SELECT, b.emit(Op.IEQ_K, before, source), next_state, after)
    return after


def toggled(
    b: Builder,
    before: Operand,
    share: Register,
    rates: tuple[Operand | None, Operand | None],
    period: Operand,
) -> Register:
    """Return a two-state Markov chain a period later; `rates` are those of becoming true and of becoming false.

    The share of true ones in the long run is exact, however long the period: up / (up + down).
    """
    up, down = (Shared.of(0.0) if rate is None else b.maximum(rate, Shared.of(0.0)) for rate in rates)
    total = b.add(Shared.of(1.0), b.multiply(b.add(up, down), period))
    rises = b.compare("<", share, b.divide(b.multiply(up, period), total))
    falls = b.compare("<", share, b.divide(b.multiply(down, period), total))
    was = b.register(before)
    return b.emit(Op.MOR, b.emit(Op.MANDN, was, falls), b.emit(Op.MANDN, rises, was))


def _replay(writer: FieldWriter, item: Field, generator: Replay) -> Operand:
    count, step_s = len(generator.values), generator.step_s
    b = writer.builder
    shift = b.emit(Op.LD2, f"device.{item.name}")
    place = b.emit(Op.IADD_K, shift, lambda moment: int(moment.elapsed_s / step_s) % count)
    is_within = b.emit(Op.ILT_K, place, count)
    place = b.emit(Op.SELECT, is_within, place, b.emit(Op.ISUB_K, place, count))
    return b.lookup(place, generator.values)


def _play(writer: FieldWriter, item: Field, _: Replay) -> Operand:
    return writer.old(item)


_ADVANCERS: Final[Mapping[type, Callable[..., Operand]]] = {
    Constant: _keep_constant,
    Computed: _compute,
    Uniform: _draw_uniform,
    Normal: _draw_normal,
    RandomWalk: _walk,
    Sinusoid: _swing,
    Decay: _count_on,
    Counter: _count_on,
    Weighted: _draw_weighted,
    Markov: _hop,
    Replay: _play,
}
