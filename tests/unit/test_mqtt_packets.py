"""MQTT packets: what is written is read again, however the bytes are cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from actors.mqtt_packets import (
    MQTT_5,
    MQTT_311,
    PUBACK,
    PUBLISH,
    SUBSCRIBE,
    Arrival,
    Connect,
    Packet,
    PacketReader,
    acknowledge,
    length_of,
    once_more,
    packet,
    publish,
    read_arrival,
    subscribe,
)


def test_lengths_are_written_as_the_specification_has_them() -> None:
    # MQTT 3.1.1, table 2.4: the first and the last of each number of digits.
    table = {0: "00", 127: "7f", 128: "8001", 16_383: "ff7f", 16_384: "808001", 2_097_151: "ffff7f"}
    assert {count: length_of(count).hex() for count in table} == table


@given(
    st.lists(st.tuples(st.text(max_size=20), st.binary(max_size=400), st.integers(0, 65_535)), max_size=6),
    st.lists(st.integers(1, 50), min_size=1, max_size=20),
    st.sampled_from([MQTT_311, MQTT_5]),
)
def test_messages_are_read_again_however_the_stream_is_cut(
    messages: list[tuple[str, bytes, int]], cuts: list[int], version: int
) -> None:
    stream = b"".join(
        publish(topic, payload, version=version, packet_id=packet_id)
        for topic, payload, packet_id in messages
    )
    reader, found = PacketReader(), list[Packet]()
    while stream:
        for cut in cuts:
            found += reader.feed(stream[:cut])
            stream = stream[cut:]
    assert [each.kind for each in found] == [PUBLISH] * len(messages)
    assert [read_arrival(each, version=version) for each in found] == [Arrival(*each) for each in messages]


def test_a_length_that_is_not_whole_waits_for_its_rest() -> None:
    whole, reader = packet(0x30, bytes(200)), PacketReader()
    assert reader.feed(whole[:2]) == []
    assert reader.feed(whole[2:]) == [Packet(0x30, bytes(200))]


def test_small_packets_are_as_the_specification_has_them() -> None:
    assert acknowledge(258) == b"\x40\x02\x01\x02"
    assert Connect("a", keep_alive_s=60).encode() == b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01a"
    assert subscribe(["a/b"], packet_id=10, qos=0) == b"\x82\x08\x00\x0a\x00\x03a/b\x00"
    assert publish("t", b"x", packet_id=1) == b"\x32\x06\x00\x01t\x00\x01x"
    assert once_more(publish("t", b"x", packet_id=1))[0] == 0x3A
    kinds = [each.kind for each in PacketReader().feed(acknowledge(1) + subscribe(["a"]))]
    assert kinds == [PUBACK, SUBSCRIBE]
