"""The rules of the auditor: each finds what breaks it, and lets pass what only looks like it."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Final

import msgspec
import pytest

from scenarios.audit_rules import first_contradiction
from scenarios.history import (
    Answered,
    Event,
    Fault,
    Observed,
    Outcome,
    Sent,
    Settled,
    describe_event,
    encode_event,
    in_order,
    read_history,
    write_history,
)

LAMP: Final = "lamp"
MISSING: Final = "an accepted update is missing"
DIFFERS: Final = "what was read at the end differs"
WENT_BACK: Final = "a version went back"
MADE_TWICE: Final = "a version was made twice"
ORDER: Final = "the order of a client's updates was not kept"
APART: Final = "a device and its shadow do not agree"
TRACE: Final = "a refused update left a trace"


def update(
    number: int, *, client: str = LAMP, field: str = "reported.lamp", is_direct: bool = False
) -> Event:
    return Sent(0, client, number, LAMP, values={field: number}, is_direct=is_direct)


def wish(number: int) -> Event:
    return update(number, client="op", field="desired.op", is_direct=True)


def ok(number: int, version: int, *, client: str = LAMP) -> Event:
    return Answered(0, client, number, Outcome.OK, version)


def fail(number: int, *, client: str = LAMP) -> Event:
    return Answered(0, client, number, Outcome.FAIL, detail="429")


def info(number: int, *, client: str = LAMP) -> Event:
    return Answered(0, client, number, Outcome.INFO, detail="no answer in 5 s")


def get(number: int, *, client: str = "reader") -> Event:
    return Sent(0, client, number, LAMP)


def got(number: int, version: int, *, client: str = "reader", **values: int) -> Event:
    return Answered(0, client, number, Outcome.OK, version, fields(values))


def heard(version: int, *, observer: str = "reader", is_whole: bool = True, **values: int) -> Event:
    topic = "documents" if is_whole else "delta"
    return Observed(0, observer, LAMP, "", topic, version, fields(values), is_whole)


def died(part: str = "bridge") -> Event:
    return Fault(0, part, "kill -9", redelivers=True)


def end(version: int, *, follower: str = "", **values: int) -> Event:
    return Settled(0, LAMP, "", version, fields(values), follower)


def fields(values: dict[str, int]) -> dict[str, int]:
    return {name.replace("_", ".", 1): value for name, value in values.items()}


def history(*events: Event) -> list[Event]:
    """Give events their times: one a second."""
    times = count(1)
    return [msgspec.structs.replace(event, at_s=float(next(times))) for event in events]


GOOD: Final = {
    "nothing at all": [],
    "an update that is there": [update(1), ok(1, 1), end(1, reported_lamp=1)],
    "an end that is read twice": [update(1), ok(1, 1), end(1, reported_lamp=1), end(1, reported_lamp=1)],
    "direct updates that were under way at the same time": [
        *(wish(1), wish(2), ok(2, 1, client="op"), ok(1, 2, client="op"), heard(1, desired_op=2)),
        *(heard(2, desired_op=1), end(2, desired_op=1)),
    ],
    "a direct update without an answer that is carried out much later": [
        *(wish(1), info(1, client="op"), wish(2), ok(2, 1, client="op"), heard(1, desired_op=2)),
        *(heard(2, desired_op=1), end(2, desired_op=1)),
    ],
    "a time-out that was carried out": [update(1), info(1), end(1, reported_lamp=1)],
    "a time-out that was not": [update(1), ok(1, 1), update(2), info(2), end(1, reported_lamp=1)],
    "a time-out that never did anything": [update(1), info(1), end(0)],
    "a late answer after a time-out": [update(1), info(1), ok(1, 1), end(1, reported_lamp=1)],
    "an answer that comes twice": [
        update(1),
        ok(1, 1),
        update(2),
        ok(2, 2),
        ok(1, 1),
        end(2, reported_lamp=2),
    ],
    "an update that is carried out twice": [
        *(update(1), died(), ok(1, 1), ok(1, 2), heard(1, reported_lamp=1), heard(2, reported_lamp=1)),
        end(2, reported_lamp=1),
    ],
    "a message that comes twice": [
        *(update(1), ok(1, 1), update(2), ok(2, 2), heard(1, reported_lamp=1), heard(2, reported_lamp=2)),
        *(heard(1, reported_lamp=1), heard(2, reported_lamp=2), end(2, reported_lamp=2)),
    ],
    "a message that is missing": [
        *(update(1), ok(1, 1), update(2), ok(2, 2), update(3), ok(3, 3), heard(1, reported_lamp=1)),
        *(heard(3, reported_lamp=3), end(3, reported_lamp=3)),
    ],
    "what a direct update announces comes late": [
        *(
            update(1, client="operator", field="desired.operator", is_direct=True),
            ok(1, 1, client="operator"),
        ),
        *(update(1), ok(1, 2), heard(2, reported_lamp=1, desired_operator=1), heard(1, desired_operator=1)),
        end(2, reported_lamp=1, desired_operator=1),
    ],
    "a get that was asked for before the update was accepted": [
        *(
            update(1),
            ok(1, 1),
            get(1),
            update(2),
            ok(2, 2),
            got(1, 1, reported_lamp=1),
            end(2, reported_lamp=2),
        ),
    ],
    "a run that comes again in order after a fault": [
        *(update(1), ok(1, 1), update(2), ok(2, 2), update(3), ok(3, 3), died(), heard(3, reported_lamp=3)),
        *(heard(4, reported_lamp=2), heard(5, reported_lamp=3), end(5, reported_lamp=3)),
    ],
    "a run that comes again, of which not all was heard": [
        *(update(1), ok(1, 1), update(2), ok(2, 2), update(3), ok(3, 3), died()),
        *(heard(4, reported_lamp=1), heard(6, reported_lamp=3), end(6, reported_lamp=3)),
    ],
    "a run that comes again without what never arrived": [
        *(update(1), ok(1, 1), update(2), info(2), update(3), ok(3, 2), died()),
        *(heard(3, reported_lamp=1), heard(4, reported_lamp=3), end(4, reported_lamp=3)),
    ],
    "a delta that was followed": [
        *(update(1, client="operator", field="desired.lamp"), ok(1, 1, client="operator")),
        *(heard(1, is_whole=False, desired_lamp=1), update(1), ok(1, 2)),
        end(2, follower=LAMP, desired_lamp=1, reported_lamp=1),
    ],
    "a delta that nobody follows": [
        *(update(1, client="operator", field="desired.lamp"), ok(1, 1, client="operator")),
        end(1, desired_lamp=1),
    ],
    "a refusal without a trace": [update(1), fail(1), update(2), ok(2, 1), end(1, reported_lamp=2)],
    "a refusal, after which the update came again and was carried out": [
        *(update(1), fail(1), died(), heard(1, reported_lamp=1), end(1, reported_lamp=1)),
    ],
    "an update that was carried out, came again, and was refused for its version": [
        *(update(1), heard(1, reported_lamp=1), died(), fail(1), end(1, reported_lamp=1)),
    ],
}

BAD: Final = {
    "an accepted update that is not there": (MISSING, [update(1), ok(1, 1), end(1)]),
    "an accepted update in place of which an older one is there": (
        MISSING,
        [update(1), ok(1, 1), update(2), ok(2, 2), died(), end(3, reported_lamp=1)],
    ),
    "a value that nobody sent": (MISSING, [update(1), ok(1, 1), end(1, reported_lamp=7)]),
    "two readings at the end that differ in version": (
        DIFFERS,
        [update(1), ok(1, 1), end(1, reported_lamp=1), end(2, reported_lamp=1)],
    ),
    "two readings at the end that differ in content": (
        DIFFERS,
        [update(1), update(2), info(1), info(2), end(2, reported_lamp=1), end(2, reported_lamp=2)],
    ),
    "a shadow that nobody read at the end": (MISSING, [update(1), ok(1, 1)]),
    "a get that is older than what was known": (
        WENT_BACK,
        [
            update(1),
            ok(1, 1),
            update(2),
            ok(2, 2),
            get(1),
            got(1, 1, reported_lamp=1),
            end(2, reported_lamp=2),
        ],
    ),
    "a get that is older than the get before": (
        WENT_BACK,
        [
            *(update(1), info(1), get(1), got(1, 2, reported_lamp=1), get(2), got(2, 1, reported_lamp=1)),
            end(2, reported_lamp=1),
        ],
    ),
    "an end that is older than what was known": (
        WENT_BACK,
        [update(1), ok(1, 2), end(1, reported_lamp=1)],
    ),
    "a version that is made again after it was known": (
        WENT_BACK,
        [update(1), ok(1, 1), update(2), ok(2, 1), end(1, reported_lamp=2)],
    ),
    "a message that comes first after a newer one": (
        WENT_BACK,
        [
            *(update(1), update(2), ok(1, 1), ok(2, 2), heard(2, reported_lamp=2), heard(1, reported_lamp=1)),
            end(2, reported_lamp=2),
        ],
    ),
    "a version that two updates made": (
        MADE_TWICE,
        [update(1), update(2), ok(1, 1), ok(2, 1), end(1, reported_lamp=2)],
    ),
    "a version that is another to the update and to a reader": (
        MADE_TWICE,
        [update(1), update(2), heard(1, reported_lamp=1), ok(2, 1), end(2, reported_lamp=2)],
    ),
    "a version that is another to two readers": (
        MADE_TWICE,
        [
            *(update(1), update(2), heard(1, observer="one", reported_lamp=1)),
            *(heard(1, observer="two", reported_lamp=2), end(2, reported_lamp=2)),
        ],
    ),
    "a version that has one field more to one reader": (
        MADE_TWICE,
        [
            *(update(1), heard(1, observer="one", reported_lamp=1), heard(1, observer="two")),
            end(2, reported_lamp=1),
        ],
    ),
    "a delta that is not what the document says": (
        MADE_TWICE,
        [
            *(update(1, field="desired.lamp"), update(2, field="desired.lamp"), heard(1, desired_lamp=1)),
            *(heard(1, is_whole=False, desired_lamp=2), end(2, desired_lamp=2)),
        ],
    ),
    "a direct update that is carried out again after a later one": (
        MISSING,
        [
            *(wish(1), ok(1, 1, client="op"), wish(2), ok(2, 2, client="op")),
            *(heard(3, desired_op=1), end(3, desired_op=1)),
        ],
    ),
    "a direct update that comes again after a later one and then the later one": (
        ORDER,
        [
            *(wish(1), ok(1, 1, client="op"), wish(2), ok(2, 2, client="op"), heard(3, desired_op=1)),
            *(heard(4, desired_op=2), end(4, desired_op=2)),
        ],
    ),
    "a step back that nothing explains": (
        ORDER,
        [
            *(update(1), update(2), heard(1, reported_lamp=2), heard(2, reported_lamp=1)),
            *(heard(3, reported_lamp=2), end(3, reported_lamp=2)),
        ],
    ),
    "a step back before the fault that might explain it": (
        ORDER,
        [
            *(update(1), update(2), heard(1, reported_lamp=2), heard(2, reported_lamp=1), died()),
            *(heard(3, reported_lamp=2), end(3, reported_lamp=2)),
        ],
    ),
    "two steps back after one fault": (
        ORDER,
        [
            *(update(1), update(2), died(), heard(1, reported_lamp=2), heard(2, reported_lamp=1)),
            *(heard(3, reported_lamp=2), heard(4, reported_lamp=1), end(5, reported_lamp=2)),
        ],
    ),
    "a run that comes again with a gap": (
        ORDER,
        [
            *(update(1), ok(1, 1), update(2), ok(2, 2), update(3), ok(3, 3), died()),
            *(heard(4, reported_lamp=1), heard(5, reported_lamp=3), end(5, reported_lamp=3)),
        ],
    ),
    "a delta that was not followed": (
        APART,
        [
            *(update(1, client="operator", field="desired.lamp"), ok(1, 1, client="operator")),
            end(1, follower=LAMP, desired_lamp=1),
        ],
    ),
    "a refused update that is there": (TRACE, [update(1), fail(1), end(1, reported_lamp=1)]),
    "a refused update that was there for a while": (
        TRACE,
        [update(1), fail(1), heard(1, reported_lamp=1), update(2), ok(2, 2), end(2, reported_lamp=2)],
    ),
    "a refused update that was there, and a fault before it was sent": (
        TRACE,
        [died(), update(1), fail(1), end(1, reported_lamp=1)],
    ),
}


@pytest.mark.parametrize("events", GOOD.values(), ids=GOOD.keys())
def test_a_good_history_has_no_contradiction(events: list[Event]) -> None:
    assert first_contradiction(history(*events)) is None


@pytest.mark.parametrize(("rule", "events"), BAD.values(), ids=BAD.keys())
def test_a_bad_history_is_found_by_the_rule_that_it_breaks(rule: str, events: list[Event]) -> None:
    found = first_contradiction(history(*events))
    assert found is not None
    assert found.rule == rule
    assert found.events == tuple(in_order(found.events))


def test_a_contradiction_tells_the_operations_that_make_it_up() -> None:
    found = first_contradiction(
        history(
            update(1),
            ok(1, 1),
            update(2),
            ok(2, 2),
            get(1),
            got(1, 1, reported_lamp=1),
            end(2, reported_lamp=2),
        )
    )
    assert str(found).splitlines() == [
        "a version went back: version 1 was told to somebody who asked when 2 was known",
        "    4.000000  lamp #2: ok version 2",
        "    5.000000  reader #1: get of lamp",
        "    6.000000  reader #1: ok version 1, reported.lamp=1",
    ]


def test_a_history_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    events = history(*(event for _, bad in BAD.values() for event in bad))
    path = tmp_path / "history.jsonl"
    write_history(path, events)
    assert read_history(path) == events
    assert len({describe_event(event) for event in events}) == len(events)


def test_a_line_that_its_recorder_did_not_live_to_finish_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    one, two = history(update(1), ok(1, 1))
    path.write_bytes(encode_event(one) + encode_event(two)[:-9])
    assert read_history(path) == [one]
