"""One MQTT 5 connection of a device over mutual TLS, from its first packet to its loss; never used again after.

Owns gmqtt and its traps: a lost connection is not replaced behind the device's back, and nothing waits for ever. What
is said and heard on it is the device's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import gmqtt
from gmqtt.mqtt.handler import MQTTError

# A handshake takes milliseconds on a loaded machine; gmqtt itself waits for ever.
_CONNECT_TIMEOUT_S: Final = 10.0
# A farewell takes a round trip.
_CLOSE_TIMEOUT_S: Final = 1.0
# A dead link is noticed after twice the keep-alive.
_KEEP_ALIVE_S: Final = 10
# Below -1, which means for ever, so that gmqtt gives up at once: a lost connection is replaced by a new one of ours,
# because gmqtt neither subscribes again nor reads what was missed.
_NO_RECONNECTS: Final = -2
_LOG: Final = logging.getLogger(__name__)
# That it gives up at once is what it was told to do, and no news for the terminal of who has set up no log.
_LOG.addHandler(logging.NullHandler())
# Nor is the trace of every connection that breaks: its loss is told in our words.
logging.getLogger("gmqtt").addHandler(logging.NullHandler())

LINK_ERRORS: Final = (OSError, TimeoutError, MQTTError)


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """Where a device connects and as whom; its session is kept for `session_expiry_s` after the connection's end."""

    thing_name: str
    host: str
    port: int
    ca: str
    certificate: str
    key: str
    session_expiry_s: int = 0


class DeviceLink:
    """One connection. `heard(topic, payload)` is called for every message, `lost` is set when the connection ends."""

    def __init__(self, settings: LinkSettings, heard: Callable[[str, bytes], None]) -> None:
        self.lost = asyncio.Event()
        # Whether the broker had kept the session of the connection before.
        self.is_session_present = False
        self._settings = settings
        self._heard = heard
        self._subscribed = asyncio.Event()
        expiry_s = settings.session_expiry_s
        kept = {"session_expiry_interval": expiry_s} if expiry_s else {}
        self._client = gmqtt.Client(settings.thing_name, clean_session=not expiry_s, logger=_LOG, **kept)
        self._client.set_config({"reconnect_retries": _NO_RECONNECTS})
        self._client.on_connect = self._on_connect
        self._client.on_message = self._on_message
        self._client.on_subscribe = self._on_subscribe
        self._client.on_disconnect = self._on_disconnect

    async def open(self, topic_filters: Sequence[str]) -> None:
        """Connect, and subscribe at QoS 1; one of LINK_ERRORS where that does not succeed."""
        settings = self._settings
        context = ssl.create_default_context(cafile=settings.ca)
        context.load_cert_chain(settings.certificate, settings.key)
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            await self._client.connect(settings.host, settings.port, ssl=context, keepalive=_KEEP_ALIVE_S)
            subscriptions = [gmqtt.Subscription(topic, qos=1) for topic in topic_filters]
            self._client.subscribe(subscriptions)
            await self._subscribed.wait()
        refused = [one.topic for one in subscriptions if not one.acknowledged]
        if refused:
            raise ConnectionRefusedError(f"the broker refuses subscriptions to {', '.join(refused)}")

    def publish(self, topic: str, payload: bytes) -> None:
        """Publish at QoS 1; OverflowError if the broker's window is full, for which a new link is the only cure."""
        self._client.publish(topic, payload, qos=1)

    def drop(self) -> None:
        """Break the connection without a farewell, as a device that loses its power does."""
        self.lost.set()
        connection = self._client._connection
        if connection is not None:
            connection._transport.abort()

    async def close(self) -> None:
        """Say goodbye where there is still somebody to hear it."""
        # A broken socket refuses the farewell, which is then no loss.
        with contextlib.suppress(OSError, AttributeError, TimeoutError):
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await self._client.disconnect()

    # gmqtt calls these by position, and ignores what they return but for on_message (0: success).

    def _on_connect(self, _client: Any, flags: int, _reason: int, _properties: Any) -> None:
        self.is_session_present = bool(flags & 1)

    def _on_message(self, _client: Any, topic: str, payload: bytes, _qos: int, _properties: Any) -> int:
        self._heard(topic, payload)
        return 0

    def _on_subscribe(self, _client: Any, _mid: int, _qos: Any, _properties: Any) -> None:
        self._subscribed.set()

    def _on_disconnect(self, _client: Any, _packet: Any, _error: Any = None) -> None:
        self.lost.set()
