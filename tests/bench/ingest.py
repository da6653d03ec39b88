"""What a second brings from devices over mutual TLS through mosquitto, bridge, journal and shard, all of it on disk.

Telemetry at QoS 1 counts when the bridge has acknowledged it, which is after its shard has journalled and applied it.
Shadow updates at QoS 1 count when the device has its `accepted`; the platform publishes `documents` for each as well.
The baseline of both is a gmqtt subscriber that takes telemetry and does nothing, on the same broker with the same
configuration.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from actors.broker import MosquittoBroker
from actors.settings import Endpoints, PlatformSettings
from tests.bench.result import BenchResult
from tests.bench.running import ProcessorTimes, create_devices, platform, wait_until

MESSAGE_COUNT = 40_000
ROUNDS = 3
# Blasters fill a connection each; of the updaters each has five updates under way only.
BLASTER_COUNT = 4
UPDATER_COUNT = 100
RATIOS_MIN = {"telemetry": 0.5, "updates": 0.2}


def _load(program: str, broker_port: int, ca: str, certificates: Sequence[Path]) -> list[str]:
    command = [sys.executable, "-m", f"tests.bench.{program}", "127.0.0.1", str(broker_port), ca]
    return [*command, str(MESSAGE_COUNT), *map(str, certificates)]


def _blast(load: list[str], taken: Callable[[], int]) -> float:
    """Return the messages a second from the first publish until all have been taken."""
    before = taken()
    start_s = time.perf_counter()
    with subprocess.Popen(load) as process:
        wait_until(lambda: taken() - before >= MESSAGE_COUNT, "taking the messages")
        duration_s = time.perf_counter() - start_s
        if process.wait():
            raise RuntimeError("the load failed")
    return MESSAGE_COUNT / duration_s


def _update(load: list[str]) -> float:
    """Return the updates a second from the first one until all are accepted; RuntimeError if one was refused."""
    with subprocess.Popen(load, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        if process.stdin is None or process.stdout is None or process.stdout.readline() != "ready\n":
            raise RuntimeError("the load failed")
        start_s = time.perf_counter()
        process.stdin.write("go\n")
        process.stdin.flush()
        refused = process.stdout.readline()
        duration_s = time.perf_counter() - start_s
    if refused != "0\n":
        raise RuntimeError(f"{refused.strip() or 'unknown'} updates were refused")
    return MESSAGE_COUNT / duration_s


def _acknowledged(endpoints: Endpoints) -> int:
    with urllib.request.urlopen(endpoints.metrics.url) as answer:
        found = re.search(
            r"^twinfleet_bridge_messages_acknowledged_total (\S+)$", answer.read().decode(), re.MULTILINE
        )
    return int(float(found.group(1))) if found else 0


def _rounds(run: Callable[[], float], data_dir: Path) -> tuple[float, str]:
    """Return the median rate of some rounds, after one that does not count, and what they cost."""
    run()
    times = ProcessorTimes(data_dir)
    rate = statistics.median(run() for _ in range(ROUNDS))
    return rate, times.per_message(ROUNDS * MESSAGE_COUNT)


def _measure_platform(data_dir: Path, directory: Path) -> tuple[dict[str, tuple[float, str]], list[Path]]:
    """Return what the platform does, and the certificates of the devices that blast."""
    with platform(data_dir) as endpoints:
        place = endpoints.mqtts.port, endpoints.ca
        blasters = create_devices(data_dir, directory, "blaster", BLASTER_COUNT)
        updaters = create_devices(data_dir, directory, "updater", UPDATER_COUNT)
        telemetry, updates = _load("blaster", *place, blasters), _load("updaters", *place, updaters)
        found = {
            "telemetry": _rounds(lambda: _blast(telemetry, lambda: _acknowledged(endpoints)), data_dir),
            "updates": _rounds(lambda: _update(updates), data_dir),
        }
        return found, blasters


def _measure_bare(data_dir: Path, blasters: Sequence[Path]) -> float:
    broker = MosquittoBroker(PlatformSettings.load(data_dir, {"mqtt_port": 0}))
    broker.start()
    internal = broker.internal
    command = [sys.executable, "-m", "tests.bench.bare_subscriber", internal.host, str(internal.port)]
    command += [internal.user_name, internal.password]
    load = _load("blaster", broker.port, str(data_dir / "pki" / "ca.pem"), blasters)
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as subscriber:
            counts: list[int] = []
            threading.Thread(target=_follow, args=(subscriber.stdout, counts), daemon=True).start()
            wait_until(lambda: bool(counts), "the subscription")
            rates = [_blast(load, lambda: counts[-1]) for _ in range(ROUNDS + 1)]
            subscriber.terminate()
            return statistics.median(rates[1:])
    finally:
        broker.stop()


def _follow(lines: IO[str], counts: list[int]) -> None:
    counts.extend(int(line) for line in lines)


def measure() -> list[BenchResult]:
    """Measure the platform, then the bare subscriber."""
    with tempfile.TemporaryDirectory(prefix="tf-bench-") as temporary:
        directory, data_dir = Path(temporary), Path(temporary) / "data"
        found, blasters = _measure_platform(data_dir, directory)
        baseline = _measure_bare(data_dir, blasters)
    return [
        BenchResult(
            f"ingest {name}",
            value,
            "messages/s",
            "a bare gmqtt subscriber to telemetry on the same broker",
            baseline,
            value / baseline,
            f"ratio of at least {RATIOS_MIN[name]}",
            value / baseline >= RATIOS_MIN[name],
            (cost,),
        )
        for name, (value, cost) in found.items()
    ]
