"""Bugs to plant: each takes out one thing that the protocol rests on, and some history must show that it is missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import pytest

from actors.journal import Record, parse_position
from actors.mqtt_bridge import MqttBridge
from actors.mqtt_outbox import Outbox, Outboxes
from actors.mqtt_taken import TakenMessages
from actors.shard_keeper import ShardKeeper
from actors.snapshots import SnapshotStore
from tests.simulation.protocol.store import Stream
from twins.messages import Batch, Outcome
from twins.shard import Shard

Plant = Callable[[pytest.MonkeyPatch], None]


def answer_before_journal(patches: pytest.MonkeyPatch) -> None:
    """Answer at once, and journal with the next call: what is answered last dies with its process."""
    keep = ShardKeeper.keep
    unkept: dict[ShardKeeper, Sequence[tuple[int, Record]]] = {}

    def keep_later(keeper: ShardKeeper, records: Sequence[tuple[int, Record]]) -> None:
        before, unkept[keeper] = unkept.pop(keeper, ()), records
        keep(keeper, before)

    patches.setattr(ShardKeeper, "keep", keep_later)


def no_fence(patches: pytest.MonkeyPatch) -> None:
    """Let the store number the entries: it takes those of anybody then."""
    add = Stream.add

    def add_behind(stream: Stream, fields: dict[Any, bytes], entry_id: str) -> bytes:
        if parse_position(entry_id) <= stream.last:
            entry_id = f"{stream.last[0]}-{stream.last[1] + 1}"
        return add(stream, fields, entry_id)

    patches.setattr(Stream, "add", add_behind)


def read_before_marker(patches: pytest.MonkeyPatch) -> None:
    """Read the past before the marker: what the former host appends in between is lost."""
    fence = ShardKeeper._fence
    read: dict[tuple[ShardKeeper, int], Any] = {}
    read_past = ShardKeeper._read

    def read_then_fence(keeper: ShardKeeper, number: int, **former: bool) -> bool:
        read[keeper, number] = read_past(keeper, number)
        return fence(keeper, number, **former)

    patches.setattr(ShardKeeper, "_fence", read_then_fence)
    patches.setattr(
        ShardKeeper,
        "_read",
        lambda keeper, number: read.pop((keeper, number), None) or read_past(keeper, number),
    )


def late_acknowledgement(patches: pytest.MonkeyPatch) -> None:
    """Acknowledge on a new connection under the packet ids of the old one."""
    connected = MqttBridge._on_connected

    def keep_packet_ids(bridge: MqttBridge, session_present: bool) -> None:
        packet_ids = [(held, packet_id) for packet_id, held in bridge._held.items()]
        connected(bridge, session_present)
        for held, packet_id in packet_ids:
            held.packet_id = packet_id

    patches.setattr(MqttBridge, "_on_connected", keep_packet_ids)


def snapshot_one_behind(patches: pytest.MonkeyPatch) -> None:
    """Write a snapshot down under the position before its own: one entry is applied twice."""
    _displace_snapshots(patches, -1)


def snapshot_one_ahead(patches: pytest.MonkeyPatch) -> None:
    """Write a snapshot down under the position after its own: one entry is left out."""
    _displace_snapshots(patches, 1)


def _displace_snapshots(patches: pytest.MonkeyPatch, distance: int) -> None:
    write = SnapshotStore.write

    def write_wrong(store: SnapshotStore, shard: Shard, position: str, *, is_only: bool = False) -> None:
        epoch, sequence = parse_position(position)
        write(store, shard, f"{epoch}-{max(sequence + distance, 0)}", is_only=is_only)

    patches.setattr(SnapshotStore, "write", write_wrong)


def repeated_batch_applied(patches: pytest.MonkeyPatch) -> None:
    """Forget what a source has sent: a batch that comes again is applied again."""
    apply = Shard.apply

    def apply_again(shard: Shard, batch: Batch, now_s: float) -> Outcome:
        shard.last_outcomes.pop(batch.source, None)
        return apply(shard, batch, now_s)

    patches.setattr(Shard, "apply", apply_again)


def trim_before_snapshot(patches: pytest.MonkeyPatch) -> None:
    """Trim the journal beyond the last snapshot, and only then write the one that stands for it."""
    snapshot = ShardKeeper.snapshot_where_due

    def trim_first(keeper: ShardKeeper) -> None:
        held = keeper._due()
        if held is not None:
            keeper._journal.trim(held.shard.number, through=held.position)
        snapshot(keeper)

    patches.setattr(ShardKeeper, "snapshot_where_due", trim_first)


def no_lease(patches: pytest.MonkeyPatch) -> None:
    """Serve without asking whether the shards are still ours."""
    patches.setattr(ShardKeeper, "_confirm", lambda _keeper, _now_s: None)


def acknowledged_is_forgotten(patches: pytest.MonkeyPatch) -> None:
    """Carry out again what was acknowledged, where the acknowledgement was lost."""
    patches.setattr(MqttBridge, "_is_finished", lambda _bridge, _held, _digest: False)


def taken_dies_with_bridge(patches: pytest.MonkeyPatch) -> None:
    """Let each bridge know only what it has taken itself."""
    begin = TakenMessages.__init__

    def begin_anew(taken: TakenMessages, content: bytearray, **options: Any) -> None:
        content[:] = bytes(len(content))
        begin(taken, content, **options)

    patches.setattr(TakenMessages, "__init__", begin_anew)


def dead_bridge_is_heard(patches: pytest.MonkeyPatch) -> None:
    """Take batches of an earlier bridge after those of its successor."""
    patches.setattr(Shard, "has_successor", lambda _shard, _source: False)


def lane_changed_at_once(patches: pytest.MonkeyPatch) -> None:
    """Let a moved shard's requests wait in its new lane at once, while earlier ones are under way in the old one."""

    def of_new_lane(outboxes: Outboxes, shard: int) -> Outbox:
        return outboxes._all[outboxes._lanes.lane_of(shard)]

    patches.setattr(Outboxes, "of", of_new_lane)


PLANTS: Final[dict[str, Plant]] = {
    plant.__name__: plant
    for plant in (
        answer_before_journal,
        no_fence,
        read_before_marker,
        late_acknowledgement,
        snapshot_one_behind,
        snapshot_one_ahead,
        repeated_batch_applied,
        trim_before_snapshot,
        no_lease,
        acknowledged_is_forgotten,
        taken_dies_with_bridge,
        dead_bridge_is_heard,
        lane_changed_at_once,
    )
}
