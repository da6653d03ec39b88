"""What a backup takes from the broker's file: what is retained, and no message that waits for somebody."""

from __future__ import annotations

import io
import socket
from pathlib import Path

import pytest

from actors.backup.broker_file import UnknownFormError, retained_only
from actors.mqtt_retained import read_retained
from tests.integration.raw_mqtt import CONNACK, Connect, RawSession
from tests.integration.running_broker import DEADLINE_S, Site, make_site, running_site

TOPICS = [f"shown/{number}" for number in range(50)]
# Of any client that stays away.
WAITING = b"waits for a client that is away"


def session_on(site: Site, link: socket.socket, *, client_id: str) -> RawSession:
    listener = site.broker.internal
    connect = Connect(client_id, is_clean=False, user_name=listener.user_name, password=listener.password)
    session = RawSession(link)
    session.send(connect.encode())
    return session


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    """Return the file of a broker that retains messages and keeps one for a client."""
    with running_site(tmp_path / "first") as site:
        listener = site.broker.internal
        for client_id in ("app.away", "app.test"):
            with socket.create_connection((listener.host, listener.port), timeout=DEADLINE_S) as link:
                session = session_on(site, link, client_id=client_id)
                session.until(CONNACK)
                if client_id == "app.away":
                    session.subscribe("waiting/#")
                    continue
                session.publish("waiting/one", WAITING)
                for topic in TOPICS:
                    session.publish(topic, topic.encode() * 100, is_retained=True)
                session.publish(TOPICS[0], b"", is_retained=True)
        directory = site.directory.mosquitto
    # It saves when it is stopped.
    return (directory / "mosquitto.db").read_bytes()


async def test_a_broker_retains_what_another_has_retained(content: bytes, tmp_path: Path) -> None:
    assert WAITING in content
    copied = b"".join(retained_only(io.BytesIO(content)))
    assert WAITING not in copied
    assert b"app.away" not in copied
    site = make_site(tmp_path / "second")
    (site.directory.mosquitto / "mosquitto.db").write_bytes(copied)
    site.broker.start()
    try:
        found = await read_retained(site.connection(), ["#"])
    finally:
        site.broker.stop()
    assert {message.topic: message.payload for message in found} == {
        topic: topic.encode() * 100 for topic in TOPICS[1:]
    }


def test_a_file_of_another_form_or_cut_off_is_refused(content: bytes) -> None:
    other = bytearray(content)
    other[22] += 1
    for broken in (bytes(other), content[:-1], content[:20], b"", b"x" * 100):
        with pytest.raises(UnknownFormError):
            list(retained_only(io.BytesIO(broken)))
