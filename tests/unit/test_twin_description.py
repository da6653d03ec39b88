"""What a shard knows of a twin beside its shadows: whether it is connected, what it reported of itself, all at once."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.asking import NOW_S, delete, update
from twins.messages import Batch, Connectivity, Operation, Outcome, Reply, Request
from twins.model import Attribute, Group
from twins.shadow import encode_json
from twins.shard import Shard
from twins.shipped import model_named

REPORT = b'{"hed":{"rid":7,"v":"1.0"},"met":{"ns":{"bi":5}}}'


def apply(shard: Shard, operation: Operation, payload: bytes = b"", **more: Any) -> Outcome:
    request = Request(operation, more.pop("thing", "lamp"), payload, more.pop("name", ""), **more)
    return shard.apply(Batch("", 0, [request]), NOW_S)


def direct(shard: Shard, operation: Operation, payload: bytes = b"", *, thing: str = "lamp") -> Reply:
    (reply,) = apply(shard, operation, payload, thing=thing, is_direct=True).replies
    return reply


def describe(shard: Shard, thing: str = "lamp") -> dict[str, Any]:
    reply = direct(shard, Operation.DESCRIBE, thing=thing)
    assert reply.status == 200, reply
    return dict(json.loads(reply.payload))


@pytest.fixture
def shard() -> Shard:
    """Return a shard with one registered lamp."""
    made = Shard(0, 1)
    registration = encode_json({"model": "thermostat", "attributes": {"site": "berlin"}})
    direct(made, Operation.REGISTER, registration)
    return made


def connect(shard: Shard, is_connected: bool, version: int, *, thing: str = "lamp") -> None:
    reason = "" if is_connected else "CONNECTION_LOST"
    link = Connectivity(is_connected, NOW_S * 1000 + version, reason, f"session-{version}", version)
    assert direct(shard, Operation.CONNECTIVITY, encode_json(link), thing=thing).status == 200


def connected_column(shard: Shard) -> dict[str | None, bool | None]:
    """Return the column `connected` by name, None where it is not known."""
    found: dict[str | None, bool | None] = {}
    for part in shard.select(["name", "connected"]):
        column = part["connected"]
        is_valid = column.is_valid if column.is_valid is not None else [True] * len(column.values)
        for name, value, known in zip(part["name"].values, column.values, is_valid, strict=True):
            found[name] = bool(value) if known else None
    return found


def test_a_new_things_twin_is_described_whole(shard: Shard) -> None:
    assert describe(shard) == {
        "thingName": "lamp",
        "timestamp": NOW_S,
        "origin": "real",
        "model": "thermostat",
        "attributes": {"site": "berlin"},
        "connectivity": None,
        "shadow": None,
        "namedShadows": {},
        "defender": None,
        "pin": None,
    }


def test_a_twin_is_described_with_its_shadows(shard: Shard) -> None:
    update(shard, {"state": {"desired": {"set_point": 21, "odd": [1]}, "reported": {"set_point": 20}}})
    update(shard, {"state": {"reported": {"a": 1}}}, name="config")
    update(shard, {"state": {"reported": {"a": 1}}}, name="gone")
    delete(shard, name="gone")
    found = describe(shard)
    stamp = {"timestamp": NOW_S}
    assert found["shadow"] == {
        "desired": {"set_point": 21, "odd": [1]},
        "reported": {"set_point": 20},
        "delta": {"set_point": 21, "odd": [1]},
        "metadata": {"desired": {"set_point": stamp, "odd": [stamp]}, "reported": {"set_point": stamp}},
        "version": 1,
    }
    assert found["namedShadows"] == {
        "config": {"reported": {"a": 1}, "metadata": {"reported": {"a": stamp}}, "version": 1}
    }


def test_a_simulated_twin_is_described_in_the_same_words() -> None:
    shard = Shard(0, 1)
    sites = Attribute("site", ("berlin",), (1.0,))
    shard.create_group(
        Group("homes", model_named("thermostat"), "home-{i}", 3, 1, NOW_S, attributes=(sites,))
    )
    found = describe(shard, "home-1")
    assert (found["origin"], found["model"], found["attributes"]) == (
        "simulated",
        "thermostat",
        {"site": "berlin"},
    )
    assert type(found["connectivity"]["connected"]) is bool
    real = Shard(0, 1)
    direct(real, Operation.REGISTER, encode_json({"model": "thermostat"}))
    connect(real, True, 1)
    assert found.keys() == describe(real).keys()
    assert found["connectivity"].keys() == describe(real)["connectivity"].keys()


def test_there_is_no_twin_of_a_thing_that_nobody_registered(shard: Shard) -> None:
    reply = direct(shard, Operation.DESCRIBE, thing="door")
    assert (reply.status, json.loads(reply.payload)["message"]) == (404, "No twin exists with name: 'door'")


def test_a_twin_knows_whether_it_is_connected(shard: Shard) -> None:
    direct(shard, Operation.REGISTER, encode_json({"model": "thermostat"}), thing="door")
    connect(shard, True, 1)
    assert describe(shard)["connectivity"] == {
        "connected": True,
        "timestamp": NOW_S * 1000 + 1,
        "disconnect_reason": None,
        "session": "session-1",
        "version": 1,
    }
    assert connected_column(shard) == {"lamp": True, "door": None}
    connect(shard, False, 1)
    assert describe(shard)["connectivity"]["disconnect_reason"] == "CONNECTION_LOST"
    assert connected_column(shard) == {"lamp": False, "door": None}


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        ([(True, 1), (False, 1), (True, 2)], (True, 2)),
        ([(True, 2), (True, 1)], (True, 2)),
        # The end of an old session after the beginning of the new one, as with an overlap of certificates.
        ([(True, 1), (True, 2), (False, 1)], (True, 2)),
        ([(False, 1), (True, 1)], (False, 1)),
        ([(True, 1), (False, 1), (True, 1), (False, 1)], (False, 1)),
        ([(False, 3), (True, 2), (False, 2)], (False, 3)),
    ],
)
def test_what_comes_late_or_twice_does_not_count(
    shard: Shard, told: list[tuple[bool, int]], kept: tuple[bool, int]
) -> None:
    for is_connected, version in told:
        connect(shard, is_connected, version)
    found = describe(shard)["connectivity"]
    assert (found["connected"], found["version"]) == kept


def test_the_end_of_a_session_does_not_bring_back_a_thing_that_is_gone(shard: Shard) -> None:
    connect(shard, True, 1)
    direct(shard, Operation.UNREGISTER)
    connect(shard, False, 1)
    assert direct(shard, Operation.DESCRIBE).status == 404
    assert shard.twin_count() == 0
    direct(shard, Operation.REGISTER, encode_json({"model": "thermostat"}))
    assert describe(shard)["connectivity"] is None


def test_connectivity_that_can_not_be_read_is_refused(shard: Shard) -> None:
    for payload in (b"", b"{}", b'{"connected":1,"timestamp":2}', b"\xff", b"[" * 100_000):
        assert direct(shard, Operation.CONNECTIVITY, payload).status == 400


@pytest.mark.parametrize("style", ["json", "cbor"])
def test_a_report_is_answered_on_its_own_topics(shard: Shard, style: str) -> None:
    payload = b"\xa0" if style == "cbor" else b"{}"
    (message,) = apply(shard, Operation.DEFENDER, payload, name=style).publishes
    assert message.topic == f"$aws/things/lamp/defender/metrics/{style}/rejected"


def test_an_accepted_report_is_shown_on_the_twin(shard: Shard) -> None:
    (message,) = apply(shard, Operation.DEFENDER, REPORT, name="json").publishes
    assert message.topic == "$aws/things/lamp/defender/metrics/json/accepted"
    assert describe(shard)["defender"] == {
        "received_at": NOW_S,
        "header": {"report_id": 7, "version": "1.0"},
        "metrics": {"network_stats": {"bytes_in": 5}},
    }
    direct(shard, Operation.UNREGISTER)
    direct(shard, Operation.REGISTER, encode_json({"model": "thermostat"}))
    assert describe(shard)["defender"] is None


def test_a_report_of_a_thing_without_a_twin_is_not_kept(shard: Shard) -> None:
    assert apply(shard, Operation.DEFENDER, REPORT, name="json", thing="door") == Outcome([], [])
    assert shard.reports == {}
