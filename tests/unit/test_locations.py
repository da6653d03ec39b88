"""Places for files, as far as they lie on this machine, and how they are named."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from actors.errors import LocationError, SettingsError
from actors.locations import Location

NAMES_OF_ONE_DIRECTORY: tuple[Callable[[Path], str], ...] = (str, Path.as_uri)


@pytest.mark.parametrize("named", NAMES_OF_ONE_DIRECTORY)
@pytest.mark.parametrize("name", ["plain", "with space", "50%25 #1?x=y", "höhe"])
def test_a_directory_is_made_and_keeps_files(tmp_path: Path, named: Callable[[Path], str], name: str) -> None:
    directory = tmp_path / name / "deep"
    location = Location.of(named(directory))
    assert directory.stat().st_mode & 0o777 == 0o700
    assert location.names() == []
    location.write("b", b"first")
    location.write("b", b"second")
    location.write("a", b"")
    (directory / "folder").mkdir()
    assert location.names() == ["a", "b"]
    assert location.read("b") == b"second"
    assert (directory / "b").stat().st_mode & 0o777 == 0o600
    assert location.has("b")
    location.remove("b")
    location.remove("b")
    assert location.names() == ["a"]
    assert not location.has("b")


def test_a_file_that_is_not_written_to_its_end_leaves_the_old_one(tmp_path: Path) -> None:
    location = Location.of(str(tmp_path))
    location.write("a", b"old")
    with contextlib.suppress(ZeroDivisionError), location.writing("a") as stream:
        stream.write(b"new")
        raise ZeroDivisionError
    assert location.names() == ["a"]
    assert location.read("a") == b"old"


def test_a_file_is_not_seen_before_all_of_it_is_written(tmp_path: Path) -> None:
    location = Location.of(str(tmp_path))
    with location.writing("a") as stream:
        stream.write(b"half")
        stream.flush()
        assert not location.has("a")
    assert location.read("a") == b"half"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ftp://host/x", "must be a path, or a URI that begins with file:// or s3://"),
        ("", "must be a path or a URI"),
        ("file://host/x", "names no place for files"),
        ("s3://user:geheim@bucket/with space", "syntax error"),
        ("s3:///x", "Missing bucket name"),
        ("s3://user:geheim@bucket/x?scheme=http&colour=blue", r"^s3://bucket/x: .*colour"),
    ],
)
def test_what_names_no_place_is_refused(text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said) as refusal:
        Location.of(text)
    assert "geheim" not in str(refusal.value)


def test_a_file_has_a_place_and_a_name(tmp_path: Path) -> None:
    location, name = Location.of_file(str(tmp_path / "backup"))
    location.write(name, b"x")
    assert (tmp_path / "backup").read_bytes() == b"x"
    with pytest.raises(SettingsError, match="names no file"):
        Location.of_file("s3://bucket?endpoint_override=127.0.0.1:1")


def test_a_place_that_cannot_be_used_is_told_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LocationError, match=r"file/x: cannot be made a directory"):
        Location.of(str(tmp_path / "file" / "x"))
    location = Location.of(str(tmp_path / "gone"))
    with pytest.raises(LocationError, match="gone: a cannot be read") as refusal:
        location.read("a")
    assert refusal.value.retryable
    os.rmdir(tmp_path / "gone")  # noqa: PTH106 - as somebody else would
    with pytest.raises(LocationError, match="gone: a cannot be written"):
        location.write("a", b"x")
