"""Secrets at rest: sealed under one key, which stands in a file for its owner only.

Owns the key file and the form of what is sealed. What is worth sealing, and where it lies, is its owner's business.

Sealed bytes are a header (version, id of the key), a random nonce and the ciphertext with its tag: AES-256-GCM, which
authenticates header and context as well.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import stat
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from actors.errors import VaultError
from actors.settings import create_once

_KEY_BYTES: Final = 32
_KEY_TEXT: Final = re.compile(r"[0-9a-f]{64}")
# Whoever changes the form of what is sealed counts it up, and goes on to open the old one.
_VERSION: Final = b"TFV1"
# Tells a wrong key from damage; 64 bits of a hash say nothing useful of the key.
KEY_ID_BYTES: Final = 8
# What GCM is made for. Random ones repeat with odds of 2**-32 after 2**32 seals under one key; we make thousands.
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_HEADER_BYTES: Final = len(_VERSION) + KEY_ID_BYTES


class Vault:
    """Seals and unseals secrets under one key; `key_file` is where it stands."""

    def __init__(self, key_file: Path, key: bytes) -> None:
        self.key_file: Final = key_file
        self._cipher = AESGCM(key)
        self._header = _VERSION + key_id(key)

    @classmethod
    def open(cls, key_file: Path) -> Vault:
        """Return the vault of the key in the file, which is made now, for its owner only, if there is none.

        Two processes that make it at once get the same key. VaultError if the file holds no key, or others may read it.
        """
        return cls(key_file, read_or_create_key(key_file))

    def seal(self, plain: bytes, context: bytes) -> bytes:
        """Return `plain` in a form that only this key opens, and only together with the same `context`.

        The context (whose secret it is) is not kept: it stops one sealed secret from passing for another.
        """
        nonce = os.urandom(_NONCE_BYTES)
        return self._header + nonce + self._cipher.encrypt(nonce, plain, self._header + context)

    def unseal(self, sealed: bytes, context: bytes) -> bytes:
        """Return what was sealed with this context; VaultError, naming the key file, if it does not open."""
        header, rest = sealed[:_HEADER_BYTES], sealed[_HEADER_BYTES:]
        if not is_sealed(sealed) or len(rest) < _NONCE_BYTES + _TAG_BYTES:
            raise VaultError(
                self.key_file, "what it should open is no sealed secret; restore that from a backup"
            )
        if header != self._header:
            problem = (
                "is not the key under which the secret was sealed; restore the key file that was in use then"
            )
            raise VaultError(self.key_file, problem)
        try:
            return self._cipher.decrypt(rest[:_NONCE_BYTES], rest[_NONCE_BYTES:], header + context)
        except InvalidTag:
            problem = "the sealed secret is damaged or belongs elsewhere; restore that from a backup"
            raise VaultError(self.key_file, problem) from None


def is_sealed(content: bytes) -> bool:
    """Tell whether the bytes begin as what a vault has sealed does."""
    return content.startswith(_VERSION)


def read_or_create_key(key_file: Path) -> bytes:
    """Return the key in the file, which is made now, for its owner only, if there is none; otherwise as `read_key`."""
    try:
        if not key_file.exists():
            create_once(key_file, secrets.token_hex(_KEY_BYTES).encode() + b"\n")
    except OSError as error:
        raise _unusable(key_file, error) from None
    return read_key(key_file)


def read_key(key_file: Path) -> bytes:
    """Return the key in the file; VaultError if it holds none, or others may read it."""
    try:
        mode = stat.S_IMODE(key_file.stat().st_mode)
        text = key_file.read_text(encoding="ascii", errors="replace").strip()
    except OSError as error:
        raise _unusable(key_file, error) from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise VaultError(key_file, f"others may read the key (mode {mode:04o}); `chmod 600 {key_file}`")
    if not _KEY_TEXT.fullmatch(text):
        problem = f"holds no key, which is {2 * _KEY_BYTES} hexadecimal digits; restore it from a backup"
        raise VaultError(key_file, problem)
    return bytes.fromhex(text)


def key_id(key: bytes) -> bytes:
    """Return what tells the key from others, and says nothing else of it."""
    return hashlib.sha256(b"twinfleet key id\0" + key).digest()[:KEY_ID_BYTES]


def _unusable(key_file: Path, error: OSError) -> VaultError:
    text = f"cannot be used as the key file ({error.strerror}); mend it, or name another as key_file"
    return VaultError(key_file, text)
