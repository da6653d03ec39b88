"""Telemetry messages a second at QoS 1 from devices over mutual TLS through mosquitto, bridge, journal and shard.

A message counts when the bridge has acknowledged it, which is after its shard has journalled and applied it. The
baseline is a gmqtt subscriber that does nothing, on the same broker with the same configuration, under the same load.
"""

from __future__ import annotations

import contextlib
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from actors.broker import MosquittoBroker
from actors.settings import Endpoints, PlatformSettings
from tests.bench.result import BenchResult

DEVICE_COUNT = 4
MESSAGE_COUNT = 40_000
ROUNDS = 3
TWINFLEET = (sys.executable, "-m", "twinfleet")
DEADLINE_S = 120.0


def _wait(is_done: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not is_done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} took more than {DEADLINE_S} s")
        time.sleep(0.02)


def _round(broker_port: int, ca: str, certificates: list[str], taken: Callable[[], int]) -> float:
    """Return the messages a second from the first publish until all have been taken."""
    before = taken()
    load = [
        sys.executable,
        "-m",
        "tests.bench.blaster",
        "127.0.0.1",
        str(broker_port),
        ca,
        str(MESSAGE_COUNT),
    ]
    start_s = time.perf_counter()
    with subprocess.Popen([*load, *certificates]) as process:
        _wait(lambda: taken() - before >= MESSAGE_COUNT, "taking the messages")
        duration_s = time.perf_counter() - start_s
        if process.wait():
            raise RuntimeError("the load failed")
    return MESSAGE_COUNT / duration_s


@contextlib.contextmanager
def platform(data_dir: Path) -> Iterator[Endpoints]:
    """Run a platform on free ports while the context is open."""
    ports = [part for option in ("mqtt", "device", "api") for part in (f"--{option}-port", "0")]
    command = [*TWINFLEET, "up", "--data-dir", str(data_dir), *ports]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            _wait(lambda: process.poll() is not None or (data_dir / "endpoints.json").exists(), "the start")
            yield Endpoints.read(data_dir)
        finally:
            process.send_signal(signal.SIGTERM)


def _acknowledged(endpoints: Endpoints) -> int:
    with urllib.request.urlopen(endpoints.metrics.url) as answer:
        found = re.search(
            r"^twinfleet_bridge_messages_acknowledged_total (\S+)$", answer.read().decode(), re.MULTILINE
        )
    return int(float(found.group(1))) if found else 0


def _measure_platform(data_dir: Path, certificates: list[str]) -> list[float]:
    with platform(data_dir) as endpoints:
        for certificate in certificates:
            name, directory = Path(certificate).stem, str(Path(certificate).parent / Path(certificate).stem)
            create = [*TWINFLEET, "device", "create", name, "--out", directory, "--data-dir", str(data_dir)]
            subprocess.run(create, check=True, stdout=subprocess.DEVNULL)
            (Path(directory) / f"{name}.pem").replace(certificate)
            (Path(directory) / f"{name}.key").replace(Path(certificate).with_suffix(".key"))
        return [
            _round(endpoints.mqtts.port, endpoints.ca, certificates, lambda: _acknowledged(endpoints))
            for _ in range(ROUNDS + 1)
        ][1:]


def _measure_bare(data_dir: Path, certificates: list[str]) -> list[float]:
    broker = MosquittoBroker(PlatformSettings.load(data_dir, {"mqtt_port": 0}))
    broker.start()
    internal = broker.internal
    command = [sys.executable, "-m", "tests.bench.bare_subscriber", internal.host, str(internal.port)]
    command += [internal.user_name, internal.password]
    ca = str(data_dir / "pki" / "ca.pem")
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as subscriber:
            counts: list[int] = []
            threading.Thread(target=_follow, args=(subscriber.stdout, counts), daemon=True).start()
            _wait(lambda: bool(counts), "the subscription")
            rates = [_round(broker.port, ca, certificates, lambda: counts[-1]) for _ in range(ROUNDS + 1)]
            subscriber.terminate()
            return rates[1:]
    finally:
        broker.stop()


def _follow(lines: IO[str], counts: list[int]) -> None:
    counts.extend(int(line) for line in lines)


def measure() -> list[BenchResult]:
    """Measure the platform, then the bare subscriber."""
    with tempfile.TemporaryDirectory(prefix="tf-bench-") as directory:
        data_dir = Path(directory) / "data"
        certificates = [str(Path(directory) / f"bench-{chr(97 + i)}.pem") for i in range(DEVICE_COUNT)]
        value = statistics.median(_measure_platform(data_dir, certificates))
        baseline = statistics.median(_measure_bare(data_dir, certificates))
    return [
        BenchResult(
            "ingest",
            value,
            "messages/s",
            "a bare gmqtt subscriber on the same broker",
            baseline,
            value / baseline,
            "",
            None,
        )
    ]
