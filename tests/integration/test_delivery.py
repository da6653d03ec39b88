"""What the platform promises a device that comes and goes, kept by real SDK devices on a way that breaks."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from actors.broker import end_session
from tests.integration.bridge_stage import Wire
from tests.integration.recipe_device import Recipe, Way, recipe_device
from tests.integration.running_platform import RunningPlatform, until

# A connect takes about six pieces, an update about four.
PIECES_MAX = 14
# The shadow holds a few kilobytes: keys are set again and again.
KEY_COUNT = 25


class Operator:
    """Sets desired values over HTTP and remembers what was accepted."""

    def __init__(self, api: httpx.Client, name: str) -> None:
        self.desired: dict[str, Any] = {}
        self._api = api
        self._path = f"/things/{name}/shadow"
        self._count = 0

    def change(self) -> None:
        self._count += 1
        self.set({f"key-{self._count % KEY_COUNT}": self._count, "latest": self._count})

    def set(self, values: dict[str, Any]) -> int:
        answer = self._api.post(self._path, json={"state": {"desired": values}})
        assert answer.status_code == 200, answer.text
        self.desired.update(values)
        return int(answer.json()["version"])

    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = self._api.get(self._path).json()
        return document

    def agrees_with(self, device: Recipe) -> bool:
        """Tell whether the twin and the device are of one mind, and it is what was asked for."""
        document = self.document()
        state = document["state"]
        return (
            "delta" not in state
            and state["desired"] == self.desired
            and state["reported"] == device.state
            and self.desired.items() <= device.state.items()
        )


def is_growing(numbers: list[tuple[int, int]]) -> bool:
    """Tell whether versions grow while the connection stays the same."""
    return all(one[0] != other[0] or one[1] < other[1] for one, other in itertools.pairwise(numbers))


# ---- fifty disconnects ---------------------------------------------------------------------------------------------


def stop_and_start(device: Any, platform: RunningPlatform, pieces: int) -> None:
    """Disconnect as the protocol has it."""
    device.stop()
    device.start()


def cut(device: Any, platform: RunningPlatform, pieces: int) -> None:
    """Reset the connection in the middle of something."""
    break_way(device.way, pieces, lambda _wire: None)


def stall(device: Any, platform: RunningPlatform, pieces: int) -> None:
    """Let the device send and hear nothing for a while."""
    break_way(device.way, pieces, lambda wire: wire.answers.clear())


def swallow(device: Any, platform: RunningPlatform, pieces: int) -> None:
    """Lose what is sent."""
    break_way(device.way, pieces, lambda wire: setattr(wire, "is_silent", True))


def break_way(way: Way, pieces: int, how: Callable[[Wire], None]) -> None:
    way.break_after(pieces, how)
    # With too little to be carried it breaks here.
    way.broke.wait(0.2)
    way.renew()


def take_session(device: Any, platform: RunningPlatform, pieces: int) -> None:
    """End the connection and the session at the broker."""
    end_session(platform.data_dir, device.name)


@pytest.mark.parametrize(
    ("protocol", "is_session_kept", "count"),
    # A client of MQTT 3.1.1 waits for a second before it connects again.
    [("mqtt5", False, 50), ("mqtt5", True, 30), ("mqtt3", True, 10)],
)
def test_a_device_that_is_disconnected_again_and_again_and_its_twin_agree_in_the_end(
    platform: RunningPlatform, tmp_path: Path, protocol: str, count: int, *, is_session_kept: bool
) -> None:
    moments = random.Random(20261123)
    name = f"restless-{protocol}-{'kept' if is_session_kept else 'clean'}"
    with (
        platform.api() as api,
        recipe_device(protocol, name, platform, tmp_path, is_session_kept=is_session_kept) as device,
    ):
        operator = Operator(api, name)
        ways_to_go = [stop_and_start, cut, stall, swallow, take_session]
        while device.disconnect_count < count:
            until(device.is_connected.is_set, "connected again")
            before = device.disconnect_count
            device.change()
            operator.change()
            moments.choice(ways_to_go)(device, platform, moments.randint(1, PIECES_MAX))
            operator.change()
            device.change()
            until(lambda: device.disconnect_count > before, "disconnected")  # noqa: B023  (waited for in this turn)
        until(lambda: operator.agrees_with(device), f"agreement on {operator.document()} and {device.state}")
    assert device.disconnect_count >= count
    assert is_growing(device.reports)
    # It heard of changes and did not only ask.
    assert len(device.deltas) > count / 2


# ---- away for a while ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["mqtt5", "mqtt3"])
@pytest.mark.parametrize("does_ask", [True, False], ids=["asks", "only listens"])
@pytest.mark.parametrize("is_session_kept", [True, False], ids=["kept", "clean"])
def test_a_device_that_was_away_has_the_whole_delta_after_it_has_connected(
    platform: RunningPlatform, tmp_path: Path, protocol: str, *, does_ask: bool, is_session_kept: bool
) -> None:
    name = f"away-{protocol}-{does_ask:d}{is_session_kept:d}"
    with (
        platform.api() as api,
        recipe_device(protocol, name, platform, tmp_path, is_session_kept=is_session_kept) as device,
    ):
        operator = Operator(api, name)
        operator.change()
        until(lambda: operator.agrees_with(device), "agreement before")
        device.does_ask = does_ask
        device.stop()
        heard_count = len(device.deltas)
        versions = [operator.set({f"while-away-{number}": number, "latest": number}) for number in range(5)]
        device.start()
        until(lambda: operator.agrees_with(device), f"agreement on {operator.document()} and {device.state}")
    heard = [version for _, version in device.deltas[heard_count:]]
    if is_session_kept:
        # All that it missed, in order, and before all else.
        assert heard[: len(versions)] == versions


@pytest.mark.parametrize("protocol", ["mqtt5", "mqtt3"])
def test_a_change_between_subscribing_and_asking_is_applied_and_an_older_answer_does_not_undo_it(
    platform: RunningPlatform, tmp_path: Path, protocol: str
) -> None:
    name = f"between-{protocol}"
    with (
        platform.api() as api,
        recipe_device(protocol, name, platform, tmp_path, is_session_kept=False) as device,
    ):
        operator = Operator(api, name)
        for number in range(8):
            device.stop()
            operator.set({"mode": number, f"before-{number}": number})
            device.start()
            until(device.is_listening.is_set, "it listens")
            # Its question is under way.
            operator.set({"mode": -number})
            until(
                lambda: operator.agrees_with(device), f"agreement on {operator.document()} and {device.state}"
            )
        assert device.state["mode"] == -7


def test_a_delta_that_a_subscription_brings_again_says_what_an_update_would_say(
    platform: RunningPlatform, tmp_path: Path
) -> None:
    name = "says-again"
    with (
        platform.api() as api,
        recipe_device("mqtt5", name, platform, tmp_path, is_session_kept=False) as device,
    ):
        device.does_ask = False
        until(lambda: len(device.reports) == 1, "its first report")
        device.stop()
        operator = Operator(api, name)
        versions = [operator.set({"a": 1}), operator.set({"b": {"c": 2}})]
        device.start()
        until(lambda: operator.agrees_with(device), "agreement")
        assert device.deltas[0] == (2, versions[-1])
        assert device.state == {"own": 0, "a": 1, "b": {"c": 2}}
