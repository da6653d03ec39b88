"""Faults of simulated devices: each shows in a count or a column, only in its time, and only where it was aimed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.unit.test_link import COUNT, START_S, THERMOSTAT, Fleet, near
from twins.errors import ModelError
from twins.faults import ACTIONS, Fault, Select
from twins.link import Link, Network
from twins.messages import TickOrder, TickSummary
from twins.model import Attribute, Group
from twins.shard import Shard

POSITIONS = THERMOSTAT.positions


def fault(action: str, first: int = 0, ticks: int = 10, select: Any = None, **more: Any) -> Fault:
    parameters = {name: more.pop(name) for name in list(more) if name not in ("field", "direction")}
    return Fault(f"the-{action}", action, first, ticks, tuple(parameters.items()), select or Select(), **more)


def reported(homes: Fleet, field: str) -> NDArray[Any]:
    column: NDArray[Any] = homes.fleet.table.columns[f"reported.{field}"][: homes.fleet.table.count]
    return column.copy()


def connected(homes: Fleet) -> int:
    return int(homes.fleet.connected.sum())


# Links


@pytest.mark.parametrize(
    ("action", "parameters", "count"),
    [
        ("loss", {"percent": 50}, "reports_lost"),
        ("corrupt", {"percent": 50}, "reports_refused"),
        ("malformed_payload", {"percent": 50}, "reports_refused"),
        ("duplicate", {"percent": 50}, "reports_duplicated"),
        ("reorder", {"percent": 50}, "reports_reordered"),
        ("latency", {"latency_ms": 1500}, "reports_delayed"),
        ("bandwidth", {"rate": 100}, "reports_delayed"),
    ],
)
def test_a_link_is_worse_while_a_fault_lasts(action: str, parameters: dict[str, float], count: str) -> None:
    homes = Fleet(Network(), period=2)
    trouble = fault(action, 4, 6, **parameters)
    before = homes.run(4, trouble)
    homes.run(6, trouble)
    homes.run(10, trouble)
    after = homes.run(4, trouble)
    assert getattr(homes.total, count) > 0.3 * 3 * COUNT
    assert getattr(before, count) == getattr(after, count) == 0


def test_jitter_makes_latencies_differ() -> None:
    homes = Fleet(Network(Link(latency_ms=100)))
    trouble = fault("jitter", 2, 2, jitter_ms=50)
    calm, rough = homes.run(2, trouble), homes.run(2, trouble)
    assert np.count_nonzero(calm.latency) == 1
    assert np.count_nonzero(rough.latency) > 3


@pytest.mark.parametrize(
    ("direction", "arrives", "hears"),
    [("up", False, True), ("down", True, False), ("both", False, False)],
)
def test_a_partition_has_a_direction(direction: str, arrives: bool, hears: bool) -> None:
    homes = Fleet(None)
    trouble = fault("partition", 0, 20, direction=direction)
    summary = homes.run(20, trouble, set_point=30.0)
    assert (summary.reports_lost == 0) == arrives
    assert (homes.versions() > COUNT) == arrives
    obeyed = homes.fleet.state["set_point"][:COUNT] == 30
    assert (np.count_nonzero(obeyed) > 0.9 * COUNT) == hears
    after = homes.run(20, trouble)
    assert after.reports_lost == 0
    assert after.delta_count < 0.05 * COUNT


# Connections


def test_an_outage_takes_all_its_devices_at_once_and_gives_them_back_at_once() -> None:
    homes = Fleet(None, period=10)
    homes.run(3)
    for action in ("disconnect", "power_cut"):
        trouble = fault(action, homes.fleet.next_tick + 2, 5)
        assert homes.run(2, trouble).connected_count > 0.9 * COUNT
        assert homes.run(1, trouble).connected_count == 0
        summary = homes.run(4, trouble)
        assert summary.connected_count == 0
        assert summary.reports_arrived == 0
        assert summary.reports_offline == summary.reports_due
        assert homes.run(1, trouble).connected_count == COUNT


def test_power_may_come_back_little_by_little() -> None:
    homes = Fleet(None)
    trouble = fault("power_cut", 0, 5, spread_s=20)
    counts = [homes.run(1, trouble).connected_count for _ in range(40)]
    assert counts[:5] == [0] * 5
    assert 0.3 * COUNT < counts[15] < 0.7 * COUNT
    assert counts[26] > 0.97 * COUNT


def test_uptime_starts_anew_after_a_reboot_and_settings_are_lost_in_a_crash_only() -> None:
    for action, is_lost in (("reboot", False), ("crash", True), ("disconnect", None)):
        homes = Fleet(None)
        homes.run(5)
        before = homes.fleet.state["set_point"][:COUNT].copy()
        parameters = {} if action == "disconnect" else {"restart_after_s": 8}
        trouble = fault(action, 5, 8, **parameters)
        assert homes.run(8, trouble).connected_count == 0
        assert homes.run(3, trouble).connected_count > 0.98 * COUNT
        uptime = reported(homes, "uptime")
        assert (np.count_nonzero(uptime < 10) > 0.95 * COUNT) == (is_lost is not None), action
        homes.run(7)
        assert (uptime + 7 >= reported(homes, "uptime")).all()
        after = homes.fleet.state["set_point"][:COUNT]
        assert np.array_equal(before, after) == (not is_lost), action


def test_a_crash_loses_what_a_device_keeps_and_a_reboot_does_not() -> None:
    for action, is_lost in (("crash", True), ("reboot", False)):
        homes = Fleet(Network(buffer_count=50), count=200)
        away, trouble = fault("disconnect", 0, 20), fault(action, 10, 5, restart_after_s=5)
        homes.run(30, away, trouble)
        assert (homes.total.reports_dropped >= 200 * 9) == is_lost
        assert homes.total.reports_buffered < 100


def test_certificates_expire_one_after_the_other_and_are_renewed() -> None:
    homes = Fleet(None)
    trouble = fault("cert_expiry", 0, 40, renew_after_s=10)
    counts = [homes.run(1, trouble).connected_count for _ in range(60)]
    # A quarter of the fleet is without a certificate at any time: forty seconds, ten of them each.
    assert 0.6 * COUNT < min(counts) < 0.8 * COUNT
    assert counts[-1] > 0.97 * COUNT


def test_a_connection_flaps() -> None:
    homes = Fleet(None)
    trouble = fault("flap", 0, 40, interval_s=5)
    counts = [homes.run(1, trouble).connected_count > COUNT / 2 for _ in range(45)]
    assert counts == ([False] * 5 + [True] * 5) * 4 + [True] * 5


def test_two_devices_under_one_name_take_the_connection_from_each_other() -> None:
    homes = Fleet(None)
    trouble = fault("duplicate_id", 0, 20, select=Select(percent=50))
    counts = [homes.run(1, trouble).connected_count for _ in range(20)]
    assert 0.65 * COUNT < min(counts) <= max(counts) < 0.85 * COUNT
    assert homes.run(2, trouble).connected_count > 0.97 * COUNT


def test_a_storm_lasts_as_long_as_connections_take_and_backoff_spares_attempts() -> None:
    attempts = {}
    for backoff in (0, 1):
        homes = Fleet(None)
        trouble = fault("reconnect_storm", 0, 1, rate=COUNT / 20, backoff=backoff)
        counts = [homes.run(1, trouble).connected_count for _ in range(30)]
        assert counts[0] == 0
        assert 0.35 * COUNT < counts[10] < 0.65 * COUNT
        assert counts[24] > 0.97 * COUNT
        attempts[backoff] = homes.total.connect_attempts
    # Each second: ten attempts for one connection, on average; with back-off three or four.
    assert attempts[0] > 8 * COUNT
    assert COUNT < attempts[1] < 6 * COUNT
    assert Fleet(None).run(30).connect_attempts == 0


def test_who_drops_out_under_a_bad_time_server_gets_no_new_connection() -> None:
    homes = Fleet(None)
    trouble = fault("bad_time_server", 0, 1500)
    stranded = homes.run(1500, trouble)
    assert stranded.reports_misdated == stranded.reports_arrived > 0
    calm = Fleet(None)
    assert calm.run(1500).reports_misdated == 0
    assert connected(homes) < connected(calm) - 0.02 * COUNT


# Devices


def test_a_device_that_hangs_is_connected_and_silent() -> None:
    homes = Fleet(None)
    trouble = fault("hang", 0, 5, select=Select(percent=30))
    summary = homes.run(5, trouble, set_point=33.0)
    assert near(summary.reports_silent, 0.3 * summary.reports_due) or summary.reports_silent % 5 == 0
    assert summary.connected_count > 0.95 * COUNT
    # A wish counts as a version: silent twins have heard of nothing else.
    assert np.count_nonzero(homes.fleet.table.version == 1) >= summary.reports_silent / 5
    assert np.count_nonzero(homes.fleet.state["set_point"] == 33) < 0.75 * COUNT
    assert homes.run(5, trouble).reports_silent == 0


def test_a_battery_drains_faster_while_the_fault_lasts() -> None:
    homes = Fleet(None)
    homes.run(1)
    before = reported(homes, "battery")
    trouble = fault("battery_drain", 1, 100, rate=0.1, field="battery", select=Select(percent=50))
    homes.run(200, trouble)
    lost = before - reported(homes, "battery")
    assert 0.4 * COUNT < np.count_nonzero(abs(lost - 10) < 0.01) < 0.6 * COUNT
    assert 0.4 * COUNT < np.count_nonzero(lost < 0.01) < 0.6 * COUNT


def test_a_stuck_sensor_says_the_same_again_and_again_and_is_stamped() -> None:
    homes = Fleet(None)
    homes.run(1)
    before = reported(homes, "temperature")
    trouble = fault("sensor_stuck", 1, 50, field="temperature", select=Select(first=0, last=99))
    homes.run(50, trouble)
    same = reported(homes, "temperature") == before
    had_reported = before != 0
    assert same[:100][had_reported[:100]].all()
    assert np.count_nonzero(same[100:]) < 0.1 * COUNT
    assert np.count_nonzero(homes.fleet.table.reported_at[0][:100] == START_S + 50) > 90
    homes.run(5, trouble)
    assert np.count_nonzero(reported(homes, "temperature")[:100] == before[:100]) < 10


def test_a_drifting_sensor_is_off_by_more_and_more() -> None:
    homes = Fleet(None)
    trouble = fault("sensor_drift", 0, 200, field="humidity", rate=0.1)
    homes.run(101, trouble)
    off = reported(homes, "humidity") - homes.fleet.state["humidity"][:COUNT]
    assert np.median(off) == pytest.approx(10, abs=0.01)
    homes.run(200, trouble)
    off = reported(homes, "humidity") - homes.fleet.state["humidity"][:COUNT]
    assert np.median(off) == 0


def test_a_spike_comes_now_and_then() -> None:
    homes = Fleet(None)
    trouble = fault("sensor_spike", 0, 5, field="temperature", value=40, percent=10)
    homes.run(5, trouble)
    off = reported(homes, "temperature") - homes.fleet.state["temperature"][:COUNT]
    assert 0.07 * COUNT < np.count_nonzero(off > 30) < 0.13 * COUNT
    homes.run(5, trouble)
    off = reported(homes, "temperature") - homes.fleet.state["temperature"][:COUNT]
    assert np.count_nonzero(off > 30) < 0.01 * COUNT


def test_a_field_that_is_left_out_stays_as_it_was_with_its_stamp() -> None:
    homes = Fleet(Network(Link(duplicate=0.5)), count=400)
    trouble = fault("sensor_missing", 0, 5, field="humidity", select=Select(first=0, last=199))
    homes.run(5, trouble)
    document = homes.fleet.table.load(7)
    assert "humidity" not in document.reported
    assert "temperature" in document.reported
    assert "humidity" in homes.fleet.table.load(300).reported
    homes.run(5, trouble)
    assert "humidity" in homes.fleet.table.load(7).reported
    missing = fault("sensor_missing", 10, 5, field="humidity")
    homes.run(5, missing)
    assert (homes.fleet.table.reported_at[POSITIONS["humidity"]][:400] < START_S + 10).all()
    assert "humidity" in homes.fleet.table.load(7).reported


def test_a_wrong_clock_is_counted() -> None:
    homes = Fleet(None)
    trouble = fault("clock_skew", 0, 5, offset_s=-30, select=Select(percent=50))
    summary = homes.run(5, trouble)
    assert 0.4 < summary.reports_misdated / summary.reports_arrived < 0.6
    assert homes.run(5, trouble).reports_misdated == 0


# Selections


def test_exactly_as_many_devices_are_hit_as_were_asked_for_in_any_number_of_shards() -> None:
    region = Attribute("region", ("north", "south"), (3.0, 1.0))
    trouble = Fault("few", "hang", 0, 1, (), Select(where=(("region", "south"),), count=7, last=2900))
    for shard_count in (1, 5):
        total = TickSummary()
        for number in range(shard_count):
            shard = Shard(number, shard_count)
            group = Group("g", THERMOSTAT, "g-{i}", 3000, 5, START_S, 1, 1, (region,))
            shard.create_group(group)
            total += shard.tick(TickOrder("g", 0, 1, {}, [trouble]))
        assert total.reports_silent == 7


def test_a_fault_hits_the_region_that_it_names() -> None:
    homes = Fleet(None)
    trouble = fault("disconnect", 0, 5, select=Select(where=(("region", "south"),)))
    homes.run(5, trouble)
    is_south = homes.fleet.attributes["region"][:COUNT] == 1
    assert homes.fleet.connected[:COUNT][is_south].sum() == 0
    assert homes.fleet.connected[:COUNT][~is_south].mean() > 0.9


@pytest.mark.parametrize(
    ("trouble", "problem"),
    [
        (fault("nonsense"), "no action"),
        (Fault("a", "loss", 0, 1, (("rate", 1.0),)), "no parameter"),
        (fault("loss", percent=101), "percent"),
        (fault("loss", ticks=0), "at least one tick"),
        (fault("partition", direction="left"), "direction"),
        (fault("sensor_drift"), "float field"),
        (fault("sensor_drift", field="uptime"), "float field"),
        (fault("sensor_missing", field="pressure"), "no field"),
        (fault("sensor_missing"), "needs a field"),
        (fault("hang", select=Select(where=(("region", "west"),))), "west"),
        (fault("hang", select=Select(percent=-1)), "percent"),
        (fault("latency", latency_ms=1), "network"),
    ],
)
def test_a_fault_that_cannot_be_is_refused_and_changes_nothing(trouble: Fault, problem: str) -> None:
    homes = Fleet(None, count=40)
    homes.run(2)
    before = homes.shard.digest_leaves()
    with pytest.raises(ModelError, match=problem):
        homes.run(1, trouble)
    assert homes.shard.digest_leaves() == before


def test_every_action_is_told_with_its_meaning() -> None:
    assert all(action.meaning for action in ACTIONS.values())
