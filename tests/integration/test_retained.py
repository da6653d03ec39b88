"""What is retained, at a real broker and with a real store, without the rest of the platform."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

import pytest

from actors.errors import BrokerError
from actors.mqtt_retained import read_retained
from actors.mqtt_session import MqttSession
from actors.retained import (
    RETAINABLE_FILTERS,
    THING_TOPIC_COUNT_MAX,
    RetainedKeeper,
    RetainedNotes,
    is_retainable,
)
from actors.store import RedisServer
from tests.integration.raw_mqtt import MQTT_5, Connect, RawSession
from tests.integration.running_broker import DEADLINE_S, Site, running_site
from tests.running_store import running_store
from twins.clock import VirtualClock
from twins.messages import Delivery, Publish

NOW_S = 1_700_000_000.0


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running_site(tmp_path_factory.mktemp("broker") / "data") as started:
        yield started


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_store(tmp_path_factory.mktemp("store")) as started:
        yield started


@pytest.fixture
async def notes(store: RedisServer, request: pytest.FixtureRequest) -> AsyncIterator[RetainedNotes]:
    opened = RetainedNotes.open(store.url, prefix=f"{request.node.name}:")
    yield opened
    await opened.close()


def retain(site: Site, *topics: str, payload: bytes = b"{}") -> None:
    """Retain a message on each topic, as the platform's own user."""
    listener = site.broker.internal
    connect = Connect("app.test", version=MQTT_5, user_name=listener.user_name, password=listener.password)
    with socket.create_connection((listener.host, listener.port), timeout=DEADLINE_S) as link:
        session = RawSession(link, version=MQTT_5)
        session.send(connect.encode())
        for topic in topics:
            # 16: nobody is subscribed to it.
            assert session.publish(topic, payload, is_retained=True) in (0, 16)


async def retained(site: Site, *filters: str) -> list[str]:
    return [message.topic for message in await read_retained(site.connection(), filters)]


async def until_retained(site: Site, expected: list[str], *filters: str) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while await retained(site, *filters) != expected:
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def kept(site: Site, notes: RetainedNotes) -> AsyncIterator[RetainedKeeper]:
    """Give a keeper at work, as a bridge has it."""

    async def publish(messages: Sequence[Publish]) -> None:
        done = asyncio.Event()
        session.send(messages, lambda _: done.set())
        await done.wait()

    async def all_topics() -> list[str]:
        return await retained(site, *RETAINABLE_FILTERS)

    def connected(_: bool) -> None:
        return None

    def arrived(_topic: bytes, _payload: bytes, packet_id: int, _is_redelivered: bool) -> None:
        assert session.link is not None
        if packet_id:
            session.link.acknowledge([packet_id])

    session = MqttSession(site.connection(), RETAINABLE_FILTERS, connected=connected, arrived=arrived)
    keeper = RetainedKeeper(notes, publish, all_topics=all_topics, clock=VirtualClock(NOW_S))
    session.listen_for_retained(keeper.saw)
    await session.open()
    work = asyncio.create_task(keeper.run())
    try:
        yield keeper
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        await session.close()


async def test_what_is_retained_is_read_whole_however_much_it_is(site: Site) -> None:
    topics = [f"many/{number:04d}" for number in range(2500)]
    retain(site, *topics)
    # More than the broker has in flight, so the rest comes as it is acknowledged.
    assert await retained(site, "many/#") == topics
    assert await retained(site, topics[7], topics[3], "many/nothing") == [topics[3], topics[7]]
    retain(site, *topics, payload=b"")
    assert await retained(site, "many/#") == []


async def test_qos_and_payload_are_read_as_they_were_published(site: Site) -> None:
    retain(site, "one/a", payload=b"\x00\xff")
    (found,) = await read_retained(site.connection(), ["one/a"])
    assert (found.payload, found.qos, found.user_properties) == (b"\x00\xff", 1, ())
    retain(site, "one/a", payload=b"")


async def test_a_broker_that_is_away_is_a_passing_error(site: Site) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(BrokerError, match="is it running") as caught:
            await read_retained(site.connection(port=closed.getsockname()[1]), ["a"])
    assert caught.value.retryable


async def test_a_session_is_handed_no_retained_message_and_told_of_new_ones(
    site: Site, notes: RetainedNotes
) -> None:
    retain(site, "telemetry/lamp/old")
    arrived: list[bytes] = []
    told: list[tuple[bytes, bytes, int]] = []
    session = MqttSession(
        site.connection(),
        ["telemetry/+/#"],
        connected=lambda _: None,
        arrived=lambda topic, *_: arrived.append(topic),
    )
    session.listen_for_retained(lambda *each: told.append(each))
    await session.open()
    retain(site, "telemetry/lamp/new", payload=b"1")
    retain(site, "telemetry/lamp/new", "telemetry/lamp/old", payload=b"")
    async with asyncio.timeout(DEADLINE_S):
        while len(told) < 3:
            await asyncio.sleep(0.01)
    await session.close()
    assert arrived == [b"telemetry/lamp/new"]
    assert told == [
        (b"telemetry/lamp/new", b"1", 1),
        (b"telemetry/lamp/new", b"", 1),
        (b"telemetry/lamp/old", b"", 1),
    ]


async def test_what_was_retained_while_nobody_looked_is_found(site: Site, notes: RetainedNotes) -> None:
    request = "$aws/things/lamp/shadow/update"
    streams = [f"telemetry/lamp/{number:02d}" for number in range(THING_TOPIC_COUNT_MAX + 3)]
    retain(site, request, *streams)
    # One of these was noted then: it keeps its time.
    await notes.note(streams[0], 7)
    async with kept(site, notes) as keeper:
        await until_retained(site, streams[:THING_TOPIC_COUNT_MAX], *RETAINABLE_FILTERS)
        assert keeper.cleared_count == 4
        times = await notes.times_ms(streams)
        assert times == {streams[0]: 7, **dict.fromkeys(streams[1:THING_TOPIC_COUNT_MAX], NOW_S * 1000)}
        retain(site, *streams[:THING_TOPIC_COUNT_MAX], payload=b"")
        async with asyncio.timeout(DEADLINE_S):
            while await notes.topics_of("lamp"):
                await asyncio.sleep(0.01)
        assert await notes.topics_after("", 10) == []


async def test_things_have_their_bounds_apart_and_a_new_value_is_no_new_topic(
    notes: RetainedNotes,
) -> None:
    for thing in ("lamp", "bell"):
        for number in range(THING_TOPIC_COUNT_MAX):
            assert await notes.note(f"telemetry/{thing}/{number}", 1)
        assert not await notes.note(f"telemetry/{thing}/more", 1)
        assert await notes.note(f"telemetry/{thing}/0", 2)
    assert await notes.note("news/today", 3)
    assert (await notes.times_ms(["telemetry/lamp/0", "telemetry/lamp/more", "news/today"])) == {
        "telemetry/lamp/0": 2,
        "news/today": 3,
    }
    await notes.forget("telemetry/lamp/0")
    assert await notes.note("telemetry/lamp/more", 4)


async def test_no_spelling_of_its_topics_gives_a_device_more_to_retain(notes: RetainedNotes) -> None:
    spellings = ("telemetry/lamp", "telemetry/lamp/", "telemetry/lamp//", "telemetry/lamp/a//b")
    streams = [f"telemetry/lamp/{number}" for number in range(THING_TOPIC_COUNT_MAX - len(spellings))]
    for topic in (*spellings, *streams):
        assert is_retainable(topic)
        assert await notes.note(topic, 1)
    assert not await notes.note("telemetry/lamp/c//d", 1)
    # Nobody's bound would hold it, and with no thing would it go.
    certificate_id = "ab" * 32
    for topic in ("telemetry", "telemetry/", "telemetry//lamp", f"telemetry/{certificate_id}/a"):
        assert not is_retainable(topic)


async def until_settled(keeper: RetainedKeeper, is_done: Callable[[], bool]) -> None:
    work = asyncio.create_task(keeper.run())
    async with asyncio.timeout(DEADLINE_S):
        while not is_done():
            await asyncio.sleep(0)
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)


async def test_what_is_retained_again_while_it_is_cleared_is_cleared_again(notes: RetainedNotes) -> None:
    topic = b"$aws/things/lamp/shadow/update"
    published: list[Publish] = []

    async def publish(messages: Sequence[Publish]) -> None:
        if not published:
            # The end of the retention is seen like any other message, and the device has retained again.
            keeper.saw(topic, b"", 1)
            keeper.saw(topic, b"{}", 1)
        published.extend(messages)

    async def nothing() -> list[str]:
        return []

    keeper = RetainedKeeper(notes, publish, all_topics=nothing, clock=VirtualClock(NOW_S))
    keeper.saw(topic, b"{}", 1)
    await until_settled(keeper, lambda: len(published) == 2)


async def test_what_is_seen_is_cleared_while_the_broker_cannot_be_read_whole(notes: RetainedNotes) -> None:
    published: list[Publish] = []

    async def publish(messages: Sequence[Publish]) -> None:
        published.extend(messages)

    async def too_much() -> list[str]:
        raise BrokerError("the MQTT broker did not hand over what it retains; try again", retryable=True)

    keeper = RetainedKeeper(notes, publish, all_topics=too_much, clock=VirtualClock(NOW_S))
    keeper.saw(b"$aws/things/lamp/shadow/update", b"{}", 1)
    await until_settled(keeper, lambda: len(published) == 1)


async def test_what_there_is_no_room_for_while_all_is_read_is_read_again(notes: RetainedNotes) -> None:
    readings: list[int] = []

    async def publish(_: Sequence[Publish]) -> None:
        return None

    async def all_topics() -> list[str]:
        if not readings:
            # One more than it keeps in mind.
            for number in range(10_001):
                keeper.saw(b"$aws/things/lamp/%d" % number, b"{}", 1)
        readings.append(keeper.cleared_count)
        return []

    keeper = RetainedKeeper(notes, publish, all_topics=all_topics, clock=VirtualClock(NOW_S))
    await until_settled(keeper, lambda: len(readings) == 2)
    assert readings == [0, 10_000]


async def test_a_message_at_qos_0_needs_no_answer_to_be_handed_over(site: Site) -> None:
    session = MqttSession(site.connection(), ["nothing/#"], connected=lambda _: None, arrived=lambda *_: None)
    await session.open()
    done = asyncio.Event()
    messages = [Publish("zero/a", b"1", Delivery(qos=0, is_retained=True)), Publish("zero/b", b"2")]
    session.send(messages, lambda _: done.set())
    await asyncio.wait_for(done.wait(), DEADLINE_S)
    assert (session.published_count, session.outgoing_count) == (2, 0)
    await session.close()
    (found,) = await read_retained(site.connection(), ["zero/#"])
    assert (found.topic, found.payload, found.qos) == ("zero/a", b"1", 0)
