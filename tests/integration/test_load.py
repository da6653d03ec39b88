"""Simulated devices on the wire: a scenario on both paths, and what becomes of it when something dies under it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from actors.fleet import LocalFleet
from scenarios.devices import NoDevices
from scenarios.engine import RunOptions, conduct
from scenarios.errors import NameTaken
from scenarios.load_orders import Registrar
from scenarios.progress import Frame, SilentProgress
from scenarios.reading import parse_scenario
from scenarios.result import RunResult
from scenarios.wire_fleet import WireFleet, WireSite
from tests.integration.wire_stage import Site, running_wire_site, serving

COUNT = 100
# Only what nobody answers takes so long.
SETTLE_S = 2.0
SCENARIO = f"""
apiVersion: twinfleet/v1
kind: Scenario
metadata: {{name: both-paths}}
seed: 11
duration: 30s
clock: {{mode: accelerated, speed: 10}}
wire: {{processes: 2, connect_rate: 1000/s, reconnect: {{first: 100ms, max: 500ms}}}}
groups:
  - name: rooms
    count: {COUNT}
    thing_name: "room-{{i}}-x"
    report_every: 5s
    attributes: {{site: {{choice: [ams, ber]}}}}
    network: {{loss: 5%}}
steps:
  - {{at: 10s, set_desired: {{group: rooms, state: {{set_point: 23.5}}}}}}
faults:
  - {{name: storm, at: 18s, duration: 4s, action: reconnect_storm, backoff: none}}
checks: [every_report_accounted_for]
thresholds:
  reports: ["count > 0"]
"""


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run wait for its last answers for no longer than what answers here takes."""
    monkeypatch.setattr("scenarios.wire_fleet._SETTLE_TIMEOUT_S", SETTLE_S)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running_wire_site(tmp_path_factory.mktemp("load")) as made:
        yield made


def wire_site(site: Site) -> WireSite:
    endpoints = site.endpoints
    registrar = Registrar(endpoints.api.url, endpoints.operator_token_file)
    return WireSite(endpoints.mqtts.host, endpoints.mqtts.port, endpoints.ca, registrar)


SMALL = (
    SCENARIO.replace(f"count: {COUNT}", "count: 40")
    .replace("processes: 2", "processes: 1")
    .replace("speed: 10", "speed: 20")
)


async def run(
    text: str, site: Site, *, at: tuple[float, Callable[[WireFleet], None]] | None = None
) -> RunResult:
    """Run a scenario on the wire; `at` says what is done when virtual time has come so far."""
    scenario = parse_scenario(text.replace("seed:", "path: wire\nseed:", 1))
    async with serving(site) as fleet:
        wire = WireFleet(fleet, scenario, wire_site(site))
        progress = Watcher(wire, at)
        try:
            return await conduct(scenario, wire, NoDevices(), RunOptions(progress=progress))
        finally:
            await wire.close()


class Watcher(SilentProgress):
    """Does something once, when virtual time has come so far."""

    def __init__(self, wire: WireFleet, at: tuple[float, Callable[[WireFleet], None]] | None) -> None:
        self._wire = wire
        self._at = at

    def show(self, frame: Frame) -> None:
        if self._at is not None and frame.virtual_s >= self._at[0]:
            act, self._at = self._at[1], None
            act(self._wire)


def accounted(result: RunResult) -> str:
    return next(check.outcome for check in result.checks)


async def test_the_wire_and_the_engine_agree_on_a_scenario(site: Site) -> None:
    over_the_wire = await run(SCENARIO, site)
    in_the_engine = await conduct(parse_scenario(SCENARIO), LocalFleet(4), NoDevices(), RunOptions())
    assert over_the_wire.verdict == in_the_engine.verdict == "PASS"
    # The seed says which report is due, lost by the link, or not sent because its device is offline.
    for name in ("reports", "reports_lost", "reports_offline"):
        assert over_the_wire.metrics[name]["count"] == in_the_engine.metrics[name]["count"], name
    assert over_the_wire.metrics["messages_lost"]["count"] == 0
    assert over_the_wire.metrics["messages_sent"]["count"] == over_the_wire.metrics["reports"]["count"]
    # They dropped out in the storm, but those that still waited for an answer, and came back.
    assert over_the_wire.metrics["connect_latency"]["count"] >= COUNT * 1.5
    # Each device that was there heard of the wish, and has obeyed it.
    assert over_the_wire.metrics["deltas_received"]["count"] >= COUNT * 0.9
    assert over_the_wire.metrics["delta_outstanding"]["value"] <= COUNT * 0.1
    assert over_the_wire.metrics["ingest_latency"]["count"] == over_the_wire.metrics["reports"]["count"]
    assert site.names == set()


async def test_a_thing_that_was_there_before_ends_the_run_and_stays(site: Site) -> None:
    site.names.add("room-7-x")
    with pytest.raises(NameTaken, match="room-7-x"):
        await run(SMALL, site)
    assert site.names == {"room-7-x"}
    site.names.clear()


async def test_a_load_process_that_is_killed_is_named_and_its_run_is_not_judged(site: Site) -> None:
    two = SMALL.replace("processes: 1", "processes: 2")
    result = await run(two, site, at=(10, lambda wire: os.kill(wire.crew.pids[1], signal.SIGKILL)))
    assert result.verdict == "INCONCLUSIVE"
    assert "load process 2 of 2 ended with -9" in result.reason
    # All its things are deleted, whoever had their connections.
    assert site.names == set()


async def test_devices_whose_certificate_is_refused_are_counted_and_the_others_live(
    site: Site, hasty: None
) -> None:
    site.strangers.update(f"room-{number}-x" for number in range(10))
    try:
        result = await run(SMALL, site)
    finally:
        site.strangers.clear()
    assert result.metrics["connect_errors"]["count"] >= 10 * 3
    assert 20 <= result.metrics["connected_ratio"]["value"] * 40 <= 30
    assert result.metrics["reports"]["count"] > 0
    # What they had to say, nobody got: it is lost, and known to be.
    assert result.metrics["messages_lost"]["count"] > 0
    assert accounted(result) == "PASS"
    assert any("unknown ca" in note.text for note in result.notes), result.notes


async def test_a_broker_that_is_killed_under_load_leaves_an_account(site: Site, hasty: None) -> None:
    def kill_and_restart(_: WireFleet) -> None:
        os.kill(site.broker.pid, signal.SIGKILL)
        site.broker.stop()
        site.broker.start()

    result = await run(SMALL, site, at=(10, kill_and_restart))
    metrics = result.metrics
    assert metrics["connections_lost"]["count"] >= 38
    # All came back; nobody answers any more, because the bridge of this stage does not.
    assert metrics["connected_ratio"]["value"] > 0.9
    assert metrics["messages_lost"]["count"] > 0
    assert (
        metrics["reports"]["count"] + metrics["messages_lost"]["count"] == metrics["messages_sent"]["count"]
    )
    assert accounted(result) == "PASS"
