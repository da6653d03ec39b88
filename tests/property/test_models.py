"""Device models travel by value: what the reader takes comes out of its encoding as it went in, and rubbish nowhere."""

from __future__ import annotations

import copy
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from twins.errors import ModelError, ModelInvalid
from twins.messages import Batch, GroupOrder, Operation, Request, TickOrder, encode
from twins.model import DeviceModel, Group
from twins.model_reading import model_schema, read_model
from twins.shadow import encode_json
from twins.shard import Shard
from twins.shipped import MODELS, model_named

VALIDATOR = Draft202012Validator(model_schema())
decode_order = msgspec.msgpack.Decoder(GroupOrder).decode

numbers = st.integers(-50, 50) | st.floats(-50, 50, width=32).map(float)
positive = st.floats(0, 40, width=32).map(float)
durations = st.sampled_from(["1s", "250ms", "1.5m", "2h", "7d", "1_000s"])
formulas = numbers | st.sampled_from(
    [
        "switch * 2",
        "number + 1",
        "10 if mode == 'eco' else 5",
        "wave(60, 1)",
        "elapsed_s / 9",
        "max(number, 3)",
    ]
)
conditions = st.sampled_from(
    ["number > 3", "not switch", "mode != 'day' and online", "True", "0 < number < 5"]
)
amounts = positive | st.sampled_from(["switch * 2", "0.5 if reported else 1", "wave(60, 1)"])


def mapping(**needed: Any) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(needed)


def one_key(word: str, value: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return value.map(lambda each: {word: each})


of_numbers = st.one_of(
    st.just("constant"),
    one_key("computed", formulas),
    one_key("uniform", mapping(low=formulas, high=formulas)),
    one_key("normal", mapping(mean=formulas, deviation=amounts)),
    one_key("random_walk", mapping(toward=formulas, time_constant=durations, deviation=amounts)),
    one_key("sinusoid", mapping(mean=formulas, amplitude=formulas, period=durations, peak=durations)),
    one_key("decay", mapping(rate=amounts, per_report=amounts)),
    one_key("counter", mapping(rate=amounts)),
    one_key("replay", mapping(values=st.lists(numbers, min_size=1), step=durations, shifted=st.booleans())),
)
of_choices = st.one_of(
    st.just("constant"),
    one_key("weighted", st.dictionaries(st.sampled_from(["eco", "day"]), amounts, min_size=1)),
    one_key(
        "markov", st.sampled_from([{"eco": {"day": 1}}, {"day": {"eco": "switch + 1"}, "eco": {"day": 0.5}}])
    ),
)
of_switches = st.one_of(
    st.just("constant"),
    one_key("computed", conditions),
    one_key("markov", st.just({"false": {"true": "1 / 60"}, "true": {"false": 2}})),
)


def field(name: str, dtype: str, **more: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    fixed = {"name": name, "quantity": "anything", "unit": "", "dtype": dtype}
    needed = {key: st.just(value) for key, value in fixed.items()}
    more["settable"] = st.booleans() | mapping(after=durations)
    return st.fixed_dictionaries(needed, optional=more).map(_settable_if_constant)


def _settable_if_constant(values: dict[str, Any]) -> dict[str, Any]:
    """Return the field without wishes where it moves by itself."""
    moves = values.get("generator", "constant") != "constant"
    return {key: value for key, value in values.items() if key != "settable" or not moves}


starts = numbers | st.tuples(numbers, numbers, st.sampled_from([0, 0.25])).map(
    lambda drawn: {
        "low": min(drawn[:2]),
        "high": max(drawn[:2]),
        "step": drawn[2] if drawn[0] != drawn[1] and abs(drawn[0] - drawn[1]) > 1 else 0,
    }
)
float_fields = st.sampled_from(["float32", "float16"]).flatmap(
    lambda dtype: field(
        "number", dtype, start=starts, generator=of_numbers, window=st.booleans(), decimals=st.integers(0, 1)
    ).map(lambda each: each | {"minimum": -60, "maximum": 60})
)
models = st.fixed_dictionaries(
    {
        "apiVersion": st.just("twinfleet/v1"),
        "kind": st.just("DeviceModel"),
        "metadata": mapping(
            name=st.from_regex(r"\A[a-t][a-z0-9-]{0,20}\Z"), description=st.text(min_size=1, max_size=20)
        ),
        "fields": st.tuples(
            field("switch", "bool", start=st.booleans(), generator=of_switches),
            field("mode", "choice", start=st.sampled_from(["eco", "day"]), generator=of_choices).map(
                lambda each: each | {"choices": ["eco", "day"]}
            ),
            float_fields,
            field("count", "int16", generator=of_numbers, start=st.integers(-5, 5)),
        ).map(list),
    },
    optional={
        "connectivity": mapping(online=durations | st.just("600 + 60 * switch"), offline=durations),
        "reporting": mapping(
            every=st.just("10s"),
            jitter=st.just("1.5s"),
            dead_bands=mapping(number=positive, mode=st.just(0)),
            at_least_every=st.just("1m"),
        ),
    },
)


def group_of(model: DeviceModel) -> Group:
    return Group("homes", model, "home-{i}", 10, 1, 0)


def again(model: DeviceModel) -> DeviceModel:
    return decode_order(encode(GroupOrder.of(group_of(model)))).group().model


@settings(max_examples=150)
@given(models)
def test_a_model_that_is_read_travels_by_value_and_fits_the_schema(data: dict[str, Any]) -> None:
    model = read_model(data)
    assert again(model) == model
    # Positions are computed once and kept: they do not travel.
    assert model.positions
    assert again(model) == model
    assert read_model(data) == model
    assert list(VALIDATOR.iter_errors(data)) == []
    # Over HTTP it goes as JSON.
    assert read_model(msgspec.json.decode(msgspec.json.encode(data))) == model


@pytest.mark.parametrize("name", [name for name in MODELS if name != "untyped"])
def test_every_shipped_model_travels_by_value(name: str) -> None:
    assert again(model_named(name)) == model_named(name)


@settings(max_examples=60)
@given(models)
def test_every_model_that_is_read_can_be_simulated_within_its_bounds(data: dict[str, Any]) -> None:
    model = read_model(data)
    shard = Shard(0, 1)
    shard.create_group(Group("homes", model, "home-{i}", 40, 1, 1_767_225_600, report_every_ticks=2))
    summary = shard.tick(TickOrder("homes", 0, 6))
    assert summary.device_ticks == 240
    wish = encode_json({"state": {"desired": {"switch": True, "mode": "day", "number": 5.5, "count": 3}}})
    request = Request(Operation.SHADOW_UPDATE, "home-3", wish, is_direct=True)
    [reply] = shard.apply(Batch("", 0, [request]), 1_767_225_606).replies
    assert reply.status == 200
    shard.tick(TickOrder("homes", 6, 6))
    table = shard.fleets["homes"].table
    for position, field in enumerate(model.fields):
        values = table.reported[position][:40].astype(float)
        assert np.all(np.isfinite(values))
        if field.dtype not in ("bool", "choice"):
            assert np.all((values >= field.minimum) & (values <= field.maximum))


rubbish = st.sampled_from(
    [None, True, False, "", "x", -1, 0, 1e30, float("nan"), [], {}, [1], {"a": 1}, "1 / 0", "10s"]
)


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    below = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [path, *(place for key, value in below for place in places(value, (*path, key)))]


def mistakes(data: Any) -> list[str]:
    try:
        read_model(data)
    except ModelInvalid as error:
        return [str(mistake) for mistake in error.mistakes] or ["none was told"]
    return []


def put(data: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    data = copy.copy(data)
    data[path[0]] = put(data[path[0]], path[1:], value)
    return data


@settings(max_examples=300)
@given(models, st.data())
def test_rubbish_is_refused_in_words_and_the_schema_refuses_nothing_that_is_read(
    data: dict[str, Any], draw: st.DataObject
) -> None:
    for _ in range(draw.draw(st.integers(1, 3))):
        path = draw.draw(st.sampled_from(places(data)))
        data = put(data, path, draw.draw(rubbish))
    if not mistakes(data):
        assert VALIDATOR.is_valid(data)
        assert again(read_model(data)) == read_model(data)


ORDER = msgspec.msgpack.decode(encode(GroupOrder.of(group_of(model_named("thermostat")))))


@settings(max_examples=200)
@given(st.data())
def test_an_order_with_rubbish_in_it_is_refused_or_makes_a_sound_group(draw: st.DataObject) -> None:
    path = draw.draw(st.sampled_from([place for place in places(ORDER) if place]))
    value = draw.draw(rubbish | st.sampled_from([{"type": "decay"}, {"type": "no such"}, "thermostat"]))
    try:
        group = decode_order(msgspec.msgpack.encode(put(ORDER, path, value))).group()
    except (msgspec.DecodeError, ModelError):
        return
    assert isinstance(group.model, DeviceModel)
    assert again(group.model) == group.model
