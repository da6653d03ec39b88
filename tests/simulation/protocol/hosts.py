"""Shard hosts as processes, their snapshot files, the placement of the shards, and the calls between all of them.

A call may be lost on its way there or back, be late, or arrive twice; who calls gives up after a while, whatever has
become of the call. A host that dies, or is declared dead while it only stands still, is followed by another of the same
name, which opens the same shards; calls go to the new one as soon as its caller hears of it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import msgspec

from actors.actor_settings import HostSettings
from actors.errors import ActorsError, BridgeSuperseded, ShardFenced, ShardUnavailable, StoreError
from actors.homes import ANSWER_TIMEOUT_S, Homes
from actors.journal import Journal
from actors.placement import Change, Placement
from actors.shard_actor import HostStatus, ShardHost, decode_submission
from actors.shard_keeper import ShardKeeper
from actors.shard_mover import ShardMover
from actors.snapshots import SnapshotStore
from tests.simulation.protocol.chance import Chance
from tests.simulation.protocol.scheduler import Process, VirtualLoop
from tests.simulation.protocol.store import ProcessDied, Store
from twins.messages import Publish
from twins.shard import Shard

_LATENCY_S: Final = (0.0003, 0.003)
# What Ray takes, and less: who follows one that died may come while the lease of the one before that still runs.
_RESTART_S: Final = (0.1, 2.5)
# A handful of updates: in a short history, shards must be written down often.
JOURNAL_BYTES_MAX: Final = 400


class LoopClock:
    """The loop's time as the time of day."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def now_s(self) -> float:
        """Return the virtual time."""
        return 1_700_000_000.0 + self._loop.time()


class MemoryLocation:
    """A place for files that outlives the processes."""

    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}

    def names(self) -> list[str]:
        """Return the names of the files, in their order."""
        return sorted(self._files)

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        return self._files[name]

    def write(self, name: str, content: bytes) -> None:
        """Write a file."""
        self._files[name] = content

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        self._files.pop(name, None)


class SnapshotFiles(SnapshotStore):
    """Snapshots in memory, of which one may be damaged while another stands by."""

    def __init__(self, chance: Chance) -> None:
        self._location: Any = MemoryLocation()
        self._chance = chance
        # Of two in a row nobody promises anything.
        self._is_damage_done = False

    def write(self, shard: Shard, position: str, *, is_only: bool = False) -> None:
        """Write a snapshot, and perhaps spoil it."""
        stands_by = self.newest_position(shard.number)
        super().write(shard, position, is_only=is_only)
        if is_only or stands_by in {None, position} or self._is_damage_done:
            return
        if self._chance.happens("snapshot damaged"):
            self._is_damage_done = True
            _, name = self._files(shard.number)[0]
            self._location.write(name, self._location.read(name)[:-1])


class Call(NamedTuple):
    """A call under way; nobody waits for the answer to a repetition."""

    method: str
    arguments: tuple[Any, ...]
    caller: Process
    answer: asyncio.Future[Any] | None


class Host(ShardHost):
    """A shard host as a process."""

    def __init__(self, cluster: Cluster, name: str, incarnation: int, *, is_predecessor_gone: bool) -> None:
        super().__init__(cluster.announce, LoopClock(cluster.loop), lease_clock_s=cluster.loop.time)
        self.name = name
        self.process = Process(f"{name}.{incarnation}")
        # Calls that have arrived, the oldest first.
        self.inbox: deque[Call] = deque()
        self._cluster = cluster
        self._shard_count = cluster.shard_count
        self._is_predecessor_gone = is_predecessor_gone

    def submit(self, encoded: bytes) -> bytes:
        """Apply batches, and count those that are answered from memory."""
        keeper = self._keeper
        shards = {} if keeper is None else keeper.held()
        known = [
            number
            for number, batch in decode_submission(encoded)
            if number in shards and shards[number].last_outcomes.get(batch.source, (0,))[0] >= batch.sequence
        ]
        outcome = super().submit(encoded)
        self._cluster.chance.count("repeated batch answered from memory", len(known))
        return outcome

    def status(self) -> HostStatus:
        """Return which shards are open here."""
        keeper = self._keeper
        shards = () if keeper is None else tuple(keeper.held())
        lost = () if keeper is None else tuple(keeper.lost)
        read = () if keeper is None else keeper.read_shards
        return HostStatus(0, shards, 0, 0, 0, 0, 0, 0, 0, lost, keeper is not None, read)

    def read_ahead_beside(self, shards: Sequence[int]) -> None:
        """Do as `read_ahead`; here nothing runs beside it in the same process."""
        self.read_ahead(shards)

    def open_all(self) -> None:
        """Take over the shards that the placement gives to this name."""
        cluster = self._cluster
        if self._keeper is not None:
            self._keeper.close()
        settings = HostSettings(
            0,
            cluster.placements.read().shards_of(self.name),
            cluster.shard_count,
            "",
            "",
            JOURNAL_BYTES_MAX,
            "",
            self._is_predecessor_gone,
        )
        client: Any = cluster.store.client(self.process)
        keeper = ShardKeeper(settings, Journal(client), cluster.snapshots, clock_s=cluster.loop.time)
        keeper.open()
        self._keeper = keeper
        # Who opens again does not know who had its shards meanwhile.
        self._is_predecessor_gone = False

    def serves(self, shard: int) -> bool:
        """Tell whether a shard is open here and may be served."""
        keeper = self._keeper
        return (
            not self.process.is_dead
            and keeper is not None
            and shard in keeper.held()
            and shard not in keeper.lost
            and keeper.wait_s() <= 0
        )

    @property
    def has_lost(self) -> bool:
        """Tell whether another host has taken over a shard that this one is to serve."""
        shards = self._cluster.placements.placement.shards_of(self.name)
        return self._keeper is not None and not self._keeper.held().keys() >= set(shards)


class Placements:
    """The placement in the store, with `PlacementStore`'s methods."""

    def __init__(self, store: Store, placement: Placement) -> None:
        self.placement = placement
        self._store = store

    def read(self) -> Placement:
        """Return the placement."""
        if self._store.is_down:
            raise StoreError("Redis does not answer for the placement of the shards", retryable=True)
        return self.placement

    def change(self, change: Callable[[Placement], Placement], told: Change) -> Placement:
        """Return the placement after a change; nobody reads here who made it."""
        before = self.read()
        after = change(before)
        if after != before:
            self.placement = msgspec.structs.replace(after, version=before.version + 1)
        return self.placement

    def close(self) -> None:
        """Let go of nothing."""


class SimulatedHomes(Homes):
    """The homes of the shards as one process knows them."""

    def __init__(self, cluster: Cluster, process: Process) -> None:
        self._cluster = cluster
        self._process = process
        self._store: Any = cluster.placements
        self._lanes: dict[str, int] = {}
        self._take(cluster.placements.placement)

    async def refresh(self) -> None:
        """Read the placement again."""
        chance = self._cluster.chance
        await asyncio.sleep(chance.between(*_LATENCY_S))
        self._take(self._cluster.placements.read())

    async def call(
        self,
        name: str,
        method: str,
        *arguments: Any,
        shard: int,
        named: Mapping[str, Any] = MappingProxyType({}),
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> Any:
        """Return the answer of a host."""
        assert not named, "nobody gives any"
        try:
            answer = self._cluster.call(self._process, name, method, *arguments)
            return await asyncio.wait_for(answer, timeout_s)
        except TimeoutError as error:
            raise ShardUnavailable(shard, f"no answer in {timeout_s:g} s") from error


class Cluster:
    """All that serves shards, and the way there."""

    def __init__(
        self,
        loop: VirtualLoop,
        chance: Chance,
        store: Store,
        *,
        shard_count: int,
        host_count: int,
        announce: Callable[[Sequence[Publish]], None],
    ) -> None:
        self.loop = loop
        self.chance = chance
        self.store = store
        self.snapshots = SnapshotFiles(chance)
        self.shard_count = shard_count
        self.announce = announce
        self.names = [f"host-{index}" for index in range(host_count)]
        nodes = {name: f"node of {name}" for name in self.names}
        self.placements = Placements(store, Placement.first(shard_count, nodes))
        self.mover = Process("mover")
        self._shard_mover = ShardMover(SimulatedHomes(self, self.mover))
        self._incarnation_count = 0
        # Of the mover.
        self.round_count = 0
        self.hosts = {name: self._start(name, is_predecessor_gone=True) for name in self.names}
        # Whom devices' requests (through the bridge), operators' and the mover's go to: each hears of a new host in its
        # time.
        self._routes = {name: dict(self.hosts) for name in ("bridge", "clients", "mover")}

    def host_of(self, shard: int) -> Host:
        """Return the host that is to serve a shard."""
        return self.hosts[self.placements.placement.homes[shard]]

    def _start(self, name: str, *, is_predecessor_gone: bool) -> Host:
        self._incarnation_count += 1
        host = Host(self, name, self._incarnation_count, is_predecessor_gone=is_predecessor_gone)
        self.loop.deliver(host.process, 0.0, self._open, host)
        return host

    def _open(self, host: Host) -> None:
        """Open a host's shards, again and again until it succeeds."""
        try:
            host.open_all()
        except ProcessDied:
            self._replace_later(host)
        except ActorsError:
            if self.hosts[host.name] is host:
                self.loop.deliver(host.process, 0.5, self._open, host)

    def kill(self, name: str) -> None:
        """Kill a host."""
        host = self.hosts[name]
        if not host.process.is_dead:
            host.process.is_dead = True
            self._replace_later(host)

    def declare_dead(self, name: str) -> None:
        """Follow a host by another although it lives."""
        self._replace(self.hosts[name])

    def move(self, shard: int, name: str) -> None:
        """Want a shard in another host."""
        with contextlib.suppress(StoreError):
            self.placements.change(
                lambda placement: placement.moved_to(shard, name), Change("placement.move", name)
            )

    async def move_shards(self) -> None:
        """Bring shards to where they are wanted, and open again those that a host has lost, for ever.

        A round that would only hear that all is well is left out: half of all that happens would be such rounds.
        """
        while True:
            if self._is_all_well():
                self.round_count += 1
                await asyncio.sleep(1.0)
                continue
            before = self.placements.placement.homes
            self.chance.count(
                "shard lost under its lease", sum(host.has_lost for host in self.hosts.values())
            )
            with contextlib.suppress(ActorsError):
                await self._shard_mover.carry_out_all()
            self.chance.count("shard moved", int(before != self.placements.placement.homes))
            self.round_count += 1
            await asyncio.sleep(1.0)

    def _is_all_well(self) -> bool:
        """Tell whether every host that the mover would ask is open, and has its shards, wanted nowhere else."""
        placement = self.placements.placement
        if placement.pending():
            return False
        hosts = self._routes["mover"]
        return all(
            not hosts[name].process.is_dead
            and set(hosts[name].status().shards) >= set(placement.shards_of(name))
            for name in placement.nodes
        )

    def reader(self, name: str) -> Host:
        """Return a host that has opened the shards of another one, which is served no more by that."""
        host = Host(self, name, 0, is_predecessor_gone=True)
        host.open_all()
        return host

    def _replace_later(self, host: Host) -> None:
        delay_s = self.chance.between(*_RESTART_S)
        self.loop.expect_effect(self.loop.time() + delay_s)
        self.loop.deliver(self.loop.root, delay_s, self._replace, host)

    def _replace(self, host: Host) -> None:
        if self.hosts[host.name] is host:
            follower = self._start(host.name, is_predecessor_gone=host.process.is_dead)
            self.hosts[host.name] = follower
            for routes in self._routes.values():
                delay_s = self.chance.between(0.0, 8.0) if self.chance.happens("slow route") else 0.0
                self.loop.expect_effect(self.loop.time() + delay_s)
                self.loop.deliver(self.loop.root, delay_s, self._route, routes, follower)

    def _route(self, routes: dict[str, Host], host: Host) -> None:
        if self.hosts[host.name] is host:
            routes[host.name] = host

    def call(self, caller: Process, name: str, method: str, *arguments: Any) -> asyncio.Future[Any]:
        """Call a host; nothing at all may come of it."""
        answer: asyncio.Future[Any] = self.loop.create_future()
        host, chance = self._routes[caller.name.partition(" ")[0]][name], self.chance
        if host.process.is_dead:
            self._answer(caller, answer, ShardUnavailable(0, f"{name} has died"))
            return answer
        if not chance.happens("lost call"):
            delay_s = chance.between(*_LATENCY_S)
            if method == "submit" and chance.happens("slow call"):
                delay_s += chance.between(0.0, 8.0)
            self._send(host, delay_s, Call(method, arguments, caller, answer))
        # Ray repeats nothing; but what the bridge repeats may arrive in another order than it was sent.
        if method == "submit" and chance.happens("repeated call"):
            self._send(host, chance.between(0.0, 8.0), Call(method, arguments, caller, None))
        return answer

    def _send(self, host: Host, delay_s: float, call: Call) -> None:
        self.loop.expect_effect(self.loop.time() + delay_s)
        self.loop.deliver(self.loop.root, delay_s, self._arrive, host, call)

    def _arrive(self, host: Host, call: Call) -> None:
        host.inbox.append(call)
        self.loop.deliver(host.process, 0.0, self._serve, host)

    def _serve(self, host: Host) -> None:
        """Run the oldest call in a host, whole, though others may run in its midst."""
        call = host.inbox.popleft()
        result: Any
        try:
            result = getattr(host, call.method)(*call.arguments)
        except ProcessDied:
            self._replace_later(host)
            result = ShardUnavailable(0, "its process has died")
        except ShardFenced as error:
            self.chance.count("zombie fenced")
            result = error
        except BridgeSuperseded as error:
            self.chance.count("earlier bridge refused")
            result = error
        except ActorsError as error:
            result = error
        if call.answer is not None and not self.chance.happens("lost answer"):
            self._answer(call.caller, call.answer, result)

    def _answer(self, caller: Process, answer: asyncio.Future[Any], result: Any) -> None:
        self.loop.deliver(caller, self.chance.between(*_LATENCY_S), _conclude, answer, result)


def _conclude(answer: asyncio.Future[Any], result: Any) -> None:
    if answer.done():
        return
    if isinstance(result, ActorsError):
        answer.set_exception(result)
    else:
        answer.set_result(result)
