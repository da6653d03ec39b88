"""The grammar of MQTT topics."""

from __future__ import annotations

import pytest

from twins.topics import (
    REQUEST_FILTERS,
    ShadowTopic,
    TelemetryTopic,
    is_shadow_name,
    matches,
    parse,
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
        "$aws/things/lamp/jobs/get",
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
