"""What a twin remembers of its telemetry."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.asking import NOW_S, send
from twins.errors import InvalidRequest
from twins.messages import Batch, Operation, Request
from twins.shard import Shard
from twins.window import BUCKET_S, FIELD_COUNT_MAX, WINDOW_S, ThingTelemetry

START_S = 1000 * WINDOW_S


def described(messages: list[tuple[int, Any]], now_s: int) -> dict[str, Any]:
    """Return what is remembered of field `a` on stream `s` after messages at seconds from the start."""
    telemetry = ThingTelemetry()
    for seconds, value in messages:
        telemetry.add("s", {"a": value}, START_S + seconds)
    field: dict[str, Any] = telemetry.describe(START_S + now_s)["s"]["a"]
    return field


def test_the_last_value_stands_beside_the_statistics() -> None:
    assert described([(0, 1), (1, 4), (2, 2.5)], 3) == {
        "value": 2.5,
        "timestamp": START_S + 2,
        "count": 3,
        "min": 1,
        "max": 4,
        "mean": 2.5,
    }


@pytest.mark.parametrize(
    ("now_s", "count"),
    [(0, 1), (BUCKET_S - 1, 1), (BUCKET_S, 1), (WINDOW_S - 1, 1), (WINDOW_S, 0), (10**6, 0)],
)
def test_a_value_leaves_the_window_when_its_bucket_does(now_s: int, count: int) -> None:
    assert described([(0, 7)], now_s)["count"] == count
    assert described([(0, 7)], now_s)["value"] == 7


def test_the_window_covers_the_last_two_buckets() -> None:
    messages = [(second, float(second)) for second in range(1000)]
    found = described(messages, 999)
    covered = [float(second) for second in range(1000) if second // BUCKET_S >= 999 // BUCKET_S - 1]
    assert (found["count"], found["min"], found["max"]) == (len(covered), covered[0], covered[-1])
    assert found["mean"] == pytest.approx(sum(covered) / len(covered))


@pytest.mark.parametrize("value", ["on", True, None, [1, 2], 10**400, 1e308, -1e308])
def test_what_cannot_be_averaged_is_kept_and_not_counted(value: Any) -> None:
    found = described([(0, 3), (1, value)], 2)
    assert (found["value"], found["count"], found["mean"]) == (value, 1, 3)


def test_numbers_of_any_size_have_a_mean() -> None:
    values = [10**299, 1.5, -(10**299), 2**64, 1e300]
    found = described(list(enumerate(values)), 9)
    assert found["count"] == 5
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_fields_of_nested_objects_are_named_by_their_path() -> None:
    telemetry = ThingTelemetry()
    telemetry.add("s", {"a": {"b": {"c": 1}, "d": 2}, "e": []}, START_S)
    assert list(telemetry.describe(START_S)["s"]) == ["a.b.c", "a.d", "e"]


def test_streams_are_kept_apart() -> None:
    telemetry = ThingTelemetry()
    telemetry.add("s", {"a": 1}, START_S)
    telemetry.add("t", {"a": 2}, START_S)
    streams = telemetry.describe(START_S)
    assert (streams["s"]["a"]["value"], streams["t"]["a"]["value"]) == (1, 2)


@pytest.mark.parametrize(
    "values",
    [
        5,
        None,
        [],
        "x",
        {f"f{number}": 1 for number in range(FIELD_COUNT_MAX)},
        {"a": [[[[[[[[[1]]]]]]]]]},
        {"a": 1, "b": json.loads("[" * 500 + "]" * 500)},
        json.loads('{"a":' * 500 + "1" + "}" * 500),
    ],
)
def test_a_message_that_is_refused_changes_nothing(values: Any) -> None:
    telemetry = ThingTelemetry()
    telemetry.add("s", {"a": 1}, START_S)
    before = telemetry.describe(START_S)
    with pytest.raises(InvalidRequest):
        telemetry.add("s", values, START_S + 1)
    assert telemetry.describe(START_S) == before


def test_a_device_may_fill_its_fields_and_go_on() -> None:
    telemetry = ThingTelemetry()
    message = {f"f{number}": number for number in range(FIELD_COUNT_MAX)}
    for seconds in range(3):
        telemetry.add("s", message, START_S + seconds)
    with pytest.raises(InvalidRequest):
        telemetry.add("t", {"one_more": 1}, START_S)


def test_refused_telemetry_is_counted_and_answered_by_nothing() -> None:
    shard = Shard(0, 1)
    for payload in (b"5", b"{", b"\xff", b""):
        outcome = send(shard, Operation.TELEMETRY, payload, name="s")
        assert (outcome.publishes, outcome.replies) == ([], [])
    assert shard.refused_telemetry_count == 4
    assert shard.telemetry == {}


def test_telemetry_reaches_the_twin() -> None:
    shard = Shard(0, 1)
    send(shard, Operation.TELEMETRY, b'{"a":1.5}', name="s/t")
    [reply] = shard.apply(
        Batch("", 0, [Request(Operation.TELEMETRY_GET, "lamp", is_direct=True)]), NOW_S + 1.5
    ).replies
    field = {"value": 1.5, "timestamp": NOW_S, "count": 1, "min": 1.5, "max": 1.5, "mean": 1.5}
    assert json.loads(reply.payload) == {
        "window_s": WINDOW_S,
        "timestamp": NOW_S + 1,
        "streams": {"s/t": {"a": field}},
    }


def test_a_twin_that_has_reported_nothing_has_empty_telemetry() -> None:
    request = Request(Operation.TELEMETRY_GET, "lamp", is_direct=True)
    [reply] = Shard(0, 1).apply(Batch("", 0, [request]), NOW_S).replies
    assert json.loads(reply.payload)["streams"] == {}


def test_what_one_thing_may_have_kept_is_bounded() -> None:
    telemetry = ThingTelemetry()
    for number in range(8):
        telemetry.add("log", {f"text-{number}": "x" * 130_000}, 0)
    before = telemetry.describe(0)
    with pytest.raises(InvalidRequest):
        telemetry.add("log", {"text-8": ["x" * 65_000, "x" * 65_000]}, 0)
    assert telemetry.describe(0) == before
    # What takes another value's place is no more than there was.
    telemetry.add("log", {"text-7": "y" * 130_000, "level": 1}, 0)
    assert telemetry.describe(0)["log"]["level"]["value"] == 1
