"""From a scenario file to a `Scenario`: every key known, every value of its type, every reference resolved.

All mistakes are found at once. A word of the scenario language that this version does not have is refused as such,
never ignored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import psutil

from scenarios.errors import ScenarioInvalid
from scenarios.metrics import CATALOGUE, Comparison, Condition, Metric, split_label
from scenarios.model_files import is_model_file, load_model
from scenarios.source import Item, merge_texts, parse_yaml, read_yaml
from scenarios.spec import (
    API_VERSION,
    CHECKS,
    DEFAULT_START_S,
    DEFAULT_TIMEOUT_S,
    Assertion,
    ChoiceSpec,
    ClockSpec,
    DeviceSpec,
    FaultSpec,
    GroupSpec,
    PathKind,
    PlatformFault,
    Scenario,
    SetDesired,
    Step,
    Threshold,
    WaitFor,
    WireSpec,
)
from scenarios.troubles import read_any_fault, read_network
from scenarios.wire_words import NEEDS_CLOCK, read_path, read_wire
from scenarios.workloads import group_of
from twins.errors import ModelError
from twins.model import DeviceModel, Field, Group
from twins.sharding import NamePattern, is_thing_name
from twins.shipped import MODELS, model_named
from twins.words import nearest, one_of

# Words of the language that later versions have.
_LATER_KEYS: Final = ("stages", "abort_on")
_LATER_ACTIONS: Final = ("rollout",)
# Time stamps of twins are 32 bits of seconds.
_TIME_MAX_S: Final = 2**32 - 1
_SEED_MAX: Final = 2**63 - 1
# What a simulated twin takes at most, by the columns of its table.
_TWIN_BYTES: Final = 150
_DEFAULT_MODEL: Final = "thermostat"
# Where neither the scenario nor the model says.
_REPORT_EVERY_S: Final = 10
# A million seconds in one: beyond, pacing is below what a clock can tell.
_SPEED_MAX: Final = 1e6


def load_scenario(file: Path) -> Scenario:
    """Return the scenario of a file; ScenarioInvalid holds every mistake in it."""
    return _Reader(read_yaml(file)).scenario()


def parse_scenario(text: str, file: str = "scenario.yaml") -> Scenario:
    """Return the scenario that stands in `text`; mistakes name `file`."""
    return _Reader(parse_yaml(text, file)).scenario()


class _Reader:
    """What has been understood of one file so far, for what refers to it."""

    def __init__(self, root: Item) -> None:
        self.root = root
        self.patterns: dict[str, tuple[NamePattern, int]] = {}
        self.models: dict[str, DeviceModel] = {}
        self.groups: dict[str, Group] = {}
        self.devices: dict[str, str] = {}
        self.fault_names: list[str] = []
        self.duration_s = 0
        self.clock = ClockSpec()
        self.path: PathKind = "engine"

    def scenario(self) -> Scenario:
        """Return the scenario, or raise all mistakes."""
        top = self.root.entries()
        top.need("apiVersion", lambda item: item.choice([API_VERSION]), "")
        top.need("kind", lambda item: item.choice(["Scenario"]), "")
        name, description, labels = top.need("metadata", _metadata, ("", "", {}))
        seed = top.take("seed", lambda item: int(_whole(item, 0, _SEED_MAX)), 0)
        start_s = top.take("start", _instant, DEFAULT_START_S)
        self.clock = top.take("clock", _clock, ClockSpec())
        self.duration_s = top.need("duration", self._duration, _TIME_MAX_S)
        warmup_s = top.take("warmup", self._warmup, 0)
        self.path = top.take("path", read_path, "engine")
        wire = top.take("wire", read_wire, WireSpec())
        groups = top.take("groups", self._groups, ())
        devices = top.take("devices", self._devices, ())
        scenario = Scenario(
            name=name,
            description=description,
            labels=labels,
            file=self.root.source.file,
            seed=seed,
            start_s=start_s,
            clock=self.clock,
            duration_s=self.duration_s,
            warmup_s=warmup_s,
            groups=groups,
            wire=wire,
            devices=devices,
            # A stable sort: steps of one time stay in the order of the file.
            steps=tuple(sorted(top.take("steps", self._steps, ()), key=lambda step: step.at_s)),
            faults=top.take("faults", self._faults, ()),
            checks=top.take("checks", _checks, ()),
            thresholds=top.take("thresholds", self._thresholds, ()),
            assertions=top.take("assertions", _assertions, ()),
        )
        if start_s + self.duration_s > _TIME_MAX_S and not self.root.source.problems:
            self.root.blame("start + duration lies after the year 2106, the end of 32-bit time stamps")
        top.close(later=_LATER_KEYS)
        self.root.source.refuse_if_wrong()
        return scenario

    def _duration(self, item: Item) -> int:
        problem_count = len(item.source.problems)
        seconds = item.whole_seconds(minimum=1)
        # With a wrong duration no step would lie before the end, and that is no mistake of theirs.
        return seconds if len(item.source.problems) == problem_count else _TIME_MAX_S

    def _warmup(self, item: Item) -> int:
        seconds = item.whole_seconds()
        if seconds >= self.duration_s:
            item.blame("must be shorter than the duration, or nothing is measured")
        return seconds

    def _groups(self, item: Item) -> tuple[GroupSpec, ...]:
        return tuple(self._group(element) for element in item.items())

    def _group(self, item: Item) -> GroupSpec:
        problem_count = len(item.source.problems)
        entries = item.entries()
        name = entries.need("name", _thing_name, "")
        model = entries.take("model", _group_model, None) or model_named(_DEFAULT_MODEL)
        count = entries.need("count", self._count, 1)
        thing_name = entries.take("thing_name", Item.text, f"{name}-{{i:06d}}")
        report_every_s = entries.take(
            "report_every",
            lambda value: value.whole_seconds(minimum=1),
            model.reporting.every_s or _REPORT_EVERY_S,
        )
        attributes = entries.take("attributes", _choices, {})
        network = entries.take("network", read_network, None)
        path = entries.take("path", read_path, self.path)
        entries.close()
        group = GroupSpec(name, model, count, thing_name, report_every_s, attributes, network, path)
        if path == "wire" and self.clock.speed is None:
            item.blame(NEEDS_CLOCK)
        if name in self.patterns:
            item.blame(f"another group is named {name!r} already")
        self._check_group(item, group, is_sound=len(item.source.problems) == problem_count)
        return group

    def _count(self, item: Item) -> int:
        count = int(_whole(item, 1, 2**32 - 1))
        needed_bytes = _TWIN_BYTES * (count + sum(others for _, others in self.patterns.values()))
        memory_bytes = psutil.virtual_memory().total
        if needed_bytes > memory_bytes:
            needed, present = (f"{size / 1e9:,.1f} GB" for size in (needed_bytes, memory_bytes))
            item.blame(
                f"all groups up to this one need {needed} ({_TWIN_BYTES} bytes a device), "
                f"this machine has {present} of memory; take fewer devices, or a larger machine"
            )
            return 1
        return count

    def _check_group(self, item: Item, group: GroupSpec, *, is_sound: bool) -> None:
        try:
            made = group_of(group, seed=0, start_s=0)
            pattern = made.pattern
        except ModelError as error:
            # Else this is a mistake that has been told already.
            if is_sound:
                item.blame(str(error))
            return
        for other, (other_pattern, other_count) in self.patterns.items():
            mine = _index(other_pattern, other_count, pattern.name(0))
            theirs = _index(pattern, group.count, other_pattern.name(0))
            if mine is not None or theirs is not None:
                item.blame(f"its thing names are also those of group {other!r}")
        self.patterns[group.name] = (pattern, group.count)
        self.groups[group.name] = made
        self.models[group.name] = group.model

    def _devices(self, item: Item) -> tuple[DeviceSpec, ...]:
        return tuple(self._device(element) for element in item.items())

    def _device(self, item: Item) -> DeviceSpec:
        entries = item.entries()
        name = entries.need("name", _thing_name, "")
        device = DeviceSpec(
            name=name,
            thing_name=entries.take("thing_name", _thing_name, name),
            model=entries.take("model", _device_model, _DEFAULT_MODEL),
            report_every_s=entries.take("report_every", lambda value: value.duration_s(minimum=0.1), 10.0),
            attributes=entries.take("attributes", merge_texts, {}),
        )
        entries.close(later=("network",))
        if device.name in self.devices or device.thing_name in self.devices.values():
            item.blame(f"another device is named {device.thing_name!r} already")
        for group, (pattern, count) in self.patterns.items():
            if _index(pattern, count, device.thing_name) is not None:
                item.blame(f"{device.thing_name!r} is also a thing of group {group!r}")
        self.devices[device.name] = device.thing_name
        return device

    def _steps(self, item: Item) -> tuple[Step, ...]:
        return tuple(step for element in item.items() if (step := self._step(element)))

    def _faults(self, item: Item) -> tuple[FaultSpec | PlatformFault, ...]:
        found = [spec for element in item.items() if (spec := read_any_fault(element, self.groups))]
        names = self.fault_names = [spec.name for spec in found]
        for name in sorted({name for name in names if names.count(name) > 1}):
            item.blame(f"{names.count(name)} faults are named {name!r}; give each its own name")
        for spec in found:
            if spec.at_s >= self.duration_s:
                item.blame(f"{spec.name!r} begins not before the end of the scenario")
        return tuple(found)

    def _step(self, item: Item) -> Step | None:
        entries = item.entries()
        at_s = entries.need("at", self._step_time, 0)
        given = [key for key in ("set_desired", "wait_for") if key in entries]
        set_desired = entries.take("set_desired", self._set_desired, None)
        wait_for = entries.take("wait_for", self._wait_for, None)
        problem_count = len(item.source.problems)
        entries.close(later=_LATER_ACTIONS)
        # A mistyped action has been named already.
        if len(given) != 1 and len(item.source.problems) == problem_count:
            item.blame("needs exactly one of set_desired and wait_for")
        action = set_desired or wait_for
        return Step(at_s, action) if action else None

    def _step_time(self, item: Item) -> int:
        seconds = item.whole_seconds()
        if seconds >= self.duration_s:
            item.blame(f"lies not before the end of the scenario ({self.duration_s} s)")
        return seconds

    def _set_desired(self, item: Item) -> SetDesired | None:
        entries = item.entries()
        if ("group" in entries) == ("thing" in entries):
            item.blame("needs exactly one of group and thing")
        group = entries.take("group", self._known_group, None)
        thing_name = entries.take("thing", self._known_thing, None)
        state_item: Item | None = entries.need("state", lambda value: value, None)
        entries.close()
        if state_item is None:
            return None
        state = _state(state_item)
        if group is not None:
            _check_settable(state_item, self.models[group])
        return SetDesired(state, group, thing_name)

    def _wait_for(self, item: Item) -> WaitFor | None:
        entries = item.entries()
        if not ("reported" in entries or "delta" in entries):
            item.blame("needs a condition: reported: {field: value}, or delta: empty, or both")
        wait = WaitFor(
            thing_name=entries.need("thing", self._known_device, "") or "",
            reported=entries.take("reported", _state, {}),
            is_delta_empty=entries.take("delta", lambda value: bool(value.choice(["empty"])), False),
            timeout_s=entries.take("timeout", lambda value: value.duration_s(minimum=0.1), DEFAULT_TIMEOUT_S),
        )
        entries.close()
        return wait

    def _known_group(self, item: Item) -> str | None:
        name = item.text()
        if name in self.models:
            return name
        item.blame(f"there is no group {name!r}{nearest(name, self.models)}")
        return None

    def _known_device(self, item: Item) -> str | None:
        name = item.text()
        if name in self.devices:
            return self.devices[name]
        if name in self.devices.values():
            return name
        item.blame(f"there is no real device {name!r} under devices{nearest(name, self.devices)}")
        return None

    def _known_thing(self, item: Item) -> str | None:
        name = item.text()
        if any(_index(pattern, count, name) is not None for pattern, count in self.patterns.values()):
            return name
        return self._known_device(item)

    def _thresholds(self, item: Item) -> tuple[Threshold, ...]:
        thresholds: list[Threshold] = []
        for name, value in item.entries().remaining():
            metric, label, label_value = split_label(name)
            if metric not in CATALOGUE:
                advice = nearest(metric, CATALOGUE) or f"; metrics: {', '.join(CATALOGUE)}"
                value.blame(f"unknown metric{advice}")
                continue
            if label:
                self._check_label(value, CATALOGUE[metric], label, label_value)
            if name == "tick_lag" and self.clock.speed is None:
                value.blame("is never measured with clock mode asap, where no tick has an intended time")
            for element in value.items():
                try:
                    thresholds.append(Threshold(name, Condition.parse(element.text(), CATALOGUE[metric])))
                except ValueError as error:
                    element.blame(str(error))
        return tuple(thresholds)

    def _check_label(self, item: Item, metric: Metric, label: str, value: str) -> None:
        if label != metric.label:
            known = f"it has {metric.label!r}" if metric.label else "it has none"
            item.blame(f"{metric.name} has no label {label!r}; {known}")
        elif value not in self.fault_names:
            item.blame(f"there is no fault {value!r}{nearest(value, self.fault_names)}")


def _metadata(item: Item) -> tuple[str, str, Mapping[str, str]]:
    entries = item.entries()
    name = entries.need("name", Item.text, "")
    description = entries.take("description", Item.text, "")
    labels = entries.take("labels", merge_texts, {})
    entries.close()
    return name, description, labels


def _clock(item: Item) -> ClockSpec:
    entries = item.entries()
    problem_count = len(item.source.problems)
    mode = entries.need("mode", lambda value: value.choice(["asap", "realtime", "accelerated"]), "asap")
    has_speed = "speed" in entries
    speed = entries.take("speed", lambda value: value.number(minimum=0.01, maximum=_SPEED_MAX), 1.0)
    entries.close()
    if has_speed != (mode == "accelerated") and len(item.source.problems) == problem_count:
        item.blame("'speed' belongs to mode accelerated, and to no other")
    if mode == "accelerated":
        return ClockSpec("accelerated", speed)
    return ClockSpec("realtime", 1.0) if mode == "realtime" else ClockSpec()


def _instant(item: Item) -> int:
    text = str(item.plain())
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        item.blame(f"must be an instant like 2026-01-01T00:00:00Z, not {item.describe()}")
        return DEFAULT_START_S
    seconds = instant.replace(tzinfo=instant.tzinfo or UTC).timestamp()
    if seconds != int(seconds) or not 0 <= seconds <= _TIME_MAX_S:
        item.blame("must be a whole second between the years 1970 and 2106")
        return DEFAULT_START_S
    return int(seconds)


def _thing_name(item: Item) -> str:
    name = item.text()
    if name and not is_thing_name(name):
        item.blame(f"{name!r}: 1 to 128 letters, digits, colons, underscores and hyphens are allowed")
        return ""
    return name


def _device_model(item: Item) -> str:
    name = item.text()
    if name and name not in MODELS:
        item.blame(
            f"there is no device model {name!r}{nearest(name, MODELS)}; models: {', '.join(sorted(MODELS))}"
        )
    return name if name in MODELS else _DEFAULT_MODEL


def _group_model(item: Item) -> DeviceModel | None:
    """Return a shipped model, or that of a file whose path is relative to the scenario's."""
    name = item.text()
    if not is_model_file(name):
        return model_named(_device_model(item)) if name else None
    try:
        return load_model(Path(item.source.file).parent / name)[0]
    except ScenarioInvalid as error:
        item.source.problems.extend(error.problems)
        return None


def _whole(item: Item, minimum: int, maximum: int) -> float:
    return item.number(minimum=minimum, maximum=maximum, is_whole=True)


def _choices(item: Item) -> Mapping[str, ChoiceSpec]:
    return {name: _choice(value) for name, value in item.entries().remaining()}


def _choice(item: Item) -> ChoiceSpec:
    entries = item.entries()
    values = entries.need("choice", lambda value: tuple(element.text() for element in value.items()), ())
    weights = entries.take("weights", lambda value: tuple(_weight(element) for element in value.items()), ())
    entries.close()
    if weights and len(weights) != len(values):
        item.blame(f"{len(weights)} weights for {len(values)} choices; give one for each")
    return ChoiceSpec(values, weights)


def _weight(item: Item) -> float:
    return item.number(minimum=0)


def _state(item: Item) -> dict[str, Any]:
    state = item.plain()
    if isinstance(state, dict) and state:
        return state
    item.blame(f"must be a mapping of fields to values, not {item.describe()}")
    return {}


def _check_settable(state: Item, model: DeviceModel) -> None:
    """Note every value that the devices of a group would not obey, or not exactly."""
    if not isinstance(state.plain(), dict):
        return
    settable = {field.name: field for field in model.fields if field.is_settable}
    for name, item in state.entries().remaining():
        field = settable.get(name)
        if field is not None:
            _check_value(item, field)
            continue
        known = ", ".join(settable) or "none"
        item.blame(
            f"devices of model {model.name!r} obey no {name!r}{nearest(name, settable)}; settable: {known}"
        )


def _check_value(item: Item, field: Field) -> None:
    value = item.plain()
    is_whole = field.column_dtype.kind != "f"
    if field.dtype == "choice":
        if value not in field.choices:
            item.blame(f"{field.name} must be {one_of(field.choices)}, not {item.describe()}")
    elif field.dtype == "bool":
        if not isinstance(value, bool):
            item.blame(f"{field.name} must be true or false, not {item.describe()}")
    elif isinstance(value, bool) or not isinstance(value, int if is_whole else (int, float)):
        item.blame(f"{field.name} must be a {'whole ' if is_whole else ''}number, not {item.describe()}")
    elif not field.minimum <= value <= field.maximum:
        item.blame(
            f"{field.name} must be from {field.minimum:g} to {field.maximum:g} {field.unit}, not {value:g}"
        )
    elif not is_whole and round(value, field.decimals) != value:
        # A column keeps no more of it, and shows it rounded.
        item.blame(f"{field.name} has {field.decimals} decimals at most, not {item.describe()}")


def _checks(item: Item) -> tuple[str, ...]:
    return tuple(element.choice(list(CHECKS)) for element in item.items())


def _assertions(item: Item) -> tuple[Assertion, ...]:
    assertions = [_assertion(element) for element in item.items()]
    names: Sequence[str] = [assertion.name for assertion in assertions]
    for name in sorted({name for name in names if names.count(name) > 1}):
        item.blame(f"{names.count(name)} assertions are named {name!r}; give each its own name")
    return tuple(assertions)


def _assertion(item: Item) -> Assertion:
    entries = item.entries()
    assertion = Assertion(
        name=entries.need("name", Item.text, ""),
        sql=entries.need("sql", Item.text, ""),
        expect=entries.need("expect", _expectation, None),
        within_s=entries.take("within", Item.whole_seconds, 0),
    )
    entries.close()
    return assertion


def _expectation(item: Item) -> Comparison | str | int | float | bool | None:
    value = item.plain()
    if isinstance(value, (list, dict)):
        item.blame(f"must be one value or a comparison like '> 0', not {item.describe()}")
        return None
    if isinstance(value, str) and value.lstrip()[:1] in ("<", ">", "=", "!"):
        try:
            return Comparison.parse(value)
        except ValueError as error:
            item.blame(str(error))
    return value  # type: ignore[no-any-return]  # a scalar: anything else was refused above


def _index(pattern: NamePattern, count: int, thing_name: str) -> int | None:
    index = pattern.index(thing_name)
    return index if index is not None and index < count else None


def reseeded(scenario: Scenario, seed: int | None) -> Scenario:
    """Return the scenario with another seed, or the same one where `seed` is None."""
    return scenario if seed is None else dataclasses.replace(scenario, seed=seed)
