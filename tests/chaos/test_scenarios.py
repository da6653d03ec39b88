"""A scenario that breaks a running platform and its wire, as a tester would run it: one run of all that it can do."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from actors.fleet import LocalFleet
from scenarios.devices import LocalDevices
from scenarios.engine import RunOptions, conduct
from scenarios.platform_blows import Blow, PlatformBlows
from scenarios.reading import parse_scenario
from scenarios.spec import PlatformFault
from tests.chaos.stage import Stage
from tests.integration.running_platform import environment_of

QUIET = """
apiVersion: twinfleet/v1
kind: Scenario
metadata: {name: all-at-once}
seed: 11
clock: {mode: accelerated, speed: 20}
duration: 2m
groups: [{name: scenario-rooms, count: 500, report_every: 10s}]
"""
BROKEN = """
devices: [{name: scenario-lamp, report_every: 10s}]
faults:
  - {name: slow, at: 10s, duration: 2s, action: latency, latency: 400ms, between: [devices, broker]}
  - {name: forgotten, at: 60s, duration: 500ms, action: reset_peer, between: [devices, broker]}
  - {name: broker-restarted, at: 70s, action: restart, component: broker}
  - {name: shard-killed, at: 100s, action: kill, component: shard}
checks: [no_acknowledged_update_lost, every_report_accounted_for, version_never_decreases]
thresholds:
  "recovery_time{fault:slow}": ["count == 1"]
  "recovery_time{fault:forgotten}": ["count == 1"]
  "recovery_time{fault:broker-restarted}": ["count == 1"]
  "recovery_time{fault:shard-killed}": ["count == 1"]
  device_round_trip: ["max > 400ms"]
  device_disconnects: ["count >= 1"]
  audit_accepted: ["count > 50"]
  reports_lost: ["count == 0"]
"""
# Six seconds of load, a start and four recoveries; a machine that is busy takes far longer.
DEADLINE_S = 300.0


def run(stage: Stage, file: Path) -> tuple[int, str]:
    command = [sys.executable, "-m", "twinfleet", "run", str(file), "--data-dir", str(stage.data_dir)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
        env=environment_of(stage.data_dir),
    )
    return done.returncode, done.stdout + done.stderr


async def digest_of(text: str) -> str:
    fleet = LocalFleet(3)
    scenario = parse_scenario(text)
    return (await conduct(scenario, fleet, LocalDevices(fleet), RunOptions())).digest


@pytest.mark.timeout(400)
async def test_a_platform_that_a_scenario_breaks_serves_again_and_has_lost_nothing(
    stage: Stage, tmp_path: Path
) -> None:
    file = tmp_path / "all-at-once.yaml"
    file.write_text(QUIET + BROKEN)
    code, output = run(stage, file)
    assert code == 0, output
    report = next(
        line.removeprefix("report: ") for line in output.splitlines() if line.startswith("report: ")
    )
    summary: dict[str, Any] = json.loads(Path(report).with_name("summary.json").read_bytes())
    faults = {fault["name"]: fault for fault in summary["faults"]}
    assert [faults[name]["layer"] for name in ("slow", "shard-killed")] == ["wire", "platform"]
    assert all(fault["recovery_s"] >= 0 for fault in faults.values())
    slow = {phase["name"]: phase["values"] for phase in faults["slow"]["phases"]}
    assert slow["during"]["answer_ms_p99"] > 400
    assert "got SIGKILL" in faults["shard-killed"]["detail"]
    # The simulated fleet is what it is without any of this.
    assert summary["digest"] == await digest_of(QUIET.replace("accelerated, speed: 20", "asap"))


async def test_a_full_disk_takes_nothing_more_until_that_is_over(stage: Stage) -> None:
    if not stage.has_small_disk:
        pytest.skip("this machine lets nobody mount a small file system")
    blows = PlatformBlows(stage.platform.process.pid, stage.data_dir, seed=0)
    probe, blow = stage.data_dir / "probe", Blow()
    lasting = asyncio.create_task(
        blows.carry_out(PlatformFault("full", "disk_full", 0, "disk", duration_s=0.5), blow)
    )
    async with asyncio.timeout(DEADLINE_S):
        while not blow.text:
            await asyncio.sleep(0.01)
    with pytest.raises(OSError, match="No space left"):
        probe.write_bytes(b"x" * 100_000)
    await lasting
    probe.write_bytes(b"x" * 100_000)
    probe.unlink()
    stage.wait_until_ready()
