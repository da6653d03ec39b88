"""The fleets that the contract holds for, by name: each opens one fleet, ready for use, and closes it.

A fleet may be shared by many tests, and may be that of a cluster with twins of its own: no test relies on an empty
one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from actors.fleet import Fleet, LocalFleet


@asynccontextmanager
async def local_fleet() -> AsyncIterator[Fleet]:
    """Open a fleet in this process."""
    fleet = LocalFleet(shard_count=4)
    yield fleet
    await fleet.close()


# The fleet on a cluster joins here under the name `ray`: one more line, and an opener like the one above.
FLEETS: dict[str, Callable[[], AbstractAsyncContextManager[Fleet]]] = {"local": local_fleet}
