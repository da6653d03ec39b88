"""Things on the platform's own API: registered devices, and how the simulated ones look beside them."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, HTTPException, Query, Request, Response
from pydantic import BaseModel, ConfigDict

from actors.errors import ThingNotFound
from actors.gateway.authentication import caller_of
from actors.gateway.enrolment import DeviceOffice, Enrolment, Wanted, simulated_in
from actors.gateway.iot_bodies import read_body
from actors.gateway.platform_view import DeviceEndpoints, PlatformView
from actors.gateway.problems import document
from actors.gateway.shadow_routes import check_thing_name
from actors.pki import CertificateAuthority
from actors.registry.records import CertificateRecord, FleetRecord, ThingDescription, ThingRecord
from actors.registry.registry import Registry
from actors.registry.things import ADDITION_COUNT_MAX

# A page of things is about 200 bytes each.
_PAGE_SIZE_MAX: Final = 1000
_PAGE_SIZE: Final = 100


class ThingRequest(BaseModel):
    """A device to be created; `csr` is a PKCS #10 signing request for an EC P-256 key, in PEM.

    Without a `csr` it gets no certificate; without a `model`, its type says which device model it has.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    model: str = ""
    thing_type: str = ""
    attributes: dict[str, str] = {}
    groups: list[str] = []
    csr: str | None = None


class _BatchThing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    model: str = ""
    thing_type: str = ""
    attributes: dict[str, str] = {}
    groups: list[str] = []
    csr: str | None = None

    def wanted(self) -> Wanted:
        description = ThingDescription(self.name, self.model, self.attributes, self.thing_type, self.groups)
        return Wanted(description, self.csr)


class _Names(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    things: Annotated[list[str], msgspec.Meta(min_length=1, max_length=ADDITION_COUNT_MAX)]


class _Batch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    things: Annotated[list[_BatchThing], msgspec.Meta(min_length=1, max_length=ADDITION_COUNT_MAX)]


def thing_routes(
    devices: DeviceOffice, registry: Registry, *, authority: CertificateAuthority, platform: PlatformView
) -> APIRouter:
    """Return the routes of things."""
    router = APIRouter(prefix="/v1/things", tags=["things"])

    @router.post("", status_code=201, summary="Create a device and sign its certificate")
    async def create_thing(body: ThingRequest, request: Request) -> Response:
        description = ThingDescription(
            body.name, body.model, body.attributes, body.thing_type, tuple(body.groups)
        )
        enrolment = await devices.create(description, body.csr, by=caller_of(request).name)
        endpoints = endpoints_view(platform.endpoints)
        return document(_enrolment_view(enrolment, authority.certificate_pem()) | endpoints, status=201)

    _add_batches(router, devices)

    @router.get("", summary="List things in name order")
    async def list_things(
        cursor: str = "", limit: Annotated[int, Query(ge=1, le=_PAGE_SIZE_MAX)] = _PAGE_SIZE
    ) -> Response:
        page = await registry.things.page(after=cursor, limit=limit)
        more = {} if page.next_cursor is None else {"next_cursor": page.next_cursor}
        return document({"things": [_thing_view(thing) for thing in page.things], **more})

    @router.get("/{thing}", summary="Describe a thing")
    async def describe_thing(thing: str) -> Response:
        check_thing_name(thing)
        try:
            record = await registry.things.get(thing)
        except ThingNotFound:
            owner = simulated_in(thing, await registry.fleets.all())
            if owner is None:
                raise
            return document(_simulated_view(thing, owner))
        certificates = [
            _certificate_view(certificate) for certificate in await registry.certificates.of_thing(record)
        ]
        return document(_thing_view(record) | {"certificates": certificates})

    @router.delete("/{thing}", summary="Revoke a device's certificates, remove its twin and forget it")
    async def delete_thing(thing: str, request: Request) -> Response:
        check_thing_name(thing)
        try:
            await devices.delete(thing, by=caller_of(request).name)
        except ThingNotFound:
            owner = simulated_in(thing, await registry.fleets.all())
            if owner is not None:
                text = f"{thing!r} is simulated; it goes with its fleet {owner.group.name!r}"
                raise HTTPException(409, text) from None
            raise
        return document({"thing_name": thing})

    return router


def _add_batches(router: APIRouter, devices: DeviceOffice) -> None:
    @router.post("/batch", summary="Create many devices; each for itself is created or refused")
    async def create_things(request: Request) -> Response:
        batch = await read_body(request, _Batch)
        wanted = [thing.wanted() for thing in batch.things]
        outcomes = await devices.create_all(wanted, by=caller_of(request).name)
        results = [
            _outcome_view(one.description.name, outcome)
            for one, outcome in zip(wanted, outcomes, strict=True)
        ]
        return document({"results": results})

    @router.post("/batch-delete", summary="Delete many devices; those that are not registered change nothing")
    async def delete_things(request: Request) -> Response:
        names = (await read_body(request, _Names)).things
        for name in names:
            check_thing_name(name)
        return document({"deleted": await devices.delete_all(names, by=caller_of(request).name)})


def endpoints_view(endpoints: DeviceEndpoints) -> dict[str, Any]:
    """Return where devices connect, as the API says it."""
    https = {} if endpoints.https is None else {"https_devices": {"url": endpoints.https.url}}
    return {"mqtts": {"host": endpoints.mqtts.host, "port": endpoints.mqtts.port}, **https}


def _enrolment_view(enrolment: Enrolment, ca_pem: str) -> dict[str, Any]:
    return {**_thing_view(enrolment.thing), **_issued_view(enrolment), "ca_pem": ca_pem}


def _issued_view(enrolment: Enrolment) -> dict[str, Any]:
    certificate = enrolment.certificate
    if certificate is None:
        return {}
    return {
        "certificate_id": certificate.certificate_id,
        "certificate_pem": certificate.pem,
        "not_after": certificate.not_after_s,
    }


def _outcome_view(name: str, outcome: Enrolment | Exception) -> dict[str, Any]:
    if not isinstance(outcome, Enrolment):
        return {"thing_name": name, "outcome": "refused", "detail": str(outcome)}
    return {
        "thing_name": name,
        "outcome": "created" if outcome.is_new else "present",
        **_issued_view(outcome),
    }


def _thing_view(thing: ThingRecord) -> dict[str, Any]:
    return {
        "thing_name": thing.name,
        "thing_id": thing.thing_id,
        "model": thing.model,
        "thing_type": thing.thing_type,
        "attributes": thing.attributes,
        "groups": thing.groups,
        "version": thing.version,
        "origin": "real",
        "status": thing.status,
        "created_at": thing.created_at_s,
    }


def _simulated_view(thing_name: str, owner: FleetRecord) -> dict[str, Any]:
    return {
        "thing_name": thing_name,
        "model": owner.group.model_name,
        "attributes": {},
        "origin": "simulated",
        "fleet": owner.group.name,
        "status": owner.status,
        "created_at": owner.created_at_s,
        "certificates": [],
    }


def _certificate_view(certificate: CertificateRecord) -> dict[str, Any]:
    return {
        "certificate_id": certificate.certificate_id,
        "serial": certificate.serial,
        "status": certificate.status,
        "created_at": certificate.created_at_s,
        "not_after": certificate.not_after_s,
        "certificate_pem": certificate.pem,
    }
