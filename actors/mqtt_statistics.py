"""What the bridge tells of itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BridgeStatistics:
    """What the bridge has done since its start, and what it holds.

    `received_count` messages came; of these `rejected_topic_count` were no requests, `oversized_count` telemetry
    beyond the limit, `throttled_count` shadow requests of things that had too many in flight,
    `dropped_count` were at QoS 0 and too many, `redelivered_count` had been delivered before, `repeated_count` had even
    been acknowledged, which the broker did not hear or has forgotten. `overrun_count` times the broker handed over more
    than may wait, and the connection was replaced so that it does so again.
    `is_catching_up` while what the broker had stored still comes. `request_count` requests in `batch_count`
    batches were answered by shards, `resent_count` submissions had to be repeated. `acknowledged_count`
    messages were acknowledged, `stale_count` could not be because their connection was gone.
    `unheard_count` messages, and payloads of `unheard_bytes`, came to the broker and nobody heard of them: devices
    may not publish there (see `unheard`).
    `waiting_count` requests wait for their lane, `in_flight_count` for their shard's answer,
    `unpublished_count` messages for the broker's.
    """

    is_connected: bool
    is_catching_up: bool
    received_count: int
    rejected_topic_count: int
    oversized_count: int
    throttled_count: int
    dropped_count: int
    redelivered_count: int
    repeated_count: int
    overrun_count: int
    batch_count: int
    request_count: int
    resent_count: int
    published_count: int
    refused_publish_count: int
    acknowledged_count: int
    stale_count: int
    unheard_count: int
    unheard_bytes: int
    waiting_count: int
    in_flight_count: int
    unpublished_count: int
    reconnect_count: int
    last_shard_error: str | None
    last_broker_error: str | None
