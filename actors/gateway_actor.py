"""The process of the gateway: both HTTP listeners and the one writer of the registry, as a Ray actor."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import psutil
import ray

from actors.access import BrokerAccess
from actors.actor_settings import BRIDGE_NAME, COORDINATOR_NAME, GatewaySettings, GatewayUrls, Pulse
from actors.attempts import AttemptWatch, speaker_of
from actors.behavior_trial import try_behavior
from actors.broker import bridge_listener, end_session
from actors.broker_events import BrokerEvents
from actors.calls import CallLimit, submit
from actors.delta_announcer import DeltaAnnouncer
from actors.errors import BrokerError, WorldError
from actors.gateway.authentication import Identity
from actors.gateway.certificates import CertificateOffice
from actors.gateway.devices import create_device_app, registered_principal
from actors.gateway.enrolment import DeviceOffice
from actors.gateway.messaging import Messaging
from actors.gateway.operators import GUARDED, create_app
from actors.gateway.pin_routes import pin_routes
from actors.gateway.placement_routes import placement_routes
from actors.gateway.platform_view import DeviceEndpoints
from actors.gateway.server import HttpServer, MutualTls
from actors.logs import log_to
from actors.metrics import GatewayMetrics, ProcessStatus
from actors.mqtt_link import BrokerConnection
from actors.mqtt_retained import RetainedMessage, read_retained
from actors.pki import CertificateAuthority
from actors.placement import PlacementStore
from actors.provisioning.desk import ProvisioningDesk
from actors.provisioning.office import ProvisioningOffice
from actors.provisioning.routes import TemplateOffice, provisioning_routes
from actors.queue_watch import QueueWatch
from actors.ray_fleet import RayFleet, actor_name, find_fleet
from actors.registry.job_orders import JobOrder, encode_order
from actors.registry.jobs import Jobs
from actors.registry.registry import Registry
from actors.retained import RetainedNotes
from actors.settings import DataDirectory, UrlEndpoint, read_or_create_secret
from actors.shard_actor import BridgeOutlet
from actors.sql_process import SqlProcess
from actors.store_watch import StoreWatch
from actors.supervisor import PartStatus
from actors.vault import Vault
from actors.wall_clock import WallClock
from twins.messages import Publish, encode

# A question for a status is answered beside other work, in milliseconds.
_STATUS_TIMEOUT_S: Final = 5.0
# Messages of HTTP requests that the bridge is to publish at a time. While the broker is away it takes none, and these
# wait; all others are told to come again, and whoever wants something else of the gateway is served.
_PUBLISH_COUNT_MAX: Final = 64
# A round to the broker takes milliseconds; a broker that restarts is back in less.
_PUBLISH_TIMEOUT_S: Final = 10.0
decode_statuses: Final = msgspec.msgpack.Decoder(list[PartStatus]).decode
# Counts of the bridge's statistics that are of use as metrics, by the name of the metric.
_BRIDGE_TOTALS: Final = {
    "messages_received": "received_count",
    "messages_acknowledged": "acknowledged_count",
    "messages_published": "published_count",
    "messages_dropped": "dropped_count",
    "messages_redelivered": "redelivered_count",
    "messages_repeated": "repeated_count",
    "overruns": "overrun_count",
    "topics_rejected": "rejected_topic_count",
    "retentions_ended": "retention_ended_count",
    "payloads_too_large": "oversized_count",
    "requests_throttled": "throttled_count",
    "publishes_refused": "refused_publish_count",
    "publishes_denied": "unheard_count",
    "publish_bytes_denied": "unheard_bytes",
    "submissions_resent": "resent_count",
    "reconnects": "reconnect_count",
}


class ClusterView:
    """The platform as the gateway asks for it; see `gateway.platform_view.PlatformView`."""

    def __init__(self, settings: GatewaySettings, fleet: RayFleet, access: BrokerAccess, jobs: Jobs) -> None:
        self._settings = settings
        self._fleet = fleet
        self.access: Final = access
        self._outlet = BridgeOutlet(BRIDGE_NAME)
        self._publishing = CallLimit("the bridge", _PUBLISH_COUNT_MAX)
        self.store: Final = StoreWatch(settings.redis_url)
        self.queues: Final = QueueWatch()
        # As the supervisor has told them last.
        self.statuses: Sequence[PartStatus] = ()
        self.https: UrlEndpoint | None = None
        self.notes: Final = RetainedNotes.open(settings.redis_url)
        self.jobs: Final = jobs
        self._messaging = Messaging(self.publish, self._retained, notes=self.notes, clock=WallClock())

    def announce(self, messages: Sequence[Publish]) -> None:
        """Hand messages to the bridge without waiting for it."""
        self._outlet(messages)

    @property
    def endpoints(self) -> DeviceEndpoints:
        """Return where devices connect."""
        return DeviceEndpoints(mqtts=self._settings.mqtts, https=self.https)

    @property
    def messaging(self) -> Messaging:
        """Return the broker as HTTP shows it."""
        return self._messaging

    async def _retained(self, topics: Sequence[str]) -> list[RetainedMessage]:
        listener = bridge_listener(Path(self._settings.data_dir))
        connection = BrokerConnection(listener.host, listener.port, listener.user_name, listener.password)
        return await read_retained(connection, topics)

    async def publish(self, message: Publish) -> None:
        """Return when the broker has taken over a message that the bridge publishes for us."""
        try:
            bridge: Any = ray.get_actor(BRIDGE_NAME)
            call = self._publishing.begin(lambda: submit(bridge.publish, encode([message])))
            await asyncio.wait_for(call, _PUBLISH_TIMEOUT_S)
        except TimeoutError:
            text = "the broker does not take the message at present, and may get it later; try again"
            raise BrokerError(text, retryable=True) from None
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except (ray.exceptions.RayError, ValueError) as error:
            text = f"the bridge does not answer ({_first_line(error)}); try again"
            raise BrokerError(text, retryable=True) from None

    async def order_job(self, order: JobOrder) -> None:
        """Return when the job coordinator has noted an order."""
        try:
            coordinator: Any = ray.get_actor(COORDINATOR_NAME)
            await asyncio.wait_for(submit(coordinator.order, encode_order(order)), _PUBLISH_TIMEOUT_S)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except (ray.exceptions.RayError, ValueError, TimeoutError) as error:
            text = f"the job coordinator does not answer ({_first_line(error)}); try again"
            raise WorldError(text, retryable=True) from None

    async def processes(self) -> list[ProcessStatus]:
        """Return each process of the platform; one that does not answer is listed with its state and the reason."""
        totals = {"announcements_dropped": self._outlet.dropped_count}
        live = {
            "gateway": ProcessStatus("gateway", os.getpid(), totals=totals),
            "store": await self.store.status(),
            "broker": self.queues.status(),
            "bridge": await self._bridge(),
            **await self._shard_actors(),
        }
        found = [ProcessStatus("supervisor", self._settings.supervisor_pid), *merged(live, self.statuses)]
        known = {process.pid for process in found}
        others = await asyncio.to_thread(_descendants, self._settings.supervisor_pid)
        return [*found, *(ProcessStatus("ray", pid) for pid in others if pid not in known)]

    async def _bridge(self) -> ProcessStatus:
        try:
            bridge: Any = ray.get_actor(BRIDGE_NAME)
            counts: dict[str, Any] = await asyncio.wait_for(submit(bridge.statistics), _STATUS_TIMEOUT_S)
        except (ray.exceptions.RayError, ValueError, TimeoutError) as error:
            return ProcessStatus("bridge", 0, state="down", reason=_first_line(error))
        return bridge_status(counts)

    async def _shard_actors(self) -> dict[str, ProcessStatus]:
        """Return the shard actors of all nodes, by their names."""
        found = {}
        lanes = await self._fleet.live_lanes()
        for name, lane in zip(self._fleet.placement.nodes, lanes, strict=True):
            try:
                status = await self._fleet.status(lane)
            except WorldError as error:
                found[name] = ProcessStatus("shard_actor", 0, state="down", reason=_first_line(error))
                continue
            totals = {
                "requests": status.request_count,
                "telemetry_refused": status.refused_telemetry_count,
                "ticks": status.tick_count,
                "journal_entries": status.journal_entry_count,
                "announcements_dropped": status.dropped_announcement_count,
            }
            found[name] = ProcessStatus(
                "shard_actor",
                status.pid,
                status.shards,
                twin_count=status.twin_count,
                queue_length=status.queue_length,
                totals=totals,
                levels={"longest_turn_ms": status.longest_turn_ms},
            )
        return found

    async def reload_access(self) -> None:
        """Write the broker's access list and return when it and the revocation list are in force."""
        await self.access.reload()

    async def end_sessions(self, client_ids: Sequence[str]) -> None:
        """Return when no MQTT session of these client ids is open or kept."""
        for client_id in client_ids:
            await asyncio.to_thread(end_session, Path(self._settings.data_dir), client_id)


def bridge_status(counts: Mapping[str, Any]) -> ProcessStatus:
    """Return the bridge's state from what its `statistics` say; before it is opened they are its process id only."""
    is_serving = bool(counts.get("is_connected"))
    return ProcessStatus(
        "bridge",
        counts["pid"],
        queue_length=counts.get("waiting_count", 0) + counts.get("in_flight_count", 0),
        state="ready" if is_serving else "down",
        reason="" if is_serving else counts.get("last_broker_error") or "not connected to the broker",
        totals={name: counts.get(key, 0) for name, key in _BRIDGE_TOTALS.items()},
    )


def merged(live: Mapping[str, ProcessStatus], statuses: Sequence[PartStatus]) -> list[ProcessStatus]:
    """Return the platform's parts as their supervisor sees them, with what those that answer say of themselves.

    `live` has these by name: that of its actor for a shard actor, else the role. Shard actors of further nodes, which
    have supervisors of their own, come last.
    """
    found = []
    others = dict(live)
    for status in statuses:
        name = actor_name(status.index) if status.role == "shard_actor" else status.role
        process = others.pop(name, ProcessStatus(status.role, status.pid))
        totals = {**process.totals, "restarts": status.restart_count}
        if status.state != "ready":
            process = dataclasses.replace(process, state=status.state, reason=status.reason)
        process = dataclasses.replace(process, thing_name=status.thing_name)
        found.append(dataclasses.replace(process, pid=process.pid or status.pid, totals=totals))
    return [*found, *others.values()]


def _descendants(pid: int) -> list[int]:
    """Return the processes that a process has started, and those that they have started: the rest is Ray's own."""
    try:
        return sorted(child.pid for child in psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _provisioning_desk(
    devices: DeviceOffice,
    registry: Registry,
    authority: CertificateAuthority,
    *,
    view: ClusterView,
    events: BrokerEvents,
) -> ProvisioningDesk:
    office = ProvisioningOffice(registry, devices, authority=authority, platform=view, clock=WallClock())
    return ProvisioningDesk(
        office,
        registry,
        gate=view.access,
        end_sessions=view.end_sessions,
        publish=events.session.publish,
    )


def _mutual_tls(directory: DataDirectory, metrics: GatewayMetrics) -> MutualTls:
    return MutualTls(
        directory.pki / "server.pem",
        directory.pki / "server.key",
        directory.pki / "ca.pem",
        refused=metrics.count_failed_handshake,
    )


class GatewayActor:
    """The HTTP side of the platform. The constructor can't fail; `open` may be repeated."""

    def __init__(self) -> None:
        self._is_open = False
        self._servers: list[HttpServer] = []
        self._registry: Registry | None = None
        self._certificates: CertificateOffice | None = None
        self._tending: list[asyncio.Task[None]] = []
        self._view: ClusterView | None = None
        self._events: BrokerEvents | None = None
        self._desk: ProvisioningDesk | None = None
        self._sql_engine: SqlProcess | None = None

    async def open(self, encoded: bytes) -> bytes:
        """Start both listeners and return their `GatewayUrls`; PortInUse names the option to change."""
        await self.close()
        settings = msgspec.msgpack.decode(encoded, type=GatewaySettings)
        log_to(Path(settings.log_file))
        try:
            urls = await self._open(settings)
        except WorldError:
            await self.close()
            raise
        self._is_open = True
        return msgspec.msgpack.encode(urls)

    async def _open(self, settings: GatewaySettings) -> GatewayUrls:
        self._settings = settings
        directory = DataDirectory(Path(settings.data_dir))
        fleet = find_fleet(settings.redis_url)
        registry = self._registry = await Registry.open(settings.redis_url, WallClock())
        authority = CertificateAuthority.open_or_create(directory.pki, key_file=Path(settings.key_file))
        events = self._events = BrokerEvents(
            directory.path, settings.redis_url, registry=registry, fleet=fleet, clock=WallClock()
        )
        # Before the first reload, which has to know who is away.
        await events.open()
        access = BrokerAccess(
            registry, authority, data_dir=directory.path, clock=WallClock(), away=events.away
        )
        jobs = await Jobs.open(settings.redis_url, WallClock())
        view = self._view = ClusterView(settings, fleet, access, jobs)
        app = create_app(
            fleet=fleet,
            registry=registry,
            authority=authority,
            platform=view,
            identity=Identity(
                read_or_create_secret(directory.operator_token_file),
                registry.access_keys,
                vault=Vault.open(Path(settings.key_file)),
                clock=WallClock(),
            ),
        )
        templates = TemplateOffice(registry, app.state.certificates, clock=WallClock())
        provisioning = provisioning_routes(templates, authority=authority, platform=view)
        app.include_router(provisioning, dependencies=GUARDED)
        app.include_router(placement_routes(PlacementStore.at(settings.redis_url)), dependencies=GUARDED)
        self._sql_engine = app.state.sql_engine
        pins = pin_routes(fleet, partial(try_behavior, directory=directory.behaviors.absolute()))
        app.include_router(pins, dependencies=GUARDED)
        await app.state.settle()
        self._certificates = app.state.certificates
        self._tending = [
            asyncio.create_task(access.keep(), name="access"),
            asyncio.create_task(registry.placement_notes.keep_taking(), name="placement notes"),
        ]
        self._desk = _provisioning_desk(app.state.devices, registry, authority, view=view, events=events)
        await self._desk.begin()
        deltas = DeltaAnnouncer(fleet, events.presence.thing_of)
        attempts = AttemptWatch(
            app.state.metrics,
            device_port=settings.mqtts.port,
            thing_of=speaker_of(registry.certificates),
            end_session=lambda client_id: view.end_sessions([client_id]),
        )
        await events.start(app.state.certificates, self._desk, deltas, attempts, view.queues)
        devices = create_device_app(
            fleet=fleet,
            messaging=view.messaging,
            principal_from_scope=registered_principal(registry, used=app.state.certificates.used),
            metrics=app.state.metrics,
        )
        tls = _mutual_tls(directory, app.state.metrics)
        api = HttpServer(app, port=settings.api_port, option="--api-port")
        self._servers.append(api)
        https = HttpServer(devices, port=settings.device_port, option="--device-port", tls=tls)
        self._servers.append(https)
        view.https = UrlEndpoint(https.url)
        for server in self._servers:
            await server.start()
        return GatewayUrls(api.url, https.url)

    async def close(self) -> None:
        """Answer what is being answered, then listen no more."""
        self._is_open = False
        for server in self._servers:
            await server.stop()
        self._servers = []
        if self._sql_engine is not None:
            await asyncio.to_thread(self._sql_engine.close)
            self._sql_engine = None
        if self._events is not None:
            await self._events.close()
            self._events = None
        if self._desk is not None:
            await self._desk.close()
            self._desk = None
        for task in self._tending:
            task.cancel()
        self._tending = []
        if self._certificates is not None:
            await self._certificates.close()
            self._certificates = None
        if self._registry is not None:
            await self._registry.close()
            self._registry = None
        if self._view is not None:
            await self._view.notes.close()
            await self._view.jobs.close()
            await self._view.store.close()
            self._view = None

    async def pulse(self, statuses: bytes) -> bytes:
        """Return its `Pulse`; `statuses` are those of all parts, as the supervisor sees them."""
        if self._view is not None:
            self._view.statuses = decode_statuses(statuses)
        return msgspec.msgpack.encode(Pulse(os.getpid(), self._is_open))
