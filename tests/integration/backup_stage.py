"""A platform without Ray, broker and gateway: its store, its shards, its registry and its files, in this process."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import msgspec

from actors.actor_settings import HostSettings
from actors.pki import CertificateAuthority, generate_key_and_csr
from actors.registry.records import new_thing
from actors.registry.registry import Registry
from actors.settings import (
    DataDirectory,
    Endpoints,
    MqttsEndpoint,
    PlatformSettings,
    RayEndpoint,
    UrlEndpoint,
    read_or_create_secret,
)
from actors.shard_actor import ShardHost
from actors.store import RedisServer
from twins.clock import VirtualClock
from twins.messages import Batch, Operation, Request, decode_outcome
from twins.sharding import shard_of

SHARD_COUNT: Final = 4
NOW_S: Final = 1_760_000_000.0
# A snapshot takes the place of a journal once it is this long.
NEVER: Final = 1 << 40
_SOURCES: Final = itertools.count()


class Stage:
    """What a platform is to a backup."""

    def __init__(self, data_dir: Path, *, snapshots: str | None = None) -> None:
        self.directory: Final = DataDirectory(data_dir)
        self.directory.prepare()
        self.settings: Final = PlatformSettings.load(data_dir, {"snapshot_location": snapshots})
        self.location: Final = snapshots or str(self.directory.snapshots)
        self.token: Final = read_or_create_secret(self.directory.operator_token_file)
        self.authority: Final = CertificateAuthority.open_or_create(self.directory.pki)
        self.store: Final = RedisServer(self.settings)
        self.store.start()
        self.host = ShardHost(lambda _: None)
        # As every bridge has one of its own.
        self._source = f"bridge-{next(_SOURCES)}"
        self._sequence = 0
        self.open_shards()

    def open_shards(self, *, journal_bytes_max: int = NEVER) -> None:
        """Open all shards (again)."""
        self.host.open(
            msgspec.msgpack.encode(
                HostSettings(
                    index=0,
                    shards=tuple(range(SHARD_COUNT)),
                    shard_count=SHARD_COUNT,
                    redis_url=self.store.url,
                    snapshot_location=self.location,
                    journal_bytes_max=journal_bytes_max,
                    log_file=str(self.directory.logs / "host.log"),
                    is_predecessor_gone=True,
                )
            )
        )

    def report(self, thing_name: str, state: Any) -> None:
        """Update what a thing reports; when this returns, the update is accepted."""
        body = msgspec.json.encode({"state": {"reported": state}})
        self._sequence += 1
        batch = Batch(self._source, self._sequence, [Request(Operation.SHADOW_UPDATE, thing_name, body)])
        pair = (shard_of(thing_name, SHARD_COUNT), batch)
        outcome = decode_outcome(self.host.submit(msgspec.msgpack.encode([pair])))
        assert any(message.topic.endswith("/accepted") for message in outcome.publishes), outcome

    def documents(self, names: Sequence[str]) -> list[Any]:
        """Return shadows, without the time of the question."""
        return [self.host.shadow(name) | {"timestamp": 0} for name in names]

    async def register(self, *names: str, registry: Registry | None = None) -> None:
        """Register things, each with a certificate."""
        opened = registry or await Registry.open(self.store.url, VirtualClock(NOW_S))
        for name in names:
            certificate = self.authority.issue_for_thing(generate_key_and_csr(name).csr_pem, name)
            await opened.things.add(new_thing(name, "thermostat", {"room": name}, now_s=NOW_S), certificate)
        if registry is None:
            await opened.close()

    def say_running(self) -> None:
        """Write where this platform can be reached, as one that runs."""
        url = UrlEndpoint("http://127.0.0.1:1")
        Endpoints(
            pid=os.getpid(),
            version="0",
            mqtts=MqttsEndpoint("127.0.0.1", 1),
            api=url,
            metrics=url,
            ca="",
            operator_token_file="",
            redis=UrlEndpoint(self.store.url),
            ray=RayEndpoint("", "", ""),
            snapshots=self.location,
            key_file=str(self.directory.key_file),
        ).write(self.directory.path)

    def stop(self) -> None:
        """Stop, as `twinfleet down` does."""
        with contextlib.suppress(Exception):
            self.host.close()
        Endpoints.remove(self.directory.path)
        self.store.stop()


@contextlib.contextmanager
def stage_on(data_dir: Path, *, snapshots: str | None = None) -> Iterator[Stage]:
    """Give a platform of this kind that says that it runs."""
    stage = Stage(data_dir, snapshots=snapshots)
    try:
        stage.say_running()
        yield stage
    finally:
        stage.stop()


class Busy:
    """Does one thing after the other, in rounds, in a thread of its own, until it is left.

    Each round reports its number for every thing, in their order, registers a further thing, and then reports the
    number for the thing `count`. What there is at any instant is therefore known from any part of it.
    """

    def __init__(self, stage: Stage, names: Sequence[str]) -> None:
        self.round_count = 0
        self._stage = stage
        self._names = names
        self._stop = threading.Event()
        self._thread = ThreadPoolExecutor(1)

    def __enter__(self) -> Busy:
        self._running = self._thread.submit(asyncio.run, self._run())
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._running.result()
        self._thread.shutdown()

    async def _run(self) -> None:
        registry = await Registry.open(self._stage.store.url, VirtualClock(NOW_S))
        while not self._stop.is_set():
            number = self.round_count + 1
            for name in self._names:
                self._stage.report(name, {"x": number})
            await self._stage.register(f"new-{number:05d}", registry=registry)
            self._stage.report("count", {"x": number})
            self.round_count = number
        await registry.close()
