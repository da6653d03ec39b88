"""The operators' API: things, shadows, telemetry, standing fleets and the state of the platform.

Everything needs the operators' token, except whether the platform lives, whether it is ready, and its
metrics.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Response
from fastapi.security import HTTPBearer
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict, Field

from actors.errors import ThingNotFound, WorldError
from actors.fleet import Fleet
from actors.gateway.enrolment import DeviceOffice, Enrolment, simulated_in
from actors.gateway.middleware import BearerToken, BodyLimit, RequestMetrics
from actors.gateway.platform_view import DeviceEndpoints, PlatformView, Readiness
from actors.gateway.problems import document, install_problems
from actors.gateway.shadow_routes import ask, check_thing_name, listing_routes, shadow_routes
from actors.gateway.standing_fleets import FleetDescription, FleetOffice
from actors.metrics import GatewayMetrics
from actors.pki import CertificateAuthority
from actors.registry.records import CertificateRecord, FleetRecord, ThingRecord
from actors.registry.registry import Registry
from actors.wall_clock import WallClock
from twins.messages import Operation

OPEN_PATHS: Final = ("/healthz", "/readyz", "/metrics")
# A page of things is about 200 bytes each.
_PAGE_SIZE_MAX: Final = 1000
_PAGE_SIZE: Final = 100
# A device that reports once a day is silent enough.
_REPORT_EVERY_MAX_S: Final = 86_400


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ThingRequest(_Body):
    """A device to be created; `csr` is a PKCS #10 signing request for an EC P-256 key, in PEM."""

    name: str
    model: str = "untyped"
    attributes: dict[str, str] = {}
    csr: str


class FleetRequest(_Body):
    """A standing simulated fleet to be created."""

    name: str
    model: str
    count: Annotated[int, Field(ge=1)]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    report_every_s: Annotated[int, Field(ge=1, le=_REPORT_EVERY_MAX_S)] = 10


def create_app(
    *,
    fleet: Fleet,
    registry: Registry,
    authority: CertificateAuthority,
    platform: PlatformView,
    operator_token: str,
) -> FastAPI:
    """Return the operators' application.

    Its `state.metrics` are to be shared with the devices' application; `await state.settle()` completes what
    an earlier gateway began and comes before the first request.
    """
    app = FastAPI(
        title="twinfleet",
        version="1",
        # Their pages load scripts from other hosts.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    metrics = GatewayMetrics()
    devices = DeviceOffice(fleet, registry, authority=authority, platform=platform)
    fleets = FleetOffice(fleet, registry, turn=devices.turn)

    async def settle() -> None:
        await devices.settle()
        await fleets.settle()

    app.state.metrics = metrics
    app.state.settle = settle
    install_problems(app)
    # Only for the description of the API; the middleware checks the token.
    guarded = [Depends(HTTPBearer(auto_error=False))]
    app.include_router(shadow_routes(fleet), dependencies=guarded)
    app.include_router(listing_routes(fleet), dependencies=guarded)
    app.include_router(_twin_routes(fleet), dependencies=guarded)
    things = _thing_routes(devices, registry, authority=authority, platform=platform)
    app.include_router(things, dependencies=guarded)
    app.include_router(_fleet_routes(fleets, registry), dependencies=guarded)
    app.include_router(_cluster_routes(registry, platform), dependencies=guarded)
    app.include_router(_probe_routes(registry, platform, metrics))
    # The last one added is the first one asked.
    app.add_middleware(BodyLimit)
    app.add_middleware(BearerToken, token=operator_token, open_paths=OPEN_PATHS)
    app.add_middleware(RequestMetrics, metrics=metrics, listener="operators")
    return app


def _twin_routes(fleet: Fleet) -> APIRouter:
    router = APIRouter(tags=["twins"])

    @router.get("/v1/twins/{thing}/telemetry", summary="Get last values and sliding-window aggregates")
    async def get_telemetry(thing: str) -> Response:
        return await ask(fleet, Operation.TELEMETRY_GET, thing)

    return router


def _thing_routes(
    devices: DeviceOffice, registry: Registry, *, authority: CertificateAuthority, platform: PlatformView
) -> APIRouter:
    router = APIRouter(prefix="/v1/things", tags=["things"])
    clock = WallClock()

    @router.post("", status_code=201, summary="Create a device and sign its certificate")
    async def create_thing(body: ThingRequest) -> Response:
        enrolment = await devices.create(
            body.name, body.model, attributes=body.attributes, csr_pem=body.csr, clock=clock
        )
        endpoints = _endpoints_view(platform.endpoints)
        return document(_enrolment_view(enrolment, authority.certificate_pem()) | endpoints, status=201)

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
    async def delete_thing(thing: str) -> Response:
        check_thing_name(thing)
        try:
            await devices.delete(thing)
        except ThingNotFound:
            owner = simulated_in(thing, await registry.fleets.all())
            if owner is not None:
                text = f"{thing!r} is simulated; it goes with its fleet {owner.group.name!r}"
                raise HTTPException(409, text) from None
            raise
        return document({"thing_name": thing})

    return router


def _fleet_routes(fleets: FleetOffice, registry: Registry) -> APIRouter:
    router = APIRouter(prefix="/v1/fleets", tags=["fleets"])
    clock = WallClock()

    @router.post("", status_code=201, summary="Create a standing simulated fleet")
    async def create_fleet(body: FleetRequest) -> Response:
        description = FleetDescription(body.name, body.model, body.count, body.seed, body.report_every_s)
        record = await fleets.create(description.group(start_s=int(clock.now_s())))
        return document(_fleet_view(record), status=201)

    @router.get("", summary="List the standing fleets")
    async def list_fleets() -> Response:
        return document({"fleets": [_fleet_view(fleet) for fleet in await registry.fleets.all()]})

    @router.delete("/{name}", summary="Remove a standing fleet with all its twins")
    async def delete_fleet(name: str) -> Response:
        await fleets.delete(name)
        return document({"name": name})

    return router


def _cluster_routes(registry: Registry, platform: PlatformView) -> APIRouter:
    router = APIRouter(tags=["platform"])

    @router.get("/v1/cluster", summary="Describe the processes of the platform")
    async def describe_cluster() -> Response:
        processes = await platform.processes()
        readiness = Readiness.of(processes)
        fleets = [_fleet_view(fleet) for fleet in await registry.fleets.all()]
        return document(
            {
                "is_ready": readiness.is_ready,
                "reasons": readiness.reasons,
                "processes": [dataclasses.asdict(process) for process in processes],
                "thing_count": await registry.things.count(),
                "fleets": fleets,
                **_endpoints_view(platform.endpoints),
            }
        )

    return router


def _probe_routes(registry: Registry, platform: PlatformView, metrics: GatewayMetrics) -> APIRouter:
    router = APIRouter(tags=["probes"])

    @router.get("/healthz", summary="Tell that the gateway lives")
    async def is_healthy() -> Response:
        return document({"status": "ok"})

    @router.get("/readyz", summary="Tell whether the platform serves")
    async def is_ready() -> Response:
        readiness = Readiness.of(await platform.processes())
        content = {"status": "ready" if readiness.is_ready else "unready", "reasons": readiness.reasons}
        return document(content, status=200 if readiness.is_ready else 503)

    @router.get("/metrics", summary="Give the metrics in Prometheus's text format")
    async def give_metrics() -> Response:
        try:
            sizes = {fleet.group.name: fleet.group.count for fleet in await registry.fleets.all()}
            things = await registry.things.count()
            content = metrics.exposition(await platform.processes(), thing_count=things, fleet_sizes=sizes)
        except WorldError:
            # While a part is away, the absence of its numbers is the news.
            content = metrics.own_exposition()
        return Response(content, media_type=CONTENT_TYPE_LATEST)

    return router


def _enrolment_view(enrolment: Enrolment, ca_pem: str) -> dict[str, Any]:
    certificate = enrolment.certificate
    return {
        **_thing_view(enrolment.thing),
        "certificate_id": certificate.certificate_id,
        "certificate_pem": certificate.pem,
        "not_after": certificate.not_after_s,
        "ca_pem": ca_pem,
    }


def _endpoints_view(endpoints: DeviceEndpoints) -> dict[str, Any]:
    https = {} if endpoints.https is None else {"https_devices": {"url": endpoints.https.url}}
    return {"mqtts": {"host": endpoints.mqtts.host, "port": endpoints.mqtts.port}, **https}


def _thing_view(thing: ThingRecord) -> dict[str, Any]:
    return {
        "thing_name": thing.name,
        "model": thing.model,
        "attributes": thing.attributes,
        "origin": "real",
        "status": thing.status,
        "created_at": thing.created_at_s,
    }


def _simulated_view(thing_name: str, owner: FleetRecord) -> dict[str, Any]:
    return {
        "thing_name": thing_name,
        "model": owner.group.model,
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


def _fleet_view(fleet: FleetRecord) -> dict[str, Any]:
    return {
        "name": fleet.group.name,
        "model": fleet.group.model,
        "count": fleet.group.count,
        "seed": fleet.group.seed,
        "thing_name": fleet.group.thing_name,
        "report_every_s": fleet.group.report_every_ticks * fleet.group.tick_s,
        "status": fleet.status,
        "created_at": fleet.created_at_s,
    }
