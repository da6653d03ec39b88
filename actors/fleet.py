"""What every fleet can do, wherever its shards run, and the fleet that runs them in this very process.

`Fleet` is the contract that scenarios, the gateway and tests are written against; `LocalFleet` satisfies it without
Ray, under a clock that the caller gives; `ray_fleet.RayFleet` satisfies it on a cluster.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import pyarrow as pa

from actors.arrow_tables import arrow_table, executions_of, join_tables
from actors.behaviors import (
    Behavior,
    call_behavior,
    due_step,
    load_behavior,
    report_request,
    state_request,
)
from actors.errors import BehaviorUnusable
from twins.assignments import AskCommands, AskJobs, Assignment, encode_assignment
from twins.clock import Clock, VirtualClock
from twins.columns import FIXED_COLUMNS, QueryColumn
from twins.digest import combine_digest
from twins.errors import request_error
from twins.fleet_answer import FleetAnswer, FleetQuestion, answer_question
from twins.handover import DEFAULT_BEHAVIOR, PinOrder, decode_pin_state
from twins.messages import Batch, Operation, Publish, Reply, Request, TickOrder, TickSummary
from twins.model import Group
from twins.runners import COMPILED_FROM_COUNT, prepare_compiled
from twins.shard import Shard
from twins.sharding import shard_of
from twins.telemetry_columns import select_telemetry
from twins.topics import matches

JsonObject = dict[str, Any]


class Twin(Protocol):
    """The handle of one device's twin, real or simulated; making one costs nothing and starts nothing.

    A refusal is raised as `twins.errors.RequestError` with the wire's code and message.
    """

    @property
    def thing_name(self) -> str:
        """Return the name that addresses this twin."""
        ...

    def shadow(self, shadow_name: str = "") -> Awaitable[JsonObject]:
        """Return the shadow document as on `get/accepted`; ShadowNotFound where there is none."""
        ...

    def update_desired(
        self, state: Mapping[str, Any], *, shadow_name: str = "", version: int | None = None
    ) -> Awaitable[JsonObject]:
        """Merge `state` into the desired section and return the accepted document; VersionConflict if not current."""
        ...

    def describe(self) -> Awaitable[JsonObject]:
        """Return everything that the twin is, as `GET /v1/twins/THING`; ShadowNotFound where there is no such twin."""
        ...

    def telemetry(self) -> Awaitable[JsonObject]:
        """Return, per field, last value with its time, and count, min, max, mean over the sliding window."""
        ...


@dataclass(frozen=True)
class FleetReading:
    """The answer to a fleet query, and when each shard was read for it (seconds of the clock of the fleet)."""

    answer: FleetAnswer
    read_at: Mapping[int, float]

    @classmethod
    def of(cls, question: FleetQuestion, parts: Sequence[FleetReading]) -> FleetReading:
        """Return the reading that some parts give together."""
        read_at = {shard: at for part in parts for shard, at in part.read_at.items()}
        return cls(FleetAnswer.of(question, [part.answer for part in parts]), read_at)


@dataclass(frozen=True)
class ShardColumns:
    """Columns of one shard's twins as NumPy arrays, as they were at `read_at` (seconds of the clock of the fleet).

    `tables` has one entry for each model or simulated group, with the same rows in each of its columns. The arrays are
    the shard's answer and not its state: they are not to be written, and they stay as they are for as long as somebody
    holds them. From a cluster, those of 100 KB and more lie where Ray has put them in shared memory, which is freed
    when the last array of the answer is let go.
    """

    shard: int
    read_at: float
    tables: Sequence[Mapping[str, QueryColumn]]


@dataclass(frozen=True, order=True)
class PinnedTwin:
    """A twin with a behaviour of its own, `module:Class`."""

    thing_name: str
    behavior: str


class Fleet(Protocol):
    """Twins by name, simulated groups, and questions over all of them."""

    @property
    def shard_count(self) -> int:
        """Return the fixed number of shards."""
        ...

    def twin(self, thing_name: str) -> Twin:
        """Return the handle of one twin."""
        ...

    async def ask(self, request: Request) -> Reply:
        """Return the answer to one request; what it changed is announced on MQTT where the fleet has a broker."""
        ...

    async def ask_many(self, requests: Sequence[Request]) -> list[Reply]:
        """Return the answers to many requests, in their order, in few calls; requests of one thing keep their order.

        When it raises, some of them may have been carried out.
        """
        ...

    async def create_group(self, group: Group) -> None:
        """Create a simulated group, all its devices at tick 0; ModelError if the name is taken by another group."""
        ...

    async def delete_group(self, name: str) -> None:
        """Remove a simulated group with all its twins; removing one that is not there changes nothing."""
        ...

    async def group_names(self) -> list[str]:
        """Return the names of the simulated groups."""
        ...

    async def tick(self, orders: Sequence[TickOrder]) -> dict[str, TickSummary]:
        """Run the ordered ticks on all shards and return what happened, per group name."""
        ...

    async def pins(self) -> list[PinnedTwin]:
        """Return the twins that are pinned to a behaviour, in the order of their names."""
        ...

    async def twins_table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return one row per twin as Arrow; `columns` are the wanted names (others are left out; None: all).

        Columns: name, model, origin ('real' or 'simulated'), version (uint32), connected (bool, null if unknown),
        updated_at (uint32 seconds), firmware (the reported firmware_version), each attribute as a string column, and
        for every model field f: reported_f, reported_f_at, and for settable ones desired_f, desired_f_at. Null where
        a twin has no such value. Texts that repeat are dictionaries. A name in small letters stands for columns of any
        case. The rows of a shard are as they were at one moment, between two calls to it; `shards_read_at` in
        `arrow_tables` says when.
        """
        ...

    async def shard_columns(self, columns: Sequence[str]) -> list[ShardColumns]:
        """Return these columns of all twins as NumPy arrays, by shard, without a copy on the way; see `ShardColumns`.

        The columns are those of `twins_table`; those that a table does not have are left out of it.
        """
        ...

    async def telemetry_table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return what twins remember of their telemetry as Arrow: a row for each thing, stream and field.

        Columns: name, stream, field, value (double), text, at (uint32 seconds) are the last value; count, min, max,
        mean those of the sliding window. In all else it is as `twins_table`.
        """
        ...

    async def overdue(self) -> list[str]:
        """Return the things of whose jobs or commands a timer has ended; `Expire` times them out."""
        ...

    async def job_counts(self) -> JobCounts:
        """Return, by job and status, how many things have such an execution."""
        ...

    async def executions_table(self) -> pa.Table:
        """Return all job executions as Arrow: a row for each thing and job; columns as `EXECUTION_COLUMNS`."""
        ...

    async def answer(self, question: FleetQuestion) -> FleetReading:
        """Return how many twins match a fleet query, which, and how their values are distributed.

        QueryError if the query can't be read. Each shard is read at one moment, as for `twins_table`. A thing's type,
        id and groups are not known here, and count as missing.
        """
        ...

    async def digest(self) -> str:
        """Return 64 hexadecimal digits over every simulated twin; equal histories give equal digests."""
        ...

    async def close(self) -> None:
        """Let go of what this fleet holds; the twins of a cluster live on."""
        ...


JobCounts = dict[str, dict[str, int]]


def add_counts(parts: Iterable[JobCounts]) -> JobCounts:
    """Return the sum of what several shards count."""
    total: JobCounts = {}
    for part in parts:
        for job_id, of_job in part.items():
            known = total.setdefault(job_id, {})
            for status, count in of_job.items():
                known[status] = known.get(status, 0) + count
    return total


def assign_request(thing_name: str, order: Assignment) -> Request:
    """Return the request that has a thing do something, or leave it."""
    return Request(Operation.ASSIGN, thing_name, encode_assignment(order), is_direct=True)


def assigned_request(thing_name: str, question: AskJobs | AskCommands) -> Request:
    """Return the request that asks what a thing is to do, and what has become of it."""
    return Request(Operation.ASSIGNED, thing_name, encode_assignment(question), is_direct=True)


def shadow_request(thing_name: str, shadow_name: str = "") -> Request:
    """Return the request that a handle's `shadow` sends."""
    return Request(Operation.SHADOW_GET, thing_name, b"", shadow_name, is_direct=True)


def update_desired_request(
    thing_name: str, state: Mapping[str, Any], *, shadow_name: str = "", version: int | None = None
) -> Request:
    """Return the request that a handle's `update_desired` sends."""
    body: JsonObject = {"state": {"desired": dict(state)}}
    if version is not None:
        body["version"] = version
    payload = msgspec.json.encode(body)
    return Request(Operation.SHADOW_UPDATE, thing_name, payload, shadow_name, is_direct=True)


def telemetry_request(thing_name: str) -> Request:
    """Return the request that a handle's `telemetry` sends."""
    return Request(Operation.TELEMETRY_GET, thing_name, b"", "", is_direct=True)


def describe_request(thing_name: str) -> Request:
    """Return the request that a handle's `describe` sends."""
    return Request(Operation.DESCRIBE, thing_name, b"", "", is_direct=True)


def pin_request(thing_name: str, behavior: str = DEFAULT_BEHAVIOR) -> Request:
    """Return the request that gives a twin a behaviour of its own, `module:Class`."""
    payload = msgspec.json.encode(PinOrder(behavior))
    return Request(Operation.PIN, thing_name, payload, is_direct=True)


def unpin_request(thing_name: str) -> Request:
    """Return the request that folds a pinned twin back into its shard."""
    return Request(Operation.UNPIN, thing_name, is_direct=True)


def give_back_request(thing_name: str) -> Request:
    """Return the request that gives the row of a simulated device back that a real one has taken over."""
    return Request(Operation.GIVE_BACK, thing_name, is_direct=True)


def reply_document(reply: Reply) -> JsonObject:
    """Return the body of a reply as an object; a refusal is raised as its RequestError."""
    document: JsonObject = msgspec.json.decode(reply.payload) if reply.payload else {}
    if reply.status != 200:
        raise request_error(reply.status, document.get("message", ""))
    return document


def with_rows(columns: Sequence[str] | None) -> frozenset[str] | None:
    """Return the names of columns to ask shards for, so that every twin has a row although it may have none of them."""
    if columns is None or not frozenset(FIXED_COLUMNS).isdisjoint(columns):
        return None if columns is None else frozenset(columns)
    return frozenset(columns) | {"version"}


def with_telemetry_rows(columns: Sequence[str] | None) -> frozenset[str] | None:
    """Return the names of columns to ask shards for, so that every row of the telemetry is there."""
    return None if columns is None else frozenset(columns) | {"field"}


class LocalTwin:
    """The handle of a twin that lives in this process."""

    def __init__(self, fleet: LocalFleet, thing_name: str) -> None:
        self._fleet = fleet
        self.thing_name = thing_name

    async def shadow(self, shadow_name: str = "") -> JsonObject:
        """Return the shadow document as on `get/accepted`; ShadowNotFound where there is none."""
        return reply_document(await self._fleet.ask(shadow_request(self.thing_name, shadow_name)))

    async def update_desired(
        self, state: Mapping[str, Any], *, shadow_name: str = "", version: int | None = None
    ) -> JsonObject:
        """Merge `state` into the desired section and return the accepted document; VersionConflict if not current."""
        request = update_desired_request(self.thing_name, state, shadow_name=shadow_name, version=version)
        return reply_document(await self._fleet.ask(request))

    async def describe(self) -> JsonObject:
        """Return everything that the twin is, as `GET /v1/twins/THING`; ShadowNotFound where there is no such twin."""
        return reply_document(await self._fleet.ask(describe_request(self.thing_name)))

    async def telemetry(self) -> JsonObject:
        """Return, per stream and field, last value with its time and the statistics of the sliding window."""
        return reply_document(await self._fleet.ask(telemetry_request(self.thing_name)))


class LocalFleet:
    """A fleet whose shards live in this process, under `clock`.

    Without a clock of the caller's, time is that of the simulated groups: it moves on with their ticks.
    """

    def __init__(self, shard_count: int = 16, *, clock: Clock | None = None) -> None:
        self._shards = [Shard(number, shard_count) for number in range(shard_count)]
        self._groups: dict[str, Group] = {}
        self._virtual = VirtualClock(0.0)
        self._clock: Clock = clock or self._virtual
        self._listeners: list[tuple[str, Callable[[Publish], None]]] = []
        self._behaviors: dict[PinnedTwin, Behavior] = {}

    @property
    def shard_count(self) -> int:
        """Return the fixed number of shards."""
        return len(self._shards)

    def listen(self, topic_filter: str, listener: Callable[[Publish], None]) -> None:
        """Call `listener` with every message on a matching topic: what a subscription is where there is no broker."""
        self._listeners.append((topic_filter, listener))

    def twin(self, thing_name: str) -> LocalTwin:
        """Return the handle of one twin."""
        return LocalTwin(self, thing_name)

    async def ask(self, request: Request) -> Reply:
        """Return the answer to one request; what it changed goes to the listeners."""
        request = msgspec.structs.replace(request, is_direct=True)
        shard = self._shards[shard_of(request.thing_name, self.shard_count)]
        outcome = shard.apply(Batch("", 0, [request]), self._clock.now_s())
        self._tell(outcome.publishes)
        return outcome.replies[0]

    def _tell(self, messages: Iterable[Publish]) -> None:
        for message in messages:
            for topic_filter, listener in self._listeners:
                if matches(topic_filter, message.topic):
                    listener(message)

    async def pins(self) -> list[PinnedTwin]:
        """Return the twins that are pinned to a behaviour, in the order of their names."""
        return sorted(PinnedTwin(*pin) for shard in self._shards for pin in shard.handover.pinned())

    async def ask_many(self, requests: Sequence[Request]) -> list[Reply]:
        """Return the answers to many requests, in their order."""
        return [await self.ask(request) for request in requests]

    async def create_group(self, group: Group) -> None:
        """Create a simulated group, all its devices at tick 0; ModelError if the name is taken by another group."""
        # First all are asked, so that none has made its part when another one refuses.
        for shard in self._shards:
            shard.check_group(group)
        if group.count >= COMPILED_FROM_COUNT:
            prepare_compiled()
        for shard in self._shards:
            shard.create_group(group)
        self._groups[group.name] = group
        self._virtual.advance_to(max(self._virtual.now_s(), group.start_s))

    async def delete_group(self, name: str) -> None:
        """Remove a simulated group with all its twins; removing one that is not there changes nothing."""
        for shard in self._shards:
            shard.delete_group(name)
        self._groups.pop(name, None)

    async def group_names(self) -> list[str]:
        """Return the names of the simulated groups."""
        return sorted(self._groups)

    async def tick(self, orders: Sequence[TickOrder]) -> dict[str, TickSummary]:
        """Run the ordered ticks on all shards and return what happened, per group name."""
        summaries: dict[str, TickSummary] = {}
        for order in orders:
            total = TickSummary()
            for shard in self._shards:
                total += shard.tick(order)
            known = summaries.get(order.group)
            summaries[order.group] = total if known is None else known.then(total)
            group = self._groups[order.group]
            end_s = group.start_s + (order.first_tick + order.tick_count) * group.tick_s
            self._virtual.advance_to(max(self._virtual.now_s(), end_s))
            for shard in self._shards:
                self._tell(shard.announcements)
                shard.announcements.clear()
            await self._call_behaviors()
        return summaries

    async def _call_behaviors(self) -> None:
        """Call each behaviour that is due once; BehaviorUnusable if one raises, or what it answers is refused."""
        pinned = await self.pins()
        self._behaviors = {pin: self._behaviors.get(pin) or load_behavior(pin.behavior) for pin in pinned}
        for pin, behavior in self._behaviors.items():
            state = decode_pin_state((await self.ask(state_request(pin.thing_name))).payload)
            step = due_step(behavior, pin.thing_name, state)
            if step is not None:
                answer = call_behavior(behavior, pin.behavior, step)
                reply = await self.ask(report_request(pin.behavior, state, step, answer))
                if reply.status != 200:
                    raise BehaviorUnusable(pin.behavior, f"refused: {reply.payload.decode()}")

    async def twins_table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return one row per twin as Arrow; `columns` are the wanted names (others are left out; None: all)."""
        wanted, now_s = with_rows(columns), self._clock.now_s()
        return join_tables(
            [arrow_table(shard.select(wanted), read_at={shard.number: now_s}) for shard in self._shards]
        )

    async def shard_columns(self, columns: Sequence[str]) -> list[ShardColumns]:
        """Return these columns of all twins as NumPy arrays, by shard; see `ShardColumns`."""
        wanted, now_s = frozenset(columns), self._clock.now_s()
        return [ShardColumns(shard.number, now_s, list(shard.select(wanted))) for shard in self._shards]

    async def telemetry_table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return what twins remember of their telemetry as Arrow: a row for each thing, stream and field."""
        wanted, now_s = with_telemetry_rows(columns), self._clock.now_s()
        tables = [
            arrow_table(
                select_telemetry(shard.telemetry, shard.fleets.values(), wanted, now_s=now_s),
                read_at={shard.number: now_s},
            )
            for shard in self._shards
        ]
        return join_tables(tables)

    async def overdue(self) -> list[str]:
        """Return the things of whose jobs or commands a timer has ended."""
        now_s = self._clock.now_s()
        return [name for shard in self._shards for name in shard.assignments.overdue(now_s)]

    async def job_counts(self) -> JobCounts:
        """Return, by job and status, how many things have such an execution."""
        return add_counts(shard.assignments.counts() for shard in self._shards)

    async def executions_table(self) -> pa.Table:
        """Return all job executions as Arrow: a row for each thing and job."""
        now_s = self._clock.now_s()
        return join_tables([executions_of(shard, now_s) for shard in self._shards])

    async def answer(self, question: FleetQuestion) -> FleetReading:
        """Return how many twins match a fleet query, which, and how their values are distributed."""
        now_s = self._clock.now_s()
        parts = [
            FleetReading(answer_question(shard, question, now_s), {shard.number: now_s})
            for shard in self._shards
        ]
        return FleetReading.of(question, parts)

    async def digest(self) -> str:
        """Return 64 hexadecimal digits over every simulated twin; equal histories give equal digests."""
        return combine_digest([leaf for shard in self._shards for leaf in shard.digest_leaves()])

    async def close(self) -> None:
        """Let go of the shards."""
        self._shards = []
