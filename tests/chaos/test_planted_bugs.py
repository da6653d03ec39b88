"""The auditor is tested itself: bugs that are planted in a real platform must be caught."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import msgspec
import pytest

from actors.actor_settings import HostSettings
from actors.errors import ShardFenced, ShardNotHere
from actors.settings import DataDirectory
from actors.shard_actor import ShardHost
from scenarios.auditor import judge
from scenarios.auditor_clients import Client, Recorder
from tests.chaos.auditing import SHORT, Auditor
from tests.chaos.stage import Stage
from tests.chaos.trial import Trial
from tests.integration.running_platform import until
from twins.sharding import shard_of

SHARD_COUNT = 16
# Each kills one of two shard actors, and the auditor's things are all served by one: half of the trials spare them.
TRIALS_MAX = 10


@pytest.mark.timeout(400)
@pytest.mark.parametrize("bug", ["ack before journal", "lost tail"])
def test_what_is_lost_when_a_shard_dies_is_missed(stage: Stage, tmp_path: Path, bug: str) -> None:
    with stage.planted(bug):
        for seed in range(TRIALS_MAX):
            directory = tmp_path / str(seed)
            directory.mkdir()
            result = Trial(stage, "kill shard actor", seed, size=SHORT, directory=directory).run()
            assert result.failure == ""
            if result.contradiction:
                break
    assert result.contradiction != ""
    # It comes with the operations that make it up.
    assert "\n" in result.contradiction


@pytest.mark.timeout(400)
def test_a_shard_that_serves_beside_its_successor_is_found_out(stage: Stage, tmp_path: Path) -> None:
    rivals = tmp_path / "rival.jsonl"
    with stage.planted("no fencing"):
        auditor = Auditor(stage, tmp_path, seed=0, size=SHORT)
        try:
            auditor.wait_for_load(random.Random(0))
            serve_beside(stage, auditor.progress.thing_names, rivals, tmp_path)
            auditor.wait_for_load(random.Random(1))
            auditor.conclude()
        finally:
            auditor.kill()
    found = judge([auditor.history, rivals])
    assert found is not None
    assert found.rule in ("an accepted update is missing", "a version was made twice", "a version went back")


def serve_beside(stage: Stage, thing_names: list[str], history: Path, directory: Path) -> None:
    """Take over the shard of each thing in this process, as a successor does, and accept an operator's wish for it."""
    snapshots = directory / "snapshots"
    # A copy, so that nothing is written where the platform's own are.
    shutil.copytree(DataDirectory(stage.data_dir).snapshots, snapshots)
    recorder = Recorder(history)
    rival = Client("rival", recorder, is_direct=True)
    host = ShardHost(lambda _: None)
    for thing_name in thing_names:
        settings = HostSettings(
            0,
            (shard_of(thing_name, SHARD_COUNT),),
            SHARD_COUNT,
            stage.platform.endpoints.redis.url,
            str(snapshots),
            # More than there is, so that nothing is written down here.
            1 << 30,
            str(directory / "host.log"),
            is_predecessor_gone=True,
        )

        def is_accepted(name: str = thing_name, shard: HostSettings = settings) -> bool:
            host.open(msgspec.msgpack.encode(shard))
            wish = {"rival": rival.next_number()}
            number = rival.begin(name, "", {"desired.rival": wish["rival"]})
            try:
                rival.accepted(number, host.update_desired(name, wish)["version"])
            except (ShardFenced, ShardNotHere) as error:
                # The platform's own actor was quicker, which should not serve any more either.
                rival.unknown(number, str(error))
                return False
            return True

        until(is_accepted, f"a wish for {thing_name} is accepted beside the platform")
    host.close()
    recorder.close()
