"""The process of the gateway: both HTTP listeners and the one writer of the registry, as a Ray actor."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import psutil
import ray

from actors.actor_settings import BRIDGE_NAME, GatewaySettings, GatewayUrls
from actors.broker import end_session, reload_broker, write_acl
from actors.errors import WorldError
from actors.gateway.devices import create_device_app, registered_principal
from actors.gateway.operators import create_app
from actors.gateway.platform_view import DeviceEndpoints
from actors.gateway.server import HttpServer, MutualTls
from actors.logs import log_to
from actors.metrics import ProcessStatus
from actors.pki import CertificateAuthority
from actors.ray_fleet import RayFleet, find_fleet
from actors.registry.registry import Registry
from actors.settings import DataDirectory, UrlEndpoint, is_process_alive, read_or_create_secret
from actors.wall_clock import WallClock

# A question for a status is answered beside other work, in milliseconds.
_STATUS_TIMEOUT_S: Final = 5.0
# Counts of the bridge's statistics that are of use as metrics, by the name of the metric.
_BRIDGE_TOTALS: Final = {
    "messages_received": "received_count",
    "messages_acknowledged": "acknowledged_count",
    "messages_published": "published_count",
    "messages_dropped": "dropped_count",
    "messages_redelivered": "redelivered_count",
    "topics_rejected": "rejected_topic_count",
    "payloads_too_large": "oversized_count",
    "publishes_refused": "refused_publish_count",
    "submissions_resent": "resent_count",
    "reconnects": "reconnect_count",
}


class ClusterView:
    """The platform as the gateway asks for it; see `gateway.platform_view.PlatformView`."""

    def __init__(self, settings: GatewaySettings, fleet: RayFleet, registry: Registry) -> None:
        self._settings = settings
        self._fleet = fleet
        self._registry = registry
        self.https: UrlEndpoint | None = None

    @property
    def endpoints(self) -> DeviceEndpoints:
        """Return where devices connect."""
        return DeviceEndpoints(mqtts=self._settings.mqtts, https=self.https)

    async def processes(self) -> list[ProcessStatus]:
        """Return each process of the platform; one that does not answer is listed with its state and the reason."""
        settings = self._settings
        supervised = [
            _by_pid(role, pid)
            for role, pid in (
                ("supervisor", settings.supervisor_pid),
                ("store", settings.store_pid),
                ("broker", settings.broker_pid),
            )
        ]
        served = [
            ProcessStatus("gateway", os.getpid()),
            await self._bridge(),
            *await self._shard_actors(),
        ]
        known = {process.pid for process in (*supervised, *served)}
        others = await asyncio.to_thread(_descendants, settings.supervisor_pid)
        return [*supervised, *served, *(ProcessStatus("ray", pid) for pid in others if pid not in known)]

    async def _bridge(self) -> ProcessStatus:
        try:
            bridge: Any = ray.get_actor(BRIDGE_NAME)
            counts: dict[str, Any] = await asyncio.wait_for(bridge.statistics.remote(), _STATUS_TIMEOUT_S)
        except (ray.exceptions.RayError, ValueError, TimeoutError) as error:
            return ProcessStatus("bridge", 0, state="down", reason=_first_line(error))
        is_serving = bool(counts.get("is_connected"))
        return ProcessStatus(
            "bridge",
            counts["pid"],
            queue_length=counts.get("waiting_count", 0) + counts.get("in_flight_count", 0),
            state="ready" if is_serving else "down",
            reason="" if is_serving else counts.get("last_error") or "not connected to the broker",
            totals={name: counts.get(key, 0) for name, key in _BRIDGE_TOTALS.items()},
        )

    async def _shard_actors(self) -> list[ProcessStatus]:
        found = []
        for index in range(self._fleet.lane_count):
            try:
                status = await self._fleet.status(index)
            except WorldError as error:
                found.append(ProcessStatus("shard_actor", 0, state="down", reason=_first_line(error)))
                continue
            totals = {
                "requests": status.request_count,
                "telemetry_refused": status.refused_telemetry_count,
                "ticks": status.tick_count,
                "journal_entries": status.journal_entry_count,
                "announcements_dropped": status.dropped_announcement_count,
            }
            found.append(
                ProcessStatus(
                    "shard_actor",
                    status.pid,
                    status.shards,
                    twin_count=status.twin_count,
                    queue_length=status.queue_length,
                    totals=totals,
                )
            )
        return found

    async def reload_access(self) -> None:
        """Write the broker's access list and return when it and the revocation list are in force."""
        directory = Path(self._settings.data_dir)
        entries = await self._registry.certificates.acl_entries()
        await asyncio.to_thread(write_acl, directory, list(entries.items()))
        await asyncio.to_thread(reload_broker, directory)

    async def end_sessions(self, client_ids: Sequence[str]) -> None:
        """Return when no MQTT session of these client ids is open or kept."""
        for client_id in client_ids:
            await asyncio.to_thread(end_session, Path(self._settings.data_dir), client_id)


def _by_pid(role: str, pid: int) -> ProcessStatus:
    if is_process_alive(pid):
        return ProcessStatus(role, pid)
    return ProcessStatus(role, pid, state="down", reason="the process has ended")


def _descendants(pid: int) -> list[int]:
    """Return the processes that a process has started, and those that they have started: the rest is Ray's own."""
    try:
        return sorted(child.pid for child in psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


class GatewayActor:
    """The HTTP side of the platform. The constructor can't fail; `open` may be repeated."""

    def __init__(self) -> None:
        self._servers: list[HttpServer] = []
        self._registry: Registry | None = None

    async def open(self, encoded: bytes) -> bytes:
        """Start both listeners and return their `GatewayUrls`; PortInUse names the option to change."""
        settings = msgspec.msgpack.decode(encoded, type=GatewaySettings)
        log_to(Path(settings.log_file))
        self._settings = settings
        directory = DataDirectory(Path(settings.data_dir))
        fleet = find_fleet(settings.shard_count, settings.shard_actor_count)
        registry = self._registry = await Registry.open(settings.redis_url, WallClock())
        view = ClusterView(settings, fleet, registry)
        app = create_app(
            fleet=fleet,
            registry=registry,
            authority=CertificateAuthority.open_or_create(directory.pki),
            platform=view,
            operator_token=read_or_create_secret(directory.operator_token_file),
        )
        await app.state.settle()
        devices = create_device_app(
            fleet=fleet, principal_from_scope=registered_principal(registry), metrics=app.state.metrics
        )
        tls = MutualTls(directory.pki / "server.pem", directory.pki / "server.key", directory.pki / "ca.pem")
        api = HttpServer(app, port=settings.api_port, option="--api-port")
        self._servers.append(api)
        https = HttpServer(devices, port=settings.device_port, option="--device-port", tls=tls)
        self._servers.append(https)
        view.https = UrlEndpoint(https.url)
        for server in self._servers:
            await server.start()
        return msgspec.msgpack.encode(GatewayUrls(api.url, https.url))

    async def layout(self) -> dict[str, int]:
        """Return how many shards and shard actors the platform has."""
        return {
            "shard_count": self._settings.shard_count,
            "shard_actor_count": self._settings.shard_actor_count,
        }

    async def close(self) -> None:
        """Answer what is being answered, then listen no more."""
        for server in self._servers:
            await server.stop()
        self._servers = []
        if self._registry is not None:
            await self._registry.close()
            self._registry = None

    async def lifetime(self) -> None:
        """Never return: whoever waits for the answer learns of this process's end."""
        await asyncio.Event().wait()
