"""Links and faults in a scenario file, of simulated groups and of a running platform: `network` and `faults`.

The tables here are parts of the one in `scenario_form`: what is read, and what the JSON Schema says, comes from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, Final

import msgspec

from scenarios.spec import AnyFault, FaultSpec, PlatformFault, WireFault
from twins.errors import ModelError, Path, QueryError
from twins.faults import TROUBLES, Action, Fault, Select
from twins.forms import (
    AnyOf,
    ByType,
    ByWord,
    Duration,
    Form,
    Key,
    ListOf,
    Made,
    MapOf,
    Notes,
    Number,
    Record,
    Share,
    Words,
)
from twins.forms import Text as Texts
from twins.link import Link, Network
from twins.model import Group
from twins.query import Query, matches, parse
from twins.words import nearest

_COUNT_MAX: Final = 2**32 - 1
_MODES: Final = ("all", "one", "fixed", "fixed-percent")
# What a simulated device is asked for may depend on: what is drawn once, for life.
_SELECTABLE: Final = ("model", "origin")
# Combinations of attributes' values that are looked through for one `where`; nobody writes so many.
_COMBINATIONS_MAX: Final = 100_000

NAME: Final = Texts(length_max=128)
_WHOLE: Final = Number(0, _COUNT_MAX, is_whole=True)
_MILLISECONDS: Final = Made(Duration(), lambda seconds: seconds * 1000)
_NUMBER: Final = Made(Number(-1e12, 1e12), float)
_SECONDS: Final = ByType(
    "a duration like 10s, or a number of seconds", text=Duration(), number=_NUMBER, stand_in=0.0
)
_LINK_KEYS: Final[Mapping[str, Key]] = {
    "latency": Key(_MILLISECONDS, "How long a report takes at least.", 0.0),
    "jitter": Key(_MILLISECONDS, "Up to how much more or less, triangularly distributed.", 0.0),
    "loss": Key(Share(), "The share of reports that is lost.", 0.0),
    "corrupt": Key(Share(), "The share that arrives damaged and is refused.", 0.0),
    "reorder": Key(Share(), "The share that is held back until after the device's next one.", 0.0),
    "duplicate": Key(Share(), "The share that arrives twice.", 0.0),
    "bandwidth": Key(Made(Number(0), float), "Bytes a second a device; 0: as many as there are.", 0.0),
}


def _link(values: Mapping[str, Any]) -> Link:
    return Link(
        latency_ms=values["latency"],
        jitter_ms=values["jitter"],
        loss=values["loss"],
        corrupt=values["corrupt"],
        reorder=values["reorder"],
        duplicate=values["duplicate"],
        bandwidth_bytes_s=values["bandwidth"],
    )


def _network(values: Mapping[str, Any]) -> Network:
    by_attribute = values["by"] or {"": {}}
    [(attribute, links)] = list(by_attribute.items())[:1] or [("", {})]
    return Network(
        link=_link(values),
        attribute=attribute,
        by_value=tuple(links.items()),
        qos=int(values["qos"]),
        resend_after_s=values["resend_after"],
        buffer_count=int(values["buffer"]),
        flush_per_s=values["flush_rate"],
        clock_skew_s=values["clock_skew"],
    )


class _OneAttribute(MapOf):
    """A mapping with exactly one key, an attribute."""

    def read(self, value: Any, path: Path, notes: Notes) -> Any:
        """Return the mapping."""
        if isinstance(value, Mapping) and len(value) != 1:
            notes.blame(path, "needs exactly one attribute, and a link for each of its values that differs")
            return {}
        return super().read(value, path, notes)

    def schema(self) -> dict[str, Any]:
        """Return the schema of the mapping."""
        return {**super().schema(), "maxProperties": 1}


NETWORK_FORM: Final = Record(
    {
        **_LINK_KEYS,
        "by": Key(
            _OneAttribute(MapOf(Record(_LINK_KEYS, _link))),
            "Other links where an attribute has a value: {site: {cdg: {latency: 600ms}}}.",
            None,
        ),
        "qos": Key(Number(0, 1, is_whole=True), "1: what is lost is sent again.", 0),
        "resend_after": Key(Duration(minimum_s=0.001), "After how long it is sent again.", 10.0),
        "buffer": Key(_WHOLE, "How many reports a device keeps while it is offline.", 0),
        "flush_rate": Key(
            Made(Number(0), float), "How many kept reports a second it sends when it is back.", 0.0
        ),
        "clock_skew": Key(Duration(), "By how much devices' clocks are wrong for good, at most.", 0.0),
    },
    _network,
)
SELECT_FORM: Final = Record(
    {
        "where": Key(Texts(), "A fleet query on attributes: attributes.site:(ber OR cdg).", ""),
        "mode": Key(Words(_MODES), "How many of these.", "all"),
        "value": Key(
            Made(Number(0, _COUNT_MAX), float), "How many (fixed), or which share (fixed-percent).", None
        ),
        "first": Key(_WHOLE, "The number of the first device.", 0),
        "last": Key(_WHOLE, "The number of the last device; without it, the group's last.", -1),
    }
)
# How parameters of faults are called in scenarios, and read, where that differs from `faults.ACTIONS`.
_WORDS: Final[Mapping[str, tuple[str, Form, str]]] = {
    "latency_ms": ("latency", _MILLISECONDS, "How much longer reports take."),
    "jitter_ms": ("jitter", _MILLISECONDS, "How much more they vary."),
    "interval_s": ("interval", _SECONDS, "How long each turn lasts."),
    "restart_after_s": ("restart_after", _SECONDS, "How long devices are away; 0: to the end."),
    "spread_s": ("spread", _SECONDS, "Within which time they come back."),
    "renew_after_s": ("renew_after", _SECONDS, "After which time each is back."),
    "offset_s": ("offset", _SECONDS, "By how much clocks are wrong; it may be negative."),
    "percent": ("percent", Share(100), "The share of reports, in percent."),
    "rate": ("rate", _NUMBER, "How much, or how many, a second."),
    "value": ("value", _NUMBER, "By how much it is off."),
    "backoff": (
        "backoff",
        Made(Words(("none", "exponential")), lambda word: float(word == "exponential")),
        "How long devices wait between attempts.",
    ),
}
_DIRECTION: Final = Key(Words(("both", "up", "down")), "What does not get through.", "both")


def _fault_record(name: str, action: Action) -> Record:
    keys = {
        "name": Key(NAME, "What reports and thresholds call it.", is_needed=True),
        "at": Key(Duration(is_whole=True), "When it begins, in virtual time.", is_needed=True),
        "duration": Key(Duration(is_whole=True, minimum_s=1), "How long it lasts.", is_needed=True),
        "action": Key(Words((name,)), action.meaning, is_needed=True),
        "groups": Key(ListOf(NAME), "The groups that it hits; all, where nothing is said.", None),
        "select": Key(SELECT_FORM, "Which of their devices; all, where nothing is said.", None),
    }
    for parameter, default in action.parameters.items():
        word, form, meaning = _WORDS[parameter]
        keys[word] = Key(form, f"{meaning} Without it: {default:g}.", None)
    if action.needs_field or name == "sensor_missing":
        keys["field"] = Key(NAME, "The field whose sensor it is.", "")
    if name == "partition":
        keys["direction"] = _DIRECTION
    return Record(keys)


# What is done to processes of a running platform, to which of them, and to how many.
STRUCK: Final = ("broker", "redis", "shard", "bridge", "gateway", "node")
PLATFORM_ACTIONS: Final[Mapping[str, str]] = {
    "kill": "kill -9 of processes; with a duration, again and again as they come back",
    "pause": "processes stand still, and wake up at the end",
    "restart": "processes are ended in peace, and come back",
    "disk_full": "the disk of the data directory has no room left",
}
_LASTING: Final = ("pause", "disk_full")


def _platform_record(name: str, meaning: str) -> Record:
    keys = {
        "name": Key(NAME, "What reports and thresholds call it.", is_needed=True),
        "at": Key(Duration(is_whole=True), "When it begins, in virtual time.", is_needed=True),
        "action": Key(Words((name,)), meaning, is_needed=True),
    }
    if name != "restart":
        keys["duration"] = Key(
            Duration(minimum_s=0.1), "How long it lasts, in real time.", 0.0, is_needed=name in _LASTING
        )
    if name != "disk_full":
        keys |= {
            "component": Key(Words(STRUCK), "Which part of the platform.", is_needed=True),
            "mode": Key(Words(("one", "all", "fixed")), "How many of its processes.", "one"),
            "value": Key(Number(1, _COUNT_MAX, is_whole=True), "How many, with mode fixed.", None),
        }
    return Record(keys)


# What a relay on the wire does, and which parameters this takes.
_WIRE_ACTIONS: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "latency": ("every piece arrives later", ("latency", "jitter")),
    "jitter": ("pieces arrive later by different times", ("jitter",)),
    "loss": ("in place of pieces the connection is reset", ("percent",)),
    "bandwidth": ("connections carry no more than so many bytes a second", ("rate",)),
    "partition": ("nothing gets through, and nobody is told", ("direction",)),
    "disconnect": ("connections are ended, and none is made", ()),
    "reset_peer": ("connections are reset, once or again and again", ("every",)),
    "flap": ("by turns nothing gets through, and everything does", ("interval",)),
}
# How its parameters are called in `WireFault`, read and told; those that an action is named for must be given.
_WIRE_WORDS: Final[Mapping[str, tuple[str, Form, str, bool]]] = {
    "latency": ("latency_s", Duration(minimum_s=0.001), "How much later.", True),
    "jitter": ("jitter_s", Duration(minimum_s=0.001), "Up to how much more.", False),
    "percent": ("percent", Share(100), "The share of pieces, in percent.", True),
    "rate": ("rate", Made(Number(1), float), "Bytes a second, of each connection.", True),
    "direction": ("direction", Words(("both", "up", "down")), "What does not get through.", False),
    "interval": ("interval_s", Duration(minimum_s=0.1), "How long each turn lasts.", True),
    "every": ("interval_s", Duration(minimum_s=0.1), "How often; once, where nothing is said.", False),
}


class _DevicesAndBroker(ListOf):
    """Who is on both sides: the one pair that a relay can stand between."""

    def read(self, value: Any, path: Path, notes: Notes) -> Any:
        """Return the pair."""
        if value != ["devices", "broker"]:
            notes.blame(
                path, "must be [devices, broker]: the connections of real devices, which go through a relay"
            )
        return ("devices", "broker")

    def schema(self) -> dict[str, Any]:
        """Return the schema of the pair."""
        return {"const": ["devices", "broker"]}


def _wire_record(name: str, meaning: str, parameters: Sequence[str]) -> Record:
    keys = {
        "name": Key(NAME, "What reports and thresholds call it.", is_needed=True),
        "at": Key(Duration(is_whole=True), "When it begins, in virtual time.", is_needed=True),
        "duration": Key(Duration(minimum_s=0.1), "How long it lasts, in real time.", is_needed=True),
        "action": Key(Words((name,)), meaning, is_needed=True),
        "between": Key(_DevicesAndBroker(NAME), "[devices, broker].", is_needed=True),
    }
    for parameter in parameters:
        _, form, text, is_needed = _WIRE_WORDS[parameter]
        keys[parameter] = Key(form, text, None, is_needed=is_needed or parameter == name)
    return Record(keys)


_WIRE_RECORDS: Final = {name: _wire_record(name, *told) for name, told in _WIRE_ACTIONS.items()}
# Each layer's actions: a scenario names one, and the record says what goes with it. Those on the wire say between whom.
FAULT_FORM: Final = AnyOf(
    "between",
    ByWord("action", _WIRE_RECORDS, "What goes wrong on the wire."),
    ByWord(
        "action",
        {
            **{name: _fault_record(name, action) for name, action in TROUBLES.items()},
            **{name: _platform_record(name, meaning) for name, meaning in PLATFORM_ACTIONS.items()},
            "reset_peer": _WIRE_RECORDS["reset_peer"],
        },
        "What goes wrong.",
    ),
)


def fault_of(
    values: Mapping[str, Any], groups: Mapping[str, Group], path: Path, notes: Notes
) -> AnyFault | None:
    """Return the fault that its record's values describe; None, with the mistake noted, where it makes no sense."""
    if "between" in values:
        _, parameters = _WIRE_ACTIONS[values["action"]]
        given = {_WIRE_WORDS[each][0]: values[each] for each in parameters if values[each] is not None}
        return WireFault(
            values["name"], values["action"], int(values["at"]), float(values["duration"]), **given
        )
    if values["action"] in PLATFORM_ACTIONS:
        return _platform_fault(values, path, notes)
    return _simulated_fault(values, groups, path, notes)


def _platform_fault(values: Mapping[str, Any], path: Path, notes: Notes) -> PlatformFault | None:
    mode, value = values.get("mode", "one"), values.get("value")
    if (value is not None) != (mode == "fixed"):
        notes.blame(path, "'value' belongs to mode fixed (how many processes), and to no other")
        return None
    return PlatformFault(
        values["name"],
        values["action"],
        values["at"],
        values.get("component", "disk"),
        float(values.get("duration") or 0.0),
        0 if mode == "all" else int(value or 1),
    )


def _simulated_fault(
    values: Mapping[str, Any], groups: Mapping[str, Group], path: Path, notes: Notes
) -> FaultSpec | None:
    """Return the fault that its record's values describe; None, with the mistake noted, where it makes no sense."""
    action = str(values["action"])
    select = values["select"] or {"where": "", "mode": "all", "value": None, "first": 0, "last": -1}
    if (select["value"] is not None) != (select["mode"] in ("fixed", "fixed-percent")):
        text = "'value' belongs to mode fixed (how many) and fixed-percent, and to no other"
        notes.blame((*path, "select"), text)
        return None
    parameters = []
    for parameter in TROUBLES[action].parameters:
        value = values[_WORDS[parameter][0]]
        if value is not None:
            parameters.append((parameter, float(value)))
    chosen = Select(
        (),
        select["value"] if select["mode"] == "fixed-percent" else 100.0,
        {"all": 0, "fixed-percent": 0, "one": 1}.get(select["mode"], max(1, int(select["value"] or 0))),
        int(select["first"]),
        int(select["last"]),
    )
    fault = Fault(
        values["name"],
        action,
        values["at"],
        values["duration"],
        tuple(parameters),
        chosen,
        values.get("field") or "",
        values.get("direction") or "both",
    )
    names = values["groups"]
    hit = _groups_hit(select["where"], names, groups, path, notes)
    if not hit:
        return None
    # The first group's is the fault's own: most scenarios have the same for all.
    first = next(iter(hit.values()))
    spec = FaultSpec(_where(fault, first), tuple(hit), hit)
    for position, name in enumerate(spec.groups):
        _check(spec.fault_of(name), groups[name], path, notes, is_first=not position)
    return spec


def _where(fault: Fault, pairs: tuple[tuple[str, str], ...]) -> Fault:
    return msgspec.structs.replace(fault, select=msgspec.structs.replace(fault.select, where=pairs))


def _check(fault: Fault, group: Group, path: Path, notes: Notes, *, is_first: bool) -> None:
    try:
        fault.check(
            {field.name: field.dtype for field in group.model.fields},
            {each.name: each.values for each in group.attributes},
        )
    except ModelError as error:
        notes.blame(path, f"group {group.name}: {error}")
    if TROUBLES[fault.action].needs_network and group.network is None:
        text = f"group {group.name} has no network, which {fault.action} needs; give it network: {{}}"
        notes.blame(path, text)


def _groups_hit(
    where: str, names: Sequence[str] | None, groups: Mapping[str, Group], path: Path, notes: Notes
) -> dict[str, tuple[tuple[str, str], ...]]:
    """Return the groups that a fault hits, each with the values of attributes that its devices must have."""
    if not groups:
        notes.blame(path, "there is no group that it could hit")
        return {}
    for position, name in enumerate(names or ()):
        if name not in groups:
            known = nearest(name, groups) or f"; groups: {', '.join(groups)}"
            notes.blame((*path, "groups", position), f"there is no group {name!r}{known}")
            return {}
    query = _query(where, (*path, "select", "where"), notes) if where else None
    if query is None:
        return {} if where else dict.fromkeys(names or groups, ())
    hit, found = {}, []
    for name in names or groups:
        group = groups[name]
        try:
            pairs = _pairs(query, group)
        except ModelError as error:
            notes.blame((*path, "select", "where"), f"group {name}: {error}")
            return {}
        if pairs is not None:
            hit[name] = pairs
        elif names:
            found.append(name)
    if found or not hit:
        missed = ", ".join(found or groups)
        values = [
            f"{each.name}: {'|'.join(each.values)}" for group in groups.values() for each in group.attributes
        ]
        text = f"no device of {missed} is as {where!r} says; attributes: {'; '.join(sorted(set(values))) or 'none'}"
        notes.blame((*path, "select", "where"), text)
        return {}
    return hit


def _query(where: str, path: Path, notes: Notes) -> Query | None:
    try:
        query = parse(where)
    except QueryError as error:
        notes.blame(path, f"is no fleet query: {error}")
        return None
    for field in sorted(query.fields()):
        if not (field.startswith("attributes.") or field in _SELECTABLE):
            named = "a word without a field" if field == "*" else repr(field)
            text = (
                f"{named} is nothing that a fault can select by; ask like attributes.site:ber, or for model"
            )
            notes.blame(path, text)
            return None
    return query


def _pairs(query: Query, group: Group) -> tuple[tuple[str, str], ...] | None:
    """Return the pairs of attribute and value that a query comes down to in a group; None if no device is so.

    ModelError if it does not come down to values for each attribute by itself.
    """
    asked = {field.removeprefix("attributes.") for field in query.fields()}
    attributes = [each for each in group.attributes if each.name in asked]
    combinations = 1
    for each in attributes:
        combinations *= len(each.values)
    if combinations > _COMBINATIONS_MAX:
        raise ModelError(f"{combinations:,} combinations of values are too many; ask for fewer attributes")
    told = {"model": group.model.name, "origin": "simulated"}
    names = [each.name for each in attributes]
    found = [
        values
        for values in product(*(each.values for each in attributes))
        if matches(query, {**told, "attributes": dict(zip(names, values, strict=True))})
    ]
    if not found:
        return None
    wanted = [
        sorted({values[i] for values in found}, key=each.values.index) for i, each in enumerate(attributes)
    ]
    size = 1
    for values in wanted:
        size *= len(values)
    if size != len(found):
        raise ModelError("it does not come down to values of each attribute by itself; make two faults of it")
    return tuple(
        (each.name, value)
        for each, values in zip(attributes, wanted, strict=True)
        if len(values) < len(each.values)
        for value in values
    )
