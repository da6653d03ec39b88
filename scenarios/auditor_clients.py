"""What all clients of an audit share: numbered operations, written into the history before they happen.

The history is a file that grows by one line an event. Each line is handed to the system before its client goes on, so
that the death of this process loses nothing that a client knows.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from scenarios.history import Answered, Event, Observed, Outcome, Sent, encode_event

SECTIONS: Final = ("desired", "reported")


class Recorder:
    """Writes a history; the clients of one process share it."""

    def __init__(self, path: Path) -> None:
        # Unbuffered: what a client knows must not die with it.
        self._file = path.open("ab", buffering=0)
        self.counts = dict.fromkeys(Outcome, 0)
        self.sent_count = 0

    def note(self, event: Event) -> None:
        """Write an event down."""
        self._file.write(encode_event(event))

    def close(self) -> None:
        """End the history."""
        self._file.close()


class Client:
    """Somebody who changes and reads shadows; `name` stands in the fields that it writes."""

    def __init__(self, name: str, recorder: Recorder, *, is_direct: bool) -> None:
        self.name: Final = name
        self._recorder = recorder
        self._is_direct = is_direct
        self._number = 0

    def next_number(self) -> int:
        """Return the number of the next operation."""
        return self._number + 1

    def begin(self, thing_name: str, shadow_name: str, values: Mapping[str, int]) -> int:
        """Write down that an operation begins, and return its number; without `values` it is a get."""
        self._number += 1
        self._recorder.sent_count += 1
        self._recorder.note(
            Sent(
                time.monotonic(),
                self.name,
                self._number,
                thing_name,
                shadow_name,
                dict(values),
                is_direct=self._is_direct,
            )
        )
        return self._number

    def accepted(self, number: int, version: int, values: Mapping[str, int] | None = None) -> None:
        """Write down that an operation was carried out; `values` are what a get has read."""
        self._end(number, Outcome.OK, version, values=values or {})

    def refused(self, number: int, detail: str) -> None:
        """Write down that an operation was refused."""
        self._end(number, Outcome.FAIL, detail=detail)

    def unknown(self, number: int, detail: str) -> None:
        """Write down that nobody knows what became of an operation."""
        self._end(number, Outcome.INFO, detail=detail)

    def _end(
        self,
        number: int,
        outcome: Outcome,
        version: int = 0,
        *,
        values: Mapping[str, int] | None = None,
        detail: str = "",
    ) -> None:
        self._recorder.counts[outcome] += 1
        self._recorder.note(
            Answered(
                time.monotonic(),
                self.name,
                number,
                outcome,
                version,
                dict(values or {}),
                detail,
            )
        )

    def observed(
        self, thing_name: str, shadow_name: str, topic: str, version: int, values: Mapping[str, int]
    ) -> None:
        """Write down what was told of a version without being asked for; documents tell all of it."""
        self._recorder.note(
            Observed(
                time.monotonic(),
                self.name,
                thing_name,
                shadow_name,
                topic,
                version,
                dict(values),
                is_whole=topic == "documents",
            )
        )


def fields_of(state: Mapping[str, Any]) -> dict[str, int]:
    """Return the fields of a shadow's state as histories name them: `reported.lamp-1`."""
    return dict(_fields(state))


def _fields(state: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for section in SECTIONS:
        for key, value in (state.get(section) or {}).items():
            yield f"{section}.{key}", value
