"""The scenario language: what is understood, and that every mistake is told with its place."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from scenarios.errors import Problem, ScenarioInvalid
from scenarios.metrics import CATALOGUE, Comparison, Condition
from scenarios.reading import load_scenario, parse_scenario, reseeded
from scenarios.running import on_path
from scenarios.scenario_form import scenario_schema
from scenarios.spec import DEFAULT_START_S, ChoiceSpec, ClockSpec, SetDesired, WaitFor, WireSpec
from scenarios.workloads import groups_of, orders_for, window_end
from twins.messages import TickOrder
from twins.shard import Shard
from twins.shipped import shipped_text

LIBRARY = Path(__file__).parents[2] / "scenarios" / "library"
HEAD = "apiVersion: twinfleet/v1\nkind: Scenario\nmetadata: {name: test}\n"
MODE = (
    '  - {name: mode, quantity: mode, unit: "", dtype: choice, choices: ["off", day, eco], settable: true}\n'
)
GROUP = "groups: [{name: rooms, count: 10}]\n"
DEVICE = "devices: [{name: real-device}]\n"


def problems(text: str) -> list[Problem]:
    with pytest.raises(ScenarioInvalid) as caught:
        parse_scenario(text, "test.yaml")
    return list(caught.value.problems)


def only_problem(text: str) -> Problem:
    found = problems(text)
    assert len(found) == 1, found
    return found[0]


def test_a_scenario_of_few_lines_is_possible() -> None:
    scenario = parse_scenario(HEAD + "duration: 90s\n" + GROUP)
    assert scenario.duration_s == 90
    assert scenario.clock == ClockSpec("asap")
    assert scenario.start_s == DEFAULT_START_S
    assert scenario.groups[0].thing_name == "rooms-{i:06d}"


COMPLETE = """
apiVersion: twinfleet/v1
kind: Scenario
metadata: {name: carrier-outage-and-broker-restart, labels: {suite: nightly}}
seed: 20261123
clock: {mode: asap}
groups:
  - name: sensors
    model: thermostat
    count: 100_000
    thing_name: "sensor-{i:06d}"
    attributes: {site: {choice: [ams, ber, cdg], weights: [5, 3, 2]}}
    report_every: 10s
    network: {latency: 80ms, jitter: 30ms, loss: 0.5%}
stages:
  - {duration: 3m, target: 20%}
  - {duration: 20m, target: 100%}
steps:
  - {at: 4m, set_desired: {group: sensors, state: {set_point: 19}}}
faults:
  - {name: carrier-outage, at: 5m, duration: 90s, action: partition,
     select: {where: "attributes.site:ber", mode: fixed-percent, value: 80}}
  - {name: broker-restart, at: 9m, action: restart, component: broker}
checks:
  - version_never_decreases
  - no_acknowledged_update_lost
thresholds:
  ingest_latency: ["p(99) < 2s"]
  messages_lost: ["count == 0"]
  "recovery_time{fault:broker-restart}": ["max < 60s"]
assertions:
  - {name: all obeyed, within: 5m, sql: "select count(*) from twins where reported_set_point <> 19", expect: 0}
abort_on:
  - {metric: connect_errors, condition: "rate > 20%", for: 30s}
"""


def test_a_complete_scenario_says_all_that_the_language_has() -> None:
    scenario = parse_scenario(COMPLETE)
    assert (scenario.duration_s, len(scenario.faults), len(scenario.thresholds)) == (1380, 2, 3)
    assert str(scenario.abort_on[0]) == "connect_errors: rate > 20% for 30 s"


@pytest.mark.parametrize("file", sorted(LIBRARY.rglob("*.yaml")), ids=lambda file: file.stem)
def test_every_scenario_of_the_library_is_valid(file: Path) -> None:
    assert load_scenario(file).name == file.stem


def test_the_smoke_scenario_says_what_it_means() -> None:
    scenario = load_scenario(LIBRARY / "smoke" / "first-light.yaml")
    assert scenario.clock == ClockSpec("accelerated", 30)
    assert (scenario.duration_s, scenario.groups[0].count, scenario.groups[0].report_every_s) == (
        600,
        100_000,
        10,
    )
    assert scenario.groups[0].attributes == {"site": ChoiceSpec(("ams", "ber", "cdg"), (5, 3, 2))}
    first, second, third = (step.action for step in scenario.steps)
    assert first == SetDesired({"set_point": 23.5}, thing_name="first-light-real")
    assert second == WaitFor("first-light-real", {"set_point": 23.5}, is_delta_empty=True, timeout_s=10)
    assert third == SetDesired({"set_point": 19.5}, group="thermostats")


@pytest.mark.parametrize(
    ("duration", "seconds"),
    [("10s", 10), ("2m", 120), ("1h", 3600), ("1_000s", 1000), ("1.5m", 90), ("1d", 86400)],
)
def test_durations_have_units(duration: str, seconds: int) -> None:
    assert parse_scenario(HEAD + f"duration: {duration}\n").duration_s == seconds


@pytest.mark.parametrize("duration", ["10", "10 s", "1w", "-5s", "soon", "[1s]", "0s", "1.5s", "true"])
def test_what_is_no_duration_is_refused(duration: str) -> None:
    assert only_problem(HEAD + f"duration: {duration}\n").path == "duration"


def test_a_desired_value_that_devices_would_round_is_refused_on_its_own_line() -> None:
    steps = (
        "steps:\n  - at: 1s\n    set_desired:\n      group: rooms\n      state:\n        set_point: 21.123\n"
    )
    problem = only_problem(HEAD + "duration: 1m\n" + GROUP + steps)
    assert (problem.file, problem.line) == ("test.yaml", 11)


@pytest.mark.parametrize("value", ["21", "21.12", "5", "35.0", "19.99"])
def test_a_desired_value_that_devices_keep_exactly_is_taken(value: str) -> None:
    step = f"steps: [{{at: 1s, set_desired: {{group: rooms, state: {{set_point: {value}}}}}}}]\n"
    assert len(parse_scenario(HEAD + "duration: 1m\n" + GROUP + step).steps) == 1


def test_more_devices_than_memory_holds_are_refused_at_the_count(monkeypatch: pytest.MonkeyPatch) -> None:
    class Small:
        total = 150 * 1000

    monkeypatch.setattr("psutil.virtual_memory", Small)
    both = "groups: [{name: rooms, count: 600}, {name: halls, count: %d}]\n"
    assert len(parse_scenario(HEAD + "duration: 1m\n" + both % 400).groups) == 2
    problem = only_problem(HEAD + "duration: 1m\n" + both % 401)
    assert (problem.path, "memory" in problem.text) == ("groups[1].count", True)


def test_a_mistake_has_file_line_column_path_and_the_nearest_word() -> None:
    problem = only_problem(HEAD + "duration: 1m\ngroups:\n  - name: rooms\n    cuont: 5\n    count: 5\n")
    assert (problem.file, problem.line, problem.column) == ("test.yaml", 7, 5)
    assert problem.path == "groups[0].cuont"
    assert "did you mean 'count'" in problem.text
    assert str(problem).startswith("test.yaml:7:5: groups[0].cuont: ")


def test_all_mistakes_are_told_at_once_in_the_order_of_lines() -> None:
    found = problems(
        "apiVersion: twinfleet/v9\nkind: Senario\nmetadata: {}\nduration: 1m\nseed: -1\n"
        "groups:\n  - {name: rooms, count: 0, model: toaster}\nsteps:\n  - {at: 2m, set_desired: {state: {}}}\n"
    )
    assert [problem.line for problem in found] == sorted(problem.line for problem in found)
    assert {problem.path for problem in found} == {
        "apiVersion",
        "kind",
        "metadata",
        "metadata.name",
        "seed",
        "groups[0].count",
        "groups[0].model",
        "steps[0].at",
        "steps[0].set_desired",
        "steps[0].set_desired.state",
    }


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("path: wires\n", "path"),
        ("devices: [{name: lamp, network: {loss: 1%}}]\n", "devices[0].network"),
        ("steps: [{at: 1s, rollout: {release: a}}]\n", "steps[0].rollout"),
        ("checks: [no_update_lost]\n", "checks[0]"),
        ('thresholds: {ingest_speed: ["p(99) < 2s"]}\n', "thresholds.ingest_speed"),
        ('thresholds: {"reports{phase:x}": ["count > 0"]}\n', "thresholds.reports{phase:x}"),
    ],
)
def test_a_word_that_the_language_does_not_have_is_refused_never_ignored(text: str, path: str) -> None:
    assert only_problem(HEAD + "duration: 1m\n" + text).path == path


@pytest.mark.parametrize(
    ("text", "path", "words"),
    [
        ("durationn: 1m\n", "durationn", "did you mean 'duration'"),
        ("clock: {mode: fast}\n", "clock.mode", "asap, realtime or accelerated"),
        ("clock: {mode: accelerated}\n", "clock", "'speed' belongs to mode accelerated"),
        ("clock: {mode: asap, speed: 3}\n", "clock", "'speed' belongs to mode accelerated"),
        ("clock: {mode: accelerated, speed: 0}\n", "clock.speed", "from 0.01"),
        ("seed: yes\n", "seed", "whole number"),
        ("seed: 1.5\n", "seed", "whole number"),
        ("seed: 1\nseed: 2\n", "seed", "twice"),
        ("start: yesterday\n", "start", "2026-01-01T00:00:00Z"),
        ("warmup: 1m\n", "warmup", "shorter"),
        ("groups: {name: x}\n", "groups", "list"),
        ("groups: [{name: rooms, count: 1, thing_name: rooms}]\n", "groups[0]", "exactly one number"),
        (
            "groups: [{name: rooms, count: 1}, {name: rooms, count: 1, thing_name: 'a-{i}'}]\n",
            "groups[1]",
            "already",
        ),
        (
            "groups: [{name: a, count: 9}, {name: b, count: 9, thing_name: 'a-{i:06d}'}]\n",
            "groups[1]",
            "group 'a'",
        ),
        ("groups: [{name: a, count: 1, model: thermostt}]\n", "groups[0].model", "did you mean 'thermostat'"),
        ("groups: [{name: a, count: 1, model: untyped}]\n", "groups[0]", "no field to simulate"),
        (
            "groups: [{name: a, count: 1, attributes: {s: {choice: [x, y], weights: [1]}}}]\n",
            "groups[0].attributes.s",
            "1 weights for 2 choices",
        ),
        (
            "groups: [{name: a, count: 1, attributes: {s: {choice: [x], weights: [-1]}}}]\n",
            "groups[0].attributes.s.weights[0]",
            "from 0",
        ),
        ("devices: [{name: a}, {name: a}]\n", "devices[1]", "already"),
        ("devices: [{name: a.b}]\n", "devices[0].name", "hyphens"),
        (GROUP + "devices: [{name: rooms-000003}]\n", "devices[0]", "also a thing of group 'rooms'"),
        (GROUP + "steps: [{at: 1s}]\n", "steps[0]", "exactly one of"),
        (
            GROUP + "steps: [{at: 1m, set_desired: {group: rooms, state: {set_point: 20}}}]\n",
            "steps[0].at",
            "end",
        ),
        (
            GROUP + "steps: [{at: 1s, set_desired: {group: room, state: {set_point: 20}}}]\n",
            "steps[0].set_desired.group",
            "did you mean 'rooms'",
        ),
        (
            GROUP + "steps: [{at: 1s, set_desired: {group: rooms, state: {temperature: 20}}}]\n",
            "steps[0].set_desired.state.temperature",
            "settable: set_point",
        ),
        (
            GROUP + "steps: [{at: 1s, set_desired: {group: rooms, state: {set_point: 99}}}]\n",
            "steps[0].set_desired.state.set_point",
            "from 5 to 35",
        ),
        (
            GROUP + "steps: [{at: 1s, set_desired: {group: rooms, state: {set_point: true}}}]\n",
            "steps[0].set_desired.state.set_point",
            "must be a number",
        ),
        (
            GROUP + "steps: [{at: 1s, set_desired: {group: rooms, state: {set_point: 21.123}}}]\n",
            "steps[0].set_desired.state.set_point",
            "2 decimals at most",
        ),
        (
            GROUP + "steps: [{at: 1s, set_desired: {thing: rooms-000010, state: {set_point: 20}}}]\n",
            "steps[0].set_desired.thing",
            "no real device",
        ),
        (
            DEVICE + "steps: [{at: 1s, wait_for: {thing: real-device}}]\n",
            "steps[0].wait_for",
            "needs a condition",
        ),
        (
            DEVICE + "steps: [{at: 1s, wait_for: {thing: real-device, delta: full}}]\n",
            "steps[0].wait_for.delta",
            "must be empty",
        ),
        ("checks: [version_never_decrease]\n", "checks[0]", "did you mean 'version_never_decreases'"),
        ('thresholds: {reprts: ["count > 0"]}\n', "thresholds.reprts", "did you mean 'reports'"),
        ('thresholds: {reports: ["p(99) < 2s"]}\n', "thresholds.reports[0]", "count, rate"),
        ('thresholds: {reports: ["count > 2s"]}\n', "thresholds.reports[0]", "no unit"),
        ('thresholds: {reports: "count > 2"}\n', "thresholds.reports", "list"),
        (
            'thresholds: {tick_lag: ["max < 2s"]}\n',
            "thresholds.tick_lag",
            "never measured with clock mode asap",
        ),
        ("assertions: [{name: a, sql: select 1}]\n", "assertions[0].expect", "is missing"),
        ("assertions: [{name: a, sql: select 1, expect: '> x'}]\n", "assertions[0].expect", "no comparison"),
        (
            "assertions: [{name: a, sql: select 1, expect: 1}, {name: a, sql: select 1, expect: 1}]\n",
            "assertions[1].name",
            "another assertion is named 'a'",
        ),
    ],
)
def test_a_wrong_value_is_refused_with_its_path(text: str, path: str, words: str) -> None:
    problem = only_problem(HEAD + "duration: 1m\n" + text)
    assert problem.path == path
    assert words in problem.text


@pytest.mark.parametrize("text", ["", "a: [", "- &a [*a]", "x: \t- y", "just text"])
def test_what_is_no_scenario_is_refused_with_a_place(text: str) -> None:
    assert all(problem.line >= 1 for problem in problems(text))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ScenarioInvalid, match=r"absent\.yaml.*No such file"):
        load_scenario(tmp_path / "absent.yaml")


def test_large_seeds_keep_all_their_digits() -> None:
    assert parse_scenario(HEAD + f"duration: 1m\nseed: {2**63 - 1}\n").seed == 2**63 - 1


def test_an_instant_without_zone_is_utc() -> None:
    with_zone = parse_scenario(HEAD + "duration: 1m\nstart: 2026-01-01T00:00:00Z\n")
    without = parse_scenario(HEAD + "duration: 1m\nstart: 2026-01-01T00:00:00\n")
    assert with_zone.start_s == without.start_s == DEFAULT_START_S


def test_another_seed_changes_the_seed_alone() -> None:
    scenario = parse_scenario(HEAD + "duration: 1m\nseed: 1\n" + GROUP)
    assert reseeded(scenario, None) is scenario
    assert groups_of(reseeded(scenario, 7))[0].seed == 7


@pytest.mark.parametrize(
    ("text", "metric", "statistic", "bound"),
    [
        ("p(99) < 2s", "tick_lag", "p(99)", 2000.0),
        ("p(99.9)<=250ms", "tick_lag", "p(99.9)", 250.0),
        ("count > 5_800_000", "reports", "count", 5_800_000.0),
        ("min > 97%", "connected_ratio", "min", 0.97),
        ("value == 0", "delta_outstanding", "value", 0.0),
        ("max < 1m", "delta_to_reported", "max", 60_000.0),
        ("med < 40", "device_round_trip", "med", 40.0),
    ],
)
def test_conditions_read_like_those_of_k6(text: str, metric: str, statistic: str, bound: float) -> None:
    condition = Condition.parse(text, CATALOGUE[metric])
    assert (condition.statistic, condition.comparison.bound) == (statistic, bound)


@pytest.mark.parametrize(
    ("text", "value", "holds"),
    [
        ("> 0", 1, True),
        ("> 0", 0, False),
        ("== 3", 3.0, True),
        ("!= 3", 3, False),
        ("<= 2", float("nan"), False),
    ],
)
def test_a_comparison_compares(text: str, value: float, *, holds: bool) -> None:
    assert Comparison.parse(text).holds(value) is holds


def test_a_window_ends_at_the_next_step_and_what_it_desires_rides_on_the_order() -> None:
    step = "steps: [{at: 30s, set_desired: {group: rooms, state: {set_point: 20}}}]\n"
    scenario = parse_scenario(HEAD + "duration: 100m\nwarmup: 10s\n" + GROUP + step)
    assert [window_end(scenario, tick) for tick in (0, 10, 30)] == [10, 30, 80]
    assert orders_for(scenario, 10, 20) == [TickOrder("rooms", 10, 20)]
    assert orders_for(scenario, 30, 30) == [TickOrder("rooms", 30, 30, {"set_point": 20})]


@pytest.mark.parametrize(
    ("clock", "end"),
    [("{mode: asap}", 50), ("{mode: realtime}", 1), ("{mode: accelerated, speed: 30}", 3)],
)
def test_a_window_lasts_a_tenth_of_a_second_or_fifty_ticks(clock: str, end: int) -> None:
    scenario = parse_scenario(HEAD + f"duration: 100m\nclock: {clock}\n" + GROUP)
    assert window_end(scenario, 0) == end


def test_a_short_scenario_has_windows_enough_for_its_course_to_be_seen() -> None:
    assert window_end(parse_scenario(HEAD + "duration: 10m\n" + GROUP), 0) == 5
    assert window_end(parse_scenario(HEAD + "duration: 20s\n" + GROUP), 0) == 1


def test_windows_end_where_faults_begin_and_end() -> None:
    fault = "faults: [{name: a, at: 70s, duration: 15s, action: hang}]\n"
    scenario = parse_scenario(HEAD + "duration: 100m\n" + GROUP + fault)
    assert [window_end(scenario, tick) for tick in (0, 50, 70, 85)] == [50, 70, 85, 135]


def scenario_file(folder: Path, model: str) -> Path:
    file = folder / "scenario.yaml"
    file.write_text(HEAD + f"duration: 1m\ngroups: [{{name: rooms, count: 10, model: {model}}}]\n")
    return file


def test_a_group_may_have_a_model_of_a_file_beside_the_scenario(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    text = shipped_text("thermostat").replace("maximum: 85", "maximum: 70") + "reporting: {every: 30s}\n"
    (tmp_path / "models" / "mine.yaml").write_text(text)
    scenario = load_scenario(scenario_file(tmp_path, "models/mine.yaml"))
    [group] = groups_of(scenario)
    assert group.model.fields[0].maximum == 70
    # The model says how often its devices report, where the scenario does not.
    assert group.report_every_ticks == 30
    (tmp_path / "models" / "mine.yaml").unlink()
    assert group.model.name == "thermostat"


def test_mistakes_of_a_model_file_are_told_with_its_own_lines(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        shipped_text("thermostat").replace("unit: Cel", "unit: celsius").replace("step: 0.5", "stp: 0.5")
    )
    with pytest.raises(ScenarioInvalid) as caught:
        load_scenario(scenario_file(tmp_path, "mine.yaml"))
    lines = mine.read_text().splitlines()
    found = [(problem.file, problem.path) for problem in caught.value.problems]
    assert found == [
        (str(mine), "fields[0].unit"),
        (str(mine), "fields[3].unit"),
        (str(mine), "fields[3].start.stp"),
    ]
    first = caught.value.problems[0]
    assert lines[first.line - 1][first.column - 1 :] == "celsius"


def test_a_model_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ScenarioInvalid, match=r"nowhere\.yaml:1:1: cannot be read"):
        load_scenario(scenario_file(tmp_path, "nowhere.yaml"))


def test_a_group_is_told_truth_values_and_choices_by_number(tmp_path: Path) -> None:
    model = shipped_text("smart-meter").replace("  - name: power\n", MODE + "  - name: power\n", 1)
    (tmp_path / "mine.yaml").write_text(model)
    file = scenario_file(tmp_path, "mine.yaml")
    step = "steps: [{at: 1s, set_desired: {group: rooms, state: {relay: true, mode: eco}}}]\n"
    file.write_text(file.read_text() + step)
    [order] = orders_for(load_scenario(file), 1, 5)
    assert order.desired == {"relay": 1.0, "mode": 2.0}
    [group] = groups_of(load_scenario(file))
    shard = Shard(0, 1)
    shard.create_group(group)
    shard.tick(order)
    assert shard.fleets["rooms"].table.load(3).desired == {"relay": True, "mode": "eco"}


def test_what_a_file_may_not_be_read_for_is_no_device_model() -> None:
    problem = only_problem(HEAD + "duration: 1m\ndevices: [{name: real, model: ./mine.yaml}]\n")
    assert problem.path == "devices[0].model"


@pytest.mark.parametrize(
    ("model", "state", "words"),
    [
        ("smart-meter", "relay: 0", "relay must be true or false"),
        ("pump", "speed: 3001", "from 1000 to 3000 1/min"),
        ("pump", "speed: 2000.5", "whole number"),
        ("pump", "wear: 3", "settable: speed"),
    ],
)
def test_what_a_group_is_told_fits_its_model(model: str, state: str, words: str) -> None:
    text = (
        f"groups: [{{name: some, count: 1, model: {model}}}]\n"
        f"steps: [{{at: 1s, set_desired: {{group: some, state: {{{state}}}}}}}]\n"
    )
    assert words in only_problem(HEAD + "duration: 1m\n" + text).text


def test_the_wire_is_a_path_of_a_scenario_or_of_a_group() -> None:
    clock = "duration: 1m\nclock: {mode: realtime}\n"
    wire = "wire: {processes: 2, connect_rate: 250/s, qos: 0, keep_alive: 30s, reconnect: {backoff: none}}\n"
    scenario = parse_scenario(HEAD + clock + "path: wire\n" + wire + GROUP)
    assert [group.path for group in scenario.groups] == ["wire"]
    assert scenario.wire == WireSpec(2, 250.0, 0, 30, "none")
    scenario = parse_scenario(
        HEAD
        + clock
        + "groups: [{name: a, count: 1}, {name: b, count: 1, path: wire}]\nwire: {connect_rate: 7}\n"
    )
    assert [group.path for group in scenario.groups] == ["engine", "wire"]
    assert scenario.wire == WireSpec(connect_rate=7.0)


def test_the_wire_needs_a_clock_that_follows_the_real_one() -> None:
    assert "give the scenario clock" in only_problem(HEAD + "duration: 1m\npath: wire\n" + GROUP).text
    asap = parse_scenario(HEAD + "duration: 1m\n" + GROUP)
    with pytest.raises(ScenarioInvalid, match="give the scenario clock"):
        on_path(asap, "wire")
    paced = parse_scenario(HEAD + "duration: 1m\nclock: {mode: realtime}\n" + GROUP)
    changed = on_path(paced, "wire", 3)
    assert [group.path for group in changed.groups] == ["wire"]
    assert changed.wire.processes == 3
    assert on_path(changed, None) == changed


@pytest.mark.parametrize(
    ("text", "path", "advice"),
    [
        ("path: wired\n", "path", "wire"),
        ("wire: {connect_rate: fast/s}\n", "wire.connect_rate", "like 500/s"),
        ("wire: {keep_alive: 1h}\n", "wire.keep_alive", "1200 s at most"),
        ("wire: {qos: 2}\n", "wire.qos", "1"),
        ("wire: {reconnect: {first: 10s, max: 1s}}\n", "wire.reconnect", "not be shorter"),
        ("wire: {threads: 2}\n", "wire.threads", ""),
    ],
)
def test_mistakes_about_the_wire_are_told_with_their_place(text: str, path: str, advice: str) -> None:
    problem = only_problem(HEAD + "duration: 1m\nclock: {mode: realtime}\n" + text)
    assert problem.path == path
    assert advice in problem.text


# The schema


def test_the_schema_knows_every_word_and_takes_every_scenario_of_the_library() -> None:
    schema = scenario_schema()
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    for file in LIBRARY.rglob("*.yaml"):
        assert list(validator.iter_errors(yaml.safe_load(file.read_text()))) == []
    known = yaml.safe_load(HEAD + "duration: 1m\n" + GROUP)
    for change in (
        {"durationn": "1m"},
        {"clock": {"mode": "fast"}},
        {"faults": [{"name": "x", "at": "1s", "duration": "1s", "action": "loss", "offset": 3}]},
        {"thresholds": {"reprts": ["count > 1"]}},
        {"stages": [{"duration": "5s", "target": "120"}]},
    ):
        assert list(validator.iter_errors(known | change)), change
