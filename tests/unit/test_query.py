"""What fleet queries ask for, term by term, and what is said to those that can't be read."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from twins.errors import QueryError
from twins.query import Query, matches, parse
from twins.query_grammar import LENGTH_MAX, NESTING_MAX, TERM_COUNT_MAX

# Times of one device, in ms.
CONNECTED_AT = 1_557_700_000_000
THING: dict[str, Any] = {
    "thingName": "Lamp-7",
    "thingId": "0a1b",
    "thingTypeName": "Lamp",
    "thingGroupNames": ["hall", "Ground-Floor"],
    "model": "thermostat",
    "origin": "real",
    "attributes": {
        "site": "ber",
        "serial": "007",
        "load": "75",
        "a.b": "dotted",
        "mac": "aa:bb",
        "room": "Living  Room 12",
        "star": "a*b",
        "quote": 'say "hi"',
        "empty": "",
        "name": "NOT",
    },
    "shadow": {
        "desired": {"set_point": 21.0, "only": {"wanted": 1}},
        "reported": {
            "temperature": 30.5,
            "count": 3,
            "big": 2**60 + 1,
            "on": True,
            "off": False,
            "text": "true",
            "digits": "31",
            "stats": {"battery": 80, "cells": [{"v": 1}, {"v": 2}]},
            "values": [1, 2, [3, "four"]],
            "x.y": {"z": 5},
            "nothing": {},
            "none": [],
            "version": "v2",
        },
        "metadata": {"reported": {"temperature": {"timestamp": 1700000000}}},
        "hasDelta": True,
        "version": 4,
        "name": {"config": {"reported": {"mode": "eco"}, "desired": {"level": 9}, "hasDelta": False}},
    },
    "connectivity": {"connected": True, "timestamp": CONNECTED_AT, "disconnectReason": None},
    "deviceDefender": {"violationCount": 2},
}

FOUND = [
    # everything, and words in any field
    "*",
    "**",
    "lamp-7",
    "LAMP-7",
    "hall",
    "ber",
    "eco",
    "fou?",
    "living",
    '"living room"',
    "9",
    "30.5",
    "thermostat",
    # fields; search disregards case, names of fields do not
    "thingName:Lamp-7",
    "thingName:lamp-7",
    "thingName = lamp-7",
    "thingName : lamp-7",
    "thingName:lamp*",
    "thingName:*-7",
    "thingName:*amp*",
    "thingName:la?p-7",
    "thingName:l*p*7",
    'thingName:"Lamp-7"',
    "thingTypeName:lamp",
    "thingType:lamp",
    "registry.thingTypeName:lamp",
    "thingGroupNames:hall",
    "thingGroupNames:ground*",
    "thingGroupNames:ground* thingGroupNames:hall",
    "registry.thingGroupNames:hall",
    "model:thermostat",
    "attributes.site:ber",
    "attributes.a.b:dotted",
    r"attributes.mac:aa\:bb",
    'attributes.mac:"aa:bb"',
    r"attributes.star:a\*b",
    'attributes.star:"a*b"',
    r"attributes.star:a\*?",
    r'attributes.quote:"say \"hi\""',
    'attributes.empty:""',
    "attributes.empty:*",
    'attributes.name:"NOT"',
    # words of a text
    "attributes.room:living",
    "attributes.room:room",
    'attributes.room:"living room"',
    'attributes.room:"room  12"',
    r"attributes.room:living\ r*",
    "attributes.room:12",
    # numbers and booleans go by value
    "shadow.reported.temperature:30.5",
    "shadow.reported.temperature:30.50",
    'shadow.reported.temperature:"30.5"',
    "shadow.reported.count:3",
    "shadow.reported.count:3.0",
    "shadow.reported.big:1152921504606846977",
    "shadow.desired.set_point:21",
    "shadow.reported.on:true",
    "shadow.reported.on:TRUE",
    "shadow.reported.off:false",
    "shadow.reported.text:true",
    "shadow.hasDelta:true",
    "shadow.hasDelta = true",
    "shadow.name.config.hasDelta:false",
    "shadow.name.config.reported.mode:eco",
    "shadow.version:4",
    "shadow.metadata.reported.temperature.timestamp>=1700000000",
    "connectivity.connected:true",
    "deviceDefender.violationCount>1",
    # comparisons
    "shadow.reported.temperature>30",
    "shadow.reported.temperature >= 30.5",
    "shadow.reported.temperature<31",
    "shadow.reported.temperature<=30.5",
    "shadow.reported.temperature:>30",
    "shadow.reported.count>-1",
    "shadow.reported.big>1152921504606846976",
    "attributes.load>=75",
    "shadow.reported.digits>30",
    f"connectivity.timestamp : [{CONNECTED_AT - 1} TO {CONNECTED_AT}]",
    # ranges
    "attributes.load:[75 TO 80]",
    "attributes.load:{74 TO 75]",
    "shadow.reported.temperature:[30.5 TO 30.5]",
    "shadow.reported.temperature:[* TO 31}",
    "shadow.reported.temperature:{30 TO *]",
    "shadow.reported.temperature:[* TO *]",
    "shadow.reported.count:[-5 TO 5]",
    'attributes.site:["BEQ" TO "bes"]',
    "attributes.site:[a TO c]",
    "attributes.site>bep",
    'attributes.load:["7" TO "8"]',
    # existence
    "attributes.site:*",
    "shadow.reported.nothing:*",
    "shadow.reported.none:*",
    "shadow.reported.stats:*",
    "shadow.reported:*",
    "shadow.name.config:*",
    "shadow.reported.off:*",
    # paths, arrays
    "shadow.reported.stats.battery:{70 TO 100}",
    "shadow.reported.stats.cells.v:2",
    "shadow.reported.values:2",
    "shadow.reported.values:four",
    "shadow.reported.values>2",
    "shadow.reported.x.y.z:5",
    # operators: NOT before AND before OR
    "thingName:lamp* attributes.site:ber",
    "thingName:lamp* AND attributes.site:ber",
    "thingName:lamp* && attributes.site:ber",
    "thingName:x OR attributes.site:ber",
    "thingName:x || attributes.site:ber",
    "NOT thingName:x",
    "-thingName:x",
    "!thingName:x",
    "NOT NOT hall",
    "hall -cellar",
    "hall NOT cellar",
    "hall OR cellar AND attic",
    "attic AND cellar OR hall",
    "NOT attic OR attic",
    "thingName:(tv* OR lamp*)",
    "thingName:(lamp* AND -plasma)",
    "thingName:(lamp* -plasma)",
    "shadow.reported.count:(>2 AND <4)",
    "shadow.reported.count:([8 TO 9] OR 3)",
    "attributes.site:(* AND -txl)",
    "(((hall)))",
    "hall(living)",
    # what is missing is not there, and so NOT finds it
    "NOT attributes.missing:x",
    "NOT attributes.missing:*",
    "NOT shadow.reported.missing>0",
    "shadow.reported.temperature:* NOT shadow.desired.stats.battery:*",
    "NOT connectivity.disconnectReason:*",
]

NOT_FOUND = [
    "NOT *",
    "cellar",
    "lam",
    "4",  # the version; and words are whole: no part of any number
    "eco AND cellar",
    '"room living"',
    "1557700000000",  # connectivity
    "1700000000",  # metadata
    "thingName:lamp",
    "thingName:Lamp",
    "thingName:amp-7",
    "thingName:la?-7",
    "thingName:lamp-7?",
    r"thingName:lamp\*",
    'thingName:"lamp*"',
    "thingGroupNames:floor",
    "thingGroupNames:(hall AND -ground*)",
    "attributes.Site:ber",
    "attributes.a:*",
    "attributes.serial:7",
    "attributes.site:txl",
    'attributes.room:"living 12"',
    "attributes.room:liv",
    'attributes.site:""',
    r"attributes.star:a\?b",
    # types
    "shadow.reported.on:1",
    "shadow.reported.count:true",
    "shadow.reported.on>0",
    "shadow.reported.off:0",
    "shadow.reported.temperature:3*",
    "shadow.reported.temperature:?0.5",
    "shadow.reported.big:1152921504606846976",
    "shadow.reported.text>0",
    'shadow.reported.temperature>"3"',
    "shadow.reported.stats>0",
    "shadow.reported.stats:80",
    # ranges
    "shadow.reported.temperature>30.5",
    "shadow.reported.temperature<30.5",
    "shadow.reported.temperature:{30.5 TO 31]",
    "shadow.reported.temperature:[30 TO 30.5}",
    "shadow.reported.temperature:[31 TO 30]",
    "shadow.reported.big>1152921504606846977",
    'attributes.load:["8" TO "9"]',
    "attributes.site:{ber TO z]",
    "attributes.site>5",
    # missing
    "attributes.missing:*",
    "shadow.reported.missing:*",
    "shadow.reported.missing<0",
    "connectivity.disconnectReason:*",
    "deviceDefender.other:*",
    "shadow.name.other.hasDelta:false",
    "shadow.reported.stats.cells.w:*",
    # operators
    "hall AND cellar",
    "hall -living",
    "NOT hall OR cellar",
    "attic OR hall AND cellar",
    "hall AND (attic OR cellar)",
    "-(hall OR cellar)",
    "thingName:(tv* OR door*)",
]


@pytest.mark.parametrize("text", FOUND)
def test_a_query_finds_the_thing(text: str) -> None:
    assert matches(parse(text), THING)
    assert not matches(parse(f"NOT ({text})"), THING)


@pytest.mark.parametrize("text", NOT_FOUND)
def test_a_query_does_not_find_the_thing(text: str) -> None:
    assert not matches(parse(text), THING)
    assert matches(parse(f"NOT ({text})"), THING)


@pytest.mark.parametrize("text", FOUND + NOT_FOUND)
def test_a_query_reads_back_as_itself(text: str) -> None:
    query = parse(text)
    assert parse(str(query)) == query
    assert str(parse(str(query))) == str(query)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("a b", "a AND b"),
        ("a && b || c", "a AND b OR c"),
        ("(a OR b) c", "(a OR b) AND c"),
        ("((a AND b)) AND c", "a AND b AND c"),
        ("-a", "NOT a"),
        ("!(a b)", "NOT (a AND b)"),
        ("thingName:(a OR b*)", "thingName:a OR thingName:b*"),
        ("shadow.reported.t:[5 TO *]", "shadow.reported.t>=5"),
        ("shadow.reported.t:{* TO 5}", "shadow.reported.t<5"),
        ("shadow.reported.t : [ 1 TO 2 }", "shadow.reported.t:[1 TO 2}"),
        ("attributes.a:[x TO *]", 'attributes.a>="x"'),
        ("thingName:[* TO *]", "thingName:*"),
        ("thingName=a", "thingName:a"),
        ("thingType:a", "thingTypeName:a"),
        (r"attributes.a\:b:c", r"attributes.a\:b:c"),
        ("  a\t\nb ", "a AND b"),
        ('"and"', '"and"'),
        ("a***b", "a*b"),
        (r"thingName:\*x*", r"thingName:\*x*"),
    ],
)
def test_a_query_is_written_in_one_way(text: str, canonical: str) -> None:
    assert str(parse(text)) == canonical


@pytest.mark.parametrize(
    ("text", "column", "hint"),
    [
        ("", 1, "empty"),
        ("   ", 4, "empty"),
        ("a AND", 6, "missing"),
        ("a OR ", 6, "missing"),
        ("AND a", 1, "between two terms"),
        ("NOT", 4, "missing"),
        ("a and b", 3, "in capitals"),
        ("not a", 1, "in capitals"),
        ("thingName:", 11, "missing"),
        ("thingName: AND a", 12, "value is missing"),
        ("(a", 1, "never closed"),
        ("a)", 2, "unexpected"),
        ("()", 1, "nothing between"),
        ('"a', 1, "never closed"),
        ('"a\\', 1, "never closed"),
        ("a\\", 3, "backslash"),
        ("a:b:c", 1, "no field 'a'"),
        ("thingName:b:c", 12, "backslash"),
        ("thingname:a", 1, "no field 'thingname'"),
        ("atributes.site:a", 1, "no field"),
        ("attributes:a AND attributes.:b", 18, "no field"),
        ("attributes.*:a", 1, "no wildcards"),
        ("attributes.a!=3", 1, "NOT"),
        ("attributes.a:(b attributes.c:d)", 17, "group belongs to attributes.a"),
        ("[1 TO 2]", 1, "needs a field"),
        (">3", 1, "needs a field"),
        ("shadow.reported.a>", 19, "missing"),
        ("shadow.reported.a>*", 20, "not *"),
        ("shadow.reported.a>3*", 19, "no wildcards"),
        ("shadow.reported.a:[1 2]", 22, "TO"),
        ("shadow.reported.a:[1 TO 2", 19, "never closed"),
        ("shadow.reported.a:[1 TO b]", 19, "both in quotes"),
        ("shadow.reported.a>1e999", 19, "larger"),
        ("shadow.reported.a>" + "9" * 500, 19, "larger"),
        ("shadow." + "a" * 600 + ":1", 1, "characters"),
        ("shadow.reported.place:geo_distance,52.5,13.4,10km", 23, "latitude"),
        ("a~2", 2, "fuzzy"),
        ("a^2", 2, "boosting"),
        ("(" * (NESTING_MAX + 1) + "a" + ")" * (NESTING_MAX + 1), NESTING_MAX + 1, "flatter"),
        ("(" * 5000, NESTING_MAX + 1, "flatter"),
        ("NOT " * 1000 + "a", NESTING_MAX * 4 + 1, "flatter"),
        ("a " * (TERM_COUNT_MAX + 1), TERM_COUNT_MAX * 2 + 1, "terms"),
        ("a" * (LENGTH_MAX + 1), LENGTH_MAX + 1, "longer"),
        ("@" * (LENGTH_MAX - 1) + "*", 1, "in full"),
    ],
)
def test_a_query_that_cannot_be_read_says_where_and_what_to_change(text: str, column: int, hint: str) -> None:
    with pytest.raises(QueryError, match="column") as caught:
        parse(text)
    error = caught.value
    assert (error.column, error.code) == (column, 400)
    assert hint in error.message
    again = pickle.loads(pickle.dumps(error))
    assert (again.column, again.message) == (error.column, error.message)


def test_the_largest_query_is_read() -> None:
    nested = "(a OR NOT " * (NESTING_MAX // 2) + "b" + ")" * (NESTING_MAX // 2)
    query = parse(" ".join([nested, *["c"] * (TERM_COUNT_MAX - NESTING_MAX // 2 - 1)]))
    assert parse(str(query)) == query


def test_a_pattern_of_many_stars_takes_no_long_time() -> None:
    query = parse("thingName:" + "*a" * 60 + "*b")
    assert not matches(query, {"thingName": "a" * 128})


@pytest.mark.parametrize(
    ("text", "fields", "shadow", "connectivity"),
    [
        ("*", set(), False, False),
        ("hall", {"*"}, True, False),
        ("thingName:a OR attributes.b>3", {"thingName", "attributes.b"}, False, False),
        ("shadow.name.x.hasDelta:true", {"shadow.name.x.hasDelta"}, True, False),
        ("NOT connectivity.connected:true", {"connectivity.connected"}, False, True),
    ],
)
def test_a_query_says_what_it_needs_to_know(
    text: str, fields: set[str], shadow: bool, connectivity: bool
) -> None:
    query = parse(text)
    assert query.fields() == fields
    assert (query.needs("shadow"), query.needs("connectivity")) == (shadow, connectivity)


@pytest.mark.parametrize("document", [{}, {"shadow": None, "attributes": None}, {"shadow": {"name": None}}])
def test_a_thing_of_which_nothing_is_known_has_no_field(document: dict[str, Any]) -> None:
    for text in ("a", "thingName:*", "attributes.a:*", "shadow.reported.a:*", "shadow.name.b.reported.c>1"):
        assert not matches(parse(text), document)
    assert matches(parse("*"), document)


def test_queries_are_values() -> None:
    assert parse("a AND thingName:b*") == parse("a thingName : b*")
    assert len({parse("a"), parse("(a)"), parse("b")}) == 2
    query = parse("thingName:a* OR shadow.reported.b:[1 TO 2]")
    assert isinstance(query, Query)
    assert matches(query, {"thingName": "ab"})
    assert pickle.loads(pickle.dumps(query)) == query


def test_an_array_of_any_depth_is_searched() -> None:
    value: Any = "deep"
    for _ in range(5000):
        value = [value]
    assert matches(parse("shadow.reported.a:deep"), {"shadow": {"reported": {"a": value}}})
    assert matches(parse("deep"), {"shadow": {"reported": {"a": value}}})
