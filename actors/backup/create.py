"""Makes a backup: a platform at one instant, checked while it is written, and not there until it is whole."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Final

from actors.backup.broker_file import UnknownFormError, retained_only
from actors.backup.cipher import SealedWriter
from actors.backup.content import PKI, RETAINED, SETTINGS, TOKEN, VAULT_KEY, Content, Summary
from actors.backup.records import FORMAT, PART_BYTES, FilePart, Head, Record, RecordWriter, SnapshotPart
from actors.backup.source import Source, standing_source
from actors.backup.store_content import client_of, read_store
from actors.errors import BackupRefused, BackupUnusable, LocationError, SnapshotGone
from actors.journal import Journal, parse_position, reaches
from actors.locations import Location
from actors.settings import DATA_FORMAT, PlatformSettings
from actors.vault import read_key, read_or_create_key

_LOG: Final = logging.getLogger(__name__)
# What is being done, how much of it is, and of how much, where that is known.
Progress = Callable[[str, int, int | None], None]
# Snapshots may be replaced while they are to be copied; hardly so three times in a row.
_ATTEMPT_COUNT: Final = 3
_NO_SNAPSHOT: Final = "0-0"
# Often enough to be seen moving, seldom enough to cost nothing.
_TELL_EVERY: Final = 1000


def create_backup(
    settings: PlatformSettings, out: str, *, key_file: Path, version: str, progress: Progress
) -> Summary:
    """Write a backup of the platform of `settings.data_dir`, running or not, to a file or object that is not there yet.

    It is sealed under the key in `key_file`, which is made if there is none. Whatever is raised leaves no backup.
    """
    location, name = Location.of_file(out)
    if location.has(name):
        raise BackupRefused(str(location), "is there already, and no backup is replaced; choose another name")
    key = read_or_create_key(key_file)
    attempt = 1
    while True:
        progress("copying the store", 0, None)
        with standing_source(settings) as source:
            if key == read_key(source.vault_key_file):
                problem = "is the platform's own key, which the backup will hold; name another file"
                raise BackupRefused(str(key_file), problem)
            try:
                with location.writing(name) as stream:
                    creation = _Creation(source, stream, key, name=str(location))
                    return creation.run(version, progress)
            except SnapshotGone:
                if attempt == _ATTEMPT_COUNT:
                    raise
        attempt += 1


class _Creation:
    """One attempt to write a backup."""

    def __init__(self, source: Source, stream: IO[bytes], key: bytes, *, name: str) -> None:
        self._source = source
        self._writer = RecordWriter(SealedWriter(stream, key))
        self._content = Content(name)

    def run(self, version: str, progress: Progress) -> Summary:
        """Write all of it, and return what it holds."""
        count = self._source.shard_count
        self._write([Head(FORMAT, version, DATA_FORMAT, self._source.cut_s, count)])
        for path, file in self._files():
            self._write(_file_parts(path, _pieces(file)))
        self._write(self._retained_parts())
        with contextlib.closing(Journal.at(self._source.store_url)) as journal:
            for number in range(count):
                self._write_snapshot(journal, number)
                progress("snapshots", number + 1, count)
        with client_of(self._source.store_url) as client:
            for done, record in enumerate(read_store(client), 1):
                self._write([record])
                if done % _TELL_EVERY == 0:
                    progress("registry and journals", done, None)
        summary = self._content.finish()
        self._writer.end()
        return summary

    def _write(self, records: Iterable[Record]) -> None:
        for record in records:
            self._content.take(record)
            self._writer.write(record)

    def _files(self) -> Iterator[tuple[str, Path]]:
        """Give the files that a platform cannot make again, by their place in a data directory."""
        directory = self._source.directory
        yield VAULT_KEY, self._source.vault_key_file
        for path, file in ((SETTINGS, directory.settings_file), (TOKEN, directory.operator_token_file)):
            if file.exists():
                yield path, file
        for file in sorted(directory.pki.iterdir()):
            if file.is_file() and not file.name.startswith("."):
                yield f"{PKI}/{file.name}", file

    def _retained_parts(self) -> Iterator[FilePart]:
        file = self._source.directory.mosquitto / "mosquitto.db"
        if not file.exists():
            return
        with file.open("rb") as stream:
            try:
                yield from _file_parts(RETAINED, retained_only(stream))
            except UnknownFormError as error:
                raise BackupUnusable(str(file), f"what the broker retains cannot be read: {error}") from None

    def _write_snapshot(self, journal: Journal, number: int) -> None:
        """Write the newest snapshot that can be loaded and that the journal of the cut goes on from."""
        first, last = journal.first_position(number), journal.last_position(number)
        for position in self._source.snapshots.positions(number):
            if parse_position(position) > last or not reaches(position, first):
                continue
            try:
                content = self._source.snapshots.content(number, position)
                # With its last part it is loaded.
                self._content.take_snapshot(number, position, content)
            except (LocationError, BackupUnusable) as error:
                _LOG.warning("snapshot %s of shard %d is not copied: %s", position, number, error)
                continue
            for part in _snapshot_parts(number, position, content):
                self._writer.write(part)
            return
        if not reaches(_NO_SNAPSHOT, first):
            raise SnapshotGone(number)


def _pieces(file: Path) -> Iterator[bytes]:
    try:
        with file.open("rb") as stream:
            while piece := stream.read(PART_BYTES):
                yield piece
    except OSError as error:
        raise LocationError(str(file), f"cannot be read: {error}") from error


def _file_parts(path: str, pieces: Iterable[bytes]) -> Iterator[FilePart]:
    """Give the parts of a file; the last one is empty."""
    for piece in pieces:
        yield FilePart(path, piece, is_last=False)
    yield FilePart(path, b"", is_last=True)


def _snapshot_parts(number: int, position: str, content: bytes) -> Iterator[SnapshotPart]:
    for start in range(0, len(content), PART_BYTES):
        end = start + PART_BYTES
        yield SnapshotPart(number, position, content[start:end], is_last=end >= len(content))
