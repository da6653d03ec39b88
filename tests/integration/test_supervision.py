"""What dies comes back by itself, with all that was accepted, and the platform says what was missing and why."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
import psutil
import pytest

from tests.integration.running_platform import RunningPlatform, platform_on, until

# Ray as a whole takes ten seconds on two quiet cores.
RECOVERY_TIMEOUT_S: Final = 90.0
THING_COUNT: Final = 8


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPlatform]:
    with platform_on(tmp_path_factory.mktemp("supervised") / "data") as running:
        yield running


def cluster_of(platform: RunningPlatform) -> dict[str, Any]:
    """Return the platform's description of itself, empty while nobody answers."""
    with contextlib.suppress(httpx.HTTPError, ValueError), platform.api() as api:
        answer = api.get("/v1/cluster")
        if answer.status_code == 200:
            found: dict[str, Any] = answer.json()
            return found
    return {}


def processes_of(platform: RunningPlatform, role: str) -> list[dict[str, Any]]:
    return [each for each in cluster_of(platform).get("processes", []) if each["role"] == role]


def restarts_of(platform: RunningPlatform, role: str) -> int:
    return sum(process["totals"].get("restarts", 0) for process in processes_of(platform, role))


def pid_of(platform: RunningPlatform, role: str) -> int:
    if role == "raylet":
        children = psutil.Process(platform.process.pid).children(recursive=True)
        return next(int(child.pid) for child in children if child.name() == "raylet")
    pid: int = processes_of(platform, role)[0]["pid"]
    return pid


def set_desired(platform: RunningPlatform, value: int) -> dict[str, int]:
    """Let an operator change some things, spread over the shards; return what was accepted."""
    accepted = {}
    with platform.api() as api:
        for number in range(THING_COUNT):
            path = f"/things/sturdy-{number}x/shadow"
            until(partial(is_accepted, api, path, value), f"{path} is accepted")
            accepted[path] = value
    return accepted


def is_accepted(api: httpx.Client, path: str, value: int) -> bool:
    """Tell whether a change is accepted; it may be put off, as where a part has died since it was last asked."""
    answer = api.post(path, json={"state": {"desired": {"value": value}}})
    assert answer.status_code in (200, 429, 503), answer.text
    return answer.status_code == 200


def found_in(platform: RunningPlatform, path: str) -> int:
    with platform.api() as api:
        value: int = api.get(path).json()["state"]["desired"]["value"]
        return value


# The order matters not; the last takes all actors with it.
@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("victim", "role"),
    [
        ("store", "store"),
        ("broker", "broker"),
        ("shard_actor", "shard_actor"),
        ("bridge", "bridge"),
        ("gateway", "gateway"),
        ("ray", "ray"),
        ("raylet", "ray"),
    ],
)
def test_a_killed_part_comes_back_with_all_that_was_accepted(
    platform: RunningPlatform, victim: str, role: str
) -> None:
    accepted = set_desired(platform, len(victim))
    restart_count, pid = restarts_of(platform, role), pid_of(platform, victim)
    os.kill(pid, signal.SIGKILL)

    def is_back() -> bool:
        return restarts_of(platform, role) > restart_count and bool(cluster_of(platform).get("is_ready"))

    until(is_back, f"{victim} is back and all is ready", timeout_s=RECOVERY_TIMEOUT_S)
    assert pid_of(platform, victim) != pid
    assert {path: found_in(platform, path) for path in accepted} == accepted
    set_desired(platform, len(victim) + 100)
    assert f"{role} 0" in (platform.directory.logs / "supervisor.log").read_text()


@pytest.mark.timeout(180)
def test_a_part_that_cannot_come_back_makes_the_platform_unready_and_says_why(
    platform: RunningPlatform, tmp_path: Path
) -> None:
    # Nothing that a broker reads is there any more.
    moved = tmp_path / "mosquitto"
    server_key = platform.directory.pki / "server.key"
    server_key.rename(moved)
    restart_count = restarts_of(platform, "broker")
    os.kill(pid_of(platform, "broker"), signal.SIGKILL)

    def reasons() -> list[str]:
        with platform.api() as api:
            answer = api.get("/readyz")
        assert (answer.status_code == 200) == (answer.json()["reasons"] == [])
        return [reason for reason in answer.json()["reasons"] if "broker" in reason]

    until(lambda: any("attempt 2" in reason for reason in reasons()), "it says that it has tried twice")
    assert "server.key" in reasons()[0]
    assert processes_of(platform, "broker")[0]["state"] in ("restarting", "down")
    # What does not need the broker is served all the while.
    set_desired(platform, 1)
    moved.rename(server_key)
    until(
        lambda: restarts_of(platform, "broker") > restart_count and not reasons(),
        "the broker is back",
        timeout_s=RECOVERY_TIMEOUT_S,
    )


def test_a_platform_that_has_started_ray_again_ends_as_cleanly_as_any(tmp_path: Path) -> None:
    with platform_on(tmp_path / "data") as platform:
        pid = pid_of(platform, "raylet")
        os.kill(pid, signal.SIGKILL)
        until(
            lambda: restarts_of(platform, "ray") > 0 and bool(cluster_of(platform).get("is_ready")),
            "Ray is back",
            timeout_s=RECOVERY_TIMEOUT_S,
        )
        assert platform.stop() == 0, platform.output()
        platform.expect_nothing_left()
