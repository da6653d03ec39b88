"""Certificates: the platform's own authority, and the one function from a certificate to its principal.

Owns the authority's keys and files, what a common name may be and what it means. Who is registered, which
certificate belongs to which thing and which are revoked is the registry's: a revocation list that is lost is made
again from there.

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
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from actors.errors import CertificateRequestError, CertificateStoreError, VaultError
from actors.settings import write_atomically
from actors.vault import Vault, is_sealed
from actors.wall_clock import WallClock
from twins.clock import Clock
from twins.sharding import is_certificate_id, is_name, is_thing_name

# The platform's own user on the broker's internal listener. No certificate is ever issued for it: on the devices'
# listener the common name becomes the client id, and would take over the bridge's session.
INTERNAL_USER: Final = "app.bridge"
# The gateway's session, which hears the broker's log; and what every probe's client id begins with.
EVENTS_USER: Final = "app.events"
PROBE_USER: Final = "app.probe"
_RESERVED_NAMES: Final = frozenset({INTERNAL_USER, EVENTS_USER})
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
# A copy of the list that somebody kept is no good after that; and it is renewed when half of it is over, so that a
# platform which stood still for two weeks starts with one that is still good.
_LIST_LIFE: Final = dt.timedelta(days=30)
_LIST_RENEWAL: Final = _LIST_LIFE / 2
# Room for lists that follow each other faster than one a second, which each provisioning brings two of: a year of them.
_LIST_BACKDATING: Final = dt.timedelta(days=365)
# What the sealed key is, so that no other sealed secret passes for it.
_KEY_CONTEXT: Final = b"twinfleet certificate authority key"
# A device's clock may be behind, or set to the wrong zone, when it first connects.
_BACKDATING: Final = dt.timedelta(days=1)
# How the common names of claims begin.
CLAIM_PREFIX: Final = "claim."
_PREFIXES: Final[dict[str, Literal["application", "claim"]]] = {
    "app.": "application",
    CLAIM_PREFIX: "claim",
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
            return Principal(kind, name) if is_name(name) else None
    if is_certificate_id(common_name):
        thing_name = thing_of_certificate(common_name)
        return None if thing_name is None else Principal("thing", thing_name)
    return Principal("thing", common_name) if is_thing_name(common_name) else None


def common_name_for_thing(thing_name: str, certificate_id: str, *, taken: Collection[str] = ()) -> str:
    """Return the common name for a thing's certificate: the thing name if it can be one, else the certificate id.

    `taken` are the common names of the thing's other certificates in force: the common name is the broker's client id,
    so two devices of one would throw each other out.
    """
    if len(thing_name) <= COMMON_NAME_MAX and thing_name not in taken:
        return thing_name
    return certificate_id


def is_reserved(common_name: str) -> bool:
    """Tell whether the platform's own sessions use the name: with it, a client could throw them out of the broker."""
    return common_name in _RESERVED_NAMES or common_name.startswith(PROBE_USER)


def certificate_id_of(public_key: ec.EllipticCurvePublicKey) -> str:
    """Return the certificate id of every certificate for this key."""
    encoded = public_key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(encoded).hexdigest()


def generate_key_and_csr(name: str) -> KeyAndRequest:
    """Return a new EC P-256 key and a signing request that carries `name` where it fits; the authority ignores it."""
    key = ec.generate_private_key(ec.SECP256R1())
    return KeyAndRequest(private_key_pem=_key_pem(key).decode(), csr_pem=_csr_pem(key, name))


def csr_for_key_file(file: Path, name: str) -> str:
    """Return a signing request, as `generate_key_and_csr` makes it, for the key in a file.

    CertificateRequestError if there is no EC private key in it.
    """
    try:
        key = serialization.load_pem_private_key(file.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise CertificateRequestError(str(file), f"is no private key ({error}); move it away") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CertificateRequestError(str(file), "is no EC private key; move it away")
    return _csr_pem(key, name)


class CertificateAuthority:
    """The authority of one platform: signs certificates for devices and for its own servers, and revokes them.

    Its directory holds ca.pem, ca.key (sealed), server.pem, server.key and crl.pem, all readable by their owner only.
    """

    def __init__(
        self,
        directory: Path,
        certificate: x509.Certificate,
        key: ec.EllipticCurvePrivateKey,
    ) -> None:
        """Prepare the authority with this certificate and key; `open_or_create` finds them."""
        self.ca_file: Final = directory / "ca.pem"
        self.server_certificate_file: Final = directory / "server.pem"
        self.server_key_file: Final = directory / "server.key"
        self.crl_file: Final = directory / "crl.pem"
        self._directory = directory
        self._certificate = certificate
        self._key = key

    @classmethod
    def open_or_create(
        cls, directory: Path, *, key_file: Path | None = None, clock: Clock | None = None
    ) -> CertificateAuthority:
        """Return the authority that `directory` keeps, made now if there is none, with a valid server certificate.

        Its key is sealed under the vault's key in `key_file` (None: vault.key beside the directory, which is where a
        data directory has it); a plain one of an older version is sealed now. CertificateStoreError or VaultError,
        naming the file to restore, if ca.pem, ca.key or the key file is missing or damaged: a new authority would
        lock out every device. The revocation list may be broken: see `is_list_whole`.
        """
        now = _moment(clock or WallClock())
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        vault_file = key_file or directory.parent / "vault.key"
        with _exclusive(directory):
            ca_file = directory / "ca.pem"
            if ca_file.exists():
                key = _open_authority_key(directory / "ca.key", vault_file)
                authority = cls(directory, _read_certificate(ca_file), key)
                authority._check(now)
            elif (directory / "server.pem").exists():
                raise CertificateStoreError(ca_file, "is missing, though the authority has been in use")
            else:
                authority = cls._create(directory, Vault.open(vault_file), now)
            if not authority._server_certificate_serves(now):
                authority._renew_server_certificate(now)
        return authority

    def certificate_pem(self) -> str:
        """Return the authority's own certificate, which devices need to check the servers."""
        return _certificate_pem(self._certificate).decode()

    def issue_for_thing(
        self, csr_pem: str, thing_name: str, *, taken: Collection[str] = (), clock: Clock | None = None
    ) -> IssuedCertificate:
        """Return a device certificate for the thing; see `common_name_for_thing` for its common name."""
        if not is_thing_name(thing_name):
            problem = (
                "is no thing name: 1 to 128 of letters, digits, colon, underscore and hyphen, unlike an id"
            )
            raise CertificateRequestError(repr(thing_name), problem)
        certificate_id = certificate_id_of(_public_key_of_csr(csr_pem))
        common_name = common_name_for_thing(thing_name, certificate_id, taken=taken)
        return self.issue_from_csr(csr_pem, common_name, clock=clock)

    def issue_unnamed(self, csr_pem: str, *, clock: Clock | None = None) -> IssuedCertificate:
        """Return a device certificate whose common name is its id, for a thing that is named later."""
        return self.issue_from_csr(csr_pem, certificate_id_of(_public_key_of_csr(csr_pem)), clock=clock)

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
        device's open session. CertificateStoreError if the list is broken, and what it held would be lost.
        """
        now = _moment(clock or WallClock())
        with _exclusive(self._directory):
            self._read_crl()
            self._renew_list(dict.fromkeys(serials, now.timestamp()), now)

    def renew_list(
        self,
        revoked: Mapping[int, float],
        *,
        admitted: Collection[int] = (),
        clock: Clock | None = None,
    ) -> None:
        """Write the revocation list anew, good for 30 days: `revoked` (serial -> since when, s) and what it held.

        `revoked` must be all there is: of a list that cannot be read, nothing is kept. Serials in `admitted`, of
        certificates that were held back for a time, are taken off.
        """
        with _exclusive(self._directory):
            self._renew_list(revoked, _moment(clock or WallClock()), admitted)

    def is_list_whole(self, serials: Collection[int] = (), *, without: Collection[int] = ()) -> bool:
        """Tell whether the revocation list is good, holds all of these serial numbers and none of those `without`."""
        try:
            listed = self.revoked_serials()
        except CertificateStoreError:
            return False
        return listed.issuperset(serials) and listed.isdisjoint(without)

    def is_list_due(self, *, clock: Clock | None = None) -> bool:
        """Tell whether the revocation list should be renewed: half of its life is over, or it is broken.

        A list that lives longer than ours do, as those of older versions did, is due as well.
        """
        now = _moment(clock or WallClock())
        try:
            end = self._read_crl().next_update_utc
        except CertificateStoreError:
            return True
        return end is None or not _LIST_RENEWAL < end - now <= _LIST_LIFE

    def revoked_serials(self) -> frozenset[int]:
        """Return the serial numbers on the revocation list."""
        return frozenset(entry.serial_number for entry in self._read_crl())

    @classmethod
    def _create(cls, directory: Path, vault: Vault, now: dt.datetime) -> CertificateAuthority:
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
        write_atomically(directory / "ca.key", vault.seal(_key_pem(key), _KEY_CONTEXT))
        authority._write_crl((), now)
        # Last: an authority without ca.pem has never issued anything and is simply made again.
        write_atomically(authority.ca_file, _certificate_pem(certificate))
        return authority

    def _check(self, now: dt.datetime) -> None:
        if self._key.public_key() != self._certificate.public_key():
            raise CertificateStoreError(self._directory / "ca.key", "is not the key of ca.pem")
        if self._certificate.not_valid_after_utc <= now:
            raise CertificateStoreError(self.ca_file, "has expired")

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

    def _renew_list(
        self, revoked: Mapping[int, float], now: dt.datetime, admitted: Collection[int] = ()
    ) -> None:
        entries: dict[int, x509.RevokedCertificate] = {}
        with suppress(CertificateStoreError):
            entries = {entry.serial_number: entry for entry in self._read_crl()}
        for serial in admitted:
            entries.pop(serial, None)
        for serial, since_s in revoked.items():
            since = dt.datetime.fromtimestamp(since_s, tz=dt.UTC)
            builder = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(since)
            entries.setdefault(serial, builder.build())
        self._write_crl(list(entries.values()), now)

    def _next_last_update(self, now: dt.datetime) -> dt.datetime:
        """Return a date for a new list, a second after that of the one before, which the broker may hold.

        mosquitto keeps what it has ever read, and OpenSSL takes the list with the latest date: of two with the same
        second it goes on with the first, and whoever the second one revokes is let in (2.0.11, measured).
        """
        try:
            before = self._read_crl().last_update_utc
        except CertificateStoreError:
            before = now - _BACKDATING if self.crl_file.exists() else now - _LIST_BACKDATING
        return max(now - _LIST_BACKDATING, before + dt.timedelta(seconds=1))

    def _write_crl(self, revoked: Sequence[x509.RevokedCertificate], now: dt.datetime) -> None:
        builder = (
            # Adding them one by one would copy all of them each time.
            x509.CertificateRevocationListBuilder(revoked_certificates=list(revoked))
            .issuer_name(self._certificate.subject)
            .last_update(self._next_last_update(now))
            # mosquitto refuses every device once the list is past this date.
            .next_update(now + _LIST_LIFE)
            # Numbers must grow (RFC 5280, 5.2.3); microseconds do, without state.
            .add_extension(x509.CRLNumber(int(now.timestamp() * 1_000_000)), critical=False)
        )
        serials = {entry.serial_number for entry in revoked}
        content = builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

        def check(written: bytes) -> None:
            # A broken list would make mosquitto admit every revoked certificate at its next reload.
            if {entry.serial_number for entry in self._checked_crl(written)} != serials:
                raise CertificateStoreError(self.crl_file, "does not read back as written")

        write_atomically(self.crl_file, content, check=check)


def _check_common_name(common_name: str, certificate_id: str) -> None:
    if is_reserved(common_name):
        raise CertificateRequestError(common_name, "is the platform's own user; choose another name")
    if len(common_name) > COMMON_NAME_MAX:
        problem = f"is longer than {COMMON_NAME_MAX} characters; certify the thing by its certificate id"
        raise CertificateRequestError(common_name, problem)
    if is_certificate_id(common_name) and common_name != certificate_id:
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
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
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


def _csr_pem(key: ec.EllipticCurvePrivateKey, name: str) -> str:
    subject = _subject(name) if 0 < len(name) <= COMMON_NAME_MAX else x509.Name([])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


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


def _open_authority_key(file: Path, vault_file: Path) -> ec.EllipticCurvePrivateKey:
    """Return the authority's key, and leave it sealed."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise CertificateStoreError(file, f"is no private key: {error}") from None
    if is_sealed(content):
        if not vault_file.exists():
            # Opened, a missing one would be made, and only then found to be the wrong one.
            problem = (
                f"is missing, and {file} was sealed under it; restore it, or name its place with key_file"
            )
            raise VaultError(vault_file, problem)
        return _parse_key(Vault.open(vault_file).unseal(content, _KEY_CONTEXT), file)
    key = _parse_key(content, file)
    write_atomically(file, Vault.open(vault_file).seal(content, _KEY_CONTEXT))
    return key


def _read_key(file: Path) -> ec.EllipticCurvePrivateKey:
    try:
        return _parse_key(file.read_bytes(), file)
    except OSError as error:
        raise CertificateStoreError(file, f"is no private key: {error}") from None


def _parse_key(content: bytes, file: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except (ValueError, TypeError) as error:
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
