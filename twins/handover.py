"""Simulated twins in other hands: taken over by a real device, or pinned to a behaviour of their own.

Such a twin stays where it is, with its shadow, and the simulation leaves its row alone until it gets it back. A thing
that is registered under the name of a simulated device takes its row over; after the row was given back, so does the
thing's next connection. A pinned twin's behaviour runs elsewhere and is called with what stands here; what it answers
comes in as a request, and counts only if nothing was answered since to the same question.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from twins.errors import InvalidRequest, PayloadTooLarge, TwinNotFound, VersionConflict
from twins.messages import Registration
from twins.model import UNTYPED
from twins.shadow import ShadowDocument, encode_json
from twins.simulated import HELD_BY_BEHAVIOR, HELD_BY_DEVICE, SimulatedFleet

# Of what a behaviour remembers, as JSON: it stands in the journal with each step.
MEMORY_BYTES_MAX: Final = 64 << 10
_BEHAVIOR: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
# What a twin is pinned to when nothing else is said.
DEFAULT_BEHAVIOR: Final = "actors.behaviors:Obedient"


class Takeover(msgspec.Struct, frozen=True):
    """A registered thing with the name of a simulated device; `is_real` while the row is the thing's."""

    attributes: dict[str, str]
    is_real: bool


class Pin(msgspec.Struct, frozen=True):
    """A twin with a behaviour of its own: `module:Class`, what it remembers (JSON), and when it was called last."""

    behavior: str
    memory: bytes = b"{}"
    stepped_s: float | None = None


class PinOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The payload of `Operation.PIN`."""

    behavior: str = DEFAULT_BEHAVIOR


class PinState(msgspec.Struct, frozen=True):
    """The answer to `Operation.PIN_STATE`: what a behaviour is called with.

    `now_s` is the twin's time: that of its fleet for a simulated device, else the wall clock's. `stepped_s` is the
    twin's time of the last call. While `is_taken_over` the behaviour has to rest.
    """

    behavior: str
    origin: str
    is_taken_over: bool
    now_s: float
    stepped_s: float | None
    desired: dict[str, Any]
    reported: dict[str, Any]
    attributes: dict[str, str]
    memory: dict[str, Any]


class PinReport(msgspec.Struct, frozen=True):
    """The payload of `Operation.PIN_REPORT`: what a behaviour answered at `at_s`, when it was last called at `after_s`.

    `state` is that of a shadow update, as on the wire; empty: there is nothing to say.
    """

    behavior: str
    after_s: float | None
    at_s: float
    state: dict[str, Any]
    memory: dict[str, Any]


decode_pin_state: Final = msgspec.json.Decoder(PinState).decode
Find = Callable[[str], tuple[SimulatedFleet, int] | None]


class Handover:
    """The twins of a shard that are in other hands, by thing name. All methods work in place."""

    def __init__(self, find: Find) -> None:
        """`find` gives fleet and row of a simulated device."""
        self._find = find
        self.takeovers: dict[str, Takeover] = {}
        self.pins: dict[str, Pin] = {}

    # Real devices

    def is_real(self, thing_name: str) -> bool:
        """Tell whether a real device has a simulated device's row at present."""
        takeover = self.takeovers.get(thing_name)
        return takeover is not None and takeover.is_real

    def taken(self) -> dict[str, Mapping[str, str]]:
        """Return the attributes, by thing name, of the real devices that have simulated devices' rows at present."""
        return {name: each.attributes for name, each in self.takeovers.items() if each.is_real}

    def attributes(self, thing_name: str) -> Mapping[str, str]:
        """Return what a thing was registered with that has a simulated device's row at present."""
        takeover = self.takeovers.get(thing_name)
        return takeover.attributes if takeover is not None and takeover.is_real else {}

    def register(self, thing_name: str, registration: Registration) -> bool:
        """Give a simulated device's row to the thing of that name; False if no simulated device has the name.

        InvalidRequest if the thing is of another model than the row. Who registers again changes attributes only.
        """
        found = self._find(thing_name)
        if found is None:
            return False
        model = found[0].table.model.name
        if registration.model not in (UNTYPED.name, model):
            raise InvalidRequest(
                f"{thing_name} is a simulated {model}; register it with model {model} to take it over"
            )
        known = self.takeovers.get(thing_name)
        is_real = known is None or known.is_real
        self.takeovers[thing_name] = Takeover(dict(registration.attributes), is_real)
        self._note(thing_name)
        return True

    def connect(self, thing_name: str) -> None:
        """Give the row to its thing, which has connected anew."""
        takeover = self.takeovers.get(thing_name)
        if takeover is not None and not takeover.is_real:
            self.takeovers[thing_name] = msgspec.structs.replace(takeover, is_real=True)
            self._note(thing_name)

    def give_back(self, thing_name: str) -> None:
        """Give the row back to the simulation; done twice, nothing changes.

        TwinNotFound where there is no twin, InvalidRequest if it is not a simulated one that was taken over.
        """
        takeover = self.takeovers.get(thing_name)
        if takeover is None:
            if self._find(thing_name) is None:
                raise TwinNotFound.of(thing_name)
            raise InvalidRequest(f"{thing_name} was not taken over by a real device; it is simulated")
        self.takeovers[thing_name] = msgspec.structs.replace(takeover, is_real=False)
        self._note(thing_name)

    def unregister(self, thing_name: str) -> bool:
        """Forget the thing of that name, its row goes back; False if it had none."""
        if self.takeovers.pop(thing_name, None) is None:
            return False
        self._note(thing_name)
        return True

    def leave(self, fleet: SimulatedFleet) -> dict[str, Takeover]:
        """Forget all that is kept of a fleet's twins; return the things that were registered under their names."""
        own = {name for name in (*self.takeovers, *self.pins) if self._is_of(fleet, name)}
        for name in own:
            self.pins.pop(name, None)
        return {name: self.takeovers.pop(name) for name in list(self.takeovers) if name in own}

    def _is_of(self, fleet: SimulatedFleet, thing_name: str) -> bool:
        found = self._find(thing_name)
        return found is not None and found[0] is fleet

    # Behaviours

    def pinned(self) -> list[tuple[str, str]]:
        """Return thing name and behaviour of each pinned twin."""
        return [(name, pin.behavior) for name, pin in self.pins.items()]

    def pin(self, thing_name: str, order: PinOrder) -> None:
        """Leave a twin to a behaviour; InvalidRequest if that can't be one, or if the twin has another already."""
        check_behavior_name(order.behavior)
        present = self.pins.get(thing_name)
        if present is None:
            self.pins[thing_name] = Pin(order.behavior)
            self._note(thing_name)
        elif present.behavior != order.behavior:
            raise InvalidRequest(f"{thing_name} is pinned to {present.behavior} already; unpin it first")

    def unpin(self, thing_name: str, reported: Mapping[str, Any]) -> None:
        """Take a twin back from its behaviour; a simulated device goes on from what it `reported`.

        InvalidRequest if it has none.
        """
        if self.pins.pop(thing_name, None) is None:
            raise InvalidRequest(f"{thing_name} is not pinned")
        found = self._find(thing_name)
        if found is not None and not self.is_real(thing_name):
            _adopt(*found, reported)
        self._note(thing_name)

    def state(
        self, thing_name: str, document: ShadowDocument | None, *, attributes: Mapping[str, str], now_s: float
    ) -> PinState:
        """Return what the behaviour of a twin is to be called with; TwinNotFound if it is not pinned."""
        pin, found = self._pinned(thing_name), self._find(thing_name)
        is_taken_over = self.is_real(thing_name)
        is_simulated = found is not None and not is_taken_over
        document = ShadowDocument() if document is None else document
        return PinState(
            pin.behavior,
            "simulated" if is_simulated else "real",
            is_taken_over,
            float(found[0].time_s(found[0].next_tick)) if found is not None else now_s,
            pin.stepped_s,
            document.desired,
            document.reported,
            dict(attributes),
            msgspec.json.decode(pin.memory),
        )

    def check_report(self, thing_name: str, report: PinReport) -> Pin:
        """Return the pin as it is after a report that may be applied.

        TwinNotFound if the twin is not pinned; VersionConflict if its behaviour was called again since, or rests;
        InvalidRequest if a behaviour reports in the place of a real device; PayloadTooLarge if it remembers too much.
        """
        pin = self._pinned(thing_name)
        same = pin.behavior == report.behavior and pin.stepped_s == report.after_s
        if not same or self.is_real(thing_name):
            raise VersionConflict
        if "reported" in report.state and self._find(thing_name) is None:
            raise InvalidRequest(
                f"{thing_name} is a real device, which reports itself; desire something of it"
            )
        memory = encode_json(report.memory)
        if len(memory) > MEMORY_BYTES_MAX:
            raise PayloadTooLarge(
                f"a behaviour may remember {MEMORY_BYTES_MAX >> 10} KiB as JSON, not {len(memory):,} bytes"
            )
        return Pin(pin.behavior, memory, report.at_s)

    def _pinned(self, thing_name: str) -> Pin:
        pin = self.pins.get(thing_name)
        if pin is None:
            raise TwinNotFound(f"{thing_name} is not pinned")
        return pin

    def _note(self, thing_name: str) -> None:
        """Tell a row's fleet what the row is held for."""
        found = self._find(thing_name)
        if found is not None:
            by_device = HELD_BY_DEVICE if self.is_real(thing_name) else 0
            by_behavior = HELD_BY_BEHAVIOR if thing_name in self.pins else 0
            found[0].hold(found[1], by_device | by_behavior)


def check_behavior_name(name: str) -> None:
    """Raise InvalidRequest for what is not written as a behaviour is."""
    if not _BEHAVIOR.fullmatch(name):
        raise InvalidRequest(f"behavior {name!r}: write module:Class, as heating:Boiler")


def _adopt(fleet: SimulatedFleet, row: int, reported: Mapping[str, Any]) -> None:
    """Let a simulated device go on from numbers that were reported for it, in place, where it has such a state."""
    for name, column in fleet.state.items():
        position = fleet.table.model.positions.get(name, -1)
        value: Any = reported.get(name)
        if position < 0 or type(value) not in (int, float) or column.dtype.kind != "f":
            continue
        field = fleet.table.model.fields[position]
        # In Python: a device's numbers have any size.
        column[row] = min(max(value, field.minimum), field.maximum)
