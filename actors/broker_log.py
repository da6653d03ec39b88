"""What mosquitto 2.0 says in its log, line by line, as typed events: who came, who went and why, what was refused.

Pure: a line goes in, an event or None comes out. Where lines come from, and in which order, is `mqtt_events`' matter.

Lines are read from the right where a text of a client stands in them. On the devices' listener a client id is a common
name that this platform has certified and so holds no space; a topic filter may hold anything but control characters.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

# The wire's words for why a session ended, as far as a broker on one machine can tell the reasons apart.
CLIENT_INITIATED: Final = "CLIENT_INITIATED_DISCONNECT"
CONNECTION_LOST: Final = "CONNECTION_LOST"
KEEP_ALIVE_TIMEOUT: Final = "MQTT_KEEP_ALIVE_TIMEOUT"
DUPLICATE_CLIENT_ID: Final = "DUPLICATE_CLIENTID"
SERVER_INITIATED: Final = "SERVER_INITIATED_DISCONNECT"
SERVER_ERROR: Final = "SERVER_ERROR"
CLIENT_ERROR: Final = "CLIENT_ERROR"
AUTH_ERROR: Final = "AUTH_ERROR"

# What mosquitto calls a connection that has not said who it is.
_UNKNOWN: Final = "<unknown>"
# A line is heard within milliseconds and its time is cut to the second, so an event is this much younger at most.
_FRESH_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class BrokerEvent:
    """Something that happened at the broker, at `at_s` (POSIX seconds)."""

    at_s: float


@dataclass(frozen=True, slots=True)
class BrokerStarted(BrokerEvent):
    """The broker's process has begun: no connection from before exists any more."""


@dataclass(frozen=True, slots=True)
class BrokerStopping(BrokerEvent):
    """The broker was told to end: every connection ends with it, without a line of its own."""


@dataclass(frozen=True, slots=True)
class ConfigurationReloaded(BrokerEvent):
    """The broker has begun to read its access lists and the revocation list again."""


@dataclass(frozen=True, slots=True)
class ConnectionOpened(BrokerEvent):
    """A TCP connection from `address` came to the listener on `port`; on the devices', TLS begins now.

    Its ClientConnected, if it comes to that, has the same `source_port`.
    """

    address: str
    port: int
    source_port: int


@dataclass(frozen=True, slots=True)
class ClientConnected(BrokerEvent):
    """A client was let in. `source_port` tells its connections apart, `user` is '' where it gave no name.

    `protocol` is 3 (MQTT 3.1), 4 (3.1.1) or 5; `is_clean` means that no earlier session of it goes on.
    """

    address: str
    source_port: int
    client_id: str
    user: str
    protocol: int
    keep_alive_s: int
    is_clean: bool


@dataclass(frozen=True, slots=True)
class ClientDisconnected(BrokerEvent):
    """A client's connection has ended; `reason` is the wire's word for why.

    After a reload mosquitto also says so of clients that are not connected and only have a kept session.
    """

    client_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class ClientTakenOver(BrokerEvent):
    """A client's connection was ended in favour of a newer one of the same id, whose ClientConnected follows."""

    client_id: str


@dataclass(frozen=True, slots=True)
class ProtocolViolated(BrokerEvent):
    """A connection was ended because of what came over it; `client_id` is None before a client has named itself."""

    client_id: str | None
    text: str


@dataclass(frozen=True, slots=True)
class HandshakeFailed(BrokerEvent):
    """A connection ended before a client was let in: no or no good certificate, no TLS, silence, or a wrong password.

    `address` is None where the line does not say it; `text` is what mosquitto says.
    """

    address: str | None
    text: str


@dataclass(frozen=True, slots=True)
class TlsErrorReported(BrokerEvent):
    """OpenSSL's word on a connection whose end the next line tells: `text` says what was wrong with it."""

    text: str


@dataclass(frozen=True, slots=True)
class Subscribed(BrokerEvent):
    """A client has subscribed to `topic_filter`, with at most `qos`; the access list may deliver nothing of it."""

    client_id: str
    topic_filter: str
    qos: int


@dataclass(frozen=True, slots=True)
class Unsubscribed(BrokerEvent):
    """A client has given up its subscription to `topic_filter`."""

    client_id: str
    topic_filter: str


_Build = Callable[[float, re.Match[str]], BrokerEvent]
# As CONNECT packets number the protocols: mosquitto counts 3.1, 3.1.1 and 5 as 1, 2 and 5.
_PROTOCOL_LEVELS: Final = {1: 3, 2: 4, 5: 5}


def _connected(at_s: float, found: re.Match[str]) -> BrokerEvent:
    address, port, client_id, protocol, clean, keep_alive, user = found.groups()
    return ClientConnected(
        at_s,
        address,
        int(port),
        client_id,
        user or "",
        _PROTOCOL_LEVELS.get(int(protocol), int(protocol)),
        int(keep_alive),
        clean == "1",
    )


def _ended(reason: str) -> _Build:
    def build(at_s: float, found: re.Match[str]) -> BrokerEvent:
        if found[1] == _UNKNOWN:
            return HandshakeFailed(at_s, None, found[0])
        return ClientDisconnected(at_s, found[1], reason)

    return build


def _violated(at_s: float, found: re.Match[str]) -> BrokerEvent:
    return ProtocolViolated(at_s, None if found[1] == _UNKNOWN else found[1], found[0])


def _refused(at_s: float, found: re.Match[str]) -> BrokerEvent:
    return HandshakeFailed(at_s, found[1] if found.re.groups else None, found[0])


# What the whole text after the time must be, and what it means. An id is greedy: what follows it is mosquitto's own.
_PATTERNS: Final[tuple[tuple[re.Pattern[str], _Build], ...]] = tuple(
    (re.compile(pattern), build)
    for pattern, build in (
        (
            r"New client connected from (\S+):(\d+) as (.+) \(p(\d+), c([01]), k(\d+)(?:, u'(.*)')?\)\.",
            _connected,
        ),
        (
            r"New connection from (\S+):(\d+) on port (\d+)\.",
            lambda at_s, found: ConnectionOpened(at_s, found[1], int(found[3]), int(found[2])),
        ),
        (
            r"Client (.+) already connected, closing old connection\.",
            lambda at_s, found: ClientTakenOver(at_s, found[1]),
        ),
        # In the order of mosquitto's own list, where a text could be the end of another.
        (r"Client (.+) disconnected due to out of memory\.", _ended(SERVER_ERROR)),
        (r"Client (.+) disconnected due to [^:.]+\.", _violated),
        # Retained messages are not allowed, which is the one case that comes here ("Unknown error").
        (r"Bad socket read/write on client (.+): [^:]+", _violated),
        (r"Client (.+) closed its connection\.", _ended(CONNECTION_LOST)),
        (r"Client (.+) has exceeded timeout, disconnecting\.", _ended(KEEP_ALIVE_TIMEOUT)),
        (r"Client (.+) been disconnected by administrative action\.", _ended(SERVER_INITIATED)),
        (r"Client (.+) disconnected, not authorised\.", _ended(AUTH_ERROR)),
        # The socket failed: a reset connection reads "Protocol error", which is TLS speaking, not MQTT.
        (r"Client (.+) disconnected: [^:]+\.", _ended(CONNECTION_LOST)),
        (r"Client connection from (\S+) (?:failed|denied).*", _refused),
        (r"Client (.+) disconnected\.", _ended(CLIENT_INITIATED)),
        (r"OpenSSL Error\[\d+\]: (.*)", lambda at_s, found: TlsErrorReported(at_s, found[1])),
        (r"Reloading config\.", lambda at_s, _: ConfigurationReloaded(at_s)),
        (r"mosquitto version \S+ starting", lambda at_s, _: BrokerStarted(at_s)),
        (r"mosquitto version \S+ terminating", lambda at_s, _: BrokerStopping(at_s)),
    )
)
# Only lines of the topics `M/subscribe` and `M/unsubscribe` are these; in the file they stand among the others.
_SUBSCRIBED: Final = re.compile(r"(\S+) ([012]) (.+)")
_UNSUBSCRIBED: Final = re.compile(r"(\S+) (.+)")
# The words with which mosquitto's other lines begin.
_OWN_WORDS: Final = re.compile(
    "ACL|Bad|Bridge|Client|Config|Connecting|Empty|Error|Expiring|Invalid|Loading|New|Opening|OpenSSL|Outgoing|Protocol|"
    "Received|Reloading|Restored|Saving|Socket|Starting|TLS|Too|Unable|Warning|mosquitto"
)


def is_reserved_name(name: str) -> bool:
    """Tell whether lines about a client of this name could be taken for something else that mosquitto says.

    With such a name a device could write "Client x disconnected." by unsubscribing from "x disconnected.".
    """
    return _OWN_WORDS.fullmatch(name) is not None


def parse_line(line: str, *, heard_at_s: float | None = None) -> BrokerEvent | None:
    """Return what a line of the log says, None for one that is of no concern here.

    A line tells whole seconds. Given when it was heard, a fresh one's event has that time, to the millisecond.
    """
    time_text, separator, text = line.partition(": ")
    if not separator:
        return None
    try:
        at = dt.datetime.fromisoformat(time_text)
    except ValueError:
        return None
    # A time without its zone is of another configuration of the broker.
    if at.tzinfo is None:
        return None
    at_s = at.timestamp()
    if heard_at_s is not None and 0 <= heard_at_s - at_s < _FRESH_S:
        at_s = heard_at_s
    for pattern, build in _PATTERNS:
        found = pattern.fullmatch(text)
        if found is not None:
            return build(at_s, found)
    return _subscription(at_s, text)


def _subscription(at_s: float, text: str) -> BrokerEvent | None:
    if is_reserved_name(text.partition(" ")[0].rstrip(":")):
        return None
    if found := _SUBSCRIBED.fullmatch(text):
        return Subscribed(at_s, found[1], found[3], int(found[2]))
    if found := _UNSUBSCRIBED.fullmatch(text):
        return Unsubscribed(at_s, found[1], found[2])
    return None
