"""The gateway's ear at the broker, put together: the events session, presence, and whoever else has to know."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import Final

from actors.broker import broker_log_file, events_listener
from actors.fleet import Fleet
from actors.mqtt_events import CLIENT_ID, EventConsumer, EventsSession
from actors.mqtt_link import BrokerConnection
from actors.presence import Presence, PresenceStore
from actors.registry.registry import Registry
from twins.clock import Clock

_LOG: Final = logging.getLogger(__name__)


class BrokerEvents:
    """The events session of a gateway, with presence as its first consumer."""

    def __init__(
        self, data_dir: Path, redis_url: str, *, registry: Registry, fleet: Fleet, clock: Clock
    ) -> None:
        listener = events_listener(data_dir)
        self.session: Final = EventsSession(
            BrokerConnection(listener.host, listener.port, listener.user_name, listener.password, CLIENT_ID),
            log_file=broker_log_file(data_dir),
            clock=clock,
        )
        self._store = PresenceStore(redis_url)
        self.presence: Final = Presence(
            self._store, registry.certificates, publish=self.session.publish, ask_many=fleet.ask_many
        )
        self._position: str | None = None
        self._watch: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Make `away` known, before `start`; StoreError if the store does not answer."""
        self._position = await self.presence.open()
        self.session.look_from(self._position)

    def away(self) -> list[str]:
        """Return the common names that came with MQTT 5 last and are not connected, as the log says at this moment."""
        return self.presence.away(self.session.ahead())

    async def start(self, *consumers: EventConsumer) -> None:
        """Begin to hear, and to tell first presence, then `consumers`.

        BrokerError or StoreError if the broker or the store does not answer. When the session fails for good later,
        this process ends.
        """
        for consumer in (self.presence, *consumers):
            self.session.add_consumer(consumer)
        if self._position is None:
            await self.open()
        await self.session.start(self._position or "")
        self._watch = asyncio.create_task(self.session.until_failed(), name="events watch")
        self._watch.add_done_callback(_end_process)

    async def close(self) -> None:
        """Finish what has arrived and disconnect; what happens from now on is told after the next start."""
        if self._watch is not None:
            self._watch.cancel()
        await self.session.stop()
        await self._store.close()


def _end_process(watch: asyncio.Task[None]) -> None:
    """End this process when the session has failed for good: a gateway that does not hear looks alive and is not."""
    if not watch.cancelled():
        _LOG.critical("the events session gives up", exc_info=watch.exception())
        os._exit(1)
