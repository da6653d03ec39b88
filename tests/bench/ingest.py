"""What a second brings from devices over mutual TLS through mosquitto, bridge, journal and shard, all of it on disk.

Telemetry at QoS 1 counts when the bridge has acknowledged it, which is after its shard has journalled and applied it.
Shadow updates at QoS 1 count when the device has its `accepted`; the platform publishes `documents` for each as well.
The baseline of both is a gmqtt subscriber that takes telemetry and does nothing, on a second mosquitto of the same
configuration. All take turns, on a machine that runs the idle platform and the idle subscriber beside them.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from actors.broker import MosquittoBroker
from actors.settings import DataDirectory, Endpoints, PlatformSettings
from tests.bench.result import BenchResult
from tests.bench.running import ProcessorTimes, create_devices, platform, wait_until

MESSAGE_COUNT = 40_000
ROUNDS = 3
# Blasters fill a connection each; of the updaters each has five updates under way only.
BLASTER_COUNT = 4
UPDATER_COUNT = 100
RATIOS_MIN = {"telemetry": 0.5, "updates": 0.2}
BASELINE = "a bare gmqtt subscriber to telemetry on a broker of its own"


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


@contextlib.contextmanager
def _bare(platform_dir: Path, bare_dir: Path) -> Iterator[tuple[int, list[int]]]:
    """Give the port of a broker that knows the platform's devices, and how many messages a bare subscriber has taken.

    The last of the counts is the latest.
    """
    directory = DataDirectory(bare_dir)
    directory.prepare()
    shutil.copytree(DataDirectory(platform_dir).pki, directory.pki, dirs_exist_ok=True)
    shutil.copy(DataDirectory(platform_dir).mosquitto / "device.acl", directory.mosquitto)
    broker = MosquittoBroker(PlatformSettings.load(bare_dir, {"mqtt_port": 0}))
    broker.start()
    internal = broker.internal
    command = [sys.executable, "-m", "tests.bench.bare_subscriber", internal.host, str(internal.port)]
    command += [internal.user_name, internal.password]
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as subscriber:
            counts: list[int] = []
            threading.Thread(target=_follow, args=(subscriber.stdout, counts), daemon=True).start()
            wait_until(lambda: bool(counts), "the subscription")
            yield broker.port, counts
            subscriber.terminate()
    finally:
        broker.stop()


def _follow(lines: IO[str], counts: list[int]) -> None:
    counts.extend(int(line) for line in lines)


def _take_turns(
    runs: Mapping[str, Callable[[], float]], data_dir: Path
) -> tuple[dict[str, float], dict[str, str]]:
    """Return the median rate of each run, after a round that does not count, and what the platform has spent on it.

    They take turns, so that all of them meet the same machine.
    """
    rates: dict[str, list[float]] = {name: [] for name in runs}
    times = {name: ProcessorTimes(data_dir) for name in runs}
    for number in range(ROUNDS + 1):
        for name, run in runs.items():
            with times[name].counting(bool(number)):
                rates[name].append(run())
    costs = {name: used.per_message(ROUNDS * MESSAGE_COUNT) for name, used in times.items()}
    return {name: statistics.median(each[1:]) for name, each in rates.items()}, costs


def _measure() -> tuple[dict[str, float], dict[str, str]]:
    with tempfile.TemporaryDirectory(prefix="tf-bench-") as temporary:
        directory, data_dir = Path(temporary), Path(temporary) / "data"
        with platform(data_dir) as endpoints:
            blasters = create_devices(data_dir, directory, "blaster", BLASTER_COUNT)
            updaters = create_devices(data_dir, directory, "updater", UPDATER_COUNT)
            with _bare(data_dir, directory / "bare") as (port, counts):
                place = endpoints.mqtts.port, endpoints.ca
                bare = _load("blaster", port, endpoints.ca, blasters)
                telemetry, updates = _load("blaster", *place, blasters), _load("updaters", *place, updaters)
                runs = {
                    BASELINE: lambda: _blast(bare, lambda: counts[-1]),
                    "telemetry": lambda: _blast(telemetry, lambda: _acknowledged(endpoints)),
                    "updates": lambda: _update(updates),
                }
                return _take_turns(runs, data_dir)


def measure() -> list[BenchResult]:
    """Measure the platform and the bare subscriber in turns."""
    rates, costs = _measure()
    baseline = rates[BASELINE]
    return [
        BenchResult(
            f"ingest {name}",
            rates[name],
            "messages/s",
            BASELINE,
            baseline,
            rates[name] / baseline,
            f"ratio of at least {ratio_min}",
            rates[name] / baseline >= ratio_min,
            (costs[name],),
        )
        for name, ratio_min in RATIOS_MIN.items()
    ]
