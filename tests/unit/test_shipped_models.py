"""The shipped models, simulated: their devices do what such devices do, and the numbers are those of their sources."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from twins.messages import TickOrder, TickSummary
from twins.model import Group
from twins.shard import Shard
from twins.shipped import MODELS, model_named

NAMES = [name for name in MODELS if name != "untyped"]
COUNT = 512
# 2026-01-01T00:00:00Z, a midnight.
MIDNIGHT_S = 1_767_225_600
HOUR_S = 3600


class Simulated:
    """Devices of one shipped model; a tick is a period of the model, and all of them measure at each."""

    def __init__(self, name: str, *, start_s: int = MIDNIGHT_S, tick_s: int = 0) -> None:
        self.model = model_named(name)
        self.tick_s = tick_s or self.model.reporting.every_s or 60
        self.shard = Shard(0, 1)
        group = Group("g", self.model, "g-{i}", COUNT, 1, start_s, tick_s=self.tick_s, report_every_ticks=1)
        self.shard.create_group(group)
        self.fleet = self.shard.fleets["g"]

    def run(self, duration_s: int, **desired: float) -> TickSummary:
        return self.shard.tick(
            TickOrder("g", self.fleet.next_tick, max(1, duration_s // self.tick_s), desired)
        )

    def reported(self, field: str) -> NDArray[Any]:
        """Return what the devices reported last, as numbers."""
        column = self.fleet.table.reported[self.model.position(field)][:COUNT]
        return column.astype(np.float64)


@cache
def after_two_hours(name: str) -> Simulated:
    simulated = Simulated(name)
    simulated.run(2 * HOUR_S)
    return simulated


def test_the_models_are_in_the_wheel(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, timeout=60, check=True)
    [wheel] = tmp_path.iterdir()
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("twins/models/")}
    assert held == {f"twins/models/{name}.yaml" for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_what_devices_report_lies_within_what_their_model_says(name: str) -> None:
    simulated = after_two_hours(name)
    for field in simulated.model.fields:
        values = simulated.reported(field.name)
        if field.dtype == "choice":
            assert set(values) <= set(range(len(field.choices)))
        elif field.dtype == "bool":
            assert set(values) <= {0.0, 1.0}
        else:
            # A column of half precision rounds the bounds, too.
            assert np.all((values >= np.float16(field.minimum)) | (values >= field.minimum))
            assert np.all(values <= max(field.maximum, float(field.column_dtype.type(field.maximum))))
    [document] = [simulated.fleet.table.load(row).reported for row in (7,)]
    assert set(document) == {field.name for field in simulated.model.fields}


def test_a_thermostats_battery_lasts_two_years() -> None:
    simulated = Simulated("thermostat")
    simulated.run(60)
    before = simulated.reported("battery")
    simulated.run(24 * HOUR_S)
    lost = (before - simulated.reported("battery"))[(before > 0) & (simulated.fleet.connected[:COUNT] == 1)]
    assert len(lost) > 450
    assert np.mean(lost) == pytest.approx(100 / (2 * 365), rel=0.02)


def test_a_door_sensors_battery_lasts_six_years_with_a_report_every_two_minutes() -> None:
    def levels() -> NDArray[np.float64]:
        return simulated.fleet.state["battery"][:COUNT] / 2.0**32 * 100

    simulated = Simulated("door-sensor", tick_s=120)
    before = levels()
    summary = simulated.run(24 * HOUR_S)
    # Half of it goes into reports, of which there are fewer here.
    share = summary.reports_arrived / (COUNT * 720)
    assert share < 0.1
    assert np.mean(before - levels()) == pytest.approx(100 / (6 * 365) * (0.5 + 0.5 * share), rel=0.02)


def test_a_meter_counts_what_a_household_takes_in_a_day_and_nothing_when_it_is_cut_off() -> None:
    simulated = Simulated("smart-meter")
    simulated.run(900)
    before = simulated.reported("energy")
    simulated.run(24 * HOUR_S)
    used = simulated.reported("energy") - before
    assert float(np.mean(used)) == pytest.approx(3_074_000 / 365, rel=0.03)
    simulated.run(900, relay=0)
    simulated.run(4 * HOUR_S)
    online = simulated.reported("relay") == 0
    assert np.mean(online) > 0.9
    assert set(simulated.reported("power")[online]) == {0.0}


def test_buses_stay_on_their_line_and_move_as_far_as_they_drive() -> None:
    simulated = Simulated("vehicle-tracker", start_s=MIDNIGHT_S + 10 * HOUR_S)
    simulated.run(HOUR_S)
    before = simulated.reported("odometer")
    simulated.run(HOUR_S)
    latitude, longitude = simulated.reported("latitude"), simulated.reported("longitude")
    assert np.all((latitude > 52.507) & (latitude < 52.530))
    assert np.all((longitude > 13.369) & (longitude < 13.414))
    assert np.std(latitude) > 0.003
    km_h = (simulated.reported("odometer") - before) / 1000
    assert 12 < np.mean(km_h) < 30
    is_parked = simulated.reported("state") == 2
    assert set(simulated.reported("ignition")[is_parked]) == {0.0}


def test_a_worn_pump_shakes_more_fails_sooner_and_is_repaired() -> None:
    simulated = Simulated("pump", tick_s=600)
    simulated.run(6 * HOUR_S)
    runs, wear = simulated.reported("state") == 0, simulated.reported("wear")
    shaking = simulated.reported("vibration")
    expected = 1.6 + 0.0006 * wear**2
    assert np.mean(np.abs(shaking - expected)[runs]) < 0.3
    assert np.all(shaking[~runs] < 1)
    worn = wear > 90
    simulated.run(10 * 24 * HOUR_S)
    repaired = worn & (simulated.reported("wear") < 20)
    fresh = (wear > 20) & (wear < 70) & (simulated.reported("wear") < 20)
    assert np.count_nonzero(repaired) > np.count_nonzero(worn) / 3
    assert np.count_nonzero(fresh) < 10


def test_a_slower_pump_moves_less_and_takes_much_less() -> None:
    simulated = Simulated("pump")
    simulated.run(600)
    power, flow = simulated.reported("power"), simulated.reported("flow")
    simulated.run(60, speed=1475)
    simulated.run(600)
    runs = (simulated.reported("speed") == 1475) & (simulated.reported("flow") > 0) & (flow > 0)
    assert np.mean(runs) > 0.9
    assert np.mean((simulated.reported("flow") / flow)[runs]) == pytest.approx(1 / 2, abs=0.05)
    assert np.mean((simulated.reported("power") / power)[runs]) == pytest.approx(1 / 8, abs=0.03)


def test_a_door_sensor_speaks_only_when_something_happens() -> None:
    simulated = Simulated("door-sensor", start_s=MIDNIGHT_S + 14 * HOUR_S)
    simulated.run(5)
    summary = simulated.run(HOUR_S)
    # Twice an hour at two o'clock in the afternoon, and each time it opens and closes.
    assert 2 < summary.reports_due / COUNT < 6


def test_a_gateway_says_more_on_a_busier_place_and_changes_its_uplink() -> None:
    simulated = after_two_hours("gateway")
    children, load = simulated.reported("children"), simulated.reported("cpu_load")
    assert np.all(simulated.reported("children_online") <= children)
    assert np.corrcoef(children, load)[0, 1] > 0.8


def test_air_is_worse_where_people_are() -> None:
    simulated = Simulated("air-quality", start_s=MIDNIGHT_S + 10 * HOUR_S)
    simulated.run(2 * HOUR_S)
    occupied = simulated.reported("occupied") == 1
    co2 = simulated.reported("co2")
    assert 0.3 < np.mean(occupied) < 0.98
    assert np.mean(co2[occupied]) > np.mean(co2[~occupied]) + 100
    assert np.max(co2) < 1400
