"""The brain of a real device: what it says, obeys and measures."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from scenarios.brain import PENDING_MAX, REPLY_TIMEOUT_S, DeviceBrain, DeviceEvent, Message
from twins.model import UNTYPED
from twins.shipped import MODELS, model_named

THERMOSTAT = model_named("thermostat")

PREFIX = "$aws/things/room/shadow"


def brain_at_work(report_every_s: float = 10.0) -> DeviceBrain:
    brain = DeviceBrain("room", THERMOSTAT, report_every_s=report_every_s)
    brain.on_connected(100.0)
    return brain


def body_of(message: Message) -> dict[str, Any]:
    return msgspec.json.decode(message.payload, type=dict[str, Any])


def accept(brain: DeviceBrain, message: Message, version: int, now_s: float) -> list[DeviceEvent]:
    body = msgspec.json.encode({"version": version, "clientToken": body_of(message)["clientToken"]})
    return brain.on_message(f"{PREFIX}/update/accepted", body, now_s).events


def hear(
    brain: DeviceBrain, topic: str, body: Any, now_s: float = 101.0
) -> tuple[list[Message], list[DeviceEvent]]:
    reaction = brain.on_message(f"{PREFIX}/{topic}", msgspec.json.encode(body), now_s)
    return reaction.messages, reaction.events


@pytest.mark.parametrize("name", [name for name in MODELS if name != "untyped"])
def test_a_device_of_any_model_reports_values_that_the_model_allows(name: str) -> None:
    brain = DeviceBrain("thing", MODELS[name], report_every_s=10)
    for field in MODELS[name].fields:
        value = brain.values[field.name]
        if field.dtype == "choice":
            assert value in field.choices
        elif field.dtype == "bool":
            assert isinstance(value, bool)
        else:
            assert field.minimum <= value <= field.maximum
            assert isinstance(value, float if field.column_dtype.kind == "f" else int)


@pytest.mark.parametrize(
    ("model", "name", "value", "is_obeyed"),
    [
        ("smart-meter", "relay", False, True),
        ("smart-meter", "relay", 0, False),
        ("pump", "speed", 2000, True),
        ("pump", "speed", 3001, False),
        ("pump", "speed", True, False),
        ("pump", "wear", 5, False),
    ],
)
def test_a_device_obeys_what_its_model_lets_it(model: str, name: str, value: Any, is_obeyed: bool) -> None:
    brain = DeviceBrain("thing", MODELS[model], report_every_s=10)
    brain.on_connected(0.0)
    body = msgspec.json.encode({"version": 3, "state": {name: value}})
    brain.on_message(f"{brain.prefix}/update/delta", body, 1.0)
    assert (brain.values[name] == value and type(brain.values[name]) is type(value)) == is_obeyed


def test_it_reads_its_shadow_whenever_it_connects() -> None:
    brain = DeviceBrain("room", THERMOSTAT, report_every_s=10)
    assert brain.next_due_s is None
    for now_s in (100.0, 200.0):
        reaction = brain.on_connected(now_s)
        assert [message.topic for message in reaction.messages] == [f"{PREFIX}/get"]
        assert reaction.events == [DeviceEvent("connected")]


def test_it_hears_its_own_answers_and_nothing_else() -> None:
    assert set(brain_at_work().filters) == {
        f"{PREFIX}/{topic}"
        for topic in ("get/accepted", "get/rejected", "update/accepted", "update/rejected", "update/delta")
    }


def test_it_reports_all_its_fields_at_once_and_then_in_its_period() -> None:
    brain = brain_at_work()
    [message] = brain.on_timer(100.0).messages
    assert set(body_of(message)["state"]["reported"]) == set(THERMOSTAT.positions)
    assert brain.on_timer(109.9).messages == []
    assert len(brain.on_timer(110.0).messages) == 1


def test_a_model_without_fields_reports_an_empty_state() -> None:
    brain = DeviceBrain("room", UNTYPED, report_every_s=10)
    brain.on_connected(0.0)
    assert body_of(brain.on_timer(0.0).messages[0])["state"] == {"reported": {}}


def test_the_round_trip_counts_from_the_time_at_which_the_report_was_due() -> None:
    brain = brain_at_work()
    [first] = brain.on_timer(100.0).messages
    assert accept(brain, first, 1, 100.25)[0].latency_ms == 250.0
    [late] = brain.on_timer(113.0).messages
    [event] = accept(brain, late, 2, 113.5)
    assert (event.kind, event.version, event.latency_ms) == ("accepted", 2, 3500.0)
    assert brain.next_due_s == 120.0


def test_a_second_delivery_of_an_answer_is_passed_over() -> None:
    brain = brain_at_work()
    [message] = brain.on_timer(100.0).messages
    assert len(accept(brain, message, 1, 100.1)) == 1
    assert accept(brain, message, 1, 100.2) == []


def test_the_answer_to_somebody_elses_update_is_passed_over() -> None:
    assert hear(brain_at_work(), "update/accepted", {"version": 5, "state": {"desired": {}}}) == ([], [])


def test_it_obeys_a_delta_and_reports_what_it_obeyed() -> None:
    brain = brain_at_work()
    [message], [event] = hear(brain, "update/delta", {"version": 3, "state": {"set_point": 23.5}})
    assert event == DeviceEvent("delta", version=3, state={"set_point": 23.5})
    assert body_of(message)["state"] == {"reported": {"set_point": 23.5}}
    [obeyed] = accept(brain, message, 4, 101.5)
    assert (obeyed.kind, obeyed.state, obeyed.version) == ("obeyed", {"set_point": 23.5}, 4)
    assert body_of(brain.on_timer(102.0).messages[0])["state"]["reported"]["set_point"] == 23.5


def test_a_delta_that_is_announced_again_on_its_way_is_obeyed_once() -> None:
    brain = brain_at_work()
    assert len(hear(brain, "update/delta", {"version": 3, "state": {"set_point": 23.5}})[0]) == 1
    assert hear(brain, "update/delta", {"version": 4, "state": {"set_point": 23.5}})[0] == []


def test_a_delta_that_was_overtaken_is_passed_over() -> None:
    brain = brain_at_work()
    hear(brain, "update/delta", {"version": 9, "state": {"set_point": 23.5}})
    assert hear(brain, "update/delta", {"version": 8, "state": {"set_point": 18}}) == ([], [])


def test_it_obeys_what_it_missed_when_it_reads_its_shadow() -> None:
    messages, events = hear(
        brain_at_work(), "get/accepted", {"version": 7, "state": {"delta": {"set_point": 18}}}
    )
    assert body_of(messages[0])["state"] == {"reported": {"set_point": 18}}
    assert events[0].kind == "delta"
    assert hear(brain_at_work(), "get/accepted", {"version": 7, "state": {"reported": {}}}) == ([], [])


def test_it_does_not_obey_what_it_cannot_be() -> None:
    for value in (99, True, "warm", None):
        messages, events = hear(
            brain_at_work(), "update/delta", {"version": 3, "state": {"set_point": value}}
        )
        assert (messages, events[0].kind) == ([], "delta")
    assert hear(brain_at_work(), "update/delta", {"version": 3, "state": {"temperature": 20}})[0] == []


def test_a_device_without_a_shadow_is_nothing_to_complain_about() -> None:
    assert hear(brain_at_work(), "get/rejected", {"code": 404, "message": "No shadow"}) == ([], [])
    assert hear(brain_at_work(), "get/rejected", {"code": 500, "message": "x"})[1][0].kind == "rejected"


def test_a_rejection_is_told() -> None:
    brain = brain_at_work()
    brain.on_timer(100.0)
    _, [event] = hear(
        brain, "update/rejected", {"code": 409, "message": "Version conflict", "clientToken": "1"}
    )
    assert event == DeviceEvent("rejected", message="update: 409 Version conflict")


def test_what_is_no_json_is_told() -> None:
    [event] = brain_at_work().on_message(f"{PREFIX}/update/delta", b"{", 101.0).events
    assert event.kind == "failed"


def test_an_answer_that_never_comes_is_told_and_the_window_opens_again() -> None:
    brain = brain_at_work(report_every_s=0.1)
    sent = sum(len(brain.on_timer(100.0 + 0.1 * period).messages) for period in range(40))
    assert sent == PENDING_MAX
    reaction = brain.on_timer(104.0 + REPLY_TIMEOUT_S)
    assert [event.kind for event in reaction.events] == ["unanswered"] * PENDING_MAX
    assert len(reaction.messages) == 1


def test_what_was_asked_on_a_lost_connection_is_told_as_unanswered() -> None:
    brain = brain_at_work()
    brain.on_timer(100.0)
    assert [event.kind for event in brain.on_disconnected("gone").events] == ["disconnected", "unanswered"]


def test_the_room_follows_the_set_point_at_the_speed_of_virtual_time() -> None:
    brain = DeviceBrain("room", THERMOSTAT, report_every_s=1, speed=30)
    brain.on_connected(0.0)
    hear(brain, "update/delta", {"version": 1, "state": {"set_point": 25}}, 0.0)
    brain.on_timer(60.0)
    assert brain.values["uptime"] == 1800
    assert 22 < brain.values["temperature"] < 25
