"""How a device comes, changes and goes: the order in which twin, certificate, registry and broker change.

Creating: the certificate is signed, the twin told its model, then thing and certificate are registered in one step,
which is the moment from which the thing exists; then the broker is told, where it must be, and only then the answer
goes out. A crash before that step leaves nothing that stands in the way of a repeat; after it, the same request
(same key) gets the same certificate, and another one hears that the thing exists.

Changing: the twin first, then the registry. Cut off between, the same request does both again, and the next start
tells the twin what the registry says.

Deleting: certificates are revoked in the registry, then in the revocation list, then the broker is told, which looks
at new connections only, so the open session of the device is ended; then the twin goes, and last the thing, out of
its groups. Cut off between, the thing is DELETING; the next start or the next attempt does the rest.

What has changed is announced on MQTT once the registry keeps it; see `registry_events` for what that is worth.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from actors.errors import (
    DescriptionError,
    OperatorError,
    RecordNotFound,
    RecordVersionConflict,
    ThingExists,
    ThingNotFound,
    WorldError,
)
from actors.fleet import Fleet
from actors.gateway.certificates import CertificateOffice
from actors.gateway.platform_view import PlatformView
from actors.gateway.registry_events import RegistryEvents
from actors.pki import IssuedCertificate
from actors.registry.records import (
    CertificateRecord,
    FleetRecord,
    ThingDescription,
    ThingGroupRecord,
    ThingRecord,
    check_attributes,
    check_name,
)
from actors.registry.registry import Registry
from actors.registry.things import ADDITION_COUNT_MAX, Addition, thing_certificate, updated
from actors.wall_clock import WallClock
from twins.errors import ModelError
from twins.messages import Operation, Registration, Reply, Request
from twins.model import UNTYPED
from twins.shipped import MODELS

# What one device of many may be refused with, while the others come into being.
Refusal = OperatorError | ModelError


@dataclass(frozen=True)
class Wanted:
    """A device to be created; `csr_pem` is its signing request (PKCS #10), None for a thing without certificate."""

    description: ThingDescription
    csr_pem: str | None = None


@dataclass(frozen=True)
class Enrolment:
    """A thing and the certificate with which its device proves to be it; `is_new`: they were not there before."""

    thing: ThingRecord
    certificate: CertificateRecord | None
    is_new: bool


@dataclass(frozen=True)
class ThingChange:
    """What is to be changed of a thing.

    `attributes` take the place of the present ones or, with `is_merge`, are laid over them; an empty value removes an
    attribute. `thing_type` None leaves the type, '' removes it.
    """

    attributes: Mapping[str, str] | None = None
    is_merge: bool = False
    thing_type: str | None = None

    def applied(self, thing: ThingRecord) -> ThingRecord:
        """Return the thing as it is after the change, one version on; DescriptionError if it may not be so."""
        attributes = None
        if self.attributes is not None:
            check_attributes(self.attributes)
            whole = {**thing.attributes, **self.attributes} if self.is_merge else self.attributes
            attributes = {key: value for key, value in whole.items() if value}
            check_attributes(attributes)
        # A type that is no device model says nothing about the twin, and one that is removed takes nothing from it.
        model = self.thing_type if self.thing_type in MODELS else None
        return updated(thing, attributes=attributes, thing_type=self.thing_type, model=model)


class DeviceOffice:
    """Creates, changes and deletes devices, one after the other.

    `turn` is shared with whoever else gives out names, or changes groups and types.
    """

    def __init__(
        self,
        fleet: Fleet,
        registry: Registry,
        *,
        certificates: CertificateOffice,
        platform: PlatformView,
    ) -> None:
        self._fleet = fleet
        self._registry = registry
        self._certificates = certificates
        self._platform = platform
        self._clock: Final = WallClock()
        self.events: Final = RegistryEvents(platform.announce, self._clock)
        self.turn: Final = asyncio.Lock()

    async def create(
        self, description: ThingDescription, csr_pem: str | None = None, *, by: str = "operator"
    ) -> Enrolment:
        """Return a new device's thing and certificate, good for connecting at once.

        OperatorError or ModelError if it may not be; ThingExists if the name is taken. The name of a simulated device
        may be had: the real one takes its place, and must be of its model.
        """
        (outcome,) = await self.create_all([Wanted(description, csr_pem)], by=by)
        if not isinstance(outcome, Enrolment):
            raise outcome
        return outcome

    async def create_all(self, wanted: Sequence[Wanted], *, by: str) -> list[Enrolment | Refusal]:
        """Return for each device, in order, its enrolment or why it may not be; one refusal stops no other."""
        drafts = await asyncio.to_thread(self._drafts, wanted)
        async with self.turn:
            return await self._create(drafts, by)

    async def ensure(self, description: ThingDescription, *, by: str) -> ThingRecord:
        """Return the thing of that name as it is registered; where there is none, it is created as described.

        For provisioning. ThingExists if a simulated device has the name, or the thing is being deleted.
        """
        async with self.turn:
            try:
                known = await self._registry.things.get(description.name)
            except ThingNotFound:
                # Who comes with a claim alone takes nobody's place: that is for operators to allow.
                owner = simulated_in(description.name, await self._registry.fleets.all())
                if owner is not None:
                    reason = f"is a simulated device of fleet {owner.group.name!r}; choose another name"
                    raise ThingExists(description.name, reason) from None
                (outcome,) = await self._create(self._drafts([Wanted(description)]), by)
                if not isinstance(outcome, Enrolment):
                    raise outcome from None
                return outcome.thing
        if known.status == "DELETING":
            raise _half_deleted(known.name)
        return known

    async def update(
        self, name: str, change: ThingChange, *, expected_version: int | None = None, by: str
    ) -> ThingRecord:
        """Return a thing after a change; ThingNotFound, RecordVersionConflict, RecordNotFound for its new type."""
        if change.thing_type:
            check_name(change.thing_type, "thing type name")
        async with self.turn:
            before = await self._active(name, expected_version)
            if change.thing_type and change.thing_type != before.thing_type:
                await self._registry.types.for_new_things(change.thing_type)
            after = change.applied(before)
            is_told = (after.model, after.attributes) != (before.model, before.attributes)
            if is_told:
                await self._registry.things.mark_changing(name, by=by)
                await self._tell_twin(after)
            after = await self._registry.things.change(name, change.applied, action="thing.update", by=by)
            if is_told:
                await self._registry.things.unmark_changing(name, by=by)
            self.events.thing_updated(before, after)
        return after

    async def delete(self, name: str, *, expected_version: int | None = None, by: str = "operator") -> None:
        """Revoke a device's certificates, remove its twin and forget it; ThingNotFound if it is not registered."""
        async with self.turn:
            if expected_version is not None:
                await self._at_version(name, expected_version)
            if not await self._remove([name], by):
                raise ThingNotFound(name)

    async def delete_all(self, names: Sequence[str], *, by: str = "operator") -> list[str]:
        """Delete many devices, as `delete` does one, and return the names of those that were registered."""
        async with self.turn:
            return await self._remove(names, by)

    async def settle(self) -> None:
        """Complete what an earlier gateway began, and tell the broker; to be called before the first request."""
        async with self.turn:
            await self._platform.reload_access()
            await self._remove(await self._registry.things.removals(), "platform")
            for name in await self._registry.things.changing():
                await self._tell_twin(await self._registry.things.get(name))
                await self._registry.things.unmark_changing(name, by="platform")

    async def _tell_twin(self, thing: ThingRecord) -> None:
        reply = await self._fleet.ask(_registration(thing))
        _check_reply(reply, thing.name)

    async def _remove(self, names: Sequence[str], by: str) -> list[str]:
        """Remove things, whose certificates are revoked all at once; return the names of those that were there.

        Where it breaks off, what is half deleted can be deleted again.
        """
        present: list[str] = []
        certificates: list[CertificateRecord] = []
        for name in dict.fromkeys(names):
            try:
                certificates += await self._registry.things.begin_removal(name, by=by)
            except ThingNotFound:
                continue
            present.append(name)
        await self._certificates.withdraw(certificates)
        for name in present:
            await self._platform.messaging.clear_retained_of(name)
        requests = [Request(Operation.UNREGISTER, name, is_direct=True) for name in present]
        for name, reply in zip(present, await self._fleet.ask_many(requests), strict=True):
            # 404: it went when this was tried before.
            if reply.status >= 400 and reply.status != 404:
                raise WorldError(f"the twin of {name!r} stays: {_message(reply)}; delete it again")
            thing = await self._registry.things.get(name)
            await self._registry.things.remove(name, by=by)
            groups = [await self._registry.groups.get(group) for group in thing.groups]
            self.events.thing_deleted(thing, groups)
        return present

    async def _active(self, name: str, expected_version: int | None) -> ThingRecord:
        thing = await self._at_version(name, expected_version)
        if thing.status == "DELETING":
            raise ThingNotFound(name)
        return thing

    async def _at_version(self, name: str, expected: int | None) -> ThingRecord:
        thing = await self._registry.things.get(name)
        if expected is not None and expected != thing.version:
            raise RecordVersionConflict(f"thing {name!r}", expected=expected, current=thing.version)
        return thing

    # Creating, in steps: each leaves out those that an earlier one has refused.

    def _drafts(self, wanted: Sequence[Wanted]) -> list[_Draft]:
        """Return what can be said before anybody is asked: records, certificates, and what is against the rules."""
        drafts: list[_Draft] = []
        names: set[str] = set()
        keys: set[str] = set()
        for one in wanted:
            draft = _Draft(one.description.name, one.description)
            drafts.append(draft)
            try:
                draft.thing = one.description.record(now_s=self._clock.now_s())
                if draft.name in names:
                    raise ThingExists(draft.name, "is there twice in this request; keep one")
                names.add(draft.name)
                if one.csr_pem is not None:
                    # No secret and no state: an issued certificate counts for nothing until it is registered.
                    issued = self._certificates.sign(one.csr_pem, draft.name)
                    if issued.certificate_id in keys:
                        problem = "has the key of another one in this request; make a new key for each device"
                        raise DescriptionError("the certificate signing request", problem)
                    keys.add(issued.certificate_id)
                    draft.issued = issued
            except (OperatorError, ModelError) as refusal:
                draft.outcome = refusal
        return drafts

    async def _create(self, drafts: Sequence[_Draft], by: str) -> list[Enrolment | Refusal]:
        known = await self._registry.things.find([draft.name for draft in drafts if draft.is_open])
        for draft in drafts:
            if draft.is_open and draft.name in known:
                draft.outcome = await self._earlier_enrolment(draft, known[draft.name], by)
        groups = await self._check_places(drafts)
        await self._check_keys(drafts)
        # Last: a device that is refused leaves no twin.
        await self._register_twins([draft for draft in drafts if draft.is_open])
        fresh = [draft for draft in drafts if draft.is_open]
        for start in range(0, len(fresh), ADDITION_COUNT_MAX):
            await self._register(fresh[start : start + ADDITION_COUNT_MAX], by)
        outcomes = [draft.settled() for draft in drafts]
        enrolments = [outcome for outcome in outcomes if isinstance(outcome, Enrolment)]
        # A certificate that does not carry the thing's name counts for nothing until the broker knows whose it is.
        if any(one.certificate and one.certificate.common_name != one.thing.name for one in enrolments):
            await self._platform.reload_access()
        self.events.things_created((one.thing for one in enrolments if one.is_new), groups)
        return outcomes

    async def _earlier_enrolment(self, draft: _Draft, known: ThingRecord, by: str) -> Enrolment | Refusal:
        """Return the enrolment that an earlier, equal request made; ThingExists if an unequal one did."""
        if known.status == "DELETING":
            return _half_deleted(known.name)
        if not draft.description.describes(known):
            return ThingExists(known.name, "is registered already; delete it first, or choose another name")
        if draft.issued is None:
            return Enrolment(known, None, is_new=False)
        for certificate in await self._registry.certificates.of_thing(known):
            if certificate.certificate_id != draft.issued.certificate_id:
                continue
            if not certificate.is_in_force:
                reason = (
                    f"is registered already, and the certificate of this key is {certificate.status.lower()}; "
                    f"get one for another key with `twinfleet device rotate {known.name}`"
                )
                return ThingExists(known.name, reason)
            return Enrolment(known, certificate, is_new=False)
        if known.certificate_ids:
            reason = (
                "is registered already, with another certificate; delete it first, or choose another name"
            )
            return ThingExists(known.name, reason)
        record = thing_certificate(known, draft.issued)
        record = msgspec.structs.replace(record, created_at_s=int(self._clock.now_s()))
        try:
            await self._registry.certificates.add(record, by=by)
        except OperatorError as refusal:
            return refusal
        return Enrolment(known, record, is_new=False)

    async def _check_places(self, drafts: Sequence[_Draft]) -> dict[str, ThingGroupRecord]:
        """Refuse drafts whose names, types or groups may not be, and return the groups of the others by name."""
        fleets = await self._registry.fleets.all()
        found: dict[str, ThingGroupRecord] = {}
        # Of many things, most have the same.
        checked: dict[tuple[str, tuple[str, ...]], Refusal | None] = {}
        for draft in drafts:
            if not draft.is_open:
                continue
            owner = simulated_in(draft.name, fleets)
            if owner is not None and not draft.takes_over(owner):
                continue
            thing = draft.record
            place = (thing.thing_type, tuple(thing.groups))
            if place not in checked:
                checked[place] = await self._check_place(thing, found)
            draft.outcome = checked[place]
        return found

    async def _check_place(self, thing: ThingRecord, found: dict[str, ThingGroupRecord]) -> Refusal | None:
        try:
            if thing.thing_type:
                await self._registry.types.for_new_things(thing.thing_type)
            groups = await self._registry.groups.check_membership(thing.groups)
        except (DescriptionError, RecordNotFound) as refusal:
            return refusal
        found.update((group.name, group) for group in groups)
        return None

    async def _check_keys(self, drafts: Sequence[_Draft]) -> None:
        issued = {draft.issued.certificate_id: draft for draft in drafts if draft.is_open and draft.issued}
        for certificate_id in await self._registry.certificates.known(list(issued)):
            problem = "its key has been certified before; make a new key for each device"
            issued[certificate_id].outcome = DescriptionError("the certificate signing request", problem)

    async def _register_twins(self, drafts: Sequence[_Draft]) -> None:
        replies = await self._fleet.ask_many([_registration(draft.record) for draft in drafts])
        for draft, reply in zip(drafts, replies, strict=True):
            try:
                _check_reply(reply, draft.name)
            except DescriptionError as refusal:
                draft.outcome = refusal

    async def _register(self, drafts: Sequence[_Draft], by: str) -> None:
        additions = [
            Addition(
                draft.record, None if draft.issued is None else thing_certificate(draft.record, draft.issued)
            )
            for draft in drafts
        ]
        try:
            await self._registry.things.add_all(additions, by=by)
        except OperatorError as refusal:
            if len(drafts) > 1:
                # One of them cannot be, and nothing was written: each for itself.
                for draft in drafts:
                    await self._register([draft], by)
                return
            drafts[0].outcome = refusal
            return
        for draft, addition in zip(drafts, additions, strict=True):
            draft.outcome = Enrolment(addition.listed(), addition.certificate, is_new=True)


@dataclass
class _Draft:
    """A device on its way into the registry; open until it has an outcome."""

    name: str
    description: ThingDescription
    thing: ThingRecord | None = None
    issued: IssuedCertificate | None = None
    outcome: Enrolment | Refusal | None = None

    @property
    def is_open(self) -> bool:
        return self.outcome is None

    @property
    def record(self) -> ThingRecord:
        assert self.thing is not None
        return self.thing

    def takes_over(self, fleet: FleetRecord) -> bool:
        """Give the thing the model of the simulated device whose place it takes; False, refused, if it has another."""
        model = fleet.group.model_name
        if self.record.model not in (model, UNTYPED.name):
            reason = f"is a simulated {model} of fleet {fleet.group.name!r}; create it with that model"
            self.outcome = ThingExists(self.name, reason)
            return False
        # One that is described in a file is known to the fleet only.
        self.thing = msgspec.structs.replace(self.record, model=model if model in MODELS else UNTYPED.name)
        return True

    def settled(self) -> Enrolment | Refusal:
        assert self.outcome is not None
        return self.outcome


def simulated_in(name: str, fleets: Sequence[FleetRecord]) -> FleetRecord | None:
    """Return the standing fleet of which `name` is a device, or None."""
    for fleet in fleets:
        index = fleet.group.group().pattern.index(name)
        if index is not None and index < fleet.group.count:
            return fleet
    return None


def _half_deleted(name: str) -> ThingExists:
    return ThingExists(name, "is half deleted; delete it again, then create it")


def _registration(thing: ThingRecord) -> Request:
    payload = msgspec.json.encode(Registration(thing.model, thing.attributes))
    return Request(Operation.REGISTER, thing.name, payload, is_direct=True)


def _check_reply(reply: Reply, name: str) -> None:
    if reply.status >= 400:
        raise DescriptionError(f"thing {name!r}", _message(reply))


def _message(reply: Reply) -> str:
    return str(msgspec.json.decode(reply.payload, type=dict[str, object]).get("message", "no reason given"))
