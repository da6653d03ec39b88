"""Clients that connect whenever they are let in, subscribe to all they can think of, and keep what they hear."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from tests.integration.running_platform import RunningPlatform, until


class Listener:
    """One client with the certificate of `name`; `messages` are (topic, payload) in the order in which they came."""

    def __init__(
        self,
        platform: RunningPlatform,
        files: Path,
        name: str,
        filters: Sequence[str],
        *,
        is_persistent: bool,
    ) -> None:
        self.name = name
        self.messages: list[tuple[str, bytes]] = []
        self.has_subscribed = False
        self._filters = filters
        # A client id is given by its certificate, whatever it says.
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=name, clean_session=not is_persistent
        )
        self._client.tls_set(
            str(files / "ca.pem"), certfile=str(files / f"{name}.pem"), keyfile=str(files / f"{name}.key")
        )
        self._client.reconnect_delay_set(min_delay=1, max_delay=1)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message
        mqtts = platform.endpoints.mqtts
        self._client.connect_async(mqtts.host, mqtts.port, keepalive=30)

    @property
    def is_connected(self) -> bool:
        """Tell whether it is connected at present."""
        return self._client.is_connected()

    def start(self) -> None:
        """Connect, again and again if it must be, until `stop`."""
        self._client.loop_start()

    def stop(self) -> None:
        """Disconnect for good."""
        self._client.disconnect()
        self._client.loop_stop()

    def _on_connect(
        self, client: paho.Client, _data: Any, _flags: Any, reason: Any, _properties: Any
    ) -> None:
        if not reason.is_failure:
            client.subscribe([(topic_filter, 1) for topic_filter in self._filters])

    def _on_subscribe(self, *_: Any) -> None:
        self.has_subscribed = True

    def _on_message(self, _client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        self.messages.append((message.topic, bytes(message.payload)))


@contextlib.contextmanager
def listening(
    platform: RunningPlatform,
    files: Path,
    names: Sequence[str],
    filters: Sequence[str],
    *,
    is_persistent: bool = False,
) -> Iterator[list[Listener]]:
    """Give listeners with the certificates of these names; those that are no claims have subscribed when it begins."""
    listeners = [Listener(platform, files, name, filters, is_persistent=is_persistent) for name in names]
    for listener in listeners:
        listener.start()
    try:
        if not is_persistent:
            until(lambda: all(each.has_subscribed for each in listeners), "the listeners have subscribed")
        yield listeners
    finally:
        for listener in listeners:
            listener.stop()
