"""What the history of an audit tells while it is written: what was accepted, how quickly, and when all was served.

Reads the file that the auditor's recorder writes, be that in this process or in another. Times are seconds of the
clock of the history (`time.monotonic`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import msgspec

from scenarios.history import Answered, Event, Outcome, Sent

# Answers are as quick as before when they take at most so many times as long as 95 of 100 did before the fault ...
_SLOWER_MAX: Final = 3.0
# ... but what takes this long is quick in any case, on a machine that does other things as well.
_QUICK_S: Final = 0.1
# Steadily so: of all that is sent in this time, at least this share.
STEADY_S: Final = 2.0
_STEADY_SHARE: Final = 0.95
_decode: Final = msgspec.json.Decoder(Event).decode


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation that came to an end: `outcome` OK (accepted), FAIL (refused), or INFO (nobody knows)."""

    sent_s: float
    answered_s: float
    outcome: Outcome

    @property
    def took_s(self) -> float:
        """Return how long its answer took."""
        return self.answered_s - self.sent_s


class AuditProgress:
    """Reads an auditor's history while it is written. All methods work in place."""

    def __init__(self, path: Path) -> None:
        self.accepted_count = 0
        # In the order of their answers.
        self.operations: list[Operation] = []
        self._path = path
        self._offset = 0
        self._sent: dict[tuple[str, int], Sent] = {}
        # Of updates that were accepted, by thing and way: when they had been sent, and when they were answered.
        self._accepted: dict[tuple[str, bool], list[tuple[float, float]]] = {}

    @property
    def thing_names(self) -> list[str]:
        """Return the things that were written to."""
        return sorted({thing_name for thing_name, _ in self._accepted})

    def read(self) -> None:
        """Take in what has been written since the last time."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            self._take(_decode(line))

    def _take(self, event: Event) -> None:
        if isinstance(event, Sent):
            self._sent[event.client, event.number] = event
            if event.values:
                self._accepted.setdefault((event.thing_name, event.is_direct), [])
        elif isinstance(event, Answered):
            sent = self._sent.get((event.client, event.number))
            if sent is None:
                return
            self.operations.append(Operation(sent.at_s, event.at_s, event.outcome))
            if event.outcome is Outcome.OK and sent.values:
                self.accepted_count += 1
                self._accepted[sent.thing_name, sent.is_direct].append((sent.at_s, event.at_s))

    def is_served(self, since_s: float, *, way_count: int) -> bool:
        """Tell whether something that was sent since then was accepted, of every thing and in both ways."""
        return self.served_at_s(since_s, way_count=way_count) is not None

    def served_at_s(self, since_s: float, *, way_count: int) -> float | None:
        """Return when, for the first time, of every thing and in both ways something sent since then was accepted."""
        self.read()
        firsts = [
            next((answered_s for sent_s, answered_s in times if sent_s > since_s), None)
            for times in self._accepted.values()
        ]
        known = [first for first in firsts if first is not None]
        return max(known) if known and len(known) == len(firsts) >= way_count else None

    def longest_silence_s(self, since_s: float) -> float:
        """Return the longest time since then in which nothing was accepted of a thing in one of both ways."""
        longest_s = 0.0
        for times in self._accepted.values():
            answered = [since_s, *(answered_s for _, answered_s in times if answered_s > since_s)]
            longest_s = max([longest_s, *(later - earlier for earlier, later in pairwise(answered))])
        return longest_s


def between(operations: Sequence[Operation], begin_s: float, end_s: float) -> list[Operation]:
    """Return the operations that were sent from `begin_s` on and before `end_s`, in the order of their sending."""
    found = [each for each in operations if begin_s <= each.sent_s < end_s]
    return sorted(found, key=lambda each: each.sent_s)


def percentile_s(operations: Sequence[Operation], percent: float) -> float | None:
    """Return how long at most `percent` of 100 accepted operations took; None where none was accepted."""
    times = sorted(each.took_s for each in operations if each.outcome is Outcome.OK)
    return times[min(len(times) - 1, int(len(times) * percent / 100))] if times else None


def steady_at_s(before: Sequence[Operation], after: Sequence[Operation]) -> float | None:
    """Return from when on, of what was sent `after` a fault, answers were steadily as quick as `before` it.

    None where that never was so for `STEADY_S`; `after` is in the order of its sending.
    """
    usual_s = percentile_s(before, 95)
    if usual_s is None or not after:
        return None
    bound_s = max(_QUICK_S, usual_s * _SLOWER_MAX)
    return next(_steady(after, bound_s), None)


def _steady(after: Sequence[Operation], bound_s: float) -> Iterator[float]:
    """Give the times of sending from which on enough was quick, with whole time to judge that."""
    sent_s = [each.sent_s for each in after]
    for position, begin_s in enumerate(sent_s):
        if sent_s[-1] < begin_s + STEADY_S:
            return
        window = after[position : bisect_left(sent_s, begin_s + STEADY_S)]
        quick = [each for each in window if each.outcome is not Outcome.INFO and each.took_s <= bound_s]
        if window[0] in quick and len(quick) >= _STEADY_SHARE * len(window):
            yield begin_s
