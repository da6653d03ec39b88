"""A platform of three Ray nodes on this machine: what joins gets its share, what leaves or dies loses nothing."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.integration.running_node import RunningNode
from tests.integration.running_platform import (
    START_TIMEOUT_S,
    STOP_TIMEOUT_S,
    RunningPlatform,
    platform_on,
    run_twinfleet,
    until,
)

SHARD_COUNT = 16
# Numbered names would share a shard.
THINGS = [f"lamp-{letter}" for letter in "abcdefghijklmnopqrstuvwx"]


class Operator:
    """Updates things one after the other, and remembers the last version of each that was accepted."""

    def __init__(self, platform: RunningPlatform) -> None:
        self.accepted = dict.fromkeys(THINGS, 0)
        self.refused_count = 0
        self.problems: list[str] = []
        self.longest_s = 0.0
        self._api = platform.api()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    @contextlib.contextmanager
    def at_work(self) -> Iterator[Operator]:
        self._thread.start()
        try:
            yield self
        finally:
            self._end.set()
            self._thread.join()
            self._api.close()
        assert self.problems == []

    def expect_progress(self) -> None:
        """Return when every thing has been updated once more."""
        before = dict(self.accepted)

        def has_progressed() -> bool:
            assert self.problems == []
            return all(self.accepted[thing] > before[thing] for thing in THINGS)

        until(has_progressed, "every thing is updated")

    def _run(self) -> None:
        while not self._end.is_set():
            for thing in THINGS:
                self._update(thing)

    def _update(self, thing: str) -> None:
        expected = self.accepted[thing] + 1
        start_s = time.monotonic()
        body: dict[str, Any] = {"state": {"desired": {"n": expected}}}
        if expected > 1:
            body["version"] = expected - 1
        answer = self._api.post(f"/things/{thing}/shadow", json=body)
        self.longest_s = max(self.longest_s, time.monotonic() - start_s)
        if answer.status_code == 200:
            self.accepted[thing] = answer.json()["version"]
        elif answer.status_code == 409:
            # It was carried out, though it was answered with 503: nobody else changes the thing.
            self.accepted[thing] = expected
        elif answer.status_code in (503, 504):
            self.refused_count += 1
        else:
            self.problems.append(f"{thing}: {answer.status_code} {answer.text}")
            self._end.set()


def spread(platform: RunningPlatform) -> Counter[str]:
    """Return how many shards each node serves; none of them is about to move."""
    placement = platform.json("cluster", "list")
    if placement["moves"]:
        return Counter()
    return Counter({actor["node"]: 0 for actor in placement["actors"]}) + Counter(
        actor["node"] for actor in placement["actors"] for _ in actor["shards"]
    )


def is_even(found: Counter[str]) -> bool:
    return set(found) == {"head", "attic", "cellar"} and min(found.values()) >= 4


def expect_spread(platform: RunningPlatform, expected: dict[str, int]) -> None:
    until(lambda: spread(platform) == Counter(expected), f"{expected}", timeout_s=START_TIMEOUT_S)


@pytest.mark.timeout(300)
def test_nodes_join_are_drained_die_and_leave_and_nothing_accepted_is_lost(tmp_path: Path) -> None:
    with platform_on(tmp_path / "head") as platform, contextlib.ExitStack() as stack:
        # What has to be copied to another machine.
        head = tmp_path / "copied"
        head.mkdir()
        for name in ("endpoints.json", "ray.token"):
            shutil.copy(platform.data_dir / name, head / name)
        attic = RunningNode(head, tmp_path / "attic")
        cellar = RunningNode(platform.data_dir, tmp_path / "cellar")
        for node in (attic, cellar):
            stack.callback(node.end)
        with Operator(platform).at_work() as operator:
            for node in (attic, cellar):
                node.wait_until_ready()
            operator.expect_progress()
            # Six actors: two or three shards for each.
            until(lambda: is_even(spread(platform)), "every node has its share", timeout_s=START_TIMEOUT_S)
            assert "node attic serves no shard" in platform.done("cluster", "drain", "attic")
            expect_spread(platform, {"head": 8, "cellar": 8})
            platform.done("cluster", "drain", "attic", "--undo")
            until(lambda: is_even(spread(platform)), "attic has its share again")
            # Nobody was refused anything, and nobody waited for long: the nodes knew what they did.
            assert operator.refused_count == 0
            print(f"longest answer while shards moved: {operator.longest_s * 1e3:.0f} ms")  # noqa: T201 - measured
            os.kill(cellar.process.pid, signal.SIGKILL)
            until(lambda: spread(platform)["cellar"] == 0 < spread(platform)["attic"], "cellar is lost")
            attic.process.terminate()
            assert attic.process.wait(STOP_TIMEOUT_S) == 0, attic.output.read_text()
            expect_spread(platform, {"head": 16})
            operator.expect_progress()
        for node in (attic, cellar):
            node.expect_nothing_left()
        assert {thing: platform.version_of(thing) for thing in THINGS} == operator.accepted
        expect_audited(platform)
        refuse_wrong_nodes(platform, tmp_path)


def expect_audited(platform: RunningPlatform) -> None:
    """Return when the audit log tells what operators and the platform have done to the placement."""
    expected = [
        ("platform", "placement.join", "attic"),
        ("operator", "placement.drain", "attic"),
        ("operator", "placement.fill", "attic"),
        ("platform", "placement.lost", "cellar"),
        ("platform", "placement.leave", "attic"),
    ]

    def told() -> list[tuple[str, str, str]]:
        with redis.Redis.from_url(platform.endpoints.redis.url, decode_responses=True) as client:
            entries: Any = client.xrange("twinfleet:registry")
        found = [(fields["by"], fields["action"], fields["subject"]) for _, fields in entries]
        assert all(fields["result"] for _, fields in entries if fields["action"].startswith("placement."))
        return [each for each in dict.fromkeys(found) if each in expected]

    until(lambda: told() == expected, "the audit log has every change of the placement")


def refuse_wrong_nodes(platform: RunningPlatform, tmp_path: Path) -> None:
    head = str(platform.data_dir)
    for arguments, problem in (
        (["--node", "attic"], "takes --join HEAD as well"),
        (["--join", head, "--node", "head"], "'head' is no name for a node"),
        (["--join", str(tmp_path / "nowhere"), "--node", "attic"], "endpoints.json does not exist"),
    ):
        answer = run_twinfleet("up", *arguments, data_dir=tmp_path / "refused")
        assert answer.returncode != 0
        assert problem in answer.stderr
