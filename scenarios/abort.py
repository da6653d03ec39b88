"""When a run is to end before its time: conditions on the last window of ticks that have held for long enough."""

from __future__ import annotations

from collections.abc import Sequence

from scenarios.metrics import Measurements, metric_of
from scenarios.spec import AbortRule


class AbortWatch:
    """Watches the rules of one run. `recent` takes the samples of the present window; all methods work in place."""

    def __init__(self, rules: Sequence[AbortRule], so_far: Measurements) -> None:
        self.recent = Measurements()
        self._rules = rules
        self._so_far = so_far
        self._held_since_s: dict[int, float] = {}

    def on_window(self, begin_s: float, end_s: float) -> str:
        """Take in that a window of virtual time has ended; return why the run must end, or nothing."""
        self.recent.measured_s = end_s - begin_s
        reason = ""
        for place, rule in enumerate(self._rules):
            value = self._value(rule)
            # A window without a sample says nothing, neither that it holds nor that it does not.
            if value is None:
                continue
            if not rule.condition.comparison.holds(value):
                self._held_since_s.pop(place, None)
                continue
            # Known to hold at the window's end: when it began to within it, nobody knows.
            held_s = end_s - self._held_since_s.setdefault(place, end_s)
            if held_s >= rule.for_s and not reason:
                reason = f"{rule.metric}: {rule.condition.text} held for {held_s:g} s, at {end_s:g} s"
        self.recent = Measurements()
        return reason

    def _value(self, rule: AbortRule) -> float | None:
        is_count = metric_of(rule.metric).kind == "counter" and rule.condition.statistic == "count"
        return (self._so_far if is_count else self.recent).statistic(rule.metric, rule.condition.statistic)
