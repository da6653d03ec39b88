"""The certificates of the registry: whose they are, and whether they are in force."""

from __future__ import annotations

from actors.registry.records import CertificateRecord, ThingRecord
from actors.registry.store import RegistryStore, awaited, store_errors


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

    async def acl_entries(self) -> dict[str, str]:
        """Return the thing name for each common name that is a certificate id instead of a thing name."""
        with store_errors():
            found: dict[str, str] = await awaited(self._store.client.hgetall(self._store.key("acl")))
        return found
