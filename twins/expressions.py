"""Formulas over a device's fields, as they stand in device models: "outdoor + 12 * heating", "2 if open else 0.1".

The syntax is Python's, cut down to arithmetic, comparison, `and`, `or`, `not`, `A if CONDITION else B` and the
functions of `FUNCTIONS`. A formula is data: it is parsed here and carried out by `behavior`, never evaluated as Python.
Arithmetic between numbers is done here; what its names mean, and whether its kinds fit, is asked in `model_rules`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Final

from twins.errors import ModelError

# Number of arguments of each function, at least and at most. `wave(period_s, peak_s)` is the sine of the virtual time,
# 1 at `peak_s` seconds into each period (UTC); periods begin with the Unix epoch.
FUNCTIONS: Final[Mapping[str, tuple[int, int]]] = {
    "abs": (1, 1),
    "max": (2, 8),
    "min": (2, 8),
    "wave": (2, 2),
}
# What a formula may name besides fields, each with its kind: whether the device is connected, whether it sent a report
# of its last sample (both 0 or 1), and the virtual seconds since the group began to live.
NAMES: Final[Mapping[str, str]] = {"online": "truth", "reported": "truth", "elapsed_s": "number"}
# `interpolate(x, x1, y1, x2, y2, ...)`: the straight lines between points, level before the first and after the last.
# It is written out as a sum here, so that nobody else has to know of it.
INTERPOLATE: Final = "interpolate"
_POINT_COUNT_MAX: Final = 32
# Longer ones are machine made, and a line of a file that nobody can read.
_LENGTH_MAX: Final = 2000
# Deeper formulas are machine made; each level costs a temporary column.
_DEPTH_MAX: Final = 32
# Far within single precision (3e38), so that a product of two does not leave it.
_NUMBER_MAX: Final = 1e18
_BINARY: Final[Mapping[type[ast.operator], str]] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
_COMPARISON: Final[Mapping[type[ast.cmpop], str]] = {
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
}


@dataclass(frozen=True)
class Number:
    """A number, or a truth value as 0 or 1."""

    value: float


@dataclass(frozen=True)
class Text:
    """One of the texts that a choice field has."""

    value: str


@dataclass(frozen=True)
class Name:
    """A field of the model, or one of the names that `behavior` knows."""

    name: str


@dataclass(frozen=True)
class Call:
    """An operation on formulas: one of + - * / < <= > >= == != and or not if, or a function's name.

    `if` has the arguments condition, value if it holds, value otherwise.
    """

    operation: str
    arguments: tuple[Formula, ...]


Formula = Number | Text | Name | Call


@lru_cache(maxsize=4096)
def parse_formula(text: str) -> Formula:
    """Return the formula that stands in a text; ModelError says what is wrong and where."""
    if len(text) > _LENGTH_MAX:
        raise ModelError(f"a formula of {len(text)} characters is too long; {_LENGTH_MAX} are the most")
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        problem = error.msg if isinstance(error, SyntaxError) else str(error)
        raise ModelError(f"formula {text!r} cannot be read: {problem}") from None
    return _convert(tree.body, text, 1)


def names_of(formula: Formula) -> Iterator[str]:
    """Yield every name in a formula, as often as it stands there."""
    if isinstance(formula, Name):
        yield formula.name
    elif isinstance(formula, Call):
        for argument in formula.arguments:
            yield from names_of(argument)


def constant_of(formula: Formula) -> float | None:
    """Return what a formula of numbers alone comes to, None for any other and for what is divided by 0."""
    match formula:
        case Number(value=value):
            return value
        case Call(operation="+" | "-" | "*" | "/" as operation, arguments=arguments):
            left, right = (constant_of(argument) for argument in arguments)
            if left is None or right is None or (operation == "/" and right == 0):
                return None
            return {"+": left + right, "-": left - right, "*": left * right, "/": left / (right or 1.0)}[
                operation
            ]
    return None


def _convert(node: ast.expr, text: str, depth: int) -> Formula:
    if depth > _DEPTH_MAX:
        raise ModelError(f"formula {text!r} is nested more than {_DEPTH_MAX} levels deep")
    match node:
        case ast.Constant(value=bool() | int() | float() as value):
            if not abs(value) < _NUMBER_MAX:
                raise ModelError(f"formula {text!r}: a number must be smaller than {_NUMBER_MAX:g}")
            return Number(float(value))
        case ast.Constant(value=str() as value):
            return Text(value)
        case ast.Name(id=name):
            return Name(name)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _convert(operand, text, depth + 1)
        case ast.Call(func=ast.Name(id="interpolate"), args=arguments, keywords=[]):
            return _interpolated([_convert(argument, text, depth + 1) for argument in arguments], text)
    operation, operands = _arithmetic(node) or _decision(node) or _function(node, text) or ("", [])
    if not operation:
        part = ast.get_source_segment(text.strip(), node) or text
        raise ModelError(
            f"formula {text!r}: {part!r} is none of the forms that a formula may have (arithmetic, comparison, "
            f"and, or, not, A if C else B, {', '.join((*FUNCTIONS, INTERPOLATE))})"
        )
    converted = tuple(_convert(operand, text, depth + 1) for operand in operands)
    return _folded(operation, converted) or Call(operation, converted)


def _folded(operation: str, arguments: tuple[Formula, ...]) -> Number | None:
    """Return what arithmetic between two numbers comes to, None where it is something else or leaves the range."""
    match operation, arguments:
        case "+", (Number(value=a), Number(value=b)):
            value = a + b
        case "-", (Number(value=a), Number(value=b)):
            value = a - b
        case "*", (Number(value=a), Number(value=b)):
            value = a * b
        case "/", (Number(value=a), Number(value=b)) if b != 0.0:
            value = a / b
        case _:
            return None
    return Number(value) if abs(value) < _NUMBER_MAX else None


def _interpolated(arguments: list[Formula], text: str) -> Formula:
    """Return the sum that goes along straight lines: the first y, and of each line its slope times what lies behind."""
    if len(arguments) < 5 or len(arguments) % 2 == 0 or len(arguments) > 2 * _POINT_COUNT_MAX + 1:
        raise ModelError(
            f"formula {text!r}: {INTERPOLATE} takes a formula and 2 to {_POINT_COUNT_MAX} points, x and y of each"
        )
    x, *rest = arguments
    numbers = [argument.value for argument in rest if isinstance(argument, Number)]
    places, heights = numbers[::2], numbers[1::2]
    if len(numbers) != len(rest) or any(a >= b for a, b in pairwise(places)):
        raise ModelError(
            f"formula {text!r}: the points of {INTERPOLATE} must be numbers, each x above the one before"
        )
    terms: list[Formula] = []
    for (start, end), (low, high) in zip(pairwise(places), pairwise(heights), strict=True):
        if low == high:
            continue
        behind = Call("max", (Call("-", (x, Number(start))), Number(0.0)))
        within = Call("min", (behind, Number(end - start)))
        terms.append(Call("*", (Number((high - low) / (end - start)), within)))
    return Call("+", (Number(heights[0]), _sum(terms))) if terms else Number(heights[0])


def _sum(terms: list[Formula]) -> Formula:
    """Return the sum of some terms as a tree that is as flat as can be."""
    if len(terms) == 1:
        return terms[0]
    middle = len(terms) // 2
    return Call("+", (_sum(terms[:middle]), _sum(terms[middle:])))


_Operation = tuple[str, list[ast.expr]] | None


def _arithmetic(node: ast.expr) -> _Operation:
    match node:
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return "-", [ast.Constant(0.0), operand]
        case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _BINARY:
            return _BINARY[type(operator)], [left, right]
    return None


def _decision(node: ast.expr) -> _Operation:
    match node:
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return "not", [operand]
        case ast.BoolOp(op=operator, values=values):
            return "and" if isinstance(operator, ast.And) else "or", values
        case ast.Compare(left=left, ops=[comparison], comparators=[right]) if type(comparison) in _COMPARISON:
            return _COMPARISON[type(comparison)], [left, right]
        case ast.Compare(left=left, ops=[first, *others], comparators=[middle, *rights]) if others:
            # 0 < x < 5 means 0 < x and x < 5.
            rest = ast.Compare(middle, others, rights)
            both: list[ast.expr] = [ast.Compare(left, [first], [middle]), ast.copy_location(rest, node)]
            return "and", [ast.copy_location(part, node) for part in both]
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return "if", [test, body, orelse]
    return None


def _function(node: ast.expr, text: str) -> _Operation:
    match node:
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
            fewest, most = FUNCTIONS[name]
            if not fewest <= len(arguments) <= most:
                wanted = f"{fewest}" if fewest == most else f"{fewest} to {most}"
                raise ModelError(f"formula {text!r}: {name} takes {wanted} arguments, not {len(arguments)}")
            return name, arguments
    return None
