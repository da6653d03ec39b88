"""Keeps standing fleets going in real time: once a second each gets the ticks that are due by the wall clock."""

from __future__ import annotations

from typing import Final

from actors.fleet import Fleet
from actors.registry.registry import Registry
from twins.clock import Clock
from twins.errors import ModelError
from twins.messages import TickOrder

# Seconds that a late pacer makes up for; what lies further back is skipped, as devices that were off report nothing.
_CATCH_UP_TICKS: Final = 10


class Pacer:
    """Drives the standing fleets that the registry lists."""

    def __init__(self, fleet: Fleet, registry: Registry, clock: Clock) -> None:
        self._fleet = fleet
        self._registry = registry
        self._clock = clock
        self._last_ticks: dict[str, int] = {}

    async def pace(self) -> None:
        """Run the ticks that have become due since the last call; to be called about once a second.

        After an error the same ticks come again with the next call: those that have been run are not run again.
        """
        now_s = self._clock.now_s()
        orders = []
        for record in await self._registry.fleets.all():
            group = record.group
            if record.status != "ACTIVE":
                continue
            tick = int(now_s - group.start_s) // group.tick_s
            first = max(self._last_ticks.get(group.name, tick - 1) + 1, tick - _CATCH_UP_TICKS)
            if first <= tick:
                orders.append(TickOrder(group.name, first, tick - first + 1))
        for order in orders:
            try:
                await self._fleet.tick([order])
                self._last_ticks[order.group] = order.first_tick + order.tick_count - 1
            except ModelError:
                # The fleet was deleted after it was listed.
                self._last_ticks.pop(order.group, None)
