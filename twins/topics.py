"""The MQTT topic grammar of devices: which topic asks what of which thing, and where the answers go.

Only the grammar lives here; who may publish or subscribe is the broker's access list.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from twins.sharding import is_name, is_thing_name

_SHADOW_NAME_MAX: Final = 64
SHADOW_OPERATIONS: Final = ("get", "update", "delete")

# AWS IoT's bounds of a topic.
TOPIC_BYTES_MAX: Final = 256
TOPIC_SLASHES_MAX: Final = 7
# What mosquitto ends the connection for, wherever it stands in a text (MQTT 5, 1.5.4, leaves that to the receiver):
# control characters, surrogates, and the code points that Unicode has set aside as no characters.
_SET_ASIDE: Final = "".join(chr(plane << 16 | 0xFFFE) + chr(plane << 16 | 0xFFFF) for plane in range(17))
_UNSENDABLE: Final = re.compile(f"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef{_SET_ASIDE}]")
# Under which the parts of the platform talk to each other.
_PLATFORM_ROOT: Final = "twinfleet"

# What a service that answers devices has to subscribe to.
REQUEST_FILTERS: Final = (
    *(f"$aws/things/+/shadow/{operation}" for operation in SHADOW_OPERATIONS),
    *(f"$aws/things/+/shadow/name/+/{operation}" for operation in SHADOW_OPERATIONS),
    "$aws/things/+/defender/metrics/+",
    "$aws/things/+/jobs/get",
    "$aws/things/+/jobs/start-next",
    "$aws/things/+/jobs/+/get",
    "$aws/things/+/jobs/+/update",
    "$aws/commands/things/+/executions/+/response/json",
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


@dataclass(frozen=True, slots=True)
class DefenderTopic:
    """A thing's report of Device Defender metrics; `style` is how it is written, `json` or `cbor`."""

    thing_name: str
    style: str


@dataclass(frozen=True, slots=True)
class JobTopic:
    """A thing's request on its jobs: `request` is what stands behind `jobs/`, as `get` or `JOB/update`."""

    thing_name: str
    request: str

    @property
    def is_change(self) -> bool:
        """Tell whether the request may change something."""
        return not self.request.endswith("get")


@dataclass(frozen=True, slots=True)
class CommandTopic:
    """A thing's answer to a command; whether the execution's id is one is not asked here."""

    thing_name: str
    execution_id: str


DeviceTopic = ShadowTopic | TelemetryTopic | DefenderTopic | JobTopic | CommandTopic


def is_shadow_name(text: str) -> bool:
    """Tell whether `text` may name a shadow: 1 to 64 of letters, digits, colon, underscore and hyphen."""
    return len(text) <= _SHADOW_NAME_MAX and is_name(text)


def parse(topic: str) -> DeviceTopic | None:
    """Return what a device asks for by publishing on `topic`, or None if it is no request topic."""
    levels = topic.split("/")
    if levels[0] == "telemetry":
        if len(levels) < 3 or not is_thing_name(levels[1]) or "" in levels:
            return None
        return TelemetryTopic(levels[1], "/".join(levels[2:]))
    if levels[:3] == ["$aws", "commands", "things"]:
        return _parse_command(levels)
    if levels[:2] != ["$aws", "things"] or len(levels) < 5 or not is_thing_name(levels[2]):
        return None
    reader = _OF_THINGS.get(levels[3])
    return None if reader is None else reader(levels)


def _parse_shadow(levels: list[str]) -> ShadowTopic | None:
    if levels[-1] not in SHADOW_OPERATIONS:
        return None
    if len(levels) == 5:
        return ShadowTopic(levels[2], "", levels[4])
    if len(levels) == 7 and levels[4] == "name" and is_shadow_name(levels[5]):
        return ShadowTopic(levels[2], levels[5], levels[6])
    return None


def _parse_report(levels: list[str]) -> DefenderTopic | None:
    is_report = levels[4] == "metrics" and levels[5:] in (["json"], ["cbor"])
    return DefenderTopic(levels[2], levels[5]) if is_report else None


def _parse_job(levels: list[str]) -> JobTopic | None:
    request = levels[4:]
    is_request = request in (["get"], ["start-next"]) or (
        len(request) == 2 and request[0] != "" and request[1] in ("get", "update")
    )
    return JobTopic(levels[2], "/".join(request)) if is_request else None


def _parse_command(levels: list[str]) -> CommandTopic | None:
    is_answer = len(levels) == 8 and levels[4] == "executions" and levels[6:] == ["response", "json"]
    return CommandTopic(levels[3], levels[5]) if is_answer and is_thing_name(levels[3]) else None


# Who reads the topics below `$aws/things/THING`, by their next level.
_OF_THINGS: Final[Mapping[str, Callable[[list[str]], DeviceTopic | None]]] = {
    "shadow": _parse_shadow,
    "defender": _parse_report,
    "jobs": _parse_job,
}


def may_publish(thing_name: str, topic: str) -> bool:
    """Tell whether a thing's own device may publish on `topic`: its requests and its telemetry, and nothing else.

    The broker's access list says the same in its own language.
    """
    found = parse(topic)
    return found is not None and found.thing_name == thing_name


def may_subscribe(thing_name: str, topic_filter: str) -> bool:
    """Tell whether a thing's own device has reason to subscribe to `topic_filter`: it reaches its own topics only.

    The broker grants any subscription; what the access list does not let a device read is never delivered.
    """
    own = (
        f"$aws/things/{thing_name}/#",
        f"$aws/commands/things/{thing_name}/#",
        f"telemetry/{thing_name}/#",
    )
    return any(covers(each, topic_filter) for each in own)


def publishing_problem(topic: str) -> str:
    """Return why nothing can be published on `topic`, '' if something can; AWS IoT's bounds, and MQTT's own."""
    if not 1 <= len(topic.encode()) <= TOPIC_BYTES_MAX:
        return f"a topic has 1 to {TOPIC_BYTES_MAX} bytes"
    if "+" in topic or "#" in topic:
        return "a topic to publish on has no wildcards (+ or #)"
    if not is_sendable(topic):
        return "a topic has no control characters, and nothing that is no character"
    # AWS IoT does not count the levels of its own topics, which are as deep as they must be.
    if not is_reserved(topic) and topic.count("/") > TOPIC_SLASHES_MAX:
        return f"a topic has at most {TOPIC_SLASHES_MAX} slashes"
    return ""


def is_sendable(text: str) -> bool:
    """Tell whether the broker takes a text, in a topic or a property; for any other it ends the sender's connection."""
    return _UNSENDABLE.search(text) is None


def is_reserved(topic: str) -> bool:
    """Tell whether the meaning of a topic is the platform's: only what it defines may be published there."""
    return topic.startswith("$") or topic.partition("/")[0] == _PLATFORM_ROOT


def shadow_prefix(thing_name: str, shadow_name: str = "") -> str:
    """Return the topic under which requests and answers of one shadow stand, without a slash at its end."""
    classic = f"$aws/things/{thing_name}/shadow"
    return f"{classic}/name/{shadow_name}" if shadow_name else classic


def delta_topic(thing_name: str, shadow_name: str = "") -> str:
    """Return the topic on which one shadow's delta is published."""
    return f"{shadow_prefix(thing_name, shadow_name)}/update/delta"


def hears_delta(topic_filter: str, thing_name: str) -> bool:
    """Tell whether a subscription receives the delta of any shadow that a thing has or could have."""
    levels = topic_filter.split("/")
    named = levels[5] if len(levels) > 5 and levels[5] not in ("+", "#") else "any"
    return any(matches(topic_filter, delta_topic(thing_name, name)) for name in ("", named))


def defender_topic(thing_name: str, style: str) -> str:
    """Return the topic on which a thing reports its metrics; its answers stand below it."""
    return f"$aws/things/{thing_name}/defender/metrics/{style}"


def jobs_prefix(thing_name: str) -> str:
    """Return the topic under which a thing's jobs stand, without a slash at its end."""
    return f"$aws/things/{thing_name}/jobs"


def command_topic(thing_name: str, execution_id: str) -> str:
    """Return the topic under which one execution of a command stands, without a slash at its end."""
    return f"$aws/commands/things/{thing_name}/executions/{execution_id}"


def hears_commands(topic_filter: str, thing_name: str) -> bool:
    """Tell whether a subscription receives commands to a thing, in one of their formats at least."""
    base = f"{command_topic(thing_name, 'any')}/request"
    return any(matches(topic_filter, each) for each in (base, f"{base}/json", f"{base}/cbor"))


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


def covers(granted: str, topic_filter: str) -> bool:
    """Tell whether the filter `granted` matches every topic that `topic_filter` matches.

    Shared subscriptions are covered by nothing: the broker never delivers a `$` topic to one.
    """
    allowed, levels = granted.split("/"), topic_filter.split("/")
    if allowed[0] in ("+", "#") and levels[0].startswith("$"):
        return False
    for position, level in enumerate(allowed):
        if level == "#":
            return True
        if position >= len(levels) or levels[position] == "#" or level not in ("+", levels[position]):
            return False
    return len(allowed) == len(levels)
