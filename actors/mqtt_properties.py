"""The properties of MQTT 5 that a publisher gives to a message, as they stand in a PUBLISH packet (MQTT 5, 3.3.2.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from actors.errors import DescriptionError
from twins.topics import is_sendable

# What the broker's bound for a packet leaves beside payload and topic.
PROPERTIES_BYTES_MAX: Final = 4096
# Four bytes (3.3.2.3.3).
_EXPIRY_MAX_S: Final = 2**32 - 1
# Two bytes say how long a text is (1.5.4).
_TEXT_BYTES_MAX: Final = 65_535
_PAYLOAD_FORMAT: Final = b"\x01"
_MESSAGE_EXPIRY: Final = b"\x02"
_CONTENT_TYPE: Final = b"\x03"
_RESPONSE_TOPIC: Final = b"\x08"
_CORRELATION_DATA: Final = b"\x09"
_USER_PROPERTY: Final = b"\x26"


@dataclass(frozen=True, slots=True)
class MessageProperties:
    """What a publisher says of a message; the broker hands it on as it is. Empty or None: nothing is said."""

    is_utf8: bool | None = None
    expiry_s: int | None = None
    content_type: str = ""
    response_topic: str = ""
    correlation_data: bytes = b""
    user_properties: tuple[tuple[str, str], ...] = ()

    def encode(self) -> bytes:
        """Return the properties without their length; DescriptionError, naming the one at fault, if one cannot be."""
        parts: list[bytes] = []
        if self.is_utf8 is not None:
            parts.append(_PAYLOAD_FORMAT + bytes([self.is_utf8]))
        if self.expiry_s is not None:
            if not 1 <= self.expiry_s <= _EXPIRY_MAX_S:
                raise DescriptionError("messageExpiry", f"must be from 1 to {_EXPIRY_MAX_S} seconds")
            parts.append(_MESSAGE_EXPIRY + self.expiry_s.to_bytes(4, "big"))
        if self.content_type:
            parts.append(_CONTENT_TYPE + _text(self.content_type, "contentType"))
        if self.response_topic:
            if "+" in self.response_topic or "#" in self.response_topic:
                raise DescriptionError("responseTopic", "must be a topic, without wildcards")
            parts.append(_RESPONSE_TOPIC + _text(self.response_topic, "responseTopic"))
        if self.correlation_data:
            parts.append(_CORRELATION_DATA + _binary(self.correlation_data, "correlationData"))
        for key, value in self.user_properties:
            pair = _text(key, "userProperties") + _text(value, "userProperties")
            parts.append(_USER_PROPERTY + pair)
        encoded = b"".join(parts)
        if len(encoded) > PROPERTIES_BYTES_MAX:
            problem = f"have {len(encoded)} bytes together, {PROPERTIES_BYTES_MAX} at most"
            raise DescriptionError("the MQTT properties", problem)
        return encoded


def _text(text: str, subject: str) -> bytes:
    if not is_sendable(text):
        raise DescriptionError(subject, "must be without control characters, and what is no character")
    return _binary(text.encode(), subject)


def _binary(content: bytes, subject: str) -> bytes:
    if len(content) > _TEXT_BYTES_MAX:
        raise DescriptionError(subject, f"has {len(content)} bytes, {_TEXT_BYTES_MAX} at most")
    return len(content).to_bytes(2, "big") + content
