"""Which sessions of clients are open, as the broker's events say: a state machine without I/O.

Only the devices' listener counts, where the client id is the certificate's common name; the platform's own clients
are no sessions, but a client of ours that takes a device's id ends the device's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import dataclass
from typing import Final, Self

from actors.broker_log import (
    CLIENT_ERROR,
    DUPLICATE_CLIENT_ID,
    SERVER_ERROR,
    SERVER_INITIATED,
    BrokerEvent,
    BrokerStarted,
    BrokerStopping,
    ClientConnected,
    ClientDisconnected,
    ProtocolViolated,
    Subscribed,
    Unsubscribed,
)
from actors.pki import EVENTS_USER, INTERNAL_USER

_INTERNAL_USERS: Final = frozenset({INTERNAL_USER, EVENTS_USER})
_MQTT_5: Final = 5


@dataclass(frozen=True, slots=True)
class SessionOpened:
    """A client has connected, from `source_port` of `address`."""

    at_s: float
    common_name: str
    address: str
    source_port: int


@dataclass(frozen=True, slots=True)
class SessionClosed:
    """A session has ended, for a reason in the wire's words."""

    at_s: float
    common_name: str
    reason: str


@dataclass(frozen=True, slots=True)
class TopicsChanged:
    """A client of an open session has subscribed, or unsubscribed."""

    at_s: float
    common_name: str
    is_subscribed: bool
    topic_filter: str


SessionChange = SessionOpened | SessionClosed | TopicsChanged


class OpenSessions:
    """The open sessions by common name, changed by each event in its order."""

    def __init__(self, ports: Mapping[str, int], *, fifth: Iterable[str] = ()) -> None:
        """Begin with sessions known to be open, the port from which each one came, and what `fifth` was."""
        self._ports = dict(ports)
        self._fifth = set(fifth)

    @property
    def fifth(self) -> set[str]:
        """Common names that came with MQTT 5 last, and were not ended by us since; they may be away."""
        return set(self._fifth)

    def away(self) -> list[str]:
        """Return the common names of MQTT 5 that are not connected: the broker may keep a session for them.

        For how long a session is kept, if at all, no event tells.
        """
        return sorted(self._fifth - self._ports.keys())

    def after(self, events: Iterable[BrokerEvent]) -> Self:
        """Return what follows from more events; this one stays as it is."""
        following = copy(self)
        following._ports, following._fifth = dict(self._ports), set(self._fifth)
        for event in events:
            following.take(event)
        return following

    def take(self, event: BrokerEvent) -> list[SessionChange]:
        """Return what an event changes. An event that was taken before, or comes too late, changes nothing."""
        match event:
            case ClientConnected():
                return self._connected(event)
            case ClientDisconnected():
                return self._closed(event.at_s, event.client_id, event.reason)
            case ProtocolViolated(client_id=str(client_id)):
                return self._closed(event.at_s, client_id, CLIENT_ERROR)
            case BrokerStopping():
                return self._all_closed(event.at_s, SERVER_INITIATED)
            case BrokerStarted():
                # Whoever is still open now was not told of the end: the broker was killed.
                return self._all_closed(event.at_s, SERVER_ERROR)
            case Subscribed() | Unsubscribed() if event.client_id in self._ports:
                is_subscribed = isinstance(event, Subscribed)
                return [TopicsChanged(event.at_s, event.client_id, is_subscribed, event.topic_filter)]
            case _:
                return []

    def _connected(self, event: ClientConnected) -> list[SessionChange]:
        name = event.client_id
        is_internal = event.user in _INTERNAL_USERS
        # Our own clients connect under a device's id to end its session, and leave none.
        if event.protocol == _MQTT_5 and not is_internal:
            self._fifth.add(name)
        else:
            self._fifth.discard(name)
        if is_internal:
            return self._closed(event.at_s, name, SERVER_INITIATED)
        if self._ports.get(name) == event.source_port:
            return []
        changes = self._closed(event.at_s, name, DUPLICATE_CLIENT_ID)
        self._ports[name] = event.source_port
        return [*changes, SessionOpened(event.at_s, name, event.address, event.source_port)]

    def _closed(self, at_s: float, common_name: str, reason: str) -> list[SessionChange]:
        # mosquitto says it of kept sessions without a connection, too, and of our own clients.
        if self._ports.pop(common_name, None) is None:
            return []
        return [SessionClosed(at_s, common_name, reason)]

    def _all_closed(self, at_s: float, reason: str) -> list[SessionChange]:
        names, self._ports = list(self._ports), {}
        return [SessionClosed(at_s, name, reason) for name in names]
