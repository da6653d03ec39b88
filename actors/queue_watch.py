"""What the broker has dropped because a client's queue was full, and how much it keeps: it tells nobody but who asks.

A consumer of the events session. mosquitto acknowledges a message to its sender and then drops it for each subscriber
whose queue is full; its log says so once a client, without a count.
"""

from __future__ import annotations

import logging
from typing import Final

from actors.metrics import ProcessStatus
from actors.mqtt_events import EventConsumer

DROPPED_TOPIC: Final = "$SYS/broker/publish/messages/dropped"
STORED_TOPIC: Final = "$SYS/broker/store/messages/bytes"
_LOG: Final = logging.getLogger(__name__)


class QueueWatch(EventConsumer):
    """The queues of one broker, as it counts them since its start."""

    topic_filters = (DROPPED_TOPIC, STORED_TOPIC)

    def __init__(self) -> None:
        self._dropped_count = self._stored_bytes = 0

    async def on_message(self, topic: str, payload: bytes) -> None:
        """Note a figure; the broker tells one that has changed once a second."""
        if topic == STORED_TOPIC:
            self._stored_bytes = int(payload)
        elif topic == DROPPED_TOPIC:
            count = int(payload)
            if count > self._dropped_count:
                _LOG.warning(
                    "the broker has dropped %d messages: a queue is full", count - self._dropped_count
                )
            self._dropped_count = count

    def status(self) -> ProcessStatus:
        """Return the broker with these figures."""
        totals, levels = {"messages_dropped": self._dropped_count}, {"stored_bytes": self._stored_bytes}
        return ProcessStatus("broker", 0, totals=totals, levels=levels)
