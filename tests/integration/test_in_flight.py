"""Ten shadow requests of a thing are in flight at the bridge: what becomes of the others, on the real broker."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from actors.mqtt_bridge import MARKER_TOPIC, MqttBridge
from actors.mqtt_session import MqttSession
from tests.integration.bridge_stage import Desk, Device, Wire, bridge, device, numbered, until
from tests.integration.running_broker import Site
from twins.messages import SHADOW_OPERATION, Operation, Publish, Request
from twins.topics import shadow_prefix

VERB = {operation: verb for verb, operation in SHADOW_OPERATION.items()}


def accepting(request: Request) -> list[Publish]:
    """Answer as a shard does, with the payload as it came."""
    if request.operation is Operation.TELEMETRY:
        return []
    topic = f"{shadow_prefix(request.thing_name, request.name)}/{VERB[request.operation]}/accepted"
    return [Publish(topic, request.payload)]


def closed_desk() -> Desk:
    desk = Desk(accepting)
    desk.close()
    return desk


async def hear(asking: Device, name: str) -> None:
    for prefix in (shadow_prefix(name), shadow_prefix(name, "config")):
        await asking.subscribe(f"{prefix}/+/accepted")
        await asking.subscribe(f"{prefix}/+/rejected")


def ask(asking: Device, name: str, *numbers: int, verb: str = "update", shadow: str = "") -> None:
    for number in numbers:
        payload = json.dumps({"state": {"reported": {"n": number}}, "clientToken": str(number)}).encode()
        asking.publish(f"{shadow_prefix(name, shadow)}/{verb}", payload)


def bodies(asking: Device, end: str) -> list[Any]:
    return [json.loads(payload) for topic, payload in asking.received if topic.endswith(end)]


def tokens(asking: Device, end: str) -> list[int]:
    return [int(body["clientToken"]) for body in bodies(asking, end)]


def caught_up(served: MqttBridge) -> bool:
    return not served.statistics().is_catching_up


# ---- what is refused -----------------------------------------------------------------------------------------------


async def test_of_a_burst_of_fifty_ten_are_taken_the_rest_hear_429_at_once_and_none_is_left_without_answer(
    site: Site,
) -> None:
    desk = closed_desk()
    async with bridge(site.connection(), desk) as served, device(site, "dev-a") as burst:
        await until(lambda: caught_up(served))
        await hear(burst, "dev-a")
        ask(burst, "dev-a", *range(50))
        # While nothing has been answered yet.
        await until(lambda: len(bodies(burst, "/rejected")) == 40)
        assert tokens(burst, "/update/rejected") == list(range(10, 50))
        refusal = bodies(burst, "/rejected")[0]
        assert refusal.pop("timestamp") > 1_700_000_000
        assert refusal == {"code": 429, "message": "TOO_MANY_REQUESTS", "clientToken": "10"}
        assert bodies(burst, "/accepted") == []
        statistics = served.statistics()
        assert (statistics.throttled_count, statistics.acknowledged_count) == (40, 40)
        desk.open()
        await until(lambda: tokens(burst, "/update/accepted") == list(range(10)))
        await until(lambda: served.statistics().acknowledged_count == 50)
        # Whoever has been answered may ask again.
        desk.close()
        ask(burst, "dev-a", *range(50, 61))
        await until(lambda: tokens(burst, "/update/rejected")[40:] == [60])
        desk.open()
        await until(lambda: len(tokens(burst, "/update/accepted")) == 20)
    assert len(desk.requests) == 20


async def test_all_shadows_and_operations_of_a_thing_count_together_and_nothing_else_does(site: Site) -> None:
    desk = closed_desk()
    async with (
        bridge(site.connection(), desk) as served,
        device(site, "dev-a") as busy,
        device(site, "dev-b") as other,
    ):
        await until(lambda: caught_up(served))
        await hear(busy, "dev-a")
        await hear(other, "dev-b")
        await busy.telemetry(*numbered(30))
        ask(busy, "dev-a", *range(4))
        ask(busy, "dev-a", *range(4, 8), verb="get", shadow="config")
        ask(busy, "dev-a", *range(8, 12), verb="delete")
        ask(busy, "dev-a", 12, verb="get", shadow="config")
        await until(lambda: served.statistics().throttled_count == 3)
        await busy.telemetry(*numbered(30))
        ask(other, "dev-b", *range(10))
        await until(lambda: served.statistics().received_count == 83)
        assert served.statistics().throttled_count == 3
        assert tokens(busy, "shadow/delete/rejected") == [10, 11]
        assert tokens(busy, "shadow/name/config/get/rejected") == [12]
        desk.open()
        await until(lambda: len(bodies(other, "/accepted")) == 10)
        await until(lambda: served.statistics().acknowledged_count == 83)
    assert Counter(request.operation for request in desk.requests)[Operation.TELEMETRY] == 60


async def test_requests_at_qos_0_are_refused_as_well(site: Site) -> None:
    desk = closed_desk()
    async with bridge(site.connection(), desk) as served, device(site, "dev-a") as burst:
        await until(lambda: caught_up(served))
        await hear(burst, "dev-a")
        for number in range(15):
            payload = json.dumps({"clientToken": str(number)}).encode()
            burst.publish("$aws/things/dev-a/shadow/get", payload, qos=0)
        await until(lambda: tokens(burst, "/get/rejected") == list(range(10, 15)))
        desk.open()
        await until(lambda: tokens(burst, "/get/accepted") == list(range(10)))
        assert served.statistics().acknowledged_count == 0


@pytest.mark.parametrize("payload", [b"", b"no JSON", b"\xff", b"[1]", b'{"clientToken":1}'])
async def test_a_request_without_a_token_is_refused_without_one(site: Site, payload: bytes) -> None:
    desk = closed_desk()
    async with bridge(site.connection(), desk) as served, device(site, "dev-a") as burst:
        await until(lambda: caught_up(served))
        await hear(burst, "dev-a")
        ask(burst, "dev-a", *range(10))
        burst.publish("$aws/things/dev-a/shadow/get", payload)
        await until(lambda: bodies(burst, "/rejected"))
        assert set(bodies(burst, "/get/rejected")[0]) == {"code", "message", "timestamp"}
        desk.open()


async def test_a_refused_request_that_comes_again_is_not_carried_out(site: Site) -> None:
    desk = closed_desk()
    async with (
        Wire(site.broker.internal.port).laid() as wire,
        device(site, "dev-a") as burst,
        bridge(site.connection(port=wire.port), desk) as served,
    ):
        await until(lambda: caught_up(served))
        await hear(burst, "dev-a")
        ask(burst, "dev-a", *range(10))
        await until(lambda: served.statistics().received_count == 10)
        # The broker takes the refusal, but its word for that does not come through.
        wire.last_words = b'"10"'
        ask(burst, "dev-a", 10)
        await until(lambda: tokens(burst, "/rejected") == [10])
        assert served.statistics().acknowledged_count == 0
        wire.cut()
        wire.last_words = b""
        wire.answers.set()
        await until(lambda: served.statistics().redelivered_count == 11)
        desk.open()
        await until(lambda: served.statistics().acknowledged_count == 11)
        await until(lambda: sorted(tokens(burst, "/accepted")) == list(range(10)))
        assert set(tokens(burst, "/rejected")) == {10}
    assert len(desk.requests) == 10


# ---- what waits ----------------------------------------------------------------------------------------------------


async def publish_marker(site: Site) -> None:
    """Leave a marker in the broker as a link does that breaks before it comes back."""
    session = MqttSession(
        site.connection(),
        [],
        connected=lambda _present: None,
        arrived=lambda *_: None,
        marker_topic=MARKER_TOPIC,
    )
    await session.open()
    await session.drained()
    await session.close()


async def test_a_backlog_of_fifty_waits_and_is_all_carried_out(site: Site) -> None:
    connection, desk = site.connection(), closed_desk()
    async with bridge(connection, Desk()):
        pass
    async with device(site, "dev-a") as sender:
        await hear(sender, "dev-a")
        ask(sender, "dev-a", *range(50))
        await sender.sent()
        async with bridge(connection, desk) as served:
            await until(lambda: caught_up(served))
            assert served.statistics().received_count == 50
            assert served.statistics().throttled_count == 0
            # They are in flight all the same.
            ask(sender, "dev-a", 50)
            await until(lambda: tokens(sender, "/rejected") == [50])
            desk.open()
            await until(lambda: tokens(sender, "/accepted") == list(range(50)))
            ask(sender, "dev-a", 51)
            await until(lambda: 51 in tokens(sender, "/accepted"))


async def test_what_came_while_the_connection_was_cut_waits(site: Site) -> None:
    desk = closed_desk()
    async with (
        Wire(site.broker.internal.port).laid() as wire,
        device(site, "dev-a") as sender,
        bridge(site.connection(port=wire.port), desk) as served,
    ):
        await until(lambda: caught_up(served))
        await hear(sender, "dev-a")
        ask(sender, "dev-a", *range(8))
        await until(lambda: served.statistics().received_count == 8)
        wire.answers.clear()
        wire.cut()
        await until(lambda: not served.statistics().is_connected)
        ask(sender, "dev-a", *range(8, 25))
        await sender.sent()
        # What another link has left must not end the backlog.
        await publish_marker(site)
        ask(sender, "dev-a", *range(25, 40))
        await sender.sent()
        wire.answers.set()
        await until(lambda: served.statistics().is_connected and caught_up(served))
        assert served.statistics().throttled_count == 0
        desk.open()
        await until(lambda: tokens(sender, "/accepted") == list(range(40)))
    assert [json.loads(each)["clientToken"] for each in desk.payloads("dev-a")] == [str(n) for n in range(40)]


async def test_a_backlog_waits_after_the_broker_was_killed_as_well(own_site: Site) -> None:
    connection, desk = own_site.connection(), closed_desk()
    saved = own_site.directory.mosquitto / "mosquitto.db"
    async with bridge(connection, Desk()):
        pass
    async with device(own_site, "dev-a") as sender:
        ask(sender, "dev-a", *range(50))
        await sender.sent()
        await until(lambda: saved.exists() and saved.read_bytes().count(b'"clientToken"') >= 50)
    own_site.kill_broker()
    own_site.broker.spawn()
    own_site.broker.wait_until_ready()
    async with bridge(connection, desk) as served:
        await until(lambda: caught_up(served))
        assert served.statistics().throttled_count == 0
        desk.open()
        await until(lambda: served.statistics().acknowledged_count == 50)
    assert len(desk.requests) == 50


async def test_a_marker_counts_as_no_message(site: Site) -> None:
    async with bridge(site.connection(), Desk()) as served:
        await until(lambda: caught_up(served))
        await until(lambda: served.statistics().unpublished_count == 0)
        statistics = served.statistics()
    assert statistics.received_count == statistics.published_count == statistics.acknowledged_count == 0


async def test_a_device_neither_ends_the_backlog_nor_hears_the_marker(site: Site) -> None:
    connection = site.connection()
    async with device(site, "dev-a") as sender:
        await sender.subscribe(MARKER_TOPIC)
        await sender.subscribe("twinfleet/#")
        await hear(sender, "dev-a")
        async with bridge(connection, Desk(accepting)) as served:
            await until(lambda: caught_up(served))
            sender.publish(MARKER_TOPIC, b"12345678")
            ask(sender, "dev-a", 1)
            await until(lambda: sender.received)
            assert served.statistics().rejected_topic_count == 0
    assert [topic for topic, _ in sender.received] == ["$aws/things/dev-a/shadow/update/accepted"]
