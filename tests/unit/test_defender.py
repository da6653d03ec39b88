"""Device Defender reports: what is taken, in long names and short, what is refused and why, and how often."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import pytest

from tests.asking import NOW_S
from twins.cbor import decode_cbor, encode_cbor
from twins.defender import PAYLOAD_BYTES_MAX, REPORT_EVERY_S, Answer, Report, answer_report

LONG: dict[str, Any] = {
    "header": {"report_id": 7, "version": "1.0"},
    "metrics": {
        "tcp_connections": {
            "established_connections": {
                "connections": [
                    {"remote_addr": "192.168.0.1:8000", "local_port": 80, "local_interface": "eth0"}
                ],
                "total": 1,
            }
        },
        "listening_tcp_ports": {"ports": [{"port": 22, "interface": "eth0"}, {"port": 8883}], "total": 2},
        "listening_udp_ports": {"ports": [], "total": 0},
        "network_stats": {"bytes_in": 1, "bytes_out": 2, "packets_in": 3, "packets_out": 4},
    },
    "custom_metrics": {
        "cpu": [{"number": 0.5}],
        "levels": [{"number_list": [1, 2.5]}],
        "words": [{"string_list": ["a", "b"]}],
        "peers": [{"ip_list": ["10.0.0.1"]}],
    },
}
SHORT: dict[str, Any] = {
    "hed": {"rid": 7, "v": "1.0"},
    "met": {
        "tc": {"ec": {"cs": [{"rad": "192.168.0.1:8000", "lp": 80, "li": "eth0"}], "t": 1}},
        "tp": {"pts": [{"pt": 22, "if": "eth0"}, {"pt": 8883}], "t": 2},
        "up": {"pts": [], "t": 0},
        "ns": {"bi": 1, "bo": 2, "pi": 3, "po": 4},
    },
    "cmet": LONG["custom_metrics"],
}


def answer(
    report: Any, *, style: str = "json", last: Report | None = None, now_s: float = NOW_S + 0.25
) -> Answer:
    payload = report if isinstance(report, bytes) else json.dumps(report).encode()
    return answer_report("lamp", payload, style=style, last=last, now_s=now_s)


def refusal(report: Any, **options: Any) -> tuple[str, str]:
    """Return code and message of the refusal of a report."""
    found = answer(report, **options)
    body = json.loads(found.body)
    assert (found.verdict, found.report, body["status"]) == ("rejected", None, "REJECTED")
    return body["statusDetails"]["ErrorCode"], body["statusDetails"]["ErrorMessage"]


def changed(path: str, value: Any) -> dict[str, Any]:
    """Return the report with another value at a dotted path; None removes it."""
    report = deepcopy(LONG)
    *steps, last = path.split(".")
    place: Any = report
    for step in steps:
        place = place[int(step) if step.isdigit() else step]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return report


@pytest.mark.parametrize("report", [LONG, SHORT], ids=["long names", "short names"])
@pytest.mark.parametrize("style", ["json", "cbor"])
def test_a_report_is_accepted_and_kept_in_long_names(report: dict[str, Any], style: str) -> None:
    payload = json.dumps(report).encode() if style == "json" else encode_cbor(report)
    found = answer(payload, style=style)
    body = json.loads(found.body) if style == "json" else decode_cbor(found.body)
    assert body == {
        "thingName": "lamp",
        "reportId": 7,
        "status": "ACCEPTED",
        "timestamp": NOW_S * 1000 + 250,
    }
    assert found.verdict == "accepted"
    assert found.report is not None
    assert found.report.describe() == {"received_at": NOW_S, **LONG}


def test_a_refusal_names_thing_report_and_reason() -> None:
    body = json.loads(answer(changed("header.version", "one")).body)
    assert body == {
        "thingName": "lamp",
        "reportId": 7,
        "status": "REJECTED",
        "statusDetails": {
            "ErrorCode": "InvalidPayload",
            "ErrorMessage": "the report.header.version must be Major.Minor, as 1.0",
        },
        "timestamp": NOW_S * 1000 + 250,
    }
    assert "reportId" not in json.loads(answer(b"{}").body)


@pytest.mark.parametrize(
    ("report", "problem"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b'"text"', "must be an object"),
        (b"{}", "no header"),
        (b"[" * 100_000, "JSON"),
        (b" " * (PAYLOAD_BYTES_MAX + 1), "bytes at most"),
        (changed("header", 1), "must be an object"),
        (changed("header.report_id", None), "no report_id"),
        (changed("header.report_id", "7"), "must be an integer"),
        (changed("header.report_id", True), "must be an integer"),
        (changed("header.report_id", -1), "must be an integer"),
        (changed("header.report_id", 2**63), "must be an integer"),
        (changed("header.version", None), "no version"),
        (changed("header.rid", 7), "both report_id and rid"),
        ({"header": LONG["header"]}, "at least one block"),
        ({"header": LONG["header"], "metrics": {}}, "at least one block"),
        ({"header": LONG["header"], "metrics": {"unheard_of": 1}}, "at least one block"),
        (changed("metrics.network_stats.bytes_in", 1.5), "must be an integer"),
        (changed("metrics.listening_tcp_ports.ports", {}), "must be a list"),
        (changed("metrics.listening_tcp_ports.ports.0.port", 65_536), "from 0 to 65535"),
        (changed("metrics.listening_tcp_ports.ports.0.port", None), "no port"),
        (changed("metrics.listening_tcp_ports.ports.0.interface", 3), "must be a text"),
        (changed("metrics.tcp_connections.established_connections.connections.0.remote_addr", None), "no remote"),
        (changed("custom_metrics", []), "must be an object"),
        (changed("custom_metrics.cpu", {"number": 1}), "a list of one value"),
        (changed("custom_metrics.cpu", []), "a list of one value"),
        (changed("custom_metrics.cpu", [{"number": 1}, {"number": 2}]), "a list of one value"),
        (changed("custom_metrics.cpu", [{"number": "1"}]), "must be a number"),
        (changed("custom_metrics.cpu", [{"number": True}]), "must be a number"),
        (changed("custom_metrics.cpu", [{"colour": "red"}]), "must have one of"),
        (changed("custom_metrics.cpu", [{"number": 1, "ip_list": []}]), "must have one of"),
        (changed("custom_metrics.words", [{"string_list": [1]}]), "must be a text"),
        ({**LONG, "custom_metrics": {"a b": [{"number": 1}]}}, "has a name"),
    ],
)  # fmt: skip
def test_a_report_against_the_rules_is_refused(report: Any, problem: str) -> None:
    code, message = refusal(report)
    assert code == "InvalidPayload"
    assert problem.lower() in message.lower()


def test_cbor_that_is_none_is_refused_in_cbor() -> None:
    found = answer(b"\xc0\x01", style="cbor")
    assert decode_cbor(found.body)["statusDetails"]["ErrorCode"] == "InvalidPayload"


def test_a_report_in_five_minutes_is_enough() -> None:
    first = answer(LONG).report
    early = NOW_S + REPORT_EVERY_S - 1
    assert refusal(changed("header.report_id", 8), last=first, now_s=early) == (
        "Throttled",
        "one report in 300 s; send the next in 1 s",
    )
    later = answer(changed("header.report_id", 8), last=first, now_s=NOW_S + REPORT_EVERY_S)
    assert later.verdict == "accepted"


def test_what_is_wrong_is_said_before_that_it_is_too_soon() -> None:
    first = answer(LONG).report
    assert refusal(changed("header.version", "x"), last=first)[0] == "InvalidPayload"
    for number in (6, 7):
        code, message = refusal(changed("header.report_id", number), last=first, now_s=NOW_S + 1000)
        assert (code, message) == ("InvalidPayload", "report_id must grow: the last one was 7")


def test_members_that_nobody_knows_are_left_out() -> None:
    found = answer({**LONG, "extra": {"deep": []}}).report
    assert found is not None
    assert found.describe() == {"received_at": NOW_S, **LONG}
