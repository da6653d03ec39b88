"""JSON values, patches and requests for hypothesis to draw from, and how to compare them exactly."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

# Values at the borders of what a column holds: two decimals, single precision, 32 and 64 bits, and beyond any float.
BORDERS: tuple[Any, ...] = (
    0, 1, 21, 21.0, 21.5, -0.0, 0.1, 0.07, 20.13, 0.123456789, 1e-9, 1e6, 9999999.99, 1e7, 1e8, 1e15, 1e16, 1e308,
    16777217.0, 2**31, 2**32 - 1, 2**32, 2**53 + 1, 2**64, -(2**63) - 1, 10**40, 10**320, -1, True, False,
    "1.0.0", "9.9.9", "", "ü\u2028\x00", [], {}, [1, [2.0, "x"]], {"timestamp": 5}, {"a": {"b": 1, "c": [{}]}},
)  # fmt: skip
KEYS = ("temperature", "humidity", "set_point", "firmware_version", "uptime", "x", "timestamp", "a.b", "")

scalars = (
    st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.floats(-100, 100).map(lambda value: round(value, 2))
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
)
leaves = st.sampled_from(BORDERS) | scalars
keys = st.sampled_from(KEYS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=3)
# Values without null, as they may stand in an array.
whole_values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=6
)
# Values of a patch: null, which removes, at any depth of objects.
patch_values = st.recursive(
    st.none() | whole_values, lambda inner: st.dictionaries(keys, inner, max_size=3), max_leaves=6
)
patches = st.dictionaries(keys, patch_values, max_size=4)
states = st.fixed_dictionaries({}, optional={"desired": patches | st.none(), "reported": patches | st.none()})
any_states = st.none() | states | states | states


def exact(value: Any) -> Any:
    """Return a value that compares equal only to the same JSON in the same types: 21 is not 21.0, nor true 1."""
    if isinstance(value, dict):
        return {key: exact(child) for key, child in value.items()}
    if isinstance(value, list):
        return [exact(child) for child in value]
    return f"{type(value).__name__} {value!r}"
