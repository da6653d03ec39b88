"""A fleet whose groups with `path: wire` are real devices: load processes have them, and the platform their twins.

To the engine it is a `Fleet` like any other, so that a scenario is the same on every path: an order of ticks goes to
the load processes, what it desires of a group is asked of each twin, and what comes back are the same summaries. All
other groups, and every question, are those of the fleet behind it.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from actors.fleet import (
    Fleet,
    FleetReading,
    JobCounts,
    PinnedTwin,
    ShardColumns,
    Twin,
    update_desired_request,
)
from scenarios.errors import DeviceFailed, LoadFailed, NameTaken
from scenarios.load_crew import LoadCrew, process_count_for
from scenarios.load_orders import (
    ConnectAll,
    CreateGroup,
    DeleteGroup,
    LoadNews,
    LoadSettings,
    Registrar,
    Settle,
    Tick,
)
from scenarios.load_registrar import delete_things
from scenarios.spec import TICK_S, Scenario
from twins.fleet_answer import FleetQuestion
from twins.messages import GroupOrder, Reply, Request, TickOrder, TickSummary
from twins.model import Field, Group

# Beside the time that the connect rate takes: the last devices may have to try several times.
_CONNECT_TIMEOUT_S: Final = 60.0
# After the last tick: longer than what a load process waits for an answer.
_SETTLE_TIMEOUT_S: Final = 35.0
# Desired values that are asked for at once; the fleet takes them in few calls.
_WISHES_AT_ONCE: Final = 500
_REFUSED_FROM: Final = 400


@dataclass(frozen=True, slots=True)
class WireSite:
    """Where devices connect and are registered; `ca` is the file of the broker's authority."""

    host: str
    port: int
    ca: str
    registrar: Registrar


class WireFleet:
    """A fleet that has the groups with `path: wire` of a scenario in load processes; `close` ends these."""

    def __init__(self, fleet: Fleet, scenario: Scenario, site: WireSite) -> None:
        self._fleet = fleet
        self._site = site
        self._spec = scenario.wire
        self._on_wire = {group.name for group in scenario.groups if group.path == "wire"}
        self._device_count = sum(group.count for group in scenario.groups if group.path == "wire")
        self._tick_s = TICK_S / (scenario.clock.speed or 1.0)
        self._groups: dict[str, Group] = {}
        self._crew = LoadCrew()
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._news = LoadNews()
        self._begins_s = time.monotonic()
        # Desired values that are being asked for.
        self._wishes: set[asyncio.Task[None]] = set()

    @property
    def crew(self) -> LoadCrew:
        """Return the load processes."""
        return self._crew

    # What is different on the wire

    async def create_group(self, group: Group) -> None:
        """Register and connect the devices of a group on the wire; any other is the fleet's.

        NameTaken if a thing of that name is registered already, LoadFailed if not one device can connect.
        """
        if group.name not in self._on_wire:
            await self._fleet.create_group(group)
            return
        if not self._crew.count:
            await self._start_crew()
        try:
            await self._order(CreateGroup(GroupOrder.of(group), self._site.registrar))
        except (LoadFailed, NameTaken):
            # Only what was made just now: a thing that was there before stays.
            with contextlib.suppress(LoadFailed):
                await self._order(DeleteGroup(group.name, self._site.registrar))
            raise
        self._groups[group.name] = group
        try:
            await self._connect(group)
        except LoadFailed:
            await self.delete_group(group.name)
            raise

    async def _connect(self, group: Group) -> None:
        timeout_s = _CONNECT_TIMEOUT_S + group.count / self._spec.connect_rate
        _, news = await self._order(ConnectAll(timeout_s))
        if not news.online:
            reasons = ", ".join(f"{reason} ({count} times)" for reason, count in news.errors.items())
            raise LoadFailed(f"no device of group {group.name!r} could connect: {reasons or 'no answer'}")

    async def _start_crew(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="twinfleet-load-")
        spec, site = self._spec, self._site
        settings = LoadSettings(
            site.host,
            site.port,
            self._directory.name,
            ca=site.ca,
            qos=spec.qos,
            keep_alive_s=spec.keep_alive_s,
            connect_rate=spec.connect_rate,
            backoff=spec.backoff,
            retry_first_s=spec.retry_first_s,
            retry_max_s=spec.retry_max_s,
        )
        count = process_count_for(self._device_count, spec.processes)
        await self._crew.start(settings, count, Path(self._directory.name))

    async def delete_group(self, name: str) -> None:
        """Disconnect a group's devices and delete their things, also where load processes have died."""
        group = self._groups.pop(name, None)
        if group is None:
            await self._fleet.delete_group(name)
            return
        with contextlib.suppress(LoadFailed):
            await self._order(DeleteGroup(name))
        names = [group.pattern.name(index) for index in range(group.count)]
        await delete_things(names, self._site.registrar)

    def intend(self, begins_s: float | None) -> None:
        """Say when the next ticks are meant to begin, by the performance counter; None: now."""
        late_s = 0.0 if begins_s is None else time.perf_counter() - begins_s
        self._begins_s = time.monotonic() - late_s

    async def tick(self, orders: Sequence[TickOrder]) -> dict[str, TickSummary]:
        """Run the ordered ticks, and return what happened so far; what is desired of a group is asked of each twin."""
        self._check_wishes()
        on_wire = [order for order in orders if order.group in self._on_wire]
        others = [order for order in orders if order.group not in self._on_wire]
        for order in on_wire:
            if order.desired:
                self._wish(order)
        bare = [
            TickOrder(order.group, order.first_tick, order.tick_count, {}, order.faults) for order in on_wire
        ]
        summaries: dict[str, TickSummary] = {}
        if others:
            summaries |= await self._fleet.tick(others)
        if bare:
            found, _ = await self._order(Tick(bare, self._begins_s, self._tick_s))
            summaries |= {order.group: found[order.group] for order in bare}
        return summaries

    async def settle(self) -> dict[str, TickSummary]:
        """Wait until every report on the wire has its answer, or is lost, and return what became of them by group."""
        if self._wishes:
            await asyncio.wait(self._wishes, timeout=_SETTLE_TIMEOUT_S)
            self._check_wishes()
        if not self._groups:
            return {}
        summaries, _ = await self._order(Settle(_SETTLE_TIMEOUT_S))
        return summaries

    def take_news(self) -> LoadNews:
        """Return what has happened on the wire since the last time."""
        news, self._news = self._news, LoadNews()
        return news

    async def close(self) -> None:
        """End the load processes, and let go of the fleet."""
        for task in self._wishes:
            task.cancel()
        await self._crew.stop()
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None
        await self._fleet.close()

    async def _order(self, order: Any) -> tuple[dict[str, TickSummary], LoadNews]:
        summaries, news = await self._crew.order(order)
        online = news.online
        self._news.add(news)
        self._news.online = online
        return summaries, news

    def _wish(self, order: TickOrder) -> None:
        group = self._groups[order.group]
        fields = group.model.fields
        state = {
            name: as_json(fields[group.model.position(name)], number)
            for name, number in order.desired.items()
        }
        self._wishes.add(asyncio.create_task(self._ask_all(group, state)))

    async def _ask_all(self, group: Group, state: Mapping[str, Any]) -> None:
        for first in range(0, group.count, _WISHES_AT_ONCE):
            names = [
                group.pattern.name(index) for index in range(first, min(first + _WISHES_AT_ONCE, group.count))
            ]
            replies = await self._fleet.ask_many([update_desired_request(name, state) for name in names])
            for name, reply in zip(names, replies, strict=True):
                if reply.status >= _REFUSED_FROM:
                    raise DeviceFailed(name, f"desired values were refused: {reply.payload.decode()}")

    def _check_wishes(self) -> None:
        for task in [task for task in self._wishes if task.done()]:
            self._wishes.discard(task)
            task.result()

    # What is the same

    @property
    def shard_count(self) -> int:
        """Return the fixed number of shards."""
        return self._fleet.shard_count

    def twin(self, thing_name: str) -> Twin:
        """Return the handle of one twin."""
        return self._fleet.twin(thing_name)

    async def ask(self, request: Request) -> Reply:
        """Return the answer to one request."""
        return await self._fleet.ask(request)

    async def ask_many(self, requests: Sequence[Request]) -> list[Reply]:
        """Return the answers to many requests, in their order."""
        return await self._fleet.ask_many(requests)

    async def group_names(self) -> list[str]:
        """Return the names of the simulated groups."""
        return await self._fleet.group_names()

    async def pins(self) -> list[PinnedTwin]:
        """Return the twins that are pinned to a behaviour."""
        return await self._fleet.pins()

    async def twins_table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return one row per twin as Arrow."""
        return await self._fleet.twins_table(columns)

    async def shard_columns(self, columns: Sequence[str]) -> list[ShardColumns]:
        """Return these columns of all twins as NumPy arrays, by shard."""
        return await self._fleet.shard_columns(columns)

    async def telemetry_table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return what twins remember of their telemetry as Arrow."""
        return await self._fleet.telemetry_table(columns)

    async def overdue(self) -> list[str]:
        """Return the things of whose jobs or commands a timer has ended."""
        return await self._fleet.overdue()

    async def job_counts(self) -> JobCounts:
        """Return, by job and status, how many things have such an execution."""
        return await self._fleet.job_counts()

    async def executions_table(self) -> pa.Table:
        """Return all job executions as Arrow: a row for each thing and job."""
        return await self._fleet.executions_table()

    async def answer(self, question: FleetQuestion) -> FleetReading:
        """Return the answer to a fleet query."""
        return await self._fleet.answer(question)

    async def digest(self) -> str:
        """Return the digest over the simulated twins of the fleet, which those on the wire do not belong to."""
        return await self._fleet.digest()


def as_json(field: Field, number: float) -> Any:
    """Return a value as it stands in a document: the inverse of `Field.as_number`."""
    if field.dtype == "bool":
        return bool(number)
    if field.dtype == "choice":
        return field.choices[int(number)]
    return float(number) if field.dtype.startswith("float") else int(number)
