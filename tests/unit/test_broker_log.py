"""What mosquitto's log lines mean: each line as mosquitto 2.0.11 wrote it, and what a client can't make it say."""

from __future__ import annotations

import pytest

from actors.broker_log import (
    BrokerEvent,
    BrokerStarted,
    BrokerStopping,
    ClientConnected,
    ClientDisconnected,
    ClientTakenOver,
    ConfigurationReloaded,
    ConnectionOpened,
    HandshakeFailed,
    ProtocolViolated,
    Subscribed,
    TlsErrorReported,
    Unsubscribed,
    is_reserved_name,
    parse_line,
)

TIME = "2026-11-23T17:20:03+0000"
AT_S = 1795454403.0

LINES: list[tuple[str, BrokerEvent | None]] = [
    ("mosquitto version 2.0.11 starting", BrokerStarted(AT_S)),
    ("mosquitto version 2.0.11 running", None),
    ("mosquitto version 2.0.11 terminating", BrokerStopping(AT_S)),
    ("Reloading config.", ConfigurationReloaded(AT_S)),
    ("New connection from 127.0.0.1:47894 on port 22101.", ConnectionOpened(AT_S, "127.0.0.1", 22101, 47894)),
    ("New connection from ::1:47894 on port 22101.", ConnectionOpened(AT_S, "::1", 22101, 47894)),
    (
        "New client connected from 127.0.0.1:47894 as devA (p5, c1, k60, u'devA').",
        ClientConnected(AT_S, "127.0.0.1", 47894, "devA", "devA", 5, 60, True),
    ),
    (
        "New client connected from ::1:43004 as devA (p2, c0, k0, u'devA').",
        ClientConnected(AT_S, "::1", 43004, "devA", "devA", 4, 0, False),
    ),
    (
        "New client connected from 127.0.0.1:1 as someone (p1, c1, k10).",
        ClientConnected(AT_S, "127.0.0.1", 1, "someone", "", 3, 10, True),
    ),
    ("Client devA already connected, closing old connection.", ClientTakenOver(AT_S, "devA")),
    ("Client devA disconnected.", ClientDisconnected(AT_S, "devA", "CLIENT_INITIATED_DISCONNECT")),
    ("Client devA closed its connection.", ClientDisconnected(AT_S, "devA", "CONNECTION_LOST")),
    ("Client devA disconnected: Protocol error.", ClientDisconnected(AT_S, "devA", "CONNECTION_LOST")),
    ("Client devA disconnected: Broken pipe.", ClientDisconnected(AT_S, "devA", "CONNECTION_LOST")),
    (
        "Client devA has exceeded timeout, disconnecting.",
        ClientDisconnected(AT_S, "devA", "MQTT_KEEP_ALIVE_TIMEOUT"),
    ),
    ("Client devA disconnected, not authorised.", ClientDisconnected(AT_S, "devA", "AUTH_ERROR")),
    (
        "Client devA been disconnected by administrative action.",
        ClientDisconnected(AT_S, "devA", "SERVER_INITIATED_DISCONNECT"),
    ),
    ("Client devA disconnected due to out of memory.", ClientDisconnected(AT_S, "devA", "SERVER_ERROR")),
    *(
        (text, ProtocolViolated(AT_S, "devA", text))
        for text in (
            "Client devA disconnected due to protocol error.",
            "Client devA disconnected due to malformed packet.",
            "Client devA disconnected due to oversize packet.",
            "Client devA disconnected due to oversize payload.",
            "Client devA disconnected due to QoS too high or retain not supported.",
            "Bad socket read/write on client devA: Unknown error.",
        )
    ),
    (
        "Client <unknown> disconnected due to protocol error.",
        ProtocolViolated(AT_S, None, "Client <unknown> disconnected due to protocol error."),
    ),
    *(
        (text, HandshakeFailed(AT_S, None, text))
        for text in (
            "Client <unknown> disconnected: Protocol error.",
            "Client <unknown> closed its connection.",
            "Client <unknown> has exceeded timeout, disconnecting.",
            "Client <unknown> disconnected, not authorised.",
        )
    ),
    *(
        (text, HandshakeFailed(AT_S, "127.0.0.1", text))
        for text in (
            "Client connection from 127.0.0.1 failed: error:0A00009C:SSL routines::http request.",
            "Client connection from 127.0.0.1 denied: max_connections exceeded.",
        )
    ),
    (
        "OpenSSL Error[0]: error:0A0000C7:SSL routines::peer did not return a certificate",
        TlsErrorReported(AT_S, "error:0A0000C7:SSL routines::peer did not return a certificate"),
    ),
    ("devA 1 $aws/things/devA/shadow/#", Subscribed(AT_S, "devA", "$aws/things/devA/shadow/#", 1)),
    ("devA 0 a b/c", Subscribed(AT_S, "devA", "a b/c", 0)),
    ("devA a b/c", Unsubscribed(AT_S, "devA", "a b/c")),
    # What a line says comes before it: no event of its own.
    ("Bad client devA sending multiple CONNECT messages.", None),
    ('Invalid protocol "MQXX" in CONNECT from 127.0.0.1.', None),
    ("Warning: Mosquitto should not be run as root/administrator.", None),
    ("Config loaded from /data/mosquitto/mosquitto.conf.", None),
    ("Opening ipv4 listen socket on port 22101.", None),
    ("Saving in-memory database to /data/mosquitto//mosquitto.db.", None),
    ("Error: Unable to load CRL file.", None),
    ("Expiring client devA due to timeout.", None),
    ("Outgoing messages are being dropped for client devA.", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "event"), LINES, ids=[text for text, _ in LINES])
def test_a_line_of_mosquitto_means_this(text: str, event: BrokerEvent | None) -> None:
    assert parse_line(f"{TIME}: {text}") == event


@pytest.mark.parametrize(
    "line",
    ["", "no time", "Client devA disconnected.", "1795454403: Client devA disconnected.",
     "2026-11-23T17:20:03: Client devA disconnected.", f"{TIME} Client devA disconnected."],
)  # fmt: skip
def test_a_line_without_a_time_and_its_zone_means_nothing(line: str) -> None:
    assert parse_line(line) is None


def test_the_time_is_read_with_its_zone() -> None:
    event = parse_line("2026-11-23T19:20:03+0200: Reloading config.")
    assert event is not None
    assert event.at_s == AT_S


def test_a_line_that_is_heard_at_once_has_the_time_of_hearing() -> None:
    fresh = parse_line(f"{TIME}: Reloading config.", heard_at_s=AT_S + 0.734)
    stored = parse_line(f"{TIME}: Reloading config.", heard_at_s=AT_S + 7.5)
    assert fresh is not None
    assert stored is not None
    assert (fresh.at_s, stored.at_s) == (AT_S + 0.734, AT_S)


def test_a_client_id_that_reads_like_a_line_is_read_from_the_right() -> None:
    # Ids with spaces come over the internal listener only; even there they may not speak for others.
    name = "x disconnected. as devB (p5, c1, k60, u'devB')."
    assert parse_line(f"{TIME}: Client {name} closed its connection.") == ClientDisconnected(
        AT_S, name, "CONNECTION_LOST"
    )
    connected = parse_line(f"{TIME}: New client connected from 127.0.0.1:5 as {name} (p5, c0, k60, u'me').")
    assert connected == ClientConnected(AT_S, "127.0.0.1", 5, name, "me", 5, 60, False)


@pytest.mark.parametrize("name", ["Client", "New", "mosquitto", "OpenSSL", "Reloading"])
def test_a_name_under_which_a_device_could_speak_as_the_broker_is_reserved(name: str) -> None:
    assert is_reserved_name(name)


@pytest.mark.parametrize("name", ["client", "Client-1", "lamp", "News"])
def test_other_names_are_not_reserved(name: str) -> None:
    assert not is_reserved_name(name)
