"""The simulated fleets of a shard: how they come about, where a device of theirs lives, and how they tick."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from twins.digest import digest_fleet
from twins.errors import ModelError
from twins.handover import Handover
from twins.messages import TickOrder
from twins.model import Group
from twins.runners import runner
from twins.simulated import SimulatedFleet
from twins.ticking import Ticking


class Simulation:
    """The fleets of one shard, by the names of their groups; `number` of `count` shards. Methods work in place."""

    def __init__(self, number: int, count: int) -> None:
        self._number = number
        self._count = count
        self.fleets: dict[str, SimulatedFleet] = {}
        # Simulated twins that are in other hands, and real ones with a behaviour of their own.
        self.handover = Handover(self.find)
        self.ticking = Ticking()

    def find(self, thing_name: str) -> tuple[SimulatedFleet, int] | None:
        """Return fleet and row of a simulated device, None if there is none of that name."""
        for fleet in self.fleets.values():
            index = fleet.table.pattern.index(thing_name)
            if index is not None and (row := fleet.table.row(index)) is not None:
                return fleet, row
        return None

    def fleet(self, name: str) -> SimulatedFleet:
        """Return the fleet of a group; ModelError if there is none."""
        fleet = self.fleets.get(name)
        if fleet is None:
            raise ModelError(f"there is no group {name!r}; groups: {', '.join(self.fleets) or 'none'}")
        return fleet

    def check(self, group: Group, thing_names: Iterable[str]) -> None:
        """Raise ModelError if a group can't be created beside the others and beside these things."""
        present = self.fleets.get(group.name)
        if present is not None:
            if present.group != group:
                raise ModelError(f"there is already a group {group.name!r}, and it is another one")
            return
        for other in self.fleets.values():
            if group.pattern.family == other.group.pattern.family:
                raise ModelError(
                    f"devices of {group.name!r} would be named like those of group {other.group.name!r}; "
                    f"give it another thing_name than {group.thing_name!r}"
                )
        for thing_name in thing_names:
            index = group.pattern.index(thing_name)
            if index is not None and index < group.count:
                raise ModelError(
                    f"group {group.name!r} would have a device {thing_name!r}, which has a twin already"
                )

    def create(self, group: Group) -> None:
        """Create the part of a group that lives here, unless it is there; `check` comes first."""
        if group.name not in self.fleets:
            self.fleets[group.name] = SimulatedFleet(group, self._number, shard_count=self._count)

    def has_work(self, order: TickOrder) -> bool:
        """Tell whether a tick order concerns this shard; ModelError if it can't be carried out."""
        fleet = self.fleet(order.group)
        fleet.check(order)
        return fleet.table.count > 0

    def begin(self, order: TickOrder) -> list[tuple[str, bytes]]:
        """Take on an order of ticks; ModelError if it can't be carried out.

        Returns deltas by thing name: what it desires of real devices that have the places of simulated ones.
        """
        self.ticking.finish()
        fleet = self.fleet(order.group)
        deltas = list(self._wishes(fleet, order)) if fleet.desire(order) else []
        self.ticking.begin(order.group, fleet.pieces(order, runner()))
        return deltas

    def _wishes(self, fleet: SimulatedFleet, order: TickOrder) -> Iterator[tuple[str, bytes]]:
        for thing_name in sorted(self.handover.taken()):
            found = self.find(thing_name)
            if found is not None and found[0] is fleet:
                delta = fleet.table.load(found[1]).delta(fleet.time_s(order.first_tick))
                if delta is not None:
                    yield thing_name, delta

    def digest_leaves(self) -> list[tuple[str, int, bytes]]:
        """Return (name pattern, block, SHA-256) for each block of simulated twins; see `digest`."""
        self.ticking.finish()
        return [leaf for fleet in self.fleets.values() for leaf in digest_fleet(fleet)]
