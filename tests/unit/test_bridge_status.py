"""What /v1/cluster and /metrics tell of the bridge, from the bridge's own statistics."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from actors.gateway_actor import bridge_status
from actors.mqtt_bridge import BridgeStatistics


def statistics(**known: Any) -> dict[str, Any]:
    """Return statistics as the bridge's actor gives them, with a number of its own for each count."""
    numbers = {field.name: number for number, field in enumerate(fields(BridgeStatistics), start=1)}
    return {"pid": 7, "retention_ended_count": 100, **numbers, **known}


def test_a_bridge_without_its_broker_is_down_and_says_why() -> None:
    lost = bridge_status(
        statistics(is_connected=False, last_broker_error="the MQTT broker was silent for 15 s")
    )
    assert (lost.state, lost.reason) == ("down", "the MQTT broker was silent for 15 s")
    unknown = bridge_status({"pid": 7})
    assert (unknown.state, unknown.reason) == ("down", "not connected to the broker")


def test_every_count_of_the_bridge_that_is_told_is_one_that_it_has() -> None:
    told = bridge_status(statistics(is_connected=True))
    assert (told.state, told.reason) == ("ready", "")
    assert all(told.totals.values())
    assert len(set(told.totals.values())) == len(told.totals)
