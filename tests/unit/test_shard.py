"""What a shard does around the shadow: several shadows, direct requests, batches, registration, questions."""

from __future__ import annotations

import json

import pytest

from tests.asking import NOW_S, answers, delete, get, send, update
from twins import shard as shard_module
from twins.errors import ModelError
from twins.messages import Batch, Operation, Request
from twins.model import Group
from twins.shard import Shard
from twins.shipped import model_named
from twins.snapshot import dump_shard, load_shard


@pytest.fixture
def shard() -> Shard:
    return Shard(0, 1)


def test_shadows_of_one_thing_know_nothing_of_each_other(shard: Shard) -> None:
    update(shard, {"state": {"desired": {"a": 1}}})
    update(shard, {"state": {"desired": {"b": 1}}}, name="config")
    update(shard, {"state": {"desired": {"c": 1}}}, name="empty")
    delete(shard, name="empty")
    classic, named = get(shard), get(shard, name="config")
    assert classic is not None
    assert named is not None
    assert (classic["state"]["desired"], named["state"]["desired"]) == ({"a": 1}, {"b": 1})
    assert (classic["version"], named["version"]) == (1, 1)
    request = Request(Operation.SHADOW_LIST, "lamp", is_direct=True)
    [reply] = shard.apply(Batch("", 0, [request]), NOW_S).replies
    assert json.loads(reply.payload) == {"results": ["config"], "timestamp": NOW_S}


def test_a_named_shadow_that_is_not_there_is_called_by_both_names(shard: Shard) -> None:
    [body] = answers(shard, Operation.SHADOW_GET, name="config").values()
    assert body == {"code": 404, "message": "No shadow exists with name: 'lamp~config'"}


@pytest.mark.parametrize(
    ("operation", "announced"),
    [
        (Operation.SHADOW_GET, set()),
        (Operation.SHADOW_UPDATE, {"update/accepted", "update/delta", "update/documents"}),
        (Operation.SHADOW_DELETE, {"delete/accepted"}),
    ],
)
def test_a_direct_request_is_answered_to_its_caller_and_announced_to_the_device(
    shard: Shard, operation: Operation, announced: set[str]
) -> None:
    update(shard, {"state": {"desired": {"a": 1}}})
    request = Request(operation, "lamp", b'{"state":{}}', is_direct=True)
    outcome = shard.apply(Batch("", 0, [request]), NOW_S)
    assert {message.topic.split("/shadow/")[1] for message in outcome.publishes} == announced
    assert [reply.status for reply in outcome.replies] == [200]
    if operation is not Operation.SHADOW_GET:
        assert outcome.publishes[0].payload == outcome.replies[0].payload


def test_a_direct_refusal_is_silent_on_the_topics(shard: Shard) -> None:
    request = Request(Operation.SHADOW_UPDATE, "lamp", b"{", is_direct=True)
    outcome = shard.apply(Batch("", 0, [request]), NOW_S)
    assert outcome.publishes == []
    assert [reply.status for reply in outcome.replies] == [400]


# Batches


def test_a_batch_that_is_sent_again_is_answered_from_memory(shard: Shard) -> None:
    batch = Batch("bridge", 7, [Request(Operation.SHADOW_UPDATE, "lamp", b'{"state":{}}')])
    first = shard.apply(batch, NOW_S)
    assert shard.apply(batch, NOW_S + 5) == first
    older = Batch("bridge", 6, batch.requests)
    assert shard.apply(older, NOW_S + 6).publishes == []
    document = get(shard)
    assert document is not None
    assert document["version"] == 1


def test_a_source_without_a_name_is_never_answered_from_memory(shard: Shard) -> None:
    send(shard, Operation.SHADOW_UPDATE, b'{"state":{}}')
    send(shard, Operation.SHADOW_UPDATE, b'{"state":{}}')
    document = get(shard)
    assert document is not None
    assert document["version"] == 2
    assert shard.last_outcomes == {}


# Registration


def register(shard: Shard, body: bytes, *, thing: str = "lamp") -> int:
    request = Request(Operation.REGISTER, thing, body, is_direct=True)
    return shard.apply(Batch("", 0, [request]), NOW_S).replies[0].status


def test_registering_a_model_keeps_what_the_thing_reported_before(shard: Shard) -> None:
    update(shard, {"state": {"reported": {"temperature": 20.5, "humidity": 40, "x": {"y": [1]}}}})
    before = get(shard)
    assert register(shard, b'{"model":"thermostat","attributes":{"site":"berlin"}}') == 200
    assert get(shard) == before
    [columns] = [
        part for part in shard.select({"model", "site", "reported_temperature"}) if len(part["model"].values)
    ]
    assert columns["model"].choices == ("thermostat",)
    assert columns["site"].cell(0) == "berlin"
    assert list(columns["reported_temperature"].values) == [20.5]
    assert register(shard, b'{"model":"untyped"}') == 200
    assert get(shard) == before


@pytest.mark.parametrize(
    "body", [b"", b"{", b"{}", b'{"model":"toaster"}', b'{"model":"\xff"}', b"[" * 100_000]
)
def test_a_wrong_registration_is_refused(shard: Shard, body: bytes) -> None:
    assert register(shard, body) == 400
    assert shard.twin_count() == 0


def test_unregistering_forgets_the_thing_and_leaves_the_others(shard: Shard) -> None:
    for thing in ("lamp", "door", "fan"):
        update(shard, {"state": {"reported": {"is": thing}}}, thing=thing)
        update(shard, {"state": {}}, thing=thing, name="config")
        send(shard, Operation.TELEMETRY, b'{"a":1}', thing=thing, name="s")
    send(shard, Operation.UNREGISTER)
    assert get(shard) is None
    assert get(shard, name="config") is None
    assert set(shard.telemetry) == {"door", "fan"}
    for thing in ("door", "fan"):
        document = get(shard, thing=thing)
        assert document is not None
        assert document["state"]["reported"] == {"is": thing}
    assert sorted(name or "" for part in shard.select({"name"}) for name in part["name"].values) == [
        "door",
        "fan",
    ]


LATE = (
    (Operation.SHADOW_UPDATE, b'{"state":{"reported":{"a":1}}}', ""),
    (Operation.SHADOW_UPDATE, b'{"state":{"reported":{"a":1}}}', "config"),
    (Operation.TELEMETRY, b'{"a":1}', "s"),
)


@pytest.mark.parametrize(("operation", "payload", "name"), LATE)
def test_what_an_unregistered_things_device_sent_before_makes_no_twin_again(
    shard: Shard, operation: Operation, payload: bytes, name: str
) -> None:
    register(shard, b'{"model":"untyped"}')
    send(shard, Operation.UNREGISTER)
    for kept in (shard, load_shard(dump_shard(shard))):
        outcome = send(kept, operation, payload, name=name)
        assert [message.topic.rsplit("/", 1)[1] for message in outcome.publishes] in ([], ["rejected"])
        assert (kept.twin_count(), dict(kept.named_shadows), dict(kept.telemetry)) == (0, {}, {})
    # A thing of that name is served again once it is registered.
    register(shard, b'{"model":"untyped"}')
    send(shard, operation, payload, name=name)
    assert get(shard, name=name) is not None or shard.telemetry


def test_an_operator_may_give_a_shadow_to_a_thing_that_was_unregistered(shard: Shard) -> None:
    register(shard, b'{"model":"untyped"}')
    send(shard, Operation.UNREGISTER)
    request = Request(Operation.SHADOW_UPDATE, "lamp", b'{"state":{}}', is_direct=True)
    [reply] = shard.apply(Batch("", 0, [request]), NOW_S).replies
    assert reply.status == 200


def test_of_unregistered_things_so_many_are_remembered_as_take_no_room(
    shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_module, "_UNREGISTERED_MAX", 2)
    for thing in ("lamp", "door", "lamp", "fan"):
        register(shard, b'{"model":"untyped"}', thing=thing)
        # The second time as after an answer that was lost.
        send(shard, Operation.UNREGISTER, thing=thing)
        send(shard, Operation.UNREGISTER, thing=thing)
    assert list(shard.unregistered) == ["lamp", "fan"]


def test_a_fleet_is_not_given_the_name_of_a_thing_that_has_a_twin(shard: Shard) -> None:
    homes = Group("homes", model_named("thermostat"), "home-{i}", 40, 1, 0)
    update(shard, {"state": {"reported": {"is": "real"}}}, thing="home-7")
    with pytest.raises(ModelError, match="home-7"):
        shard.create_group(homes)
    assert shard.fleets == {}
    shard.apply(Batch("", 0, [Request(Operation.UNREGISTER, "home-7", is_direct=True)]), NOW_S)
    shard.create_group(homes)
    assert set(shard.fleets) == {"homes"}


def test_a_shard_without_twins_can_be_asked_for_every_column(shard: Shard) -> None:
    names = {name for part in shard.select(None) for name in part}
    assert {"name", "origin", "version", "reported_temperature", "desired_set_point_at"} <= names
    assert all(len(column.values) == 0 for part in shard.select(None) for column in part.values())


@pytest.mark.parametrize("value", [b"9" * 400, b"-" + b"9" * 400, b"1e308", b"9" * 30])
def test_a_number_beyond_every_column_breaks_no_question(shard: Shard, value: bytes) -> None:
    assert register(shard, b'{"model":"thermostat"}') == 200
    payload = b'{"state":{"reported":{"temperature":%b,"uptime":%b},"desired":{"set_point":%b}}}'
    assert "update/accepted" in update(shard, payload % (value, value, value))
    columns = next(part for part in shard.select(None) if "reported_uptime" in part)
    assert len(columns["reported_temperature"].values) == 1


def test_named_shadows_that_were_deleted_long_ago_make_room_and_too_many_are_refused(
    shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twins.shard._NAMED_SHADOW_COUNT_MAX", 3)
    for name in ("a", "b", "c"):
        update(shard, {"state": {"desired": {"x": 1}}}, name=name)
    payload = b'{"state":{"desired":{"x":1}}}'
    one_more = Request(Operation.SHADOW_UPDATE, "lamp", payload, "d", is_direct=True)
    [refusal] = shard.apply(Batch("", 0, [one_more]), NOW_S).replies
    assert refusal.status == 400
    delete(shard, name="a")
    [still] = shard.apply(Batch("", 0, [one_more]), NOW_S).replies
    assert still.status == 400, "the tombstone keeps the version for 48 h"
    [accepted] = shard.apply(Batch("", 0, [one_more]), NOW_S + 49 * 3600).replies
    assert accepted.status == 200


@pytest.mark.parametrize(
    ("heard", "source", "has_successor"),
    [
        ([], "bridge/1", False),
        (["bridge/1"], "bridge/1", False),
        (["bridge/1"], "bridge/2", False),
        (["bridge/2"], "bridge/1", True),
        # Numbers, not texts.
        (["bridge/10"], "bridge/9", True),
        (["bridge/9"], "bridge/10", False),
        (["other/2"], "bridge/1", False),
        (["bridge"], "bridge", False),
        (["bridge/2"], "", False),
        (["", "bridge/2", ""], "bridge/1", True),
    ],
)
def test_a_source_has_a_successor_once_a_later_start_of_the_same_name_was_heard(
    shard: Shard, heard: list[str], source: str, has_successor: bool
) -> None:
    for sequence, each in enumerate(heard, 1):
        shard.apply(Batch(each, sequence, []), NOW_S)
    assert shard.has_successor(source) == has_successor
    assert load_shard(dump_shard(shard)).has_successor(source) == has_successor
