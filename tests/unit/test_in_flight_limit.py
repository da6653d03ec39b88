"""The gateway serves a bounded number of requests at a time, and says 429 to the rest."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from actors.gateway import middleware
from actors.gateway.middleware import InFlightLimit
from actors.gateway.problems import document


class Slow:
    """An application that answers when it is told to."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.begun_count = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.begun_count += 1
        await self.may_answer.wait()
        await document({})(scope, receive, send)


async def all_begun(app: Slow, count: int) -> None:
    async with asyncio.timeout(10):
        while app.begun_count < count:
            await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def low_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "REQUEST_COUNT_MAX", 3)
    monkeypatch.setattr(middleware, "PROBE_COUNT_MAX", 2)


def client(app: Slow) -> httpx.AsyncClient:
    limited = InFlightLimit(app, probes=["/readyz"])
    return httpx.AsyncClient(transport=httpx.ASGITransport(limited), base_url="http://gateway")


async def test_a_request_beyond_the_bound_is_told_to_come_again_and_later_ones_are_served() -> None:
    app = Slow()
    async with client(app) as asking:
        served = [asyncio.create_task(asking.get("/things/a/shadow")) for _ in range(3)]
        await all_begun(app, 3)
        refused = await asking.get("/things/b/shadow")
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        # What makes AWS's SDKs try again by themselves.
        assert refused.headers["x-amzn-errortype"] == "ThrottlingException"
        assert app.begun_count == 3
        app.may_answer.set()
        assert [(await each).status_code for each in served] == [200] * 3
        assert (await asking.get("/things/b/shadow")).status_code == 200


async def test_probes_are_answered_while_all_else_is_refused_and_are_bounded_themselves() -> None:
    app = Slow()
    async with client(app) as asking:
        served = [asyncio.create_task(asking.get("/things/a/shadow")) for _ in range(3)]
        probes = [asyncio.create_task(asking.get("/readyz")) for _ in range(2)]
        await all_begun(app, 5)
        assert (await asking.get("/readyz")).status_code == 429
        app.may_answer.set()
        assert [(await each).status_code for each in (*served, *probes)] == [200] * 5


async def test_a_request_whose_client_gives_up_makes_room() -> None:
    app = Slow()
    async with client(app) as asking:
        served = [asyncio.create_task(asking.get("/things/a/shadow")) for _ in range(3)]
        await all_begun(app, 3)
        served[0].cancel()
        await asyncio.wait(served[:1])
        last = asyncio.create_task(asking.get("/things/b/shadow"))
        await all_begun(app, 4)
        app.may_answer.set()
        assert (await last).status_code == 200
        assert [(await each).status_code for each in served[1:]] == [200] * 2
