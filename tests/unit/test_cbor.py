"""CBOR as devices use it: the examples of RFC 8949, Appendix A, and what is refused."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twins.cbor import decode_cbor, encode_cbor
from twins.errors import InvalidRequest

EXAMPLES: list[tuple[str, Any]] = [
    ("00", 0), ("17", 23), ("1818", 24), ("1864", 100), ("1903e8", 1000), ("1a000f4240", 1_000_000),
    ("1b000000e8d4a51000", 1_000_000_000_000), ("1bffffffffffffffff", 2**64 - 1), ("20", -1), ("3863", -100),
    ("3903e7", -1000), ("3bffffffffffffffff", -(2**64)), ("f90000", 0.0), ("f93c00", 1.0), ("f93e00", 1.5),
    ("f97bff", 65504.0), ("fa47c35000", 100000.0), ("fb3ff199999999999a", 1.1), ("fbc010666666666666", -4.1),
    ("f4", False), ("f5", True), ("f6", None), ("60", ""), ("6161", "a"), ("62c3bc", "\u00fc"),
    ("80", []), ("83010203", [1, 2, 3]), ("8301820203820405", [1, [2, 3], [4, 5]]),
    ("a0", {}), ("a26161016162820203", {"a": 1, "b": [2, 3]}),
    ("a56161614161626142616361436164614461656145", {"a": "A", "b": "B", "c": "C", "d": "D", "e": "E"}),
    ("7f657374726561646d696e67ff", "streaming"), ("9fff", []), ("9f018202039f0405ffff", [1, [2, 3], [4, 5]]),
    ("bf61610161629f0203ffff", {"a": 1, "b": [2, 3]}),
]  # fmt: skip

REFUSED = [
    ("", "ends too early"), ("18", "ends too early"), ("62c3", "ends too early"), ("8301", "ends too early"),
    ("9f01", "ends too early"), ("a161", "ends too early"), ("fb00", "ends too early"),
    # An array that says it has 2**64 members, and a text that says so.
    ("9bffffffffffffffff00", "ends too early"), ("7bffffffffffffffff00", "ends too early"),
    ("0000", "more than one item"), ("62c328", "not UTF-8"), ("a10102", "no text"),
    ("c001", "tags or byte strings"), ("d81c00", "tags or byte strings"), ("4101", "tags or byte strings"),
    ("5f4101ff", "tags or byte strings"), ("1f", "tags or byte strings"),
    ("f7", "JSON does not have"), ("f0", "JSON does not have"), ("ff", "JSON does not have"),
    ("1c", "reserved length"), ("f97e00", "not finite"), ("f97c00", "not finite"),
    ("7f01ff", "something else"), ("7f7f6161ffff", "something else"), ("81" * 100 + "00", "nested deeper"),
]  # fmt: skip


@pytest.mark.parametrize(("encoded", "value"), EXAMPLES, ids=[encoded for encoded, _ in EXAMPLES])
def test_an_example_of_the_standard_is_read(encoded: str, value: Any) -> None:
    found = decode_cbor(bytes.fromhex(encoded))
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(("encoded", "problem"), REFUSED, ids=[encoded for encoded, _ in REFUSED])
def test_what_json_can_not_say_is_refused(encoded: str, problem: str) -> None:
    with pytest.raises(InvalidRequest, match=problem):
        decode_cbor(bytes.fromhex(encoded))


numbers = st.integers(-(2**64), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=20,
)


@given(values)
def test_what_is_written_is_read_again(value: Any) -> None:
    assert decode_cbor(encode_cbor(value)) == value


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(InvalidRequest):
        decode_cbor(data)
