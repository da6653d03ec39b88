"""The whole platform on one machine: starts its parts in order, watches them, and stops them in reverse order.

The process that calls `run_platform` holds the data directory, is the parent of Redis and mosquitto and the driver of
Ray. A part that dies is brought back by the supervisor; when this process dies, nothing is left half alive.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final, TypeVar

import msgspec

from actors.access import BrokerAccess
from actors.actor_settings import (
    BRIDGE_NAME,
    COORDINATOR_NAME,
    GATEWAY_NAME,
    BridgeSettings,
    CoordinatorSettings,
    GatewaySettings,
    GatewayUrls,
    HostSettings,
    PinSettings,
)
from actors.bridge_actor import BridgeActor
from actors.broker import MosquittoBroker
from actors.errors import WorldError
from actors.fleet import PinnedTwin
from actors.gateway_actor import GatewayActor
from actors.job_coordinator import JobCoordinatorActor
from actors.journal import Journal
from actors.logs import log_to
from actors.membership import HeadRecord, Membership
from actors.pacer import Pacer
from actors.parts import ActorPart, ActorPlan, RayPart, ServerPart, shard_actor_parts
from actors.pins import PinKeeper
from actors.pki import CertificateAuthority
from actors.placement import HEAD_NODE, PlacementStore
from actors.processes import LOOPBACK, loopback_addresses, require_port_free
from actors.ray_fleet import actor_name, find_fleet, open_actor, start_actor
from actors.ray_runtime import RayHead
from actors.registry.registry import Registry
from actors.settings import (
    DataDirectory,
    Endpoints,
    MqttsEndpoint,
    PlatformSettings,
    UrlEndpoint,
    read_or_create_secret,
)
from actors.shard_mover import Placer
from actors.snapshots import SnapshotStore
from actors.stop_signals import (
    StopRequested,
    catch_signals,
    run_until,
    set_at_signals,
    signals_caught,
    signals_noted,
)
from actors.store import RedisServer
from actors.supervisor import Supervisor, mistakes_survived
from actors.wall_clock import WallClock
from twins.messages import encode

_Result = TypeVar("_Result")
_LOG: Final = logging.getLogger(__name__)
# A standing fleet that is due is noticed within this time.
_PACE_EVERY_S: Final = 1.0
# A twin that is pinned is noticed within this time.
_PIN_EVERY_S: Final = 1.0
# An operator's wish to move a shard is noticed within this time.
_PLACE_EVERY_S: Final = 0.5
# The broker writes a line about everybody who asks.
_ASK_BROKER_EVERY_S: Final = 5.0


def run_platform(
    settings: PlatformSettings, *, version: str, progress: Callable[[str], None] = lambda _: None
) -> None:
    """Run the platform until SIGTERM or Ctrl-C; everything that it started has ended when this returns.

    `progress` gets a line for each step. WorldError says which part could not be started; one that dies later is
    brought back. For the main thread of a process of its own.
    """
    with contextlib.ExitStack() as parts:
        parts.enter_context(signals_caught())
        try:
            platform = _Platform(settings, parts, version)
            platform.start(progress)
            progress("ready")
            asyncio.run(platform.watch())
            progress("stopping")
        except (StopRequested, KeyboardInterrupt):
            progress("stopping")


class _Platform:
    """The parts of one running platform; `parts` stops them in reverse order."""

    def __init__(self, settings: PlatformSettings, parts: contextlib.ExitStack, version: str) -> None:
        self._settings = settings
        self._parts = parts
        self._version = version
        self._directory = DataDirectory(settings.data_dir)
        self._key_file = settings.key_file or self._directory.key_file
        self._urls: GatewayUrls | None = None
        # Of the Ray that runs.
        self._ray_ended = asyncio.Event()
        self._snapshot_location = settings.snapshot_location or str(self._directory.snapshots)

    def start(self, progress: Callable[[str], None]) -> None:
        """Start every part and say where they can be reached, once all are ready."""
        directory = self._directory
        directory.prepare()
        self._parts.enter_context(directory.lock())
        log_to(directory.logs / "supervisor.log")
        # One that was killed has left it.
        Endpoints.remove(self._settings.data_dir)
        for secret in (directory.operator_token_file, directory.ray_token_file):
            read_or_create_secret(secret)
        self._authority = CertificateAuthority.open_or_create(directory.pki, key_file=self._key_file)
        self._require_ports_free()
        SnapshotStore(self._snapshot_location).claim(read_or_create_secret(directory.identity_file))
        progress("starting Redis and mosquitto")
        self._start_servers()
        progress("starting Ray")
        self._head = RayHead(
            directory.ray_token_file,
            address=self._settings.cluster_address or LOOPBACK,
        )
        self._parts.callback(self._head.stop)
        with signals_noted() as received:
            self._ray_endpoint = self._head.start()
        catch_signals()
        if received:
            raise StopRequested
        progress("starting shards, bridge and gateway")
        self._make_parts()
        self._start_actors()
        self._parts.callback(Endpoints.remove, self._settings.data_dir)
        self._write_endpoints()

    def _require_ports_free(self) -> None:
        """Refuse ports in use before anything is started; the gateway, which takes them, starts last."""
        settings = self._settings
        for port, option in ((settings.api_port, "--api-port"), (settings.device_port, "--device-port")):
            for host in loopback_addresses() if port else ():
                require_port_free(host, port, option=option)
        if settings.store_port:
            require_port_free(LOOPBACK, settings.store_port, option="settings.yaml's store_port:")

    def _start_servers(self) -> None:
        self._store, self._broker = RedisServer(self._settings), MosquittoBroker(self._settings)
        self._mqtts = MqttsEndpoint("127.0.0.1", self._broker.port)
        self._parts.callback(self._store.stop)
        self._store.start()
        # The shard actors check it, too; here a mistake is told before Ray has started.
        journal = Journal.at(self._store.url)
        journal.require_shard_count(self._settings.shard_count)
        journal.close()
        nodes = {actor_name(index): HEAD_NODE for index in range(self._settings.shard_actor_count)}
        self._placements = PlacementStore.at(self._store.url)
        former = self._placements.find()
        self._had_nodes = former is not None and set(former.nodes.values()) != {HEAD_NODE}
        self._placements.begin(self._settings.shard_count, nodes)
        # From the store, which is therefore first: without a good revocation list the broker does not start.
        asyncio.run(self._write_access())
        self._parts.callback(self._broker.stop)
        self._broker.start()

    async def _write_access(self) -> None:
        registry = await Registry.open(self._store.url, WallClock(), is_writer=False)
        try:
            access = BrokerAccess(registry, self._authority, data_dir=self._directory.path, clock=WallClock())
            await access.write()
        finally:
            await registry.close()

    def _make_parts(self) -> None:
        """Say what the platform consists of, in the order of its start."""
        self._ray = RayPart(self._head, restart=self._restart_ray)
        self._hosts = shard_actor_parts(
            [actor_name(index) for index in range(self._settings.shard_actor_count)],
            HEAD_NODE,
            self._ray,
            needs=("store", "ray"),
            settings=self._host_settings,
        )
        bridge = ActorPlan(
            "bridge",
            0,
            needs=("store", "broker", "ray"),
            create=partial(start_actor, BridgeActor, BRIDGE_NAME),
            settings=lambda _: self._bridge_settings(),
        )
        gateway = ActorPlan(
            "gateway",
            0,
            needs=("store", "broker", "ray"),
            create=partial(start_actor, GatewayActor, GATEWAY_NAME),
            settings=lambda _: self._gateway_settings(),
        )
        coordinator = ActorPlan(
            "job_coordinator",
            0,
            needs=("store", "ray"),
            create=partial(start_actor, JobCoordinatorActor, COORDINATOR_NAME),
            settings=lambda _: CoordinatorSettings(self._store.url, self._log_file("job-coordinator")),
        )
        self._coordinator = ActorPart(coordinator, self._ray)
        self._bridge = ActorPart(bridge, self._ray)
        self._gateway = ActorPart(gateway, self._ray, told=lambda: encode(self._supervisor.statuses()))
        self._supervisor = Supervisor(
            [
                ServerPart("store", self._store),
                ServerPart(
                    "broker",
                    self._broker,
                    needs=("store",),
                    before_start=self._write_access,
                    ask_every_s=_ASK_BROKER_EVERY_S,
                ),
                self._ray,
                *self._actors(),
            ]
        )

    def _actors(self) -> list[ActorPart]:
        return [*self._hosts, self._bridge, self._coordinator, self._gateway]

    def _start_actors(self) -> None:
        for part in self._actors():
            part.create()
        for group in (self._hosts, [self._bridge], [self._coordinator], [self._gateway]):
            for part in group:
                self._parts.callback(part.close)
            # Whoever served the shards before was a child of a platform that has ended: its lock was free. Other nodes
            # may live on.
            settings = [part.settings(is_predecessor_gone=not self._had_nodes) for part in group]
            answers = open_actor(*(part.actor for part in group), settings=settings)
        self._urls = msgspec.msgpack.decode(answers[0], type=GatewayUrls)

    def _tell_nodes(self) -> None:
        """Let further nodes join, those that are there and those that Ray starts."""
        Membership.at(self._store.url).tell(
            HeadRecord(
                self._ray_endpoint.address,
                self._settings.shard_count,
                self._snapshot_location,
                read_or_create_secret(self._directory.identity_file),
                self._journal_bytes_max,
            )
        )
        if self._settings.autoscaling_config is not None:
            self._head.start_machines(self._settings.autoscaling_config)

    @property
    def _journal_bytes_max(self) -> int:
        # Two spans of every shard's journal then fill half of the store.
        return self._settings.store_memory_max_bytes // (4 * self._settings.shard_count)

    def _restart_ray(self) -> None:
        """Start all of Ray again, with new actors that wait to be opened."""
        with signals_noted() as received:
            self._ray_endpoint = self._head.restart()
        set_at_signals(self._stop)
        self._ray_ended.set()
        self._ray_ended = asyncio.Event()
        if received:
            self._stop.set()
        for part in self._actors():
            part.create()
        self._write_endpoints()

    def _write_endpoints(self) -> None:
        directory, urls = self._directory, self._urls
        assert urls is not None, "the gateway has been opened"
        Endpoints(
            pid=os.getpid(),
            version=self._version,
            mqtts=self._mqtts,
            api=UrlEndpoint(urls.api),
            metrics=UrlEndpoint(f"{urls.api}/metrics"),
            ca=str(directory.pki / "ca.pem"),
            operator_token_file=str(directory.operator_token_file),
            redis=UrlEndpoint(self._store.url),
            ray=self._ray_endpoint,
            https_devices=UrlEndpoint(urls.https_devices),
            snapshots=self._snapshot_location,
            key_file=str(self._key_file.absolute()),
        ).write(self._settings.data_dir)

    def _host_settings(self, index: int, actor: str, is_predecessor_gone: bool) -> HostSettings:
        return HostSettings(
            index,
            self._placements.read().shards_of(actor),
            self._settings.shard_count,
            self._store.url,
            self._snapshot_location,
            self._journal_bytes_max,
            self._log_file(f"shard-actor-{index}"),
            is_predecessor_gone,
        )

    def _log_file(self, name: str) -> str:
        return str(self._directory.logs / f"{name}.log")

    def _bridge_settings(self) -> BridgeSettings:
        internal = self._broker.internal
        return BridgeSettings(
            internal.host,
            internal.port,
            internal.user_name,
            internal.password,
            self._store.url,
            self._log_file("bridge"),
            str(self._directory.mosquitto),
        )

    def _gateway_settings(self) -> GatewaySettings:
        # Ports that were chosen freely stay the same when it is started again.
        urls = self._urls
        return GatewaySettings(
            data_dir=str(self._directory.path),
            key_file=str(self._key_file),
            redis_url=self._store.url,
            api_port=self._settings.api_port if urls is None else urls.api_port,
            device_port=self._settings.device_port if urls is None else urls.device_port,
            mqtts=self._mqtts,
            supervisor_pid=os.getpid(),
            log_file=self._log_file("gateway"),
        )

    async def watch(self) -> None:
        """Supervise the parts and keep standing fleets going until a signal comes."""
        self._stop = asyncio.Event()
        await run_until(
            self._stop,
            supervisor=self._supervisor.run(),
            pacer=self._pace(),
            mover=self._keep_placed(),
            pins=self._keep_pinned(),
        )

    async def _in_this_ray(self, turn: Coroutine[Any, Any, _Result]) -> _Result:
        """Return what a turn comes to; WorldError when Ray is started again meanwhile.

        To what was asked before nobody answers any more, nor says so: some answers would be waited for for minutes.
        """
        task = asyncio.create_task(turn)
        ended = asyncio.create_task(self._ray_ended.wait())
        try:
            await asyncio.wait((task, ended), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise WorldError("Ray has been started again", retryable=True)
        finally:
            task.cancel()
            ended.cancel()

    async def _pace(self) -> None:
        """Keep standing fleets going; what keeps them from it is others' to mend."""
        registry, pacer, start_count = None, None, 0
        try:
            while True:
                await asyncio.sleep(_PACE_EVERY_S)
                if not (self._supervisor.is_ready("ray") and self._supervisor.is_ready("store")):
                    continue
                try:
                    with mistakes_survived("standing fleets"):
                        if registry is None:
                            registry = await Registry.open(self._store.url, WallClock(), is_writer=False)
                        if pacer is None or start_count != self._head.start_count:
                            fleet = find_fleet(self._store.url)
                            pacer, start_count = Pacer(fleet, registry, WallClock()), self._head.start_count
                        await self._in_this_ray(pacer.pace())
                except WorldError as error:
                    _LOG.warning("standing fleets wait: %s", error)
        finally:
            if registry is not None:
                await registry.close()

    async def _keep_pinned(self) -> None:
        """Have an actor for each pinned twin, while Ray is there to ask which these are."""
        keeper = PinKeeper(self._supervisor, self._ray, self._pin_settings)
        fleet, start_count = None, 0
        while True:
            await asyncio.sleep(_PIN_EVERY_S)
            if not (self._supervisor.is_ready("ray") and self._supervisor.is_ready("store")):
                continue
            try:
                with mistakes_survived("pinned twins"):
                    if fleet is None or start_count != self._head.start_count:
                        fleet, start_count = find_fleet(self._store.url), self._head.start_count
                    await self._in_this_ray(keeper.keep(fleet))
            except WorldError as error:
                _LOG.warning("pinned twins stay as they are: %s", error)

    def _pin_settings(self, pinned: PinnedTwin) -> PinSettings:
        return PinSettings(
            pinned.thing_name,
            pinned.behavior,
            str(self._directory.behaviors.absolute()),
            self._store.url,
            self._log_file("pinned-twins"),
        )

    async def _keep_placed(self) -> None:
        """Bring shards to where they are wanted, while Ray is there to do it."""
        placer, start_count = None, 0
        told: list[str] = []
        while True:
            await asyncio.sleep(_PLACE_EVERY_S)
            if not (self._supervisor.is_ready("ray") and self._supervisor.is_ready("store")):
                continue
            problems: list[str] = []
            try:
                with mistakes_survived("the placement of the shards"):
                    if placer is None or start_count != self._head.start_count:
                        self._tell_nodes()
                        placer, start_count = Placer(self._store.url), self._head.start_count
                    problems = await self._in_this_ray(placer.place())
            except WorldError as error:
                problems = [str(error)]
            for problem in set(problems) - set(told):
                _LOG.warning("%s", problem)
            told = problems
