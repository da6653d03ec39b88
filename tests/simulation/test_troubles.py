"""Scenarios with links and faults: what their words mean, what is wrong with some, and what comes of them."""

from __future__ import annotations

import numpy as np
import pytest

from actors.fleet import LocalFleet
from scenarios.devices import LocalDevices
from scenarios.engine import RunOptions, conduct
from scenarios.errors import ScenarioInvalid
from scenarios.metrics import Measurements
from scenarios.reading import parse_scenario
from scenarios.result import RunResult
from scenarios.spec import Scenario
from scenarios.workloads import orders_for
from twins.faults import Fault, Select
from twins.interpreter import bucket_of
from twins.link import Link, Network
from twins.program import HISTOGRAM_BUCKETS

HEAD = "apiVersion: twinfleet/v1\nkind: Scenario\nmetadata: {name: test}\nduration: 1m\n"
GROUP = (
    "groups: [{name: rooms, count: 300, attributes: {site: {choice: [ams, ber]}},"
    " network: {latency: 80ms, loss: 0.5%, corrupt: 0.01, buffer: 5, qos: 1, resend_after: 2s, clock_skew: 1s,"
    " by: {site: {ber: {latency: 2s, jitter: 1s}}}}}]\n"
)


async def play(scenario: Scenario, shard_count: int = 4) -> RunResult:
    fleet = LocalFleet(shard_count)
    return await conduct(scenario, fleet, LocalDevices(fleet), RunOptions())


def test_a_network_is_read_as_it_is_written() -> None:
    assert parse_scenario(HEAD + GROUP).groups[0].network == Network(
        Link(latency_ms=80, loss=0.005, corrupt=0.01),
        "site",
        (("ber", Link(latency_ms=2000, jitter_ms=1000)),),
        qos=1,
        resend_after_s=2,
        buffer_count=5,
        clock_skew_s=1,
    )


def test_a_fault_is_read_as_it_is_written_and_rides_on_orders_from_its_time_on() -> None:
    scenario = parse_scenario(
        HEAD
        + GROUP
        + "faults:\n- {name: a, at: 20s, duration: 10s, action: latency, latency: 1s, jitter: 500ms,"
        ' select: {where: "attributes.site:ber", mode: fixed-percent, value: 80}}\n'
        "- {name: b, at: 40s, duration: 5s, action: clock_skew, offset: -30, select: {mode: one, last: 9}}\n"
    )
    late = Fault(
        "a",
        "latency",
        20,
        10,
        (("latency_ms", 1000.0), ("jitter_ms", 500.0)),
        Select((("site", "ber"),), 80.0),
    )
    wrong = Fault("b", "clock_skew", 40, 5, (("offset_s", -30.0),), Select(count=1, last=9))
    assert orders_for(scenario, 0, 20)[0].faults == []
    assert orders_for(scenario, 15, 10)[0].faults == [late]
    assert orders_for(scenario, 50, 10)[0].faults == [late, wrong]


@pytest.mark.parametrize(
    ("fault", "path", "words"),
    [
        ("{name: a, at: 5s, duration: 1s, action: meltdown}", "faults[0].action", "loss"),
        ("{name: a, at: 5s, duration: 1s, action: hang, percent: 5}", "faults[0].percent", "unknown key"),
        ("{name: a, at: 5s, duration: 1s, action: loss, percent: 105}", "faults[0].percent", "100"),
        ("{name: a, at: 70s, duration: 1s, action: hang}", "faults[0].at", "end of the scenario"),
        ("{name: a, at: 5s, duration: 1s, action: hang, groups: [attic]}", "faults[0].groups[0]", "attic"),
        ("{name: a, at: 5s, duration: 1s, action: sensor_drift, field: uptime}", "faults[0]", "temperature"),
        (
            "{name: a, at: 5s, duration: 1s, action: hang, select: {where: x}}",
            "faults[0].select.where",
            "like",
        ),
        (
            '{name: a, at: 5s, duration: 1s, action: hang, select: {where: "attributes.site:rom"}}',
            "faults[0].select.where",
            "ams|ber",
        ),
        (
            "{name: a, at: 5s, duration: 1s, action: hang, select: {mode: fixed}}",
            "faults[0].select",
            "'value'",
        ),
    ],
)
def test_a_fault_that_makes_no_sense_is_refused_with_what_would(fault: str, path: str, words: str) -> None:
    with pytest.raises(ScenarioInvalid) as caught:
        parse_scenario(HEAD + GROUP + f"faults: [{fault}]\n")
    [problem] = caught.value.problems
    assert problem.path == path
    assert words in problem.text


@pytest.mark.parametrize(
    ("network", "words"),
    [
        ("{loss: 120%}", "100%"),
        ("{loss: 80%, corrupt: 80%}", "more than 1"),
        ("{speed: 3}", "unknown key"),
        ("{by: {site: {rom: {}}}}", "rom"),
        ("{bandwidth: 3}", "bytes/s"),
    ],
)
def test_a_network_that_makes_no_sense_is_refused(network: str, words: str) -> None:
    with pytest.raises(ScenarioInvalid, match=words):
        parse_scenario(
            HEAD
            + "groups: [{name: rooms, count: 9, attributes: {site: {choice: [ams]}}, "
            + f"network: {network}}}]\n"
        )


async def test_a_threshold_on_a_loss_that_a_fault_brings_fails() -> None:
    text = HEAD + "groups: [{name: rooms, count: 300}]\nthresholds: {reports_lost: ['count == 0']}\n"
    assert (await play(parse_scenario(text))).verdict == "PASS"
    loss = "faults: [{name: a, at: 5s, duration: 30s, action: loss, percent: 50}]\n"
    assert (await play(parse_scenario(text + loss))).verdict == "FAIL"


def test_statistics_of_a_histogram_are_those_of_its_samples_within_a_bucket() -> None:
    samples = np.random.default_rng(1).uniform(10, 3000, 10_000).astype(np.float32)
    measurements = Measurements()
    for part in np.array_split(samples, 3):
        counts = np.bincount(bucket_of(part), minlength=HISTOGRAM_BUCKETS)
        measurements.add_histogram("report_latency", counts.tolist())
    for statistic, exact in (
        ("p(50)", np.percentile(samples, 50)),
        ("p(99)", np.percentile(samples, 99)),
        ("max", samples.max()),
        ("med", np.median(samples)),
    ):
        assert exact <= (measurements.statistic("report_latency", statistic) or 0) <= 1.26 * exact
    assert measurements.statistic("report_latency", "count") == 10_000
    assert measurements.statistic("report_latency", "avg") == pytest.approx(samples.mean(), rel=0.05)
    assert (measurements.statistic("report_latency", "min") or 0) <= samples.min()
