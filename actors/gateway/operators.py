"""The operators' API: things, shadows, telemetry, standing fleets and the state of the platform.

Everything needs the operators' token or an access key's signature, except whether the platform lives, whether it is
ready, and its metrics.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.security import HTTPBearer
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict, Field

from actors.errors import StoreError, WorldError
from actors.fleet import Fleet
from actors.gateway.authentication import Authentication, Identity, caller_of
from actors.gateway.certificate_routes import certificate_routes
from actors.gateway.certificates import CertificateOffice
from actors.gateway.command_routes import command_routes
from actors.gateway.data_routes import operators_may_publish, publish_routes, retained_routes
from actors.gateway.enrolment import DeviceOffice
from actors.gateway.iot_commands import CommandDesk, iot_command_routes
from actors.gateway.iot_jobs import JobOffice, iot_job_routes
from actors.gateway.iot_routes import iot_routes
from actors.gateway.jobs_routes import jobs_routes
from actors.gateway.key_routes import key_routes
from actors.gateway.middleware import BodyLimit, InFlightLimit, RequestMetrics
from actors.gateway.platform_view import PlatformView, Readiness
from actors.gateway.problems import document, install_problems
from actors.gateway.query_routes import query_routes
from actors.gateway.searching import FleetSearch
from actors.gateway.shadow_routes import ask, listing_routes, shadow_routes
from actors.gateway.sql_desk import SqlDesk
from actors.gateway.sql_routes import sql_routes
from actors.gateway.standing_fleets import FleetDescription, FleetOffice
from actors.gateway.thing_routes import endpoints_view, thing_routes
from actors.metrics import GatewayMetrics
from actors.pki import CertificateAuthority
from actors.registry.records import FleetRecord
from actors.registry.registry import Registry
from actors.wall_clock import WallClock
from twins.messages import Operation

OPEN_PATHS: Final = ("/healthz", "/readyz", "/metrics")
# Only for the description of the API; the middleware checks the token.
GUARDED: Final = (Depends(HTTPBearer(auto_error=False)),)
# A device that reports once a day is silent enough.
_REPORT_EVERY_MAX_S: Final = 86_400


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class FleetRequest(_Body):
    """A standing simulated fleet to be created; `model` names a shipped model, or is one: the data of a model file."""

    name: str
    model: str | dict[str, Any]
    count: Annotated[int, Field(ge=1)]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    report_every_s: Annotated[int, Field(ge=1, le=_REPORT_EVERY_MAX_S)] | None = None


def create_app(
    *,
    fleet: Fleet,
    registry: Registry,
    authority: CertificateAuthority,
    platform: PlatformView,
    identity: Identity,
) -> FastAPI:
    """Return the operators' application.

    Its `state.metrics` are to be shared with the devices' application, `state.certificates` is to hear the broker's
    events, `state.devices` creates what is provisioned, `state.sql_engine` is to be closed with it;
    `await state.settle()` completes what an earlier gateway began and comes before the first request.
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
    certificates = CertificateOffice(registry, authority=authority, platform=platform)
    devices = DeviceOffice(fleet, registry, certificates=certificates, platform=platform)
    fleets = FleetOffice(fleet, registry, turn=devices.turn)
    desk = SqlDesk(fleet, registry, platform)
    job_office = JobOffice(fleet, registry, platform, WallClock())

    async def settle() -> None:
        await certificates.begin()
        await devices.settle()
        await fleets.settle()

    app.state.certificates = certificates
    app.state.devices = devices
    # To be closed with the application.
    app.state.sql_engine = desk.engine
    app.state.metrics = metrics
    app.state.settle = settle
    install_problems(app)
    app.include_router(shadow_routes(fleet), dependencies=GUARDED)
    app.include_router(listing_routes(fleet), dependencies=GUARDED)
    app.include_router(_twin_routes(fleet), dependencies=GUARDED)
    things = thing_routes(devices, registry, authority=authority, platform=platform)
    app.include_router(things, dependencies=GUARDED)
    app.include_router(iot_routes(devices, fleet, registry, platform=platform), dependencies=GUARDED)
    issuing = certificate_routes(certificates, authority=authority, platform=platform)
    app.include_router(issuing, dependencies=GUARDED)
    app.include_router(_fleet_routes(fleets, registry), dependencies=GUARDED)
    app.include_router(_cluster_routes(registry, platform), dependencies=GUARDED)
    app.include_router(_probe_routes(registry, platform, metrics))
    app.include_router(key_routes(identity), dependencies=GUARDED)
    app.include_router(publish_routes(platform.messaging, operators_may_publish), dependencies=GUARDED)
    app.include_router(retained_routes(platform.messaging), dependencies=GUARDED)
    app.include_router(jobs_routes(fleet, job_office), dependencies=GUARDED)
    app.include_router(iot_job_routes(job_office), dependencies=GUARDED)
    app.include_router(command_routes(fleet, registry), dependencies=GUARDED)
    command_desk = CommandDesk(fleet, registry, WallClock())
    app.include_router(iot_command_routes(command_desk), dependencies=GUARDED)
    app.include_router(sql_routes(desk), dependencies=GUARDED)
    app.include_router(query_routes(fleet, FleetSearch(fleet, registry)), dependencies=GUARDED)
    # The last one added is the first one asked; a signature covers the body.
    app.add_middleware(InFlightLimit, probes=OPEN_PATHS)
    app.add_middleware(Authentication, identity=identity, open_paths=OPEN_PATHS)
    app.add_middleware(BodyLimit)
    app.add_middleware(RequestMetrics, metrics=metrics, listener="operators")
    return app


def _twin_routes(fleet: Fleet) -> APIRouter:
    router = APIRouter(tags=["twins"])

    @router.get("/v1/twins/{thing}", summary="Describe a twin: its shadows, connectivity and device metrics")
    async def describe_twin(thing: str) -> Response:
        return await ask(fleet, Operation.DESCRIBE, thing)

    @router.get("/v1/twins/{thing}/telemetry", summary="Get last values and sliding-window aggregates")
    async def get_telemetry(thing: str) -> Response:
        return await ask(fleet, Operation.TELEMETRY_GET, thing)

    @router.post(
        "/v1/twins/{thing}/give-back", summary="Give a simulated device's row back to the simulation"
    )
    async def give_back(thing: str) -> Response:
        return await ask(fleet, Operation.GIVE_BACK, thing)

    return router


def _fleet_routes(fleets: FleetOffice, registry: Registry) -> APIRouter:
    router = APIRouter(prefix="/v1/fleets", tags=["fleets"])
    clock = WallClock()

    @router.post("", status_code=201, summary="Create a standing simulated fleet")
    async def create_fleet(body: FleetRequest, request: Request) -> Response:
        description = FleetDescription(body.name, body.model, body.count, body.seed, body.report_every_s)
        group = description.group(start_s=int(clock.now_s()))
        record = await fleets.create(group, by=caller_of(request).name)
        return document(_fleet_view(record), status=201)

    @router.get("", summary="List the standing fleets")
    async def list_fleets() -> Response:
        return document({"fleets": [_fleet_view(fleet) for fleet in await registry.fleets.all()]})

    @router.delete("/{name}", summary="Remove a standing fleet with all its twins")
    async def delete_fleet(name: str, request: Request) -> Response:
        await fleets.delete(name, by=caller_of(request).name)
        return document({"name": name})

    return router


def _cluster_routes(registry: Registry, platform: PlatformView) -> APIRouter:
    router = APIRouter(tags=["platform"])

    @router.get("/v1/cluster", summary="Describe the processes of the platform")
    async def describe_cluster() -> Response:
        processes = await platform.processes()
        readiness = Readiness.of(processes)
        fleets, thing_count = None, None
        # While the store is away nobody knows, and this page is where to look then.
        with contextlib.suppress(StoreError):
            fleets = [_fleet_view(fleet) for fleet in await registry.fleets.all()]
            thing_count = await registry.things.count()
        return document(
            {
                "is_ready": readiness.is_ready,
                "reasons": readiness.reasons,
                "processes": [dataclasses.asdict(process) for process in processes],
                "thing_count": thing_count,
                "fleets": fleets,
                **endpoints_view(platform.endpoints),
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


def _fleet_view(fleet: FleetRecord) -> dict[str, Any]:
    return {
        "name": fleet.group.name,
        "model": fleet.group.model_name,
        "count": fleet.group.count,
        "seed": fleet.group.seed,
        "thing_name": fleet.group.thing_name,
        "report_every_s": fleet.group.report_every_ticks * fleet.group.tick_s,
        "status": fleet.status,
        "created_at": fleet.created_at_s,
    }
