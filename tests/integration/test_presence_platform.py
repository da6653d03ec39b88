"""Presence and device metrics on the whole platform: an SDK device, and an application that watches."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.presence_stage import describe, raw_client, until_connected
from tests.integration.raw_mqtt import Connect, RawSession
from tests.integration.running_platform import RunningPlatform
from tests.integration.sdk_device import over_mqtt3, over_mqtt5

_NUMBERS = itertools.count()


@contextlib.contextmanager
def watching(platform: RunningPlatform, directory: Path) -> Iterator[RawSession]:
    """Give an observer's session that hears all presence."""
    name = f"presence-{next(_NUMBERS)}"
    platform.done("certificate", "create", name, "--role", "observer", "--out", str(directory))
    with raw_client(platform, name, directory).session(Connect(b"any")) as session:
        session.subscribe("$aws/events/presence/#")
        yield session


def heard(session: RawSession, kind: str, client_id: str) -> dict[str, Any]:
    """Return the next event of a kind about a client."""
    while True:
        message = session.next_message()
        if message.topic == f"$aws/events/presence/{kind}/{client_id}":
            return dict(json.loads(message.payload))


@pytest.mark.parametrize("over", [over_mqtt5, over_mqtt3], ids=["mqtt5", "mqtt3"])
def test_an_sdk_device_is_seen_to_come_and_go(platform: RunningPlatform, tmp_path: Path, over: Any) -> None:
    name = f"seen-{next(_NUMBERS)}"
    platform.enrol(name, tmp_path)
    with watching(platform, tmp_path) as observer:
        with over(name, tmp_path, platform):
            connected = heard(observer, "connected", name)
            known = until_connected(platform, name, True)
        disconnected = heard(observer, "disconnected", name)
    principal = platform.json("device", "describe", name)["certificates"][0]["certificate_id"]
    assert connected["principalIdentifier"] == disconnected["principalIdentifier"] == principal
    assert connected["sessionIdentifier"] == disconnected["sessionIdentifier"] == known["session"]
    assert disconnected["disconnectReason"] == "CLIENT_INITIATED_DISCONNECT"
    after = until_connected(platform, name, False)
    assert after["disconnect_reason"] == "CLIENT_INITIATED_DISCONNECT"


def test_a_device_whose_process_is_killed_is_seen_to_be_lost(
    platform: RunningPlatform, tmp_path: Path
) -> None:
    name = f"killed-{next(_NUMBERS)}"
    platform.enrol(name, tmp_path)
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from tests.integration.raw_mqtt import Connect, RawClient\n"
        "port, ca, certificate, key = int(sys.argv[1]), *map(Path, sys.argv[2:])\n"
        "with RawClient.of(port, ca, certificate=certificate, key=key).session(Connect(b'x')):\n"
        "    time.sleep(60)\n"
    )
    files = [str(tmp_path / file) for file in ("ca.pem", f"{name}.pem", f"{name}.key")]
    device = subprocess.Popen([sys.executable, "-c", script, str(platform.endpoints.mqtts.port), *files])
    try:
        until_connected(platform, name, True)
    finally:
        device.send_signal(signal.SIGKILL)
        device.wait()
    assert until_connected(platform, name, False)["disconnect_reason"] == "CONNECTION_LOST"


def test_a_report_of_metrics_is_answered_and_shown_on_the_twin(
    platform: RunningPlatform, tmp_path: Path
) -> None:
    name = f"metrics-{next(_NUMBERS)}"
    platform.enrol(name, tmp_path)
    topic = f"$aws/things/{name}/defender/metrics/json"
    report = b'{"hed":{"rid":7,"v":"1.0"},"met":{"tp":{"pts":[{"pt":22}],"t":1}}}'
    with raw_client(platform, name, tmp_path).session(Connect(b"x")) as device:
        device.subscribe(f"{topic}/accepted", f"{topic}/rejected")
        device.publish(topic, report)
        accepted = device.next_message()
        device.publish(topic, report)
        rejected = device.next_message()
        device.publish(topic, report.replace(b"7", b"8"))
        throttled = device.next_message()
    assert accepted.topic == f"{topic}/accepted"
    answer = json.loads(accepted.payload)
    assert (answer["thingName"], answer["reportId"], answer["status"]) == (name, 7, "ACCEPTED")
    assert rejected.topic == f"{topic}/rejected"
    assert json.loads(rejected.payload)["statusDetails"]["ErrorCode"] == "InvalidPayload"
    assert json.loads(throttled.payload)["statusDetails"]["ErrorCode"] == "Throttled"
    shown = describe(platform, name)["defender"]
    assert shown["metrics"] == {"listening_tcp_ports": {"ports": [{"port": 22}], "total": 1}}
    assert "metrics.listening_tcp_ports.total" in platform.done("twin", "describe", name)
