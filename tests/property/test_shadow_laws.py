"""Laws of the shadow that hold for every document and every request."""

from __future__ import annotations

import copy
import json
from typing import Any

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.property.json_values import any_states, exact, patches, states, whole_values
from twins.errors import RequestError
from twins.messages import Batch, Operation, Request
from twins.shadow import (
    ShadowDocument,
    Stamp,
    delta_of,
    encode_json,
    json_equal,
    merge,
    parse_update,
    stamp_tree,
)
from twins.shard import Shard

Tree = dict[str, Any]


def apply(document: ShadowDocument, state: Any, now_s: int = 0, **more: Any) -> dict[str, Any] | None:
    """Return what an update says on `accepted`, `documents` and `delta`; None if it is refused."""
    try:
        said = document.update(parse_update(encode_json({"state": state, **more})), now_s)
    except RequestError:
        return None
    return {
        "accepted": msgspec.json.decode(said.accepted),
        "documents": msgspec.json.decode(said.documents),
        "delta": None if said.delta is None else msgspec.json.decode(said.delta),
    }


def document_after(history: list[Any]) -> ShadowDocument:
    document = ShadowDocument()
    for now_s, state in enumerate(history, start=1):
        apply(document, state, now_s)
    return document


def everything(document: ShadowDocument) -> Any:
    trees = [
        document.desired,
        document.desired_metadata,
        document.reported,
        document.reported_metadata,
        document.document(0),
    ]
    numbers = [document.exists, document.version, document.changed_at_s]
    return exact([*trees, *numbers])


histories = st.lists(any_states, max_size=5)


@given(histories)
def test_a_device_that_applies_the_delta_has_none_left(history: list[Any]) -> None:
    document = document_after(history)
    delta = document.document(0)["state"].get("delta")
    if delta is None:
        return
    said = apply(document, {"reported": delta})
    if said is not None:
        assert said["delta"] is None
        assert "delta" not in document.document(0)["state"]


@given(histories)
def test_the_delta_mirrors_itself_in_stamps_of_desired(history: list[Any]) -> None:
    document = document_after(history)
    state, stamps = delta_of(document.desired, document.reported, document.desired_metadata)
    # Every object of the delta that is whole, and every leaf, stands in desired with that very stamp.
    assert is_within(state, document.desired)
    assert is_within(stamps, document.desired_metadata)
    assert same_shape(state, stamps)


def is_within(part: Any, whole: Any) -> bool:
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(
            key in whole and is_within(child, whole[key]) for key, child in part.items()
        )
    return bool(part == whole)


def same_shape(state: Any, metadata: Any) -> bool:
    if isinstance(state, dict):
        return (
            isinstance(metadata, dict)
            and state.keys() == metadata.keys()
            and all(same_shape(child, metadata[key]) for key, child in state.items())
        )
    if isinstance(state, list):
        return isinstance(metadata, list) and all(
            same_shape(child, stamp) for child, stamp in zip(state, metadata, strict=True)
        )
    return isinstance(metadata, Stamp)


@given(histories)
def test_metadata_has_the_shape_of_the_state(history: list[Any]) -> None:
    document = document_after(history)
    assert same_shape(document.desired, document.desired_metadata)
    assert same_shape(document.reported, document.reported_metadata)


@given(histories, any_states)
def test_an_accepted_update_adds_one_to_the_version_and_a_refused_one_changes_nothing(
    history: list[Any], state: Any
) -> None:
    document = document_after(history)
    before, version = everything(document), document.version
    said = apply(document, state, 99)
    if said is None:
        assert everything(document) == before
    else:
        assert document.version == version + 1
        assert said["accepted"]["version"] == document.version


@given(histories, states, st.integers(0, 9))
def test_a_version_conflict_changes_nothing(history: list[Any], state: Any, version: int) -> None:
    document = document_after([{}, *history])
    before, current = everything(document), document.version
    if apply(document, state, 99, version=version) is not None:
        assert version == current
    else:
        assert everything(document) == before


@given(st.integers(1, 40), patches)
def test_a_document_that_would_grow_too_large_stays_as_it_was(kilobytes: int, patch: Tree) -> None:
    document = ShadowDocument()
    for number in range(kilobytes):
        before = everything(document)
        if apply(document, {"desired": {f"k{number}": "x" * 1000, "sub": patch}}) is None:
            assert everything(document) == before
    assert len(encode_json(document.desired)) + len(encode_json(document.reported)) <= 8192


@given(histories, patches)
def test_merging_a_section_twice_is_as_good_as_once(history: list[Any], patch: Tree) -> None:
    document = document_after(history)
    merge(document.desired, document.desired_metadata, patch, stamp=Stamp(50))
    once = exact(copy.deepcopy(document.desired))
    merge(document.desired, document.desired_metadata, patch, stamp=Stamp(51))
    assert exact(document.desired) == once


@given(histories, patches)
def test_a_merge_leaves_the_patch_as_it_was(history: list[Any], patch: Tree) -> None:
    document, before = document_after(history), exact(copy.deepcopy(patch))
    merge(document.desired, document.desired_metadata, patch, stamp=Stamp(1))
    merge(document.desired, document.desired_metadata, {"x": {"more": 1}, "": {"more": 1}}, stamp=Stamp(1))
    assert exact(patch) == before


def stamps_by_path(metadata: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if not isinstance(metadata, dict):
        return {path: metadata}
    found: dict[tuple[str, ...], Any] = {}
    for key, child in metadata.items():
        found.update(stamps_by_path(child, (*path, key)))
    return found


def touches(patch: Any, path: tuple[str, ...]) -> bool:
    """Tell whether a patch names the leaf at a path, or replaces something above it or below it."""
    if not path or not isinstance(patch, dict):
        return True
    return path[0] in patch and touches(patch[path[0]], path[1:])


@given(histories, patches)
def test_leaves_that_an_update_does_not_touch_keep_their_stamps(history: list[Any], patch: Tree) -> None:
    document = document_after(history)
    before = stamps_by_path(copy.deepcopy(document.reported_metadata))
    if apply(document, {"reported": patch}, 99) is None:
        return
    after = stamps_by_path(document.reported_metadata)
    for path, stamp in before.items():
        if not touches(patch, path):
            assert after[path] == stamp
    for path, stamp in after.items():
        if stamp == Stamp(99):
            assert touches(patch, path)


@given(histories, any_states)
def test_accepted_has_exactly_the_leaves_of_the_request(history: list[Any], state: Any) -> None:
    said = apply(document_after(history), state, 99)
    if said is None:
        return
    assert exact(said["accepted"]["state"]) == exact(state)
    expected = msgspec.to_builtins(Stamp(99) if state is None else stamp_tree(state, Stamp(99)))
    assert said["accepted"]["metadata"] == expected


@given(histories)
def test_a_document_goes_through_json_and_back(history: list[Any]) -> None:
    document = document_after(history).document(7)
    again = msgspec.json.decode(encode_json(document))
    assert exact(again) == exact(msgspec.to_builtins(document))
    assert exact(json.loads(encode_json(document))) == exact(again)


@given(histories)
def test_each_document_follows_from_the_one_before(history: list[Any]) -> None:
    document, previous = ShadowDocument(), None
    for now_s, state in enumerate(history):
        said = apply(document, state, now_s)
        if said is not None:
            assert exact(said["documents"]["previous"]) == exact(previous)
            previous = said["documents"]["current"]


@given(whole_values, whole_values, whole_values)
@example(1, 1.0, True)
@example(2**53, float(2**53), 2**53 + 1)
def test_equality_of_json_is_an_equivalence(a: Any, b: Any, c: Any) -> None:
    assert json_equal(a, copy.deepcopy(a))
    assert json_equal(a, b) == json_equal(b, a)
    if json_equal(a, b) and json_equal(b, c):
        assert json_equal(a, c)


payloads = (
    st.binary(max_size=60)
    | whole_values.map(encode_json)
    | any_states.map(lambda state: encode_json({"state": state}))
    | st.sampled_from(
        [b"[" * 50_000, b'{"a":' * 900 + b"1" + b"}" * 900, b"[" * 980 + b"]" * 980, b"9" * 4000]
    )
    | st.integers(900, 1000).map(lambda depth: b'{"a":' + b"[" * depth + b"]" * depth + b"}")
)
requests = st.builds(
    Request,
    st.sampled_from(list(Operation)),
    st.sampled_from(["lamp", "sim-7"]),
    payloads,
    st.sampled_from(["", "config"]),
    st.booleans(),
)


MAY_ANSWER = (Operation.DEFENDER, Operation.JOB_READ, Operation.JOB_CHANGE, Operation.COMMAND_ANSWER)


@settings(max_examples=300)
@given(st.lists(requests, max_size=12))
def test_no_bytes_make_a_shard_fail(sent: list[Request]) -> None:
    shard = Shard(0, 1)
    for request in sent:
        outcome = shard.apply(Batch("", 0, [request]), 1000.5)
        verbs = [message.topic.rsplit("/", 1)[1] for message in outcome.publishes]
        if request.is_direct:
            [reply] = outcome.replies
            # Reports to Device Defender may be answered in CBOR.
            assert request.operation is Operation.DEFENDER or json.loads(reply.payload or b"{}") is not None
        elif request.operation in (Operation.SHADOW_GET, Operation.SHADOW_UPDATE, Operation.SHADOW_DELETE):
            assert ("accepted" in verbs) != ("rejected" in verbs)
        elif request.operation in MAY_ANSWER:
            assert not {"accepted", "rejected"}.issubset(verbs)
        else:
            assert verbs == []
    list(shard.select(None))
