"""A real device as a process of its own: `python -m scenarios.wire`, MQTT 5 over TLS with its own certificate.

Owns the transport: connecting, subscribing, publishing at QoS 1, reconnecting. What the device says and obeys is
`brain`'s. Each event goes to standard output as one line of JSON; the process ends on SIGTERM, and when its standard
input ends, which it does when its parent dies, however it dies.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import random
import signal
import ssl
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import gmqtt
import msgspec
from gmqtt.mqtt.handler import MQTTError

from scenarios.brain import DeviceBrain, DeviceEvent, Reaction
from twins.model import model_named

# A handshake takes milliseconds on a loaded machine; gmqtt itself waits for ever.
_CONNECT_TIMEOUT_S: Final = 10.0
# A dead link is noticed after twice the keep-alive.
_KEEP_ALIVE_S: Final = 10
# The first retry hides a broker's restart, the last is what a broker bears of a whole fleet.
_RETRY_MIN_S: Final = 0.2
_RETRY_MAX_S: Final = 10.0
# With all replies outstanding a report that is due has to wait; looking again so often costs nothing.
_BUSY_WAIT_S: Final = 0.1
# The longest wait: unanswered requests are given up between reports too.
_IDLE_WAIT_S: Final = 1.0
# Below -1, which means for ever, so that gmqtt gives up at once: a lost connection is replaced by a new client here,
# because gmqtt neither subscribes again nor reads what was missed.
_NO_RECONNECTS: Final = -2
_LOG: Final = logging.getLogger("scenarios.wire")


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


class _Link:
    """One connection, from its first packet to its loss; never used again after."""

    def __init__(
        self, settings: WireSettings, brain: DeviceBrain, emit: Callable[[DeviceEvent], None]
    ) -> None:
        self._settings = settings
        self._brain = brain
        self._emit = emit
        self._wake = asyncio.Event()
        self._is_lost = False
        self._subscribed = asyncio.Event()
        self._client = gmqtt.Client(settings.thing_name, clean_session=True, logger=_LOG)
        self._client.set_config({"reconnect_retries": _NO_RECONNECTS})
        self._client.on_message = self._on_message
        self._client.on_subscribe = self._on_subscribe
        self._client.on_disconnect = self._on_disconnect

    async def open(self) -> None:
        """Connect and subscribe; OSError, TimeoutError or MQTTError where that does not succeed."""
        settings = self._settings
        context = ssl.create_default_context(cafile=settings.ca)
        context.load_cert_chain(settings.certificate, settings.key)
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            await self._client.connect(settings.host, settings.port, ssl=context, keepalive=_KEEP_ALIVE_S)
            subscriptions = [gmqtt.Subscription(topic, qos=1) for topic in self._brain.filters]
            self._client.subscribe(subscriptions)
            await self._subscribed.wait()
        refused = [one.topic for one in subscriptions if not one.acknowledged]
        if refused:
            raise ConnectionRefusedError(f"the broker refuses subscriptions to {', '.join(refused)}")

    async def serve(self, ended: asyncio.Event) -> None:
        """Live on this connection until it is lost or `ended` is set."""
        self._apply(self._brain.on_connected(time.monotonic()))
        while not (self._is_lost or ended.is_set()):
            now_s = time.monotonic()
            self._apply(self._brain.on_timer(now_s))
            due_s = self._brain.next_due_s
            wait_s = _IDLE_WAIT_S if due_s is None else min(_IDLE_WAIT_S, max(_BUSY_WAIT_S, due_s - now_s))
            if due_s is not None and now_s < due_s < now_s + _BUSY_WAIT_S:
                wait_s = due_s - now_s
            await self._rest(ended, wait_s)
        if self._is_lost:
            self._apply(self._brain.on_disconnected("the connection was lost"))

    async def _rest(self, ended: asyncio.Event, wait_s: float) -> None:
        ending = asyncio.ensure_future(ended.wait())
        losing = asyncio.ensure_future(self._wake.wait())
        try:
            await asyncio.wait({ending, losing}, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ending.cancel()
            losing.cancel()

    async def close(self) -> None:
        """Say goodbye where there is still somebody to hear it."""
        # A broken socket refuses the farewell, which is then no loss.
        with contextlib.suppress(OSError, AttributeError, TimeoutError):
            async with asyncio.timeout(_IDLE_WAIT_S):
                await self._client.disconnect()

    def _apply(self, reaction: Reaction) -> None:
        for event in reaction.events:
            self._emit(event)
        for message in reaction.messages:
            try:
                self._client.publish(message.topic, message.payload, qos=1)
            except OverflowError:
                # The broker acknowledges nothing any more: a new connection is the only cure.
                self._emit(DeviceEvent("failed", message="the broker's window of messages in flight is full"))
                self._lose()

    def _lose(self) -> None:
        self._is_lost = True
        self._wake.set()

    # gmqtt calls these by position, and ignores what they return but for on_message (0: success).

    def _on_message(self, _client: Any, topic: str, payload: bytes, _qos: int, _properties: Any) -> int:
        self._apply(self._brain.on_message(topic, payload, time.monotonic()))
        return 0

    def _on_subscribe(self, _client: Any, _mid: int, _qos: Any, _properties: Any) -> None:
        self._subscribed.set()

    def _on_disconnect(self, _client: Any, _packet: Any, _error: Any = None) -> None:
        self._lose()


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
        link = _Link(settings, brain, emit)
        try:
            await link.open()
            retry_s = _RETRY_MIN_S
            await link.serve(ended)
        except (OSError, TimeoutError, MQTTError) as error:
            emit(DeviceEvent("failed", message=f"cannot connect: {error or type(error).__name__}"))
        finally:
            await link.close()
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
