"""The devices of one load process: their models decide what is said and when, real connections carry it.

The device side is a shard of its own, with this process's share of each group: the very code that simulates devices in
a platform's twins. What reaches a twin there is sent as a shadow update here, a delta that comes is what is desired
there, and a device that is offline there has no connection here. Same seed, same reports.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from scenarios.load_device import LoadDevice, Report, wish_of
from scenarios.load_histogram import Histogram
from scenarios.load_link import BrokerAddress, LoadLink
from scenarios.load_orders import LoadNews, LoadSettings
from twins.messages import Batch, Operation, Request, TickOrder, TickSummary
from twins.model import Group
from twins.shadow import Stamp, encode_json
from twins.shard import Shard
from twins.simulated import SimulatedFleet

# Connections that are being made at once: more do not come about faster, and mosquitto's queue of them holds 100.
_CONNECTING_MAX: Final = 64
# A handshake takes milliseconds, some seconds when thousands come at once.
_CONNECT_TIMEOUT_S: Final = 20.0
# Attempts after which nobody waits for a device any longer before a run begins.
_ATTEMPTS: Final = 3
# What has had no answer for so long will have none: ten times the slowest that a scenario would accept.
ANSWER_TIMEOUT_S: Final = 30.0
# A device whose model goes offline waits so long for the answer to its last report.
_FAREWELL_S: Final = 2.0
# uvloop counts whole milliseconds: what is asked for less is called at once, again and again.
_TIMER_S: Final = 0.001
# What is waited for is looked at so often at most.
_STIR_S: Final = 0.02
# Reasons that are told apart; more would be a list that nobody reads.
_REASONS_MAX: Final = 20
# Spreads the devices of a tick over it, whatever their number: the golden ratio's fraction.
_SPREAD: Final = 0.6180339887498949


@dataclass(slots=True)
class _Part:
    """This process's share of a group: its devices by row, and what became of their reports since the last summary."""

    group: Group
    fleet: SimulatedFleet
    devices: list[LoadDevice]
    summary: TickSummary = field(default_factory=TickSummary)
    # Reports that are planned or sent and have no answer yet.
    unanswered: int = 0
    online: int = 0
    answered: int = 0
    rejected: int = 0
    lost: int = 0


@dataclass(order=True, slots=True)
class _Due:
    """A report that is to be sent at `due_s`."""

    due_s: float
    number: int
    device: LoadDevice = field(compare=False)
    payload: bytes = field(compare=False)
    count: int = field(compare=False)


class LoadFleet:
    """The devices of one process; to be made and used within a running event loop, whose clock is the time here."""

    def __init__(self, settings: LoadSettings) -> None:
        self.settings = settings
        self.news = LoadNews()
        self._loop = asyncio.get_running_loop()
        self._address = BrokerAddress.of(settings.host, settings.port, settings.ca)
        self._sources = self._address.sources()
        self._shard = Shard(settings.number, settings.process_count)
        self._parts: dict[str, _Part] = {}
        # Devices that want a connection, in the order in which they asked; and those that are getting one.
        self._queue: deque[LoadDevice] = deque()
        self._connecting: set[LoadDevice] = set()
        self._online: set[LoadDevice] = set()
        # Reports that are due later, the first one first; how many of them, and when the next one is looked at.
        self._due: list[_Due] = []
        self._timer: asyncio.TimerHandle | None = None
        self._token = 0
        # Set whenever a connection stands, or a report has an answer or will have none.
        self._stirred = asyncio.Event()
        self._ingest, self._connect_time, self._late = Histogram(), Histogram(), Histogram()
        self._sweep_number = 0
        self._sweep = self._loop.call_later(1.0, self._on_second)

    # Orders

    def create(self, group: Group) -> list[tuple[str, dict[str, str]]]:
        """Make this process's devices of a group; return the name and the attributes of each, in the order of rows."""
        self._shard.create_group(group)
        fleet = self._shard.fleets[group.name]
        names = [fleet.table.name(row) for row in range(fleet.table.count)]
        devices = [LoadDevice(self, group.name, row, name) for row, name in enumerate(names)]
        self._parts[group.name] = _Part(group, fleet, devices)
        values = {each.name: each.values for each in group.attributes}
        return [
            (name, {key: values[key][int(column[row])] for key, column in fleet.attributes.items()})
            for row, name in enumerate(names)
        ]

    async def connect_all(self, timeout_s: float) -> None:
        """Connect all devices that are online by their models, at the set rate.

        Return when each is connected or has failed several times, or time is up; those that failed go on trying.
        """
        begun_s, per_s = self.now_s(), self.settings.connect_rate
        wanted = [
            device
            for part in self._parts.values()
            for device in part.devices
            if part.fleet.connected[device.row]
        ]
        for number, device in enumerate(wanted):
            wait_s = begun_s + number / per_s - self.now_s()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            if not device.is_wanted:
                self._want(device)
        waiting = {device for device in wanted if not device.is_online}
        deadline_s = self.now_s() + timeout_s
        while waiting and await self._stir(deadline_s):
            waiting = {
                device
                for device in waiting
                if device.is_wanted and not device.is_online and device.failed_count < _ATTEMPTS
            }

    async def _stir(self, deadline_s: float) -> bool:
        """Wait until something has happened, some milliseconds at least; False when time is up."""
        self._stirred.clear()
        try:
            async with asyncio.timeout(max(0.0, deadline_s - self.now_s())):
                await asyncio.sleep(_STIR_S)
                await self._stirred.wait()
        except TimeoutError:
            return False
        return True

    def tick(self, order: TickOrder, *, begins_s: float, tick_s: float) -> None:
        """Let a group's devices live through some ticks, and plan their reports: each within its tick."""
        part = self._parts[order.group]
        for position in range(order.tick_count):
            single = msgspec.structs.replace(order, first_tick=order.first_tick + position, tick_count=1)
            table = part.fleet.table
            before = table.version[: table.count].copy()
            now_s = part.fleet.time_s(single.first_tick)
            summary = self._shard.tick(single)
            part.summary = part.summary.then(summary)
            self._follow(part)
            grown = table.version[: table.count] - before
            self._plan(part, grown, now_s, (begins_s + position * tick_s, tick_s))

    def summary(self, name: str) -> TickSummary:
        """Return what happened to a group since the last time: as its model has it, but what is sent is real.

        Arrived is what was accepted, in flight is what has no answer yet, lost what never had one, refused what was
        rejected; all of them beside what the model's link has lost or damaged before it was sent.
        """
        part = self._parts[name]
        kept = part.summary
        summary = msgspec.structs.replace(
            kept,
            reports_arrived=part.answered,
            reports_lost=kept.reports_lost + part.lost,
            reports_refused=kept.reports_refused + part.rejected,
            reports_in_flight=kept.reports_in_flight + part.unanswered,
            connected_count=part.online,
        )
        part.answered = part.rejected = part.lost = 0
        # What describes the end of the last tick stays until there is a later one.
        part.summary = TickSummary(
            delta_count=kept.delta_count,
            reports_in_flight=kept.reports_in_flight,
            reports_buffered=kept.reports_buffered,
        )
        return summary

    def take_news(self) -> LoadNews:
        """Return what has happened on the wire since the last time."""
        news, self.news = self.news, LoadNews()
        news.online = len(self._online)
        news.ingest, news.connecting = self._ingest.take(), self._connect_time.take()
        news.late = self._late.take()
        return news

    async def settle(self, timeout_s: float) -> None:
        """Return when every report has its answer, or time is up; what has none then is lost."""
        deadline_s = self.now_s() + timeout_s
        while any(part.unanswered for part in self._parts.values()) and await self._stir(deadline_s):
            pass
        for due in self._due:
            self._lose(due.device, due.count)
        self._due.clear()
        for device in self._devices():
            self._give_up(device, sent_before_s=self.now_s())

    def delete(self, name: str) -> None:
        """Disconnect the devices of a group and forget them."""
        part = self._parts.get(name)
        if part is None:
            return
        self._due = [due for due in self._due if due.device.group != name]
        heapq.heapify(self._due)
        for device in part.devices:
            self._dismiss(device)
        del self._parts[name]
        self._shard.delete_group(name)

    def close(self) -> None:
        """End all connections."""
        self._sweep.cancel()
        if self._timer is not None:
            self._timer.cancel()
        for name in list(self._parts):
            self.delete(name)

    # What models say

    def _plan(
        self, part: _Part, grown: np.ndarray[Any, Any], now_s: int, span_s: tuple[float, float]
    ) -> None:
        """Plan the reports of the rows whose version has `grown` in a tick that has this span of the wall clock."""
        begins_s, tick_s = span_s
        for row in np.flatnonzero(grown).tolist():
            device = part.devices[row]
            document = part.fleet.table.load(row)
            fresh = {
                name: value
                for name, value in document.reported.items()
                if isinstance(stamp := document.reported_metadata.get(name), Stamp)
                and stamp.timestamp == now_s
            }
            self._token += 1
            payload = encode_json(
                {"state": {"reported": fresh or document.reported}, "clientToken": str(self._token)}
            )
            due_s = begins_s + tick_s * (row * _SPREAD % 1.0)
            part.unanswered += int(grown[row])
            heapq.heappush(self._due, _Due(due_s, self._token, device, payload, int(grown[row])))
        self._look_later()

    def _look_later(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._due:
            wait_s = max(_TIMER_S, self._due[0].due_s - self.now_s())
            self._timer = self._loop.call_later(wait_s, self._send_due)

    def _send_due(self) -> None:
        now_s = self.now_s()
        while self._due and self._due[0].due_s <= now_s:
            due = heapq.heappop(self._due)
            due.device.report(str(due.number), due.due_s, due.payload, count=due.count)
        self._look_later()

    def _follow(self, part: _Part) -> None:
        """Let connections come and go as the model says."""
        connected = part.fleet.connected[: part.fleet.table.count].tolist()
        for device, is_wanted in zip(part.devices, connected, strict=True):
            if is_wanted and not device.is_wanted:
                self._want(device)
            elif device.is_wanted and not is_wanted:
                device.is_wanted = False
                self._let_go(device, self.now_s() + _FAREWELL_S)

    def _let_go(self, device: LoadDevice, until_s: float) -> None:
        """Disconnect a device that is to be offline, once its last report is answered."""
        if device.is_wanted:
            return
        if device.reports and device.is_online and self.now_s() < until_s:
            self._loop.call_later(0.1, self._let_go, device, until_s)
        else:
            self._dismiss(device)

    def _dismiss(self, device: LoadDevice) -> None:
        device.is_wanted = False
        self._connecting.discard(device)
        self._forget_online(device)
        self._lose_sent(device)
        device.leave()
        self._pump()

    def _forget_online(self, device: LoadDevice) -> bool:
        if device not in self._online:
            return False
        self._online.discard(device)
        part = self._parts.get(device.group)
        if part is not None:
            part.online -= 1
        return True

    # Connections

    def _want(self, device: LoadDevice) -> None:
        device.is_wanted = True
        if device.link is None:
            self._queue.append(device)
            self._pump()

    def _again(self, device: LoadDevice) -> None:
        if device.is_wanted and device.link is None:
            self._queue.append(device)
            self._pump()

    def _pump(self) -> None:
        """Begin connections while there is room for them."""
        while self._queue and len(self._connecting) < _CONNECTING_MAX:
            device = self._queue.popleft()
            if not device.is_wanted or device.link is not None:
                continue
            self.news.attempts += 1
            device.began_s = self.now_s()
            self._connecting.add(device)
            device.link = LoadLink(self._loop, self._address, device.hello(), device)
            certificate = (
                str(Path(self.settings.directory) / f"{device.name}.pem") if self.settings.ca else ""
            )
            device.link.open(source=next(self._sources), certificate=certificate)

    def _on_second(self) -> None:
        """Once a second: give up what takes too long, and send those pings whose turn it is."""
        self._sweep = self._loop.call_later(1.0, self._on_second)
        now_s = self.now_s()
        for device in [each for each in self._connecting if now_s - each.began_s > _CONNECT_TIMEOUT_S]:
            if device.link is not None:
                device.link.drop("the broker does not accept the connection")
        # Half of the keep-alive, so that a ping may be late.
        period = max(1, self.settings.keep_alive_s // 2)
        self._sweep_number += 1
        for device in self._devices():
            if device.reports:
                self._give_up(device, sent_before_s=now_s - ANSWER_TIMEOUT_S)
            if device.link is not None and device.row % period == self._sweep_number % period:
                device.ping(silent_s=self.settings.keep_alive_s * 1.5)

    def _devices(self) -> Iterable[LoadDevice]:
        return [device for part in self._parts.values() for device in part.devices]

    def _give_up(self, device: LoadDevice, *, sent_before_s: float) -> None:
        """Count the reports of a device as lost that were due before a moment."""
        for token in [token for token, report in device.reports.items() if report.due_s <= sent_before_s]:
            self._lose(device, device.reports.pop(token).count)

    def _lose_sent(self, device: LoadDevice) -> None:
        """Count what a device has sent at QoS 0 as lost with its connection; at QoS 1 it is sent again."""
        if not self.settings.qos:
            for token in [token for token, report in device.reports.items() if report.sent_s]:
                self._lose(device, device.reports.pop(token).count)

    def _lose(self, device: LoadDevice, count: int) -> None:
        part = self._parts[device.group]
        self.news.lost += count
        part.lost += count
        part.unanswered -= count
        self._stirred.set()

    # What devices tell

    def now_s(self) -> float:
        """Return the time by the machine's monotonic clock; uvloop's own counts whole milliseconds."""
        return time.monotonic()

    def on_online(self, device: LoadDevice) -> None:
        """Count a connection that stands."""
        self._connecting.discard(device)
        self._online.add(device)
        self._parts[device.group].online += 1
        self._stirred.set()
        self.news.connected += 1
        self._connect_time.add(self.now_s() - device.began_s)
        self._pump()

    def on_offline(self, device: LoadDevice, reason: str, *, was_open: bool) -> None:
        """Count a connection that was lost, or not made, and try again where the device should be online."""
        self._connecting.discard(device)
        if self._forget_online(device):
            self.news.lost_connections += 1
        else:
            self.news.connect_errors += 1
        errors = self.news.errors
        known = reason if reason in errors or len(errors) < _REASONS_MAX else "other reasons"
        errors[known] = errors.get(known, 0) + 1
        self._lose_sent(device)
        self._stirred.set()
        if device.is_wanted:
            self._loop.call_later(device.next_wait_s(), self._again, device)
        # Not at once: a broker that is away refuses as fast as it is asked.
        self._loop.call_soon(self._pump)

    def on_sent(self, report: Report, *, is_again: bool) -> None:
        """Count a report that has left, and how late."""
        if is_again:
            self.news.resent += 1
        else:
            self.news.sent += 1
            self._late.add(report.sent_s - report.due_s)

    def on_acknowledged(self) -> None:
        """Count a PUBACK."""
        self.news.acknowledged += 1

    def on_answer(self, device: LoadDevice, report: Report, *, is_accepted: bool) -> None:
        """Count an answer, and how long it took from the moment for which the report was meant."""
        part = self._parts[device.group]
        part.unanswered -= report.count
        self._stirred.set()
        if is_accepted:
            self.news.accepted += report.count
            part.answered += report.count
            self._ingest.add(self.now_s() - report.due_s, report.count)
        else:
            self.news.rejected += report.count
            part.rejected += report.count

    def on_delta(self, device: LoadDevice, payload: bytes) -> None:
        """Let the device's model know what is desired of it; it obeys when it is its turn."""
        self.news.deltas += 1
        wish = wish_of(payload)
        part = self._parts.get(device.group)
        if not wish or part is None:
            return
        state = {name: msgspec.json.decode(value) for name, value in wish.items()}
        present = part.fleet.table.load(device.row).desired
        # A difference is announced again with every report that leaves it.
        if all(name in present and present[name] == value for name, value in state.items()):
            return
        request = Request(
            Operation.SHADOW_UPDATE, device.name, encode_json({"state": {"desired": state}}), is_direct=True
        )
        self._shard.apply(Batch("", 0, [request]), part.fleet.time_s(part.fleet.next_tick))
