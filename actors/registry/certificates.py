"""The certificates of the registry: whose they are, whether they are in force, and which are on the revocation list.

Beside the records stand indexes, kept by the same changes: `certificates:KIND` (ids), `pending` (ids of those that
wait for their thing), `acl` (common name -> thing name, for those in force whose common name is their id), `revoked`
(serial -> when, all that the revocation list must hold, also of certificates long forgotten), `replacing` (common name
-> id, of those in force whose first use retires another), and for applications and claims `holder:COMMON-NAME` (the id
of the certificate in force, so that there is one at most).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import msgspec

from actors.errors import CertificateNameTaken, DescriptionError, StoreError, ThingNotFound
from actors.registry.records import CertificateKind, CertificateRecord, ThingRecord
from actors.registry.store import (
    LAYOUT,
    WALK_PAGE,
    RegistryStore,
    awaited,
    decode,
    encode,
    store_errors,
)


class Certificates:
    """The certificates that were ever registered; see `RegistryStore` for what every method may raise."""

    def __init__(self, store: RegistryStore) -> None:
        self._store = store

    async def of_thing(self, thing: ThingRecord) -> list[CertificateRecord]:
        """Return the certificates of a thing, in the order of their issue."""
        return await self._store.read_all("certificate", thing.certificate_ids, CertificateRecord)

    async def get(self, certificate_id: str) -> CertificateRecord | None:
        """Return the certificate of that id, revoked or not, also of a thing long removed; None if unknown."""
        return await self._store.read(self._store.key("certificate", certificate_id), CertificateRecord)

    async def known(self, certificate_ids: Sequence[str]) -> set[str]:
        """Return those of these ids that certificates have had, in force or not."""
        found = await self._store.read_all("certificate", certificate_ids, CertificateRecord)
        return {one.certificate_id for one in found}

    async def of_common_names(self, common_names: Sequence[str]) -> dict[str, CertificateRecord]:
        """Return, by common name, the certificate in force that carries it; names of which there is none are left out.

        Where a thing has several that carry its name, it is the newest.
        """
        if not common_names:
            return {}
        things = await self._store.read_all("thing", common_names, ThingRecord)
        with store_errors():
            holders = await self._store.client.mget(
                [self._store.key("holder", name) for name in common_names]
            )
        identifiers = [*common_names, *(str(holder) for holder in holders if holder)]
        identifiers += [identifier for thing in things for identifier in thing.certificate_ids]
        found = await self._store.read_all("certificate", identifiers, CertificateRecord)
        wanted = frozenset(common_names)
        return {one.common_name: one for one in found if one.is_in_force and one.common_name in wanted}

    async def of_kind(self, kind: CertificateKind) -> list[CertificateRecord]:
        """Return the certificates of a kind, whatever their status, in no particular order."""
        return await self._indexed(f"certificates:{kind}")

    async def pending(self) -> list[CertificateRecord]:
        """Return the certificates that wait for their thing (PENDING_ACTIVATION)."""
        return await self._indexed("pending")

    async def acl_entries(self) -> dict[str, str]:
        """Return the thing name for each common name in force that is a certificate id instead of a thing name."""
        return await self._hash("acl")

    async def revoked(self) -> dict[int, float]:
        """Return the serial of every certificate that is to be refused, and since when (s since the epoch)."""
        found = await self._hash("revoked")
        if not found and not await self._store.text(self._store.key("layout")):
            # Of an older version, read before the writer of this one has opened it.
            now_s = self._store.now_s()
            pages = [page async for page in self._all()]
            return {int(one.serial): now_s for page in pages for one in page if one.is_barred}
        return {int(serial): float(since) for serial, since in found.items()}

    async def replacing(self) -> dict[str, str]:
        """Return, by common name, the id of each certificate in force whose first use retires another."""
        return await self._hash("replacing")

    async def holder(self, record: CertificateRecord) -> CertificateRecord | None:
        """Return the certificate in force of the application or claim of which `record` is one; None if none is."""
        certificate_id = await self._store.text(self._holder_key(record))
        return await self.get(certificate_id) if certificate_id else None

    async def add(self, record: CertificateRecord, *, by: str) -> None:
        """Keep a new certificate, and list it with its thing if it has one.

        DescriptionError if its key has been certified before, ThingNotFound if its thing is not registered or is
        being deleted, CertificateNameTaken if another of the same application or claim is in force.
        """
        key = self._store.key("certificate", record.certificate_id)
        conditions = [(key, "")]
        if record.kind != "thing":
            conditions.append((self._holder_key(record), ""))
        commands = self.commands(None, record)
        if record.thing_name:
            condition, command = await self._listed(record)
            conditions.append(condition)
            commands.append(command)
        failed = await self._store.change(
            "certificate.create", record.certificate_id, commands, conditions=conditions, by=by
        )
        if failed == 1:
            problem = "its key has been certified before; make a new key for each certificate"
            raise DescriptionError("the certificate signing request", problem)
        if failed and record.kind != "thing":
            raise CertificateNameTaken(record.kind, record.name)
        if failed:
            raise _changed_meanwhile(record)

    async def change(
        self, before: CertificateRecord, after: CertificateRecord, *, action: str, by: str
    ) -> None:
        """Put `after` in the place of `before`, indexes included; a thing gained lists it from then on.

        StoreError (retryable) if the certificate, or the thing that it gains, was changed meanwhile: read it again.
        ThingNotFound if that thing is not registered or is being deleted.
        """
        key = self._store.key("certificate", before.certificate_id)
        # A change builds on the very text that it read, whatever version of this program wrote it.
        text = await self._store.text(key)
        if not text or decode(text, CertificateRecord, key=key) != before:
            raise _changed_meanwhile(before)
        conditions = [(key, text)]
        commands = self.commands(before, after)
        if after.thing_name and after.thing_name != before.thing_name:
            condition, command = await self._listed(after)
            conditions.append(condition)
            commands.append(command)
        if await self._store.change(action, after.certificate_id, commands, conditions=conditions, by=by):
            raise _changed_meanwhile(before)

    async def forget(self, record: CertificateRecord, *, by: str) -> None:
        """Delete a certificate that has no thing; its serial stays refused. Done twice, nothing changes.

        StoreError (retryable) if the certificate was changed meanwhile: read it again.
        """
        key = self._store.key("certificate", record.certificate_id)
        text = await self._store.text(key)
        if not text:
            return
        if decode(text, CertificateRecord, key=key) != record:
            raise _changed_meanwhile(record)
        commands = self.commands(record, msgspec.structs.replace(record, status="REVOKED"))
        commands += [
            ["DEL", key],
            ["ZREM", self._store.key(f"certificates:{record.kind}"), record.certificate_id],
        ]
        if await self._store.change(
            "certificate.delete", record.certificate_id, commands, conditions=[(key, text)], by=by
        ):
            raise _changed_meanwhile(record)

    def commands(self, before: CertificateRecord | None, after: CertificateRecord) -> list[list[str]]:
        """Return what keeps `after` in the place of `before` (None: it is new), with all indexes but the thing's."""
        old = {} if before is None else self._indexes(before)
        new = self._indexes(after)
        return [
            ["SET", self._store.key("certificate", after.certificate_id), encode(after)],
            *new.values(),
            *(list(removal) for removal in old if removal not in new),
        ]

    def _indexes(self, record: CertificateRecord) -> dict[tuple[str, ...], list[str]]:
        """Return where a certificate is indexed: for each place what takes it out, and what puts it in."""
        key, identifier, common_name = self._store.key, record.certificate_id, record.common_name
        kind = key(f"certificates:{record.kind}")
        places: dict[tuple[str, ...], list[str]] = {
            ("ZREM", kind, identifier): ["ZADD", kind, "0", identifier]
        }
        if record.status == "PENDING_ACTIVATION":
            places["ZREM", key("pending"), identifier] = ["ZADD", key("pending"), "0", identifier]
        if record.is_barred:
            # The first time counts: an INACTIVE one that is revoked later was refused before.
            now = f"{self._store.now_s():.0f}"
            places["HDEL", key("revoked"), record.serial] = ["HSETNX", key("revoked"), record.serial, now]
        if not record.is_in_force:
            return places
        if record.thing_name and common_name != record.thing_name:
            places["HDEL", key("acl"), common_name] = ["HSET", key("acl"), common_name, record.thing_name]
        if record.replaces:
            places["HDEL", key("replacing"), common_name] = [
                "HSET",
                key("replacing"),
                common_name,
                identifier,
            ]
        if record.kind != "thing":
            places["DEL", self._holder_key(record)] = ["SET", self._holder_key(record), identifier]
        return places

    async def index_older(self) -> None:
        """Build the indexes for records that a version without them has kept; once per registry."""
        layout = self._store.key("layout")
        if await self._store.text(layout):
            return
        # Cut off between two pages, all are done again: every command may be.
        async for records in self._all():
            # All but the record itself, which is as it was.
            commands = [command for record in records for command in self.commands(None, record)[1:]]
            await self._store.change("registry.index", "", commands, by="platform")
        await self._store.change("registry.index", "", [["SET", layout, LAYOUT]], by="platform")

    async def _all(self) -> AsyncIterator[list[CertificateRecord]]:
        """Give every record, a page at a time, without an index; for records of an older version."""
        pattern = self._store.key("certificate", "*")
        with store_errors():
            keys = [str(key) async for key in self._store.client.scan_iter(pattern, count=WALK_PAGE)]
        # One may come twice.
        names = sorted({key.rpartition(":")[2] for key in keys})
        for start in range(0, len(names), WALK_PAGE):
            page = names[start : start + WALK_PAGE]
            yield await self._store.read_all("certificate", page, CertificateRecord)

    async def _hash(self, name: str) -> dict[str, str]:
        with store_errors():
            found: dict[str, str] = await awaited(self._store.client.hgetall(self._store.key(name)))
        return found

    async def _indexed(self, index: str) -> list[CertificateRecord]:
        found: list[CertificateRecord] = []
        after = ""
        while names := await self._store.names_after(index, after, WALK_PAGE):
            found += await self._store.read_all("certificate", names, CertificateRecord)
            after = names[-1]
        return found

    async def _listed(self, record: CertificateRecord) -> tuple[tuple[str, str], list[str]]:
        """Return the condition and the command that add a certificate to its thing's."""
        key = self._store.key("thing", record.thing_name)
        text = await self._store.text(key)
        if not text:
            raise ThingNotFound(record.thing_name)
        thing = decode(text, ThingRecord, key=key)
        if thing.status != "ACTIVE":
            raise ThingNotFound(record.thing_name)
        identifiers = [*thing.certificate_ids, record.certificate_id]
        changed = msgspec.structs.replace(thing, certificate_ids=list(dict.fromkeys(identifiers)))
        return (key, text), ["SET", key, encode(changed)]

    def _holder_key(self, record: CertificateRecord) -> str:
        return self._store.key("holder", record.common_name)


def _changed_meanwhile(record: CertificateRecord) -> StoreError:
    text = f"certificate {record.certificate_id} or its thing was changed meanwhile; try again"
    return StoreError(text, retryable=True)
