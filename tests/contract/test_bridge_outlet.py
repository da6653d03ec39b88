"""What waits for a bridge that takes nothing is bounded by its bytes; the newest is dropped, and counted."""

from __future__ import annotations

import os
import secrets
import signal
from typing import Any

import pytest
import ray

from actors.bridge_actor import BridgeActor
from actors.processes import wait_until
from actors.ray_fleet import start_actor
from actors.shard_actor import BridgeOutlet
from twins.messages import Publish

DEADLINE_S = 30.0
# About the largest that there is: `documents` of a full shadow.
PAYLOAD = b"x" * 200_000
COUNT = 200


@pytest.mark.usefixtures("ray_cluster")
def test_announcements_for_a_bridge_that_takes_none_are_bounded() -> None:
    name = f"bridge-{secrets.token_hex(4)}"
    bridge: Any = start_actor(BridgeActor, name)
    pid = ray.get(bridge.statistics.remote(), timeout=DEADLINE_S)["pid"]
    outlet = BridgeOutlet(name)
    os.kill(pid, signal.SIGSTOP)
    try:
        for _ in range(COUNT):
            outlet([Publish("telemetry/lamp/log", PAYLOAD)])
        assert COUNT * len(PAYLOAD) > 2 * outlet.WAITING_BYTES_MAX
        assert outlet.dropped_count > COUNT // 2
        assert outlet.waiting_bytes <= outlet.WAITING_BYTES_MAX
        assert outlet.waiting_count * len(PAYLOAD) <= outlet.WAITING_BYTES_MAX
    finally:
        os.kill(pid, signal.SIGCONT)
    # It refuses them, because nobody has opened it; whatever becomes of them, they make room.
    assert wait_until(lambda: outlet.waiting_bytes == 0, timeout_s=DEADLINE_S)
    ray.kill(bridge)
