"""Requests signed by botocore's own signer are taken, whatever stands in them; anything changed afterwards is not."""

from __future__ import annotations

import calendar
import time
from dataclasses import replace
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from botocore.auth import SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.crt.auth import CrtSigV4Auth
from botocore.utils import percent_encode_sequence
from hypothesis import given
from hypothesis import strategies as st

from actors.errors import SignatureRefused
from actors.gateway.signature import (
    CLOCK_WINDOW_S,
    SERVICES,
    HttpRequest,
    Signature,
    check_signature,
    signature_of,
)

SECRET = "wJalrXUtnFEMI-K7MDENG_bPxRfiCYEXAMPLEKEY"
CREDENTIALS = Credentials("AKIAIOSFODNN7EXAMPLE", SECRET)

# Everything but lone surrogates, which no client can send.
_TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
_NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=10)
_SEGMENTS = st.lists(st.one_of(_TEXTS, st.sampled_from(["", ".", "..", "a b", "a%2Fb", "$aws/things/x"])))
_HEADER_VALUES = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)


def arrived(request: AWSRequest, body: bytes) -> HttpRequest:
    """Return what a server sees of a signed request."""
    parts = urlsplit(request.url)
    headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in request.headers.items()]
    if b"host" not in dict(headers):
        # As http.client adds it.
        headers.append((b"host", parts.netloc.encode()))
    return HttpRequest(request.method, parts.path.encode(), parts.query.encode(), headers=headers, body=body)


def signed(
    path: str,
    *,
    query: dict[str, str] | None = None,
    headers: dict[str, str] | None = None,
    body: bytes = b"",
    service: str = "iotdata",
    signer: Any = SigV4Auth,
) -> HttpRequest:
    """Return a request as botocore signs and sends it; `path` is encoded already."""
    text = percent_encode_sequence(query) if query else ""
    url = f"http://127.0.0.1:8080{path}{'?' + text if text else ''}"
    request = AWSRequest("POST", url, data=body, headers=headers or {})
    signer(CREDENTIALS, service, "eu-central-1").add_auth(request)
    return arrived(request, body)


def signature_in(request: HttpRequest) -> Signature:
    signature = signature_of(request)
    assert signature is not None
    return signature


def check(request: HttpRequest, *, secret: str = SECRET, late_s: float = 0) -> None:
    signature = signature_in(request)
    now_s = calendar.timegm(time.strptime(signature.timestamp, "%Y%m%dT%H%M%SZ")) + late_s
    check_signature(signature, request, secret, now_s=now_s)


@given(
    segments=_SEGMENTS,
    query=st.dictionaries(_NAMES, _TEXTS, max_size=4),
    body=st.binary(max_size=50),
    service=st.sampled_from(sorted(SERVICES)),
    # Where awscrt is installed, botocore signs with it.
    signer=st.sampled_from([SigV4Auth, CrtSigV4Auth]),
)
def test_what_botocore_signs_is_taken(
    segments: list[str], query: dict[str, str], *, body: bytes, service: str, signer: Any
) -> None:
    path = "/" + "/".join(quote(segment, safe="-._~") for segment in segments)
    request = signed(path, query=query, body=body, service=service, signer=signer)
    check(request)
    assert signature_in(request).service == service
    with pytest.raises(SignatureRefused, match="not that of this request"):
        check(request, secret=SECRET + "x")
    with pytest.raises(SignatureRefused, match="not that of this request"):
        check(replace(request, body=body + b"x"))


@given(
    values=st.dictionaries(st.sampled_from(["x-amz-mqtt5-user-properties", "content-type"]), _HEADER_VALUES)
)
def test_headers_are_signed_as_botocore_does(values: dict[str, str]) -> None:
    request = signed("/topics/a", headers=values)
    check(request)
    if "x-amz-mqtt5-user-properties" in values:
        changed = [
            (name, b"other" if name.startswith(b"x-amz-mqtt5") else value) for name, value in request.headers
        ]
        if changed != list(request.headers):
            with pytest.raises(SignatureRefused, match="not that of this request"):
                check(replace(request, headers=changed))


@given(segments=_SEGMENTS, query=st.dictionaries(_NAMES, _TEXTS, max_size=3))
def test_a_url_signed_by_botocore_is_taken_until_it_expires(
    segments: list[str], query: dict[str, str]
) -> None:
    path = "/" + "/".join(quote(segment, safe="-._~") for segment in segments)
    text = percent_encode_sequence(query) if query else ""
    request = AWSRequest("GET", f"http://127.0.0.1:8080{path}{'?' + text if text else ''}")
    SigV4QueryAuth(CREDENTIALS, "iotdata", "us-east-1", expires=600).add_auth(request)
    seen = arrived(request, b"")
    check(seen)
    check(seen, late_s=600)
    with pytest.raises(SignatureRefused, match="expired 1 s ago"):
        check(seen, late_s=601)
    with pytest.raises(SignatureRefused, match="set your clock"):
        check(seen, late_s=-CLOCK_WINDOW_S - 1)
    with pytest.raises(SignatureRefused, match="not that of this request"):
        check(replace(seen, query=seen.query + b"&retain=true"))
