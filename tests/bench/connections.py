"""How many mutual-TLS connections the load generator and one broker hold on this machine, while messages flow.

The broker has the platform's configuration. Every device has a certificate of its own and lives by the thermostat's
model: connects, subscribes, reports, is answered by a subscriber that sends every report straight back, and keeps its
connection alive with pings, for longer than its keep-alive. There is no baseline: nothing else here holds a fleet.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from actors.broker import MosquittoBroker
from actors.pki import CertificateAuthority
from actors.settings import DataDirectory, PlatformSettings
from scenarios.load_crew import LoadCrew
from scenarios.load_histogram import Histogram
from scenarios.load_orders import ConnectAll, CreateGroup, LoadNews, LoadSettings, Settle, Tick
from tests.bench.certificates import make_many
from tests.bench.result import BenchResult
from twins.messages import GroupOrder, TickOrder
from twins.model import Group
from twins.shipped import model_named

# Of which 98.6 % are online by their model, and all fit into the 20,000 descriptors of the broker.
DEVICE_COUNT = 19_000
CONNECTION_BAR = 18_000
PROCESS_COUNT = 2
CONNECT_RATE = 500.0
# Each device reports twice a minute while they all stand: some 300 messages a second each way.
REPORT_EVERY_S = 60
KEEP_ALIVE_S = 40
# Longer than one and a half keep-alives, after which the broker would have thrown out who did not ping.
STAND_S = 75
CONNECT_TIMEOUT_S = 150.0


@contextlib.contextmanager
def echoing_broker(data_dir: Path) -> Iterator[MosquittoBroker]:
    """Run a broker of the platform's configuration, with a subscriber that sends every report straight back."""
    DataDirectory(data_dir).prepare()
    CertificateAuthority.open_or_create(DataDirectory(data_dir).pki)
    broker = MosquittoBroker(PlatformSettings.load(data_dir, {"mqtt_port": 0}))
    broker.start()
    internal = broker.internal
    command = [sys.executable, "-m", "tests.bench.echo_subscriber", internal.host, str(internal.port)]
    command += [internal.user_name, internal.password, "4"]
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as subscriber:
            if subscriber.stdout is None or subscriber.stdout.readline().strip() != "ready":
                raise RuntimeError("the echo did not start")
            try:
                yield broker
            finally:
                subscriber.terminate()
    finally:
        broker.stop()


async def stand(broker: MosquittoBroker, directory: Path, ca: Path, count: int) -> tuple[LoadNews, list[str]]:
    """Connect a fleet and let it stand; return the news of the stand and lines that describe it."""
    crew = LoadCrew()
    group = Group("load", model_named("thermostat"), "load-{i:05d}", count, 1, 0, 1, REPORT_EVERY_S)
    settings = LoadSettings(
        "127.0.0.1",
        broker.port,
        str(directory),
        ca=str(ca),
        keep_alive_s=KEEP_ALIVE_S,
        connect_rate=CONNECT_RATE,
    )
    try:
        await crew.start(settings, PROCESS_COUNT, directory)
        await crew.order(CreateGroup(GroupOrder.of(group)))
        bare = [answer.memory_bytes for answer in crew.answers]
        broker_process = psutil.Process(broker.pid)
        broker_bare = broker_process.memory_info().rss
        begun_s = time.monotonic()
        _, news = await crew.order(ConnectAll(CONNECT_TIMEOUT_S))
        connect_s = time.monotonic() - begun_s
        connecting = Histogram(news.connecting)
        lines = [
            (
                f"{news.online:,} of {count:,} connected in {connect_s:.1f} s "
                f"({news.online / connect_s:,.0f}/s), {news.connect_errors:,} errors {news.errors or ''}"
            ),
            (
                f"attempt to SUBACK: p50 {connecting.quantile_s(0.5) * 1000:.0f} ms, "
                f"p99 {connecting.quantile_s(0.99) * 1000:.0f} ms"
            ),
        ]
        print(*lines, sep="\n", file=sys.stderr, flush=True)
        used_s = sum(answer.processor_s for answer in crew.answers)
        total = await _live(crew, begun_s=time.monotonic())
        ours = sum(answer.memory_bytes for answer in crew.answers) - sum(bare)
        theirs = broker_process.memory_info().rss - broker_bare
        descriptors = [psutil.Process(pid).num_fds() for pid in (*crew.pids, broker.pid)]
        ingest, late = Histogram(total.ingest), Histogram(total.late)
        lines += [
            (
                f"stood for {STAND_S} s: {total.online:,} connections at the end, {total.lost_connections:,} lost and "
                f"{total.connected:,} made meanwhile, keep-alive {KEEP_ALIVE_S} s"
            ),
            (
                f"{total.sent:,} reports sent, {total.accepted:,} answered, {total.lost:,} lost, p50 "
                f"{ingest.quantile_s(0.5) * 1000:.1f} ms, p99 {ingest.quantile_s(0.99) * 1000:.1f} ms "
                f"(sent late, p99 {late.quantile_s(0.99) * 1000:.1f} ms)"
            ),
            (
                f"processor time of the load processes while they stood: "
                f"{(sum(answer.processor_s for answer in crew.answers) - used_s) / STAND_S:.2f} s a second"
            ),
            (
                f"memory a connection: {ours / total.online / 1024:.1f} KiB here, "
                f"{theirs / total.online / 1024:.1f} KiB in the broker"
            ),
            f"descriptors: {', '.join(map(str, descriptors[:-1]))} here, {descriptors[-1]} in the broker",
        ]
        return total, lines
    finally:
        await crew.stop()


async def _live(crew: LoadCrew, *, begun_s: float) -> LoadNews:
    total = LoadNews()
    for tick in range(STAND_S):
        await asyncio.sleep(max(0.0, begun_s + tick - time.monotonic()))
        _, news = await crew.order(Tick([TickOrder("load", tick, 1)], begun_s + tick, 1.0))
        total.add(news)
        if tick % 15 == 0:
            print(
                f"{tick:3} s: {news.online:,} online, {total.sent:,} sent, {total.accepted:,} answered, "
                f"{total.resent:,} resent, {total.lost_connections:,} connections lost {total.errors or ''}",
                file=sys.stderr,
                flush=True,
            )
    _, news = await crew.order(Settle(30.0))
    total.add(news)
    total.online = news.online
    return total


def measure(*, twin_count: int = DEVICE_COUNT) -> list[BenchResult]:
    """Make certificates, connect all, and let them stand."""
    with tempfile.TemporaryDirectory(prefix="tf-bench-") as temporary:
        data_dir, directory = Path(temporary) / "data", Path(temporary) / "devices"
        directory.mkdir()
        with echoing_broker(data_dir) as broker:
            pki = DataDirectory(data_dir).pki
            names = [f"load-{number:05d}" for number in range(twin_count)]
            made_s = make_many(pki, directory, names)
            total, lines = asyncio.run(stand(broker, directory, pki / "ca.pem", twin_count))
    return [
        BenchResult(
            "concurrent TLS connections on one broker",
            float(total.online),
            "connections",
            "",
            None,
            None,
            f">= {CONNECTION_BAR:,} connections, no report lost",
            total.online >= CONNECTION_BAR and not total.lost,
            (f"certificates for {twin_count:,} devices: {made_s:.1f} s", *lines),
        )
    ]
