"""A further node of a platform: Ray's processes and shard actors on a machine beside the head's.

The process that calls `run_node` starts them, watches them, and says every second that they are there. It moves no
shards: it puts its actors into the placement, and the head's supervisor brings them their share, or takes it back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from actors.actor_settings import HostSettings
from actors.errors import NodeNameTaken, PlacementError, SettingsError, WorldError
from actors.logs import log_to
from actors.membership import BEAT_EVERY_S, HeadRecord, Membership
from actors.parts import RayNodePart, shard_actor_parts
from actors.placement import HEAD_NODE, Change, Placement, PlacementStore
from actors.processes import LOOPBACK
from actors.ray_fleet import actor_name, open_actor
from actors.ray_runtime import RayNode
from actors.settings import DataDirectory, Endpoints
from actors.snapshots import SnapshotStore
from actors.stop_signals import (
    StopRequested,
    catch_signals,
    run_until,
    set_at_signals,
    signals_caught,
    signals_noted,
)
from actors.supervisor import Supervisor, mistakes_survived

_LOG: Final = logging.getLogger(__name__)
# It becomes part of the names of actors and a label in Ray.
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")
# Each shard takes some ten milliseconds to leave; a head that is away is not waited for.
_LEAVE_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True)
class NodeSettings:
    """What a node is called, where its own files lie, and where it learns of its head.

    `head` is the head's data directory, or one that holds copies of its `endpoints.json` and `ray.token`.
    """

    name: str
    data_dir: Path
    head: Path
    shard_actor_count: int
    # Of this machine, for the head and other nodes; None: all of them are on this one.
    address: str | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name == HEAD_NODE:
            problem = (
                f"{self.name!r} is no name for a node; take up to 32 of a-z, 0-9 and -, and not {HEAD_NODE!r}"
            )
            raise SettingsError("command line", "--node", problem)


def run_node(
    settings: NodeSettings, *, version: str, progress: Callable[[str], None] = lambda _: None
) -> None:
    """Run a node until SIGTERM or Ctrl-C; its shards have then moved to others, unless the head is away.

    `progress` gets a line for each step. WorldError says what could not be started; what dies later is brought back.
    For the main thread of a process of its own.
    """
    with contextlib.ExitStack() as parts:
        parts.enter_context(signals_caught())
        try:
            node = _Node(settings, parts)
            node.start(version, progress)
            progress("ready")
            asyncio.run(node.watch())
            progress("stopping")
        except (StopRequested, KeyboardInterrupt):
            progress("stopping")


class _Node:
    """The parts of one running node; `parts` stops them in reverse order."""

    def __init__(self, settings: NodeSettings, parts: contextlib.ExitStack) -> None:
        self._settings = settings
        self._parts = parts
        self._directory = DataDirectory(settings.data_dir)
        # Tells this run from another one under the same name.
        self._identity = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._own = {
            actor_name(index, settings.name): settings.name for index in range(settings.shard_actor_count)
        }

    def start(self, version: str, progress: Callable[[str], None]) -> None:
        """Start every part and enter the placement."""
        directory = self._directory
        directory.prepare()
        self._parts.enter_context(directory.lock())
        log_to(directory.logs / "node.log")
        self._find_head()
        if self._endpoints.version != version:
            problem = (
                f"the head runs version {self._endpoints.version}, this is {version}; install the same one"
            )
            raise WorldError(problem)
        SnapshotStore(self._head.snapshot_location).require_owner(self._head.platform_id)
        self._membership.beat(self._settings.name, self._identity)
        self._parts.callback(self._say_goodbye)
        progress(f"starting Ray for {self._head.ray_address}")
        self._ray = RayNode(
            self._token_file(), self._settings.name, address=self._settings.address or LOOPBACK
        )
        self._parts.callback(self._ray.stop)
        self._ray_address = self._head.ray_address
        with signals_noted() as received:
            self._ray.start(self._ray_address)
        catch_signals()
        if received:
            raise StopRequested
        progress("starting shards")
        self._start_actors()
        self._placements.change(self._entered, Change("placement.join", self._settings.name))
        self._parts.callback(self._leave)

    def _find_head(self) -> None:
        """Learn of the head, which may have other ports than before."""
        self._endpoints = Endpoints.load(DataDirectory(self._settings.head).endpoints_file)
        self._membership = Membership.at(self._endpoints.redis.url)
        self._placements = PlacementStore.at(self._endpoints.redis.url)
        self._head: HeadRecord = self._membership.head()

    def _token_file(self) -> Path:
        """Return the copy beside the endpoints; on the head's own machine it is the one that they name."""
        return DataDirectory(self._settings.head).ray_token_file

    def _start_actors(self) -> None:
        self._ray_part = RayNodePart(self._ray, restart=self._restart_ray)
        self._hosts = shard_actor_parts(
            list(self._own),
            self._settings.name,
            self._ray_part,
            needs=("ray",),
            settings=self._host_settings,
        )
        self._supervisor = Supervisor([self._ray_part, *self._hosts])
        for part in self._hosts:
            part.create()
            self._parts.callback(part.close)
        # Shards that the placement has here yet are those of an earlier run: somebody else may serve them by now.
        settings = [part.settings(is_predecessor_gone=False) for part in self._hosts]
        open_actor(*(part.actor for part in self._hosts), settings=settings)

    def _host_settings(self, index: int, actor: str, is_predecessor_gone: bool) -> HostSettings:
        head = self._head
        return HostSettings(
            index,
            self._placements.read().shards_of(actor),
            head.shard_count,
            self._endpoints.redis.url,
            head.snapshot_location,
            head.journal_bytes_max,
            str(self._directory.logs / f"shard-actor-{index}.log"),
            is_predecessor_gone,
        )

    def _entered(self, placement: Placement) -> Placement:
        return placement.spread({**placement.nodes, **self._own})

    def _restart_ray(self) -> None:
        """Start Ray again, with new actors that wait to be opened."""
        self._ray_address = self._head.ray_address
        with signals_noted() as received:
            self._ray.restart(self._ray_address)
        set_at_signals(self._stop)
        if received:
            self._stop.set()
        for part in self._hosts:
            part.create()

    async def watch(self) -> None:
        """Supervise the parts, and say that they are there, until a signal comes."""
        self._stop = asyncio.Event()
        await run_until(self._stop, supervisor=self._supervisor.run(), membership=self._keep_entered())

    async def _keep_entered(self) -> None:
        """Say that the node is there as long as it is, and follow the head when that starts again."""
        problem = ""
        while True:
            try:
                with mistakes_survived("the place in the platform"):
                    await asyncio.to_thread(self._enter_again)
                    problem = ""
            except NodeNameTaken:
                raise
            except (WorldError, PlacementError) as error:
                if str(error) != problem:
                    _LOG.warning("the head is away: %s", error)
                problem = str(error)
                with contextlib.suppress(WorldError):
                    await asyncio.to_thread(self._find_head)
            await asyncio.sleep(BEAT_EVERY_S)

    def _enter_again(self) -> None:
        is_whole = all(status.state == "ready" for status in self._supervisor.statuses())
        self._head = self._membership.head()
        if self._head.ray_address != self._ray_address:
            self._ray_part.give_up(f"the head has started Ray again, at {self._head.ray_address}")
        elif is_whole:
            self._membership.beat(self._settings.name, self._identity)
            if not self._own.keys() <= self._placements.read().nodes.keys():
                self._placements.change(self._entered, Change("placement.join", self._settings.name))

    def _leave(self) -> None:
        """Have the shards moved to other nodes, and leave the placement."""
        name = self._settings.name
        deadline_s = time.monotonic() + _LEAVE_TIMEOUT_S
        try:
            leaving = Change("placement.leave", name)
            placement = self._placements.change(lambda placement: placement.without(name), leaving)
            while any(home in self._own for home in placement.homes) and time.monotonic() < deadline_s:
                self._membership.beat(name, self._identity)
                time.sleep(BEAT_EVERY_S / 4)
                placement = self._placements.read()
            self._placements.change(lambda placement: placement.without_lost({name}), leaving)
        except (WorldError, PlacementError) as error:
            _LOG.warning("the node leaves without a word: %s", error)

    def _say_goodbye(self) -> None:
        with contextlib.suppress(WorldError):
            self._membership.leave(self._settings.name)
