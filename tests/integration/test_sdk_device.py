"""A device with the unmodified AWS IoT Device SDK, over MQTT 5 and MQTT 3.1.1, against the whole platform."""

from __future__ import annotations

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
