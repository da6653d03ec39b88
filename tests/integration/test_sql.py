"""Questions in SQL over HTTP: all tables, all forms, how old an answer is, who may ask, and what is refused."""

from __future__ import annotations

import csv
import io
import os
import signal
from typing import Any

import httpx
import pyarrow as pa
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
# A loaded machine takes longer than a person likes to wait.
PATIENCE_S = 30.0


async def ask(gateway: Gateway, sql: str, *, accept: str | None = None, **more: Any) -> httpx.Response:
    headers = {} if accept is None else {"Accept": accept}
    async with gateway.client() as client:
        body = {"sql": sql, "timeout_s": PATIENCE_S, **more}
        return await client.post("/v1/sql", json=body, headers=headers)


async def rows(gateway: Gateway, sql: str) -> list[list[Any]]:
    response = await ask(gateway, sql)
    assert response.status_code == 200, response.text
    found: list[list[Any]] = response.json()["rows"]
    return found


async def create_lamp(gateway: Gateway) -> None:
    description = ThingDescription("lamp", "thermostat", {"site": "rom", "serial/no": "7"}, "", ())
    await gateway.app.state.devices.create(description, None, by="test")
    report = b'{"state": {"reported": {"temperature": 21, "humidity": 40.5}}}'
    await gateway.fleet.ask(Request(Operation.SHADOW_UPDATE, "lamp", report))


async def test_every_table_answers_and_the_answer_says_how_old_it_is(gateway: Gateway) -> None:
    await gateway.fleet.create_group(HOMES)
    await gateway.fleet.tick([TickOrder("homes", 0, 2)])
    await create_lamp(gateway)
    sql = "select site, count(*), round(avg(reported_temperature), 1) from twins group by site order by site"
    answer = (await ask(gateway, sql)).json()
    assert [row[0] for row in answer["rows"]] == ["ams", "ber", "rom"]
    assert answer["rows"][2] == ["rom", 1, 21.0]
    assert sum(row[1] for row in answer["rows"]) == 601
    assert [column["name"] for column in answer["columns"]][:2] == ["site", "count_star()"]
    assert 0 < answer["age_ms"] < 1000 * PATIENCE_S
    assert [shard["shard"] for shard in answer["shards"]] == list(range(gateway.fleet.shard_count))
    assert all(shard["read_at"] > 1_700_000_000 for shard in answer["shards"])
    assert await rows(gateway, 'select name, "serial/no" from twins where "serial/no" is not null') == [
        ["lamp", "7"]
    ]
    assert await rows(gateway, "select name, attributes['site'], groups from things") == [["lamp", "rom", []]]
    assert await rows(gateway, "select role, twin_count from processes") == [["gateway", 3]]
    told = "select count(distinct name) from telemetry_recent where stream = 'reported' and field = 'temperature'"
    assert (await rows(gateway, told))[0][0] > 500
    joined = "select things.model, twins.version from things join twins using (name)"
    assert await rows(gateway, joined) == [["thermostat", 1]]
    columns = [row[0] for row in await rows(gateway, "describe twins")]
    assert {"name", "firmware", "connected", "desired_set_point_at", "site", "serial/no"} <= set(columns)


async def test_an_answer_comes_in_the_form_that_is_accepted(gateway: Gateway) -> None:
    await create_lamp(gateway)
    sql = "select name, reported_temperature, connected from twins"
    as_csv = await ask(gateway, sql, accept="text/csv;q=0.9, */*;q=0.1")
    assert as_csv.headers["content-type"].startswith("text/csv")
    assert list(csv.reader(io.StringIO(as_csv.text))) == [
        ["name", "reported_temperature", "connected"],
        ["lamp", "21.0", ""],
    ]
    as_arrow = await ask(gateway, sql, accept="application/vnd.apache.arrow.stream")
    assert pa.ipc.open_stream(as_arrow.content).read_all().to_pylist() == [
        {"name": "lamp", "reported_temperature": 21.0, "connected": None}
    ]
    for response in (as_csv, as_arrow):
        assert int(response.headers["twinfleet-age-ms"]) > 0
        assert response.headers["twinfleet-row-count"] == "1"
        assert float(response.headers["twinfleet-read-at"]) > 1_700_000_000
    refused = await ask(gateway, sql, accept="image/png")
    assert refused.status_code == 406
    assert "text/csv" in refused.json()["detail"]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"sql": "select reported_temprature from twins"}, "reported_temprature"),
        ({"sql": "delete from twins"}, "only SELECT and EXPLAIN"),
        ({"sql": "select * from read_text('/etc/passwd')"}, "disabled"),
        ({"sql": "select * from range(11)", "row_max": 10}, "more than 10 rows"),
        (
            {"sql": "select sum(sin(range)) from range(100000000000)", "timeout_s": 0.5},
            "within 0.5 s",
        ),
        ({"sql": "select 1", "timeout_s": 31}, "timeout_s"),
        ({"sql": "select 1", "format": "csv"}, "format"),
        ({}, "sql"),
    ],
)
async def test_what_is_wrong_with_a_question_is_told(
    gateway: Gateway, body: dict[str, Any], told: str
) -> None:
    async with gateway.client() as client:
        response = await client.post("/v1/sql", json=body)
    assert told in assert_problem(response, 400, "InvalidRequestException")["detail"]


async def test_a_question_whose_engine_dies_is_told_and_the_next_one_is_answered(gateway: Gateway) -> None:
    assert await rows(gateway, "select 1") == [[1]]
    engine = gateway.app.state.sql_engine
    os.kill(engine.pid, signal.SIGSTOP)
    response = await ask(gateway, "select 2", timeout_s=0.2)
    assert "no answer within" in assert_problem(response, 400, "InvalidRequestException")["detail"]
    assert engine.death_count == 1
    assert await rows(gateway, "select 3") == [[3]]
