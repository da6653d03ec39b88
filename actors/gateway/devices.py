"""The devices' API over HTTPS: each may read and change its own shadows and jobs, publish on its topics, and no more.

TLS has checked that the client certificate is one of the platform's; here it is held against the registry, at
every request, so that a certificate revoked a moment ago opens nothing, not even on an old connection.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi import Depends, FastAPI, HTTPException, Request

from actors.fleet import Fleet
from actors.gateway.data_routes import publish_routes
from actors.gateway.jobs_routes import jobs_data_routes
from actors.gateway.messaging import Messaging
from actors.gateway.middleware import BodyLimit, InFlightLimit, RequestMetrics
from actors.gateway.problems import install_problems
from actors.gateway.shadow_routes import listing_routes, shadow_routes
from actors.metrics import GatewayMetrics
from actors.pki import Principal, certificate_id_of, principal_of
from actors.registry.registry import Registry
from twins.topics import may_publish

# Where the server puts the client's certificate (DER); a key of our own inside ASGI's place for such things.
TLS_EXTENSION = "tls"
CLIENT_CERTIFICATE = "client_certificate_der"

UseNoted = Callable[[str], Awaitable[None]]
PrincipalSource = Callable[[Mapping[str, Any]], Awaitable[Principal | None]]


def create_device_app(
    *, fleet: Fleet, messaging: Messaging, principal_from_scope: PrincipalSource, metrics: GatewayMetrics
) -> FastAPI:
    """Return the devices' application; `principal_from_scope` tells who stands behind a connection, None: nobody."""
    # Without a description: devices know what they may ask.
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)

    async def principal_of_request(request: Request) -> Principal:
        principal = await principal_from_scope(request.scope)
        if principal is None:
            text = "this certificate is revoked, retired or not registered; create the device anew or rotate"
            raise HTTPException(403, text)
        return principal

    async def require_own_thing(thing: str, request: Request) -> None:
        principal = await principal_of_request(request)
        if principal != Principal("thing", thing):
            raise HTTPException(403, f"{_whose(principal)}, which may not touch {thing!r}")

    async def require_own_topic(request: Request, topic: str) -> None:
        principal = await principal_of_request(request)
        if principal.kind != "thing" or not may_publish(principal.name, topic):
            raise HTTPException(403, f"{_whose(principal)}, which may not publish on {topic!r}")

    install_problems(app)
    own_thing = [Depends(require_own_thing)]
    app.include_router(shadow_routes(fleet), dependencies=own_thing)
    app.include_router(listing_routes(fleet), dependencies=own_thing)
    app.include_router(jobs_data_routes(fleet), dependencies=own_thing)
    app.include_router(publish_routes(messaging, require_own_topic))
    app.add_middleware(InFlightLimit)
    app.add_middleware(BodyLimit)
    app.add_middleware(RequestMetrics, metrics=metrics, listener="devices")
    return app


def _whose(principal: Principal) -> str:
    return f"this certificate is for {principal.kind} {principal.name!r}"


def registered_principal(registry: Registry, *, used: UseNoted | None = None) -> PrincipalSource:
    """Return a function that gives the principal of a connection's certificate, if it is registered and in force.

    It tells `used` the id of each certificate that it accepts.
    """

    async def principal(scope: Mapping[str, Any]) -> Principal | None:
        encoded = scope.get("extensions", {}).get(TLS_EXTENSION, {}).get(CLIENT_CERTIFICATE)
        if encoded is None:
            return None
        certificate = x509.load_der_x509_certificate(encoded)
        key = certificate.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            return None
        record = await registry.certificates.get(certificate_id_of(key))
        if record is None or not record.is_in_force or record.serial != str(certificate.serial_number):
            return None
        found = principal_of(certificate, {record.certificate_id: record.thing_name or None}.get)
        if found != Principal(record.kind, record.thing_name if record.kind == "thing" else record.name):
            return None
        if used is not None:
            await used(record.certificate_id)
        return found

    return principal
