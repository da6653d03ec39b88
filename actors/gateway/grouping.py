"""Thing types and thing groups: how they come, change and go, and how things join and leave groups.

Everything here holds the turn that whoever creates things holds too: so a type is not deprecated, and a group not
deleted, while a thing is being given it.
"""

from __future__ import annotations

from asyncio import Lock
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from actors.errors import DescriptionError, RecordExists, RecordNotFound, RecordVersionConflict, ThingNotFound
from actors.gateway.registry_events import RegistryEvents
from actors.registry.records import (
    ThingGroupRecord,
    ThingRecord,
    ThingTypeRecord,
    check_thing_group,
    check_thing_type,
    new_id,
)
from actors.registry.registry import Registry
from actors.registry.things import ADDITION_COUNT_MAX
from twins.clock import Clock
from twins.query import parse

# AWS IoT's: a type that was deprecated by mistake is not deleted by the same mistake.
TYPE_DELETION_DELAY_S: Final = 300


class TypeOffice:
    """Creates, changes and deletes thing types."""

    def __init__(self, registry: Registry, events: RegistryEvents, *, turn: Lock, clock: Clock) -> None:
        self._registry = registry
        self._events = events
        self._turn = turn
        self._clock = clock

    async def create(
        self, name: str, *, description: str, searchable_attributes: list[str], by: str
    ) -> ThingTypeRecord:
        """Return a new type, or the one that is there if it is just so; RecordExists if it is another."""
        record = ThingTypeRecord(
            name, new_id(), int(self._clock.now_s()), description, list(searchable_attributes)
        )
        check_thing_type(record)
        async with self._turn:
            try:
                await self._registry.types.add(record, by=by)
            except RecordExists:
                known = await self._registry.types.get(name)
                if (known.description, known.searchable_attributes) == (
                    record.description,
                    record.searchable_attributes,
                ):
                    return known
                raise
            self._events.type_changed("CREATED", record)
        return record

    async def update(
        self, name: str, *, description: str | None, searchable_attributes: list[str] | None, by: str
    ) -> None:
        """Change what a type says (None: as it is); RecordNotFound if there is none."""
        async with self._turn:
            before = await self._registry.types.get(name)
            after = msgspec.structs.replace(
                before,
                description=before.description if description is None else description,
                searchable_attributes=(
                    before.searchable_attributes if searchable_attributes is None else searchable_attributes
                ),
            )
            check_thing_type(after)
            await self._registry.types.change(before, after, action="type.update", by=by)
            self._events.type_changed("UPDATED", after)

    async def deprecate(self, name: str, *, is_undone: bool, by: str) -> None:
        """Let no new things have a type or, undone, let them again; RecordNotFound if there is none."""
        async with self._turn:
            before = await self._registry.types.get(name)
            at_s = 0 if is_undone else before.deprecated_at_s or int(self._clock.now_s())
            after = msgspec.structs.replace(before, deprecated_at_s=at_s)
            if after != before:
                action = "type.undeprecate" if is_undone else "type.deprecate"
                await self._registry.types.change(before, after, action=action, by=by)
                self._events.type_changed("UPDATED", after)

    async def delete(self, name: str, *, by: str) -> None:
        """Forget a type that was deprecated long enough ago and that no thing has, else DescriptionError."""
        async with self._turn:
            record = await self._registry.types.get(name)
            problem = ""
            if not record.deprecated_at_s:
                problem = "is in use; deprecate it first"
            elif self._clock.now_s() < record.deprecated_at_s + TYPE_DELETION_DELAY_S:
                problem = (
                    f"was deprecated just now; delete it {TYPE_DELETION_DELAY_S // 60} minutes after that"
                )
            elif count := await self._registry.things.count(thing_type=name):
                problem = f"is the type of {count} things; give them another, or none, first"
            if problem:
                raise DescriptionError(f"thing type {name!r}", problem)
            await self._registry.types.remove(record, by=by)
            self._events.type_changed("DELETED", record)


@dataclass(frozen=True)
class GroupDescription:
    """What is said of a group that is to be created: dynamic with a `query`, a root without a `parent`."""

    name: str
    parent: str = ""
    description: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    query: str = ""


@dataclass(frozen=True)
class GroupChange:
    """What is to be changed of a group (None: nothing); attributes as in `enrolment.ThingChange`."""

    description: str | None = None
    attributes: Mapping[str, str] | None = None
    is_merge: bool = False
    query: str | None = None

    def applied(self, group: ThingGroupRecord) -> ThingGroupRecord:
        """Return the group as it is after the change, one version on."""
        attributes = group.attributes
        if self.attributes is not None:
            whole = {**attributes, **self.attributes} if self.is_merge else self.attributes
            attributes = {key: value for key, value in whole.items() if value}
        return msgspec.structs.replace(
            group,
            description=group.description if self.description is None else self.description,
            attributes=attributes,
            query=group.query if self.query is None else self.query,
            version=group.version + 1,
        )


class GroupOffice:
    """Creates, changes and deletes thing groups, and moves things in and out of the static ones."""

    def __init__(self, registry: Registry, events: RegistryEvents, *, turn: Lock, clock: Clock) -> None:
        self._registry = registry
        self._events = events
        self._turn = turn
        self._clock = clock

    async def create(self, wanted: GroupDescription, *, by: str) -> ThingGroupRecord:
        """Return a new group, dynamic with a query, or the one that is there if it is just so.

        RecordExists if another is there, RecordNotFound for the parent, DescriptionError for what breaks a rule;
        the query's own errors for one that cannot be read.
        """
        if wanted.query:
            parse(wanted.query)
        record = ThingGroupRecord(
            wanted.name,
            new_id(),
            int(self._clock.now_s()),
            wanted.parent,
            wanted.description,
            dict(wanted.attributes),
            query=wanted.query,
        )
        check_thing_group(record)
        async with self._turn:
            try:
                await self._registry.groups.add(record, by=by)
            except RecordExists:
                known = await self._registry.groups.get(record.name)
                if _is_same(known, record):
                    return known
                raise
            self._events.group_changed("CREATED", record, await self._registry.groups.ancestors(record))
        return record

    async def update(
        self, name: str, change: GroupChange, *, is_dynamic: bool, expected_version: int | None, by: str
    ) -> ThingGroupRecord:
        """Return a group after a change; RecordNotFound, RecordVersionConflict, DescriptionError for the other kind."""
        if change.query is not None:
            parse(change.query)
        async with self._turn:
            before = await self._of_kind(name, is_dynamic=is_dynamic, expected_version=expected_version)
            after = change.applied(before)
            check_thing_group(after)
            await self._registry.groups.change(before, after, by=by)
            self._events.group_changed("UPDATED", after, await self._registry.groups.ancestors(after))
        return after

    async def delete(self, name: str, *, is_dynamic: bool, expected_version: int | None, by: str) -> None:
        """Forget a group; things leave it first. One that is not there is forgotten already.

        DescriptionError if it has child groups. With very many members cut off between, some have left; the next
        attempt goes on.
        """
        async with self._turn:
            try:
                group = await self._of_kind(name, is_dynamic=is_dynamic, expected_version=expected_version)
            except RecordNotFound:
                return
            if await self._registry.groups.children(name):
                raise DescriptionError(f"thing group {name!r}", "has child groups; delete them first")
            while members := await self._registry.things.members([name], limit=ADDITION_COUNT_MAX):
                things = await self._registry.things.find(members)
                await self._registry.things.leave_all(members, name, by=by)
                self._events.memberships("REMOVED", things.values(), group)
            ancestors = await self._registry.groups.ancestors(group)
            await self._registry.groups.remove(group, by=by)
            self._events.group_changed("DELETED", group, ancestors)

    async def move(
        self, thing_name: str, *, joined: Collection[str] = (), left: Collection[str] = (), by: str
    ) -> None:
        """Let a thing join and leave static groups, all in one change; those it is in, or not in, change nothing.

        ThingNotFound, RecordNotFound; DescriptionError if it may not belong to all the groups that result.
        """
        async with self._turn:
            thing = await self._registry.things.get(thing_name)
            if thing.status == "DELETING":
                raise ThingNotFound(thing_name)
            groups = {name: await self._registry.groups.get(name) for name in {*joined, *left}}
            for name in left:
                if groups[name].is_dynamic:
                    problem = "is dynamic: its query says who belongs to it; change the query"
                    raise DescriptionError(f"thing group {name!r}", problem)
            names = sorted(({*thing.groups} - {*left}) | {*joined})
            await self._registry.groups.check_membership(names)

            def moved(before: ThingRecord) -> ThingRecord:
                return msgspec.structs.replace(before, groups=names)

            await self._registry.things.change(thing_name, moved, action="thing.move", by=by)
            for name in sorted({*names} - {*thing.groups}):
                self._events.memberships("ADDED", [thing], groups[name])
            for name in sorted({*thing.groups} - {*names}):
                self._events.memberships("REMOVED", [thing], groups[name])

    async def _of_kind(
        self, name: str, *, is_dynamic: bool, expected_version: int | None
    ) -> ThingGroupRecord:
        group = await self._registry.groups.get(name)
        if group.is_dynamic != is_dynamic:
            problem = f"is {'dynamic' if group.is_dynamic else 'static'}; use the call for those"
            raise DescriptionError(f"thing group {name!r}", problem)
        if expected_version is not None and expected_version != group.version:
            subject = f"thing group {name!r}"
            raise RecordVersionConflict(subject, expected=expected_version, current=group.version)
        return group


def _is_same(known: ThingGroupRecord, record: ThingGroupRecord) -> bool:
    names = ("parent", "description", "attributes", "query")
    return all(getattr(known, name) == getattr(record, name) for name in names)
