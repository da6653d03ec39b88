"""How each fault works on the devices of a fleet, as steps of the program of their turn.

Nothing here remembers anything: whether a device is down follows from the fault, the tick and the device's draw.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from twins.draws import key_at, stream_state
from twins.expressions import constant_of, parse_formula
from twins.faults import ACTIONS, Fault
from twins.generators import FieldWriter, is_steady, kind_of
from twins.model import Constant, Counter, Decay, Field, Group
from twins.program import Builder, Moment, Op, Operand, Program, Register, Shared
from twins.selection import selected_share, write_selection

# A float field that counts or empties is a share of its range in 32 bits, as `generators` has it.
_WORD_RANGE: Final = 2.0**32
# After these a device starts anew; after the first it has also forgotten what it was told and what it said.
_CRASHES: Final = frozenset({"crash"})
_RESTARTS: Final = frozenset({"crash", "reboot", "power_cut", "absence"})


@dataclass(frozen=True)
class Outage:
    """When a device is down, in ticks from the fault's first, by its own drawn share of [0, 1).

    From share * `ramp_in` to share * (`ramp_in` + `ramp_out`) + `length`.
    """

    ramp_in: float
    length: float
    ramp_out: float

    @property
    def tick_count(self) -> int:
        """Return after how many ticks everybody is back."""
        return int(self.ramp_in + self.length + self.ramp_out) + 1


def outage_of(group: Group, fault: Fault) -> Outage | None:
    """Return when a fault's devices are down, or None if that is no matter of time alone."""
    tick_s, count = group.tick_s, float(fault.tick_count)
    match fault.action:
        case "disconnect":
            return Outage(0, count, 0)
        case "crash" | "reboot":
            restart_s = fault.get("restart_after_s")
            return Outage(0, max(restart_s / tick_s, 1) if restart_s else count, 0)
        case "power_cut":
            return Outage(0, count, fault.get("spread_s") / tick_s)
        case "absence":
            leave, back = fault.get("leave_s") / tick_s, fault.get("return_s") / tick_s
            return Outage(leave, count, back - leave)
        case "cert_expiry":
            return Outage(count, max(fault.get("renew_after_s") / tick_s, 1), 0)
        case "reconnect_storm":
            rate = fault.get("rate")
            wait_s = selected_share(group, fault) * group.count / rate if rate else 0.0
            return Outage(0, 1, wait_s / tick_s)
    return None


def is_felt(group: Group, fault: Fault, tick: int) -> bool:
    """Tell whether a fault makes any difference at a tick: in its time, and until all of its devices are back."""
    outage = outage_of(group, fault)
    last = fault.tick_count if outage is None else max(fault.tick_count, outage.tick_count)
    if ACTIONS[fault.action].layer == "outage":
        # A device notices that it is back at its next turn.
        last += group.report_every_ticks
    return fault.first_tick <= tick < fault.first_tick + last


def edge_of(group: Group, fault: Fault, tick: int) -> bool | None:
    """Return False at the tick at which all of a fault's devices drop out together, True where they come back so."""
    outage = outage_of(group, fault)
    if outage is None or outage.ramp_in:
        return None
    if tick == fault.first_tick:
        return False
    is_end = tick == fault.first_tick + math.ceil(outage.length) and not outage.ramp_out
    return True if is_end else None


def write_edge(b: Builder, group: Group, fault: Fault, *, is_back: bool) -> Program:
    """Return the program that cuts off, or connects, all devices of a fault."""
    live = b.emit(Op.MANDN, b.emit(Op.ROWS), b.emit(Op.LDM, "held"))
    mask = write_selection(b, group, fault, live)
    b.do(Op.STM_W, "connected", b.emit(Op.MFILL, int(is_back)), mask)
    b.collect("hit", mask)
    return b.build()


class FaultWriter:
    """Writes what faults do in a turn of a group's devices, `rows`; each is felt at the ticks of the program."""

    def __init__(self, b: Builder, group: Group, faults: Sequence[Fault], rows: Register) -> None:
        self.b = b
        self.group = group
        self.faults = faults
        self.rows = rows
        self.period_ticks = group.report_every_ticks
        self._masks: dict[str, Register] = {}
        self._returns: list[tuple[Fault, Register]] = []
        self._absent: Register | None = None

    def _hit(self, fault: Fault) -> Register:
        """Return who is hit while the fault lasts."""
        if fault.name not in self._masks:
            self._masks[fault.name] = write_selection(self.b, self.group, fault, self.rows)
        return self._masks[fault.name]

    def _hit_now(self, fault: Fault) -> Register:
        """Return who is hit now: the fault may be over, and felt only."""
        return self.b.emit(Op.MAND, self._hit(fault), self._truth(lambda moment: fault.is_on(moment.tick)))

    def _truth(self, holds: object) -> Register:
        b = self.b
        assert callable(holds)
        word = b.emit(Op.IFILL, lambda moment: int(bool(holds(moment))))
        return b.emit(Op.IEQ_K, word, 1)

    def _any(self, actions: Sequence[str]) -> Register | None:
        mask: Register | None = None
        for fault in self.faults:
            if fault.action in actions:
                hit = self._hit_now(fault)
                mask = hit if mask is None else self.b.emit(Op.MOR, mask, hit)
        return mask

    # Connections

    @property
    def cuts(self) -> bool:
        """Tell whether any fault has to do with connections."""
        return any(
            ACTIONS[fault.action].layer == "outage" or fault.action == "bad_time_server"
            for fault in self.faults
        )

    def connection(self, online: Register, was_online: Register) -> Register:
        """Return who is online after all faults, of those who would be."""
        b = self.b
        stranded = self._any(("bad_time_server",))
        if stranded is not None:
            # Nobody gets a new connection; who has one keeps it.
            online = b.emit(Op.MAND, online, b.emit(Op.MOR, was_online, b.emit(Op.MNOT, stranded)))
        down, back = b.emit(Op.MFILL, 0), b.emit(Op.MFILL, 0)
        for fault in self.faults:
            if ACTIONS[fault.action].layer != "outage":
                continue
            is_down, returns = self._down(fault)
            down, back = b.emit(Op.MOR, down, is_down), b.emit(Op.MOR, back, returns)
            self._returns.append((fault, returns))
            if ACTIONS[fault.action].is_planned:
                self._absent = is_down if self._absent is None else b.emit(Op.MOR, self._absent, is_down)
            if fault.action == "reconnect_storm":
                b.count(f"waiting.{fault.name}", is_down)
                b.count(f"back.{fault.name}", returns)
        return b.emit(Op.MANDN, b.emit(Op.MOR, online, b.emit(Op.MAND, back, self.rows)), down)

    def _down(self, fault: Fault) -> tuple[Register, Register]:
        """Return who is down because of a fault, and who was at the last turn and is not any more."""
        b, hit = self.b, self._hit(fault)
        outage = outage_of(self.group, fault)
        if outage is None:
            now, before = self._by_turns(fault)
        else:
            share = self._place(fault) if ACTIONS[fault.action].is_planned else self._share(fault, "when")
            now = self._within(fault, outage, share, ago=0)
            before = self._within(fault, outage, share, ago=self.period_ticks)
            if not outage.ramp_in:
                # All were cut off together since the last turn: who is back before the next one was down, too.
                cut = self._truth(lambda moment: 0 <= moment.tick - fault.first_tick < self.period_ticks)
                before = b.emit(Op.MOR, before, cut)
        is_down = b.emit(Op.MAND, hit, now)
        return is_down, b.emit(Op.MANDN, b.emit(Op.MAND, hit, before), now)

    def _within(self, fault: Fault, outage: Outage, share: Register, *, ago: int) -> Register:
        b = self.b
        since = Shared(lambda moment: _f32(moment.tick - ago - fault.first_tick))
        begin = b.multiply(share, Shared.of(outage.ramp_in))
        end = b.affine(share, outage.ramp_in + outage.ramp_out, outage.length)
        return b.emit(Op.MAND, b.compare("<=", begin, since), b.compare(">", end, since))

    def _by_turns(self, fault: Fault) -> tuple[Register, Register]:
        """Return when a connection that comes and goes is down: now, and at the last turn."""
        b, period = self.b, self.period_ticks
        if fault.action == "flap":
            interval = max(1, round(fault.get("interval_s") / self.group.tick_s))

            def is_down(tick: int) -> bool:
                return fault.is_on(tick) and (tick - fault.first_tick) // interval % 2 == 0

            return (
                self._truth(lambda moment: is_down(moment.tick)),
                self._truth(lambda moment: is_down(moment.tick - period)),
            )
        # Two devices under one name take the connection from each other.
        masks = []
        for ago in (0, period):
            half = b.compare("<", self._share(fault, "turn", ago=ago, is_each_tick=True), Shared.of(0.5))
            is_on = self._truth(lambda moment, ago=ago: fault.is_on(moment.tick - ago))
            masks.append(b.emit(Op.MAND, half, is_on))
        return masks[0], masks[1]

    def _place(self, fault: Fault) -> Register:
        """Return where each device stands among those that a fault selects by number: 0 the first, below 1 the last."""
        b, first = self.b, fault.select.first
        last = fault.select.last if fault.select.last >= 0 else self.group.count - 1
        place = b.emit(Op.U2F, b.emit(Op.ISUB_K, b.emit(Op.NUMBERS), first))
        return b.register(b.multiply(place, Shared.of(1.0 / (last - first + 1))))

    def _share(self, fault: Fault, purpose: str, *, ago: int = 0, is_each_tick: bool = False) -> Register:
        state = stream_state(self.group.seed, f"{self.group.name}/fault/{fault.name}/{purpose}")

        def key(moment: Moment) -> tuple[int, int]:
            return key_at(state, moment.tick - ago if is_each_tick else 0)

        return self.b.emit(Op.UNIT, self.b.draw(key))

    # Devices

    def restart(self, fields: FieldWriter) -> None:
        """Let devices that are back after a crash, a reboot or a power cut begin anew."""
        b = self.b
        for fault, returns in self._returns:
            if fault.action not in _RESTARTS:
                continue
            for item in fields.model.fields:
                generator = item.generator
                if isinstance(generator, Counter) and item.unit == "s" and item.dtype == "uint32":
                    self._restart_counter(fields, item, generator, returns)
                elif fault.action in _CRASHES and item.is_settable and isinstance(generator, Constant):
                    self._forget(fields, item, returns)
            if fault.action in _CRASHES and fields.model.reporting.dead_bands:
                b.do(Op.ST4_KW, "sent_at", 0, returns)

    def _restart_counter(
        self, fields: FieldWriter, item: Field, generator: Counter, returns: Register
    ) -> None:
        b, least = self.b, int(item.minimum)
        value = b.register(fields.values[item.name])
        fields.values[item.name] = b.emit(Op.SELECT, returns, b.emit(Op.IFILL, least), value)
        if is_steady(item):
            rate = int(constant_of(parse_formula(generator.rate)) or 0)
            first = b.emit(Op.IFILL, lambda moment: least - rate * moment.elapsed_s)
            b.do(Op.ST4_W, f"device.{item.name}", first, returns)
        else:
            fields.states[item.name] = fields.values[item.name]  # type: ignore[assignment]  # a register, see above

    def _forget(self, fields: FieldWriter, item: Field, returns: Register) -> None:
        if kind_of(item) == "float":
            value = self.b.select(returns, Shared.of(item.start.low), fields.values[item.name])
            fields.values[item.name] = fields.states[item.name] = value

    def drain(self, fields: FieldWriter) -> None:
        """Let fields lose more than they would."""
        b = self.b
        for fault in self.faults:
            if fault.action != "battery_drain":
                continue
            item = next(each for each in fields.model.fields if each.name == fault.field)
            hit = self._hit_now(fault)
            amount = fault.get("rate") * fields.period_s
            value = fields.values[item.name]
            low = Shared.of(item.minimum)
            less = b.select(hit, b.maximum(b.subtract(value, Shared.of(amount)), low), value)
            fields.values[item.name] = less
            if isinstance(item.generator, Counter | Decay):
                self._drain_store(fields, item, amount, hit)
            elif item.name in fields.states:
                fields.states[item.name] = less

    def _drain_store(self, fields: FieldWriter, item: Field, amount: float, hit: Register) -> None:
        b = self.b
        if is_steady(item):
            place = f"device.{item.name}"
            first = b.register(b.subtract(b.emit(Op.LD4, place), Shared.of(amount)))
            b.do(Op.ST4_W, place, first, hit)
            return
        units = round(amount / (item.maximum - item.minimum) * _WORD_RANGE)
        present = fields.states[item.name]
        is_short = b.emit(Op.ILT_K, present, min(units, int(_WORD_RANGE) - 1))
        less = b.emit(Op.SELECT, is_short, b.emit(Op.IFILL, 0), b.emit(Op.ISUB_K, present, units))
        fields.states[item.name] = b.emit(Op.SELECT, hit, less, present)

    def silent(self) -> Register | None:
        """Return who hangs: connected, and neither reporting nor obeying; and who is not there by plan.

        To be asked after `connection`.
        """
        mask = self._any(("hang",))
        if self._absent is None:
            return mask
        return self._absent if mask is None else self.b.emit(Op.MOR, mask, self._absent)

    def deaf(self) -> Register | None:
        """Return who does not hear what is desired."""
        mask = self.silent()
        for fault in self.faults:
            if fault.action == "partition" and fault.direction != "up":
                hit = self._hit_now(fault)
                mask = hit if mask is None else self.b.emit(Op.MOR, mask, hit)
        return mask

    # Sensors

    def spoil(self, item: Field, value: Operand, position: int) -> Operand:
        """Return what a device reports of a field instead of what is so."""
        b = self.b
        for fault in self.faults:
            if fault.field != item.name or not fault.action.startswith("sensor_"):
                continue
            if fault.action == "sensor_missing":
                continue
            hit = self._hit_now(fault)
            if fault.action == "sensor_stuck":
                place = f"twin.reported.{item.name}"
                last: Operand = b.emit(Op.LD4, place)
                if item.dtype == "float16":
                    last = b.emit(Op.H2F, b.emit(Op.LD2, place))
                has_last = b.emit(Op.LDB, "twin.reported_valid", position)
                value = b.select(b.emit(Op.MAND, hit, has_last), last, value)
                continue
            if fault.action == "sensor_drift":
                rate_a_tick = fault.get("rate") * self.group.tick_s
                off: Shared = Shared(
                    lambda moment, rate=rate_a_tick, first=fault.first_tick: _f32(  # type: ignore[misc]  # bound now
                        rate * (moment.tick - first)
                    )
                )
            else:
                share = Shared.of(fault.get("percent") / 100)
                rare = b.compare("<", self._share(fault, "spike", is_each_tick=True), share)
                hit, off = b.emit(Op.MAND, hit, rare), Shared.of(fault.get("value"))
            wrong = b.minimum(b.maximum(b.add(value, off), Shared.of(item.minimum)), Shared.of(item.maximum))
            value = b.select(hit, wrong, value)
        return value

    def missing(self, item: Field) -> Register | None:
        """Return who leaves a field out of its reports."""
        mask: Register | None = None
        for fault in self.faults:
            if fault.action == "sensor_missing" and fault.field == item.name:
                hit = self._hit_now(fault)
                mask = hit if mask is None else self.b.emit(Op.MOR, mask, hit)
        return mask

    def clock_offset_s(self) -> Operand | None:
        """Return by how much devices' clocks are wrong because of faults."""
        b = self.b
        offset: Operand | None = None
        for fault in self.faults:
            if fault.action in ("clock_skew", "bad_time_server"):
                own = b.multiply(b.emit(Op.NUMBER, self._hit_now(fault)), Shared.of(fault.get("offset_s")))
                offset = own if offset is None else b.add(own, offset)
        return offset


def attempts_of(group: Group, fault: Fault, tick: int, counts: Mapping[str, int]) -> int:
    """Return how often devices tried to get a new connection during a turn of a reconnect storm."""
    if fault.action != "reconnect_storm":
        return 0
    period_s: int = group.report_every_ticks * group.tick_s
    waiting, back = counts.get(f"waiting.{fault.name}", 0), counts.get(f"back.{fault.name}", 0)
    since_s = (tick - fault.first_tick) * group.tick_s
    if not fault.get("backoff"):
        return waiting * min(period_s, max(since_s, 1)) + back
    # After 1, 2, 4 ... seconds of waiting: 1, 3, 7 ... seconds after the connection was lost.
    instants = [(1 << k) - 1 for k in range(1, 32)]
    return waiting * sum(since_s - period_s < instant <= since_s for instant in instants) + back


def _f32(value: float) -> np.float32:
    return np.float32(value)
