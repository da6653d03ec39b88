"""The whole platform on one machine: starts its parts in order, watches them, and stops them in reverse order.

The supervisor is the process that calls `run_platform`: it holds the data directory, is the parent of Redis and
mosquitto and the driver of Ray. A part that dies takes the platform down with a message; nothing is left half alive.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec
import ray

from actors.access import BrokerAccess
from actors.actor_settings import (
    BRIDGE_NAME,
    GATEWAY_NAME,
    BridgeSettings,
    GatewaySettings,
    GatewayUrls,
    HostSettings,
)
from actors.bridge_actor import BridgeActor
from actors.broker import MosquittoBroker
from actors.errors import WorldError
from actors.gateway_actor import GatewayActor
from actors.journal import Journal
from actors.pacer import Pacer
from actors.pki import CertificateAuthority
from actors.processes import loopback_addresses, require_port_free
from actors.ray_fleet import actor_name, find_fleet, open_actor, start_actor, start_shard_actor
from actors.ray_runtime import local_head
from actors.registry.registry import Registry
from actors.settings import (
    DataDirectory,
    Endpoints,
    MqttsEndpoint,
    PlatformSettings,
    UrlEndpoint,
    read_or_create_secret,
)
from actors.store import RedisServer
from actors.wall_clock import WallClock

_LOG: Final = logging.getLogger(__name__)
# A part that has died is noticed within a second, and so is a standing fleet that is due.
_WATCH_EVERY_S: Final = 1.0
# Time for a shard actor to write its shards down: a million twins are some 100 MB.
_CLOSE_TIMEOUT_S: Final = 60.0


class StopRequested(BaseException):
    """SIGTERM or Ctrl-C: not an error, but the end."""


def run_platform(
    settings: PlatformSettings, *, version: str, progress: Callable[[str], None] = lambda _: None
) -> None:
    """Run the platform until SIGTERM or Ctrl-C; everything that it started has ended when this returns.

    `progress` gets a line for each step. WorldError says which part could not be started or has died. For the main
    thread of a process of its own.
    """
    with contextlib.ExitStack() as parts:
        parts.enter_context(_signals())
        try:
            platform = _Platform(settings, parts)
            endpoints = platform.start(version, progress)
            parts.callback(Endpoints.remove, settings.data_dir)
            endpoints.write(settings.data_dir)
            progress("ready")
            asyncio.run(platform.watch())
            progress("stopping")
        except (StopRequested, KeyboardInterrupt):
            progress("stopping")


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Turn SIGTERM and Ctrl-C into StopRequested, once: a second one does not break off the stopping."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    _catch_signals()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _catch_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)


def _stop(_number: int, _frame: object) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    raise StopRequested


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Let a first signal count at the end of the context only: Ray, broken off while it starts, aborts at its exit."""
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        # The handler of Ray's C++ part, which comes before this one, sets an alarm that aborts the process.
        signal.alarm(0)
        if received:
            _stop(number, frame)
        received.append(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, note)
    try:
        yield
    finally:
        _catch_signals()
    if received:
        _stop(received[0], None)


class _Platform:
    """The parts of one running platform; `parts` stops them in reverse order."""

    def __init__(self, settings: PlatformSettings, parts: contextlib.ExitStack) -> None:
        self._settings = settings
        self._parts = parts
        self._directory = DataDirectory(settings.data_dir)
        self._key_file = settings.key_file or self._directory.key_file
        self._lifetimes: dict[Any, str] = {}

    def start(self, version: str, progress: Callable[[str], None]) -> Endpoints:
        """Start every part and return where they can be reached, once all are ready."""
        directory = self._directory
        directory.prepare()
        self._parts.enter_context(directory.lock())
        # What a killed predecessor left.
        Endpoints.remove(directory.path)
        for secret in (directory.ray_token_file, directory.operator_token_file):
            read_or_create_secret(secret)
        self._authority = CertificateAuthority.open_or_create(directory.pki, key_file=self._key_file)
        self._require_ports_free()
        progress("starting Redis and mosquitto")
        self._start_processes()
        progress("starting Ray")
        with _signals_held_back():
            ray_endpoint = self._parts.enter_context(local_head(directory.ray_token_file))
        progress("starting shards, bridge and gateway")
        urls = self._start_actors()
        return Endpoints(
            pid=os.getpid(),
            version=version,
            mqtts=self._mqtts,
            api=UrlEndpoint(urls.api),
            metrics=UrlEndpoint(f"{urls.api}/metrics"),
            ca=str(directory.pki / "ca.pem"),
            operator_token_file=str(directory.operator_token_file),
            redis=UrlEndpoint(self._store.url),
            ray=ray_endpoint,
            https_devices=UrlEndpoint(urls.https_devices),
        )

    def _require_ports_free(self) -> None:
        """Refuse ports in use before anything is started; the gateway, which takes them, starts last."""
        settings = self._settings
        for port, option in ((settings.api_port, "--api-port"), (settings.device_port, "--device-port")):
            for host in loopback_addresses() if port else ():
                require_port_free(host, port, option=option)

    def _start_processes(self) -> None:
        self._store, self._broker = RedisServer(self._settings), MosquittoBroker(self._settings)
        self._mqtts = MqttsEndpoint("127.0.0.1", self._broker.port)
        self._parts.callback(self._store.stop)
        self._store.start()
        # The shard actors check it, too; here a mistake is told before Ray has started.
        journal = Journal(self._store.url)
        journal.require_shard_count(self._settings.shard_count)
        journal.close()
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

    def _start_actors(self) -> GatewayUrls:
        count = self._settings.shard_actor_count
        hosts = [start_shard_actor(actor_name(index)) for index in range(count)]
        bridge = start_actor(BridgeActor, BRIDGE_NAME)
        gateway = start_actor(GatewayActor, GATEWAY_NAME)
        for index, host in enumerate(hosts):
            self._enlist(host, actor_name(index))
        open_actor(*hosts, settings=[self._host_settings(index) for index in range(count)])
        self._enlist(bridge, BRIDGE_NAME)
        open_actor(bridge, settings=[self._bridge_settings()])
        self._enlist(gateway, GATEWAY_NAME)
        (urls,) = open_actor(gateway, settings=[self._gateway_settings()])
        return msgspec.msgpack.decode(urls, type=GatewayUrls)

    def _enlist(self, actor: Any, name: str) -> None:
        """Watch over an actor from now on, and let it finish when the platform stops."""
        self._parts.callback(_close, actor)
        self._lifetimes[actor.lifetime.remote()] = name

    def _host_settings(self, index: int) -> HostSettings:
        shard_count, actor_count = self._settings.shard_count, self._settings.shard_actor_count
        shards = tuple(range(index, shard_count, actor_count))
        return HostSettings(
            index,
            shards,
            shard_count,
            self._store.url,
            str(self._directory.snapshots),
            # Two spans of every shard's journal then fill half of the store.
            self._settings.store_memory_max_bytes // (4 * shard_count),
            self._log_file(f"shard-actor-{index}"),
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
            self._settings.shard_count,
            self._settings.shard_actor_count,
            self._log_file("bridge"),
        )

    def _gateway_settings(self) -> GatewaySettings:
        return GatewaySettings(
            data_dir=str(self._directory.path),
            key_file=str(self._key_file),
            redis_url=self._store.url,
            api_port=self._settings.api_port,
            device_port=self._settings.device_port,
            mqtts=self._mqtts,
            shard_count=self._settings.shard_count,
            shard_actor_count=self._settings.shard_actor_count,
            supervisor_pid=os.getpid(),
            store_pid=self._store.pid,
            broker_pid=self._broker.pid,
            log_file=self._log_file("gateway"),
        )

    async def watch(self) -> None:
        """Keep standing fleets going until a signal comes; WorldError as soon as a part has died."""
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        fleet = find_fleet(self._settings.shard_count, self._settings.shard_actor_count)
        registry = await Registry.open(self._store.url, WallClock(), is_writer=False)
        pacer = Pacer(fleet, registry, WallClock())
        try:
            while not stop.is_set():
                self._require_alive()
                try:
                    await pacer.pace()
                except WorldError as error:
                    if not error.retryable:
                        raise
                    _LOG.warning("standing fleets wait: %s", error)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), _WATCH_EVERY_S)
        finally:
            await registry.close()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
                # From now on everything is being stopped already.
                signal.signal(number, signal.SIG_IGN)

    def _require_alive(self) -> None:
        dead = [
            name
            for name, part in (("Redis", self._store), ("mosquitto", self._broker))
            if not part.is_alive()
        ]
        ended, _ = ray.wait(list(self._lifetimes), num_returns=len(self._lifetimes), timeout=0)
        dead += [self._lifetimes[reference] for reference in ended]
        if dead:
            logs = self._directory.logs
            raise WorldError(
                f"{', '.join(dead)} died; start the platform again, what was accepted is kept (logs: {logs})"
            )


def _close(actor: Any) -> None:
    """Let an actor finish; one that has died, hangs or fails over it is left to Ray's own end."""
    try:
        ray.get(actor.close.remote(), timeout=_CLOSE_TIMEOUT_S)
    except ray.exceptions.RayActorError:
        # Whoever watches has said so.
        return
    except ray.exceptions.RayError as error:
        _LOG.warning("a part could not finish: %s", error)
