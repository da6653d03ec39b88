"""What `twinfleet diff` finds between two runs, or sets of runs: what got worse, and never what is noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import pytest

from scenarios.comparison import Change, compare
from scenarios.result import FaultRecord, Judgement, RunResult, WindowSample
from tests.unit.test_report import PASSED


def run(
    seed: int,
    *,
    metrics: Mapping[str, Mapping[str, float]] | None = None,
    slower: float = 1.0,
    outcome: str = "PASS",
) -> RunResult:
    """Return a run whose 95th percentile of latency varies about 100 ms, `slower` times."""
    draws = np.random.default_rng(seed)
    latencies = slower * draws.normal(100, 15, 200)
    windows = tuple(
        WindowSample(tick, tick / 30, 9900.0, 0.99, 0, None, latency_ms_p95=float(latency))
        for tick, latency in enumerate(latencies, 1)
    )
    measured = {"report_latency": {"p(95)": float(latencies.mean())}, **(metrics or {})}
    threshold = Judgement("report_latency: p(95) < 1s", outcome, "p(95) < 1s", "p(95) = x")  # type: ignore[arg-type]
    return dataclasses.replace(PASSED, windows=windows, metrics=measured, thresholds=(threshold,))


def found(changes: list[Change]) -> dict[str, str]:
    return {change.name: change.course for change in changes if change.course != "same"}


@pytest.mark.parametrize("seed", range(20))
def test_two_runs_of_the_same_differ_by_noise_only(seed: int) -> None:
    assert found(compare([run(seed)], [run(seed + 100)])) == {}


def test_a_run_that_is_slower_throughout_is_worse_and_the_other_way_round_better() -> None:
    before, after = [run(1)], [run(2, slower=1.3)]
    assert found(compare(before, after)) == {"report_latency p(95)": "worse"}
    assert found(compare(after, before)) == {"report_latency p(95)": "better"}


def test_several_runs_tell_their_own_noise() -> None:
    def runs(values: list[float]) -> list[RunResult]:
        return [run(seed, metrics={"device_errors": {"count": value}}) for seed, value in enumerate(values)]

    base = runs([10, 900, 20, 700, 15])
    assert "device_errors count" not in found(compare(base, runs([800, 5, 30, 1000, 300])))
    quiet = runs([10, 12, 11, 9, 10])
    assert found(compare(quiet, runs([30, 28, 31, 33, 29])))["device_errors count"] == "worse"


@pytest.mark.parametrize(
    ("before", "after", "course"), [(1000, 1050, None), (1000, 1300, "worse"), (0, 2, None), (0, 40, "worse")]
)
def test_of_single_runs_a_count_may_differ_by_chance(before: float, after: float, course: str | None) -> None:
    runs = [[run(1, metrics={"device_errors": {"count": count}})] for count in (before, after)]
    assert found(compare(*runs)).get("device_errors count") == course


def test_reports_of_a_device_that_is_offline_are_missed_several_in_a_row() -> None:
    runs = [[run(1, metrics={"reports_offline": {"count": count}})] for count in (1414, 1728, 2400)]
    assert found(compare(runs[0], runs[1])) == {}
    assert found(compare(runs[0], runs[2])) == {"reports_offline count": "worse"}


def test_less_of_what_is_wanted_is_worse_and_of_what_nobody_knows_it_is_a_change_only() -> None:
    def runs(count: float) -> list[RunResult]:
        return [run(1, metrics={name: {"count": count} for name in ("device_reports", "device_deltas")})]

    changes = found(compare(runs(1000), runs(500)))
    assert changes == {"device_reports count": "worse", "device_deltas count": "other"}


def test_what_was_met_before_and_is_not_now_is_worse_whatever_the_numbers_say() -> None:
    fault = FaultRecord("outage", "platform", "kill", "broker", 1, 1, 1, 1, recovery_s=2.0)
    before = dataclasses.replace(run(1), faults=(fault,))
    lost = dataclasses.replace(fault, recovery_s=None)
    after = dataclasses.replace(run(1, outcome="NO_DATA"), faults=(lost,))
    expected = {"recovered from outage": "worse", "report_latency: p(95) < 1s": "worse"}
    assert found(compare([before], [after])) == expected
    assert found(compare([before, after], [before])) == dict.fromkeys(expected, "better")


def test_runs_of_different_scenarios_are_not_compared() -> None:
    with pytest.raises(ValueError, match="different scenarios: first-light, second-light"):
        compare([PASSED], [dataclasses.replace(PASSED, scenario="second-light")])
