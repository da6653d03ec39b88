"""The platform that faults strike: on fixed ports and a small file system of its own, and started again if it ends."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx
import psutil

from actors.placement import Change, Placement, PlacementStore
from actors.platform_processes import SMALL_DISK_BYTES_MAX, is_small_disk, processes_of
from actors.processes import free_port
from actors.settings import DataDirectory, UrlEndpoint
from actors.supervisor import MISTAKE
from tests.chaos.network import HEAD_ADDRESS, NODE_ADDRESS, Network, own_network
from tests.integration.running_node import RunningNode
from tests.integration.running_platform import START_TIMEOUT_S, RunningPlatform, until

SEAMS: Final = Path(__file__).with_name("seams")
# What can be planted; `seams/sitecustomize.py` says how.
BUGS: Final = ("ack before journal", "no fencing", "no lease", "lost tail")
# The parts of a platform as trials call them, and the components that they are.
PARTS: Final[Mapping[str, str]] = {
    "shard actor": "shard",
    "bridge": "bridge",
    "gateway": "gateway",
    "store": "redis",
    "broker": "broker",
    "gcs": "metadata",
    "raylet": "node",
}


# The further node that some trials have.
NODE: Final = "attic"


class TrialFailed(Exception):
    """The platform did not do what a trial waits for."""


class Stage:
    """A running platform on `data_dir`, with what is needed to break it; `network` is the one it is in, if its own."""

    def __init__(self, data_dir: Path, network: Network | None = None) -> None:
        self.data_dir: Final = data_dir
        self.network: Final = network
        self.seams: Final = data_dir.with_name(f"{data_dir.name}-seams")
        self.seams.mkdir(exist_ok=True)
        # A platform that is started again must be found where it was.
        ports = {option: str(free_port()) for option in ("--mqtt-port", "--device-port", "--api-port")}
        ports |= {"--cluster-address": HEAD_ADDRESS} if network is not None else {}
        self._arguments = tuple(word for pair in ports.items() for word in pair)
        self._environment = {"PYTHONPATH": str(SEAMS), "TWINFLEET_SEAMS": str(self.seams)}
        self._whole: dict[str, int] = {}
        self.platform = self._start()
        self.node_dir: Final = data_dir.with_name(NODE)

    def _start(self) -> RunningPlatform:
        return RunningPlatform.start(self.data_dir, *self._arguments, environment=self._environment)

    def wait_until_ready(self) -> None:
        """Return when the platform says that it serves."""
        self.platform.wait_until_ready()
        until(self.is_ready, f"readyz is green; {self.platform.output()}", timeout_s=START_TIMEOUT_S)
        self._whole = self._count()

    def is_ready(self) -> bool:
        """Tell whether the platform says that it serves."""
        try:
            return self._ask_readyz().is_success
        except httpx.HTTPError:
            return False

    def state(self) -> str:
        """Return what the platform says of itself, for people."""
        try:
            return self._ask_readyz().text
        except httpx.HTTPError as error:
            return f"readyz does not answer: {error!r}"

    def _ask_readyz(self) -> httpx.Response:
        return httpx.get(f"{self.platform.endpoints.api.url}/readyz", timeout=5.0, trust_env=False)

    def mistake_count(self) -> int:
        """Return how often the platform has survived a mistake of its own: there should be none."""
        log = DataDirectory(self.data_dir).logs / "supervisor.log"
        return log.read_text(errors="replace").count(MISTAKE)

    @property
    def has_small_disk(self) -> bool:
        """Tell whether the platform's files lie on a file system that may be filled."""
        return is_small_disk(self.data_dir)

    @property
    def has_ended(self) -> bool:
        """Tell whether the process of `twinfleet up` has ended."""
        return self.platform.process.poll() is not None

    def start_again(self) -> None:
        """Start the platform again, which has ended, and return when it serves."""
        self.platform.expect_nothing_left()
        self.platform = self._start()
        self.wait_until_ready()

    def processes(self, part: str) -> list[psutil.Process]:
        """Return the processes of a part that run at present."""
        if part == "supervisor":
            return [psutil.Process(self.platform.process.pid)]
        return processes_of(PARTS[part], self.platform.processes())

    def is_whole(self) -> bool:
        """Tell whether as many processes of every part run as when the platform was started."""
        return self._count() == self._whole

    def _count(self) -> dict[str, int]:
        running = self.platform.processes()
        return {part: len(processes_of(component, running)) for part, component in PARTS.items()}

    def one_of(self, part: str, draws: random.Random) -> psutil.Process:
        """Return one process of a part; there must be one."""
        found = self.processes(part)
        assert found, f"no {part} runs"
        return draws.choice(found)

    @contextlib.contextmanager
    def planted(self, bug: str) -> Iterator[None]:
        """Let every process of the platform, and of further nodes, have a bug while the context is open; '' is none."""
        seam = self.seams / "bug"
        seam.write_text(bug)
        try:
            yield
        finally:
            seam.unlink()

    def placement(self) -> Placement:
        """Return where the shards are served; StoreError while the store does not answer."""
        with contextlib.closing(PlacementStore.at(self.platform.endpoints.redis.url)) as store:
            return store.read()

    def want_on_node(self, shard: int) -> None:
        """Have a shard wanted on the further node."""
        with contextlib.closing(PlacementStore.at(self.platform.endpoints.redis.url)) as store:
            told = Change("placement.move", f"shard {shard} to {NODE}")
            store.change(lambda placement: placement.moved_to(shard, NODE), told)

    def join(self, store_at: tuple[str, int] | None = None) -> RunningNode:
        """Start a further node, as far away as can be; it looks for the store at another address where one is given.

        Whoever calls this ends it.
        """
        # As on another machine: what it knows of the head are two files.
        copied = self.data_dir.with_name(f"{NODE}-head")
        copied.mkdir(exist_ok=True)
        shutil.copy(self.data_dir / "ray.token", copied)
        endpoints = self.platform.endpoints
        if store_at is not None:
            address = urlsplit(endpoints.redis.url)
            netloc = f"{address.netloc.rpartition('@')[0]}@{store_at[0]}:{store_at[1]}"
            endpoints = replace(endpoints, redis=UrlEndpoint(address._replace(netloc=netloc).geturl()))
        endpoints.write(copied)
        arguments = [] if self.network is None else ["--cluster-address", NODE_ADDRESS]
        return RunningNode(
            copied,
            self.node_dir,
            *arguments,
            prefix=self.node_prefix,
            environment=self._environment,
        )

    @property
    def node_prefix(self) -> Sequence[str]:
        """Return the command that runs another one where the further node is."""
        return () if self.network is None else self.network.node_prefix

    def end(self) -> None:
        """End the platform."""
        self.platform.end()


@contextlib.contextmanager
def stage_in(directory: Path) -> Iterator[Stage]:
    """Give a platform that serves, on a small file system and in a network of its own where the machine allows it.

    Until the context is left, the calling thread is in that network as well.
    """
    data_dir = directory / "data"
    with own_network() as network, _small_disk(data_dir):
        stage = Stage(data_dir, network)
        try:
            stage.wait_until_ready()
            yield stage
        finally:
            stage.end()


@contextlib.contextmanager
def _small_disk(directory: Path) -> Iterator[None]:
    directory.mkdir(parents=True, exist_ok=True)
    command = [
        "mount",
        "-t",
        "tmpfs",
        "-o",
        f"size={SMALL_DISK_BYTES_MAX},mode=0700",
        "tmpfs",
        str(directory),
    ]
    # Only root may; in a container not even he.
    is_mounted = (
        os.geteuid() == 0 and not subprocess.run(command, check=False, capture_output=True).returncode
    )
    try:
        yield
    finally:
        if is_mounted:
            subprocess.run(["umount", "--lazy", str(directory)], check=True)
