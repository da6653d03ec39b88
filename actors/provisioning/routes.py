"""Provisioning over HTTP, for an admin: templates, and the claim certificates with which devices come."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict

from actors.errors import RecordInUse
from actors.gateway.authentication import caller_of
from actors.gateway.certificate_routes import certificate_view
from actors.gateway.certificates import CertificateOffice
from actors.gateway.platform_view import PlatformView
from actors.gateway.problems import document
from actors.gateway.thing_routes import endpoints_view
from actors.pki import CertificateAuthority
from actors.provisioning.hook import check_hook
from actors.provisioning.template import ProvisioningTemplate, check_template_name
from actors.registry.registry import Registry
from actors.registry.templates import TemplateRecord
from twins.clock import Clock


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TemplateRequest(_Body):
    """A provisioning template; `body` is its JSON document as text, `hook` a Python function or an address."""

    name: str
    body: str
    hook: str = ""


class ClaimCertificateRequest(_Body):
    """A claim certificate for a template; `csr` is a PKCS #10 signing request for an EC P-256 key, in PEM."""

    name: str
    template: str
    csr: str


class TemplateOffice:
    """Creates and deletes provisioning templates, and claims for them, one at a time."""

    def __init__(self, registry: Registry, certificates: CertificateOffice, *, clock: Clock) -> None:
        self.templates = registry.templates
        self.certificates = certificates
        self._clock = clock
        # A template is not deleted while a claim is being made for it.
        self._turn = asyncio.Lock()

    async def create(self, name: str, body: str, *, hook: str, by: str) -> TemplateRecord:
        """Return a new template; DescriptionError for what is wrong with it, RecordExists if its name is taken."""
        check_template_name(name)
        ProvisioningTemplate.parse(body)
        if hook:
            await check_hook(hook)
        record = TemplateRecord(name, body, int(self._clock.now_s()), hook)
        async with self._turn:
            await self.templates.add(record, by=by)
        return record

    async def delete(self, name: str, *, by: str) -> TemplateRecord:
        """Forget a template and return what it was; RecordInUse while a claim in force names it."""
        async with self._turn:
            claims = [
                repr(one.name)
                for one in await self.certificates.of_kind("claim")
                if one.is_in_force and one.template == name
            ]
            if claims:
                plural = "s" if len(claims) > 1 else ""
                raise RecordInUse("provisioning template", name, f"claim{plural} {', '.join(claims)}")
            return await self.templates.remove(name, by=by)

    async def create_claim(self, name: str, template: str, csr_pem: str, *, by: str) -> dict[str, Any]:
        """Return a new claim certificate as the API shows it; RecordNotFound if there is no such template."""
        async with self._turn:
            await self.templates.get(template)
            return certificate_view(await self.certificates.create_claim(name, template, csr_pem, by=by))


def provisioning_routes(
    office: TemplateOffice, *, authority: CertificateAuthority, platform: PlatformView
) -> APIRouter:
    """Return the routes of templates and claims."""
    router = APIRouter(prefix="/v1/provisioning", tags=["provisioning"])

    @router.post("/templates", status_code=201, summary="Create a provisioning template")
    async def create_template(body: TemplateRequest, request: Request) -> Response:
        caller = caller_of(request).name
        record = await office.create(body.name, body.body, hook=body.hook, by=caller)
        return document(_template_view(record), status=201)

    @router.get("/templates", summary="List the provisioning templates")
    async def list_templates() -> Response:
        records = await office.templates.all()
        return document({"templates": [_summary(record) for record in records]})

    @router.get("/templates/{name}", summary="Describe a provisioning template")
    async def describe_template(name: str) -> Response:
        return document(_template_view(await office.templates.get(name)))

    @router.delete("/templates/{name}", summary="Delete a provisioning template that no claim names")
    async def delete_template(name: str, request: Request) -> Response:
        return document(_summary(await office.delete(name, by=caller_of(request).name)))

    @router.post("/claims", status_code=201, summary="Sign a claim certificate for a template")
    async def create_claim(body: ClaimCertificateRequest, request: Request) -> Response:
        view = await office.create_claim(body.name, body.template, body.csr, by=caller_of(request).name)
        connection = {"ca_pem": authority.certificate_pem()} | endpoints_view(platform.endpoints)
        return document(view | connection, status=201)

    @router.get("/claims", summary="List the claim certificates")
    async def list_claims() -> Response:
        records = await office.certificates.of_kind("claim")
        return document({"certificates": [certificate_view(record) for record in records]})

    @router.delete("/claims/{name}", summary="Revoke a claim certificate")
    async def revoke_claim(name: str, request: Request) -> Response:
        records = await office.certificates.revoke_named("claim", name, by=caller_of(request).name)
        return document({"certificates": [certificate_view(record) for record in records]})

    return router


def _summary(record: TemplateRecord) -> dict[str, Any]:
    hook = {"hook": record.hook} if record.hook else {}
    return {"name": record.name, **hook, "created_at": record.created_at_s}


def _template_view(record: TemplateRecord) -> dict[str, Any]:
    template = ProvisioningTemplate.parse(record.body)
    return {
        **_summary(record),
        "parameters": [
            {"name": name, **({} if default is None else {"default": default})}
            for name, default in template.defaults.items()
        ],
        "notes": list(template.notes),
        "body": record.body,
    }
