"""A backup as a sealed stream of bytes: AES-256-GCM in chunks, so that neither side needs more memory than two of them.

It begins with a header: a magic text, the version of this form, the id of the operator's key, and a random salt. Each
backup is sealed under a key of its own, derived from the operator's key, the salt and the whole header (HKDF-SHA256),
so that chunk numbers are nonces that never repeat under one key. The nonce of a chunk is its number and whether it is
the last one (the STREAM construction, as in age): a chunk that was changed, left out, doubled, moved, or taken from
another backup does not open, and neither does the last one that is left of a backup that was cut off.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from actors.errors import BackupUnusable, LocationError, VaultError
from actors.vault import KEY_ID_BYTES, key_id

_MAGIC: Final = b"twinfleet backup\n"
_VERSION: Final = 1
_VERSION_BYTES: Final = 2
_SALT_BYTES: Final = 32
_HEADER_BYTES: Final = len(_MAGIC) + _VERSION_BYTES + KEY_ID_BYTES + _SALT_BYTES
_KEY_BYTES: Final = 32
# Large enough for the cost of a call to vanish, small enough to hold two.
CHUNK_BYTES: Final = 1 << 20
_TAG_BYTES: Final = 16
# 11 bytes of the nonce count, the twelfth says whether the chunk is the last.
_COUNT_BYTES: Final = 11


class SealedWriter:
    """Seals what is written to it into a stream; without `finish` what is there opens as a backup that was cut off."""

    def __init__(self, stream: IO[bytes], key: bytes) -> None:
        self._stream = stream
        header = b"".join(
            (_MAGIC, _VERSION.to_bytes(_VERSION_BYTES, "little"), key_id(key), os.urandom(_SALT_BYTES))
        )
        self._chunks = _Chunks(key, header)
        self._buffer = bytearray()
        stream.write(header)

    def write(self, content: bytes) -> None:
        """Add bytes."""
        self._buffer += content
        # What may be the last chunk stays.
        while len(self._buffer) > CHUNK_BYTES:
            self._stream.write(self._chunks.seal(bytes(self._buffer[:CHUNK_BYTES]), is_last=False))
            del self._buffer[:CHUNK_BYTES]

    def finish(self) -> None:
        """Write what is left, as the end."""
        self._stream.write(self._chunks.seal(bytes(self._buffer), is_last=True))


class SealedReader:
    """Opens what a `SealedWriter` wrote; `name` is the backup's for people.

    BackupUnusable as soon as something read is not what was written, LocationError if it cannot be read; VaultError
    if the key is another one.
    """

    def __init__(self, stream: IO[bytes], key: bytes, *, key_file: Path, name: str) -> None:
        self._stream = stream
        self._name = name
        header = self._take(_HEADER_BYTES)
        if not header.startswith(_MAGIC) or len(header) < _HEADER_BYTES:
            raise BackupUnusable(name, "is no backup of twinfleet, or only the beginning of one")
        rest = header[len(_MAGIC) :]
        version = int.from_bytes(rest[:_VERSION_BYTES], "little")
        if version != _VERSION:
            raise BackupUnusable(name, f"has the form {version}, this version of twinfleet reads {_VERSION}")
        if rest[_VERSION_BYTES:][:KEY_ID_BYTES] != key_id(key):
            raise VaultError(key_file, f"is not the key under which {name} was sealed; name that one")
        self._chunks = _Chunks(key, header)
        self._buffer = bytearray()
        self._ahead = self._take(CHUNK_BYTES + _TAG_BYTES)
        self._is_over = False

    def read(self, count: int) -> bytes:
        """Return the next `count` bytes, fewer only at the end."""
        while len(self._buffer) < count and not self._is_over:
            sealed, self._ahead = self._ahead, self._take(CHUNK_BYTES + _TAG_BYTES)
            self._is_over = not self._ahead
            try:
                self._buffer += self._chunks.open(sealed, is_last=self._is_over)
            except (InvalidTag, ValueError):
                raise BackupUnusable(
                    self._name, "is damaged, cut off or was changed: it does not open"
                ) from None
        content = bytes(self._buffer[:count])
        del self._buffer[:count]
        return content

    def _take(self, count: int) -> bytes:
        """Return the next bytes of the stream, fewer only at its end: a stream may give less than it has."""
        parts: list[bytes] = []
        try:
            while count > 0 and (part := self._stream.read(count)):
                parts.append(part)
                count -= len(part)
        except OSError as error:
            raise LocationError(self._name, f"cannot be read: {error}", retryable=True) from error
        return b"".join(parts)


class _Chunks:
    """Seals or opens the chunks of one backup, in their order."""

    def __init__(self, key: bytes, header: bytes) -> None:
        salt = header[-_SALT_BYTES:]
        derived = HKDF(algorithm=SHA256(), length=_KEY_BYTES, salt=salt, info=header).derive(key)
        self._cipher = AESGCM(derived)
        self._count = 0

    def seal(self, plain: bytes, *, is_last: bool) -> bytes:
        return self._cipher.encrypt(self._nonce(is_last), plain, None)

    def open(self, sealed: bytes, *, is_last: bool) -> bytes:
        return self._cipher.decrypt(self._nonce(is_last), sealed, None)

    def _nonce(self, is_last: bool) -> bytes:
        nonce = self._count.to_bytes(_COUNT_BYTES, "big") + bytes([is_last])
        self._count += 1
        return nonce
