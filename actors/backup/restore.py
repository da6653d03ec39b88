"""Puts a backup into an empty directory, so that a platform can be started on it; it is checked on the way."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import redis
import yaml

from actors.backup.content import SETTINGS, Content, Summary
from actors.backup.create import Progress
from actors.backup.records import Entries, FilePart, Members, Record, SnapshotPart, StreamEnd, Text
from actors.backup.store_content import StoreWriter, client_of
from actors.backup.verify import opened_backup
from actors.errors import BackupRefused, LocationError
from actors.settings import DATA_FORMAT, UNFINISHED, DataDirectory, PlatformSettings, write_atomically
from actors.snapshots import SnapshotStore
from actors.store import RedisServer

# What they name lies in the directory itself after a restore.
_DROPPED_SETTINGS: Final = ("key_file", "snapshot_location")


def restore_backup(text: str, data_dir: Path, *, key_file: Path, progress: Progress) -> Summary:
    """Make `data_dir` hold what a backup holds; it must not be there yet, or be empty, and is so again after an error.

    A process that is killed over it leaves a directory that no platform starts on. Errors as of `verify_backup`. For
    the main thread.
    """
    if data_dir.exists() and (not data_dir.is_dir() or any(data_dir.iterdir())):
        raise BackupRefused(
            str(data_dir), "is not empty; restore into a directory that is, or is not there yet"
        )
    directory = DataDirectory(data_dir)
    with opened_backup(text, key_file, progress) as (records, content), _emptied_after_errors(directory):
        directory.prepare()
        write_atomically(directory.format_file, UNFINISHED.encode())
        with directory.lock():
            try:
                _restore(records, content, directory)
            except OSError as error:
                raise LocationError(str(data_dir), f"cannot be written: {error}") from error
            summary = content.finish()
            # The names of all these files, too, are on the disk before the directory counts as whole.
            os.sync()
            write_atomically(directory.format_file, f"{DATA_FORMAT}\n".encode())
        return summary


@contextlib.contextmanager
def _emptied_after_errors(directory: DataDirectory) -> Iterator[None]:
    try:
        yield
    except BaseException:
        for path in directory.path.iterdir() if directory.path.exists() else ():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        raise


def _restore(records: Iterator[Record], content: Content, directory: DataDirectory) -> None:
    """Write every record to where it belongs."""
    snapshots = SnapshotStore(str(directory.snapshots))
    with contextlib.ExitStack() as parts:
        store: StoreWriter | None = None
        for record in records:
            whole = content.take(record)
            if isinstance(record, FilePart):
                _write_part(directory.path / record.path, record)
            elif isinstance(record, SnapshotPart) and whole is not None:
                snapshots.keep(record.shard, record.position, whole)
            elif isinstance(record, Text | Members | Entries | StreamEnd):
                if store is None:
                    # Files come before keys: the settings are there by now.
                    store = StoreWriter(parts.enter_context(_running_store(directory)))
                store.write(record)
        if store is not None:
            store.flush()


def _write_part(path: Path, part: FilePart) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "ab") as file:
        file.write(part.content)
        file.flush()
        if part.is_last:
            os.fsync(file.fileno())
    if part.is_last and part.path == SETTINGS:
        _drop_places(path)


def _drop_places(settings_file: Path) -> None:
    """Take out of a settings file what names places outside of the directory: what was there is inside it now."""
    settings = yaml.safe_load(settings_file.read_bytes())
    if isinstance(settings, dict) and any(settings.pop(name, None) for name in _DROPPED_SETTINGS):
        write_atomically(settings_file, yaml.safe_dump(settings).encode() if settings else b"")


@contextlib.contextmanager
def _running_store(directory: DataDirectory) -> Iterator[redis.Redis]:
    server = RedisServer(PlatformSettings.load(directory.path, {}))
    try:
        server.start()
        with client_of(server.url) as client:
            yield client
    finally:
        server.stop()
