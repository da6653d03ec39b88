r"""Fleet queries in the grammar of AWS IoT's fleet index: `shadow.reported.temperature>30 AND attributes.site:ber`.

This docstring is the reference. What the public guide leaves open is marked "open" with what was decided. Queries by
distance (`geo_distance,...`) are refused.

    query      = either
    either     = all { ("OR" | "||") all }
    all        = one { ["AND" | "&&"] one }                  terms side by side are joined by AND
    one        = ("NOT" | "-" | "!") one | "(" either ")" | clause
    clause     = field (":" | "=") value | field comparison | word
    value      = word | range | comparison | "(" either ")"  in the parentheses: values of that field, no other field
    comparison = (">" | ">=" | "<" | "<=") bound
    range      = ("[" | "{") bound "TO" bound ("]" | "}")    square: the bound is within; curly: it is not
    bound      = number | text | "*"                         "*": no bound on that side
    word       = characters | '"' any text '"'

Within a word `*` stands for any characters and `?` for one, wherever they stand; a backslash takes the meaning from
the character after it, and so do quotes (but for `"` and `\`, which have a backslash before them there). White space
and `( ) [ ] { } " : < > =` end a word; `~` and `^`, which ask for what is not supported, need a backslash. A hyphen
or exclamation mark excludes only at the beginning of a term: `-5` after `field:` is a number. AND, OR and NOT are
capitals; in small letters they are refused rather than searched for. NOT binds before AND, AND before OR.

What a term says of a thing:

    *                     every thing
    word                  some field has it: names, type, groups, values of attributes, desired and reported of every
                          shadow, and what Device Defender knows; not connectivity, metadata and versions
    field:word            the field has it
    field:*               the field is there, whatever it holds (open: also an empty object or array)
    field>bound, range    the field lies there
    NOT term              the term does not hold: also where the field is missing

A text *has* a word if one of its own words is the same, whatever the case of the letters; words are parted by white
space, and several words in quotes must stand side by side. A number has a word that is written as an equal number
(`21` has `21.0`), a boolean one that is `true` or `false`; quotes make no difference to that, wildcards fit texts only.
Bounds that are numbers compare with numbers, and with texts that are written as one (attributes are always texts);
bounds that are texts, or in quotes, compare with texts as a whole, by code point, without regard to case. Of an
array, any element will do, in arrays of objects likewise.

Names of fields are case sensitive: thingName, thingId, thingTypeName, thingGroupNames, attributes.NAME,
shadow.desired.PATH, shadow.reported.PATH, shadow.metadata.PATH, shadow.hasDelta, shadow.version,
shadow.name.SHADOW.PATH (where PATH begins with desired, reported, ... again), connectivity.connected,
connectivity.timestamp (ms), connectivity.disconnectReason, deviceDefender.PATH; and beyond the service's own: model,
origin. A name with other roots is refused: a slip in a name would else select nothing, or with NOT everything. All
that follows `attributes.` is one name. In a PATH a dot parts the names of nested objects; a key that has dots itself
is found by the same path (`reported.a.b` finds `{"a": {"b": 1}}` and `{"a.b": 1}`). Other marks in a name, `:` for
example, need a backslash or quotes around the whole name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from twins.query_grammar import parse_expression
from twins.query_terms import ANY_FIELD, And, Everything, Exists, Expression, Not, Or, Term, terms_of

# Where a word without a field is looked for.
_SEARCHED: Final = (
    "thingName",
    "thingId",
    "thingTypeName",
    "thingGroupNames",
    "model",
    "origin",
    "attributes",
    "deviceDefender",
)
_SECTIONS: Final = ("desired", "reported")


@dataclass(frozen=True)
class Query:
    """A fleet query that has been read; `str` gives its text in full, which reads back as an equal query."""

    expression: Expression

    def fields(self) -> frozenset[str]:
        """Return the names of the fields that are asked for; "*" stands for a word in any field."""
        return frozenset(term.field for term in terms_of(self.expression))

    def needs(self, root: str) -> bool:
        """Tell whether the answer may depend on a part of the document: `shadow`, `connectivity`, `thingName` ..."""
        searched = root in _SEARCHED or root == "shadow"
        return any(
            field.partition(".")[0] == root or (field == ANY_FIELD and searched) for field in self.fields()
        )

    def __str__(self) -> str:
        return str(self.expression)


def parse(text: str) -> Query:
    """Return the query that a text says; QueryError says at which column it can't be read and what to change."""
    return Query(parse_expression(text))


def matches(query: Query, document: Mapping[str, Any]) -> bool:
    """Tell whether a thing is asked for, given its document as the fleet index has it.

    `{thingName, thingId, thingTypeName, thingGroupNames: [...], attributes: {...}, shadow: {desired, reported,
    metadata, hasDelta, version, name: {SHADOW: {the same}}}, connectivity: {connected, timestamp, disconnectReason},
    deviceDefender: {...}, model, origin}`; what is absent or None is missing.
    """
    return holds(query.expression, document)


def holds(expression: Expression, document: Mapping[str, Any]) -> bool:
    """Tell whether an expression, or a part of one, holds for a document."""
    if isinstance(expression, And):
        return all(holds(part, document) for part in expression.parts)
    if isinstance(expression, Or):
        return any(holds(part, document) for part in expression.parts)
    if isinstance(expression, Not):
        return not holds(expression.part, document)
    return isinstance(expression, Everything) or _term_holds(expression, document)


def _term_holds(term: Term, document: Mapping[str, Any]) -> bool:
    if isinstance(term, Exists):
        return next(_found(document, term.field), None) is not None
    if term.field == ANY_FIELD:
        return any(
            term.accepts(value) for part in _searched(document) for value in _scalars(part, in_objects=True)
        )
    found = _found(document, term.field)
    return any(term.accepts(value) for each in found for value in _scalars(each, in_objects=False))


def _searched(document: Mapping[str, Any]) -> Iterator[Any]:
    for root in _SEARCHED:
        yield document.get(root)
    shadow = document.get("shadow")
    if isinstance(shadow, Mapping):
        named = shadow.get("name")
        for each in (shadow, *(named.values() if isinstance(named, Mapping) else ())):
            if isinstance(each, Mapping):
                yield from (each.get(section) for section in _SECTIONS)


def _scalars(value: Any, *, in_objects: bool) -> Iterator[Any]:
    """Yield a value that is a scalar, or those of an array, at any depth; those in objects where that is asked for."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list | tuple):
            waiting.extend(value)
        elif isinstance(value, Mapping):
            if in_objects:
                waiting.extend(value.values())
        elif value is not None:
            yield value


def values_of(document: Mapping[str, Any], field: str) -> Iterator[Any]:
    """Yield the scalars that stand in a document under a field's name, those of arrays one by one."""
    for each in _found(document, field):
        yield from _scalars(each, in_objects=False)


def _found(document: Mapping[str, Any], field: str) -> Iterator[Any]:
    """Yield what stands in a document under a field's name, without None; several things where keys have dots."""
    root, _, rest = field.partition(".")
    value = document.get(root)
    if root == "attributes" and rest:
        found = value.get(rest) if isinstance(value, Mapping) else None
        if found is not None:
            yield found
        return
    waiting = [(value, rest.split(".") if rest else [])]
    while waiting:
        value, path = waiting.pop()
        if not path:
            if value is not None:
                yield value
        elif isinstance(value, list | tuple):
            waiting.extend((element, path) for element in value)
        elif isinstance(value, Mapping):
            for length in range(1, len(path) + 1):
                key = ".".join(path[:length])
                if key in value:
                    waiting.append((value[key], path[length:]))
