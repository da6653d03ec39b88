"""Between what an operator types or reads and the documents of the wire: values, durations, shadows field by field."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from twinfleet.errors import UsageFault

_DURATION: Final = re.compile(r"([0-9]{1,9})(s|m|h|d)?")
_UNIT_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_ABSENT: Final = object()


def parse_duration_s(text: str) -> int:
    """Return the whole seconds that `10s`, `5m`, `2h`, `1d` or a plain number mean."""
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise UsageFault(f"{text!r} is no duration; write for example 10s, 5m or 1h")
    return int(found.group(1)) * _UNIT_S[found.group(2) or "s"]


def parse_attributes(pairs: Sequence[str]) -> dict[str, str]:
    """Return the attributes written as `key=value`."""
    attributes: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise UsageFault(f"{pair!r} is no attribute; write --attribute KEY=VALUE")
        if key in attributes:
            raise UsageFault(f"attribute {key!r} is given twice; keep one")
        attributes[key] = value
    return attributes


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """Return the object that assignments like `set_point=21.5` and `mode.night=true` describe.

    A value is JSON where it can be read so, else text; dots in a name make objects in objects.
    """
    desired: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        path = name.split(".")
        if not equals or "" in path:
            raise UsageFault(f"{assignment!r} sets nothing; write FIELD=VALUE, for example set_point=21.5")
        place: Any = desired
        for step in path[:-1]:
            place = place.setdefault(step, {}) if isinstance(place, dict) else None
        if not isinstance(place, dict) or path[-1] in place:
            raise UsageFault(f"{name!r} is set twice, or as a value and as an object; keep one")
        place[path[-1]] = _value(value)
    return desired


def _value(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


def flatten(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Give each value of a JSON tree with its dotted path; lists and empty objects are values."""
    if isinstance(tree, Mapping) and (tree or not path):
        for key, value in tree.items():
            yield from flatten(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, tree


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return, one line each, what differs between the desired and reported sections of two shadow documents."""
    lines = []
    for section in ("desired", "reported"):
        old = dict(flatten(before.get("state", {}).get(section, {})))
        new = dict(flatten(after.get("state", {}).get(section, {})))
        for path in [*new, *(path for path in old if path not in new)]:
            was, now = old.get(path, _ABSENT), new.get(path, _ABSENT)
            if was is _ABSENT:
                lines.append(f"{section}.{path} = {compact(now)}")
            elif now is _ABSENT:
                lines.append(f"{section}.{path} removed (was {compact(was)})")
            # As JSON, because there true is not 1.
            elif compact(was) != compact(now):
                lines.append(f"{section}.{path} = {compact(now)} (was {compact(was)})")
    return lines


def shadow_rows(document: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return a row per field of a shadow document: path, desired, reported, when reported (seconds), differs."""
    state, metadata = document.get("state", {}), document.get("metadata", {})
    desired, reported = (dict(flatten(state.get(section, {}))) for section in ("desired", "reported"))
    stamps = dict(flatten(metadata.get("reported", {})))
    delta = [path for path, _ in flatten(state.get("delta", {}))]
    rows: list[tuple[str, ...]] = []
    for path in dict.fromkeys([*desired, *reported]):
        differs = any(path == other or path.startswith(f"{other}.") for other in delta)
        rows.append(
            (
                path,
                compact(desired[path]) if path in desired else "-",
                compact(reported[path]) if path in reported else "-",
                str(stamps.get(f"{path}.timestamp", "-")),
                "*" if differs else "",
            )
        )
    return rows


def described_shadow(shadow: Mapping[str, Any]) -> dict[str, Any]:
    """Return a shadow of a twin's description as the document that `shadow_rows` reads."""
    state = {section: shadow[section] for section in ("desired", "reported", "delta") if section in shadow}
    return {"state": state, "metadata": shadow.get("metadata", {})}


def connectivity_words(known: Mapping[str, Any] | None) -> tuple[str, int | None]:
    """Return in words whether a device is connected, and since when (seconds; None where that is not known)."""
    if known is None:
        return "never connected", None
    since_s = known["timestamp"] // 1000 if known["timestamp"] is not None else None
    if known["connected"]:
        return "connected", since_s
    reason = known["disconnect_reason"]
    return (f"disconnected ({reason.lower().replace('_', ' ')})" if reason else "disconnected"), since_s


def compact(value: Any) -> str:
    """Return a value as JSON on one line."""
    return msgspec.json.encode(value).decode()
