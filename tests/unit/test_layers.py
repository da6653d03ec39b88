"""What a scenario is made of: includes, values set beside the file, matrices, models and queries within it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from scenarios.errors import Problem, ScenarioInvalid
from scenarios.reading import load_scenario, parse_scenario, parse_scenarios
from scenarios.spec import FaultSpec

HEAD = "apiVersion: twinfleet/v1\nkind: Scenario\nmetadata: {name: test}\n"
GROUP = "groups: [{name: rooms, count: 10}]\n"


def problems(text: str) -> list[Problem]:
    with pytest.raises(ScenarioInvalid) as caught:
        parse_scenario(text, "test.yaml")
    return list(caught.value.problems)


def only_problem(text: str) -> Problem:
    found = problems(text)
    assert len(found) == 1, found
    return found[0]


# Layers: includes, values set beside the file, matrices


def test_a_file_includes_others_and_its_own_values_win(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "fleet.yaml").write_text(
        "seed: 3\ngroups:\n- {name: rooms, count: 10, report_every: 5s}\n- {name: halls, count: 2}\n"
        "thresholds: {reports: ['count > 1'], reports_lost: ['count == 0']}\n"
    )
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        HEAD + "include: [parts/fleet.yaml]\nduration: 1m\ngroups: [{name: rooms, count: 20}]\n"
        "thresholds: {reports: ['count > 2']}\n"
    )
    scenario = load_scenario(mine)
    assert scenario.seed == 3
    assert [(group.name, group.count, group.report_every_s) for group in scenario.groups] == [
        ("rooms", 20, 5),
        ("halls", 2, 10),
    ]
    assert [(each.metric, each.condition.text) for each in scenario.thresholds] == [
        ("reports", "count > 2"),
        ("reports_lost", "count == 0"),
    ]


def test_a_mistake_in_an_included_file_is_told_at_its_place_there(tmp_path: Path) -> None:
    (tmp_path / "part.yaml").write_text("\n\nseed: many\n")
    (tmp_path / "mine.yaml").write_text(HEAD + "include: [part.yaml, absent.yaml]\nduration: 1m\n")
    with pytest.raises(ScenarioInvalid, match=r"absent\.yaml:1:1: cannot be read"):
        load_scenario(tmp_path / "mine.yaml")
    (tmp_path / "absent.yaml").write_text("clock: {mode: asap}\n")
    with pytest.raises(ScenarioInvalid, match=r"part\.yaml:3:7: seed: must be a whole number"):
        load_scenario(tmp_path / "mine.yaml")


def test_a_file_that_includes_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(HEAD + "include: [b.yaml]\n")
    (tmp_path / "b.yaml").write_text("include: [a.yaml]\n")
    with pytest.raises(ScenarioInvalid, match=r"b\.yaml:1:11: include\[0\]: a\.yaml includes itself"):
        load_scenario(tmp_path / "a.yaml")


@pytest.mark.parametrize("key", ["groups[0].count", "groups[rooms].count"])
def test_values_are_set_beside_the_file(key: str) -> None:
    text = HEAD + "duration: 1m\n" + GROUP
    scenario = parse_scenario(text, overrides=[f"{key}=1_000", "warmup=10s", "clock.mode=realtime"])
    assert (scenario.groups[0].count, scenario.warmup_s, scenario.clock.mode) == (1000, 10, "realtime")
    assert scenario.overrides[0] == f"{key}=1_000"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("groups[1].count=5", "there is no element 1"),
        ("groups[romms].count=5", "did you mean 'rooms'"),
        ("groups[0].cuont=5", "did you mean 'count'"),
        ("groups[0].count=many", "must be a whole number"),
        ("seed.x=5", "no mapping"),
        ("seed", "must be KEY=VALUE"),
        ("groups[0=5", "is no key"),
    ],
)
def test_what_is_set_wrongly_is_told_as_it_was_written(override: str, words: str) -> None:
    with pytest.raises(ScenarioInvalid) as caught:
        parse_scenario(HEAD + "duration: 1m\nseed: 1\n" + GROUP, overrides=[override])
    [problem] = caught.value.problems
    assert words in problem.text
    assert problem.file == f"--set {override}"


def test_a_matrix_makes_a_scenario_of_each_cell_and_overrides_pin_an_axis() -> None:
    text = HEAD + 'duration: 1m\nmatrix: {seed: [1, 2], "groups[0].count": [10, 20, 30]}\n' + GROUP
    cells = parse_scenarios(text)
    assert [(each.seed, each.groups[0].count) for each in cells] == [
        (1, 10), (1, 20), (1, 30), (2, 10), (2, 20), (2, 30),
    ]  # fmt: skip
    assert cells[1].cell == {"seed": "1", "groups[0].count": "20"}
    pinned = parse_scenarios(text, overrides=["groups[0].count=20"])
    assert [(each.seed, each.groups[0].count) for each in pinned] == [(1, 20), (2, 20)]
    # What repeats a cell is what it was set to.
    again = parse_scenario(text, overrides=cells[4].overrides)
    assert dataclasses.replace(again, cell=cells[4].cell) == cells[4]
    with pytest.raises(ScenarioInvalid, match="6 cells"):
        parse_scenario(text)


def test_a_mistake_in_a_matrix_is_told_once(tmp_path: Path) -> None:
    text = HEAD + "duration: 1m\nmatrix: {seed: [1, x], warmup: 5s}\n" + GROUP
    assert [problem.path for problem in problems(text)] == ["matrix.warmup"]
    text = HEAD + "duration: 1m\nmatrix: {seed: [1, x, y]}\n" + GROUP
    with pytest.raises(ScenarioInvalid) as caught:
        parse_scenarios(text)
    assert [problem.file for problem in caught.value.problems] == ["--set seed=x", "--set seed=y"]


def test_a_model_may_stand_in_the_scenario_itself() -> None:
    level = "{name: level, quantity: level, unit: '/100', minimum: 0, maximum: 100, "
    model = "{fields: [" + level + "generator: {%s: {rate: '1'}}}]}"
    text = HEAD + "duration: 1m\ngroups: [{name: tanks, count: 3, model: %s}]\n"
    [group] = parse_scenario(text % (model % "decay")).groups
    assert (group.model.name, [field.name for field in group.model.fields]) == ("tanks", ["level"])
    problem = only_problem(text % (model % "deca"))
    assert (problem.path, problem.line) == ("groups[0].model.fields[0].generator.deca", 5)


# Whom faults hit


FLEETS = (
    "duration: 1m\ngroups:\n"
    "- {name: a, count: 9, attributes: {site: {choice: [ams, ber, cdg]}, kind: {choice: [x, y]}}}\n"
    "- {name: b, count: 9, attributes: {site: {choice: [ber, bru]}}}\n- {name: c, count: 9}\n"
)


def fault_where(where: str, groups: str = "") -> str:
    return (
        HEAD
        + FLEETS
        + f"faults: [{{name: f, at: 1s, duration: 5s, action: hang, {groups}select: {{where: '{where}'}}}}]\n"
    )


@pytest.mark.parametrize(
    ("where", "hit"),
    [
        ("attributes.site:ber", {"a": (("site", "ber"),), "b": (("site", "ber"),)}),
        ("attributes.site:b*", {"a": (("site", "ber"),), "b": ()}),
        ("NOT attributes.site:ams AND attributes.kind:x",
         {"a": (("site", "ber"), ("site", "cdg"), ("kind", "x"))}),
        ("attributes.site:(ams OR cdg)", {"a": (("site", "ams"), ("site", "cdg"))}),
        ("NOT attributes.site:*", {"c": ()}),
        ("model:thermostat", {"a": (), "b": (), "c": ()}),
    ],
)  # fmt: skip
def test_a_fault_asks_for_devices_in_the_language_of_fleet_queries(
    where: str, hit: dict[str, tuple[tuple[str, str], ...]]
) -> None:
    [fault] = parse_scenario(fault_where(where)).faults
    assert isinstance(fault, FaultSpec)
    assert {group: fault.fault_of(group).select.where for group in fault.groups} == hit


@pytest.mark.parametrize(
    ("where", "groups", "words"),
    [
        ("attributes.site:rome", "", "no device of a, b, c"),
        ("attributes.site:ams", "groups: [b], ", "no device of b"),
        ("attributes.site:ber OR attributes.kind:x", "groups: [a], ", "make two faults"),
        ("shadow.reported.temperature>20", "", "nothing that a fault can select by"),
        ("ber", "", "a word without a field"),
        ("attributes.site:(ber", "", "is no fleet query"),
    ],
)
def test_what_a_fault_cannot_ask_for_is_refused(where: str, groups: str, words: str) -> None:
    problem = only_problem(fault_where(where, groups))
    assert problem.path == "faults[0].select.where"
    assert words in problem.text


# The documentation


def test_what_the_documentation_shows_is_a_scenario() -> None:
    text = (Path(__file__).parents[2] / "docs" / "scenarios.md").read_text(encoding="utf-8")
    first, *parts, last = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert parse_scenario(first).groups[0].count == 10_000
    whole = parse_scenario(HEAD + "".join(parts))
    assert (len(whole.groups), len(whole.stages), len(whole.faults), len(whole.abort_on)) == (1, 3, 1, 1)
    assert len(parse_scenarios(HEAD + "".join(parts) + last.replace("include", "# include"))) == 6
