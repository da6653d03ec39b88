"""Names of columns: what one asks for is one thing."""

from __future__ import annotations

import itertools

import pyarrow as pa

from actors.fleet import joined
from twins.columns import FIXED_COLUMNS, column_of_attribute


def test_no_two_attributes_share_a_column_nor_take_one_of_the_platforms() -> None:
    words = ["x", "site", *FIXED_COLUMNS, "reported_x", "desired_x"]
    prefixes = ("", "attribute_", "attribute_attribute_", "reported_", "desired_")
    names = {prefix + word for prefix, word in itertools.product(prefixes, words)}
    columns = {column_of_attribute(name) for name in names}
    assert len(columns) == len(names)
    assert not columns & set(FIXED_COLUMNS)
    assert not any(column.startswith(("reported_", "desired_")) for column in columns)
    assert column_of_attribute("site") == "site"


def test_what_is_a_number_here_and_a_text_there_is_a_text_when_both_are_asked() -> None:
    tables = [
        pa.table({"name": ["a"], "reported_state": ["driving"], "reported_level": pa.array([1], pa.uint8())}),
        pa.table({"name": ["b"], "reported_state": [True], "reported_level": [0.5]}),
        pa.table({"name": ["c"], "reported_state": [3]}),
    ]
    whole = joined(tables)
    assert whole["reported_state"].to_pylist() == ["driving", "true", "3"]
    assert whole["reported_level"].to_pylist() == [1.0, 0.5, None]
    assert joined([]).num_rows == 0


def test_columns_of_one_kind_keep_it() -> None:
    tables = [pa.table({"x": pa.array([1], pa.uint8())}), pa.table({"x": pa.array([-1], pa.int32())})]
    assert joined(tables)["x"].to_pylist() == [1, -1]
