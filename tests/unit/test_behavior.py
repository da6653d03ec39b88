"""Simulated thermostats: what they may report, when they report, and whom they obey."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.asking import update
from twins.errors import ModelError
from twins.generators import wave
from twins.messages import TickOrder, TickSummary
from twins.model import Attribute, Group
from twins.program import CELL_ROWS
from twins.shard import Shard
from twins.shipped import model_named
from twins.simulated import SimulatedFleet

START_S = 1_700_000_000
PERIOD = 10
THERMOSTAT = model_named("thermostat")
SET_POINT = THERMOSTAT.positions["set_point"]


def shard_of_homes(count: int, **more: Any) -> Shard:
    shard = Shard(0, 1)
    shard.create_group(Group("homes", THERMOSTAT, "home-{i}", count, 3, **{"start_s": START_S, **more}))
    return shard


def homes(shard: Shard) -> SimulatedFleet:
    return shard.fleets["homes"]


def run(shard: Shard, ticks: int, **desired: float) -> TickSummary:
    return shard.tick(TickOrder("homes", homes(shard).next_tick, ticks, desired))


def versions(shard: Shard) -> NDArray[np.uint32]:
    table = homes(shard).table
    return table.version[: table.count].copy()


@pytest.mark.parametrize(
    "time_s", [*range(0, 86400, 997), 21600, 43200, 64800, 86399, START_S, START_S * 2 + 0.5]
)
def test_the_daily_wave_is_a_sine(time_s: float) -> None:
    assert abs(wave(time_s, 86400, 21600) - math.sin(2 * math.pi * (time_s % 86400) / 86400)) < 1e-8


def test_a_wave_is_highest_at_its_peak() -> None:
    assert wave(7 * 3600, 86400, 7 * 3600) == pytest.approx(1, abs=1e-8)
    assert wave(19 * 3600, 86400, 7 * 3600) == pytest.approx(-1, abs=1e-8)


@pytest.mark.parametrize("tick_s", [1, 60])
def test_reports_stay_within_the_bounds_of_the_model(tick_s: int) -> None:
    shard = shard_of_homes(700, tick_s=tick_s)
    table = homes(shard).table
    for _ in range(20):
        run(shard, 2 * PERIOD)
        for position, field in enumerate(THERMOSTAT.fields):
            has_reported = (table.reported_valid[: table.count] >> position & 1) == 1
            values = table.reported[position][: table.count][has_reported]
            assert len(values) > 600
            if field.dtype == "choice":
                assert values.max() < len(field.choices)
            else:
                assert field.minimum <= values.min()
                assert values.max() <= field.maximum


def test_a_room_follows_its_set_point() -> None:
    shard = shard_of_homes(2000)
    run(shard, 3 * 3600, set_point=30.0)
    temperature = homes(shard).state["temperature"][:2000]
    # The day swings a room by 1.5 K; 0.3 K of noise average out over 2000 rooms.
    assert abs(float(temperature.mean()) - 30) < 1.6
    assert 0.2 < float(temperature.std()) < 0.4


@pytest.mark.parametrize("count", [1, 31, 33, 1000])
@pytest.mark.parametrize("period", [1, 3, PERIOD])
def test_every_device_has_one_report_due_in_each_period(count: int, period: int) -> None:
    shard = shard_of_homes(count, report_every_ticks=period)
    due_at: list[set[int]] = [set() for _ in range(count)]
    seen = np.zeros(count, np.int64)
    for tick in range(6 * period):
        before = versions(shard)
        summary = run(shard, 1)
        homes(shard).connected[:count] = 1
        reported = np.flatnonzero(versions(shard) - before)
        assert summary.reports_arrived == len(reported)
        assert summary.reports_due == summary.reports_arrived + summary.reports_offline
        seen[reported] += 1
        for row in reported:
            due_at[row].add(tick % period)
    assert all(len(phases) == 1 for phases in due_at)
    # A connection that drops costs a report now and then; six hours at a stretch make that rare.
    assert seen.max() <= 6
    assert seen.sum() >= 0.95 * 6 * count - 1


@pytest.mark.parametrize("count", [1, 31, 32, 33, 255, 256, 257, 1000])
@pytest.mark.parametrize("shard_count", [1, 3])
@pytest.mark.parametrize("period", [1, PERIOD])
def test_rows_that_only_fill_a_cell_are_never_counted(count: int, shard_count: int, period: int) -> None:
    shards = [Shard(number, shard_count) for number in range(shard_count)]
    total = TickSummary()
    for shard in shards:
        shard.create_group(
            Group("homes", THERMOSTAT, "home-{i}", count, 3, START_S, report_every_ticks=period)
        )
        total += shard.tick(TickOrder("homes", 0, 3 * period, {"set_point": 33.0}))
    assert total.device_ticks == 3 * period * count
    assert total.reports_due == 3 * count
    assert total.connected_count <= count
    assert total.delta_count <= count
    assert sum(shard.twin_count() for shard in shards) == count
    for shard in shards:
        fleet = shard.fleets["homes"]
        assert fleet.table.capacity % CELL_ROWS == 0
        for column in (fleet.connected, fleet.table.version, fleet.table.reported_valid):
            assert not column[fleet.table.count :].any()
        columns = next(part for part in shard.select(None) if "reported_uptime" in part)
        assert {len(column.values) for column in columns.values()} == {fleet.table.count}


def test_a_device_that_is_offline_sends_nothing() -> None:
    shard = shard_of_homes(3000)
    run(shard, 5 * PERIOD)
    fleet = homes(shard)
    offline_count = 0
    for _ in range(20 * PERIOD):
        before = {name: column.copy() for name, column in fleet.table.columns.items()}
        window = {name: column.copy() for name, column in fleet.windows["temperature"].columns.items()}
        bucket = fleet.windows["temperature"].number
        tick = fleet.next_tick
        summary = run(shard, 1)
        is_offline = fleet.connected[: fleet.table.count] == 0
        offline_count += summary.reports_offline
        for name, column in fleet.table.columns.items():
            assert np.array_equal(
                column[: fleet.table.count][is_offline], before[name][: fleet.table.count][is_offline]
            )
        if fleet.windows["temperature"].number == bucket:
            for name, column in fleet.windows["temperature"].columns.items():
                assert np.array_equal(
                    column[: fleet.table.count][is_offline], window[name][: fleet.table.count][is_offline]
                )
        stamped = fleet.table.changed_at[: fleet.table.count] == fleet.time_s(tick)
        assert np.count_nonzero(stamped) == summary.reports_arrived
        assert not (stamped & is_offline).any()
    assert offline_count > 0, "nobody was offline, so nothing was tested"


@pytest.mark.parametrize("ticks", [0, 600, 3600])
def test_about_one_device_in_seventy_is_offline_from_the_start_on(ticks: int) -> None:
    shard = shard_of_homes(20_000)
    run(shard, ticks)
    # 300 s in 21,900 s: 274 of 20,000, with a standard deviation of 16.
    assert 190 < 20_000 - int(homes(shard).connected.sum()) < 360


def test_the_fleet_obeys_what_is_desired_of_all() -> None:
    shard = shard_of_homes(1000)
    run(shard, PERIOD)
    assert run(shard, 0, set_point=29.5).delta_count == 1000
    summary = run(shard, 40 * PERIOD)
    fleet = homes(shard)
    obeys = fleet.table.reported[SET_POINT][:1000] == np.float32(29.5)
    assert np.count_nonzero(~obeys) == summary.delta_count
    assert summary.delta_count < 20


@pytest.mark.parametrize("wish", [29.5, 29, 29.0, 30.123456789])
def test_a_device_obeys_what_is_desired_of_it_alone(wish: float) -> None:
    shard = shard_of_homes(300)
    said = update(shard, {"state": {"desired": {"set_point": wish}}}, thing="home-7", now_s=START_S)
    assert said["update/delta"]["state"] == {"set_point": wish}
    run(shard, 3 * PERIOD)
    reported = homes(shard).table.reported[SET_POINT][:300]
    assert reported[7] == np.float32(wish)
    assert np.count_nonzero(reported == np.float32(wish)) == 1
    document = homes(shard).table.load(7).document(0)
    # A wish finer than the device can show is never quite reported.
    assert ("delta" in document["state"]) == (round(wish, 2) != wish)


@pytest.mark.parametrize("wish", ["29", True, [29], {"a": 29}, 10**400, -(10**40), 36, 36.5, -1e6])
def test_a_device_does_not_obey_nonsense(wish: Any) -> None:
    shard = shard_of_homes(40)
    assert "update/accepted" in update(shard, {"state": {"desired": {"set_point": wish}}}, thing="home-7")
    run(shard, 3 * PERIOD)
    assert 18 <= homes(shard).table.reported[SET_POINT][7] <= 22
    assert run(shard, 0).delta_count == 1


def test_a_report_replaces_what_somebody_else_reported_for_the_device() -> None:
    shard = shard_of_homes(40)
    state = {"reported": {"temperature": "warm", "uptime": 1.5, "note": "kept"}}
    update(shard, {"state": state}, thing="home-7", now_s=START_S)
    run(shard, 3 * PERIOD)
    document = homes(shard).table.load(7)
    assert isinstance(document.reported["temperature"], float)
    assert isinstance(document.reported["uptime"], int)
    assert document.reported["note"] == "kept"


@pytest.mark.parametrize("field", ["temperature", "nonsense"])
def test_a_wish_that_no_model_grants_is_refused_and_changes_nothing(field: str) -> None:
    shard = shard_of_homes(40)
    run(shard, PERIOD)
    before = shard.digest_leaves()
    with pytest.raises(ModelError, match=field):
        run(shard, 1, set_point=22.0, **{field: 1.0})
    assert shard.digest_leaves() == before


def test_an_order_that_comes_again_changes_nothing() -> None:
    shard = shard_of_homes(40)
    order = TickOrder("homes", 0, 15, {"set_point": 22.0})
    shard.tick(order)
    before = shard.digest_leaves()
    assert shard.tick(order).device_ticks == 0
    assert shard.digest_leaves() == before


def test_an_unknown_group_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match="homes"):
        shard_of_homes(1).tick(TickOrder("offices", 0, 1))


def test_attributes_are_drawn_by_weight_and_for_life() -> None:
    sites = Attribute("site", ("berlin", "paris", "rom"), (3, 1, 0))
    shard = shard_of_homes(4000, attributes=(sites,))
    before = homes(shard).attributes["site"].copy()
    run(shard, 2 * PERIOD)
    assert np.array_equal(homes(shard).attributes["site"], before)
    counts = np.bincount(before[:4000], minlength=3)
    assert counts[2] == 0
    # 3000 of 4000, with a standard deviation of 27.
    assert abs(int(counts[0]) - 3000) < 110


def test_the_devices_of_a_fleet_differ() -> None:
    shard = shard_of_homes(1000)
    run(shard, PERIOD)
    for name in ("temperature", "humidity", "battery", "uptime"):
        column = homes(shard).table.columns[f"reported.{name}"][:1000]
        assert len(np.unique(column)) > 900


@pytest.mark.parametrize("start_s", [0, START_S])
def test_a_simulated_twin_sums_up_its_reports(start_s: int) -> None:
    shard = shard_of_homes(64, start_s=start_s)
    fleet, reports = homes(shard), []
    for tick in range(1000):
        before = versions(shard)[5]
        run(shard, 1)
        if versions(shard)[5] != before:
            reports.append((fleet.time_s(tick), float(fleet.state["temperature"][5])))
    now_s = fleet.time_s(fleet.next_tick - 1)
    found = fleet.telemetry(5, now_s)["reported"]["temperature"]
    covered = [value for time_s, value in reports if time_s // 150 >= now_s // 150 - 1]
    assert found["count"] == len(covered) > 20
    assert (found["min"], found["max"]) == (min(covered), max(covered))
    assert found["mean"] == pytest.approx(sum(covered) / len(covered), rel=1e-5)
    assert found["timestamp"] == reports[-1][0]
    assert found["value"] == round(reports[-1][1], 2)


def test_the_telemetry_of_a_device_is_sound_from_its_first_report_on() -> None:
    shard = shard_of_homes(32, start_s=0)
    run(shard, 1)
    found = homes(shard).telemetry(0, 0)["reported"]["temperature"]
    assert found["count"] == 1
    assert found["min"] == found["max"] == found["mean"]
    assert json.dumps(found, allow_nan=False)
