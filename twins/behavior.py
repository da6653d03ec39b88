"""What the devices of a fleet do when it is their turn, as a block program: connect, measure, obey, and report.

A device measures once a period. It reports what it measures if it is connected, to a twin that stamps what it hears;
what it was desired to be it takes over first. Devices that are `held` are somebody else's: they stand still.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from twins.expressions import constant_of, names_of, parse_formula
from twins.fault_program import FaultWriter
from twins.generators import REPORTED, FieldWriter, formulas_of, kind_of, state_layout, toggled
from twins.link_program import LinkWriter, Sent
from twins.model import Counter, Decay, DeviceModel, Field
from twins.program import Builder, Op, Operand, Program, Register, Shared
from twins.table import EXISTS

# Counts that a program keeps: devices whose report is due, those whose report arrived, and those that were offline.
DUE: Final = "due"
ARRIVED: Final = "arrived"
OFFLINE: Final = "offline"
SILENT: Final = "silent"
DIFFERING: Final = "differing"
_LOADS: Final[Mapping[str, tuple[Op, Op | None]]] = {
    "float32": (Op.LD4, None),
    "float16": (Op.LD2, Op.H2F),
    "uint32": (Op.LD4, None),
    "uint16": (Op.LD2, Op.U2F),
    "uint8": (Op.LD1, Op.U2F),
    "int32": (Op.LD4, Op.I2F),
    "int16": (Op.LD2S, Op.I2F),
    "int8": (Op.LD1S, Op.I2F),
    "bool": (Op.LDM, None),
    "choice": (Op.LD1, None),
}
_STORES: Final[Mapping[int, Op]] = {1: Op.ST1_W, 2: Op.ST2_W, 4: Op.ST4_W}


def connection_rates(model: DeviceModel) -> tuple[str, str] | None:
    """Return the formulas of mean seconds online and offline, or None for a device that is always online."""
    link = model.connectivity
    return None if constant_of(parse_formula(link.online_s)) == 0 else (link.online_s, link.offline_s)


def device_layout(model: DeviceModel) -> dict[str, np.dtype[Any]]:
    """Return the columns of devices that have no place in their twins.

    `device.FIELD` is a field's own value, `sent.FIELD` what was last reported of it, `sent_at` when (uint32 seconds),
    `has_reported` whether anything was when the device last measured.
    """
    layout = {f"device.{name}": dtype for name, dtype in state_layout(model).items()}
    if _asks_for_reports(model):
        layout["has_reported"] = np.dtype(np.uint8)
    for name, _ in model.reporting.dead_bands:
        item = model.fields[model.position(name)]
        layout[f"sent.{name}"] = np.dtype(np.uint8 if kind_of(item) in ("mask", "choice") else np.float32)
    if model.reporting.dead_bands:
        layout["sent_at"] = np.dtype(np.uint32)
    return layout


def _asks_for_reports(model: DeviceModel) -> bool:
    for item in model.fields:
        generator = item.generator
        if isinstance(generator, Counter | Decay) and constant_of(parse_formula(generator.per_report)) != 0:
            return True
        if any(REPORTED in names_of(parse_formula(text)) for text in formulas_of(item)):
            return True
    return False


def write_turn(turn: Turn) -> Program:
    """Return the program of one turn of the devices of a fleet."""
    return _TurnWriter(turn).program()


@dataclass(frozen=True)
class Turn:
    """What a program is to be written for: `builder` knows the columns, `period_s` lies between two turns.

    `obeys` says that anything may be desired of the devices, `is_held` that some may be somebody else's (a column
    `held` says which). Without a `link` all reports arrive at once, without `faults` nothing goes wrong; the
    latter is made for the rows that it is given.
    """

    model: DeviceModel
    group: str
    seed: int
    period_s: int
    builder: Builder
    obeys: bool
    is_held: bool
    link: LinkWriter | None = None
    faults: Callable[[Register], FaultWriter] | None = None


class _TurnWriter:
    def __init__(self, turn: Turn) -> None:
        self.turn = turn
        self.model = turn.model
        self.builder = turn.builder
        b = self.builder
        self.rows = b.emit(Op.ROWS)
        self.live = b.emit(Op.MANDN, self.rows, b.emit(Op.LDM, "held")) if turn.is_held else self.rows
        self.faults = None if turn.faults is None else turn.faults(self.live)
        self.asks_for_reports = _asks_for_reports(turn.model)
        has_reported = b.emit(Op.LDM, "has_reported") if self.asks_for_reports else b.emit(Op.MFILL, 0)
        # The connection may depend on fields as they were, so it needs a writer before it is known.
        self.fields = FieldWriter(
            b, turn.model, turn.seed, turn.group, turn.period_s, b.emit(Op.LDM, "connected"), has_reported
        )

    def program(self) -> Program:
        """Return the whole turn."""
        b = self.builder
        online = self._connect()
        self.fields.is_online = online
        self.fields.advance()
        self._go_wrong()
        if self.turn.obeys:
            deaf = None if self.faults is None else self.faults.deaf()
            hears = online if deaf is None else b.emit(Op.MANDN, online, deaf)
            for item in self.model.fields:
                if item.is_settable:
                    self._obey(item, hears)
        self.reported = self._measured()
        sent = self._send(self._wants_to_report(), online)
        self.fields.store_states(self.live if self.turn.is_held else None)
        if self.asks_for_reports:
            b.do(Op.STM_W, "has_reported", sent.said, self.live)
        for name, _ in self.model.reporting.dead_bands:
            self._remember_sent(name, sent.said)
        self._apply(sent)
        return b.build()

    def _go_wrong(self) -> None:
        if self.faults is not None:
            self.faults.restart(self.fields)
            self.faults.drain(self.fields)

    def _measured(self) -> dict[str, Operand]:
        """Return what devices take for the values of their fields."""
        values = dict(self.fields.values)
        if self.faults is not None:
            for position, item in enumerate(self.model.fields):
                values[item.name] = self.faults.spoil(item, values[item.name], position)
        return values

    def _send(self, wants: Register, online: Register) -> Sent:
        """Let devices send their reports, and count what becomes of them."""
        b = self.builder
        b.count(DUE, wants)
        silent = None if self.faults is None else self.faults.silent()
        if silent is not None:
            b.count(SILENT, b.emit(Op.MAND, wants, silent))
            wants = b.emit(Op.MANDN, wants, silent)
        if self.turn.link is None:
            reports, none = b.emit(Op.MAND, wants, online), b.emit(Op.MFILL, 0)
            sent = Sent(reports, none, reports, none, none, b.emit(Op.MANDN, wants, online))
        else:
            sent = self.turn.link.send(wants, online, self.live)
        b.count(ARRIVED, sent.arrives)
        b.count(OFFLINE, sent.offline)
        return sent

    def _connect(self) -> Register:
        """Let connections drop and come back; return who of the live ones is online now."""
        faults = self.faults
        if faults is None or not faults.cuts:
            return self._connect_by_itself()
        b, was_online = self.builder, self.fields.is_online
        online = faults.connection(self._connect_by_itself(), was_online)
        b.do(Op.STM_W, "connected", online, self.live)
        return online

    def _connect_by_itself(self) -> Register:
        rates = connection_rates(self.model)
        if rates is None:
            return self.live
        b = self.builder
        online_s, offline_s = (b.maximum(self.fields.number(text), Shared.of(1e-3)) for text in rates)
        one = Shared.of(1.0)
        share = b.emit(Op.UNIT, self.fields.stream("connected"))
        ends = (b.divide(one, offline_s), b.divide(one, online_s))
        now = toggled(b, self.fields.is_online, share, ends, Shared.of(self.turn.period_s))
        b.do(Op.STM_W, "connected", now, self.live)
        return b.emit(Op.MAND, now, self.live)

    # Wishes

    def _obey(self, item: Field, online: Register) -> None:
        """Let every device that is online take over what is desired of it, if it can."""
        b, position = self.builder, self.model.positions[item.name]
        wished = self._load(item, f"twin.desired.{item.name}")
        obeys = b.emit(Op.MAND, online, b.emit(Op.LDB, "twin.desired_valid", position))
        if kind_of(item) == "float":
            obeys = b.emit(Op.MAND, obeys, b.compare(">=", wished, Shared.of(item.minimum)))
            obeys = b.emit(Op.MAND, obeys, b.compare("<=", wished, Shared.of(item.maximum)))
        if item.obey_after_s > 0:
            now = b.emit(Op.IFILL, lambda moment: moment.time_s)
            since = b.emit(Op.ISUB, now, b.emit(Op.LD4, f"twin.desired_at.{item.name}", kind="word"))
            obeys = b.emit(Op.MANDN, obeys, b.emit(Op.ILT_K, since, int(item.obey_after_s)))
        value = self.fields.values[item.name]
        if kind_of(item) == "mask":
            kept = b.emit(Op.MANDN, b.register(value), obeys)
            taken = b.emit(Op.MOR, b.emit(Op.MAND, wished, obeys), kept)
        else:
            taken = b.emit(Op.SELECT, obeys, wished, b.register(value))
        self.fields.values[item.name] = self.fields.states[item.name] = taken

    def _load(self, item: Field, place: str) -> Register:
        load, convert = _LOADS[item.dtype]
        loaded = self.builder.emit(load, place, kind="word" if item.dtype == "uint32" else None)
        return loaded if convert is None else self.builder.emit(convert, loaded)

    # Reports

    def _wants_to_report(self) -> Register:
        """Return which live devices report: all, or with dead bands those that have something new to say."""
        reporting, b = self.model.reporting, self.builder
        if not reporting.dead_bands:
            return self.live
        sent_at = b.emit(Op.LD4, "sent_at", kind="word")
        # Nothing was ever sent: what was last sent means nothing then.
        wants = b.emit(Op.IEQ_K, sent_at, 0)
        for name, band in reporting.dead_bands:
            item = self.model.fields[self.model.position(name)]
            wants = b.emit(Op.MOR, wants, self._has_left(item, band))
        if reporting.at_least_every_s:
            since = b.emit(Op.ISUB, b.emit(Op.IFILL, lambda moment: moment.time_s), sent_at)
            recent = b.emit(Op.ILT_K, since, reporting.at_least_every_s)
            wants = b.emit(Op.MOR, wants, b.emit(Op.MNOT, recent))
        return b.emit(Op.MAND, wants, self.live)

    def _has_left(self, item: Field, band: float) -> Register:
        b, value, place = self.builder, self.reported[item.name], f"sent.{item.name}"
        kind = kind_of(item)
        if kind == "mask":
            return b.emit(Op.MXOR, b.register(value), b.emit(Op.LDM, place))
        if kind == "choice":
            difference = b.emit(Op.ISUB, b.register(value), b.emit(Op.LD1, place))
            return b.emit(Op.MNOT, b.emit(Op.IEQ_K, difference, 0))
        distance = b.absolute(b.subtract(self._as_float(item, value), b.emit(Op.LD4, place)))
        return b.compare(">", distance, Shared.of(band))

    def _as_float(self, item: Field, value: Operand) -> Operand:
        return self.builder.emit(Op.U2F, value) if kind_of(item) == "word" else value

    def _remember_sent(self, name: str, reports: Register) -> None:
        b, item = self.builder, self.model.fields[self.model.position(name)]
        value = self.reported[name]
        if kind_of(item) == "mask":
            b.do(Op.STM_W, f"sent.{name}", b.register(value), reports)
        elif kind_of(item) == "choice":
            b.do(Op.ST1_W, f"sent.{name}", b.register(value), reports)
        else:
            b.do(Op.ST4_W, f"sent.{name}", b.register(self._as_float(item, value)), reports)
        b.do(Op.ST4_KW, "sent_at", lambda moment: moment.time_s, reports)

    def _apply(self, sent: Sent) -> None:
        """Let twins take in the reports that arrive: values, stamps, versions, windows; list the others."""
        b, reports = self.builder, sent.arrives
        values: list[Register] = []
        valid = self._valid()
        for item in self.model.fields:
            present = reports
            missing = None if self.faults is None else self.faults.missing(item)
            if missing is not None:
                present = b.emit(Op.MANDN, reports, missing)
            values.append(self._store(item, self.reported[item.name], present))
            b.do(Op.ST4_KW, f"twin.reported_at.{item.name}", lambda moment: moment.time_s, present)
            if item.is_windowed:
                self._summarise(item, present)
        if isinstance(valid, Register):
            self._store_valid(valid, reports)
        else:
            b.do(Op.ST2_KW, "twin.reported_valid", valid, reports)
            valid = b.emit(Op.IFILL, valid)
        b.do(Op.ST4_KW, "twin.changed_at", lambda moment: moment.time_s, reports)
        b.do(Op.INC4_W, "twin.version", reports)
        if self.turn.link is not None:
            self.turn.link.note_newest(reports)
            self.turn.link.list_reports(sent, values, valid)
        offset = None if self.faults is None else self.faults.clock_offset_s()
        if self.turn.link is not None:
            self.turn.link.count_misdated(reports, offset)

    def _valid(self) -> Register | int:
        """Return the bits of what a report holds: a number if they are the same for all."""
        bits = EXISTS | (1 << len(self.model.fields)) - 1
        masks = [
            (position, mask)
            for position, item in enumerate(self.model.fields)
            if self.faults is not None and (mask := self.faults.missing(item)) is not None
        ]
        if not masks:
            return bits
        b = self.builder
        valid = b.emit(Op.IFILL, bits)
        for position, mask in masks:
            valid = b.emit(Op.SELECT, mask, b.emit(Op.ISUB_K, valid, 1 << position), valid)
        return valid

    def _store_valid(self, valid: Register, reports: Register) -> None:
        """Add the bits of what reports hold to those of what twins have heard before."""
        b = self.builder
        before, after = b.emit(Op.LD2, "twin.reported_valid"), b.emit(Op.IFILL, EXISTS)
        for position in range(len(self.model.fields)):
            bit = 1 << position
            both = b.emit(
                Op.MOR,
                *(
                    b.emit(Op.MNOT, b.emit(Op.IEQ_K, b.emit(Op.IAND_K, bits, bit), 0))
                    for bits in (before, valid)
                ),
            )
            after = b.emit(Op.SELECT, both, b.emit(Op.IADD_K, after, bit), after)
        b.do(Op.ST2_W, "twin.reported_valid", after, reports)

    def _summarise(self, item: Field, reports: Register) -> None:
        b = self.builder
        value = b.register(self._as_float(item, self.reported[item.name]))
        b.do(Op.INC2_W, f"window.{item.name}.present.count", reports)
        for op, name in ((Op.FADD4_W, "sum"), (Op.FMIN4_W, "min"), (Op.FMAX4_W, "max")):
            b.do(op, f"window.{item.name}.present.{name}", value, reports)

    def _store(self, item: Field, value: Operand, mask: Register) -> Register:
        """Store a value in a twin's column, and return it as the column holds it."""
        b, place = self.builder, f"twin.reported.{item.name}"
        register = b.register(value)
        if item.dtype == "bool":
            b.do(Op.STM_W, place, register, mask)
            return b.emit(Op.SELECT, register, b.emit(Op.IFILL, 1), b.emit(Op.IFILL, 0))
        if item.dtype == "float16":
            register = b.emit(Op.F2H, register)
        elif item.dtype not in ("float32", "uint32", "choice"):
            register = b.emit(Op.F2I, register)
        b.do(_STORES[item.column_dtype.itemsize], place, register, mask)
        return register


def write_comparison(model: DeviceModel, builder: Builder) -> Program:
    """Return the program that counts, as DIFFERING, the twins with a desired value that is not reported so."""
    b = builder
    rows = b.emit(Op.ROWS)
    differs = b.emit(Op.MFILL, 0)
    for position, item in enumerate(model.fields):
        if not item.is_settable:
            continue
        load = {1: Op.LD1, 2: Op.LD2, 4: Op.LD4}[item.column_dtype.itemsize]
        pair = [
            b.emit(load, f"twin.{section}.{item.name}", kind="word") for section in ("desired", "reported")
        ]
        difference = b.emit(Op.ISUB, *pair)
        same = b.emit(Op.FEQ, *pair) if item.dtype == "float32" else b.emit(Op.IEQ_K, difference, 0)
        agrees = b.emit(Op.MAND, same, b.emit(Op.LDB, "twin.reported_valid", position))
        wanted = b.emit(Op.LDB, "twin.desired_valid", position)
        differs = b.emit(Op.MOR, differs, b.emit(Op.MANDN, wanted, agrees))
    b.count(DIFFERING, b.emit(Op.MAND, differs, rows))
    return b.build()
