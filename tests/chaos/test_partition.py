"""What an insider was answered is judged: a node that serves while it is cut off is found out, and one nobody asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.shard_keeper import LEASE_S
from scenarios.history import Answered, Event, Outcome, Sent, write_history
from tests.chaos.partition import answers_while_cut_off

CUT_S, HEALED_S = 100.0, 130.0


def asked(number: int, at_s: float, outcome: Outcome, after_s: float = 0.1) -> list[Event]:
    return [Sent(at_s, "insider", number, "lamp"), Answered(at_s + after_s, "insider", number, outcome)]


BEFORE = asked(1, CUT_S - 1, Outcome.OK)
IN_LEASE = asked(2, CUT_S + LEASE_S / 2, Outcome.OK)
REFUSED = asked(3, CUT_S + LEASE_S + 1, Outcome.INFO)
AFTERWARDS = asked(4, HEALED_S + 1, Outcome.OK)
# What came through when the node had its connections again.
LATE = asked(5, HEALED_S - 1, Outcome.OK, after_s=2.0)


@pytest.mark.parametrize(
    ("events", "problem"),
    [
        (BEFORE + IN_LEASE + REFUSED + LATE + AFTERWARDS, ""),
        (BEFORE + REFUSED + asked(6, CUT_S + LEASE_S + 3, Outcome.OK), "asked 5.0 s later (1 times)"),
        (REFUSED + AFTERWARDS, "nobody was answered on the side that was to be cut off"),
        (BEFORE + IN_LEASE + AFTERWARDS, "nobody asked on the side that was cut off"),
    ],
)
def test_what_was_answered_on_the_side_that_was_cut_off_is_judged(
    tmp_path: Path, events: list[Event], problem: str
) -> None:
    history = tmp_path / "insider.jsonl"
    write_history(history, events)
    found = answers_while_cut_off(history, CUT_S, HEALED_S)
    assert problem in found
    assert bool(found) == bool(problem)
