"""AWS Signature Version 4: who signed a request, and whether the signature fits what arrived.

Pure: bytes and a time go in. Follows AWS's public description of the algorithm for all services but S3: the path is
encoded a second time. Where clients differ, it does as botocore, whose signatures the tests hold it to.
"""

from __future__ import annotations

import calendar
import hashlib
import hmac
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, unquote_to_bytes

from actors.errors import SignatureRefused

ALGORITHM: Final = "AWS4-HMAC-SHA256"
# The services of AWS IoT that stand behind one address here; the regions are all one.
SERVICES: Final = frozenset({"iotdata", "iotdevicegateway", "iot", "execute-api", "iot-jobs-data"})
# As AWS's: a clock may be wrong by this much, and a recorded request is good for no longer.
CLOCK_WINDOW_S: Final = 300
# AWS's upper bound for a signed URL: seven days.
_EXPIRES_MAX_S: Final = 7 * 24 * 3600
_UNSIGNED_PAYLOAD: Final = "UNSIGNED-PAYLOAD"
_TIME_FORMAT: Final = "%Y%m%dT%H%M%SZ"
_TIME: Final = re.compile(r"\d{8}T\d{6}Z")
_EXPIRES: Final = re.compile(r"\d{1,6}")
_QUERY_SIGNATURE: Final = "X-Amz-Signature"
# Names of reasons, as AWS's services spell them.
INVALID: Final = "InvalidSignatureException"
INCOMPLETE: Final = "IncompleteSignatureException"
UNKNOWN_KEY: Final = "UnrecognizedClientException"


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request as it arrived: `raw_path` and `query` still percent-encoded, header names in lower case."""

    method: str
    raw_path: bytes
    query: bytes
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes

    def header(self, name: str) -> str:
        """Return the values of a header, put together as they are signed; '' if there is none."""
        values = [value.decode("latin-1") for key, value in self.headers if key.decode("latin-1") == name]
        return ",".join(" ".join(value.split()) for value in values)


@dataclass(frozen=True, slots=True)
class Signature:
    """What a request says of its signature. `expires_s` is given for a signed URL only."""

    access_key_id: str
    date: str
    region: str
    service: str
    timestamp: str
    signed_headers: tuple[str, ...]
    value: str
    expires_s: int | None = None


def signature_of(request: HttpRequest) -> Signature | None:
    """Return the signature in a request's head or URL, None if there is none; SignatureRefused if it is malformed."""
    scheme, _, rest = request.header("authorization").partition(" ")
    if scheme == ALGORITHM:
        parts = dict(part.strip().partition("=")[::2] for part in rest.split(","))
        return _signature(
            parts.get("Credential", ""),
            request.header("x-amz-date"),
            signed_headers=parts.get("SignedHeaders", ""),
            value=parts.get("Signature", ""),
        )
    query = {key.decode("latin-1"): value.decode("latin-1") for key, value in _query_pairs(request.query)}
    if _QUERY_SIGNATURE not in query:
        return None
    if query.get("X-Amz-Algorithm") != ALGORITHM:
        raise SignatureRefused(INCOMPLETE, f"X-Amz-Algorithm must be {ALGORITHM}")
    expires = query.get("X-Amz-Expires", "")
    if not _EXPIRES.fullmatch(expires) or not 1 <= int(expires) <= _EXPIRES_MAX_S:
        raise SignatureRefused(INCOMPLETE, f"X-Amz-Expires must be from 1 to {_EXPIRES_MAX_S} seconds")
    return _signature(
        query.get("X-Amz-Credential", ""),
        query.get("X-Amz-Date", ""),
        signed_headers=query.get("X-Amz-SignedHeaders", ""),
        value=query[_QUERY_SIGNATURE],
        expires_s=int(expires),
    )


def _signature(
    credential: str, timestamp: str, *, signed_headers: str, value: str, expires_s: int | None = None
) -> Signature:
    scope = credential.split("/")
    if len(scope) != 5 or scope[4] != "aws4_request":
        problem = "the credential must be KEY/DATE/REGION/SERVICE/aws4_request"
        raise SignatureRefused(INCOMPLETE, problem)
    access_key_id, date, region, service, _ = scope
    if service not in SERVICES:
        known = ", ".join(sorted(SERVICES))
        raise SignatureRefused(INVALID, f"the credential is for service {service!r}; here are {known}")
    if not _TIME.fullmatch(timestamp) or timestamp[: len("YYYYMMDD")] != date:
        problem = "send the time of signing as X-Amz-Date: YYYYMMDDTHHMMSSZ, with the date of the credential"
        raise SignatureRefused(INCOMPLETE, problem)
    names = tuple(signed_headers.split(";"))
    return Signature(access_key_id, date, region, service, timestamp, names, value, expires_s)


def check_signature(signature: Signature, request: HttpRequest, secret: str, *, now_s: float) -> None:
    """Refuse, with SignatureRefused, a signature that is not of this secret, this request and this time."""
    _check_time(signature, now_s)
    present = {name.decode("latin-1") for name, _ in request.headers}
    unsigned = {name for name in present if name.startswith("x-amz-")} | {"host"}
    unsigned -= set(signature.signed_headers)
    if unsigned or not present.issuperset(signature.signed_headers):
        problem = "the host and every x-amz- header must be signed, and every signed header must be sent"
        raise SignatureRefused(INVALID, f"{problem} (signed are {', '.join(signature.signed_headers)})")
    text = canonical_request(signature, request)
    if not hmac.compare_digest(expected_value(signature, secret, text).encode(), signature.value.encode()):
        problem = "the signature is not that of this request; check the secret access key, and that nothing on the way"
        raise SignatureRefused(INVALID, f"{problem} changes path, query, signed headers or body")


def _check_time(signature: Signature, now_s: float) -> None:
    try:
        signed_at_s = calendar.timegm(time.strptime(signature.timestamp, _TIME_FORMAT))
    except ValueError:
        raise SignatureRefused(INCOMPLETE, f"{signature.timestamp} is no time") from None
    age_s = now_s - signed_at_s
    if -CLOCK_WINDOW_S <= age_s <= (CLOCK_WINDOW_S if signature.expires_s is None else signature.expires_s):
        return
    if signature.expires_s is not None and age_s > 0:
        raise SignatureRefused(INVALID, f"the signed URL has expired {age_s - signature.expires_s:.0f} s ago")
    problem = f"the request was signed at {signature.timestamp}, which is {abs(age_s):.0f} s"
    direction = "ago" if age_s > 0 else "ahead"
    raise SignatureRefused(INVALID, f"{problem} {direction}; set your clock ({CLOCK_WINDOW_S} s are allowed)")


def canonical_request(signature: Signature, request: HttpRequest) -> str:
    """Return the text whose hash is signed; SignatureRefused if the body is not the one of its signed hash."""
    pairs = [
        (quote(key, safe="-_.~"), quote(value, safe="-_.~"))
        for key, value in _query_pairs(request.query)
        if signature.expires_s is None or key != _QUERY_SIGNATURE.encode()
    ]
    headers = "".join(f"{name}:{request.header(name)}\n" for name in signature.signed_headers)
    return "\n".join(
        (
            request.method.upper(),
            quote(_without_dots(request.raw_path), safe="/~"),
            "&".join(f"{key}={value}" for key, value in sorted(pairs)),
            headers,
            ";".join(signature.signed_headers),
            _payload_hash(request),
        )
    )


def _payload_hash(request: HttpRequest) -> str:
    actual = hashlib.sha256(request.body).hexdigest()
    # Every x-amz- header is signed, so the client itself chose to leave the body out.
    declared = request.header("x-amz-content-sha256")
    if declared not in ("", _UNSIGNED_PAYLOAD, actual):
        raise SignatureRefused(INVALID, "the body is not the one of x-amz-content-sha256")
    return declared or actual


def expected_value(signature: Signature, secret: str, canonical: str) -> str:
    """Return the signature that the holder of the secret would give."""
    scope = (signature.date, signature.region, signature.service, "aws4_request")
    hashed = hashlib.sha256(canonical.encode()).hexdigest()
    to_sign = "\n".join((ALGORITHM, signature.timestamp, "/".join(scope), hashed))
    key = f"AWS4{secret}".encode()
    for part in (*scope, to_sign):
        key = hmac.digest(key, part.encode(), "sha256")
    return key.hex()


def _query_pairs(query: bytes) -> list[tuple[bytes, bytes]]:
    # A plus sign is a plus sign here: what signs a query writes a space as %20.
    pairs = [part.partition(b"=") for part in query.split(b"&") if part]
    return [(unquote_to_bytes(key), unquote_to_bytes(value)) for key, _, value in pairs]


def _without_dots(path: bytes) -> bytes:
    """Return the path without empty and dot segments (RFC 3986, 5.2.4), as it is signed."""
    kept: list[bytes] = []
    for segment in path.split(b"/"):
        if segment == b"..":
            kept = kept[:-1]
        elif segment not in (b"", b"."):
            kept.append(segment)
    end = b"/" if path.endswith(b"/") and kept else b""
    return b"/" + b"/".join(kept) + end
