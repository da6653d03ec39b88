"""The fate of reports in a turn: what links are like, by region and under faults, and what that does to reports.

What arrives within its tick needs no more than that. Every other report is listed with its values, for `post`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from twins.draws import draws, key_at, stream_state
from twins.faults import ACTIONS, Fault
from twins.link import Link, Network, report_bytes
from twins.model import Group
from twins.program import Builder, Op, Operand, Register, Shared
from twins.selection import selected, write_selection

# Counts and lists that a program with a link keeps beside those of `behavior`.
LOST: Final = "lost"
REFUSED: Final = "refused"
MISDATED: Final = "misdated"
LATENCY: Final = "latency"
ROWS: Final = "post.row"
CODES: Final = "post.code"
LATENCIES: Final = "post.latency"
VALID: Final = "post.valid"
# The column of the tick after that of the newest report that a twin has heard.
NEWEST: Final = "link.newest"
BACK: Final = "post.back"
# A clock is wrong that a time stamp in whole seconds gives away.
_MISDATED_S: Final = 1.0
_PER_24_BITS: Final = np.float32(2.0**-24)
_PER_HALF: Final = np.float32(2.0**-16)


def value_list(position: int) -> str:
    """Return under which name a program lists what is reported of the field at a position."""
    return f"post.value.{position}"


class Fate(IntEnum):
    """What becomes of a report."""

    PLAIN = 0
    LOST = 1
    REFUSED = 2
    HELD = 3
    TWICE = 4
    # It arrives and its acknowledgement does not: at QoS 1 it is sent again.
    UNACKNOWLEDGED = 5
    # The device keeps it: it is offline, or has others to send before.
    KEPT = 6


class Conditions:
    """What the links of a group are like at some ticks: as they were declared, and changed by faults.

    `write` gives a condition in a program, `of` for some devices; both compute the same in single precision.
    """

    def __init__(self, group: Group, faults: Sequence[Fault]) -> None:
        self.group = group
        self.faults = [fault for fault in faults if _changes(fault)]
        self.network = group.network or Network()
        self.size_bytes = report_bytes(len(group.model.fields))

    def links(self) -> list[Link]:
        """Return the links by position of the attribute's value, or the one link of all."""
        network = self.network
        if not network.attribute:
            return [network.link]
        values = next(each.values for each in self.group.attributes if each.name == network.attribute)
        by_value = dict(network.by_value)
        return [by_value.get(value, network.link) for value in values]

    def _declared(self, name: str) -> list[float]:
        if name == "send_ms":
            return [_send_ms(self.size_bytes, link.bandwidth_bytes_s) for link in self.links()]
        return [getattr(link, name) for link in self.links()]

    def _touching(self, name: str) -> list[tuple[Fault, float]]:
        changes = []
        for fault in self.faults:
            change = _changes(fault)
            if name == "send_ms" and "bandwidth_bytes_s" in change:
                changes.append((fault, _send_ms(self.size_bytes, change["bandwidth_bytes_s"])))
            elif name in change:
                changes.append((fault, change[name]))
        return changes

    def upper(self, name: str) -> float:
        """Return the most that a condition may be."""
        highest = max(self._declared(name))
        for _, value in self._touching(name):
            highest = highest + value if name in _ADDED else max(highest, value)
        return highest

    def write(self, b: Builder, name: str, rows: Register) -> Operand:
        """Write a condition of every device."""
        declared = self._declared(name)
        value: Operand = Shared.of(declared[0])
        if len(set(declared)) > 1:
            value = b.lookup(b.emit(Op.LD1, f"attribute.{self.network.attribute}"), declared)
        for fault, amount in self._touching(name):
            combine = b.add if name in _ADDED else b.maximum
            mask = write_selection(b, self.group, fault, rows)
            value = b.select(mask, combine(value, Shared.of(amount)), value)
        return value

    def of(
        self, name: str, indices: NDArray[np.uint32], attributes: Mapping[str, NDArray[Any]]
    ) -> NDArray[np.float32]:
        """Return a condition of some devices; `attributes` are their values' positions."""
        declared = np.array(self._declared(name), np.float32)
        attribute = self.network.attribute
        positions = attributes[attribute] if attribute else np.zeros(len(indices), np.uint8)
        value: NDArray[np.float32] = declared[positions]
        for fault, amount in self._touching(name):
            hit = selected(self.group, fault, indices, attributes)
            changed = value + np.float32(amount) if name in _ADDED else np.maximum(value, np.float32(amount))
            value = np.where(hit, changed, value)
        return value

    def fates(
        self, tick: int, indices: NDArray[np.uint32], salt: NDArray[np.uint32], attributes: Mapping[str, Any]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Return fate and latency (ms) of reports that are not sent at their device's turn.

        `salt` tells apart the reports of one device.
        """
        seed, name = self.group.seed, self.group.name
        apart = indices + salt * np.uint32(0x85EBCA6B)
        words = draws(seed, f"{name}/link/fate/again", tick, indices=apart)
        share = (words >> np.uint32(8)).astype(np.float32) * _PER_24_BITS
        fate = np.zeros(len(indices), np.uint8)
        bound = np.zeros(len(indices), np.float32)
        is_open = np.ones(len(indices), np.bool_)
        for ratio, outcome in self.stretches():
            bound = bound + self.of(ratio, indices, attributes)
            fate[is_open & (share < bound)] = outcome
            is_open &= share >= bound
        words = draws(seed, f"{name}/link/latency/again", tick, indices=apart)
        halves = (words & np.uint32(0xFFFF)).astype(np.int32) - (words >> np.uint32(16)).astype(np.int32)
        jitter = halves.astype(np.float32) * _PER_HALF * self.of("jitter_ms", indices, attributes)
        latency = np.maximum(jitter + self.of("latency_ms", indices, attributes), np.float32(0))
        return fate, latency + self.of("send_ms", indices, attributes)

    def stretches(self) -> list[tuple[str, Fate]]:
        """Return the ratios that share out the fates of reports, in order."""
        found = [("loss", Fate.LOST), ("corrupt", Fate.REFUSED)]
        if self.group.network is not None:
            found += [("reorder", Fate.HELD), ("duplicate", Fate.TWICE)]
            found += [("loss", Fate.UNACKNOWLEDGED)] if self.network.qos else []
        return [(name, fate) for name, fate in found if self.upper(name) > 0]


_ADDED: Final = frozenset({"latency_ms", "jitter_ms", "send_ms"})


def _send_ms(size_bytes: int, bandwidth_bytes_s: float) -> float:
    return size_bytes * 1000.0 / bandwidth_bytes_s if bandwidth_bytes_s else 0.0


def _changes(fault: Fault) -> dict[str, float]:
    """Return what a fault makes of a link, by the link's words."""
    match fault.action:
        case "latency":
            return {"latency_ms": fault.get("latency_ms"), "jitter_ms": fault.get("jitter_ms")}
        case "jitter":
            return {"jitter_ms": fault.get("jitter_ms")}
        case "bandwidth":
            return {"bandwidth_bytes_s": fault.get("rate")}
        case "malformed_payload":
            return {"corrupt": fault.get("percent") / 100}
        case "partition":
            return {"loss": 1.0} if fault.direction != "down" else {}
    if ACTIONS[fault.action].layer == "network" and "percent" in ACTIONS[fault.action].parameters:
        return {fault.action: fault.get("percent") / 100}
    return {}


@dataclass(frozen=True)
class Sent:
    """What a program's link made of reports: masks of those that arrive at once, and of those that are listed.

    Of those `said` a device thinks that it has sent them, those `offline` are gone because it is.
    """

    arrives: Register
    listed: Register
    said: Register
    fate: Register
    latency: Register
    offline: Register


class LinkWriter:
    """Writes what becomes of the reports of a turn. `has_post`: some may still be under way from earlier ticks."""

    def __init__(self, b: Builder, conditions: Conditions, *, has_post: bool) -> None:
        self.b = b
        self.conditions = conditions
        self.group = conditions.group
        self.network = conditions.network
        tick_ms = self.group.tick_s * 1000.0
        most = sum(conditions.upper(name) for name in _ADDED)
        self.may_be_late = self.group.network is not None and most >= tick_ms
        is_held = any(fate in (Fate.HELD, Fate.UNACKNOWLEDGED) for _, fate in conditions.stretches())
        self.keeps_order = self.group.network is not None and (
            has_post or self.may_be_late or is_held or self.network.buffer_count > 0
        )

    def send(self, wants: Register, online: Register, rows: Register) -> Sent:
        """Decide over the reports of those that want to send one, and count what is decided for good."""
        b = self.b
        reports, offline = b.emit(Op.MAND, wants, online), b.emit(Op.MANDN, wants, online)
        none = b.emit(Op.MFILL, 0)
        kept, lost_offline = none, offline
        if self.network.buffer_count:
            waiting = b.emit(Op.MNOT, b.emit(Op.IEQ_K, b.emit(Op.LD2, "link.kept"), 0))
            b.collect(BACK, b.emit(Op.MAND, b.emit(Op.MAND, waiting, online), rows))
            kept = b.emit(Op.MAND, wants, b.emit(Op.MOR, offline, waiting))
            reports, lost_offline = b.emit(Op.MANDN, reports, waiting), none
        fate, latency = self._fate(rows), self._latency(rows)
        is_lost, is_refused, is_held = (
            b.emit(Op.MAND, reports, b.emit(Op.IEQ_K, fate, value))
            for value in (Fate.LOST, Fate.REFUSED, Fate.HELD)
        )
        arrives = b.emit(Op.MANDN, b.emit(Op.MANDN, reports, is_lost), b.emit(Op.MOR, is_refused, is_held))
        again = b.emit(Op.MANDN, arrives, b.emit(Op.ILT_K, fate, Fate.TWICE))
        listed = b.emit(Op.MOR, is_held, b.emit(Op.MOR, again, kept))
        if self.may_be_late:
            in_time = b.compare("<", latency, Shared.of(self.group.tick_s * 1000.0))
            listed = b.emit(Op.MOR, listed, b.emit(Op.MANDN, arrives, in_time))
            arrives = b.emit(Op.MAND, arrives, in_time)
        b.count(REFUSED, is_refused)
        if self.network.qos:
            listed = b.emit(Op.MOR, listed, is_lost)
        else:
            b.count(LOST, is_lost)
        if self.group.network is not None:
            b.histogram(LATENCY, latency, arrives)
        fate = b.emit(Op.SELECT, kept, b.emit(Op.IFILL, Fate.KEPT), fate)
        return Sent(arrives, listed, b.emit(Op.MOR, reports, kept), fate, latency, lost_offline)

    def note_newest(self, arrives: Register) -> None:
        """Remember of which tick the newest report is that a twin has heard: then an older one is known as such."""
        if self.keeps_order:
            self.b.do(Op.ST4_KW, NEWEST, lambda moment: moment.tick + 1, arrives)

    def list_reports(self, sent: Sent, values: Sequence[Register], valid: Register) -> None:
        """List the reports that do not arrive at once, with their values as columns hold them."""
        if self.group.network is None:
            return
        b = self.b
        b.collect(ROWS, sent.listed)
        b.take(CODES, sent.fate, sent.listed)
        b.take(LATENCIES, sent.latency, sent.listed)
        b.take(VALID, valid, sent.listed)
        for position, value in enumerate(values):
            b.take(value_list(position), value, sent.listed)

    def _fate(self, rows: Register) -> Register:
        b, stretches = self.b, self.conditions.stretches()
        fate = b.emit(Op.IFILL, Fate.PLAIN)
        if not stretches:
            return fate
        share = b.emit(Op.UNIT, self._draw("link/fate"))
        bound: Operand = Shared.of(0.0)
        bounds = []
        for name, outcome in stretches:
            bound = b.add(bound, self.conditions.write(b, name, rows))
            bounds.append((bound, outcome))
        for bound, outcome in reversed(bounds):
            inside = b.compare("<", share, bound)
            fate = b.emit(Op.SELECT, inside, b.emit(Op.IFILL, outcome), fate)
        return fate

    def _latency(self, rows: Register) -> Register:
        b, conditions = self.b, self.conditions
        latency, jitter, sending = (
            conditions.write(b, name, rows) for name in ("latency_ms", "jitter_ms", "send_ms")
        )
        if conditions.upper("jitter_ms"):
            noise = b.multiply(b.emit(Op.TRIANGLE, self._draw("link/latency")), jitter)
            latency = b.maximum(b.add(noise, latency), Shared.of(0.0))
        return b.register(b.add(latency, sending))

    def _draw(self, stream: str) -> Register:
        state = stream_state(self.group.seed, f"{self.group.name}/{stream}")
        return self.b.draw(lambda moment: key_at(state, moment.tick))

    def count_misdated(self, arrives: Register, offset_s: Operand | None) -> None:
        """Count the reports whose own time stamp is wrong, by a device's own clock and by faults."""
        b, most = self.b, self.network.clock_skew_s
        if most >= _MISDATED_S:
            key = key_at(stream_state(self.group.seed, f"{self.group.name}/link/clock"), 0)
            noise = b.emit(Op.TRIANGLE, b.draw(lambda _: key))
            own = b.multiply(noise, Shared.of(most))
            offset_s = own if offset_s is None else b.add(own, offset_s)
        if offset_s is not None:
            wrong = b.compare(">=", b.absolute(offset_s), Shared.of(_MISDATED_S))
            b.count(MISDATED, b.emit(Op.MAND, arrives, wrong))


def post_layout(network: Network | None) -> dict[str, np.dtype[Any]]:
    """Return the columns that a network needs: the tick after that of the newest report, and how many are kept."""
    if network is None:
        return {}
    layout: dict[str, np.dtype[Any]] = {NEWEST: np.dtype(np.uint32)}
    if network.buffer_count:
        layout["link.kept"] = np.dtype(np.uint16)
    return layout
