"""Whether 2,000 devices report the same over the wire as in the engine: one scenario, both paths, one platform.

The seed says which report is due, lost by the link, or not sent because its device is offline; so the counts of both
paths are equal, to the last report. What the wire takes for a report stands beside it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from scenarios.reading import parse_scenario
from scenarios.running import on_path, run_on_platform
from tests.bench.result import BenchResult
from tests.bench.running import platform

DEVICE_COUNT = 2_000
SCENARIO = """
apiVersion: twinfleet/v1
kind: Scenario
metadata: {{name: both-paths}}
seed: 11
duration: 40s
clock: {{mode: realtime}}
groups:
  - {{name: rooms, count: {count}, report_every: 10s, network: {{loss: 1%}}}}
steps:
  - {{at: 15s, set_desired: {{group: rooms, state: {{set_point: 23.5}}}}}}
checks: [every_report_accounted_for]
"""
COUNTS = ("reports", "reports_lost", "reports_offline")


def measure(*, twin_count: int = DEVICE_COUNT) -> list[BenchResult]:
    """Run the scenario on both paths."""
    scenario = parse_scenario(SCENARIO.format(count=twin_count))
    with tempfile.TemporaryDirectory(prefix="tf-bench-") as temporary:
        data_dir = Path(temporary) / "data"
        with platform(data_dir):
            engine, wire = (
                run_on_platform(on_path(scenario, "engine" if is_engine else "wire"), data_dir)
                for is_engine in (True, False)
            )
    lines = [f"{'':>18} {'engine':>10} {'wire':>10}"]
    for name in (*COUNTS, "messages_lost", "deltas_received"):
        cells = [result.metrics.get(name, {}).get("count") for result in (engine, wire)]
        lines.append(
            f"{name:>18} " + " ".join(f"{'-' if cell is None else f'{cell:,.0f}':>10}" for cell in cells)
        )
    took = wire.metrics["ingest_latency"]
    lines.append(
        f"due to accepted: p50 {took['med']:.0f} ms, p95 {took['p(95)']:.0f} ms, p99 {took['p(99)']:.0f} ms"
    )
    value, baseline = (result.metrics["reports"]["count"] for result in (wire, engine))
    is_equal = all(wire.metrics[name]["count"] == engine.metrics[name]["count"] for name in COUNTS)
    return [
        BenchResult(
            f"reports of {twin_count:,} devices over the wire",
            value,
            "reports",
            "in the engine",
            baseline,
            value / baseline,
            "reports, lost ones and those of offline devices are equal; both runs pass",
            is_equal and engine.verdict == wire.verdict == "PASS",
            tuple(lines),
        )
    ]
