"""The life of certificates: issued, exchanged, retired, revoked; of things, applications and claims.

Issuing: registry first, then the broker's access list; only then the answer goes out.

Exchanging: a thing gets a further certificate, and both work. The first use of the new one, over MQTT or HTTPS, retires
the old one for good, and whatever that one had been meant to replace.

Revoking: the registry first, so that it holds whatever happens next, and the devices' HTTPS listener, which asks it,
refuses from then on; then the broker's revocation list and its reload, which count for new connections; then the open
session is ended. What is left is a connection whose TLS was done before the reload (one that was half done meets the
new list): when it comes to a CONNECT after all, the events of the broker's log tell, and its session is ended at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, Literal, Protocol

import msgspec

from actors.broker_log import BrokerEvent, BrokerStarted, ClientConnected, ConnectionOpened
from actors.errors import CertificateNotFound, ThingNotFound, WorldError
from actors.mqtt_events import EventConsumer
from actors.pki import CertificateAuthority, IssuedCertificate
from actors.registry.records import CertificateKind, CertificateRecord
from actors.registry.registry import Registry
from actors.wall_clock import WallClock

# A broker that restarts is back within seconds.
_RETRY_S: Final = 1.0
# Connections whose CONNECT has not come yet: more than a broker holds open. Of those forgotten, it is assumed that they
# are older than any revocation.
_OPENED_COUNT_MAX: Final = 100_000
# Later than every event.
_NEVER: Final = float("inf")
_LOG: Final = logging.getLogger(__name__)


class Doorkeeper(Protocol):
    """The part of `PlatformView` that keeps the broker's door."""

    async def reload_access(self) -> None:
        """Return when the broker goes by what the registry says."""
        ...

    async def end_sessions(self, client_ids: Sequence[str]) -> None:
        """Return when no session of these client ids is open or kept."""
        ...


class CertificateOffice(EventConsumer):
    """Issues, exchanges and revokes certificates, one change at a time; also a consumer of the broker's events."""

    def __init__(self, registry: Registry, *, authority: CertificateAuthority, platform: Doorkeeper) -> None:
        self._registry = registry
        self._authority = authority
        self._platform = platform
        self._clock = WallClock()
        self._turn = asyncio.Lock()
        # Certificates whose first use retires another: (common name, id), found by either.
        self._replacing: dict[str, tuple[str, str]] = {}
        # The broker's events, counted, and when (by that count) each connection was opened that has sent no CONNECT.
        self._event_count = 0
        self._opened: dict[tuple[str, int], int] = {}
        # By common name: a connection that was opened before this event may have come in on a revoked certificate.
        self._suspect_until: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # ---- issuing ----

    def sign(self, csr_pem: str, thing_name: str) -> IssuedCertificate:
        """Return a certificate for a thing that is about to be registered: it counts for nothing before that."""
        return self._authority.issue_for_thing(csr_pem, thing_name, clock=self._clock)

    async def rotate(self, thing_name: str, csr_pem: str, *, by: str) -> CertificateRecord:
        """Return a further certificate of a thing, in force at once; its first use retires the present one.

        The same request again gets the same certificate. ThingNotFound if there is no such thing, OperatorError if
        the request is not good.
        """
        async with self._turn:
            thing = await self._registry.things.get(thing_name)
            present = [one for one in await self._registry.certificates.of_thing(thing) if one.is_in_force]
            taken = {one.common_name for one in present}
            issued = self._authority.issue_for_thing(csr_pem, thing_name, taken=taken, clock=self._clock)
            known = [one for one in present if one.certificate_id == issued.certificate_id]
            record = known[0] if known else self._record(issued, "thing")
            if not known:
                replaces = present[-1].certificate_id if present else ""
                record = msgspec.structs.replace(record, thing_name=thing_name, replaces=replaces)
                await self._registry.certificates.add(record, by=by)
                if replaces:
                    self._remember_use(record.common_name, record.certificate_id)
            # Also when it is asked again: the first attempt may have been cut off before this.
            if record.common_name != thing_name:
                await self._platform.reload_access()
        return record

    async def create_application(
        self, name: str, role: Literal["observer", "operator"], csr_pem: str, *, by: str
    ) -> CertificateRecord:
        """Return a certificate for an application; CertificateNameTaken if another of that name is in force."""
        issued = self._authority.issue_from_csr(csr_pem, f"app.{name}", clock=self._clock)
        record = msgspec.structs.replace(self._record(issued, "application"), name=name, role=role)
        return await self._keep_named(record, by=by)

    async def create_claim(
        self, name: str, template: str, csr_pem: str, *, by: str = "operator"
    ) -> CertificateRecord:
        """Return a claim certificate, with which devices get their own by a template.

        CertificateNameTaken if another of that name is in force. Whether there is such a template is the caller's to
        have checked.
        """
        issued = self._authority.issue_from_csr(csr_pem, f"claim.{name}", clock=self._clock)
        record = msgspec.structs.replace(self._record(issued, "claim"), name=name, template=template)
        return await self._keep_named(record, by=by)

    async def _keep_named(self, record: CertificateRecord, *, by: str) -> CertificateRecord:
        async with self._turn:
            known = await self._registry.certificates.get(record.certificate_id)
            if known is not None and known.is_in_force and _means_same(known, record):
                # Asked again, because the first answer was lost.
                record = known
            else:
                await self._registry.certificates.add(record, by=by)
            await self._platform.reload_access()
        return record

    def _record(self, issued: IssuedCertificate, kind: CertificateKind) -> CertificateRecord:
        return CertificateRecord(
            certificate_id=issued.certificate_id,
            thing_name="",
            common_name=issued.common_name,
            serial=str(issued.serial),
            pem=issued.certificate_pem,
            created_at_s=int(self._clock.now_s()),
            not_after_s=int(issued.expires_at_s),
            kind=kind,
        )

    # ---- looking ----

    async def of_thing(self, thing_name: str) -> list[CertificateRecord]:
        """Return the certificates of a thing, in the order of their issue; ThingNotFound if there is none."""
        return await self._registry.certificates.of_thing(await self._registry.things.get(thing_name))

    async def of_kind(self, kind: Literal["application", "claim"]) -> list[CertificateRecord]:
        """Return the certificates of applications or claims in name order, older before newer."""
        found = await self._registry.certificates.of_kind(kind)
        return sorted(found, key=lambda one: (one.name, one.created_at_s))

    # ---- revoking ----

    async def revoke_thing(
        self, thing_name: str, certificate_id: str | None = None, *, by: str
    ) -> list[CertificateRecord]:
        """Revoke one certificate of a thing, or all, and return them; the thing and its twin stay.

        Returns when none of them opens a connection and none of their sessions is open. Done twice, nothing changes.
        ThingNotFound or CertificateNotFound if there is none.
        """
        found = await self.of_thing(thing_name)
        if certificate_id is not None:
            found = [one for one in found if one.certificate_id == certificate_id.lower()]
            if not found:
                raise CertificateNotFound(f"certificate {certificate_id!r} of thing {thing_name!r}")
        return await self._revoke(found, by=by)

    async def revoke_named(
        self, kind: Literal["application", "claim"], name: str, *, by: str
    ) -> list[CertificateRecord]:
        """Revoke the certificate of an application or a claim, as `revoke_thing`; CertificateNotFound if none is."""
        found = [one for one in await self.of_kind(kind) if one.name == name]
        if not found:
            raise CertificateNotFound(f"{kind} {name!r}")
        return await self._revoke(found, by=by)

    async def withdraw(self, barred: Sequence[CertificateRecord]) -> None:
        """Return when certificates that the registry has barred already open nothing, and their sessions are ended.

        After a WorldError that still comes, as soon as the broker can be made to.
        """
        try:
            await self._withdraw(barred)
        except WorldError:
            self._later(partial(self._withdraw, barred), "what is left of a revocation")
            raise

    async def _withdraw(self, barred: Sequence[CertificateRecord]) -> None:
        held = await self._held(barred)
        common_names = [name for name in dict.fromkeys(one.common_name for one in barred) if name not in held]
        for common_name in common_names:
            self._suspect_until[common_name] = _NEVER
        for one in barred:
            self._forget_use(one.certificate_id)
        if barred:
            await self._platform.reload_access()
            await self._platform.end_sessions(common_names)

    async def _held(self, barred: Sequence[CertificateRecord]) -> set[str]:
        """Return the common names that newer certificates, in force, have by now: their sessions are not ended."""
        found: list[CertificateRecord] = []
        for thing_name in {one.thing_name for one in barred if one.thing_name}:
            # A thing that is gone has none.
            with contextlib.suppress(ThingNotFound):
                found += await self.of_thing(thing_name)
        for one in barred:
            holder = None if one.kind == "thing" else await self._registry.certificates.holder(one)
            found += [] if holder is None else [holder]
        return {one.common_name for one in found if one.is_in_force}

    async def _revoke(self, records: Sequence[CertificateRecord], *, by: str) -> list[CertificateRecord]:
        async with self._turn:
            try:
                revoked = [
                    await self._bar(one, "REVOKED", action="certificate.revoke", by=by) for one in records
                ]
            except WorldError:
                # Whether it was kept is not known. If it was, the broker must hear of it.
                self._later(partial(self._follow, records), "what is left of a revocation")
                raise
            # Also those revoked before: that attempt may have been cut off.
            await self.withdraw(revoked)
        return revoked

    async def _follow(self, records: Sequence[CertificateRecord]) -> None:
        """Withdraw those of the certificates that the registry has barred."""
        async with self._turn:
            found = [await self._registry.certificates.get(one.certificate_id) for one in records]
            await self._withdraw([one for one in found if one is not None and one.is_barred])

    async def _bar(
        self,
        before: CertificateRecord,
        status: Literal["INACTIVE", "REVOKED"],
        *,
        action: str,
        by: str,
    ) -> CertificateRecord:
        after = msgspec.structs.replace(before, status=status)
        if after != before:
            await self._registry.certificates.change(before, after, action=action, by=by)
        return after

    # ---- first use ----

    async def used(self, name: str) -> None:
        """Note that a certificate was used, told by its common name or its id; retires what it replaces, by and by."""
        if name in self._replacing:
            _, certificate_id = self._replacing[name]
            self._forget_use(certificate_id)
            self._later(partial(self._retire_replaced, certificate_id), f"first use of {certificate_id}")

    def _remember_use(self, common_name: str, certificate_id: str) -> None:
        self._replacing[common_name] = self._replacing[certificate_id] = (common_name, certificate_id)

    def _forget_use(self, certificate_id: str) -> None:
        for name in self._replacing.get(certificate_id, ()):
            self._replacing.pop(name, None)

    async def _retire_replaced(self, certificate_id: str) -> None:
        async with self._turn:
            new = await self._registry.certificates.get(certificate_id)
            if new is None or not new.replaces or not new.is_in_force:
                return
            retired = []
            old_id = new.replaces
            while old := await self._registry.certificates.get(old_id) if old_id else None:
                if old.status != "REVOKED":
                    action = "certificate.retire"
                    retired.append(await self._bar(old, "INACTIVE", action=action, by="platform"))
                old_id = old.replaces
            await self._withdraw(retired)
            # Last: cut off before, the next use does it again.
            done = msgspec.structs.replace(new, replaces="")
            await self._registry.certificates.change(new, done, action="certificate.use", by="platform")

    # ---- events of the broker ----

    async def on_broker_event(self, event: BrokerEvent) -> None:
        """Notice first uses, and end sessions that came in over a connection older than a revocation."""
        self._event_count += 1
        match event:
            case BrokerStarted():
                self._opened.clear()
            case ConnectionOpened(address=address, source_port=source_port):
                self._opened.pop((address, source_port), None)
                if len(self._opened) >= _OPENED_COUNT_MAX:
                    self._opened.pop(next(iter(self._opened)))
                self._opened[address, source_port] = self._event_count
            case ClientConnected():
                opened_at = self._opened.pop((event.address, event.source_port), 0)
                await self._on_connected(event, opened_at)

    async def _on_connected(self, event: ClientConnected, opened_at: int) -> None:
        common_name = event.client_id
        suspect_until = self._suspect_until.get(common_name)
        if event.user != common_name:
            # Nobody's device: `end_session` itself, which takes the place of a session. What is opened from now on
            # has met the list that is in force.
            if suspect_until is not None:
                self._suspect_until[common_name] = self._event_count
        elif suspect_until is not None and opened_at <= suspect_until:
            _LOG.warning("%s came in over a connection from before its revocation; it is ended", common_name)
            self._later(partial(self._platform.end_sessions, [common_name]), f"session of {common_name}")
        else:
            await self.used(common_name)

    # ---- what is done beside ----

    async def begin(self) -> None:
        """Read what was begun under an earlier gateway; to be called before the first request and the first event."""
        for common_name, certificate_id in (await self._registry.certificates.replacing()).items():
            self._remember_use(common_name, certificate_id)

    async def close(self) -> None:
        """Give up what is being done beside; what is left of it is done at the next use, or the next start."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _later(self, step: Callable[[], Awaitable[None]], what: str) -> None:
        """Do something beside: the next event must not wait for the broker."""
        task = asyncio.create_task(_until_done(step, what))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _until_done(step: Callable[[], Awaitable[None]], what: str) -> None:
    while True:
        try:
            await step()
        except WorldError as error:
            # Whether it may be tried again as it is, or once somebody has mended what the text says.
            _LOG.warning("%s: %s", what, error)
        else:
            return
        await asyncio.sleep(_RETRY_S)


def _means_same(known: CertificateRecord, wanted: CertificateRecord) -> bool:
    return all(
        getattr(known, field) == getattr(wanted, field) for field in ("kind", "name", "role", "template")
    )
