"""A gateway with everything behind it but Ray and the broker: real Redis, real authority, the shards in-process."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from actors.access import BrokerAccess
from actors.fleet import LocalFleet
from actors.gateway.authentication import Identity
from actors.gateway.devices import create_device_app, registered_principal
from actors.gateway.messaging import Messaging
from actors.gateway.operators import create_app
from actors.gateway.platform_view import DeviceEndpoints
from actors.job_coordination import JobCoordinator
from actors.metrics import ProcessStatus
from actors.mqtt_retained import RetainedMessage
from actors.pki import CertificateAuthority
from actors.registry.job_orders import JobOrder
from actors.registry.jobs import Jobs
from actors.registry.registry import Registry
from actors.retained import RetainedNotes
from actors.settings import DataDirectory, MqttsEndpoint
from actors.vault import Vault
from actors.wall_clock import WallClock
from twins.messages import Publish

TOKEN = "the-operators-token-of-these-tests"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@dataclass
class LonePlatform:
    """A platform of one process and no broker: its access list is written as for one."""

    access: BrokerAccess
    data_dir: Path
    notes: RetainedNotes
    jobs: Jobs
    coordinator: JobCoordinator
    published: list[Publish] = field(default_factory=list)
    reload_count: int = 0
    asked_count: int = 0
    # Client ids whose sessions were ended, each with the number of reloads before.
    ended: list[tuple[str, int]] = field(default_factory=list)
    readiness_reasons: tuple[str, ...] = ()
    announced: list[Publish] = field(default_factory=list)
    statuses: list[ProcessStatus] = field(default_factory=lambda: [ProcessStatus("gateway", 1, twin_count=3)])

    @property
    def endpoints(self) -> DeviceEndpoints:
        return DeviceEndpoints(MqttsEndpoint("127.0.0.1", 8883))

    @property
    def messaging(self) -> Messaging:
        return Messaging(self._publish, self._retained, notes=self.notes, clock=WallClock())

    async def _publish(self, message: Publish) -> None:
        self.published.append(message)

    async def _retained(self, topics: Sequence[str]) -> list[RetainedMessage]:
        newest = {
            message.topic: RetainedMessage(message.topic, message.payload, message.delivery.qos)
            for message in self.published
            if message.delivery is not None and message.delivery.is_retained
        }
        return [newest[topic] for topic in topics if topic in newest and newest[topic].payload]

    async def processes(self) -> list[ProcessStatus]:
        self.asked_count += 1
        missing = [ProcessStatus("broker", 0, state="down", reason=text) for text in self.readiness_reasons]
        return self.statuses + missing

    async def order_job(self, order: JobOrder) -> None:
        await self.coordinator.order(order)

    async def reload_access(self) -> None:
        await self.access.write()
        self.reload_count += 1

    def announce(self, messages: Sequence[Publish]) -> None:
        self.announced += messages

    async def end_sessions(self, client_ids: Sequence[str]) -> None:
        self.ended += [(client_id, self.reload_count) for client_id in client_ids]

    def device_acl(self) -> str:
        return (DataDirectory(self.data_dir).mosquitto / "device.acl").read_text()


@dataclass(frozen=True)
class Gateway:
    fleet: LocalFleet
    registry: Registry
    authority: CertificateAuthority
    platform: LonePlatform
    app: FastAPI
    device_app: FastAPI

    def client(self, headers: dict[str, str] | None = None) -> httpx.AsyncClient:
        """Return a client of the operators' API, with the operators' token unless told otherwise."""
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(
            transport=transport, base_url="http://gateway", headers=BEARER if headers is None else headers
        )


@contextlib.asynccontextmanager
async def open_gateway(redis_url: str, data_dir: Path, *, prefix: str) -> AsyncIterator[Gateway]:
    """Give a gateway on its own part (`prefix`) of the Redis at `redis_url`."""
    directory = DataDirectory(data_dir)
    directory.prepare()
    registry = await Registry.open(redis_url, WallClock(), prefix=prefix)
    fleet = LocalFleet(shard_count=4, clock=WallClock())
    authority = CertificateAuthority.open_or_create(directory.pki)
    notes = RetainedNotes.open(redis_url, prefix=prefix)
    access = BrokerAccess(registry, authority, data_dir=data_dir, clock=WallClock())
    jobs = await Jobs.open(redis_url, WallClock(), prefix=prefix, is_writer=True)
    coordinator = JobCoordinator(jobs, registry, fleet, WallClock())
    platform = LonePlatform(access, data_dir, notes, jobs, coordinator)
    identity = Identity(TOKEN, registry.access_keys, vault=Vault.open(directory.key_file), clock=WallClock())
    app = create_app(
        fleet=fleet, registry=registry, authority=authority, platform=platform, identity=identity
    )
    device_app = create_device_app(
        fleet=fleet,
        messaging=platform.messaging,
        principal_from_scope=registered_principal(registry, used=app.state.certificates.used),
        metrics=app.state.metrics,
    )
    try:
        yield Gateway(fleet, registry, authority, platform, app, device_app)
    finally:
        app.state.sql_engine.close()
        await registry.close()
        await jobs.close()
        await notes.close()


def assert_problem(response: httpx.Response, status: int, error_type: str) -> dict[str, Any]:
    """Check that the answer is a problem document for both worlds, and return it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-amzn-errortype"] == error_type
    body: dict[str, Any] = response.json()
    assert body["status"] == body["code"] == status
    assert body["detail"] == body["message"]
    assert body["type"] == "about:blank"
    assert body["title"]
    return body
