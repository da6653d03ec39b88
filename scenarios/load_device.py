"""One simulated device on the wire: its connection, what it waits for, and when it tries again.

What it reports and when is its model's; see `load_fleet`. A report that has no answer when the connection ends is sent
again on the next one at QoS 1, as a device does that keeps its session; at QoS 0 it is lost.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import msgspec

from actors.mqtt_packets import (
    PACKET_ID_MAX,
    PING,
    PUBACK,
    PUBLISH,
    SUBACK,
    Connect,
    Packet,
    acknowledge,
    once_more,
    publish,
    read_arrival,
    subscribe,
)
from scenarios.load_link import LoadLink
from twins.topics import shadow_prefix

if TYPE_CHECKING:
    from scenarios.load_orders import LoadSettings

# Codes of SUBACK from here on are refusals (MQTT 3.1.1, 3.9.3).
_REFUSED_FROM: Final = 0x80
_Read = TypeVar("_Read")


class _Answer(msgspec.Struct):
    """What a device reads of `accepted` and `rejected`."""

    clientToken: str = ""  # noqa: N815 - as on the wire


class _Delta(msgspec.Struct):
    """What a device reads of a delta."""

    state: dict[str, msgspec.Raw] = {}


_decode_answer: Final = msgspec.json.Decoder(_Answer).decode
_decode_delta: Final = msgspec.json.Decoder(_Delta).decode


class Report:
    """A report on its way: `count` reports of the model that say the same; `due_s` is when it was to be sent."""

    __slots__ = ("count", "due_s", "packet", "sent_s")

    def __init__(self, due_s: float, packet: bytes, count: int) -> None:
        self.due_s = due_s
        self.packet = packet
        self.count = count
        # 0: not yet.
        self.sent_s = 0.0


class Listener(Protocol):
    """Who hears what becomes of devices and of their reports."""

    settings: LoadSettings

    def now_s(self) -> float:
        """Return the time by the machine's monotonic clock."""

    def on_online(self, device: LoadDevice) -> None:
        """Take in that a device is connected and subscribed."""

    def on_offline(self, device: LoadDevice, reason: str, *, was_open: bool) -> None:
        """Take in that a device has lost its connection, or did not get one."""

    def on_answer(self, device: LoadDevice, report: Report, *, is_accepted: bool) -> None:
        """Take in that a report was accepted or rejected."""

    def on_sent(self, report: Report, *, is_again: bool) -> None:
        """Take in that a report has left."""

    def on_acknowledged(self) -> None:
        """Take in a PUBACK."""

    def on_delta(self, device: LoadDevice, payload: bytes) -> None:
        """Take in a delta: JSON, as it came."""


class LoadDevice:
    """A device of row `row` of the group `group`; `reports` are those without an answer, by their token."""

    __slots__ = (
        "_listener",
        "_prefix",
        "_subscribed",
        "began_s",
        "failed_count",
        "group",
        "is_wanted",
        "link",
        "name",
        "packet_id",
        "reports",
        "retry_s",
        "row",
    )

    def __init__(self, listener: Listener, group: str, row: int, name: str) -> None:
        self._listener = listener
        self._prefix = shadow_prefix(name)
        self._subscribed = False
        self.group = group
        self.row = row
        self.name = name
        # Whether its model has it online.
        self.is_wanted = False
        self.link: LoadLink | None = None
        # When the present attempt to connect began, by the monotonic clock.
        self.began_s = 0.0
        # Attempts to connect that failed, since it was last online.
        self.failed_count = 0
        self.packet_id = 0
        self.retry_s = listener.settings.retry_first_s
        self.reports: dict[str, Report] = {}

    def hello(self) -> bytes:
        """Return the CONNECT that it begins a connection with."""
        return Connect(self.name, keep_alive_s=self._listener.settings.keep_alive_s).encode()

    @property
    def is_online(self) -> bool:
        """Tell whether it is connected and subscribed."""
        return self._subscribed

    def next_wait_s(self) -> float:
        """Return how long to wait before the next attempt, and make the one after that longer."""
        settings = self._listener.settings
        if settings.backoff == "none":
            return 0.0
        wait_s = self.retry_s * random.uniform(0.5, 1.0)
        self.retry_s = min(self.retry_s * 2, settings.retry_max_s)
        return wait_s

    def report(self, token: str, due_s: float, payload: bytes, *, count: int) -> None:
        """Send a report, now if it is online, else as soon as it is."""
        packet_id = 0
        if self._listener.settings.qos:
            packet_id = self.packet_id = self.packet_id % PACKET_ID_MAX + 1
        report = Report(due_s, publish(f"{self._prefix}/update", payload, packet_id=packet_id), count)
        self.reports[token] = report
        if self._subscribed:
            self._send(report)

    def ping(self, *, silent_s: float) -> None:
        """Ask the broker for a sign of life; one that has given none for so long is given up."""
        link = self.link
        if link is None or not link.is_open:
            return
        if self._listener.now_s() - link.heard_s > silent_s:
            link.drop("the broker does not answer")
        else:
            link.send(PING)

    def leave(self) -> None:
        """End the connection with a farewell."""
        link, self.link, self._subscribed = self.link, None, False
        if link is not None:
            link.close()

    def _send(self, report: Report) -> None:
        link = self.link
        if link is None:
            return
        is_again = report.sent_s > 0
        report.sent_s = self._listener.now_s()
        self._listener.on_sent(report, is_again=is_again)
        link.send(once_more(report.packet) if is_again and self._listener.settings.qos else report.packet)

    # What the connection tells

    def on_open(self) -> None:
        """Subscribe."""
        topics = [f"{self._prefix}/update/{each}" for each in ("accepted", "rejected", "delta")]
        if self.link is not None:
            self.link.send(subscribe(topics, qos=self._listener.settings.qos))

    def on_packet(self, found: Packet) -> None:
        """Take in what the broker has sent."""
        if found.kind == PUBACK:
            self._listener.on_acknowledged()
        elif found.kind == PUBLISH:
            self._on_message(found)
        elif found.kind == SUBACK:
            self._on_subscribed(found)

    def on_end(self, reason: str, *, was_open: bool) -> None:
        """Note that the connection is gone."""
        self.failed_count += not self._subscribed
        self.link, self._subscribed = None, False
        self._listener.on_offline(self, reason, was_open=was_open)

    def _on_subscribed(self, found: Packet) -> None:
        if any(code >= _REFUSED_FROM for code in found.body[2:]):
            if self.link is not None:
                self.link.drop("the broker refuses the subscription")
            return
        self._subscribed = True
        self.failed_count = 0
        self.retry_s = self._listener.settings.retry_first_s
        self._listener.on_online(self)
        for report in list(self.reports.values()):
            self._send(report)

    def _on_message(self, found: Packet) -> None:
        arrival = read_arrival(found)
        if arrival.packet_id and self.link is not None:
            self.link.send(acknowledge(arrival.packet_id))
        answer = arrival.topic[len(self._prefix) :]
        if answer == "/update/delta":
            self._listener.on_delta(self, arrival.payload)
        elif answer in ("/update/accepted", "/update/rejected"):
            # What an operator's request brought about has no token of ours.
            report = self.reports.pop(_read(_decode_answer, arrival.payload, _Answer()).clientToken, None)
            if report is not None:
                self._listener.on_answer(self, report, is_accepted=answer == "/update/accepted")


def wish_of(payload: bytes) -> dict[str, msgspec.Raw]:
    """Return what a delta wishes, by the names of fields, each still as JSON; nothing where it is no delta."""
    return _read(_decode_delta, payload, _Delta()).state


def _read(decode: Callable[[bytes], _Read], payload: bytes, otherwise: _Read) -> _Read:
    try:
        return decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return otherwise
