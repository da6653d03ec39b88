"""What a twin remembers of its telemetry: per stream and field the last value, and statistics of a sliding window.

The window slides by buckets, so it covers between `WINDOW_S - BUCKET_S` and `WINDOW_S` seconds up to now.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from twins.errors import InvalidRequest
from twins.shadow import encode_json

WINDOW_S: Final = 300
# Half the window: the same two buckets that simulated twins keep in their columns.
BUCKET_S: Final = 150
# Distinct (stream, field) pairs that one thing may report, so that a device with random field names stays bounded.
FIELD_COUNT_MAX: Final = 256
# Characters of texts and arrays that one thing may have kept, over all its fields: eight of the largest messages.
KEPT_LENGTH_MAX: Final = 8 * 131_072
# Messages lighter than this are taken without counting what is kept already.
_LIGHT_LENGTH: Final = 1024
# Levels of objects that are taken apart, and levels that a value below them may have: as deep as a shadow may be.
_NESTING_MAX: Final = 8
# Larger numbers are kept but not counted, so that no sum over a window leaves the range of a float (1.8e308).
_COUNTED_MAX: Final = 1e300


class _FieldWindow:
    """One field's last value and its two buckets, each [number, count, sum, minimum, maximum]."""

    __slots__ = ("buckets", "timestamp", "value")

    def __init__(self) -> None:
        self.value: Any = None
        self.timestamp = 0
        self.buckets: list[list[float]] = []

    def add(self, value: Any, now_s: int) -> None:
        self.value = value
        self.timestamp = now_s
        if (type(value) is not int and type(value) is not float) or abs(value) > _COUNTED_MAX:
            return
        number = now_s // BUCKET_S
        if not self.buckets or self.buckets[-1][0] != number:
            self.buckets = [*self.buckets[-1:], [number, 1, value, value, value]]
            return
        bucket = self.buckets[-1]
        bucket[1] += 1
        bucket[2] += value
        bucket[3] = min(bucket[3], value)
        bucket[4] = max(bucket[4], value)

    def describe(self, now_s: int) -> dict[str, Any]:
        described = {"value": self.value, "timestamp": self.timestamp}
        oldest = now_s // BUCKET_S - 1
        described.update(summarise([bucket for bucket in self.buckets if bucket[0] >= oldest]))
        return described


def summarise(buckets: list[list[float]]) -> dict[str, float]:
    """Return count, min, max and mean over buckets of [number, count, sum, minimum, maximum]; empty ones count 0."""
    filled = [bucket for bucket in buckets if bucket[1]]
    count = int(sum(bucket[1] for bucket in filled))
    if not count:
        return {"count": 0}
    return {
        "count": count,
        "min": min(bucket[3] for bucket in filled),
        "max": max(bucket[4] for bucket in filled),
        "mean": sum(bucket[2] for bucket in filled) / count,
    }


class ThingTelemetry:
    """The telemetry of one thing over all its streams."""

    __slots__ = ("_fields",)

    def __init__(self) -> None:
        self._fields: dict[tuple[str, str], _FieldWindow] = {}

    def add(self, stream: str, values: Any, now_s: int) -> None:
        """Take in one message, in place.

        InvalidRequest, with nothing changed, if it is no object, nests too deep, or if too much would be kept. Fields
        of nested objects are named by their path, with dots.
        """
        if type(values) is not dict:
            raise InvalidRequest("A telemetry message must be a JSON object")
        flat = list(_flatten(values, "", 1))
        if any(_is_nested_beyond(value, _NESTING_MAX) for _, value in flat):
            raise InvalidRequest(f"A telemetry value may be nested {_NESTING_MAX} levels deep at most")
        fields = self._fields
        new_count = sum((stream, name) not in fields for name, _ in flat)
        if new_count and len(fields) + new_count > FIELD_COUNT_MAX:
            raise InvalidRequest(f"A thing may report {FIELD_COUNT_MAX} different telemetry fields at most")
        length = sum(_length(value) for _, value in flat)
        if length > _LIGHT_LENGTH:
            arriving = {(stream, name) for name, _ in flat}
            length += sum(_length(window.value) for key, window in fields.items() if key not in arriving)
            if length > KEPT_LENGTH_MAX:
                raise InvalidRequest(
                    f"A thing may have {KEPT_LENGTH_MAX} characters of telemetry kept at most"
                )
        for name, value in flat:
            window = fields.get((stream, name))
            if window is None:
                window = fields[stream, name] = _FieldWindow()
            window.add(value, now_s)

    def describe(self, now_s: int) -> dict[str, dict[str, Any]]:
        """Return, per stream and field, the last value with its time and the window's statistics."""
        streams: dict[str, dict[str, Any]] = {}
        for (stream, name), window in sorted(self._fields.items()):
            streams.setdefault(stream, {})[name] = window.describe(now_s)
        return streams

    def pack(self) -> bytes:
        """Return everything remembered as bytes."""
        return encode_json(
            [
                [stream, name, window.value, window.timestamp, window.buckets]
                for (stream, name), window in self._fields.items()
            ]
        )

    @classmethod
    def unpack(cls, packed: bytes) -> ThingTelemetry:
        """Return what `pack` packed."""
        telemetry = cls()
        for stream, name, value, timestamp, buckets in msgspec.json.decode(packed):
            window = telemetry._fields[stream, name] = _FieldWindow()
            window.value, window.timestamp, window.buckets = value, timestamp, buckets
        return telemetry


def _flatten(values: dict[str, Any], prefix: str, level: int) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if type(value) is dict and level < _NESTING_MAX:
            yield from _flatten(value, f"{prefix}{key}.", level + 1)
        else:
            yield prefix + key, value


def _length(value: Any) -> int:
    """Return about how many characters a text, array or object has; a number counts nothing, within one a little."""
    if type(value) is str:
        return len(value)
    if type(value) is list:
        return sum(8 + _length(child) for child in value)
    if type(value) is dict:
        return sum(8 + len(key) + _length(child) for key, child in value.items())
    return 0


def _is_nested_beyond(value: Any, levels: int) -> bool:
    if type(value) is not dict and type(value) is not list:
        return False
    children = value.values() if type(value) is dict else value
    return levels == 0 or any(_is_nested_beyond(child, levels - 1) for child in children)
