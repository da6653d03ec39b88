"""Devices that run the unmodified AWS IoT Device SDK, over MQTT 5 or MQTT 3.1.1, with files of the platform."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from awscrt import mqtt, mqtt5, mqtt_request_response
from awsiot import ServiceStreamOptions, iotjobs, iotshadow, mqtt5_client_builder, mqtt_connection_builder

from tests.integration.running_platform import DEADLINE_S, RunningPlatform

# As in the SDK's own samples: with two subscriptions for requests, `get` and `update` take turns.
_CLIENT_OPTIONS = mqtt_request_response.ClientOptions(
    max_request_response_subscriptions=2,
    max_streaming_subscriptions=2,
    operation_timeout_in_seconds=int(DEADLINE_S),
)


@dataclass(frozen=True)
class Device:
    """A connected device of the SDK: its clients, and how it publishes a message at QoS 1."""

    name: str
    shadows: iotshadow.IotShadowClientV2
    old_shadows: iotshadow.IotShadowClient
    send: Callable[[str, bytes], Future[Any]]
    jobs: iotjobs.IotJobsClientV2

    def publish(self, topic: str, payload: bytes) -> object:
        """Publish at QoS 1 and return what the broker says."""
        return self.send(topic, payload).result(DEADLINE_S)

    def streams(self, create: str, request: Any) -> Stream:
        """Return an open stream of the events that `create`, a method of the shadow client, subscribes to."""
        return Stream(getattr(self.shadows, create), request)

    def job_stream(self, create: str, request: Any) -> Stream:
        """Return an open stream of the events that `create`, a method of the jobs client, subscribes to."""
        return Stream(getattr(self.jobs, create), request)

    def hears(self, subscribe: str, request: Any) -> queue.Queue[Any]:
        """Return the messages that `subscribe`, a method of the old shadow client, brings; it is subscribed."""
        heard: queue.Queue[Any] = queue.Queue()
        subscribed, _ = getattr(self.old_shadows, subscribe)(request, mqtt.QoS.AT_LEAST_ONCE, heard.put)
        subscribed.result(DEADLINE_S)
        return heard

    def sends(self, publish: str, request: Any) -> None:
        """Publish a request with a method of the old shadow client; the broker has it then."""
        getattr(self.old_shadows, publish)(request, mqtt.QoS.AT_LEAST_ONCE).result(DEADLINE_S)


class Stream:
    """Events of one subscription, in the order in which they came."""

    def __init__(self, create: Callable[..., Any], request: Any) -> None:
        self._events: queue.Queue[Any] = queue.Queue()
        established: Future[None] = Future()

        def status(event: mqtt_request_response.SubscriptionStatusEvent) -> None:
            # The SDK gives the type as a plain number. The end of the subscription comes here, too.
            if established.done():
                return
            if event.type == mqtt_request_response.SubscriptionStatusEventType.SUBSCRIPTION_ESTABLISHED:
                established.set_result(None)
            else:
                established.set_exception(AssertionError(event))

        # The operation ends when nobody refers to it any more.
        self._operation = create(request, ServiceStreamOptions(self._events.put, status))
        self._operation.open()
        established.result(DEADLINE_S)

    def next(self) -> Any:
        """Return the next event, or fail when none comes."""
        return self._events.get(timeout=DEADLINE_S)

    def is_empty(self) -> bool:
        """Tell whether no event waits."""
        return self._events.empty()


@contextlib.contextmanager
def over_mqtt5(name: str, files: Path, platform: RunningPlatform) -> Iterator[Device]:
    connected: Future[None] = Future()
    stopped: Future[None] = Future()
    client = mqtt5_client_builder.mtls_from_path(
        str(files / f"{name}.pem"),
        str(files / f"{name}.key"),
        endpoint=platform.endpoints.mqtts.host,
        port=platform.endpoints.mqtts.port,
        ca_filepath=str(files / "ca.pem"),
        client_id=name,
        on_lifecycle_connection_success=lambda _: connected.set_result(None),
        on_lifecycle_connection_failure=lambda failure: connected.set_exception(failure.exception),
        on_lifecycle_stopped=lambda _: stopped.set_result(None),
    )

    def send(topic: str, payload: bytes) -> Future[Any]:
        packet = mqtt5.PublishPacket(topic=topic, payload=payload, qos=mqtt5.QoS.AT_LEAST_ONCE)
        sent: Future[Any] = client.publish(packet)
        return sent

    client.start()
    connected.result(DEADLINE_S)
    try:
        new, old = iotshadow.IotShadowClientV2(client, _CLIENT_OPTIONS), iotshadow.IotShadowClient(client)
        yield Device(name, new, old, send, iotjobs.IotJobsClientV2(client, _CLIENT_OPTIONS))
    finally:
        # Without a packet the client drops the socket, which the broker takes for a lost connection.
        client.stop(mqtt5.DisconnectPacket())
        stopped.result(DEADLINE_S)


@contextlib.contextmanager
def over_mqtt3(name: str, files: Path, platform: RunningPlatform) -> Iterator[Device]:
    connection = mqtt_connection_builder.mtls_from_path(
        str(files / f"{name}.pem"),
        str(files / f"{name}.key"),
        endpoint=platform.endpoints.mqtts.host,
        port=platform.endpoints.mqtts.port,
        ca_filepath=str(files / "ca.pem"),
        client_id=name,
        clean_session=True,
        keep_alive_secs=30,
    )

    def send(topic: str, payload: bytes) -> Future[Any]:
        sent, _ = connection.publish(topic, payload, mqtt.QoS.AT_LEAST_ONCE)
        future: Future[Any] = sent
        return future

    connection.connect().result(DEADLINE_S)
    try:
        new, old = (
            iotshadow.IotShadowClientV2(connection, _CLIENT_OPTIONS),
            iotshadow.IotShadowClient(connection),
        )
        yield Device(name, new, old, send, iotjobs.IotJobsClientV2(connection, _CLIENT_OPTIONS))
    finally:
        connection.disconnect().result(DEADLINE_S)
