"""The smoke scenario on a fleet in this process, over several seeds; and the scenarios that must fail, failing.

To repeat one: twinfleet run scenarios/library/smoke/first-light.yaml --fleet local --seed SEED
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from actors.errors import WorldError
from actors.fleet import LocalFleet
from scenarios import run
from scenarios.brain import DeviceEvent
from scenarios.devices import LocalDevices, NoDevices
from scenarios.engine import RunOptions, conduct
from scenarios.errors import NameTaken
from scenarios.reading import load_scenario, parse_scenario, reseeded
from scenarios.result import RunResult
from scenarios.running import run_scenario
from scenarios.spec import ClockSpec, Scenario, WaitFor
from twins.messages import Operation, Request, TickOrder, TickSummary

LIBRARY = Path(__file__).parents[2] / "scenarios" / "library"
HEAD = "apiVersion: twinfleet/v1\nkind: Scenario\nmetadata: {name: test}\nduration: 1m\n"
GROUP = "groups: [{name: rooms, count: 300, report_every: 10s}]\n"


def as_fast_as_possible(scenario: Scenario) -> Scenario:
    """Return the scenario without its pace, and without the threshold on keeping it."""
    thresholds = tuple(one for one in scenario.thresholds if one.metric != "tick_lag")
    return dataclasses.replace(scenario, clock=ClockSpec(), thresholds=thresholds)


async def play(scenario: Scenario, *, shard_count: int = 4, options: RunOptions | None = None) -> RunResult:
    fleet = LocalFleet(shard_count)
    return await conduct(scenario, fleet, LocalDevices(fleet), options or RunOptions())


@pytest.mark.parametrize("seed", [20261123, 1, 2, 2**40 + 3])
async def test_first_light_passes_with_every_seed(seed: int, tmp_path: Path) -> None:
    scenario = as_fast_as_possible(reseeded(load_scenario(LIBRARY / "smoke" / "first-light.yaml"), seed))
    fleet = LocalFleet(8)
    result = await run_scenario(scenario, fleet, LocalDevices(fleet), reports_dir=tmp_path)
    assert result.verdict == "PASS", [
        one for one in (*result.thresholds, *result.assertions) if one.outcome != "PASS"
    ]
    assert len(result.outcomes()) == 20
    summary = msgspec.json.decode((tmp_path / result.run_id / "summary.json").read_bytes())
    assert (summary["seed"], summary["digest"]) == (seed, result.digest)
    assert len(result.digest) == 64
    assert result.devices[0].transport == "in-process"
    # It leaves the fleet as it found it.
    assert (await fleet.twins_table()).num_rows == 0


async def test_the_digest_is_the_same_for_every_number_of_shards_window_and_clock() -> None:
    text = HEAD + GROUP + "seed: 5\nsteps: [{at: 31s, set_desired: {group: rooms, state: {set_point: 20}}}]\n"
    scenario = parse_scenario(text)
    paced = dataclasses.replace(scenario, clock=ClockSpec("accelerated", 1000.0))
    results = [await play(scenario, shard_count=count) for count in (1, 2, 8)] + [await play(paced)]
    assert len({result.digest for result in results}) == 1
    assert (await play(reseeded(scenario, 6))).digest != results[0].digest
    without_step = dataclasses.replace(scenario, steps=())
    assert (await play(without_step)).digest != results[0].digest


def test_a_test_of_ones_own_runs_a_scenario_and_looks_at_its_result(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(HEAD + GROUP + "thresholds: {reports: [count > 1_000], reports_lost: [count == 0]}\n")
    result = run(file, seed=3, overrides=["groups[rooms].count=400"], data_dir=tmp_path)
    assert (result.verdict, result.exit_code, result.seed) == ("PASS", 0, 3)
    assert result.metrics["reports"]["count"] > 2_000
    assert "--set 'groups[rooms].count=400' --seed 3" in result.command
    assert len(list(tmp_path.glob("reports/*/report.html"))) == 1


async def test_a_wait_in_vain_holds_virtual_time_and_fails_and_is_recorded() -> None:
    scenario = load_scenario(LIBRARY / "negative" / "device-never-gets-there.yaml")
    result = await play(dataclasses.replace(scenario, clock=ClockSpec()))
    [hold] = result.holds
    assert (hold.at_s, hold.thing_name, hold.is_fulfilled) == (10, "negative-device", False)
    assert hold.duration_s >= 1.0
    waited = result.steps[1]
    assert isinstance(scenario.steps[1].action, WaitFor)
    assert (waited.outcome, waited.held_s) == ("FAIL", hold.duration_s)
    assert "reported is {'set_point': 23.5}" in waited.detail


async def test_a_scenario_that_does_nothing_says_so() -> None:
    result = await play(parse_scenario(HEAD))
    assert (result.verdict, result.exit_code) == ("NOTHING_RAN", 5)


async def test_a_scenario_that_judges_nothing_is_inconclusive() -> None:
    result = await play(parse_scenario(HEAD + GROUP))
    assert (result.verdict, result.exit_code) == ("INCONCLUSIVE", 3)


async def test_an_interrupted_run_ends_with_what_it_has() -> None:
    interrupt = asyncio.Event()
    scenario = parse_scenario(
        HEAD + GROUP + "clock: {mode: realtime}\nchecks: [every_report_accounted_for]\n"
    )
    running = asyncio.create_task(play(scenario, options=RunOptions(interrupt=interrupt)))
    await asyncio.sleep(0)
    interrupt.set()
    result = await asyncio.wait_for(running, 10)
    assert (result.verdict, result.exit_code) == ("INTERRUPTED", 130)
    assert result.virtual_s < 60


async def test_a_name_that_lives_in_the_fleet_already_is_refused_and_left_alone() -> None:
    fleet = LocalFleet(2)
    payload = b'{"state": {"reported": {"a": 1}}}'
    await fleet.ask(Request(Operation.SHADOW_UPDATE, "rooms-000299", payload, is_direct=True))
    with pytest.raises(NameTaken, match="rooms-000299"):
        await conduct(parse_scenario(HEAD + GROUP), fleet, NoDevices(), RunOptions())
    assert (await fleet.twins_table()).num_rows == 1


async def test_another_group_of_the_same_name_is_refused() -> None:
    fleet = LocalFleet(2)
    other = parse_scenario(HEAD + "groups: [{name: rooms, count: 5, thing_name: 'other-{i}'}]\n")
    await conduct(other, fleet, NoDevices(), RunOptions(keep_fleet=True))
    with pytest.raises(NameTaken, match="rooms"):
        await conduct(parse_scenario(HEAD + GROUP), fleet, NoDevices(), RunOptions())
    assert (await fleet.twins_table()).num_rows == 5


async def test_a_device_that_lives_in_the_fleet_already_is_refused() -> None:
    fleet = LocalFleet(2)
    scenario = parse_scenario(HEAD + "devices: [{name: real-device}]\n")
    await conduct(scenario, fleet, LocalDevices(fleet), RunOptions(keep_fleet=True))
    with pytest.raises(NameTaken, match="real-device"):
        await conduct(scenario, fleet, LocalDevices(fleet), RunOptions())


async def test_warm_up_counts_for_no_threshold() -> None:
    threshold = 'thresholds: {reports: ["count <= 900"]}\n'
    assert (await play(parse_scenario(HEAD + GROUP + threshold))).verdict == "FAIL"
    assert (await play(parse_scenario(HEAD + GROUP + "warmup: 30s\n" + threshold))).verdict == "PASS"


async def test_an_assertion_with_time_left_is_asked_again_as_time_goes_on() -> None:
    # The last of the fleet report after the end: those of the last period have not obeyed by then.
    late = "steps: [{at: 59s, set_desired: {group: rooms, state: {set_point: 6}}}]\n"
    sql = "select count(*) from twins where reported_set_point = 6"
    text = f"assertions: [{{name: all, sql: {sql}, expect: '> 250'%s}}]\n"
    at_once = await play(parse_scenario(HEAD + GROUP + late + text % ""))
    eventually = await play(parse_scenario(HEAD + GROUP + late + text % ", within: 1m"))
    assert (at_once.verdict, eventually.verdict) == ("FAIL", "PASS")
    assert at_once.digest == eventually.digest
    assert eventually.virtual_s == 70


class _BrokenFleet(LocalFleet):
    """A fleet whose shards stop answering after some ticks."""

    async def tick(self, orders: Sequence[TickOrder]) -> dict[str, TickSummary]:
        if orders[0].first_tick >= 30:
            raise WorldError("shard 3 does not answer")
        return await super().tick(orders)


async def test_a_fleet_that_breaks_makes_the_run_inconclusive_with_a_report(tmp_path: Path) -> None:
    fleet = _BrokenFleet(2)
    scenario = parse_scenario(HEAD + GROUP + "warmup: 30s\nchecks: [every_report_accounted_for]\n")
    result = await run_scenario(scenario, fleet, NoDevices(), reports_dir=tmp_path)
    assert (result.verdict, result.exit_code) == ("INCONCLUSIVE", 3)
    assert "shard 3 does not answer" in result.reason
    assert (tmp_path / result.run_id / "report.html").exists()


async def test_a_desired_change_that_is_refused_fails_its_step() -> None:
    step = "steps: [{at: 1s, set_desired: {thing: real-device, state: {a: [null]}}}]\n"
    result = await play(parse_scenario(HEAD + "devices: [{name: real-device}]\n" + step))
    assert (result.steps[0].outcome, result.verdict) == ("FAIL", "FAIL")
    assert "refused with 400" in result.steps[0].detail


async def test_a_live_change_of_a_simulated_device_reaches_it() -> None:
    step = "steps: [{at: 30s, set_desired: {thing: rooms-000007, state: {set_point: 30}}}]\n"
    sql = "select reported_set_point from twins where name = 'rooms-000007'"
    text = HEAD + GROUP + step + f'assertions: [{{name: it, sql: "{sql}", expect: 30}}]\n'
    assert (await play(parse_scenario(text))).verdict == "PASS"


async def test_a_device_that_goes_back_in_versions_fails_the_check() -> None:
    class Lying(LocalDevices):
        async def play(self, virtual_s: float) -> None:
            await super().play(virtual_s)
            for local in self._devices:
                local.listener(local.spec.thing_name, DeviceEvent("accepted", version=1))

    fleet = LocalFleet(2)
    scenario = parse_scenario(HEAD + "devices: [{name: real-device}]\nchecks: [version_never_decreases]\n")
    result = await conduct(scenario, fleet, Lying(fleet), RunOptions())
    assert result.checks[0].outcome == "FAIL"
