"""Device Defender metrics: what a device may report of itself, in long names or short, and what it is answered.

The rules are those of AWS IoT's device-side metrics. Members that they do not name are left out of what is kept. The
bodies of the answers are not documented; these are what AWS's own device library reads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from twins.cbor import decode_cbor, encode_cbor
from twins.errors import RequestError
from twins.shadow import decode_payload, encode_json

FORMATS: Final = ("json", "cbor")
# AWS IoT's limit for any payload.
PAYLOAD_BYTES_MAX: Final = 131_072
# AWS IoT takes one report of a thing in five minutes.
REPORT_EVERY_S: Final = 300
# As numbers travel: 64 bits, of which Redis, JSON readers and CBOR all make the same.
_NUMBER_MAX: Final = (1 << 63) - 1
_PORT_MAX: Final = 65_535
# Names and texts of AWS IoT's control plane: of a custom metric, and of one value of a list.
_METRIC_NAME: Final = re.compile(r"[a-zA-Z0-9:_-]{1,128}")
_TEXT_LENGTH_MAX: Final = 256
_VERSION: Final = re.compile(r"\d{1,4}\.\d{1,4}")

Rule = Callable[[Any, str], Any]


class Report(msgspec.Struct, frozen=True, gc=False):
    """The last accepted report of a thing: its number, when it came (POSIX s), and its content in long names (JSON)."""

    report_id: int
    received_at_s: int
    content: bytes

    def describe(self) -> dict[str, Any]:
        """Return the report with the time at which it came."""
        content: dict[str, Any] = msgspec.json.decode(self.content)
        return {"received_at": self.received_at_s, **content}


class Answer(NamedTuple):
    """What the device is told, on the topic that ends in `verdict`; `report` is the one to keep, None if refused."""

    verdict: str
    body: bytes
    report: Report | None


class _Refusal(Exception):
    def __init__(self, code: str, message: str) -> None:
        self.code = code
        self.message = message


def answer_report(
    thing_name: str, payload: bytes, *, style: str, last: Report | None, now_s: float
) -> Answer:
    """Return the answer to a report that came as `style` (one of FORMATS); `last` is the thing's last accepted one.

    What is wrong with a report is said before that it comes too soon.
    """
    encode = encode_json if style == "json" else encode_cbor
    head: dict[str, Any] = {"thingName": thing_name}
    try:
        content = _decode(payload, style)
        if (claimed := _claimed_id(content)) is not None:
            head["reportId"] = claimed
        content = _REPORT(content, "the report")
        report_id: int = content["header"]["report_id"]
        _check_content(content)
        _check_sequence(report_id, last, now_s)
    except _Refusal as refusal:
        details = {"ErrorCode": refusal.code, "ErrorMessage": refusal.message}
        status = {"status": "REJECTED", "statusDetails": details, "timestamp": int(now_s * 1000)}
        return Answer("rejected", encode(head | status), None)
    body = head | {"status": "ACCEPTED", "timestamp": int(now_s * 1000)}
    return Answer("accepted", encode(body), Report(report_id, int(now_s), encode_json(content)))


def _decode(payload: bytes, style: str) -> Any:
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise _Refusal("InvalidPayload", f"a report has {PAYLOAD_BYTES_MAX} bytes at most")
    try:
        return decode_payload(payload) if style == "json" else decode_cbor(payload)
    except RequestError as error:
        raise _Refusal("InvalidPayload", error.message) from None


def _claimed_id(content: Any) -> int | None:
    """Return the report's number from a report that may be wrong in any other way, None if it has none."""
    head = content.get("header", content.get("hed")) if type(content) is dict else None
    number = head.get("report_id", head.get("rid")) if type(head) is dict else None
    return number if type(number) is int and 0 <= number <= _NUMBER_MAX else None


def _check_content(content: Mapping[str, Any]) -> None:
    if not content.get("metrics") and not content.get("custom_metrics"):
        raise _invalid("a report has at least one block of metrics")


def _check_sequence(report_id: int, last: Report | None, now_s: float) -> None:
    if last is None:
        return
    if report_id <= last.report_id:
        raise _invalid(f"report_id must grow: the last one was {last.report_id}")
    due_s = last.received_at_s + REPORT_EVERY_S
    if now_s < due_s:
        raise _Refusal(
            "Throttled", f"one report in {REPORT_EVERY_S} s; send the next in {due_s - int(now_s)} s"
        )


def _invalid(message: str) -> _Refusal:
    return _Refusal("InvalidPayload", message)


# Rules: each returns the value with long names, or refuses it; `place` is where it stands.


class _Member(NamedTuple):
    short: str
    rule: Rule
    is_required: bool = False


def _object(members: Mapping[str, _Member]) -> Rule:
    def rule(value: Any, place: str) -> dict[str, Any]:
        if type(value) is not dict:
            raise _invalid(f"{place} must be an object")
        found: dict[str, Any] = {}
        for name, member in members.items():
            given = [key for key in (name, member.short) if key and key in value]
            if len(given) > 1:
                raise _invalid(f"{place} has both {name} and {member.short}")
            if given:
                found[name] = member.rule(value[given[0]], f"{place}.{name}")
            elif member.is_required:
                raise _invalid(f"{place} has no {name}")
        return found

    return rule


def _list_of(item: Rule) -> Rule:
    def rule(value: Any, place: str) -> list[Any]:
        if type(value) is not list:
            raise _invalid(f"{place} must be a list")
        return [item(each, f"{place}[{position}]") for position, each in enumerate(value)]

    return rule


def _integer(maximum: int) -> Rule:
    def rule(value: Any, place: str) -> int:
        if type(value) is not int or not 0 <= value <= maximum:
            raise _invalid(f"{place} must be an integer from 0 to {maximum}")
        return value

    return rule


def _number(value: Any, place: str) -> int | float:
    if type(value) is float or (type(value) is int and abs(value) <= _NUMBER_MAX):
        number: int | float = value
        return number
    raise _invalid(f"{place} must be a number")


def _text(value: Any, place: str) -> str:
    if type(value) is not str or len(value) > _TEXT_LENGTH_MAX:
        raise _invalid(f"{place} must be a text of at most {_TEXT_LENGTH_MAX} characters")
    return value


def _version(value: Any, place: str) -> str:
    if type(value) is not str or not _VERSION.fullmatch(value):
        raise _invalid(f"{place} must be Major.Minor, as 1.0")
    return value


def _custom_metrics(value: Any, place: str) -> dict[str, Any]:
    if type(value) is not dict:
        raise _invalid(f"{place} must be an object")
    found: dict[str, Any] = {}
    for name, values in value.items():
        if not _METRIC_NAME.fullmatch(name):
            raise _invalid(
                f"{place} has a name that is not 1 to 128 of letters, digits, colon, underscore, hyphen"
            )
        if type(values) is not list or len(values) != 1:
            raise _invalid(f"{place}.{name} must be a list of one value")
        typed = _CUSTOM_VALUE(values[0], f"{place}.{name}[0]")
        if len(typed) != 1:
            raise _invalid(f"{place}.{name}[0] must have one of {', '.join(_CUSTOM_TYPES)}")
        found[name] = [typed]
    return found


_COUNT: Final = _integer(_NUMBER_MAX)
_PORT: Final = _integer(_PORT_MAX)
_PORTS: Final = _object(
    {
        "ports": _Member(
            "pts", _list_of(_object({"port": _Member("pt", _PORT, True), "interface": _Member("if", _text)}))
        ),
        "total": _Member("t", _COUNT),
    }
)
_CONNECTIONS: Final = _object(
    {
        "connections": _Member(
            "cs",
            _list_of(
                _object(
                    {
                        "remote_addr": _Member("rad", _text, True),
                        "local_port": _Member("lp", _PORT),
                        "local_interface": _Member("li", _text),
                    }
                )
            ),
        ),
        "total": _Member("t", _COUNT),
    }
)
_METRICS: Final = _object(
    {
        "tcp_connections": _Member("tc", _object({"established_connections": _Member("ec", _CONNECTIONS)})),
        "listening_tcp_ports": _Member("tp", _PORTS),
        "listening_udp_ports": _Member("up", _PORTS),
        "network_stats": _Member(
            "ns",
            _object(
                {
                    "bytes_in": _Member("bi", _COUNT),
                    "bytes_out": _Member("bo", _COUNT),
                    "packets_in": _Member("pi", _COUNT),
                    "packets_out": _Member("po", _COUNT),
                }
            ),
        ),
    }
)
# These have no short names.
_CUSTOM_TYPES: Final[Mapping[str, _Member]] = {
    "number": _Member("", _number),
    "number_list": _Member("", _list_of(_number)),
    "string_list": _Member("", _list_of(_text)),
    "ip_list": _Member("", _list_of(_text)),
}
_CUSTOM_VALUE: Final = _object(_CUSTOM_TYPES)
_REPORT: Final = _object(
    {
        "header": _Member(
            "hed",
            _object({"report_id": _Member("rid", _COUNT, True), "version": _Member("v", _version, True)}),
            True,
        ),
        "metrics": _Member("met", _METRICS),
        "custom_metrics": _Member("cmet", _custom_metrics),
    }
)
