"""A real device as a process of its own: `python -m scenarios.wire`, MQTT 5 over TLS with its own certificate.

Owns the device's time: when it reports, and that it connects again. The connection is `device_link`'s, what the device
says and obeys `brain`'s. Each event goes to standard output as one line of JSON; the process ends on SIGTERM, and when
its standard input ends, which it does when its parent dies, however it dies.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from scenarios.brain import DeviceBrain, DeviceEvent, Reaction
from scenarios.device_link import LINK_ERRORS, DeviceLink, LinkSettings
from twins.shipped import model_named

# The first retry hides a broker's restart, the last is what a broker bears of a whole fleet.
_RETRY_MIN_S: Final = 0.2
_RETRY_MAX_S: Final = 10.0
# With all replies outstanding a report that is due has to wait; looking again so often costs nothing.
_BUSY_WAIT_S: Final = 0.1
# The longest wait: unanswered requests are given up between reports too.
_IDLE_WAIT_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class WireSettings:
    """Where the device connects, as whom, and how often it reports (in seconds of the wall clock)."""

    thing_name: str
    model: str
    host: str
    port: int
    ca: str
    certificate: str
    key: str
    report_every_s: float
    speed: float = 1.0

    def link(self) -> LinkSettings:
        """Return what the connection is made with; nothing is kept of the device at the broker when it ends."""
        return LinkSettings(self.thing_name, self.host, self.port, self.ca, self.certificate, self.key)


class _Life:
    """What a device does on one connection, from its first packet to its loss."""

    def __init__(
        self, settings: WireSettings, brain: DeviceBrain, emit: Callable[[DeviceEvent], None]
    ) -> None:
        self._brain = brain
        self._emit = emit
        self._link = DeviceLink(settings.link(), self._on_message)

    async def open(self) -> None:
        """Connect and subscribe; one of LINK_ERRORS where that does not succeed."""
        await self._link.open(self._brain.filters)

    async def serve(self, ended: asyncio.Event) -> None:
        """Live on this connection until it is lost or `ended` is set."""
        self._apply(self._brain.on_connected(time.monotonic()))
        while not (self._link.lost.is_set() or ended.is_set()):
            now_s = time.monotonic()
            self._apply(self._brain.on_timer(now_s))
            due_s = self._brain.next_due_s
            wait_s = _IDLE_WAIT_S if due_s is None else min(_IDLE_WAIT_S, max(_BUSY_WAIT_S, due_s - now_s))
            if due_s is not None and now_s < due_s < now_s + _BUSY_WAIT_S:
                wait_s = due_s - now_s
            await self._rest(ended, wait_s)
        if self._link.lost.is_set():
            self._apply(self._brain.on_disconnected("the connection was lost"))

    async def _rest(self, ended: asyncio.Event, wait_s: float) -> None:
        ending = asyncio.ensure_future(ended.wait())
        losing = asyncio.ensure_future(self._link.lost.wait())
        try:
            await asyncio.wait({ending, losing}, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ending.cancel()
            losing.cancel()

    async def close(self) -> None:
        """Say goodbye where there is still somebody to hear it."""
        await self._link.close()

    def _apply(self, reaction: Reaction) -> None:
        for event in reaction.events:
            self._emit(event)
        for message in reaction.messages:
            try:
                self._link.publish(message.topic, message.payload)
            except OverflowError:
                # The broker acknowledges nothing any more: a new connection is the only cure.
                self._emit(DeviceEvent("failed", message="the broker's window of messages in flight is full"))
                self._link.lost.set()

    def _on_message(self, topic: str, payload: bytes) -> None:
        self._apply(self._brain.on_message(topic, payload, time.monotonic()))


async def live(settings: WireSettings, emit: Callable[[DeviceEvent], None], ended: asyncio.Event) -> None:
    """Be the device until `ended` is set: connect, again and again where need be, and do as its brain says."""
    brain = DeviceBrain(
        settings.thing_name,
        model_named(settings.model),
        report_every_s=settings.report_every_s,
        speed=settings.speed,
    )
    retry_s = _RETRY_MIN_S
    while not ended.is_set():
        life = _Life(settings, brain, emit)
        try:
            await life.open()
            retry_s = _RETRY_MIN_S
            await life.serve(ended)
        except LINK_ERRORS as error:
            emit(DeviceEvent("failed", message=f"cannot connect: {error or type(error).__name__}"))
        finally:
            await life.close()
        with contextlib.suppress(TimeoutError):
            # Devices that lost a broker together do not come back together.
            async with asyncio.timeout(retry_s * random.uniform(0.5, 1.0)):
                await ended.wait()
        retry_s = min(retry_s * 2, _RETRY_MAX_S)


def _emit(event: DeviceEvent) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(event) + b"\n")
    sys.stdout.buffer.flush()


async def _run(settings: WireSettings) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)

    def on_input() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            ended.set()

    # Input that is a file, as in `< /dev/null`, cannot be watched: then only a signal ends the device.
    with contextlib.suppress(PermissionError):
        loop.add_reader(0, on_input)
    await live(settings, _emit, ended)


def main() -> None:
    """Run one device as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m scenarios.wire", description="A real device over MQTT.")
    for name in ("thing-name", "model", "host", "ca", "certificate", "key"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--report-every-s", type=float, required=True)
    parser.add_argument("--speed", type=float, default=1.0)
    settings = WireSettings(**vars(parser.parse_args()))
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    with contextlib.suppress(BrokenPipeError):
        asyncio.run(_run(settings))


if __name__ == "__main__":
    main()
