"""A device with the unmodified AWS IoT Device SDK, over MQTT 5 and MQTT 3.1.1, against the whole platform."""

from __future__ import annotations

import datetime as dt
import itertools
import json
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from awsiot import V2ServiceException, iotshadow

from tests.integration.running_platform import DEADLINE_S, RunningPlatform, until
from tests.integration.sdk_device import Device, over_mqtt3, over_mqtt5

_NUMBERS = itertools.count()


@pytest.fixture(params=[over_mqtt5, over_mqtt3], ids=["mqtt5", "mqtt3"])
def device(request: pytest.FixtureRequest, platform: RunningPlatform, tmp_path: Path) -> Iterator[Device]:
    """Give a device that is registered and connected; it has no shadow yet."""
    name = f"sdk-{next(_NUMBERS)}"
    platform.enrol(name, tmp_path)
    with request.param(name, tmp_path, platform) as connected:
        yield connected


def refusal(answer: Future[Any]) -> iotshadow.V2ErrorResponse:
    """Return why the platform refused a request; the SDK takes it for ours only if the client token is right."""
    with pytest.raises(V2ServiceException) as caught:
        answer.result(DEADLINE_S)
    assert isinstance(caught.value.modeled_error, iotshadow.V2ErrorResponse), caught.value.inner_error
    return caught.value.modeled_error


def test_the_sdk_updates_gets_and_deletes_its_classic_shadow(device: Device) -> None:
    shadows, name = device.shadows, device.name
    state = iotshadow.ShadowState(reported={"temperature": 20.5, "nested": {"list": [1, {"a": True}]}})
    update = iotshadow.UpdateShadowRequest(thing_name=name, state=state)
    accepted = shadows.update_shadow(update).result(DEADLINE_S)
    assert (accepted.version, accepted.client_token) == (1, update.client_token)
    assert accepted.state.reported == state.reported
    assert accepted.metadata.reported["nested"]["list"][0]["timestamp"] == int(accepted.timestamp.timestamp())
    get = iotshadow.GetShadowRequest(thing_name=name)
    got = shadows.get_shadow(get).result(DEADLINE_S)
    assert (got.version, got.client_token, got.state.reported) == (1, get.client_token, state.reported)
    assert got.state.desired is got.state.delta is None
    delete = iotshadow.DeleteShadowRequest(thing_name=name)
    deleted = shadows.delete_shadow(delete).result(DEADLINE_S)
    assert (deleted.version, deleted.client_token) == (1, delete.client_token)
    assert refusal(shadows.get_shadow(iotshadow.GetShadowRequest(thing_name=name))).code == 404
    again = shadows.update_shadow(iotshadow.UpdateShadowRequest(thing_name=name, state=state))
    # The deletion took version 2.
    assert again.result(DEADLINE_S).version == 3


def test_the_sdk_updates_gets_and_deletes_a_named_shadow(device: Device) -> None:
    shadows, address = device.shadows, {"thing_name": device.name, "shadow_name": "config"}
    state = iotshadow.ShadowState(reported={"mode": "eco"}, desired={"mode": "eco", "level": 3})
    update = iotshadow.UpdateNamedShadowRequest(**address, state=state)
    accepted = shadows.update_named_shadow(update).result(DEADLINE_S)
    assert (accepted.version, accepted.client_token) == (1, update.client_token)
    got = shadows.get_named_shadow(iotshadow.GetNamedShadowRequest(**address)).result(DEADLINE_S)
    assert (got.state.reported, got.state.desired) == (state.reported, state.desired)
    assert got.state.delta == {"level": 3}
    deleted = shadows.delete_named_shadow(iotshadow.DeleteNamedShadowRequest(**address)).result(DEADLINE_S)
    assert deleted.version == 1
    missing = refusal(shadows.get_named_shadow(iotshadow.GetNamedShadowRequest(**address)))
    assert (missing.code, missing.message) == (404, f"No shadow exists with name: '{device.name}~config'")


def test_the_sdk_hears_why_it_is_refused(device: Device) -> None:
    shadows, name = device.shadows, device.name
    get = iotshadow.GetShadowRequest(thing_name=name)
    missing = refusal(shadows.get_shadow(get))
    assert (missing.code, missing.message) == (404, f"No shadow exists with name: '{name}'")
    assert missing.client_token == get.client_token
    state = iotshadow.ShadowState(reported={"temperature": 1})
    shadows.update_shadow(iotshadow.UpdateShadowRequest(thing_name=name, state=state)).result(DEADLINE_S)
    update = iotshadow.UpdateShadowRequest(thing_name=name, state=state, version=7)
    conflict = refusal(shadows.update_shadow(update))
    assert (conflict.code, conflict.message) == (409, "Version conflict")
    assert conflict.client_token == update.client_token
    wrong = iotshadow.UpdateShadowRequest(
        thing_name=name, state=iotshadow.ShadowState(reported={"a": [None]})
    )
    assert refusal(shadows.update_shadow(wrong)).code == 400
    deep: dict[str, Any] = {}
    for _ in range(12):
        deep = {"down": deep}
    wrong = iotshadow.UpdateShadowRequest(thing_name=name, state=iotshadow.ShadowState(reported=deep))
    assert refusal(shadows.update_shadow(wrong)).code == 400
    large = iotshadow.ShadowState(reported={"text": "x" * 9000})
    wrong = iotshadow.UpdateShadowRequest(thing_name=name, state=large)
    assert refusal(shadows.update_shadow(wrong)).code == 413
    update = iotshadow.UpdateShadowRequest(thing_name=name, state=state, version=1)
    assert shadows.update_shadow(update).result(DEADLINE_S).version == 2


def test_two_that_update_the_same_version_of_a_shadow_do_not_overwrite_each_other(device: Device) -> None:
    shadows, address = device.shadows, {"thing_name": device.name, "shadow_name": "config"}

    def update(value: int, version: int | None) -> Future[Any]:
        state = iotshadow.ShadowState(reported={"value": value})
        request = iotshadow.UpdateNamedShadowRequest(**address, state=state, version=version)
        answer: Future[Any] = shadows.update_named_shadow(request)
        return answer

    assert update(0, None).result(DEADLINE_S).version == 1
    assert update(1, 1).result(DEADLINE_S).version == 2
    lost = update(2, 1)
    conflict = refusal(lost)
    assert (conflict.code, conflict.message) == (409, "Version conflict")
    assert isinstance(conflict.timestamp, dt.datetime)
    got = shadows.get_named_shadow(iotshadow.GetNamedShadowRequest(**address)).result(DEADLINE_S)
    assert (got.state.reported, got.version) == ({"value": 1}, 2)
    # As the guide has it: read, and try again.
    assert update(2, got.version).result(DEADLINE_S).version == 3


def test_the_sdk_hears_that_what_it_asks_for_is_missing(device: Device) -> None:
    shadows, named = device.shadows, {"thing_name": device.name, "shadow_name": "config"}
    for answer, shadow in (
        (shadows.get_shadow(iotshadow.GetShadowRequest(thing_name=device.name)), ""),
        (shadows.delete_shadow(iotshadow.DeleteShadowRequest(thing_name=device.name)), ""),
        (shadows.get_named_shadow(iotshadow.GetNamedShadowRequest(**named)), "~config"),
        (shadows.delete_named_shadow(iotshadow.DeleteNamedShadowRequest(**named)), "~config"),
    ):
        missing = refusal(answer)
        assert (missing.code, missing.message) == (
            404,
            f"No shadow exists with name: '{device.name}{shadow}'",
        )
        assert missing.timestamp is None


STATE = '"state":{"reported":{"a":1}}'


@pytest.mark.parametrize(
    ("payload", "code", "message"),
    [
        (b"no JSON", 400, "Invalid JSON"),
        (b"{}", 400, "Missing required node: state"),
        (b'{"state":1}', 400, "State node must be an object"),
        (b'{"state":{"desired":1}}', 400, "Desired node must be an object"),
        (b'{"state":{"reported":[]}}', 400, "Reported node must be an object"),
        (b'{"state":{"delta":{}}}', 400, "State contains an invalid node"),
        (f'{{{STATE},"version":"1"}}'.encode(), 400, "Invalid version"),
        (f'{{{STATE},"clientToken":"{"x" * 65}"}}'.encode(), 400, "Invalid clientToken"),
        (
            b'{"state":{"reported":' + b'{"a":' * 12 + b"1" + b"}" * 14,
            400,
            "JSON contains too many levels of nesting; maximum is 6",
        ),
        (f'{{{STATE},"version":7}}'.encode(), 409, "Version conflict"),
        (
            b'{"state":{"reported":{"a":"' + b"x" * 9000 + b'"}}}',
            413,
            "The payload exceeds the maximum size allowed",
        ),
        (b'{"state":"\xff"}', 415, "Unsupported documented encoding; supported encoding is UTF-8"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_sdk_is_told_by_code_and_message_what_is_wrong(
    device: Device, payload: bytes, code: int, message: str
) -> None:
    rejected = device.hears(
        "subscribe_to_update_shadow_rejected", iotshadow.UpdateShadowSubscriptionRequest(device.name)
    )
    topic = f"$aws/things/{device.name}/shadow/update"
    device.publish(topic, f"{{{STATE}}}".encode())
    device.publish(topic, payload)
    answer = rejected.get(timeout=DEADLINE_S)
    assert (answer.code, answer.message, answer.client_token) == (code, message, None)
    assert isinstance(answer.timestamp, dt.datetime)


def test_the_old_client_of_the_sdk_gets_updates_and_deletes_without_tokens(
    device: Device, platform: RunningPlatform
) -> None:
    name = device.name
    heard = {
        f"{verb} {end}": device.hears(
            f"subscribe_to_{verb}_shadow_{end}",
            getattr(iotshadow, f"{verb.capitalize()}ShadowSubscriptionRequest")(name),
        )
        for verb in ("get", "update", "delete")
        for end in ("accepted", "rejected")
    }
    deltas = device.hears(
        "subscribe_to_shadow_delta_updated_events", iotshadow.ShadowDeltaUpdatedSubscriptionRequest(name)
    )

    def next_of(answer: str) -> Any:
        return heard[answer].get(timeout=DEADLINE_S)

    device.sends("publish_get_shadow", iotshadow.GetShadowRequest(name))
    missing = next_of("get rejected")
    assert (missing.code, missing.client_token) == (404, None)
    state = iotshadow.ShadowState(reported={"a": 1}, desired={"a": 2})
    device.sends("publish_update_shadow", iotshadow.UpdateShadowRequest(state=state, thing_name=name))
    accepted = next_of("update accepted")
    assert (accepted.version, accepted.client_token, accepted.state.reported) == (1, None, {"a": 1})
    assert deltas.get(timeout=DEADLINE_S).state == {"a": 2}
    device.sends(
        "publish_update_shadow", iotshadow.UpdateShadowRequest(state=state, thing_name=name, version=7)
    )
    assert next_of("update rejected").code == 409
    device.sends("publish_get_shadow", iotshadow.GetShadowRequest(name, client_token="mine"))
    got = next_of("get accepted")
    assert (got.version, got.client_token, got.state.delta) == (1, "mine", {"a": 2})
    # As a client that is not the SDK's asks.
    device.publish(f"$aws/things/{name}/shadow/get", b"")
    got = next_of("get accepted")
    assert (got.version, got.client_token) == (1, None)
    device.publish(f"$aws/things/{name}/shadow/delete", b"")
    deleted = next_of("delete accepted")
    assert (deleted.version, deleted.client_token) == (1, None)
    device.sends("publish_delete_shadow", iotshadow.DeleteShadowRequest(name))
    assert next_of("delete rejected").code == 404
    assert all(answers.empty() for answers in (*heard.values(), deltas))


def test_the_old_client_of_the_sdk_uses_named_shadows(device: Device, platform: RunningPlatform) -> None:
    address = {"thing_name": device.name, "shadow_name": "config"}
    accepted = device.hears(
        "subscribe_to_update_named_shadow_accepted",
        iotshadow.UpdateNamedShadowSubscriptionRequest(**address),
    )
    got = device.hears(
        "subscribe_to_get_named_shadow_accepted", iotshadow.GetNamedShadowSubscriptionRequest(**address)
    )
    documents = device.hears(
        "subscribe_to_named_shadow_updated_events",
        iotshadow.NamedShadowUpdatedSubscriptionRequest(**address),
    )
    state = iotshadow.ShadowState(reported={"mode": "eco"})
    device.sends("publish_update_named_shadow", iotshadow.UpdateNamedShadowRequest(**address, state=state))
    assert accepted.get(timeout=DEADLINE_S).version == 1
    document = documents.get(timeout=DEADLINE_S)
    assert (document.previous, document.current.state.reported) == (None, {"mode": "eco"})
    device.sends("publish_get_named_shadow", iotshadow.GetNamedShadowRequest(**address))
    assert got.get(timeout=DEADLINE_S).state.reported == {"mode": "eco"}
    with platform.api() as api:
        assert api.get(f"/things/{device.name}/shadow").status_code == 404


def test_a_burst_of_fifty_is_answered_in_full_and_what_was_accepted_is_there(device: Device) -> None:
    name, topic = device.name, f"$aws/things/{device.name}/shadow/update"
    request = iotshadow.UpdateShadowSubscriptionRequest(name)
    accepted = device.hears("subscribe_to_update_shadow_accepted", request)
    rejected = device.hears("subscribe_to_update_shadow_rejected", request)
    sending = [
        device.send(topic, f'{{"state":{{"reported":{{"n{n}":{n}}}}},"clientToken":"{n}"}}'.encode())
        for n in range(50)
    ]
    for sent in sending:
        sent.result(DEADLINE_S)
    until(lambda: accepted.qsize() + rejected.qsize() == 50, "fifty answers")
    kept = [accepted.get() for _ in range(accepted.qsize())]
    refused = [rejected.get() for _ in range(rejected.qsize())]
    # How many are answered before the eleventh comes is a matter of luck.
    assert len(kept) >= 10
    assert [each.version for each in kept] == list(range(1, len(kept) + 1))
    assert {(each.code, each.message) for each in refused} <= {(429, "TOO_MANY_REQUESTS")}
    assert sorted(int(each.client_token) for each in kept + refused) == list(range(50))
    got = device.shadows.get_shadow(iotshadow.GetShadowRequest(thing_name=name)).result(DEADLINE_S)
    assert got.state.reported == {f"n{each.client_token}": int(each.client_token) for each in kept}


def test_the_sdk_obeys_what_an_operator_desires(device: Device, platform: RunningPlatform) -> None:
    name = device.name
    thing = {"thing_name": name}
    deltas = device.streams(
        "create_shadow_delta_updated_stream", iotshadow.ShadowDeltaUpdatedSubscriptionRequest(**thing)
    )
    documents = device.streams(
        "create_shadow_updated_stream", iotshadow.ShadowUpdatedSubscriptionRequest(**thing)
    )
    platform.done("twin", "set", name, "set_point=23.5", "mode.night=true")
    delta = deltas.next()
    assert delta.state == {"set_point": 23.5, "mode": {"night": True}}
    assert delta.version == 1
    first = documents.next()
    assert first.previous is None
    assert first.current.state.desired == delta.state
    assert platform.json("twin", "get", name)["state"]["delta"] == delta.state
    obeyed = iotshadow.ShadowState(reported=delta.state)
    request = iotshadow.UpdateShadowRequest(thing_name=name, state=obeyed, version=delta.version)
    accepted = device.shadows.update_shadow(request).result(DEADLINE_S)
    assert accepted.version == 2
    second = documents.next()
    assert (second.previous.version, second.current.version) == (1, 2)
    assert second.previous.state.reported is None
    assert second.current.state.reported == second.current.state.desired == delta.state
    document = platform.json("twin", "get", name)
    assert document["state"] == {"desired": delta.state, "reported": delta.state}
    # All that the update brought about had been published when its documents came.
    assert deltas.is_empty()


def test_the_sdk_hears_of_a_named_shadow(device: Device, platform: RunningPlatform) -> None:
    address = {"thing_name": device.name, "shadow_name": "config"}
    deltas = device.streams(
        "create_named_shadow_delta_updated_stream",
        iotshadow.NamedShadowDeltaUpdatedSubscriptionRequest(**address),
    )
    platform.done("twin", "set", device.name, "level=4", "--shadow", "config")
    assert deltas.next().state == {"level": 4}
    with platform.api() as api:
        body = {"state": {"desired": {"level": 5}}}
        assert api.post(f"/things/{device.name}/shadow?name=config", json=body).status_code == 200
    assert deltas.next().state == {"level": 5}


def test_telemetry_of_the_sdk_reaches_its_twin(device: Device, platform: RunningPlatform) -> None:
    for value in (1, 2.5, 4):
        device.publish(f"telemetry/{device.name}/room", json.dumps({"level": value, "unit": "bar"}).encode())
    with platform.api() as api:

        def level() -> dict[str, Any]:
            answer = api.get(f"/v1/twins/{device.name}/telemetry")
            assert answer.status_code == 200, answer.text
            found: dict[str, Any] = answer.json()["streams"].get("room", {}).get("level", {})
            return found

        until(lambda: level().get("count") == 3, "three values of telemetry")
        assert [level()[name] for name in ("value", "min", "max", "mean")] == [4, 1, 4, 2.5]
        streams = api.get(f"/v1/twins/{device.name}/telemetry").json()["streams"]
        assert streams["room"]["unit"]["value"] == "bar"


def test_a_device_publishes_and_hears_nothing_of_another_thing(
    device: Device, platform: RunningPlatform
) -> None:
    neighbour = f"{device.name}-neighbour"
    platform.done("twin", "set", neighbour, "set_point=20")
    before = platform.json("twin", "get", neighbour)
    forged = json.dumps({"state": {"reported": {"temperature": 99}, "desired": None}}).encode()
    for topic in (
        f"$aws/things/{neighbour}/shadow/update",
        f"$aws/things/{neighbour}/shadow/delete",
        f"$aws/things/{neighbour}/shadow/name/config/update",
        f"telemetry/{neighbour}/room",
        # Its own, but the platform's to publish.
        f"$aws/things/{device.name}/shadow/update/documents",
    ):
        device.publish(topic, forged)
    deltas = device.streams(
        "create_shadow_delta_updated_stream",
        iotshadow.ShadowDeltaUpdatedSubscriptionRequest(thing_name=neighbour),
    )
    platform.done("twin", "set", neighbour, "set_point=21")
    # What the device sends itself goes the same way, after all of the above.
    own = iotshadow.UpdateShadowRequest(
        thing_name=device.name, state=iotshadow.ShadowState(reported={"a": 1})
    )
    assert device.shadows.update_shadow(own).result(DEADLINE_S).version == 1
    after = platform.json("twin", "get", neighbour)
    assert after["version"] == before["version"] + 1
    assert after["state"] == {"desired": {"set_point": 21}, "delta": {"set_point": 21}}
    with platform.api() as api:
        assert api.get(f"/things/{neighbour}/shadow?name=config").status_code == 404
        assert api.get(f"/v1/twins/{neighbour}/telemetry").json()["streams"] == {}
    assert deltas.is_empty()
