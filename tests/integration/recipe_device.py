"""A device with the AWS IoT Device SDK that follows the documented recipe, and a way to the broker that breaks.

The recipe: subscribe to the delta; then get; apply what differs unless something newer was applied before; report
what has been applied; and again, from the get on, after every connect.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from awscrt import mqtt5, mqtt_request_response
from awsiot import ServiceStreamOptions, V2ServiceException, iotshadow, mqtt5_client_builder
from awsiot import mqtt_connection_builder as mqtt3_builder

from tests.integration.bridge_stage import Wire
from tests.integration.running_platform import DEADLINE_S, RunningPlatform, until

# An answer takes milliseconds; one that got lost with a connection should not be waited for.
ANSWER_TIMEOUT_S = 2
# A client that has stopped by then is not stuck (see `Mqtt5Device.stop`).
STUCK_S = 1
# How often a lost connection is looked for while an answer is waited for.
LOOK_S = 0.02
_ESTABLISHED = mqtt_request_response.SubscriptionStatusEventType.SUBSCRIPTION_ESTABLISHED


class Way:
    """A `Wire` in a thread of its own, because the SDK's calls would block the event loop that carries its bytes."""

    def __init__(self, wire: Wire, loop: asyncio.AbstractEventLoop) -> None:
        self._wire = wire
        self._loop = loop
        self.broke = threading.Event()

    @property
    def port(self) -> int:
        return self._wire.port

    def _do(self, step: Callable[[], None]) -> None:
        async def call() -> None:
            step()

        asyncio.run_coroutine_threadsafe(call(), self._loop).result(DEADLINE_S)

    def renew(self) -> None:
        """Cut all connections; whatever was done to the way does not concern the next ones."""
        self._do(self._renew)

    def _renew(self) -> None:
        self._wire.count_down(0, lambda: None)
        self._wire.cut()
        self._wire.is_silent = False
        self._wire.answers.set()

    def break_after(self, piece_count: int, how: Callable[[Wire], None]) -> None:
        """Do something to the wire once so many more pieces have passed, and set `broke`."""
        self.broke.clear()

        def breaking() -> None:
            how(self._wire)
            self.broke.set()

        self._do(lambda: self._wire.count_down(piece_count, breaking))


@contextlib.contextmanager
def way_to(port: int) -> Iterator[Way]:
    """Give a way to that port of this machine."""
    laid: Future[Way] = Future()
    ended = asyncio.Event()

    async def lie() -> None:
        async with Wire(port).laid() as wire:
            laid.set_result(Way(wire, asyncio.get_running_loop()))
            await ended.wait()

    thread = threading.Thread(target=lambda: asyncio.run(lie()), name="way")
    thread.start()
    way = laid.result(DEADLINE_S)
    try:
        yield way
    finally:
        way._do(ended.set)
        thread.join(DEADLINE_S)


class Recipe:
    """What a device does about its shadow, whatever becomes of its connection."""

    def __init__(self, name: str, way: Way) -> None:
        self.name = name
        self.way = way
        # What the device is set to, and what it says of itself.
        self.state: dict[str, Any] = {"own": 0}
        self.connect_count = self.disconnect_count = self.answer_count = 0
        # (connects so far, version) of each delta in the order of their arrival, and of each accepted report.
        self.deltas: list[tuple[int, int]] = []
        self.reports: list[tuple[int, int]] = []
        self.does_ask = True
        self.is_connected = threading.Event()
        self.is_listening = threading.Event()
        self._version = 0
        self._events: queue.Queue[tuple[str, Any]] = queue.Queue()
        self._thread = threading.Thread(target=self._live, name=name)
        self._shadows: Any = None

    def begin(self, shadows: Any) -> None:
        """Subscribe to the delta and live; `shadows` is the SDK's client."""
        self._shadows = shadows
        request = iotshadow.ShadowDeltaUpdatedSubscriptionRequest(thing_name=self.name)
        options = ServiceStreamOptions(self._on_delta, self._on_status)
        self._stream = shadows.create_shadow_delta_updated_stream(request, options)
        self._stream.open()
        self._thread.start()

    def end(self) -> None:
        self._events.put(("end", None))
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()

    def change(self) -> None:
        """Let something happen at the device that it has to report."""
        self._events.put(("own", None))

    def connected(self, *_: Any, **__: Any) -> None:
        self.connect_count += 1
        self.is_connected.set()
        self._events.put(("connected", None))

    def disconnected(self, *_: Any, **__: Any) -> None:
        if self.is_connected.is_set():
            self.disconnect_count += 1
        self.is_connected.clear()
        self.is_listening.clear()

    def _on_delta(self, delta: iotshadow.ShadowDeltaUpdatedEvent) -> None:
        self.deltas.append((self.connect_count, delta.version))
        self._events.put(("delta", delta))

    def _on_status(self, event: mqtt_request_response.SubscriptionStatusEvent) -> None:
        if event.type == _ESTABLISHED:
            self.is_listening.set()
            self._events.put(("listening", None))

    def _live(self) -> None:
        has_to_ask = has_to_report = False
        while True:
            is_due = (has_to_ask or has_to_report) and self.is_connected.is_set()
            kind, value = self._next(LOOK_S if is_due else None)
            if kind == "end":
                return
            has_to_ask |= self.does_ask and kind in ("connected", "listening")
            has_to_report |= kind in ("connected", "own")
            if kind == "own":
                self.state["own"] += 1
            elif kind == "delta":
                has_to_report |= self._apply(value.state, value.version)
            if self._events.empty() and self.is_connected.is_set():
                if has_to_ask:
                    has_to_ask = not self._ask()
                    has_to_report = True
                if has_to_report and not has_to_ask:
                    has_to_report = not self._report()

    def _next(self, timeout_s: float | None) -> tuple[str, Any]:
        try:
            return self._events.get(timeout=timeout_s)
        except queue.Empty:
            return "", None

    def _apply(self, delta: dict[str, Any] | None, version: int) -> bool:
        """Apply a delta unless it is older than what was applied before, and tell whether it was not."""
        if version < self._version:
            return False
        self._version = version
        self.state.update(delta or {})
        return True

    def _ask(self) -> bool:
        try:
            document = self._answer(
                self._shadows.get_shadow(iotshadow.GetShadowRequest(thing_name=self.name))
            )
        except V2ServiceException as error:
            return error.modeled_error is not None and error.modeled_error.code == 404
        if document is not None:
            self._apply(document.state.delta, document.version)
        return document is not None

    def _report(self) -> bool:
        state = iotshadow.ShadowState(reported=dict(self.state))
        request = iotshadow.UpdateShadowRequest(thing_name=self.name, state=state)
        try:
            accepted = self._answer(self._shadows.update_shadow(request))
        except V2ServiceException:
            return False
        if accepted is not None:
            self.reports.append((self.connect_count, accepted.version))
        return accepted is not None

    def _answer(self, answer: Future[Any]) -> Any:
        """Return the answer to a request, None where it went with the connection."""
        connect_count = self.connect_count
        while self.connect_count == connect_count and self.is_connected.is_set():
            try:
                return answer.result(LOOK_S)
            except TimeoutError:
                continue
            except V2ServiceException as error:
                if error.modeled_error is None:
                    return None
                raise
        return None


_OPTIONS = mqtt_request_response.ClientOptions(
    max_request_response_subscriptions=4,
    max_streaming_subscriptions=2,
    operation_timeout_in_seconds=ANSWER_TIMEOUT_S,
)


class Mqtt5Device(Recipe):
    """The recipe over MQTT 5."""

    def __init__(self, name: str, files: Path, way: Way, *, is_session_kept: bool) -> None:
        super().__init__(name, way)
        behavior = mqtt5.ClientSessionBehaviorType
        self._stopped = threading.Event()
        self._client = mqtt5_client_builder.mtls_from_path(
            str(files / f"{name}.pem"),
            str(files / f"{name}.key"),
            endpoint="127.0.0.1",
            port=way.port,
            ca_filepath=str(files / "ca.pem"),
            client_id=name,
            session_behavior=behavior.REJOIN_ALWAYS if is_session_kept else behavior.CLEAN,
            session_expiry_interval_sec=3600 if is_session_kept else 0,
            min_reconnect_delay_ms=20,
            max_reconnect_delay_ms=100,
            on_lifecycle_connection_success=self.connected,
            on_lifecycle_disconnection=self.disconnected,
            on_lifecycle_stopped=lambda _: self._stopped.set(),
        )
        self.begin(iotshadow.IotShadowClientV2(self._client, _OPTIONS))

    def start(self) -> None:
        self._client.start()

    def stop(self) -> None:
        self._stopped.clear()
        self._client.stop(mqtt5.DisconnectPacket())
        if not self._stopped.wait(STUCK_S):
            # awscrt 0.36.1 never sends its DISCONNECT once a message has arrived after `stop`: the PUBACK for it goes
            # to the head of the queue, and nothing sets the queue going again.
            self.way.renew()
            assert self._stopped.wait(DEADLINE_S)


class Mqtt3Device(Recipe):
    """The recipe over MQTT 3.1.1."""

    def __init__(self, name: str, files: Path, way: Way, *, is_session_kept: bool) -> None:
        super().__init__(name, way)
        self._connection = mqtt3_builder.mtls_from_path(
            str(files / f"{name}.pem"),
            str(files / f"{name}.key"),
            endpoint="127.0.0.1",
            port=way.port,
            ca_filepath=str(files / "ca.pem"),
            client_id=name,
            clean_session=not is_session_kept,
            keep_alive_secs=30,
            reconnect_min_timeout_secs=1,
            reconnect_max_timeout_secs=1,
            on_connection_success=self.connected,
            on_connection_resumed=self.connected,
            on_connection_interrupted=self.disconnected,
        )
        self.begin(iotshadow.IotShadowClientV2(self._connection, _OPTIONS))

    def start(self) -> None:
        self._connection.connect()

    def stop(self) -> None:
        self._connection.disconnect().result(DEADLINE_S)
        self.disconnected()


KINDS: dict[str, type[Mqtt5Device | Mqtt3Device]] = {"mqtt5": Mqtt5Device, "mqtt3": Mqtt3Device}


@contextlib.contextmanager
def recipe_device(
    protocol: str, name: str, platform: RunningPlatform, files: Path, *, is_session_kept: bool
) -> Iterator[Mqtt5Device | Mqtt3Device]:
    """Give a registered device that is connected, on a way of its own, and listens."""
    platform.enrol(name, files)
    with way_to(platform.endpoints.mqtts.port) as way:
        device = KINDS[protocol](name, files, way, is_session_kept=is_session_kept)
        device.start()
        try:
            until(device.is_listening.is_set, f"{name} listens")
            yield device
        finally:
            device.stop()
            device.end()
