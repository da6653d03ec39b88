"""Which shard a thing lives in, computed from its name alone.

A name is read as prefix, number, suffix (its last run of digits). Things that differ in the number only are dealt
out in blocks of `BLOCK_SIZE` consecutive numbers, so that a fleet named by a pattern needs no stored map: the rows
of each shard, and the row of each name, follow from arithmetic. All other names spread by CRC-32.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from twins.errors import ModelError

# Small enough that a thousand devices spread over several shards, large enough that a block is a good unit of
# vector work and of hashing (256 rows of a 4-byte column are 16 cache lines).
BLOCK_SIZE: Final = 256
_LAST_NUMBER: Final = re.compile(r"^(.*?)([0-9]+)([^0-9]*)$", re.DOTALL)
_PLACEHOLDER: Final = re.compile(r"\{i(?::0([0-9]{1,2})d)?\}")
_NAME: Final = re.compile(r"[a-zA-Z0-9:_-]{1,128}")
_CERTIFICATE_ID: Final = re.compile(r"[0-9a-fA-F]{64}")


def is_name(text: str) -> bool:
    """Tell whether `text` may be a name at all: 1 to 128 of letters, digits, colon, underscore and hyphen."""
    return _NAME.fullmatch(text) is not None


def is_certificate_id(text: str) -> bool:
    """Tell whether `text` looks like the id of a certificate: 64 hexadecimal digits."""
    return _CERTIFICATE_ID.fullmatch(text) is not None


def is_thing_name(text: str) -> bool:
    """Tell whether `text` may name a thing: a name that does not look like a certificate id.

    A device whose certificate bears its id for a common name may write the topics of a thing of that name: there must
    never be one, registered or not.
    """
    return is_name(text) and not is_certificate_id(text)


def shard_of(thing_name: str, shard_count: int) -> int:
    """Return the shard (0 to `shard_count` - 1) in which the thing lives."""
    found = _LAST_NUMBER.match(thing_name)
    if found is None:
        return zlib.crc32(thing_name.encode()) % shard_count
    prefix, number, suffix = found.groups()
    return (_family(prefix, suffix) + int(number) // BLOCK_SIZE) % shard_count


def _family(prefix: str, suffix: str) -> int:
    return zlib.crc32(f"{prefix}\0{suffix}".encode())


@dataclass(frozen=True)
class NamePattern:
    """The names of a simulated fleet: `prefix`, a number from 0 of at least `width` digits, `suffix`."""

    prefix: str
    width: int
    suffix: str

    @classmethod
    def parse(cls, text: str) -> NamePattern:
        """Return the pattern written as `sensor-{i:06d}` or `sensor-{i}`; ModelError says what is wrong with it."""
        found = list(_PLACEHOLDER.finditer(text))
        if len(found) != 1:
            raise ModelError(f"thing_name {text!r} needs exactly one number, written {{i}} or {{i:06d}}")
        prefix, suffix = text[: found[0].start()], text[found[0].end() :]
        if prefix[-1:].isdigit() or any(character.isdigit() for character in suffix):
            raise ModelError(
                f"thing_name {text!r}: no digit may touch or follow the number {found[0].group()}"
            )
        if not is_thing_name(f"{prefix}0{suffix}"):
            raise ModelError(
                f"thing_name {text!r}: only letters, digits, colon, underscore and hyphen are allowed"
            )
        return cls(prefix, int(found[0].group(1) or 1), suffix)

    def __str__(self) -> str:
        number = "{i}" if self.width == 1 else f"{{i:0{self.width}d}}"
        return f"{self.prefix}{number}{self.suffix}"

    @property
    def family(self) -> tuple[str, str]:
        """Return what patterns have in common that may name the same thing."""
        return self.prefix, self.suffix

    def name(self, index: int) -> str:
        """Return the thing name of device `index`."""
        return f"{self.prefix}{index:0{self.width}d}{self.suffix}"

    def index(self, thing_name: str) -> int | None:
        """Return the index of the device of that name, or None if the name is not of this pattern."""
        if not thing_name.startswith(self.prefix) or not thing_name.endswith(self.suffix):
            return None
        number = thing_name[len(self.prefix) : len(thing_name) - len(self.suffix)]
        if not number.isascii() or not number.isdigit():
            return None
        return int(number) if self.name(int(number)) == thing_name else None

    def blocks(self, count: int, shard: int, *, shard_count: int) -> NDArray[np.uint32]:
        """Return the blocks (ascending) of `count` devices that live in `shard`; block b holds b*256 to b*256+255."""
        first = (shard - _family(self.prefix, self.suffix)) % shard_count
        return np.arange(first, -(-count // BLOCK_SIZE), shard_count, dtype=np.uint32)
