"""Reads what the broker retains: a short-lived client that subscribes, collects and leaves.

Nothing is kept here, and nothing is published. A subscription brings the retained messages that match it before any
other (MQTT 5, 3.8.4); they have all come when the broker has answered a ping and none came before the answer.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from gmqtt import Client, MQTTConnectError, Subscription

from actors.errors import BrokerError
from actors.mqtt_link import BrokerConnection

# A local broker hands over thousands of messages in this time; longer means that it hangs.
_READ_TIMEOUT_S: Final = 10.0
# In one packet: of the longest topics (256 bytes) as many are 51 KB.
FILTER_COUNT_MAX: Final = 200
# Any subscription counts; what is published meanwhile does not carry the flag.
_SEND_RETAINED: Final = 0
_PING_REQUEST: Final = b"\xc0\x00"
_REFUSED_FROM: Final = 0x80
_GMQTT_LOGGER: Final = logging.getLogger(f"{__name__}.gmqtt")
_GMQTT_LOGGER.setLevel(logging.ERROR)


@dataclass(frozen=True, slots=True)
class RetainedMessage:
    """A message as the broker retains it."""

    topic: str
    payload: bytes
    qos: int
    user_properties: tuple[tuple[str, str], ...] = ()


async def read_retained(connection: BrokerConnection, topic_filters: Sequence[str]) -> list[RetainedMessage]:
    """Return the retained messages that match up to FILTER_COUNT_MAX filters; BrokerError if that cannot be told.

    `connection` says where and as whom; its client id is not used. mosquitto hands out 64 MB at most.
    """
    reader = _Reader(connection)
    try:
        async with asyncio.timeout(_READ_TIMEOUT_S):
            return await reader.read(topic_filters)
    except (MQTTConnectError, OSError) as error:
        text = (
            f"the MQTT broker at {connection.host}:{connection.port} cannot be read ({error}); is it running?"
        )
        raise BrokerError(text, retryable=True) from error
    except TimeoutError as error:
        text = f"the MQTT broker did not hand over what it retains within {_READ_TIMEOUT_S:g} s; try again"
        raise BrokerError(text, retryable=True) from error
    finally:
        reader.leave()


class _Reader:
    def __init__(self, connection: BrokerConnection) -> None:
        self._connection = connection
        self._found: dict[str, RetainedMessage] = {}
        # Messages since the last ping went out.
        self._news_count = 0
        self._answered: asyncio.Queue[bool] = asyncio.Queue()
        self._client = client = Client(
            # One for each, because a second client of the same id would end the first.
            f"app.reader.{secrets.token_hex(8)}",
            clean_session=True,
            logger=_GMQTT_LOGGER,
            session_expiry_interval=0,
            receive_maximum=connection.receive_maximum,
        )
        if connection.username is not None:
            client.set_auth_credentials(connection.username, connection.password)
        client.on_message = self._on_message
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        handler = client._package_handler
        handler._reconnect_callback = _stay_disconnected
        handler._handle_pingresp_packet = self._on_ping_answer

    async def read(self, topic_filters: Sequence[str]) -> list[RetainedMessage]:
        """Return what is retained, in the order of the topics."""
        settings = self._connection
        await self._client.connect(settings.host, settings.port, keepalive=settings.keepalive_s)
        self._client.subscribe(
            [Subscription(each, qos=1, retain_handling_options=_SEND_RETAINED) for each in topic_filters]
        )
        await self._step()
        # At QoS 1 the broker sends on as it gets acknowledgements, which go out before the next ping.
        self._news_count = 1
        while self._news_count:
            self._news_count = 0
            self._client._connection.send_package(_PING_REQUEST)
            await self._step()
        return [self._found[topic] for topic in sorted(self._found)]

    async def _step(self) -> None:
        if not await self._answered.get():
            raise BrokerError("the MQTT broker ended the connection or refused to be read", retryable=True)

    def leave(self) -> None:
        """End the connection; there is nothing that the broker should keep."""
        wire = self._client._connection
        if wire is not None:
            wire._transport.abort()

    def _on_message(
        self, _client: Any, topic: str, payload: bytes, qos: int, properties: dict[str, Any]
    ) -> None:
        self._news_count += 1
        if properties["retain"]:
            pairs = tuple((str(key), str(value)) for key, value in properties.get("user_property", ()))
            self._found[topic] = RetainedMessage(topic, bytes(payload), qos, pairs)

    def _on_subscribe(self, _client: Any, _packet_id: int, granted: Sequence[int], _properties: Any) -> None:
        self._answered.put_nowait(all(reason < _REFUSED_FROM for reason in granted))

    def _on_ping_answer(self, _command: int, _packet: bytes) -> None:
        self._answered.put_nowait(True)

    def _on_disconnect(self, _client: Any, _packet: object, _error: object = None) -> None:
        self._answered.put_nowait(False)


async def _stay_disconnected(**_options: object) -> None:
    """Take the place of gmqtt's reconnect."""
