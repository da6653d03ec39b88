"""The process of the MQTT bridge: `mqtt_bridge.MqttBridge` as a Ray actor, between mosquitto and the shard actors."""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from actors.actor_settings import BridgeSettings, Pulse
from actors.broker import broker_start
from actors.errors import BrokerError, WorldError
from actors.logs import log_to
from actors.mqtt_bridge import BrokerConnection, MqttBridge
from actors.mqtt_retained import read_retained
from actors.mqtt_taken import TakenMessages
from actors.ray_fleet import find_fleet
from actors.retained import RETAINABLE_FILTERS, RetainedKeeper, RetainedNotes
from actors.starts import count_start
from actors.wall_clock import WallClock
from twins.messages import Publish

# The broker keeps this session, and with it what devices sent while the bridge was away: it must stay the same.
CLIENT_ID: Final = "app.bridge"
# Messages that the broker hands over before the first of them is acknowledged; must not exceed the broker's own limit.
_RECEIVE_MAXIMUM: Final = 1000
# A dead connection is noticed after two of these.
_KEEPALIVE_S: Final = 10

# Beside the broker's own store, without which it means nothing.
_TAKEN_FILE: Final = "bridge.taken"
# As often as the broker writes down what it has; a megabyte at most.
_SYNC_EVERY_S: Final = 1.0

_LOG: Final = logging.getLogger(__name__)
_decode_messages: Final = msgspec.msgpack.Decoder(list[Publish]).decode


class BridgeActor:
    """One bridge for one broker. The constructor can't fail; `open` may be repeated."""

    def __init__(self) -> None:
        self._bridge: MqttBridge | None = None

    async def open(self, encoded: bytes) -> None:
        """Connect the broker with the shards; when this returns, devices are served."""
        await self.close()
        settings = msgspec.msgpack.decode(encoded, type=BridgeSettings)
        log_to(Path(settings.log_file))
        connection = BrokerConnection(
            host=settings.host,
            port=settings.port,
            username=settings.user_name,
            password=settings.password,
            client_id=CLIENT_ID,
            receive_maximum=_RECEIVE_MAXIMUM,
            keepalive_s=_KEEPALIVE_S,
        )
        lanes = find_fleet(settings.redis_url)
        start = await count_start(settings.redis_url, CLIENT_ID)
        home = Path(settings.broker_home)
        taken = self._taken = TakenMessages.open(home / _TAKEN_FILE, broker_start=partial(broker_start, home))
        bridge = MqttBridge(connection, lanes, source=f"{CLIENT_ID}/{start}", taken=taken)
        self._notes = RetainedNotes.open(settings.redis_url)
        keeper = self._keeper = RetainedKeeper(
            self._notes, bridge.publish, all_topics=partial(_retained_topics, connection), clock=WallClock()
        )
        bridge.listen_for_retained(keeper.saw)
        try:
            await bridge.start()
        except WorldError:
            taken.close()
            await self._notes.close()
            raise
        self._bridge = bridge
        self._tasks = [
            asyncio.create_task(each) for each in (bridge.until_failed(), keeper.run(), _keep_on_disk(taken))
        ]
        for task in self._tasks:
            task.add_done_callback(_end_process)

    async def publish(self, encoded: bytes) -> None:
        """Return when the broker has taken over messages that no device's request has brought about."""
        if self._bridge is None:
            raise BrokerError("the bridge has not been opened yet; try again", retryable=True)
        await self._bridge.publish(_decode_messages(encoded))

    async def statistics(self) -> dict[str, Any]:
        """Return what the bridge does at present, with its process id."""
        if self._bridge is None:
            return {"pid": os.getpid()}
        counts = asdict(self._bridge.statistics())
        return {"pid": os.getpid(), **counts, "retention_ended_count": self._keeper.cleared_count}

    async def pulse(self) -> bytes:
        """Return its `Pulse`: a bridge that has failed for good ends its process, so it has no other trouble."""
        return msgspec.msgpack.encode(Pulse(os.getpid(), self._bridge is not None))

    async def close(self) -> None:
        """Finish what is under way and disconnect."""
        if self._bridge is not None:
            for task in self._tasks:
                task.cancel()
            await self._bridge.stop()
            await self._notes.close()
            self._taken.close()
            self._bridge = None


async def _keep_on_disk(taken: TakenMessages) -> None:
    """Bring what is noted to the disk, again and again; one that fails or hangs stops no message."""
    problem = ""
    while True:
        await asyncio.sleep(_SYNC_EVERY_S)
        try:
            await asyncio.to_thread(taken.sync)
        except OSError as error:
            if str(error) != problem:
                _LOG.warning("what was taken from the broker is not on the disk: %s", error)
            problem = str(error)


async def _retained_topics(connection: BrokerConnection) -> list[str]:
    messages = await read_retained(connection, RETAINABLE_FILTERS)
    return [message.topic for message in messages]


def _end_process(watch: asyncio.Task[None]) -> None:
    """End this process when the bridge has failed for good: one that looks alive and serves nobody helps nobody."""
    if not watch.cancelled():
        _LOG.critical("the bridge gives up", exc_info=watch.exception())
        os._exit(1)
