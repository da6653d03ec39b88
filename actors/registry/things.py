"""The things of the registry: what they are, which type and groups they have, and how they come and go.

Beside the records stand indexes, kept by the same changes: `things` (names), `typed:TYPE` and `members:GROUP` (names of
the things that have that type or belong to that static group), `removals` (names of those that are being removed),
`changing` (names of those whose twins may be ahead of them).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from actors.errors import DescriptionError, ThingExists, ThingNotFound
from actors.pki import IssuedCertificate
from actors.registry.certificates import Certificates
from actors.registry.records import CertificateRecord, ThingPage, ThingRecord
from actors.registry.store import WALK_PAGE, RegistryStore, changed_meanwhile, decode, encode, store_errors
from twins.errors import InvariantError
from twins.sharding import NamePattern

# Things in one commit: of usual ones some 300 KB, which Redis takes, checks and writes in a few milliseconds.
ADDITION_COUNT_MAX: Final = 500
# Another change of the same thing, at the same moment, is rare; twice in a row does not happen.
_ATTEMPTS: Final = 3


@dataclass(frozen=True)
class Addition:
    """A thing to be registered, with its certificate if it has one."""

    thing: ThingRecord
    certificate: CertificateRecord | None = None

    def listed(self) -> ThingRecord:
        """Return the thing as it will be kept, its certificate among its own."""
        if self.certificate is None:
            return self.thing
        return msgspec.structs.replace(self.thing, certificate_ids=[self.certificate.certificate_id])


class Things:
    """The registered things; see `RegistryStore` for what every method may raise."""

    def __init__(self, store: RegistryStore, certificates: Certificates) -> None:
        self._store = store
        self._certificates = certificates

    async def get(self, name: str) -> ThingRecord:
        """Return a registered thing; ThingNotFound if there is none of that name."""
        record = await self._store.read(self._store.key("thing", name), ThingRecord)
        if record is None:
            raise ThingNotFound(name)
        return record

    async def find(self, names: Sequence[str]) -> dict[str, ThingRecord]:
        """Return those of these things that are registered, by name."""
        return {thing.name: thing for thing in await self._store.read_all("thing", names, ThingRecord)}

    async def page(self, *, after: str = "", limit: int = 100, thing_type: str = "") -> ThingPage:
        """Return up to `limit` things in name order, those that follow the name `after` ('': from the first).

        With `thing_type`, only things of that type.
        """
        # One more than asked tells whether another page follows.
        index = f"typed:{thing_type}" if thing_type else "things"
        names = await self._store.names_after(index, after, limit + 1)
        found = await self._store.read_all("thing", names[:limit], ThingRecord)
        return ThingPage(found, names[limit - 1] if len(names) > limit else None)

    async def members(self, groups: Iterable[str], *, after: str = "", limit: int = 100) -> list[str]:
        """Return up to `limit` names of things that belong to one of these groups, in order, those after `after`."""
        names: set[str] = set()
        for group in groups:
            names.update(await self._store.names_after(f"members:{group}", after, limit))
        return sorted(names)[:limit]

    async def count(self, *, thing_type: str = "") -> int:
        """Return how many things are registered, or how many have a type."""
        index = f"typed:{thing_type}" if thing_type else "things"
        with store_errors():
            return int(await self._store.client.zcard(self._store.key(index)))

    async def first_of(self, pattern: NamePattern, count: int) -> str | None:
        """Return the first registered name that one of `count` devices of the pattern would have; None if free."""
        after = pattern.prefix
        while names := await self._store.names_after("things", after, WALK_PAGE):
            for name in names:
                if not name.startswith(pattern.prefix):
                    return None
                index = pattern.index(name)
                if index is not None and index < count:
                    return name
            after = names[-1]
        return None

    async def add(
        self,
        thing: ThingRecord,
        certificate: IssuedCertificate,
        *,
        by: str = "operator",
    ) -> CertificateRecord:
        """Register a thing together with its certificate, and return the certificate's record.

        ThingExists if the name is taken; DescriptionError if the certificate's key is known already.
        """
        record = thing_certificate(thing, certificate)
        await self.add_all([Addition(thing, record)], by=by)
        return record

    async def add_all(self, additions: Sequence[Addition], *, by: str) -> None:
        """Register things, `ADDITION_COUNT_MAX` at most, in one change: all or, if one cannot be, none.

        ThingExists or DescriptionError names the first that cannot be. Whether their types and groups exist is the
        caller's to have checked.
        """
        if not additions:
            return
        conditions: list[tuple[str, str]] = []
        commands: list[list[str]] = []
        for addition in additions:
            thing = addition.listed()
            conditions.append((self._store.key("thing", thing.name), ""))
            commands += self._commands(None, thing)
            if addition.certificate is not None:
                key = self._store.key("certificate", addition.certificate.certificate_id)
                conditions.append((key, ""))
                commands += self._certificates.commands(None, addition.certificate)
        subject = " ".join(addition.thing.name for addition in additions)
        failed = await self._store.change("thing.create", subject, commands, conditions=conditions, by=by)
        if failed:
            key = conditions[failed - 1][0]
            name = key.rpartition(self._store.key("thing", ""))[2]
            if key == self._store.key("thing", name):
                raise ThingExists(name, "is registered already; delete it first, or choose another name")
            problem = "its key has been certified before; make a new key for each device"
            raise DescriptionError("the certificate signing request", problem)

    async def change(
        self, name: str, changed: Callable[[ThingRecord], ThingRecord], *, action: str, by: str
    ) -> ThingRecord:
        """Put what `changed` makes of a thing in its place, and return it; ThingNotFound if there is none.

        `changed` may be called again with a newer record, and may raise what forbids the change.
        """
        for _ in range(_ATTEMPTS):
            text, before = await self._read(name)
            after = changed(before)
            if after == before:
                return before
            conditions = [(self._store.key("thing", name), text)]
            commands = self._commands(before, after)
            if not await self._store.change(action, name, commands, conditions=conditions, by=by):
                return after
        raise changed_meanwhile(f"thing {name!r}")

    async def mark_changing(self, name: str, *, by: str) -> None:
        """Note that the twin of a thing is about to be told what the thing is going to be."""
        commands = [["ZADD", self._store.key("changing"), "0", name]]
        await self._store.change("thing.mark", name, commands, by=by)

    async def unmark_changing(self, name: str, *, by: str) -> None:
        """Note that a thing and its twin say the same."""
        commands = [["ZREM", self._store.key("changing"), name]]
        await self._store.change("thing.unmark", name, commands, by=by)

    async def changing(self) -> list[str]:
        """Return the names of the things whose twins may have been told what the things did not become."""
        return [name async for name in self._store.all_names("changing")]

    async def leave_all(self, names: Sequence[str], group: str, *, by: str) -> None:
        """Take things, `ADDITION_COUNT_MAX` at most, out of a static group in one change.

        StoreError (retryable) if one of them was changed meanwhile.
        """
        conditions: list[tuple[str, str]] = []
        commands: list[list[str]] = []
        for name in names:
            text, before = await self._read(name)
            conditions.append((self._store.key("thing", name), text))
            remaining = [other for other in before.groups if other != group]
            commands += self._commands(before, msgspec.structs.replace(before, groups=remaining))
        subject = " ".join([group, *names])
        if await self._store.change("group.empty", subject, commands, conditions=conditions, by=by):
            raise changed_meanwhile(f"a thing of group {group!r}")

    async def begin_removal(self, name: str, *, by: str = "operator") -> list[CertificateRecord]:
        """Mark a thing DELETING and its certificates REVOKED, and return these; done twice, nothing changes.

        ThingNotFound if there is none; StoreError (retryable) if it was changed meanwhile.
        """
        # A change builds on the very text that it read, whatever version of this program wrote it.
        text, thing = await self._read(name)
        certificates = await self._certificates.of_thing(thing)
        revoked = [msgspec.structs.replace(certificate, status="REVOKED") for certificate in certificates]
        if thing.status == "DELETING":
            return revoked
        commands = [
            *self._commands(thing, msgspec.structs.replace(thing, status="DELETING")),
            ["ZADD", self._store.key("removals"), "0", name],
        ]
        for before, after in zip(certificates, revoked, strict=True):
            commands += self._certificates.commands(before, after)
        conditions = [(self._store.key("thing", name), text)]
        if await self._store.change("thing.revoke", name, commands, conditions=conditions, by=by):
            raise changed_meanwhile(f"thing {name!r}")
        return revoked

    async def removals(self) -> list[str]:
        """Return the names of the things whose removal has begun and not ended."""
        return [name async for name in self._store.all_names("removals")]

    async def remove(self, name: str, *, by: str = "operator") -> None:
        """Forget a thing that is DELETING, in its groups too; its revoked certificates stay known.

        ThingNotFound if there is none.
        """
        thing = await self.get(name)
        if thing.status != "DELETING":
            raise InvariantError(f"thing {name!r} is to be forgotten while its certificates are in force")
        commands = [["DEL", self._store.key("thing", name)]]
        commands += [["ZREM", index, name] for index in self._indexes(thing)]
        commands += [["ZREM", self._store.key(index), name] for index in ("removals", "changing")]
        await self._store.change("thing.delete", name, commands, by=by)

    async def _read(self, name: str) -> tuple[str, ThingRecord]:
        key = self._store.key("thing", name)
        text = await self._store.text(key)
        if not text:
            raise ThingNotFound(name)
        return text, decode(text, ThingRecord, key=key)

    def _commands(self, before: ThingRecord | None, after: ThingRecord) -> list[list[str]]:
        """Return what keeps `after` in the place of `before` (None: it is new), with all indexes."""
        old = set() if before is None else set(self._indexes(before))
        new = dict.fromkeys(self._indexes(after))
        return [
            ["SET", self._store.key("thing", after.name), encode(after)],
            *(["ZADD", index, "0", after.name] for index in new if index not in old),
            *(["ZREM", index, after.name] for index in sorted(old) if index not in new),
        ]

    def _indexes(self, thing: ThingRecord) -> Iterator[str]:
        yield self._store.key("things")
        if thing.thing_type:
            yield self._store.key(f"typed:{thing.thing_type}")
        for group in thing.groups:
            yield self._store.key(f"members:{group}")


def thing_certificate(thing: ThingRecord, certificate: IssuedCertificate) -> CertificateRecord:
    """Return the record of a certificate that was issued for a thing about to be registered."""
    return CertificateRecord(
        certificate_id=certificate.certificate_id,
        thing_name=thing.name,
        common_name=certificate.common_name,
        serial=str(certificate.serial),
        pem=certificate.certificate_pem,
        created_at_s=thing.created_at_s,
        not_after_s=int(certificate.expires_at_s),
    )


def updated(
    thing: ThingRecord, *, attributes: Mapping[str, str] | None, thing_type: str | None, model: str | None
) -> ThingRecord:
    """Return a thing with other attributes, type or model (None: as they are), and one version on."""
    after = msgspec.structs.replace(
        thing,
        attributes=thing.attributes if attributes is None else dict(attributes),
        thing_type=thing.thing_type if thing_type is None else thing_type,
        model=thing.model if model is None else model,
    )
    return msgspec.structs.replace(after, version=thing.version + 1)
