"""The simulated link: what becomes of reports, counted per cause, and what their twins make of it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from twins.errors import ModelError
from twins.faults import Fault
from twins.interpreter import bucket_of
from twins.link import Link, Network
from twins.messages import TickOrder, TickSummary
from twins.model import Attribute, Group
from twins.shard import Shard
from twins.shipped import model_named
from twins.simulated import SimulatedFleet

THERMOSTAT = model_named("thermostat")
START_S = 1_767_225_600
COUNT = 2000
REGION = Attribute("region", ("north", "south"), (1.0, 1.0))


class Fleet:
    """Some thermostats in one shard, and everything that happened to them."""

    def __init__(self, network: Network | None, *, count: int = COUNT, period: int = 1, **more: Any) -> None:
        self.shard = Shard(0, 1)
        self.shard.create_group(
            Group(
                "homes",
                THERMOSTAT,
                "home-{i}",
                count,
                3,
                START_S,
                report_every_ticks=period,
                attributes=(REGION,),
                network=network,
                **more,
            )
        )
        self.total = TickSummary()

    @property
    def fleet(self) -> SimulatedFleet:
        return self.shard.fleets["homes"]

    def run(self, ticks: int, *faults: Fault, **desired: float) -> TickSummary:
        """Run some ticks, and hold them to the law that every report is accounted for."""
        order = TickOrder("homes", self.fleet.next_tick, ticks, desired, list(faults))
        summary = self.shard.tick(order)
        self.total = self.total.then(summary)
        assert self.total.reports_due == self.total.reports_accounted, self.total
        assert not self.total.latency or sum(self.total.latency) == self.total.reports_arrived
        return summary

    def versions(self) -> int:
        return int(self.fleet.table.version.sum())


def near(count: int, expected: float) -> bool:
    """Tell whether a count lies within five standard deviations of a rare event's expected one."""
    return abs(count - expected) < 5 * math.sqrt(expected)


def test_without_a_network_every_report_arrives_at_once_and_nothing_is_kept_beside() -> None:
    homes = Fleet(None)
    summary = homes.run(10)
    assert summary.reports_arrived + summary.reports_offline == summary.reports_due == 10 * COUNT
    assert summary.latency == []
    assert homes.fleet.post is None
    assert not any(name.startswith("link.") for name in homes.fleet.arena.columns)


def test_a_lost_report_never_arrives() -> None:
    homes = Fleet(Network(Link(loss=0.1)))
    summary = homes.run(10)
    assert near(summary.reports_lost, 0.1 * (summary.reports_due - summary.reports_offline))
    assert homes.versions() == summary.reports_arrived
    assert Fleet(Network()).run(10).reports_lost == 0


def test_latency_is_counted_from_the_intended_time_and_spread_by_jitter() -> None:
    summary = Fleet(Network(Link(latency_ms=80, jitter_ms=30))).run(5)
    buckets = np.flatnonzero(summary.latency)
    assert buckets.min() == bucket_of(np.array([50.5], np.float32))[0]
    assert buckets.max() == bucket_of(np.array([109.5], np.float32))[0]
    steady = Fleet(Network(Link(latency_ms=80))).run(5)
    assert np.flatnonzero(steady.latency).tolist() == bucket_of(np.array([80], np.float32)).tolist()


def test_a_report_that_takes_longer_than_a_tick_arrives_in_a_later_one() -> None:
    homes = Fleet(Network(Link(latency_ms=2500)), period=10)
    first = homes.run(1)
    assert first.reports_arrived == 0
    assert first.reports_in_flight == first.reports_due - first.reports_offline > 0
    homes.run(1)
    third = homes.run(1)
    assert third.reports_delayed == third.reports_arrived == first.reports_in_flight
    stamped = homes.fleet.table.reported_at[0] == START_S + 2
    assert np.count_nonzero(stamped) == first.reports_in_flight
    assert third.reports_reordered == 0


def test_a_late_report_brings_the_values_that_were_measured_when_it_was_sent() -> None:
    late, prompt = Fleet(Network(Link(latency_ms=3000)), period=20), Fleet(Network(), period=20)
    prompt.run(20)
    late.run(20)
    late.run(3)
    for name, column in prompt.fleet.table.columns.items():
        if name.startswith("reported.") or name in ("version", "reported_valid"):
            have = late.fleet.table.columns[name]
            heard = prompt.fleet.table.reported_at[0] < START_S + 17
            assert np.array_equal(column[heard], have[heard]), name
    window = late.fleet.windows["temperature"].columns["present.count"]
    assert window.max() >= 1


def test_a_region_has_a_link_of_its_own() -> None:
    homes = Fleet(Network(Link(), "region", (("south", Link(loss=1.0)),)))
    homes.run(5)
    is_south = homes.fleet.attributes["region"] == 1
    assert homes.fleet.table.version[is_south].max() == 0
    assert homes.fleet.table.version[~is_south].max() == 5


def test_a_duplicate_raises_the_version_twice() -> None:
    homes = Fleet(Network(Link(duplicate=0.2)))
    summary = homes.run(10)
    assert near(summary.reports_duplicated, 0.2 * summary.reports_arrived)
    assert homes.versions() == summary.reports_arrived + summary.reports_duplicated


def test_a_duplicate_of_a_late_report_comes_with_it() -> None:
    homes = Fleet(Network(Link(duplicate=1.0, latency_ms=1500)), period=10)
    homes.run(10)
    summary = homes.run(10)
    assert summary.reports_duplicated == summary.reports_arrived > 0


def test_a_damaged_report_is_refused_and_changes_nothing() -> None:
    homes = Fleet(Network(Link(corrupt=1.0)))
    summary = homes.run(5)
    assert summary.reports_refused == summary.reports_due - summary.reports_offline
    assert homes.versions() == 0


def test_a_report_that_was_overtaken_is_applied_and_counted() -> None:
    homes = Fleet(Network(Link(reorder=0.1)), period=4)
    homes.run(40)
    summary = homes.run(40)
    assert 0 < summary.reports_reordered <= summary.reports_delayed
    assert near(summary.reports_reordered, 0.1 * 0.9 * summary.reports_arrived)
    # As the service does it: whatever arrives last stands, though it is older.
    assert homes.versions() == homes.total.reports_arrived


def test_at_qos_1_what_is_lost_is_sent_again_until_it_arrives_and_some_of_it_twice() -> None:
    homes = Fleet(Network(Link(loss=0.2), qos=1, resend_after_s=3), period=10)
    homes.run(100)
    assert homes.total.reports_lost == 0
    assert homes.total.reports_resent > 0
    assert homes.total.reports_duplicated > 0
    assert homes.total.reports_delayed > 0
    assert homes.versions() == homes.total.reports_arrived + homes.total.reports_duplicated
    assert Fleet(Network(Link(loss=0.2)), period=10).run(100).reports_resent == 0


def test_bandwidth_makes_reports_slower() -> None:
    slow = Fleet(Network(Link(bandwidth_bytes_s=400))).run(2)
    # 60 + 6 * 22 bytes take 480 ms.
    assert np.flatnonzero(slow.latency).tolist() == bucket_of(np.array([480], np.float32)).tolist()


def cut(ticks: int, first: int = 0) -> Fault:
    return Fault("cut", "disconnect", first, ticks)


def test_what_devices_keep_while_they_are_offline_arrives_when_they_are_back() -> None:
    homes = Fleet(Network(buffer_count=100), count=500)
    fault = cut(20)
    during = homes.run(20, fault)
    assert during.reports_buffered == during.reports_due == 20 * 500
    assert during.connected_count == 0
    after = homes.run(1, fault)
    assert after.connected_count == 500
    assert after.reports_buffered == 0
    assert after.reports_arrived == 21 * 500
    assert homes.fleet.table.version[:500].min() == 21
    assert after.reports_reordered == 0


def test_devices_keep_the_last_reports_and_drop_older_ones() -> None:
    homes = Fleet(Network(buffer_count=5), count=300)
    fault = cut(20)
    during = homes.run(20, fault)
    assert during.reports_buffered == 5 * 300
    assert during.reports_dropped == 15 * 300
    after = homes.run(1, fault)
    # The newest of the queue has pushed the oldest out before it is sent.
    assert after.reports_dropped == 300
    assert after.reports_arrived == 5 * 300


@pytest.mark.parametrize(
    "network",
    [Network(buffer_count=50, flush_per_s=3), Network(Link(bandwidth_bytes_s=600), buffer_count=50)],
)
def test_the_flood_takes_as_long_as_devices_need(network: Network) -> None:
    homes = Fleet(network, count=300)
    fault = cut(20)
    homes.run(20, fault)
    arrived = [homes.run(1, fault).reports_arrived for _ in range(15)]
    assert max(arrived) <= 3 * 300
    assert homes.total.reports_buffered < 300 * 3
    assert arrived[0] == 3 * 300
    assert homes.total.reports_reordered == 0


@pytest.mark.parametrize("skew_s", [0.0, 10.0])
def test_a_wrong_clock_shows_in_the_stamps_of_reports(skew_s: float) -> None:
    summary = Fleet(Network(clock_skew_s=skew_s)).run(5)
    # Within a second of a triangle ten seconds wide: 19 %.
    assert (0.7 < summary.reports_misdated / summary.reports_arrived < 0.9) == (skew_s > 0)


@pytest.mark.parametrize(
    ("network", "problem"),
    [
        (Network(Link(loss=1.5)), "loss"),
        (Network(Link(loss=0.7, corrupt=0.7)), "more than 1"),
        (Network(Link(latency_ms=-1)), "latency_ms"),
        (Network(qos=2), "qos"),
        (Network(buffer_count=10**6), "buffer_count"),
        (Network(Link(), "region", (("west", Link()),)), "west"),
        (Network(Link(), "region"), "attribute"),
        (Network(Link(bandwidth_bytes_s=1)), "bytes/s"),
        (Network(resend_after_s=0), "resend_after_s"),
    ],
)
def test_a_network_that_cannot_be_is_refused(network: Network, problem: str) -> None:
    with pytest.raises(ModelError, match=problem):
        Fleet(network)


def test_what_is_under_way_for_a_device_that_somebody_else_takes_over_does_not_reach_its_twin() -> None:
    homes = Fleet(Network(Link(latency_ms=2500), buffer_count=3), count=100)
    homes.run(5)
    homes.fleet.hold(7, 1)
    before = int(homes.fleet.table.version[7])
    homes.run(10)
    # Sent in the last two seconds.
    assert homes.total.reports_lost == 2
    assert int(homes.fleet.table.version[7]) == before > 0
    homes.fleet.hold(7, 0)
    homes.run(10)
    assert int(homes.fleet.table.version[7]) > before
