"""Deltas that are published again to a device that begins to listen to them."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from actors.broker_log import ClientConnected, ClientDisconnected, Subscribed
from actors.delta_announcer import DeltaAnnouncer
from actors.errors import ShardUnavailable
from actors.fleet import LocalFleet, assign_request
from twins.assignments import SendCommand
from twins.clock import VirtualClock
from twins.commands import CommandOrder
from twins.messages import Operation, Publish, Reply, Request
from twins.topics import delta_topic, hears_delta

NOW_S = 1_700_000_000.0
CLASSIC, NAMED = delta_topic("lamp"), delta_topic("lamp", "config")


class Scene:
    """A fleet with deltas, and an announcer that has just started."""

    def __init__(self) -> None:
        self.clock = VirtualClock(NOW_S)
        self.fleet = LocalFleet(shard_count=4, clock=self.clock)
        self.heard: list[Publish] = []
        self.fleet.listen("$aws/things/+/shadow/#", self._hear)
        self.announcer = DeltaAnnouncer(self.fleet, self._thing_of)

    def _hear(self, message: Publish) -> None:
        if message.topic.endswith("/delta"):
            self.heard.append(message)

    def _thing_of(self, client_id: str) -> str | None:
        return {"app.desk": None, "f" * 64: "lamp"}.get(client_id, client_id)

    async def desire(
        self, state: Any, *, thing: str = "lamp", name: str = "", section: str = "desired"
    ) -> None:
        payload = json.dumps({"state": {section: state}, "clientToken": "t"}).encode()
        reply = await self.fleet.ask(Request(Operation.SHADOW_UPDATE, thing, payload, name))
        assert reply.status == 200

    async def subscribed(
        self, topic_filter: str, *, client_id: str = "lamp", at_s: float | None = None
    ) -> list[str]:
        """Return the topics of the deltas that a subscription brings."""
        self.heard.clear()
        at_s = self.clock.now_s() if at_s is None else at_s
        await self.announcer.on_broker_event(Subscribed(at_s, client_id, topic_filter, 1))
        await self.announcer.settle("")
        return [message.topic for message in self.heard]


@pytest.fixture
async def scene() -> Scene:
    """Give a lamp whose classic and named shadows have had deltas for ten seconds, and the time half a second."""
    made = Scene()
    await made.desire({"on": True})
    await made.desire({"level": 3}, name="config")
    await made.desire({"on": True}, thing="other")
    made.clock.advance_to(NOW_S + 10.5)
    return made


async def test_a_device_that_subscribes_hears_the_delta_as_it_is_now(scene: Scene) -> None:
    await scene.desire({"level": 7})
    await scene.desire({"on": True}, section="reported")
    scene.clock.advance_to(NOW_S + 20.5)
    assert await scene.subscribed(CLASSIC) == [CLASSIC]
    assert json.loads(scene.heard[0].payload) == {
        "version": 3,
        "timestamp": int(NOW_S) + 20,
        "state": {"level": 7},
        "metadata": {"level": {"timestamp": int(NOW_S) + 10}},
    }


@pytest.mark.parametrize(
    ("topic_filter", "topics"),
    [
        (CLASSIC, [CLASSIC]),
        (NAMED, [NAMED]),
        ("$aws/things/lamp/shadow/#", [CLASSIC, NAMED]),
        ("$aws/things/lamp/shadow/+/+", [CLASSIC]),
        ("$aws/things/lamp/shadow/name/+/update/delta", [NAMED]),
        ("$aws/things/+/shadow/update/delta", [CLASSIC]),
        ("$aws/#", [CLASSIC, NAMED]),
        ("$aws/things/lamp/shadow/get/+", []),
        ("$aws/things/lamp/shadow/update/accepted", []),
        ("$aws/things/lamp/shadow/name/other/update/delta", []),
        ("$aws/things/other/shadow/update/delta", []),
        ("#", []),
    ],
)
async def test_a_subscription_brings_the_deltas_that_it_matches_and_of_its_own_thing(
    scene: Scene, topic_filter: str, topics: list[str]
) -> None:
    assert await scene.subscribed(topic_filter) == topics
    assert hears_delta(topic_filter, "lamp") == (bool(topics) or "name/other" in topic_filter)


async def test_the_holder_of_a_certificate_that_does_not_carry_its_name_hears_its_thing(scene: Scene) -> None:
    assert await scene.subscribed(CLASSIC, client_id="f" * 64) == [CLASSIC]


async def test_an_application_brings_nothing_about(scene: Scene) -> None:
    assert await scene.subscribed("$aws/things/+/shadow/update/delta", client_id="app.desk") == []


async def test_without_a_difference_nothing_is_published(scene: Scene) -> None:
    await scene.desire({"on": True}, section="reported")
    assert await scene.subscribed(CLASSIC) == []
    await scene.fleet.ask(Request(Operation.SHADOW_DELETE, "lamp", b"", "config"))
    assert await scene.subscribed(NAMED) == []
    assert await scene.subscribed(delta_topic("nobody"), client_id="nobody") == []


async def test_a_delta_that_was_published_since_the_subscription_is_not_repeated(scene: Scene) -> None:
    at_s = scene.clock.now_s()
    scene.clock.advance_to(NOW_S + 10.6)
    await scene.desire({"on": False})
    assert await scene.subscribed("$aws/things/lamp/shadow/#", at_s=at_s) == [NAMED]
    # Each subscription counts: the one of the next connection, too.
    scene.clock.advance_to(NOW_S + 11.5)
    assert await scene.subscribed("$aws/things/lamp/shadow/#") == [CLASSIC, NAMED]


async def test_a_time_that_was_cut_off_to_the_second_costs_no_delta(scene: Scene) -> None:
    await scene.desire({"on": False})
    # Subscribed at 10.9, after the delta of 10.5.
    assert await scene.subscribed(CLASSIC, at_s=NOW_S + 10) == [CLASSIC]


async def test_a_device_that_goes_on_with_its_session_hears_its_deltas_when_it_connects(scene: Scene) -> None:
    for client_id, is_clean, topics in (
        ("lamp", False, [CLASSIC, NAMED]),
        ("lamp", True, []),
        ("app.desk", False, []),
    ):
        scene.heard.clear()
        at_s = scene.clock.now_s()
        await scene.announcer.on_broker_event(
            ClientConnected(at_s, "127.0.0.1", 1, client_id, client_id, 4, 30, is_clean)
        )
        await scene.announcer.on_broker_event(ClientDisconnected(at_s, client_id, "CONNECTION_LOST"))
        await scene.announcer.settle("")
        assert [message.topic for message in scene.heard] == topics
        scene.clock.advance_to(at_s + 1)


async def test_many_subscriptions_of_a_thing_are_one_question(scene: Scene) -> None:
    at_s = scene.clock.now_s()
    filters = itertools.chain([CLASSIC, NAMED], (delta_topic("lamp", f"shadow-{n}") for n in range(30)))
    for topic_filter in filters:
        await scene.announcer.on_broker_event(Subscribed(at_s, "lamp", topic_filter, 1))
    await scene.announcer.settle("")
    await scene.announcer.settle("")
    assert [message.topic for message in scene.heard[-2:]] == [CLASSIC, NAMED]
    assert scene.announcer.asked_count == 1


async def test_one_subscription_brings_25_deltas_at_most(scene: Scene) -> None:
    for number in range(40):
        await scene.desire({"n": number}, name=f"shadow-{number}")
    scene.clock.advance_to(NOW_S + 30.5)
    assert len(await scene.subscribed("$aws/things/lamp/shadow/#")) == 25


async def test_what_a_shard_cannot_say_now_is_asked_again(scene: Scene) -> None:
    class Broken(LocalFleet):
        async def ask_many(self, requests: Any) -> list[Reply]:
            raise ShardUnavailable(1, "it restarts")

    announcer = DeltaAnnouncer(Broken(4), scene._thing_of)
    await announcer.on_broker_event(Subscribed(scene.clock.now_s(), "lamp", CLASSIC, 1))
    with pytest.raises(ShardUnavailable):
        await announcer.settle("")
    scene.heard.clear()
    announcer._fleet = scene.fleet
    await announcer.settle("")
    assert [message.topic for message in scene.heard] == [CLASSIC]


async def test_commands_that_wait_go_out_when_their_device_listens(scene: Scene) -> None:
    heard: list[str] = []
    scene.fleet.listen("$aws/commands/#", lambda message: heard.append(message.topic))
    order = SendCommand(CommandOrder("e", "blink", b"{}", "application/json", 60))
    await scene.fleet.ask(assign_request("lamp", order))
    base = "$aws/commands/things/lamp/executions"
    for other in ("$aws/things/lamp/#", f"{base}/+/response/+/json", "$aws/commands/things/other/#"):
        await scene.subscribed(other)
    assert heard == []
    await scene.subscribed(f"{base}/+/request/+")
    assert heard == [f"{base}/e/request/json"]
    # One that keeps its session subscribes once.
    await scene.announcer.on_broker_event(
        ClientConnected(NOW_S + 20, "::1", 1, "lamp", "lamp", 4, 60, is_clean=False)
    )
    await scene.announcer.settle("")
    assert heard == [f"{base}/e/request/json"] * 2
    # Of many filters all the same that concern commands.
    for number in range(30):
        await scene.announcer.on_broker_event(
            Subscribed(NOW_S + 20, "lamp", f"{base}/{number}/request/json", 1)
        )
    await scene.announcer.settle("")
    assert heard == [f"{base}/e/request/json"] * 3
