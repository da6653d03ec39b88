"""Reports that do not arrive within their tick: under way, to be sent again, or kept by a device that is offline.

They are few beside the fleet: a record each in arrays, by the tick at which something is due. What arrives is applied
in the order of (tick, device, when it was sent), as the service does it: an older report that was overtaken by a newer
one overwrites it, and is counted as reordered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from twins.interpreter import bucket_of
from twins.link_program import BACK, CODES, LATENCIES, NEWEST, ROWS, VALID, Conditions, Fate, value_list
from twins.program import HISTOGRAM_BUCKETS
from twins.table import PatternRows

# States of a record: it is to be sent when it is due, else it arrives then; and it has arrived before.
_TO_SEND: Final = 1
_COPY: Final = 2
_FIRST_SLOTS: Final = 1024


@dataclass
class PostCounts:
    """What happened to reports that did not arrive at once; `latency` counts by bucket."""

    arrived: int = 0
    lost: int = 0
    refused: int = 0
    dropped: int = 0
    duplicated: int = 0
    delayed: int = 0
    reordered: int = 0
    resent: int = 0
    latency: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Now:
    """A tick, what the links are like in it, and by row who is connected, and who is held by somebody else."""

    tick: int
    conditions: Conditions
    connected: NDArray[np.uint8]
    held: NDArray[np.uint8]

    def is_online(self, rows: NDArray[Any]) -> NDArray[np.bool_]:
        """Return which devices of the simulation's own are connected."""
        online: NDArray[np.bool_] = (self.connected[rows] != 0) & (self.held[rows] == 0)
        return online


class Post:
    """The reports of one fleet that take longer.

    `table` holds the fleet's twins, and beside them the columns of `link_program.post_layout`; `attributes` are the
    positions of its devices' values. `apply` writes records into twins. A device keeps `buffer_count` reports at most.
    """

    def __init__(
        self,
        table: PatternRows,
        attributes: Mapping[str, NDArray[Any]],
        *,
        apply: Callable[[NDArray[Any], int], None],
        buffer_count: int,
    ) -> None:
        columns = table.arena.columns
        self.dtype = np.dtype(
            [
                ("row", "<u4"),
                ("sent", "<u4"),
                ("due", "<u4"),
                ("ms", "<f4"),
                ("valid", "<u2"),
                ("state", "<u2"),
                ("values", "<u4", (len(table.model.fields),)),
            ]
        )
        self.newest = columns[NEWEST]
        self.attributes = attributes
        self.indices_of = table.indices_at
        self.apply = apply
        self.due: dict[int, list[NDArray[Any]]] = {}
        kept = columns.get("link.kept")
        self.shelf = None if kept is None else Shelf(kept, self.dtype, buffer_count)
        self.in_flight_count = 0
        # Rows of devices that are back and still have reports to send, ascending.
        self.sending: NDArray[np.int64] = np.zeros(0, np.int64)

    def __bool__(self) -> bool:
        return bool(self.due or (self.shelf is not None and self.shelf.count))

    @property
    def kept_count(self) -> int:
        """Return how many reports devices keep."""
        return 0 if self.shelf is None else self.shelf.count

    # The course of a tick

    def deliver(self, now: Now, counts: PostCounts) -> None:
        """Let arrive what is due, and send what is to be sent again."""
        parts = self.due.pop(now.tick, [])
        if not parts:
            return
        records = np.concatenate(parts)
        self.in_flight_count -= int(np.count_nonzero(records["state"] & _COPY == 0))
        is_to_send = (records["state"] & _TO_SEND) != 0
        self._arrive(records[~is_to_send], now, counts)
        again = records[is_to_send]
        is_online = now.is_online(again["row"])
        # Who is offline tries again later; the message waits in its session.
        self._put(again[~is_online], now.tick + self._resend_ticks(now))
        again = again[is_online]
        counts.resent += len(again)
        self._send(again, now, counts)

    def take(self, lists: Mapping[str, NDArray[np.int64]], now: Now, counts: PostCounts) -> None:
        """Take in what a turn has listed: what is late, lost, held back, twice or kept."""
        rows = lists.get(ROWS)
        if rows is not None and len(rows):
            records = np.zeros(len(rows), self.dtype)
            records["row"], records["sent"], records["valid"] = rows, now.tick, lists[VALID]
            for position in range(records["values"].shape[1]):
                records["values"][:, position] = lists[value_list(position)]
            fates = lists[CODES].astype(np.uint8)
            latencies = lists[LATENCIES].astype(np.uint32).view(np.float32)
            is_kept = fates == Fate.KEPT
            if self.shelf is not None:
                counts.dropped += self.shelf.put(records[is_kept])
            self._dispatch(
                records[~is_kept], (fates[~is_kept], latencies[~is_kept]), now, counts, is_turn=True
            )
        back = lists.get(BACK)
        if back is not None and len(back):
            self.sending = np.union1d(self.sending, back)

    def resume(self, connected: NDArray[np.uint8]) -> None:
        """Let everybody who is connected and keeps reports send them from now on."""
        if self.shelf is not None:
            rows = np.flatnonzero(self.shelf.kept)
            self.sending = rows[connected[rows] != 0]

    def forget(self, rows: NDArray[np.int64]) -> int:
        """Drop what devices keep, and return how many reports that were."""
        if self.shelf is None:
            return 0
        kept = self.shelf.kept
        return len(self.shelf.pull(rows, kept[rows].astype(np.int64)))

    def flush(self, now: Now, counts: PostCounts) -> None:
        """Let devices that are back send of what they keep; once a tick, when all have had their turns."""
        if self.shelf is None or not len(self.sending):
            return
        kept = self.shelf.kept
        self.sending = self.sending[now.is_online(self.sending) & (kept[self.sending] != 0)]
        rows = self.sending
        records = self.shelf.pull(rows, np.minimum(kept[rows].astype(np.int64), self._room(rows, now)))
        self._send(records, now, counts)

    def _room(self, rows: NDArray[np.int64], now: Now) -> NDArray[np.int64]:
        """Return how many kept reports each device sends in a tick."""
        group, network = now.conditions.group, now.conditions.network
        send_ms = now.conditions.of("send_ms", self.indices_of(rows), self._attributes_of(rows))
        tick_ms = np.float32(group.tick_s * 1000)
        per_tick = np.full(len(rows), np.float32(network.buffer_count), np.float32)
        if network.flush_per_s:
            per_tick = np.minimum(per_tick, np.float32(network.flush_per_s * group.tick_s))
        is_slow = send_ms > 0
        per_tick[is_slow] = np.minimum(per_tick[is_slow], tick_ms / send_ms[is_slow])
        # What is less than one a tick adds up over ticks: each sends in one tick of so many.
        whole = np.floor(per_tick)
        step = np.ceil(1 / np.maximum(per_tick, np.float32(1e-6))).astype(np.int64)
        return np.where(whole >= 1, whole.astype(np.int64), now.tick % step == 0)

    # Sending and arriving

    def _attributes_of(self, rows: NDArray[Any]) -> dict[str, NDArray[Any]]:
        return {name: column[rows] for name, column in self.attributes.items()}

    @staticmethod
    def _resend_ticks(now: Now) -> int:
        group, network = now.conditions.group, now.conditions.network
        return max(1, round(network.resend_after_s / group.tick_s))

    def _send(self, records: NDArray[Any], now: Now, counts: PostCounts) -> None:
        """Send reports outside their devices' turns."""
        if len(records):
            rows = records["row"].astype(np.int64)
            drawn = now.conditions.fates(
                now.tick, self.indices_of(rows), records["sent"], self._attributes_of(rows)
            )
            self._dispatch(records, drawn, now, counts, is_turn=False)

    def _dispatch(
        self,
        records: NDArray[Any],
        drawn: tuple[NDArray[np.uint8], NDArray[np.float32]],
        now: Now,
        counts: PostCounts,
        *,
        is_turn: bool,
    ) -> None:
        """Put reports on their way by their fates and latencies; what arrives at its device's turn has been applied."""
        fates, latencies = drawn
        group = now.conditions.group
        tick_ms = np.float32(group.tick_s * 1000)
        is_first = (records["state"] & _COPY) == 0
        is_lost = fates == Fate.LOST
        if now.conditions.network.qos:
            again = records[is_lost]
            again["state"] |= _TO_SEND
            self._put(again, now.tick + self._resend_ticks(now))
        else:
            counts.lost += int(np.count_nonzero(is_lost & is_first))
        is_refused = fates == Fate.REFUSED
        if not is_turn:
            counts.refused += int(np.count_nonzero(is_refused & is_first))
        goes = ~is_lost & ~is_refused
        records, fates, latencies = records[goes], fates[goes], latencies[goes]
        held = np.where(fates == Fate.HELD, group.report_every_ticks + 1, 0)
        waited = (np.int64(now.tick) - records["sent"].astype(np.int64) + held).astype(np.float32)
        records["ms"] = waited * tick_ms + latencies
        records["state"] &= np.uint16(_COPY)
        records["due"] = now.tick + held + np.floor(latencies / tick_ms).astype(np.int64)
        copies = records[fates == Fate.TWICE]
        copies["state"] |= _COPY
        unacknowledged = records[fates == Fate.UNACKNOWLEDGED]
        unacknowledged["state"] |= _TO_SEND | _COPY
        self._put(unacknowledged, now.tick + self._resend_ticks(now))
        is_now = records["due"] == now.tick
        # At its turn, what arrives at once was written by the program.
        arriving = copies[copies["due"] == now.tick]
        if not is_turn:
            arriving = np.concatenate([records[is_now], arriving])
        self._arrive(arriving, now, counts)
        self._put_each(np.concatenate([records[~is_now], copies[copies["due"] != now.tick]]))

    def _arrive(self, records: NDArray[Any], now: Now, counts: PostCounts) -> None:
        """Apply reports to their twins, one after the other where a device has several."""
        # A twin that somebody else has taken over hears no more of its simulated device.
        is_held = now.held[records["row"]] != 0
        counts.lost += int(np.count_nonzero(is_held & (records["state"] & _COPY == 0)))
        records = records[~is_held]
        order = np.lexsort((records["state"], records["sent"], records["row"]))
        records = records[order]
        is_first = (records["state"] & _COPY) == 0
        counts.arrived += int(np.count_nonzero(is_first))
        counts.duplicated += int(np.count_nonzero(~is_first))
        counts.delayed += int(np.count_nonzero(is_first & (records["sent"] != now.tick)))
        found = np.bincount(bucket_of(records["ms"][is_first]), minlength=HISTOGRAM_BUCKETS)
        counts.latency = found if counts.latency is None else counts.latency + found
        while len(records):
            rows = records["row"]
            is_next = np.ones(len(rows), np.bool_)
            is_next[1:] = rows[1:] != rows[:-1]
            turn = records[is_next]
            newest, sent = self.newest[turn["row"]], turn["sent"] + np.uint32(1)
            counts.reordered += int(np.count_nonzero(sent < newest))
            self.newest[turn["row"]] = np.maximum(newest, sent)
            self.apply(turn, now.tick)
            records = records[~is_next]

    def _put(self, records: NDArray[Any], due: int) -> None:
        if len(records):
            records["due"] = due
            self.due.setdefault(due, []).append(records)
            self.in_flight_count += int(np.count_nonzero(records["state"] & _COPY == 0))

    def _put_each(self, records: NDArray[Any]) -> None:
        for due in np.unique(records["due"]).tolist():
            self._put(records[records["due"] == due], due)

    # Everything that it consists of

    def dump(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return what is under way, and what is kept, each in an order that depends on nothing else."""
        parts = [part for due in sorted(self.due) for part in self.due[due]]
        records = np.concatenate(parts) if parts else np.zeros(0, self.dtype)
        order = np.lexsort((records["state"], records["due"], records["sent"], records["row"]))
        kept = np.zeros(0, self.dtype) if self.shelf is None else self.shelf.dump()
        return records[order], kept

    def load(self, flying: bytes, kept: bytes, connected: NDArray[np.uint8]) -> None:
        """Take in what `dump` gave."""
        self._put_each(np.frombuffer(flying, self.dtype).copy())
        if self.shelf is not None:
            self.shelf.load(np.frombuffer(kept, self.dtype))
            self.resume(connected)


class Shelf:
    """The reports that devices keep while they are offline: the last few of each, in rings.

    `kept` is the fleet's column of how many each device keeps, `count_max` at most. A device with any has a slot; place
    p of all rings is one array, made when the first ring comes to be so long.
    """

    def __init__(self, kept: NDArray[np.uint16], dtype: np.dtype[Any], count_max: int) -> None:
        self.kept = kept
        self.dtype = dtype
        self.count = 0
        self.count_max = count_max
        self._slot_of = np.zeros(len(kept), np.uint32)
        self._heads = np.zeros(_FIRST_SLOTS, np.int64)
        self._places: list[NDArray[Any]] = []
        # Slot 0 stands for none.
        self._free = np.arange(_FIRST_SLOTS - 1, 0, -1, dtype=np.uint32)

    def put(self, records: NDArray[Any]) -> int:
        """Keep one report each of some devices, and return how many older ones were dropped for want of room."""
        if not len(records):
            return 0
        rows = records["row"].astype(np.int64)
        self._give_slots(rows[self._slot_of[rows] == 0])
        slots = self._slot_of[rows]
        count = self.kept[rows].astype(np.int64)
        is_full = count >= self.count_max
        places = (self._heads[slots] + count) % self.count_max
        self._heads[slots[is_full]] = (self._heads[slots[is_full]] + 1) % self.count_max
        self.kept[rows] += (~is_full).astype(np.uint16)
        for place in np.unique(places).tolist():
            while len(self._places) <= place:
                self._places.append(np.zeros(len(self._heads), self.dtype))
            here = places == place
            self._places[place][slots[here]] = records[here]
        dropped = int(np.count_nonzero(is_full))
        self.count += len(records) - dropped
        return dropped

    def pull(self, rows: NDArray[np.int64], numbers: NDArray[np.int64]) -> NDArray[Any]:
        """Take so many reports of each device, the oldest first."""
        parts = [np.zeros(0, self.dtype)]
        for turn in range(int(numbers.max(initial=0))):
            some = rows[numbers > turn]
            slots = self._slot_of[some]
            parts.append(self._at(slots, self._heads[slots]))
            self._heads[slots] = (self._heads[slots] + 1) % self.count_max
            self.kept[some] -= np.uint16(1)
        emptied = rows[(self.kept[rows] == 0) & (self._slot_of[rows] != 0)]
        self._free = np.concatenate([self._free, self._slot_of[emptied]])
        self._slot_of[emptied] = 0
        found = np.concatenate(parts)
        self.count -= len(found)
        return found

    def dump(self) -> NDArray[Any]:
        """Return all reports by device, the oldest first."""
        rows = np.flatnonzero(self.kept)
        slots, count = self._slot_of[rows], self.kept[rows].astype(np.int64)
        parts = [np.zeros(0, self.dtype)]
        for turn in range(int(count.max(initial=0))):
            some = slots[count > turn]
            parts.append(self._at(some, (self._heads[some] + turn) % self.count_max))
        records = np.concatenate(parts)
        return records[np.lexsort((records["sent"], records["row"]))]

    def load(self, records: NDArray[Any]) -> None:
        """Keep what `dump` gave; the column of counts is filled already, with the same."""
        self.kept[:] = 0
        while len(records):
            is_next = np.ones(len(records), np.bool_)
            is_next[1:] = records["row"][1:] != records["row"][:-1]
            self.put(records[is_next])
            records = records[~is_next]

    def _at(self, slots: NDArray[np.uint32], places: NDArray[np.int64]) -> NDArray[Any]:
        found = np.zeros(len(slots), self.dtype)
        for place in np.unique(places).tolist():
            here = places == place
            found[here] = self._places[place][slots[here]]
        return found

    def _give_slots(self, rows: NDArray[np.int64]) -> None:
        """Give devices without one a slot each."""
        size = len(self._heads)
        if len(self._free) < len(rows):
            grown = 2 * max(size, len(rows))
            self._free = np.concatenate([np.arange(grown - 1, size - 1, -1, dtype=np.uint32), self._free])
            self._heads = np.concatenate([self._heads, np.zeros(grown - size, np.int64)])
            self._places = [
                np.concatenate([place, np.zeros(grown - size, self.dtype)]) for place in self._places
            ]
        start = len(self._free) - len(rows)
        self._slot_of[rows] = self._free[start:]
        self._heads[self._free[start:]] = 0
        self._free = self._free[:start]
