"""What the broker retains, out of the file in which it keeps everything.

Sessions and queued messages stay out of a backup: what devices had in flight then would be carried out anew after a
restore, over what came after it. The file (mosquitto 2.0, `persist.h`, version 6) is a magic text, a checksum that is
always 0, the version, and chunks: kind and length, then the content. All numbers are big-endian, but for the ids of
messages, which only need to be equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Final

_MAGIC: Final = b"\x00\xb5\x00mosquitto db"
_VERSION: Final = 6
_NUMBER_BYTES: Final = 4
# Checksum and version.
_HEAD_BYTES: Final = len(_MAGIC) + 2 * _NUMBER_BYTES
_CONFIGURATION, _MESSAGE, _RETAINED = 1, 2, 4
# A message begins with its id, and that is all that there is of a retained one.
_ID_BYTES: Final = 8


class UnknownFormError(ValueError):
    """The file is of another version of the broker, or was cut off."""


def retained_only(file: IO[bytes]) -> Iterator[bytes]:
    """Yield what is to stand in a file that holds the retained messages only; UnknownFormError if it can't be told.

    The file is read twice from its beginning.
    """
    retained = {content[:_ID_BYTES] for kind, content in _chunks(file) if kind == _RETAINED}
    file.seek(0)
    yield file.read(_HEAD_BYTES)
    for kind, content in _chunks(file):
        is_wanted = (
            content[:_ID_BYTES] in retained if kind == _MESSAGE else kind in (_CONFIGURATION, _RETAINED)
        )
        if is_wanted:
            yield b"".join((_number(kind), _number(len(content)), content))


def _chunks(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    version = int.from_bytes(head[-_NUMBER_BYTES:], "big")
    if not head.startswith(_MAGIC) or version != _VERSION:
        raise UnknownFormError(f"it is no database of mosquitto of version {_VERSION}")
    while front := file.read(2 * _NUMBER_BYTES):
        kind, length = front[:_NUMBER_BYTES], int.from_bytes(front[_NUMBER_BYTES:], "big")
        content = file.read(length)
        if len(content) < length or len(front) < 2 * _NUMBER_BYTES:
            raise UnknownFormError("it is cut off")
        yield int.from_bytes(kind, "big"), content


def _number(value: int) -> bytes:
    return value.to_bytes(_NUMBER_BYTES, "big")
