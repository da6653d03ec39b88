"""What devices publish where they may not is counted, and nothing else is, by a bridge on the real broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from actors.broker import AccessList, events_listener, write_acl
from actors.mqtt_bridge import MqttBridge
from actors.mqtt_link import BrokerConnection
from actors.mqtt_session import MqttSession
from tests.integration.bridge_stage import Desk, Device, Wire, device, numbered, until
from tests.integration.running_broker import Site, running_site
from twins.messages import Delivery, Publish, Request

# More than a test publishes besides, so that its coming is seen.
_PROBE = b"x" * 100_000
_NOBODYS = ("$aws/things/victim/shadow/update", "$aws/things/lamp/shadow/get/accepted", "$SYS/any", "any")


class Counting:
    """A bridge at work, and a device that shows how far it has counted: by one more forbidden message."""

    def __init__(self, bridge: MqttBridge, probe: Device) -> None:
        self.bridge = bridge
        self._probe = probe

    def counts(self) -> tuple[int, int]:
        statistics = self.bridge.statistics()
        return statistics.unheard_count, statistics.unheard_bytes

    async def begun(self) -> None:
        """Return when the bridge counts, with all that was published before behind it."""
        _, before = self.counts()

        def is_counting() -> bool:
            self._probe.publish("forbidden", b"x")
            return self.counts()[1] > before

        await until(is_counting)
        await self._probed()

    async def _probed(self) -> None:
        """Return when a forbidden message has been counted, and with it all that came before."""
        await self._probe.sent()
        _, before = self.counts()
        self._probe.publish("forbidden", _PROBE)
        await until(lambda: self.counts()[1] >= before + len(_PROBE))

    @asynccontextmanager
    async def unheard(self, count: int, size_bytes: int) -> AsyncIterator[None]:
        """Fail unless so many messages with such payloads are counted of what is done meanwhile."""
        before = self.counts()
        yield
        await self._probed()
        found = tuple(now - then for now, then in zip(self.counts(), before, strict=True))
        assert found == (count + 1, size_bytes + len(_PROBE))


@asynccontextmanager
async def counting(site: Site, connection: BrokerConnection, desk: Desk) -> AsyncIterator[Counting]:
    bridge = MqttBridge(connection, desk, source=connection.client_id)
    bridge.listen_for_retained(lambda *_: None)
    await bridge.start()
    try:
        async with device(site, "probe") as probe:
            counted = Counting(bridge, probe)
            await counted.begun()
            yield counted
    finally:
        await bridge.stop()


def answer(request: Request) -> list[Publish]:
    return [Publish(f"$aws/things/{request.thing_name}/shadow/get/accepted", b"{}")]


async def test_each_message_on_a_forbidden_topic_is_counted_and_no_other(site: Site) -> None:
    count = 2 * len(_NOBODYS)
    async with (
        counting(site, site.connection(), Desk(answer)) as counted,
        device(site, "lamp") as lamp,
        counted.unheard(count, 3 * count),
    ):
        for qos in (0, 1):
            await lamp.telemetry(*numbered(50), qos=qos)
            for topic in _NOBODYS:
                lamp.publish(topic, b"abc", qos=qos)
        await lamp.sent()


async def test_what_operators_publish_is_not_counted_whether_the_bridge_hears_it_or_not(site: Site) -> None:
    retained, at_once = Delivery(is_retained=True), Delivery(qos=0)
    async with counting(site, site.connection(), Desk(answer)) as counted, counted.unheard(0, 0):
        for topic in ("telemetry/lamp/a", "$aws/things/lamp/shadow/get", "hall/state"):
            for delivery in (None, at_once, retained):
                await counted.bridge.publish([Publish(topic, b"{}", delivery)])
            await counted.bridge.publish([Publish(topic, b"", retained)])
        # Refused to the bridge itself, and its own, which nobody else tells it.
        for topic in ("$SYS/any", "$aws/events/thing/lamp/created"):
            await counted.bridge.publish([Publish(topic, b"{}")])


async def test_what_a_device_has_retained_is_not_counted_and_forbidden_only_by_its_payload(
    site: Site,
) -> None:
    async with (
        counting(site, site.connection(), Desk()) as counted,
        device(site, "lamp") as lamp,
        counted.unheard(0, 7),
    ):
        for payload in (b"kept", b""):
            lamp.publish("telemetry/lamp/state", payload, is_retained=True)
            lamp.publish("telemetry/lamp/state", payload, is_retained=True, qos=0)
        lamp.publish("forbidden", b"retain!", is_retained=True)
        await lamp.sent()


async def test_events_and_what_claims_ask_are_not_counted(site: Site) -> None:
    write_acl(site.settings.data_dir, AccessList(claims=("claim.line-1",)))
    site.broker.reload()
    listener = events_listener(site.settings.data_dir)
    events = MqttSession(
        BrokerConnection(listener.host, listener.port, listener.user_name, listener.password, "app.events"),
        (),
        connected=lambda _: None,
        arrived=lambda *_: None,
        marker_topic="twinfleet/events/marker",
    )
    async with counting(site, site.connection(), Desk()) as counted, counted.unheard(1, 3):
        await events.open()
        answers = [Publish(f"$aws/events/presence/connected/{number}", b"{}") for number in range(20)]
        events.send([*answers, Publish("$aws/certificates/create/json/accepted", b"{}")], lambda _: None)
        await events.drained()
        async with device(site, "claim.line-1") as claim:
            claim.publish("$aws/certificates/create/json", b"{}")
            claim.publish("$aws/certificates/create/json/accepted", b"{ }")
            await claim.sent()
        await events.close()


async def test_what_waits_behind_a_full_window_is_counted_in_the_end(site: Site) -> None:
    desk = Desk()
    async with (
        counting(site, site.connection(receive_maximum=10), desk) as counted,
        device(site, "lamp") as lamp,
        counted.unheard(3, 3),
    ):
        desk.close()
        await lamp.telemetry(*numbered(30))
        lamp.publish("forbidden", b"x")
        # They overtake what the broker has to say.
        await lamp.telemetry(*numbered(50), qos=0)
        await until(lambda: counted.bridge.statistics().received_count >= 60)
        desk.open()
        lamp.publish("forbidden", b"x")
        lamp.publish("forbidden", b"x", qos=0)
        await lamp.sent()


async def test_a_lost_connection_and_what_was_stored_meanwhile_are_not_counted(site: Site) -> None:
    internal = site.broker.internal
    async with (
        Wire(internal.port).laid() as wire,
        counting(site, site.connection(port=wire.port), Desk(answer)) as counted,
        device(site, "lamp") as lamp,
    ):
        await lamp.telemetry(*numbered(200))
        wire.cut()
        await lamp.telemetry(*numbered(200))
        await until(lambda: counted.bridge.statistics().reconnect_count == 1)
        await counted.begun()
        async with counted.unheard(2, 2):
            await lamp.telemetry(*numbered(20))
            lamp.publish("forbidden", b"x")
            lamp.publish("forbidden", b"x", qos=0)
            await lamp.sent()


async def test_counting_goes_on_after_a_restart_of_the_broker(tmp_path: Path) -> None:
    with running_site(tmp_path) as own:
        async with counting(own, own.connection(), Desk(answer)) as counted:
            before = counted.counts()
            assert min(before) > 0
            own.kill_broker()
            own.broker.spawn()
            await asyncio.to_thread(own.broker.wait_until_ready)
            await until(lambda: counted.bridge.statistics().is_connected)
            async with device(own, "probe-2") as probe:
                again = Counting(counted.bridge, probe)
                await again.begun()
                assert min(now - then for now, then in zip(again.counts(), before, strict=True)) > 0
                async with again.unheard(1, 1), device(own, "lamp") as lamp:
                    await lamp.telemetry(*numbered(20))
                    lamp.publish("forbidden", b"x")
                    await lamp.sent()
