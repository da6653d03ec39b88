"""The certificate authority, and what a certificate's name means."""

from __future__ import annotations

import datetime as dt
import hashlib
import ipaddress
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from actors.errors import CertificateRequestError, CertificateStoreError, VaultError
from actors.pki import (
    CertificateAuthority,
    Principal,
    common_name_for_thing,
    generate_key_and_csr,
    principal_of,
)
from actors.vault import Vault
from twins.clock import VirtualClock

DAY_S = 86_400.0
# 2026-01-01; the tests' own time, so that they pass in any year.
START_S = 1_767_225_600.0
ID = "ab" * 32


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(START_S)


@pytest.fixture
def authority(tmp_path: Path, clock: VirtualClock) -> CertificateAuthority:
    return CertificateAuthority.open_or_create(tmp_path / "pki", clock=clock)


def certificate_in(file: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(file.read_bytes())


# ---- principals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("common_name", "principal"),
    [
        ("sensor-1", Principal("thing", "sensor-1")),
        ("plant:line_3", Principal("thing", "plant:line_3")),
        ("x" * 64, Principal("thing", "x" * 64)),
        (ID, Principal("thing", "registered")),
        (ID.upper(), None),
        ("cd" * 32, None),
        ("app.bridge", Principal("application", "bridge")),
        ("claim.batch-7", Principal("claim", "batch-7")),
        ("app", Principal("thing", "app")),
        ("app.", None),
        ("app.a.b", None),
        ("app.+", None),
        ("root.x", None),
        ("APP.x", None),
        ("a/b", None),
        ("#", None),
        ("", None),
        ("sensor 1", None),
        ("sensor-1\n", None),
        ("sensör", None),
    ],
)
def test_a_common_name_means_one_principal_or_nobody(common_name: str, principal: Principal | None) -> None:
    assert principal_of(common_name, {ID: "registered"}.get) == principal


@pytest.mark.parametrize("count", [0, 2])
def test_a_certificate_without_exactly_one_common_name_is_nobody(count: int) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"sensor-{i}") for i in range(count)])
    certificate = (
        x509.CertificateBuilder(issuer_name=name, subject_name=name, public_key=key.public_key())
        .serial_number(1)
        .not_valid_before(dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
        .not_valid_after(dt.datetime(2027, 1, 1, tzinfo=dt.UTC))
        .sign(key, hashes.SHA256())
    )
    assert principal_of(certificate, lambda _: None) is None


@pytest.mark.parametrize(
    ("thing_name", "common_name"),
    [
        ("sensor-1", "sensor-1"),
        ("x" * 64, "x" * 64),
        ("x" * 65, ID),
        ("x" * 128, ID),
        ("c" * 63, "c" * 63),
    ],
)
def test_a_things_common_name_is_its_name_unless_that_is_too_long(thing_name: str, common_name: str) -> None:
    assert common_name_for_thing(thing_name, ID) == common_name


@pytest.mark.parametrize("thing_name", ["sensor-1", "x" * 64, "x" * 65, "y" * 128])
def test_an_issued_certificate_leads_back_to_its_thing(
    authority: CertificateAuthority, thing_name: str
) -> None:
    issued = authority.issue_for_thing(generate_key_and_csr(thing_name).csr_pem, thing_name)
    certificate = x509.load_pem_x509_certificate(issued.certificate_pem.encode())
    registered = {issued.certificate_id: thing_name}
    assert principal_of(certificate, registered.get) == Principal("thing", thing_name)


# ---- the authority -------------------------------------------------------------------------------------------------


def test_a_new_authority_has_its_files_for_the_owner_only(authority: CertificateAuthority) -> None:
    files = sorted(authority.ca_file.parent.iterdir())
    assert [file.name for file in files] == ["ca.key", "ca.pem", "crl.pem", "server.key", "server.pem"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert authority.revoked_serials() == frozenset()


def test_the_servers_certificate_names_every_loopback_host(authority: CertificateAuthority) -> None:
    certificate = certificate_in(authority.server_certificate_file)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert names.get_values_for_type(x509.IPAddress) == [
        ipaddress.ip_address("127.0.0.1"),
        ipaddress.ip_address("::1"),
    ]
    certificate.verify_directly_issued_by(certificate_in(authority.ca_file))


def test_an_authority_is_the_same_when_it_is_opened_again(
    authority: CertificateAuthority, clock: VirtualClock
) -> None:
    before = {file.name: file.read_bytes() for file in authority.ca_file.parent.iterdir()}
    again = CertificateAuthority.open_or_create(authority.ca_file.parent, clock=clock)
    assert {file.name: file.read_bytes() for file in again.ca_file.parent.iterdir()} == before


@pytest.mark.parametrize(("days", "is_renewed"), [(825 - 31, False), (825 - 29, True), (825 + 10, True)])
def test_the_servers_certificate_is_renewed_when_under_thirty_days_are_left(
    authority: CertificateAuthority, clock: VirtualClock, days: int, is_renewed: bool
) -> None:
    before = authority.server_certificate_file.read_bytes()
    clock.advance_to(START_S + days * DAY_S)
    CertificateAuthority.open_or_create(authority.ca_file.parent, clock=clock)
    assert (authority.server_certificate_file.read_bytes() != before) == is_renewed


@pytest.mark.parametrize("name", ["server.pem", "server.key"])
def test_a_damaged_server_certificate_is_made_again(authority: CertificateAuthority, name: str) -> None:
    file = authority.ca_file.parent / name
    file.write_bytes(b"damaged")
    CertificateAuthority.open_or_create(authority.ca_file.parent)
    assert b"BEGIN" in file.read_bytes()


@pytest.mark.parametrize("name", ["ca.pem", "ca.key"])
@pytest.mark.parametrize("content", [None, b"damaged"])
def test_an_authority_whose_own_files_are_lost_is_not_made_again(
    authority: CertificateAuthority, name: str, content: bytes | None
) -> None:
    file = authority.ca_file.parent / name
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(CertificateStoreError, match=name):
        CertificateAuthority.open_or_create(authority.ca_file.parent)


def test_the_authoritys_key_lies_sealed_on_disk(authority: CertificateAuthority) -> None:
    content = (authority.ca_file.parent / "ca.key").read_bytes()
    assert b"PRIVATE KEY" not in content
    with pytest.raises(ValueError, match=r"."):
        serialization.load_pem_private_key(content, password=None)
    with pytest.raises(ValueError, match=r"."):
        serialization.load_der_private_key(content, password=None)


def test_the_plain_key_of_an_older_version_is_sealed_at_the_next_start(
    authority: CertificateAuthority, clock: VirtualClock
) -> None:
    file, key_file = authority.ca_file.parent / "ca.key", authority.ca_file.parent.parent / "vault.key"
    plain = Vault.open(key_file).unseal(file.read_bytes(), b"twinfleet certificate authority key")
    file.write_bytes(plain)
    for _ in range(2):
        CertificateAuthority.open_or_create(authority.ca_file.parent, clock=clock)
        assert b"PRIVATE KEY" not in file.read_bytes()
    assert Vault.open(key_file).unseal(file.read_bytes(), b"twinfleet certificate authority key") == plain
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_lost_key_file_is_named_and_not_made_again(authority: CertificateAuthority) -> None:
    key_file = authority.ca_file.parent.parent / "vault.key"
    key_file.unlink()
    with pytest.raises(VaultError, match=rf"{key_file}: is missing.*ca\.key.*restore it"):
        CertificateAuthority.open_or_create(authority.ca_file.parent)
    assert not key_file.exists()


def test_a_wrong_key_file_is_named(authority: CertificateAuthority, tmp_path: Path) -> None:
    other = tmp_path / "other.key"
    Vault.open(other)
    with pytest.raises(VaultError, match=rf"{other}: is not the key .*restore"):
        CertificateAuthority.open_or_create(authority.ca_file.parent, key_file=other)


def test_a_key_file_may_lie_elsewhere(tmp_path: Path) -> None:
    key_file = tmp_path / "elsewhere.key"
    made = CertificateAuthority.open_or_create(tmp_path / "pki", key_file=key_file)
    again = CertificateAuthority.open_or_create(tmp_path / "pki", key_file=key_file)
    assert again.certificate_pem() == made.certificate_pem()
    assert not (tmp_path / "vault.key").exists()


def test_a_creation_that_was_cut_off_is_begun_again(tmp_path: Path) -> None:
    (tmp_path / "ca.key").write_bytes(b"half a k")
    assert CertificateAuthority.open_or_create(tmp_path).revoked_serials() == frozenset()


def test_the_key_of_another_authority_is_refused(authority: CertificateAuthority, tmp_path: Path) -> None:
    CertificateAuthority.open_or_create(tmp_path / "other")
    (tmp_path / "other" / "ca.key").replace(authority.ca_file.parent / "ca.key")
    with pytest.raises(CertificateStoreError, match=r"is not the key of ca\.pem"):
        CertificateAuthority.open_or_create(authority.ca_file.parent)


def test_an_expired_authority_is_refused(authority: CertificateAuthority, clock: VirtualClock) -> None:
    clock.advance_to(START_S + 3654 * DAY_S)
    with pytest.raises(CertificateStoreError, match="has expired"):
        CertificateAuthority.open_or_create(authority.ca_file.parent, clock=clock)


# ---- issuing -------------------------------------------------------------------------------------------------------


def test_a_certificate_is_a_clients_and_carries_the_given_name_not_the_requests(
    authority: CertificateAuthority,
) -> None:
    request = generate_key_and_csr("i-am-root")
    issued = authority.issue_from_csr(request.csr_pem, "sensor-1")
    certificate = x509.load_pem_x509_certificate(issued.certificate_pem.encode())
    assert certificate.subject.rfc4514_string() == "CN=sensor-1"
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    certificate.verify_directly_issued_by(certificate_in(authority.ca_file))
    assert certificate.serial_number == issued.serial
    assert certificate.not_valid_after_utc.timestamp() == issued.expires_at_s


def test_the_certificate_id_is_the_hash_of_the_public_key(authority: CertificateAuthority) -> None:
    request = generate_key_and_csr("sensor-1")
    key = serialization.load_pem_private_key(request.private_key_pem.encode(), password=None)
    encoded = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    issued = authority.issue_for_thing(request.csr_pem, "x" * 65)
    assert issued.certificate_id == hashlib.sha256(encoded).hexdigest() == issued.common_name


@pytest.mark.parametrize(
    "common_name",
    [
        *("", "a b", "a/b", "+", "#", "%u", "a.b", "x" * 65, ID, "app.", "sensor-1\n", "Ä"),
        # The platform's own.
        *("app.bridge", "app.events", "app.probe", "app.probe-1"),
    ],
)
def test_a_name_that_could_deceive_the_broker_is_not_certified(
    authority: CertificateAuthority, common_name: str
) -> None:
    with pytest.raises(CertificateRequestError):
        authority.issue_from_csr(generate_key_and_csr("x").csr_pem, common_name)


@pytest.mark.parametrize("thing_name", ["", "app.x", "claim.x", "x" * 129, "a/b"])
def test_what_is_no_thing_name_gets_no_things_certificate(
    authority: CertificateAuthority, thing_name: str
) -> None:
    with pytest.raises(CertificateRequestError, match="is no thing name"):
        authority.issue_for_thing(generate_key_and_csr("x").csr_pem, thing_name)


def csr_of(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> str:
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def tampered_csr() -> str:
    """Return a request whose signature is another request's."""
    ours, theirs = (
        x509.load_pem_x509_csr(generate_key_and_csr("x").csr_pem.encode()).public_bytes(
            serialization.Encoding.DER
        )
        for _ in range(2)
    )
    start = ours.index(x509.load_der_x509_csr(ours).tbs_certrequest_bytes)
    body = x509.load_der_x509_csr(theirs).tbs_certrequest_bytes
    mixed = ours[:start] + body + ours[start + len(body) :]
    return x509.load_der_x509_csr(mixed).public_bytes(serialization.Encoding.PEM).decode()


@pytest.mark.parametrize(
    ("csr_pem", "said"),
    [
        ("", "is not PEM of PKCS #10"),
        (
            "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
            "is not PEM of PKCS #10",
        ),
        ("\ud800", "is not PEM of PKCS #10"),
        ("x" * 4097, "is longer than 4096 characters"),
        (csr_of(ec.generate_private_key(ec.SECP384R1())), "must be for an EC key on the curve P-256"),
        (csr_of(rsa.generate_private_key(65537, 2048)), "must be for an EC key on the curve P-256"),
        (tampered_csr(), "is not signed with the key that it is for"),
    ],
)
def test_a_bad_signing_request_is_refused(authority: CertificateAuthority, csr_pem: str, said: str) -> None:
    with pytest.raises(CertificateRequestError, match=said):
        authority.issue_from_csr(csr_pem, "sensor-1")


# ---- revoking ------------------------------------------------------------------------------------------------------


def test_what_is_revoked_stays_revoked(authority: CertificateAuthority, clock: VirtualClock) -> None:
    authority.revoke([7, 8], clock=clock)
    clock.advance_to(START_S + DAY_S)
    authority.revoke([8, 9], clock=clock)
    again = CertificateAuthority.open_or_create(authority.ca_file.parent, clock=clock)
    assert again.revoked_serials() == {7, 8, 9}
    crl = x509.load_pem_x509_crl(authority.crl_file.read_bytes())
    entry = crl.get_revoked_certificate_by_serial_number(8)
    assert entry is not None
    assert entry.revocation_date_utc.timestamp() == START_S
    # A list past this date would lock out every device.
    assert crl.next_update_utc is not None
    assert crl.next_update_utc.timestamp() == START_S + 31 * DAY_S


@pytest.mark.parametrize("content", [None, b"damaged"])
def test_a_lost_revocation_list_is_made_again_from_what_is_known(
    authority: CertificateAuthority, clock: VirtualClock, content: bytes | None
) -> None:
    authority.revoke([7])
    authority.crl_file.unlink() if content is None else authority.crl_file.write_bytes(content)
    again = CertificateAuthority.open_or_create(authority.ca_file.parent, clock=clock)
    assert not again.is_list_whole()
    assert again.is_list_due(clock=clock)
    # With what it held unknown, nothing may be added to it.
    with pytest.raises(CertificateStoreError, match=r"crl\.pem"):
        again.revoke([8])
    again.renew_list({7: START_S, 8: START_S}, clock=clock)
    assert again.is_list_whole({7, 8})
    assert not again.is_list_whole({9})


def test_the_list_of_another_authority_is_broken(authority: CertificateAuthority, tmp_path: Path) -> None:
    other = CertificateAuthority.open_or_create(tmp_path / "other")
    authority.crl_file.write_bytes(other.crl_file.read_bytes())
    assert not authority.is_list_whole()


@pytest.mark.parametrize(("days", "is_due"), [(0, False), (14, False), (15, True), (31, True)])
def test_a_revocation_list_is_due_when_half_its_life_is_over(
    authority: CertificateAuthority, clock: VirtualClock, days: int, is_due: bool
) -> None:
    clock.advance_to(START_S + days * DAY_S)
    assert authority.is_list_due(clock=clock) == is_due
    authority.revoke([7], clock=VirtualClock(START_S))
    authority.renew_list({}, clock=clock)
    assert not authority.is_list_due(clock=clock)
    assert authority.revoked_serials() == {7}


def test_a_revocation_that_cannot_be_written_leaves_the_old_list(authority: CertificateAuthority) -> None:
    authority.revoke([7])
    before = authority.crl_file.read_bytes()
    with pytest.raises(ValueError, match="serial number"):
        authority.revoke([-1])
    assert authority.crl_file.read_bytes() == before
