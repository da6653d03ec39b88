"""The rollout: every transition, legal or not; groups, gates, windows, budgets; and bad cohorts that it finds."""

from __future__ import annotations

import datetime as dt
from itertools import product
from typing import Final

import numpy as np
import pytest
from numpy.typing import NDArray

from twins import rollout_states as states
from twins.errors import RolloutError
from twins.rollout import ErrorCounts, Progress, Rollout
from twins.rollout_cohorts import failing_cohorts, look_chance
from twins.rollout_plan import AbortRule, Group, HealthGate, Plan, Rate, Window

ALL: Final = (Group("all", percent=100),)
FAST: Final = Rate(per_minute=1e9)


def _rollout(
    plan: Plan, count: int, *, sites: list[int] | None = None, zones: list[int] | None = None
) -> Rollout:
    rollout = Rollout(plan, made_at_s=0, seed=1)
    rollout.join(
        cohorts=(np.arange(count) % 4).astype(np.uint16),
        sites=np.array(sites or [-1] * count, np.int32),
        zones=np.array(zones or [0] * count, np.uint8),
    )
    rollout.command("start", 0)
    return rollout


def _say(rollout: Rollout, now_s: float, rows: NDArray[np.int32], word: str) -> list[int]:
    """Let devices say a word in their present attempt, and return the rows that are ordered in that step."""
    heard = np.full(len(rows), states.HEARD_CODES[word], np.uint8)
    ordered = rollout.step(now_s, Progress(rows, rollout.columns["attempt"][rows], heard)).rows
    return [int(row) for row in ordered]


@pytest.mark.parametrize(("heard", "status"), list(product(states.HEARD, states.STATUSES)))
def test_a_word_moves_a_device_as_the_table_says_and_no_other_way(heard: str, status: str) -> None:
    rollout = _rollout(Plan(ALL, FAST, health=HealthGate(60, 600)), 1)
    row = np.zeros(1, np.int32)
    rollout.command("pause", 0)
    rollout.columns.move(row, states.CODES[status])

    _say(rollout, 1, row, heard)

    expected = states.TRANSITIONS[heard].get(status, status)
    assert states.STATUSES[rollout.columns["status"][0]] == expected
    assert rollout.ignored_count == (0 if status in states.TRANSITIONS[heard] else 1)


@pytest.mark.parametrize(("name", "state"), list(product(states.COMMANDS, states.ROLLOUT_STATES)))
def test_an_operator_may_do_what_the_state_allows_and_nothing_else(name: str, state: str) -> None:
    rollout = _rollout(Plan((Group("one", percent=50), Group("two", percent=100)), FAST), 2)
    rollout.state, rollout._resumed_to = state, states.ROLLING
    if state in states.COMMANDS[name]:
        rollout.command(name, 1)
        assert name == "retry" or rollout.state != state
    else:
        with pytest.raises(RolloutError, match=f"{state} can't {name}"):
            rollout.command(name, 1)
        assert rollout.state == state


def test_a_word_of_another_attempt_changes_nothing() -> None:
    rollout = _rollout(Plan(ALL, FAST), 1)
    rollout.step(1)
    heard = np.array([states.HEARD_CODES[states.UPDATED]], np.uint8)
    rollout.step(2, Progress(np.zeros(1, np.int32), np.array([9], np.uint8), heard))
    assert rollout.status_counts()[states.ORDERED] == 1


def test_groups_follow_each_other_by_their_gates_soak_time_and_approval() -> None:
    groups = (
        Group("first", percent=10, success_share_min=0.9, soak_s=100, needs_approval=True),
        Group("rest", percent=100),
    )
    rollout = _rollout(Plan(groups, FAST), 100)
    first = rollout.step(1).rows
    assert len(first) == 10
    _say(rollout, 2, first, states.UPDATED)
    assert rollout.state == states.SOAKING
    rollout.step(101)
    assert rollout.state == states.SOAKING
    rollout.step(102)
    assert rollout.state == states.AWAITING_APPROVAL
    rollout.command("approve", 103)
    rest = rollout.step(104).rows
    assert len(rest) == 90
    _say(rollout, 105, rest, states.UPDATED)
    assert rollout.state == states.COMPLETED
    # A device that rolls itself back afterwards has failed, whatever it had said.
    _say(rollout, 500, rest[:1], states.ROLLED_BACK)
    assert rollout.status_counts()[states.FAILED] == 1


def test_a_group_that_misses_its_gate_pauses_the_rollout_and_retry_gives_it_another_chance() -> None:
    rollout = _rollout(Plan((Group("all", percent=100, success_share_min=0.9),), FAST), 4)
    rows = rollout.step(1).rows
    _say(rollout, 2, rows[:1], states.FAILED)
    _say(rollout, 3, rows[1:], states.UPDATED)
    assert rollout.state == states.PAUSED
    rollout.command("retry", 4)
    rollout.command("resume", 4)
    assert _say(rollout, 5, rows[:0], states.UPDATED) == [rows[0]]
    _say(rollout, 6, rows[:1], states.UPDATED)
    assert rollout.state == states.COMPLETED


def test_the_health_query_has_to_hold_without_a_break() -> None:
    rollout = _rollout(Plan(ALL, FAST, health=HealthGate(hold_s=100, timeout_s=500)), 2)
    rows = rollout.step(1).rows
    _say(rollout, 10, rows, states.UPDATED)
    _say(rollout, 20, rows, states.HEALTHY)
    _say(rollout, 60, rows[:1], states.SICK)
    rollout.step(120)
    assert rollout.status_counts()[states.SUCCEEDED] == 1
    rollout.step(509)
    assert rollout.status_counts()[states.UPDATED] == 1
    rollout.step(510)
    assert rollout.status_counts()[states.UNHEALTHY] == 1


def test_an_order_without_an_answer_is_repeated_until_its_time_is_up() -> None:
    rollout = _rollout(Plan(ALL, FAST, timeout_s=100, repeat_s=40), 1)
    ordered = [now for now in range(1, 200) if len(rollout.step(now).rows)]
    assert ordered == [1, 41, 81]
    assert rollout.status_counts()[states.TIMED_OUT] == 1


def test_too_many_failures_abort_and_every_device_that_was_asked_is_sent_back() -> None:
    plan = Plan(
        ALL,
        Rate(per_minute=600),
        aborts=(AbortRule(frozenset({states.FAILED}), 0.2, 10),),
        is_rolled_back=True,
    )
    rollout = _rollout(plan, 100)
    rows = rollout.step(2).rows
    heard = np.full(4, states.HEARD_CODES[states.FAILED], np.uint8)
    orders = rollout.step(3, Progress(rows[:4], np.ones(4, np.uint8), heard))
    assert rollout.reason == "4 of 20 devices are FAILED: 20.0% was the limit"
    assert sorted(orders.back_rows) == sorted(rows)
    _say(rollout, 4, rows, states.RESTORED)
    assert rollout.state == states.RETURNED
    assert rollout.status_counts()[states.BACK] == 20


def test_updates_begin_only_while_the_window_is_open_where_the_device_is() -> None:
    east = dt.timezone(dt.timedelta(hours=2))
    night = Window(frozenset(range(7)), start_minute=23 * 60, duration_minutes=120)
    rollout = _rollout(Plan(ALL, FAST, windows=(night,), zones=(dt.UTC, east)), 4, zones=[0, 1, 0, 1])
    got = {hour: sorted(rollout.step(hour * 3600).rows.tolist()) for hour in range(1, 24)}
    assert {hour: rows for hour, rows in got.items() if rows} == {21: [1, 3], 23: [0, 2]}


def test_a_site_never_misses_more_devices_than_its_budget() -> None:
    rollout = _rollout(Plan(ALL, FAST, site_budget=2), 10, sites=[0] * 5 + [1] * 3 + [-1] * 2)
    waiting = rollout.step(1).rows
    assert sorted(rollout.columns["site"][waiting]) == [-1, -1, 0, 0, 1, 1]
    assert rollout.held_counts() == {"window": 0, "site": 4}
    for now in range(2, 10):
        waiting = np.append(waiting[1:], _say(rollout, now, waiting[:1], states.UPDATED)).astype(np.int32)
        assert rollout.columns.site_disrupted.max() <= 2
    assert rollout.held_counts()["site"] == 0


def test_an_exponential_rate_grows_with_successes_up_to_its_maximum() -> None:
    rate = Rate(per_minute=10, factor=2, grow_after_count=100, per_minute_max=50)
    assert [rate.now(count) for count in (0, 99, 100, 200, 300, 10**9)] == [10, 10, 20, 40, 50, 50]


def test_devices_that_join_a_continuous_rollout_are_ordered_when_their_group_is() -> None:
    rollout = _rollout(Plan(ALL, FAST, is_continuous=True), 2)
    _say(rollout, 2, rollout.step(1).rows, states.UPDATED)
    new = rollout.join(
        cohorts=np.zeros(1, np.uint16), sites=np.array([-1], np.int32), zones=np.zeros(1, np.uint8)
    )
    assert rollout.step(3).rows.tolist() == new.tolist()
    with pytest.raises(RolloutError, match="snapshot"):
        _rollout(Plan(ALL, FAST), 1).join(
            cohorts=np.zeros(1, np.uint16), sites=np.array([-1], np.int32), zones=np.zeros(1, np.uint8)
        )


def test_more_errors_than_the_control_cohort_stop_a_rollout() -> None:
    hours = np.array([100.0, 100.0])
    for own, state in (([5, 30], states.ABORTED), ([5, 6], states.ROLLING)):
        rollout = _rollout(Plan(ALL, FAST), 8)
        errors = ErrorCounts(np.array(own), hours, np.array([5, 5]), hours)
        rollout.step(1, Progress(errors=errors))
        assert rollout.state == state
        assert [suspect.cohort for suspect in rollout.suspects] == ([1] if state == states.ABORTED else [])


@pytest.mark.parametrize(
    "plan",
    [
        Plan((), FAST),
        Plan((Group("a", percent=5, count=3),), FAST),
        Plan((Group("a", percent=50), Group("b", percent=10)), FAST),
        Plan(ALL, Rate(per_minute=0)),
        Plan(ALL, FAST, health=HealthGate(100, 50)),
        Plan(ALL, FAST, site_budget=0),
        Plan(ALL, FAST, windows=(Window(frozenset(), 0, 60),)),
    ],
)
def test_a_plan_that_cannot_be_is_refused(plan: Plan) -> None:
    with pytest.raises(RolloutError):
        Rollout(plan, made_at_s=0)


def _looks(luck: np.random.Generator, chances: NDArray[np.float64]) -> set[int]:
    """Return the cohorts that are named in 20 looks at 10,000 devices in 20 cohorts that fail by these chances."""
    started, failed, named = np.zeros(20, np.int64), np.zeros(20, np.int64), set()
    for look in range(1, 21):
        more = np.full(20, 25)
        started += more
        failed += luck.binomial(more, chances)
        suspects = failing_cohorts(started, failed, share_max=0.02, chance=look_chance(look))
        named |= {suspect.cohort for suspect in suspects}
    return named


def test_a_bad_revision_is_named_under_the_threshold_and_a_good_release_is_stopped_once_in_a_hundred_at_most() -> (
    None
):
    bad = np.zeros(20)
    bad[7] = 0.3
    good = np.full(20, 0.02)
    lucks = [np.random.default_rng(seed) for seed in range(100)]
    assert sum(_looks(luck, bad) == {7} for luck in lucks) == 100
    assert sum(bool(_looks(luck, good)) for luck in lucks) <= 1
