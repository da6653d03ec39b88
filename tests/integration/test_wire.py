"""Real devices of a scenario: processes with certificates, on the real broker, judged by the engine.

The platform behind the broker is stood in for by a fleet in this process and the two calls of its API that devices
need; everything that a device touches is real.
"""

from __future__ import annotations

import asyncio
import dataclasses
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from actors.settings import (
    MqttsEndpoint,
    is_process_alive,
)
from scenarios.brain import DeviceEvent
from scenarios.devices import PlatformDevices
from scenarios.engine import RunOptions, conduct
from scenarios.errors import DeviceFailed, NameTaken
from scenarios.reading import parse_scenario
from scenarios.spec import DeviceSpec
from tests.integration.wire_stage import Site, running_wire_site, serving

TOKEN = "the-operators-token-of-these-tests"
# Interpreters start and brokers come back within seconds, also on a loaded machine.
DEADLINE_S = 30.0
SCENARIO = """
apiVersion: twinfleet/v1
kind: Scenario
metadata: {name: wire}
duration: 60s
clock: {mode: accelerated, speed: 30}
groups: [{name: rooms, count: 500}]
devices: [{name: wire-device, report_every: 6s, attributes: {site: ams}}]
steps:
  - {at: 20s, set_desired: {thing: wire-device, state: {set_point: 23.5}}}
  - {at: 20s, wait_for: {thing: wire-device, reported: {set_point: 23.5}, delta: empty}}
checks: [version_never_decreases, every_report_accounted_for]
thresholds:
  device_reports: ["count >= 5"]
  device_deltas: ["count >= 1"]
  device_errors: ["count == 0"]
  device_round_trip: ["max < 5s"]
  delta_to_reported: ["max < 5s"]
assertions:
  - {name: one real twin, sql: "select count(*) from twins where origin = 'real' and version > 5", expect: 1}
"""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with running_wire_site(tmp_path / "site") as made:
        yield made


async def until(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not is_true():
            await asyncio.sleep(0.02)


class Witness:
    """Keeps what devices have told."""

    def __init__(self) -> None:
        self.events: list[DeviceEvent] = []

    def __call__(self, _thing_name: str, event: DeviceEvent) -> None:
        self.events.append(event)

    def count(self, kind: str) -> int:
        return sum(event.kind == kind for event in self.events)


async def test_a_real_device_and_a_simulated_fleet_are_judged_in_one_run(site: Site) -> None:
    async with serving(site) as fleet:
        result = await conduct(parse_scenario(SCENARIO), fleet, PlatformDevices(site.endpoints), RunOptions())
        judged = (*result.thresholds, *result.checks, *result.assertions)
        assert [one for one in judged if one.outcome != "PASS"] == []
        assert [step for step in result.steps if step.outcome != "PASS"] == []
        assert result.verdict == "PASS"
        assert result.devices[0].transport == "mqtt"
        assert result.holds[0].is_fulfilled
        assert {point.section for point in result.device_points} == {"desired", "reported"}
    assert site.names == set()


async def test_a_device_comes_back_after_the_broker_and_obeys_what_it_missed(site: Site) -> None:
    witness, devices = Witness(), PlatformDevices(site.endpoints)
    async with serving(site) as fleet:
        spec = DeviceSpec("lost-and-found", "lost-and-found", report_every_s=0.5)
        await devices.start(spec, speed=None, listener=witness)
        await until(lambda: witness.count("accepted") >= 1)
    site.broker.stop()
    await until(lambda: witness.count("disconnected") == 1)
    await fleet.twin("lost-and-found").update_desired({"set_point": 18.5})
    site.broker.start()
    assert site.broker.port == site.endpoints.mqtts.port
    async with serving(site) as fresh:
        await fresh.twin("lost-and-found").update_desired({"set_point": 18.5})
        await until(lambda: witness.count("obeyed") >= 1)
        document = await fresh.twin("lost-and-found").shadow()
        assert document["state"]["reported"]["set_point"] == 18.5
        await devices.stop(keep=False)
    assert witness.count("connected") >= 2


async def test_a_device_process_that_dies_is_told(site: Site) -> None:
    witness, devices = Witness(), PlatformDevices(site.endpoints)
    async with serving(site):
        await devices.start(DeviceSpec("mortal", "mortal"), speed=None, listener=witness)
        process = devices._devices[0].process
        assert process is not None
        process.send_signal(signal.SIGKILL)
        await until(lambda: witness.count("failed") == 1)
        assert "its process ended with -9" in witness.events[-1].message
        await devices.stop(keep=False)


async def test_a_device_ends_when_the_pipe_from_its_parent_does(site: Site) -> None:
    witness, devices = Witness(), PlatformDevices(site.endpoints)
    async with serving(site):
        await devices.start(DeviceSpec("orphan", "orphan"), speed=None, listener=witness)
        process = devices._devices[0].process
        assert process is not None
        assert process.stdin is not None
        process.stdin.close()
        await until(lambda: not is_process_alive(process.pid))
        await devices.stop(keep=False)


async def test_a_name_that_is_registered_already_is_refused_and_kept(site: Site) -> None:
    site.names.add("taken")
    devices = PlatformDevices(site.endpoints)
    with pytest.raises(NameTaken, match="taken"):
        await devices.start(DeviceSpec("taken", "taken"), speed=None, listener=Witness())
    await devices.stop(keep=False)
    assert site.names == {"taken"}


async def test_a_device_that_cannot_connect_is_told_with_the_reason(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scenarios.devices._START_TIMEOUT_S", 3.0)
    endpoints = dataclasses.replace(site.endpoints, mqtts=MqttsEndpoint("127.0.0.1", 1))
    devices = PlatformDevices(endpoints)
    with pytest.raises(DeviceFailed, match="did not connect within 3 s: cannot connect"):
        await devices.start(DeviceSpec("far-away", "far-away"), speed=None, listener=Witness())
    await devices.stop(keep=False)


async def test_the_keys_of_a_device_are_its_owners_alone_and_go_with_it(site: Site) -> None:
    devices = PlatformDevices(site.endpoints)
    async with serving(site):
        await devices.start(DeviceSpec("secretive", "secretive"), speed=None, listener=Witness())
        directory = devices._devices[0].directory
        assert directory.stat().st_mode & 0o777 == 0o700
        assert (directory / "key.pem").stat().st_mode & 0o777 == 0o600
        await devices.stop(keep=False)
    assert not directory.exists()
