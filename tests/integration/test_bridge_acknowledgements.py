"""The bridge on the real broker: what is acknowledged when, and so survives which death; what it holds meanwhile.

Shards are stood in for by `Desk`, which keeps what it was given and answers when a test lets it.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from actors import mqtt_bridge
from actors.broker import broker_start
from actors.mqtt_bridge import BrokerConnection, MqttBridge
from actors.mqtt_taken import TakenMessages
from tests.integration.bridge_stage import (
    Desk,
    ShardLanes,
    Wire,
    bridge,
    device,
    numbered,
    packet_types,
    until,
)
from tests.integration.running_broker import Site
from twins.messages import Batch, Outcome, Publish


async def test_the_receive_window_bounds_what_the_bridge_holds(site: Site) -> None:
    desk = Desk()
    desk.close()
    async with (
        bridge(site.connection(receive_maximum=10), desk) as served,
        device(site, "sensor-a") as sender,
    ):
        await until(
            lambda: not served.statistics().is_catching_up and not served.statistics().unpublished_count
        )
        await sender.telemetry(*numbered(200))
        await until(lambda: served.statistics().received_count >= 9)
        # Another client's round trip: what the broker would have sent meanwhile has arrived.
        async with device(site, "sensor-b") as other:
            await other.telemetry(b"{}")
        statistics = served.statistics()
        # One place may have been the marker's, for whose acknowledgement mosquitto hands over ten more.
        assert statistics.received_count == statistics.waiting_count + statistics.in_flight_count < 20
        desk.open()
        await until(lambda: served.statistics().acknowledged_count == 201)
    assert desk.payloads("sensor-a") == numbered(200)


async def test_what_the_broker_hands_over_beyond_all_windows_is_bounded_and_carried_out_in_order(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt_bridge, "WINDOWED_BYTES_MAX", 1000)
    desk = Desk()
    desk.close()
    held_max = 0

    def count() -> int:
        nonlocal held_max
        statistics = served.statistics()
        held_max = max(held_max, statistics.waiting_count + statistics.in_flight_count)
        return statistics.acknowledged_count

    async with (
        bridge(site.connection(receive_maximum=10), desk) as served,
        device(site, "sensor-a") as sender,
    ):
        for first in range(0, 400, 200):
            await sender.telemetry(*numbered(200, first))
        desk.open()
        await until(lambda: count() == 400)
        # Each counts as 47 bytes and more.
        assert held_max <= 1000 // 47
        assert served.statistics().overrun_count > 0
    assert desk.payloads("sensor-a") == numbered(400)


async def test_requests_that_a_cut_connection_brings_again_are_carried_out_once_and_in_order(
    site: Site,
) -> None:
    desk = Desk()
    desk.close()
    async with (
        Wire(site.broker.internal.port).laid() as wire,
        device(site, "sensor-a") as sender,
        bridge(site.connection(port=wire.port), desk) as served,
    ):
        await sender.telemetry(b"first")
        await until(lambda: desk.submissions)
        await sender.telemetry(*numbered(20))
        await until(lambda: served.statistics().waiting_count == 20)
        wire.cut()
        await until(lambda: served.statistics().redelivered_count == 21)
        # The next connection breaks before anything comes again.
        subscribe_count = packet_types(wire.sent).count(0x82)
        wire.is_first_answer_only = True
        wire.cut()
        await until(lambda: packet_types(wire.sent).count(0x82) > subscribe_count)
        wire.is_first_answer_only = False
        wire.cut()
        await until(lambda: served.statistics().redelivered_count == 42)
        assert (served.statistics().waiting_count, served.statistics().acknowledged_count) == (20, 0)
        desk.open()
        await until(lambda: served.statistics().acknowledged_count == 21)
        assert served.statistics().received_count == 63
    assert desk.payloads("sensor-a") == [b"first", *numbered(20)]


async def test_a_request_that_was_answered_while_the_connection_was_gone_is_acknowledged_when_it_comes_again(
    site: Site,
) -> None:
    desk = Desk()
    desk.close()
    async with (
        Wire(site.broker.internal.port).laid() as wire,
        device(site, "sensor-a") as sender,
        bridge(site.connection(port=wire.port), desk) as served,
    ):
        await sender.telemetry(b"{}")
        await until(lambda: desk.submissions)
        wire.answers.clear()
        wire.cut()
        await until(lambda: not served.statistics().is_connected)
        desk.open()
        await until(lambda: served.statistics().stale_count == 1)
        wire.answers.set()
        await until(lambda: served.statistics().acknowledged_count == 1)
    assert len(desk.requests) == 1


async def test_a_bridge_killed_in_mid_batch_loses_nothing(site: Site) -> None:
    connection = site.connection()
    command = [
        sys.executable,
        __file__,
        str(connection.port),
        connection.password or "",
        connection.client_id,
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(mqtt_bridge.__file__).parents[1])}
    # Starting takes milliseconds, reading does not.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    lines = asyncio.to_thread
    assert await lines(process.stdout.readline) == b"ready\n"
    try:
        async with device(site, "sensor-a") as sender:
            await sender.telemetry(*numbered(100))
            assert await lines(process.stdout.readline) == b"submitted\n"
    finally:
        process.kill()
        await lines(process.wait)
        process.stdout.close()
    desk = Desk()
    async with bridge(connection, desk) as served:
        await until(lambda: served.statistics().acknowledged_count == 100)
    assert desk.payloads("sensor-a") == numbered(100)


async def test_a_request_is_acknowledged_after_the_broker_took_its_answers_over(site: Site) -> None:
    answer = Publish("$aws/things/sensor-a/shadow/update/accepted", b"{}")
    desk = Desk(lambda _request: [answer, answer])
    desk.close()
    async with (
        Wire(site.broker.internal.port).laid() as wire,
        device(site, "sensor-a") as sender,
        bridge(site.connection(port=wire.port), desk) as served,
    ):
        await sender.subscribe(answer.topic)
        await sender.telemetry(b"{}")
        await until(lambda: desk.submissions)
        wire.answers.clear()
        desk.open()
        # The broker has the answers and the device too, but its word for that does not come through.
        await until(lambda: len(sender.received) == 2)
        assert served.statistics().acknowledged_count == 0
        assert served.statistics().unpublished_count == 2
        wire.cut()
        wire.answers.set()
        # Sent again because nobody knows whether they arrived; the request that comes again waits for that.
        await until(lambda: served.statistics().acknowledged_count == 1)
        await until(lambda: len(sender.received) == 4)
    assert len(desk.requests) == 1


async def test_an_update_carried_out_before_its_bridge_died_is_carried_out_again_unless_it_named_its_version(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hanging(ShardLanes):
        """Shards that do all they are told, and a way back on which the answer gets lost with the bridge."""

        async def submit(self, lane: int, batches: Sequence[tuple[int, Batch]]) -> Outcome:
            await super().submit(lane, batches)
            await asyncio.Event().wait()
            raise AssertionError

    monkeypatch.setattr(mqtt_bridge, "DRAIN_TIMEOUT_S", 0.2)
    shadow = "$aws/things/sensor-a/shadow"
    connection, lanes = site.connection(), Hanging()
    async with device(site, "sensor-a") as sender:
        await sender.subscribe(f"{shadow}/+/+")
        async with bridge(connection, lanes) as served:
            sender.publish(f"{shadow}/update", b'{"state":{"reported":{"a":1}}}')
            await until(lambda: served.statistics().in_flight_count == 1)
        async with bridge(connection, ShardLanes.sharing(lanes)):
            await until(lambda: len(sender.received) == 2)
            # The second time: the version tells, the state does not.
            assert json.loads(sender.received[0][1])["version"] == 2
        sender.received.clear()
        async with bridge(connection, lanes) as served:
            sender.publish(f"{shadow}/update", b'{"state":{"reported":{"a":2}},"version":2}')
            await until(lambda: served.statistics().in_flight_count == 1)
        async with bridge(connection, ShardLanes.sharing(lanes)):
            await until(lambda: sender.received)
            assert sender.received[0][0] == f"{shadow}/update/rejected"
            assert json.loads(sender.received[0][1])["code"] == 409
            # Whoever is refused asks, and finds what it wanted.
            sender.received.clear()
            sender.publish(f"{shadow}/get", b"")
            await until(lambda: sender.received)
            document = json.loads(sender.received[0][1])
            assert (document["state"], document["version"]) == ({"reported": {"a": 2}}, 3)


def saved_messages(site: Site) -> bytes:
    saved = site.directory.mosquitto / "mosquitto.db"
    return saved.read_bytes() if saved.exists() else b""


@pytest.mark.parametrize("is_session_kept", [True, False])
async def test_a_broker_killed_and_started_again_costs_no_request_and_gets_no_acknowledgement_of_before(
    own_site: Site, *, is_session_kept: bool
) -> None:
    desk = Desk()
    desk.close()
    before, unsaved, after = numbered(5), numbered(5, 5), numbered(5, 10)
    async with bridge(own_site.connection(), desk) as served:
        async with device(own_site, "sensor-a") as sender:
            await sender.telemetry(b"first")
            await until(lambda: desk.submissions)
            await sender.telemetry(*before)
            await until(lambda: all(each in saved_messages(own_site) for each in (b"first", *before)))
            await sender.telemetry(*unsaved)
            await until(lambda: served.statistics().waiting_count == 10)
        own_site.kill_broker()
        if not is_session_kept:
            (own_site.directory.mosquitto / "mosquitto.db").unlink()
        own_site.broker.spawn()
        await asyncio.to_thread(own_site.broker.wait_until_ready)
        await until(lambda: served.statistics().is_connected)
        async with device(own_site, "sensor-a") as sender:
            # These get packet ids that were in use before.
            await sender.telemetry(*after)
            await until(lambda: served.statistics().waiting_count >= 15)
            assert served.statistics().acknowledged_count == 0
            desk.open()
            await until(lambda: served.statistics().request_count == 16)
            await until(lambda: served.statistics().acknowledged_count == (11 if is_session_kept else 5))
        assert served.statistics().reconnect_count == 1
    assert desk.payloads("sensor-a") == [b"first", *before, *unsaved, *after]


async def test_what_a_killed_broker_has_forgotten_is_known_to_the_next_bridge(own_site: Site) -> None:
    home, connection = own_site.directory.mosquitto, own_site.connection()
    database = home / "mosquitto.db"
    switched = [b'{"on":true}', b'{"on":false}']
    desk = Desk()
    with closing(TakenMessages.open(home / "taken", broker_start=partial(broker_start, home))) as taken:
        async with bridge(connection, desk, taken=taken) as served:
            await until(lambda: not served.statistics().is_catching_up)
            desk.close()
            async with device(own_site, "sensor-a") as sender:
                await sender.telemetry(*switched)
                # As the broker had saved it before it heard any acknowledgement.
                await until(lambda: all(each in saved_messages(own_site) for each in switched))
                saved = saved_messages(own_site)
                desk.open()
                await sender.telemetry(b"unsaved")
                await until(lambda: served.statistics().acknowledged_count == 3)
            own_site.kill_broker()
    database.write_bytes(saved)
    own_site.broker.spawn()
    await asyncio.to_thread(own_site.broker.wait_until_ready)
    async with device(own_site, "sensor-a") as sender:
        # It gets packet ids that were in use before, and what it brings waits for a bridge.
        await sender.telemetry(b"unsaved", b"new")
    with closing(TakenMessages.open(home / "taken", broker_start=partial(broker_start, home))) as taken:
        async with bridge(connection, desk, taken=taken) as served:
            await until(lambda: desk.payloads("sensor-a")[-1:] == [b"new"])
            assert served.statistics().repeated_count == 2
    assert desk.payloads("sensor-a") == [*switched, b"unsaved", b"unsaved", b"new"]


async def test_a_silent_link_is_given_up_and_replaced(site: Site) -> None:
    desk = Desk()
    async with (
        Wire(site.broker.internal.port).laid() as wire,
        bridge(site.connection(port=wire.port, keepalive_s=2), desk) as served,
        device(site, "sensor-a") as sender,
    ):
        wire.is_silent = True
        await until(lambda: not served.statistics().is_connected)
        assert "silent" in (served.statistics().last_broker_error or "")
        wire.cut()
        wire.is_silent = False
        await sender.telemetry(*numbered(3))
        await until(lambda: served.statistics().acknowledged_count == 3)


async def test_messages_at_qos_0_are_carried_out_and_dropped_beyond_a_bound(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt_bridge, "UNWINDOWED_BYTES_MAX", 1000)
    desk = Desk()
    desk.close()
    async with bridge(site.connection(), desk) as served, device(site, "sensor-a") as sender:
        # While one is under way none of the rest is taken, in however many pieces it arrives.
        await sender.telemetry(b"first", qos=0)
        await until(lambda: desk.requests)
        await sender.telemetry(*numbered(100), qos=0)
        await sender.telemetry(b"last")
        await until(lambda: served.statistics().received_count == 102)
        dropped_count = served.statistics().dropped_count
        desk.open()
        await until(lambda: desk.payloads("sensor-a")[-1] == b"last")
        assert 0 < dropped_count < 100
        await until(lambda: served.statistics().acknowledged_count == 1)
        # What was carried out makes room.
        await sender.telemetry(b"more", qos=0)
        await until(lambda: desk.payloads("sensor-a")[-1] == b"more")
    assert len(desk.requests) == 103 - dropped_count
    assert desk.payloads("sensor-a")[1:-2] == numbered(100 - dropped_count)


async def _be_killed(port: int, password: str, client_id: str) -> None:
    """Serve as a bridge whose shards never answer, in the process that the test kills."""
    desk = Desk()
    desk.close()
    await MqttBridge(
        BrokerConnection("127.0.0.1", port, "app.bridge", password, client_id), desk, source="1"
    ).start()
    os.write(1, b"ready\n")
    await until(lambda: len(desk.requests) > 0)
    os.write(1, b"submitted\n")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_be_killed(int(sys.argv[1]), sys.argv[2], sys.argv[3]))
