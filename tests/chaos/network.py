"""A network of the tests' own, in which a node is as far away as a second machine, and can be cut off.

Where the machine allows it (Linux, root, and the programs `ip` and `nsenter`), the thread that runs trials leaves the
machine's network for a new one, with everything that it starts from then on: a loopback of its own, a switch that has
the head's address, and behind a cable a second network with the node's. To pull the cable is a partition: nothing comes
through either way, nobody is told of it, and whoever had sent something sends it again when it is mended, as TCP does.
Nothing of it outlives the processes that are in it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

# Addresses set aside for measurements between networks (RFC 2544): nobody's.
HEAD_ADDRESS: Final = "198.18.0.1"
NODE_ADDRESS: Final = "198.18.0.2"
_PREFIX_BITS: Final = 24
# From <sched.h>; `os` has it from Python 3.12 on.
_CLONE_NEWNET: Final = 0x40000000
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_TOOLS: Final = ("ip", "nsenter")
_OWN: Final = Path("/proc/thread-self/ns/net")


class Network:
    """The head's network, in which the calling thread is, and the node's behind a cable."""

    def __init__(self, node_descriptor: int) -> None:
        self._node_place: Final = f"/proc/{os.getpid()}/fd/{node_descriptor}"
        for command in (
            ["ip", "link", "add", "switch", "type", "bridge"],
            ["ip", "addr", "add", f"{HEAD_ADDRESS}/{_PREFIX_BITS}", "dev", "switch"],
            ["ip", "link", "add", "cable", "type", "veth", "peer", "name", "far", "netns", self._node_place],
            ["ip", "link", "set", "cable", "master", "switch"],
            ["ip", "link", "set", "lo", "up"],
            ["ip", "link", "set", "switch", "up"],
            ["ip", "link", "set", "cable", "up"],
            [*self.node_prefix, "ip", "addr", "add", f"{NODE_ADDRESS}/{_PREFIX_BITS}", "dev", "far"],
            [*self.node_prefix, "ip", "link", "set", "lo", "up"],
            [*self.node_prefix, "ip", "link", "set", "far", "up"],
        ):
            subprocess.run(command, check=True, capture_output=True)

    @property
    def node_prefix(self) -> Sequence[str]:
        """Return the command that runs another one in the node's network."""
        return "nsenter", f"--net={self._node_place}", "--"

    def cut(self) -> None:
        """Pull the cable."""
        subprocess.run(["ip", "link", "set", "cable", "down"], check=True)

    def heal(self) -> None:
        """Plug the cable in again; nothing happens if it is."""
        subprocess.run(["ip", "link", "set", "cable", "up"], check=True)


@contextlib.contextmanager
def own_network() -> Iterator[Network | None]:
    """Give this thread a network of its own while the context is open; None where the machine does not allow it."""
    with contextlib.ExitStack() as stack:
        yield _made(stack) if all(map(shutil.which, _TOOLS)) else None


def _made(stack: contextlib.ExitStack) -> Network | None:
    outer = _opened(stack)
    try:
        _leave_for_new()
    except PermissionError:
        return None
    # The first is for the node only: this thread stays in the second.
    stack.callback(_enter, outer)
    try:
        node = _opened(stack)
        _leave_for_new()
        return Network(node)
    except (PermissionError, subprocess.CalledProcessError):
        # A machine that allows networks and no cables between them.
        _enter(outer)
        return None


def _opened(stack: contextlib.ExitStack) -> int:
    """Return a descriptor of the network in which this thread is."""
    descriptor = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    stack.callback(os.close, descriptor)
    return descriptor


def _leave_for_new() -> None:
    if _LIBC.unshare(_CLONE_NEWNET):
        number = ctypes.get_errno()
        # An OSError of the kind that belongs to the number.
        raise OSError(number, os.strerror(number))


def _enter(descriptor: int) -> None:
    if _LIBC.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "the machine's own network cannot be entered again")
