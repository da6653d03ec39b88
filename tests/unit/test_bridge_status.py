"""What /v1/cluster and /metrics tell of the bridge from its own statistics, and of all parts together."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from actors.gateway_actor import bridge_status, merged
from actors.metrics import ProcessStatus
from actors.mqtt_bridge import BridgeStatistics
from actors.supervisor import PartStatus


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


def test_what_parts_say_of_themselves_is_put_with_what_their_supervisor_says_by_name() -> None:
    live = {
        "store": ProcessStatus("store", 11),
        # The node joined before the head had started its second actor again.
        "shard-actor-1": ProcessStatus("shard_actor", 21),
        "attic/shard-actor-0": ProcessStatus("shard_actor", 31),
    }
    statuses = [
        PartStatus("shard_actor", 0, 20, "restarting", "it has died", 2),
        PartStatus("shard_actor", 1, 0, "ready", "", 1),
        PartStatus("store", 0, 11, "ready", "", 0),
    ]
    found = [(each.role, each.pid, each.state, each.totals) for each in merged(live, statuses)]
    assert found == [
        ("shard_actor", 20, "restarting", {"restarts": 2}),
        ("shard_actor", 21, "ready", {"restarts": 1}),
        ("store", 11, "ready", {"restarts": 0}),
        ("shard_actor", 31, "ready", {}),
    ]
    # Before the supervisor has said anything.
    assert merged(live, []) == list(live.values())
