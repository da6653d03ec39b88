"""The bridge on the real broker: batches and their order, what it publishes, how it starts and stops.

Shards are stood in for by `Desk`, which keeps what it was given and answers when a test lets it.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from gmqtt import Client, Message
from gmqtt.mqtt.package import PublishPacket

from actors import mqtt_bridge, mqtt_link, mqtt_session
from actors.errors import BrokerError, SettingsError, ShardUnavailable, StoreError
from actors.mqtt_bridge import PAYLOAD_BYTES_MAX, BrokerConnection, MqttBridge
from actors.mqtt_link import LinkEvents, MqttLink, encode_publish
from actors.pki import generate_key_and_csr
from actors.processes import free_port
from tests.integration.bridge_stage import (
    SHARD_COUNT,
    Desk,
    ShardLanes,
    Wire,
    bridge,
    device,
    numbered,
    packet_types,
    things_of,
    until,
)
from tests.integration.raw_mqtt import MQTT_5, Connect, RawClient
from tests.integration.running_broker import DEADLINE_S, Site
from twins.messages import Publish, encode
from twins.shadow import DOCUMENT_BYTES_MAX
from twins.sharding import shard_of

# ---- batches and order ---------------------------------------------------------------------------------------------


async def test_requests_of_a_thing_reach_its_shard_in_order_each_once_and_all_are_acknowledged(
    site: Site,
) -> None:
    desk = Desk()
    names = things_of(0, 2) + things_of(1, 2)
    async with bridge(site.connection(), desk) as served:
        async with AsyncExitStack() as stack:
            senders = [await stack.enter_async_context(device(site, name)) for name in names]
            await asyncio.gather(*(each.telemetry(*numbered(400)) for each in senders))
        await until(lambda: served.statistics().acknowledged_count == 1600)
        statistics = served.statistics()
    for name in names:
        assert desk.payloads(name) == numbered(400)
    assert (statistics.received_count, statistics.request_count) == (1600, 1600)
    assert statistics.waiting_count == statistics.in_flight_count == statistics.stale_count == 0
    for lane, batches in desk.submissions:
        for shard, batch in batches:
            assert desk.lane_of(shard) == lane
            assert {shard_of(request.thing_name, SHARD_COUNT) for request in batch.requests} == {shard}


async def test_sequences_count_by_one_per_shard_under_the_source_of_the_bridge(site: Site) -> None:
    desk = Desk()
    async with bridge(site.connection(), desk), device(site, "sensor-a") as sender:
        for count in range(1, 6):
            await sender.telemetry(b"{}")
            await until(lambda: len(desk.requests) == count)  # noqa: B023  (awaited in this very turn)
    sequences = defaultdict(list)
    for _, batches in desk.submissions:
        for shard, batch in batches:
            sequences[shard, batch.source].append(batch.sequence)
    assert list(sequences.values()) == [[1, 2, 3, 4, 5]]


async def test_what_comes_while_a_lane_is_busy_leaves_together_and_never_beside_the_first(site: Site) -> None:
    desk = Desk()
    desk.close()
    async with bridge(site.connection(), desk) as served, device(site, "sensor-a") as sender:
        await sender.telemetry(b"first")
        await until(lambda: desk.submissions)
        await sender.telemetry(*numbered(50))
        await until(lambda: served.statistics().waiting_count == 50)
        assert len(desk.submissions) == 1
        desk.open()
        await until(lambda: served.statistics().acknowledged_count == 51)
    assert [len(batches[0][1].requests) for _, batches in desk.submissions] == [1, 50]


async def test_a_submission_stays_below_95_kilobytes_and_a_larger_request_goes_alone(site: Site) -> None:
    desk = Desk()
    desk.close()
    large = b"x" * 120_000
    async with bridge(site.connection(), desk) as served, device(site, "sensor-a") as sender:
        await sender.telemetry(b"first")
        await until(lambda: desk.submissions)
        await sender.telemetry(*[b"y" * 1000] * 200, large, *[b"z"] * 100)
        await until(lambda: served.statistics().waiting_count == 301)
        desk.open()
        await until(lambda: served.statistics().acknowledged_count == 302)
    sizes = [sum(len(encode(batch)) for _, batch in batches) for _, batches in desk.submissions]
    assert [size for size in sizes if size > 95_000] == [pytest.approx(120_000, abs=200)]
    assert max(size for size in sizes if size < 95_000) > 80_000
    assert [
        len(batches[0][1].requests)
        for _, batches in desk.submissions
        if batches[0][1].requests[0].payload == large
    ] == [1]
    assert desk.payloads("sensor-a")[1:] == [b"y" * 1000] * 200 + [large] + [b"z"] * 100


async def test_a_stuck_lane_does_not_stop_another(site: Site) -> None:
    desk = Desk()
    stuck, free = things_of(0, 1)[0], things_of(1, 1)[0]
    desk.gates[0].clear()
    async with (
        bridge(site.connection(), desk) as served,
        device(site, stuck) as one,
        device(site, free) as other,
    ):
        await one.telemetry(*numbered(30))
        await until(lambda: desk.payloads(stuck))
        await other.telemetry(*numbered(300))
        await until(lambda: served.statistics().acknowledged_count == 300)
        assert desk.payloads(free) == numbered(300)
        desk.open()
        await until(lambda: served.statistics().acknowledged_count == 330)
    assert desk.payloads(stuck) == numbered(30)


@pytest.mark.parametrize("failure", [ShardUnavailable(3, "it restarts"), TimeoutError()])
async def test_a_submission_without_an_answer_is_repeated_unchanged(site: Site, failure: Exception) -> None:
    desk = Desk()
    desk.failures = [failure, failure]
    async with bridge(site.connection(), desk) as served, device(site, "sensor-a") as sender:
        await sender.telemetry(*numbered(20))
        await until(lambda: served.statistics().acknowledged_count == 20)
        assert served.statistics().resent_count == 2
        assert served.statistics().last_shard_error
    assert desk.submissions[0] == desk.submissions[1] == desk.submissions[2]


async def test_an_error_that_lasts_ends_the_bridge_for_all_to_see(site: Site) -> None:
    desk = Desk()
    desk.failures = [StoreError("the journal is of another version")]
    async with bridge(site.connection(), desk) as served, device(site, "sensor-a") as sender:
        await sender.telemetry(b"{}")
        with pytest.raises(StoreError):
            async with asyncio.timeout(DEADLINE_S):
                await served.until_failed()
        assert served.statistics().acknowledged_count == 0


async def test_topics_that_ask_for_nothing_are_acknowledged_counted_and_ignored(site: Site) -> None:
    desk = Desk()
    async with bridge(site.connection(), desk) as served, device(site, "sensor-a") as sender:
        await sender.telemetry(b"{}", b"{}", stream="with//gap")
        await until(lambda: served.statistics().acknowledged_count == 2)
        assert served.statistics().rejected_topic_count == 2
    assert desk.submissions == []


async def test_a_certificate_that_bears_its_id_brings_no_twin_of_that_name_into_being(
    site: Site, tmp_path: Path
) -> None:
    desk = Desk()
    pair = generate_key_and_csr("")
    issued = site.authority.issue_unnamed(pair.csr_pem)
    file = tmp_path / "device.pem"
    file.write_text(issued.certificate_pem + pair.private_key_pem)
    raw = RawClient.of(site.broker.port, site.authority.ca_file, certificate=file)
    name = issued.certificate_id
    topics = [f"telemetry/{name}/climate"]
    topics += [f"$aws/things/{name}/{rest}" for rest in ("shadow/update", "shadow/name/config/get")]
    async with bridge(site.connection(), desk) as served:
        with raw.session(Connect(b"any", version=MQTT_5)) as session:
            # The access list knows no better: 0 says that somebody has heard it.
            assert [session.publish(topic, b"{}") for topic in topics] == [0, 0, 0]
        await until(lambda: served.statistics().acknowledged_count == 3)
        assert served.statistics().rejected_topic_count == 3
    assert desk.submissions == []


@pytest.mark.parametrize("qos", [0, 1])
async def test_telemetry_larger_than_the_limit_is_acknowledged_counted_and_dropped(
    site: Site, qos: int
) -> None:
    desk = Desk()
    largest = b"x" * PAYLOAD_BYTES_MAX
    shadow = "$aws/things/sensor-a/shadow/update"
    async with bridge(site.connection(), desk) as served, device(site, "sensor-a") as sender:
        await sender.telemetry(largest + b"x", largest, qos=qos)
        # The shard answers it: the device hears why it is refused.
        sender.publish(shadow, largest + b"x")
        await until(lambda: len(desk.requests) == 2)
        await until(lambda: served.statistics().acknowledged_count == 1 + 2 * qos)
        assert served.statistics().oversized_count == 1
    assert [len(request.payload) for request in desk.requests] == [PAYLOAD_BYTES_MAX, PAYLOAD_BYTES_MAX + 1]


# ---- publishing ----------------------------------------------------------------------------------------------------


async def test_five_thousand_messages_are_published_in_order(site: Site) -> None:
    topic = "$aws/things/sensor-a/shadow/update/documents"
    async with bridge(site.connection(), Desk()) as served, device(site, "sensor-a") as listener:
        await listener.subscribe(topic)
        halves = [[Publish(topic, each) for each in numbered(2500, first)] for first in (0, 2500)]
        await asyncio.gather(*map(served.publish, halves))
        statistics = served.statistics()
        assert (statistics.published_count, statistics.unpublished_count) == (5000, 0)
        await until(lambda: len(listener.received) >= 5000)
    assert [payload for _, payload in listener.received] == numbered(5000)


async def test_no_more_messages_are_under_way_than_the_broker_takes(tmp_path: Path) -> None:
    async with broker_with(tmp_path, "max_inflight_messages 20") as port, Wire(port).laid() as wire:
        async with bridge(BrokerConnection("127.0.0.1", wire.port), Desk()) as served:
            # The marker comes back before it is acknowledged; until then it takes one of the twenty places.
            await until(
                lambda: not served.statistics().is_catching_up and not served.statistics().unpublished_count
            )
            first_count = packet_types(wire.sent).count(0x32)
            wire.answers.clear()
            publishing = asyncio.create_task(
                served.publish([Publish("some/topic", each) for each in numbered(500)])
            )
            await until(lambda: packet_types(wire.sent).count(0x32) >= first_count + 20)
            assert served.statistics().unpublished_count == 500
            assert packet_types(wire.sent).count(0x32) == first_count + 20
            assert not publishing.done()
            wire.answers.set()
            await asyncio.wait_for(publishing, DEADLINE_S)
        assert packet_types(wire.sent).count(0x32) == first_count + 500


async def test_messages_under_way_when_the_connection_broke_are_sent_again_in_order(site: Site) -> None:
    topic = "$aws/things/sensor-a/shadow/update/documents"
    async with (
        Wire(site.broker.internal.port).laid() as wire,
        bridge(site.connection(port=wire.port), Desk()) as served,
        device(site, "sensor-a") as listener,
    ):
        await listener.subscribe(topic)
        wire.answers.clear()
        publishing = asyncio.create_task(served.publish([Publish(topic, each) for each in numbered(1000)]))
        await until(lambda: len(listener.received) >= 100)
        wire.cut()
        wire.answers.set()
        await asyncio.wait_for(publishing, DEADLINE_S)
        await until(lambda: listener.received and listener.received[-1][1] == numbered(1, 999)[0])
    payloads = [payload for _, payload in listener.received]
    assert list(dict.fromkeys(payloads)) == numbered(1000)
    assert len(payloads) > 1000


async def test_a_message_that_the_broker_would_not_take_is_counted_and_holds_nothing_up(site: Site) -> None:
    topic = "$aws/things/sensor-a/shadow/update/documents"
    async with bridge(site.connection(), Desk()) as served, device(site, "sensor-a") as listener:
        await listener.subscribe(topic)
        messages = [
            Publish(topic, b"x" * 300_000),
            Publish("$forbidden/to/the/bridge", b"{}"),
            Publish(topic, b"{}"),
        ]
        await asyncio.wait_for(served.publish(messages), DEADLINE_S)
        statistics = served.statistics()
        assert (statistics.published_count, statistics.refused_publish_count) == (1, 2)
        assert statistics.reconnect_count == 0
        assert "forbidden/to/the/bridge" in (statistics.last_broker_error or "")
        await until(lambda: listener.received == [(topic, b"{}")])


async def test_publishing_waits_while_too_much_is_under_way(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt_session, "BACKLOG_BYTES_MAX", 50_000)
    message = Publish("$aws/things/sensor-a/shadow/update/documents", b"x" * 1000)
    async with (
        Wire(site.broker.internal.port).laid() as wire,
        bridge(site.connection(port=wire.port), Desk()) as served,
    ):
        wire.answers.clear()
        callers = [asyncio.create_task(served.publish([message])) for _ in range(100)]
        await until(lambda: served.statistics().unpublished_count > 30)
        assert served.statistics().unpublished_count < 50
        wire.answers.set()
        await asyncio.wait_for(asyncio.gather(*callers), DEADLINE_S)
        assert served.statistics().published_count == 100


# ---- starting and stopping -----------------------------------------------------------------------------------------


async def test_a_device_that_updates_its_shadow_is_answered(site: Site) -> None:
    prefix = "$aws/things/sensor-a/shadow/update"
    async with bridge(site.connection(), ShardLanes()), device(site, "sensor-a") as sender:
        await sender.subscribe(f"{prefix}/accepted")
        await sender.subscribe(f"{prefix}/documents")
        sender.publish(prefix, b'{"state":{"reported":{"temperature":21}}}')
        await until(lambda: len(sender.received) == 2)
    assert {topic for topic, _ in sender.received} == {f"{prefix}/accepted", f"{prefix}/documents"}


async def test_the_largest_documents_of_a_shadow_pass_the_broker(site: Site) -> None:
    prefix = "$aws/things/sensor-a/shadow/update"
    # The most time stamps: elements of one digit, as many as the state's 8192 bytes take.
    empty = b'{"desired":{},"reported":{"a":[]}}'
    count = (DOCUMENT_BYTES_MAX - len(empty)) // 2
    # The client token is 64 bytes long, each of which JSON writes as six.
    token = "\\u0001" * 64
    update = b'{"state":{"reported":{"a":[%s]}},"clientToken":"%s"}' % (
        b",".join([b"1"] * count),
        token.encode(),
    )
    async with bridge(site.connection(), ShardLanes()) as served, device(site, "sensor-a") as sender:
        await sender.subscribe(f"{prefix}/documents")
        for _ in range(2):
            sender.publish(prefix, update)
        await until(lambda: len(sender.received) == 2)
        assert served.statistics().refused_publish_count == 0
    assert 220_000 < len(sender.received[1][1]) < 221_184 + 1024


async def test_a_stopped_bridge_has_finished_what_was_under_way(site: Site) -> None:
    answer = Publish("$aws/things/sensor-a/shadow/update/accepted", b"{}")
    connection, desk = site.connection(), Desk(lambda _request: [answer])
    desk.close()
    async with device(site, "sensor-a") as sender:
        async with bridge(connection, desk) as served:
            await sender.telemetry(*numbered(100))
            await until(lambda: served.statistics().received_count == 100)
            asyncio.get_running_loop().call_later(0.1, desk.open)
        statistics = served.statistics()
        assert statistics.acknowledged_count == statistics.published_count == 100
        assert not statistics.is_connected
        with pytest.raises(BrokerError):
            await served.publish([answer])
        await sender.telemetry(b"later")
    later = Desk()
    async with bridge(connection, later):
        await until(lambda: later.requests)
    assert later.payloads("sensor-a") == [b"later"]


async def test_what_a_stopped_bridge_could_not_finish_comes_after_the_next_start(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt_bridge, "DRAIN_TIMEOUT_S", 0.2)
    connection, desk = site.connection(), Desk()
    desk.close()
    async with device(site, "sensor-a") as sender, bridge(connection, desk) as served:
        await sender.telemetry(*numbered(10))
        await until(lambda: served.statistics().received_count == 10)
    later = Desk()
    async with bridge(connection, later) as served:
        await until(lambda: served.statistics().acknowledged_count == 10)
    assert later.payloads("sensor-a") == numbered(10)


@asynccontextmanager
async def broker_with(directory: Path, *options: str) -> AsyncIterator[int]:
    """Run a bare mosquitto that admits everybody on loopback, with more lines of configuration."""
    port = free_port()
    lines = [f"listener {port} 127.0.0.1", "allow_anonymous true", "user root", *options]
    (directory / "mosquitto.conf").write_text("\n".join(lines) + "\n")
    command = ["mosquitto", "-c", str(directory / "mosquitto.conf")]
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin"}
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log, env=environment)
    try:
        await until(lambda: b"running" in (directory / "log").read_bytes())
        yield port
    finally:
        process.kill()
        process.wait()


async def test_a_broker_that_grants_less_than_qos_1_is_refused(tmp_path: Path) -> None:
    async with broker_with(tmp_path, "max_qos 0") as port:
        with pytest.raises(BrokerError, match="does not grant"):
            await MqttBridge(BrokerConnection("127.0.0.1", port), Desk(), source="test").start()


async def test_a_refused_subscription_is_an_error_at_start(tmp_path: Path) -> None:
    plugin = next(Path("/usr/lib").glob("**/mosquitto_dynamic_security.so"))
    (tmp_path / "rules.json").write_text('{"defaultACLAccess": {"subscribe": false}}')
    options = (f"plugin {plugin}", f"plugin_opt_config_file {tmp_path / 'rules.json'}")
    async with broker_with(tmp_path, *options) as port:
        with pytest.raises(BrokerError, match=r"telemetry/\+/#.*135"):
            await MqttBridge(BrokerConnection("127.0.0.1", port), Desk(), source="test").start()


async def test_a_wrong_password_is_an_error_at_start_that_does_not_show_it(site: Site) -> None:
    internal = site.broker.internal
    connection = BrokerConnection(internal.host, internal.port, internal.user_name, "wrong-password")
    with pytest.raises(BrokerError, match="password") as caught:
        await MqttBridge(connection, Desk(), source="test").start()
    assert not caught.value.retryable
    assert "wrong-password" not in f"{caught.value} {connection}"


async def test_a_broker_that_is_not_there_is_an_error_at_start() -> None:
    with pytest.raises(BrokerError, match="cannot be reached") as caught:
        await MqttBridge(BrokerConnection("127.0.0.1", free_port()), Desk(), source="test").start()
    assert caught.value.retryable


async def test_a_broker_that_does_not_answer_is_an_error_at_start(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt_link, "CONNECT_TIMEOUT_S", 0.3)
    async with Wire(site.broker.internal.port).laid() as wire:
        wire.is_silent = True
        with pytest.raises(BrokerError, match="did not answer"):
            await MqttBridge(site.connection(port=wire.port), Desk(), source="test").start()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("port", 0),
        ("receive_maximum", 9),
        ("receive_maximum", 20_001),
        ("keepalive_s", 61),
        ("client_id", ""),
    ],
)
def test_a_connection_out_of_bounds_is_refused_by_name(key: str, value: int | str) -> None:
    with pytest.raises(SettingsError, match=key):
        BrokerConnection(**{"host": "127.0.0.1", "port": 1883, key: value})  # type: ignore[arg-type]  # the point


# ---- gmqtt ---------------------------------------------------------------------------------------------------------


async def test_the_private_names_of_gmqtt_that_a_link_uses_are_where_they_were(site: Site) -> None:
    """What would otherwise be set beside the point, in silence."""
    plain = Client("plain")
    handler = plain._package_handler
    for name in (
        "_reconnect_callback",
        "_handle_publish_packet",
        "_handle_puback_packet",
        "_connack_properties",
    ):
        assert hasattr(handler, name), name
    assert {"_connection", "_connack_received"} <= vars(plain).keys()
    link = MqttLink(site.connection(), LinkEvents(lambda *_: None, lambda *_: None, lambda *_: None))
    await link.open(["telemetry/+/#"])
    wire = link._client._connection
    assert wire is handler_of(link).current_connection
    assert callable(wire.send_package)
    assert callable(wire._transport.abort)
    assert link.silence_s < DEADLINE_S
    assert link.broker_receive_maximum == 1000
    await link.close()


def handler_of(link: MqttLink) -> Any:
    return link._client._package_handler


@pytest.mark.parametrize("size_bytes", [0, 1, 100, 128, 16_000, 20_000, 3_000_000])
def test_a_publish_packet_is_the_one_that_gmqtt_encodes(size_bytes: int) -> None:
    class Protocol:
        proto_ver = 5

        class id_generator:  # noqa: N801  (gmqtt's name)
            next_id = staticmethod(lambda: 513)

    topic, payload = "telemetry/gerät/ä", b"x" * size_bytes
    _, expected = PublishPacket.build_package(Message(topic, payload, qos=1), Protocol)
    assert encode_publish(topic, payload, 513) == bytes(expected)
