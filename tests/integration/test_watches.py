"""What fills up is told before, or at least when, something is lost: the broker's queues and the store's memory."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import redis

from actors.gateway.platform_view import Readiness
from actors.mqtt_link import BrokerConnection, LinkEvents, MqttLink
from actors.mqtt_session import MqttSession
from actors.queue_watch import QueueWatch
from actors.store import RedisServer
from actors.store_watch import StoreWatch
from tests.integration.running_broker import Site
from tests.integration.test_mqtt_events import Witness, session, until
from tests.running_store import running_store
from twins.messages import Publish

MEGABYTE = 1 << 20
TOPIC = "telemetry/lamp/filling"
# A queue has room for 64 MB, of which a client that is connected and takes nothing has a window more.
PAYLOAD = b"x" * 200_000
COUNT = 600


async def leave_a_session(connection: BrokerConnection) -> None:
    """Subscribe in a lasting session and go away: from now on the broker keeps what comes for it."""
    link = MqttLink(connection, LinkEvents(lambda *_: None, lambda *_: None, lambda *_: None))
    await link.open([TOPIC])
    await link.close()


@contextlib.asynccontextmanager
async def publisher(connection: BrokerConnection) -> AsyncIterator[MqttSession]:
    # It must subscribe to something, and nobody publishes on this.
    opened = MqttSession(
        connection, ["telemetry/nobody/log"], connected=lambda _: None, arrived=lambda *_: None
    )
    await opened.open()
    try:
        yield opened
    finally:
        await opened.close()


async def test_messages_that_the_broker_drops_from_a_full_queue_are_counted(own_site: Site) -> None:
    watch = QueueWatch()
    async with session(own_site, Witness(), watch):
        assert watch.status().totals == {"messages_dropped": 0}
        await leave_a_session(own_site.connection(client_id="app.bridge-away"))
        async with publisher(own_site.connection()) as publishing:
            for _ in range(COUNT // 100):
                await publishing.publish([Publish(TOPIC, PAYLOAD)] * 100)
        await until(lambda: watch.status().totals["messages_dropped"])
        await until(lambda: watch.status().levels["stored_bytes"] > 32 * MEGABYTE)
    dropped_count = watch.status().totals["messages_dropped"]
    assert 0 < dropped_count < COUNT
    # A gateway that comes later hears it all the same, though nothing has been dropped since.
    late = QueueWatch()
    async with session(own_site, Witness(), late):
        await until(lambda: late.status().totals["messages_dropped"] == dropped_count)


async def test_a_store_that_fills_up_turns_readiness_red_before_it_is_full(tmp_path: Path) -> None:
    with running_store(tmp_path / "data", memory_max_bytes=64 * MEGABYTE) as store:
        watch = StoreWatch(store.url)
        client = redis.Redis.from_url(store.url)
        before = await watch.status()
        assert (before.state, before.reason, before.pid) == ("ready", "", store.pid)
        assert before.levels["memory_max_bytes"] == 64 * MEGABYTE
        # Each of these is taken: a store that is full would raise.
        while (filling := await watch.status()).state == "ready":
            client.rpush("filler", b"x" * MEGABYTE)
        assert filling.state == "filling"
        assert not Readiness.of([filling]).is_ready
        client.delete("filler")
        await until(lambda: client.info("memory")["used_memory"] < 32 * MEGABYTE)
        assert (await watch.status()).state == "ready"
        await watch.close()


async def test_a_store_that_does_not_answer_is_down(store: RedisServer) -> None:
    watch = StoreWatch(store.url)
    os.kill(store.pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout(20):
            status = await watch.status()
        assert status.state == "down"
        assert "does not answer" in status.reason
    finally:
        os.kill(store.pid, signal.SIGCONT)
        await watch.close()
