"""Twins in columns say what the reference says, on every history, for real and for simulated rows."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.property.json_values import BORDERS, KEYS, any_states, exact, leaves
from twins.errors import RequestError
from twins.messages import Batch, Operation, Publish, Request, TickOrder
from twins.model import Group
from twins.shadow import TOMBSTONE_S, ShadowDocument, encode_json, parse_update
from twins.shard import Shard
from twins.sharding import shard_of
from twins.shipped import model_named

NOW_S = 1_700_000_000
REAL, SIMULATED = "lamp", "sim-37"
THERMOSTAT = model_named("thermostat")
GROUP = Group("homes", THERMOSTAT, "sim-{i}", 50, 1, NOW_S)

# Values at the top of a thermostat's document, where columns are: more often than `any_states` puts them there.
field_states = st.fixed_dictionaries(
    {},
    optional={
        "desired": st.dictionaries(st.sampled_from(KEYS), st.none() | leaves, max_size=3),
        "reported": st.dictionaries(st.sampled_from(KEYS), st.none() | leaves, max_size=4),
    },
)
steps = st.one_of(
    st.tuples(st.just("update"), any_states | field_states | field_states),
    st.tuples(st.just("delete"), st.none()),
    st.tuples(st.just("others"), st.none()),
    st.tuples(st.just("ask"), st.none()),
    # A pause after which a deleted shadow is forgotten, and one after which it is not yet.
    st.tuples(st.just("wait"), st.sampled_from([TOMBSTONE_S, TOMBSTONE_S - 1, 5])),
)
histories = st.lists(steps, max_size=10)


@pytest.fixture(autouse=True)
def _few_shadows_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have shadows written back to their rows and read again all the time."""
    monkeypatch.setattr("twins.shard._UNPACKED_MAX", 2)


def new_shard() -> Shard:
    shard = Shard(0, 1)
    shard.create_group(GROUP)
    payload = encode_json({"model": "thermostat"})
    shard.apply(Batch("", 0, [Request(Operation.REGISTER, REAL, payload)]), NOW_S)
    return shard


def bodies(publishes: list[Publish]) -> dict[str, Any]:
    return {message.topic.rsplit("/", 1)[1]: msgspec.json.decode(message.payload) for message in publishes}


def columns_say(shard: Shard, thing: str, state: Any, now_s: int) -> dict[str, Any]:
    payload = encode_json({"state": state})
    outcome = shard.apply(Batch("", 0, [Request(Operation.SHADOW_UPDATE, thing, payload)]), now_s)
    return bodies(outcome.publishes)


def reference_says(document: ShadowDocument, state: Any, now_s: int) -> dict[str, Any]:
    try:
        said = document.update(parse_update(encode_json({"state": state})), now_s)
    except RequestError as error:
        return {"rejected": {"code": error.code, "message": error.message, "timestamp": now_s}}
    said_bodies = {"accepted": said.accepted, "documents": said.documents, "delta": said.delta}
    return {verb: msgspec.json.decode(body) for verb, body in said_bodies.items() if body is not None}


def take_step(shard: Shard, thing: str, document: ShadowDocument, step: tuple[str, Any], now_s: int) -> None:
    """Do the same to the columns and to the reference, and compare what they say."""
    kind, state = step
    if kind == "update":
        assert exact(columns_say(shard, thing, state, now_s)) == exact(reference_says(document, state, now_s))
    elif kind == "delete":
        outcome = shard.apply(Batch("", 0, [Request(Operation.SHADOW_DELETE, thing)]), now_s)
        [(verb, body)] = bodies(outcome.publishes).items()
        assert (verb == "accepted") == document.exists
        assert not document.exists or body == document.delete(now_s)
    elif kind == "others":
        for other in ("door", "fan", "lock"):
            columns_say(shard, other, {"reported": {"temperature": 1}}, now_s)
    elif kind == "ask":
        check_columns(shard, thing, document)
    compare_documents(shard, thing, document, now_s)


def compare_documents(shard: Shard, thing: str, document: ShadowDocument, now_s: int) -> None:
    request = Request(Operation.SHADOW_GET, thing, is_direct=True)
    [reply] = shard.apply(Batch("", 0, [request]), now_s).replies
    assert (reply.status == 200) == document.exists
    if document.exists:
        expected = exact(msgspec.to_builtins(document.document(now_s)))
        assert exact(msgspec.json.decode(reply.payload)) == expected


def expected_cell(dtype: str, value: Any) -> Any:
    """Return what a question sees of a field's value: what is of the column's kind, however exactly it is kept."""
    if dtype == "choice":
        return value if type(value) is str else None
    if dtype == "uint32":
        return value if type(value) is int and 0 <= value < 2**32 else None
    return float(value) if type(value) in (int, float) and abs(value) < 1e308 else None


def check_columns(shard: Shard, thing: str, document: ShadowDocument) -> None:
    origin = "real" if thing == REAL else "simulated"
    [part] = [
        part
        for part in shard.select(None)
        if part["model"].choices == (THERMOSTAT.name,) and part["origin"].choices == (origin,)
    ]
    row = next(row for row in range(len(part["name"].values)) if part["name"].cell(row) == thing)
    assert part["version"].cell(row) == document.version
    assert part["updated_at"].cell(row) == (document.changed_at_s if document.exists else None)
    for field in THERMOSTAT.fields:
        for section in ("reported", "desired") if field.is_settable else ("reported",):
            state = getattr(document, section)
            stamp = getattr(document, f"{section}_metadata").get(field.name)
            value = state.get(field.name)
            if type(value) in (int, float) and abs(value) >= 1e308:
                continue  # where a float ends is not this test's business
            found = part[f"{section}_{field.name}"].cell(row)
            assert exact(found) == exact(expected_cell(field.dtype, value))
            assert part[f"{section}_{field.name}_at"].cell(row) == getattr(stamp, "timestamp", None)


@settings(max_examples=250)
@given(histories, st.sampled_from([REAL, SIMULATED]))
def test_the_columns_and_the_reference_agree_on_every_history(
    history: list[tuple[str, Any]], thing: str
) -> None:
    shard, document, now_s = new_shard(), ShadowDocument(), NOW_S
    for step in history:
        now_s += step[1] if step[0] == "wait" else 1
        take_step(shard, thing, document, step, now_s)
    check_columns(shard, thing, document)


@pytest.mark.parametrize("thing", [REAL, SIMULATED])
@pytest.mark.parametrize("value", BORDERS, ids=lambda value: str(value)[:20])
@pytest.mark.parametrize("key", ["temperature", "uptime", "firmware_version", "x"])
def test_a_value_at_the_border_of_a_column_comes_back_exactly(thing: str, key: str, value: Any) -> None:
    shard, document = new_shard(), ShadowDocument()
    history: list[Any] = [{"reported": {key: value}, "desired": {key: 20.5}}, {"reported": {key: 20.5}}]
    history += [{"reported": {key: value}}, {"reported": {key: None}}, {"reported": {key: value}}]
    for seconds, state in enumerate(history):
        for step in (("update", state), ("others", None), ("ask", None)):
            take_step(shard, thing, document, step, NOW_S + seconds)


@given(st.lists(field_states, max_size=4))
def test_the_count_of_deltas_is_that_of_the_documents(states: list[Any]) -> None:
    shard = new_shard()
    for number, state in enumerate(states):
        columns_say(shard, f"sim-{number}", state, NOW_S)
    table = shard.fleets["homes"].table
    with_delta = sum("delta" in table.load(row).document(0)["state"] for row in range(table.count))
    summary = shard.tick(TickOrder("homes", 0, 0))
    assert summary.delta_count == with_delta


@pytest.mark.parametrize("thing", [REAL, SIMULATED])
@pytest.mark.parametrize("state", [{"set_point": 21.0}, {"set_point": None}, None])
def test_a_row_whose_columns_hold_everything_has_no_overflow(thing: str, state: Any) -> None:
    shard = new_shard()
    columns_say(shard, thing, {"desired": {"set_point": 21}, "reported": {"x": 1}}, NOW_S)
    shard.write_rows()
    table = shard.tables["thermostat"] if thing == REAL else shard.fleets["homes"].table
    assert len(table.overflow) == 1
    columns_say(shard, thing, {"desired": state, "reported": {"x": None}}, NOW_S)
    shard.write_rows()
    assert table.overflow == {}


def test_removing_twins_leaves_the_rows_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    shard = new_shard()
    names = [f"thing-{letter}" for letter in "abcdefghij"]
    for value, name in enumerate(names):
        columns_say(shard, name, {"reported": {"temperature": value, "nested": {"name": name}}}, NOW_S)
    for gone in ("thing-j", "thing-a", "thing-e"):
        shard.apply(Batch("", 0, [Request(Operation.UNREGISTER, gone)]), NOW_S)
        names.remove(gone)
    for name in names:
        [reply] = shard.apply(
            Batch("", 0, [Request(Operation.SHADOW_GET, name, is_direct=True)]), NOW_S
        ).replies
        assert msgspec.json.decode(reply.payload)["state"]["reported"]["nested"] == {"name": name}


things = ("lamp", "door", "sim-1", "sim-37")
payloads = st.one_of(
    (any_states | field_states).map(lambda state: encode_json({"state": state, "clientToken": "t"})),
    st.tuples(field_states, st.integers(1, 3)).map(
        lambda both: encode_json({"state": both[0], "version": both[1]})
    ),
    st.sampled_from([b"", b"{", b'{"a":1}', b'{"model":"thermostat"}']),
)
requests = st.builds(
    Request,
    st.sampled_from(
        [
            *(Operation.SHADOW_UPDATE,) * 6,
            Operation.SHADOW_GET,
            Operation.SHADOW_DELETE,
            Operation.SHADOW_LIST,
            Operation.TELEMETRY,
            Operation.TELEMETRY_GET,
            Operation.REGISTER,
            Operation.UNREGISTER,
        ]
    ),
    st.sampled_from(things),
    payloads,
    st.sampled_from(["", "", "config"]),
    st.booleans(),
)


def told(sent: list[Request], lengths: list[int], *, shard_count: int) -> dict[str, list[Any]]:
    """Return what each thing and those who asked about it are told, in order, by shards that get batches of requests.

    `lengths` are those of the batches, over and over.
    """
    shards = [Shard(number, shard_count) for number in range(shard_count)]
    for shard in shards:
        shard.create_group(GROUP)
    answers: dict[str, list[Any]] = {thing: [] for thing in things}
    position = number = 0
    while position < len(sent):
        batch = sent[position : position + lengths[number % len(lengths)]]
        position, number = position + len(batch), number + 1
        for shard in shards:
            own = [each for each in batch if shard_of(each.thing_name, shard_count) == shard.number]
            outcome = shard.apply(Batch("bridge", number, own), NOW_S)
            direct = (each.thing_name for each in own if each.is_direct)
            for thing, reply in zip(direct, outcome.replies, strict=True):
                answers[thing].append(exact([reply.status, msgspec.json.decode(reply.payload or b"null")]))
            for message in outcome.publishes:
                [thing] = (each for each in things if f"/{each}/" in message.topic)
                answers[thing].append(exact([message.topic, msgspec.json.decode(message.payload)]))
    return answers


@settings(max_examples=200)
@given(
    st.lists(requests, max_size=12),
    st.randoms(use_true_random=False),
    st.integers(1, 5),
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
)
def test_any_interleaving_of_different_things_on_any_number_of_shards_tells_each_the_same(
    sent: list[Request], luck: Any, shard_count: int, lengths: list[int]
) -> None:
    queues = {thing: [each for each in sent if each.thing_name == thing] for thing in things}
    shuffled = [each.thing_name for each in sent]
    luck.shuffle(shuffled)
    interleaved = [queues[thing].pop(0) for thing in shuffled]
    one_by_one = told(sent, [1], shard_count=1)
    together = told(interleaved, lengths, shard_count=shard_count)
    # Within a batch, direct replies stand apart from what is published: compare each in its own order.
    for thing in things:
        assert of_kind(one_by_one[thing], "str") == of_kind(together[thing], "str")
        assert of_kind(one_by_one[thing], "int") == of_kind(together[thing], "int")


def of_kind(answers: list[Any], kind: str) -> list[Any]:
    """Return the published messages (which begin with a topic, a text) or the replies (with a status, a number)."""
    return [answer for answer in answers if answer[0].startswith(kind)]
