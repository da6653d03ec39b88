"""What the audit log is to tell of the placement of shards, which other processes change than the registry's writer.

Each change leaves a note in Redis (see `placement`); here it is taken into the audit log, once, however often this is
broken off: appended and removed in one step.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

from actors.errors import StoreError
from actors.placement import NOTES_KEY
from actors.registry.store import RegistryStore, store_errors

# An operator who has asked for a move finds it in the audit log within about this time.
_LOOK_EVERY_S: Final = 1.0
# Notes that are read at once: those of a node that joins a platform of 256 shards.
_PAGE: Final = 256
_LOG: Final = logging.getLogger(__name__)


class PlacementNotes:
    """The notes of changes of the placement, for the registry's one writer."""

    def __init__(self, store: RegistryStore, *, key: str = NOTES_KEY) -> None:
        self._store = store
        self._key = key

    async def take(self) -> int:
        """Take the notes that there are into the audit log, and return how many there were; StoreError as ever."""
        with store_errors():
            notes: Any = await self._store.client.xrange(self._key, count=_PAGE)
        for entry_id, fields in notes:
            # The time at which Redis took the note.
            at_ms = int(entry_id.partition("-")[0])
            entry = {"at": f"{at_ms / 1000:.3f}", **fields}
            await self._store.append(entry, [["XDEL", self._key, entry_id]])
        return len(notes)

    async def keep_taking(self) -> None:
        """Take notes as they come, until cancelled; while Redis does not answer they wait."""
        while True:
            try:
                while await self.take() == _PAGE:
                    pass
            except StoreError as error:
                if not error.retryable:
                    raise
                _LOG.warning("notes of the placement wait: %s", error)
            await asyncio.sleep(_LOOK_EVERY_S)
