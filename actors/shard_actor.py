"""The process that serves shards: it journals what comes in, applies it, and hands out what comes of it.

`ShardHost` does the work and knows nothing of Ray; `ShardActor` is the same thing as a Ray actor. Its methods run one
at a time; those of the concurrency group `control` answer beside them. What is public takes and gives plain bytes
where it is on the path of devices, so that a call costs what its content costs.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import pyarrow as pa
import ray
from ray.exceptions import RayError

from actors.actor_settings import HostSettings, Pulse
from actors.arrow_tables import arrow_table, executions_of, join_tables
from actors.calls import submit
from actors.errors import BridgeSuperseded, StoreError
from actors.fleet import (
    FleetReading,
    JobCounts,
    JsonObject,
    ShardColumns,
    add_counts,
    describe_request,
    reply_document,
    shadow_request,
    telemetry_request,
    update_desired_request,
)
from actors.journal import Applied, GroupCreated, GroupDeleted
from actors.logs import log_to
from actors.shard_keeper import ShardKeeper
from actors.tick_turns import TickTurns, Work
from actors.wall_clock import WallClock, boot_time_s
from twins.clock import Clock
from twins.fleet_answer import FleetQuestion, answer_question
from twins.messages import (
    READ_ONLY,
    Batch,
    GroupOrder,
    Outcome,
    Publish,
    Reply,
    Request,
    TickOrder,
    encode,
)
from twins.runners import COMPILED_FROM_COUNT, prepare_compiled
from twins.shard import Shard
from twins.sharding import shard_of
from twins.telemetry_columns import select_telemetry

_LOG: Final = logging.getLogger(__name__)
decode_submission: Final = msgspec.msgpack.Decoder(list[tuple[int, Batch]]).decode
decode_request: Final = msgspec.msgpack.Decoder(Request).decode
decode_orders: Final = msgspec.msgpack.Decoder(list[TickOrder]).decode
decode_group_order: Final = msgspec.msgpack.Decoder(GroupOrder).decode


class ShardOrder(msgspec.Struct, frozen=True):
    """Which shards a host is to serve from now on, beside those that it serves.

    `is_released`: their last host has let go of them, and nobody else serves them.
    """

    shards: tuple[int, ...]
    is_released: bool


class HostStatus(msgspec.Struct, frozen=True):
    """What a host does at present; `queue_length` counts announcements that wait for the bridge.

    `lost_shards` were served here until another process took them over; before it `is_open` it can't serve any.
    `read_shards` were read ahead, to be opened here. `longest_turn_ms` is the longest that ticks have held up requests
    since the process began.
    """

    pid: int
    shards: tuple[int, ...]
    twin_count: int
    queue_length: int
    request_count: int
    refused_telemetry_count: int
    tick_count: int
    journal_entry_count: int
    dropped_announcement_count: int
    lost_shards: tuple[int, ...] = ()
    is_open: bool = False
    read_shards: tuple[int, ...] = ()
    longest_turn_ms: int = 0


class ShardHost:
    """Serves the shards of one process. `announce` takes the messages of requests that no bridge has brought."""

    def __init__(
        self,
        announce: Callable[[Sequence[Publish]], None],
        clock: Clock | None = None,
        *,
        lease_clock_s: Callable[[], float] = boot_time_s,
    ) -> None:
        """Prepare a host; `clock` tells it what time it is, and `lease_clock_s` how time passes (see `ShardKeeper`)."""
        self._announce = announce
        self._clock = clock or WallClock()
        self._lease_clock_s = lease_clock_s
        self._keeper: ShardKeeper | None = None
        self._ticks = TickTurns()
        self._request_count = self._tick_count = 0
        self._is_preparing = False

    def open(self, encoded: bytes) -> None:
        """Take over the shards that the settings name: fence their former host, then read their past."""
        settings = msgspec.msgpack.decode(encoded, type=HostSettings)
        log_to(Path(settings.log_file))
        self._shard_count = settings.shard_count
        if self._keeper is not None:
            self._keeper.close()
        keeper = ShardKeeper(settings, clock_s=self._lease_clock_s)
        keeper.open()
        self._keeper = keeper

    def _settled(self) -> ShardKeeper:
        """Return the keeper with nothing in doubt and its lease in force; every call begins with it."""
        keeper = self._opened()
        late = keeper.settle()
        if late:
            self._announce(late)
        return keeper

    def _opened(self) -> ShardKeeper:
        if self._keeper is None:
            raise StoreError("this process has not opened its shards yet", retryable=True)
        return self._keeper

    # Shards that move

    def read_ahead(self, shards: Sequence[int]) -> None:
        """Read the past of shards that are about to come, while their present host serves them."""
        for number in shards:
            self._opened().read_ahead(number)

    def release_shards(self, shards: Sequence[int]) -> list[int]:
        """Serve shards no more; return those that nobody serves now. All that they took in is in their journals."""
        keeper = self._settled()
        held = keeper.held()
        for number in shards:
            if number in held:
                self._ticks.leave(held[number])
        return keeper.release(shards)

    def open_shards(self, encoded: bytes) -> None:
        """Serve the shards of a `ShardOrder`, beside those that are served; StoreError if one could not be opened."""
        order = msgspec.msgpack.decode(encoded, type=ShardOrder)
        self._settled().open_shards(order.shards, is_released=order.is_released)

    # The path of devices

    def submit(self, encoded: bytes) -> bytes:
        """Apply (shard, batch) pairs and return their one outcome; a repeated batch is answered from memory."""
        return encode(self._submit(encoded))

    def _submit(self, encoded: bytes) -> Outcome:
        keeper = self._settled()
        pairs = decode_submission(encoded)
        for number, batch in pairs:
            if keeper.shard(number).has_successor(batch.source):
                raise BridgeSuperseded(batch.source)
        now_s = self._clock.now_s()
        keeper.keep([(number, Applied(now_s, batch)) for number, batch in pairs if _leaves_a_trace(batch)])
        outcome = Outcome([], [])
        for number, batch in pairs:
            with keeper.timed(number) as shard:
                part = shard.apply(batch, now_s)
            outcome.publishes.extend(part.publishes)
            outcome.replies.extend(part.replies)
            self._request_count += len(batch.requests)
        keeper.snapshot_where_due()
        return outcome

    # Handles and operators

    def ask_many(self, encoded: bytes) -> bytes:
        """Return the replies to (shard, batch) pairs of direct requests, in their order."""
        outcome = self._submit(encoded)
        if outcome.publishes:
            self._announce(outcome.publishes)
        return encode(outcome.replies)

    def ask(self, encoded: bytes) -> bytes:
        """Return the reply to one request."""
        return encode(self._ask(decode_request(encoded)))

    def _ask(self, request: Request) -> Reply:
        keeper = self._settled()
        batch = Batch("", 0, [msgspec.structs.replace(request, is_direct=True)])
        number = shard_of(request.thing_name, self._shard_count)
        now_s = self._clock.now_s()
        if _leaves_a_trace(batch):
            keeper.keep([(number, Applied(now_s, batch))])
        with keeper.timed(number) as shard:
            outcome = shard.apply(batch, now_s)
        self._request_count += 1
        if outcome.publishes:
            self._announce(outcome.publishes)
        keeper.snapshot_where_due()
        return outcome.replies[0]

    def shadow(self, thing_name: str, shadow_name: str = "") -> JsonObject:
        """Return a shadow document as on `get/accepted`."""
        return reply_document(self._ask(shadow_request(thing_name, shadow_name)))

    def update_desired(
        self, thing_name: str, state: Mapping[str, Any], shadow_name: str = "", version: int | None = None
    ) -> JsonObject:
        """Merge `state` into a desired section and return the accepted document."""
        request = update_desired_request(thing_name, state, shadow_name=shadow_name, version=version)
        return reply_document(self._ask(request))

    def describe(self, thing_name: str) -> JsonObject:
        """Return everything that a twin is."""
        return reply_document(self._ask(describe_request(thing_name)))

    def telemetry(self, thing_name: str) -> JsonObject:
        """Return what a twin remembers of its telemetry."""
        return reply_document(self._ask(telemetry_request(thing_name)))

    # Simulated fleets

    def check_group(self, shards: Sequence[int], encoded: bytes) -> None:
        """Raise ModelError if these shards could not create their part of a simulated group."""
        group = decode_group_order(encoded).group()
        for shard in self._settled().shards(shards).values():
            shard.check_group(group)

    def create_group(self, shards: Sequence[int], encoded: bytes) -> None:
        """Create these shards' part of a simulated group; ModelError if it can't be."""
        self.check_group(shards, encoded)
        keeper = self._settled()
        order = decode_group_order(encoded)
        keeper.keep([(number, GroupCreated(order)) for number in shards])
        for number in shards:
            with keeper.timed(number) as shard:
                shard.create_group(order.group())

    def group_names(self, shards: Sequence[int]) -> list[str]:
        """Return the names of the simulated groups in these shards."""
        found = self._settled().shards(shards).values()
        return sorted({name for shard in found for name in shard.fleets})

    def pins(self, shards: Sequence[int]) -> list[tuple[str, str]]:
        """Return thing name and behaviour of each pinned twin in these shards."""
        found = self._settled().shards(shards).values()
        return [pin for shard in found for pin in shard.handover.pinned()]

    def delete_group(self, shards: Sequence[int], name: str) -> None:
        """Remove these shards' part of a simulated group."""
        keeper = self._settled()
        keeper.keep([(number, GroupDeleted(name)) for number in shards])
        for number in shards:
            with keeper.timed(number) as shard:
                shard.delete_group(name)

    def tick(self, work: Sequence[Work], encoded: bytes) -> bytes:
        """Do a turn of the ticks that are left of some orders, and return the `Turn`; see `tick_turns`.

        `work` names the shards that are meant, each with the position of the first order that it has not carried out.
        """
        keeper = self._settled()
        orders = decode_orders(encoded)
        late = self._ticks.told_late(work, orders)
        if late is not None:
            return encode(late)
        turn = self._ticks.turn(keeper, work, orders)
        for order in orders:
            self._prepare_for(keeper.shards([number for number, _ in work]).values(), order.group)
        first, done = (min((each[1] for each in part), default=len(orders)) for part in (work, turn.left))
        self._tick_count += sum(order.tick_count for order in orders[first:done])
        for number, _ in work:
            shard = keeper.shard(number)
            if shard.announcements:
                self._announce(list(shard.announcements))
                shard.announcements.clear()
        keeper.snapshot_where_due()
        return encode(turn)

    def _prepare_for(self, shards: Iterable[Shard], group: str) -> None:
        """Have compiled code made ready beside the work where a fleet is large; NumPy goes on until it is."""
        is_large = any(shard.fleets[group].group.count >= COMPILED_FROM_COUNT for shard in shards)
        if is_large and not self._is_preparing:
            self._is_preparing = True
            threading.Thread(target=prepare_compiled, name="compile", daemon=True).start()

    # Questions

    def twins_table(self, shards: Sequence[int], columns: frozenset[str] | None) -> pa.Table:
        """Return the wanted columns of these shards' twins."""
        found = self._settled().shards(shards)
        now_s = self._clock.now_s()
        tables = [arrow_table(shard.select(columns), read_at={n: now_s}) for n, shard in found.items()]
        return join_tables(tables)

    def shard_columns(self, shards: Sequence[int], columns: frozenset[str]) -> list[ShardColumns]:
        """Return these columns of these shards' twins."""
        found = self._settled().shards(shards)
        now_s = self._clock.now_s()
        return [ShardColumns(n, now_s, list(shard.select(columns))) for n, shard in found.items()]

    def telemetry_table(self, shards: Sequence[int], columns: frozenset[str] | None) -> pa.Table:
        """Return the wanted columns of what these shards' twins remember of their telemetry."""
        found = self._settled().shards(shards)
        now_s = self._clock.now_s()
        return join_tables(
            [
                arrow_table(
                    select_telemetry(shard.telemetry, shard.fleets.values(), columns, now_s=now_s),
                    read_at={n: now_s},
                )
                for n, shard in found.items()
            ]
        )

    def overdue(self, shards: Sequence[int]) -> list[str]:
        """Return the things of these shards of whose jobs or commands a timer has ended."""
        found, now_s = self._settled().shards(shards).values(), self._clock.now_s()
        return [name for shard in found for name in shard.assignments.overdue(now_s)]

    def job_counts(self, shards: Sequence[int]) -> JobCounts:
        """Return, by job and status, how many things of these shards have such an execution."""
        found = self._settled().shards(shards).values()
        return add_counts(shard.assignments.counts() for shard in found)

    def executions_table(self, shards: Sequence[int]) -> pa.Table:
        """Return the job executions of these shards' things."""
        found, now_s = self._settled().shards(shards).values(), self._clock.now_s()
        return join_tables([executions_of(shard, now_s) for shard in found])

    def answer(self, shards: Sequence[int], question: FleetQuestion) -> FleetReading:
        """Return the answer of these shards to a fleet query."""
        found = self._settled().shards(shards)
        now_s = self._clock.now_s()
        parts = [
            FleetReading(answer_question(shard, question, now_s), {n: now_s}) for n, shard in found.items()
        ]
        return FleetReading.of(question, parts)

    def digest_leaves(self, shards: Sequence[int]) -> list[tuple[str, int, bytes]]:
        """Return the leaves of the fleet's digest that these shards hold."""
        found = self._settled().shards(shards).values()
        return [leaf for shard in found for leaf in shard.digest_leaves()]

    def close(self) -> None:
        """Write all shards down, so that the next start is quick, and let go of the journal."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.close()


def _leaves_a_trace(batch: Batch) -> bool:
    return any(request.operation not in READ_ONLY for request in batch.requests)


class BridgeOutlet:
    """Sends messages through the platform's bridge in their order, from whichever process, without making it wait.

    A thread hands over what has gathered, one call at a time. When too much waits, the newest are dropped and
    counted: a device that missed its delta gets it with its next `get`.
    """

    # While the bridge takes nothing, operators and handles are the only ones to fill it: 10,000 usual answers.
    WAITING_BYTES_MAX: Final = 16 << 20
    # What a message takes beside its payload: its topic and the objects around it.
    _MESSAGE_BYTES: Final = 500
    # A Ray call above 100 KB takes a slower way; the last message of a call may have some kilobytes, and seldom more.
    _CALL_BYTES: Final = 50_000
    # A call takes the time of one round to the broker, whatever it brings; more than this the broker holds back.
    _CALL_LENGTH: Final = 200
    # A bridge that is away for longer is about to be replaced.
    _TIMEOUT_S: Final = 30.0

    def __init__(self, bridge_name: str) -> None:
        self._name = bridge_name
        self._waiting: queue.Queue[Publish] = queue.Queue()
        # Of what waits and of what is being handed over; two threads change it.
        self.waiting_bytes = 0
        self._counting = threading.Lock()
        self._thread: threading.Thread | None = None
        self.dropped_count = 0

    @property
    def waiting_count(self) -> int:
        """Return how many messages wait."""
        return self._waiting.qsize()

    def __call__(self, messages: Sequence[Publish]) -> None:
        """Take messages; they are lost if this process dies, as a device that is offline loses them."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._hand_over, name="bridge outlet", daemon=True)
            self._thread.start()
        for message in messages:
            if self._take_room(len(message.payload) + self._MESSAGE_BYTES):
                self._waiting.put_nowait(message)
            else:
                self.dropped_count += 1

    def _take_room(self, size_bytes: int) -> bool:
        """Count bytes that are to wait, or that wait no more (negative); False, and not counted, if too many would."""
        with self._counting:
            has_room = self.waiting_bytes + size_bytes <= self.WAITING_BYTES_MAX
            self.waiting_bytes += size_bytes * has_room
            return has_room

    def _hand_over(self) -> None:
        while True:
            messages = [self._waiting.get()]
            size = len(messages[0].payload)
            while len(messages) < self._CALL_LENGTH and size < self._CALL_BYTES and not self._waiting.empty():
                messages.append(self._waiting.get())
                size += len(messages[-1].payload)
            try:
                bridge: Any = ray.get_actor(self._name)
                ray.get(submit(bridge.publish, encode(messages)), timeout=self._TIMEOUT_S)
            except (ValueError, RayError) as error:
                self.dropped_count += len(messages)
                _LOG.warning("%d messages found no bridge: %s", len(messages), error)
            self._take_room(-sum(len(each.payload) + self._MESSAGE_BYTES for each in messages))


class ShardActor(ShardHost):
    """`ShardHost` as a Ray actor: its constructor can't fail; `open` may be repeated."""

    def __init__(self, bridge_name: str) -> None:
        self._outlet = BridgeOutlet(bridge_name)
        super().__init__(self._outlet)

    def open(self, encoded: bytes) -> None:
        """Take over the shards that the settings name; when this returns, they are served."""
        super().open(encoded)
        assert self._keeper is not None, "it has just been opened"
        time.sleep(max(0.0, self._keeper.wait_s()))

    @ray.method(concurrency_group="ahead")
    def read_ahead_beside(self, shards: Sequence[int]) -> None:
        """Do as `read_ahead`, while the shards that are here are served."""
        self.read_ahead(shards)

    @ray.method(concurrency_group="control")
    def status(self) -> HostStatus:
        """Return what this host does at present, also while it is busy."""
        keeper = self._keeper
        shards = [] if keeper is None else list(keeper.held().values())
        return HostStatus(
            os.getpid(),
            tuple(shard.number for shard in shards),
            sum(shard.twin_count() for shard in shards),
            self._outlet.waiting_count,
            self._request_count,
            sum(shard.refused_telemetry_count for shard in shards),
            self._tick_count,
            0 if keeper is None else keeper.entry_count,
            self._outlet.dropped_count,
            () if keeper is None else tuple(keeper.lost),
            keeper is not None,
            () if keeper is None else keeper.read_shards,
            round(1000 * self._ticks.longest_s),
        )

    @ray.method(concurrency_group="control")
    def pulse(self) -> bytes:
        """Return its `Pulse`, also while it is busy."""
        return encode(Pulse(os.getpid(), self._keeper is not None))
