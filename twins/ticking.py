"""Ticks of a shard that have begun and are not through yet: they are worked off in pieces, so that others get a turn.

A place in the stream of a shard's inputs is between whole orders of ticks. Whatever changes the shard while an order is
under way therefore has it finished first; what only reads is answered at once, between two pieces.
"""

from __future__ import annotations

from collections.abc import Iterator

from twins.messages import TickSummary


class Ticking:
    """The order of ticks that a shard is at, if any, and what has come of orders and nobody has taken yet."""

    def __init__(self) -> None:
        self._group = ""
        self._pieces: Iterator[TickSummary | None] | None = None
        self._summaries: dict[str, TickSummary] = {}

    @property
    def is_busy(self) -> bool:
        """Tell whether an order is under way."""
        return self._pieces is not None

    def is_at(self, group: str) -> bool:
        """Tell whether an order for a group is under way."""
        return self._pieces is not None and self._group == group

    def begin(self, group: str, pieces: Iterator[TickSummary | None]) -> None:
        """Take on an order, after the one that is under way."""
        self.finish()
        self._group, self._pieces = group, pieces
        self._summaries.setdefault(group, TickSummary())

    def advance(self) -> bool:
        """Work off one piece, if there is one; tell whether there are more."""
        if self._pieces is None:
            return False
        try:
            summary = next(self._pieces)
        except StopIteration:
            self._pieces = None
            return False
        if summary is not None:
            self._summaries[self._group] += summary
        return True

    def finish(self) -> None:
        """Work off all that is left."""
        while self.advance():
            pass

    def take(self, group: str) -> TickSummary | None:
        """Return what has come of a group's orders since this was asked last; None if there was none."""
        return self._summaries.pop(group, None)

    def take_all(self) -> dict[str, TickSummary]:
        """Finish, and return what has come of the orders of each group that nobody has taken."""
        self.finish()
        summaries, self._summaries = self._summaries, {}
        return summaries
