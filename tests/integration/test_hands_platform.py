"""On the whole platform: a real device in the place of a simulated one, and a twin with a behaviour of its own."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.presence_stage import describe, raw_client, until_connected
from tests.integration.raw_mqtt import Connect
from tests.integration.running_platform import RunningPlatform, until

_COUNTER = """
class Counter:
    def step(self, twin):
        count = twin.memory["count"] = twin.memory.get("count", 0) + 1
        if twin.desired.get("fail"):
            raise RuntimeError("no water")
        return {"reported": {"count": count}}
"""


@pytest.fixture(scope="module")
def fleet(platform: RunningPlatform) -> Iterator[str]:
    """Give the beginning of the names of a standing fleet's devices, which report every second."""
    options = ["--model", "thermostat", "--count", "20", "--report-every", "1s"]
    platform.done("fleet", "create", "hands", *options)
    yield "hands-0000"
    platform.done("fleet", "delete", "hands")


def reported(platform: RunningPlatform, name: str) -> dict[str, Any]:
    with platform.api() as api:
        found: dict[str, Any] = api.get(f"/things/{name}/shadow").json()
    return dict(found.get("state", {}).get("reported", {}))


def pinned(platform: RunningPlatform, name: str) -> dict[str, Any]:
    """Return what is said of the process that a twin is pinned to; nothing where there is none."""
    with platform.api() as api:
        processes = api.get("/v1/cluster").json()["processes"]
    return next((dict(each) for each in processes if each["thing_name"] == name), {})


def test_a_real_device_takes_a_simulated_ones_place_and_gives_it_back(
    platform: RunningPlatform, fleet: str, tmp_path: Path
) -> None:
    name = f"{fleet}07"
    until(lambda: platform.version_of(name) > 1, "the simulated device reports")
    platform.enrol(name, tmp_path)
    before = platform.version_of(name)
    assert describe(platform, name)["origin"] == "real"
    topic = f"$aws/things/{name}/shadow/update"
    with raw_client(platform, name, tmp_path).session(Connect(b"x")) as device:
        device.subscribe(f"{topic}/accepted")
        until_connected(platform, name, True)
        device.publish(topic, b'{"state":{"reported":{"temperature":-5.5}}}')
        accepted = device.next_message()
    assert json.loads(accepted.payload)["version"] == before + 1
    assert reported(platform, name)["temperature"] == -5.5
    until_connected(platform, name, False)
    assert "real thermostat" in platform.done("twin", "describe", name)
    assert platform.done("twin", "give-back", name) == f"{name}: simulated again\n"
    assert describe(platform, name)["origin"] == "simulated"
    until(lambda: reported(platform, name)["temperature"] > 0, "the simulated device reports again")
    with raw_client(platform, name, tmp_path).session(Connect(b"x")):
        until(lambda: describe(platform, name)["origin"] == "real", "a connection takes the place again")
    platform.done("device", "delete", name)
    assert describe(platform, name)["origin"] == "simulated"
    refused = platform.run("twin", "give-back", name)
    assert (refused.returncode, "not taken over" in refused.stderr) == (1, True)


def test_a_twin_is_pinned_killed_and_unpinned(platform: RunningPlatform, fleet: str) -> None:
    name = f"{fleet}11"
    (platform.directory.behaviors / "tf_platform_counter.py").write_text(_COUNTER)
    missing = platform.run("twin", "pin", name, "--behavior", "tf_nowhere:Counter")
    assert (missing.returncode, "tf_nowhere.py" in missing.stderr) == (1, True)
    assert "pinned to" in platform.done("twin", "pin", name, "--behavior", "tf_platform_counter:Counter")
    until(lambda: reported(platform, name).get("count", 0) > 1, "the behaviour is called")
    # It is called before its supervisor has heard that it is open.
    until(lambda: pinned(platform, name).get("state") == "ready", "its supervisor has heard from it")
    process = pinned(platform, name)
    assert process["role"] == "pinned_twin"
    assert f"pinned_twin {name}" in platform.done("status")
    os.kill(process["pid"], signal.SIGKILL)
    count = reported(platform, name)["count"]
    until(lambda: reported(platform, name)["count"] > count + 1, "the behaviour goes on", timeout_s=90)
    until(lambda: pinned(platform, name).get("pid", 0) not in (0, process["pid"]), "another process runs it")
    platform.done("twin", "set", name, "fail=true")
    until(lambda: "no water" in pinned(platform, name).get("reason", ""), "the failure is told", timeout_s=60)
    with platform.api() as api:
        # Somebody's model is no part of the platform.
        assert api.get("/readyz").status_code == 200
    platform.done("twin", "set", name, "fail=null")
    assert platform.json("twin", "describe", name)["pin"]["behavior"] == "tf_platform_counter:Counter"
    platform.done("twin", "unpin", name)
    until(lambda: not pinned(platform, name), "the process is gone", timeout_s=60)
    version = platform.version_of(name)
    until(lambda: platform.version_of(name) > version, "the simulation goes on")
