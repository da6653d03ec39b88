"""What is counted at the broker, and whose session ends: the rules, on events."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from actors.attempts import FORBIDDEN_MAX, SUBSCRIPTIONS_MAX, AttemptWatch
from actors.broker_log import (
    BrokerEvent,
    ClientConnected,
    ClientDisconnected,
    ClientTakenOver,
    ConnectionOpened,
    HandshakeFailed,
    ProtocolViolated,
    Subscribed,
    Unsubscribed,
)
from actors.metrics import GatewayMetrics

PORT = 8883


class Watched:
    """A watch, what it counted, and whose sessions it ended."""

    def __init__(self) -> None:
        self.ended: list[str] = []
        self._metrics = GatewayMetrics()
        self._watch = AttemptWatch(
            self._metrics, device_port=PORT, thing_of=self._thing_of, end_session=self._end_session
        )

    async def _thing_of(self, client_id: str) -> str | None:
        return {"lamp": "lamp", "c" * 64: "hall:lamp"}.get(client_id)

    async def _end_session(self, client_id: str) -> None:
        self.ended.append(client_id)

    async def tell(self, *events: BrokerEvent) -> None:
        for event in events:
            await self._watch.on_broker_event(event)
        await self._watch.settle("")

    def counts(self) -> dict[str, float]:
        """Return what is not zero, by the name within the broker's metrics."""
        return {
            sample.name.removeprefix("twinfleet_broker_").removesuffix("_total"): sample.value
            for family in text_string_to_metric_families(self._metrics.own_exposition().decode())
            for sample in family.samples
            if sample.name.startswith("twinfleet_broker_") and sample.name.endswith("_total") and sample.value
        }


def connected(client_id: str, *, user: str | None = None, is_clean: bool = True) -> ClientConnected:
    return ClientConnected(
        1.0, "127.0.0.1", 50_000, client_id, client_id if user is None else user, 4, 60, is_clean
    )


def subscribed(client_id: str, *filters: str) -> list[Subscribed]:
    return [Subscribed(1.0, client_id, topic_filter, 1) for topic_filter in filters]


async def test_each_attempt_is_counted() -> None:
    watched = Watched()
    await watched.tell(
        ConnectionOpened(1.0, "127.0.0.1", PORT, 50_000),
        ConnectionOpened(1.0, "127.0.0.1", PORT + 1, 50_000),
        HandshakeFailed(1.0, None, "Client <unknown> disconnected: Protocol error."),
        connected("lamp"),
        connected("app.bridge", user="app.bridge"),
        ClientTakenOver(1.0, "lamp"),
        connected("lamp"),
        ProtocolViolated(1.0, "lamp", "Client lamp disconnected due to protocol error."),
        ProtocolViolated(1.0, None, "Client <unknown> disconnected due to protocol error."),
    )
    assert watched.counts() == {
        "connections": 1,
        "handshakes_failed": 1,
        "clients_admitted": 2,
        "sessions_taken_over": 1,
        "protocol_errors": 2,
    }


@pytest.mark.parametrize(
    ("client_id", "topic_filter", "is_counted"),
    [
        ("lamp", "$aws/things/lamp/shadow/#", False),
        ("lamp", "$aws/things/lamp/shadow/name/+/update/delta", False),
        ("lamp", "telemetry/lamp/#", False),
        ("lamp", "$aws/things/+/shadow/update/delta", True),
        ("lamp", "$aws/things/bell/shadow/update/delta", True),
        ("lamp", "$share/any/$aws/things/lamp/shadow/#", True),
        ("lamp", "#", True),
        ("lamp", "$SYS/#", True),
        ("c" * 64, "$aws/things/hall:lamp/shadow/#", False),
        ("c" * 64, f"$aws/things/{'c' * 64}/shadow/#", True),
        ("nobody", "$aws/things/nobody/shadow/#", True),
        ("app.viewer", "$aws/events/#", False),
        ("app.viewer", "$aws/things/+/shadow/update/documents", False),
        ("app.viewer", "$SYS/#", True),
        ("claim.batch", "$aws/certificates/create/json/accepted", False),
        ("claim.batch", "$aws/things/lamp/shadow/#", True),
    ],
)
async def test_a_subscription_to_topics_of_others_is_counted(
    client_id: str, topic_filter: str, is_counted: bool
) -> None:
    watched = Watched()
    await watched.tell(connected(client_id), *subscribed(client_id, topic_filter))
    assert watched.counts().get("subscriptions_forbidden", 0) == is_counted
    assert watched.ended == []


async def test_what_the_platform_itself_subscribes_to_is_not_counted() -> None:
    watched = Watched()
    await watched.tell(
        connected("app.events", user="app.events"), *subscribed("app.events", "$SYS/broker/log/N")
    )
    assert watched.counts() == {}


async def test_a_session_with_many_forbidden_subscriptions_is_ended_once() -> None:
    watched = Watched()
    filters = [f"$share/{number}/telemetry/#" for number in range(100 * FORBIDDEN_MAX)]
    await watched.tell(connected("lamp"), *subscribed("lamp", *filters[:FORBIDDEN_MAX]))
    assert watched.ended == []
    await watched.tell(*subscribed("lamp", *filters[FORBIDDEN_MAX:400]))
    # The broker had granted these before it was told, and its log comes in parts.
    await watched.tell(*subscribed("lamp", *filters[400:]))
    assert watched.ended == ["lamp"]
    assert watched.counts()["sessions_ended"] == 1
    await watched.tell(ClientDisconnected(1.0, "lamp", "CONNECTION_LOST"), connected("lamp"))
    await watched.tell(*subscribed("lamp", "$aws/things/lamp/shadow/#"))
    assert watched.ended == ["lamp"]
    await watched.tell(*subscribed("lamp", *filters))
    assert watched.ended == ["lamp", "lamp"]


async def test_forbidden_subscriptions_of_a_kept_session_add_up() -> None:
    watched = Watched()
    for number in range(FORBIDDEN_MAX + 1):
        assert watched.ended == []
        await watched.tell(connected("lamp", is_clean=False), *subscribed("lamp", f"$share/{number}/#"))
    assert watched.ended == ["lamp"]


async def test_a_session_has_as_many_subscriptions_of_its_own_as_the_service_allows() -> None:
    watched = Watched()
    filters = [
        f"$aws/things/lamp/shadow/name/{number}/update/delta" for number in range(SUBSCRIPTIONS_MAX + 1)
    ]
    await watched.tell(connected("lamp"), *subscribed("lamp", *filters[:-1]))
    # Making one again is no further one, and giving one up makes room.
    await watched.tell(*subscribed("lamp", *filters[:-1]))
    for _ in range(3):
        await watched.tell(Unsubscribed(1.0, "lamp", filters[0]), *subscribed("lamp", filters[0]))
    assert watched.ended == []
    await watched.tell(*subscribed("lamp", filters[-1]))
    assert watched.ended == ["lamp"]


async def test_a_client_that_is_back_already_with_a_new_session_is_left_alone() -> None:
    watched = Watched()
    filters = [f"$share/{number}/#" for number in range(FORBIDDEN_MAX + 1)]
    await watched.tell(connected("lamp"), *subscribed("lamp", *filters), connected("lamp"))
    assert watched.ended == []
