"""A fleet whose shards are served by Ray actors: handles, routing, and the bridge's way to the shards.

Every process of the cluster can hold one; it keeps no state but what `homes` knows.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Iterator, Sequence
from typing import Any, Final

import msgspec
import pyarrow as pa
import ray
from ray.exceptions import RayActorError, RayTaskError

from actors.actor_settings import BRIDGE_NAME
from actors.arrow_tables import join_tables
from actors.calls import submit
from actors.errors import Overloaded, ShardNotHere, StoreError, WorldError
from actors.fleet import (
    FleetReading,
    JobCounts,
    JsonObject,
    PinnedTwin,
    ShardColumns,
    add_counts,
    with_rows,
    with_telemetry_rows,
)
from actors.homes import ANSWER_TIMEOUT_S, LONG_ANSWER_TIMEOUT_S, Answer, Homes, Patience
from actors.placement import HEAD_NODE, Placement
from actors.ray_runtime import NODE_LABEL, join
from actors.settings import Endpoints
from actors.shard_actor import HostStatus, ShardActor
from actors.shard_mover import ShardMover
from actors.tick_turns import Turn, Work
from twins.digest import combine_digest
from twins.fleet_answer import FleetQuestion
from twins.messages import (
    Batch,
    GroupOrder,
    Outcome,
    Reply,
    Request,
    TickOrder,
    TickSummary,
    decode_outcome,
    encode,
)
from twins.model import Group
from twins.query import parse
from twins.sharding import shard_of

# Of each handle, also of those that travel to tasks and actors of others; then `remote` raises Ray's own
# PendingCallsLimitExceeded. What is to be bounded first is bounded by `homes.CALL_COUNT_MAX`.
_PENDING_COUNT_MAX: Final = 1_000
# Any share of a processor: with none at all Ray places actors at random.
_CPU_SHARE: Final = 0.01

# A Ray call above 100 KB takes a slower way; names and framing come on top of the payloads.
_CALL_BYTES_MAX: Final = 60_000
_CALL_LENGTH_MAX: Final = 500

# Two turns: what has filled an actor's queue is being served meanwhile.
_TICK_AGAIN_S: Final = 0.02
# One that has died is back within seconds.
_DEAD_AGAIN_S: Final = 0.2

_decode_reply: Final = msgspec.msgpack.Decoder(Reply).decode
_decode_replies: Final = msgspec.msgpack.Decoder(list[Reply]).decode
_decode_turn: Final = msgspec.msgpack.Decoder(Turn).decode


def actor_name(index: int, node: str = HEAD_NODE) -> str:
    """Return the name under which a shard actor of a node can be found."""
    return f"shard-actor-{index}" if node == HEAD_NODE else f"{node}/shard-actor-{index}"


def start_actor(actor_class: type, name: str, *arguments: Any, node: str = HEAD_NODE, **options: Any) -> Any:
    """Return the handle of a new actor under a name, on a node; it does nothing until it is opened.

    When its process dies, Ray starts a new one under the same handle; that one has to be opened as well.
    """
    # A call is never repeated by Ray: it may have been carried out, and would come out of order.
    remote_class: Any = ray.remote(num_cpus=_CPU_SHARE, max_restarts=-1, max_task_retries=0, **options)(
        actor_class
    )
    return remote_class.options(name=name, label_selector={NODE_LABEL: node}).remote(*arguments)


def start_shard_actor(name: str, node: str = HEAD_NODE) -> Any:
    """Return the handle of a new shard actor under a name, on a node; it does nothing until it is opened."""
    return start_actor(
        ShardActor,
        name,
        BRIDGE_NAME,
        node=node,
        # For health, and for reading what may lie far away.
        concurrency_groups={"control": 1, "ahead": 1},
        # In Ray's ordered mode one lost call can hold up all that come after it, for good.
        allow_out_of_order_execution=True,
        max_pending_calls=_PENDING_COUNT_MAX,
    )


def open_actor(*actors: Any, settings: Sequence[msgspec.Struct]) -> list[Any]:
    """Open actors, all at once, each with its settings; return what they answer, or raise what one could not do.

    WorldError if one dies over it.
    """
    try:
        references = [
            submit(actor.open, msgspec.msgpack.encode(own))
            for actor, own in zip(actors, settings, strict=True)
        ]
        return list(ray.get(references))
    except RayTaskError as error:
        raise error.cause from None
    except RayActorError as error:
        raise WorldError(f"a part died while it was started; see the logs: {error}") from error


class RemoteMethod:
    """One method of a twin: called it gives an awaitable, and `remote` gives a Ray ObjectRef of the same answer."""

    def __init__(self, homes: Homes, method: str, thing_name: str, *, shard: int) -> None:
        self._homes = homes
        self._method = method
        self._thing_name = thing_name
        self._shard = shard

    def remote(self, *arguments: Any, **named: Any) -> Any:
        """Return the ObjectRef of the answer, for `ray.get`, `ray.wait`, `await` or another remote call.

        It raises ShardNotHere, and nothing was done, if the shard has moved within the last second: ask again.
        """
        self._homes.refresh_if_old()
        method = getattr(self._homes.actor_of(self._shard), self._method)
        return submit(method, self._thing_name, *arguments, **named)

    def __call__(self, *arguments: Any, **named: Any) -> Awaitable[JsonObject]:
        """Return an awaitable of the answer; ShardUnavailable if there is none in time."""
        return self._homes.ask(self._shard, self._method, self._thing_name, *arguments, **named)


class RayTwin:
    """The handle of a twin on a cluster: like an actor handle, it can be passed to any Ray task or actor.

    `shadow`, `update_desired`, `describe` and `telemetry` are as in `fleet.Twin`; each also has `.remote(...)`.
    """

    def __init__(self, homes: Homes, thing_name: str, shard: int) -> None:
        self._homes = homes
        self._shard = shard
        self.thing_name = thing_name

    def _method(self, name: str) -> RemoteMethod:
        return RemoteMethod(self._homes, name, self.thing_name, shard=self._shard)

    @property
    def shadow(self) -> RemoteMethod:
        """Return the method that gets a shadow document."""
        return self._method("shadow")

    @property
    def update_desired(self) -> RemoteMethod:
        """Return the method that merges into the desired section."""
        return self._method("update_desired")

    @property
    def describe(self) -> RemoteMethod:
        """Return the method that gets everything that the twin is."""
        return self._method("describe")

    @property
    def telemetry(self) -> RemoteMethod:
        """Return the method that gets what the twin remembers of its telemetry."""
        return self._method("telemetry")


class RayFleet:
    """The fleet of the Ray cluster that this process is part of, over all its shard actors.

    A lane is a shard actor, whether it still runs or not; their number grows with the actors that join.
    """

    def __init__(self, homes: Homes) -> None:
        self._homes = homes
        # How long `tick` asks actors again that do not answer: none of it where the caller does so himself. What an
        # actor had run before it died is not run again, and missing in the summary.
        self.tick_patience_s = 0.0

    @property
    def placement(self) -> Placement:
        """Return the place of every shard, as this process knows it."""
        return self._homes.placement

    @property
    def shard_count(self) -> int:
        """Return the fixed number of shards."""
        return len(self._homes.placement.homes)

    @property
    def lane_count(self) -> int:
        """Return the number of lanes."""
        return len(self._homes.lanes)

    @property
    def version(self) -> int:
        """Return a number that changes whenever a shard's lane does."""
        return self._homes.placement.version

    def lane_of(self, shard: int) -> int:
        """Return which of the actors serves a shard; another one after it has moved."""
        return self._homes.lane_of(shard)

    def _shard_of(self, request: Request) -> int:
        return shard_of(request.thing_name, self.shard_count)

    def twin(self, thing_name: str) -> RayTwin:
        """Return the handle of one twin."""
        return RayTwin(self._homes, thing_name, shard_of(thing_name, self.shard_count))

    async def ask(self, request: Request) -> Reply:
        """Return the answer to one request; what it changed is announced through the bridge."""
        return _decode_reply(await self._homes.ask(self._shard_of(request), "ask", encode(request)))

    async def ask_many(self, requests: Sequence[Request]) -> list[Reply]:
        """Return the answers to many requests, in their order; the actors work at once, a call at a time each."""
        replies: dict[int, Reply] = {}
        patience = Patience(self._homes)

        async def ask_lane(lane: int, positions: Sequence[int]) -> ShardNotHere | None:
            for part in _in_calls(requests, positions):
                try:
                    replies.update(await self._ask_part(lane, requests, part))
                except ShardNotHere as refusal:
                    # What comes after it may be of the same things.
                    return refusal
            return None

        while len(replies) < len(requests):
            of_lanes: dict[int, list[int]] = {}
            for position, request in enumerate(requests):
                if position not in replies:
                    of_lanes.setdefault(self.lane_of(self._shard_of(request)), []).append(position)
            refusals = await asyncio.gather(*(ask_lane(*each) for each in of_lanes.items()))
            refusal = next(filter(None, refusals), None)
            if refusal is not None:
                await patience.again_after(refusal)
        return [replies[position] for position in range(len(requests))]

    async def _ask_part(
        self, lane: int, requests: Sequence[Request], part: Sequence[int]
    ) -> Iterator[tuple[int, Reply]]:
        by_shard: dict[int, list[int]] = {}
        for position in part:
            by_shard.setdefault(self._shard_of(requests[position]), []).append(position)
        batches = [
            (shard, Batch("", 0, [_direct(requests[position]) for position in found]))
            for shard, found in by_shard.items()
        ]
        encoded = msgspec.msgpack.encode(batches)
        answers = _decode_replies(
            await self._homes.call(self._homes.lanes[lane], "ask_many", encoded, shard=batches[0][0])
        )
        asked = [position for found in by_shard.values() for position in found]
        return zip(asked, answers, strict=True)

    async def submit(self, lane: int, batches: Sequence[tuple[int, Batch]]) -> Outcome:
        """Apply (shard, batch) pairs, each where its shard is now; return what they brought about together.

        ShardUnavailable means that some, all or none may have been applied.
        """
        while True:
            version = self.version
            try:
                return await self._submit(batches)
            except WorldError as error:
                with contextlib.suppress(StoreError):
                    await self._homes.refresh()
                if not isinstance(error, ShardNotHere) or version == self.version:
                    raise

    async def _submit(self, batches: Sequence[tuple[int, Batch]]) -> Outcome:
        homes = self._homes.placement.homes
        by_home: dict[str, list[tuple[int, Batch]]] = {}
        for pair in batches:
            by_home.setdefault(homes[pair[0]], []).append(pair)
        # All of them have answered when the first refusal is told: nothing of this is under way when it is repeated.
        results = await asyncio.gather(
            *(
                self._homes.call(home, "submit", msgspec.msgpack.encode(pairs), shard=pairs[0][0])
                for home, pairs in by_home.items()
            ),
            return_exceptions=True,
        )
        outcome = Outcome([], [])
        for result in results:
            if isinstance(result, BaseException):
                raise result
            part = decode_outcome(result)
            outcome.publishes.extend(part.publishes)
            outcome.replies.extend(part.replies)
        return outcome

    async def create_group(self, group: Group) -> None:
        """Create a simulated group, all its devices at tick 0; ModelError if the name is taken by another group."""
        order = encode(GroupOrder.of(group))
        # First all are asked, so that none has made its part when another one refuses.
        await self._homes.ask_each("check_group", order)
        await self._homes.ask_each("create_group", order)

    async def delete_group(self, name: str) -> None:
        """Remove a simulated group with all its twins; removing one that is not there changes nothing."""
        await self._homes.ask_each("delete_group", name)

    async def group_names(self) -> list[str]:
        """Return the names of the simulated groups."""
        return sorted({name for names in await self._homes.ask_each("group_names") for name in names})

    async def tick(self, orders: Sequence[TickOrder]) -> dict[str, TickSummary]:
        """Run the ordered ticks on all shards and return what happened, per group name."""
        encoded = encode(list(orders))
        totals = [TickSummary()] * len(orders)
        left: list[Work] = [(shard, 0) for shard in range(self.shard_count)] if orders else []
        await self._refresh_in_time()
        patience = Patience(self._homes)
        deadline_s = time.monotonic() + self.tick_patience_s
        while left:
            by_home: dict[str, list[Work]] = {}
            for work in left:
                by_home.setdefault(self.placement.homes[work[0]], []).append(work)
            lanes = [self._tick_lane(home, work, encoded, totals) for home, work in by_home.items()]
            left, refusal = [], None
            for result in await asyncio.gather(*lanes, return_exceptions=True):
                if isinstance(result, BaseException):
                    raise result
                left += result[0]
                refusal = result[1] or refusal
            if refusal is None:
                deadline_s = time.monotonic() + self.tick_patience_s
                continue
            try:
                await patience.again_after(refusal)
            except WorldError:
                if time.monotonic() > deadline_s:
                    raise
                await asyncio.sleep(_DEAD_AGAIN_S)
                await self._refresh_in_time()
        summaries: dict[str, TickSummary] = {}
        for order, total in zip(orders, totals, strict=True):
            known = summaries.get(order.group)
            summaries[order.group] = total if known is None else known.then(total)
        return summaries

    async def _refresh_in_time(self) -> None:
        """Learn where shards are served; a store that does not answer is asked again within `tick_patience_s`."""
        deadline_s = time.monotonic() + self.tick_patience_s
        while True:
            try:
                await self._homes.refresh()
            except StoreError as error:
                if not error.retryable or time.monotonic() > deadline_s:
                    raise
                await asyncio.sleep(_DEAD_AGAIN_S)
            else:
                return

    async def _tick_lane(
        self, home: str, left: list[Work], encoded: bytes, totals: list[TickSummary]
    ) -> tuple[list[Work], ShardNotHere | None]:
        """Have an actor do its turns, adding up what comes of them; return what it refused, and why."""
        patience = Patience(self._homes)
        deadline_s = time.monotonic() + self.tick_patience_s
        while left:
            try:
                answer = await self._homes.call(
                    home, "tick", left, encoded, shard=left[0][0], timeout_s=LONG_ANSWER_TIMEOUT_S
                )
            except ShardNotHere as refusal:
                return left, refusal
            except Overloaded:
                # Requests fill the actor's queue; they go first, but not for ever.
                if not patience.left_s():
                    raise
                await asyncio.sleep(_TICK_AGAIN_S)
                continue
            except WorldError as error:
                if not error.retryable or time.monotonic() > deadline_s:
                    raise
                await asyncio.sleep(_DEAD_AGAIN_S)
                continue
            patience = Patience(self._homes)
            deadline_s = time.monotonic() + self.tick_patience_s
            turn = _decode_turn(answer)
            for position, summary in enumerate(turn.summaries):
                totals[position] += summary
            left = turn.left
        return left, None

    async def pins(self) -> list[PinnedTwin]:
        """Return the twins that are pinned to a behaviour, in the order of their names."""
        return sorted(PinnedTwin(*pin) for part in await self._homes.ask_each("pins") for pin in part)

    async def twins_table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return one row per twin as Arrow; `columns` are the wanted names (others are left out; None: all)."""
        return join_tables(await self._homes.ask_each("twins_table", with_rows(columns)))

    async def shard_columns(self, columns: Sequence[str]) -> list[ShardColumns]:
        """Return these columns of all twins as NumPy arrays, by shard, without a copy; see `ShardColumns`."""
        answers = await self._homes.ask_each("shard_columns", frozenset(columns))
        return sorted((one for answer in answers for one in answer), key=lambda one: one.shard)

    async def telemetry_table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return what twins remember of their telemetry as Arrow: a row for each thing, stream and field."""
        return join_tables(await self._homes.ask_each("telemetry_table", with_telemetry_rows(columns)))

    async def overdue(self) -> list[str]:
        """Return the things of whose jobs or commands a timer has ended."""
        return [name for part in await self._homes.ask_each("overdue") for name in part]

    async def job_counts(self) -> JobCounts:
        """Return, by job and status, how many things have such an execution."""
        return add_counts(await self._homes.ask_each("job_counts"))

    async def executions_table(self) -> pa.Table:
        """Return all job executions as Arrow: a row for each thing and job."""
        return join_tables(await self._homes.ask_each("executions_table"))

    async def answer(self, question: FleetQuestion) -> FleetReading:
        """Return how many twins match a fleet query, which, and how their values are distributed."""
        # Known before any shard is asked.
        parse(question.query)
        question.columns()
        return FleetReading.of(question, await self._homes.ask_each("answer", question))

    async def digest(self) -> str:
        """Return 64 hexadecimal digits over every simulated twin; equal histories give equal digests."""
        return combine_digest(
            [leaf for leaves in await self._homes.ask_each("digest_leaves") for leaf in leaves]
        )

    async def live_lanes(self) -> list[int]:
        """Return the lanes of the actors that belong to the platform now, in the order in which they joined."""
        with contextlib.suppress(StoreError):
            await self._homes.refresh()
        lanes = self._homes.lanes
        return [lanes.index(actor) for actor in self.placement.nodes]

    async def status(self, lane: int) -> HostStatus:
        """Return what the shard actor of a lane does at present."""
        actor = self._homes.actor(self._homes.lanes[lane])
        # Not among the calls that are bounded: it is answered beside them, also by an actor that is overloaded.
        status: HostStatus = await Answer(lambda: submit(actor.status), lane, ANSWER_TIMEOUT_S)
        return status

    async def move_shard(self, shard: int, target: str) -> None:
        """Return when a shard is served by an actor, or by one on a node; what it is asked meanwhile waits some 10 ms.

        PlacementError if there is no such shard, actor or node. WorldError if a part that it takes does not answer: the
        move is still wanted then, and made up for by the platform's supervisor.
        """
        await ShardMover(self._homes).move_shard(shard, target)

    async def close(self) -> None:
        """Let go of the actors; they live on."""
        self._homes.store.close()


def _in_calls(requests: Sequence[Request], positions: Sequence[int]) -> Iterator[list[int]]:
    """Give positions of requests in parts that fit a call each."""
    part: list[int] = []
    size = 0
    for position in positions:
        length = len(requests[position].payload)
        if part and (size + length > _CALL_BYTES_MAX or len(part) >= _CALL_LENGTH_MAX):
            yield part
            part, size = [], 0
        part.append(position)
        size += length
    if part:
        yield part


def _direct(request: Request) -> Request:
    return msgspec.structs.replace(request, is_direct=True)


def find_fleet(redis_url: str) -> RayFleet:
    """Return the fleet of the Ray cluster that this process is part of; its placement stands in that Redis."""
    return RayFleet(Homes(redis_url))


async def connect(endpoints: Endpoints) -> RayFleet:
    """Return the fleet of a running platform, with this process as a driver of its Ray.

    PlatformNotRunning if it does not answer. The end of the process, or `ray.shutdown()`, leaves the cluster.
    """
    join(endpoints)
    return find_fleet(endpoints.redis.url)
