"""Counts what is tried at the broker, and ends sessions whose subscriptions would slow everybody down.

A consumer of the broker's events. The broker delivers nothing that its access list forbids, but it grants every
subscription, and for every message it checks each that matches: a thousand shared subscriptions of one device to the
topics of all made a message of any device cost 5.6 ms in place of 0.1 ms, measured. So a session has as many
subscriptions as AWS IoT lets it have, and few that reach beyond the thing's own topics.

What the log does not tell is not counted here: a forbidden PUBLISH (`unheard` counts these), and the
client id in a CONNECT, which the broker replaces by the certificate's common name before anybody sees it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

from actors.broker_log import (
    BrokerEvent,
    BrokerStarted,
    ClientConnected,
    ClientDisconnected,
    ClientTakenOver,
    ConnectionOpened,
    HandshakeFailed,
    ProtocolViolated,
    Subscribed,
    Unsubscribed,
)
from actors.errors import WorldError
from actors.metrics import GatewayMetrics
from actors.mqtt_events import EventConsumer
from actors.pki import EVENTS_USER, INTERNAL_USER, is_reserved
from actors.registry.certificates import Certificates
from twins.sharding import is_certificate_id
from twins.topics import covers, may_subscribe

# AWS IoT's bound of one connection.
SUBSCRIPTIONS_MAX: Final = 50
# Subscriptions that can never be of use: as many as one SUBSCRIBE of AWS IoT may hold, for those who try what works.
FORBIDDEN_MAX: Final = 8
_COUNTERS: Final[dict[type[BrokerEvent], str]] = {
    ClientTakenOver: "sessions_taken_over",
    HandshakeFailed: "handshakes_failed",
    ProtocolViolated: "protocol_errors",
}
# What those may hear who are no things, by the beginning of their common name.
_KINDS: Final = {
    "app.": ("$aws/events/#", "$aws/things/#"),
    "claim.": ("$aws/certificates/#", "$aws/provisioning-templates/#"),
}
# They connect with a password, and are no devices.
_PLATFORM_USERS: Final = frozenset({INTERNAL_USER, EVENTS_USER})
_LOG: Final = logging.getLogger(__name__)


class AttemptWatch(EventConsumer):
    """The watch over one broker. `thing_of` gives the thing that a client id speaks for, or None."""

    def __init__(
        self,
        metrics: GatewayMetrics,
        *,
        device_port: int,
        thing_of: Callable[[str], Awaitable[str | None]],
        end_session: Callable[[str], Awaitable[None]],
    ) -> None:
        """Prepare a watch; `end_session` makes the broker close and forget the session of a client id."""
        self._metrics = metrics
        self._device_port = device_port
        self._thing_of = thing_of
        self._end_session = end_session
        # Client ids of the platform's own, while they are connected.
        self._own_ids: set[str] = set()
        # Filters by client id: those of the present connection, and those forbidden of the whole session. A client
        # that makes a subscription again has not one more.
        self._filters: dict[str, set[str]] = {}
        self._forbidden: dict[str, set[str]] = {}
        self._excessive: set[str] = set()
        # Of sessions that were ended, what they had subscribed to before may still be told.
        self._ended: set[str] = set()

    async def on_broker_event(self, event: BrokerEvent) -> None:
        """Count an event."""
        match event:
            case ConnectionOpened(port=port) if port == self._device_port:
                self._metrics.count_at_broker("connections")
            case ClientConnected():
                self._begin(event)
            case ClientDisconnected(client_id=client_id):
                self._own_ids.discard(client_id)
                self._filters.pop(client_id, None)
            case Subscribed(client_id=client_id, topic_filter=topic_filter):
                await self._subscribed(client_id, topic_filter)
            case Unsubscribed(client_id=client_id, topic_filter=topic_filter):
                for known in (self._filters, self._forbidden):
                    known.get(client_id, set()).discard(topic_filter)
            case BrokerStarted():
                self._filters.clear()
        name = _COUNTERS.get(type(event))
        if name is not None:
            self._metrics.count_at_broker(name)

    def _begin(self, event: ClientConnected) -> None:
        client_id = event.client_id
        if event.user in _PLATFORM_USERS:
            self._own_ids.add(client_id)
            return
        self._metrics.count_at_broker("clients_admitted")
        self._own_ids.discard(client_id)
        self._ended.discard(client_id)
        self._filters.pop(client_id, None)
        if event.is_clean:
            self._forbidden.pop(client_id, None)
            self._excessive.discard(client_id)

    async def _subscribed(self, client_id: str, topic_filter: str) -> None:
        if client_id in self._own_ids or is_reserved(client_id):
            return
        # May fail, and is then called again with the same event: before anything is counted.
        is_allowed = await self._may_subscribe(client_id, topic_filter)
        if not is_allowed:
            self._metrics.count_at_broker("subscriptions_forbidden")
        if client_id in self._ended:
            return
        filters = self._filters.setdefault(client_id, set())
        filters.add(topic_filter)
        forbidden = self._forbidden.get(client_id, set())
        if not is_allowed:
            forbidden = self._forbidden.setdefault(client_id, forbidden)
            forbidden.add(topic_filter)
        if len(filters) > SUBSCRIPTIONS_MAX or len(forbidden) > FORBIDDEN_MAX:
            self._excessive.add(client_id)

    async def _may_subscribe(self, client_id: str, topic_filter: str) -> bool:
        for beginning, granted in _KINDS.items():
            if client_id.startswith(beginning):
                return any(covers(each, topic_filter) for each in granted)
        thing_name = await self._thing_of(client_id)
        return thing_name is not None and may_subscribe(thing_name, topic_filter)

    async def settle(self, position: str) -> None:
        """Return when sessions with too many subscriptions are ended, or could not be and are tried again next time."""
        for client_id in sorted(self._excessive):
            try:
                await self._end_session(client_id)
            except WorldError as error:
                # Events are more to others than this is.
                _LOG.warning("the session of %r has too many subscriptions: %s", client_id, error)
                continue
            self._excessive.discard(client_id)
            self._filters.pop(client_id, None)
            self._forbidden.pop(client_id, None)
            self._ended.add(client_id)
            self._metrics.count_at_broker("sessions_ended")
            _LOG.warning("the session of %r was ended: it had too many subscriptions", client_id)


def speaker_of(certificates: Certificates) -> Callable[[str], Awaitable[str | None]]:
    """Return a function that gives the thing that a client id speaks for, connected or not; None if it is none's."""

    async def thing_of(client_id: str) -> str | None:
        if not is_certificate_id(client_id):
            return client_id
        record = await certificates.get(client_id)
        return None if record is None else record.thing_name or None

    return thing_of
