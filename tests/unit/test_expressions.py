"""Formulas: what is understood, what is refused with which words, and that all of them are arithmetic on numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest

from twins.errors import ModelError
from twins.expressions import FUNCTIONS, Call, Formula, Name, Number, Text, names_of, parse_formula

_FUNCTIONS: dict[str, Any] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "and": lambda *each: all(each),
    "or": lambda *each: any(each),
    "not": lambda a: not a,
    "if": lambda condition, a, b: a if condition else b,
    "abs": abs,
    "max": max,
    "min": min,
    "wave": lambda period, peak: math.sin(period + peak),
}


def value(formula: Formula, names: dict[str, Any]) -> Any:
    match formula:
        case Number(value=each) | Text(value=each):
            return each
        case Name(name=name):
            return names[name]
        case Call(operation=operation, arguments=arguments):
            return _FUNCTIONS[operation](*(value(argument, names) for argument in arguments))


@pytest.mark.parametrize(
    "text",
    [
        "x + 2 * y - 1 / 3",
        "-(x - y) * -2 + +x",
        "x if x > y else y / 2",
        "0 < x < 5 and not y >= 2 or x == y != 3",
        "max(x, y, 2) - min(abs(y), 1)",
        "(x > 1) * 3 + (mode == 'heat')",
        "12 * (1 + 2) / (2 * 365)",
        "100 / (2 * 365 * 86400)",
        "wave(86400, 57600) * 1.5",
    ],
)
@pytest.mark.parametrize(("x", "y"), [(0.0, 0.5), (3.0, -4.0), (2.0, 2.0)])
def test_a_formula_means_what_it_means_in_python(text: str, x: float, y: float) -> None:
    names = {"x": x, "y": y, "mode": "heat", "wave": _FUNCTIONS["wave"]}
    assert value(parse_formula(text), names) == pytest.approx(eval(text, names))


def test_arithmetic_between_numbers_is_done_at_once() -> None:
    assert parse_formula("100 / (2 * 365 * 86400)") == Number(100 / 63072000)
    assert parse_formula("-2 + 5") == Number(3.0)
    assert parse_formula("True") == Number(1.0)
    # Nothing is made of what cannot be: the rules of models refuse it.
    assert parse_formula("1 / 0") == Call("/", (Number(1.0), Number(0.0)))


@pytest.mark.parametrize(
    ("x", "expected"),
    [(-5, 1.0), (0, 1.0), (5, 1.5), (10, 2.0), (20, 2.0), (25, 0.0), (30, -2.0), (99, -2.0)],
)
def test_interpolation_goes_along_straight_lines_and_is_level_beyond(x: float, expected: float) -> None:
    formula = parse_formula("interpolate(p, 0, 1, 10, 2, 20, 2, 30, -2)")
    assert value(formula, {"p": x}) == pytest.approx(expected)
    assert set(names_of(formula)) == {"p"}


def test_interpolation_is_written_out_in_what_everybody_knows() -> None:
    def operations(formula: Formula) -> set[str]:
        if not isinstance(formula, Call):
            return set()
        return {formula.operation}.union(*map(operations, formula.arguments))

    assert operations(parse_formula("interpolate(p, 0, 1, 5 * 2, 2, 20, -2)")) == {
        "+",
        "-",
        "*",
        "min",
        "max",
    }
    assert parse_formula("interpolate(p, 0, 1, 5, 1)") == Number(1.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cannot be read"),
        ("x +", "cannot be read"),
        ("x; y", "cannot be read"),
        ("x = 1", "cannot be read"),
        ("\0", "cannot be read"),
        ("x ** 2", "'x ** 2' is none of the forms"),
        ("x.real", "none of the forms"),
        ("[x]", "none of the forms"),
        ("lambda: 1", "none of the forms"),
        ("__import__('os')", "none of the forms"),
        ("max(x, y=2)", "none of the forms"),
        ("sin(x)", "none of the forms"),
        ("x in y", "none of the forms"),
        ("1j", "none of the forms"),
        ("None", "none of the forms"),
        ("1e999", "smaller than 1e+18"),
        ("1000000000000000000", "smaller than 1e+18"),
        ("abs(x, y)", "abs takes 1 arguments, not 2"),
        ("max(x)", "max takes 2 to 8 arguments, not 1"),
        ("interpolate(x, 0, 1)", "2 to 32 points"),
        ("interpolate(x, 0, 1, 2)", "2 to 32 points"),
        ("interpolate(x, 0, 1, 0, 2)", "each x above the one before"),
        ("interpolate(x, 0, 1, y, 2)", "must be numbers"),
        ("+".join("x" * 40), "nested more than 32"),
        ("~" * 900 + "1", "none of the forms"),
        ("-" * 900 + "x", "nested more than 32"),
        ("x + " * 600 + "x", "too long"),
    ],
)
def test_what_is_no_formula_is_refused(text: str, words: str) -> None:
    with pytest.raises(ModelError) as caught:
        parse_formula(text)
    assert words in str(caught.value)


def test_every_function_is_known_to_this_test() -> None:
    assert set(FUNCTIONS) <= set(_FUNCTIONS)
