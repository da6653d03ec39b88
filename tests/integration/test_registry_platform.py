"""The registry on the whole platform: what applications hear of its changes, and devices that come by the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.boto3_clients import boto3_client
from tests.integration.raw_mqtt import Connect, RawClient, RawSession
from tests.integration.running_platform import RunningPlatform


@pytest.fixture(scope="module")
def iot(platform: RunningPlatform) -> Any:
    key = platform.json("key", "create", "registry-tests", "--role", "operator")
    return boto3_client("iot", platform.endpoints.api.url, key)


@pytest.fixture(scope="module")
def observer(platform: RunningPlatform, tmp_path_factory: pytest.TempPathFactory) -> RawClient:
    files = tmp_path_factory.mktemp("observer")
    platform.done("certificate", "create", "registry-eye", "--role", "observer", "--out", str(files))
    return client_of(platform, files, "registry-eye")


def client_of(platform: RunningPlatform, files: Path, name: str) -> RawClient:
    return RawClient.of(
        platform.endpoints.mqtts.port,
        files / "ca.pem",
        certificate=files / f"{name}.pem",
        key=files / f"{name}.key",
    )


def heard(session: RawSession, about: str) -> tuple[str, dict[str, Any]]:
    """Return the next event whose topic has `about` in it."""
    while True:
        message = session.next_message()
        if about in message.topic:
            return message.topic, json.loads(message.payload)


def test_applications_hear_of_changes_in_the_registry(iot: Any, observer: RawClient) -> None:
    with observer.session(Connect("eye")) as session:
        session.subscribe("$aws/events/#")
        iot.create_thing_group(thingGroupName="reg-hall")
        assert heard(session, "reg-hall")[0] == "$aws/events/thingGroup/reg-hall/created"
        thing = iot.create_thing(thingName="reg-lamp", attributePayload={"attributes": {"site": "ber"}})
        topic, body = heard(session, "reg-lamp")
        assert topic == "$aws/events/thing/reg-lamp/created"
        assert (body["thingId"], body["attributes"]) == (thing["thingId"], {"site": "ber"})
        iot.add_thing_to_thing_group(thingGroupName="reg-hall", thingName="reg-lamp")
        topic, body = heard(session, "reg-lamp")
        assert topic == "$aws/events/thingGroupMembership/thingGroup/reg-hall/thing/reg-lamp/added"
        iot.delete_thing(thingName="reg-lamp")
        assert heard(session, "reg-lamp")[0].endswith("/removed")
        assert heard(session, "reg-lamp")[0] == "$aws/events/thing/reg-lamp/deleted"
        iot.delete_thing_group(thingGroupName="reg-hall")
        assert heard(session, "reg-hall")[0] == "$aws/events/thingGroup/reg-hall/deleted"


def test_devices_of_a_file_connect_with_the_keys_made_for_them(
    platform: RunningPlatform, iot: Any, tmp_path: Path
) -> None:
    path = tmp_path / "things.csv"
    rows = "".join(f"reg-file-{number:02d},thermostat,ber\n" for number in range(40))
    path.write_text(f"name,model,site\n{rows}")
    keys = tmp_path / "keys"
    first = platform.run("device", "create", "--from", str(path), "--out", str(keys), "-o", "json")
    made = json.loads(first.stdout)
    assert (made["created"], made["refused"]) == (40, 0)
    again = platform.run("device", "create", "--from", str(path), "--out", str(keys))
    assert again.returncode == 0
    assert "0 created, 40 there already, 0 refused" in again.stdout
    # A line at the beginning and one at the end, for logs.
    assert again.stderr.splitlines()[0] == "things.csv: 0 of 40 things"
    assert again.stderr.splitlines()[-1] == "things.csv: 40 of 40 things"
    with client_of(platform, keys, "reg-file-07").session(Connect("reg-file-07")) as device:
        topic = "$aws/things/reg-file-07/shadow/update"
        device.subscribe(f"{topic}/accepted")
        device.publish(topic, b'{"state":{"reported":{"temperature":31.5}}}')
        assert json.loads(device.next_message().payload)["version"] == 1
    found = iot.search_index(queryString="thingName:reg-file-* AND shadow.reported.temperature>30")
    assert [thing["thingName"] for thing in found["things"]] == ["reg-file-07"]


def test_a_line_that_differs_from_what_is_there_is_told_and_nothing_else_is_lost(
    platform: RunningPlatform, tmp_path: Path
) -> None:
    path = tmp_path / "things.csv"
    path.write_text("name,site\nreg-a,ber\nreg-b,ber\n")
    assert platform.run("device", "create", "--from", str(path)).returncode == 0
    path.write_text("name,site\nreg-a,muc\nreg-b,ber\nreg-c,ber\n")
    answer = platform.run("device", "create", "--from", str(path))
    assert answer.returncode == 1
    assert "3 things: 1 created, 1 there already, 1 refused" in answer.stdout
    assert f"{path}:2: thing 'reg-a' is registered already" in answer.stdout
    assert platform.json("device", "describe", "reg-c")["attributes"] == {"site": "ber"}
    path.write_text("name,site\nreg-d,ber\nreg e,ber\n")
    refused = platform.run("device", "create", "--from", str(path))
    assert refused.returncode == 2
    assert f"{path}:3: thing name: 'reg e' is none" in refused.stderr
    assert platform.run("device", "describe", "reg-d").returncode == 1
