"""What a signed request must say, and how long it counts."""

from __future__ import annotations

import calendar
from dataclasses import replace

import pytest

from actors.errors import SignatureRefused
from actors.gateway.signature import (
    CLOCK_WINDOW_S,
    HttpRequest,
    canonical_request,
    check_signature,
    expected_value,
    signature_of,
)

SECRET = "secret-of-forty-characters-not-a-real-one"
SIGNED_AT_S = calendar.timegm((2026, 11, 23, 12, 0, 0))
CREDENTIAL = "AKIAAAAAAAAAAAAAAAAA/20261123/eu-west-1/iotdata/aws4_request"


def request_with(
    *,
    names: str = "host;x-amz-date",
    credential: str = CREDENTIAL,
    more: tuple[tuple[bytes, bytes], ...] = (),
) -> HttpRequest:
    """Return a request that is signed with SECRET over the headers named."""
    head = [(b"host", b"localhost"), (b"x-amz-date", b"20261123T120000Z"), *more]

    def with_signature(value: str) -> HttpRequest:
        text = f"AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={names}, Signature={value}"
        headers = [*head, (b"authorization", text.encode())]
        return HttpRequest("GET", b"/things/lamp/shadow", b"", headers=headers, body=b"")

    unsigned = with_signature("0")
    signature = signature_of(unsigned)
    assert signature is not None
    return with_signature(expected_value(signature, SECRET, canonical_request(signature, unsigned)))


def check(request: HttpRequest, now_s: float = SIGNED_AT_S) -> None:
    signature = signature_of(request)
    assert signature is not None
    check_signature(signature, request, SECRET, now_s=now_s)


def test_a_signature_counts_for_five_minutes_either_way() -> None:
    request = request_with()
    for offset_s in (-CLOCK_WINDOW_S, 0, CLOCK_WINDOW_S):
        check(request, SIGNED_AT_S + offset_s)
    with pytest.raises(SignatureRefused, match=r"301 s ago; set your clock \(300 s"):
        check(request, SIGNED_AT_S + CLOCK_WINDOW_S + 1)
    with pytest.raises(SignatureRefused, match="301 s ahead; set your clock"):
        check(request, SIGNED_AT_S - CLOCK_WINDOW_S - 1)


@pytest.mark.parametrize("names", ["x-amz-date", "host", "host;x-amz-date;x-amz-nothing"])
def test_host_and_time_must_be_signed_and_what_is_signed_must_be_there(names: str) -> None:
    with pytest.raises(SignatureRefused, match="must be signed"):
        check(request_with(names=names))


def test_a_header_of_aws_that_was_added_on_the_way_is_noticed() -> None:
    request = request_with()
    added = replace(request, headers=[*request.headers, (b"x-amz-mqtt5-user-properties", b"W10=")])
    with pytest.raises(SignatureRefused, match="every x-amz- header must be signed"):
        check(added)


def test_a_body_may_be_left_out_only_if_that_is_signed() -> None:
    names = "host;x-amz-content-sha256;x-amz-date"
    unsigned = request_with(names=names, more=((b"x-amz-content-sha256", b"UNSIGNED-PAYLOAD"),))
    check(replace(unsigned, body=b"anything"))
    with pytest.raises(SignatureRefused, match="must be signed"):
        check(request_with(more=((b"x-amz-content-sha256", b"UNSIGNED-PAYLOAD"),)))
    empty = b"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    hashed = request_with(names=names, more=((b"x-amz-content-sha256", empty),))
    check(hashed)
    with pytest.raises(SignatureRefused, match="the body is not the one"):
        check(replace(hashed, body=b"anything"))


@pytest.mark.parametrize(
    ("credential", "told"),
    [
        ("", "KEY/DATE/REGION/SERVICE"),
        ("AKIA/20261123/eu-west-1/iotdata", "KEY/DATE/REGION/SERVICE"),
        ("AKIA/20261123/eu-west-1/s3/aws4_request", "service 's3'; here are"),
        ("AKIA/2026/eu-west-1/iotdata/aws4_request", "date of the credential"),
        ("AKIA//eu-west-1/iotdata/aws4_request", "date of the credential"),
        ("AKIA/20261122/eu-west-1/iotdata/aws4_request", "date of the credential"),
        ("AKIA/20261123/eu-west-1/iotdata/aws5_request", "KEY/DATE/REGION/SERVICE"),
    ],
)
def test_a_malformed_credential_is_refused(credential: str, told: str) -> None:
    with pytest.raises(SignatureRefused, match=told):
        request_with(credential=credential)


@pytest.mark.parametrize("value", [b"", b"Bearer abc", b"Basic abc", b"AWS4-HMAC-SHA256-other x"])
def test_other_credentials_are_no_signature(value: bytes) -> None:
    assert signature_of(HttpRequest("GET", b"/", b"", headers=[(b"authorization", value)], body=b"")) is None


@pytest.mark.parametrize("expires", ["", "0", "-1", "604801", "1e3", "\u0663"])
def test_a_signed_url_must_say_for_how_long(expires: str) -> None:
    query = f"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature=0&X-Amz-Expires={expires}"
    with pytest.raises(SignatureRefused, match="X-Amz-Expires must be from 1 to 604800"):
        signature_of(HttpRequest("GET", b"/", query.encode(), headers=[], body=b""))
