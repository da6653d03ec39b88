"""The thing groups of the registry, static and dynamic, and their hierarchy.

Who belongs to a static group is the things' own index (see `things`); who belongs to a dynamic one follows from its
query whenever somebody asks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

from actors.errors import DescriptionError, RecordExists, RecordNotFound
from actors.registry.records import ThingGroupRecord
from actors.registry.store import RegistryStore, changed_meanwhile, encode

# The bounds of AWS IoT: static groups of one thing, groups from the root down, direct children of a group.
GROUPS_OF_THING_MAX: Final = 10
GROUP_DEPTH_MAX: Final = 7
CHILD_COUNT_MAX: Final = 100
_KIND: Final = "thing group"


class ThingGroups:
    """The thing groups; see `RegistryStore` for what every method may raise."""

    def __init__(self, store: RegistryStore) -> None:
        self._store = store

    async def get(self, name: str) -> ThingGroupRecord:
        """Return a group, static or dynamic; RecordNotFound if there is none of that name."""
        record = await self._store.read(self._store.key("thing-group", name), ThingGroupRecord)
        if record is None:
            raise RecordNotFound(_KIND, name)
        return record

    async def names(self) -> list[str]:
        """Return the names of all groups, in order."""
        return [name async for name in self._store.all_names("thing-groups")]

    async def roots(self) -> list[str]:
        """Return the names of the groups that have no parent, in order."""
        records = await self._store.read_all("thing-group", await self.names(), ThingGroupRecord)
        return [record.name for record in records if not record.parent]

    async def dynamic(self) -> list[ThingGroupRecord]:
        """Return the groups with a query, in name order."""
        names = [name async for name in self._store.all_names("dynamic-groups")]
        return await self._store.read_all("thing-group", names, ThingGroupRecord)

    async def children(self, name: str) -> list[str]:
        """Return the names of the groups right below a group, in order."""
        return [child async for child in self._store.all_names(f"subgroups:{name}")]

    async def descendants(self, name: str) -> list[str]:
        """Return the names of all groups below a group, in order."""
        found: list[str] = []
        waiting = await self.children(name)
        while waiting:
            found += waiting
            waiting = [below for child in waiting for below in await self.children(child)]
        return sorted(found)

    async def ancestors(self, group: ThingGroupRecord) -> list[ThingGroupRecord]:
        """Return the groups above a group, the root first, its parent last."""
        found: list[ThingGroupRecord] = []
        while group.parent:
            group = await self.get(group.parent)
            found.append(group)
        return found[::-1]

    async def check_membership(self, names: Collection[str]) -> list[ThingGroupRecord]:
        """Return the groups of these names, all of which one thing may belong to at once.

        RecordNotFound if one does not exist; DescriptionError if one is dynamic, if there are too many, or if two of
        them have the same root.
        """
        if len(names) > GROUPS_OF_THING_MAX:
            problem = f"{len(names)} are too many for one thing; {GROUPS_OF_THING_MAX} at most"
            raise DescriptionError("thing groups", problem)
        by_root: dict[str, str] = {}
        found = []
        for name in names:
            group = await self.get(name)
            if group.is_dynamic:
                problem = "is dynamic: its query says who belongs to it; name a static group"
                raise DescriptionError(f"{_KIND} {name!r}", problem)
            root = next(iter(await self.ancestors(group)), group).name
            other = by_root.setdefault(root, name)
            if other != name:
                problem = (
                    f"stands below {root!r} as {other!r} does, and a thing belongs to one of them at most"
                )
                raise DescriptionError(f"{_KIND} {name!r}", problem)
            found.append(group)
        return found

    async def add(self, record: ThingGroupRecord, *, by: str) -> None:
        """Keep a new group; RecordExists if its name is taken, RecordNotFound if its parent does not exist.

        DescriptionError if the parent is dynamic, has too many children, or stands too deep.
        """
        if record.parent:
            await self._check_parent(record.parent)
        key = self._store.key("thing-group", record.name)
        commands = [["SET", key, encode(record)]]
        commands += [["ZADD", index, "0", record.name] for index in self._indexes(record)]
        if await self._store.change("group.create", record.name, commands, conditions=[(key, "")], by=by):
            raise RecordExists(_KIND, record.name)

    async def change(self, before: ThingGroupRecord, after: ThingGroupRecord, *, by: str) -> None:
        """Put `after` in the place of `before`, parent and kind unchanged; StoreError if that was changed meanwhile."""
        key = self._store.key("thing-group", before.name)
        subject = f"{_KIND} {before.name!r}"
        conditions = [(key, await self._store.text_of(key, before, subject))]
        commands = [["SET", key, encode(after)]]
        if await self._store.change("group.update", before.name, commands, conditions=conditions, by=by):
            raise changed_meanwhile(subject)

    async def remove(self, record: ThingGroupRecord, *, by: str) -> None:
        """Forget a group that has neither members nor children (DescriptionError)."""
        if await self.children(record.name):
            problem = "has child groups; delete them first"
            raise DescriptionError(f"{_KIND} {record.name!r}", problem)
        key = self._store.key("thing-group", record.name)
        subject = f"{_KIND} {record.name!r}"
        conditions = [(key, await self._store.text_of(key, record, subject))]
        commands = [["DEL", key], *(["ZREM", index, record.name] for index in self._indexes(record))]
        if await self._store.change("group.delete", record.name, commands, conditions=conditions, by=by):
            raise changed_meanwhile(subject)

    def _indexes(self, record: ThingGroupRecord) -> Iterable[str]:
        yield self._store.key("thing-groups")
        if record.is_dynamic:
            yield self._store.key("dynamic-groups")
        if record.parent:
            yield self._store.key(f"subgroups:{record.parent}")

    async def _check_parent(self, name: str) -> None:
        parent = await self.get(name)
        problem = ""
        if parent.is_dynamic:
            problem = "is dynamic and takes no child groups; name a static one"
        elif len(await self.ancestors(parent)) + 2 > GROUP_DEPTH_MAX:
            problem = f"stands at the lowest of {GROUP_DEPTH_MAX} levels; name one further up"
        elif len(await self.children(name)) >= CHILD_COUNT_MAX:
            problem = f"has {CHILD_COUNT_MAX} child groups already, which is the most; name another"
        if problem:
            raise DescriptionError(f"parent group {name!r}", problem)
