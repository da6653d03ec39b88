"""The baseline of `latency`: a gmqtt subscriber that answers every shadow update with its own payload, at QoS 1.

Run as a process: `python -m tests.bench.echo_subscriber HOST PORT USER PASSWORD [VERSION]`; prints "ready" when
subscribed. VERSION is that of MQTT: with 5, the default, gmqtt raises where more than the broker's window of 1,000
messages is unacknowledged, with 4 (3.1.1) it does not.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import gmqtt
import uvloop


async def serve() -> None:
    """Answer messages until the process is ended."""
    host, port, user, password, *version = sys.argv[1:]
    client = gmqtt.Client("bench.echo", receive_maximum=1000)
    subscribed = asyncio.Event()

    def on_message(_: Any, topic: str, payload: bytes, *__: Any) -> int:
        client.publish(f"{topic}/accepted", payload, qos=1)
        return 0

    def on_subscribe(*_: Any) -> None:
        subscribed.set()

    client.set_auth_credentials(user, password)
    client.on_message = on_message
    client.on_subscribe = on_subscribe
    await client.connect(host, int(port), version=int(version[0]) if version else 5)
    client.subscribe("$aws/things/+/shadow/update", qos=1)
    await subscribed.wait()
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve())
