"""Faults of a platform in scenarios: how they are read, what is wrong with some, and where they are refused."""

from __future__ import annotations

import pytest

from actors.fleet import LocalFleet
from scenarios.devices import LocalDevices
from scenarios.engine import RunOptions, conduct
from scenarios.errors import FaultImpossible, ScenarioInvalid
from scenarios.metrics import Measurements, labelled
from scenarios.reading import parse_scenario
from scenarios.spec import PlatformFault

HEAD = "apiVersion: twinfleet/v1\nkind: Scenario\nmetadata: {name: test}\nduration: 1m\n"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            "{name: a, at: 9s, action: restart, component: broker}",
            PlatformFault("a", "restart", 9, "broker"),
        ),
        (
            "{name: a, at: 9s, action: kill, component: shard, mode: all, duration: 2s}",
            PlatformFault("a", "kill", 9, "shard", 2.0, 0),
        ),
        (
            "{name: a, at: 9s, action: pause, component: shard, mode: fixed, value: 2, duration: 500ms}",
            PlatformFault("a", "pause", 9, "shard", 0.5, 2),
        ),
        (
            "{name: a, at: 9s, action: disk_full, duration: 10s}",
            PlatformFault("a", "disk_full", 9, "disk", 10.0),
        ),
    ],
)
def test_a_fault_of_the_platform_is_read_as_it_is_written(text: str, fault: PlatformFault) -> None:
    assert parse_scenario(HEAD + f"faults: [{text}]\n").faults == (fault,)


@pytest.mark.parametrize(
    ("text", "path", "words"),
    [
        ("{name: a, at: 9s, action: kill, component: brocker}", "component", "did you mean 'broker'"),
        ("{name: a, at: 9s, action: kill}", "component", "is missing"),
        ("{name: a, at: 9s, action: pause, component: redis}", "duration", "is missing"),
        ("{name: a, at: 9s, action: restart, component: redis, duration: 3s}", "duration", "unknown key"),
        ("{name: a, at: 9s, action: kill, component: shard, value: 3}", "", "mode fixed"),
        ("{name: a, at: 9s, action: kill, component: shard, percent: 3}", "percent", "unknown key"),
        ("{name: a, at: 2m, action: kill, component: shard}", "at", "end of the scenario"),
    ],
)
def test_a_fault_of_the_platform_that_makes_no_sense_is_refused(text: str, path: str, words: str) -> None:
    with pytest.raises(ScenarioInvalid) as caught:
        parse_scenario(HEAD + f"faults: [{text}]\n")
    [problem] = caught.value.problems
    assert problem.path == f"faults[0]{'.' if path else ''}{path}"
    assert words in problem.text


@pytest.mark.parametrize(
    "text",
    [
        "faults: [{name: a, at: 9s, action: kill, component: shard}]\n",
        "checks: [no_acknowledged_update_lost]\n",
    ],
)
async def test_what_takes_a_platform_is_refused_where_there_is_none_before_anything_runs(text: str) -> None:
    fleet = LocalFleet(1)
    scenario = parse_scenario(HEAD + "groups: [{name: rooms, count: 9}]\n" + text)
    with pytest.raises(FaultImpossible, match="twinfleet up"):
        await conduct(scenario, fleet, LocalDevices(fleet), RunOptions())
    assert await fleet.group_names() == []


FAULT = "faults: [{name: outage, at: 9s, action: kill, component: shard}]\n"


def test_a_threshold_may_be_on_one_fault() -> None:
    text = HEAD + FAULT + 'thresholds: {"recovery_time{fault:outage}": ["max < 60s"]}\n'
    [threshold] = parse_scenario(text).thresholds
    assert threshold.metric == labelled("recovery_time", "fault", "outage")
    assert threshold.condition.comparison.bound == 60_000


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("recovery_time{fault:outrage}", "did you mean 'outage'"),
        ("recovery_time{group:outage}", "'fault'"),
        ("reports{fault:outage}", "it has 'group'"),
        ("recovery_thyme{fault:outage}", "unknown metric; did you mean 'recovery_time'"),
    ],
)
def test_a_threshold_on_a_label_that_is_not_there_is_refused(name: str, words: str) -> None:
    with pytest.raises(ScenarioInvalid, match=words):
        parse_scenario(HEAD + FAULT + f'thresholds: {{"{name}": ["max < 60s"]}}\n')


def test_a_metric_whose_worst_sample_is_missing_has_no_statistics() -> None:
    measurements = Measurements()
    quick, slow = (labelled("recovery_time", "fault", name) for name in ("quick", "slow"))
    for name in ("recovery_time", quick):
        measurements.add(name, 1000.0)
    assert measurements.statistic("recovery_time", "max") == 1000.0
    measurements.spoil("recovery_time")
    assert measurements.statistic("recovery_time", "max") is None
    assert measurements.statistic(quick, "max") == 1000.0
    assert measurements.statistic(slow, "max") is None
    assert quick in measurements.statistics()
