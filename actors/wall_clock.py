"""The clock of the real world. The only module that hands the machine's time to code of the pure core."""

from __future__ import annotations

import time


class WallClock:
    """A `twins.clock.Clock` that tells the machine's time."""

    def now_s(self) -> float:
        """Return the machine's time in seconds since the Unix epoch; it may jump when the machine is set."""
        return time.time()


def boot_time_s() -> float:
    """Return the seconds since the machine was started, those in which it was suspended included; nobody sets it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
