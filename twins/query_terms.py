"""What a fleet query consists of: frozen terms and operators, what value each term accepts, and how each is written.

The grammar, and what a term means, stands in `query`; documents are found there too. A term here sees one JSON
scalar at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

# What parts words, in the query as in values: the white space of Java's Character.isWhitespace, as documented.
SPACE: Final = "\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f \u1680\u2000-\u2006\u2008-\u200a\u2028\u2029\u205f\u3000"
KEYWORDS: Final = frozenset({"AND", "OR", "NOT"})
ANY_FIELD: Final = "*"
_SPACES: Final = re.compile(f"[{SPACE}]+")
_PLAIN_WORD: Final = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.\-]*")
_NUMBER: Final = re.compile(r"[-+]?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_SIGNIFICANT: Final = re.compile(r"([^\w.])")

Number = int | float


def is_number(text: str) -> bool:
    """Tell whether a text is written as a number, of whatever size."""
    return _NUMBER.fullmatch(text) is not None


def number_of(text: str) -> Number | None:
    """Return the number that a text is written as, None for any other text; beyond any float is no number."""
    if not is_number(text):
        return None
    # Digits beyond this make no number that a device sends, and Python refuses to read more than 4300.
    if len(text) > 400:
        return None
    if text.lstrip("+-").isdigit():
        return int(text)
    number = float(text)
    return number if abs(number) != float("inf") else None


def words_of(text: str) -> list[str]:
    """Return the words of a text, parted by white space, in lower case."""
    return [word for word in _SPACES.split(text.lower()) if word]


@dataclass(frozen=True)
class Glob:
    """One word of a pattern: texts with wildcards between them; "*" any characters, "?" one, in `wildcards`.

    `texts` has one more entry than `wildcards`.
    """

    texts: tuple[str, ...]
    wildcards: tuple[str, ...] = ()

    @cached_property
    def expression(self) -> re.Pattern[str]:
        """Return the regular expression that a whole word in lower case must match; its time is bounded.

        Each piece after a star is taken where it first fits and never moved (an atomic group), so that a pattern of
        many stars needs no more than length times length steps.
        """
        pieces, piece = [], re.escape(self.texts[0].lower())
        for wildcard, text in zip(self.wildcards, self.texts[1:], strict=True):
            if wildcard == "*":
                pieces.append(piece)
                piece = ""
            else:
                piece += "."
            piece += re.escape(text.lower())
        if not pieces:
            return re.compile(piece + r"\Z", re.DOTALL)
        middle = "".join(f"(?>.*?{each})" for each in pieces[1:])
        return re.compile(pieces[0] + middle + ".*" + piece + r"\Z", re.DOTALL)

    def __str__(self) -> str:
        written = [_SIGNIFICANT.sub(r"\\\1", text) for text in self.texts]
        return written[0] + "".join(w + t for w, t in zip(self.wildcards, written[1:], strict=True))


@dataclass(frozen=True)
class Pattern:
    """What a value is compared with: words that must stand side by side in a text, in this order."""

    words: tuple[Glob, ...]

    @property
    def has_wildcards(self) -> bool:
        """Tell whether any word has a wildcard."""
        return any(word.wildcards for word in self.words)

    @cached_property
    def _plain(self) -> list[str] | None:
        """The words in lower case; None if there are wildcards."""
        return None if self.has_wildcards else [word.texts[0].lower() for word in self.words]

    @cached_property
    def _number(self) -> Number | None:
        return number_of(self._plain[0]) if self._plain and len(self._plain) == 1 else None

    @cached_property
    def constant(self) -> bool | Number | None:
        """The boolean or number that the pattern is written as; None if it is written as neither."""
        if self._plain in (["true"], ["false"]):
            return self._plain == ["true"]
        return self._number

    def accepts(self, value: Any) -> bool:
        """Tell whether a scalar is what the pattern says: texts by words, numbers and booleans by value."""
        if type(value) is str:
            return self._accepts_text(value)
        if type(value) is bool:
            return self.constant is value
        constant = self.constant
        return type(constant) is not bool and constant is not None and bool(value == constant)

    def _accepts_text(self, text: str) -> bool:
        words, length = words_of(text), len(self.words)
        if not length:
            return not words
        starts = range(len(words) - length + 1)
        plain = self._plain
        if plain is not None:
            return plain[0] in words and any(words[start : start + length] == plain for start in starts)
        return any(
            all(glob.expression.match(words[start + i]) for i, glob in enumerate(self.words))
            for start in starts
        )

    def __str__(self) -> str:
        if self.has_wildcards:
            return r"\ ".join(str(word) for word in self.words)
        text = " ".join(word.texts[0] for word in self.words)
        is_plain = _PLAIN_WORD.fullmatch(text) is not None and text.upper() not in KEYWORDS
        return text if is_plain else quoted(text)


def quoted(text: str) -> str:
    """Return a text in quotes, as a query has it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def written_field(field: str) -> str:
    """Return a field's name as a query has it, with what would end it escaped."""
    return field if _PLAIN_WORD.fullmatch(field) else _SIGNIFICANT.sub(r"\\\1", field)


@dataclass(frozen=True)
class Everything:
    """All things: `*`."""

    def __str__(self) -> str:
        return "*"


@dataclass(frozen=True)
class Exists:
    """Things that have a field, whatever its value: `field:*`."""

    field: str

    def __str__(self) -> str:
        return f"{written_field(self.field)}:*"


@dataclass(frozen=True)
class Match:
    """Things whose field has a value that the pattern accepts; `field` ANY_FIELD: any field that is searched."""

    field: str
    pattern: Pattern

    def accepts(self, value: Any) -> bool:
        """Tell whether a scalar is what the term asks for."""
        return self.pattern.accepts(value)

    def __str__(self) -> str:
        return str(self.pattern) if self.field == ANY_FIELD else f"{written_field(self.field)}:{self.pattern}"


@dataclass(frozen=True)
class Range:
    """Things whose field lies between two bounds, both numbers or both texts; None: no bound on that side."""

    field: str
    low: Number | str | None
    high: Number | str | None
    is_low_included: bool = False
    is_high_included: bool = False

    @property
    def is_of_text(self) -> bool:
        """Tell whether the bounds are texts."""
        return type(self.low) is str or type(self.high) is str

    @cached_property
    def _bounds(self) -> tuple[Any, Any]:
        low, high = (bound.lower() if type(bound) is str else bound for bound in (self.low, self.high))
        return low, high

    def accepts(self, value: Any) -> bool:
        """Tell whether a scalar lies in the range: a number, or a text that is written as one; or a text."""
        if self.is_of_text:
            return type(value) is str and self._holds(value.lower())
        if type(value) is str:
            value = number_of(value)
        return type(value) in (int, float) and self._holds(value)

    def _holds(self, value: Any) -> bool:
        low, high = self._bounds
        if low is not None and not (value > low or (self.is_low_included and value == low)):
            return False
        return high is None or bool(value < high or (self.is_high_included and value == high))

    def __str__(self) -> str:
        low, high = (quoted(bound) if type(bound) is str else str(bound) for bound in (self.low, self.high))
        field = written_field(self.field)
        if self.high is None:
            return f"{field}>{'=' * self.is_low_included}{low}"
        if self.low is None:
            return f"{field}<{'=' * self.is_high_included}{high}"
        brackets = "{["[self.is_low_included], "}]"[self.is_high_included]
        return f"{field}:{brackets[0]}{low} TO {high}{brackets[1]}"


@dataclass(frozen=True)
class Not:
    """Things that the part does not match, also because they lack its field."""

    part: Expression

    def __str__(self) -> str:
        return f"NOT {_nested(self.part)}"


@dataclass(frozen=True)
class And:
    """Things that all of two or more parts match; no part is an And itself."""

    parts: tuple[Expression, ...]

    def __str__(self) -> str:
        return " AND ".join(_nested(part) for part in self.parts)


@dataclass(frozen=True)
class Or:
    """Things that any of two or more parts matches; no part is an Or itself."""

    parts: tuple[Expression, ...]

    def __str__(self) -> str:
        return " OR ".join(str(part) for part in self.parts)


Term = Exists | Match | Range
Expression = Everything | Exists | Match | Range | Not | And | Or


def _nested(expression: Expression) -> str:
    return f"({expression})" if isinstance(expression, And | Or) else str(expression)


def terms_of(expression: Expression) -> Iterator[Term]:
    """Yield every term of an expression, from left to right."""
    if isinstance(expression, And | Or):
        for part in expression.parts:
            yield from terms_of(part)
    elif isinstance(expression, Not):
        yield from terms_of(expression.part)
    elif not isinstance(expression, Everything):
        yield expression
