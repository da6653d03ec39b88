"""Uses twins like actors from a Ray task: reads two set points in parallel and raises the lower one.

Run beside a running platform: `.venv/bin/python examples/twin_in_a_task.py .twinfleet THING THING`.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import ray

from actors.ray_fleet import RayTwin, connect
from actors.settings import Endpoints


@ray.remote
def raise_the_lower(first: RayTwin, second: RayTwin) -> dict[str, Any]:
    """Return the accepted document of the twin whose set point was the lower one."""
    shadows = ray.get([first.shadow.remote(), second.shadow.remote()])
    set_points = [shadow["state"].get("desired", {}).get("set_point", 20.0) for shadow in shadows]
    lower = first if set_points[0] <= set_points[1] else second
    accepted: dict[str, Any] = ray.get(lower.update_desired.remote({"set_point": max(set_points) + 0.5}))
    return {"thing": lower.thing_name, **accepted}


async def main() -> None:
    """Connect, hand two twins to a task, and show what it did."""
    data_dir, first, second = sys.argv[1:]
    fleet = await connect(Endpoints.read(Path(data_dir)))
    twins = [fleet.twin(first), fleet.twin(second)]
    for twin in twins:
        # A twin comes to be with its first update; handles can be awaited as well.
        await twin.update_desired({"mode": "eco"})
    print(await raise_the_lower.remote(*twins))
    print(await fleet.twin(first).shadow())


if __name__ == "__main__":
    asyncio.run(main())
