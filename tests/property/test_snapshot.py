"""A shard that is written down and read again is the same shard, whenever that happens."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.property.json_values import any_states, exact, whole_values
from twins import messages, snapshot
from twins.digest import combine_digest
from twins.errors import SnapshotError
from twins.messages import Batch, Connectivity, Operation, Outcome, Places, Request, TickOrder, TickSummary
from twins.model import Attribute, Field, Group
from twins.shadow import encode_json
from twins.shard import Shard
from twins.shipped import model_named
from twins.snapshot import dump_shard, load_shard
from twins.snapshot_head import FORMAT_VERSION

NOW_S = 1_700_000_000
SITES = Attribute("site", ("berlin", "paris"), (0.75, 0.25))
GROUPS = (
    Group("homes", model_named("thermostat"), "home-{i}", 300, 1, NOW_S, attributes=(SITES,)),
    Group("offices", model_named("thermostat"), "office-{i:04d}", 40, 2, NOW_S, 5, 3),
    Group("elsewhere", model_named("thermostat"), "z{i}", 1, 2, NOW_S),
)
THINGS = ("lamp", "door", "heater", "home-7", "office-0039")

payloads = (
    any_states.map(lambda state: encode_json({"state": state}))
    | st.dictionaries(st.text("ab.", max_size=2), whole_values, max_size=3).map(encode_json)
    | st.builds(
        Connectivity, st.booleans(), st.integers(0, 9), st.just("r"), st.just("s"), st.integers(0, 3)
    ).map(encode_json)
    | st.builds(
        lambda number: encode_json({"hed": {"rid": number, "v": "1.0"}, "met": {"ns": {"bi": number}}}),
        st.integers(0, 9),
    )
    | st.sampled_from(
        [
            b"",
            b'{"model":"thermostat","attributes":{"site":"oslo","floor":"2"}}',
            b'{"behavior":"heating:Boiler"}',
            (
                b'{"behavior":"heating:Boiler","after_s":null,"at_s":7,'
                b'"state":{"reported":{"temperature":1e400,"set_point":22}},"memory":{"n":[1]}}'
            ),
        ]
    )
)
requests = st.builds(
    Request,
    st.sampled_from([*Operation, Operation.SHADOW_UPDATE, Operation.SHADOW_UPDATE, Operation.TELEMETRY]),
    st.sampled_from(THINGS),
    payloads,
    st.sampled_from(["", "", "config", "json", "cbor"]),
    st.booleans(),
)
orders = st.builds(
    TickOrder,
    st.sampled_from(["homes", "offices"]),
    st.just(0),
    st.integers(1, 25),
    st.sampled_from([{}, {}, {"set_point": 23.5}]),
)
histories = st.lists(requests | orders | st.just("again"), max_size=14)


def new_shard() -> Shard:
    shard = Shard(1, 2)
    for group in GROUPS:
        shard.create_group(group)
    payload = encode_json({"model": "thermostat", "attributes": {"site": "rom"}})
    shard.apply(Batch("", 0, [Request(Operation.REGISTER, "heater", payload)]), NOW_S)
    for thing in ("home-8", "office-0038"):
        shard.apply(Batch("", 0, [Request(Operation.REGISTER, thing, payload)]), NOW_S)
        shard.apply(Batch("", 0, [Request(Operation.PIN, thing)]), NOW_S)
    shard.apply(Batch("", 0, [Request(Operation.GIVE_BACK, "office-0038")]), NOW_S)
    return shard


def live(shard: Shard, step: Any, number: int) -> Outcome | TickSummary:
    """Return what one step of a history brings about."""
    if isinstance(step, TickOrder):
        order = msgspec.structs.replace(step, first_tick=shard.fleets[step.group].next_tick)
        return shard.tick(order)
    source = ("", "bridge", "gateway")[number % 3]
    if step == "again":
        return shard.apply(Batch("bridge", max(number - 2, 0), []), NOW_S + number)
    places = Places(1, [number + 1], [0] * (number % 2)) if source == "bridge" else None
    return shard.apply(Batch(source, number, [step], places), NOW_S + 40 * number)


def everything(shard: Shard) -> Any:
    """Return all that can be asked of a shard."""
    now_s = NOW_S + 60
    asked = [
        Request(operation, thing, b"", name, is_direct=True)
        for operation, name in (
            (Operation.SHADOW_GET, ""),
            (Operation.SHADOW_GET, "config"),
            (Operation.SHADOW_LIST, ""),
            (Operation.TELEMETRY_GET, ""),
            (Operation.DESCRIBE, ""),
            (Operation.PIN_STATE, ""),
        )
        for thing in (*THINGS, "home-8", "office-0038", "home-299", "z0")
    ]
    replies = shard.apply(Batch("", 0, asked), now_s).replies
    columns = [
        {name: (list(column.values), column.choices) for name, column in part.items()}
        for part in shard.select(None)
    ]
    return {
        "replies": [(reply.status, exact(msgspec.json.decode(reply.payload))) for reply in replies],
        "columns": str(columns),
        "digest": combine_digest(shard.digest_leaves()),
        "refused": shard.refused_telemetry_count,
        "twins": shard.twin_count(),
        "outcomes": shard.last_outcomes,
        # Their order is which of them is forgotten first.
        "places": (shard.last_places.memory, list(shard.last_places.of_subject.items())),
        "models": shard.model_of,
        "takeovers": shard.handover.takeovers,
        "pins": shard.handover.pins,
        "held": [fleet.held for fleet in shard.fleets.values()],
        # Their order is which of them is forgotten first.
        "unregistered": list(shard.unregistered),
    }


@settings(max_examples=60)
@given(histories, histories)
def test_a_shard_that_is_read_again_goes_on_as_if_nothing_had_happened(past: Any, future: Any) -> None:
    shard = new_shard()
    for number, step in enumerate(past):
        live(shard, step, number)
    again = load_shard(dump_shard(shard))
    assert everything(again) == everything(shard)
    for number, step in enumerate(future, start=len(past)):
        assert live(again, step, number) == live(shard, step, number)
        # Everything that the step has unpacked is packed again.
        dump_shard(again)
    assert everything(again) == everything(shard)


def busy_shard() -> Shard:
    shard = new_shard()
    for name in ("", "config"):
        payload = b'{"state":{"reported":{"temperature":20.5,"timestamp":{"timestamp":1},"big":%b}}}' % (
            b"9" * 40
        )
        for thing in THINGS:
            shard.apply(Batch("bridge", 1, [Request(Operation.SHADOW_UPDATE, thing, payload, name)]), NOW_S)
            shard.last_outcomes.clear()
    telemetry = [
        Request(Operation.TELEMETRY, "lamp", b'{"a":1e300,"b":%b,"c":null}' % (b"9" * 400), "s"),
        Request(Operation.TELEMETRY, "lamp", b'{"a":1e308,"b":-1}', "s"),
    ]
    shard.apply(Batch("bridge", 2, telemetry), NOW_S)
    link = encode_json(Connectivity(False, NOW_S * 1000, "CONNECTION_LOST", "a-session", 3))
    report = b'{"header":{"report_id":7,"version":"1.0"},"metrics":{"network_stats":{"bytes_in":1}}}'
    known = [
        Request(Operation.CONNECTIVITY, "heater", link),
        Request(Operation.DEFENDER, "heater", report, "json"),
    ]
    shard.apply(Batch("bridge", 3, known), NOW_S)
    for gone in ("fan", "bell"):
        registered = Request(Operation.REGISTER, gone, b'{"model":"untyped"}')
        shard.apply(Batch("", 0, [registered, Request(Operation.UNREGISTER, gone)]), NOW_S)
    shard.tick(TickOrder("homes", 0, 400, {"set_point": 23.0}))
    return shard


def test_a_busy_shard_is_the_same_after_a_snapshot() -> None:
    shard = busy_shard()
    assert everything(load_shard(dump_shard(shard))) == everything(shard)


def test_equal_shards_give_equal_snapshots() -> None:
    assert dump_shard(busy_shard()) == dump_shard(busy_shard())
    once = dump_shard(busy_shard())
    assert dump_shard(load_shard(once)) == once


def test_an_empty_shard_has_a_snapshot() -> None:
    shard = load_shard(dump_shard(Shard(3, 8)))
    assert (shard.number, shard.count, shard.twin_count()) == (3, 8, 0)


def test_a_group_is_known_again_after_a_snapshot() -> None:
    shard = load_shard(dump_shard(new_shard()))
    for group in GROUPS:
        shard.create_group(group)
    assert set(shard.fleets) == {group.name for group in GROUPS}


@settings(max_examples=60)
@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_a_snapshot_with_one_wrong_byte_is_refused(where: float, change: int) -> None:
    data = bytearray(DATA)
    data[int(where * len(data))] ^= change
    with pytest.raises(SnapshotError, match=r"damaged|no snapshot"):
        load_shard(bytes(data))


@given(st.integers(0, 10**6))
def test_a_snapshot_that_was_cut_off_is_refused(length: int) -> None:
    with pytest.raises(SnapshotError, match=r"damaged|no snapshot"):
        load_shard(DATA[: length % len(DATA)])


DATA = dump_shard(busy_shard())


@pytest.mark.parametrize(("version", "age"), [(FORMAT_VERSION + 1, "newer"), (FORMAT_VERSION - 1, "older")])
def test_a_snapshot_of_another_version_is_refused_and_named(version: int, age: str) -> None:
    magic, rest = DATA[:16], version.to_bytes(4, "little") + DATA[52:]
    with pytest.raises(SnapshotError, match=age):
        load_shard(magic + hashlib.sha256(rest).digest() + rest)


def test_a_simulated_fleet_keeps_the_model_that_it_was_created_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "model_named", lambda _: pytest.fail("a name was looked up"))
    assert load_shard(DATA).fleets["homes"].group == GROUPS[0]


def test_a_snapshot_of_real_things_whose_model_has_changed_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    thermostat = model_named("thermostat")
    fields = (*thermostat.fields, Field("mode", "mode", "", dtype="choice", choices=("heat",)))
    monkeypatch.setattr(snapshot, "model_named", lambda _: replace(thermostat, fields=fields))
    with pytest.raises(SnapshotError, match="thermostat"):
        load_shard(DATA)
    monkeypatch.setattr(snapshot, "model_named", lambda _: model_named("toaster"))
    with pytest.raises(SnapshotError, match="no device model"):
        load_shard(DATA)
