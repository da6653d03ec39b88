"""The commands of the registry: payloads under a name, to be sent to devices."""

from __future__ import annotations

import msgspec

from actors.errors import RecordExists, RecordNotFound
from actors.registry.store import RegistryStore, encode


class CommandRecord(msgspec.Struct, frozen=True):
    """A command; `content` is Base64, times in seconds since the epoch."""

    name: str
    content: str
    content_type: str
    created_at_s: float
    display_name: str = ""
    description: str = ""


class Commands:
    """The commands; see `RegistryStore` for what every method may raise."""

    def __init__(self, store: RegistryStore) -> None:
        self._store = store

    async def get(self, name: str) -> CommandRecord:
        """Return a command; RecordNotFound if there is none of that name."""
        record = await self._store.read(self._store.key("command", name), CommandRecord)
        if record is None:
            raise RecordNotFound("command", name)
        return record

    async def page(self, *, after: str, limit: int) -> list[CommandRecord]:
        """Return up to `limit` commands in name order, those after a name."""
        names = await self._store.names_after("commands", after, limit)
        return await self._store.read_all("command", names, CommandRecord)

    async def add(self, record: CommandRecord, *, by: str) -> None:
        """Keep a new command; RecordExists if its name is taken."""
        key = self._store.key("command", record.name)
        commands = [["SET", key, encode(record)], ["ZADD", self._store.key("commands"), "0", record.name]]
        if await self._store.change("command.create", record.name, commands, conditions=[(key, "")], by=by):
            raise RecordExists("command", record.name)

    async def remove(self, name: str, *, by: str) -> None:
        """Forget a command; forgetting one that is not there changes nothing."""
        commands = [
            ["DEL", self._store.key("command", name)],
            ["ZREM", self._store.key("commands"), name],
        ]
        await self._store.change("command.delete", name, commands, by=by)
