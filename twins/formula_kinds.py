"""What kinds of values formulas have: numbers, truth values, choices; and whether they fit together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from twins.errors import ModelError
from twins.expressions import Call, Formula, Name, Number, Text
from twins.words import nearest, one_of

TRUTH: Final = "truth"


class Unknown:
    """The kind of something that is described wrongly: it fits everything, so that nothing is told twice."""


# A choice field's kind is its choices in their order.
Kind = Literal["number", "truth"] | tuple[str, ...] | Unknown


def kind_of(formula: Formula, kinds: Mapping[str, Kind], target: Kind) -> None:
    """Refuse, with ModelError, a formula whose parts do not fit together, or whose value is not of the kind `target`.

    `kinds` has the kind of every name in the formula. A truth value is also a number, 0 or 1; 0 and 1 are truth values.
    """
    if not isinstance(target, str):
        return
    if target == TRUTH:
        _require_truth(formula, kinds)
    else:
        _require_number(formula, kinds)


def _require_number(formula: Formula, kinds: Mapping[str, Kind]) -> None:
    match formula:
        case Text(value=value):
            raise ModelError(f"the text {value!r} stands where a number is needed; compare a field with it")
        case Name(name=name):
            kind = kinds[name]
            if isinstance(kind, tuple):
                raise ModelError(f"{name} is {one_of(kind)}, not a number; compare it: {name} == {kind[0]!r}")
        case Call(operation="if", arguments=(condition, *values)):
            _require_truth(condition, kinds)
            for each in values:
                _require_number(each, kinds)
        case Call(operation=operation) if operation in _TRUTHS:
            _require_truth(formula, kinds)
        case Call(operation=operation, arguments=arguments):
            _check_arguments(operation, arguments)
            for argument in arguments:
                _require_number(argument, kinds)


_LOGIC: Final = ("and", "or", "not", "if")
_EQUALITIES: Final = ("==", "!=")
_INEQUALITIES: Final = ("<", "<=", ">", ">=")
_TRUTHS: Final = frozenset({"and", "or", "not", *_EQUALITIES, *_INEQUALITIES})


def _check_arguments(operation: str, arguments: tuple[Formula, ...]) -> None:
    if operation == "/" and arguments[1] == Number(0.0):
        raise ModelError("it divides by 0")
    if operation == "wave":
        period, peak = arguments
        if not isinstance(period, Number) or not isinstance(peak, Number) or period.value <= 0:
            raise ModelError("wave needs two numbers, the period above 0: wave(86400, 57600)")


def _require_truth(formula: Formula, kinds: Mapping[str, Kind]) -> None:
    match formula:
        case Number(value=value) if value in (0.0, 1.0):
            return
        case Name(name=name):
            kind = kinds[name]
            if isinstance(kind, tuple) or kind == "number":
                other = repr(kind[0]) if isinstance(kind, tuple) else "0"
                raise ModelError(f"{name} is not true or false; compare it: {name} != {other}")
        case Call(operation=operation, arguments=arguments) if operation in _LOGIC:
            for argument in arguments:
                _require_truth(argument, kinds)
        case Call(operation=operation, arguments=(left, right)) if operation in _EQUALITIES:
            _require_comparable(left, right, kinds)
        case Call(operation=operation, arguments=arguments) if operation in _INEQUALITIES:
            for argument in arguments:
                _require_number(argument, kinds)
        case _:
            raise ModelError(
                "a condition is needed (a comparison, a bool field), and there is a number or a text"
            )


def _require_comparable(left: Formula, right: Formula, kinds: Mapping[str, Kind]) -> None:
    """Refuse a comparison that is neither between numbers nor between a choice field and one of its choices."""
    for one, other in ((left, right), (right, left)):
        kind = kinds[one.name] if isinstance(one, Name) else None
        if isinstance(kind, Unknown):
            return
        if isinstance(one, Name) and isinstance(kind, tuple):
            _require_choice(other, one.name, kind)
            return
    _require_number(left, kinds)
    _require_number(right, kinds)


def _require_choice(formula: Formula, name: str, choices: tuple[str, ...]) -> None:
    if not isinstance(formula, Text):
        raise ModelError(f"{name} can only be compared with {one_of([repr(choice) for choice in choices])}")
    if formula.value not in choices:
        raise ModelError(f"{formula.value!r} is none of {one_of(choices)}{nearest(formula.value, choices)}")
