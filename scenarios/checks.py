"""From what was observed to PASS, FAIL or NO_DATA: thresholds, checks and assertions.

A threshold or check without a sample has NO_DATA, and that fails: what was not measured was not met.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Final

from actors.asking import ask_fleet
from actors.errors import OperatorError
from actors.fleet import Fleet
from scenarios.metrics import Comparison, Measurements, metric_of
from scenarios.result import Judgement, Outcome, Verdict
from scenarios.spec import CHECKS, Assertion, Threshold
from twins.messages import TickOrder, TickSummary
from twins.model import Group

# An assertion is a question of a person about the whole fleet: seconds, even for millions of twins.
_SQL_TIMEOUT_S: Final = 60.0
# Only the first row is judged; this bounds what a forgotten aggregate costs.
_SQL_ROW_MAX: Final = 1_000_000


def judge_threshold(threshold: Threshold, measurements: Measurements) -> Judgement:
    """Return whether the condition holds over all samples of its metric."""
    metric, condition = metric_of(threshold.metric), threshold.condition
    value = measurements.statistic(threshold.metric, condition.statistic)
    name = f"{threshold.metric}: {condition.text}"
    if value is None:
        return Judgement(name, "NO_DATA", condition.text, "no samples", metric.meaning)
    outcome: Outcome = "PASS" if condition.comparison.holds(value) else "FAIL"
    actual = f"{condition.statistic} = {shown(metric.name, condition.statistic, value)}"
    return Judgement(name, outcome, condition.text, actual, metric.meaning)


class Invariants:
    """Watches a run for what must never happen, and keeps the first violation of each check."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self._groups = {group.name: group for group in groups}
        self._ticks = dict.fromkeys(self._groups, 0)
        self._totals = dict.fromkeys(self._groups, TickSummary())
        self._untold = dict.fromkeys(self._groups, 0)
        self._versions: dict[str, int] = {}
        self._reply_count = 0
        self._violations: dict[str, str] = {}

    def on_window(self, order: TickOrder, summary: TickSummary, *, is_broken: bool = False) -> None:
        """Hold one window of a group to what was ordered.

        `is_broken`: a process may have died that had run ticks and told nobody; they are left out of the account.
        """
        group, name = self._groups[order.group], order.group
        self._ticks[name] += order.tick_count
        self._totals[name] = self._totals[name].then(summary)
        place = f"group {name}, ticks {order.first_tick} to {order.first_tick + order.tick_count - 1}"
        device_ticks = group.count * order.tick_count
        if is_broken and summary.device_ticks < device_ticks:
            self._untold[name] += device_ticks - summary.device_ticks
        elif summary.device_ticks != device_ticks:
            self._violate(
                f"{place}: {summary.device_ticks} device-ticks happened, {device_ticks} were ordered"
            )
        missing = self._totals[name].reports_due - self._totals[name].reports_accounted
        # What was under way out of ticks that nobody was told of arrives all the same.
        if abs(missing) > self._untold[name]:
            more = "fewer" if missing > 0 else "more"
            self._violate(f"{place}: {abs(missing)} {more} reports were counted so far than were due")
        # A device reports once in its period, wherever in it: so many reports are due, counted without the fleet.
        fewest, most = _due(group, self._ticks[name])
        due = self._totals[name].reports_due
        # Each device is due once a tick at most, also in those that nobody was told of.
        if not fewest - self._untold[name] <= due <= most:
            self._violate(f"{place}: {due} reports were due so far, it must be {fewest} to {most}")

    def on_settled(self, group: str, summary: TickSummary) -> None:
        """Add what became of a group's reports after its last tick."""
        self._totals[group] = self._totals[group].then(summary)
        missing = self._totals[group].reports_due - self._totals[group].reports_accounted
        if missing:
            self._violate(f"group {group}: after the end, {missing} reports due are not accounted for")

    def _violate(self, text: str) -> None:
        self._violations.setdefault("every_report_accounted_for", text)

    def on_accepted(self, thing_name: str, version: int) -> None:
        """Hold the version in a reply to a real device to the one before it."""
        before = self._versions.get(thing_name, 0)
        if version < before:
            text = f"{thing_name}: version {version} was accepted after version {before}"
            self._violations.setdefault("version_never_decreases", text)
        self._versions[thing_name] = version
        self._reply_count += 1

    def judge(self, name: str) -> Judgement:
        """Return whether the check of that name held so far."""
        counts = {
            "version_never_decreases": self._reply_count,
            "every_report_accounted_for": sum(self._ticks.values()),
        }
        violation = self._violations.get(name)
        if violation is not None:
            return Judgement(name, "FAIL", CHECKS[name], violation)
        if not counts.get(name):
            return Judgement(name, "NO_DATA", CHECKS[name], "nothing was observed")
        return Judgement(name, "PASS", CHECKS[name], self._summary(name))

    def _summary(self, name: str) -> str:
        if name == "version_never_decreases":
            return f"{self._reply_count} replies"
        total = sum(self._totals.values(), TickSummary())
        others = total.reports_accounted - total.reports_arrived - total.reports_offline - total.reports_lost
        untold = sum(self._untold.values())
        return (
            f"{total.reports_due:,} due = {total.reports_arrived:,} arrived + {total.reports_offline:,} offline "
            f"+ {total.reports_lost:,} lost"
            + (f" + {others:,} under way, kept or refused" if others else "")
            + (f"; {untold:,} device-ticks left out, whose process died before it told" if untold else "")
        )


def _due(group: Group, tick_count: int) -> tuple[int, int]:
    period = group.report_every_ticks
    most = group.count * -(-tick_count // period)
    # Who reports what has changed only, may have nothing to say.
    return 0 if group.model.reporting.dead_bands else group.count * (tick_count // period), most


async def judge_assertion(assertion: Assertion, fleet: Fleet) -> Judgement:
    """Return whether the first value of the answer is as expected; no row fails, so does a question with a mistake."""
    expected = (
        assertion.expect.text if isinstance(assertion.expect, Comparison) else _literal(assertion.expect)
    )
    try:
        answer = await ask_fleet(fleet, assertion.sql, timeout_s=_SQL_TIMEOUT_S, row_max=_SQL_ROW_MAX)
    except OperatorError as error:
        return Judgement(assertion.name, "FAIL", expected, f"the question failed: {error}", assertion.sql)
    if answer.num_rows == 0 or answer.num_columns == 0:
        return Judgement(assertion.name, "FAIL", expected, "no row", assertion.sql)
    value = answer.column(0)[0].as_py()
    outcome: Outcome = "PASS" if is_as_expected(assertion.expect, value) else "FAIL"
    return Judgement(assertion.name, outcome, expected, _literal(value), assertion.sql)


def is_as_expected(expect: Comparison | str | int | float | bool | None, value: Any) -> bool:
    """Tell whether a value is the expected one as JSON compares: 1 is 1.0, but true is not 1, and '1' is not 1."""
    is_number = isinstance(value, (int, float, Decimal)) and not isinstance(value, bool)
    if isinstance(expect, Comparison):
        return is_number and expect.holds(float(value))
    if isinstance(expect, (int, float)) and not isinstance(expect, bool):
        return is_number and bool(value == expect)
    return type(value) is type(expect) and bool(value == expect)


def _literal(value: Any) -> str:
    is_number = isinstance(value, (int, float, Decimal)) and not isinstance(value, bool)
    return number(value) if is_number else repr(value)


def verdict_of(outcomes: Sequence[Outcome], *, has_run: bool) -> tuple[Verdict, str]:
    """Return the verdict of a run that came to its end, and why; what nobody judged is inconclusive."""
    if not has_run:
        return "NOTHING_RAN", "the scenario has neither groups nor devices"
    if not outcomes:
        return (
            "INCONCLUSIVE",
            "the scenario has no threshold, check, assertion or step, so nothing was judged",
        )
    bad_count = sum(outcome != "PASS" for outcome in outcomes)
    if bad_count:
        return "FAIL", f"{bad_count} of {len(outcomes)} expectations were not met"
    every = (
        "the one expectation was met" if len(outcomes) == 1 else f"all {len(outcomes)} expectations were met"
    )
    return "PASS", every


def number(value: float | Decimal) -> str:
    """Return a number for people: four significant digits, thousands separated, whole numbers in full."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value):
        return f"{int(value):,}"
    rounded = float(value)
    return f"{rounded:,.4g}" if abs(rounded) < 1000 else f"{rounded:,.1f}"


def shown(name: str, statistic: str, value: float) -> str:
    """Return a statistic of a metric for people, with its unit."""
    if metric_of(name).name.endswith("_ratio") or (metric_of(name).beside and statistic == "rate"):
        return f"{value:.2%}"
    if statistic == "rate":
        return f"{number(value)} /s"
    if metric_of(name).unit == "ms" and statistic != "count":
        return f"{number(value / 1000)} s" if value >= 1000 else f"{value:.3g} ms"
    return number(value)


def contains(actual: Any, wanted: Any) -> bool:
    """Tell whether a JSON value is as wanted: an object must have the wanted keys, and may have others."""
    if isinstance(wanted, dict):
        return isinstance(actual, dict) and all(
            key in actual and contains(actual[key], value) for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        return isinstance(actual, list) and len(actual) == len(wanted) and all(map(contains, actual, wanted))
    return is_as_expected(wanted, actual)
