"""The grammar of MQTT topics."""

from __future__ import annotations

import pytest

from twins.topics import (
    REQUEST_FILTERS,
    CommandTopic,
    DefenderTopic,
    JobTopic,
    ShadowTopic,
    TelemetryTopic,
    command_topic,
    covers,
    defender_topic,
    is_reserved,
    is_shadow_name,
    jobs_prefix,
    matches,
    may_publish,
    parse,
    publishing_problem,
    shadow_prefix,
)


@pytest.mark.parametrize("operation", ["get", "update", "delete"])
@pytest.mark.parametrize("thing", ["lamp", "a:b_c-9", "x" * 128])
def test_a_shadow_request_is_read_from_its_topic(thing: str, operation: str) -> None:
    assert parse(f"$aws/things/{thing}/shadow/{operation}") == ShadowTopic(thing, "", operation)
    named = f"$aws/things/{thing}/shadow/name/conf:ig/{operation}"
    assert parse(named) == ShadowTopic(thing, "conf:ig", operation)
    for shadow in ("", "conf:ig"):
        assert parse(f"{shadow_prefix(thing, shadow)}/{operation}") == ShadowTopic(thing, shadow, operation)


@pytest.mark.parametrize("style", ["json", "cbor"])
def test_a_report_of_metrics_is_read_from_its_topic(style: str) -> None:
    topic = f"$aws/things/lamp/defender/metrics/{style}"
    assert parse(topic) == DefenderTopic("lamp", style)
    assert defender_topic("lamp", style) == topic
    assert any(matches(each, topic) for each in REQUEST_FILTERS)


@pytest.mark.parametrize(
    "request_name", ["get", "start-next", "a/get", "$next/get", "a!/update", "get/update"]
)
def test_a_request_on_jobs_is_read_from_its_topic(request_name: str) -> None:
    topic = f"{jobs_prefix('lamp')}/{request_name}"
    assert parse(topic) == JobTopic("lamp", request_name)
    assert any(matches(each, topic) for each in REQUEST_FILTERS)
    assert may_publish("lamp", topic)
    assert not may_publish("door", topic)


def test_an_answer_to_a_command_is_read_from_its_topic() -> None:
    topic = f"{command_topic('lamp', 'e-1')}/response/json"
    assert parse(topic) == CommandTopic("lamp", "e-1")
    assert any(matches(each, topic) for each in REQUEST_FILTERS)
    assert may_publish("lamp", topic)
    assert not may_publish("door", topic)


@pytest.mark.parametrize("stream", ["s", "a/b", "a/b/c/d", "$s", "shadow/update"])
def test_telemetry_is_read_from_its_topic(stream: str) -> None:
    assert parse(f"telemetry/lamp/{stream}") == TelemetryTopic("lamp", stream)


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "/",
        "$aws",
        "$aws/things",
        "$aws/things/lamp",
        "$aws/things/lamp/shadow",
        "$aws/things/lamp/shadow/",
        "$aws/things/lamp/shadow/put",
        "$aws/things/lamp/shadow/update/accepted",
        "$aws/things/lamp/shadow/update/documents",
        "$aws/things/lamp/shadow/update/",
        "/$aws/things/lamp/shadow/update",
        "$AWS/things/lamp/shadow/update",
        "$aws/things//shadow/update",
        "$aws/things/la mp/shadow/update",
        "$aws/things/+/shadow/update",
        "$aws/things/#/shadow/update",
        "$aws/things/lamp\n/shadow/update",
        "$aws/things/" + "x" * 129 + "/shadow/update",
        "$aws/things/lamp/shadow/name/update",
        "$aws/things/lamp/shadow/name//update",
        "$aws/things/lamp/shadow/name/a/b/update",
        "$aws/things/lamp/shadow/name/" + "x" * 65 + "/update",
        "$aws/things/lamp/shadow/title/config/update",
        "$aws/things/lamp/jobs",
        "$aws/things/lamp/jobs/put",
        "$aws/things/lamp/jobs/notify",
        "$aws/things/lamp/jobs/get/accepted",
        "$aws/things/lamp/jobs//get",
        "$aws/things/lamp/jobs/a/get/accepted",
        "$aws/things/la mp/jobs/get",
        "$aws/commands/things/lamp/executions/e/request/json",
        "$aws/commands/things/lamp/executions/e/response/cbor",
        "$aws/commands/things/lamp/executions/e/response/accepted/json",
        "$aws/commands/things/la mp/executions/e/response/json",
        "$aws/commands/clients/lamp/executions/e/response/json",
        "$aws/things/lamp/defender/metrics",
        "$aws/things/lamp/defender/metrics/xml",
        "$aws/things/lamp/defender/metrics/json/accepted",
        "$aws/things/lamp/defender/update",
        "$aws/things/la mp/defender/metrics/json",
        "telemetry",
        "telemetry/",
        "telemetry/lamp",
        "telemetry/lamp/",
        "telemetry/lamp//s",
        "telemetry//s",
        "telemetry/../s",
        "telemetry/la\x00mp/s",
        "Telemetry/lamp/s",
        "x/telemetry/lamp/s",
    ],
)
def test_any_other_topic_is_no_request(topic: str) -> None:
    assert parse(topic) is None


@pytest.mark.parametrize(
    ("topic_filter", "topic", "is_match"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/c", False),
        ("a/b", "A/b", False),
        ("a", "a/b", False),
        ("a/b", "a", False),
        ("a/+", "a/b", True),
        ("a/+", "a/", True),
        ("a/+", "a", False),
        ("a/+", "a/b/c", False),
        ("+/+", "/b", True),
        ("+", "a/b", False),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("a/#", "ab", False),
        ("#", "a/b", True),
        ("a/+/c", "a/b/c", True),
        ("a/+/c", "a/b/d", False),
        ("+/b/#", "a/b", True),
        # A leading wildcard never matches a topic of the broker's own.
        ("#", "$aws/things/lamp/shadow/update", False),
        ("+/things/lamp/shadow/update", "$aws/things/lamp/shadow/update", False),
        ("+/#", "$aws/things", False),
        ("#", "$", False),
        ("+", "$SYS", False),
        ("$aws/#", "$aws/things/lamp", True),
        ("$aws/+/lamp", "$aws/things/lamp", True),
        # Only at its beginning is a dollar special.
        ("a/+", "a/$b", True),
        ("a/#", "a/$b/c", True),
    ],
)
def test_a_filter_matches(topic_filter: str, topic: str, is_match: bool) -> None:
    assert matches(topic_filter, topic) is is_match


@pytest.mark.parametrize(
    "topic",
    [
        *(f"$aws/things/lamp/shadow/{operation}" for operation in ("get", "update", "delete")),
        *(f"$aws/things/lamp/shadow/name/config/{operation}" for operation in ("get", "update", "delete")),
        "telemetry/lamp/s",
        "telemetry/lamp/a/b",
    ],
)
def test_every_request_arrives_by_exactly_one_filter(topic: str) -> None:
    assert sum(matches(topic_filter, topic) for topic_filter in REQUEST_FILTERS) == 1


@pytest.mark.parametrize("answer", ["accepted", "rejected", "delta", "documents"])
def test_no_answer_arrives_as_a_request(answer: str) -> None:
    for shadow in ("", "config"):
        topic = f"{shadow_prefix('lamp', shadow)}/update/{answer}"
        assert not any(matches(topic_filter, topic) for topic_filter in REQUEST_FILTERS)


@pytest.mark.parametrize(
    ("name", "is_allowed"), [("x" * 64, True), ("x" * 65, False), ("", False), ("$a", False)]
)
def test_names_of_shadows(name: str, is_allowed: bool) -> None:
    assert is_shadow_name(name) is is_allowed


@pytest.mark.parametrize(
    ("granted", "topic_filter", "is_covered"),
    [
        ("a/#", "a", True),
        ("a/#", "a/b/+", True),
        ("a/#", "a/#", True),
        ("a/#", "+/b", False),
        ("a/#", "#", False),
        ("a/+", "a/b", True),
        ("a/+", "a/+", True),
        ("a/+", "a/#", False),
        ("a/+", "a/b/c", False),
        ("a/b", "a/+", False),
        ("#", "+/a", True),
        ("#", "$SYS/a", False),
        ("+/a", "$SYS/a", False),
        ("a/#", "$share/g/a/b", False),
    ],
)
def test_a_filter_covers_another(granted: str, topic_filter: str, is_covered: bool) -> None:
    assert covers(granted, topic_filter) is is_covered


@pytest.mark.parametrize(
    ("topic", "is_own"),
    [
        ("$aws/things/lamp/shadow/get", True),
        ("$aws/things/lamp/shadow/name/config/update", True),
        ("telemetry/lamp/climate/indoor", True),
        ("$aws/things/lamp/shadow/update/accepted", False),
        ("$aws/things/bell/shadow/get", False),
        ("$aws/things/lamp2/shadow/get", False),
        ("telemetry/bell/climate", False),
        ("telemetry/lamp", False),
        ("telemetry/lamp/", False),
        ("news/today", False),
        ("$aws/events/presence/connected/lamp", False),
        ("twinfleet/bridge/marker", False),
        ("", False),
    ],
)
def test_a_thing_publishes_its_own_requests_and_telemetry_only(topic: str, is_own: bool) -> None:
    assert may_publish("lamp", topic) is is_own


@pytest.mark.parametrize(
    "topic",
    ["a", "/", "a//b", " \ufeff\ud7ff\U0010fffd", "1/2/3/4/5/6/7/8", "ü" * 128, "$aws/1/2/3/4/5/6/7/8/9"],
)
def test_a_topic_within_the_bounds_can_be_published_on(topic: str) -> None:
    assert publishing_problem(topic) == ""


@pytest.mark.parametrize(
    ("topic", "problem"),
    [
        ("", "1 to 256 bytes"),
        ("ü" * 129, "1 to 256 bytes"),
        ("a/+", "no wildcards"),
        ("a/b#", "no wildcards"),
        ("a\x00", "no control characters"),
        ("telemetry/lamp/\n", "no control characters"),
        ("telemetry/lamp/\x9f", "no control characters"),
        ("telemetry/lamp/\ufdd0", "nothing that is no character"),
        ("\uffff", "nothing that is no character"),
        ("\U0010fffe", "nothing that is no character"),
        ("1/2/3/4/5/6/7/8/9", "at most 7 slashes"),
    ],
)
def test_a_topic_that_the_broker_would_not_take_is_told_so(topic: str, problem: str) -> None:
    assert problem in publishing_problem(topic)


@pytest.mark.parametrize(
    "topic", ["$aws/things/{}/shadow/update", "$aws/things/{}/defender/metrics/json", "telemetry/{}/climate"]
)
def test_a_certificate_that_bears_its_id_asks_nothing_of_a_thing_of_that_name(topic: str) -> None:
    assert parse(topic.format("ab" * 31)) is not None
    assert parse(topic.format("ab" * 32)) is None
    named = f"$aws/things/lamp/shadow/name/{'ab' * 32}/get"
    assert parse(named) == ShadowTopic("lamp", "ab" * 32, "get")


def test_topics_of_the_platform_are_reserved() -> None:
    assert [
        is_reserved(topic) for topic in ("$aws/x", "$SYS", "twinfleet", "twinfleet/x", "twinfleets/x", "x/$y")
    ] == [
        True,
        True,
        True,
        True,
        False,
        False,
    ]
