"""A fleet whose shards are served by Ray actors: placement, routing, handles, and the bridge's way to the shards.

Every process of the cluster can hold one; it keeps no state but the actors' names. Shard s is served by actor
s modulo the number of actors.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Generator, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
import pyarrow as pa
import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from actors.actor_settings import BRIDGE_NAME, GATEWAY_NAME
from actors.calls import CallLimit
from actors.errors import ShardUnavailable, WorldError
from actors.fleet import JsonObject
from actors.ray_runtime import join
from actors.settings import Endpoints
from actors.shard_actor import HostStatus, ShardActor
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
from twins.shard import combine_digest
from twins.sharding import shard_of

# A request takes milliseconds; a shard actor that does not answer in this time hangs.
ANSWER_TIMEOUT_S: Final = 5.0
# Whole fleets take longer to create, to tick and to be read: a million twins take about a second.
LONG_ANSWER_TIMEOUT_S: Final = 120.0
# Calls of this process to one shard actor that are under way at a time. One that keeps up has answered so many in less
# than 0.1 s; one that hangs holds so many requests of this process, and no more.
CALL_COUNT_MAX: Final = 64
# Of each handle, also of those that travel to tasks and actors of others; then `remote` raises Ray's own
# PendingCallsLimitExceeded. What is to be bounded first is bounded by CALL_COUNT_MAX.
_PENDING_COUNT_MAX: Final = 1_000
# Any share of a processor: with none at all Ray places actors at random.
_CPU_SHARE: Final = 0.01

# A Ray call above 100 KB takes a slower way; names and framing come on top of the payloads.
_CALL_BYTES_MAX: Final = 60_000
_CALL_LENGTH_MAX: Final = 500

_decode_reply: Final = msgspec.msgpack.Decoder(Reply).decode
_decode_replies: Final = msgspec.msgpack.Decoder(list[Reply]).decode
_decode_summaries: Final = msgspec.msgpack.Decoder(list[TickSummary]).decode


def actor_name(index: int) -> str:
    """Return the name under which a shard actor can be found."""
    return f"shard-actor-{index}"


def start_actor(actor_class: type, name: str, *arguments: Any, **options: Any) -> Any:
    """Return the handle of a new actor under a name; it does nothing until it is opened.

    When its process dies, Ray starts a new one under the same handle; that one has to be opened as well.
    """
    # A call is never repeated by Ray: it may have been carried out, and would come out of order.
    remote_class: Any = ray.remote(num_cpus=_CPU_SHARE, max_restarts=-1, max_task_retries=0, **options)(
        actor_class
    )
    return remote_class.options(name=name).remote(*arguments)


def start_shard_actor(name: str) -> Any:
    """Return the handle of a new shard actor under a name; it does nothing until it is opened."""
    return start_actor(
        ShardActor,
        name,
        BRIDGE_NAME,
        # For health.
        concurrency_groups={"control": 1},
        # In Ray's ordered mode one lost call can hold up all that come after it, for good.
        allow_out_of_order_execution=True,
        max_pending_calls=_PENDING_COUNT_MAX,
    )


def open_actor(*actors: Any, settings: Sequence[msgspec.Struct]) -> list[Any]:
    """Open actors, all at once, each with its settings; return what they answer, or raise what one could not do.

    WorldError if one dies over it.
    """
    references = [
        actor.open.remote(msgspec.msgpack.encode(own)) for actor, own in zip(actors, settings, strict=True)
    ]
    try:
        return list(ray.get(references))
    except RayTaskError as error:
        raise error.cause from None
    except RayActorError as error:
        raise WorldError(f"a part died while it was started; see the logs: {error}") from error


class _Answer(Awaitable[Any]):
    """Waits for a Ray call under asyncio: the actor's own error is raised, and a dead or stuck actor is told apart."""

    def __init__(self, reference: Any, index: int, timeout_s: float) -> None:
        self._reference = reference
        self._index = index
        self._timeout_s = timeout_s

    def __await__(self) -> Generator[Any, None, Any]:
        return self._wait().__await__()

    async def _wait(self) -> Any:
        try:
            return await asyncio.wait_for(self._reference, self._timeout_s)
        except RayTaskError as error:
            raise error.cause from None
        except (RayActorError, GetTimeoutError) as error:
            raise ShardUnavailable(self._index, str(error).splitlines()[0]) from error
        except TimeoutError as error:
            raise ShardUnavailable(self._index, f"no answer in {self._timeout_s} s") from error


class RemoteMethod:
    """One method of a twin: called it gives an awaitable, and `remote` gives a Ray ObjectRef of the same answer."""

    def __init__(self, method: Any, thing_name: str, shard: int) -> None:
        self._method = method
        self._thing_name = thing_name
        self._shard = shard

    def remote(self, *arguments: Any, **named: Any) -> Any:
        """Return the ObjectRef of the answer, for `ray.get`, `ray.wait`, `await` or another remote call."""
        return self._method.remote(self._thing_name, *arguments, **named)

    def __call__(self, *arguments: Any, **named: Any) -> Awaitable[JsonObject]:
        """Return an awaitable of the answer; ShardUnavailable if there is none in time."""
        return _Answer(self.remote(*arguments, **named), self._shard, ANSWER_TIMEOUT_S)


class RayTwin:
    """The handle of a twin on a cluster: like an actor handle, it can be passed to any Ray task or actor.

    `shadow`, `update_desired`, `describe` and `telemetry` are as in `fleet.Twin`; each also has `.remote(...)`.
    """

    def __init__(self, actor: Any, thing_name: str, shard: int) -> None:
        self._actor = actor
        self._shard = shard
        self.thing_name = thing_name

    @property
    def shadow(self) -> RemoteMethod:
        """Return the method that gets a shadow document."""
        return RemoteMethod(self._actor.shadow, self.thing_name, self._shard)

    @property
    def update_desired(self) -> RemoteMethod:
        """Return the method that merges into the desired section."""
        return RemoteMethod(self._actor.update_desired, self.thing_name, self._shard)

    @property
    def describe(self) -> RemoteMethod:
        """Return the method that gets everything that the twin is."""
        return RemoteMethod(self._actor.describe, self.thing_name, self._shard)

    @property
    def telemetry(self) -> RemoteMethod:
        """Return the method that gets what the twin remembers of its telemetry."""
        return RemoteMethod(self._actor.telemetry, self.thing_name, self._shard)


class RayFleet:
    """The fleet of the Ray cluster that this process is part of, over all its shard actors in order."""

    def __init__(self, actors: Sequence[Any], shard_count: int) -> None:
        self._actors = list(actors)
        self._shard_count = shard_count
        self._limits = [CallLimit(f"shard actor {lane}", CALL_COUNT_MAX) for lane in range(len(self._actors))]

    @property
    def shard_count(self) -> int:
        """Return the fixed number of shards."""
        return self._shard_count

    @property
    def lane_count(self) -> int:
        """Return the number of shard actors."""
        return len(self._actors)

    def lane_of(self, shard: int) -> int:
        """Return which of the actors serves a shard."""
        return shard % len(self._actors)

    def twin(self, thing_name: str) -> RayTwin:
        """Return the handle of one twin."""
        shard = shard_of(thing_name, self._shard_count)
        return RayTwin(self._actors[self.lane_of(shard)], thing_name, shard)

    async def ask(self, request: Request) -> Reply:
        """Return the answer to one request; what it changed is announced through the bridge."""
        shard = shard_of(request.thing_name, self._shard_count)
        return _decode_reply(await self._call(shard, "ask", encode(request)))

    def _call(self, shard: int, method: str, encoded: bytes) -> _Answer:
        """Call the actor of a shard; Overloaded, and no call, if too many are under way to it."""
        lane = self.lane_of(shard)
        answer = self._limits[lane].begin(lambda: getattr(self._actors[lane], method).remote(encoded))
        return _Answer(answer, shard, ANSWER_TIMEOUT_S)

    async def ask_many(self, requests: Sequence[Request]) -> list[Reply]:
        """Return the answers to many requests, in their order; the lanes work at once, a call at a time each."""
        of_lanes: dict[int, list[int]] = {}
        for position, request in enumerate(requests):
            lane = self.lane_of(shard_of(request.thing_name, self._shard_count))
            of_lanes.setdefault(lane, []).append(position)
        replies: dict[int, Reply] = {}

        async def ask_lane(lane: int, positions: Sequence[int]) -> None:
            for part in _in_calls(requests, positions):
                by_shard: dict[int, list[int]] = {}
                for position in part:
                    shard = shard_of(requests[position].thing_name, self._shard_count)
                    by_shard.setdefault(shard, []).append(position)
                batches = [
                    (shard, Batch("", 0, [_direct(requests[position]) for position in found]))
                    for shard, found in by_shard.items()
                ]
                encoded = msgspec.msgpack.encode(batches)
                answers = _decode_replies(await self._call(batches[0][0], "ask_many", encoded))
                asked = [position for found in by_shard.values() for position in found]
                replies.update(zip(asked, answers, strict=True))

        await asyncio.gather(*(ask_lane(lane, positions) for lane, positions in of_lanes.items()))
        return [replies[position] for position in range(len(requests))]

    async def submit(self, lane: int, batches: Sequence[tuple[int, Batch]]) -> Outcome:
        """Apply (shard, batch) pairs of one lane; ShardUnavailable means that they may or may not have been applied."""
        return decode_outcome(await self._call(batches[0][0], "submit", msgspec.msgpack.encode(batches)))

    async def _ask_all(self, method: str, *arguments: Any) -> list[Any]:
        references = [getattr(actor, method).remote(*arguments) for actor in self._actors]
        answers = [
            _Answer(reference, index, LONG_ANSWER_TIMEOUT_S) for index, reference in enumerate(references)
        ]
        return list(await asyncio.gather(*(answer._wait() for answer in answers)))

    async def create_group(self, group: Group) -> None:
        """Create a simulated group, all its devices at tick 0; ModelError if the name is taken by another group."""
        order = encode(GroupOrder.of(group))
        # First all are asked, so that none has made its part when another one refuses.
        await self._ask_all("check_group", order)
        await self._ask_all("create_group", order)

    async def delete_group(self, name: str) -> None:
        """Remove a simulated group with all its twins; removing one that is not there changes nothing."""
        await self._ask_all("delete_group", name)

    async def group_names(self) -> list[str]:
        """Return the names of the simulated groups."""
        return sorted({name for names in await self._ask_all("group_names") for name in names})

    async def tick(self, orders: Sequence[TickOrder]) -> dict[str, TickSummary]:
        """Run the ordered ticks on all shards and return what happened, per group name."""
        summaries: dict[str, TickSummary] = {}
        parts = [_decode_summaries(part) for part in await self._ask_all("tick", encode(list(orders)))]
        for order, of_actors in zip(orders, zip(*parts, strict=True), strict=True):
            total = sum(of_actors, TickSummary())
            known = summaries.get(order.group)
            summaries[order.group] = total if known is None else known.then(total)
        return summaries

    async def twins_table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return one row per twin as Arrow; `columns` are the wanted names (others are left out; None: all)."""
        wanted = None if columns is None else frozenset(columns) | {"name"}
        tables = [table for table in await self._ask_all("twins_table", wanted) if table.num_columns]
        return pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({})

    async def digest(self) -> str:
        """Return 64 hexadecimal digits over every simulated twin; equal histories give equal digests."""
        return combine_digest([leaf for leaves in await self._ask_all("digest_leaves") for leaf in leaves])

    async def status(self, lane: int) -> HostStatus:
        """Return what the shard actor of a lane does at present."""
        status: HostStatus = await _Answer(self._actors[lane].status.remote(), lane, ANSWER_TIMEOUT_S)
        return status

    async def close(self) -> None:
        """Let go of the actors; they live on."""
        self._actors = []


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


def find_fleet(shard_count: int, actor_count: int) -> RayFleet:
    """Return the fleet of the Ray cluster that this process is part of; its shard actors must run."""
    return RayFleet([ray.get_actor(actor_name(index)) for index in range(actor_count)], shard_count)


async def connect(endpoints: Endpoints) -> RayFleet:
    """Return the fleet of a running platform, with this process as a driver of its Ray.

    PlatformNotRunning if it does not answer. The end of the process, or `ray.shutdown()`, leaves the cluster.
    """
    join(endpoints)
    gateway: Any = ray.get_actor(GATEWAY_NAME)
    layout: Mapping[str, int] = await gateway.layout.remote()
    return find_fleet(layout["shard_count"], layout["shard_actor_count"])
