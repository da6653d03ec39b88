"""A shard actor that hangs holds up its own things, and a few requests of the gateway: everybody else is served."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from actors.homes import CALL_COUNT_MAX
from tests.integration.presence_stage import raw_client
from tests.integration.raw_mqtt import Connect, RawSession
from tests.integration.running_platform import DEADLINE_S, RunningPlatform, platform_on
from twins.sharding import shard_of

SHARD_COUNT, ACTOR_COUNT = 16, 2
ONE_TOO_MANY = 6


def things_of(lane: int) -> Iterator[str]:
    """Yield names of things that one shard actor serves."""
    for first in "abcdefghijklmnopqrstuvwxyz":
        for second in "abcdefghijklmnopqrstuvwxyz":
            name = f"stall-{first}{second}"
            if shard_of(name, SHARD_COUNT) % ACTOR_COUNT == lane:
                yield name


HELD, HELD_DEVICE = list(things_of(0))[:2]
FREE, FREE_DEVICE = list(things_of(1))[:2]


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPlatform]:
    with platform_on(tmp_path_factory.mktemp("stalled") / "data") as running:
        yield running


@pytest.fixture
async def api(platform: RunningPlatform) -> AsyncIterator[httpx.AsyncClient]:
    token = Path(platform.endpoints.operator_token_file).read_text().strip()
    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(
        base_url=platform.endpoints.api.url,
        headers={"Authorization": f"Bearer {token}"},
        timeout=DEADLINE_S,
        limits=limits,
        verify=False,
    ) as opened:
        yield opened


@contextlib.asynccontextmanager
async def stalled(api: httpx.AsyncClient, lane: int) -> AsyncIterator[None]:
    """Stop the process of a shard actor while the context is open; its supervisor may have killed it by then."""
    processes = (await api.get("/v1/cluster")).json()["processes"]
    (pid,) = (each["pid"] for each in processes if lane in each["shards"])
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


async def ask(api: httpx.AsyncClient, thing_name: str) -> httpx.Response:
    return await api.get(f"/things/{thing_name}/shadow")


async def want(api: httpx.AsyncClient, thing_name: str) -> httpx.Response:
    return await api.post(f"/things/{thing_name}/shadow", json={"state": {"desired": {"x": 1}}})


def update(session: RawSession, thing_name: str) -> None:
    session.publish(f"$aws/things/{thing_name}/shadow/update", b'{"state":{"reported":{"x":1}}}')


def answer_topic(session: RawSession) -> str:
    return session.next_message().topic


async def test_only_what_a_hanging_shard_actor_serves_has_to_wait(
    platform: RunningPlatform, api: httpx.AsyncClient, tmp_path: Path
) -> None:
    for name in (HELD_DEVICE, FREE_DEVICE):
        platform.enrol(name, tmp_path)
    assert [(await want(api, name)).status_code for name in (HELD, FREE)] == [200, 200]
    held_client, free_client = (raw_client(platform, name, tmp_path) for name in (HELD_DEVICE, FREE_DEVICE))
    with held_client.session(Connect()) as held, free_client.session(Connect()) as free:
        for session, name in ((held, HELD_DEVICE), (free, FREE_DEVICE)):
            session.subscribe(f"$aws/things/{name}/shadow/update/accepted")
        async with stalled(api, 0):
            update(held, HELD_DEVICE)
            asking = [asyncio.create_task(ask(api, HELD)) for _ in range(CALL_COUNT_MAX + ONE_TOO_MANY)]
            refused = []
            for answer in asyncio.as_completed(asking, timeout=DEADLINE_S):
                refused.append(await answer)
                if len(refused) == ONE_TOO_MANY:
                    break
            assert {each.status_code for each in refused} == {429}
            assert {each.headers["retry-after"] for each in refused} == {"1"}
            # Things of the other actor are served over HTTP and over MQTT.
            assert [(await ask(api, FREE)).status_code for _ in range(20)] == [200] * 20
            assert (await want(api, FREE)).status_code == 200
            for _ in range(20):
                update(free, FREE_DEVICE)
                assert answer_topic(free) == f"$aws/things/{FREE_DEVICE}/shadow/update/accepted"
            assert (await ask(api, HELD)).status_code == 429
        # What the device sent meanwhile is not lost, and whoever waited has been answered, one way or the other.
        assert answer_topic(held) == f"$aws/things/{HELD_DEVICE}/shadow/update/accepted"
        assert {(await each).status_code for each in asking} <= {200, 429, 503}
        async with asyncio.timeout(DEADLINE_S):
            while (await ask(api, HELD)).status_code != 200:
                await asyncio.sleep(0.05)
