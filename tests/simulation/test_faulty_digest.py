"""Same seed, same bytes, with every fault on: for any shard count and windows, compiled or not, after a snapshot."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twins.digest import combine_digest
from twins.faults import TROUBLES, Fault, Select
from twins.kernels import Kernels
from twins.link import Link, Network
from twins.messages import GroupOrder, TickOrder, TickSummary, encode
from twins.model import Attribute, Group
from twins.shard import Shard
from twins.shipped import model_named
from twins.snapshot import dump_shard, load_shard

START_S = 1_767_225_600
TICKS = 40
THERMOSTAT = model_named("thermostat")
REGION = Attribute("region", ("north", "south", "east"), (5.0, 3.0, 2.0))
SLOW = Link(400, 300, loss=0.05, corrupt=0.02, reorder=0.05, duplicate=0.05, bandwidth_bytes_s=900)
FAR = Link(1500, 1400, loss=0.1, duplicate=0.1)
NETWORKS = (
    Network(SLOW, "region", (("south", FAR),), qos=1, resend_after_s=3, buffer_count=4, flush_per_s=2),
    Network(FAR, clock_skew_s=3),
)


def everything_wrong() -> list[Fault]:
    """Return a fault of every kind, in turns, of a share of the devices."""
    faults = []
    parameters: dict[str, dict[str, float]] = {
        "latency": {"latency_ms": 900, "jitter_ms": 800},
        "jitter": {"jitter_ms": 900},
        "crash": {"restart_after_s": 7},
        "reboot": {"restart_after_s": 6},
        "power_cut": {"spread_s": 9},
        "cert_expiry": {"renew_after_s": 8},
        "reconnect_storm": {"rate": 100, "backoff": 1},
        "flap": {"interval_s": 3},
        **{
            name: {"percent": 60} for name in ("loss", "duplicate", "reorder", "corrupt", "malformed_payload")
        },
    }
    fields = ("temperature", "humidity", "battery")
    for number, (name, action) in enumerate(TROUBLES.items()):
        select = Select(percent=40) if number % 3 else Select((("region", "south"),), count=100 + number)
        is_of_field = action.needs_field or name == "sensor_missing"
        faults.append(
            Fault(
                name,
                name,
                # Few different times: each new set of faults takes a program of its own.
                4 * (number % 4),
                12,
                tuple(parameters.get(name, {}).items()),
                select,
                fields[number % 3] if is_of_field else "",
                ("up", "down", "both")[number % 3],
            )
        )
    return faults


def group_of(network: Network, period: int) -> Group:
    return Group(
        "homes", THERMOSTAT, "home-{i:05d}", 1500, 42, START_S, 1, period, (REGION,), network=network
    )


def history(
    network: Network, shard_count: int, *, window: int, period: int = 3, snapshot_at: int = -1
) -> tuple[str, TickSummary]:
    """Return the digest of a fleet that everything goes wrong with, and what happened."""
    shards = [Shard(number, shard_count) for number in range(shard_count)]
    for shard in shards:
        shard.create_group(group_of(network, period))
    total = TickSummary()
    for first in range(0, TICKS, window):
        if first == snapshot_at:
            shards = [load_shard(dump_shard(shard)) for shard in shards]
        desired = {"set_point": 22.5} if first == 24 else {}
        order = TickOrder("homes", first, min(window, TICKS - first), desired, everything_wrong())
        happened = TickSummary()
        for shard in shards:
            happened += shard.tick(order)
        total = total.then(happened)
    leaves = [leaf for shard in shards for leaf in shard.digest_leaves()]
    return combine_digest(leaves), total


@pytest.fixture(scope="module")
def reference() -> dict[Network, tuple[str, TickSummary]]:
    return {network: history(network, 1, window=8) for network in NETWORKS}


@pytest.mark.parametrize("network", NETWORKS, ids=["qos 1", "qos 0"])
def test_everything_happens_and_every_report_is_accounted_for(
    reference: dict[Network, tuple[str, TickSummary]], network: Network
) -> None:
    _, total = reference[network]
    assert total.reports_due == total.reports_accounted
    assert sum(total.latency) == total.reports_arrived
    counts = ["arrived", "refused", "silent", "duplicated", "delayed", "reordered", "misdated", "in_flight"]
    counts += ["resent", "dropped", "buffered"] if network.qos else ["offline", "lost"]
    assert all(getattr(total, f"reports_{name}") > 0 for name in counts), total
    assert total.connect_attempts > 0


@pytest.mark.parametrize("network", NETWORKS, ids=["qos 1", "qos 0"])
@pytest.mark.parametrize(("shard_count", "window"), [(8, 8), (3, 1)])
def test_shards_and_windows_make_no_difference(
    reference: dict[Network, tuple[str, TickSummary]], network: Network, shard_count: int, window: int
) -> None:
    assert history(network, shard_count, window=window) == reference[network]


@pytest.mark.parametrize("network", NETWORKS, ids=["qos 1", "qos 0"])
@pytest.mark.parametrize("runner", [Kernels])
def test_compiled_code_makes_no_difference(
    reference: dict[Network, tuple[str, TickSummary]],
    network: Network,
    runner: type,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("twins.simulation.runner", runner)
    assert history(network, 2, window=8) == reference[network]


@pytest.mark.parametrize("network", NETWORKS, ids=["qos 1", "qos 0"])
@pytest.mark.parametrize("snapshot_at", [8, 16, 24])
def test_a_snapshot_in_mid_run_makes_no_difference(
    reference: dict[Network, tuple[str, TickSummary]], network: Network, snapshot_at: int
) -> None:
    assert history(network, 2, window=8, snapshot_at=snapshot_at) == reference[network]


def test_a_fault_changes_the_digest_and_none_is_none() -> None:
    assert len({history(network, 1, window=TICKS)[0] for network in NETWORKS}) == 2


def test_a_group_travels_with_its_network_and_an_order_with_its_faults() -> None:
    for network in NETWORKS:
        group = group_of(network, 3)
        assert msgspec.msgpack.decode(encode(GroupOrder.of(group)), type=GroupOrder).group() == group
    order = TickOrder("homes", 3, 4, {}, everything_wrong())
    assert msgspec.msgpack.decode(encode(order), type=TickOrder) == order


ratios = st.sampled_from([0.0, 0.0, 0.05, 0.25])
networks = st.builds(
    Network,
    st.builds(
        Link, st.sampled_from([0, 80, 1700]), st.sampled_from([0, 30, 1200]), ratios, ratios, ratios, ratios
    ),
    qos=st.sampled_from([0, 1]),
    resend_after_s=st.sampled_from([1.0, 4.0]),
    buffer_count=st.sampled_from([0, 1, 3, 40]),
    flush_per_s=st.sampled_from([0.0, 0.4, 2.0]),
)


@settings(max_examples=25, deadline=None)
@given(
    networks, st.lists(st.sampled_from(everything_wrong()), unique=True, max_size=4), st.sampled_from([1, 4])
)
def test_every_report_is_accounted_for_whatever_goes_wrong(
    network: Network, faults: list[Fault], period: int
) -> None:
    shard = Shard(0, 1)
    shard.create_group(
        Group("homes", THERMOSTAT, "home-{i}", 200, 7, START_S, 1, period, (REGION,), network=network)
    )
    total = TickSummary()
    for first in range(0, 40, 8):
        total = total.then(shard.tick(TickOrder("homes", first, 8, {}, faults)))
        assert total.reports_due == total.reports_accounted
        assert sum(total.latency) == total.reports_arrived
        versions = int(shard.fleets["homes"].table.version.sum())
        assert versions == total.reports_arrived + total.reports_duplicated
