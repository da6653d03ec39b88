"""The things of the registry: they come with their certificate and go after it."""

from __future__ import annotations

import msgspec

from actors.errors import DescriptionError, ThingExists, ThingNotFound
from actors.pki import IssuedCertificate
from actors.registry.certificates import Certificates
from actors.registry.records import CertificateRecord, ThingPage, ThingRecord
from actors.registry.store import WALK_PAGE, RegistryStore, decode, encode, store_errors
from twins.errors import InvariantError
from twins.sharding import NamePattern


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

    async def page(self, *, after: str = "", limit: int = 100) -> ThingPage:
        """Return up to `limit` things in name order, those that follow the name `after` ('': from the first)."""
        # One more than asked tells whether another page follows.
        names = await self._store.names_after("things", after, limit + 1)
        found = await self._store.read_all("thing", names[:limit], ThingRecord)
        return ThingPage(found, names[limit - 1] if len(names) > limit else None)

    async def count(self) -> int:
        """Return how many things are registered."""
        with store_errors():
            return int(await self._store.client.zcard(self._store.key("things")))

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
        record = CertificateRecord(
            certificate_id=certificate.certificate_id,
            thing_name=thing.name,
            common_name=certificate.common_name,
            serial=str(certificate.serial),
            pem=certificate.certificate_pem,
            created_at_s=thing.created_at_s,
            not_after_s=int(certificate.expires_at_s),
        )
        thing_key = self._store.key("thing", thing.name)
        certificate_key = self._store.key("certificate", record.certificate_id)
        commands = [
            [
                "SET",
                thing_key,
                encode(msgspec.structs.replace(thing, certificate_ids=[record.certificate_id])),
            ],
            ["SET", certificate_key, encode(record)],
            ["ZADD", self._store.key("things"), "0", thing.name],
        ]
        if record.common_name != thing.name:
            commands.append(["HSET", self._store.key("acl"), record.common_name, thing.name])
        conditions = [(thing_key, ""), (certificate_key, "")]
        failed = await self._store.change("thing.create", thing.name, commands, conditions=conditions, by=by)
        if failed == 1:
            raise ThingExists(
                thing.name,
                "is registered already; delete it first, or choose another name",
            )
        if failed:
            problem = "its key has been certified before; make a new key for each device"
            raise DescriptionError("the certificate signing request", problem)
        return record

    async def begin_removal(self, name: str, *, by: str = "operator") -> list[CertificateRecord]:
        """Mark a thing DELETING and its certificates REVOKED, and return these; done twice, nothing changes."""
        key = self._store.key("thing", name)
        # A change builds on the very text that it read, whatever version of this program wrote it.
        text = await self._store.text(key)
        if not text:
            raise ThingNotFound(name)
        thing = decode(text, ThingRecord, key=key)
        revoked = [
            msgspec.structs.replace(certificate, status="REVOKED")
            for certificate in await self._certificates.of_thing(thing)
        ]
        if thing.status == "DELETING":
            return revoked
        commands = [
            ["SET", key, encode(msgspec.structs.replace(thing, status="DELETING"))],
            ["ZADD", self._store.key("removals"), "0", name],
        ]
        for certificate in revoked:
            certificate_key = self._store.key("certificate", certificate.certificate_id)
            commands.append(["SET", certificate_key, encode(certificate)])
            commands.append(["HDEL", self._store.key("acl"), certificate.common_name])
        conditions = [(key, text)]
        if await self._store.change("thing.revoke", name, commands, conditions=conditions, by=by):
            raise ThingNotFound(name)
        return revoked

    async def removals(self) -> list[str]:
        """Return the names of the things whose removal has begun and not ended."""
        return [name async for name in self._store.all_names("removals")]

    async def remove(self, name: str, *, by: str = "operator") -> None:
        """Forget a thing that is DELETING; its revoked certificates stay known. ThingNotFound if there is none."""
        if (await self.get(name)).status != "DELETING":
            raise InvariantError(f"thing {name!r} is to be forgotten while its certificates are in force")
        commands = [
            ["DEL", self._store.key("thing", name)],
            ["ZREM", self._store.key("things"), name],
            ["ZREM", self._store.key("removals"), name],
        ]
        await self._store.change("thing.delete", name, commands, by=by)
