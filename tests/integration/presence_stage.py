"""What tests need to see a device come and go on a whole platform."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.integration.raw_mqtt import RawClient
from tests.integration.running_platform import RunningPlatform, until


def raw_client(platform: RunningPlatform, name: str, files: Path) -> RawClient:
    """Return a client of the platform's broker with the certificate NAME.pem among `files`."""
    certificate, key = files / f"{name}.pem", files / f"{name}.key"
    return RawClient.of(platform.endpoints.mqtts.port, files / "ca.pem", certificate=certificate, key=key)


def describe(platform: RunningPlatform, name: str) -> dict[str, Any]:
    """Return the description of a twin."""
    with platform.api() as api:
        answer = api.get(f"/v1/twins/{name}")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def until_connected(platform: RunningPlatform, name: str, is_connected: bool) -> dict[str, Any]:
    """Return what a twin knows of its connection, once it knows this."""

    def is_known() -> bool:
        known = describe(platform, name)["connectivity"]
        return known is not None and known["connected"] is is_connected

    until(is_known, f"the twin of {name} knows that it is {'' if is_connected else 'not '}connected")
    return dict(describe(platform, name)["connectivity"])
