"""The rules of the device shadow, row by row, as a device sees them on its reply topics."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.asking import NOW_S, answers, delete, get, update
from twins.errors import request_error
from twins.messages import Operation
from twins.model import Group
from twins.shadow import DOCUMENT_BYTES_MAX, TOMBSTONE_S, json_equal
from twins.shard import Shard
from twins.shipped import model_named

HOURS = 3600


@pytest.fixture
def shard() -> Shard:
    return Shard(0, 1)


def desired_after(*patches: Any) -> Any:
    """Return the desired section after some patches to it; None where there is none."""
    shard = Shard(0, 1)
    for patch in patches:
        assert "update/accepted" in update(shard, {"state": {"desired": patch}})
    document = get(shard)
    assert document is not None
    assert shape(document["state"].get("desired")) == shape(document["metadata"].get("desired"))
    return document["state"].get("desired")


def shape(tree: Any) -> Any:
    """Return a tree of state or metadata with None for its leaves."""
    if isinstance(tree, dict) and set(tree) != {"timestamp"}:
        return {key: shape(child) for key, child in tree.items()}
    if isinstance(tree, list):
        return [shape(child) for child in tree]
    return None


@pytest.mark.parametrize(
    ("patches", "merged"),
    [
        # 1: null removes, also what is not there
        ([{"a": 1, "b": 2}, {"a": None}], {"b": 2}),
        ([{"a": 1}, {"b": None}], {"a": 1}),
        ([{"a": {"b": 1, "c": 2}}, {"a": {"b": None}}], {"a": {"c": 2}}),
        ([{"a": {"b": 1}, "z": 1}, {"a": None}], {"z": 1}),
        # 2: objects merge, siblings stay
        ([{"a": {"b": 1}}, {"a": {"c": 2}}], {"a": {"b": 1, "c": 2}}),
        ([{"a": {"b": {"c": 1}}}, {"a": {"b": {"d": 2}}}], {"a": {"b": {"c": 1, "d": 2}}}),
        # 3: everything else replaces whole
        ([{"a": 1}, {"a": 2}], {"a": 2}),
        ([{"a": 1}, {"a": "1"}], {"a": "1"}),
        ([{"a": [1, 2, 3]}, {"a": [4]}], {"a": [4]}),
        ([{"a": [{"b": 1}]}, {"a": [{"c": 2}]}], {"a": [{"c": 2}]}),
        ([{"a": [1]}, {"a": {"b": 1}}], {"a": {"b": 1}}),
        ([{"a": {"b": 1}}, {"a": [1]}], {"a": [1]}),
        ([{"a": {"b": 1}}, {"a": 5}], {"a": 5}),
        ([{"a": 5}, {"a": {"b": 1}}], {"a": {"b": 1}}),
        ([{"a": []}], {"a": []}),
        # 4: a new object comes without its nulls, and not at all if it held nothing else
        ([{"a": {"b": 1, "c": None}}], {"a": {"b": 1}}),
        ([{"z": 1, "a": {"b": None}}], {"z": 1}),
        ([{"z": 1, "a": {"b": {"c": None}}}], {"z": 1}),
        ([{"a": 5}, {"a": {"b": None}}], {"a": 5}),
        # 5: an empty object is a value
        ([{"a": 1, "d": {}}], {"a": 1, "d": {}}),
        ([{"c": 3}, {"c": {}}], {"c": {}}),
        ([{"c": {"a": 1}}, {"c": {}}], {"c": {"a": 1}}),
        ([{"c": {}}, {"c": {"x": None}}], {"c": {}}),
        # 6: a section that ends empty disappears, and so does an object that nulls empty
        ([{"a": 1}, {"a": None}], None),
        ([{"a": {"b": 1}, "z": 1}, {"a": {"b": None}}], {"z": 1}),
        ([{"a": {"b": {"c": 1}}, "z": 1}, {"a": {"b": {"c": None}}}], {"z": 1}),
        # 7: a section of null goes, an empty one changes nothing
        ([{"a": 1}, None], None),
        ([{"a": 1}, {}], {"a": 1}),
        # keys of the service's own are the device's to use
        ([{"timestamp": 1, "desired": {"version": 2}}], {"timestamp": 1, "desired": {"version": 2}}),
        ([{"timestamp": {"timestamp": 1}}, {"timestamp": {"x": 2}}], {"timestamp": {"timestamp": 1, "x": 2}}),
        ([{"": 1, "ü": "\u2028"}], {"": 1, "ü": "\u2028"}),
    ],
)
def test_a_patch_merges_into_a_section(patches: list[Any], merged: Any) -> None:
    assert json_equal(desired_after(*patches), merged)


def test_a_merge_keeps_the_types_of_numbers() -> None:
    kept = desired_after({"whole": 21, "real": 21.0, "flag": True, "large": 2**63})
    assert [type(kept[key]) for key in ("whole", "real", "flag", "large")] == [int, float, bool, int]


@pytest.mark.parametrize(
    ("left", "right", "are_equal"),
    [
        (1, 1.0, True),
        (True, 1, False),
        (False, 0, False),
        (True, True, True),
        ("1", 1, False),
        (None, False, False),
        ([1, {"a": 1.0}], [1.0, {"a": 1}], True),
        ([True], [1], False),
        ({"a": 0}, {"a": False}, False),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ([1, 2], [2, 1], False),
        ([], {}, False),
        (2**53 + 1, float(2**53), False),
    ],
)
def test_values_compare_as_json_does(left: Any, right: Any, are_equal: bool) -> None:
    assert json_equal(left, right) is are_equal
    assert json_equal(right, left) is are_equal


# Versions, times and metadata


def test_the_first_version_is_one_and_each_accepted_update_adds_one(shard: Shard) -> None:
    bodies: list[Any] = [{"desired": {"a": 1}}, {"desired": {"a": 1}}, {"desired": {}}, {}, None]
    versions = [update(shard, {"state": state})["update/accepted"]["version"] for state in bodies]
    assert versions == [1, 2, 3, 4, 5]


def test_an_update_with_the_current_version_is_accepted(shard: Shard) -> None:
    update(shard, {"state": {"desired": {"a": 1}}})
    assert update(shard, {"state": {"desired": {"a": 2}}, "version": 1})["update/accepted"]["version"] == 2


@pytest.mark.parametrize("version", [0, 1, 3, 99])
def test_any_other_version_is_a_conflict(shard: Shard, version: int) -> None:
    for value in (1, 2):
        update(shard, {"state": {"desired": {"a": value}}})
    refused = update(shard, {"state": {"desired": {"a": 9}}, "version": version, "clientToken": "t"})
    assert refused == {
        "update/rejected": {
            "code": 409,
            "message": "Version conflict",
            "timestamp": NOW_S,
            "clientToken": "t",
        }
    }


@pytest.mark.parametrize("was_deleted", [False, True])
@pytest.mark.parametrize("version", [0, 2, 3, 2**70])
def test_a_shadow_that_is_not_there_takes_the_first_version_only(
    shard: Shard, version: int, was_deleted: bool
) -> None:
    if was_deleted:
        update(shard, {"state": {}})
        delete(shard)
    refused = update(shard, {"state": {}, "version": version})["update/rejected"]
    assert (refused["code"], refused["message"]) == (400, "Invalid version")
    assert get(shard) is None
    accepted = update(shard, {"state": {}, "version": 1})["update/accepted"]
    assert accepted["version"] == (3 if was_deleted else 1)


def test_metadata_mirrors_the_state_with_a_stamp_for_each_leaf(shard: Shard) -> None:
    state = {"a": 1, "b": {"c": "x", "d": {}}, "e": [1, [2, 3], {"f": 4}], "g": []}
    accepted = update(shard, {"state": {"reported": state}})["update/accepted"]
    stamp = {"timestamp": NOW_S}
    metadata = {"a": stamp, "b": {"c": stamp, "d": {}}, "e": [stamp, [stamp, stamp], {"f": stamp}], "g": []}
    assert accepted["metadata"] == {"reported": metadata}
    document = get(shard)
    assert document is not None
    assert document["metadata"] == {"reported": metadata}


def test_only_touched_leaves_get_a_new_stamp_equal_values_included(shard: Shard) -> None:
    update(shard, {"state": {"reported": {"a": 1, "b": {"c": 2, "d": 3}}}})
    update(shard, {"state": {"reported": {"a": 1, "b": {"d": 4}}}}, now_s=NOW_S + 5)
    document = get(shard, now_s=NOW_S + 9)
    assert document is not None
    old, new = {"timestamp": NOW_S}, {"timestamp": NOW_S + 5}
    assert document["metadata"]["reported"] == {"a": new, "b": {"c": old, "d": new}}
    assert document["timestamp"] == NOW_S + 9


def test_times_are_whole_seconds(shard: Shard) -> None:
    accepted = update(shard, {"state": {"reported": {"a": 1}}}, now_s=NOW_S + 0.999)["update/accepted"]
    assert accepted["timestamp"] == NOW_S
    assert accepted["metadata"]["reported"]["a"] == {"timestamp": NOW_S}


# Deletion


def test_a_deletion_names_the_deleted_version_and_consumes_one_more(shard: Shard) -> None:
    for value in range(9):
        update(shard, {"state": {"desired": {"a": value}}})
    deleted = delete(shard, {"clientToken": "bye"}, now_s=NOW_S + 1)
    assert deleted == {"delete/accepted": {"version": 9, "timestamp": NOW_S + 1, "clientToken": "bye"}}
    assert get(shard) is None
    assert update(shard, {"state": {"desired": {"b": 1}}})["update/accepted"]["version"] == 11


@pytest.mark.parametrize("content", [b"", b"{}", b'{"anything":1}', b"[1]", b"7"])
def test_the_content_of_a_deletion_does_not_matter(shard: Shard, content: bytes) -> None:
    update(shard, {"state": {"desired": {"a": 1}}})
    assert delete(shard, content)["delete/accepted"] == {"version": 1, "timestamp": NOW_S}


@pytest.mark.parametrize(
    ("pause_s", "version"), [(0, 4), (TOMBSTONE_S - 1, 4), (TOMBSTONE_S, 1), (99 * 24 * HOURS, 1)]
)
@pytest.mark.parametrize("name", ["", "config"])
def test_a_tombstone_keeps_the_version_for_48_hours(
    shard: Shard, pause_s: int, version: int, name: str
) -> None:
    assert TOMBSTONE_S == 48 * HOURS
    for _ in range(2):
        update(shard, {"state": {}}, name=name)
    delete(shard, name=name)
    accepted = update(shard, {"state": {}}, now_s=NOW_S + pause_s, name=name)["update/accepted"]
    assert accepted["version"] == version


def test_a_deletion_of_what_is_not_there_is_refused(shard: Shard) -> None:
    assert delete(shard, {"clientToken": "x"}) == {
        "delete/rejected": {
            "code": 404,
            "message": "No shadow exists with name: 'lamp'",
            "clientToken": "x",
        }
    }
    update(shard, {"state": {}})
    delete(shard)
    assert delete(shard)["delete/rejected"]["code"] == 404


def test_a_shadow_made_again_remembers_nothing_of_the_deleted_one(shard: Shard) -> None:
    update(shard, {"state": {"desired": {"a": 1}, "reported": {"b": 1}}})
    delete(shard)
    said = update(shard, {"state": {"reported": {"c": 1}}})
    assert said["update/documents"]["previous"] is None
    assert said["update/documents"]["current"]["state"] == {"reported": {"c": 1}}


# Delta


@pytest.mark.parametrize(
    ("desired", "reported", "delta"),
    [
        ({"a": 1}, None, {"a": 1}),
        ({"a": 1}, {"a": 1}, None),
        ({"a": 1}, {"a": 1.0}, None),
        ({"a": True}, {"a": 1}, {"a": True}),
        ({"a": "1"}, {"a": 1}, {"a": "1"}),
        ({"a": 1}, {"a": 1, "b": 2}, None),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3, "d": 4}}, {"a": {"c": 2}}),
        ({"a": {"b": {"c": 1}}}, {"a": {"b": {}}}, {"a": {"b": {"c": 1}}}),
        ({"a": {"b": 1}}, {"a": 5}, {"a": {"b": 1}}),
        ({"a": 5}, {"a": {"b": 1}}, {"a": 5}),
        ({"a": [1, 2]}, {"a": [1, 3]}, {"a": [1, 2]}),
        ({"a": [1, {"b": 2}]}, {"a": [1.0, {"b": 2}]}, None),
        ({"a": {}}, {"b": 1}, {"a": {}}),
        ({"a": {}}, {"a": {"b": 1}}, None),
        (None, {"a": 1}, None),
        ({"a": 1, "b": 2}, {"a": 1}, {"b": 2}),
    ],
)
def test_the_delta_is_what_is_desired_and_not_reported(
    shard: Shard, desired: Any, reported: Any, delta: Any
) -> None:
    state = {k: v for k, v in (("desired", desired), ("reported", reported)) if v is not None}
    said = update(shard, {"state": state})
    document = get(shard)
    assert document is not None
    assert json_equal(document["state"].get("delta"), delta)
    assert json_equal(said.get("update/delta", {}).get("state"), delta)


def test_a_delta_carries_the_stamps_of_desired_and_the_token_of_its_cause(shard: Shard) -> None:
    update(shard, {"state": {"desired": {"a": {"b": 1, "c": [1, 2]}, "d": 3}}, "clientToken": "first"})
    said = update(shard, {"state": {"reported": {"d": 3}}, "clientToken": "second"}, now_s=NOW_S + 7)
    stamp = {"timestamp": NOW_S}
    assert said["update/delta"] == {
        "state": {"a": {"b": 1, "c": [1, 2]}},
        "metadata": {"a": {"b": stamp, "c": [stamp, stamp]}},
        "version": 2,
        "timestamp": NOW_S + 7,
        "clientToken": "second",
    }


def test_an_update_of_reported_alone_announces_a_difference_that_stays(shard: Shard) -> None:
    update(shard, {"state": {"desired": {"a": 1}}})
    assert update(shard, {"state": {"reported": {"z": 1}}})["update/delta"]["state"] == {"a": 1}
    assert "update/delta" not in update(shard, {"state": {"reported": {"a": 1}}})


def test_the_document_has_no_metadata_of_the_delta(shard: Shard) -> None:
    update(shard, {"state": {"desired": {"a": 1}, "reported": {"b": 1}}})
    document = get(shard)
    assert document is not None
    assert set(document["state"]) == {"desired", "reported", "delta"}
    assert set(document["metadata"]) == {"desired", "reported"}


# Replies


def test_accepted_repeats_the_request_nulls_included_and_stamps_exactly_its_leaves(shard: Shard) -> None:
    update(shard, {"state": {"desired": {"a": 1, "b": 2}, "reported": {"c": 3}}})
    state = {"desired": {"a": None, "d": {"e": None, "f": [1]}}, "reported": None}
    said = update(shard, {"state": state, "clientToken": "tok", "ignored": {"x": 1}})
    stamp = {"timestamp": NOW_S}
    assert said["update/accepted"] == {
        "state": state,
        "metadata": {"desired": {"a": stamp, "d": {"e": stamp, "f": [stamp]}}, "reported": stamp},
        "version": 2,
        "timestamp": NOW_S,
        "clientToken": "tok",
    }


def test_a_null_state_empties_the_shadow(shard: Shard) -> None:
    update(shard, {"state": {"desired": {"a": 1}, "reported": {"b": 1}}})
    said = update(shard, {"state": None})
    assert said["update/accepted"] == {
        "state": None,
        "metadata": {"timestamp": NOW_S},
        "version": 2,
        "timestamp": NOW_S,
    }
    assert "update/delta" not in said
    assert get(shard) == {"state": {}, "metadata": {}, "version": 2, "timestamp": NOW_S}


@pytest.mark.parametrize("state", [None, {}, {"desired": None}, {"desired": {}, "reported": {"a": None}}])
def test_an_update_that_says_nothing_makes_an_empty_shadow(shard: Shard, state: Any) -> None:
    said = update(shard, {"state": state})
    assert set(said) == {"update/accepted", "update/documents"}
    assert said["update/accepted"]["state"] == state
    assert said["update/documents"]["previous"] is None
    assert said["update/documents"]["current"] == {"state": {}, "metadata": {}, "version": 1}
    assert get(shard) == {"state": {}, "metadata": {}, "version": 1, "timestamp": NOW_S}


def test_a_deletion_of_desired_ends_the_delta(shard: Shard) -> None:
    update(shard, {"state": {"desired": {"a": 1, "b": 2}, "reported": {"a": 0}}})
    assert update(shard, {"state": {"desired": {"b": None}}})["update/delta"]["state"] == {"a": 1}
    assert "update/delta" not in update(shard, {"state": {"desired": None}})


def test_documents_hold_the_past_and_the_present_and_no_delta(shard: Shard) -> None:
    stamp, later = {"timestamp": NOW_S}, {"timestamp": NOW_S + 1}
    first = update(shard, {"state": {"desired": {"a": 1}}})["update/documents"]
    current = {"state": {"desired": {"a": 1}}, "metadata": {"desired": {"a": stamp}}, "version": 1}
    assert first == {"previous": None, "current": current, "timestamp": NOW_S}
    second = update(shard, {"state": {"reported": {"a": 2}}, "clientToken": "t"}, now_s=NOW_S + 1)
    assert second["update/documents"] == {
        "previous": current,
        "current": {
            "state": {"desired": {"a": 1}, "reported": {"a": 2}},
            "metadata": {"desired": {"a": stamp}, "reported": {"a": later}},
            "version": 2,
        },
        "timestamp": NOW_S + 1,
        "clientToken": "t",
    }


@pytest.mark.parametrize(
    "operation", [Operation.SHADOW_GET, Operation.SHADOW_UPDATE, Operation.SHADOW_DELETE]
)
@pytest.mark.parametrize("name", ["", "config"])
def test_every_reply_echoes_the_client_token(shard: Shard, operation: Operation, name: str) -> None:
    refused = answers(shard, operation, {"clientToken": "tök", "state": 5}, name=name)
    assert [body["clientToken"] for body in refused.values()] == ["tök"]
    update(shard, {"state": {"desired": {"a": 1}}}, name=name)
    accepted = answers(shard, operation, {"clientToken": "tök", "state": {}}, name=name)
    assert all(body["clientToken"] == "tök" for body in accepted.values())
    assert len(accepted) == (3 if operation is Operation.SHADOW_UPDATE else 1)


@pytest.mark.parametrize(
    ("rest", "code"),
    [
        (b'"state":{"desired":{"a":1e999}}', 400),
        (b'"state":{"desired":{"a":"\xff"}}', 415),
        (b'"\xff":1', 415),
        (b'"state":{"delta":{}}', 400),
        (b'"state":{"desired":{"a":' + b"[" * 100 + b"]" * 100 + b"}}", 400),
        (b'"state":{"desired":{"a":"' + b"x" * 9000 + b'"}}', 413),
        (b'"state":{},"version":7', 400),
    ],
)
def test_whatever_is_wrong_with_a_request_it_is_refused_under_its_token(
    shard: Shard, rest: bytes, code: int
) -> None:
    for payload in (b'{"clientToken":"t",%b}' % rest, b'{%b,"clientToken":"t"}' % rest):
        refused = update(shard, payload)["update/rejected"]
        assert (refused["code"], refused["clientToken"]) == (code, "t")


def test_a_reply_to_a_request_without_token_has_none(shard: Shard) -> None:
    said = update(shard, {"state": {"desired": {"a": 1}}}) | answers(shard, Operation.SHADOW_GET)
    assert all("clientToken" not in body for body in said.values())


@pytest.mark.parametrize("token", [5, True, "x" * 65, "ü" * 33, ["a"], {}])
@pytest.mark.parametrize(
    "operation", [Operation.SHADOW_GET, Operation.SHADOW_UPDATE, Operation.SHADOW_DELETE]
)
def test_a_bad_client_token_is_refused_and_not_repeated(
    shard: Shard, operation: Operation, token: Any
) -> None:
    update(shard, {"state": {}})
    [body] = answers(shard, operation, {"clientToken": token, "state": {}}).values()
    assert body == {"code": 400, "message": "Invalid clientToken", "timestamp": NOW_S}


def test_the_longest_client_token_has_64_bytes(shard: Shard) -> None:
    assert "update/accepted" in update(shard, {"state": {}, "clientToken": "ü" * 32})


# Refusals

TOO_DEEP = "JSON contains too many levels of nesting; maximum is 6"
TOO_LARGE = "The payload exceeds the maximum size allowed"
NOT_UTF_8 = "Unsupported documented encoding; supported encoding is UTF-8"


def nested(levels: int, leaf: Any = 1) -> Any:
    """Return an object of so many levels, counted from the section down."""
    for _ in range(levels):
        leaf = {"n": leaf}
    return leaf


@pytest.mark.parametrize(
    ("payload", "code", "message"),
    [
        (b"", 400, "Invalid JSON"),
        (b"{", 400, "Invalid JSON"),
        (b"[]", 400, "Invalid JSON"),
        (b"null", 400, "Invalid JSON"),
        (b'{"state":{"desired":{"a":NaN}}}', 400, "Invalid JSON"),
        (b'{"state":{"desired":{"a":1e999}}}', 400, "Invalid JSON"),
        (b'{"state":{"desired":{"a":"\\ud800"}}}', 400, "Invalid JSON"),
        (b'{"state":{}} trailing', 400, "Invalid JSON"),
        (b"{}", 400, "Missing required node: state"),
        (b'{"State":{}}', 400, "Missing required node: state"),
        (b'{"state":5}', 400, "State node must be an object"),
        (b'{"state":[]}', 400, "State node must be an object"),
        (b'{"state":{"desired":5}}', 400, "Desired node must be an object"),
        (b'{"state":{"desired":[]}}', 400, "Desired node must be an object"),
        (b'{"state":{"reported":"x"}}', 400, "Reported node must be an object"),
        (b'{"state":{"delta":{}}}', 400, "State contains an invalid node"),
        (b'{"state":{"desired":{"a":[1,null]}}}', 400, "State contains an invalid node"),
        (b'{"state":{"desired":{"a":[{"b":[null]}]}}}', 400, "State contains an invalid node"),
        (b'{"state":{},"version":"1"}', 400, "Invalid version"),
        (b'{"state":{},"version":true}', 400, "Invalid version"),
        (b'{"state":{},"version":1.0}', 400, "Invalid version"),
        (b'{"state":{},"version":-1}', 400, "Invalid version"),
        (json.dumps({"state": {"desired": nested(9)}}).encode(), 400, TOO_DEEP),
        (b'{"state":{"desired":{"a":' + b"[" * 8 + b"]" * 8 + b"}}}", 400, TOO_DEEP),
        (b'{"state":{"desired":{"a":' + b"[" * 100_000, 400, TOO_DEEP),
        (b'{"state":{"desired":{"a":"' + b"x" * DOCUMENT_BYTES_MAX + b'"}}}', 413, TOO_LARGE),
        (b'{"state":{"desired":{"a":"\xff"}}}', 415, NOT_UTF_8),
        (b'{"state":{},"ignored":"\xff"}', 415, NOT_UTF_8),
        (b'{"state":{},"\xff":1}', 415, NOT_UTF_8),
        (b"\xff", 415, NOT_UTF_8),
        (b'{"state":{},"ignored":nope}', 400, "Invalid JSON"),
    ],
)
def test_a_wrong_update_is_refused_in_the_words_of_the_service(
    shard: Shard, payload: bytes, code: int, message: str
) -> None:
    refused = update(shard, payload)
    assert refused == {"update/rejected": {"code": code, "message": message, "timestamp": NOW_S}}
    assert get(shard) is None
    assert shard.twin_count() == 0


def test_eight_levels_of_objects_are_accepted(shard: Shard) -> None:
    assert "update/accepted" in update(shard, {"state": {"desired": nested(8)}})


@pytest.mark.parametrize(("payload", "code"), [(b"{", 400), (b"\xff", 415), (b"nope", 400)])
@pytest.mark.parametrize("operation", [Operation.SHADOW_GET, Operation.SHADOW_DELETE])
def test_a_get_or_delete_of_broken_json_is_refused(
    shard: Shard, operation: Operation, payload: bytes, code: int
) -> None:
    update(shard, {"state": {}})
    [body] = answers(shard, operation, payload).values()
    assert (body["code"], body["message"]) == (code, {400: "Invalid JSON", 415: NOT_UTF_8}[code])
    assert get(shard) is not None


def test_the_size_counts_on_the_merged_document(shard: Shard) -> None:
    half = "x" * (DOCUMENT_BYTES_MAX // 2 - 10)
    assert "update/accepted" in update(shard, {"state": {"desired": {"a": half}}})
    assert "update/accepted" in update(shard, {"state": {"reported": {"b": half}}})
    before = get(shard)
    refused = update(shard, {"state": {"reported": {"c": "x" * 20}}})["update/rejected"]
    assert refused["code"] == 413
    assert get(shard) == before
    assert "update/accepted" in update(shard, {"state": {"reported": {"b": half}}}), "no growth, no refusal"
    assert "update/accepted" in update(shard, {"state": {"desired": None, "reported": {"c": "x" * 20}}})


@pytest.mark.parametrize(("excess", "verb"), [(0, "accepted"), (1, "rejected")])
def test_the_size_limit_is_exact(shard: Shard, excess: int, verb: str) -> None:
    frame = len(b'{"a":""}') + len(b"{}")
    said = update(shard, {"state": {"desired": {"a": "x" * (DOCUMENT_BYTES_MAX - frame + excess)}}})
    assert f"update/{verb}" in said


def test_the_size_of_a_number_counts_as_it_is_stored(shard: Shard) -> None:
    numbers = b",".join([b"9e15"] * 700)
    refused = update(shard, b'{"state":{"desired":{"a":[' + numbers + b"]}}}")
    assert refused["update/rejected"]["code"] == 413


def test_metadata_does_not_count_towards_the_size(shard: Shard) -> None:
    assert "update/accepted" in update(shard, {"state": {"desired": {"a": [1] * 4000}}})


@pytest.mark.parametrize("thing", ["lamp", "home-7"])
def test_neither_write_back_nor_a_simulated_row_forgets_the_size(
    shard: Shard, monkeypatch: pytest.MonkeyPatch, thing: str
) -> None:
    monkeypatch.setattr("twins.shard._UNPACKED_MAX", 1)
    shard.create_group(Group("homes", model_named("thermostat"), "home-{i}", 40, 1, NOW_S))
    codes = []
    for number in range(12):
        said = update(shard, {"state": {"reported": {f"k{number}": "x" * 1000}}}, thing=thing)
        codes.append(said.get("update/rejected", {}).get("code", 200))
        update(shard, {"state": {}}, thing="another")
    assert codes == [200] * 8 + [413] * 4


@pytest.mark.parametrize("code", [400, 404, 409, 413, 415])
def test_a_refusal_finds_back_to_its_error(code: int) -> None:
    error = request_error(code, "why")
    assert (error.code, error.message, str(error)) == (code, "why", "why")
