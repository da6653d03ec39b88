"""How a device comes and goes: the order in which twin, certificate, registry and broker change.

Creating: the certificate is signed, the twin told its model, then thing and certificate are registered in one step,
which is the moment from which the thing exists; then the broker is told, where it must be, and only then the answer
goes out. A crash before that step leaves nothing that stands in the way of a repeat; after it, the same request
(same key) gets the same certificate, and another one hears that the thing exists.

Deleting: certificates are revoked in the registry, then in the revocation list, then the broker is told, which looks
at new connections only, so the open session of the device is ended; then the twin goes, and last the thing. Cut off
between, the thing is DELETING; the next start or the next attempt does the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from actors.errors import DescriptionError, ThingExists, ThingNotFound, WorldError
from actors.fleet import Fleet
from actors.gateway.platform_view import PlatformView
from actors.pki import CertificateAuthority, IssuedCertificate
from actors.registry.records import CertificateRecord, FleetRecord, ThingRecord, new_thing
from actors.registry.registry import Registry
from twins.clock import Clock
from twins.messages import Operation, Registration, Request


@dataclass(frozen=True)
class Enrolment:
    """A thing and the certificate with which its device proves to be it."""

    thing: ThingRecord
    certificate: CertificateRecord


class DeviceOffice:
    """Creates and deletes devices, one at a time: `turn` is shared with whoever else gives out thing names."""

    def __init__(
        self, fleet: Fleet, registry: Registry, *, authority: CertificateAuthority, platform: PlatformView
    ) -> None:
        self._fleet = fleet
        self._registry = registry
        self._authority = authority
        self._platform = platform
        self.turn = asyncio.Lock()

    async def create(
        self, name: str, model: str, *, attributes: Mapping[str, str], csr_pem: str, clock: Clock
    ) -> Enrolment:
        """Return a new device's thing and certificate, good for connecting at once.

        OperatorError or ModelError if it may not be; ThingExists if the name is taken by anybody, also by a
        simulated device.
        """
        thing = new_thing(name, model, attributes, now_s=clock.now_s())
        # No secret and no state: an issued certificate counts for nothing until it is registered.
        issued = self._authority.issue_for_thing(csr_pem, name, clock=clock)
        async with self.turn:
            enrolment = await self._earlier_enrolment(thing, issued)
            if enrolment is None:
                await self._refuse_simulated(name)
                await self._register_twin(thing)
                certificate = await self._registry.things.add(thing, issued)
                thing = msgspec.structs.replace(thing, certificate_ids=[certificate.certificate_id])
                enrolment = Enrolment(thing, certificate)
            if enrolment.certificate.common_name != name:
                await self._platform.reload_access()
        return enrolment

    async def delete(self, name: str) -> None:
        """Revoke a device's certificates, remove its twin and forget it; ThingNotFound if it is not registered."""
        async with self.turn:
            await self._remove(name)

    async def settle(self) -> None:
        """Complete what an earlier gateway began, and tell the broker; to be called before the first request."""
        async with self.turn:
            await self._platform.reload_access()
            for name in await self._registry.things.removals():
                await self._remove(name)

    async def _remove(self, name: str) -> None:
        certificates = await self._registry.things.begin_removal(name)
        serials = [int(certificate.serial) for certificate in certificates]
        # It reads, checks and writes the whole list.
        await asyncio.to_thread(self._authority.revoke, serials)
        await self._platform.reload_access()
        await self._platform.end_sessions([certificate.common_name for certificate in certificates])
        reply = await self._fleet.ask(Request(Operation.UNREGISTER, name, is_direct=True))
        # 404: it went when this was tried before.
        if reply.status >= 400 and reply.status != 404:
            raise WorldError(f"the twin of {name!r} stays: {_message(reply.payload)}; delete it again")
        await self._registry.things.remove(name)

    async def _earlier_enrolment(self, thing: ThingRecord, issued: IssuedCertificate) -> Enrolment | None:
        """Return the enrolment that an earlier, equal request made; ThingExists if an unequal one did."""
        try:
            known = await self._registry.things.get(thing.name)
        except ThingNotFound:
            return None
        if known.status == "DELETING":
            raise ThingExists(thing.name, "is half deleted; delete it again, then create it")
        is_same = known.model == thing.model and known.attributes == thing.attributes
        for certificate in await self._registry.certificates.of_thing(known):
            if is_same and certificate.certificate_id == issued.certificate_id:
                return Enrolment(known, certificate)
        raise ThingExists(thing.name, "is registered already; delete it first, or choose another name")

    async def _refuse_simulated(self, name: str) -> None:
        fleet = simulated_in(name, await self._registry.fleets.all())
        if fleet is not None:
            reason = f"is a simulated device of fleet {fleet.group.name!r}; choose another name"
            raise ThingExists(name, reason)

    async def _register_twin(self, thing: ThingRecord) -> None:
        payload = msgspec.json.encode(Registration(thing.model, thing.attributes))
        reply = await self._fleet.ask(Request(Operation.REGISTER, thing.name, payload, is_direct=True))
        if reply.status >= 400:
            raise DescriptionError(f"thing {thing.name!r}", _message(reply.payload))


def simulated_in(name: str, fleets: list[FleetRecord]) -> FleetRecord | None:
    """Return the standing fleet of which `name` is a device, or None."""
    for fleet in fleets:
        index = fleet.group.group().pattern.index(name)
        if index is not None and index < fleet.group.count:
            return fleet
    return None


def _message(payload: bytes) -> str:
    return str(msgspec.json.decode(payload, type=dict[str, object]).get("message", "no reason given"))
