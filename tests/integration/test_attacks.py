"""What a device with a good certificate, and strangers without one, can do to another device: nothing, and it shows.

`alice` is the victim. Each attack ends with her twin, her connection and the platform as they were before.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import warnings
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from actors.attempts import FORBIDDEN_MAX
from actors.pki import CertificateAuthority, generate_key_and_csr
from tests.integration.attack_scene import ALICE, MALLORY, Scene, client_of, counted, metric, settled
from tests.integration.provisioning_device import new_claim
from tests.integration.raw_mqtt import (
    ACCEPTED,
    CONNACK,
    DISCONNECT,
    MQTT_5,
    MQTT_311,
    Connect,
    RawClient,
    RawSession,
    Refused,
    Will,
    publish,
    subscribe,
)
from tests.integration.running_platform import DEADLINE_S, until

# MQTT 5, 2.4
NOT_AUTHORIZED = 135
VERSIONS = pytest.mark.parametrize("version", [MQTT_311, MQTT_5])
DENIED = "twinfleet_bridge_publishes_denied_total"
BODY = b'{"state":{"desired":{"mode":"owned"},"reported":{"secret":"forged"}},"clientToken":"m"}'
HERS = f"$aws/things/{ALICE}/shadow"

# Where a message would do harm if it went through: her requests, her answers, what the platform says, what is its own.
FORBIDDEN_TOPICS = (
    *(f"{HERS}/{operation}" for operation in ("get", "update", "delete")),
    *(f"{HERS}/name/config/{operation}" for operation in ("get", "update", "delete")),
    *(f"{HERS}/update/{answer}" for answer in ("accepted", "rejected", "delta", "documents")),
    *(
        f"{HERS}/{operation}/{answer}"
        for operation in ("get", "delete")
        for answer in ("accepted", "rejected")
    ),
    *(f"{HERS}/name/config/update/{answer}" for answer in ("accepted", "rejected", "delta", "documents")),
    f"$aws/things/{MALLORY}/shadow/update/accepted",
    f"$aws/things/{MALLORY}/shadow/update/delta",
    f"telemetry/{ALICE}/climate",
    *(f"$aws/things/{ALICE}/jobs/{request}" for request in ("get", "start-next", "any/get", "any/update")),
    *(
        f"$aws/things/{MALLORY}/jobs/{told}"
        for told in ("notify", "notify-next", "get/accepted", "any/get/accepted")
    ),
    f"$aws/commands/things/{ALICE}/executions/any/response/json",
    f"$aws/commands/things/{MALLORY}/executions/any/request/json",
    f"$aws/commands/things/{MALLORY}/executions/any/response/accepted/json",
    f"$aws/things/{ALICE}/defender/metrics/json",
    f"$aws/events/presence/disconnected/{ALICE}",
    f"$aws/events/presence/connected/{MALLORY}",
    f"$aws/events/thing/{ALICE}/deleted",
    "$aws/certificates/create/json/accepted",
    "$aws/provisioning-templates/any/provision/json/accepted",
    "$aws/rules/any",
    f"ingest/things/{ALICE}/shadow/update",
    f"things/{ALICE}/shadow/update",
    "anything",
)
ITS_OWN_WORD = ("$SYS/broker/log/N", "$SYS/broker/clients/connected", "$SYS/any")


# Publishing


@VERSIONS
def test_nothing_can_be_published_on_topics_of_others(scene: Scene, version: int) -> None:
    with scene.alice.undisturbed(), scene.mallory.session(Connect(version=version)) as mallory:
        answers = {topic: mallory.publish(topic, BODY) for topic in (*FORBIDDEN_TOPICS, *ITS_OWN_WORD)}
        for topic in (*FORBIDDEN_TOPICS, *ITS_OWN_WORD):
            mallory.send(publish(topic, BODY, version=version))
        assert mallory.messages() == []
    if version == MQTT_5:
        assert set(answers.values()) == {NOT_AUTHORIZED}, answers


@VERSIONS
def test_each_forbidden_message_is_counted_whatever_else_is_published(scene: Scene, version: int) -> None:
    topics = (*FORBIDDEN_TOPICS, *ITS_OWN_WORD)
    own = f"telemetry/{MALLORY}/climate"
    # What other tests tried may be counted only now.
    settled(scene.platform, DENIED)
    with (
        counted(scene.platform, 2 * len(topics), DENIED),
        counted(
            scene.platform,
            2 * len(topics) * len(BODY) + len("retain!"),
            "twinfleet_bridge_publish_bytes_denied_total",
        ),
        scene.platform.api() as api,
    ):
        for topic in topics:
            # She comes and goes, which is told to applications.
            with scene.mallory.session(Connect(version=version)) as mallory:
                mallory.publish(topic, BODY)
                mallory.send(publish(topic, BODY, version=version))
                mallory.publish(own, b"{}")
                mallory.send(publish(own, b"{}", version=version) + DISCONNECT)
                assert mallory.is_closed()
        scene.alice.speak()
        for topic in (own, "hall/state", f"$aws/things/{MALLORY}/shadow/get"):
            for qos in (0, 1):
                api.post(
                    f"/topics/{quote(topic, safe='')}", params={"qos": qos}, content=b"{}"
                ).raise_for_status()
        with scene.mallory.session(Connect(version=version)) as mallory:
            mallory.publish("kept", b"retain!", is_retained=True)
    # Nothing of it comes later.
    with counted(scene.platform, 1, DENIED), scene.mallory.session(Connect(version=version)) as mallory:
        scene.alice.speak()
        mallory.publish("anything", b"{}")


def test_the_watch_over_alice_sees_what_somebody_else_may_do(scene: Scene) -> None:
    # The other tests are worth what `undisturbed` compares; `speak` has heard what an operator did.
    before = scene.alice.everything()
    scene.alice.speak()
    after = scene.alice.everything()
    assert [part for part in before if before[part] == after[part]] == ["names"], after


# Subscribing

EAVESDROPPING = (
    "#",
    "+/#",
    "+/+/+/+/+",
    "$aws/#",
    "$aws/+/+/+/+/+",
    "$aws/things/#",
    "$aws/things/+/shadow/#",
    f"{HERS}/#",
    f"{HERS}/update",
    f"{HERS}/update/accepted",
    f"{HERS}/update/documents",
    f"{HERS}/update/delta",
    f"{HERS}/+/+",
    f"{HERS}/name/+/#",
    "$aws/things/+/shadow/update/documents",
    f"telemetry/{ALICE}/#",
    "telemetry/#",
    "telemetry/+/climate",
    "$aws/events/#",
    "$SYS/#",
    "$SYS/broker/log/#",
)


@VERSIONS
def test_no_subscription_hears_another_device(scene: Scene, version: int) -> None:
    filters = [*EAVESDROPPING, *(f"$share/any/{topic_filter}" for topic_filter in EAVESDROPPING)]
    own = f"$aws/things/{MALLORY}/shadow"
    # As many at a time as nobody is thrown out for.
    for first in range(0, len(filters), FORBIDDEN_MAX):
        with scene.mallory.session(Connect(version=version)) as mallory:
            mallory.subscribe(*filters[first : first + FORBIDDEN_MAX], f"{own}/update/documents")
            scene.alice.speak()
            with scene.alice.undisturbed():
                assert mallory.messages() == [], filters[first : first + FORBIDDEN_MAX]
            # The connection lives, and hears what is meant for it.
            mallory.publish(f"{own}/update", b'{"state":{"reported":{"a":1}}}')
            topics = {mallory.next_message().topic}
            while f"{own}/update/documents" not in topics:
                topics.add(mallory.next_message().topic)
            assert topics <= {f"{own}/update/accepted", f"{own}/update/documents"}


# Retained messages and wills


@VERSIONS
def test_nothing_is_retained_for_others(scene: Scene, version: int) -> None:
    topics = [f"{HERS}/update", f"{HERS}/update/delta", f"telemetry/{ALICE}/climate", "$SYS/kept", "kept"]
    with scene.alice.undisturbed(), scene.mallory.session(Connect(version=version)) as mallory:
        for topic in topics:
            code = mallory.publish(topic, BODY, is_retained=True)
            assert code == (NOT_AUTHORIZED if version == MQTT_5 else 0), topic
    with scene.platform.api() as api:
        retained = api.get("/retainedMessage").json()["retainedTopics"]
    assert not [each["topic"] for each in retained if each["topic"] in topics]


@VERSIONS
def test_what_a_device_has_retained_on_its_own_topics_is_heard_by_nobody_else(
    scene: Scene, version: int
) -> None:
    own = f"telemetry/{MALLORY}/kept"
    with scene.alice.undisturbed():
        with scene.mallory.session(Connect(version=version)) as mallory:
            mallory.publish(own, BODY, is_retained=True)
        with scene.mallory.session(Connect(version=version)) as mallory:
            mallory.subscribe("#", "$aws/#", "telemetry/#", own)
            assert mallory.messages() == []
            mallory.publish(own, b"", is_retained=True)


@VERSIONS
def test_a_will_reaches_no_topic_that_its_owner_may_not_use(scene: Scene, version: int) -> None:
    with scene.alice.undisturbed():
        for topic in (*FORBIDDEN_TOPICS, *ITS_OWN_WORD):
            connect = Connect(version=version, will=Will(topic, BODY))
            with contextlib.suppress(Refused), scene.mallory.session(connect) as mallory:
                mallory.messages()
        # The broker has ended the session before when it takes the next one of the same client.
        assert scene.mallory.is_admitted(Connect(version=version))


@VERSIONS
def test_a_will_on_a_topic_of_its_owner_is_a_request_like_any_other(scene: Scene, version: int) -> None:
    own = f"$aws/things/{MALLORY}/shadow"
    before = scene.platform.version_of(MALLORY)
    with scene.alice.undisturbed():
        will = Will(f"{own}/update", b'{"state":{"reported":{"a":"bye"}}}')
        with scene.mallory.session(Connect(version=version, will=will)) as mallory:
            mallory.messages()
        until(lambda: scene.platform.version_of(MALLORY) == before + 1, "the will is carried out")


@VERSIONS
def test_a_retained_will_is_kept_for_nobody_else(scene: Scene, version: int) -> None:
    own = f"telemetry/{MALLORY}/will"
    with scene.alice.undisturbed():
        for topic in (own, f"{HERS}/update", "will"):
            connect = Connect(version=version, will=Will(topic, BODY, is_retained=True))
            with contextlib.suppress(Refused), scene.mallory.session(connect) as mallory:
                mallory.messages()
        with scene.mallory.session(Connect(version=version)) as mallory:
            mallory.subscribe("#", "$aws/#", "telemetry/#")
            assert mallory.messages() == []
            mallory.publish(own, b"", is_retained=True)


# Somebody else's name


@VERSIONS
@pytest.mark.parametrize(
    "client_id", [ALICE, "app.bridge", "app.events", "", "x" * 65_535, b"\xff\xfe", "a/+/#"]
)
def test_no_client_id_takes_a_session_or_rights(scene: Scene, version: int, client_id: str | bytes) -> None:
    before = metric(scene.platform, "twinfleet_bridge_reconnects_total")
    for is_clean in (True, False):
        connect = Connect(client_id, version=version, is_clean=is_clean)
        with contextlib.suppress(Refused), scene.mallory.session(connect) as mallory:
            mallory.subscribe("$aws/#", "#")
            scene.alice.speak()
            with scene.alice.undisturbed():
                answer = mallory.publish(f"{HERS}/update", BODY)
            assert answer == (NOT_AUTHORIZED if version == MQTT_5 else 0)
            assert mallory.messages() == []
    with scene.alice.undisturbed():
        assert metric(scene.platform, "twinfleet_bridge_reconnects_total") == before


# Strangers


def stranger(scene: Scene, files: tuple[str, str], directory: Path) -> RawClient:
    for suffix, text in zip(("pem", "key"), files, strict=True):
        (directory / f"stranger.{suffix}").write_text(text)
    (directory / "ca.pem").write_bytes((scene.files / "ca.pem").read_bytes())
    return client_of(scene.platform, directory, "stranger")


@pytest.mark.parametrize("kind", ["none", "self-signed", "forged", "of another authority"])
def test_without_a_certificate_of_the_platform_nobody_gets_in(
    scene: Scene, kind: str, self_made: Callable[..., tuple[str, str]], tmp_path: Path
) -> None:
    if kind == "none":
        client = scene.client()
    elif kind == "of another authority":
        pair = generate_key_and_csr(ALICE)
        issued = CertificateAuthority.open_or_create(tmp_path / "other").issue_for_thing(pair.csr_pem, ALICE)
        client = stranger(scene, (issued.certificate_pem, pair.private_key_pem), tmp_path)
    else:
        issuer = scene.files / "ca.pem" if kind == "forged" else None
        client = stranger(scene, self_made(ALICE, issuer_of=issuer), tmp_path)
    with scene.alice.undisturbed():
        with counted(scene.platform, 1, "twinfleet_broker_handshakes_failed_total"):
            assert not client.is_admitted(Connect(ALICE))
        with (
            counted(scene.platform, 1, "twinfleet_https_handshakes_failed_total"),
            pytest.raises(httpx.TransportError),
            scene.https(client) as web,
        ):
            web.get(f"/things/{ALICE}/shadow")


def test_old_versions_of_tls_are_refused(scene: Scene) -> None:
    context = scene.client(MALLORY).context
    # OpenSSL itself would not offer them at its usual level of security.
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with scene.alice.undisturbed():
        assert not RawClient(scene.port, context).is_admitted(Connect())
        with pytest.raises(httpx.TransportError), scene.https(RawClient(scene.port, context)) as web:
            web.get(f"/things/{MALLORY}/shadow")


def test_the_listener_of_the_platform_itself_opens_to_nobody_else(scene: Scene) -> None:
    directory = scene.platform.directory.mosquitto
    port = int((directory / "internal.port").read_text())
    with scene.alice.undisturbed():
        for connect in (
            Connect("app.bridge"),
            Connect("app.bridge", user_name=ALICE, password=""),
            Connect("app.bridge", user_name="app.bridge", password="guess"),
            Connect(ALICE, version=MQTT_5, user_name="app.bridge"),
        ):
            with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as link:
                session = RawSession(link)
                session.send(connect.encode())
                assert session.until(CONNACK).body[1] != ACCEPTED


# Certificates of the platform that are no device's


@pytest.fixture(scope="module")
def others(scene: Scene) -> Scene:
    """Make certificates of an observer and of a claim beside mallory's."""
    scene.platform.done("certificate", "create", "snoop", "--role", "observer", "--out", str(scene.files))
    new_claim(scene.platform, scene.files, "thief")
    return scene


def admitted_at_last(stack: contextlib.ExitStack, client: RawClient, connect: Connect) -> RawSession:
    """Return a session, also where others with a claim come first: theirs are refused one after the other."""
    sessions: list[RawSession] = []

    def is_admitted() -> bool:
        with contextlib.suppress(Refused, OSError):
            sessions.append(stack.enter_context(client.session(connect)))
        return bool(sessions)

    until(is_admitted, "the client is let in")
    return sessions[0]


@VERSIONS
@pytest.mark.parametrize(("name", "hears_documents"), [("thief", False), ("snoop", True)])
def test_applications_and_claims_hear_and_say_what_they_may(
    others: Scene, name: str, hears_documents: bool, version: int
) -> None:
    with contextlib.ExitStack() as stack:
        session = admitted_at_last(stack, others.client(name), Connect(version=version))
        session.subscribe("$aws/#", "#", "$SYS/#", "$share/any/$aws/#", f"telemetry/{ALICE}/#")
        others.alice.speak()
        heard = {message.topic for message in session.messages()}
        if hears_documents:
            assert f"{HERS}/update/documents" in heard
            heard -= {topic for topic in heard if topic.endswith("/update/documents")}
            heard -= {topic for topic in heard if topic.startswith("$aws/events/")}
        assert heard == set()
        with others.alice.undisturbed():
            answers = {session.publish(topic, BODY) for topic in (*FORBIDDEN_TOPICS, *ITS_OWN_WORD)}
            assert answers == {NOT_AUTHORIZED if version == MQTT_5 else 0}


@pytest.mark.parametrize("name", ["thief", "snoop"])
def test_applications_and_claims_are_no_devices_over_https(others: Scene, name: str) -> None:
    with others.alice.undisturbed(), others.https(others.client(name)) as web:
        for method, path in OVER_HTTP:
            answer = web.request(method, path, content=BODY if method == "POST" else None)
            assert answer.status_code in (403, 404, 405), (method, path, answer.text)


# HTTP


OVER_HTTP = (
    *(("GET", f"/things/{ALICE}/shadow{query}") for query in ("", "?name=config")),
    *(("POST", f"/things/{ALICE}/shadow{query}") for query in ("", "?name=config", "?name=new")),
    *(("DELETE", f"/things/{ALICE}/shadow{query}") for query in ("", "?name=config")),
    ("GET", f"/things/{MALLORY}%2F..%2F{ALICE}/shadow"),
    ("GET", f"/things/{MALLORY}/../{ALICE}/shadow"),
    ("GET", f"/api/things/shadow/ListNamedShadowsForThing/{ALICE}"),
    ("POST", f"/topics/%24aws%2Fthings%2F{ALICE}%2Fshadow%2Fupdate?qos=1"),
    ("POST", f"/topics/$aws/things/{ALICE}/shadow/update/delta?qos=1"),
    ("POST", f"/topics/telemetry/{ALICE}/climate?qos=1"),
    ("POST", f"/topics/%24aws%2Fevents%2Fpresence%2Fdisconnected%2F{ALICE}"),
    ("POST", "/topics/%24SYS%2Fany"),
    ("POST", "/topics/%2524aws%2Fthings%2F" + ALICE + "%2Fshadow%2Fupdate"),
    ("GET", f"/retainedMessage/%24aws%2Fthings%2F{ALICE}%2Fshadow%2Fupdate"),
    ("GET", f"/v1/twins/{ALICE}"),
    ("GET", f"/v1/twins/{ALICE}/telemetry"),
    ("GET", f"/v1/things/{ALICE}"),
    ("DELETE", f"/v1/things/{ALICE}"),
    ("GET", "/v1/things"),
    ("GET", f"/things/{ALICE}"),
    ("GET", f"/things/{ALICE}/principals"),
    ("GET", "/v1/cluster"),
    ("GET", "/metrics"),
)


def test_another_certificate_opens_nothing_over_https_and_each_try_is_counted(scene: Scene) -> None:
    answers: dict[str, int] = {}
    before = {
        status: metric(scene.platform, "twinfleet_http_requests_total", listener="devices", status=status)
        for status in ("403", "404", "405")
    }
    with scene.alice.undisturbed(), scene.https(scene.mallory) as web:
        for method, path in OVER_HTTP:
            answer = web.request(method, path, content=BODY if method == "POST" else None)
            answers[f"{method} {path}"] = answer.status_code
            assert "secret" not in answer.text, (path, answer.text)
    after = {
        status: metric(scene.platform, "twinfleet_http_requests_total", listener="devices", status=status)
        for status in before
    }
    assert set(answers.values()) <= {403, 404, 405}, answers
    assert all(answers[f"{method} /things/{ALICE}/shadow"] == 403 for method in ("GET", "POST", "DELETE"))
    assert sum(after.values()) - sum(before.values()) == len(OVER_HTTP)


def test_without_a_token_the_operators_api_opens_nothing_and_each_try_is_counted(scene: Scene) -> None:
    url = scene.platform.endpoints.api.url
    credentials: tuple[dict[str, str], ...] = (
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer guess"},
        {"Authorization": "Basic YWRtaW46YWRtaW4="},
    )
    requests = [(method, path) for method, path in OVER_HTTP if path != "/metrics" and "/topics/" not in path]
    count = len(credentials) * len(requests)
    with (
        scene.alice.undisturbed(),
        counted(scene.platform, count, "twinfleet_http_requests_total", listener="operators", status="401"),
        httpx.Client(base_url=url, timeout=DEADLINE_S) as web,
    ):
        for headers in credentials:
            for method, path in requests:
                answer = web.request(
                    method, path, headers=headers, content=BODY if method == "POST" else None
                )
                assert answer.status_code == 401, (method, path, answer.text)


# Payloads and topics that are too much

LARGE = b'{"state":{"reported":{"x":"' + b"x" * 200_000 + b'"}}}'


@VERSIONS
def test_large_payloads_change_nothing_and_are_counted(scene: Scene, version: int) -> None:
    own = f"$aws/things/{MALLORY}/shadow"
    before = scene.platform.version_of(MALLORY)
    with (
        scene.alice.undisturbed(),
        counted(scene.platform, 1, "twinfleet_bridge_payloads_too_large_total"),
        scene.mallory.session(Connect(version=version)) as mallory,
    ):
        mallory.subscribe(f"{own}/#")
        for topic in FORBIDDEN_TOPICS:
            assert mallory.publish(topic, LARGE) == (NOT_AUTHORIZED if version == MQTT_5 else 0)
        for request in ("update", "name/config/update"):
            mallory.publish(f"{own}/{request}", LARGE)
            answer = mallory.next_message()
            assert (answer.topic, json.loads(answer.payload)["code"]) == (f"{own}/{request}/rejected", 413)
        mallory.publish(f"telemetry/{MALLORY}/large", LARGE)
    assert scene.platform.version_of(MALLORY) == before


@VERSIONS
def test_what_is_larger_than_any_message_ends_at_the_broker(scene: Scene, version: int) -> None:
    with scene.alice.undisturbed(), scene.mallory.session(Connect(version=version)) as mallory:
        # More than a packet may have, of which the broker reads no more than its head.
        mallory.send(publish(f"telemetry/{MALLORY}/large", b"x" * 400_000, version=version, packet_id=1))
        assert mallory.is_closed()


def test_large_bodies_are_refused_on_every_route_and_counted(scene: Scene) -> None:
    paths = [path for method, path in OVER_HTTP if method == "POST"] + [f"/things/{MALLORY}/shadow"]
    for listener, client in (
        ("devices", scene.https(scene.mallory)),
        ("operators", scene.platform.api()),
    ):
        with (
            scene.alice.undisturbed(),
            counted(
                scene.platform, len(paths), "twinfleet_http_requests_total", listener=listener, status="413"
            ),
            client as web,
        ):
            for path in paths:
                assert web.post(path, content=LARGE).status_code == 413


BAD_TOPICS = (
    b"",
    b"telemetry/mallory/\x00",
    b"telemetry/mallory/\xff\xfe",
    b"telemetry/mallory/\xed\xa0\x80",
    b"telemetry/mallory/+",
    b"telemetry/mallory/#",
    b"$share/any/telemetry/mallory/a",
    b"telemetry/mallory/" + b"a/" * 300,
    b"telemetry/mallory/" + b"a" * 60_000,
    b"telemetry/mallory//a",
    b"telemetry//a",
    b"telemetry/mallory/../alice/climate",
    b"$aws/things//shadow/update",
    b"$aws/things/mallory/shadow/name//update",
    b"$aws/things/mallory/shadow/name/" + b"n" * 65 + b"/update",
    b"/",
    b"/" * 150,
)


@VERSIONS
def test_bad_topics_harm_nobody(scene: Scene, version: int) -> None:
    with scene.alice.undisturbed():
        for topic in BAD_TOPICS:
            for attack in (
                publish(topic, BODY, version=version, packet_id=1),
                subscribe([topic], version=version),
            ):
                with scene.mallory.session(Connect(version=version)) as mallory:
                    mallory.send(attack)
                    # Refused with the end of the connection, or taken and of no effect.
                    with contextlib.suppress(Refused):
                        assert mallory.messages() == [], topic
