"""What a device gets that comes with a claim: first a certificate, then, with its token, a thing.

Owns the answers and their order towards the registry: what is answered is kept. Whose request it is, and when an answer
may leave, is decided before and after (`turns`).
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from actors.errors import (
    OperatorError,
    ProvisioningRefused,
    ThingExists,
    ThingNotFound,
    WorldError,
)
from actors.gateway.arns import template_arn
from actors.gateway.enrolment import DeviceOffice, ThingChange
from actors.gateway.grouping import GroupOffice
from actors.gateway.platform_view import PlatformView
from actors.pki import CertificateAuthority, generate_key_and_csr
from actors.provisioning.hook import ask_hook
from actors.provisioning.template import ProvisionedThing, ProvisioningTemplate
from actors.provisioning.turns import ClaimAnswer, ClaimRequest
from actors.registry.records import CertificateRecord, ThingDescription, ThingRecord
from actors.registry.registry import Registry
from actors.registry.templates import TokenRecord, certificate_of_token, new_token
from twins.clock import Clock
from twins.errors import ModelError

CREATE_KEYS_TOPIC: Final = "$aws/certificates/create/json"
CREATE_FROM_CSR_TOPIC: Final = "$aws/certificates/create-from-csr/json"
_PROVISION_TOPIC: Final = re.compile(r"\$aws/provisioning-templates/([^/]+)/provision/json")
# Requests, and the platform's own answers, which come back as echoes.
TOPIC_FILTERS: Final = tuple(
    f"{request}{end}"
    for request in (CREATE_KEYS_TOPIC, CREATE_FROM_CSR_TOPIC, "$aws/provisioning-templates/+/provision/json")
    for end in ("", "/accepted", "/rejected")
)
# A signing request has 4,096 characters at most; the rest is room for parameters.
_PAYLOAD_BYTES_MAX: Final = 16_384
# Certificates of one claim that wait for their thing; a factory's line has a few. Beyond it, somebody plays with it.
_TOKEN_COUNT_MAX: Final = 1_000
_BAD_TOKEN: Final = "InvalidCertificateOwnershipToken"
_SPENT: Final = "Certificate ownership token is not valid, or no longer."
# AWS IoT's bound of a message; ours is larger, but what it takes is no device configuration.
_ANSWER_BYTES_MAX: Final = 131_072
_LOG: Final = logging.getLogger(__name__)


class _CsrRequest(msgspec.Struct, frozen=True, rename="camel"):
    certificate_signing_request: str


class _ProvisionRequest(msgspec.Struct, frozen=True, rename="camel"):
    certificate_ownership_token: str = ""
    parameters: dict[str, str] | None = None


class ProvisioningOffice:
    """Answers the requests of claims, and sees to certificates that nobody came back for."""

    def __init__(
        self,
        registry: Registry,
        devices: DeviceOffice,
        *,
        authority: CertificateAuthority,
        platform: PlatformView,
        clock: Clock,
    ) -> None:
        self._registry = registry
        self._devices = devices
        self._groups = GroupOffice(registry, devices.events, turn=devices.turn, clock=clock)
        self._authority = authority
        self._platform = platform
        self._clock = clock

    async def answer(self, claim: str, request: ClaimRequest) -> ClaimAnswer:
        """Return the answer to a request of the claim with this common name; every request has one."""
        try:
            certificate = await self._claim_certificate(claim)
            if len(request.payload) > _PAYLOAD_BYTES_MAX:
                text = f"The payload has more than {_PAYLOAD_BYTES_MAX} bytes"
                raise ProvisioningRefused(413, "PayloadTooLarge", text)
            return await self._accepted(certificate, request)
        except ProvisioningRefused as refusal:
            return _rejected(request, refusal)
        except ThingExists as refusal:
            return _rejected(request, ProvisioningRefused(409, "ResourceConflict", str(refusal)))
        except (OperatorError, ModelError) as refusal:
            return _rejected(request, ProvisioningRefused(400, "InvalidParameters", str(refusal)))
        except WorldError as error:
            _LOG.warning("a device of %s could not be served: %s", claim, error)
            failure = ProvisioningRefused(503, "ServiceUnavailable", "Try again")
            return _rejected(request, failure)

    async def _accepted(self, claim: CertificateRecord, request: ClaimRequest) -> ClaimAnswer:
        if request.topic == CREATE_KEYS_TOPIC:
            # The name in the request counts for nothing.
            pair = generate_key_and_csr(claim.name)
            return await self._issue(claim, request, pair.csr_pem, private_key=pair.private_key_pem)
        if request.topic == CREATE_FROM_CSR_TOPIC:
            wanted = _decoded(request.payload, _CsrRequest)
            return await self._issue(claim, request, wanted.certificate_signing_request)
        found = _PROVISION_TOPIC.fullmatch(request.topic)
        if found is None or found[1] != claim.template:
            text = f"Claim {claim.name} is for template {claim.template} only"
            raise ProvisioningRefused(403, "ACCESS_DENIED", text)
        return await self._provision(claim, request)

    async def _claim_certificate(self, claim: str) -> CertificateRecord:
        for certificate in await self._registry.certificates.of_kind("claim"):
            if certificate.common_name == claim and certificate.is_in_force:
                return certificate
        raise ProvisioningRefused(403, "ACCESS_DENIED", "The claim is not in force")

    # ---- certificates ----

    async def _issue(
        self, claim: CertificateRecord, request: ClaimRequest, csr_pem: str, *, private_key: str = ""
    ) -> ClaimAnswer:
        if await self._registry.tokens.count(claim.name) >= _TOKEN_COUNT_MAX:
            text = (
                f"{_TOKEN_COUNT_MAX} certificates of this claim wait for their things; try again in an hour"
            )
            raise ProvisioningRefused(429, "Throttled", text)
        issued = self._authority.issue_unnamed(csr_pem, clock=self._clock)
        await self._forget_waiting(issued.certificate_id)
        now_s = self._clock.now_s()
        token, text = new_token(issued.certificate_id, claim.name, now_s=now_s)
        certificate = CertificateRecord(
            certificate_id=issued.certificate_id,
            thing_name="",
            common_name=issued.common_name,
            serial=str(issued.serial),
            pem=issued.certificate_pem,
            created_at_s=int(now_s),
            not_after_s=int(issued.expires_at_s),
            status="PENDING_ACTIVATION",
            template=claim.template,
        )
        # The token first: through it a certificate is found again that was cut off here.
        await self._registry.tokens.add(token, by=claim.common_name)
        await self._registry.certificates.add(certificate, by=claim.common_name)
        body = {
            "certificateId": issued.certificate_id,
            "certificatePem": issued.certificate_pem,
            **({"privateKey": private_key} if private_key else {}),
            "certificateOwnershipToken": text,
        }
        return _answer(request, body, certificate_id=issued.certificate_id)

    async def _forget_waiting(self, certificate_id: str) -> None:
        """Let a device that asks again with the same key have another certificate, if it has not become a thing."""
        token = await self._registry.tokens.of_certificate(certificate_id)
        if token is not None:
            await self._forget(token)

    async def hand_over(self, certificate_id: str) -> None:
        """Let the token of a certificate count: it has reached the device that asked."""
        token = await self._registry.tokens.of_certificate(certificate_id)
        if token is not None:
            await self._registry.tokens.hand_over(token, by="platform")

    async def burn(self, certificate_id: str) -> None:
        """Make a certificate and its token count for nothing, unless it is a thing's already."""
        token = await self._registry.tokens.of_certificate(certificate_id)
        if token is not None:
            await self._forget(token)

    async def burn_unsettled(self) -> None:
        """Burn what an earlier gateway has sent without learning who got it; to be called before the first request."""
        for token in await self._registry.tokens.not_handed_over():
            await self._forget(token)

    async def forget_expired(self) -> int:
        """Delete the certificates whose token has expired, and return how many; the next reload bars them."""
        expired = await self._registry.tokens.expired(self._clock.now_s())
        for token in expired:
            await self._forget(token)
        return len(expired)

    async def _forget(self, token: TokenRecord) -> None:
        certificate = await self._registry.certificates.get(token.certificate_id)
        if certificate is not None and certificate.status == "PENDING_ACTIVATION":
            await self._registry.certificates.forget(certificate, by="platform")
        # Last: cut off before, this is done again.
        await self._registry.tokens.remove(token, by="platform")

    # ---- things ----

    async def _provision(self, claim: CertificateRecord, request: ClaimRequest) -> ClaimAnswer:
        wanted = _decoded(request.payload, _ProvisionRequest)
        token, certificate = await self._proven(claim, wanted.certificate_ownership_token)
        record = await self._registry.templates.get(claim.template)
        parameters: Mapping[str, str] = wanted.parameters or {}
        if record.hook:
            question = {
                "claimCertificateId": claim.certificate_id,
                "certificateId": certificate.certificate_id,
                "certificatePem": certificate.pem,
                "templateArn": template_arn(claim.template),
                "clientId": claim.common_name,
                "parameters": parameters,
            }
            parameters = {**parameters, **await ask_hook(record.hook, question)}
        template = ProvisioningTemplate.parse(record.body)
        wished = template.evaluate(parameters, certificate_id=certificate.certificate_id)
        body = {"thingName": wished.thing_name, "deviceConfiguration": wished.device_configuration}
        answer = _answer(request, body, is_provisioned=True)
        if len(answer.payload) > _ANSWER_BYTES_MAX:
            text = f"The device configuration would have more than {_ANSWER_BYTES_MAX} bytes"
            raise ProvisioningRefused(400, "InvalidParameters", text)
        if certificate.status == "PENDING_ACTIVATION":
            await self._activate(certificate, template, wished, by=claim.common_name)
        elif certificate.thing_name != wished.thing_name:
            raise ProvisioningRefused(400, _BAD_TOKEN, _SPENT)
        await self._platform.reload_access()
        # Last: cut off before, the same request does the rest.
        await self._registry.tokens.remove(token, by=claim.common_name)
        return answer

    async def _activate(
        self,
        certificate: CertificateRecord,
        template: ProvisioningTemplate,
        wished: ProvisionedThing,
        *,
        by: str,
    ) -> None:
        """Make the thing, and the certificate its own."""
        thing = await self._thing(template, wished, by=by)
        active = msgspec.structs.replace(certificate, thing_name=thing.name, status="ACTIVE")
        await self._registry.certificates.change(certificate, active, action="certificate.provision", by=by)

    async def _proven(self, claim: CertificateRecord, text: str) -> tuple[TokenRecord, CertificateRecord]:
        if not text:
            raise ProvisioningRefused(400, _BAD_TOKEN, "Certificate ownership token cannot be empty.")
        certificate_id = certificate_of_token(text)
        token = await self._registry.tokens.of_certificate(certificate_id)
        certificate = await self._registry.certificates.get(certificate_id)
        is_good = token is not None and token.proves(text, claim=claim.name, now_s=self._clock.now_s())
        # ACTIVE with a token: what made it so was cut off before the end.
        is_waiting = certificate is not None and certificate.status in {"PENDING_ACTIVATION", "ACTIVE"}
        if token is None or certificate is None or not is_good or not is_waiting:
            raise ProvisioningRefused(400, _BAD_TOKEN, _SPENT)
        return token, certificate

    async def _thing(
        self, template: ProvisioningTemplate, wished: ProvisionedThing, *, by: str
    ) -> ThingRecord:
        present: ThingRecord | None = None
        with contextlib.suppress(ThingNotFound):
            present = await self._registry.things.get(wished.thing_name)
        if present is not None:
            _refuse_conflict(template, wished, present)
        description = ThingDescription(
            wished.thing_name,
            attributes=wished.attributes,
            thing_type=wished.thing_type,
            groups=wished.groups,
        )
        thing = await self._devices.ensure(description, by=by)
        return thing if present is None else await self._changed(template, wished, thing, by=by)

    async def _changed(
        self, template: ProvisioningTemplate, wished: ProvisionedThing, thing: ThingRecord, *, by: str
    ) -> ThingRecord:
        """Return a thing that was there already, after what the template wants changed of it."""
        overrides = template.overrides
        attributes = wished.attributes if overrides.attributes in {"REPLACE", "MERGE"} else None
        thing_type = wished.thing_type if overrides.thing_type == "REPLACE" else None
        if attributes is not None or thing_type is not None:
            change = ThingChange(attributes, overrides.attributes == "MERGE", thing_type)
            thing = await self._devices.update(thing.name, change, by=by)
        left = set(thing.groups) - set(wished.groups) if overrides.groups == "REPLACE" else set()
        joined = set(wished.groups) - set(thing.groups) if overrides.groups in {"REPLACE", "MERGE"} else set()
        if joined or left:
            await self._groups.move(thing.name, joined=joined, left=left, by=by)
        return thing


def _refuse_conflict(template: ProvisioningTemplate, wished: ProvisionedThing, present: ThingRecord) -> None:
    overrides = template.overrides
    for name, setting, is_same in (
        ("AttributePayload", overrides.attributes, wished.attributes == present.attributes),
        ("ThingTypeName", overrides.thing_type, wished.thing_type == present.thing_type),
        ("ThingGroups", overrides.groups, sorted(wished.groups) == sorted(present.groups)),
    ):
        if setting == "FAIL" and not is_same:
            text = f"Thing {present.name} exists with another {name}, which the template does not change"
            raise ProvisioningRefused(409, "ResourceConflict", text)


def _decoded(payload: bytes, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(payload or b"{}", type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProvisioningRefused(400, "InvalidRequest", f"The payload is not good: {error}") from None


def _answer(
    request: ClaimRequest, body: Mapping[str, Any], *, certificate_id: str = "", is_provisioned: bool = False
) -> ClaimAnswer:
    encoded = msgspec.json.encode(body)
    return ClaimAnswer(f"{request.topic}/accepted", encoded, certificate_id, is_provisioned)


def _rejected(request: ClaimRequest, refusal: ProvisioningRefused) -> ClaimAnswer:
    body = {
        "statusCode": refusal.status,
        "errorCode": refusal.error_code,
        "errorMessage": refusal.problem,
    }
    return ClaimAnswer(f"{request.topic}/rejected", msgspec.json.encode(body))
