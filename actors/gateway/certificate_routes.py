"""Certificates over HTTP: of things, exchanged and revoked by an operator; of applications, by an admin."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict

from actors.gateway.authentication import caller_of
from actors.gateway.certificates import CertificateOffice
from actors.gateway.platform_view import PlatformView
from actors.gateway.problems import document
from actors.gateway.shadow_routes import check_thing_name
from actors.gateway.thing_routes import endpoints_view
from actors.pki import CertificateAuthority
from actors.registry.records import CertificateRecord


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class RotationRequest(_Body):
    """A further certificate of a thing; `csr` is a PKCS #10 signing request for an EC P-256 key, in PEM."""

    csr: str


class ApplicationRequest(_Body):
    """An application's certificate; `csr` as for a thing."""

    name: str
    role: Literal["observer", "operator"]
    csr: str


def certificate_routes(
    office: CertificateOffice, *, authority: CertificateAuthority, platform: PlatformView
) -> APIRouter:
    """Return the routes of certificates."""
    router = APIRouter(tags=["certificates"])

    def issued(record: CertificateRecord) -> Response:
        connection = {"ca_pem": authority.certificate_pem()} | endpoints_view(platform.endpoints)
        return document(certificate_view(record) | connection, status=201)

    @router.get("/v1/things/{thing}/certificates", summary="List a thing's certificates, old before new")
    async def list_of_thing(thing: str) -> Response:
        check_thing_name(thing)
        return _listed(await office.of_thing(thing))

    @router.post(
        "/v1/things/{thing}/certificates",
        status_code=201,
        summary="Sign a further certificate, whose first use retires the present one",
    )
    async def rotate(thing: str, body: RotationRequest, request: Request) -> Response:
        check_thing_name(thing)
        return issued(await office.rotate(thing, body.csr, by=caller_of(request).name))

    @router.delete("/v1/things/{thing}/certificates", summary="Revoke all of a thing's certificates")
    async def revoke_all(thing: str, request: Request) -> Response:
        check_thing_name(thing)
        return _listed(await office.revoke_thing(thing, by=caller_of(request).name))

    @router.delete("/v1/things/{thing}/certificates/{certificate}", summary="Revoke a certificate of a thing")
    async def revoke_one(thing: str, certificate: str, request: Request) -> Response:
        check_thing_name(thing)
        return _listed(await office.revoke_thing(thing, certificate, by=caller_of(request).name))

    @router.post(
        "/v1/certificates/applications", status_code=201, summary="Sign an application's certificate"
    )
    async def create_application(body: ApplicationRequest, request: Request) -> Response:
        caller = caller_of(request).name
        return issued(await office.create_application(body.name, body.role, body.csr, by=caller))

    @router.get("/v1/certificates", summary="List the certificates of applications, or of claims")
    async def list_named(
        kind: Annotated[Literal["application", "claim"], Query()] = "application",
    ) -> Response:
        return _listed(await office.of_kind(kind))

    @router.delete("/v1/certificates/applications/{name}", summary="Revoke an application's certificate")
    async def revoke_application(name: str, request: Request) -> Response:
        return _listed(await office.revoke_named("application", name, by=caller_of(request).name))

    return router


def certificate_view(record: CertificateRecord) -> dict[str, Any]:
    """Return a certificate as the API shows it, without what does not apply to its kind."""
    particular = {
        "thing_name": record.thing_name,
        "name": record.name,
        "role": record.role,
        "template": record.template,
        "replaces": record.replaces,
    }
    return {
        "certificate_id": record.certificate_id,
        "kind": record.kind,
        **{key: value for key, value in particular.items() if value},
        "common_name": record.common_name,
        "serial": record.serial,
        "status": record.status,
        "created_at": record.created_at_s,
        "not_after": record.not_after_s,
        "certificate_pem": record.pem,
    }


def _listed(records: Iterable[CertificateRecord]) -> Response:
    return document({"certificates": [certificate_view(record) for record in records]})
