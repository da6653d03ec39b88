"""Devices that update their shadows as fast as they are answered, each with five updates under way at a time.

Run as a process: `python -m tests.bench.updaters HOST PORT CA COUNT CERTIFICATE...` (a key beside each certificate).
They are subscribed to `update/accepted` and `rejected` at QoS 1. The next five leave when the last five are answered,
so that a thing never has more than ten in flight at the bridge, which counts one until the broker has its answer.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
from pathlib import Path
from typing import cast

import uvloop

from tests.bench.blaster import connect_packet, string_field
from tests.bench.paced_devices import frame, packet_end

PIECE = 5
_PACKET_ID_COUNT = 60_000
_CONNACK, _PUBLISH, _SUBACK = 2, 3, 9


class Updater(asyncio.Protocol):
    """One device on one connection, MQTT 3.1.1; `ready` when it has subscribed, `done` when all are answered."""

    def __init__(self, name: str, count: int) -> None:
        loop = asyncio.get_running_loop()
        self._name = name
        self._topic = string_field(f"$aws/things/{name}/shadow/update".encode())
        self._left = count
        self._open = 0
        self._sent = 0
        self._buffer = b""
        self.refused_count = 0
        self.ready = loop.create_future()
        self.done = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not asyncio's by class.
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(connect_packet(self._name))

    def connection_lost(self, exc: Exception | None) -> None:
        for outcome in (self.ready, self.done):
            if not outcome.done():
                outcome.set_exception(exc or ConnectionError(f"{self._name} was disconnected"))

    def send(self) -> None:
        """Publish the next updates in one piece."""
        count = self._open = min(PIECE, self._left)
        self._left -= count
        packets = []
        for _ in range(count):
            self._sent += 1
            payload = (
                b'{"state":{"reported":{"temperature":%d.25,"humidity":40.5,"battery":99.5,"uptime":%d}}}'
                % (self._sent % 40, self._sent)
            )
            packet_id = self._sent % _PACKET_ID_COUNT + 1
            packets.append(frame(0x32, self._topic + packet_id.to_bytes(2, "big") + payload))
        self._transport.write(b"".join(packets))

    def data_received(self, data: bytes) -> None:
        buffer, at = self._buffer + data, 0
        acknowledgements = []
        while (end := packet_end(buffer, at)) is not None:
            kind = buffer[at] >> 4
            if kind == _PUBLISH:
                topic_end = end[0] + 2 + int.from_bytes(buffer[end[0] : end[0] + 2], "big")
                acknowledgements.append(b"\x40\x02" + buffer[topic_end : topic_end + 2])
                self.refused_count += not buffer.endswith(b"/accepted", end[0], topic_end)
                self._open -= 1
            elif kind == _CONNACK:
                self._subscribe()
            elif kind == _SUBACK:
                self.ready.set_result(None)
            at = end[1]
        self._buffer = buffer[at:]
        if acknowledgements:
            self._transport.write(b"".join(acknowledgements))
            if not self._open:
                self._go_on()

    def _go_on(self) -> None:
        if self._left:
            self.send()
        elif not self.done.done():
            self.done.set_result(None)

    def _subscribe(self) -> None:
        topics = (f"$aws/things/{self._name}/shadow/update/{verb}" for verb in ("accepted", "rejected"))
        filters = b"".join(string_field(topic.encode()) + b"\x01" for topic in topics)
        self._transport.write(frame(0x82, b"\x00\x01" + filters))


async def connect(address: tuple[str, int], ca: str, certificate: Path, count: int) -> Updater:
    """Return the device of a certificate, subscribed."""
    context = ssl.create_default_context(cafile=ca)
    context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    _, device = await asyncio.get_running_loop().create_connection(
        lambda: Updater(certificate.stem, count), *address, ssl=context, server_hostname="localhost"
    )
    await device.ready
    return device


async def run() -> None:
    """Connect all devices, say "ready", wait for a line, update, and say how many were refused."""
    host, port, ca, count, *certificates = sys.argv[1:]
    each = int(count) // len(certificates)
    devices = [await connect((host, int(port)), ca, Path(path), each) for path in certificates]
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    for device in devices:
        device.send()
    await asyncio.gather(*(device.done for device in devices))
    print(sum(device.refused_count for device in devices), flush=True)


if __name__ == "__main__":
    uvloop.run(run())
