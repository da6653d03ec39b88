"""What the journal holds is all that a shard is: killed in mid-run, it comes to the state of one that never was."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from pathlib import Path
from typing import Any, Final

import pytest

from actors.fleet import PinnedTwin, describe_request
from actors.journal import Journal
from actors.ray_fleet import RayFleet, find_fleet
from actors.shard_keeper import apply_again
from tests.contract.conftest import START_S
from tests.contract.fleets import SHARD_COUNT, RayStage, ray_stage
from twins.digest import combine_digest
from twins.messages import Batch, Operation, Request, TickOrder
from twins.model import Group
from twins.shard import Shard
from twins.sharding import shard_of
from twins.shipped import model_named

GROUP: Final = Group("replayed", model_named("thermostat"), "replayed-{i}", 700, 7, START_S)
TICKS: Final = 20


def update(name: str, section: str, state: dict[str, Any], shadow_name: str = "") -> Request:
    payload = json.dumps({"state": {section: state}}).encode()
    return Request(Operation.SHADOW_UPDATE, name, payload, shadow_name)


# To simulated twins of every shard, between ticks: wishes, a value held by an operator, and what no column can hold.
LIVE: Final = [
    *(update(f"replayed-{i}", "desired", {"set_point": 18 + i % 7}) for i in range(0, 700, 9)),
    *(update(f"replayed-{i}", "reported", {"humidity": "held"}) for i in range(0, 700, 31)),
    *(update(f"replayed-{i}", "desired", {"note": {"by": ["ops"]}}, "service") for i in range(0, 700, 50)),
    *(Request(Operation.SHADOW_DELETE, f"replayed-{i}") for i in range(5, 700, 90)),
    # Of another model than the row: refused now, and again when it is replayed.
    Request(Operation.REGISTER, "replayed-3", b'{"model": "toaster"}'),
]


def pin_report(after_s: float | None, at_s: float) -> bytes:
    state = {"reported": {"temperature": 40.5 + at_s, "mode": "boost"}}
    report = {"behavior": "heating:Boiler", "after_s": after_s, "at_s": at_s}
    return json.dumps({**report, "state": state, "memory": {"burns": at_s}}).encode()


CONNECTED: Final = b'{"connected": true, "timestamp": 1, "session": "s", "version": %d}'
# In other hands, a piece of the run each: taken over, heard, given back, and taken over again by the next connection;
# pinned, answered for, unpinned. Each twin is in another block, and so in another shard.
HANDS: Final = [
    [
        Request(
            Operation.REGISTER, "replayed-300", b'{"model": "thermostat", "attributes": {"site": "attic"}}'
        ),
        Request(Operation.CONNECTIVITY, "replayed-300", CONNECTED % 1),
        Request(Operation.PIN, "replayed-20", b'{"behavior": "heating:Boiler"}'),
        Request(Operation.REGISTER, "replayed-600", b'{"model": "untyped"}'),
    ],
    [
        update("replayed-300", "reported", {"temperature": 12.25, "lid": "open"}),
        update("replayed-300", "desired", {"set_point": 24.5}),
        Request(Operation.PIN_REPORT, "replayed-20", pin_report(None, 1.0)),
    ],
    [
        Request(Operation.GIVE_BACK, "replayed-300"),
        Request(Operation.PIN_REPORT, "replayed-20", pin_report(1.0, 2.0)),
        Request(Operation.UNREGISTER, "replayed-600"),
        Request(Operation.PIN, "replayed-601", b'{"behavior": "heating:Boiler"}'),
    ],
    [
        Request(Operation.CONNECTIVITY, "replayed-300", CONNECTED % 2),
        update("replayed-300", "reported", {"temperature": 13.5}),
        Request(Operation.UNPIN, "replayed-20"),
    ],
]


HELD: Final = ("replayed-20", "replayed-300", "replayed-601")


async def run_in_pieces(fleet: RayFleet, stage: RayStage) -> None:
    await fleet.create_group(GROUP)
    for piece in range(4):
        order = TickOrder(GROUP.name, piece * TICKS, TICKS, {"set_point": 20.0 + piece})
        requests = [*LIVE[piece::4], *HANDS[piece]]
        ticking = asyncio.ensure_future(fleet.tick([order]))
        asking = asyncio.ensure_future(fleet.ask_many(requests))
        # It is under way from here on: some of it is kept, some applied, some answered.
        await asyncio.sleep(0.01 * piece)
        stage.kill_and_reopen(piece % len(stage.actors))
        await asyncio.gather(ticking, asking, return_exceptions=True)
        await fleet.tick([order])
        await fleet.ask_many(requests)


def undisturbed(stage: RayStage) -> list[Shard]:
    """Return what shards become that apply the whole journal once, without a snapshot."""
    journal = Journal.at(stage.store_url)
    shards = []
    with contextlib.closing(journal):
        for number in range(SHARD_COUNT):
            shard = Shard(number, SHARD_COUNT)
            for _, record, _ in journal.read(number):
                apply_again(shard, record)
            shards.append(shard)
    return shards


@pytest.mark.timeout(180)
async def test_a_run_with_killed_processes_ends_as_the_same_sequence_undisturbed(
    ray_cluster: None, tmp_path: Path
) -> None:
    with ray_stage(tmp_path, 2) as stage:
        fleet = find_fleet(stage.store_url)
        await run_in_pieces(fleet, stage)
        digest = await fleet.digest()
        expected = undisturbed(stage)
        assert digest == combine_digest([leaf for shard in expected for leaf in shard.digest_leaves()])
        # What is not part of the digest: named shadows, and what refused requests must not have changed.
        for name in sorted({request.thing_name for part in (LIVE, *HANDS) for request in part}):
            found = await fleet.ask(describe_request(name))
            shard = expected[shard_of(name, SHARD_COUNT)]
            [reply] = shard.apply(Batch("", 0, [describe_request(name)]), time.time()).replies
            assert _lasting(found.payload) == _lasting(reply.payload)
        origins = {name: (await fleet.twin(name).describe())["origin"] for name in HELD}
        assert origins == {"replayed-20": "simulated", "replayed-300": "real", "replayed-601": "simulated"}
        assert (await fleet.twin("replayed-300").shadow())["state"]["reported"]["lid"] == "open"
        assert await fleet.pins() == [PinnedTwin("replayed-601", "heating:Boiler")]


def _lasting(payload: bytes) -> dict[str, Any]:
    """Return a description without the times at which it was asked for."""
    found: dict[str, Any] = json.loads(payload)
    for part in (found, found["shadow"] or {}, *found["namedShadows"].values()):
        part.pop("timestamp", None)
    return found
