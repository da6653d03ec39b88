"""A mapping whose values are bytes until somebody asks for them, and again from the next snapshot on.

A shard holds what hundreds of thousands of devices have left, of which a few are busy. To make objects of it all would
take most of the time in which a shard comes back after a crash, and several times the memory of the bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, TypeVar, overload

import msgspec

from twins.shadow import ShadowDocument, Stamp, Tree, encode_json

Key = TypeVar("Key")
Value = TypeVar("Value")
_Default = TypeVar("_Default")


class PackedMapping(MutableMapping[Key, Value]):
    """A dictionary in the order of insertion; `unpack` reads what `pack` writes, and no value is `bytes` itself.

    A value that was asked for may be changed in place until `packed` is called; then it is to be asked for again.
    """

    __slots__ = ("_kept", "_pack", "_unpack")

    def __init__(self, pack: Callable[[Value], bytes], unpack: Callable[[bytes], Value]) -> None:
        self._pack = pack
        self._unpack = unpack
        self._kept: dict[Key, Any] = {}

    def __getitem__(self, key: Key) -> Value:
        value = self._kept[key]
        if type(value) is bytes:
            value = self._kept[key] = self._unpack(value)
        unpacked: Value = value
        return unpacked

    @overload
    def get(self, key: Key, default: None = None, /) -> Value | None: ...

    @overload
    def get(self, key: Key, default: Value | _Default, /) -> Value | _Default: ...

    def get(self, key: Key, default: Any = None, /) -> Any:
        """Return a value, or the default where there is none; the inherited one is slow where there is none."""
        return self[key] if key in self._kept else default

    def __setitem__(self, key: Key, value: Value) -> None:
        self._kept[key] = value

    def __delitem__(self, key: Key) -> None:
        del self._kept[key]

    def __contains__(self, key: object) -> bool:
        return key in self._kept

    def __iter__(self) -> Iterator[Key]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def read(self) -> Iterator[tuple[Key, Value]]:
        """Yield every key with its value, which is not to be changed; what is packed stays packed."""
        for key, value in self._kept.items():
            yield key, self._unpack(value) if type(value) is bytes else value

    def entries(self) -> tuple[list[Key], list[object]]:
        """Return all keys and, in their order, the values as they are kept: packed (`bytes`) or not."""
        return list(self._kept), list(self._kept.values())

    def packed(self) -> dict[Key, bytes]:
        """Pack every value, in place, and return them all; what nobody has asked for is as it was."""
        kept = self._kept
        for key, value in kept.items():
            if type(value) is not bytes:
                kept[key] = self._pack(value)
        return kept

    def take(self, packed: dict[Key, bytes]) -> None:
        """Hold these packed values instead of all others, in place; the dictionary is this mapping's from now on."""
        self._kept = packed


# Shadows as bytes: in JSON, because the integers of devices have any size.


def pack_attributes(attributes: Mapping[str, str]) -> bytes:
    """Return a thing's attributes as bytes."""
    return encode_json(attributes)


def unpack_attributes(packed: bytes) -> dict[str, str]:
    """Return what `pack_attributes` packed."""
    attributes: dict[str, str] = msgspec.json.decode(packed)
    return attributes


def pack_shadows(shadows: Mapping[str, ShadowDocument]) -> bytes:
    """Return a thing's named shadows as bytes."""
    return encode_json(
        [
            [name, shadow.exists, shadow.version, shadow.changed_at_s, *trees_of(shadow)]
            for name, shadow in shadows.items()
        ]
    )


def unpack_shadows(packed: bytes) -> dict[str, ShadowDocument]:
    """Return what `pack_shadows` packed."""
    shadows: dict[str, ShadowDocument] = {}
    for name, exists, version, changed_at_s, *trees in msgspec.json.decode(packed):
        shadow = shadows[name] = ShadowDocument()
        shadow.exists, shadow.version, shadow.changed_at_s = exists, version, changed_at_s
        fill_trees(shadow, trees)
        shadow.forget_size()
    return shadows


def trees_of(holder: Any) -> list[Tree]:
    """Return the four trees of a shadow, or of what holds a part of one."""
    return [holder.desired, holder.desired_metadata, holder.reported, holder.reported_metadata]


def fill_trees(holder: Any, trees: list[Tree]) -> None:
    """Put the four trees, as they were decoded, into a shadow or a part of one, in place."""
    holder.desired, desired_metadata, holder.reported, reported_metadata = trees
    holder.desired_metadata = _restamp(holder.desired, desired_metadata)
    holder.reported_metadata = _restamp(holder.reported, reported_metadata)


def _restamp(state: Any, metadata: Any) -> Any:
    """Return decoded metadata with its stamps; the state tells an object called `timestamp` from a stamp."""
    if type(state) is dict:
        return {key: _restamp(child, metadata[key]) for key, child in state.items()}
    if type(state) is list:
        return [_restamp(child, stamp) for child, stamp in zip(state, metadata, strict=True)]
    return Stamp(metadata["timestamp"])
