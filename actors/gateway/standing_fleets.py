"""Simulated fleets that stay: how one comes and goes, and how a gateway that was cut off finishes its work.

Creating: the registry keeps the fleet as CREATING, the shards make its twins, then it is ACTIVE. Deleting: it
is DELETING, its twins go, then it is forgotten. `settle` completes whatever stands between; the shards take
the same order twice. Who lets the fleets live (orders their ticks) reads the ACTIVE ones from the registry.
"""

from __future__ import annotations

from asyncio import Lock
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from actors.errors import DescriptionError, FleetExists, FleetNotFound
from actors.fleet import Fleet
from actors.registry.records import FleetRecord, check_fleet_name
from actors.registry.registry import Registry
from twins.errors import ModelError
from twins.messages import GroupOrder
from twins.model import Group
from twins.model_reading import read_model
from twins.shipped import model_named

# All standing fleets together: at 150 bytes a twin this is 1.5 GB.
DEVICE_COUNT_MAX: Final = 10_000_000
# Numbers are written with as many digits, unless a fleet has more devices than that allows.
_NUMBER_WIDTH_MIN: Final = 6
# Standing fleets live in real time, and shadows know no time finer than a second.
_TICK_S: Final = 1
_REPORT_EVERY_S: Final = 10


@dataclass(frozen=True, slots=True)
class FleetDescription:
    """What an operator says of a standing fleet; `model` is the name of a shipped model, or a definition as data.

    Without `report_every_s` the model says how often its devices report, or it is every ten seconds.
    """

    name: str
    model: str | Mapping[str, Any]
    count: int
    seed: int
    report_every_s: int | None = None

    def group(self, *, start_s: int) -> Group:
        """Return the group that begins to live at `start_s`; its devices are named `NAME-000000` and on.

        DescriptionError or ModelError if there cannot be such a fleet.
        """
        check_fleet_name(self.name)
        model = model_named(self.model) if isinstance(self.model, str) else read_model(self.model)
        report_every_s = self.report_every_s or model.reporting.every_s or _REPORT_EVERY_S
        width = max(_NUMBER_WIDTH_MIN, len(str(self.count - 1)))
        return Group(
            self.name,
            model,
            f"{self.name}-{{i:0{width}d}}",
            self.count,
            self.seed,
            start_s,
            tick_s=_TICK_S,
            report_every_ticks=report_every_s // _TICK_S,
        )


class FleetOffice:
    """Creates and deletes standing fleets, one at a time: `turn` is shared with whoever else gives out names."""

    def __init__(self, fleet: Fleet, registry: Registry, *, turn: Lock) -> None:
        self._fleet = fleet
        self._registry = registry
        self._turn = turn

    async def create(self, group: Group, *, by: str = "operator") -> FleetRecord:
        """Return a new standing fleet, its twins in place; FleetExists if its name or its devices' are taken."""
        async with self._turn:
            fleets = await self._registry.fleets.all()
            for fleet in fleets:
                if (
                    fleet.status == "CREATING"
                    and replace(fleet.group.group(), start_s=group.start_s) == group
                ):
                    return await self._complete(fleet, by=by)
            present = sum(fleet.group.count for fleet in fleets)
            if present + group.count > DEVICE_COUNT_MAX:
                problem = (
                    f"{present} simulated devices stand already, {DEVICE_COUNT_MAX} are the most; delete some"
                )
                raise DescriptionError(f"count {group.count}", problem)
            taken = await self._registry.things.first_of(group.pattern, group.count)
            if taken is not None:
                raise FleetExists(
                    group.name, f"would have a device {taken!r}, which is registered as a real one"
                )
            fleet = FleetRecord(GroupOrder.of(group), group.start_s)
            await self._registry.fleets.add(fleet, by=by)
            return await self._complete(fleet, by=by)

    async def delete(self, name: str, *, by: str = "operator") -> None:
        """Remove a fleet with all its twins; FleetNotFound if there is none.

        Also one that stands in no registry: the group of a scenario that was kept, or whose run was killed.
        """
        async with self._turn:
            try:
                await self._registry.fleets.set_status(name, "DELETING", by=by)
            except FleetNotFound:
                if name not in await self._fleet.group_names():
                    raise
                await self._fleet.delete_group(name)
                return
            await self._fleet.delete_group(name)
            await self._registry.fleets.remove(name, by=by)

    async def settle(self) -> None:
        """Complete what an earlier gateway began; to be called before the first request is served."""
        async with self._turn:
            for fleet in await self._registry.fleets.all():
                name = fleet.group.name
                if fleet.status == "DELETING":
                    await self._fleet.delete_group(name)
                    await self._registry.fleets.remove(name, by="platform")
                elif fleet.status == "CREATING":
                    try:
                        await self._complete(fleet, by="platform")
                    except FleetExists:
                        # Whoever asked for it has gone; it was never promised.
                        continue

    async def _complete(self, fleet: FleetRecord, *, by: str) -> FleetRecord:
        group = fleet.group.group()
        try:
            await self._fleet.create_group(group)
        except ModelError as error:
            # Refused, not failed: nothing was made.
            await self._registry.fleets.remove(group.name, by=by)
            raise FleetExists(group.name, f"cannot be: {error}") from None
        return await self._registry.fleets.set_status(group.name, "ACTIVE", by=by)
