"""Fleet queries over all twins through HTTP: counts, statistics, buckets, names; SearchIndex by the same engine."""

from __future__ import annotations

import statistics
from typing import Any

import pytest

from actors.registry.records import ThingDescription
from tests.integration.running_gateway import Gateway, assert_problem
from twins.messages import Operation, Request, TickOrder
from twins.model import Attribute, Group
from twins.shipped import model_named

HOMES = Group(
    "homes",
    model_named("thermostat"),
    "home-{i:04d}",
    600,
    1,
    1_767_225_600,
    report_every_ticks=1,
    attributes=(Attribute("site", ("ams", "ber")),),
)


async def ask(gateway: Gateway, query: str, **more: Any) -> dict[str, Any]:
    async with gateway.client() as client:
        response = await client.post("/v1/query", json={"query": query, "timeout_s": 30, **more})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    assert [shard["shard"] for shard in answer["shards"]] == list(range(gateway.fleet.shard_count))
    assert answer["age_ms"] > 0
    return answer


async def create_things(gateway: Gateway) -> None:
    """Create lamps 0 to 5, of which the even ones are warm and reported so without a decimal point."""
    for number in range(6):
        name = f"lamp-{number}"
        description = ThingDescription(name, "thermostat", {"site": "rom"}, "", ())
        await gateway.app.state.devices.create(description, None, by="test")
        report = b'{"state": {"reported": {"temperature": %d, "extra": {"deep": [1, "x"]}}}}' % (
            30 - number % 2 * 20
        )
        await gateway.fleet.ask(Request(Operation.SHADOW_UPDATE, name, report))


async def test_a_query_counts_and_describes_the_twins_that_it_matches(gateway: Gateway) -> None:
    await gateway.fleet.create_group(HOMES)
    await gateway.fleet.tick([TickOrder("homes", 0, 2)])
    await create_things(gateway)
    rows = (await gateway.fleet.twins_table()).to_pylist()
    warm = [
        row for row in rows if row["reported_temperature"] is not None and row["reported_temperature"] > 19.9
    ]
    values = [row["reported_temperature"] for row in warm]
    answer = await ask(
        gateway,
        "shadow.reported.temperature>19.9",
        field="shadow.reported.temperature",
        percentiles=[0, 50, 100],
        group_by="attributes.site",
        names=5,
        after="home-01",
    )
    assert answer["count"] == len(warm) > 10
    expected = {site: sum(row["site"] == site for row in warm) for site in ("ams", "ber", "rom")}
    assert {bucket["value"]: bucket["count"] for bucket in answer["buckets"]} == expected
    assert [bucket["count"] for bucket in answer["buckets"]] == sorted(expected.values(), reverse=True)
    assert answer["names"] == sorted(row["name"] for row in warm if row["name"] > "home-01")[:5]
    found = answer["statistics"]
    assert (found["count"], found["min"], found["max"]) == (len(values), min(values), max(values))
    assert found["mean"] == pytest.approx(statistics.fmean(values))
    assert found["percentiles"] == {"0": min(values), "50": statistics.median_low(values), "100": max(values)}


async def test_what_columns_do_not_say_is_found_all_the_same(gateway: Gateway) -> None:
    await create_things(gateway)
    for query, names in {
        "shadow.reported.temperature:30": ["lamp-0", "lamp-2", "lamp-4"],
        "shadow.reported.extra.deep:x AND thingName:lamp-1": ["lamp-1"],
        "connectivity.connected:false AND thingName:LAMP-?": [f"lamp-{number}" for number in range(6)],
        # What only the registry knows.
        "thingId:* AND shadow.reported.temperature<20": ["lamp-1", "lamp-3", "lamp-5"],
        "lamp-3": ["lamp-3"],
        "NOT thingId:*": [],
    }.items():
        answer = await ask(gateway, query, names=10, group_by="model")
        assert answer["names"] == names, query
        assert answer["count"] == len(names)
        assert answer["buckets"] == ([{"value": "thermostat", "count": len(names)}] if names else [])


async def test_search_index_pages_through_what_the_shards_find(gateway: Gateway) -> None:
    await create_things(gateway)
    found: list[str] = []
    token = ""
    async with gateway.client() as client:
        for _ in range(10):
            body = {"queryString": "shadow.reported.temperature>20", "maxResults": 2}
            if token:
                body["nextToken"] = token
            page = (await client.post("/indices/search", json=body)).json()
            found += [thing["thingName"] for thing in page["things"]]
            token = page.get("nextToken", "")
            if not token:
                break
    assert found == ["lamp-0", "lamp-2", "lamp-4"]


@pytest.mark.parametrize(
    ("body", "error", "told"),
    [
        ({"query": "shadow.reported.temperature>"}, "InvalidQueryException", "column"),
        ({"query": "*", "field": "thingTypeName"}, "InvalidQueryException", "has no statistics"),
        (
            {"query": "*", "group_by": "shadow.name.x.reported.y"},
            "InvalidQueryException",
            "has no statistics",
        ),
        ({"query": "*", "percentiles": [101]}, "InvalidRequestException", "percentiles"),
        ({"query": "*", "size": 3}, "InvalidRequestException", "size"),
        ({}, "InvalidRequestException", "query"),
    ],
)
async def test_what_is_wrong_with_a_query_is_told(
    gateway: Gateway, body: dict[str, Any], error: str, told: str
) -> None:
    async with gateway.client() as client:
        response = await client.post("/v1/query", json=body)
    assert told in assert_problem(response, 400, error)["detail"]
