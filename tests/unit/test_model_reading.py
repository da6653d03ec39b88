"""Model files: what is understood, every mistake with its path and the nearest word, and the published schema."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from scenarios.errors import Problem, ScenarioInvalid
from scenarios.model_files import is_model_file, load_model, parse_model
from scenarios.source import parse_yaml
from twins import model as models
from twins.errors import ModelError, ModelInvalid, path_text
from twins.model import Connectivity, Constant, DeviceModel, Field, Markov, Start
from twins.model_reading import model_schema, read_model
from twins.model_rules import check_model, generator_word
from twins.shipped import MODELS, model_named, shipped_text

SHIPPED = [name for name in MODELS if name != "untyped"]
FILES = Path(models.__file__).parent / "models"
VALIDATOR = Draft202012Validator(model_schema())
TEXT = """\
apiVersion: twinfleet/v1
kind: DeviceModel
metadata: {name: room, description: a room}
fields:
  - {name: heat, quantity: state, unit: "", dtype: bool, settable: {after: 5s}}
  - {name: mode, quantity: mode, unit: "", dtype: choice, choices: [eco, day, "off"], start: day}
  - name: temperature
    quantity: temperature
    unit: Cel
    minimum: -20
    maximum: 60
    start: {low: 15, high: 20, step: 0.5}
    generator: {random_walk: {toward: "16 + 8 * heat", time_constant: 30m, deviation: 0.3}}
    window: true
  - {name: level, quantity: level, unit: "%EL", dtype: uint8, start: 50, generator: {decay: {rate: 0.1}}}
connectivity: {online: 6h, offline: 300 + 10 * heat}
reporting: {every: 10s, jitter: 2s, dead_bands: {temperature: 0.5, heat: 0}, at_least_every: 1h}
"""
DATA = parse_yaml(TEXT, "room.yaml").plain()

Change = Callable[[dict[str, Any]], object]


def changed(change: Change) -> dict[str, Any]:
    data: dict[str, Any] = copy.deepcopy(DATA)
    change(data)
    return data


def of_field(position: int, **values: Any) -> Change:
    """Return a change of one field; None takes a key away."""

    def change(data: dict[str, Any]) -> None:
        for key, value in values.items():
            data["fields"][position].pop(key, None)
            if value is not None:
                data["fields"][position][key] = value

    return change


def moved_by(position: int, word: str, generator: Any) -> Change:
    return of_field(position, generator={word: generator}, settable=None)


def mistakes(data: Any) -> list[tuple[str, str]]:
    try:
        read_model(data)
    except ModelInvalid as error:
        return [(path_text(mistake.path), mistake.text) for mistake in error.mistakes]
    return []


def test_a_model_file_means_what_it_says() -> None:
    model = parse_model(TEXT)
    assert (model.name, model.description) == ("room", "a room")
    heat, mode, temperature, level = model.fields
    assert (heat.dtype, heat.is_settable, heat.obey_after_s, heat.generator) == (
        "bool",
        True,
        5.0,
        Constant(),
    )
    assert (mode.choices, mode.start) == (("eco", "day", "off"), Start(weights=(0.0, 1.0, 0.0)))
    assert temperature.start == Start(15.0, 20.0, 0.5)
    assert temperature.generator == models.RandomWalk("16 + 8 * heat", 1800.0, "0.3")
    assert (temperature.is_windowed, temperature.decimals) == (True, 2)
    assert (level.minimum, level.maximum, level.start) == (0.0, 255.0, Start(50.0, 50.0))
    assert model.connectivity == Connectivity("21600.0", "300 + 10 * heat")
    assert model.reporting == models.Reporting(10, 2.0, (("temperature", 0.5), ("heat", 0.0)), 3600)
    assert list(VALIDATOR.iter_errors(DATA)) == []


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_model_is_read_without_and_with_places_and_by_its_schema(name: str) -> None:
    model, data = load_model(FILES / f"{name}.yaml")
    assert (model, model.name) == (model_named(name), name)
    assert model.description
    assert list(VALIDATOR.iter_errors(data)) == []
    assert "# Numbers:" in shipped_text(name), "sources of its numbers"
    check_model(model)


def test_there_are_seven_models_and_all_that_this_directory_holds() -> None:
    assert len(SHIPPED) >= 7
    assert {file.stem for file in FILES.iterdir()} == set(SHIPPED)


def test_benches_and_scenarios_find_the_thermostat_as_it_was() -> None:
    fields = [(field.name, field.dtype) for field in model_named("thermostat").fields]
    assert fields == [
        ("temperature", "float32"),
        ("humidity", "float32"),
        ("battery", "float32"),
        ("set_point", "float32"),
        ("firmware_version", "choice"),
        ("uptime", "uint32"),
    ]


def test_a_name_that_is_no_models_gets_the_nearest() -> None:
    with pytest.raises(ModelError, match=r"did you mean 'thermostat'\?; models: air-quality, "):
        model_named("thermostt")
    assert "toaster" not in MODELS
    assert MODELS["untyped"].fields == ()
    assert len(MODELS) == len(list(MODELS))


@pytest.mark.parametrize(
    ("change", "path", "words"),
    [
        (lambda data: data.update(kind="Scenario"), "kind", "must be DeviceModel"),
        (lambda data: data.pop("apiVersion"), "apiVersion", "is missing"),
        (lambda data: data.update(colour="red"), "colour", "unknown key"),
        (lambda data: data.update(reportin={}), "reportin", "did you mean 'reporting'"),
        (lambda data: data["metadata"].update(name="Room 1"), "metadata.name", "small letters"),
        (lambda data: data["metadata"].update(name="untyped"), "metadata.name", "has no model"),
        (lambda data: data.update(fields=[]), "fields", "1 to 15 elements"),
        (lambda data: data.update(fields={"a": 1}), "fields", "must be a list"),
        (of_field(3, name="if"), "fields[3].name", "word of formulas"),
        (of_field(3, name="online"), "fields[3].name", "word of formulas"),
        (of_field(3, name="interpolate"), "fields[3].name", "word of formulas"),
        (of_field(0, name="Heat"), "fields[0].name", "small letters"),
        (of_field(0, name=None), "fields[0].name", "is missing"),
        (of_field(3, name="mode"), "fields[3].name", "another field is named 'mode'"),
        (of_field(2, quantity=None), "fields[2].quantity", "is missing"),
        (of_field(2, unit="°C"), "fields[2].unit", "is written 'Cel' in SenML"),
        (of_field(2, unit="cel"), "fields[2].unit", "is written 'Cel' in SenML"),
        (of_field(2, dtype="flot32"), "fields[2].dtype", "did you mean 'float32'"),
        (of_field(2, minimum=None), "fields[2].minimum", "is missing"),
        (of_field(2, minimum=60), "fields[2].minimum", "not below the maximum"),
        (of_field(2, minimum=float("nan")), "fields[2].minimum", "must be from"),
        (of_field(2, minimum=True), "fields[2].minimum", "must be a number, not true"),
        (of_field(2, maximum=2e7), "fields[2].dtype", "float32 holds -1e+07 to 1e+07"),
        (of_field(2, decimals=6), "fields[2].decimals", "allow 5 decimals at most"),
        (of_field(2, dtype="float16", decimals=2), "fields[2].decimals", "steps of 0.03125 near 60"),
        (of_field(2, dtype="float16", maximum=60000), "fields[2].decimals", "take a larger dtype"),
        (of_field(3, decimals=1), "fields[3].decimals", "belongs to float fields"),
        (of_field(3, maximum=300), "fields[3].dtype", "uint8 holds 0 to 255, not 0 to 300"),
        (of_field(3, maximum=90.5), "fields[3]", "whole numbers"),
        (of_field(0, minimum=0), "fields[0].minimum", "belongs to numbers"),
        (of_field(0, window=True), "fields[0].window", "statistics need numbers"),
        (of_field(1, choices=None), "fields[1].choices", "a field of dtype choice"),
        (of_field(0, choices=["a"]), "fields[0].choices", "a field of dtype choice"),
        (of_field(1, choices=["day", "day"]), "fields[1].choices", "must differ"),
        (of_field(1, choices=[True, "day"]), "fields[1].choices[0]", "put it in quotes"),
        (of_field(1, start="daz"), "fields[1].start", "did you mean 'day'"),
        (of_field(1, start=3), "fields[1].start", "must be a choice"),
        (of_field(1, start={"weights": {"day": -1}}), "fields[1].start.weights.day", "must be from 0"),
        (of_field(1, start={"weights": {"eco": 0}}), "fields[1].start.weights", "not all 0"),
        (of_field(1, start={"weights": {"dya": 1}}), "fields[1].start.weights.dya", "did you mean 'day'"),
        (of_field(0, start=0.5), "fields[0].start", "must be true, false"),
        (of_field(2, start={"low": 20, "high": 15}), "fields[2].start", "the lower bound first"),
        (of_field(2, start={"low": 20}), "fields[2].start.high", "is missing"),
        (of_field(2, start={"low": 15, "high": 20, "step": 9}), "fields[2].start.step", "from 0 to 5, not 9"),
        (of_field(2, start=61), "fields[2].start", "within -20 to 60"),
        (of_field(3, start=0.5), "fields[3].start", "whole numbers"),
        (of_field(2, minimum=5, start=None), "fields[2].start", "0 is not from 5 to 60"),
        (of_field(2, settable=True), "fields[2].settable", "moves by itself (random_walk)"),
        (of_field(0, settable={"afer": "5s"}), "fields[0].settable.afer", "did you mean 'after'"),
        (of_field(0, settable={"after": 5}), "fields[0].settable.after", "must be a duration"),
        (of_field(0, settable="yes"), "fields[0].settable", "must be true, false"),
        (of_field(2, generator="random"), "fields[2].generator", "must be constant"),
        (of_field(2, generator={}), "fields[2].generator", "with one of computed"),
        (of_field(2, generator={"computed": 1, "decay": {}}), "fields[2].generator", "not 2 of them"),
        (of_field(2, generator={"decya": {}}), "fields[2].generator.decya", "did you mean 'decay'"),
        (moved_by(0, "normal", {"mean": 1, "deviation": 1}), "fields[0].generator.normal", "a bool field"),
        (moved_by(1, "computed", "'eco'"), "fields[1].generator.computed", "a choice field"),
        (moved_by(2, "markov", {"a": {"b": 1}}), "fields[2].generator.markov", "a float32 field"),
        (
            moved_by(1, "markov", {"eco": {"dy": 1}}),
            "fields[1].generator.markov.eco.dy",
            "did you mean 'day'",
        ),
        (
            moved_by(1, "markov", {"eco": {"eco": 1}}),
            "fields[1].generator.markov.eco",
            "from a state to itself",
        ),
        (moved_by(1, "weighted", {"ecco": 1}), "fields[1].generator.weighted.ecco", "did you mean 'eco'"),
        (moved_by(2, "uniform", {"low": 0}), "fields[2].generator.uniform.high", "is missing"),
        (
            moved_by(2, "uniform", {"low": 0, "high": 61}),
            "fields[2].generator.uniform.high",
            "from -20 to 60",
        ),
        (
            moved_by(2, "normal", {"mean": 0, "deviation": -1}),
            "fields[2].generator.normal.deviation",
            "negative",
        ),
        (moved_by(3, "decay", {"rate": -1}), "fields[3].generator.decay.rate", "negative"),
        (
            moved_by(2, "random_walk", {"toward": 5, "time_constant": "0s"}),
            "fields[2].generator.random_walk.time_constant",
            "longer than 0 s",
        ),
        (
            moved_by(2, "replay", {"values": [1, 99], "step": "1m"}),
            "fields[2].generator.replay.values[1]",
            "from -20 to 60, not 99",
        ),
        (
            moved_by(2, "replay", {"values": [], "step": "1m"}),
            "fields[2].generator.replay.values",
            "1 to 10080",
        ),
        (lambda data: data["connectivity"].pop("offline"), "connectivity.offline", "is missing"),
        (lambda data: data["connectivity"].update(offline="0s"), "connectivity.offline", "longer than 0 s"),
        (lambda data: data["connectivity"].update(online="up"), "connectivity.online", "names 'up'"),
        (lambda data: data["reporting"].update(every="1.5s"), "reporting.every", "whole seconds"),
        (lambda data: data["reporting"].update(jitter="11s"), "reporting.jitter", "from 0 s to the period"),
        (
            lambda data: data["reporting"].update(at_least_every="5s"),
            "reporting.at_least_every",
            "the period",
        ),
        (
            lambda data: data["reporting"].pop("dead_bands"),
            "reporting.at_least_every",
            "belongs to dead bands",
        ),
        (
            lambda data: data["reporting"].update(dead_bands={"temprature": 1}),
            "reporting.dead_bands.temprature",
            "did you mean 'temperature'",
        ),
        (
            lambda data: data["reporting"].update(dead_bands={"heat": 1}),
            "reporting.dead_bands.heat",
            "must be 0 (any difference)",
        ),
        (
            lambda data: data["reporting"].update(dead_bands={"temperature": 80}),
            "reporting.dead_bands.temperature",
            "no two values differ by 80",
        ),
    ],
)
def test_a_mistake_is_told_once_with_its_path(change: Change, path: str, words: str) -> None:
    [(where, text)] = mistakes(changed(change))
    assert where == path
    assert words in text


@pytest.mark.parametrize(
    ("formula", "words"),
    [
        ("temprature + 1", "did you mean 'temperature'"),
        ("outdoor", "there are online, reported, elapsed_s, heat"),
        ("temperature +", "cannot be read"),
        ("mode + 1", "mode is eco, day or off, not a number"),
        ("1 if mode else 0", "mode is not true or false; compare it: mode != 'eco'"),
        ("1 if mode == 'dya' else 0", "did you mean 'day'"),
        ("1 if mode < 'day' else 0", "not a number"),
        ("1 if temperature == 'day' else 0", "stands where a number is needed"),
        ("1 if mode == 3 else 0", "mode can only be compared with 'eco', 'day' or 'off'"),
        ("1 if mode == mode else 0", "can only be compared with"),
        ("1 if temperature else 0", "temperature is not true or false; compare it: temperature != 0"),
        ("1 if temperature + 1 else 0", "a condition is needed"),
        ("'day' if heat else 'eco'", "the text 'day' stands where a number is needed"),
        ("level and heat", "level is not true or false"),
        ("level / (1 - 1)", "divides by 0"),
        ("wave(level, 0)", "wave needs two numbers"),
        ("wave(0, 5)", "the period above 0"),
        ("99", "from -20 to 60 as the field is"),
    ],
)
def test_a_formula_that_cannot_be_carried_out_is_refused(formula: str, words: str) -> None:
    [(path, text)] = mistakes(changed(moved_by(2, "computed", formula)))
    assert path == "fields[2].generator.computed"
    assert words in text


@pytest.mark.parametrize(
    "formula",
    [
        "level",
        "temperature / 2 + heat",
        "20 if mode == 'day' and not heat or online else 15",
        "(mode != 'off') * 5 - reported",
        "elapsed_s / 86400 + 2 * wave(86400, 3600)",
        "interpolate(level, 0, -20, 100, 60)",
        "20 if True else 10",
        "max(0, min(level, 5)) if 0 <= temperature < 30 else abs(temperature)",
    ],
)
def test_a_formula_may_name_any_field_and_what_every_device_has(formula: str) -> None:
    assert mistakes(changed(moved_by(2, "computed", formula))) == []


def test_a_bool_field_needs_a_condition() -> None:
    assert mistakes(changed(moved_by(0, "computed", "temperature > 20"))) == []
    [(_, text)] = mistakes(changed(moved_by(0, "computed", "temperature")))
    assert "is not true or false" in text


def test_states_of_a_bool_field_are_written_as_truth_values() -> None:
    text = TEXT.replace("settable: {after: 5s}", "generator: {markov: {false: {true: 1}, true: {false: 2}}}")
    assert parse_model(text).fields[0].generator == Markov(((0, 1, "1"), (1, 0, "2")))
    weights = changed(of_field(0, start={"weights": {"true": 3, "false": 1}}))
    assert read_model(weights).fields[0].start == Start(weights=(1.0, 3.0))


def test_all_mistakes_are_told_at_once_with_line_and_column() -> None:
    text = (
        TEXT.replace("kind: DeviceModel", "kind: Device")
        .replace("unit: Cel", "unit: celsius")
        .replace("choices: [eco", "chioces: [eco")
        .replace("8 * heat", "8 * heet")
        .replace("jitter: 2s", "jitter: 2s, jitter: 3s")
    )
    with pytest.raises(ScenarioInvalid) as caught:
        parse_model(text, "room.yaml")
    found = {(problem.path, problem.line): problem for problem in caught.value.problems}
    assert set(found) == {
        ("kind", 2),
        ("fields[1].chioces", 6),
        ("fields[1].choices", 6),
        ("fields[2].unit", 9),
        ("fields[2].generator.random_walk.toward", 13),
        ("reporting.jitter", 17),
    }
    place: Problem = found["fields[2].unit", 9]
    assert str(place).startswith("room.yaml:9:11: fields[2].unit: 'celsius' is written 'Cel'")
    assert found["fields[1].chioces", 6].column == TEXT.splitlines()[5].index("choices") + 1


@pytest.mark.parametrize(
    ("data", "path"),
    [(None, ""), ([], ""), ("text", ""), ({}, ""), ({1: 2}, ""), ({"fields": None}, "fields")],
)
def test_what_is_no_model_at_all_is_refused(data: Any, path: str) -> None:
    assert path in {where for where, _ in mistakes(data)}
    assert not VALIDATOR.is_valid(data) if not isinstance(data, Mapping) or 1 not in data else True


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.update(kind="Scenario"),
        lambda data: data.pop("metadata"),
        lambda data: data.update(colour="red"),
        lambda data: data.update(fields=[]),
        lambda data: data.update(fields=data["fields"] * 4),
        of_field(0, name="Heat"),
        of_field(0, name=None),
        of_field(0, quantity=5),
        of_field(2, dtype="double"),
        of_field(2, decimals=1.5),
        of_field(2, decimals=7),
        of_field(1, choices="eco"),
        of_field(1, choices=[1]),
        of_field(2, start={"low": 1}),
        of_field(2, start=[1]),
        of_field(1, start={"weights": {}}),
        of_field(0, settable={"after": "soon"}),
        of_field(0, window="yes"),
        of_field(2, generator="random"),
        of_field(2, generator={}),
        of_field(2, generator={"computed": 1, "uniform": {"low": 1, "high": 2}}),
        moved_by(2, "uniform", {"low": 1}),
        moved_by(2, "computed", ""),
        moved_by(2, "computed", [1]),
        moved_by(1, "markov", {"eco": 5}),
        moved_by(2, "replay", {"values": ["a"], "step": "1s"}),
        lambda data: data.update(connectivity={"online": "1h"}),
        lambda data: data["reporting"].update(every=10),
        lambda data: data["reporting"].update(dead_bands={"heat": -1}),
    ],
)
def test_the_schema_refuses_what_has_another_shape(change: Change) -> None:
    data = changed(change)
    assert not VALIDATOR.is_valid(data)
    assert mistakes(data)


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(model_schema())


def test_the_rules_hold_for_models_that_were_made_in_python() -> None:
    field = Field("Temp", "", "celsius", maximum=10.0, is_windowed=True, start=Start(5.0, 20.0))
    walk = Field("walk", "x", "", "uint8", 0.5, 300.0, generator=models.RandomWalk("Temp", 0.0, "-1"))
    choice = Field("mode", "x", "", "choice", choices=("a", "b"), generator=models.Weighted(("1",)))
    bands = models.Reporting(-1, 5.0, (("mode", 0.0), ("mode", 0.0)))
    model = DeviceModel("Bad", (field, walk, choice), connectivity=Connectivity("-1", "x +"), reporting=bands)
    with pytest.raises(ModelInvalid) as caught:
        check_model(model)
    assert {path_text(mistake.path) for mistake in caught.value.mistakes} == {
        "metadata.name",
        "fields[0].name",
        "fields[0].quantity",
        "fields[0].unit",
        "fields[0].start",
        "fields[1].dtype",
        "fields[1]",
        "fields[1].start",
        "fields[1].generator.random_walk.time_constant",
        "fields[1].generator.random_walk.deviation",
        "fields[2].generator.weighted",
        "connectivity.online",
        "connectivity.offline",
        "reporting.every",
        "reporting.jitter",
        "reporting.dead_bands.mode",
    }
    check_model(DeviceModel("fine", (Field("x", "x", "", maximum=1.0),)))


def test_every_generator_has_a_word_and_a_place_in_the_schema() -> None:
    words = {generator_word(kind) for kind in models.Generator.__args__}
    field = model_schema()["properties"]["fields"]["items"]["properties"]
    [mapping, text] = field["generator"]["anyOf"]
    assert words == set(mapping["properties"]) | set(text["enum"])


@pytest.mark.parametrize(
    ("text", "is_file"),
    [
        ("thermostat", False),
        ("my.yaml", True),
        ("./models/my", True),
        ("a\\b", True),
        ("module:Class", False),
    ],
)
def test_a_path_is_told_from_a_name(text: str, is_file: bool) -> None:
    assert is_model_file(text) is is_file


@pytest.mark.parametrize("document", ["README.md", "docs/models.md"])
def test_models_in_the_documents_are_models(document: str) -> None:
    text = (Path(__file__).parents[2] / document).read_text(encoding="utf-8")
    blocks = [block.split("```")[0] for block in text.split("```yaml\n")[1:]]
    [model] = [block for block in blocks if "kind: DeviceModel" in block]
    parse_model(model, document)
