"""The baseline of `ingest`: a gmqtt subscriber that takes messages at QoS 1 and does nothing with them.

Run as a process: `python -m tests.bench.bare_subscriber HOST PORT USER PASSWORD`; prints the count of messages so far
whenever it has grown, at most 50 times a second.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import gmqtt
import uvloop


async def serve() -> None:
    """Count messages until the process is ended."""
    host, port, user, password = sys.argv[1:]
    count = 0

    async def on_message(*_: Any) -> int:
        nonlocal count
        count += 1
        return 0

    client = gmqtt.Client("bench.bare", receive_maximum=1000)
    client.set_auth_credentials(user, password)
    client.on_message = on_message
    await client.connect(host, int(port), version=5)
    client.subscribe("telemetry/+/#", qos=1)
    printed = -1
    while True:
        if count != printed:
            printed = count
            print(count, flush=True)
        await asyncio.sleep(0.02)


if __name__ == "__main__":
    uvloop.run(serve())
