"""How many messages a second one load process publishes, beside Locust's MQTT user, where that is installed.

Both publish the same payload over the same number of connections in plain TCP to the same broker, in turns, in one
process each. What counts is what the broker has read from its connections, whatever either of them says. The rate
with TLS stands separately, and has no peer here.
"""

from __future__ import annotations

import contextlib
import importlib.util
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from actors.broker import MosquittoBroker
from actors.pki import CertificateAuthority
from actors.processes import LOOPBACK, free_port
from actors.settings import DataDirectory, PlatformSettings
from tests.bench.certificates import make_credentials
from tests.bench.flood import PAYLOAD, name_of, topic_of
from tests.bench.result import BenchResult
from tests.bench.running import wait_until

CONNECTION_COUNT = 50
SECONDS = 6
ROUNDS = 3
RATIO_MIN = 3.0
# As the broker of a platform: without it, acknowledgements wait for one another.
_CONFIGURATION = """\
listener {port} 127.0.0.1
allow_anonymous true
set_tcp_nodelay true
max_inflight_messages 1000
max_queued_messages 100000
persistence false
"""


@contextlib.contextmanager
def plain_broker(directory: Path) -> Iterator[tuple[int, psutil.Process]]:
    """Run a broker without TLS on a free port of loopback, and give the port and its process."""
    port = free_port()
    file = directory / "plain.conf"
    file.write_text(_CONFIGURATION.format(port=port))
    with subprocess.Popen(["mosquitto", "-c", str(file)], stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: _listens(port), "the broker's start")
            yield port, psutil.Process(process.pid)
        finally:
            process.terminate()


def _listens(port: int) -> bool:
    try:
        socket.create_connection((LOOPBACK, port), timeout=1.0).close()
    except OSError:
        return False
    return True


def rate_of(command: list[str], broker: psutil.Process, packet_bytes: int) -> tuple[float, float]:
    """Return messages a second that the broker has read from what a command publishes, and those that it counted."""
    # Locust uses an interface of paho's that is about to go, and says so for each connection.
    arguments = [sys.executable, "-W", "ignore::DeprecationWarning", "-m", *command]
    pipe = subprocess.PIPE
    with subprocess.Popen(arguments, stdin=pipe, stdout=pipe, text=True) as process:
        if process.stdin is None or process.stdout is None or process.stdout.readline().strip() != "ready":
            process.kill()
            raise RuntimeError(f"{command[0]} did not get its connections")
        before = broker.io_counters().read_chars
        print(file=process.stdin, flush=True)
        counted, seconds = map(float, process.stdout.readline().split())
        read = broker.io_counters().read_chars - before
        process.kill()
    return read / packet_bytes / seconds, counted / seconds


def measure() -> list[BenchResult]:
    """Let the load generator and Locust take turns at both qualities of service, then measure with TLS."""
    has_locust = importlib.util.find_spec("locust") is not None
    with tempfile.TemporaryDirectory(prefix="tf-bench-") as temporary:
        directory = Path(temporary)
        with plain_broker(directory) as (port, broker):
            results = [_beside_locust(port, broker, qos, has_locust=has_locust) for qos in (1, 0)]
        results += _with_tls(directory)
    return results


def _beside_locust(port: int, broker: psutil.Process, qos: int, *, has_locust: bool) -> BenchResult:
    # A first byte, two of length, two of the topic's length and two of a packet id at QoS 1. Topics are equally long.
    packet_bytes = 5 + len(topic_of(name_of(0))) + 2 * qos + len(PAYLOAD)
    ours, theirs, counted = [], [], []
    for _ in range(ROUNDS):
        flood = ["tests.bench.flood", LOOPBACK, str(port), "-", str(qos), str(CONNECTION_COUNT), str(SECONDS)]
        rate, own = rate_of(flood, broker, packet_bytes)
        ours.append(rate)
        counted.append(own)
        if has_locust:
            peer = ["tests.bench.locust_flood", LOOPBACK, str(port), str(qos), str(CONNECTION_COUNT)]
            theirs.append(rate_of([*peer, str(SECONDS)], broker, packet_bytes)[0])
    value = statistics.median(ours)
    baseline = statistics.median(theirs) if theirs else None
    ratio = value / baseline if baseline else None
    note = (
        ""
        if has_locust
        else "Locust is not installed here (pip install locust): there is nothing to compare with"
    )
    lines = [f"QoS {qos}: acknowledged, or answered pings: {statistics.median(counted):,.0f}/s"]
    return BenchResult(
        f"messages published at QoS {qos}, plain TCP, {CONNECTION_COUNT} connections",
        value,
        "messages/s",
        "Locust's MQTT user",
        baseline,
        ratio,
        f">= {RATIO_MIN:g} times Locust",
        None if ratio is None else ratio >= RATIO_MIN,
        tuple(filter(None, [*lines, note])),
    )


def _with_tls(directory: Path) -> list[BenchResult]:
    data, certificates = DataDirectory(directory / "data"), directory / "certificates"
    data.prepare()
    certificates.mkdir()
    CertificateAuthority.open_or_create(data.pki)
    make_credentials(data.pki, certificates, [name_of(number) for number in range(CONNECTION_COUNT)])
    broker = MosquittoBroker(PlatformSettings.load(data.path, {"mqtt_port": 0}))
    broker.start()
    try:
        process, results = psutil.Process(broker.pid), []
        for qos in (1, 0):
            flood = ["tests.bench.flood", LOOPBACK, str(broker.port), str(data.pki / "ca.pem"), str(qos)]
            command = [*flood, str(CONNECTION_COUNT), str(SECONDS), str(certificates)]
            counted = [rate_of(command, process, 1)[1] for _ in range(ROUNDS)]
            results.append(
                BenchResult(
                    f"messages published at QoS {qos}, mutual TLS, {CONNECTION_COUNT} connections",
                    statistics.median(counted),
                    "messages/s",
                    "",
                    None,
                    None,
                    "",
                    None,
                )
            )
        return results
    finally:
        broker.stop()
