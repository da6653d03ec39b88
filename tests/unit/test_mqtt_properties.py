"""MQTT 5 properties, byte for byte, and the packets that carry them."""

from __future__ import annotations

import pytest

from actors.errors import DescriptionError
from actors.mqtt_link import encode_publish
from actors.mqtt_properties import PROPERTIES_BYTES_MAX, MessageProperties
from twins.messages import Delivery


def test_nothing_said_is_nothing_sent() -> None:
    assert MessageProperties().encode() == b""


def test_each_property_stands_as_the_specification_says() -> None:
    encoded = MessageProperties(
        is_utf8=True,
        expiry_s=258,
        content_type="a/b",
        response_topic="c",
        correlation_data=b"\x00\xff",
        user_properties=(("k", "ü"), ("k", "")),
    ).encode()
    assert encoded == (
        b"\x01\x01\x02\x00\x00\x01\x02\x03\x00\x03a/b\x08\x00\x01c\x09\x00\x02\x00\xff"
        b"\x26\x00\x01k\x00\x02\xc3\xbc\x26\x00\x01k\x00\x00"
    )
    assert MessageProperties(is_utf8=False).encode() == b"\x01\x00"


@pytest.mark.parametrize(
    ("properties", "told"),
    [
        (MessageProperties(expiry_s=0), "messageExpiry: must be from 1"),
        (MessageProperties(expiry_s=2**32), "messageExpiry: must be from 1"),
        (MessageProperties(content_type="a\nb"), "contentType: must be without control characters"),
        (MessageProperties(content_type="\ufffe"), "contentType: must be without control characters, and"),
        (MessageProperties(response_topic="a/+"), "responseTopic: must be a topic"),
        (MessageProperties(user_properties=(("a", "\x00"),)), "userProperties: must be without control"),
        (MessageProperties(correlation_data=b"x" * 65_536), "correlationData: has 65536 bytes"),
        (MessageProperties(content_type="x" * PROPERTIES_BYTES_MAX), "have 4099 bytes together"),
    ],
)
def test_what_a_broker_would_end_the_connection_for_is_refused(
    properties: MessageProperties, told: str
) -> None:
    with pytest.raises(DescriptionError, match=told):
        properties.encode()


@pytest.mark.parametrize(
    ("delivery", "packet"),
    [
        (None, b"\x32\x08\x00\x01a\x01\x02\x00hi"),
        (Delivery(), b"\x32\x08\x00\x01a\x01\x02\x00hi"),
        (Delivery(qos=0), b"\x30\x06\x00\x01a\x00hi"),
        (Delivery(qos=0, is_retained=True), b"\x31\x06\x00\x01a\x00hi"),
        (Delivery(is_retained=True, properties=b"\x01\x01"), b"\x33\x0a\x00\x01a\x01\x02\x02\x01\x01hi"),
    ],
)
def test_a_packet_says_how_it_is_to_be_delivered(delivery: Delivery | None, packet: bytes) -> None:
    assert encode_publish("a", b"hi", 0x0102, delivery) == packet


def test_long_properties_have_a_long_length() -> None:
    packet = encode_publish("a", b"", 1, Delivery(qos=0, properties=b"p" * 200))
    assert packet == b"\x30\xcd\x01\x00\x01a\xc8\x01" + b"p" * 200
