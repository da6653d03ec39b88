"""The process that serves shards: it journals what comes in, applies it, and hands out what comes of it.

`ShardHost` does the work and knows nothing of Ray; `ShardActor` is the same thing as a Ray actor. Its methods run one
at a time; those of the concurrency group `control` answer beside them. What is public takes and gives plain bytes
where it is on the path of devices, so that a call costs what its content costs.
"""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import pyarrow as pa
import ray

from actors.actor_settings import HostSettings
from actors.errors import StoreError
from actors.fleet import (
    JsonObject,
    arrow_table,
    reply_document,
    shadow_request,
    telemetry_request,
    update_desired_request,
)
from actors.journal import Applied, GroupCreated, GroupDeleted, Journal, Record, Ticked
from actors.logs import log_to
from actors.snapshots import SnapshotStore
from actors.wall_clock import WallClock
from twins.errors import InvariantError, ModelError
from twins.messages import (
    READ_ONLY,
    Batch,
    GroupOrder,
    Outcome,
    Publish,
    Reply,
    Request,
    TickOrder,
    TickSummary,
    encode,
)
from twins.shard import Shard
from twins.sharding import shard_of

# A snapshot is taken after so many journal entries of a shard: replaying them takes about a second.
SNAPSHOT_EVERY_ENTRIES: Final = 20_000

decode_submission: Final = msgspec.msgpack.Decoder(list[tuple[int, Batch]]).decode
decode_request: Final = msgspec.msgpack.Decoder(Request).decode
decode_orders: Final = msgspec.msgpack.Decoder(list[TickOrder]).decode
decode_group_order: Final = msgspec.msgpack.Decoder(GroupOrder).decode


class HostStatus(msgspec.Struct, frozen=True):
    """What a host does at present."""

    pid: int
    shards: tuple[int, ...]
    twin_count: int
    request_count: int
    refused_telemetry_count: int
    tick_count: int
    journal_entry_count: int


class ShardHost:
    """Some shards with their journal. `announce` takes the messages of requests that no bridge has brought."""

    def __init__(self, announce: Callable[[Sequence[Publish]], None]) -> None:
        self._announce = announce
        self._clock = WallClock()
        self._shards: dict[int, Shard] = {}
        self._entries_since_snapshot: dict[int, int] = {}
        self._request_count = self._tick_count = self._entry_count = 0

    def open(self, encoded: bytes) -> None:
        """Take over the shards that the settings name: fence their former host, then read their past."""
        settings = msgspec.msgpack.decode(encoded, type=HostSettings)
        log_to(Path(settings.log_file))
        self._settings = settings
        self._journal = Journal(settings.redis_url)
        self._journal.require_shard_count(settings.shard_count)
        self._snapshots = SnapshotStore(Path(settings.snapshot_dir))
        shards: dict[int, Shard] = {}
        for number in settings.shards:
            self._journal.open(number)
            shard, position = self._snapshots.newest(number) or (Shard(number, settings.shard_count), "0-0")
            count = 0
            for _, record in self._journal.read(number, after=position):
                _replay(shard, record)
                count += 1
            shards[number] = shard
            self._entries_since_snapshot[number] = count
        self._shards = shards
        # What has been read back stays; the garbage collector need not go through it again and again.
        gc.freeze()

    def describe(self) -> HostStatus:
        """Return what this host does at present; may run beside the other methods."""
        shards = list(self._shards.values())
        return HostStatus(
            os.getpid(),
            tuple(self._shards),
            sum(shard.twin_count() for shard in shards),
            self._request_count,
            sum(shard.refused_telemetry_count for shard in shards),
            self._tick_count,
            self._entry_count,
        )

    # The path of devices

    def submit(self, encoded: bytes) -> bytes:
        """Apply (shard, batch) pairs and return their one outcome; a repeated batch is answered from memory."""
        pairs = decode_submission(encoded)
        now_s = self._clock.now_s()
        self._append([(number, Applied(now_s, batch)) for number, batch in pairs if _leaves_a_trace(batch)])
        outcome = Outcome([], [])
        for number, batch in pairs:
            part = self._shard(number).apply(batch, now_s)
            outcome.publishes.extend(part.publishes)
            outcome.replies.extend(part.replies)
            self._request_count += len(batch.requests)
        self._snapshot_where_due()
        return encode(outcome)

    def _append(self, records: Sequence[tuple[int, Record]]) -> None:
        if not records:
            return
        self._journal.append(records)
        self._entry_count += len(records)
        for number, _ in records:
            self._entries_since_snapshot[number] += 1

    def _shard(self, number: int) -> Shard:
        try:
            return self._shards[number]
        except KeyError:
            raise StoreError(f"shard {number} is not open here", retryable=True) from None

    # Handles and operators

    def ask(self, encoded: bytes) -> bytes:
        """Return the reply to one request."""
        return encode(self._ask(decode_request(encoded)))

    def _ask(self, request: Request) -> Reply:
        request = msgspec.structs.replace(request, is_direct=True)
        batch = Batch("", 0, [request])
        number = shard_of(request.thing_name, self._settings.shard_count)
        shard = self._shard(number)
        now_s = self._clock.now_s()
        if request.operation not in READ_ONLY:
            self._append([(number, Applied(now_s, batch))])
        outcome = shard.apply(batch, now_s)
        self._request_count += 1
        if outcome.publishes:
            self._announce(outcome.publishes)
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

    def telemetry(self, thing_name: str) -> JsonObject:
        """Return what a twin remembers of its telemetry."""
        return reply_document(self._ask(telemetry_request(thing_name)))

    # Simulated fleets

    def create_group(self, encoded: bytes) -> None:
        """Create this host's part of a simulated group; ModelError if it can't be."""
        order = decode_group_order(encoded)
        group = order.group()
        self._append([(number, GroupCreated(order)) for number in self._shards])
        for shard in self._shards.values():
            shard.create_group(group)

    def group_names(self) -> list[str]:
        """Return the names of the simulated groups."""
        return sorted({name for shard in self._shards.values() for name in shard.fleets})

    def delete_group(self, name: str) -> None:
        """Remove this host's part of a simulated group."""
        self._append([(number, GroupDeleted(name)) for number in self._shards])
        for shard in self._shards.values():
            shard.delete_group(name)

    def tick(self, encoded: bytes) -> bytes:
        """Run tick orders, one after the other, on all shards; return one summary for each order."""
        summaries = []
        for order in decode_orders(encoded):
            # Only shards that hold devices of the group keep the marker: the others have nothing to compute again.
            holders = [
                (number, shard)
                for number, shard in self._shards.items()
                if order.group not in shard.fleets or shard.fleets[order.group].table.count
            ]
            total = TickSummary()
            for number, shard in holders:
                if order.group not in shard.fleets:
                    raise ModelError(f"there is no group {order.group!r} in shard {number}")
            self._append([(number, Ticked(order)) for number, _ in holders])
            for _, shard in holders:
                total += shard.tick(order)
            self._tick_count += order.tick_count
            summaries.append(total)
        self._snapshot_where_due()
        return encode(summaries)

    # Questions

    def twins_table(self, columns: frozenset[str] | None) -> pa.Table:
        """Return the wanted columns of this host's twins."""
        return arrow_table(part for shard in self._shards.values() for part in shard.select(columns))

    def digest_leaves(self) -> list[tuple[str, int, bytes]]:
        """Return the leaves of the fleet's digest that this host holds."""
        return [leaf for shard in self._shards.values() for leaf in shard.digest_leaves()]

    # Keeping

    def _snapshot_where_due(self) -> None:
        for number, count in self._entries_since_snapshot.items():
            if count >= SNAPSHOT_EVERY_ENTRIES:
                self._snapshot(number)

    def _snapshot(self, number: int) -> None:
        """Write a shard down and drop the part of its journal that the snapshot before this one covers."""
        self._snapshots.write(self._shards[number], self._journal.position(number))
        self._entries_since_snapshot[number] = 0
        older = self._snapshots.second_newest_position(number)
        if older is not None:
            self._journal.trim(number, through=older)

    def close(self) -> None:
        """Write all shards down, so that the next start is quick, and let go of the journal."""
        for number, count in self._entries_since_snapshot.items():
            if count:
                self._snapshot(number)
        if self._shards:
            self._journal.close()
        self._shards = {}


def _leaves_a_trace(batch: Batch) -> bool:
    return any(request.operation not in READ_ONLY for request in batch.requests)


def _replay(shard: Shard, record: Record) -> None:
    """Apply one journalled input, in place: whatever it brought about was shown when it came in first.

    What was refused then is refused again, and changes nothing.
    """
    with contextlib.suppress(ModelError):
        _apply(shard, record)


def _apply(shard: Shard, record: Record) -> None:
    if isinstance(record, Applied):
        shard.apply(record.batch, record.now_s)
    elif isinstance(record, GroupCreated):
        shard.create_group(record.order.group())
    elif isinstance(record, GroupDeleted):
        shard.delete_group(record.name)
    elif isinstance(record, Ticked):
        shard.tick(record.order)
    else:
        raise InvariantError(f"the journal holds {record!r}")


class BridgeOutlet:
    """Sends messages through the platform's bridge, from whichever process; a bounded number are under way."""

    # Each is one call; beyond it the caller waits, so that a slow bridge holds operators back, not memory.
    _UNDER_WAY_MAX: Final = 64
    # A bridge that takes nothing for so long is stuck; what waits for it is given up.
    _TIMEOUT_S: Final = 5.0

    def __init__(self, bridge_name: str) -> None:
        self._name = bridge_name
        self._bridge: Any = None
        self._under_way: list[Any] = []

    def __call__(self, messages: Sequence[Publish]) -> None:
        """Hand messages to the bridge; while there is none they are lost, as for a device that is offline."""
        if self._bridge is None:
            try:
                self._bridge = ray.get_actor(self._name)
            except ValueError:
                return
        self._under_way.append(self._bridge.publish.remote(encode(list(messages))))
        if len(self._under_way) >= self._UNDER_WAY_MAX:
            half = self._UNDER_WAY_MAX // 2
            _, self._under_way = ray.wait(self._under_way, num_returns=half, timeout=self._TIMEOUT_S)
            self._under_way = self._under_way[-half:]


class ShardActor(ShardHost):
    """`ShardHost` as a Ray actor: its constructor can't fail; `open` may be repeated."""

    def __init__(self, bridge_name: str) -> None:
        super().__init__(BridgeOutlet(bridge_name))

    @ray.method(concurrency_group="control")
    def status(self) -> HostStatus:
        """Return what this host does at present, also while it is busy."""
        return self.describe()

    @ray.method(concurrency_group="lifetime")
    def lifetime(self) -> None:
        """Never return: whoever waits for the answer learns of this process's end."""
        threading.Event().wait()
