"""Stock boto3 `iot-data` against a whole platform: shadows, publishing and retained messages, with MQTT listening."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from botocore.exceptions import ClientError

from actors.broker import bridge_listener
from actors.retained import THING_TOPIC_COUNT_MAX
from tests.integration.attack_scene import metric
from tests.integration.boto3_clients import boto3_client, refusal
from tests.integration.raw_mqtt import MQTT_5, PUBLISH, Connect, Message, RawClient, RawSession, Will, field
from tests.integration.running_platform import DEADLINE_S, RunningPlatform, until

DEVICE = "boto3-lamp"
SHADOW = f"$aws/things/{DEVICE}/shadow"


@pytest.fixture(scope="module")
def key(platform: RunningPlatform) -> dict[str, Any]:
    made: dict[str, Any] = platform.json("key", "create", "boto3-data", "--role", "operator")
    return made


@pytest.fixture
def data(platform: RunningPlatform, key: dict[str, Any]) -> Any:
    return boto3_client("iot-data", platform.endpoints.api.url, key)


@pytest.fixture(scope="module")
def files(platform: RunningPlatform, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("device")
    platform.enrol(DEVICE, directory)
    return directory


@pytest.fixture
def device(platform: RunningPlatform, files: Path) -> Iterator[RawSession]:
    """Give the device, connected, which hears its own topics."""
    client = RawClient.of(
        platform.endpoints.mqtts.port,
        files / "ca.pem",
        certificate=files / f"{DEVICE}.pem",
        key=files / f"{DEVICE}.key",
    )
    with client.session(Connect()) as session:
        session.subscribe(f"{SHADOW}/#")
        yield session


@contextlib.contextmanager
def insider(platform: RunningPlatform, *filters: str) -> Iterator[RawSession]:
    """Give a session on the broker's internal listener, which hears what no device does."""
    listener = bridge_listener(platform.data_dir)
    connect = Connect("app.test", version=MQTT_5, user_name=listener.user_name, password=listener.password)
    with socket.create_connection((listener.host, listener.port), timeout=DEADLINE_S) as link:
        session = RawSession(link, version=MQTT_5)
        session.send(connect.encode())
        session.subscribe(*filters)
        yield session


def body_of(answer: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(answer["payload"].read())
    return found


def heard(device: RawSession, count: int) -> dict[str, dict[str, Any]]:
    """Return the next messages by the end of their topic."""
    found: dict[str, dict[str, Any]] = {}
    while len(found) < count:
        message = device.next_message()
        if not is_reminder(message):
            found[message.topic.removeprefix(f"{SHADOW}/")] = json.loads(message.payload)
    return found


def is_reminder(message: Message) -> bool:
    """Tell whether a message is the delta that a device is told again when it comes back; nobody caused it."""
    return message.topic == f"{SHADOW}/update/delta" and b'"clientToken"' not in message.payload


def is_silent(device: RawSession) -> bool:
    """Tell whether nothing has come for the device."""
    return all(map(is_reminder, device.messages()))


def test_a_key_is_made_listed_and_deleted_on_the_command_line(platform: RunningPlatform) -> None:
    made = platform.json("key", "create", "boto3-short", "--role", "viewer")
    assert {"access_key_id", "secret_access_key"} <= set(made)
    listed = platform.json("key", "list")["keys"]
    assert ("boto3-short", "viewer") in [(each["name"], each["role"]) for each in listed]
    assert made["secret_access_key"] not in str(listed)
    client = boto3_client("iot-data", platform.endpoints.api.url, made)
    with pytest.raises(client.exceptions.ResourceNotFoundException):
        client.get_thing_shadow(thingName="boto3-nobody")
    assert "boto3-short is deleted" in platform.done("key", "delete", "boto3-short")
    with pytest.raises(ClientError) as caught:
        client.get_thing_shadow(thingName="boto3-nobody")
    assert refusal(caught.value) == (403, "ForbiddenException")


def test_a_shadow_is_updated_read_listed_and_deleted(data: Any, key: dict[str, Any]) -> None:
    thing = "boto3-a:b"
    wish = {"state": {"desired": {"set_point": 21.5}}, "clientToken": "one"}
    accepted = body_of(data.update_thing_shadow(thingName=thing, payload=json.dumps(wish)))
    assert (accepted["state"], accepted["version"], accepted["clientToken"]) == (wish["state"], 1, "one")
    document = body_of(data.get_thing_shadow(thingName=thing))
    assert document["state"] == {"desired": {"set_point": 21.5}, "delta": {"set_point": 21.5}}
    for name in ("c", "a", "b"):
        data.update_thing_shadow(thingName=thing, shadowName=name, payload=b'{"state":{"reported":{"n":1}}}')
    page = data.list_named_shadows_for_thing(thingName=thing, pageSize=2)
    assert (page["results"], isinstance(page["timestamp"], int)) == (["a", "b"], True)
    rest = data.list_named_shadows_for_thing(thingName=thing, pageSize=2, nextToken=page["nextToken"])
    assert (rest["results"], "nextToken" in rest) == (["c"], False)
    assert body_of(data.delete_thing_shadow(thingName=thing))["version"] == 1
    with pytest.raises(data.exceptions.ResourceNotFoundException, match="No shadow exists with name"):
        data.get_thing_shadow(thingName=thing)


@pytest.mark.parametrize(
    ("payload", "name"),
    [
        (b'{"state":{"desired":{"a":1}},"version":99}', "ConflictException"),
        (b"{", "InvalidRequestException"),
        (b'{"state":{"desired":{"a":"' + b"x" * 9000 + b'"}}}', "RequestEntityTooLargeException"),
        (b'{"state":{"desired":{"a":"\xff"}}}', "UnsupportedDocumentEncodingException"),
    ],
)
def test_a_refused_update_is_the_exception_of_its_name(data: Any, payload: bytes, name: str) -> None:
    data.update_thing_shadow(thingName="boto3-refused", payload=b'{"state":{"desired":{"a":1}}}')
    with pytest.raises(ClientError) as caught:
        data.update_thing_shadow(thingName="boto3-refused", payload=payload)
    assert refusal(caught.value)[1] == name
    assert isinstance(caught.value, getattr(data.exceptions, name, ClientError))


def test_a_viewer_changes_nothing(platform: RunningPlatform) -> None:
    viewer = platform.json("key", "create", "boto3-viewer", "--role", "viewer")
    data = boto3_client("iot-data", platform.endpoints.api.url, viewer)
    for operation, arguments in (
        ("update_thing_shadow", {"thingName": DEVICE, "payload": b'{"state":{"desired":{"a":1}}}'}),
        ("delete_thing_shadow", {"thingName": DEVICE}),
        ("publish", {"topic": "news/today", "payload": b"x"}),
    ):
        with pytest.raises(ClientError, match="needs the role operator") as caught:
            getattr(data, operation)(**arguments)
        assert refusal(caught.value) == (403, "ForbiddenException")
    assert data.list_retained_messages()["retainedTopics"] is not None


def test_what_http_changes_is_announced_like_what_mqtt_does(data: Any, device: RawSession) -> None:
    wish = b'{"state":{"desired":{"announced":1}},"clientToken":"over-http"}'
    version = body_of(data.update_thing_shadow(thingName=DEVICE, payload=wish))["version"]
    told = heard(device, 3)
    assert set(told) == {"update/accepted", "update/delta", "update/documents"}
    assert {each["clientToken"] for each in told.values()} == {"over-http"}
    assert told["update/delta"]["state"]["announced"] == 1
    assert told["update/accepted"]["version"] == told["update/documents"]["current"]["version"] == version
    data.update_thing_shadow(thingName=DEVICE, shadowName="cfg", payload=b'{"state":{"reported":{"a":1}}}')
    assert set(heard(device, 2)) == {"name/cfg/update/accepted", "name/cfg/update/documents"}
    data.delete_thing_shadow(thingName=DEVICE)
    assert heard(device, 1)["delete/accepted"]["version"] == version
    # A refusal over HTTP is silent on MQTT.
    with pytest.raises(ClientError):
        data.update_thing_shadow(thingName=DEVICE, payload=b"{")
    assert is_silent(device)


@pytest.mark.parametrize("qos", [0, 1])
def test_a_request_published_over_http_reaches_the_service(data: Any, device: RawSession, qos: int) -> None:
    request = {"state": {"reported": {"published": qos}}, "clientToken": f"published-{qos}"}
    data.publish(topic=f"{SHADOW}/update", qos=qos, payload=json.dumps(request))
    told = heard(device, 2)
    assert told["update/accepted"]["clientToken"] == f"published-{qos}"
    assert told["update/accepted"]["state"] == request["state"]


def test_a_message_carries_all_that_was_said_of_it(platform: RunningPlatform, data: Any) -> None:
    with insider(platform, "boto3/said/#") as session:
        data.publish(
            topic="boto3/said/ü",
            qos=1,
            payload=b"hello",
            contentType="text/plain",
            responseTopic="boto3/answers",
            messageExpiry=3600,
            payloadFormatIndicator="UTF8_DATA",
            correlationData=base64.b64encode(b"\x00\x01").decode(),
            userProperties=[{"unit": "celsius"}, {"unit": "kelvin"}],
        )
        packet = session.next_packet()
    assert packet is not None
    assert (packet.kind, packet.first & 0x06) == (PUBLISH, 0x02)
    assert packet.body[2:].startswith("boto3/said/ü".encode())
    assert packet.body.endswith(b"hello")
    for encoded in (
        b"\x01\x01",
        b"\x02\x00\x00",
        b"\x03" + field("text/plain"),
        b"\x08" + field("boto3/answers"),
        b"\x09" + field(b"\x00\x01"),
        b"\x26" + field("unit") + field("celsius"),
        b"\x26" + field("unit") + field("kelvin"),
    ):
        assert encoded in packet.body


@pytest.mark.parametrize(
    ("arguments", "refused"),
    [
        ({"topic": f"{SHADOW}/update/accepted"}, (403, "ForbiddenException")),
        ({"topic": "$aws/events/presence/connected/x"}, (403, "ForbiddenException")),
        ({"topic": "$SYS/broker/version"}, (403, "ForbiddenException")),
        ({"topic": "twinfleet/bridge/marker"}, (403, "ForbiddenException")),
        ({"topic": f"{SHADOW}/get", "retain": True}, (400, "InvalidRequestException")),
        ({"topic": "a/+/b"}, (400, "InvalidRequestException")),
        ({"topic": "a/#"}, (400, "InvalidRequestException")),
        ({"topic": "1/2/3/4/5/6/7/8/9"}, (400, "InvalidRequestException")),
        ({"topic": "n" * 257}, (400, "InvalidRequestException")),
        ({"topic": "a", "qos": 2}, (400, "InvalidRequestException")),
        ({"topic": "a", "messageExpiry": 0}, (400, "InvalidRequestException")),
        ({"topic": "a", "responseTopic": "b/#"}, (400, "InvalidRequestException")),
        ({"topic": "a", "correlationData": "no base 64"}, (400, "InvalidRequestException")),
        ({"topic": "a", "userProperties": [{"n": 1}]}, (400, "InvalidRequestException")),
        ({"topic": "a", "userProperties": [{"n": "x" * 4096}]}, (400, "InvalidRequestException")),
        (
            {"topic": "a", "payload": b"\xff", "payloadFormatIndicator": "UTF8_DATA"},
            (400, "InvalidRequestException"),
        ),
    ],
    ids=str,
)
def test_what_may_not_be_published_is_refused(
    data: Any, arguments: dict[str, Any], refused: tuple[int, str]
) -> None:
    with pytest.raises(ClientError) as caught:
        data.publish(**({"payload": b"x"} | arguments))
    assert refusal(caught.value) == refused


# Retained messages


def retained_topics(data: Any, prefix: str) -> list[str]:
    """Return the retained topics that begin with a prefix, read in pages of two."""
    found: list[str] = []
    more: dict[str, str] = {}
    while True:
        page = data.list_retained_messages(maxResults=2, **more)
        found += [each["topic"] for each in page["retainedTopics"]]
        if "nextToken" not in page:
            return [topic for topic in found if topic.startswith(prefix)]
        more = {"nextToken": page["nextToken"]}


def test_a_retained_message_is_read_listed_and_cleared(data: Any) -> None:
    before_ms = time.time() * 1000
    topics = [f"boto3/kept/{name}" for name in ("a", "b", "c/ü %2F")]
    for qos, topic in enumerate(topics):
        properties = [{"unit": "celsius"}, {"unit": "kelvin"}]
        data.publish(
            topic=topic, qos=min(qos, 1), retain=True, payload=b"\x00\xff", userProperties=properties
        )
    for qos, topic in enumerate(topics):
        found = data.get_retained_message(topic=topic)
        assert (found["topic"], found["payload"], found["qos"]) == (topic, b"\x00\xff", min(qos, 1))
        # botocore takes off the Base64 of what the model calls a blob.
        assert json.loads(found["userProperties"]) == properties
        assert before_ms - 1000 <= found["lastModifiedTime"] <= time.time() * 1000 + 1000
    assert retained_topics(data, "boto3/kept/") == topics
    listed = {each["topic"]: each for each in data.list_retained_messages(maxResults=200)["retainedTopics"]}
    assert (listed[topics[1]]["payloadSize"], listed[topics[1]]["qos"]) == (2, 1)
    data.publish(topic=topics[0], retain=True, payload=b"")
    with pytest.raises(data.exceptions.ResourceNotFoundException):
        data.get_retained_message(topic=topics[0])
    assert retained_topics(data, "boto3/kept/") == topics[1:]


def test_a_device_retains_some_telemetry_which_whoever_comes_later_finds(
    platform: RunningPlatform, data: Any, device: RawSession
) -> None:
    prefix = f"telemetry/{DEVICE}/"
    ended = "twinfleet_bridge_retentions_ended_total"
    before = metric(platform, ended)
    for number in range(THING_TOPIC_COUNT_MAX + 2):
        device.publish(f"{prefix}{number:02d}", b'{"n":%d}' % number, is_retained=True)
    until(lambda: metric(platform, ended) == before + 2, "two are too many")
    expected = [f"{prefix}{number:02d}" for number in range(THING_TOPIC_COUNT_MAX)]
    until(lambda: retained_topics(data, prefix) == expected, "ten are kept")
    assert data.get_retained_message(topic=expected[3])["payload"] == b'{"n":3}'
    with pytest.raises(data.exceptions.ResourceNotFoundException):
        data.get_retained_message(topic=f"{prefix}11")
    # The bound holds for whoever publishes; a topic that is cleared makes room.
    with pytest.raises(data.exceptions.InvalidRequestException, match="one retained topic too many"):
        data.publish(topic=f"{prefix}new", retain=True, payload=b"{}")
    for topic in expected:
        device.publish(topic, b"", is_retained=True)
    until(lambda: retained_topics(data, prefix) == [], "nothing is left")
    data.publish(topic=f"{prefix}new", retain=True, payload=b"{}")
    data.publish(topic=f"{prefix}new", retain=True, payload=b"")


def test_a_deleted_thing_leaves_nothing_retained(
    platform: RunningPlatform, data: Any, tmp_path: Path
) -> None:
    platform.enrol("boto3-gone", tmp_path)
    data.publish(topic="telemetry/boto3-gone/state", qos=1, retain=True, payload=b"{}")
    assert retained_topics(data, "telemetry/boto3-gone/") == ["telemetry/boto3-gone/state"]
    with platform.api() as api:
        api.delete("/v1/things/boto3-gone").raise_for_status()
    assert retained_topics(data, "telemetry/boto3-gone/") == []
    with pytest.raises(data.exceptions.ResourceNotFoundException):
        data.get_retained_message(topic="telemetry/boto3-gone/state")


def test_a_request_that_was_to_be_retained_is_answered_and_not_retained(
    platform: RunningPlatform, device: RawSession
) -> None:
    ended = "twinfleet_bridge_retentions_ended_total"
    before = metric(platform, ended)
    device.publish(f"{SHADOW}/update", b'{"state":{"reported":{"kept":1}}}', is_retained=True)
    assert heard(device, 2)["update/accepted"]["state"] == {"reported": {"kept": 1}}
    until(lambda: metric(platform, ended) == before + 1, "its retention is ended")
    with insider(platform, f"{SHADOW}/#") as session:
        assert session.messages() == []
    # Ending the retention was no request.
    assert is_silent(device)


def test_a_retained_will_is_under_the_same_rules(platform: RunningPlatform, data: Any, files: Path) -> None:
    ended = "twinfleet_bridge_retentions_ended_total"
    before = metric(platform, ended)
    key_pair = {"certificate": files / f"{DEVICE}.pem", "key": files / f"{DEVICE}.key"}
    client = RawClient.of(platform.endpoints.mqtts.port, files / "ca.pem", **key_pair)
    topic = f"telemetry/{DEVICE}/will"
    for will in (Will(f"{SHADOW}/get", b"{}", is_retained=True), Will(topic, b"{}", is_retained=True)):
        with client.session(Connect(will=will)):
            pass
    until(lambda: metric(platform, ended) == before + 1, "the request's retention is ended")
    until(lambda: retained_topics(data, topic) == [topic], "the telemetry is retained")
    data.publish(topic=topic, retain=True, payload=b"")


# The devices' listener


@pytest.fixture
def https(platform: RunningPlatform, files: Path) -> Iterator[httpx.Client]:
    """Give a client with the device's certificate."""
    context = ssl.create_default_context(cafile=str(files / "ca.pem"))
    context.load_cert_chain(files / f"{DEVICE}.pem", files / f"{DEVICE}.key")
    assert platform.endpoints.https_devices is not None
    with httpx.Client(
        base_url=platform.endpoints.https_devices.url, verify=context, timeout=DEADLINE_S
    ) as client:
        yield client


def test_a_device_publishes_its_requests_and_telemetry_over_https(
    platform: RunningPlatform, https: httpx.Client, device: RawSession
) -> None:
    topic = quote(f"{SHADOW}/update", safe="")
    sent = https.post(f"/topics/{topic}?qos=1", content=b'{"state":{"reported":{"over":"https"}}}')
    assert (sent.status_code, sent.json()["message"]) == (200, "OK")
    assert heard(device, 2)["update/accepted"]["state"] == {"reported": {"over": "https"}}
    sent = https.post(f"/topics/telemetry/{DEVICE}/climate?qos=1", content=b'{"temperature":21.5}')
    assert sent.status_code == 200
    with platform.api() as api:

        def is_there() -> bool:
            return "21.5" in api.get(f"/v1/twins/{DEVICE}/telemetry").text

        until(is_there, "the telemetry arrives")


def test_a_device_touches_nothing_else_over_https_and_its_attempts_are_counted(
    platform: RunningPlatform, https: httpx.Client
) -> None:
    listing = "/api/things/shadow/ListNamedShadowsForThing"
    assert https.get(f"{listing}/{DEVICE}").status_code == 200
    before = metric(platform, "twinfleet_http_requests_total", listener="devices", status="403")
    attempts = [
        ("GET", f"{listing}/boto3-other"),
        ("GET", "/things/boto3-other/shadow"),
        ("POST", "/topics/telemetry/boto3-other/climate"),
        ("POST", "/topics/%24aws%2Fthings%2Fboto3-other%2Fshadow%2Fupdate"),
        ("POST", f"/topics/{quote(SHADOW, safe='')}%2Fupdate%2Faccepted"),
        ("POST", "/topics/news/today"),
        ("POST", f"/topics/telemetry/{DEVICE}"),
        ("POST", "/topics/twinfleet/bridge/marker"),
        ("GET", "/things/boto3-other/jobs"),
        ("PUT", "/things/boto3-other/jobs/$next"),
    ]
    for method, path in attempts:
        assert https.request(method, path, content=b"{}").status_code == 403, path
    after = metric(platform, "twinfleet_http_requests_total", listener="devices", status="403")
    assert after == before + len(attempts)
    for path in ("/retainedMessage", "/v1/things", "/jobs"):
        assert https.get(path).status_code == 404
