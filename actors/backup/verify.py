"""Reads a backup from its beginning to its end, and says what it holds, or what is wrong with it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from actors.backup.cipher import SealedReader
from actors.backup.content import Content, Summary
from actors.backup.create import Progress
from actors.backup.records import Record, read_records
from actors.locations import Location
from actors.vault import read_key

_TELL_EVERY: Final = 1000


@contextlib.contextmanager
def opened_backup(
    text: str, key_file: Path, progress: Progress
) -> Iterator[tuple[Iterator[Record], Content]]:
    """Give the records of the backup in a file or object, and what checks them; errors as of `SealedReader`."""
    key = read_key(key_file)
    location, name = Location.of_file(text)
    with location.reading(name) as stream:
        reader = SealedReader(stream, key, key_file=key_file, name=str(location))
        yield _told(read_records(reader, name=str(location)), progress), Content(str(location))


def _told(records: Iterator[Record], progress: Progress) -> Iterator[Record]:
    for done, record in enumerate(records, 1):
        yield record
        if done % _TELL_EVERY == 0:
            progress("records", done, None)


def verify_backup(text: str, *, key_file: Path, progress: Progress) -> Summary:
    """Return what a backup holds: all of it opened, every snapshot loaded, every entry of a journal decoded.

    BackupUnusable if it is not whole, VaultError if the key is another one, LocationError if it cannot be read.
    """
    with opened_backup(text, key_file, progress) as (records, content):
        for record in records:
            content.take(record)
        return content.finish()
