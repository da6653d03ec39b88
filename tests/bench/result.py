"""What a benchmark has measured, and how rounds are taken."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class BenchResult:
    """One figure beside its baseline; `ratio` is value / baseline_value, `bar` says what must hold, if anything.

    `details` are further lines to read, before the result itself.
    """

    bench: str
    value: float
    unit: str
    baseline: str
    baseline_value: float | None
    ratio: float | None
    bar: str
    holds: bool | None
    details: tuple[str, ...] = ()

    def sentence(self) -> str:
        """Return the result as a line to read, after its details."""
        text = f"{self.bench}: {_figure(self.value)} {self.unit}"
        if self.baseline_value is not None and self.ratio is not None:
            text += f"; {self.baseline}: {_figure(self.baseline_value)}; ratio {self.ratio:.2f}"
        verdict = {True: "holds", False: "DOES NOT HOLD", None: "no bar"}[self.holds]
        return "\n".join([*self.details, f"{text}  [{self.bar or 'for information'}: {verdict}]"])


def _figure(value: float) -> str:
    """Return a number as one reads it: small ones with two decimals."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


def rate_of(work: Callable[[], int]) -> float:
    """Return how many units of work `work` does a second; it returns how many it did."""
    start_s = time.perf_counter()
    count = work()
    return count / (time.perf_counter() - start_s)


def alternate(*works: Callable[[], int], rounds: int = 5) -> list[float]:
    """Return the median rate of each work over rounds in which they take turns, after a round that does not count."""
    rates: list[list[float]] = [[] for _ in works]
    for number in range(rounds + 1):
        for own, work in zip(rates, works, strict=True):
            rate = rate_of(work)
            if number:
                own.append(rate)
    return [statistics.median(own) for own in rates]
