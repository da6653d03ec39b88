"""Which sessions are open: what each event of the broker opens and closes, and what changes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from actors.broker_log import (
    BrokerEvent,
    BrokerStarted,
    BrokerStopping,
    ClientConnected,
    ClientDisconnected,
    ClientTakenOver,
    ConfigurationReloaded,
    ProtocolViolated,
    Subscribed,
    Unsubscribed,
)
from actors.sessions import OpenSessions, SessionChange, SessionClosed, SessionOpened, TopicsChanged

AT_S = 1_700_000_000.0


def connected(name: str = "lamp", *, port: int = 1, user: str | None = None) -> ClientConnected:
    return ClientConnected(AT_S, "127.0.0.1", port, name, name if user is None else user, 4, 60, True)


def fifth(name: str = "lamp", *, user: str | None = None) -> ClientConnected:
    return replace(connected(name, user=user), protocol=5)


def changes(*events: BrokerEvent) -> list[SessionChange]:
    """Return what the last of some events changes."""
    sessions = OpenSessions({})
    return [sessions.take(event) for event in events][-1]


ENDS = [
    (ClientDisconnected(AT_S, "lamp", "CLIENT_INITIATED_DISCONNECT"), "CLIENT_INITIATED_DISCONNECT"),
    (ClientDisconnected(AT_S, "lamp", "CONNECTION_LOST"), "CONNECTION_LOST"),
    (ClientDisconnected(AT_S, "lamp", "MQTT_KEEP_ALIVE_TIMEOUT"), "MQTT_KEEP_ALIVE_TIMEOUT"),
    (ProtocolViolated(AT_S, "lamp", "malformed"), "CLIENT_ERROR"),
    (BrokerStopping(AT_S), "SERVER_INITIATED_DISCONNECT"),
    (BrokerStarted(AT_S), "SERVER_ERROR"),
    (connected(port=9, user="app.bridge"), "SERVER_INITIATED_DISCONNECT"),
]


@pytest.mark.parametrize(("event", "reason"), ENDS, ids=[reason for _, reason in ENDS])
def test_a_session_ends_for_its_reason(event: BrokerEvent, reason: str) -> None:
    assert changes(connected(), event) == [SessionClosed(AT_S, "lamp", reason)]
    assert changes(connected(), event, event) == []


def test_a_client_that_connects_opens_a_session() -> None:
    assert changes(connected()) == [SessionOpened(AT_S, "lamp", "127.0.0.1", 1)]


def test_a_newer_connection_of_the_same_id_ends_the_older_one() -> None:
    assert changes(connected(port=1), ClientTakenOver(AT_S, "lamp"), connected(port=2)) == [
        SessionClosed(AT_S, "lamp", "DUPLICATE_CLIENTID"),
        SessionOpened(AT_S, "lamp", "127.0.0.1", 2),
    ]


@pytest.mark.parametrize(
    "event",
    [
        ClientDisconnected(AT_S, "door", "CONNECTION_LOST"),
        ProtocolViolated(AT_S, None, "not yet named"),
        ConfigurationReloaded(AT_S),
        ClientTakenOver(AT_S, "lamp"),
        connected(),
        connected("app.bridge"),
        connected("app.events"),
        connected("app.probe.1.2", user="app.bridge"),
        Subscribed(AT_S, "door", "a", 1),
    ],
    ids=repr,
)
def test_other_events_change_nothing(event: BrokerEvent) -> None:
    assert changes(connected(), event) == []


def test_the_disconnect_of_a_client_of_ours_that_took_a_devices_id_ends_no_session_of_the_device() -> None:
    probe = connected(port=9, user="app.bridge")
    ended = ClientDisconnected(AT_S, "lamp", "CLIENT_INITIATED_DISCONNECT")
    assert changes(connected(), probe, ended) == []
    # Not even where the device was back in between: its line comes after the takeover of the probe.
    assert changes(connected(), probe, connected(port=3)) == [SessionOpened(AT_S, "lamp", "127.0.0.1", 3)]


def test_a_client_with_a_session_tells_what_it_listens_to() -> None:
    assert changes(connected(), Subscribed(AT_S, "lamp", "a/#", 1)) == [
        TopicsChanged(AT_S, "lamp", True, "a/#")
    ]
    assert changes(connected(), Unsubscribed(AT_S, "lamp", "a/#")) == [
        TopicsChanged(AT_S, "lamp", False, "a/#")
    ]


def test_sessions_known_to_be_open_go_on() -> None:
    sessions = OpenSessions({"lamp": 5})
    assert sessions.take(connected(port=5)) == []
    assert sessions.take(BrokerStarted(AT_S)) == [SessionClosed(AT_S, "lamp", "SERVER_ERROR")]


@pytest.mark.parametrize("end", [event for event, _ in ENDS[:-1]], ids=[reason for _, reason in ENDS[:-1]])
def test_a_client_of_mqtt_5_is_away_however_its_connection_ended(end: BrokerEvent) -> None:
    sessions = OpenSessions({}).after([fifth()])
    assert sessions.away() == []
    assert sessions.after([end]).away() == ["lamp"]


def test_a_client_is_away_no_more_once_it_is_back_was_ended_or_speaks_an_older_protocol() -> None:
    sessions = OpenSessions({}).after([fifth(), ENDS[0][0]])
    gone = ENDS[0][0]
    assert sessions.after([fifth()]).away() == []
    assert sessions.after([fifth(user="app.bridge"), gone]).away() == []
    assert sessions.after([connected(), gone]).away() == []
    assert sessions.away() == ["lamp"]


def test_an_older_protocol_leaves_nobody_away() -> None:
    assert OpenSessions({}).after([connected(), ENDS[0][0]]).away() == []


def test_who_is_away_is_known_from_what_was_kept() -> None:
    assert OpenSessions({"lamp": 1}, fifth=["fan", "lamp"]).away() == ["fan"]
