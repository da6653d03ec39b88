"""What travels between a driver and its shards."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from twins.errors import ModelError
from twins.messages import (
    READ_ONLY,
    Batch,
    GroupOrder,
    Operation,
    Outcome,
    Publish,
    Reply,
    Request,
    TickOrder,
    TickSummary,
    decode_outcome,
    encode,
)
from twins.model import Attribute, Computed, Group
from twins.shipped import model_named

SITES = Attribute("site", ("berlin", "paris"), (0.5, 0.5))
GROUP = Group("homes", model_named("thermostat"), "home-{i}", 300, 1, 1000, 2, 5, attributes=(SITES,))

decode_batch = msgspec.msgpack.Decoder(Batch).decode


def test_a_batch_travels_byte_for_byte() -> None:
    requests = [Request(operation, "lamp", bytes(range(256)), "config", True) for operation in Operation]
    batch = Batch("bridge", 2**40, requests)
    assert decode_batch(encode(batch)) == batch


def test_an_outcome_travels_byte_for_byte() -> None:
    outcome = Outcome([Publish("a/ü", b"\x00\xff")], [Reply(409, b"{}")])
    assert decode_outcome(encode(outcome)) == outcome


@pytest.mark.parametrize("garbage", [b"", b"\xc1", b"\x93\xa1x\x01\x91\x91\x63", b"{}"])
def test_garbage_is_no_batch(garbage: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_batch(garbage)


def test_only_questions_leave_no_trace() -> None:
    assert {
        Operation.SHADOW_GET,
        Operation.TELEMETRY_GET,
        Operation.SHADOW_LIST,
        Operation.DESCRIBE,
        Operation.ANNOUNCE_DELTA,
        Operation.PIN_STATE,
        Operation.JOB_READ,
        Operation.ASSIGNED,
    } == READ_ONLY


def test_a_group_travels_as_its_order() -> None:
    order = GroupOrder.of(GROUP)
    assert order.group() == GROUP
    assert order.model_name == "thermostat"
    assert msgspec.msgpack.decode(encode(order), type=GroupOrder).group() == GROUP


def test_the_model_of_a_group_travels_by_value() -> None:
    changed = replace(GROUP.model, fields=GROUP.model.fields[:4])
    order = GroupOrder.of(replace(GROUP, model=changed))
    group = msgspec.msgpack.decode(encode(order), type=GroupOrder).group()
    assert (group.model, group.model.name) == (changed, "thermostat")


def test_an_order_of_an_earlier_version_names_its_model() -> None:
    order = GroupOrder("homes", "thermostat", "home-{i}", 300)
    assert order.group().model == model_named("thermostat")
    assert order.model_name == "thermostat"


def test_a_model_that_is_not_sound_makes_no_group() -> None:
    field = replace(GROUP.model.fields[0], generator=Computed("no_such_field"))
    order = GroupOrder.of(replace(GROUP, model=replace(GROUP.model, fields=(field,))))
    with pytest.raises(ModelError, match="no_such_field"):
        msgspec.msgpack.decode(encode(order), type=GroupOrder).group()


@pytest.mark.parametrize(
    "order",
    [
        GroupOrder("g", "toaster", "g-{i}", 1),
        GroupOrder("g", "untyped", "g-{i}", 1),
        GroupOrder("g", "thermostat", "g", 1),
        GroupOrder("g", "thermostat", "g-{i}", 0),
        GroupOrder("g", "thermostat", "g-{i}", 2**32),
        GroupOrder("g", "thermostat", "g-{i}", 1, tick_s=0),
        GroupOrder("g", "thermostat", "g-{i}", 1, report_every_ticks=0),
        GroupOrder("g", "thermostat", "g" * 126 + "-{i}", 11),
        GroupOrder("g", "thermostat", "g-{i}", 1, attributes=[("a", (), ())]),
        GroupOrder("g", "thermostat", "g-{i}", 1, attributes=[("a", ("x", "y"), (1.0,))]),
        GroupOrder("g", "thermostat", "g-{i}", 1, attributes=[("a", ("x",), (-1.0,))]),
        GroupOrder("g", "thermostat", "g-{i}", 1, attributes=[("a", ("x",), (0.0,))]),
    ],
)
def test_an_order_that_describes_no_group_is_refused(order: GroupOrder) -> None:
    with pytest.raises(ModelError):
        order.group()


def test_summaries_of_different_shards_add_up() -> None:
    assert TickSummary(1, 2, 3, 4, 5, 6) + TickSummary(10, 20, 30, 40, 50, 60) == TickSummary(
        11, 22, 33, 44, 55, 66
    )


def test_of_two_stretches_of_time_the_later_says_who_is_connected() -> None:
    then = TickSummary(1, 2, 3, 4, 5, 6).then(TickSummary(10, 20, 30, 40, 50, 60))
    assert then == TickSummary(11, 22, 33, 44, 50, 60)


def test_a_tick_order_travels_with_its_wishes() -> None:
    order = TickOrder("homes", 3, 4, {"set_point": 21.5})
    assert msgspec.msgpack.decode(encode(order), type=TickOrder) == order
