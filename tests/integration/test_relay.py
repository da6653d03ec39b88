"""The relay between devices and broker: each thing that it can do has its effect, and without it there is none."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest

from scenarios.relay import Conditions, Relay

# What a quiet loopback takes is far below, and what is waited for is far above what a busy machine adds.
SLOW_S = 0.2
DEADLINE_S = 30.0


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while piece := await reader.read(1 << 16):
            writer.write(piece)
            await writer.drain()
    writer.close()


class Line:
    """A client that is connected to an echo through a relay."""

    def __init__(self, relay: Relay, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.relay = relay
        self._reader = reader
        self._writer = writer

    async def say(self, text: bytes) -> float:
        """Send something and return how long its echo took; ConnectionError if the connection ends."""
        begin_s = time.monotonic()
        self._writer.write(text)
        async with asyncio.timeout(DEADLINE_S):
            try:
                assert await self._reader.readexactly(len(text)) == text
            except asyncio.IncompleteReadError:
                raise ConnectionError("ended") from None
        return time.monotonic() - begin_s

    async def close(self) -> None:
        self._writer.close()


@pytest.fixture
async def echo() -> AsyncIterator[int]:
    server = await asyncio.start_server(_echo, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


@pytest.fixture
async def line(echo: int) -> AsyncIterator[Line]:
    relay = Relay("127.0.0.1", echo, seed=1)
    reader, writer = await asyncio.open_connection("127.0.0.1", await relay.start())
    made = Line(relay, reader, writer)
    await made.say(b"hello")
    yield made
    await made.close()
    await relay.close()


async def _chatter(line: Line) -> None:
    while True:
        await line.say(b"lost?")


@pytest.mark.parametrize(
    ("conditions", "at_least_s"),
    [
        (Conditions(latency_s=SLOW_S), 2 * SLOW_S),
        (Conditions(latency_s=SLOW_S, jitter_s=SLOW_S / 2), SLOW_S),
        (Conditions(rate=100_000), SLOW_S),
    ],
)
async def test_what_is_slow_takes_longer_until_it_is_over(
    line: Line, conditions: Conditions, at_least_s: float
) -> None:
    text = b"x" * 30_000
    without_s = await line.say(text)
    line.relay.apply(conditions)
    assert await line.say(text) >= at_least_s
    line.relay.apply(Conditions())
    # A busy machine may take long once, but not every time.
    assert min(without_s, await line.say(text), await line.say(text)) < at_least_s


async def test_latency_delays_what_is_sent_one_after_the_other_once_and_not_each_time_more(
    line: Line,
) -> None:
    line.relay.apply(Conditions(latency_s=SLOW_S))
    begin_s = time.monotonic()
    await asyncio.gather(*(asyncio.sleep(0.005 * number) for number in range(20)))
    assert await line.say(b"y" * 500_000) >= 2 * SLOW_S
    # Eight pieces of 64 KiB in each direction: one after the other they would take sixteen times the latency.
    assert time.monotonic() - begin_s < 16 * SLOW_S


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_what_is_partitioned_waits_and_arrives_when_that_is_over(line: Line, direction: str) -> None:
    line.relay.apply(Conditions(held=frozenset([direction])))  # type: ignore[list-item]  # both are directions
    waiting = asyncio.create_task(line.say(b"are you there"))
    done, _ = await asyncio.wait([waiting], timeout=SLOW_S)
    assert not done
    line.relay.apply(Conditions())
    assert await waiting >= SLOW_S * 0.9
    assert line.relay.reset_count == 0


async def test_a_loss_resets_the_connection_and_without_it_nothing_does(line: Line) -> None:
    for _ in range(50):
        await line.say(b"fine")
    line.relay.apply(Conditions(loss_ratio=0.5))
    with pytest.raises(ConnectionError):
        await asyncio.wait_for(_chatter(line), DEADLINE_S)
    assert line.relay.reset_count == 1


async def test_who_is_down_resets_every_connection_and_every_new_one_until_it_is_up(
    line: Line, echo: int
) -> None:
    line.relay.apply(Conditions(is_down=True))
    with pytest.raises(ConnectionError):
        await line.say(b"down")
    assert line.relay.reset_count == 1


async def test_a_reset_ends_open_connections_and_new_ones_are_made(echo: int) -> None:
    relay = Relay("127.0.0.1", echo)
    port = await relay.start()
    first = Line(relay, *await asyncio.open_connection("127.0.0.1", port))
    await first.say(b"one")
    relay.reset_all()
    with pytest.raises(ConnectionError):
        await first.say(b"two")
    second = Line(relay, *await asyncio.open_connection("127.0.0.1", port))
    await second.say(b"three")
    relay.apply(Conditions(is_down=True))
    third = Line(relay, *await asyncio.open_connection("127.0.0.1", port))
    with pytest.raises(ConnectionError):
        await third.say(b"four")
    await relay.close()
    assert (relay.connection_count, relay.reset_count) == (3, 3)


async def test_a_held_connection_that_is_full_ends_all_the_same_when_it_is_reset(line: Line) -> None:
    line.relay.apply(Conditions(held=frozenset(["up"])))
    waiting = asyncio.create_task(line.say(b"z" * 50_000_000))
    done, _ = await asyncio.wait([waiting], timeout=SLOW_S)
    assert not done
    assert line.relay.carried_bytes < 1_000_000
    line.relay.reset_all()
    with pytest.raises(ConnectionError):
        await waiting
    await asyncio.wait_for(line.relay.close(), DEADLINE_S)


async def test_an_end_is_told_to_the_other_end(line: Line, echo: int) -> None:
    relay = Relay("127.0.0.1", 1)
    reader, writer = await asyncio.open_connection("127.0.0.1", await relay.start())
    # Nobody listens there.
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""
    writer.close()
    await relay.close()


def test_conditions_add_up() -> None:
    both = Conditions(latency_s=1, loss_ratio=0.5, rate=100).and_also(
        Conditions(latency_s=2, loss_ratio=0.5, rate=70, held=frozenset(["up"]))
    )
    assert both == Conditions(latency_s=3, loss_ratio=0.75, rate=70, held=frozenset(["up"]))
