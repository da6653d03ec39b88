"""Stages: who is there when, and rules and labels that go with them."""

from __future__ import annotations

import dataclasses

import pytest

from actors.fleet import LocalFleet
from scenarios.devices import LocalDevices
from scenarios.engine import RunOptions, conduct
from scenarios.errors import Problem, ScenarioInvalid
from scenarios.model_files import parse_model
from scenarios.reading import parse_scenario
from scenarios.result import RunResult
from scenarios.spec import Scenario
from scenarios.stages import present_count, targets
from scenarios.workloads import expected_count, groups_of, orders_for
from twins.messages import TickSummary
from twins.shard import Shard
from twins.shipped import shipped_text

HEAD = "apiVersion: twinfleet/v1\nkind: Scenario\nmetadata: {name: test}\n"
GROUP = "groups: [{name: rooms, count: 10}]\n"


def problems(text: str) -> list[Problem]:
    with pytest.raises(ScenarioInvalid) as caught:
        parse_scenario(text, "test.yaml")
    return list(caught.value.problems)


def only_problem(text: str) -> Problem:
    found = problems(text)
    assert len(found) == 1, found
    return found[0]


STAGES = (
    "stages: [{duration: 30s, target: 20%}, {duration: 20s, target: 900}, {duration: 10s, target: 300}]\n"
)
ROOMS = "groups: [{name: rooms, count: 1000, report_every: 1s}]\n"


def staged(stages: str = STAGES) -> Scenario:
    return parse_scenario(HEAD + stages + ROOMS)


def present(scenario: Scenario, until: int) -> list[int]:
    """Return how many devices live and are connected at the end of each tick; those of this model never drop out."""
    model = shipped_text("thermostat").replace("online: 6h", "online: 0s", 1)
    [group] = groups_of(scenario)
    shard = Shard(0, 1)
    shard.create_group(dataclasses.replace(group, model=parse_model(model)))
    counts = []
    for tick in range(until):
        [order] = orders_for(scenario, tick, 1)
        counts.append(shard.tick(order).connected_count)
    return counts


def test_stages_say_how_long_a_scenario_lasts_and_how_many_devices_are_there() -> None:
    scenario = staged()
    assert scenario.duration_s == 60
    [group] = scenario.groups
    assert targets(scenario.stages, group, 1000) == [200, 900, 300]
    times = (0, 15, 30, 40, 50, 55, 60, 100)
    assert [present_count(scenario.stages, group, 1000, time) for time in times] == [
        0, 100, 200, 550, 900, 600, 300, 300,
    ]  # fmt: skip


def test_devices_join_and_leave_as_the_stages_say() -> None:
    scenario = staged()
    counts = present(scenario, 70)
    assert counts[0] == 0
    # The first of the next stage come and go with its first tick; within one, a tick is 60 devices at most.
    for tick, planned, most in (
        (30, 200, 1),
        (50, 900, 1),
        (60, 300, 0),
        (69, 300, 0),
        (16, 100, 70),
        (41, 550, 70),
        (56, 600, 70),
    ):
        assert abs(counts[tick] - planned) <= most, tick


def test_who_left_comes_back_in_a_later_stage() -> None:
    stages = "stages: [" + ", ".join(f"{{duration: 10s, target: {n}}}" for n in (1000, 0, 500, 500)) + "]\n"
    counts = present(staged(stages), 40)
    assert (counts[9] > 900, counts[20] <= 1, counts[30], counts[39]) == (True, True, 500, 500)


def test_who_is_not_there_is_expected_neither_to_report_nor_to_be_connected() -> None:
    scenario = staged("stages: [{duration: 1m, target: 100}]\n")
    [group] = groups_of(scenario)
    shard = Shard(0, 1)
    shard.create_group(group)
    total = TickSummary()
    for tick in range(0, 60, 10):
        total = total.then(shard.tick(orders_for(scenario, tick, 10)[0]))
    assert total.reports_due == total.reports_accounted == 60_000
    assert total.reports_silent > 50_000
    assert total.reports_offline < 500
    assert expected_count(scenario, 60)["rooms"] == pytest.approx(100, abs=6)


async def run(text: str) -> RunResult:
    fleet = LocalFleet(2)
    return await conduct(parse_scenario(HEAD + text), fleet, LocalDevices(fleet), RunOptions())


@pytest.mark.parametrize(("hold", "verdict", "virtual_s"), [("10s", "ABORTED", 32), ("30s", "FAIL", 60)])
async def test_a_rule_ends_the_run_once_its_condition_has_held_long_enough(
    hold: str, verdict: str, virtual_s: int
) -> None:
    outage = "faults: [{name: cut, at: 22s, duration: 25s, action: disconnect}]\n"
    result = await run(
        "duration: 1m\nclock: {mode: accelerated, speed: 1000}\n" + ROOMS + outage
        + f"abort_on: [{{metric: connected_ratio, condition: max < 50%, for: {hold}}}]\n"
        + "thresholds: {connected_ratio: [min > 90%], 'connected_ratio{group:rooms}': [min < 10%]}\n"
    )  # fmt: skip
    assert result.verdict == verdict
    assert virtual_s <= result.virtual_s <= virtual_s + 10
    assert [one.outcome for one in result.thresholds] == ["FAIL", "PASS"]
    assert result.metrics["connected_ratio{group:rooms}"] == result.metrics["connected_ratio"]


async def test_stages_leave_out_who_is_not_there_of_what_must_be_connected() -> None:
    stages = "stages: [{duration: 30s, target: 20%}, {duration: 30s, target: 50%}]\n"
    result = await run(
        stages + ROOMS + "checks: [every_report_accounted_for]\nthresholds: {connected_ratio: [min > 80%]}\n"
        "assertions: [{name: half, sql: select count(*) from twins where connected, expect: '<= 500'}]\n"
    )
    assert (result.verdict, result.reason) == ("PASS", "all 3 expectations were met")


async def test_who_is_back_before_its_next_turn_is_not_left_behind() -> None:
    cut = "faults: [{name: cut, at: 20s, duration: 2s, action: power_cut, spread: 2s}]\n"
    result = await run("duration: 40s\ngroups: [{name: rooms, count: 1000, report_every: 10s}]\n" + cut)
    ratios = {window.virtual_s: window.connected_ratio for window in result.windows}
    assert ratios[21] == 0
    assert ratios[40] > 0.95


@pytest.mark.parametrize(
    ("text", "path", "words"),
    [
        ("stages: [{duration: 1m, target: 20%}]\n", "stages", "no group"),
        (GROUP + "stages: [{duration: 2m, target: 20%}]\nduration: 1m\n", "stages", "take 120 s"),
        (GROUP + "stages: [{duration: 2m, target: 120%}]\n", "stages[0].target", "share like"),
        (GROUP + "stages: [{duration: 2m}]\n", "stages[0].target", "missing"),
        (GROUP, "duration", "no stages"),
        (
            GROUP + "duration: 1m\nabort_on: [{metric: reprts, condition: 'count > 1'}]\n",
            "abort_on[0]",
            "did you mean 'reports'",
        ),
        (
            GROUP + "duration: 1m\nabort_on: [{metric: reports, condition: count}]\n",
            "abort_on[0].condition",
            "no condition",
        ),
        (
            GROUP + "duration: 1m\nthresholds: {'reports{group:roms}': ['count > 1']}\n",
            "thresholds.reports{group:roms}",
            "did you mean 'rooms'",
        ),
    ],
)
def test_stages_labels_and_rules_that_make_no_sense_are_refused(text: str, path: str, words: str) -> None:
    problem = only_problem(HEAD + text)
    assert problem.path == path
    assert words in problem.text
