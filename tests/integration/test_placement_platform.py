"""Operators see where shards are served, and move them, on a whole platform."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.running_platform import RunningPlatform
from twins.sharding import shard_of

SHARD_COUNT = 16


@pytest.fixture
def placed(platform: RunningPlatform) -> Iterator[RunningPlatform]:
    """Give the shared platform; its shards are where they were afterwards."""
    before = homes(platform)
    yield platform
    for shard, home in before.items():
        platform.done("cluster", "move", str(shard), home)


def homes(platform: RunningPlatform) -> dict[int, str]:
    actors = platform.json("cluster", "list")["actors"]
    return {shard: actor["name"] for actor in actors for shard in actor["shards"]}


def hosts(platform: RunningPlatform) -> dict[int, int]:
    """Return the process that serves each shard, as it says itself."""
    processes = platform.json("status")["processes"]
    return {shard: process["pid"] for process in processes for shard in process["shards"]}


def test_a_shard_is_moved_and_its_things_with_it(placed: RunningPlatform) -> None:
    name = "removed-lamp"
    shard = shard_of(name, SHARD_COUNT)
    placed.done("twin", "set", name, "level=1")
    home, host = homes(placed)[shard], hosts(placed)[shard]
    other = next(actor for actor in homes(placed).values() if actor != home)
    assert f"shard {shard} is served on {other}" in placed.done("cluster", "move", str(shard), other)
    assert homes(placed)[shard] == other
    assert hosts(placed)[shard] != host
    assert len(hosts(placed)) == SHARD_COUNT
    assert placed.json("twin", "set", name, "level=2")["version"] == 2
    # The node has it already.
    placed.done("cluster", "move", str(shard), "head")
    assert homes(placed)[shard] == other
    assert other in placed.done("cluster", "list")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["move", "16", "head"], "shards are numbered 0 to 15"),
        (["move", "0", "attic"], "attic: there is no such node; nodes: head"),
        (["drain", "attic"], "attic: there is no such node; nodes: head"),
        (["drain", "head"], "head: no other node is left for its shards"),
    ],
)
def test_what_can_not_be_is_refused(platform: RunningPlatform, arguments: list[str], problem: str) -> None:
    answer = platform.run("cluster", *arguments)
    assert (answer.returncode, answer.stdout) == (1, "")
    assert problem in answer.stderr
