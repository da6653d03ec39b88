"""The outboxes of the bridge: what waits for a lane, and how much of it leaves at once.

Owns the size, the grouping and the names of batches; knows neither broker nor shards.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, NamedTuple

from twins.messages import Batch, Request

# A Ray call above 100 KB takes a three times slower way through the object store; 10 KB stay for what goes
# along.
SUBMISSION_BYTES_MAX: Final = 90_000
# 2,000 of the smallest requests keep a shard busy for 20 ms: long enough to pay for the call, short enough to
# wait.
SUBMISSION_REQUESTS_MAX: Final = 2_000
# MessagePack around a request: array, operation, three lengths, flag, and some to spare.
REQUEST_OVERHEAD_BYTES: Final = 16


class Held:
    """A request from its arrival to its acknowledgement."""

    __slots__ = ("is_counted", "is_done", "packet_id", "request", "shard", "size_bytes", "was_taken")

    def __init__(self, shard: int, request: Request, packet_id: int, size_bytes: int) -> None:
        self.shard = shard
        self.request = request
        # On the current link; zero where there is nothing to acknowledge.
        self.packet_id = packet_id
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

    def __init__(self, index: int) -> None:
        self.index = index
        self.waiting: deque[Held] = deque()
        self.in_flight_count = 0
        self.filled = asyncio.Event()
        self.idle = asyncio.Event()
        self._sequences: dict[int, int] = {}

    def take(self, source: str) -> Submission:
        """Return what goes next, grouped by shard, and take it out of the outbox."""
        requests_of: dict[int, list[Request]] = {}
        held: list[Held] = []
        size_bytes = 0
        while self.waiting and len(held) < SUBMISSION_REQUESTS_MAX:
            first = self.waiting[0]
            requests = requests_of.get(first.shard)
            size_bytes += first.size_bytes
            if requests is None:
                size_bytes += len(source) + REQUEST_OVERHEAD_BYTES
            if size_bytes > SUBMISSION_BYTES_MAX and held:
                break
            self.waiting.popleft()
            first.was_taken = True
            held.append(first)
            if requests is None:
                requests_of[first.shard] = requests = []
            requests.append(first.request)
        return Submission(
            [(shard, self._batch(source, shard, each)) for shard, each in requests_of.items()], held
        )

    def _batch(self, source: str, shard: int, requests: list[Request]) -> Batch:
        self._sequences[shard] = sequence = self._sequences.get(shard, 0) + 1
        return Batch(source, sequence, requests)
