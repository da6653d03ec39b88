"""One history: everything together, what goes wrong, how it heals, and the verdict."""

from __future__ import annotations

import asyncio
import gc
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import msgspec
import pytest

from actors import mqtt_bridge
from actors.errors import BrokerError, StoreError
from actors.mqtt_bridge import MqttBridge
from actors.mqtt_taken import FILE_BYTES, TakenMessages
from actors.ray_fleet import RayFleet
from scenarios.audit_rules import Contradiction, first_contradiction
from scenarios.history import Answered, Event, Fault, Outcome
from tests.simulation.protocol.broker import Broker, SimulatedConnection
from tests.simulation.protocol.chance import Chance
from tests.simulation.protocol.clients import Clients
from tests.simulation.protocol.hosts import Cluster, Host, LoopClock, SimulatedHomes
from tests.simulation.protocol.scheduler import Process, VirtualLoop
from tests.simulation.protocol.store import Store
from twins.errors import ShadowNotFound
from twins.sharding import shard_of

THINGS: Final = ("lamp", "door")
# How often each thing's clients do what they do, in one history or another. Half as much makes a history cheaper by a
# quarter, and a late acknowledgement three times as rare.
_DEEDS: Final = {
    "measure": (0, 3, 8),
    "get": (0, 1, 5),
    "look": (0, 1, 6),
    "wish": (0, 1, 5),
    "report": (1, 3, 6),
}
# Reports at a time; one more than ten in flight is refused.
_BURSTS: Final = (1, 1, 1, 1, 1, 1, 2, 2, 4, 12)
# Faults happen for so long.
_TROUBLE_S: Final = (2.0, 7.0)
# What is under way when everything is mended may take its effect later, and what follows from it a little later still.
_SETTLE_S: Final = 1.0
# An answer is announced within milliseconds, and heard some more later.
_REST_S: Final = 0.25
# By then everything must have been answered: a few times the longest back-off.
_PATIENCE_S: Final = 60.0


class Result(NamedTuple):
    """What became of one history."""

    seed: int
    events: list[Event]
    contradiction: Contradiction | None
    counts: Counter[str]
    trace: str


class Bridge:
    """One incarnation of the bridge."""

    def __init__(self, world: World, incarnation: int) -> None:
        self.process = Process(f"bridge {incarnation}")
        self.is_started = False
        connection = SimulatedConnection(
            "broker",
            1,
            receive_maximum=world.receive_maximum,
            broker=world.broker,
            process=self.process,
        )
        lanes = RayFleet(SimulatedHomes(world.cluster, self.process))
        taken = TakenMessages(world.taken, broker_start=lambda: world.broker.start_number, memory=1)
        source = f"app.bridge/{incarnation}"
        self.bridge = MqttBridge(connection, lanes, source=source, clock=LoopClock(world.loop), taken=taken)


class World:
    """Everything that one history takes place in."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        chance = self.chance = Chance(seed)
        random = chance.random
        is_shuffled = random.random() < 0.5
        self.loop = VirtualLoop(random, is_shuffled=is_shuffled)  # type: ignore[abstract]  # all that is used
        self.things = list(THINGS[: random.choice((1, 1, 1, 2))])
        self.receive_maximum = random.choice((10, 10, 30))
        self.clients = Clients(self.loop, self.things)
        self.store = Store(self.loop, chance)
        self.broker = Broker(self.loop, chance, self.clients.hear)
        self.cluster = Cluster(
            self.loop,
            chance,
            self.store,
            shard_count=2,
            host_count=random.choice((1, 2)),
            announce=self._announce,
        )
        self.clients.broker, self.clients.cluster = self.broker, self.cluster
        self.trouble_s = chance.between(*_TROUBLE_S)
        self._incarnation = 0
        self._rounds_before = 0
        # The file in which bridges note what they take.
        self.taken = bytearray(FILE_BYTES)
        self.bridge = self._start_bridge()

    def run(self) -> Contradiction | None:
        """Live through the history of the seed and return what is wrong with it."""
        self.begin()
        self._plan()
        # A timer, because it must come also to those who stand still in the middle of a call.
        self.loop.deliver(self.loop.root, self.trouble_s, self._heal)
        self.run_for(self.trouble_s)
        # Who stands still in the middle of a call when all is mended may have let time pass.
        self.run_for(max(0.0, self.loop.last_effect_s - self.loop.time()) + _SETTLE_S)
        return self.conclude()

    def begin(self) -> None:
        """Let the bridge begin its work."""
        self._run_until(lambda: self.bridge.is_started)
        self.loop.start(self.cluster.mover, self.cluster.move_shards())

    def conclude(self) -> Contradiction | None:
        """Let everything come to rest, and judge."""
        if not self._comes_to_rest():
            return self._failed() or self._stuck("what was under way")
        first = self._say_last_words()
        if not self._comes_to_rest():
            return self._failed() or self._stuck("what came afterwards")
        return (
            self._unreadable()
            or self._failed()
            or self._acknowledged_unanswered()
            or self._unanswered(first)
            or first_contradiction(self.clients.history)
        )

    # The course of things

    def _plan(self) -> None:
        """Draw beforehand what clients do and what breaks."""
        chance, deliver = self.chance, self.loop.deliver
        random = chance.random
        clients = self.clients
        for thing in self.things:
            for name, counts in _DEEDS.items():
                do = getattr(clients, name)
                bursts = _BURSTS if name == "report" else (1,)
                for _ in range(random.choice(counts)):
                    delay_s = chance.between(0.0, self.trouble_s)
                    for burst in range(random.choice(bursts)):
                        deliver(clients.process, delay_s + burst / 1000, do, thing)
        for name, break_it in self._faults().items():
            for second in range(int(self.trouble_s)):
                if chance.happens(name):
                    deliver(self.loop.root, second + random.random(), break_it)

    def _faults(self) -> dict[str, Any]:
        return {
            "host killed": self._kill_host,
            "host declared dead": self._declare_host_dead,
            "shard moved elsewhere": self._move_shard,
            "bridge killed": self.kill_bridge,
            "connection cut": self._cut_connection,
            "broker killed": self.kill_broker,
            "broker and bridge killed": self._kill_both,
            "store down": self._stop_store,
            "store full": self._fill_store,
        }

    def _heal(self) -> None:
        self.chance.heal()
        self.store.is_down = self.store.is_full = False
        self.broker.start()
        self._rounds_before = self.cluster.round_count

    def _note(self, part: str, action: str, *, redelivers: bool = False) -> None:
        self.clients.note(Fault(self.loop.time(), part, action, redelivers))

    def _move_shard(self) -> None:
        self.cluster.move(self.chance.random.randrange(2), self.chance.random.choice(self.cluster.names))

    def _kill_host(self) -> None:
        name = self.chance.random.choice(self.cluster.names)
        self._note(self.cluster.hosts[name].process.name, "killed")
        self.cluster.kill(name)

    def _declare_host_dead(self) -> None:
        name = self.chance.random.choice(self.cluster.names)
        self._note(self.cluster.hosts[name].process.name, "declared dead")
        self.cluster.declare_dead(name)
        # Two hosts live now, and each may be asked: by somebody who knows of the new one, or does not yet.
        thing = self.chance.random.choice(self.things)
        for do in (self.clients.wish, self.clients.report, self.clients.look, self.clients.get):
            delay_s = self.chance.between(2.0, 7.0)
            self.loop.expect_effect(self.loop.time() + delay_s)
            self.loop.deliver(self.clients.process, delay_s, do, thing)

    def kill_bridge(self) -> None:
        """Kill the bridge; another follows."""
        bridge = self.bridge
        if bridge.process.is_dead:
            return
        self._note(bridge.process.name, "killed", redelivers=True)
        self._count_bridge()
        bridge.process.is_dead = True
        self.broker.cut()
        self.loop.deliver(self.loop.root, self.chance.between(0.3, 2.0), self._replace_bridge)

    def _cut_connection(self) -> None:
        self._note("connection of the bridge", "cut", redelivers=True)
        self.broker.cut()

    def kill_broker(self) -> None:
        """Kill the broker, and start it again."""
        if self.broker.is_down:
            return
        self._note("broker", "killed", redelivers=True)
        self.broker.kill()
        since_s = self.loop.time() - self.chance.random.choice((0.0, 0.0, 0.002, 0.02))
        self.loop.deliver(self.loop.root, self.chance.between(0.2, 3.0), self._start_broker, since_s)

    def _kill_both(self) -> None:
        """Kill broker and bridge, one soon after the other."""
        first, second = self.chance.random.choice(
            ((self.kill_broker, self.kill_bridge), (self.kill_bridge, self.kill_broker))
        )
        first()
        self.loop.deliver(self.loop.root, self.chance.random.choice((0.0, 0.002, 0.02, 0.5)), second)

    def _start_broker(self, unacknowledged_since_s: float) -> None:
        if self.broker.is_down:
            self.broker.start()
            self.clients.publish_again(unacknowledged_since_s)

    def _stop_store(self) -> None:
        self._note("store", "down")
        self.store.is_down = True
        self.loop.deliver(self.loop.root, self.chance.between(0.1, 3.0), self._start_store)

    def _start_store(self) -> None:
        self.store.is_down = False

    def _fill_store(self) -> None:
        self._note("store", "full")
        self.store.is_full = True
        self.loop.deliver(self.loop.root, self.chance.between(0.1, 3.0), self._empty_store)

    def _empty_store(self) -> None:
        self.store.is_full = False

    # The bridge

    def _start_bridge(self) -> Bridge:
        self._incarnation += 1
        bridge = Bridge(self, self._incarnation)
        self.loop.start(bridge.process, self._serve_bridge(bridge))
        return bridge

    def _replace_bridge(self) -> None:
        self.bridge = self._start_bridge()

    async def _serve_bridge(self, bridge: Bridge) -> None:
        """Start a bridge, however often it takes; none has a reason to give up later."""
        while True:
            try:
                await bridge.bridge.start()
                break
            except BrokerError:
                await asyncio.sleep(0.5)
        bridge.is_started = True
        await bridge.bridge.until_failed()

    def _announce(self, messages: Any) -> None:
        """Hand messages of direct requests to the bridge, if there is one."""
        bridge = self.bridge
        if bridge.is_started and not bridge.process.is_dead:
            self.loop.deliver(bridge.process, 0.001, self._publish, bridge, list(messages))

    def _publish(self, bridge: Bridge, messages: Any) -> None:
        self.loop.create_task(bridge.bridge.publish(messages))

    def _count_bridge(self) -> None:
        statistics = self.bridge.bridge.statistics()
        self.chance.count("late acknowledgement refused", statistics.stale_count)
        self.chance.count("more handed over than may wait", statistics.overrun_count)
        self.chance.count("acknowledged request came again", statistics.repeated_count)

    # The end

    def run_for(self, duration_s: float) -> None:
        """Let time pass."""
        self.loop.run(self.loop.time() + duration_s)

    def _run_until(self, condition: Callable[[], bool]) -> bool:
        """Run until a condition holds, or until patience ends: False."""
        give_up_at_s = self.loop.time() + _PATIENCE_S
        while not condition():
            if self.loop.time() > give_up_at_s:
                return False
            self.run_for(_REST_S)
        return True

    def _comes_to_rest(self) -> bool:
        """Run until nothing is under way any more; False if patience ends before.

        For a moment nothing seems to be where something has been answered and is yet to be announced: so that is asked
        twice.
        """
        is_quiet = False
        while self._run_until(self._is_quiet):
            if is_quiet:
                return True
            self.run_for(_REST_S)
            is_quiet = self._is_quiet()
        return False

    def _is_quiet(self) -> bool:
        """Tell whether nothing is under way any more."""
        if self.clients.is_busy or not self.bridge.is_started or not self.broker.is_drained:
            return False
        cluster = self.cluster
        if not all(cluster.host_of(shard).serves(shard) for shard in range(cluster.shard_count)):
            return False
        # The mover's present round may have begun before everything was mended, but not the one after it.
        if cluster.placements.placement.pending() or cluster.round_count < self._rounds_before + 2:
            return False
        counts = self.bridge.bridge.statistics()
        under_way = counts.waiting_count + counts.in_flight_count + counts.unpublished_count
        return counts.is_connected and not counts.is_catching_up and not under_way

    def _stuck(self, what: str) -> Contradiction:
        text = f"{what} is not answered {_PATIENCE_S:g} s after everything was mended"
        return Contradiction("nothing goes on", text, tuple(self.clients.history[-20:]))

    def _failed(self) -> Contradiction | None:
        """Find an error that nobody has caught."""
        for task in self.loop.failed_tasks():
            return Contradiction(
                "an error was not caught", repr(task.exception()), tuple(self.clients.history)
            )
        for context in self.loop.errors:
            return Contradiction("an error was not caught", str(context), tuple(self.clients.history))
        return None

    def _acknowledged_unanswered(self) -> Contradiction | None:
        message = self.broker.unanswered
        if message is None:
            return None
        text = f"{message.topic} {message.payload.decode()} was acknowledged before the broker had an answer to it"
        return Contradiction("acknowledged too early", text, tuple(self.clients.history))

    def _say_last_words(self) -> int:
        """Let every client do one thing more, and return where in the history that begins.

        An operator may hear that its shard was taken over, which nobody has noticed before. A device reports again what
        may have been refused, and what it then reads it applies and reports.
        """
        first = len(self.clients.history)
        for thing in self.things:
            self.clients.wish(thing)
            self.loop.deliver(self.clients.process, _REST_S, self.clients.report, thing)
            self.loop.deliver(self.clients.process, 2 * _REST_S, self.clients.get, thing)
        self.run_for(2 * _REST_S)
        return first

    def _unanswered(self, first: int) -> Contradiction | None:
        """Find what was sent after everything was mended and not carried out."""
        for event in self.clients.history[first:]:
            # What goes to a shard directly is not tried again by anybody but its sender.
            is_direct = isinstance(event, Answered) and event.client not in self.things
            if isinstance(event, Answered) and event.outcome is not Outcome.OK and not is_direct:
                return Contradiction("nothing goes on", "refused though nothing was broken", (event,))
        return None

    def _unreadable(self) -> Contradiction | None:
        """Read every shadow from who serves it, and from a host that has just read the past; find what cannot be."""
        try:
            self._read_all()
        except StoreError as error:
            return Contradiction("a shard cannot be read back", str(error), tuple(self.clients.history))
        return None

    def _read_all(self) -> None:
        cluster = self.cluster
        hosts = {thing: cluster.host_of(shard_of(thing, cluster.shard_count)) for thing in self.things}
        self._settle(hosts)
        readers = {name: cluster.reader(name) for name in {host.name: None for host in hosts.values()}}
        self._settle({thing: readers[host.name] for thing, host in hosts.items()})
        self._count_bridge()

    def _settle(self, hosts: Mapping[str, Host]) -> None:
        for thing, host in hosts.items():
            try:
                document = host.shadow(thing)
            except ShadowNotFound:
                document = {"version": 0, "state": {}}
            self.clients.settle(thing, document["version"], document["state"])


def run_history(seed: int) -> Result:
    """Live through the history of a seed."""
    world = World(seed)
    with pytest.MonkeyPatch.context() as patches:
        # Hosts freeze what they have read back, because it stays; here thousands of them do, and it goes.
        patches.setattr(gc, "freeze", lambda: None)
        # A few messages, so that the bridge has more than it may hold; or as much as it has in real life.
        if world.chance.random.random() < 0.3:
            patches.setattr(mqtt_bridge, "WINDOWED_BYTES_MAX", 1000)
        if world.chance.random.random() < 0.3:
            patches.setattr(mqtt_bridge, "UNWINDOWED_BYTES_MAX", 700)
        try:
            contradiction = world.run()
        finally:
            world.loop.end()
    events = world.clients.history
    trace = hashlib.blake2b(msgspec.msgpack.encode((world.loop.trace, events)), digest_size=8).hexdigest()
    return Result(seed, events, contradiction, world.chance.counts, trace)
