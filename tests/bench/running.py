"""A platform to measure: started on free ports, with devices, and with the processor time of each of its processes."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from actors.pki import generate_key_and_csr
from actors.settings import Endpoints
from twinfleet.client import OperatorClient

DEADLINE_S = 120.0


def wait_until(is_done: Callable[[], bool], what: str) -> None:
    """Return when something is done; TimeoutError, which names it, if that takes too long."""
    deadline = time.monotonic() + DEADLINE_S
    while not is_done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} took more than {DEADLINE_S} s")
        time.sleep(0.02)


@contextlib.contextmanager
def platform(data_dir: Path) -> Iterator[Endpoints]:
    """Run a platform on free ports while the context is open."""
    ports = [part for option in ("mqtt", "device", "api") for part in (f"--{option}-port", "0")]
    command = [sys.executable, "-m", "twinfleet", "up", "--data-dir", str(data_dir), *ports]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            wait_until(
                lambda: process.poll() is not None or (data_dir / "endpoints.json").exists(), "the start"
            )
            yield Endpoints.read(data_dir)
        finally:
            process.send_signal(signal.SIGTERM)


def create_devices(data_dir: Path, directory: Path, prefix: str, count: int) -> list[Path]:
    """Register thermostats and return their certificates, with a key beside each."""
    client, certificates = OperatorClient.of(data_dir), []
    for number in range(count):
        # Names that end in letters are spread over the shards one by one; numbered ones in blocks of 256.
        name = f"{prefix}-{chr(97 + number // 26)}{chr(97 + number % 26)}"
        pair = generate_key_and_csr(name)
        document = client.create_thing(name, "thermostat", attributes={}, csr_pem=pair.csr_pem)
        certificate = directory / f"{name}.pem"
        certificate.write_text(document.content["certificate_pem"])
        certificate.with_suffix(".key").write_text(pair.private_key_pem)
        certificates.append(certificate)
    return certificates


class ProcessorTimes:
    """The processor time that the platform's processes take, by role, while it is counted."""

    def __init__(self, data_dir: Path) -> None:
        listed = OperatorClient.of(data_dir).cluster().content["processes"]
        self._processes = [(each["role"], psutil.Process(each["pid"])) for each in listed if each["pid"]]
        self._used_s = dict.fromkeys((role for role, _ in self._processes), 0.0)

    @contextlib.contextmanager
    def counting(self, is_counted: bool) -> Iterator[None]:
        """Count what is used while the context is open, or leave it out."""
        before = self._now()
        yield
        for role, now_s in self._now().items():
            self._used_s[role] += (now_s - before[role]) * is_counted

    def _now(self) -> dict[str, float]:
        times: defaultdict[str, float] = defaultdict(float)
        for role, process in self._processes:
            used = process.cpu_times()
            times[role] += used.user + used.system
        return times

    def per_message(self, message_count: int) -> str:
        """Return, as text, the microseconds that each role has taken for each of so many messages."""
        parts = (f"{role} {used_s / message_count * 1e6:.0f}" for role, used_s in self._used_s.items())
        return f"processor time a message (us): {', '.join(parts)}"
