"""AWS IoT's control plane as far as it is here: what stock boto3's `iot` client can ask of the registry."""

from __future__ import annotations

from fastapi import APIRouter

from actors.fleet import Fleet
from actors.gateway.enrolment import DeviceOffice
from actors.gateway.grouping import GroupOffice, TypeOffice
from actors.gateway.iot_groups import iot_group_routes, iot_type_routes
from actors.gateway.iot_search import iot_search_routes
from actors.gateway.iot_things import iot_thing_routes
from actors.gateway.platform_view import PlatformView
from actors.gateway.searching import FleetSearch
from actors.registry.registry import Registry
from actors.wall_clock import WallClock


def iot_routes(
    devices: DeviceOffice, fleet: Fleet, registry: Registry, *, platform: PlatformView
) -> APIRouter:
    """Return the routes of things, thing types, thing groups and the fleet index."""
    search = FleetSearch(fleet, registry)
    clock = WallClock()
    types = TypeOffice(registry, devices.events, turn=devices.turn, clock=clock)
    groups = GroupOffice(registry, devices.events, turn=devices.turn, clock=clock)
    router = APIRouter()
    router.include_router(iot_thing_routes(devices, registry, platform=platform))
    router.include_router(iot_type_routes(types, registry))
    router.include_router(iot_group_routes(groups, registry, search))
    router.include_router(iot_search_routes(search))
    return router
