"""The load generator's connections at full speed: each publishes one payload as fast as the broker takes it.

Run as a process: `python -m tests.bench.flood HOST PORT CA QOS CONNECTIONS SECONDS [CERTIFICATES]`; a CA of "-" is
plain TCP, CERTIFICATES is a directory with NAME.pem for each connection. Prints "ready", floods when it gets a line,
and prints how many messages the broker has taken in how many seconds: at QoS 1 those that it has acknowledged, at QoS
0 those before a ping that it has answered.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import uvloop

from actors.mqtt_packets import PACKET_ID_MAX, PING, PINGRESP, PUBACK, Connect, Packet, publish
from scenarios.load_link import BrokerAddress, LoadLink

# The same 104 bytes that the peers were measured with: a shadow update.
PAYLOAD = (
    b'{"state":{"reported":{"temperature":21.37,"humidity":40.12,"battery":99.1,"online":true,"uptime":12345}}}'
)[:104]
# Messages of a connection that are not acknowledged, as paho has them by default.
WINDOW = 20
# At QoS 0: messages between two pings.
PIECE = 200


def name_of(number: int) -> str:
    """Return the client id of a connection."""
    return f"flood-{number:04d}"


def topic_of(name: str) -> str:
    """Return the topic that a client publishes on: one that the platform's broker lets it."""
    return f"telemetry/{name}/bench"


class Flooder:
    """One connection that publishes without end."""

    def __init__(self, name: str, qos: int) -> None:
        self.link: LoadLink | None = None
        self.taken = 0
        self.ended = ""
        self._topic = topic_of(name)
        self._qos = qos
        self._packet_id = 0
        self._credit = 0
        self._is_planned = False

    def begin(self) -> None:
        """Send the first window."""
        self._credit = WINDOW
        self._send()

    def on_open(self) -> None:
        """Wait for the others."""

    def on_packet(self, found: Packet) -> None:
        """Count what the broker has taken, and plan to send as much again."""
        if found.kind == PUBACK:
            self.taken += 1
            self._credit += 1
        elif found.kind == PINGRESP:
            self.taken += PIECE
        if not self._is_planned:
            # Once for all packets that have come together.
            self._is_planned = True
            asyncio.get_running_loop().call_soon(self._send)

    def on_end(self, reason: str, *, was_open: bool) -> None:
        """Keep why it ended."""
        self.ended = reason

    def _send(self) -> None:
        self._is_planned = False
        link = self.link
        if link is None:
            return
        if not self._qos:
            link.send(publish(self._topic, PAYLOAD) * PIECE + PING)
            return
        packets = []
        for _ in range(self._credit):
            self._packet_id = self._packet_id % PACKET_ID_MAX + 1
            packets.append(publish(self._topic, PAYLOAD, packet_id=self._packet_id))
        self._credit = 0
        if packets:
            link.send(b"".join(packets))


async def flood() -> None:
    """Connect, wait for a line, and flood."""
    host, port, ca, qos, count, seconds = sys.argv[1:7]
    certificates = sys.argv[7] if len(sys.argv) > 7 else ""
    loop = asyncio.get_running_loop()
    address = BrokerAddress.of(host, int(port), "" if ca == "-" else ca)
    flooders = []
    for number in range(int(count)):
        name = name_of(number)
        flooder = Flooder(name, int(qos))
        flooder.link = LoadLink(loop, address, Connect(name).encode(), flooder)
        flooder.link.open(certificate=str(Path(certificates) / f"{name}.pem") if certificates else "")
        flooders.append(flooder)
        while not (flooder.link.is_open or flooder.ended):
            await asyncio.sleep(0.002)
    if ended := {each.ended for each in flooders if each.ended}:
        raise RuntimeError(f"not every connection stands: {', '.join(ended)}")
    print("ready", flush=True)
    await loop.run_in_executor(None, sys.stdin.readline)
    begun_s = time.perf_counter()
    for flooder in flooders:
        flooder.begin()
    await asyncio.sleep(float(seconds))
    print(sum(each.taken for each in flooders), time.perf_counter() - begun_s, flush=True)


if __name__ == "__main__":
    uvloop.run(flood())
