"""The gate of claims at a real broker: it keeps newcomers out, leaves who is in alone, and moves as fast as it must."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from actors.access import BrokerAccess
from actors.pki import IssuedCertificate, KeyAndRequest, generate_key_and_csr
from actors.registry.records import CertificateKind, CertificateRecord
from actors.registry.registry import Registry
from actors.store import RedisServer
from actors.wall_clock import WallClock
from tests.integration.raw_mqtt import Connect, RawClient
from tests.integration.running_broker import Site

ANSWER = "$aws/certificates/create/json/accepted"


class Gate:
    """The access of one broker, and those who want in."""

    def __init__(self, site: Site, registry: Registry, directory: Path) -> None:
        self.access = BrokerAccess(
            registry, site.authority, data_dir=site.settings.data_dir, clock=WallClock()
        )
        self._site = site
        self.registry = registry
        self._directory = directory

    async def client(self, kind: CertificateKind, name: str) -> RawClient:
        """Return a client with a new certificate of its own."""
        pair = generate_key_and_csr(name)
        common_name = f"claim.{name}" if kind == "claim" else name
        issued = self._site.authority.issue_from_csr(pair.csr_pem, common_name)
        if kind == "claim":
            await self.registry.certificates.add(_record(issued, name), by="test")
        return self._client(name, issued, pair)

    def _client(self, name: str, issued: IssuedCertificate, pair: KeyAndRequest) -> RawClient:
        certificate, key = self._directory / f"{name}.pem", self._directory / f"{name}.key"
        certificate.write_text(issued.certificate_pem)
        key.write_text(pair.private_key_pem)
        authority = self._site.authority.ca_file
        return RawClient.of(self._site.broker.port, authority, certificate=certificate, key=key)


def _record(issued: IssuedCertificate, name: str) -> CertificateRecord:
    return CertificateRecord(
        issued.certificate_id,
        "",
        issued.common_name,
        str(issued.serial),
        issued.certificate_pem,
        1,
        int(issued.expires_at_s),
        kind="claim",
        name=name,
        template="t",
    )


@pytest.fixture
async def gate(site: Site, store: RedisServer, tmp_path: Path) -> AsyncIterator[Gate]:
    registry = await Registry.open(store.url, WallClock())
    yield Gate(site, registry, tmp_path)
    await registry.close()


async def test_a_closed_gate_keeps_claims_out_and_nobody_else(gate: Gate) -> None:
    claim, other = await gate.client("claim", "one"), await gate.client("claim", "two")
    device = await gate.client("thing", "lamp")
    await gate.access.reload()
    with claim.session(Connect("x")) as session, device.session(Connect("x")) as lamp:
        await gate.access.close_gate("claim.one")
        for newcomer in (claim, other):
            assert not newcomer.is_admitted(Connect("x"))
        assert session.subscribe(ANSWER) == [1]
        assert session.messages() == []
        assert lamp.messages() == []
        assert device.is_admitted(Connect("x"))
        await gate.access.open_gate()
    for newcomer in (claim, other):
        assert newcomer.is_admitted(Connect("x"))


async def test_every_turn_of_the_gate_counts_however_fast_they_follow(gate: Gate) -> None:
    """OpenSSL takes the first of two lists with the same second in their date; so each needs a second of its own."""
    claim = await gate.client("claim", "three")
    for _ in range(6):
        await gate.access.close_gate("claim.three")
        assert not claim.is_admitted(Connect("x"))
        await gate.access.open_gate()
        assert claim.is_admitted(Connect("x"))


async def test_a_revoked_claim_stays_out_when_the_gate_opens(gate: Gate) -> None:
    claim = await gate.client("claim", "four")
    await gate.access.close_gate("claim.four")
    certificates = gate.registry.certificates
    (record,) = [one for one in await certificates.of_kind("claim") if one.name == "four"]
    revoked = replace(record, status="REVOKED")
    await certificates.change(record, revoked, action="certificate.revoke", by="test")
    await gate.access.open_gate()
    assert not claim.is_admitted(Connect("x"))
