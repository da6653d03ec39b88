"""Whatever bytes a device sends, it gets one answer, the answer is sound, and the shard goes on as before."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.property import mutating
from tests.property.json_values import any_states, exact
from twins import topics
from twins.cbor import decode_cbor
from twins.messages import SHADOW_OPERATION, Batch, Operation, Outcome, Publish, Reply, Request
from twins.model import Group
from twins.shadow import encode_json
from twins.shard import Shard
from twins.shipped import model_named
from twins.snapshot import dump_shard, load_shard

# Inputs of a run of the tests, in parts that workers may share. Raise it for a longer hunt: the next hundred thousand
# come from the same seed.
INPUT_COUNT = 100_000
PART_COUNT = 4
SEED = 20_261_123
NOW_S = 1_700_000_000
# Parts of the run after which the shard is written down and read again.
SNAPSHOT_EVERY = 5_000

THINGS = (*(f"lamp-{i}" for i in range(20)), "home-7", "home-31")
# It is never unregistered, so its reports are always answered.
REPORTER = "reporter"
VERBS = {operation: verb for verb, operation in SHADOW_OPERATION.items()}
# What an operator's call may ask for, beside what devices do.
DIRECT_ONLY = (Operation.TELEMETRY_GET, Operation.SHADOW_LIST, Operation.REGISTER, Operation.UNREGISTER)
UNSURE = object()


def new_shard() -> Shard:
    shard = Shard(0, 1)
    shard.create_group(Group("homes", model_named("thermostat"), "home-{i}", 50, 1, NOW_S))
    register = Request(Operation.REGISTER, REPORTER, b'{"model":"thermostat"}', is_direct=True)
    shard.apply(Batch("", 0, [register]), NOW_S)
    return shard


def _refuse_constant(name: str) -> Any:
    raise ValueError(name)


def token_of(payload: bytes) -> Any:
    """Return the client token that a payload has, by another reader than the shard's; None without a valid one.

    UNSURE where two readers of JSON may differ: surrogates, what is deep or has very long numbers, several tokens of
    which one is not UTF-8.
    """
    if (
        b"\\u" in payload
        or len(payload) > 2000
        or (payload.count(b"clientToken") > 1 and not payload.isascii())
    ):
        return UNSURE
    try:
        # A byte that is not UTF-8 becomes a surrogate: a token with one is none, one beside it is heard all the same.
        body = json.loads(payload.decode(errors="surrogateescape"), parse_constant=_refuse_constant)
        token = body.get("clientToken") if isinstance(body, dict) else None
        return token if isinstance(token, str) and len(token.encode()) <= 64 else None
    except ValueError:
        return None


def check(request: Request, outcome: Outcome) -> str:
    """Check what one request brings about, and return what it was told: accepted, rejected, replied or nothing."""
    if request.is_direct:
        [reply] = outcome.replies
        assert reply.status in (200, 400, 404, 409, 413, 415)
        body: Any = json.loads(reply.payload) if reply.payload else None
        assert reply.status == 200 or body["code"] == reply.status
        if reply.status != 200:
            assert outcome.publishes == []
            return "refused"
    else:
        assert outcome.replies == []
    if request.operation is Operation.DEFENDER:
        return check_report(request, outcome.publishes)
    if request.operation not in VERBS:
        assert outcome.publishes == []
        return "replied" if request.is_direct else "silence"
    return check_publishes(request, outcome.publishes)


def check_report(request: Request, publishes: list[Publish]) -> str:
    [message] = publishes
    prefix, _, verdict = message.topic.rpartition("/")
    assert prefix == f"$aws/things/{request.thing_name}/defender/metrics/{request.name}"
    body = json.loads(message.payload) if request.name == "json" else decode_cbor(message.payload)
    assert (body["thingName"], body["status"].lower()) == (request.thing_name, verdict)
    return f"report {verdict}"


def check_publishes(request: Request, publishes: list[Publish]) -> str:
    prefix = f"{topics.shadow_prefix(request.thing_name, request.name)}/{VERBS[request.operation]}"
    assert all(message.topic.startswith(f"{prefix}/") for message in publishes)
    told = [message.topic.removeprefix(f"{prefix}/") for message in publishes]
    if request.is_direct and request.operation is Operation.SHADOW_GET:
        assert told == []
        return "replied"
    allowed = [["accepted"], ["rejected"]]
    if request.operation is Operation.SHADOW_UPDATE:
        allowed = [["accepted", "documents"], ["accepted", "delta", "documents"], ["rejected"]]
    assert told in allowed
    token = token_of(request.payload)
    for message in publishes:
        body = json.loads(message.payload, parse_constant=_refuse_constant)
        assert token is UNSURE or body.get("clientToken") == token
        if told == ["rejected"]:
            assert (type(body["code"]), type(body["message"])) == (int, str)
            assert body["message"]
        elif message.topic.endswith("/documents"):
            assert {"previous", "current", "timestamp"} <= body.keys()
        else:
            assert {"version", "timestamp"} <= body.keys()
    return told[0]


_NUMBERS = itertools.count()


def check_still_works(shard: Shard, now_s: int) -> None:
    """Check that a thing of which nothing is known yet is served, and that a snapshot keeps everything."""
    # Another one each time: of one that was unregistered, nothing more is heard.
    fresh = f"fresh-{next(_NUMBERS)}"
    update = Request(Operation.SHADOW_UPDATE, fresh, b'{"state":{"desired":{"a":1}},"clientToken":"t"}')
    outcome = shard.apply(Batch("", 0, [update]), now_s)
    assert [message.topic.rsplit("/", 1)[1] for message in outcome.publishes] == [
        "accepted",
        "delta",
        "documents",
    ]
    shard.apply(Batch("", 0, [Request(Operation.UNREGISTER, fresh, is_direct=True)]), now_s)
    list(shard.select(None))
    again = load_shard(dump_shard(shard))
    asked = [
        Request(operation, thing, b"", name, is_direct=True)
        for thing in (*THINGS, REPORTER)
        for operation, name in (
            (Operation.SHADOW_GET, ""),
            (Operation.SHADOW_GET, "config"),
            (Operation.SHADOW_LIST, ""),
            (Operation.TELEMETRY_GET, ""),
            (Operation.DESCRIBE, ""),
        )
    ]
    questions = Batch("", 0, asked)
    before, after = (
        [read(reply) for reply in each.apply(questions, now_s).replies] for each in (shard, again)
    )
    assert before == after


def read(reply: Reply) -> Any:
    """Return a reply so that it is equal only to one with the same values, in whatever order its keys stand."""
    return reply.status, exact(json.loads(reply.payload))


def a_request(luck: random.Random, number: int = 0) -> Request:
    """Return a request as the bridge makes it of a topic, or as the gateway does of a call."""
    if luck.random() < 0.05:
        style = luck.choice(("json", "cbor"))
        return Request(Operation.DEFENDER, REPORTER, mutating.report(luck, style, number), style)
    payload = mutating.payload(luck)
    if luck.random() < 0.05:
        return Request(luck.choice(DIRECT_ONLY), luck.choice(THINGS), payload, is_direct=True)
    operation = luck.choice((*VERBS, Operation.SHADOW_UPDATE, Operation.SHADOW_UPDATE, Operation.TELEMETRY))
    name = luck.choice(("", "", "config")) if operation in VERBS else "room"
    return Request(operation, luck.choice(THINGS), payload, name, luck.random() < 0.25)


def hunt(count: int, seed: int) -> Counter[str]:
    """Send `count` broken requests to a shard, check every answer, and return how many were told what."""
    luck, shard, told = random.Random(seed), new_shard(), Counter[str]()
    for number in range(count):
        request = a_request(luck, number)
        now_s = NOW_S + number // 10
        try:
            told[check(request, shard.apply(Batch("", 0, [request]), now_s))] += 1
        except Exception as error:
            error.add_note(f"input {number} of seed {seed}: {str(request)[:2000]}")
            raise
        if request.operation is Operation.UNREGISTER:
            # Or its device would be refused for the rest of the hunt.
            again = Request(Operation.REGISTER, request.thing_name, b'{"model":"untyped"}', is_direct=True)
            shard.apply(Batch("", 0, [again]), now_s)
        if number % SNAPSHOT_EVERY == SNAPSHOT_EVERY - 1:
            check_still_works(shard, now_s)
    check_still_works(shard, NOW_S + count)
    return told


@pytest.mark.parametrize("part", range(PART_COUNT))
def test_every_broken_request_gets_one_sound_answer(part: int) -> None:
    told = hunt(INPUT_COUNT // PART_COUNT, SEED + part)
    # A hunt in which everything is refused would find nothing out.
    assert min(told[each] for each in ("accepted", "rejected", "refused", "replied", "silence")) > 500
    # A report is accepted every 300 s at most, and no longer when a broken one has claimed a high number.
    assert told["report accepted"] > 0
    assert told["report rejected"] > 500


def test_a_topic_of_any_bytes_is_a_request_or_none() -> None:
    luck, found = random.Random(SEED), Counter[bool]()
    for _ in range(INPUT_COUNT // 5):
        text = mutating.topic(luck).decode(errors="replace")
        request = topics.parse(text)
        found[request is not None] += 1
        if isinstance(request, topics.ShadowTopic):
            assert (
                f"{topics.shadow_prefix(request.thing_name, request.shadow_name)}/{request.operation}" == text
            )
        elif isinstance(request, topics.TelemetryTopic):
            assert f"telemetry/{request.thing_name}/{request.stream}" == text
        elif isinstance(request, topics.DefenderTopic):
            assert topics.defender_topic(request.thing_name, request.style) == text
        if request is not None:
            assert 1 <= len(request.thing_name) <= 128
            assert not set("+#/$\0") & set(request.thing_name)
            assert sum(topics.matches(each, text) for each in topics.REQUEST_FILTERS) == 1
    assert min(found.values()) > 1000


def test_an_answer_never_goes_to_a_topic_that_is_a_request() -> None:
    luck, shard = random.Random(SEED), new_shard()
    for _ in range(2000):
        for message in shard.apply(Batch("", 0, [a_request(luck)]), NOW_S).publishes:
            assert topics.parse(message.topic) is None


bodies = st.fixed_dictionaries(
    {},
    optional={
        "state": any_states,
        "clientToken": st.text(st.characters(exclude_categories=["Cs"]), max_size=70)
        | st.integers()
        | st.none(),
        "version": st.integers(-1, 4)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.none()
        | st.text(),
        "other": any_states,
    },
)
steps = st.tuples(
    st.sampled_from([*VERBS, Operation.SHADOW_UPDATE, Operation.TELEMETRY]),
    st.sampled_from(["lamp-1", "home-7"]),
    bodies.map(encode_json) | st.binary(max_size=40),
    st.sampled_from(["", "config"]),
    st.booleans(),
)


@settings(max_examples=300)
@given(st.lists(steps, max_size=10))
def test_every_document_gets_one_sound_answer(history: list[Any]) -> None:
    shard = new_shard()
    for number, step in enumerate(history):
        request = Request(*step)
        check(request, shard.apply(Batch("", 0, [request]), NOW_S + number))
    check_still_works(shard, NOW_S + 99)
