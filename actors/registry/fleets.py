"""The standing simulated fleets of the registry."""

from __future__ import annotations

from typing import Literal

import msgspec

from actors.errors import FleetExists, FleetNotFound
from actors.registry.records import FleetRecord
from actors.registry.store import RegistryStore, decode, encode


class Fleets:
    """The standing fleets; see `RegistryStore` for what every method may raise."""

    def __init__(self, store: RegistryStore) -> None:
        self._store = store

    async def get(self, name: str) -> FleetRecord:
        """Return a standing fleet; FleetNotFound if there is none of that name."""
        record = await self._store.read(self._store.key("fleet", name), FleetRecord)
        if record is None:
            raise FleetNotFound(name)
        return record

    async def all(self) -> list[FleetRecord]:
        """Return all standing fleets in name order."""
        names = [name async for name in self._store.all_names("fleets")]
        return await self._store.read_all("fleet", names, FleetRecord)

    async def add(self, fleet: FleetRecord, *, by: str = "operator") -> None:
        """Keep a new standing fleet; FleetExists if the name is taken."""
        name = fleet.group.name
        key = self._store.key("fleet", name)
        commands = [
            ["SET", key, encode(fleet)],
            ["ZADD", self._store.key("fleets"), "0", name],
        ]
        if await self._store.change("fleet.create", name, commands, conditions=[(key, "")], by=by):
            raise FleetExists(name, "exists already; delete it first, or choose another name")

    async def set_status(
        self, name: str, status: Literal["ACTIVE", "DELETING"], *, by: str = "operator"
    ) -> FleetRecord:
        """Change the status of a standing fleet and return the changed record; FleetNotFound if there is none."""
        key = self._store.key("fleet", name)
        text = await self._store.text(key)
        if not text:
            raise FleetNotFound(name)
        fleet = decode(text, FleetRecord, key=key)
        changed = msgspec.structs.replace(fleet, status=status)
        if changed != fleet:
            commands = [["SET", key, encode(changed)]]
            action = f"fleet.{status.lower()}"
            if await self._store.change(action, name, commands, conditions=[(key, text)], by=by):
                raise FleetNotFound(name)
        return changed

    async def remove(self, name: str, *, by: str = "operator") -> None:
        """Forget a standing fleet; forgetting one that is not there changes nothing."""
        commands = [
            ["DEL", self._store.key("fleet", name)],
            ["ZREM", self._store.key("fleets"), name],
        ]
        await self._store.change("fleet.delete", name, commands, by=by)
