"""Small dtypes: a twin keeps what a device says exactly, in its column where that holds it, and beside it else."""

from __future__ import annotations

from typing import Any

import pytest

from twins.model import DeviceModel, Field
from twins.shadow import ShadowDocument, Stamp
from twins.table import NamedRows


def kept(dtype: str, value: Any, **more: Any) -> tuple[Any, bool]:
    """Return what a twin says of a value that was reported, and whether its column holds it."""
    bounds = {"minimum": 0.0, "maximum": 100.0}
    table = NamedRows(DeviceModel("m", (Field("x", "x", "", dtype=dtype, **(bounds | more)),)))
    row = table.add("thing")
    document = ShadowDocument()
    document.exists = True
    document.reported, document.reported_metadata = {"x": value}, {"x": Stamp(5)}
    table.store(row, document, None)
    return table.load(row).reported["x"], row not in table.overflow


@pytest.mark.parametrize(
    ("dtype", "value", "is_in_column"),
    [
        ("float16", 45.3, True),
        ("float16", 45.34, False),
        ("float16", -0.5, True),
        ("float16", 1e6, False),
        ("float16", 70000.0, False),
        ("float16", 7, False),
        ("uint8", 0, True),
        ("uint8", 255, True),
        ("uint8", 256, False),
        ("uint8", -1, False),
        ("uint8", 1.0, False),
        ("uint8", True, False),
        ("int8", -128, True),
        ("int8", -129, False),
        ("int16", -32768, True),
        ("int16", 32768, False),
        ("uint16", 65535, True),
        ("uint16", 65536, False),
        ("int32", -(2**31), True),
        ("int32", 2**31, False),
        ("int8", "warm", False),
    ],
)
def test_a_value_is_kept_exactly_whatever_its_column(dtype: str, value: Any, is_in_column: bool) -> None:
    found, was_in_column = kept(dtype, value, decimals=1)
    assert (found, type(found)) == (value, type(value))
    assert was_in_column is is_in_column
