"""Somebody beside a node, who asks its shard actors whatever the placement says: what they answer is in his history.

`python -m tests.chaos.insider HEAD HISTORIES NODE NAME` is part of the platform on the data directory HEAD as a driver
of its Ray, takes the auditor's things from `history.jsonl` in the directory HISTORIES, and asks for those that the node
serves when it begins, under its own NAME, until it is ended. It writes into `NAME.jsonl`, which is judged with the
rest: a node that is cut off and goes on to serve is found out.

Of one actor it only reads: who has tried to append and failed knows that something is wrong, and answers nothing any
more; who is only read has nothing but its lease to tell it.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any, Final

import ray
from ray.exceptions import RayError

from actors.placement import PlacementStore
from actors.ray_runtime import join
from actors.settings import DataDirectory, Endpoints
from scenarios.auditor_clients import Client, Recorder, fields_of
from scenarios.history import Sent, read_history
from twins.sharding import shard_of

# An actor that has lost its store says so after two seconds.
_ANSWER_TIMEOUT_S: Final = 5.0
# Some twenty operations a second are enough to find a gap of a lease.
_PAUSE_S: Final = 0.05


def main() -> None:
    """Ask until this process is ended, or nobody is there any more who started it."""
    head, histories, node, name = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
    parent = os.getppid()
    endpoints = Endpoints.load(DataDirectory(head).endpoints_file)
    store = PlacementStore.at(endpoints.redis.url)
    placement = store.read()
    join(endpoints)
    homes = {
        thing_name: home
        for thing_name in thing_names(histories / "history.jsonl")
        if placement.nodes.get(home := placement.homes[shard_of(thing_name, len(placement.homes))]) == node
    }
    actors = {home: ray.get_actor(home) for home in set(homes.values())}
    only_read = min(actors)
    client = Client(name, Recorder(histories / f"{name}.jsonl"), is_direct=True)
    while os.getppid() == parent:
        for thing_name, home in homes.items():
            if home != only_read:
                _wish(client, thing_name, actors[home])
            _read(client, thing_name, actors[home])
            time.sleep(_PAUSE_S)


def thing_names(history: Path) -> list[str]:
    """Return the things that a history tells of."""
    return sorted({event.thing_name for event in read_history(history) if isinstance(event, Sent)})


def _wish(client: Client, thing_name: str, actor: Any) -> None:
    desired = {client.name: client.next_number()}
    number = client.begin(thing_name, "", fields_of({"desired": desired}))
    answer = _answer(client, number, actor.update_desired.remote(thing_name, desired))
    if answer is not None:
        client.accepted(number, answer["version"])


def _read(client: Client, thing_name: str, actor: Any) -> None:
    number = client.begin(thing_name, "", {})
    answer = _answer(client, number, actor.shadow.remote(thing_name))
    if answer is not None:
        client.accepted(number, answer["version"], fields_of(answer["state"]))


def _answer(client: Client, number: int, reference: Any) -> Any:
    """Return an answer; None where there was none, and then nobody knows what became of the operation."""
    try:
        return ray.get(reference, timeout=_ANSWER_TIMEOUT_S)
    except RayError as error:
        client.unknown(number, (str(error).strip() or type(error).__name__).splitlines()[-1][:200])
        return None


if __name__ == "__main__":
    main()
