"""Devices that update their shadows on a schedule, whatever becomes of it, and time each answer.

Run as a process: `python -m tests.bench.paced_devices HOST PORT CA RATE WARM_UP_S DURATION_S CERTIFICATE...` (a key
beside each certificate). Messages go out `RATE` a second in all, the devices taking turns; each is timed from the
moment at which it was due, so that a device that is held up does not hide what those behind it wait for. Prints one
JSON object at the end.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import time
from pathlib import Path
from typing import cast

import uvloop

from tests.bench.blaster import connect_packet, string_field

# What is still under way when the schedule ends is waited for so long.
LAST_ANSWERS_S = 10.0
PACKET_ID_COUNT = 60_000
_CONNACK, _PUBLISH, _SUBACK = 2, 3, 9
_TOKEN = b'"clientToken":"'


class Answers:
    """When each message was due, and how long its answer took; times are those of `time.perf_counter`."""

    def __init__(self, count: int) -> None:
        self.due_s = [0.0] * count
        self.took_s = [-1.0] * count
        self.refused_count = 0
        self.open_count = count
        self.all_came = asyncio.Event()

    def came(self, number: int, *, is_accepted: bool) -> None:
        """Note an answer; one that is delivered twice counts at its first time."""
        if self.took_s[number] >= 0:
            return
        self.took_s[number] = time.perf_counter() - self.due_s[number]
        self.refused_count += not is_accepted
        self.open_count -= 1
        if not self.open_count:
            self.all_came.set()


def frame(first: int, body: bytes) -> bytes:
    """Return an MQTT packet of less than 16 KB."""
    length = bytes((len(body),)) if len(body) < 128 else bytes((len(body) % 128 | 128, len(body) // 128))
    return bytes((first,)) + length + body


def packet_end(buffer: bytes, at: int) -> tuple[int, int] | None:
    """Return where the body of the packet at `at` begins and ends; None while it is not whole."""
    length, shift, position = 0, 0, at + 1
    while position < len(buffer):
        byte = buffer[position]
        length |= (byte & 127) << shift
        shift += 7
        position += 1
        if byte < 128:
            return (position, position + length) if position + length <= len(buffer) else None
    return None


class PacedDevice(asyncio.Protocol):
    """One device on one connection, MQTT 3.1.1; `ready` when it has subscribed to its answers."""

    def __init__(self, name: str, answers: Answers) -> None:
        self._name = name
        self._answers = answers
        self._buffer = b""
        self._topic = string_field(f"$aws/things/{name}/shadow/update".encode())
        self._sent_count = 0
        self.ready = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not asyncio's by class.
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(connect_packet(self._name))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ready.done():
            self.ready.set_exception(exc or ConnectionError(f"{self._name} was refused"))

    def send(self, number: int) -> None:
        """Publish the update that has this number."""
        payload = (
            b'{"state":{"reported":{"temperature":%d.25,"humidity":40.5,"battery":99.5,"uptime":%d}},"clientToken":"%d"}'
            % (number % 40, number, number)
        )
        packet_id = self._sent_count % PACKET_ID_COUNT + 1
        self._sent_count += 1
        self._transport.write(frame(0x32, self._topic + packet_id.to_bytes(2, "big") + payload))

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data
        at = 0
        while (end := packet_end(buffer, at)) is not None:
            start = end[0]
            self._take(buffer[at] >> 4, buffer[at], buffer[start : end[1]])
            at = end[1]
        self._buffer = buffer[at:]

    def _take(self, kind: int, first: int, body: bytes) -> None:
        if kind == _PUBLISH:
            topic_end = 2 + int.from_bytes(body[:2], "big")
            payload_start = topic_end
            if first & 6:
                payload_start += 2
                self._transport.write(b"\x40\x02" + body[topic_end:payload_start])
            start = body.index(_TOKEN, payload_start) + len(_TOKEN)
            number = int(body[start : body.index(b'"', start)])
            self._answers.came(number, is_accepted=body[:topic_end].endswith(b"/accepted"))
        elif kind == _CONNACK:
            topics = (
                f"$aws/things/{self._name}/shadow/update/{verb}".encode() for verb in ("accepted", "rejected")
            )
            self._transport.write(
                frame(0x82, b"\x00\x01" + b"".join(string_field(t) + b"\x01" for t in topics))
            )
        elif kind == _SUBACK:
            self.ready.set_result(None)


async def connect(address: tuple[str, int], ca: str, certificate: Path, answers: Answers) -> PacedDevice:
    """Return the device of a certificate, subscribed."""
    context = ssl.create_default_context(cafile=ca)
    context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    _, device = await asyncio.get_running_loop().create_connection(
        lambda: PacedDevice(certificate.stem, answers), *address, ssl=context, server_hostname="localhost"
    )
    await device.ready
    return device


async def keep_schedule(devices: list[PacedDevice], answers: Answers, rate: float) -> list[float]:
    """Send everything at its time and return how late each was sent (s)."""
    count, late_s = len(answers.due_s), []
    start_s = time.perf_counter() + 0.1
    for number in range(count):
        due_s = answers.due_s[number] = start_s + number / rate
        while (wait_s := due_s - time.perf_counter()) > 0:
            await asyncio.sleep(wait_s)
        devices[number % len(devices)].send(number)
        late_s.append(time.perf_counter() - due_s)
        if not number % 10:
            # Also when behind: who only sends would not see the answers.
            await asyncio.sleep(0)
    return late_s


async def run() -> None:
    """Connect all devices, keep the schedule, and print what came of it."""
    host, port, ca, rate_text, warm_up_s, duration_s, *certificates = sys.argv[1:]
    rate = float(rate_text)
    warm_up_count = int(rate * float(warm_up_s))
    answers = Answers(warm_up_count + int(rate * float(duration_s)))
    connections = (connect((host, int(port)), ca, Path(each), answers) for each in certificates)
    devices = [await connection for connection in connections]
    late_s = await keep_schedule(devices, answers, rate)
    try:
        await asyncio.wait_for(answers.all_came.wait(), LAST_ANSWERS_S)
    except TimeoutError:
        print(f"{answers.open_count} answers did not come", file=sys.stderr)
    measured = answers.took_s[warm_up_count:]
    report = {
        "took_ms": [round(took_s * 1000, 3) for took_s in measured if took_s >= 0],
        "late_ms": [round(late * 1000, 3) for late in late_s[warm_up_count:]],
        "unanswered": sum(took_s < 0 for took_s in measured),
        "refused": answers.refused_count,
    }
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    uvloop.run(run())
