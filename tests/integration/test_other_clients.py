"""Other people's MQTT clients as docs/devices.md shows them: its very lines are run, on a test's platform."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from actors.processes import find_tool
from tests.integration.running_platform import COMMAND_TIMEOUT_S, RunningPlatform, environment_of, until

PAGE = Path(__file__).parents[2] / "docs" / "devices.md"
# As the page calls the device and the port; the platform of the tests has other ports, and other devices.
NAME = "lamp-2"
PORT = "8883"


def block_of(language: str, word: str) -> str:
    """Return the one block of code on the page that is in a language and has a word."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (found,) = [block for block in blocks if word in block]
    assert NAME in found
    assert PORT in found
    return str(found)


def run(platform: RunningPlatform, directory: Path, *command: str) -> str:
    """Return what a command prints that finds mosquitto's clients, and twinfleet, as after `./dev setup`."""
    # ToolMissing, and so a failure, where they cannot be had.
    tool = find_tool("mosquitto_pub", package="mosquitto-clients")
    path = f"{tool.path.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
        cwd=directory,
        env=environment_of(platform.data_dir, {**tool.environment, "PATH": path}),
    )
    assert done.returncode == 0, done
    return done.stdout


def test_the_pages_lines_for_mosquittos_clients_work(platform: RunningPlatform, tmp_path: Path) -> None:
    name = "lamp-mosquitto"
    lines = block_of("sh", "mosquitto_pub").replace(NAME, name)
    lines = lines.replace(PORT, str(platform.endpoints.mqtts.port))
    twinfleet = shlex.join([sys.executable, "-m", "twinfleet"])
    where = f"PYTHONPATH={shlex.quote(str(PAGE.parents[1]))}"
    lines = re.sub(
        r"^\.venv/bin/twinfleet (.*)$",
        lambda found: f"{where} {twinfleet} {found[1]} --data-dir {shlex.quote(str(platform.data_dir))}",
        lines,
        flags=re.MULTILINE,
    )
    printed = [
        json.loads(line)
        for line in run(platform, tmp_path, "bash", "-euc", lines).splitlines()
        if line.startswith("{")
    ]
    got, delta = printed
    assert got["state"] == {"reported": {"set_point": 20}}
    assert delta["state"] == {"set_point": 21.5}
    with platform.api() as api:

        def told() -> float | None:
            streams = api.get(f"/v1/twins/{name}/telemetry").json()["streams"]
            value: float | None = streams.get("climate", {}).get("temperature", {}).get("value")
            return value

        until(lambda: told() == 20.5, "the telemetry arrives")


@pytest.mark.parametrize("protocol", ["MQTTv311", "MQTTv5"])
def test_the_readmes_program_for_paho_works(platform: RunningPlatform, tmp_path: Path, protocol: str) -> None:
    name = f"lamp-paho-{protocol.lower()}"
    (tmp_path / name).mkdir()
    platform.enrol(name, tmp_path / name)
    platform.done("twin", "set", name, "set_point=21.5")
    program = block_of("python", "paho").replace(NAME, name)
    program = program.replace(PORT, str(platform.endpoints.mqtts.port))
    program = program.replace("VERSION2)", f"VERSION2, protocol=mqtt.{protocol})")
    printed = run(platform, tmp_path, sys.executable, "-c", program)
    assert f"$aws/things/{name}/shadow/update/accepted" in printed
    with platform.api() as api:
        state = api.get(f"/things/{name}/shadow").json()["state"]
    assert state["reported"] == {"set_point": 21.5}
    assert "delta" not in state
