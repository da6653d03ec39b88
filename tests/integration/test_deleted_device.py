"""A device that is deleted while it is connected, on the whole platform."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from gmqtt import Client

from tests.integration.running_platform import DEADLINE_S, RunningPlatform

# From the answer of `device delete` to the end of the connection.
CLOSED_WITHIN_S = 2.0
UPDATE = b'{"state":{"reported":{"temperature":21.5}}}'


async def until(is_true: Callable[[], object], within_s: float) -> None:
    async with asyncio.timeout(within_s):
        # The condition lies with another process, which sets no event of ours.
        while not is_true():
            await asyncio.sleep(0.01)


async def test_a_deleted_devices_open_session_is_closed_and_makes_no_twin(
    platform: RunningPlatform, tmp_path: Path
) -> None:
    name = "leaver"
    accepted: list[int] = []
    platform.enrol(name, tmp_path)
    topic = f"$aws/things/{name}/shadow/update"
    context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    context.load_cert_chain(tmp_path / f"{name}.pem", tmp_path / f"{name}.key")
    client = Client(name, clean_session=True)
    # Else gmqtt connects again at once, and is refused again, for as long as this test runs.
    client.set_config({"reconnect_retries": 0})
    client.on_message = lambda *_: accepted.append(1)
    mqtts = platform.endpoints.mqtts
    async with asyncio.timeout(DEADLINE_S):
        await client.connect(mqtts.host, mqtts.port, ssl=context)
    client.subscribe(f"{topic}/accepted", qos=1)
    client.publish(topic, UPDATE, qos=1)
    await until(lambda: accepted, DEADLINE_S)
    await asyncio.to_thread(platform.done, "device", "delete", name)
    await until(lambda: not client.is_connected, CLOSED_WITHIN_S)
    again = Client(name, clean_session=True)
    again.set_config({"reconnect_retries": 0})
    with pytest.raises((OSError, TimeoutError)):
        async with asyncio.timeout(CLOSED_WITHIN_S):
            await again.connect(mqtts.host, mqtts.port, ssl=context)
    twin = await asyncio.to_thread(platform.run, "twin", "get", name)
    assert twin.returncode != 0
    assert name in twin.stderr
