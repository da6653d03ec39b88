"""The desk between the broker's events and the office: real registry, authority and twins, a gate of our own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest

from actors.broker_log import BrokerEvent, ClientConnected, ClientDisconnected, ProtocolViolated
from actors.errors import BrokerError
from actors.mqtt_events import StreamInterrupted, StreamResumed
from actors.pki import generate_key_and_csr
from actors.provisioning.desk import ProvisioningDesk
from actors.provisioning.office import CREATE_KEYS_TOPIC, ProvisioningOffice
from actors.registry.templates import TemplateRecord
from actors.store import RedisServer
from actors.wall_clock import WallClock
from tests.integration.provisioning_device import TEMPLATE
from tests.integration.running_gateway import Gateway, open_gateway
from tests.running_store import running_store
from twins.messages import Publish

CLAIM = "claim.line"
CONNECTED = ClientConnected(0, "127.0.0.1", 1, CLAIM, CLAIM, 5, 30, True)
DEADLINE_S = 20


class Door:
    """Where claims come in, as a list of what was done to it; it may be stuck for a time."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.sent: list[Publish] = []
        self.failure_count = 0
        self._changed = asyncio.Event()

    async def close_gate(self, claim: str) -> None:
        self._do(f"close for {claim}")

    async def open_gate(self) -> None:
        self._do("open")

    async def reload(self) -> None:
        self._do("reload")

    async def end_sessions(self, client_ids: Sequence[str]) -> None:
        self._do(f"end {' '.join(client_ids)}")

    async def publish(self, messages: Sequence[Publish]) -> None:
        self.sent += messages
        self._changed.set()

    def _do(self, step: str) -> None:
        if self.failure_count:
            self.failure_count -= 1
            raise BrokerError("no answer", retryable=True)
        self.steps.append(step)
        self._changed.set()

    async def until(self, *steps: str) -> None:
        """Return when these steps, and no others, were taken since this was last asked."""
        async with asyncio.timeout(DEADLINE_S):
            while len(self.steps) < len(steps):
                self._changed.clear()
                await self._changed.wait()
        assert self.steps == list(steps)
        self.steps = []

    async def answer(self) -> Publish:
        """Return the next answer that leaves."""
        async with asyncio.timeout(DEADLINE_S):
            while not self.sent:
                self._changed.clear()
                await self._changed.wait()
        return self.sent.pop(0)


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_store(tmp_path_factory.mktemp("store")) as server:
        yield server


@pytest.fixture
async def gateway(
    shared_store: RedisServer, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Gateway]:
    prefix = f"{request.node.name}:"
    async with open_gateway(shared_store.url, tmp_path / "data", prefix=prefix) as gateway:
        await gateway.registry.templates.add(TemplateRecord("lamps", json.dumps(TEMPLATE), 1), by="test")
        csr = generate_key_and_csr("line").csr_pem
        await gateway.app.state.certificates.create_claim("line", "lamps", csr)
        yield gateway


@pytest.fixture
def door() -> Door:
    return Door()


@pytest.fixture
async def desk(gateway: Gateway, door: Door) -> AsyncIterator[ProvisioningDesk]:
    office = ProvisioningOffice(
        gateway.registry,
        gateway.app.state.devices,
        authority=gateway.authority,
        platform=gateway.platform,
        clock=WallClock(),
    )
    desk = ProvisioningDesk(
        office, gateway.registry, gate=door, end_sessions=door.end_sessions, publish=door.publish
    )
    await desk.begin()
    await door.until(f"end {CLAIM}")
    for event in (StreamInterrupted(0), StreamResumed(0)):
        await desk.on_broker_event(event)
    yield desk
    await desk.close()


@pytest.mark.parametrize(
    "end",
    [
        ClientDisconnected(0, CLAIM, "CONNECTION_LOST"),
        ProtocolViolated(0, CLAIM, "malformed packet"),
        # `end_session` itself.
        ClientConnected(0, "127.0.0.1", 2, CLAIM, "app.bridge", 4, 30, True),
    ],
    ids=["gone", "protocol violated", "ended"],
)
async def test_a_turn_ends_with_its_session_however_that_ends(
    desk: ProvisioningDesk, door: Door, end: BrokerEvent
) -> None:
    await desk.on_broker_event(CONNECTED)
    await door.until(f"close for {CLAIM}")
    assert desk.turns.deadline_s < float("inf")
    await desk.on_broker_event(end)
    # At once, and not by the clock.
    assert desk.turns.deadline_s == float("inf")
    await door.until(f"end {CLAIM}", "open")


async def test_what_the_broker_does_not_do_at_once_is_tried_until_it_does(
    desk: ProvisioningDesk, door: Door
) -> None:
    door.failure_count = 2
    await desk.on_broker_event(CONNECTED)
    await door.until(f"close for {CLAIM}")
    await desk.on_message(CREATE_KEYS_TOPIC, b"{}")
    answer = await door.answer()
    assert answer.topic == f"{CREATE_KEYS_TOPIC}/accepted"
    assert answer.delivery is not None
    assert (answer.delivery.qos, answer.delivery.is_retained) == (0, False)
    door.failure_count = 2
    await desk.on_broker_event(ClientDisconnected(0, CLAIM, "CONNECTION_LOST"))
    await door.until(f"end {CLAIM}", "open")
