"""The MQTT topic grammar of devices: which topic asks what of which thing, and where the answers go.

Only the grammar lives here; who may publish or subscribe is the broker's access list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from twins.sharding import is_thing_name

_SHADOW_NAME_MAX: Final = 64
SHADOW_OPERATIONS: Final = ("get", "update", "delete")

# What a service that answers devices has to subscribe to.
REQUEST_FILTERS: Final = (
    *(f"$aws/things/+/shadow/{operation}" for operation in SHADOW_OPERATIONS),
    *(f"$aws/things/+/shadow/name/+/{operation}" for operation in SHADOW_OPERATIONS),
    "telemetry/+/#",
)


@dataclass(frozen=True, slots=True)
class ShadowTopic:
    """A request on a thing's shadow; `shadow_name` is empty for the classic shadow."""

    thing_name: str
    shadow_name: str
    operation: str


@dataclass(frozen=True, slots=True)
class TelemetryTopic:
    """A telemetry message of a thing on one of its streams."""

    thing_name: str
    stream: str


def is_shadow_name(text: str) -> bool:
    """Tell whether `text` may name a shadow: 1 to 64 of letters, digits, colon, underscore and hyphen."""
    return len(text) <= _SHADOW_NAME_MAX and is_thing_name(text)


def parse(topic: str) -> ShadowTopic | TelemetryTopic | None:
    """Return what a device asks for by publishing on `topic`, or None if it is no request topic."""
    levels = topic.split("/")
    if levels[0] == "telemetry":
        if len(levels) < 3 or not is_thing_name(levels[1]) or "" in levels:
            return None
        return TelemetryTopic(levels[1], "/".join(levels[2:]))
    if levels[:2] != ["$aws", "things"] or len(levels) < 5 or levels[3] != "shadow":
        return None
    if levels[-1] not in SHADOW_OPERATIONS or not is_thing_name(levels[2]):
        return None
    if len(levels) == 5:
        return ShadowTopic(levels[2], "", levels[4])
    if len(levels) == 7 and levels[4] == "name" and is_shadow_name(levels[5]):
        return ShadowTopic(levels[2], levels[5], levels[6])
    return None


def shadow_prefix(thing_name: str, shadow_name: str = "") -> str:
    """Return the topic under which requests and answers of one shadow stand, without a slash at its end."""
    classic = f"$aws/things/{thing_name}/shadow"
    return f"{classic}/name/{shadow_name}" if shadow_name else classic


def matches(topic_filter: str, topic: str) -> bool:
    """Tell whether a subscription to `topic_filter` receives `topic` (MQTT 5, 4.7).

    A leading wildcard never matches a topic that begins with `$`; `a/#` also matches `a`.
    """
    if topic.startswith("$") and topic_filter[:1] in ("+", "#"):
        return False
    wanted, levels = topic_filter.split("/"), topic.split("/")
    for position, level in enumerate(wanted):
        if level == "#":
            return True
        if position >= len(levels) or level not in ("+", levels[position]):
            return False
    return len(wanted) == len(levels)
