"""The outboxes of the bridge: what waits for a lane, how much of it leaves at once, and which lane that of a shard is.

Owns the size, the grouping and the names of batches; knows neither broker nor shards.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from typing import Final, NamedTuple, Protocol

from twins.messages import Batch, Outcome, Places, Request

# A Ray call above 100 KB takes a three times slower way through the object store; 10 KB stay for what goes
# along.
SUBMISSION_BYTES_MAX: Final = 90_000
# 2,000 of the smallest requests keep a shard busy for 20 ms: long enough to pay for the call, short enough to
# wait.
SUBMISSION_REQUESTS_MAX: Final = 2_000
# MessagePack around a request: array, operation, three lengths, flag, its place, and some to spare.
REQUEST_OVERHEAD_BYTES: Final = 24


class Lanes(Protocol):
    """The shards as the bridge sees them: each shard belongs to a lane, and lanes do not wait for each other.

    Which lane that is may change with every `submit`, and new ones may come; none goes away.
    """

    @property
    def shard_count(self) -> int:
        """Return the number of shards."""
        ...

    @property
    def lane_count(self) -> int:
        """Return the number of lanes; a lane is one shard actor."""
        ...

    def lane_of(self, shard: int) -> int:
        """Return the lane of a shard."""
        ...

    @property
    def version(self) -> int:
        """Return a number that is another one when the lane of a shard is."""
        ...

    async def submit(self, lane: int, batches: Sequence[tuple[int, Batch]]) -> Outcome:
        """Apply all of the (shard, batch) pairs and return what they brought about together, each shard's in order.

        They are those of one lane, or were when they were put together; each goes to where its shard is now.
        ShardUnavailable or TimeoutError mean that some, all or none were applied; the same pairs come again
        then, and a batch whose source and sequence were seen before must not be applied twice.
        """
        ...


class Held:
    """A request from its arrival to its acknowledgement."""

    __slots__ = (
        "is_counted",
        "is_done",
        "is_doubtful",
        "packet_id",
        "place",
        "request",
        "shard",
        "size_bytes",
        "was_taken",
    )

    def __init__(self, shard: int, request: Request, packet_id: int, size_bytes: int) -> None:
        self.shard = shard
        self.request = request
        # On the current link; zero where there is nothing to acknowledge.
        self.packet_id = packet_id
        # In the broker's order, if it can come again, and whether the broker may have forgotten what followed it.
        self.place = 0
        self.is_doubtful = False
        self.size_bytes = size_bytes
        # Out of the outbox, and carried out with all that follows from it.
        self.was_taken = False
        self.is_done = False
        # Among the shadow requests that its thing has in flight.
        self.is_counted = False


class Submission(NamedTuple):
    """What goes to a lane at once: (shard, batch) pairs, and the requests in them."""

    batches: list[tuple[int, Batch]]
    held: list[Held]


class Outbox:
    """The requests that wait for one lane, in the order in which they came."""

    def __init__(self, index: int, sequences: dict[int, int], memory: int) -> None:
        """Prepare a lane's outbox; `sequences` are those of all lanes, by shard: a shard may change its lane.

        `memory` is where the places of requests are from (see `Places`).
        """
        self.index = index
        self._memory = memory
        self.waiting: deque[Held] = deque()
        self.in_flight_count = 0
        self.filled = asyncio.Event()
        self.idle = asyncio.Event()
        self._sequences = sequences

    def take(self, source: str) -> Submission:
        """Return what goes next, grouped by shard, and take it out of the outbox."""
        held_of: dict[int, list[Held]] = {}
        held: list[Held] = []
        size_bytes = 0
        while self.waiting and len(held) < SUBMISSION_REQUESTS_MAX:
            first = self.waiting[0]
            of_shard = held_of.get(first.shard)
            size_bytes += first.size_bytes
            if of_shard is None:
                size_bytes += len(source) + REQUEST_OVERHEAD_BYTES
            if size_bytes > SUBMISSION_BYTES_MAX and held:
                break
            self.waiting.popleft()
            first.was_taken = True
            held.append(first)
            if of_shard is None:
                held_of[first.shard] = of_shard = []
            of_shard.append(first)
        return Submission(
            [(shard, self._batch(source, shard, each)) for shard, each in held_of.items()], held
        )

    def remove(self, shards: Collection[int]) -> list[Held]:
        """Return what waits of shards, in its order, and take it out of the outbox."""
        removed = [held for held in self.waiting if held.shard in shards]
        if removed:
            self.waiting = deque(held for held in self.waiting if held.shard not in shards)
        return removed

    def _batch(self, source: str, shard: int, held: list[Held]) -> Batch:
        self._sequences[shard] = sequence = self._sequences.get(shard, 0) + 1
        places = [each.place for each in held]
        doubtful = [position for position, each in enumerate(held) if each.is_doubtful]
        found = Places(self._memory, places, doubtful) if any(places) else None
        return Batch(source, sequence, [each.request for each in held], found)


class Outboxes:
    """The outboxes of all lanes, in their order."""

    def __init__(self, lanes: Lanes, memory: int) -> None:
        self._lanes = lanes
        self._memory = memory
        self._sequences: dict[int, int] = {}
        self._all = [Outbox(index, self._sequences, memory) for index in range(lanes.lane_count)]
        # By shard: that of its lane or, as long as that has something in flight, of its former one.
        self._of = [self._all[lanes.lane_of(shard)] for shard in range(lanes.shard_count)]

    def __iter__(self) -> Iterator[Outbox]:
        """Return the outboxes one after the other, also those that come meanwhile."""
        return iter(self._all)

    def of(self, shard: int) -> Outbox:
        """Return where the requests of a shard wait."""
        return self._of[shard]

    def send_away(self, former: Outbox) -> Sequence[Outbox]:
        """Hand what waits of shards that have another lane now to that lane; return the outboxes of new lanes.

        To be called while nothing of the former lane is in flight: what is sent away comes after all that has been
        submitted, and before all that comes later, which waits in the new lane at once.
        """
        leaving = {
            shard: self._lanes.lane_of(shard)
            for shard, outbox in enumerate(self._of)
            if outbox is former and self._lanes.lane_of(shard) != former.index
        }
        known_count = len(self._all)
        while len(self._all) <= max(leaving.values(), default=0):
            self._all.append(Outbox(len(self._all), self._sequences, self._memory))
        for shard, index in leaving.items():
            self._of[shard] = self._all[index]
        for held in former.remove(leaving):
            self._of[held.shard].waiting.append(held)
            self._of[held.shard].filled.set()
        return self._all[known_count:]
