"""The files of a device: certificate, private key and the authority's certificate, written all or none.

A key never leaves the machine that makes it and no file is ever replaced.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from twinfleet.errors import FilesInTheWay

# A private key is its owner's; certificates are for everybody.
_KEY_MODE: Final = 0o600
_CERTIFICATE_MODE: Final = 0o644
# A certificate of this name would stand where the authority's does.
RESERVED_NAME: Final = "ca"


@dataclass(frozen=True)
class CredentialFiles:
    """Where the files of one device go."""

    certificate: Path
    key: Path
    ca: Path

    @classmethod
    def in_directory(cls, directory: Path, device_name: str) -> CredentialFiles:
        """Return the places for a device's files in `directory`; the authority's is shared by all devices there."""
        return cls(
            directory / f"{device_name}.pem",
            directory / f"{device_name}.key",
            directory / f"{RESERVED_NAME}.pem",
        )

    def check(self, ca_pem: str) -> None:
        """Refuse, with FilesInTheWay, a directory in which these files cannot be written; makes the directory."""
        if self.certificate == self.ca:
            text = f"{self.certificate} is for the authority's certificate; take another name than {RESERVED_NAME!r}"
            raise FilesInTheWay(text)
        try:
            self.key.parent.mkdir(parents=True, exist_ok=True)
            present = [path for path in (self.certificate, self.key) if path.exists() or path.is_symlink()]
            is_foreign = self.ca.exists() and self.ca.read_text(encoding="utf-8", errors="replace") != ca_pem
            probe = _beside(self.key)
            _write(probe, "", _KEY_MODE)
            probe.unlink()
        except OSError as error:
            raise _cannot_write(self.key.parent, error) from None
        if present:
            text = f"{present[0]} is there already and is not replaced; move it away, or name another --out"
            raise FilesInTheWay(text)
        if is_foreign:
            raise FilesInTheWay(f"{self.ca} is another platform's; name another --out")

    def write(self, *, certificate_pem: str, key_pem: str, ca_pem: str) -> list[Path]:
        """Write the files and return those written; when one cannot be, or is there meanwhile, none is left."""
        contents = {self.key: (key_pem, _KEY_MODE), self.certificate: (certificate_pem, _CERTIFICATE_MODE)}
        if not self.ca.exists():
            contents[self.ca] = (ca_pem, _CERTIFICATE_MODE)
        try:
            _write_all(contents)
        except OSError as error:
            raise _cannot_write(self.key.parent, error) from None
        return list(contents)


def make_key_file(path: Path, key_pem: str) -> None:
    """Write a private key where no file is yet, readable by its owner only; whole or not at all.

    Not flushed to the disk: whoever writes many flushes once. FilesInTheWay if it cannot be written.
    """
    _place(path, key_pem, _KEY_MODE)


def make_certificate_file(path: Path, certificate_pem: str) -> None:
    """Write a certificate where no file is yet; else as `make_key_file`."""
    _place(path, certificate_pem, _CERTIFICATE_MODE)


def _place(path: Path, content: str, mode: int) -> None:
    beside = _beside(path)
    try:
        _write(beside, content, mode, is_flushed=False)
        # Unlike rename, link does not replace what is there.
        os.link(beside, path)
    except OSError as error:
        raise _cannot_write(path.parent, error) from None
    finally:
        beside.unlink(missing_ok=True)


def _write_all(contents: Mapping[Path, tuple[str, int]]) -> None:
    beside = {path: _beside(path) for path in contents}
    placed: list[Path] = []
    try:
        for path, (content, mode) in contents.items():
            _write(beside[path], content, mode)
        for path in contents:
            # Unlike rename, link does not replace what is there.
            os.link(beside[path], path)
            placed.append(path)
    except OSError:
        for path in placed:
            path.unlink(missing_ok=True)
        raise
    finally:
        for path in beside.values():
            path.unlink(missing_ok=True)


def _write(path: Path, content: str, mode: int, *, is_flushed: bool = True) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    # The umask may narrow the mode; that is its purpose.
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(content)
        if is_flushed:
            file.flush()
            os.fsync(file.fileno())


def _beside(path: Path) -> Path:
    # A device name may fill a file name already, so the name of the file beside it does not build on it.
    return path.with_name(f".twinfleet-{secrets.token_hex(8)}")


def _cannot_write(directory: Path, error: OSError) -> FilesInTheWay:
    return FilesInTheWay(f"cannot write to {directory}: {error.strerror}; name another directory with --out")
