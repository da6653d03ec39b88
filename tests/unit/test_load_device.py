"""A device on the wire, without a wire: what it says, when it says it again, and when it tries again."""

from __future__ import annotations

import pytest

from actors.mqtt_packets import (
    PUBLISH,
    SUBACK,
    SUBSCRIBE,
    Connect,
    Packet,
    PacketReader,
    acknowledge,
    publish,
    read_arrival,
)
from scenarios.load_device import LoadDevice, Report, wish_of
from scenarios.load_link import LoadLink
from scenarios.load_orders import LoadSettings

PREFIX = "$aws/things/lamp/shadow"
GRANTED = Packet(SUBACK << 4, b"\x00\x01\x01\x01\x01")


class Wire(LoadLink):
    """A link that keeps what it is given."""

    def __init__(self) -> None:
        self.sent: list[Packet] = []
        self.dropped = ""

    def send(self, content: bytes) -> None:
        self.sent += PacketReader().feed(content)

    def drop(self, reason: str) -> None:
        self.dropped = reason


class Witness:
    """Keeps what a device tells."""

    def __init__(self, **settings: object) -> None:
        self.settings = LoadSettings("", 0, "", **settings)  # type: ignore[arg-type]  # whatever a test sets
        self.heard: list[object] = []

    def now_s(self) -> float:
        return 1.0

    def on_online(self, _: LoadDevice) -> None:
        self.heard.append("online")

    def on_offline(self, _: LoadDevice, reason: str, *, was_open: bool) -> None:
        self.heard.append((reason, was_open))

    def on_answer(self, _: LoadDevice, report: Report, *, is_accepted: bool) -> None:
        self.heard.append((report.due_s, is_accepted))

    def on_sent(self, _: Report, *, is_again: bool) -> None:
        self.heard.append("again" if is_again else "sent")

    def on_acknowledged(self) -> None:
        self.heard.append("acknowledged")

    def on_delta(self, _: LoadDevice, payload: bytes) -> None:
        self.heard.append(payload)


def connected(witness: Witness, device: LoadDevice | None = None) -> tuple[LoadDevice, Wire]:
    device = device or LoadDevice(witness, "lamps", 0, "lamp")
    wire = Wire()
    device.link = wire
    device.on_open()
    device.on_packet(GRANTED)
    return device, wire


def arrived(topic: str, payload: bytes, packet_id: int = 7) -> Packet:
    return PacketReader().feed(publish(f"{PREFIX}/{topic}", payload, packet_id=packet_id))[0]


def test_a_report_is_sent_once_its_device_is_subscribed_and_not_before() -> None:
    witness = Witness()
    device = LoadDevice(witness, "lamps", 0, "lamp")
    device.report("1", 0.5, b'{"clientToken":"1"}', count=1)
    assert witness.heard == []
    _, wire = connected(witness, device)
    assert [each.kind for each in wire.sent] == [SUBSCRIBE, PUBLISH]
    assert read_arrival(wire.sent[1]).topic == f"{PREFIX}/update"
    assert witness.heard == ["online", "sent"]


def test_an_answer_is_that_of_the_report_whose_token_it_bears() -> None:
    witness = Witness()
    device, wire = connected(witness)
    device.report("1", 0.5, b"{}", count=1)
    device.report("2", 0.7, b"{}", count=1)
    witness.heard.clear()
    device.on_packet(arrived("update/accepted", b'{"clientToken":"2","version":3}'))
    device.on_packet(arrived("update/rejected", b'{"code":429,"clientToken":"1"}'))
    # An operator's, and one that comes a second time.
    device.on_packet(arrived("update/accepted", b'{"version":4}'))
    device.on_packet(arrived("update/accepted", b'{"clientToken":"2"}'))
    assert witness.heard == [(0.7, True), (0.5, False)]
    assert device.reports == {}
    assert wire.sent[-1] == PacketReader().feed(acknowledge(7))[0]


@pytest.mark.parametrize(("qos", "first_byte"), [(1, 0x3A), (0, 0x30)])
def test_what_has_no_answer_is_sent_again_on_the_next_connection(qos: int, first_byte: int) -> None:
    witness = Witness(qos=qos)
    device, _ = connected(witness)
    device.report("1", 0.5, b"{}", count=1)
    device.on_end("the broker closed the connection", was_open=True)
    _, wire = connected(witness, device)
    assert wire.sent[-1].first == first_byte
    assert witness.heard[-2:] == ["online", "again"]


def test_a_refused_subscription_ends_the_connection() -> None:
    witness = Witness()
    device = LoadDevice(witness, "lamps", 0, "lamp")
    device.link = wire = Wire()
    device.on_packet(Packet(SUBACK << 4, b"\x00\x01\x01\x80\x01"))
    assert "refuses the subscription" in wire.dropped
    assert not device.is_online


def test_waits_grow_until_a_connection_stands_and_without_back_off_there_are_none() -> None:
    witness = Witness(retry_first_s=1.0, retry_max_s=8.0)
    device = LoadDevice(witness, "lamps", 0, "lamp")
    for longest in (1.0, 2.0, 4.0, 8.0, 8.0):
        assert longest / 2 <= device.next_wait_s() <= longest
    connected(witness, device)
    assert device.next_wait_s() <= 1.0
    hasty = LoadDevice(Witness(backoff="none"), "lamps", 0, "lamp")
    assert [hasty.next_wait_s() for _ in range(3)] == [0.0] * 3


def test_deltas_and_damaged_answers_are_read_without_harm() -> None:
    witness = Witness()
    device, _ = connected(witness)
    witness.heard.clear()
    device.on_packet(arrived("update/delta", b'{"state":{"on":true}}', packet_id=0))
    device.on_packet(arrived("update/accepted", b"\xff"))
    assert witness.heard == [b'{"state":{"on":true}}']
    assert {name: bytes(value) for name, value in wish_of(b'{"state":{"on":true}}').items()} == {
        "on": b"true"
    }
    assert wish_of(b"[]") == wish_of(b"\xff") == wish_of(b"{}") == {}


def test_a_device_says_who_it_is_and_how_long_it_may_be_silent() -> None:
    device = LoadDevice(Witness(keep_alive_s=30), "lamps", 0, "lamp")
    assert device.hello() == Connect("lamp", keep_alive_s=30).encode()
