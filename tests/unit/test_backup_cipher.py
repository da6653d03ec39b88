"""What a sealed stream gives back, and what it refuses: every change of any byte, every order but the one written."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from actors.backup.cipher import CHUNK_BYTES, SealedReader, SealedWriter
from actors.errors import BackupUnusable, VaultError

KEY, OTHER_KEY = bytes(range(32)), bytes(32)
KEY_FILE = Path("backup.key")
HEADER_BYTES = 59
SEALED_CHUNK_BYTES = CHUNK_BYTES + 16
LUCK = random.Random(7)
PLAIN = LUCK.randbytes(3 * CHUNK_BYTES + 1000)


def sealed(plain: bytes = PLAIN, *, is_finished: bool = True) -> bytes:
    stream = io.BytesIO()
    writer = SealedWriter(stream, KEY)
    # In pieces of all sizes.
    start = 0
    while start < len(plain):
        size = LUCK.choice((1, 1000, CHUNK_BYTES - 1, 2 * CHUNK_BYTES))
        writer.write(plain[start : start + size])
        start += size
    if is_finished:
        writer.finish()
    return stream.getvalue()


def opened(content: bytes, key: bytes = KEY) -> bytes:
    reader = SealedReader(io.BytesIO(content), key, key_file=KEY_FILE, name="b")
    parts = []
    while part := reader.read(100_000):
        parts.append(part)
    return b"".join(parts)


SEALED = sealed()


def chunks_of(content: bytes) -> tuple[bytes, list[bytes]]:
    body = content[HEADER_BYTES:]
    starts = range(0, len(body), SEALED_CHUNK_BYTES)
    return content[:HEADER_BYTES], [body[start : start + SEALED_CHUNK_BYTES] for start in starts]


@pytest.mark.parametrize("length", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, len(PLAIN)])
def test_what_was_sealed_comes_out_again(length: int) -> None:
    assert opened(sealed(PLAIN[:length])) == PLAIN[:length]


def test_two_backups_of_the_same_are_not_alike_and_show_nothing() -> None:
    plain = b"secret" * 1000
    first, second = sealed(plain), sealed(plain)
    assert first[HEADER_BYTES:] != second[HEADER_BYTES:]
    assert b"secret" not in first


def test_a_stream_that_gives_a_little_at_a_time_is_read_all_the_same() -> None:
    class Trickle(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(size or 0, 10_000))

    reader = SealedReader(Trickle(SEALED), KEY, key_file=KEY_FILE, name="b")
    assert reader.read(len(PLAIN)) == PLAIN
    assert reader.read(1) == b""


@pytest.mark.parametrize(
    "position", [*range(HEADER_BYTES), *LUCK.sample(range(HEADER_BYTES, len(SEALED)), 40)]
)
def test_a_changed_byte_is_noticed(position: int) -> None:
    content = bytearray(SEALED)
    content[position] ^= 1 << LUCK.randrange(8)
    with pytest.raises((BackupUnusable, VaultError)):
        opened(bytes(content))


CUTS = [0, 1, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 1, HEADER_BYTES + SEALED_CHUNK_BYTES]


@pytest.mark.parametrize("length", [*CUTS, HEADER_BYTES + 3 * SEALED_CHUNK_BYTES, len(SEALED) - 1])
def test_a_backup_that_was_cut_off_is_refused_wherever_the_cut_is(length: int) -> None:
    with pytest.raises(BackupUnusable, match=r"cut off|only the beginning"):
        opened(SEALED[:length])


def test_a_backup_that_was_not_finished_is_refused() -> None:
    with pytest.raises(BackupUnusable, match="cut off"):
        opened(sealed(is_finished=False))


def swap(chunks: list[bytes]) -> list[bytes]:
    return [chunks[1], chunks[0], *chunks[2:]]


def leave_out(chunks: list[bytes]) -> list[bytes]:
    return [chunks[0], *chunks[2:]]


def double(chunks: list[bytes]) -> list[bytes]:
    return [chunks[0], chunks[0], *chunks[1:]]


def append_another(chunks: list[bytes]) -> list[bytes]:
    return [*chunks, b"x" * 17]


def take_from_another(chunks: list[bytes]) -> list[bytes]:
    return [*chunks[:2], chunks_of(sealed())[1][2], chunks[3]]


@pytest.mark.parametrize("change", [swap, leave_out, double, append_another, take_from_another])
def test_chunks_open_in_their_own_place_only(change: Callable[[list[bytes]], list[bytes]]) -> None:
    header, chunks = chunks_of(SEALED)
    with pytest.raises(BackupUnusable, match="does not open"):
        opened(header + b"".join(change(chunks)))


def test_another_key_is_told_from_damage() -> None:
    with pytest.raises(VaultError, match=r"backup\.key: is not the key under which b was sealed"):
        opened(SEALED, OTHER_KEY)


def test_what_is_no_backup_is_refused() -> None:
    with pytest.raises(BackupUnusable, match="no backup"):
        opened(b"PK" + SEALED)
