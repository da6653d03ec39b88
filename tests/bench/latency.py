"""How long a device waits for `accepted`: device, broker, bridge, journal, shard, bridge, broker, device.

Real devices over mutual TLS send shadow updates at QoS 1 on a fixed schedule, 1,000 a second in all, and each is timed
from the moment at which it was due. The baseline is the same load on the same broker with the same configuration,
answered by a gmqtt subscriber that sends every payload straight back: what MQTT itself takes on this machine.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from actors.broker import MosquittoBroker
from actors.settings import PlatformSettings
from tests.bench.result import BenchResult
from tests.bench.running import DEADLINE_S, create_devices, platform

RATE = 1_000
# Each sends 20 updates a second, far from the ten that a thing may have in flight.
DEVICE_COUNT = 50
# The first seconds pay for what is done once: routes, sessions, rows.
WARM_UP_S = 4
DURATION_S = 20
P50_MS_MAX = 10.0
P99_MS_MAX = 50.0
# Upper ends of the classes of the histogram, in ms.
CLASSES_MS = (1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 100, 200, 500, 1000, float("inf"))
QUANTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0))


@dataclass(frozen=True)
class Distribution:
    """What one run gave, sorted (ms): how long answers took, and how late the devices were in sending."""

    took_ms: Sequence[float]
    late_ms: Sequence[float]
    unanswered_count: int
    refused_count: int
    busy_ratio: float

    def quantile(self, share: float) -> float:
        """Return the least latency (ms) that this share of all messages does not exceed; lost ones took for ever."""
        position = max(0, math.ceil(share * self.count) - 1)
        return self.took_ms[position] if position < len(self.took_ms) else float("inf")

    def late_quantile(self, share: float) -> float:
        """Return by how much (ms) the devices themselves sent late, at most, in this share of all messages."""
        return self.late_ms[max(0, math.ceil(share * len(self.late_ms)) - 1)]

    @property
    def count(self) -> int:
        """Return the number of messages, answered or not."""
        return len(self.took_ms) + self.unanswered_count

    def class_counts(self) -> list[int]:
        """Return how many answers came within each class of the histogram."""
        counts = [0] * len(CLASSES_MS)
        for took_ms in self.took_ms:
            counts[next(i for i, end_ms in enumerate(CLASSES_MS) if took_ms <= end_ms)] += 1
        return counts


def run_devices(broker_port: int, ca: str, certificates: Sequence[Path]) -> Distribution:
    """Run the devices against a broker and return what they measured."""
    command = [sys.executable, "-m", "tests.bench.paced_devices", "127.0.0.1", str(broker_port), ca]
    command += [str(RATE), str(WARM_UP_S), str(DURATION_S), *map(str, certificates)]
    psutil.cpu_percent()
    finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=DEADLINE_S)
    report = json.loads(finished.stdout)
    return Distribution(
        sorted(report["took_ms"]),
        sorted(report["late_ms"]),
        report["unanswered"],
        report["refused"],
        psutil.cpu_percent() / 100,
    )


def measure_echo(data_dir: Path, certificates: Sequence[Path]) -> Distribution:
    """Return what the devices measure where every update is echoed, on a broker of the platform's configuration."""
    broker = MosquittoBroker(PlatformSettings.load(data_dir, {"mqtt_port": 0}))
    broker.start()
    internal = broker.internal
    command = [sys.executable, "-m", "tests.bench.echo_subscriber", internal.host, str(internal.port)]
    command += [internal.user_name, internal.password]
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as subscriber:
            if subscriber.stdout is None or subscriber.stdout.readline().strip() != "ready":
                raise RuntimeError("the echo did not start")
            try:
                return run_devices(broker.port, str(data_dir / "pki" / "ca.pem"), certificates)
            finally:
                subscriber.terminate()
    finally:
        broker.stop()


def describe(twin: Distribution, echo: Distribution, busy_before: float) -> tuple[str, ...]:
    """Return the whole of both distributions, as lines to read."""
    rows: list[tuple[str, float | str, float | str]] = [
        (name, twin.quantile(share), echo.quantile(share)) for name, share in QUANTILES
    ]
    rows += [
        ("sent late, p50", twin.late_quantile(0.5), echo.late_quantile(0.5)),
        ("sent late, p99", twin.late_quantile(0.99), echo.late_quantile(0.99)),
        ("unanswered", str(twin.unanswered_count), str(echo.unanswered_count)),
        ("refused", str(twin.refused_count), str(echo.refused_count)),
        ("machine busy", f"{twin.busy_ratio:.0%}", f"{echo.busy_ratio:.0%}"),
    ]
    cores, load = os.cpu_count(), os.getloadavg()[0]
    lines = [
        f"{twin.count:,} updates, {RATE:,} a second in all, from {DEVICE_COUNT} devices over mutual TLS, QoS 1"
    ]
    lines.append(f"{cores} cores, {busy_before:.0%} busy before the run; load {load:.1f} after it")
    lines.append(f"{'ms':>16} {'twinfleet':>12} {'echo':>12}")
    for name, ours, theirs in rows:
        lines.append(f"{name:>16} {_cell(ours)} {_cell(theirs)}")
    lines.append(f"{'up to, ms':>16} {'twinfleet':>12} {'echo':>12}   share of twinfleet's")
    slowest_ms = max((each.took_ms[-1] for each in (twin, echo) if each.took_ms), default=0.0)
    shown = sum(end_ms < slowest_ms for end_ms in CLASSES_MS) + 1
    classes = list(zip(CLASSES_MS, twin.class_counts(), echo.class_counts(), strict=True))
    for end_ms, our_count, their_count in classes[:shown]:
        share = our_count / twin.count
        lines.append(
            f"{end_ms:>16g} {our_count:>12,} {their_count:>12,}   {share:6.2%} {'#' * round(50 * share)}"
        )
    return tuple(lines)


def _cell(value: float | str) -> str:
    return f"{value:>12}" if isinstance(value, str) else f"{value:>12.2f}"


def measure() -> list[BenchResult]:
    """Measure the platform, then the echo."""
    busy_before = psutil.cpu_percent(interval=2.0) / 100
    with tempfile.TemporaryDirectory(prefix="tf-bench-") as temporary:
        directory, data_dir = Path(temporary), Path(temporary) / "data"
        with platform(data_dir) as endpoints:
            certificates = create_devices(data_dir, directory, "paced", DEVICE_COUNT)
            twin = run_devices(endpoints.mqtts.port, endpoints.ca, certificates)
        echo = measure_echo(data_dir, certificates)
    is_whole = not (twin.unanswered_count or twin.refused_count)
    details = describe(twin, echo, busy_before)
    results = []
    for name, share, bar_ms in (("p50", 0.5, P50_MS_MAX), ("p99", 0.99, P99_MS_MAX)):
        value, baseline = twin.quantile(share), echo.quantile(share)
        results.append(
            BenchResult(
                f"latency {name}",
                value,
                "ms",
                "an echo on the same broker",
                baseline,
                value / baseline,
                f"< {bar_ms:g} ms, every update accepted",
                is_whole and value < bar_ms,
                details,
            )
        )
        details = ()
    return results
