"""How long it takes to make keys and certificates for 20,000 devices: EC P-256, signed by a platform's authority.

Two processes, each with half of the names, as the load processes of a run have them; every device gets a file of its
own with certificate and key. The baseline is making the keys alone.
"""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from actors.pki import CertificateAuthority, generate_key_and_csr
from scenarios.load_registrar import write_credentials
from tests.bench.result import BenchResult

DEVICE_COUNT = 20_000
PROCESS_COUNT = 2
SECONDS_MAX = 60.0


def make_credentials(pki: Path, directory: Path, names: list[str]) -> int:
    """Write certificate and key of each name into the directory, signed by the authority in `pki`; return how many."""
    authority = CertificateAuthority.open_or_create(pki)
    for name in names:
        key = generate_key_and_csr(name)
        issued = authority.issue_for_thing(key.csr_pem, name)
        write_credentials(directory, name, issued.certificate_pem, key.private_key_pem)
    return len(names)


def make_keys(count: int) -> int:
    """Make keys and signing requests only; return how many."""
    for number in range(count):
        generate_key_and_csr(f"key-{number}")
    return count


def make_many(pki: Path, directory: Path, names: list[str]) -> float:
    """Write the credentials of many devices, in PROCESS_COUNT processes; return how many seconds that took."""
    begun_s = time.perf_counter()
    with ProcessPoolExecutor(PROCESS_COUNT, mp_context=get_context("spawn")) as pool:
        parts = [names[first::PROCESS_COUNT] for first in range(PROCESS_COUNT)]
        made = sum(pool.map(make_credentials, [pki] * PROCESS_COUNT, [directory] * PROCESS_COUNT, parts))
    assert made == len(names)
    return time.perf_counter() - begun_s


def measure() -> list[BenchResult]:
    """Make all of them."""
    with tempfile.TemporaryDirectory(prefix="tf-bench-") as temporary:
        pki, directory = Path(temporary) / "pki", Path(temporary) / "devices"
        directory.mkdir()
        CertificateAuthority.open_or_create(pki)
        taken_s = make_many(pki, directory, [f"load-{number:05d}" for number in range(DEVICE_COUNT)])
        begun_s = time.perf_counter()
        with ProcessPoolExecutor(PROCESS_COUNT, mp_context=get_context("spawn")) as pool:
            sum(pool.map(make_keys, [DEVICE_COUNT // PROCESS_COUNT] * PROCESS_COUNT))
        keys_s = time.perf_counter() - begun_s
    return [
        BenchResult(
            f"certificates for {DEVICE_COUNT:,} devices",
            taken_s,
            "s",
            "keys and signing requests alone",
            keys_s,
            taken_s / keys_s,
            f"< {SECONDS_MAX:g} s, {PROCESS_COUNT} processes",
            taken_s < SECONDS_MAX,
        )
    ]
