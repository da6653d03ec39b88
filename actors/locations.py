"""Places for snapshots and backups: a directory of this machine, or a prefix in a bucket of an S3 service.

A place is named by a path or by a URI: `file:///srv/snapshots`, `s3://bucket/prefix`, and for another service than
AWS's own `s3://bucket/prefix?endpoint_override=HOST:PORT&scheme=http`. Credentials come from the usual variables
(`AWS_ACCESS_KEY_ID`, ...). A file appears whole or not at all: on a disk it is written beside, flushed and renamed; an
S3 service shows an object only when all of it has arrived. What stands in the files is their owner's, and so is a
checksum of it: of what a service has lost since, nobody else knows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from actors.errors import LocationError, SettingsError
from actors.settings import check_location, is_path, replacing


class Location:
    """One place; its methods take plain names of files in it, and raise LocationError (retryable)."""

    def __init__(self, text: str, *, filesystem: Any, directory: str) -> None:
        self._text = _without_secrets(text)
        self._filesystem = filesystem
        self._directory = directory.rstrip("/")
        self._is_local = isinstance(filesystem, fs.LocalFileSystem)

    @classmethod
    def of(cls, text: str) -> Location:
        """Return the place of that name; a directory is made, for its owner only.

        SettingsError if it is no name of a place, LocationError if a bucket's region cannot be found out.
        """
        filesystem, path = _resolve(text)
        location = cls(text, filesystem=filesystem, directory=path)
        if location._is_local:
            with location.errors("cannot be made a directory"):
                Path(path).mkdir(mode=0o700, parents=True, exist_ok=True)
        return location

    @classmethod
    def of_file(cls, text: str) -> tuple[Location, str]:
        """Return the place of a file, which must be there, and the name of the file in it; otherwise as `of`."""
        filesystem, path = _resolve(text)
        directory, _, name = path.rpartition("/")
        if not directory or not name:
            raise SettingsError(_without_secrets(text), "", "names no file; add one")
        return cls(text, filesystem=filesystem, directory=directory), name

    def __str__(self) -> str:
        return self._text

    def names(self) -> list[str]:
        """Return the names of the files, in their order."""
        selector = fs.FileSelector(self._directory, allow_not_found=True)
        with self.errors("cannot be listed"):
            found = self._filesystem.get_file_info(selector)
        return sorted(file.base_name for file in found if file.type == fs.FileType.File)

    def has(self, name: str) -> bool:
        """Tell whether there is such a file."""
        with self.errors(f"cannot be asked for {name}"):
            found = self._filesystem.get_file_info(f"{self._directory}/{name}")
        return bool(found.type != fs.FileType.NotFound)

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        with self.reading(name) as stream:
            return stream.read()

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[IO[bytes]]:
        """Give a file to be read from its beginning on."""
        with (
            self.errors(f"{name} cannot be read"),
            self._filesystem.open_input_stream(f"{self._directory}/{name}") as stream,
        ):
            yield stream

    def write(self, name: str, content: bytes) -> None:
        """Write a file, or replace it, in one step that survives a crash."""
        with self.writing(name) as stream:
            stream.write(content)

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """Give a new file, which is seen under its name when the context ends; what is raised inside leaves none."""
        with self.errors(f"{name} cannot be written"):
            if self._is_local:
                with replacing(Path(self._directory, name)) as file:
                    yield file
            else:
                with self._uploading(f"{self._directory}/{name}") as stream:
                    yield stream

    @contextlib.contextmanager
    def _uploading(self, path: str) -> Iterator[IO[bytes]]:
        stream = self._filesystem.open_output_stream(path)
        try:
            yield stream
            written_bytes = stream.tell()
            stream.close()
        except BaseException:
            # Arrow knows no way to give an upload up: closing finishes it, with what has been written so far.
            with contextlib.suppress(OSError):
                stream.close()
            with contextlib.suppress(OSError):
                self._filesystem.delete_file(path)
            raise
        kept_bytes = self._filesystem.get_file_info(path).size
        if kept_bytes != written_bytes:
            raise OSError(f"{written_bytes} bytes were written, {kept_bytes} are there")

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with self.errors(f"{name} cannot be removed"), contextlib.suppress(FileNotFoundError):
            self._filesystem.delete_file(f"{self._directory}/{name}")

    @contextlib.contextmanager
    def errors(self, problem: str) -> Iterator[None]:
        """Turn the errors of disk and service into LocationError."""
        try:
            yield
        except OSError as error:
            raise LocationError(self._text, f"{problem}: {error}", retryable=True) from error


def _resolve(text: str) -> tuple[Any, str]:
    check_location("location", text)
    try:
        filesystem, path = fs.FileSystem.from_uri(Path(text).absolute().as_uri() if is_path(text) else text)
    except pa.ArrowInvalid as error:
        shown = _without_secrets(text)
        # Arrow may repeat it in full.
        problem = f"names no place for files: {str(error).replace(text, shown)}"
        raise SettingsError(shown, "", problem) from None
    except OSError as error:
        raise LocationError(_without_secrets(text), f"cannot be reached: {error}", retryable=True) from error
    return filesystem, path


def _without_secrets(text: str) -> str:
    """Return a location without user, password and the query, in which they may stand as well."""
    if is_path(text):
        return text
    parts = urlsplit(text)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
