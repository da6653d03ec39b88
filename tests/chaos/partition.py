"""Faults between two nodes: a further one joins, is cut off while it serves, and must serve nothing until it is back.

Both sides live on. `Partition` cuts everything: Ray, store and all else, silently, both ways; it needs a network of
our own (`network`). `StoreCutOff` cuts the node from the store only (`relay`), and is possible everywhere. It is no
complete partition, because Ray's many connections can't be led through relays, and for that the harder trial: all
others still reach the node and ask it, and only its lease keeps it from answering. `PauseNode` stops every process of
the node (SIGSTOP), to others a partition like any other; but it wakes up where it stood, with questions in its hands
that were asked when it served: a zombie. (A single shard actor that is paused for long does not live to be one: its
supervisor kills it first.)

What must hold in all of them: the head gives the node's shards to its own actors, which serve them while the node is
cut off; the node's actors answer nothing that was asked when their lease was over, not even to somebody beside them
(`insider`); when it is over, what they had sent comes too late, and the node joins again and has its share; then it
leaves in peace.
"""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import psutil

from actors.errors import WorldError
from actors.platform_processes import send
from actors.processes import wait_until
from actors.shard_keeper import LEASE_S
from scenarios.history import Answered, Event, Outcome, Sent, read_history
from tests.chaos.faults import Fault, Load
from tests.chaos.network import HEAD_ADDRESS
from tests.chaos.stage import NODE, Stage, TrialFailed
from tests.integration.running_node import RunningNode
from tests.integration.running_platform import STOP_TIMEOUT_S
from twins.sharding import shard_of

# A node is lost after six seconds, and starts in ten; two busy cores take a multiple.
_TIMEOUT_S: Final = 90.0


@dataclass
class CutOff(Fault):
    """A further node that is cut off from the head; its subclasses say how."""

    part: str = "node"
    is_survived: bool = True
    _parts: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _node: RunningNode | None = None
    _history: Path | None = None
    # From when to when the node was cut off.
    _cut_s: float = 0.0
    _healed_s: float = 0.0

    def prepare(self, stage: Stage, load: Load) -> None:
        """Let a node join and serve some of the things that the auditor drives, and an insider ask it."""
        self._cut_s = self._healed_s = 0.0
        self._node = self._join(stage)
        self._parts.callback(self._node.end)
        self._node.wait_until_ready()
        thing_name = load.thing_names()[0]
        _until(lambda: self.is_over(stage), "the node has its share")
        placement = stage.placement()
        shard = shard_of(thing_name, len(placement.homes))
        stage.want_on_node(shard)
        _until(lambda: stage.placement().homes[shard].startswith(NODE), f"the node serves {thing_name}")
        self._start_insider(stage, load.directory)

    @abstractmethod
    def _join(self, stage: Stage) -> RunningNode:
        """Start the node."""

    def _start_insider(self, stage: Stage, directory: Path) -> None:
        (history_name,) = self.histories
        name = history_name.removesuffix(".jsonl")
        self._history = history = directory / history_name
        command = [
            sys.executable,
            "-m",
            "tests.chaos.insider",
            str(stage.data_dir),
            str(directory),
            NODE,
            name,
        ]
        output = self._parts.enter_context((directory / f"{name}.output").open("wb"))
        insider = subprocess.Popen([*stage.node_prefix, *command], stdout=output, stderr=output)
        self._parts.callback(_end, insider)
        _until(lambda: insider.poll() is not None or bool(_answered_s(history)), "the insider is answered")
        if insider.poll() is not None:
            raise TrialFailed(f"the insider has ended: {(directory / f'{name}.output').read_text()[-500:]}")

    def strike(self, stage: Stage, draws: random.Random) -> None:
        self._cut_s = time.monotonic()
        self._cut(stage)

    @abstractmethod
    def _cut(self, stage: Stage) -> None:
        """Cut the node off."""

    def last(self, stage: Stage, duration_s: float) -> int:
        """Let it last until the head has given the node's shards to others, and then as long as it should."""
        since_s = time.monotonic()
        _until(lambda: not _share(stage), "the shards of the node are served by others")
        time.sleep(max(0.0, since_s + duration_s - time.monotonic()))
        return 0

    def mend(self, stage: Stage) -> None:
        self._healed_s = time.monotonic()
        self._heal(stage)

    @abstractmethod
    def _heal(self, stage: Stage) -> None:
        """Let the node have its connections again."""

    def is_over(self, stage: Stage) -> bool:
        """Tell whether the node has its share, and no shard is on its way."""
        try:
            placement = stage.placement()
        except WorldError:
            return False
        return NODE in placement.nodes.values() and bool(_share(stage)) and not placement.pending()

    def clear(self, stage: Stage) -> str:
        node, self._node = self._node, None
        with self._parts:
            if node is None or not self._healed_s:
                return ""
            assert self._history is not None, "there was an insider"
            return answers_while_cut_off(self._history, self._cut_s, self._healed_s) or _leave(node, stage)


@dataclass
class Partition(CutOff):
    """Nothing gets through between the node and the head, either way."""

    histories: Sequence[str] = ("insider-partition.jsonl",)

    @property
    def name(self) -> str:
        return "partition"

    def is_possible(self, stage: Stage) -> bool:
        return stage.network is not None

    def _join(self, stage: Stage) -> RunningNode:
        return stage.join()

    def _cut(self, stage: Stage) -> None:
        assert stage.network is not None, "the machine's network is not for cutting"
        stage.network.cut()
        # Whatever comes of the trial.
        self._parts.callback(stage.network.heal)

    def _heal(self, stage: Stage) -> None:
        assert stage.network is not None
        stage.network.heal()


@dataclass
class StoreCutOff(CutOff):
    """The node's way to the store is cut, and no other: it is asked, and may not answer."""

    stands_in_for: str = "partition"
    histories: Sequence[str] = ("insider-node-without-store.jsonl",)
    _relay: subprocess.Popen[str] | None = None

    @property
    def name(self) -> str:
        return "node without store"

    def _join(self, stage: Stage) -> RunningNode:
        address = "127.0.0.1" if stage.network is None else HEAD_ADDRESS
        store = urlsplit(stage.platform.endpoints.redis.url)
        command = [sys.executable, "-m", "tests.chaos.relay", address, str(store.hostname), str(store.port)]
        self._relay = relay = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._parts.callback(_end, relay)
        assert relay.stdout is not None
        return stage.join((address, int(relay.stdout.readline())))

    def _cut(self, stage: Stage) -> None:
        self._signal(signal.SIGSTOP)

    def _heal(self, stage: Stage) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._relay is not None, "the node has joined through it"
        self._relay.send_signal(number)


@dataclass
class PauseNode(CutOff):
    """All processes of the node stand still, and go on when its shards are served by others."""

    # In no short storm: one way to cut a node off is enough there.
    stands_in_for: str = "node without store"
    histories: Sequence[str] = ("insider-pause-node.jsonl",)

    @property
    def name(self) -> str:
        return "pause node"

    def _join(self, stage: Stage) -> RunningNode:
        return stage.join()

    def _cut(self, stage: Stage) -> None:
        self._signal(signal.SIGSTOP)

    def _heal(self, stage: Stage) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._node is not None, "it has joined"
        starter = psutil.Process(self._node.process.pid)
        for process in (starter, *starter.children(recursive=True)):
            send(process, number)


def answers_while_cut_off(history: Path, cut_s: float, healed_s: float) -> str:
    """Return what is wrong with what a node answered to an insider that was cut off between two moments, '' if nothing.

    What was asked while its lease may have been in force may have been answered.
    """
    events = read_history(history)
    asked_s = {event.number: event.at_s for event in events if isinstance(event, Sent)}
    if not any(at_s < cut_s for at_s in _answered_s(history)):
        return "nobody was answered on the side that was to be cut off: nothing is known of it"
    over_s = cut_s + LEASE_S
    if not any(over_s < at_s < healed_s for at_s in asked_s.values()):
        return "nobody asked on the side that was cut off: nothing is known of it"
    answered = [
        event for event in _answers(events) if over_s < asked_s[event.number] and event.at_s < healed_s
    ]
    if answered:
        late_s = asked_s[answered[0].number] - cut_s
        return (
            f"the side that was cut off answered what was asked {late_s:.1f} s later ({len(answered)} times)"
        )
    return ""


def _answers(events: Sequence[Event]) -> list[Answered]:
    return [event for event in events if isinstance(event, Answered) and event.outcome is Outcome.OK]


def _answered_s(history: Path) -> list[float]:
    return [event.at_s for event in _answers(read_history(history))] if history.exists() else []


def _share(stage: Stage) -> list[int]:
    """Return the shards that the node is to serve, or would be asked for; all of them while nobody knows."""
    try:
        placement = stage.placement()
    except WorldError:
        return [-1]
    return [
        shard
        for shard, actors in enumerate(zip(placement.homes, placement.wanted, strict=True))
        if any(placement.nodes.get(actor, NODE) == NODE for actor in actors)
    ]


def _leave(node: RunningNode, stage: Stage) -> str:
    """Let the node end as an operator does; return what is wrong with that."""
    node.process.terminate()
    try:
        code = node.process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"the node does not end within {STOP_TIMEOUT_S:g} s"
    if code or _share(stage):
        return f"the node left shards behind {_share(stage)}, code {code}: {node.output.read_text()[-500:]}"
    return ""


def _end(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    # Also one that is stopped.
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _until(is_true: Callable[[], bool], what: str) -> None:
    if not wait_until(is_true, timeout_s=_TIMEOUT_S):
        raise TrialFailed(f"{what}: not within {_TIMEOUT_S:g} s")
