"""From a scenario file to a `Scenario`: every word known, every value of its type, every reference resolved.

`scenario_form` has the words; here is what they mean together. All mistakes are found at once, each at its place in its
own file. A word that this version does not know is refused, never ignored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import psutil

from scenarios.errors import Problem, ScenarioInvalid
from scenarios.layers import MATRIX, cells_of, included, overridden
from scenarios.metrics import CATALOGUE, Comparison, Condition, split_label
from scenarios.model_files import is_model_file, load_model
from scenarios.scenario_form import SCENARIO_FORM
from scenarios.source import Item, Source, entries_of, parse_yaml, read_yaml
from scenarios.spec import (
    DEFAULT_START_S,
    AbortRule,
    AnyFault,
    Assertion,
    ChoiceSpec,
    ClockSpec,
    DeviceSpec,
    GroupSpec,
    Scenario,
    SetDesired,
    Stage,
    Step,
    Threshold,
    WaitFor,
    WireSpec,
)
from scenarios.troubles import fault_of
from scenarios.wire_words import NEEDS_CLOCK
from scenarios.workloads import group_of
from twins.errors import ModelError, ModelInvalid
from twins.errors import Path as Steps
from twins.forms import Notes, described
from twins.model import DeviceModel, Field, Group
from twins.model_reading import API_VERSION, KIND, read_model
from twins.sharding import NamePattern, is_thing_name
from twins.shipped import MODELS, model_named
from twins.words import nearest, one_of

# Time stamps of twins are 32 bits of seconds.
_TIME_MAX_S: Final = 2**32 - 1
# What a simulated twin takes at most, by the columns of its table.
TWIN_BYTES: Final = 150
_DEFAULT_MODEL: Final = "thermostat"
# Where neither the scenario nor the model says.
_REPORT_EVERY_S: Final = 10


def load_scenario(file: Path, overrides: Sequence[str] = ()) -> Scenario:
    """Return the scenario of a file, with values set as `KEY=VALUE`; ScenarioInvalid holds every mistake in it.

    A file with a matrix has several: ScenarioInvalid, unless the overrides leave one.
    """
    return _only(load_scenarios(file, overrides))


def load_scenarios(file: Path, overrides: Sequence[str] = ()) -> tuple[Scenario, ...]:
    """Return a scenario for each cell of a file's matrix, one without; ScenarioInvalid holds every mistake in it."""
    return _scenarios(read_yaml(file), overrides)


def parse_scenario(text: str, file: str = "scenario.yaml", overrides: Sequence[str] = ()) -> Scenario:
    """Return the scenario that stands in `text`; mistakes name `file`."""
    return _only(parse_scenarios(text, file, overrides))


def parse_scenarios(
    text: str, file: str = "scenario.yaml", overrides: Sequence[str] = ()
) -> tuple[Scenario, ...]:
    """Return a scenario for each cell of the matrix that stands in `text`, one without."""
    return _scenarios(parse_yaml(text, file), overrides)


def reseeded(scenario: Scenario, seed: int | None) -> Scenario:
    """Return the scenario with another seed, or the same one where `seed` is None."""
    return scenario if seed is None else dataclasses.replace(scenario, seed=seed)


def _only(scenarios: tuple[Scenario, ...]) -> Scenario:
    if len(scenarios) == 1:
        return scenarios[0]
    keys = ", ".join(scenarios[0].cell)
    text = f"has {len(scenarios)} cells, and one scenario is asked for; set one of each: {keys}"
    raise ScenarioInvalid([Problem(scenarios[0].file, 1, 1, MATRIX, text)])


def _scenarios(root: Item, overrides: Sequence[str]) -> tuple[Scenario, ...]:
    source = root.source
    root.blame_repeated_keys()
    whole = overridden(included(root), overrides)
    plain, cells = cells_of(whole, overrides)
    source.refuse_if_wrong()
    found: list[Scenario] = []
    problems: list[Problem] = []
    for cell in cells:
        setting = [f"{key}={value}" for key, value in cell.items()]
        item = overridden(plain, setting)
        mine = Source(source.file)
        mine.problems.extend(source.problems)
        source.problems.clear()
        try:
            scenario = _Reader(Item(mine, item.node, "")).scenario()
        except ScenarioInvalid as error:
            problems.extend(error.problems)
            continue
        found.append(dataclasses.replace(scenario, overrides=(*overrides, *setting), cell=cell))
    if problems:
        raise ScenarioInvalid(list(dict.fromkeys(problems)))
    return tuple(found)


class _Reader:
    """What has been understood of one file so far, for what refers to it."""

    def __init__(self, root: Item) -> None:
        self.root = root
        self.notes = Notes()
        self.values: Mapping[str, Any] = {}
        self.patterns: dict[str, tuple[NamePattern, int]] = {}
        self.groups: dict[str, Group] = {}
        self.devices: dict[str, str] = {}
        self.fault_names: list[str] = []
        self.duration_s = _TIME_MAX_S
        self.clock = ClockSpec()

    def scenario(self) -> Scenario:
        """Return the scenario, or raise all mistakes."""
        data = self.root.plain()
        values = self.values = SCENARIO_FORM.read(data, (), self.notes)
        metadata = values["metadata"]
        self.clock = self._clock(values["clock"])
        self.path = values["path"]
        start_s = self._start(values["start"])
        stages = values["stages"]
        self.duration_s = self._duration(values["duration"], stages)
        if values["warmup"] >= self.duration_s:
            self._blame(("warmup",), f"must be shorter than the scenario ({self.duration_s} s)")
        groups = tuple(self._group(each, ("groups", i)) for i, each in enumerate(values["groups"]))
        if stages and not groups and "groups" not in data:
            self._blame(("stages",), "there is no group whose devices could join")
        devices = tuple(self._device(each, ("devices", i)) for i, each in enumerate(values["devices"]))
        steps = [step for i, each in enumerate(values["steps"]) if (step := self._step(each, ("steps", i)))]
        scenario = Scenario(
            name=metadata["name"],
            description=metadata["description"],
            labels=metadata["labels"] or {},
            file=self.root.source.file,
            seed=values["seed"],
            start_s=start_s,
            clock=self.clock,
            duration_s=self.duration_s,
            warmup_s=values["warmup"],
            groups=groups,
            wire=values["wire"] or WireSpec(),
            devices=devices,
            # A stable sort: steps of one time stay in the order of the file.
            steps=tuple(sorted(steps, key=lambda step: step.at_s)),
            faults=self._faults(values["faults"]),
            checks=tuple(dict.fromkeys(values["checks"])),
            thresholds=self._thresholds(values["thresholds"] or {}),
            assertions=self._assertions(values["assertions"]),
            stages=stages,
            abort_on=self._abort_rules(values["abort_on"]),
        )
        if start_s + self.duration_s > _TIME_MAX_S and not self.notes.mistakes:
            self._blame((), "start + duration lies after the year 2106, the end of 32-bit time stamps")
        self.root.blame_all(self.notes.mistakes)
        self.root.source.refuse_if_wrong()
        return scenario

    def _blame(self, path: Steps, text: str) -> None:
        self.notes.blame(path, text)

    def _clock(self, values: Mapping[str, Any] | None) -> ClockSpec:
        if values is None:
            return ClockSpec()
        mode, speed = values["mode"], values["speed"]
        if (speed is not None) != (mode == "accelerated") and not self.notes.has_below(("clock",)):
            self._blame(("clock",), "'speed' belongs to mode accelerated, and to no other")
        if mode == "accelerated":
            return ClockSpec("accelerated", float(speed or 1.0))
        return ClockSpec("realtime", 1.0) if mode == "realtime" else ClockSpec()

    def _start(self, text: str | None) -> int:
        if not text:
            return DEFAULT_START_S
        try:
            instant = datetime.fromisoformat(text)
        except ValueError:
            self._blame(("start",), f"must be an instant like 2026-01-01T00:00:00Z, not {described(text)}")
            return DEFAULT_START_S
        seconds = instant.replace(tzinfo=instant.tzinfo or UTC).timestamp()
        if seconds != int(seconds) or not 0 <= seconds <= _TIME_MAX_S:
            self._blame(("start",), "must be a whole second between the years 1970 and 2106")
            return DEFAULT_START_S
        return int(seconds)

    def _duration(self, seconds: int | None, stages: Sequence[Stage]) -> int:
        # With a wrong duration no step would lie before the end, and that is no mistake of theirs.
        if self.notes.has_below(("duration",)) or self.notes.has_below(("stages",)):
            return _TIME_MAX_S
        stages_s = sum(stage.duration_s for stage in stages)
        if seconds is None:
            is_mistyped = any(
                nearest(str(each.path[0]), ["duration"]) for each in self.notes.mistakes if each.path
            )
            if not stages and not is_mistyped:
                self._blame(
                    ("duration",), "is missing, and there are no stages that would say how long it lasts"
                )
            return stages_s or _TIME_MAX_S
        if stages_s > seconds:
            self._blame(("stages",), f"take {stages_s:,} s, and the scenario only {seconds:,} s")
        if seconds > _TIME_MAX_S:
            self._blame(("duration",), "lies beyond the end of 32-bit time stamps")
            return _TIME_MAX_S
        return seconds

    # Who takes part

    def _group(self, values: Mapping[str, Any], path: Steps) -> GroupSpec:
        is_sound = not self.notes.has_below(path)
        name = values["name"]
        model = self._group_model(values["model"], (*path, "model"), name)
        report_every_s = (
            values["report_every"] or (model.reporting.every_s if model else 0) or _REPORT_EVERY_S
        )
        attributes: dict[str, ChoiceSpec] = {}
        for attribute, (choices, weights) in (values["attributes"] or {}).items():
            attributes[attribute] = ChoiceSpec(choices, tuple(map(float, weights)))
            if weights and len(weights) != len(choices):
                text = f"{len(weights)} weights for {len(choices)} choices; give one for each"
                self._blame((*path, "attributes", attribute), text)
                is_sound = False
        group = GroupSpec(
            name,
            model or model_named(_DEFAULT_MODEL),
            int(values["count"]),
            values["thing_name"] or f"{name}-{{i:06d}}",
            int(report_every_s),
            attributes,
            values["network"],
            values["path"] or self.path,
        )
        if group.path == "wire" and self.clock.speed is None:
            self._blame((*path, "path"), NEEDS_CLOCK)
        if name and name in self.patterns:
            self._blame(path, f"another group is named {name!r} already")
        if model is not None and is_sound and self._fits(group, path):
            self._check_group(group, path)
        return group

    def _fits(self, group: GroupSpec, path: Steps) -> bool:
        needed_bytes = TWIN_BYTES * (group.count + sum(others for _, others in self.patterns.values()))
        memory_bytes = psutil.virtual_memory().total
        if needed_bytes <= memory_bytes:
            return True
        needed, present = (f"{size / 1e9:,.1f} GB" for size in (needed_bytes, memory_bytes))
        self._blame(
            (*path, "count"),
            f"all groups up to this one need {needed} ({TWIN_BYTES} bytes a device), "
            f"this machine has {present} of memory; take fewer devices, or a larger machine",
        )
        return False

    def _check_group(self, group: GroupSpec, path: Steps) -> None:
        try:
            made = group_of(group, seed=0, start_s=0)
            pattern = made.pattern
        except ModelError as error:
            self._blame(path, str(error))
            return
        for other, (other_pattern, other_count) in self.patterns.items():
            mine = _index(other_pattern, other_count, pattern.name(0))
            theirs = _index(pattern, group.count, other_pattern.name(0))
            if other != group.name and (mine is not None or theirs is not None):
                self._blame(path, f"its thing names are also those of group {other!r}")
        self.patterns[group.name] = (pattern, group.count)
        self.groups[group.name] = made

    def _group_model(self, given: Any, path: Steps, group: str) -> DeviceModel | None:
        """Return a shipped model, that of a file whose path is relative to the scenario's, or one written here."""
        if isinstance(given, Mapping):
            head = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": group.lower()}}
            try:
                return read_model({**head, **given})
            except ModelInvalid as error:
                for mistake in error.mistakes:
                    self.notes.blame((*path, *mistake.path), mistake.text, is_of_key=mistake.is_of_key)
                return None
        if not is_model_file(given):
            return self._shipped(given, path)
        try:
            return load_model(self._folder(path) / given)[0]
        except ScenarioInvalid as error:
            self.root.source.problems.extend(error.problems)
            return None

    def _folder(self, path: Steps) -> Path:
        """Return where the file lies in which the value of a path stands; what is set beside it, counts as its own."""
        node = self.root.node
        for step in path:
            node = node.value[step] if isinstance(step, int) else entries_of(node)[step]
        name = Path(str(node.start_mark.name))
        return (name if name.is_file() else Path(self.root.source.file)).parent

    def _shipped(self, name: str, path: Steps) -> DeviceModel | None:
        if name in MODELS:
            return model_named(name)
        if name:
            known = f"{nearest(name, MODELS)}; models: {', '.join(sorted(MODELS))}"
            self._blame(path, f"there is no device model {name!r}{known}")
        return None

    def _device(self, values: Mapping[str, Any], path: Steps) -> DeviceSpec:
        self._shipped(values["model"], (*path, "model"))
        device = DeviceSpec(
            name=values["name"],
            thing_name=values["thing_name"] or values["name"],
            model=values["model"] if values["model"] in MODELS else _DEFAULT_MODEL,
            report_every_s=values["report_every"],
            attributes=values["attributes"] or {},
        )
        if not device.name:
            return device
        if not is_thing_name(device.thing_name):
            self._blame(path, f"{device.thing_name!r} looks like the id of a certificate; name it otherwise")
        if device.name in self.devices or device.thing_name in self.devices.values():
            self._blame(path, f"another device is named {device.thing_name!r} already")
        for group, (pattern, count) in self.patterns.items():
            if _index(pattern, count, device.thing_name) is not None:
                self._blame(path, f"{device.thing_name!r} is also a thing of group {group!r}")
        self.devices[device.name] = device.thing_name
        return device

    # What is done, and what goes wrong

    def _step(self, values: Mapping[str, Any], path: Steps) -> Step | None:
        is_sound = not self.notes.has_below(path)
        if values["at"] >= self.duration_s:
            self._blame((*path, "at"), f"lies not before the end of the scenario ({self.duration_s} s)")
        set_desired, wait_for = values["set_desired"], values["wait_for"]
        if (set_desired is None) == (wait_for is None):
            # A mistyped action has been named already.
            if is_sound:
                self._blame(path, "needs exactly one of set_desired and wait_for")
            return None
        action = (
            self._wait_for(wait_for, (*path, "wait_for"))
            if set_desired is None
            else self._set_desired(set_desired, (*path, "set_desired"))
        )
        return None if action is None else Step(values["at"], action)

    def _set_desired(self, values: Mapping[str, Any], path: Steps) -> SetDesired | None:
        group, thing = values["group"], values["thing"]
        if (group is None) == (thing is None):
            self._blame(path, "needs exactly one of group and thing")
        state = self._state(values["state"], (*path, "state"))
        if group is not None:
            if group in self.groups:
                self._check_settable(state, self.groups[group].model, (*path, "state"))
            elif not self._is_of_broken_group(group):
                self._blame((*path, "group"), f"there is no group {group!r}{nearest(group, self.groups)}")
        return SetDesired(state, group, self._thing(thing, (*path, "thing")))

    def _is_of_broken_group(self, name: str) -> bool:
        """Tell whether a group of that name stands there that was not understood, which has been told."""
        return any(each["name"] == name for each in self.values["groups"])

    def _wait_for(self, values: Mapping[str, Any], path: Steps) -> WaitFor | None:
        if values["reported"] is None and values["delta"] is None:
            if not self.notes.has_below(path):
                self._blame(path, "needs a condition: reported: {field: value}, or delta: empty, or both")
            return None
        reported = values["reported"]
        return WaitFor(
            thing_name=self._known_device(values["thing"], (*path, "thing")) or "",
            reported={} if reported is None else self._state(reported, (*path, "reported")),
            is_delta_empty=values["delta"] is not None,
            timeout_s=values["timeout"],
        )

    def _state(self, value: Any, path: Steps) -> dict[str, Any]:
        if isinstance(value, dict) and value:
            return value
        if not self.notes.has_below(path):
            self._blame(path, f"must be a mapping of fields to values, not {described(value)}")
        return {}

    def _known_device(self, name: str, path: Steps) -> str | None:
        if name in self.devices:
            return self.devices[name]
        if name in self.devices.values():
            return name
        if name:
            advice = nearest(name, self.devices)
            self._blame(path, f"there is no real device {name!r} under devices{advice}")
        return None

    def _thing(self, name: str | None, path: Steps) -> str | None:
        if name is None:
            return None
        if any(_index(pattern, count, name) is not None for pattern, count in self.patterns.values()):
            return name
        return self._known_device(name, path)

    def _check_settable(self, state: Mapping[str, Any], model: DeviceModel, path: Steps) -> None:
        """Note every value that the devices of a group would not obey, or not exactly."""
        settable = {field.name: field for field in model.fields if field.is_settable}
        for name, value in state.items():
            field = settable.get(name)
            if field is not None:
                self._check_value(value, field, (*path, name))
                continue
            known = ", ".join(settable) or "none"
            self._blame(
                (*path, name),
                f"devices of model {model.name!r} obey no {name!r}{nearest(name, settable)}; settable: {known}",
            )

    def _check_value(self, value: Any, field: Field, path: Steps) -> None:
        is_whole = field.column_dtype.kind != "f"
        found = described(value)
        if field.dtype == "choice":
            if value not in field.choices:
                self._blame(path, f"{field.name} must be {one_of(field.choices)}, not {found}")
        elif field.dtype == "bool":
            if not isinstance(value, bool):
                self._blame(path, f"{field.name} must be true or false, not {found}")
        elif isinstance(value, bool) or not isinstance(value, int if is_whole else (int, float)):
            self._blame(path, f"{field.name} must be a {'whole ' if is_whole else ''}number, not {found}")
        elif not field.minimum <= value <= field.maximum:
            bounds = f"from {field.minimum:g} to {field.maximum:g} {field.unit}"
            self._blame(path, f"{field.name} must be {bounds}, not {value:g}")
        elif not is_whole and round(value, field.decimals) != value:
            # A column keeps no more of it, and shows it rounded.
            self._blame(path, f"{field.name} has {field.decimals} decimals at most, not {found}")

    def _faults(self, listed: Sequence[Mapping[str, Any] | None]) -> tuple[AnyFault, ...]:
        found: list[AnyFault] = []
        for position, values in enumerate(listed):
            path: Steps = ("faults", position)
            if values is None or self.notes.has_below(path):
                continue
            if values["at"] >= self.duration_s:
                self._blame((*path, "at"), f"lies not before the end of the scenario ({self.duration_s} s)")
            if values["name"] in self.fault_names:
                self._blame((*path, "name"), f"another fault is named {values['name']!r} already")
            self.fault_names.append(values["name"])
            spec = fault_of(values, self.groups, path, self.notes)
            if spec is not None:
                found.append(spec)
        return tuple(found)

    # What is judged

    def _thresholds(self, listed: Mapping[str, Sequence[str]]) -> tuple[Threshold, ...]:
        return tuple(
            Threshold(metric, condition)
            for metric, conditions in listed.items()
            for i, text in enumerate(conditions)
            if (condition := self._condition(metric, text, ("thresholds", metric), (i,))) is not None
        )

    def _abort_rules(self, listed: Sequence[Mapping[str, Any]]) -> tuple[AbortRule, ...]:
        rules = []
        for i, values in enumerate(listed):
            path: Steps = ("abort_on", i)
            metric = values["metric"]
            if self.notes.has_below(path):
                continue
            condition = self._condition(metric, values["condition"], path, ("condition",))
            if condition is not None:
                rules.append(AbortRule(metric, condition, values["for"]))
        return tuple(rules)

    def _condition(self, name: str, text: str, path: Steps, below: Steps) -> Condition | None:
        """Return a condition on a metric; the metric's mistakes are noted at `path`, once, its own below that."""
        metric, label, value = split_label(name)
        known = len(self.notes.mistakes)
        if metric not in CATALOGUE:
            advice = nearest(metric, CATALOGUE) or f"; metrics: {', '.join(CATALOGUE)}"
            self._once(path, f"unknown metric{advice}")
        elif label and label != CATALOGUE[metric].label:
            has = f"it has {CATALOGUE[metric].label!r}" if CATALOGUE[metric].label else "it has none"
            self._once(path, f"{metric} has no label {label!r}; {has}")
        elif label:
            names = self.fault_names if label == "fault" else list(self.groups)
            if value not in names:
                self._once(path, f"there is no {label} {value!r}{nearest(value, names)}")
        elif metric == "tick_lag" and self.clock.speed is None:
            self._once(path, "is never measured with clock mode asap, where no tick has an intended time")
        if len(self.notes.mistakes) > known or not text or metric not in CATALOGUE:
            return None
        try:
            return Condition.parse(text, CATALOGUE[metric])
        except ValueError as error:
            self._blame((*path, *below), str(error))
            return None

    def _once(self, path: Steps, text: str) -> None:
        if not any(each.path == path and each.text == text for each in self.notes.mistakes):
            self._blame(path, text)

    def _assertions(self, listed: Sequence[Mapping[str, Any]]) -> tuple[Assertion, ...]:
        names: list[str] = []
        found = []
        for i, values in enumerate(listed):
            name = values["name"]
            if name and name in names:
                self._blame(("assertions", i, "name"), f"another assertion is named {name!r} already")
            names.append(name)
            expect = self._expectation(values["expect"], ("assertions", i, "expect"))
            found.append(Assertion(name, values["sql"], expect, values["within"]))
        return tuple(found)

    def _expectation(self, value: Any, path: Steps) -> Comparison | str | int | float | bool | None:
        if isinstance(value, (list, dict)):
            self._blame(path, f"must be one value or a comparison like '> 0', not {described(value)}")
            return None
        if isinstance(value, str) and value.lstrip()[:1] in ("<", ">", "=", "!"):
            try:
                return Comparison.parse(value)
            except ValueError as error:
                self._blame(path, str(error))
        return value  # type: ignore[no-any-return]  # a scalar: anything else was refused above


def _index(pattern: NamePattern, count: int, thing_name: str) -> int | None:
    index = pattern.index(thing_name)
    return index if index is not None and index < count else None
