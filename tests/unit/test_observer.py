"""What an observer keeps for a report is bounded, and loses no answer."""

from __future__ import annotations

from scenarios.load_orders import LoadNews
from scenarios.observer import Observer
from scenarios.reading import parse_scenario

SCENARIO = """
apiVersion: twinfleet/v1
kind: Scenario
metadata: {name: wired}
duration: 1m
groups: [{name: rooms, count: 9}]
"""


def test_latencies_of_a_long_run_on_the_wire_are_put_together_and_none_is_lost() -> None:
    observer = Observer(parse_scenario(SCENARIO))
    for number in range(5_000):
        observer.on_wire(LoadNews(ingest={100 + number % 3: 2}))
    samples = observer.latencies()
    assert sum(sample.count for sample in samples) == 10_000
    assert {sample.source for sample in samples} == {"wire"}
    assert all(sample.ms_med <= sample.ms_p95 <= sample.ms_p99 <= sample.ms_max for sample in samples)
    assert len(samples) <= 601
