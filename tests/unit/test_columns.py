"""Names of columns: what one asks for is one thing."""

from __future__ import annotations

import itertools

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
