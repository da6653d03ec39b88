"""What goes wrong with simulated devices and their links, as data: faults, whom they hit, and when.

A fault is a function of (seed, its name, tick, device) alone and leaves nothing behind but what it did to devices: so
it travels with every order to tick, and is felt only in its time. How each action works stands in `fault_program`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from twins.errors import ModelError

Layer = Literal["network", "outage", "device"]


class Select(msgspec.Struct, frozen=True, array_like=True):
    """Which devices: of those whose attributes are as `where` says, with numbers from `first` to `last` (-1: the end).

    Pairs of one attribute are alternatives. Of these `percent` are drawn, or, where it is not 0, exactly `count`.
    """

    where: tuple[tuple[str, str], ...] = ()
    percent: float = 100.0
    count: int = 0
    first: int = 0
    last: int = -1


class Fault(msgspec.Struct, frozen=True, array_like=True):
    """One fault from `first_tick` on, for `tick_count` ticks; `ACTIONS` says what its parameters mean.

    `field` is the field whose sensor fails; `direction` of a partition is "up" (reports are lost), "down" (devices
    hear nothing) or "both".
    """

    name: str
    action: str
    first_tick: int
    tick_count: int
    parameters: tuple[tuple[str, float], ...] = ()
    select: Select = Select()
    field: str = ""
    direction: str = "both"

    def get(self, parameter: str) -> float:
        """Return a parameter of the fault, or what it is where nothing is said."""
        return dict(self.parameters).get(parameter, ACTIONS[self.action].parameters[parameter])

    def is_on(self, tick: int) -> bool:
        """Tell whether a tick lies in the fault's time."""
        return self.first_tick <= tick < self.first_tick + self.tick_count

    def check(self, fields: Mapping[str, str], attributes: Mapping[str, tuple[str, ...]]) -> None:
        """Raise ModelError if the fault makes no sense for a group with these fields (and dtypes) and attributes."""
        place = f"fault {self.name!r}"
        action = ACTIONS.get(self.action)
        if action is None:
            raise ModelError(f"{place}: there is no action {self.action!r}; actions: {', '.join(ACTIONS)}")
        for name, value in self.parameters:
            if name not in action.parameters:
                known = ", ".join(action.parameters) or "none"
                raise ModelError(f"{place}: {self.action} has no parameter {name!r}; it has: {known}")
            if not abs(value) <= 1e12 or (name in _NOT_NEGATIVE and value < 0):
                raise ModelError(f"{place}: {name} must be a number of 0 or more, not {value:g}")
        if "percent" in action.parameters and self.get("percent") > 100:
            raise ModelError(f"{place}: percent must be from 0 to 100")
        self._check_field(place, action, fields)
        self._check_select(place, attributes)
        if self.tick_count < 1 or self.first_tick < 0:
            raise ModelError(f"{place}: it must last at least one tick, and not begin before the first")
        if self.direction not in ("up", "down", "both"):
            raise ModelError(f"{place}: direction must be up, down or both, not {self.direction!r}")

    def _check_field(self, place: str, action: Action, fields: Mapping[str, str]) -> None:
        if action.needs_field and not fields.get(self.field, "").startswith("float"):
            known = ", ".join(name for name, dtype in fields.items() if dtype.startswith("float"))
            raise ModelError(f"{place}: {self.action} needs a float field, one of: {known}")
        if self.field and self.field not in fields:
            raise ModelError(f"{place}: there is no field {self.field!r}; fields: {', '.join(fields)}")
        if self.action == "sensor_missing" and not self.field:
            raise ModelError(f"{place}: sensor_missing needs a field, one of: {', '.join(fields)}")

    def _check_select(self, place: str, attributes: Mapping[str, tuple[str, ...]]) -> None:
        select = self.select
        for attribute, value in select.where:
            if value not in attributes.get(attribute, ()):
                known = ", ".join(f"{name}: {'|'.join(values)}" for name, values in attributes.items())
                raise ModelError(
                    f"{place}: no device has {attribute} {value!r}; attributes: {known or 'none'}"
                )
        if not 0 <= select.percent <= 100 or select.count < 0 or select.first < 0 or select.last < -1:
            raise ModelError(f"{place}: percent must be from 0 to 100, count, first and last not below 0")


@dataclass(frozen=True)
class Action:
    """What a fault may do: its parameters with what they are where nothing is said, and what they mean."""

    layer: Layer
    meaning: str
    parameters: Mapping[str, float]
    needs_field: bool = False
    # It makes reports late or come twice, which takes a network to carry them.
    needs_network: bool = False
    # It says who is not there yet, or no longer, by a scenario's stages: nothing that goes wrong.
    is_planned: bool = False


ACTIONS: Final[Mapping[str, Action]] = {
    # Links: temporary changes of `Link`
    "latency": Action(
        "network", "more latency and jitter", {"latency_ms": 0, "jitter_ms": 0}, needs_network=True
    ),
    "jitter": Action("network", "more jitter", {"jitter_ms": 0}, needs_network=True),
    "loss": Action("network", "a share of the reports is lost", {"percent": 100}),
    "duplicate": Action(
        "network", "a share of the reports arrives twice", {"percent": 100}, needs_network=True
    ),
    "reorder": Action("network", "a share is overtaken by the next", {"percent": 100}, needs_network=True),
    "corrupt": Action("network", "a share arrives damaged and is refused", {"percent": 100}),
    "bandwidth": Action(
        "network", "at most `rate` bytes a second a device", {"rate": 1000}, needs_network=True
    ),
    "partition": Action("network", "nothing gets through, in one direction or both", {}),
    # Connections: whole devices drop out and come back
    "disconnect": Action("outage", "offline at once, back at once at the end", {}),
    "flap": Action("outage", "offline and online by turns of `interval_s`", {"interval_s": 10}),
    "crash": Action(
        "outage",
        "offline for `restart_after_s` (0: to the end); settings, what was kept and the uptime are lost",
        {"restart_after_s": 0},
    ),
    "reboot": Action(
        "outage", "offline for `restart_after_s`; the uptime starts anew", {"restart_after_s": 30}
    ),
    "power_cut": Action(
        "outage",
        "offline at once; back at the end, at once or within `spread_s`; the uptime starts anew",
        {"spread_s": 0},
    ),
    "cert_expiry": Action(
        "outage",
        "devices drop out one after the other over the fault's time, each back after `renew_after_s`",
        {"renew_after_s": 3600},
    ),
    "reconnect_storm": Action(
        "outage",
        "all lose their connection; `rate` a second get a new one (0: all at once) and the others try again each "
        "second, or with `backoff` 1 after 1, 2, 4 ... seconds",
        {"rate": 0, "backoff": 0},
    ),
    "duplicate_id": Action("outage", "another device takes the connection away, at every second turn", {}),
    # Devices
    "hang": Action("device", "connected and silent: reports nothing, obeys nothing", {}),
    "battery_drain": Action(
        "device", "the field loses `rate` units a second more", {"rate": 0.01}, needs_field=True
    ),
    "sensor_stuck": Action("device", "the field stays at what it last reported", {}, needs_field=True),
    "sensor_drift": Action("device", "off by `rate` units a second, more and more", {"rate": 0.001}, True),
    "sensor_spike": Action(
        "device", "off by `value` in `percent` of the reports", {"value": 100, "percent": 5}, True
    ),
    "sensor_missing": Action("device", "the field is left out of reports", {}),
    "malformed_payload": Action(
        "device", "`percent` of the reports cannot be read and are refused", {"percent": 100}
    ),
    "clock_skew": Action("device", "reports bear a time stamp `offset_s` off", {"offset_s": 3600}),
    "bad_time_server": Action(
        "device",
        "as clock_skew, and who loses the connection gets none while it lasts: certificates seem invalid",
        {"offset_s": 86400},
    ),
    # Stages
    "absence": Action(
        "outage",
        "not there: leaving within `leave_s` from its begin, coming (back) within `return_s` after its end",
        {"leave_s": 0, "return_s": 0},
        is_planned=True,
    ),
}
# What scenarios may let go wrong: their stages plan the rest.
TROUBLES: Final[Mapping[str, Action]] = {
    name: action for name, action in ACTIONS.items() if not action.is_planned
}
_NOT_NEGATIVE: Final = frozenset(
    {
        "latency_ms",
        "jitter_ms",
        "percent",
        "interval_s",
        "restart_after_s",
        "spread_s",
        "renew_after_s",
        "leave_s",
        "return_s",
    }
)
