"""Whoever begins to listen to deltas hears at once what differs now, instead of waiting for the next change.

A device that was away may connect, subscribe and never ask. The service that it was made for leaves it without the
delta until the next update; here the delta is published again after the subscription, as `update/delta` always is: at
least once, with the shadow's version, and without a client token. A device that keeps its session subscribes once, so
for it connecting counts as subscribing: what the broker kept for it may have been lost with the broker. Commands wait
in the twin for the same moment.

Who has begun to listen is known here only until it is settled. If this process dies before that, nothing is missed: the
platform ends with it, and with the next broker every device connects anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from actors.broker_log import BrokerEvent, ClientConnected, Subscribed
from actors.fleet import Fleet
from actors.mqtt_events import EventConsumer
from twins.assignments import Listen, encode_assignment
from twins.messages import Listening, Operation, Request
from twins.topics import covers, hears_commands, hears_delta

# Filters of one client between two calls: as many as one SUBSCRIBE of the service's clients may hold. More are all.
_FILTERS_MAX: Final = 8
_EVERYTHING: Final = ("$aws/things/+/shadow/#", "$aws/commands/things/+/executions/#")


class DeltaAnnouncer(EventConsumer):
    """Asks twins to publish their deltas again, and what commands wait.

    `thing_of` gives the thing for which the client with a common name is connected, or None. It is asked when events
    are settled, so whoever knows it may be told of the same events, earlier in the order.
    """

    def __init__(self, fleet: Fleet, thing_of: Callable[[str], str | None]) -> None:
        self.asked_count = 0
        self._fleet = fleet
        self._thing_of = thing_of
        # What clients listen to since the last call, and since when.
        self._listening: dict[str, Listening] = {}

    async def on_broker_event(self, event: BrokerEvent) -> None:
        """Note that a client has begun to listen."""
        if isinstance(event, Subscribed):
            self._note(event.client_id, [event.topic_filter], event.at_s)
        elif isinstance(event, ClientConnected) and not event.is_clean:
            self._note(event.client_id, _EVERYTHING, event.at_s)

    def _note(self, client_id: str, topic_filters: Sequence[str], at_s: float) -> None:
        # A time without a fraction is one of the log, cut off: the event may be nearly a second younger.
        since_s = at_s + 1 if at_s.is_integer() else at_s
        known = self._listening.get(client_id)
        filters = list(topic_filters)
        if known is not None:
            # Rather twice than never: the later of the two times.
            since_s = max(since_s, known.since_s)
            filters = list(dict.fromkeys([*known.topic_filters, *topic_filters]))
            if len(filters) > _FILTERS_MAX:
                filters = [each for each in _EVERYTHING if _may_concern(filters, each)]
        self._listening[client_id] = Listening(filters, since_s)

    async def settle(self, position: str) -> None:
        """Return when the twins have been asked; retryable if one of them cannot be now."""
        requests = []
        for client_id, listening in self._listening.items():
            thing_name = self._thing_of(client_id)
            if thing_name is not None:
                requests += _announcements(thing_name, listening)
        if requests:
            await self._fleet.ask_many(requests)
            self.asked_count += len(requests)
        self._listening = {}


def _may_concern(topic_filters: Sequence[str], everything: str) -> bool:
    """Tell whether some of the filters reach into what `everything` names: by the two levels that tell it apart."""
    root = everything.split("/")[:2]
    return any(covers("/".join([*each.split("/")[:2], "#"]), "/".join(root)) for each in topic_filters)


def _announcements(thing_name: str, listening: Listening) -> list[Request]:
    """Return what a twin is to be told of the filters to which its device has begun to listen."""
    filters = listening.topic_filters
    requests = []
    # The access list keeps the deltas and commands of other things from it, so they need not be published.
    if any(hears_delta(each, thing_name) for each in filters):
        requests.append(
            Request(Operation.ANNOUNCE_DELTA, thing_name, msgspec.json.encode(listening), is_direct=True)
        )
    if any(hears_commands(each, thing_name) for each in filters):
        order = encode_assignment(Listen(filters))
        requests.append(Request(Operation.ASSIGN, thing_name, order, is_direct=True))
    return requests
