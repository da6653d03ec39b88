"""Laws of fleet queries: any text is read or refused, what is read says the same again, columns answer as documents."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.property.json_values import BORDERS
from twins.columns import QueryColumn
from twins.description import indexed
from twins.errors import QueryError
from twins.fleet_answer import FleetQuestion, answer_question
from twins.messages import Batch, Operation, Request
from twins.model import Attribute, Group
from twins.query import Query, holds, matches, parse
from twins.query_columns import columns_of, mask, row_document
from twins.query_grammar import pattern_of
from twins.query_terms import ANY_FIELD, And, Everything, Exists, Expression, Match, Not, Or, Pattern, Range
from twins.shadow import encode_json
from twins.shard import Shard
from twins.shipped import model_named
from twins.table import TwinTable

NOW_S = 1_700_000_000
GROUP = Group(
    "homes",
    model_named("thermostat"),
    "home-{i}",
    10,
    1,
    NOW_S,
    attributes=(Attribute("site", ("ber", "Par is")),),
)

# Texts

MARKS = '( ) [ ] { } " : < > >= = * ? \\ - ! & | ~ ^ TO AND OR NOT and a b 5 -5 1e9 .'
OTHERS = (" ", "  ", "thingName", "attributes.", "shadow.reported.x", "ü", "\u2003", "\ud800", "\x00")
grammar_text = st.lists(st.sampled_from([*MARKS.split(), *OTHERS]), max_size=30).map("".join)


def read(text: str) -> Query | QueryError:
    try:
        return parse(text)
    except QueryError as error:
        return error


@settings(max_examples=500)
@given(st.text(max_size=40) | grammar_text)
@example("\\")
@example('"\\')
@example("a:[1 TO")
@example("NOT " * 3000)
@example("(" * 8000)
@example("thingName:(" * 700)
@example("[" * 8000)
@example('"' * 8001)
def test_any_text_is_read_or_refused_with_its_place(text: str) -> None:
    query = read(text)
    if isinstance(query, QueryError):
        assert 1 <= query.column <= len(text) + 1
        return
    assert parse(str(query)) == query
    matches(query, {"thingName": text, "shadow": {"reported": {"x": text}}})


# Expressions, also such as no text says at once

FIELDS = (
    "thingName",
    "attributes.site",
    "attributes.updated_at",
    "attributes.none",
    "attributes",
    "model",
    "origin",
    "connectivity.connected",
    "connectivity",
    "shadow.reported.temperature",
    "shadow.reported.temperature_at",
    "shadow.reported.uptime",
    "shadow.reported.firmware_version",
    "shadow.reported",
    "shadow.desired.set_point",
    "shadow.desired.x",
    "shadow.hasDelta",
    "shadow.version",
    "shadow.metadata.reported.temperature.timestamp",
    "shadow.name.config.reported.x",
    "deviceDefender.x y",
)
NUMBERS = tuple(
    value for value in BORDERS if type(value) in (int, float) and len(str(value)) < 300 and abs(value) < 1e307
)
WORDS = (
    "home-7",
    "lamp",
    "door",
    "ber",
    "PAR",
    "is",
    "1.0.0",
    "true",
    "false",
    "thermostat",
    "",
    "a*b",
    "NOT",
)

pieces = st.lists(
    st.tuples(st.characters(), st.just(False)) | st.sampled_from([("*", True), ("?", True)]), max_size=6
)
patterns = (
    st.sampled_from(WORDS).map(lambda word: [(character, False) for character in word])
    | st.sampled_from(WORDS).map(lambda word: [*((c, False) for c in word[:2]), ("*", True)])
    | st.sampled_from(NUMBERS).map(lambda number: [(character, False) for character in str(number)])
    | pieces
).map(pattern_of)
fields = st.sampled_from(FIELDS)
ALL = pattern_of([("*", True)])


def a_match(field: str, pattern: Pattern) -> Expression:
    if pattern == ALL:
        return Everything() if field == ANY_FIELD else Exists(field)
    return Match(field, pattern)


def a_range(field: str, bounds: tuple[Any, Any], *, low: bool, high: bool) -> Expression:
    if bounds == (None, None):
        return Exists(field)
    return Range(field, *bounds, bounds[0] is not None and low, bounds[1] is not None and high)


number_bounds = st.tuples(st.none() | st.sampled_from(NUMBERS), st.none() | st.sampled_from(NUMBERS))
text_bounds = st.tuples(
    st.none() | st.sampled_from(WORDS), st.none() | st.sampled_from(WORDS) | st.text(max_size=3)
)
terms = (
    st.builds(a_match, fields | fields | st.just(ANY_FIELD), patterns)
    | st.builds(a_range, fields, number_bounds | text_bounds, low=st.booleans(), high=st.booleans())
    | st.builds(Exists, fields)
)
expressions = st.recursive(
    terms,
    lambda inner: (
        st.builds(Not, inner)
        | st.lists(inner, min_size=2, max_size=3).map(lambda parts: And(tuple(parts)))
        | st.lists(inner, min_size=2, max_size=3).map(lambda parts: Or(tuple(parts)))
    ),
    max_leaves=6,
)

values = (
    st.sampled_from(BORDERS)
    | st.sampled_from(WORDS)
    | st.lists(st.sampled_from([*WORDS, *NUMBERS]), max_size=3)
)
documents = st.fixed_dictionaries(
    {},
    optional={
        "thingName": st.sampled_from(WORDS),
        "attributes": st.dictionaries(st.sampled_from(["site", "updated_at"]), st.sampled_from(WORDS)),
        "connectivity": st.fixed_dictionaries({"connected": st.booleans()}),
        "deviceDefender": st.fixed_dictionaries({"x y": values}),
        "shadow": st.fixed_dictionaries(
            {},
            optional={
                "reported": st.dictionaries(st.sampled_from(["temperature", "uptime"]), values),
                "desired": st.dictionaries(st.sampled_from(["set_point", "x"]), values),
                "hasDelta": st.booleans(),
                "name": st.just({"config": {"reported": {"x": 5}}}),
            },
        ),
    },
)


@settings(max_examples=400)
@given(expressions, documents)
def test_what_is_written_of_an_expression_asks_for_the_same(expression: Expression, document: Any) -> None:
    query = parse(str(expression))
    assert parse(str(query)) == query
    assert matches(query, document) == holds(expression, document)
    assert matches(parse(f"NOT ({query})"), document) != matches(query, document)


@given(expressions, expressions, documents)
def test_operators_are_those_of_logic(left: Expression, right: Expression, document: Any) -> None:
    a, b = holds(left, document), holds(right, document)
    assert matches(parse(f"({left}) AND ({right})"), document) == (a and b)
    assert matches(parse(f"({left}) ({right})"), document) == (a and b)
    assert matches(parse(f"({left}) OR ({right})"), document) == (a or b)
    assert matches(parse(f"-({left}) -({right})"), document) == (not a and not b)


# Columns

states = st.fixed_dictionaries(
    {},
    optional={
        "desired": st.dictionaries(
            st.sampled_from(["set_point", "x"]), st.sampled_from((20.5, 21, 21.0, None, *BORDERS)), max_size=2
        ),
        "reported": st.dictionaries(
            st.sampled_from(["temperature", "set_point", "uptime", "firmware_version", "temperature_at"]),
            st.sampled_from((20.5, 21.0, 7, "1.0.0", "9.9.9", *BORDERS)),
            max_size=4,
        ),
    },
)
attributes = st.dictionaries(
    st.sampled_from(["site", "updated_at", "reported_x"]), st.sampled_from(WORDS), max_size=2
)
entries_of_a_table = st.lists(
    st.tuples(st.sampled_from(["lamp", "door", "home-7", "home-8"]), states, attributes), max_size=6
)


def shard_of(entries: list[tuple[str, Any, dict[str, str]]]) -> Shard:
    """Return a shard of real thermostats and simulated ones, with these states."""
    shard = Shard(0, 1)
    shard.create_group(GROUP)
    for thing, state, known in entries:
        if not thing.startswith("home-"):
            payload = encode_json({"model": "thermostat", "attributes": known})
            shard.apply(Batch("", 0, [Request(Operation.REGISTER, thing, payload)]), NOW_S)
        update = Request(Operation.SHADOW_UPDATE, thing, encode_json({"state": state}))
        shard.apply(Batch("", 0, [update]), NOW_S)
    return shard


def row_count(columns: dict[str, QueryColumn]) -> int:
    return len(columns["name"].values)


@settings(max_examples=300)
@given(entries_of_a_table, expressions)
def test_columns_answer_every_query_as_documents_do(entries: list[Any], expression: Expression) -> None:
    query = Query(expression)
    shard = shard_of(entries)
    wanted = columns_of(query)
    some = list(shard.select(None if wanted is None else wanted | {"name"}))
    for columns, asked in zip(shard.select(None), some, strict=True):
        count = row_count(columns)
        expected = [matches(query, row_document(columns, row)) for row in range(count)]
        assert mask(query, columns, count).tolist() == expected
        assert mask(query, asked, count).tolist() == expected
        assert mask(query, columns, count).dtype == np.bool_


@settings(max_examples=200)
@given(entries_of_a_table, expressions)
@example(
    [("lamp", {"reported": {"temperature": "21"}}, {})],
    Match("shadow.reported.temperature", pattern_of([("2", False), ("1", False)])),
)
@example(
    [("home-7", {"reported": {"temperature": [50]}}, {})], Range("shadow.reported.temperature", 40, None)
)
@example([("lamp", {"desired": {"x": 1}}, {})], Exists("shadow.desired.x"))
def test_a_shard_answers_every_query_as_the_documents_of_its_twins_do(
    entries: list[Any], expression: Expression
) -> None:
    query = Query(expression)
    shard = shard_of(entries)
    expected = []
    for thing in ("lamp", "door", *(f"home-{number}" for number in range(10))):
        asked = Request(Operation.DESCRIBE, thing, b"", "", is_direct=True)
        [reply] = shard.apply(Batch("", 0, [asked]), NOW_S).replies
        if reply.status == 200:
            described = msgspec.json.decode(reply.payload)
            whole = {name: described[name] for name in ("thingName", "model", "origin", "attributes")}
            if matches(query, whole | indexed(described)):
                expected.append(thing)
    answer = answer_question(shard, FleetQuestion(str(query), name_count_max=20), NOW_S)
    assert (answer.count, answer.names) == (len(expected), sorted(expected))


# One of many ways to say 21 degrees, some of which columns hold.
degrees = st.sampled_from([21, 21.0, 21.55, 2**60, "21", None, [21], True])
steps = st.lists(
    st.tuples(
        st.sampled_from(["lamp", "door", "home-7"]),
        st.sampled_from(["report", "wish", "leave", "keep"]),
        degrees,
    ),
    max_size=12,
)


@settings(max_examples=150)
@given(steps)
def test_columns_that_are_read_again_and_again_say_what_is_so_each_time(history: list[Any]) -> None:
    shard = shard_of([])
    for thing, what, value in history:
        if what == "leave":
            shard.apply(Batch("", 0, [Request(Operation.UNREGISTER, thing, b"")]), NOW_S)
        elif what == "keep":
            shard.write_rows()
            for table in (*shard.tables.values(), *(fleet.table for fleet in shard.fleets.values())):
                table.overflow.packed()
        else:
            section, field = ("reported", "temperature") if what == "report" else ("desired", "set_point")
            if not thing.startswith("home-"):
                shard.apply(
                    Batch("", 0, [Request(Operation.REGISTER, thing, b'{"model": "thermostat"}')]), NOW_S
                )
            update = encode_json({"state": {section: {field: value, "text": "x"}}})
            shard.apply(Batch("", 0, [Request(Operation.SHADOW_UPDATE, thing, update)]), NOW_S)
        found = {}
        for columns in shard.select(None):
            for row in range(row_count(columns)):
                name = columns["name"].cell(row)
                found[name] = {
                    at: columns[at].cell(row)
                    for at in ("reported_temperature", "desired_set_point", "desired_set_point_at")
                    if at in columns
                }
        for name, cells in found.items():
            [reply] = shard.apply(
                Batch("", 0, [Request(Operation.DESCRIBE, name, b"", "", is_direct=True)]), NOW_S
            ).replies
            shadow = msgspec.json.decode(reply.payload)["shadow"] or {}
            wished = shadow.get("desired", {}).get("set_point")
            told = (shadow.get("reported", {}).get("temperature"), wished)
            numbers = [float(each) if type(each) in (int, float) else None for each in told]
            assert [cells["reported_temperature"], cells["desired_set_point"]] == numbers
            is_there = wished is not None and type(wished) is not list
            assert (cells["desired_set_point_at"] is not None) == is_there


# Every kind of term on every kind of column, so that none is left to luck.
TERMS: tuple[Expression, ...] = (
    *(a_match(ANY_FIELD, pattern_of([(c, False) for c in str(value)])) for value in (*WORDS, *NUMBERS)),
    *(
        term
        for field in FIELDS
        for term in (
            Exists(field),
            *(a_match(field, pattern_of([(c, False) for c in str(value)])) for value in (*WORDS, *NUMBERS)),
            *(Range(field, value, None, is_low_included=low) for value in NUMBERS for low in (True, False)),
            *(
                Range(field, None, value, is_high_included=high)
                for value in NUMBERS
                for high in (True, False)
            ),
            *(Range(field, value, None) for value in WORDS),
            *(Range(field, None, value, is_high_included=True) for value in WORDS),
        )
    ),
)


@settings(max_examples=12)
@given(entries_of_a_table)
@example([])
@example(
    [
        (
            "lamp",
            {"reported": {"temperature": 0.0, "uptime": 0}, "desired": {"set_point": 21.5}},
            {"site": "ber"},
        ),
        ("door", {"reported": {"temperature": 2**53 + 1, "uptime": 1, "firmware_version": "true"}}, {}),
        ("lock", {"reported": {"temperature": 21.0, "set_point": 21.0}, "desired": {"set_point": 21.0}}, {}),
        ("home-7", {"reported": {"temperature": 1e15, "firmware_version": "1.0.0"}}, {}),
        (
            "home-8",
            {"reported": {"temperature": 20.13, "uptime": 2**32 - 1}, "desired": {"set_point": 5.0}},
            {},
        ),
    ]
)
def test_columns_answer_every_kind_of_term(entries: list[Any]) -> None:
    for columns in shard_of(entries).select(None):
        count = row_count(columns)
        rows = [row_document(columns, row) for row in range(count)]
        for term in TERMS:
            expected = [holds(term, document) for document in rows]
            assert mask(Query(term), columns, count).tolist() == expected, str(term)


@given(entries_of_a_table)
def test_a_row_whose_columns_hold_everything_stands_for_the_whole_document(entries: list[Any]) -> None:
    shard = shard_of(entries)
    shard.write_rows()
    for columns in shard.select(None):
        is_real = columns["origin"].choices == ("real",)
        table: TwinTable = (
            shard.tables["thermostat"] if is_real and row_count(columns) else shard.fleets["homes"].table
        )
        for row in range(row_count(columns)):
            if row in table.overflow:
                continue
            document = table.load(row)
            said = msgspec.to_builtins(document.document(NOW_S))
            found = row_document(columns, row).get("shadow", {})
            assert {section: found[section] for section in ("desired", "reported") if section in found} == {
                section: value for section, value in said["state"].items() if section != "delta"
            }
            assert found.get("metadata", {}) == said["metadata"]
            assert found.get("hasDelta", False) == ("delta" in said["state"])
            assert found.get("version") == (document.version if document.exists else None)


def test_a_field_beside_its_stamp_is_not_taken_for_it() -> None:
    shard = shard_of([("lamp", {"reported": {"temperature": 20.5}}, {})])
    columns = next(part for part in shard.select(None) if row_count(part) == 1)
    assert not mask(parse("shadow.reported.temperature_at:*"), columns, 1).any()
    assert mask(parse("shadow.metadata.reported.temperature.timestamp>0"), columns, 1).all()


def test_a_delta_of_texts_is_found_whatever_their_positions_are() -> None:
    present = np.array([True, True, True, False])
    stamps = QueryColumn(np.ones(4, np.uint32), present)
    columns = {
        "name": QueryColumn(["a", "b", "c", "d"]),
        "updated_at": QueryColumn(np.ones(4, np.uint32), np.array([True, True, True, False])),
        "desired_mode": QueryColumn(np.array([0, 1, 1, 0]), present, ("eco", "max")),
        "desired_mode_at": stamps,
        "reported_mode": QueryColumn(
            np.array([2, 1, 0, 0]), np.array([True, True, False, True]), ("off", "max", "eco")
        ),
        "reported_mode_at": stamps,
    }
    query = parse("shadow.hasDelta:true")
    assert mask(query, columns, 4).tolist() == [False, False, True, False]
    assert [matches(query, row_document(columns, row)) for row in range(4)] == [False, False, True, False]
