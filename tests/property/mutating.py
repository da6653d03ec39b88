"""A fast, seeded source of broken requests: valid payloads and topics, mutated byte by byte."""

from __future__ import annotations

import random
from collections.abc import Callable

TOKENS = (
    b"null", b"true", b"1", b"-0", b"1e400", b"-1e-400", b"NaN", b"Infinity", b"-Infinity", b"9" * 40, b"0.1e1", b"01",
    b'""', b'"\\ud800"', b'"\\u0000"', b'"\\ud83d\\ude00"', b'"\xff"', b'"\xed\xa0\x80"', b"\xef\xbb\xbf", b"\x00",
    b"\\", b"[", b"]", b"{", b"}", b",", b":", b'"', b"[null]", b"{}", b"[]", b'{"timestamp":1}', b"//", b" " * 20,
    b'"clientToken":"t"', b'"clientToken":7', b'"clientToken":"%s"' % (b"x" * 65), b'"clientToken":null',
    b'"state":null', b'"state":{}', b'"desired":null', b'"reported":[]', b'"delta":{}', b'"version":1', b'"version":-1',
    b'"version":1.0', b'"version":true', b'"version":99999999999999999999',
)  # fmt: skip
PAYLOADS = (
    b"",
    b"{}",
    b'{"clientToken":"0f3c"}',
    b'{"state":{}}',
    b'{"state":null,"clientToken":"a"}',
    b'{"state":{"desired":{"set_point":21.5}},"clientToken":"0d6e6ae4-7f43-4d0c-bd58-5f4b5f0a6b0e"}',
    b'{"state":{"reported":{"temperature":20.25,"humidity":40,"on":true,"name":"hall"}},"version":3}',
    b'{"state":{"desired":{"a":{"b":[1,2,{"c":null}],"d":null}},"reported":{"a":{"b":1}}},"clientToken":"\xc3\xbc"}',
    b'{"state":{"desired":null,"reported":{"x":[[],{},"",0]}},"clientToken":"t2","version":1}',
    b'{"state":{"reported":{"firmware_version":"1.0.0","uptime":4294967295,"big":123456789012345678901}}}',
    b'{"temperature":21.37,"humidity":40.12,"battery":99.1,"text":"abc","nested":{"x":1}}',
    b'{"header":{"report_id":1,"version":"1.0"},"metrics":{"listening_tcp_ports":{"ports":[{"port":22}],"total":1}}}',
    b'{"model":"thermostat","attributes":{"site":"berlin"}}',
    b"[1,2,3]",
    b'"text"',
)
# Reports of Device Defender metrics: valid ones, whose number `%d` grows, and the same as CBOR.
_METRICS = b'"metrics":{"listening_tcp_ports":{"ports":[{"port":22}],"total":1}}'
REPORT = b'{"header":{"report_id":%d,"version":"1.0"},' + _METRICS + b"}"
_CBOR_HEADER = b"\xa2\x66header\xa2\x69report_id\x18\x64\x67version\x631.0"
CBOR_REPORTS = (
    _CBOR_HEADER + b"\x67metrics\xa1\x6dnetwork_stats\xa1\x68bytes_in\x19\x01\x00",
    b"\xbf\x63hed\xa2\x63rid\x18\x2a\x61v\x631.0\x63met\xa1\x62ns\xa1\x62bi\x05\xff",
    b"\xf9\x7c\x00\xfb\x7f\xf0\x00\x00\x00\x00\x00\x00\x9f\x01\xff\x5f\x41a\xff",
)
TOPICS = (
    b"$aws/things/lamp/shadow/get",
    b"$aws/things/lamp/shadow/update",
    b"$aws/things/home-7/shadow/delete",
    b"$aws/things/lamp/shadow/name/config/update",
    b"$aws/things/a:b_c-d/shadow/name/x/get",
    b"telemetry/lamp/room/1",
    b"telemetry/home-7/s",
    b"$aws/things/lamp/shadow/update/accepted",
    b"$aws/things/lamp/jobs/get",
    b"$aws/things/lamp/defender/metrics/json",
)
TOPIC_TOKENS = (
    b"/",
    b"//",
    b"+",
    b"#",
    b"$",
    b"$aws",
    b"name",
    b"shadow",
    b"get",
    b"\x00",
    b"\xff",
    b"\xc3\xbc",
    b"x" * 130,
)
# A little above what the broker lets through (128 KiB).
LARGE_BYTES = 132_000
# Beyond the decoder's recursion, and within it but beyond the shadow's.
DEPTHS = (7, 8, 9, 10, 50, 500, 990, 20_000)


def _flip(luck: random.Random, text: bytearray) -> None:
    text[luck.randrange(len(text))] ^= 1 << luck.randrange(8)


def _overwrite(luck: random.Random, text: bytearray) -> None:
    text[luck.randrange(len(text))] = luck.randrange(256)


def _truncate(luck: random.Random, text: bytearray) -> None:
    del text[luck.randrange(len(text)) :]


def _drop(luck: random.Random, text: bytearray) -> None:
    start = luck.randrange(len(text))
    del text[start : start + luck.randrange(1, 8)]


def _repeat(luck: random.Random, text: bytearray) -> None:
    start = luck.randrange(len(text))
    text[start:start] = text[start : start + luck.randrange(1, 30)]


def _insert_token(luck: random.Random, text: bytearray) -> None:
    start = luck.randrange(len(text) + 1)
    text[start:start] = luck.choice(TOKENS)


def _replace_token(luck: random.Random, text: bytearray) -> None:
    start = luck.randrange(len(text))
    text[start : start + luck.randrange(1, 12)] = luck.choice(TOKENS)


def _add_member(luck: random.Random, text: bytearray) -> None:
    """Put a member into some object: often one that is there already."""
    start = text.find(b"{", luck.randrange(len(text)))
    if start >= 0:
        text[start + 1 : start + 1] = luck.choice(TOKENS[-15:]) + b","


CHANGES: tuple[Callable[[random.Random, bytearray], None], ...] = (
    _flip, _overwrite, _truncate, _drop, _repeat, _insert_token, _replace_token, _add_member, _add_member,
)  # fmt: skip


def deep(luck: random.Random) -> bytes:
    """Return an update with a value of many levels, of arrays or of objects."""
    depth = luck.choice(DEPTHS)
    opening, closing = luck.choice(((b"[", b"]"), (b'{"a":', b"}")))
    value = opening * depth + b"1" + closing * depth
    return b'{"state":{"reported":{"deep":%b}},"clientToken":"deep"}' % value


def large(luck: random.Random) -> bytes:
    """Return an update at and beyond the size limits: of a shadow, and of a message."""
    length = luck.choice((8_000, 8_192, 9_000, LARGE_BYTES))
    filling = luck.choice((b"x", b"\xc3\xbc", b"\\u0041", b"\xff"))
    value = filling * (length // len(filling))
    return b'{"state":{"desired":{"large":"%b"}},"clientToken":"large"}' % value


def payload(luck: random.Random) -> bytes:
    """Return one payload: seldom valid, mostly a valid one with one to four changes, now and then deep or large."""
    kind = luck.random()
    if kind < 0.005:
        return deep(luck)
    if kind < 0.008:
        return large(luck)
    text = bytearray(luck.choice(PAYLOADS))
    if kind < 0.15:
        return bytes(text)
    if kind < 0.2:
        return luck.randbytes(luck.randrange(60))
    for _ in range(luck.randrange(1, 5)):
        if text:
            luck.choice(CHANGES)(luck, text)
    return bytes(text)


def report(luck: random.Random, style: str, number: int) -> bytes:
    """Return one report of Device Defender metrics, one in four valid; `number` becomes its id."""
    text = bytearray(REPORT % number if style == "json" else luck.choice(CBOR_REPORTS))
    for _ in range(luck.randrange(4)):
        if text:
            luck.choice(CHANGES)(luck, text)
    if luck.random() < 0.02:
        text = bytearray(luck.choice((b"\x81", b"\xa1\x61a", b"\x9f", b"\xc1")) * luck.choice(DEPTHS))
    return bytes(text)


def topic(luck: random.Random) -> bytes:
    """Return one topic: half of them valid, the others changed at one or two places."""
    text = bytearray(luck.choice(TOPICS))
    if luck.random() < 0.5:
        return bytes(text)
    for _ in range(luck.randrange(1, 3)):
        start = luck.randrange(len(text) + 1)
        text[start : start + luck.randrange(3)] = luck.choice(TOPIC_TOKENS)
    return bytes(text)
