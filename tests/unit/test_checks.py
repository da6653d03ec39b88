"""Verdicts: each threshold, check and assertion can pass, and can fail."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from actors.fleet import LocalFleet
from scenarios.checks import (
    Invariants,
    contains,
    is_as_expected,
    judge_assertion,
    judge_threshold,
    number,
    shown,
    verdict_of,
)
from scenarios.metrics import CATALOGUE, Comparison, Condition, Measurements
from scenarios.result import EXIT_CODES, Outcome
from scenarios.spec import CHECKS, Assertion, Threshold
from twins.messages import TickOrder, TickSummary
from twins.model import Group
from twins.shipped import model_named

GROUP = Group(
    "rooms", model_named("thermostat"), "room-{i:04d}", 1000, seed=1, start_s=0, report_every_ticks=10
)


def threshold(metric: str, text: str) -> Threshold:
    return Threshold(metric, Condition.parse(text, CATALOGUE[metric]))


def outcome_of(metric: str, text: str, *samples: float) -> str:
    measurements = Measurements()
    for sample in samples:
        measurements.add(metric, sample)
    measurements.measured_s = 10.0
    return judge_threshold(threshold(metric, text), measurements).outcome


@pytest.mark.parametrize(
    ("metric", "text", "samples", "outcome"),
    [
        ("reports", "count == 6", (1, 2, 3), "PASS"),
        ("reports", "count == 7", (1, 2, 3), "FAIL"),
        ("reports", "rate > 0.5", (1, 2, 3), "PASS"),
        ("reports", "rate > 0.7", (1, 2, 3), "FAIL"),
        ("reports_lost", "count == 0", (0, 0), "PASS"),
        ("reports_lost", "count == 0", (0, 1), "FAIL"),
        ("reports_lost", "count == 0", (), "NO_DATA"),
        ("connected_ratio", "value > 90%", (0.5, 0.95), "PASS"),
        ("connected_ratio", "min > 90%", (0.5, 0.95), "FAIL"),
        ("connected_ratio", "max < 90%", (0.5, 0.95), "FAIL"),
        ("connected_ratio", "avg > 0.7", (0.5, 0.95), "PASS"),
        ("connected_ratio", "min > 0", (), "NO_DATA"),
        ("tick_lag", "max < 2s", (10, 1999), "PASS"),
        ("tick_lag", "max < 2s", (10, 2000), "FAIL"),
        ("tick_lag", "med < 20", (10, 11, 2000), "PASS"),
        ("tick_lag", "min < 10", (10, 11, 2000), "FAIL"),
        ("tick_lag", "avg < 500ms", (10, 11, 2000), "FAIL"),
        ("tick_lag", "count == 3", (10, 11, 2000), "PASS"),
        ("tick_lag", "p(99) < 2s", (), "NO_DATA"),
        ("delta_to_reported", "max < 5s", (), "NO_DATA"),
    ],
)
def test_a_threshold_holds_a_statistic_to_its_bound(
    metric: str, text: str, samples: tuple[float, ...], outcome: str
) -> None:
    assert outcome_of(metric, text, *samples) == outcome


def test_a_percentile_is_that_of_all_samples_never_an_average_of_percentiles() -> None:
    quick, slow = [1.0] * 990, [1000.0] * 10
    assert outcome_of("device_round_trip", "p(95) <= 1", *quick, *slow) == "PASS"
    assert outcome_of("device_round_trip", "p(99.5) < 1000", *slow, *quick) == "FAIL"


def test_samples_outside_the_measured_time_do_not_count() -> None:
    measurements = Measurements()
    measurements.is_counting = False
    measurements.add("tick_lag", 5000)
    measurements.add("reports", 1)
    measurements.is_counting = True
    measurements.add("tick_lag", 1)
    assert measurements.statistics() == {
        "tick_lag": {"count": 1, "min": 1, "avg": 1, "med": 1, "p(95)": 1, "p(99)": 1, "max": 1}
    }


def summary(ticks: int, **changes: int) -> TickSummary:
    values: dict[str, Any] = {
        "device_ticks": 1000 * ticks,
        "reports_due": 100 * ticks,
        "reports_arrived": 100 * ticks - 5,
    }
    return TickSummary(**(values | {"reports_offline": 5} | changes))


def test_reports_that_add_up_are_accounted_for() -> None:
    invariants = Invariants([GROUP])
    for first_tick in range(0, 60, 20):
        invariants.on_window(TickOrder("rooms", first_tick, 20), summary(20))
    judgement = invariants.judge("every_report_accounted_for")
    assert judgement.outcome == "PASS"
    assert judgement.actual == "6,000 due = 5,985 arrived + 15 offline + 0 lost"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"device_ticks": 19_999}, "19999 device-ticks happened, 20000 were ordered"),
        ({"reports_due": 1999, "reports_arrived": 1994}, "1999 reports were due so far, it must be 2000"),
        ({"reports_due": 2001, "reports_arrived": 1996}, "2001 reports were due so far"),
        ({"reports_arrived": 2000}, "5 more reports were counted so far than were due"),
        ({"reports_offline": 6}, "1 more reports"),
        ({"reports_arrived": 1990}, "5 fewer reports"),
    ],
)
def test_reports_that_do_not_add_up_fail(change: dict[str, int], words: str) -> None:
    invariants = Invariants([GROUP])
    invariants.on_window(TickOrder("rooms", 0, 20), summary(20, **change))
    invariants.on_window(TickOrder("rooms", 20, 20), summary(20))
    judgement = invariants.judge("every_report_accounted_for")
    assert judgement.outcome == "FAIL"
    assert words in judgement.actual


def test_a_window_that_a_fleet_left_out_fails() -> None:
    invariants = Invariants([GROUP])
    invariants.on_window(TickOrder("rooms", 0, 10), summary(10))
    invariants.on_window(TickOrder("rooms", 10, 10), TickSummary())
    assert invariants.judge("every_report_accounted_for").outcome == "FAIL"


def test_a_loss_is_accounted_for_as_a_loss() -> None:
    invariants = Invariants([GROUP])
    invariants.on_window(TickOrder("rooms", 0, 20), summary(20, reports_arrived=1900, reports_lost=95))
    judgement = invariants.judge("every_report_accounted_for")
    assert (judgement.outcome, judgement.actual[-6:]) == ("PASS", "5 lost")


@pytest.mark.parametrize(
    ("versions", "outcome"),
    [
        ([("a", 1), ("a", 2), ("b", 1), ("a", 2)], "PASS"),
        ([("a", 2), ("b", 9), ("a", 1), ("a", 3)], "FAIL"),
        ([], "NO_DATA"),
    ],
)
def test_the_version_of_a_device_never_decreases(versions: list[tuple[str, int]], outcome: str) -> None:
    invariants = Invariants([])
    for thing_name, version in versions:
        invariants.on_accepted(thing_name, version)
    assert invariants.judge("version_never_decreases").outcome == outcome


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_that_observed_nothing_has_no_data(name: str) -> None:
    assert Invariants([GROUP]).judge(name).outcome == "NO_DATA"


@pytest.mark.parametrize(
    ("expect", "value", "is_met"),
    [
        (1, 1, True),
        (1, 1.0, True),
        (1, Decimal(1), True),
        (1, True, False),
        (True, 1, False),
        (True, True, True),
        (0, False, False),
        (0, None, False),
        (None, None, True),
        (None, 0, False),
        ("2.0.0", "2.0.0", True),
        ("1", 1, False),
        (23.5, 23.5, True),
        (23.5, 23.50001, False),
        (Comparison.parse("> 0"), 1, True),
        (Comparison.parse("> 0"), 0, False),
        (Comparison.parse("> 0"), Decimal("0.1"), True),
        (Comparison.parse("> 0"), True, False),
        (Comparison.parse("> 0"), None, False),
        (Comparison.parse("> 0"), "1", False),
        (Comparison.parse("!= 0"), float("nan"), False),
    ],
)
def test_values_are_compared_as_json_compares_them(expect: Any, value: Any, *, is_met: bool) -> None:
    assert is_as_expected(expect, value) is is_met


@pytest.mark.parametrize(
    ("actual", "wanted", "does"),
    [
        ({"a": 1, "b": 2}, {"a": 1.0}, True),
        ({"a": 1}, {"a": True}, False),
        ({"a": 1}, {"b": 1}, False),
        ({}, {"b": None}, False),
        ({"a": {"b": [1, 2], "c": 3}}, {"a": {"b": [1, 2]}}, True),
        ({"a": [1, 2]}, {"a": [1]}, False),
        (5, {"a": 1}, False),
    ],
)
def test_a_state_contains_what_is_awaited(actual: Any, wanted: Any, *, does: bool) -> None:
    assert contains(actual, wanted) is does


@pytest.mark.parametrize(
    ("sql", "expect", "outcome", "actual"),
    [
        ("select count(*) from twins", 1000, "PASS", "1,000"),
        ("select count(*) from twins", 999, "FAIL", "1,000"),
        ("select count(*) > 0 from twins", 1, "FAIL", "True"),
        ("select sum(1) from twins", Comparison.parse(">= 1000"), "PASS", "1,000"),
        ("select name from twins where name = 'nobody'", None, "FAIL", "no row"),
        ("select name from twins order by name", "room-0000", "PASS", "'room-0000'"),
        ("select reported_temprature from twins", 1, "FAIL", "the question failed: Binder Error"),
        ("select max(count) from telemetry_recent where field = 'temperature'", 1, "PASS", "1"),
        ("delete from twins", 1, "FAIL", "the question failed: only SELECT"),
    ],
)
async def test_an_assertion_judges_the_first_value_of_the_answer(
    sql: str, expect: Any, outcome: str, actual: str
) -> None:
    fleet = LocalFleet(2)
    await fleet.create_group(GROUP)
    await fleet.tick([TickOrder("rooms", 0, 10, {"set_point": 20.0})])
    judgement = await judge_assertion(Assertion("it", sql, expect), fleet)
    assert judgement.outcome == outcome
    assert judgement.actual.startswith(actual)


@pytest.mark.parametrize(
    ("outcomes", "has_run", "verdict"),
    [
        (["PASS", "PASS"], True, "PASS"),
        (["PASS", "FAIL"], True, "FAIL"),
        (["PASS", "NO_DATA"], True, "FAIL"),
        ([], True, "INCONCLUSIVE"),
        (["PASS"], False, "NOTHING_RAN"),
    ],
)
def test_the_verdict_is_pass_only_if_something_was_judged_and_all_was_met(
    outcomes: list[Outcome], verdict: str, *, has_run: bool
) -> None:
    assert verdict_of(outcomes, has_run=has_run)[0] == verdict


def test_exit_codes_are_those_of_the_scenario_language() -> None:
    assert EXIT_CODES == {
        "PASS": 0,
        "FAIL": 1,
        "INCONCLUSIVE": 3,
        "ABORTED": 4,
        "NOTHING_RAN": 5,
        "INTERRUPTED": 130,
    }


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (5951303, "5,951,303"),
        (0.98770, "0.9877"),
        (1234.56, "1,234.6"),
        (float("nan"), "nan"),
        (Decimal(2), "2"),
    ],
)
def test_numbers_are_shown_for_people(value: float, text: str) -> None:
    assert number(value) == text


def test_statistics_are_shown_with_their_units() -> None:
    assert shown("tick_lag", "max", 1500) == "1.5 s"
    assert shown("tick_lag", "max", 12.34) == "12.3 ms"
    assert shown("tick_lag", "count", 1500) == "1,500"
    assert shown("connected_ratio", "min", 0.98774) == "98.77%"
    assert shown("reports", "rate", 10.0) == "10 /s"


def test_the_rate_of_errors_is_their_share_of_all_attempts() -> None:
    measurements = Measurements()
    measurements.measured_s = 10.0
    measurements.add("connect_errors", 0)
    assert judge_threshold(threshold("connect_errors", "rate < 20%"), measurements).outcome == "NO_DATA"
    measurements.add("connect_errors", 3)
    for _ in range(9):
        measurements.add("connect_latency", 20.0)
    judged = judge_threshold(threshold("connect_errors", "rate > 20%"), measurements)
    assert (judged.outcome, judged.actual) == ("PASS", "rate = 25.00%")
    assert measurements.statistic("connect_errors", "count") == 3
