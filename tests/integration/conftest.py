"""Fixtures of the integration tests."""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from actors.store import RedisServer
from tests.integration.attack_scene import Scene, scene_on
from tests.integration.running_broker import Site, running_site
from tests.integration.running_gateway import Gateway, open_gateway
from tests.integration.running_platform import RunningPlatform, platform_on
from tests.running_store import running_store

_GATEWAY_PREFIXES = (f"gateway{number}:" for number in itertools.count())


@pytest.fixture
def self_made() -> Callable[..., tuple[str, str]]:
    """Return a maker of (certificate, key) that is self-signed, or forged under the name of an authority."""

    def make(common_name: str, *, issuer_of: Path | None) -> tuple[str, str]:
        key, signer = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        issuer = subject
        if issuer_of is not None:
            issuer = x509.load_pem_x509_certificate(issuer_of.read_bytes()).subject
        now = dt.datetime.now(dt.UTC)
        certificate = (
            x509.CertificateBuilder(issuer_name=issuer, subject_name=subject, public_key=key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .sign(key if issuer_of is None else signer, hashes.SHA256())
        )
        key_pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return certificate.public_bytes(serialization.Encoding.PEM).decode(), key_pem.decode()

    return make


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RedisServer]:
    """Give a running store of its own, in tmp_path / "store"."""
    with running_store(tmp_path / "store") as server:
        yield server


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Give a running store that the tests of a module share; each takes a prefix of its own."""
    with running_store(tmp_path_factory.mktemp("store")) as server:
        yield server


@pytest.fixture
async def gateway(shared_store: RedisServer, tmp_path: Path) -> AsyncIterator[Gateway]:
    """Give a gateway on its own part of the module's store, with nothing in it."""
    prefix = next(_GATEWAY_PREFIXES)
    async with open_gateway(shared_store.url, tmp_path / "platform", prefix=prefix) as opened:
        yield opened


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Give a running broker that the tests of a module share."""
    with running_site(tmp_path_factory.mktemp("site")) as made:
        yield made


@pytest.fixture
def own_site(tmp_path: Path) -> Iterator[Site]:
    """Give a running broker of its own, in tmp_path / "site"."""
    with running_site(tmp_path / "site") as made:
        yield made


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPlatform]:
    """Give the platform that all tests share: it holds things and fleets of others, and nobody stops it."""
    with platform_on(tmp_path_factory.mktemp("shared") / "data") as started:
        yield started
        assert started.process.poll() is None, started.output()
        assert started.stop() == 0, started.output()
        started.expect_nothing_left()
        assert not started.directory.endpoints_file.exists()


@pytest.fixture(scope="session")
def scene(platform: RunningPlatform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Give alice, who is connected and has a history, and mallory, on the platform that all tests share."""
    with scene_on(platform, tmp_path_factory.mktemp("scene")) as made:
        yield made
