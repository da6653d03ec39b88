"""What time means to code that must not read it: the protocol, and a clock that the caller moves."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """Something that tells seconds since the Unix epoch."""

    def now_s(self) -> float:
        """Return the present time in seconds since the Unix epoch."""
        ...


class VirtualClock:
    """A clock that stands still until its owner advances it."""

    def __init__(self, start_s: float) -> None:
        self._now_s = start_s

    def now_s(self) -> float:
        """Return the time to which the owner has advanced this clock, in seconds since the Unix epoch."""
        return self._now_s

    def advance_to(self, now_s: float) -> None:
        """Move this clock forward, in place; going back is refused with ValueError."""
        if now_s < self._now_s:
            raise ValueError(f"a clock never goes back: at {self._now_s}, asked for {now_s}")
        self._now_s = now_s
