"""From a scenario file to links and faults, of simulated groups and of a running platform: `network` and `faults`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from scenarios.source import Item
from scenarios.spec import FaultSpec, PlatformFault
from twins.errors import ModelError
from twins.faults import ACTIONS, Fault, Select
from twins.link import Link, Network
from twins.model import Group

_MODES: Final = ("all", "one", "fixed", "fixed-percent")
_COUNT_MAX: Final = 2**32 - 1
# What is done to processes of a running platform, to which of them, and to how many.
PLATFORM_ACTIONS: Final = ("kill", "pause", "restart", "disk_full")
STRUCK: Final = ("broker", "redis", "shard", "bridge", "gateway", "node")
_PLATFORM_MODES: Final = ("one", "all", "fixed")


def read_network(item: Item) -> Network:
    """Return the network of a group."""
    entries = item.entries()
    link = _link(entries)
    attribute, by_value = entries.take("by", _by, ("", ()))
    network = Network(
        link=link,
        attribute=attribute,
        by_value=by_value,
        qos=entries.take("qos", lambda value: int(value.number(minimum=0, maximum=1, is_whole=True)), 0),
        resend_after_s=entries.take("resend_after", lambda value: value.duration_s(minimum=0.001), 10.0),
        buffer_count=entries.take("buffer", lambda value: int(value.number(minimum=0, is_whole=True)), 0),
        flush_per_s=entries.take("flush_rate", lambda value: float(value.number(minimum=0)), 0.0),
        clock_skew_s=entries.take("clock_skew", Item.duration_s, 0.0),
    )
    entries.close()
    return network


def _link(entries: Any) -> Link:
    return Link(
        latency_ms=entries.take("latency", _milliseconds, 0.0),
        jitter_ms=entries.take("jitter", _milliseconds, 0.0),
        loss=entries.take("loss", _ratio, 0.0),
        corrupt=entries.take("corrupt", _ratio, 0.0),
        reorder=entries.take("reorder", _ratio, 0.0),
        duplicate=entries.take("duplicate", _ratio, 0.0),
        bandwidth_bytes_s=entries.take("bandwidth", lambda value: float(value.number(minimum=0)), 0.0),
    )


def _by(item: Item) -> tuple[str, tuple[tuple[str, Link], ...]]:
    """Return links by the values of one attribute: `by: {site: {ams: {latency: 20ms}}}`."""
    attributes = list(item.entries().remaining())
    if len(attributes) != 1:
        item.blame("needs exactly one attribute, and a link for each of its values that differs")
        return "", ()
    name, values = attributes[0]
    links = []
    for value, link_item in values.entries().remaining():
        entries = link_item.entries()
        links.append((value, _link(entries)))
        entries.close()
    return name, tuple(links)


def _milliseconds(item: Item) -> float:
    return item.duration_s() * 1000


def _ratio(item: Item) -> float:
    """Return a share from 0 to 1, written like 0.5% or 0.005."""
    text = str(item.plain())
    if not text.endswith("%"):
        return float(item.number(minimum=0, maximum=1))
    try:
        percent = float(text[:-1])
    except ValueError:
        percent = -1.0
    if not 0 <= percent <= 100:
        item.blame(f"must be a share like 0.5%, from 0% to 100%, not {item.describe()}")
        return 0.0
    return percent / 100


def read_any_fault(item: Item, groups: Mapping[str, Group]) -> FaultSpec | PlatformFault | None:
    """Return a fault, of the platform or of simulated groups, whichever its action is of."""
    plain = item.plain()
    is_of_platform = isinstance(plain, dict) and plain.get("action") in PLATFORM_ACTIONS
    return _read_platform_fault(item) if is_of_platform else read_fault(item, groups)


def _read_platform_fault(item: Item) -> PlatformFault | None:
    problem_count = len(item.source.problems)
    entries = item.entries()
    name = entries.need("name", Item.text, "")
    action: Any = entries.need("action", Item.text, "")
    at_s = entries.need("at", Item.whole_seconds, 0)
    lasts = action in ("pause", "disk_full")
    duration_s = (entries.need if lasts else entries.take)(
        "duration", lambda value: value.duration_s(minimum=0.1), 0.0
    )
    component, count = "disk", 1
    if action != "disk_full":
        component = entries.need("component", lambda value: value.choice(STRUCK), "broker")
        mode = entries.take("mode", lambda value: value.choice(_PLATFORM_MODES), "one")
        has_value = "value" in entries
        value = entries.take("value", lambda each: int(each.number(minimum=1, is_whole=True)), 1)
        if has_value != (mode == "fixed"):
            item.blame("'value' belongs to mode fixed (how many processes), and to no other")
        count = 0 if mode == "all" else value
    entries.close()
    if action == "restart" and duration_s:
        item.blame(
            "a restart takes as long as it takes; a component that stays away is `kill` with a duration"
        )
    return (
        PlatformFault(name, action, at_s, component, duration_s, count)
        if len(item.source.problems) == problem_count
        else None
    )


def read_fault(item: Item, groups: Mapping[str, Group]) -> FaultSpec | None:
    """Return a fault and the groups that it concerns (all, where it names none); None where it makes no sense."""
    problem_count = len(item.source.problems)
    entries = item.entries()
    name = entries.need("name", Item.text, "")
    action = entries.need("action", lambda value: value.choice([*ACTIONS, *PLATFORM_ACTIONS]), "loss")
    at_s = entries.need("at", Item.whole_seconds, 0)
    duration_s = entries.need("duration", lambda value: value.whole_seconds(minimum=1), 1)
    names = entries.take("groups", lambda value: tuple(each.text() for each in value.items()), tuple(groups))
    select = entries.take("select", _select, Select())
    parameters = []
    for parameter in ACTIONS[action].parameters:
        word, read = _WORDS.get(parameter, (parameter, _number))
        value = entries.take(word, read, None)
        if value is not None:
            parameters.append((parameter, value))
    field = entries.take("field", Item.text, "") if action.startswith(("sensor", "battery")) else ""
    direction = "both"
    if action == "partition":
        direction = entries.take("direction", lambda value: value.choice(["both", "up", "down"]), "both")
    entries.close()
    fault = Fault(name, action, at_s, duration_s, tuple(parameters), select, field, direction)
    if len(item.source.problems) == problem_count:
        _check(item, fault, names, groups)
    return FaultSpec(fault, names)


def _check(item: Item, fault: Fault, names: tuple[str, ...], groups: Mapping[str, Group]) -> None:
    if not names:
        item.blame("there is no group that it could hit")
    for name in names:
        group = groups.get(name)
        if group is None:
            item.blame(f"there is no group {name!r}; groups: {', '.join(groups) or 'none'}")
            continue
        fields = {field.name: field.dtype for field in group.model.fields}
        try:
            fault.check(fields, {each.name: each.values for each in group.attributes})
        except ModelError as error:
            item.blame(f"group {name}: {error}")
        if ACTIONS[fault.action].needs_network and group.network is None:
            item.blame(f"group {name} has no network, which {fault.action} needs; give it network: {{}}")


def _select(item: Item) -> Select:
    entries = item.entries()
    where = entries.take("where", _where, ())
    mode = entries.take("mode", lambda value: value.choice(_MODES), "all")
    has_value = "value" in entries
    value = entries.take("value", lambda each: float(each.number(minimum=0)), 1.0)
    first = entries.take("first", _position, 0)
    last = entries.take("last", _position, -1)
    entries.close()
    if has_value != (mode in ("fixed", "fixed-percent")):
        item.blame("'value' belongs to mode fixed (how many) and fixed-percent, and to no other")
    if mode == "fixed-percent":
        return Select(where, value, 0, first, last)
    return Select(where, 100.0, 0 if mode == "all" else max(1, int(value)), first, last)


def _where(item: Item) -> tuple[tuple[str, str], ...]:
    """Return pairs of attribute and value, written like `attributes.site:ber`, or a list of such."""
    is_list = isinstance(item.plain(), list)
    pairs = []
    for element in item.items() if is_list else [item]:
        name, _, value = element.text().removeprefix("attributes.").partition(":")
        if not name or not value:
            element.blame("must be an attribute and a value, like attributes.site:ber")
        pairs.append((name, value))
    return tuple(pairs)


def _position(item: Item) -> int:
    return int(item.number(minimum=0, maximum=_COUNT_MAX, is_whole=True))


def _number(item: Item) -> float:
    return float(item.number(minimum=-1e12, maximum=1e12))


def _seconds(item: Item) -> float:
    """Return a duration, or a number of seconds, which may be negative."""
    return _number(item) if isinstance(item.plain(), int | float) else item.duration_s()


def _percent(item: Item) -> float:
    text = str(item.plain())
    return _ratio(item) * 100 if text.endswith("%") else float(item.number(minimum=0, maximum=100))


def _backoff(item: Item) -> float:
    return float(item.choice(["none", "exponential"]) == "exponential")


# How parameters of faults are called in scenarios, and read, where that differs.
_WORDS: Final[Mapping[str, tuple[str, Callable[[Item], float]]]] = {
    "latency_ms": ("latency", _milliseconds),
    "jitter_ms": ("jitter", _milliseconds),
    "interval_s": ("interval", _seconds),
    "restart_after_s": ("restart_after", _seconds),
    "spread_s": ("spread", _seconds),
    "renew_after_s": ("renew_after", _seconds),
    "offset_s": ("offset", _seconds),
    "percent": ("percent", _percent),
    "backoff": ("backoff", _backoff),
}
