"""Publishing for those who speak HTTP, and what the broker retains: the rules of both, above the broker's own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from actors.errors import BrokerError, DescriptionError
from actors.mqtt_retained import FILTER_COUNT_MAX, RetainedMessage
from actors.retained import THING_TOPIC_COUNT_MAX, RetainedNotes, is_retainable
from twins.clock import Clock
from twins.messages import Delivery, Publish
from twins.topics import publishing_problem

# The broker answers in milliseconds; while it is away the bridge waits for it, and a client should not.
_PUBLISH_TIMEOUT_S: Final = 5.0

# A message is noted before it is published; one that the broker does not have after this long has expired.
_LOST_AFTER_MS: Final = 60_000

PublishOne = Callable[[Publish], Awaitable[None]]
ReadRetained = Callable[[Sequence[str]], Awaitable[list[RetainedMessage]]]


@dataclass(frozen=True, slots=True)
class Retained:
    """A retained message, and since when, in milliseconds since the Unix epoch."""

    message: RetainedMessage
    modified_ms: int


@dataclass(frozen=True, slots=True)
class RetainedPage:
    """Retained messages in the order of their topics; `next_topic` gets the page after this one, '' for the last."""

    messages: list[Retained]
    next_topic: str


class Messaging:
    """The broker as HTTP shows it; WorldError when a part of it does not answer."""

    def __init__(
        self, publish: PublishOne, read: ReadRetained, *, notes: RetainedNotes, clock: Clock
    ) -> None:
        """Prepare; `publish` returns when the broker has the message, `read` gives what is retained on some topics."""
        self._publish = publish
        self._read = read
        self._notes = notes
        self._clock = clock

    async def publish(self, message: Publish) -> None:
        """Return when the broker has taken the message over; DescriptionError if it may not be published."""
        topic, delivery = message.topic, message.delivery or Delivery()
        problem = publishing_problem(topic)
        if problem:
            raise DescriptionError(f"topic {topic!r}", problem)
        if delivery.is_retained:
            await self._note(topic, message.payload)
        try:
            await asyncio.wait_for(self._publish(message), _PUBLISH_TIMEOUT_S)
        except TimeoutError:
            text = f"the MQTT broker did not take the message within {_PUBLISH_TIMEOUT_S:g} s; it may do so later"
            raise BrokerError(f"{text}, or publish it again", retryable=True) from None

    async def _note(self, topic: str, payload: bytes) -> None:
        if not is_retainable(topic):
            raise DescriptionError(
                f"topic {topic!r}", "is reserved, nothing is retained there; leave out retain"
            )
        # Noted first: a note without a message is shown to nobody, but a message without one would have no time.
        if payload and not await self._notes.note(topic, int(self._clock.now_s() * 1000)):
            problem = (
                f"would be one retained topic too many (a thing has {THING_TOPIC_COUNT_MAX}); clear another"
            )
            raise DescriptionError(f"topic {topic!r}", f"{problem} by publishing nothing to it, retained")
        if not payload:
            await self._notes.forget(topic)

    async def retained(self, topic: str) -> Retained | None:
        """Return what is retained on a topic, None if nothing is."""
        found = await self._with_times([topic])
        return found[0] if found else None

    async def clear_retained_of(self, thing_name: str) -> None:
        """End the retention of all that is retained of a thing."""
        for topic in await self._notes.topics_of(thing_name):
            await self.publish(Publish(topic, b"", Delivery(is_retained=True)))

    async def retained_page(self, *, after: str, limit: int) -> RetainedPage:
        """Return up to `limit` retained messages that follow the topic `after` ('': from the first)."""
        found: list[Retained] = []
        # Topics whose message the broker has no more (it expired) leave gaps.
        while len(found) < limit:
            wanted = limit - len(found)
            topics = await self._notes.topics_after(after, min(wanted, FILTER_COUNT_MAX))
            if not topics:
                return RetainedPage(found, "")
            found += await self._with_times(topics)
            after = topics[-1]
        is_last = not await self._notes.topics_after(after, 1)
        return RetainedPage(found, "" if is_last else after)

    async def _with_times(self, topics: Sequence[str]) -> list[Retained]:
        messages = await self._read(topics)
        times = await self._notes.times_ms(topics)
        now_ms = int(self._clock.now_s() * 1000)
        for topic in set(times) - {message.topic for message in messages}:
            if times[topic] < now_ms - _LOST_AFTER_MS:
                await self._notes.forget(topic)
        # What was retained while nobody noted it, a moment ago, is new.
        return [Retained(message, times.get(message.topic, now_ms)) for message in messages]
