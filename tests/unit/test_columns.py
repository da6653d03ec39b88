"""Names of columns, and columns that are computed."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from actors.arrow_tables import join_tables
from twins.columns import FIXED_COLUMNS, column_of_attribute, pattern_names
from twins.messages import Batch, Operation, Request, TickOrder
from twins.model import Group
from twins.shard import Shard
from twins.sharding import NamePattern
from twins.shipped import model_named
from twins.telemetry_columns import TELEMETRY_COLUMNS, select_telemetry

START_S = 1_767_225_600


def test_no_two_attributes_share_a_column_nor_take_one_of_the_platforms() -> None:
    words = ["x", "site", *FIXED_COLUMNS, "reported_x", "desired_x"]
    prefixes = ("", "attribute_", "attribute_attribute_", "reported_", "desired_")
    names = {prefix + word for prefix, word in itertools.product(prefixes, words)}
    columns = {column_of_attribute(name) for name in names}
    assert len(columns) == len(names)
    assert not columns & set(FIXED_COLUMNS)
    assert not any(column.startswith(("reported_", "desired_")) for column in columns)
    assert column_of_attribute("site") == "site"


@pytest.mark.parametrize("pattern", ["a-{i:03d}", "x{i}", "Sensor_{i:07d}-z"])
def test_computed_names_are_those_of_the_pattern(pattern: str) -> None:
    named = NamePattern.parse(pattern)
    for indices in (
        np.arange(0),
        np.arange(1, 2),
        np.arange(0, 1300),
        np.array([9, 10, 99, 1000, 2**32 - 1]),
    ):
        names = pattern_names(named, indices.astype(np.uint32))
        assert [name.decode() for name in names.tolist()] == [named.name(int(index)) for index in indices]


def telemetry_rows(shard: Shard, now_s: int) -> dict[tuple[str, str, str], dict[str, Any]]:
    rows = {}
    for part in select_telemetry(shard.telemetry, shard.fleets.values(), None, now_s=now_s):
        assert tuple(part) == TELEMETRY_COLUMNS
        for row in range(len(part["at"].values)):
            found = {name: column.cell(row) for name, column in part.items()}
            rows[found["name"], found["stream"], found["field"]] = found
    return rows


def test_telemetry_in_columns_says_what_each_twin_says_of_itself() -> None:
    shard = Shard(0, 1)
    shard.create_group(
        Group("homes", model_named("thermostat"), "home-{i}", 40, 1, START_S, report_every_ticks=2)
    )
    shard.tick(TickOrder("homes", 0, 200))
    for at_s, body in enumerate(
        (b'{"power": 3, "on": true, "a": {"b": 1.5}}', b'{"power": 7, "mode": "eco"}')
    ):
        shard.apply(Batch("", 0, [Request(Operation.TELEMETRY, "lamp", body, "main")]), START_S + 150 * at_s)
    now_s = START_S + 160
    rows = telemetry_rows(shard, now_s)
    things = ["lamp", *(f"home-{number}" for number in range(40))]
    asked = [Request(Operation.TELEMETRY_GET, thing, b"", "", is_direct=True) for thing in things]
    seen = set()
    for thing, reply in zip(things, shard.apply(Batch("", 0, asked), now_s).replies, strict=True):
        for stream, fields in msgspec.json.decode(reply.payload)["streams"].items():
            for field, expected in fields.items():
                row = rows[thing, stream, field]
                seen.add((thing, stream, field))
                value = expected["value"]
                is_number = type(value) in (int, float)
                assert row["value"] == (value if is_number else None)
                assert row["text"] == (None if is_number else {True: "true"}.get(value, value))
                assert row["at"] == expected["timestamp"]
                assert row["count"] == expected.get("count", 0)
                for statistic in ("min", "max", "mean"):
                    assert row[statistic] == pytest.approx(expected.get(statistic), nan_ok=False)
    assert seen == set(rows)
    assert len(seen) > 200


def test_only_the_wanted_columns_of_telemetry_are_there() -> None:
    shard = Shard(0, 1)
    shard.create_group(
        Group("homes", model_named("thermostat"), "home-{i}", 4, 1, START_S, report_every_ticks=1)
    )
    shard.tick(TickOrder("homes", 0, 1))
    assert all(
        tuple(part) == ("field", "mean")
        for part in select_telemetry(shard.telemetry, shard.fleets.values(), {"mean", "field"}, now_s=START_S)
    )


def test_what_is_a_number_here_and_a_text_there_is_a_text_when_both_are_asked() -> None:
    tables = [
        pa.table({"name": ["a"], "reported_state": ["driving"], "reported_level": pa.array([1], pa.uint8())}),
        pa.table({"name": ["b"], "reported_state": [True], "reported_level": [0.5]}),
        pa.table({"name": ["c"], "reported_state": [3]}),
    ]
    whole = join_tables(tables)
    assert whole["reported_state"].to_pylist() == ["driving", "true", "3"]
    assert whole["reported_level"].to_pylist() == [1.0, 0.5, None]
    assert join_tables([]).num_rows == 0


def test_columns_of_one_kind_keep_it() -> None:
    tables = [pa.table({"x": pa.array([1], pa.uint8())}), pa.table({"x": pa.array([-1], pa.int32())})]
    assert join_tables(tables)["x"].to_pylist() == [1, -1]
