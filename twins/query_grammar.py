"""Reads the text of a fleet query into its expression; the grammar and its meaning stand in `query`.

A recursive descent over characters, with bounds on length, terms and nesting, so that no text is too much for it.
"""

from __future__ import annotations

import re
from typing import Final

from twins.errors import QueryError
from twins.query_terms import (
    ANY_FIELD,
    KEYWORDS,
    SPACE,
    And,
    Everything,
    Exists,
    Expression,
    Glob,
    Match,
    Not,
    Number,
    Or,
    Pattern,
    Range,
    is_number,
    number_of,
)

# The service allows 12 terms; queries that programs put together (one term a thing, say) need more. A term costs one
# pass over the twins, so this bounds a query to about the work of reading their documents once.
TERM_COUNT_MAX: Final = 128
# Room for that many terms of 64 characters; the service has no documented bound.
LENGTH_MAX: Final = 8192
# Parentheses and NOTs within each other; people write three.
NESTING_MAX: Final = 32
# An attribute's name has 128 characters at most, a shadow 8 levels; each level may be read in several ways.
FIELD_LENGTH_MAX: Final = 512

# Fields by their whole names, and what begins the names of others.
FIELDS: Final = ("thingName", "thingId", "thingTypeName", "thingGroupNames", "model", "origin")
ROOTS: Final = ("attributes", "shadow", "connectivity", "deviceDefender")
# The same field under its other names: those of the index's own configuration, and of the guide's example.
_OTHER_NAMES: Final = {
    "registry.thingTypeName": "thingTypeName",
    "registry.thingGroupNames": "thingGroupNames",
    "thingType": "thingTypeName",
}
_SPACE: Final = re.compile(f"[{SPACE}]*")
_IS_SPACE: Final = re.compile(f"[{SPACE}]")
_ENDS_WORD: Final = frozenset('()[]{}":<>=')
_UNSUPPORTED: Final = {"~": "fuzzy and proximity search", "^": "boosting"}
_GEO_QUERY: Final = "geo_distance,"
_OPENS_RANGE: Final = frozenset("[{")
_CLOSES_RANGE: Final = frozenset("]}")
_COMPARES: Final = frozenset("<>")
_FOLLOWS_FIELD: Final = frozenset(":=<>")
_NOT_AFTER_VALUE: Final = frozenset(':=<>"[]{}')

# A character of a word, and whether it stands for others.
Piece = tuple[str, bool]


def parse_expression(text: str) -> Expression:
    """Return the expression that a query's text says; QueryError says where it can't be read and what to change."""
    if len(text) > LENGTH_MAX:
        raise QueryError.at(LENGTH_MAX + 1, f"the query is longer than {LENGTH_MAX} characters; shorten it")
    expression = _Reader(text).read()
    # What a query is written as in full is a query too.
    if len(str(expression)) > LENGTH_MAX:
        raise QueryError.at(
            1, f"the query, written in full, is longer than {LENGTH_MAX} characters; shorten it"
        )
    return expression


def _joined(operator: type[And | Or], parts: list[Expression]) -> Expression:
    """Return parts joined by an operator: flat, and a single part as it is."""
    flat: list[Expression] = []
    for part in parts:
        flat.extend(part.parts if isinstance(part, operator) else (part,))
    return flat[0] if len(flat) == 1 else operator(tuple(flat))


def _text_of(pieces: list[Piece]) -> str:
    return "".join(character for character, _ in pieces)


def pattern_of(pieces: list[Piece]) -> Pattern:
    """Return the pattern that some characters make: words, with the wildcards among them."""
    words: list[Glob] = []
    texts, wildcards = [""], list[str]()
    is_word = False
    for character, is_wildcard in [*pieces, (" ", False)]:
        if not is_wildcard and _IS_SPACE.match(character):
            if is_word:
                words.append(Glob(tuple(texts), tuple(wildcards)))
            texts, wildcards, is_word = [""], [], False
            continue
        is_word = True
        if not is_wildcard:
            texts[-1] += character
        elif not (character == "*" and wildcards and wildcards[-1] == "*" and not texts[-1]):
            wildcards.append(character)
            texts.append("")
    return Pattern(tuple(words))


_ALL: Final = pattern_of([("*", True)])


class _Reader:
    """One query's text and how far it has been read; `_field` is the one that a group in parentheses belongs to."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._field = ANY_FIELD
        self._term_count = 0
        self._depth = 0

    def read(self) -> Expression:
        self._skip()
        if self._at == len(self._text):
            raise self._error("the query is empty; write * for all things")
        expression = self._either()
        if self._at < len(self._text):
            raise self._error(f"unexpected {self._peek()!r}; put a backslash before it or remove it")
        return expression

    # Operators

    def _either(self) -> Expression:
        parts = [self._all()]
        while self._takes_operator("OR", "||"):
            parts.append(self._all())
        return _joined(Or, parts)

    def _all(self) -> Expression:
        parts = [self._one()]
        while True:
            if not self._takes_operator("AND", "&&") and (
                self._peek() in ("", ")") or self._is_operator("OR", "||")
            ):
                return _joined(And, parts)
            parts.append(self._one())

    def _one(self) -> Expression:
        start = self._at
        if self._takes_operator("NOT", ""):
            is_not = True
        elif is_not := self._peek() in ("-", "!"):
            self._at += 1
            self._skip()
        if not is_not:
            return self._group() if self._peek() == "(" else self._clause()
        self._enter(start)
        part = self._one()
        self._depth -= 1
        return Not(part)

    def _group(self) -> Expression:
        start = self._at
        self._enter(start)
        self._at += 1
        self._skip()
        if self._peek() == ")":
            raise self._error("there is nothing between the parentheses; write a term there", start)
        expression = self._either()
        if self._peek() != ")":
            raise self._error("this parenthesis is never closed; write ) after its last term", start)
        self._at += 1
        self._skip()
        self._depth -= 1
        return expression

    def _enter(self, start: int) -> None:
        self._depth += 1
        if self._depth > NESTING_MAX:
            raise self._error(
                f"more than {NESTING_MAX} levels of parentheses and NOT; write it flatter", start
            )

    def _is_operator(self, keyword: str, sign: str) -> bool:
        if sign and self._text.startswith(sign, self._at):
            return True
        end = self._at + len(keyword)
        return self._text.startswith(keyword, self._at) and self._ends_word(end)

    def _takes_operator(self, keyword: str, sign: str) -> bool:
        if not self._is_operator(keyword, sign):
            return False
        is_sign = sign and self._text.startswith(sign, self._at)
        self._at += len(sign if is_sign else keyword)
        self._skip()
        return True

    # Terms

    def _clause(self) -> Expression:
        start = self._at
        if self._peek() in _OPENS_RANGE:
            return self._range(self._field)
        if self._peek() in _COMPARES:
            return self._comparison(self._field)
        pieces = self._quoted() if self._peek() == '"' else self._word(start)
        self._skip()
        if self._peek() in _FOLLOWS_FIELD:
            return self._with_field(self._field_name(pieces, start), start)
        word = _text_of(pieces)
        # A word that is quoted, or has a backslash, does not stand there as it is.
        if self._text.startswith(word, start):
            self._refuse_keyword(word, start)
        return self._match(self._field, pattern_of(pieces), start)

    def _refuse_keyword(self, word: str, start: int) -> None:
        if word.upper() in KEYWORDS:
            where = "between two terms" if word.upper() != "NOT" else "before a term"
            raise self._error(
                f'the operator {word.upper()} stands {where}, in capitals; write "{word}" in quotes for the word',
                start,
            )

    def _with_field(self, field: str, start: int) -> Expression:
        if self._field != ANY_FIELD:
            raise self._error(
                f"this group belongs to {self._field}; write another field outside of its parentheses", start
            )
        if self._peek() in _COMPARES:
            return self._comparison(field)
        self._at += 1
        self._skip()
        if self._peek() == "(":
            self._field = field
            expression = self._group()
            self._field = ANY_FIELD
            return expression
        return self._value(field)

    def _value(self, field: str) -> Expression:
        start = self._at
        if self._peek() in _OPENS_RANGE:
            return self._range(field)
        if self._peek() in _COMPARES:
            return self._comparison(field)
        pieces = self._quoted() if self._peek() == '"' else self._word(start)
        word = _text_of(pieces)
        if word in KEYWORDS and self._text.startswith(word, start):
            raise self._error(
                f'a value is missing after {field}; write it before {word}, or "{word}" in quotes', start
            )
        if self._text.startswith(_GEO_QUERY, start):
            raise self._error("queries by distance are not supported; compare latitude and longitude", start)
        self._end_value(field)
        return self._match(field, pattern_of(pieces), start)

    def _end_value(self, field: str) -> None:
        if self._peek() in _NOT_AFTER_VALUE:
            raise self._error(
                f"{self._peek()!r} within a value of {field}; put a backslash before it, or the value in quotes"
            )
        self._skip()

    def _match(self, field: str, pattern: Pattern, start: int) -> Expression:
        self._count_term(start)
        if pattern == _ALL:
            return Everything() if field == ANY_FIELD else Exists(field)
        return Match(field, pattern)

    def _count_term(self, start: int) -> None:
        self._term_count += 1
        if self._term_count > TERM_COUNT_MAX:
            raise self._error(f"more than {TERM_COUNT_MAX} terms; ask in several queries", start)

    def _field_name(self, pieces: list[Piece], start: int) -> str:
        name = _text_of(pieces)
        name = _OTHER_NAMES.get(name, name)
        if len(name) > FIELD_LENGTH_MAX:
            raise self._error(f"no field's name has more than {FIELD_LENGTH_MAX} characters", start)
        if name.endswith("!"):
            raise self._error("there is no operator !=; write NOT before the field", start)
        if any(is_wildcard for _, is_wildcard in pieces):
            raise self._error(
                "a field's name has no wildcards; name one field, or ask for a word in any", start
            )
        root, dot, rest = name.partition(".")
        if name not in FIELDS and (root not in ROOTS or (dot and not rest)):
            known = ", ".join((*FIELDS, *(f"{root}.NAME" for root in ROOTS)))
            raise self._error(
                f"there is no field {name!r}; fields: {known}. A colon within a value needs a backslash before it",
                start,
            )
        return name

    # Comparisons and ranges

    def _comparison(self, field: str) -> Range:
        start = self._at
        if field == ANY_FIELD:
            raise self._error("a comparison needs a field before it: shadow.reported.NAME>30")
        sign = self._peek() + "=" * self._text.startswith("=", self._at + 1)
        self._at += len(sign)
        self._skip()
        bound = self._bound(field)
        if bound is None:
            raise self._error(f"{field}{sign} needs a number or a text, not *")
        self._end_value(field)
        self._count_term(start)
        if sign[0] == ">":
            return Range(field, bound, None, is_low_included=sign == ">=")
        return Range(field, None, bound, is_high_included=sign == "<=")

    def _range(self, field: str) -> Expression:
        start = self._at
        if field == ANY_FIELD:
            raise self._error("a range needs a field before it: shadow.reported.NAME:[1 TO 5]")
        is_low_included = self._peek() == "["
        self._at += 1
        self._skip()
        low = self._bound(field)
        self._skip()
        if not (self._text.startswith("TO", self._at) and self._ends_word(self._at + 2)):
            raise self._error("a range has TO between its bounds: [1 TO 5]")
        self._at += 2
        self._skip()
        high = self._bound(field)
        self._skip()
        if self._peek() not in _CLOSES_RANGE:
            raise self._error(
                "this range is never closed; write ] to include its end, or } to leave it out", start
            )
        is_high_included = self._peek() == "]"
        self._at += 1
        self._end_value(field)
        self._count_term(start)
        if low is None and high is None:
            return Exists(field)
        if low is not None and high is not None and (type(low) is str) != (type(high) is str):
            raise self._error(
                "one bound is a number and the other a text; put both in quotes for texts", start
            )
        return Range(
            field, low, high, low is not None and is_low_included, high is not None and is_high_included
        )

    def _bound(self, field: str) -> Number | str | None:
        """Return a number, a text, or None for `*`."""
        start = self._at
        if self._peek() == '"':
            return _text_of(self._quoted())
        pieces = self._word(start)
        text = _text_of(pieces)
        if pieces == [("*", True)]:
            return None
        if any(is_wildcard for _, is_wildcard in pieces):
            raise self._error(
                f"a bound of {field} has no wildcards; write a number, a text, or * for no bound", start
            )
        number = number_of(text)
        if number is None and is_number(text):
            raise self._error(
                "this number is larger than any that is searched for; use * for no bound", start
            )
        return text if number is None else number

    # Characters

    def _word(self, start: int) -> list[Piece]:
        pieces: list[Piece] = []
        while not self._ends_word(self._at):
            character = self._peek()
            if character == "\\":
                self._at += 1
                if self._at == len(self._text):
                    raise self._error("a backslash at the end; write the character that it stands before")
                pieces.append((self._peek(), False))
            elif character in _UNSUPPORTED:
                raise self._error(
                    f"{_UNSUPPORTED[character]} is not supported; write \\{character} for the character"
                )
            else:
                pieces.append((character, character in ("*", "?")))
            self._at += 1
        if not pieces:
            found = repr(self._peek()) if self._peek() else "the end"
            raise self._error(f"a term is missing before {found}; write one, or * for all things", start)
        return pieces

    def _quoted(self) -> list[Piece]:
        start = self._at
        pieces: list[Piece] = []
        self._at += 1
        while self._peek() != '"':
            if self._peek() == "\\":
                self._at += 1
            if self._at >= len(self._text):
                raise self._error('these quotes are never closed; write " at the end of the text', start)
            pieces.append((self._peek(), False))
            self._at += 1
        self._at += 1
        return pieces

    def _peek(self) -> str:
        """Return the next character, or nothing at the end."""
        return self._text[self._at : self._at + 1]

    def _ends_word(self, at: int) -> bool:
        character = self._text[at : at + 1]
        return not character or character in _ENDS_WORD or _IS_SPACE.match(character) is not None

    def _skip(self) -> None:
        found = _SPACE.match(self._text, self._at)
        self._at = found.end() if found else self._at

    def _error(self, problem: str, at: int | None = None) -> QueryError:
        return QueryError.at((self._at if at is None else at) + 1, problem)
