"""What every fleet answers, wherever its shards run."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from actors.arrow_tables import shards_read_at
from actors.asking import ask_fleet
from actors.fleet import Fleet, LocalFleet
from twins.errors import (
    InvalidRequest,
    ModelError,
    PayloadTooLarge,
    QueryError,
    ShadowNotFound,
    VersionConflict,
)
from twins.fleet_answer import FleetQuestion
from twins.messages import Operation, Request, TickOrder, TickSummary
from twins.model import Group

TICKS = 20


@pytest.fixture(params=["real", "simulated"])
def thing(request: pytest.FixtureRequest, homes: Group, prefix: str) -> str:
    """Return the name of a real and of a simulated thing; neither has a shadow yet."""
    return f"{prefix}-lamp" if request.param == "real" else homes.pattern.name(7)


async def report(fleet: Fleet, thing: str, state: dict[str, Any]) -> None:
    payload = json.dumps({"state": {"reported": state}}).encode()
    reply = await fleet.ask(Request(Operation.SHADOW_UPDATE, thing, payload))
    assert reply.status == 200


async def send_telemetry(fleet: Fleet, thing: str, values: object) -> int:
    payload = json.dumps(values).encode()
    return (await fleet.ask(Request(Operation.TELEMETRY, thing, payload, "room"))).status


# Twins by handle


async def test_a_handle_knows_its_name(fleet: Fleet, thing: str) -> None:
    assert fleet.twin(thing).thing_name == thing


async def test_a_handle_updates_and_reads_its_shadow(fleet: Fleet, thing: str) -> None:
    twin = fleet.twin(thing)
    accepted = await twin.update_desired({"set_point": 21, "mode": {"eco": True, "list": [1, 2.5]}})
    assert accepted["version"] == 1
    assert accepted["state"] == {"desired": {"set_point": 21, "mode": {"eco": True, "list": [1, 2.5]}}}
    await report(fleet, thing, {"set_point": 20.5, "mode": {"eco": True}})
    document = await twin.shadow()
    assert document["version"] == 2
    assert document["state"]["reported"] == {"set_point": 20.5, "mode": {"eco": True}}
    assert document["state"]["delta"] == {"set_point": 21, "mode": {"list": [1, 2.5]}}
    assert set(document["metadata"]) == {"desired", "reported"}
    assert isinstance(document["state"]["desired"]["set_point"], int)


async def test_many_requests_are_answered_in_their_order(fleet: Fleet, prefix: str) -> None:
    names = [f"{prefix}-many-{number}" for number in range(1200)]
    updates = [
        Request(Operation.SHADOW_UPDATE, name, json.dumps({"state": {"reported": {"n": number}}}).encode())
        for number, name in enumerate(names)
    ]
    assert {reply.status for reply in await fleet.ask_many(updates)} == {200}
    # Of one thing, the later ones build on the earlier ones.
    gets = [Request(Operation.SHADOW_GET, name) for name in [*reversed(names), "nobody-at-all"]]
    replies = await fleet.ask_many([*updates[:3], *gets])
    assert [json.loads(reply.payload)["version"] for reply in replies[:3]] == [2, 2, 2]
    found = [json.loads(reply.payload)["state"]["reported"]["n"] for reply in replies[3:-1]]
    assert found == list(reversed(range(1200)))
    assert replies[-1].status == 404
    assert await fleet.ask_many([]) == []
    removals = [Request(Operation.UNREGISTER, name) for name in names]
    assert {reply.status for reply in await fleet.ask_many(removals)} == {200}


async def test_a_twin_has_named_shadows(fleet: Fleet, thing: str) -> None:
    twin = fleet.twin(thing)
    await twin.update_desired({"a": 1}, shadow_name="config")
    assert (await twin.shadow("config"))["state"] == {"desired": {"a": 1}, "delta": {"a": 1}}
    with pytest.raises(ShadowNotFound, match="~other"):
        await twin.shadow("other")


async def test_another_version_is_a_conflict_and_changes_nothing(fleet: Fleet, thing: str) -> None:
    twin = fleet.twin(thing)
    await twin.update_desired({"a": 1})
    before = (await twin.shadow())["state"]
    with pytest.raises(VersionConflict) as caught:
        await twin.update_desired({"a": 2}, version=9)
    assert (caught.value.code, caught.value.message) == (409, "Version conflict")
    assert (await twin.shadow())["state"] == before
    assert (await twin.update_desired({"a": 2}, version=1))["version"] == 2


async def test_a_shadow_that_is_not_there_is_not_found(fleet: Fleet, thing: str) -> None:
    with pytest.raises(ShadowNotFound, match=f"No shadow exists with name: '{thing}'") as caught:
        await fleet.twin(thing).shadow()
    assert caught.value.code == 404


@pytest.mark.parametrize(
    ("state", "error"), [({"a": "x" * 9000}, PayloadTooLarge), ({"a": [None]}, InvalidRequest)]
)
async def test_a_refusal_is_raised_as_its_error(
    fleet: Fleet, thing: str, state: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        await fleet.twin(thing).update_desired(state)
    with pytest.raises(ShadowNotFound):
        await fleet.twin(thing).shadow()


async def test_telemetry_reaches_the_twin(fleet: Fleet, thing: str) -> None:
    for value in (1, 2.5, 4):
        assert await send_telemetry(fleet, thing, {"level": value, "text": "x"}) == 200
    telemetry = await fleet.twin(thing).telemetry()
    field = telemetry["streams"]["room"]["level"]
    assert (field["value"], field["count"], field["min"], field["max"], field["mean"]) == (4, 3, 1, 4, 2.5)
    assert telemetry["streams"]["room"]["text"]["value"] == "x"
    assert telemetry["window_s"] == 300


async def test_a_twin_is_described_with_its_shadows(fleet: Fleet, thing: str) -> None:
    registration = Request(Operation.REGISTER, thing, b'{"model":"thermostat"}')
    # A simulated device has its model already, and refuses another.
    assert (await fleet.ask(registration)).status in (200, 400)
    twin = fleet.twin(thing)
    await twin.update_desired({"set_point": 21})
    await twin.update_desired({"a": 1}, shadow_name="config")
    found = await twin.describe()
    assert (found["thingName"], found["model"]) == (thing, "thermostat")
    assert found["shadow"]["desired"] == found["shadow"]["delta"] == {"set_point": 21}
    assert found["namedShadows"]["config"]["desired"] == {"a": 1}
    assert found["defender"] is None


async def test_questions_find_who_is_connected(fleet: Fleet, prefix: str) -> None:
    names = [f"{prefix}-link-{number}" for number in range(3)]
    links = (b'{"connected":true,"timestamp":5}', b'{"connected":false,"timestamp":5}')
    for name, payload in zip(names, links, strict=False):
        await fleet.ask(Request(Operation.REGISTER, name, b'{"model":"thermostat"}'))
        assert (await fleet.ask(Request(Operation.CONNECTIVITY, name, payload))).status == 200
    await fleet.ask(Request(Operation.REGISTER, names[2], b'{"model":"thermostat"}'))
    table = await fleet.twins_table(["name", "connected"])
    found = dict(zip(table["name"].to_pylist(), table["connected"].to_pylist(), strict=True))
    assert [found[name] for name in names] == [True, False, None]


async def test_there_is_no_description_of_a_twin_that_is_not_there(fleet: Fleet, prefix: str) -> None:
    with pytest.raises(ShadowNotFound, match="No twin exists"):
        await fleet.twin(f"{prefix}-nobody").describe()


async def test_telemetry_that_is_no_object_is_refused(fleet: Fleet, thing: str) -> None:
    assert await send_telemetry(fleet, thing, [1, 2]) == 400
    assert (await fleet.twin(thing).telemetry())["streams"] == {}


async def test_requests_at_once_are_all_answered(fleet: Fleet, prefix: str) -> None:
    names = [f"{prefix}-thing-{letter}" for letter in "abcdefghijklmnop"]
    await asyncio.gather(*(fleet.twin(name).update_desired({"is": name}) for name in names))
    documents = await asyncio.gather(*(fleet.twin(name).shadow() for name in names))
    assert [document["state"]["desired"]["is"] for document in documents] == names


async def test_a_deleted_shadow_is_gone(fleet: Fleet, thing: str) -> None:
    await fleet.twin(thing).update_desired({"a": 1})
    reply = await fleet.ask(Request(Operation.SHADOW_DELETE, thing))
    assert (reply.status, json.loads(reply.payload)["version"]) == (200, 1)
    with pytest.raises(ShadowNotFound):
        await fleet.twin(thing).shadow()
    assert (await fleet.twin(thing).update_desired({"a": 1}))["version"] == 3


# Simulated groups


async def test_ticks_report_what_happened(fleet: Fleet, homes: Group) -> None:
    summaries = await fleet.tick([TickOrder(homes.name, 0, TICKS)])
    assert set(summaries) == {homes.name}
    summary = summaries[homes.name]
    assert summary.device_ticks == TICKS * homes.count
    assert summary.reports_due == TICKS // homes.report_every_ticks * homes.count
    assert summary.reports_arrived + summary.reports_offline == summary.reports_due
    assert 0.9 * homes.count < summary.connected_count <= homes.count
    assert summary.delta_count == 0


async def test_several_orders_for_one_group_run_one_after_the_other(fleet: Fleet, homes: Group) -> None:
    orders = [TickOrder(homes.name, 0, 10), TickOrder(homes.name, 10, 10, {"set_point": 30.0})]
    summary = (await fleet.tick(orders))[homes.name]
    assert summary.device_ticks == 20 * homes.count
    assert summary.delta_count < 0.1 * homes.count


async def test_ticks_that_have_been_run_are_not_run_again(fleet: Fleet, homes: Group) -> None:
    order = TickOrder(homes.name, 0, TICKS, {"set_point": 21.0})
    await fleet.tick([order])
    before = await fleet.digest()
    again = (await fleet.tick([order]))[homes.name]
    assert again.device_ticks == 0
    assert await fleet.digest() == before


async def test_a_simulated_twin_reports_and_obeys(fleet: Fleet, homes: Group) -> None:
    name = homes.pattern.name(300)
    twin = fleet.twin(name)
    await fleet.tick([TickOrder(homes.name, 0, TICKS)])
    document = await twin.shadow()
    assert set(document["state"]["reported"]) == {
        "temperature",
        "humidity",
        "battery",
        "set_point",
        "firmware_version",
        "uptime",
    }
    await twin.update_desired({"set_point": 27})
    assert (await twin.shadow())["state"]["delta"] == {"set_point": 27}
    await fleet.tick([TickOrder(homes.name, TICKS, TICKS)])
    document = await twin.shadow()
    assert "delta" not in document["state"]
    assert document["state"]["reported"]["set_point"] == 27
    assert (await twin.telemetry())["streams"]["reported"]["temperature"]["count"] >= 3


async def test_a_simulated_device_that_has_not_reported_has_no_shadow(fleet: Fleet, homes: Group) -> None:
    with pytest.raises(ShadowNotFound):
        await fleet.twin(homes.pattern.name(0)).shadow()


async def test_creating_a_group_again_changes_nothing(fleet: Fleet, homes: Group) -> None:
    await fleet.tick([TickOrder(homes.name, 0, TICKS)])
    before = await fleet.digest()
    await fleet.create_group(homes)
    assert await fleet.digest() == before


async def test_another_group_of_the_same_name_is_refused(fleet: Fleet, homes: Group) -> None:
    before = await fleet.digest()
    with pytest.raises(ModelError, match=homes.name):
        await fleet.create_group(replace(homes, seed=homes.seed + 1))
    assert await fleet.digest() == before


async def test_a_group_that_does_not_exist_cannot_tick(fleet: Fleet, prefix: str) -> None:
    with pytest.raises(ModelError, match=prefix):
        await fleet.tick([TickOrder(f"{prefix}nobody", 0, 1)])


async def test_a_wish_that_no_model_grants_is_refused(fleet: Fleet, homes: Group) -> None:
    before = await fleet.digest()
    with pytest.raises(ModelError, match="temperature"):
        await fleet.tick([TickOrder(homes.name, 0, 1, {"temperature": 20.0})])
    assert await fleet.digest() == before


async def test_a_deleted_group_takes_its_twins_with_it(fleet: Fleet, homes: Group) -> None:
    await fleet.tick([TickOrder(homes.name, 0, TICKS)])
    await fleet.delete_group(homes.name)
    with pytest.raises(ShadowNotFound):
        await fleet.twin(homes.pattern.name(7)).shadow()
    table = await fleet.twins_table(["name"])
    assert homes.pattern.name(7) not in table["name"].to_pylist()
    await fleet.delete_group(homes.name)
    await fleet.create_group(homes)
    assert (await fleet.tick([TickOrder(homes.name, 0, 1)]))[homes.name] == TickSummary(
        homes.count, *(await first_tick_of(homes))
    )


async def first_tick_of(group: Group) -> list[Any]:
    """Return what a fleet in this process says of a group's first tick, but for its device ticks."""
    local = LocalFleet(2)
    await local.create_group(group)
    summary = (await local.tick([TickOrder(group.name, 0, 1)]))[group.name]
    counts = [summary.reports_due, summary.reports_arrived, summary.reports_offline]
    return [*counts, summary.connected_count, summary.delta_count]


# Questions over all twins


async def rows_of(fleet: Fleet, prefix: str, columns: list[str] | None = None) -> pa.Table:
    """Return the rows of this test's twins, by name."""
    table = await fleet.twins_table(columns)
    mask = pa.array([name.startswith(prefix) for name in table["name"].to_pylist()])
    return table.filter(mask).sort_by("name")


async def test_all_twins_stand_in_one_table(fleet: Fleet, homes: Group, prefix: str) -> None:
    lamp, heater = f"{prefix}-lamp", f"{prefix}-heater"
    registration = b'{"model":"thermostat","attributes":{"site":"rom","floor":"2"}}'
    assert (await fleet.ask(Request(Operation.REGISTER, heater, registration))).status == 200
    await report(fleet, heater, {"temperature": 20.25, "firmware_version": "2.0.0", "uptime": 5})
    await fleet.twin(heater).update_desired({"set_point": 22})
    await report(fleet, lamp, {"on": True})
    await fleet.tick([TickOrder(homes.name, 0, TICKS)])
    table = await rows_of(fleet, prefix)
    assert table.num_rows == homes.count + 2
    rows = {row["name"]: row for row in table.to_pylist()}
    found = {
        name: rows[heater][name] for name in ("model", "origin", "version", "connected", "site", "floor")
    }
    assert found == {
        "model": "thermostat",
        "origin": "real",
        "version": 2,
        "connected": None,
        "site": "rom",
        "floor": "2",
    }
    assert rows[heater]["reported_temperature"] == 20.25
    assert rows[heater]["reported_firmware_version"] == "2.0.0"
    assert rows[heater]["reported_uptime"] == 5
    assert rows[heater]["reported_humidity"] is rows[heater]["reported_humidity_at"] is None
    assert rows[heater]["desired_set_point"] == 22
    assert rows[heater]["desired_set_point_at"] == rows[heater]["updated_at"]
    assert rows[lamp]["model"] == "untyped"
    assert rows[lamp]["site"] is rows[lamp]["reported_temperature"] is None
    simulated = rows[homes.pattern.name(7)]
    assert (simulated["model"], simulated["origin"], simulated["floor"]) == ("thermostat", "simulated", None)
    assert simulated["site"] in ("berlin", "paris")
    assert isinstance(simulated["connected"], bool)
    document = await fleet.twin(homes.pattern.name(7)).shadow()
    assert document["version"] == simulated["version"]
    for name, value in document["state"]["reported"].items():
        assert simulated[f"reported_{name}"] == value
        assert simulated[f"reported_{name}_at"] == document["metadata"]["reported"][name]["timestamp"]


async def test_a_table_has_the_wanted_columns_and_a_row_for_each_twin(
    fleet: Fleet, homes: Group, prefix: str
) -> None:
    table = await rows_of(fleet, prefix, ["name", "SITE".lower(), "reported_temperature", "no_such_column"])
    assert set(table.column_names) == {"name", "site", "reported_temperature"}
    assert table.num_rows == homes.count
    for columns in (["no_such_column"], [], ["reported_temperature"], ["origin"]):
        assert (await fleet.twins_table(columns)).num_rows >= homes.count


async def test_columns_come_by_shard_and_are_not_to_be_written_where_they_are_shared(
    fleet: Fleet, homes: Group
) -> None:
    await fleet.tick([TickOrder(homes.name, 0, TICKS)])
    found = await fleet.shard_columns(["name", "reported_temperature", "site"])
    assert [one.shard for one in found] == list(range(fleet.shard_count))
    rows = {}
    for one in found:
        for table in one.tables:
            names, values = table["name"], table.get("reported_temperature")
            for row in range(len(names.values)):
                rows[names.cell(row)] = None if values is None else values.cell(row)
    expected = await fleet.twins_table(["name", "reported_temperature"])
    assert rows == dict(zip(*(column.to_pylist() for column in expected.columns), strict=True))
    before = dict(rows)
    await fleet.tick([TickOrder(homes.name, TICKS, TICKS)])
    for one in found:
        for table in one.tables:
            for row in range(len(table["name"].values)):
                value = table["reported_temperature"].cell(row) if "reported_temperature" in table else None
                assert value == before[table["name"].cell(row)]


async def test_a_fleet_query_is_answered_by_all_shards(fleet: Fleet, homes: Group, prefix: str) -> None:
    await fleet.tick([TickOrder(homes.name, 0, TICKS)])
    await report(fleet, f"{prefix}-lamp", {"temperature": 90, "on": True})
    warm = f"shadow.reported.temperature>=85 AND thingName:{prefix}*"
    reading = await fleet.answer(FleetQuestion(warm, "shadow.reported.temperature", "model", 3))
    assert (reading.answer.count, reading.answer.names) == (1, [f"{prefix}-lamp"])
    assert (await fleet.answer(FleetQuestion(f"shadow.reported.on:true AND {warm}"))).answer.count == 1
    everybody = await fleet.answer(FleetQuestion(f"thingName:{prefix}*", name_count_max=2))
    assert everybody.answer.count == homes.count + 1
    assert sorted(reading.read_at) == list(range(fleet.shard_count))
    with pytest.raises(QueryError, match="column"):
        await fleet.answer(FleetQuestion("temperature>"))


async def test_a_table_says_when_each_shard_was_read(fleet: Fleet, homes: Group) -> None:
    for table in (await fleet.twins_table(["name"]), await fleet.telemetry_table(["name"])):
        assert sorted(shards_read_at(table)) == list(range(fleet.shard_count))


async def test_the_recent_telemetry_of_all_things_stands_in_one_table(
    fleet: Fleet, homes: Group, prefix: str
) -> None:
    await fleet.tick([TickOrder(homes.name, 0, TICKS)])
    lamp = f"{prefix}-lamp"
    await fleet.ask(Request(Operation.TELEMETRY, lamp, b'{"power": 3, "mode": "eco"}', "main"))
    sql = f"select * from telemetry_recent where name in ('{lamp}', '{homes.pattern.name(3)}') order by all"
    answer = await ask_fleet(fleet, sql)
    assert sorted(shards_read_at(answer)) == list(range(fleet.shard_count))
    rows = {(row["name"], row["stream"], row["field"]): row for row in answer.to_pylist()}
    power, mode = rows[lamp, "main", "power"], rows[lamp, "main", "mode"]
    assert (power["value"], power["text"], power["count"], power["mean"]) == (3.0, None, 1, 3.0)
    assert (mode["value"], mode["text"], mode["count"], mode["mean"]) == (None, "eco", 0, None)
    told = (await fleet.twin(homes.pattern.name(3)).telemetry())["streams"]["reported"]
    assert {field for name, _, field in rows if name == homes.pattern.name(3)} == set(told)


async def test_columns_have_the_promised_types(fleet: Fleet, homes: Group, prefix: str) -> None:
    await fleet.tick([TickOrder(homes.name, 0, TICKS)])
    schema = (await rows_of(fleet, prefix)).schema
    found = {name: str(schema.field(name).type) for name in schema.names}
    assert found["version"] == found["updated_at"] == found["reported_temperature_at"] == "uint32"
    assert found["name"] == "string"
    repeated = "dictionary<values=string, indices=int8, ordered=0>"
    assert found["model"] == found["origin"] == found["site"] == found["firmware"] == repeated
    assert (found["connected"], found["reported_temperature"]) == ("bool", "double")


async def test_the_digest_is_that_of_a_fleet_in_one_process(fleet: Fleet, homes: Group) -> None:
    orders = [TickOrder(homes.name, 0, 15, {"set_point": 22.0}), TickOrder(homes.name, 15, 15)]
    await fleet.tick(orders)
    local = LocalFleet(1)
    await local.create_group(homes)
    await local.tick(orders)
    digest = await fleet.digest()
    assert digest == await local.digest()
    assert len(digest) == 64
