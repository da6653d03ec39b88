"""Fleet queries over the gateway: that they reach all that a twin is, and that pages hold while things come and go."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator

import httpx
import msgspec
import pytest

from tests.integration.running_gateway import Gateway
from twins.messages import Connectivity, Operation, Request

TWINS = (
    (Operation.SHADOW_UPDATE, "a", b'{"state":{"desired":{"x":2},"reported":{"x":1}}}', ""),
    (Operation.SHADOW_UPDATE, "a", b'{"state":{"reported":{"list":[{"y":5}]}}}', ""),
    (Operation.SHADOW_UPDATE, "b", b'{"state":{"desired":{"mode":"eco"}}}', "config"),
    (
        Operation.CONNECTIVITY,
        "c",
        msgspec.json.encode(Connectivity(False, 1_760_000_000_000, "CONNECTION_LOST", "s", 1)),
        "",
    ),
    (Operation.DEFENDER, "d", b'{"hed":{"rid":7,"v":"1.0"},"met":{"ns":{"bi":5}}}', "json"),
)


@pytest.fixture
async def http(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    async with gateway.client() as opened:
        yield opened


async def create(http: httpx.AsyncClient, *names: str) -> None:
    answer = await http.post("/v1/things/batch", json={"things": [{"name": name} for name in names]})
    assert [result["outcome"] for result in answer.json()["results"]] == ["created"] * len(names)


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("shadow.hasDelta:true", ["a"]),
        ("shadow.name.config.hasDelta:true", ["b"]),
        ("shadow.version>1", ["a"]),
        ("shadow.name.config.version:1", ["b"]),
        (f"shadow.metadata.reported.list.y.timestamp>{1_700_000_000}", ["a"]),
        ("shadow.name.config.metadata.desired.mode.timestamp:*", ["b"]),
        ("shadow.reported.list.y:5", ["a"]),
        ("connectivity.connected:false", ["a", "b", "c", "d"]),
        ("connectivity.disconnectReason:CONNECTION_LOST", ["c"]),
        ("connectivity.timestamp>=1760000000000", ["c"]),
        ("deviceDefender.metrics.network_stats.bytes_in:5", ["d"]),
        ("deviceDefender.header.report_id:[7 TO 7]", ["d"]),
        ("NOT shadow:*", ["c", "d"]),
        # Words without a field: in named shadows, and not among connections.
        ("eco", ["b"]),
        ("CONNECTION_LOST", []),
    ],
)
async def test_search_knows_all_that_a_twin_is(gateway: Gateway, query: str, names: list[str]) -> None:
    async with gateway.client() as http:
        for name in "abcd":
            await http.post("/v1/things", json={"name": name})
        for operation, thing, payload, more in TWINS:
            request = Request(operation, thing, payload, more, is_direct=True)
            assert (await gateway.fleet.ask(request)).status == 200
        found = (await http.post("/indices/search", json={"queryString": query})).json()["things"]
    assert [thing["thingName"] for thing in found] == names


@pytest.mark.parametrize("listing", ["/things", "/indices/search"])
async def test_what_stays_stands_on_one_page_while_others_come_and_go(
    http: httpx.AsyncClient, listing: str
) -> None:
    stays = [f"stays-{number:03d}" for number in range(60)]
    await create(http, *stays, *(f"goes-{number:03d}" for number in range(60)))
    seen: list[str] = []
    token = ""
    for turn in itertools.count():
        if listing == "/things":
            answer = await http.get(listing, params={"maxResults": 7, "nextToken": token})
        else:
            body = {"queryString": "thingName:*", "maxResults": 7, "nextToken": token}
            answer = await http.post(listing, json=body)
        seen += [thing["thingName"] for thing in answer.json()["things"]]
        token = answer.json().get("nextToken", "")
        if not token:
            break
        # Before the page and behind it, and the very thing where the next page begins.
        await create(http, f"comes-{turn:03d}", f"stays-{turn:03d}-comes")
        for name in (f"goes-{turn:03d}", token if token.startswith("goes") else f"goes-{59 - turn:03d}"):
            await http.delete(f"/v1/things/{name}")
    assert seen == sorted(set(seen))
    assert [name for name in seen if name in stays] == stays
