"""Certificates: the platform's own authority, and the one function from a certificate to its principal.

Owns the authority's keys and files, what a common name may be and what it means. Who is registered, which
certificate belongs to which thing and which are revoked is the registry's; it calls `revoke` here.

The *certificate id* of this platform is the SHA-256 of the public key (DER SubjectPublicKeyInfo) in 64 lower-case
hexadecimal digits, for all certificates alike. The hash of the certificate itself would not do: it is known only after
signing, and the id of a long-named thing's certificate stands inside it. Two certificates for one key have one id.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import hashlib
import ipaddress
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from actors.errors import CertificateRequestError, CertificateStoreError
from actors.settings import write_atomically
from actors.wall_clock import WallClock
from twins.clock import Clock
from twins.sharding import is_thing_name

# The platform's own user on the broker's internal listener. No certificate is ever issued for it: on the devices'
# listener the common name becomes the client id, and would take over the bridge's session.
INTERNAL_USER: Final = "app.bridge"
# X.509's upper bound for a common name (RFC 5280, ub-common-name).
COMMON_NAME_MAX: Final = 64
# The longest signing request that AWS IoT takes; ours are about 500 characters.
_CSR_LENGTH_MAX: Final = 4096
# A device is in the field for years and the authority cannot be exchanged from afar.
_AUTHORITY_LIFE: Final = dt.timedelta(days=3653)
# Clients of one big vendor refuse a server certificate that lives longer.
_SERVER_LIFE: Final = dt.timedelta(days=825)
# Time enough for a platform that is restarted monthly.
_SERVER_RENEWAL: Final = dt.timedelta(days=30)
# A device's clock may be behind, or set to the wrong zone, when it first connects.
_BACKDATING: Final = dt.timedelta(days=1)
_CERTIFICATE_ID: Final = re.compile(r"[0-9a-fA-F]{64}")
_PREFIXES: Final[dict[str, Literal["application", "claim"]]] = {
    "app.": "application",
    "claim.": "claim",
}


@dataclass(frozen=True, slots=True)
class Principal:
    """Who stands behind a certificate; `name` is a thing name, or what follows `app.` or `claim.`."""

    kind: Literal["thing", "application", "claim"]
    name: str


@dataclass(frozen=True, slots=True)
class KeyAndRequest:
    """A fresh private key (PKCS #8) and a signing request for it, both PEM."""

    private_key_pem: str
    csr_pem: str


@dataclass(frozen=True, slots=True)
class IssuedCertificate:
    """A certificate that the authority has signed."""

    certificate_id: str
    common_name: str
    certificate_pem: str
    serial: int
    expires_at_s: float


def principal_of(
    certificate: x509.Certificate | str,
    thing_of_certificate: Callable[[str], str | None],
) -> Principal | None:
    """Return the principal of a certificate of this authority, or of its common name; None if it names nobody.

    `thing_of_certificate` gives the thing to which a certificate id is registered, or None. That the certificate is
    genuine and not revoked is for the caller's TLS to check.
    """
    common_name = certificate if isinstance(certificate, str) else _common_name(certificate)
    for prefix, kind in _PREFIXES.items():
        if common_name.startswith(prefix):
            name = common_name.removeprefix(prefix)
            return Principal(kind, name) if is_thing_name(name) else None
    if is_certificate_id(common_name):
        thing_name = thing_of_certificate(common_name)
        return None if thing_name is None else Principal("thing", thing_name)
    return Principal("thing", common_name) if is_thing_name(common_name) else None


def common_name_for_thing(thing_name: str, certificate_id: str) -> str:
    """Return the common name for a thing's certificate: the thing name if it can be one, else the certificate id.

    A thing name that looks like a certificate id gets the id too, or it could pass for another thing's certificate.
    """
    if len(thing_name) <= COMMON_NAME_MAX and not is_certificate_id(thing_name):
        return thing_name
    return certificate_id


def is_certificate_id(name: str) -> bool:
    """Tell whether a name looks like a certificate id."""
    return _CERTIFICATE_ID.fullmatch(name) is not None


def certificate_id_of(public_key: ec.EllipticCurvePublicKey) -> str:
    """Return the certificate id of every certificate for this key."""
    encoded = public_key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(encoded).hexdigest()


def generate_key_and_csr(name: str) -> KeyAndRequest:
    """Return a new EC P-256 key and a signing request that carries `name` where it fits; the authority ignores it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject(name) if 0 < len(name) <= COMMON_NAME_MAX else x509.Name([])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    csr_pem = request.public_bytes(serialization.Encoding.PEM).decode()
    return KeyAndRequest(private_key_pem=_key_pem(key).decode(), csr_pem=csr_pem)


class CertificateAuthority:
    """The authority of one platform: signs certificates for devices and for its own servers, and revokes them.

    Its directory holds ca.pem, ca.key, server.pem, server.key and crl.pem, all readable by their owner only.
    """

    def __init__(
        self,
        directory: Path,
        certificate: x509.Certificate,
        key: ec.EllipticCurvePrivateKey,
    ) -> None:
        self.ca_file: Final = directory / "ca.pem"
        self.server_certificate_file: Final = directory / "server.pem"
        self.server_key_file: Final = directory / "server.key"
        self.crl_file: Final = directory / "crl.pem"
        self._directory = directory
        self._certificate = certificate
        self._key = key

    @classmethod
    def open_or_create(cls, directory: Path, *, clock: Clock | None = None) -> CertificateAuthority:
        """Return the authority that `directory` keeps, made now if there is none, with a valid server certificate.

        CertificateStoreError if a file is missing or damaged: a new authority would lock out every device, and a
        new revocation list would let the revoked ones in.
        """
        now = _moment(clock or WallClock())
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _exclusive(directory):
            ca_file = directory / "ca.pem"
            if ca_file.exists():
                authority = cls(
                    directory,
                    _read_certificate(ca_file),
                    _read_key(directory / "ca.key"),
                )
                authority._check(now)
            elif (directory / "server.pem").exists():
                raise CertificateStoreError(ca_file, "is missing, though the authority has been in use")
            else:
                authority = cls._create(directory, now)
            if not authority._server_certificate_serves(now):
                authority._renew_server_certificate(now)
        return authority

    def certificate_pem(self) -> str:
        """Return the authority's own certificate, which devices need to check the servers."""
        return _certificate_pem(self._certificate).decode()

    def issue_for_thing(
        self, csr_pem: str, thing_name: str, *, clock: Clock | None = None
    ) -> IssuedCertificate:
        """Return a device certificate for the thing; see `common_name_for_thing` for its common name."""
        if not is_thing_name(thing_name):
            problem = "is no thing name: 1 to 128 of letters, digits, colon, underscore and hyphen"
            raise CertificateRequestError(repr(thing_name), problem)
        certificate_id = certificate_id_of(_public_key_of_csr(csr_pem))
        return self.issue_from_csr(csr_pem, common_name_for_thing(thing_name, certificate_id), clock=clock)

    def issue_from_csr(
        self, csr_pem: str, common_name: str, *, clock: Clock | None = None
    ) -> IssuedCertificate:
        """Return a client certificate with this common name for the key of the signing request.

        Subject and extensions of the request are ignored. CertificateRequestError if the request is malformed or
        the name may not be certified.
        """
        public_key = _public_key_of_csr(csr_pem)
        certificate_id = certificate_id_of(public_key)
        _check_common_name(common_name, certificate_id)
        now = _moment(clock or WallClock())
        builder = self._builder(public_key, _subject(common_name), now=now)
        builder = builder.not_valid_after(self._certificate.not_valid_after_utc)
        certificate = builder.add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        ).sign(self._key, hashes.SHA256())
        return IssuedCertificate(
            certificate_id=certificate_id,
            common_name=common_name,
            certificate_pem=_certificate_pem(certificate).decode(),
            serial=certificate.serial_number,
            expires_at_s=certificate.not_valid_after_utc.timestamp(),
        )

    def revoke(self, serials: Iterable[int], *, clock: Clock | None = None) -> None:
        """Add the serial numbers to the revocation list; those that stand in it stay.

        Servers read the list when they are told to, and only for new connections: reload the broker, then end the
        device's open session.
        """
        now = _moment(clock or WallClock())
        with _exclusive(self._directory):
            revoked = {entry.serial_number: entry for entry in self._read_crl()}
            for serial in serials:
                builder = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now)
                revoked.setdefault(serial, builder.build())
            self._write_crl(revoked.values(), now)

    def revoked_serials(self) -> frozenset[int]:
        """Return the serial numbers on the revocation list."""
        return frozenset(entry.serial_number for entry in self._read_crl())

    @classmethod
    def _create(cls, directory: Path, now: dt.datetime) -> CertificateAuthority:
        key = ec.generate_private_key(ec.SECP256R1())
        # A name of its own, so that a client that knows several platforms tells their authorities apart.
        subject = _subject(f"twinfleet CA {certificate_id_of(key.public_key())[:8]}")
        usage = _key_usage(is_authority=True)
        certificate = (
            x509.CertificateBuilder(issuer_name=subject, subject_name=subject, public_key=key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _BACKDATING)
            .not_valid_after(now + _AUTHORITY_LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()),
                critical=False,
            )
            .sign(key, hashes.SHA256())
        )
        authority = cls(directory, certificate, key)
        write_atomically(directory / "ca.key", _key_pem(key))
        authority._write_crl((), now)
        # Last: an authority without ca.pem has never issued anything and is simply made again.
        write_atomically(authority.ca_file, _certificate_pem(certificate))
        return authority

    def _check(self, now: dt.datetime) -> None:
        if self._key.public_key() != self._certificate.public_key():
            raise CertificateStoreError(self._directory / "ca.key", "is not the key of ca.pem")
        if self._certificate.not_valid_after_utc <= now:
            raise CertificateStoreError(self.ca_file, "has expired")
        self._read_crl()

    def _builder(
        self,
        public_key: ec.EllipticCurvePublicKey,
        subject: x509.Name,
        *,
        now: dt.datetime,
    ) -> x509.CertificateBuilder:
        issuer_key = self._key.public_key()
        return (
            x509.CertificateBuilder(issuer_name=self._certificate.subject, subject_name=subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(max(now - _BACKDATING, self._certificate.not_valid_before_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(is_authority=False), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key),
                critical=False,
            )
        )

    def _server_certificate_serves(self, now: dt.datetime) -> bool:
        if not (self.server_certificate_file.exists() and self.server_key_file.exists()):
            return False
        try:
            certificate = _read_certificate(self.server_certificate_file)
            key = _read_key(self.server_key_file)
            certificate.verify_directly_issued_by(self._certificate)
        except (CertificateStoreError, InvalidSignature, ValueError, TypeError):
            # The server's certificate holds nothing that could be lost: a new one serves as well.
            return False
        return (
            key.public_key() == certificate.public_key()
            and certificate.not_valid_after_utc - now >= _SERVER_RENEWAL
        )

    def _renew_server_certificate(self, now: dt.datetime) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.DNSName("localhost")]
        names += [x509.IPAddress(ipaddress.ip_address(address)) for address in ("127.0.0.1", "::1")]
        certificate = (
            self._builder(key.public_key(), _subject("localhost"), now=now)
            .not_valid_after(min(now + _SERVER_LIFE, self._certificate.not_valid_after_utc))
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        # Cut off between the two, they do not belong together, and the next start makes a new pair.
        write_atomically(self.server_key_file, _key_pem(key))
        write_atomically(self.server_certificate_file, _certificate_pem(certificate))

    def _read_crl(self) -> x509.CertificateRevocationList:
        try:
            return self._checked_crl(self.crl_file.read_bytes())
        except (OSError, ValueError) as error:
            raise CertificateStoreError(self.crl_file, f"is no revocation list of ours: {error}") from None

    def _checked_crl(self, content: bytes) -> x509.CertificateRevocationList:
        crl = x509.load_pem_x509_crl(content)
        if not crl.is_signature_valid(self._key.public_key()):
            raise ValueError("its signature is not this authority's")
        return crl

    def _write_crl(self, revoked: Iterable[x509.RevokedCertificate], now: dt.datetime) -> None:
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(now - _BACKDATING)
            # mosquitto refuses every device once the list is past this date, so it lives as long as the authority.
            .next_update(self._certificate.not_valid_after_utc)
            # Numbers must grow (RFC 5280, 5.2.3); microseconds do, without state.
            .add_extension(x509.CRLNumber(int(now.timestamp() * 1_000_000)), critical=False)
        )
        serials = set()
        for entry in revoked:
            builder = builder.add_revoked_certificate(entry)
            serials.add(entry.serial_number)
        content = builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

        def check(written: bytes) -> None:
            # A broken list would make mosquitto admit every revoked certificate at its next reload.
            if {entry.serial_number for entry in self._checked_crl(written)} != serials:
                raise CertificateStoreError(self.crl_file, "does not read back as written")

        write_atomically(self.crl_file, content, check=check)


def _check_common_name(common_name: str, certificate_id: str) -> None:
    if common_name == INTERNAL_USER:
        raise CertificateRequestError(common_name, "is the platform's own user; choose another name")
    if len(common_name) > COMMON_NAME_MAX:
        problem = f"is longer than {COMMON_NAME_MAX} characters; certify the thing by its certificate id"
        raise CertificateRequestError(common_name, problem)
    if _CERTIFICATE_ID.fullmatch(common_name) and common_name != certificate_id:
        raise CertificateRequestError(common_name, "is the certificate id of another key")
    if principal_of(common_name, lambda registered: registered) is None:
        problem = (
            "may hold letters, digits, colon, underscore and hyphen only, after `app.` or `claim.` if any"
        )
        raise CertificateRequestError(repr(common_name), problem)


def _public_key_of_csr(csr_pem: str) -> ec.EllipticCurvePublicKey:
    subject = "the certificate signing request"
    if len(csr_pem) > _CSR_LENGTH_MAX:
        raise CertificateRequestError(subject, f"is longer than {_CSR_LENGTH_MAX} characters")
    try:
        request = x509.load_pem_x509_csr(csr_pem.encode())
        public_key = request.public_key()
        is_signed = request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CertificateRequestError(subject, f"is not PEM of PKCS #10: {error}") from None
    if not isinstance(public_key, ec.EllipticCurvePublicKey) or public_key.curve.name != "secp256r1":
        raise CertificateRequestError(subject, "must be for an EC key on the curve P-256")
    if not is_signed:
        raise CertificateRequestError(subject, "is not signed with the key that it is for")
    return public_key


def _common_name(certificate: x509.Certificate) -> str:
    values = [
        attribute.value for attribute in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    ]
    # With none or several, '' names nobody; this authority issues exactly one.
    return values[0] if len(values) == 1 and isinstance(values[0], str) else ""


def _subject(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _key_usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _certificate_pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _read_certificate(file: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(file.read_bytes())
    except (OSError, ValueError) as error:
        raise CertificateStoreError(file, f"is no certificate: {error}") from None


def _read_key(file: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(file.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise CertificateStoreError(file, f"is no private key: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CertificateStoreError(file, "is no EC private key")
    return key


def _moment(clock: Clock) -> dt.datetime:
    return dt.datetime.fromtimestamp(clock.now_s(), tz=dt.UTC)


@contextmanager
def _exclusive(directory: Path) -> Iterator[None]:
    # Two writers of one revocation list would lose one another's entries.
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
