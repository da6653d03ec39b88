"""Histograms that processes fill and add up."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenarios.load_histogram import Histogram, bucket_end, bucket_of
from scenarios.metrics import Measurements

DURATIONS = st.lists(st.floats(0, 1e5), min_size=1, max_size=60)


@given(st.integers(0, 10**12))
def test_a_value_lies_in_its_bucket_and_is_known_to_a_thirty_second(value: int) -> None:
    bucket = bucket_of(value)
    assert bucket_end(bucket - 1) <= value < bucket_end(bucket)
    assert bucket_end(bucket) - bucket_end(bucket - 1) <= max(1, value / 32)


@given(DURATIONS, DURATIONS)
def test_two_histograms_together_are_the_one_of_all_durations(
    first: list[float], second: list[float]
) -> None:
    whole, one, other = Histogram(), Histogram(), Histogram()
    for histogram, durations in ((whole, first + second), (one, first), (other, second)):
        for duration_s in durations:
            histogram.add(duration_s)
    one.merge(other.counts)
    assert one.counts == whole.counts
    assert one.count == len(first) + len(second)


@given(DURATIONS, st.sampled_from([0.0, 0.5, 0.95, 0.99, 1.0]))
def test_a_quantile_is_that_of_the_durations_or_at_most_three_percent_above(
    durations: list[float], share: float
) -> None:
    histogram = Histogram()
    for duration_s in durations:
        histogram.add(duration_s)
    exact = sorted(durations)[max(0, math.ceil(share * len(durations)) - 1)]
    assert exact <= histogram.quantile_s(share) <= exact * 33 / 32 + 2e-6


def test_a_run_has_percentiles_of_all_processes_together_and_none_without_samples() -> None:
    measurements = Measurements()
    assert measurements.statistic("ingest_latency", "p(99)") is None
    for process in range(2):
        histogram = Histogram()
        for number in range(50):
            histogram.add((process * 50 + number) / 1000)
        measurements.merge("ingest_latency", histogram.take())
        assert histogram.count == 0
    assert measurements.statistic("ingest_latency", "count") == 100
    # The average of both processes' 90 % would be 69 ms.
    assert measurements.statistic("ingest_latency", "p(90)") == pytest.approx(89, rel=0.04)
    assert measurements.statistic("ingest_latency", "med") == pytest.approx(49, rel=0.04)
    assert measurements.statistic("ingest_latency", "max") == pytest.approx(99, rel=0.04)
    assert measurements.statistic("ingest_latency", "avg") == pytest.approx(49.5, rel=0.04)
