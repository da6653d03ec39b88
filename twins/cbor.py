"""CBOR (RFC 8949) as devices use it in place of JSON: numbers, texts, arrays, maps, true, false and null.

What JSON can't say is refused: tags, byte strings, keys that are no text, `undefined`. So whoever reads a decoded
document need not know which of the two it was, and nothing is built that is larger than the bytes that came.
"""

from __future__ import annotations

import math
import struct
from typing import Any, Final

from twins.errors import InvalidRequest

# As deep as JSON's decoder goes at least, far deeper than any report; Python's own limit is a thousand calls.
_DEPTH_MAX: Final = 64
_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)
_INDEFINITE: Final = 31
_BREAK: Final = 0xFF
_FLOATS: Final = {25: ">e", 26: ">f", 27: ">d"}
_CONSTANTS: Final = {20: False, 21: True, 22: None}


def decode_cbor(data: bytes) -> Any:
    """Return the one item that `data` holds; InvalidRequest if it is no CBOR, or says what JSON can't."""
    reader = _Reader(data)
    try:
        item = reader.item(0)
    except (IndexError, struct.error):
        raise InvalidRequest("the CBOR ends too early") from None
    except UnicodeDecodeError:
        raise InvalidRequest("a text in the CBOR is not UTF-8") from None
    if reader.position != len(data):
        raise InvalidRequest("the CBOR holds more than one item")
    return item


def encode_cbor(value: Any) -> bytes:
    """Return a value of objects, lists, texts, numbers, booleans and None in CBOR, as short as it can be said."""
    parts: list[bytes] = []
    _encode(value, parts)
    return b"".join(parts)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.position = 0
        self._data = data

    def item(self, depth: int) -> Any:
        if depth > _DEPTH_MAX:
            raise InvalidRequest(f"the CBOR is nested deeper than {_DEPTH_MAX}")
        first = self._data[self.position]
        self.position += 1
        kind, short = first >> 5, first & 31
        if kind == _SIMPLE:
            return self._simple(short)
        count = None if short == _INDEFINITE else self._count(short)
        if kind == _UNSIGNED and count is not None:
            return count
        if kind == _NEGATIVE and count is not None:
            return -1 - count
        if kind == _TEXT:
            return self._text(count)
        if kind == _ARRAY:
            return [self.item(depth + 1) for _ in self._members(count)]
        if kind == _MAP:
            return dict(self._member(depth) for _ in self._members(count))
        raise InvalidRequest("the CBOR holds tags or byte strings, which stand for nothing here")

    def _count(self, short: int) -> int:
        """Return the number that stands in the first byte or follows it (RFC 8949, 3)."""
        if short < 24:
            return short
        if short > 27:
            raise InvalidRequest("the CBOR uses a reserved length")
        return int.from_bytes(self._take(1 << (short - 24)), "big")

    def _take(self, count: int) -> bytes:
        taken = self._data[self.position : self.position + count]
        if len(taken) < count:
            raise IndexError(self.position)
        self.position += count
        return taken

    def _members(self, count: int | None) -> Any:
        if count is not None:
            # Each member takes a byte at least, so a count that is no more than the bytes left can't be too large.
            if count > len(self._data) - self.position:
                raise IndexError(self.position)
            yield from range(count)
            return
        while self._data[self.position] != _BREAK:
            yield None
        self.position += 1

    def _member(self, depth: int) -> tuple[str, Any]:
        key = self.item(depth + 1)
        if type(key) is not str:
            raise InvalidRequest("a key in the CBOR is no text")
        return key, self.item(depth + 1)

    def _text(self, count: int | None) -> str:
        if count is not None:
            return self._take(count).decode()
        parts = []
        for _ in self._members(None):
            first = self._data[self.position]
            self.position += 1
            if first >> 5 != _TEXT or first & 31 == _INDEFINITE:
                raise InvalidRequest("a text in the CBOR is made of something else")
            parts.append(self._take(self._count(first & 31)).decode())
        return "".join(parts)

    def _simple(self, short: int) -> Any:
        if short in _CONSTANTS:
            return _CONSTANTS[short]
        if short not in _FLOATS:
            raise InvalidRequest("the CBOR holds a value that JSON does not have")
        layout = _FLOATS[short]
        (number,) = struct.unpack(layout, self._take(struct.calcsize(layout)))
        if not math.isfinite(number):
            raise InvalidRequest("the CBOR holds a number that is not finite")
        return number


def _encode(value: Any, parts: list[bytes]) -> None:
    if value is None or value is True or value is False:
        parts.append(bytes([_SIMPLE << 5 | {False: 20, True: 21, None: 22}[value]]))
    elif type(value) is int:
        parts.append(_head(_UNSIGNED, value) if value >= 0 else _head(_NEGATIVE, -1 - value))
    elif type(value) is float:
        parts.append(b"\xfb" + struct.pack(">d", value))
    elif type(value) is str:
        encoded = value.encode()
        parts += (_head(_TEXT, len(encoded)), encoded)
    elif type(value) is list:
        parts.append(_head(_ARRAY, len(value)))
        for each in value:
            _encode(each, parts)
    elif type(value) is dict:
        parts.append(_head(_MAP, len(value)))
        for key, each in value.items():
            _encode(key, parts)
            _encode(each, parts)
    else:
        raise TypeError(f"{type(value).__name__} is nothing that JSON has")


def _head(kind: int, count: int) -> bytes:
    if count < 24:
        return bytes([kind << 5 | count])
    for short, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if count < 1 << (8 * size):
            return bytes([kind << 5 | short]) + count.to_bytes(size, "big")
    raise OverflowError(f"{count} does not fit 64 bits")
