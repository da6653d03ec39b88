"""How shadow requests in flight are counted, and how one too many is answered."""

from __future__ import annotations

import json

import pytest

from actors.mqtt_in_flight import SHADOW_REQUESTS_MAX, ShadowRequests, too_many_requests
from twins.messages import Operation, Request


def test_the_eleventh_bounded_request_of_a_thing_does_not_begin_until_another_ends() -> None:
    requests = ShadowRequests()
    assert all(requests.begin("lamp", is_bounded=True) for _ in range(SHADOW_REQUESTS_MAX))
    assert not requests.begin("lamp", is_bounded=True)
    assert requests.begin("other", is_bounded=True)
    requests.end("lamp")
    assert requests.begin("lamp", is_bounded=True)
    assert not requests.begin("lamp", is_bounded=True)


def test_an_unbounded_request_begins_always_and_counts() -> None:
    requests = ShadowRequests()
    assert all(requests.begin("lamp", is_bounded=False) for _ in range(50))
    for _ in range(50 - SHADOW_REQUESTS_MAX + 1):
        assert not requests.begin("lamp", is_bounded=True)
        requests.end("lamp")
    assert requests.begin("lamp", is_bounded=True)


def test_a_thing_with_nothing_in_flight_takes_no_room() -> None:
    requests = ShadowRequests()
    requests.begin("lamp", is_bounded=True)
    requests.end("lamp")
    assert requests._count_of == {}


@pytest.mark.parametrize(
    ("operation", "name", "topic"),
    [
        (Operation.SHADOW_GET, "", "$aws/things/lamp/shadow/get/rejected"),
        (Operation.SHADOW_UPDATE, "config", "$aws/things/lamp/shadow/name/config/update/rejected"),
        (Operation.SHADOW_DELETE, "", "$aws/things/lamp/shadow/delete/rejected"),
    ],
)
@pytest.mark.parametrize(
    ("payload", "token"),
    [
        (b"", {}),
        (b'{"clientToken":"a"}', {"clientToken": "a"}),
        (b'{"clientToken":"%s"}' % (b"x" * 65), {}),
        (b'{"clientToken":["a"]}', {}),
        (b"\xff{", {}),
        (b"[" * 100_000, {}),
    ],
)
def test_one_too_many_is_answered_with_429_on_its_own_topic_and_with_its_own_token(
    operation: Operation, name: str, topic: str, payload: bytes, token: dict[str, str]
) -> None:
    answer = too_many_requests(Request(operation, "lamp", payload, name), 1_700_000_000.9)
    assert answer.topic == topic
    expected = {"code": 429, "message": "TOO_MANY_REQUESTS", "timestamp": 1_700_000_000}
    assert json.loads(answer.payload) == expected | token
