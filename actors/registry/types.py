"""The thing types of the registry. Which things have one is the things' own index; see `things`."""

from __future__ import annotations

from typing import Final

from actors.errors import DescriptionError, RecordExists, RecordNotFound
from actors.registry.records import ThingTypeRecord
from actors.registry.store import RegistryStore, changed_meanwhile, encode

_KIND: Final = "thing type"


class ThingTypes:
    """The thing types; see `RegistryStore` for what every method may raise."""

    def __init__(self, store: RegistryStore) -> None:
        self._store = store

    async def get(self, name: str) -> ThingTypeRecord:
        """Return a thing type; RecordNotFound if there is none of that name."""
        record = await self._store.read(self._store.key("thing-type", name), ThingTypeRecord)
        if record is None:
            raise RecordNotFound(_KIND, name)
        return record

    async def for_new_things(self, name: str) -> ThingTypeRecord:
        """Return a type that new things may be given; RecordNotFound, or DescriptionError if it is deprecated."""
        record = await self.get(name)
        if record.deprecated_at_s:
            problem = "is deprecated; take another type, or undo its deprecation"
            raise DescriptionError(f"{_KIND} {name!r}", problem)
        return record

    async def page(self, *, after: str = "", limit: int = 100) -> tuple[list[ThingTypeRecord], str | None]:
        """Return up to `limit` types in name order that follow `after`, and after which name to ask for more."""
        names = await self._store.names_after("thing-types", after, limit + 1)
        found = await self._store.read_all("thing-type", names[:limit], ThingTypeRecord)
        return found, names[limit - 1] if len(names) > limit else None

    async def add(self, record: ThingTypeRecord, *, by: str) -> None:
        """Keep a new type; RecordExists if its name is taken."""
        key = self._store.key("thing-type", record.name)
        commands = [["SET", key, encode(record)], ["ZADD", self._store.key("thing-types"), "0", record.name]]
        if await self._store.change("type.create", record.name, commands, conditions=[(key, "")], by=by):
            raise RecordExists(_KIND, record.name)

    async def change(self, before: ThingTypeRecord, after: ThingTypeRecord, *, action: str, by: str) -> None:
        """Put `after` in the place of `before`; StoreError (retryable) if that was changed meanwhile."""
        key = self._store.key("thing-type", before.name)
        text = await self._store.text_of(key, before, f"{_KIND} {before.name!r}")
        if await self._store.change(
            action, before.name, [["SET", key, encode(after)]], conditions=[(key, text)], by=by
        ):
            raise changed_meanwhile(f"{_KIND} {before.name!r}")

    async def remove(self, record: ThingTypeRecord, *, by: str) -> None:
        """Forget a type that no thing has; StoreError (retryable) if it was changed meanwhile."""
        key = self._store.key("thing-type", record.name)
        text = await self._store.text_of(key, record, f"{_KIND} {record.name!r}")
        commands = [["DEL", key], ["ZREM", self._store.key("thing-types"), record.name]]
        if await self._store.change("type.delete", record.name, commands, conditions=[(key, text)], by=by):
            raise changed_meanwhile(f"{_KIND} {record.name!r}")
