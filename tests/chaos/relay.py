"""Stands between a node and its store: `python -m tests.chaos.relay ADDRESS HOST PORT` prints the port that it takes.

Whoever stops its process (SIGSTOP) cuts the node off from the store, and from nothing else: connections stay, new ones
seem to be made, and no answer comes. What was sent meanwhile arrives when it goes on, as after a partition.
"""

from __future__ import annotations

import asyncio
import sys

from scenarios.relay import Relay


async def relay(address: str, host: str, port: int) -> None:
    """Carry bytes both ways between whoever connects to a free port of `address` and the server, until cancelled."""
    print(await Relay(host, port).start(address), flush=True)  # noqa: T201 - for whoever has started it
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(relay(sys.argv[1], sys.argv[2], int(sys.argv[3])))
