"""What the bridge has taken from the broker, by packet id: a memory that outlives the bridge.

A broker that is killed forgets what it had not saved, acknowledgements among it, and delivers again what the bridge has
dealt with. Its packet id and its content are all that tells such a message, and only who knows what was taken before
can see that it is one. So what is taken is noted in a file beside the broker's own, mapped into memory: a note costs no
call of the system, and what was noted when the process is killed stands in the file.

Each message has a **place**, a number that rises in the order in which messages are delivered for the first time. One
that is delivered again has the place that it had. It is the same message where packet id and content are the same, and

- the broker says that it delivers it again, or
- the broker was killed since (its starts have numbers) and delivers what it had stored. What it took in after its start
  is new, though it may bear the packet id and the content of something that was forgotten: the broker's first word
  after its start stands between the two. Also new is what comes far behind all that was taken, or matches a note so old
  that its packet id has come round since.

A message that was taken and not finished may have been carried out or not. Its place tells the shard (see
`twins.places`); it matters only where the broker may have forgotten what followed, which is told here.

The file holds what belongs to one session of one broker, and is lost where the broker's own store is lost. What kills
processes takes nothing of it. Where the whole machine dies, the disk has what was noted until `sync` last returned;
what was noted after that, and stands in what the broker had stored, is taken for new: it is carried out again, and may
take the place of something later. To wait for the disk before each acknowledgement would rule that out only if the
broker did so, too, and mosquitto stores what has changed every second or two.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from actors.errors import BrokerError
from twins.places import PLACES_REMEMBERED

# Of the file: eight bytes that say what it is, a head, and two numbers for each packet id, zero included. The layout is
# the machine's own.
_MAGIC: Final = int.from_bytes(b"taken 1\n", "little")
_KIND, _MEMORY, _LAST, _VOID, _DOUBT, _START = range(6)
_HEAD_CELLS: Final = 8
_CELL_BYTES: Final = 8
_PACKET_IDS: Final = 1 << 16
FILE_BYTES: Final = _CELL_BYTES * (_HEAD_CELLS + 2 * _PACKET_IDS)
# Beside the digest of 32 bits in the second number of a packet id.
_FINISHED: Final = 1 << 32
_DIGEST_MASK: Final = _FINISHED - 1
# How many messages may come for the first time before nothing that comes can have been taken by a former bridge. Packet
# ids come round after 65,535, so with what is remembered it stays below that, by 9,000 for what has a packet id and no
# place: markers, and what the broker dropped.
_FIRST_TIMES_MAX: Final = 16_000


class Taken(NamedTuple):
    """What is known of a message that was taken before.

    `is_finished`: dealt with, with all that follows from it. `is_doubtful`: the broker may have forgotten what it
    delivered after it.
    """

    place: int
    is_finished: bool
    is_doubtful: bool


class TakenMessages:
    """The messages that were taken, the last one under each packet id."""

    def __init__(
        self,
        content: mmap.mmap | bytearray | None = None,
        *,
        broker_start: Callable[[], int | None] = lambda: None,
        memory: int | None = None,
    ) -> None:
        """Take up what `content` holds, FILE_BYTES of it; or keep all in this process.

        `broker_start` returns another number after each start of the broker, or None: then it may have been killed at
        any time. `memory` names this memory if it is a new one; else it is named by chance.
        """
        self._view = memoryview(bytearray(FILE_BYTES) if content is None else content)
        self._cells = self._view.cast("Q")
        self._broker_start = broker_start
        if self._cells[_KIND] != _MAGIC:
            self._view[:] = bytes(FILE_BYTES)
            self._cells[_MEMORY] = secrets.randbits(32) if memory is None else memory
            self._cells[_KIND] = _MAGIC
        # Of the file, if there is one.
        self._descriptor: int | None = None
        self._start: int | None = None
        self._last_before = self._cells[_LAST]
        # Whether what comes may have been taken though the broker does not say so.
        self.is_restored = False

    @classmethod
    def open(cls, file: Path, *, broker_start: Callable[[], int | None]) -> TakenMessages:
        """Return what a file holds, which is made if it is not there; BrokerError while another process has it open."""
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_size != FILE_BYTES:
                os.ftruncate(descriptor, 0)
            # With all its blocks: a note for which a full disk has no room would be the end of the process (SIGBUS).
            os.posix_fallocate(descriptor, 0, FILE_BYTES)
            taken = cls(mmap.mmap(descriptor, FILE_BYTES), broker_start=broker_start)
            taken._descriptor = os.dup(descriptor)
            return taken
        except BlockingIOError:
            raise BrokerError(
                f"another bridge still has {file} open; it must end before this one may begin", retryable=True
            ) from None
        except OSError as error:
            raise BrokerError(
                f"{file} can't be made: {error}; make room on its disk", retryable=True
            ) from error
        finally:
            # What is mapped holds the lock until it is closed, too.
            os.close(descriptor)

    def sync(self) -> None:
        """Return when the disk has all that was noted before; OSError if it fails. From any thread."""
        if self._descriptor is not None:
            os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Let go of the file; nothing may be asked or noted any more."""
        self._cells.release()
        content = self._view.obj
        self._view.release()
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
        if isinstance(content, mmap.mmap):
            content.close()

    @property
    def memory(self) -> int:
        """Return the number that names this memory: places mean nothing beside those of another."""
        return self._cells[_MEMORY]

    def connected(self, *, session_present: bool) -> None:
        """Begin with what a new connection brings; without a session nothing of what was taken comes again."""
        cells = self._cells
        self._start = self._broker_start()
        self._last_before = cells[_LAST]
        self.is_restored = session_present and (self._start is None or self._start != cells[_START])
        if not session_present:
            cells[_VOID] = cells[_LAST]
        if self.is_restored:
            # What was taken until now may have been followed by what the broker has forgotten.
            cells[_DOUBT] = cells[_LAST]
        else:
            self.caught_up()

    def caught_up(self) -> None:
        """Learn that all that the broker had stored has come: what was not taken by now is new."""
        self.is_restored = False
        self._cells[_START] = self._start or 0

    def add(self, packet_id: int, digest: int) -> int:
        """Note a message that has come for the first time, by a digest of 32 bits, and return its place."""
        cells, cell = self._cells, _HEAD_CELLS + 2 * packet_id
        place = cells[_LAST] + 1
        cells[_LAST] = place
        # Whenever the process is killed, no note is left that mixes two messages.
        cells[cell] = 0
        cells[cell + 1] = digest
        cells[cell] = place
        return place

    def find(self, packet_id: int, digest: int) -> Taken | None:
        """Return what is known of a message that may have been taken; None if it was not."""
        cells, cell = self._cells, _HEAD_CELLS + 2 * packet_id
        place, found = cells[cell], cells[cell + 1]
        if place <= max(cells[_VOID], self._last_before - PLACES_REMEMBERED):
            return None
        if found & _DIGEST_MASK != digest or cells[_LAST] - self._last_before > _FIRST_TIMES_MAX:
            return None
        return Taken(place, found >= _FINISHED, place <= cells[_DOUBT])

    def finish(self, packet_id: int, place: int) -> None:
        """Note that a message was dealt with, unless its packet id is another's by now."""
        cells, cell = self._cells, _HEAD_CELLS + 2 * packet_id
        if cells[cell] == place:
            cells[cell + 1] |= _FINISHED
