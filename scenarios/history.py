"""What clients of a platform did and heard, in one order: the evidence that `audit_rules` judges.

Every client numbers its operations from 1 and writes its numbers into fields of its own, so that a value tells whose
update it came from and whether that is older or newer than another. A device that reports what an operator wished for
copies the operator's number: such a field has one writer too, and its values rise as well.

Fields are named by section and key, as `reported.lamp-1` or `desired.operator-2`. Times are seconds on one clock that
never goes back, the same for all clients; the events of a history stand in their order. What a history does not say
has not been seen: an operation without an answer may have been carried out, or may still be.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec


class Outcome(StrEnum):
    """What a client knows of its operation, in Jepsen's words."""

    # Carried out.
    OK = "ok"
    # Refused: it has changed nothing, and will not.
    FAIL = "fail"
    # Nothing is known: no answer in time, or the connection was lost. Never FAIL: it may be carried out later.
    INFO = "info"


class Sent(msgspec.Struct, frozen=True, tag="sent", tag_field="event", gc=False):
    """A client began an operation on a shadow: an update that writes `values`, or a get, which has none.

    `is_direct`: it went to the platform without the broker (over HTTP), so that what it announces may overtake what
    others bring about.
    """

    at_s: float
    client: str
    number: int
    thing_name: str
    shadow_name: str = ""
    values: dict[str, int] = {}
    is_direct: bool = False


class Answered(msgspec.Struct, frozen=True, tag="answered", tag_field="event", gc=False):
    """A client learned what became of its operation; an answer that is delivered twice stands here twice.

    `version` is the one that an accepted update made, or that a get has read (0: not told); `values` are all fields
    that a get has read. `detail` says why it was refused, or why nothing is known.
    """

    at_s: float
    client: str
    number: int
    outcome: Outcome
    version: int = 0
    values: dict[str, int] = {}
    detail: str = ""


class Observed(msgspec.Struct, frozen=True, tag="observed", tag_field="event", gc=False):
    """An observer was told of a version of a shadow without asking for it.

    `topic` tells its sources apart (`documents`, `delta`). `values` are all fields that the shadow has in this version
    where `is_whole`, some of them otherwise.
    """

    at_s: float
    observer: str
    thing_name: str
    shadow_name: str
    topic: str
    version: int
    values: dict[str, int] = {}
    is_whole: bool = True


class Fault(msgspec.Struct, frozen=True, tag="fault", tag_field="event", gc=False):
    """Something was broken on purpose, or mended.

    `redelivers`: after it, requests that were carried out may be delivered again and carried out again (a bridge or a
    broker died, or a connection that carried acknowledgements broke). Where the moment at which that happened is not
    known, it was from `at_s` to `until_s`.
    """

    at_s: float
    part: str
    action: str
    redelivers: bool = False
    until_s: float = 0.0


class Settled(msgspec.Struct, frozen=True, tag="settled", tag_field="event", gc=False):
    """A shadow as it was read at the end, with every field, when all faults were mended and nothing was under way.

    `follower` is the device that applied and reported every delta of the shadow, '' where there was none.
    """

    at_s: float
    thing_name: str
    shadow_name: str
    version: int
    values: dict[str, int]
    follower: str = ""


Event = Sent | Answered | Observed | Fault | Settled
_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final = msgspec.json.Decoder(Event)


def encode_event(event: Event) -> bytes:
    """Return an event as one line of JSON, with its end."""
    return _ENCODER.encode(event) + b"\n"


def write_history(path: Path, events: Iterable[Event]) -> None:
    """Write a history, one event a line."""
    with path.open("wb") as file:
        file.writelines(map(encode_event, events))


def read_history(path: Path) -> list[Event]:
    """Return the events of a written history by time, so that those of several recorders may be put together.

    A last line that its recorder did not live to finish is left out; msgspec.DecodeError if another is damaged.
    """
    lines = path.read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    return in_order(_DECODER.decode(line) for line in lines)


def in_order(events: Iterable[Event]) -> list[Event]:
    """Return events by time; those of the same time stay in the order in which they came."""
    return sorted(events, key=lambda event: event.at_s)


def describe_event(event: Event) -> str:
    """Return an event as a line that a person can read."""
    when = f"{event.at_s:12.6f}"
    match event:
        case Sent():
            doing = f"update {_fields(event.values)}" if event.values else "get"
            way = " (direct)" if event.is_direct else ""
            return f"{when}  {event.client} #{event.number}: {doing} of {_shadow(event)}{way}"
        case Answered():
            told = [f"version {event.version}"] if event.version else []
            told += [_fields(event.values)] if event.values else []
            told += [event.detail] if event.detail else []
            return f"{when}  {event.client} #{event.number}: {event.outcome} {', '.join(told)}".rstrip()
        case Observed():
            part = "" if event.is_whole else "in part "
            heard = f"{part}version {event.version}: {_fields(event.values)}"
            return f"{when}  {event.observer} hears {event.topic} of {_shadow(event)}, {heard}"
        case Fault():
            again = " (requests may come again)" if event.redelivers else ""
            return f"{when}  ! {event.part}: {event.action}{again}"
        case Settled():
            follower = f", followed by {event.follower}" if event.follower else ""
            return (
                f"{when}  finally {_shadow(event)} has version {event.version}: "
                f"{_fields(event.values)}{follower}"
            )


def _shadow(event: Sent | Observed | Settled) -> str:
    return f"{event.thing_name}/{event.shadow_name}" if event.shadow_name else event.thing_name


def _fields(values: dict[str, int]) -> str:
    return " ".join(f"{field}={value}" for field, value in sorted(values.items())) or "nothing"
