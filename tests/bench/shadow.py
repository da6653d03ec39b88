"""JSON shadow updates a second through the core, one process: bytes in; accepted, documents and delta as bytes out.

Payloads are JSON as a device sends it, in requests as the bridge hands them over.

The baseline is what a plain dictionary and the JSON codec can do: decode, merge with a time per property, count the
version, encode the accepted document. It makes no documents and no delta, and checks nothing.
"""

from __future__ import annotations

from typing import Any

import msgspec

from tests.bench.result import BenchResult, alternate
from twins.messages import Batch, Operation, Request
from twins.shard import Shard

THING_COUNT = 1000
BATCH_LENGTH = 500
BATCHES_A_ROUND = 40
NOW_S = 1_767_225_600
RATE_MIN = 100_000


def _payload(number: int) -> bytes:
    return msgspec.json.encode(
        {
            "state": {
                "reported": {
                    "temperature": 20 + number % 100 / 100,
                    "humidity": 40.25,
                    "battery": 99.5,
                    "set_point": 21.5,
                }
            },
            "clientToken": f"token-{number}",
        }
    )


class CoreUpdates:
    """A thousand thermostats whose shadows are updated in batches."""

    def __init__(self) -> None:
        self.shard = Shard(0, 1)
        registrations = [
            Request(Operation.REGISTER, self._name(i), b'{"model":"thermostat"}', is_direct=True)
            for i in range(THING_COUNT)
        ]
        self.shard.apply(Batch("", 0, registrations), NOW_S)
        updates = [Request(Operation.SHADOW_UPDATE, self._name(i), _payload(i)) for i in range(THING_COUNT)]
        self.batches = [
            updates[start : start + BATCH_LENGTH] for start in range(0, THING_COUNT, BATCH_LENGTH)
        ]
        self.sequence = 0

    @staticmethod
    def _name(number: int) -> str:
        return f"bench-{number}"

    def run(self) -> int:
        """Apply some batches and return the number of updates."""
        for _ in range(BATCHES_A_ROUND):
            self.sequence += 1
            requests = self.batches[self.sequence % len(self.batches)]
            outcome = self.shard.apply(Batch("bench", self.sequence, requests), NOW_S + self.sequence)
            if len(outcome.publishes) != 2 * BATCH_LENGTH:
                raise RuntimeError("every update is answered by an accepted and a documents message")
        return BATCHES_A_ROUND * BATCH_LENGTH


class PlainUpdates:
    """The same updates on plain dictionaries."""

    def __init__(self) -> None:
        self.payloads = [_payload(i) for i in range(THING_COUNT)]
        self.things: list[dict[str, Any]] = [
            {"state": {}, "stamps": {}, "version": 0} for _ in range(THING_COUNT)
        ]
        self.now_s = NOW_S

    def run(self) -> int:
        """Apply some updates and return their number."""
        decode, encode = msgspec.json.Decoder().decode, msgspec.json.Encoder().encode
        self.now_s += 1
        count = BATCHES_A_ROUND * BATCH_LENGTH
        for i in range(count):
            request = decode(self.payloads[i % THING_COUNT])
            thing = self.things[i % THING_COUNT]
            reported = request["state"]["reported"]
            thing["state"].update(reported)
            stamps = {key: {"timestamp": self.now_s} for key in reported}
            thing["stamps"].update(stamps)
            thing["version"] += 1
            encode(
                {
                    "state": request["state"],
                    "metadata": {"reported": stamps},
                    "version": thing["version"],
                    "timestamp": self.now_s,
                    "clientToken": request["clientToken"],
                }
            )
        return count


def measure() -> list[BenchResult]:
    """Measure the rate of updates."""
    value, baseline = alternate(CoreUpdates().run, PlainUpdates().run)
    return [
        BenchResult(
            "shadow",
            value,
            "updates/s",
            "plain dictionary merge and accepted document",
            baseline,
            value / baseline,
            f"at least {RATE_MIN:,}/s",
            value >= RATE_MIN,
        )
    ]
