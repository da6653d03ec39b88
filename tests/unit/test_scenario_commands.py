"""`twinfleet scenario`: the library, mistakes, plans and the schema; and what a person sees while a run goes on."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from scenarios.planning import plan_of
from scenarios.progress import Frame, LineProgress, TerminalProgress
from scenarios.reading import parse_scenario
from twinfleet.cli import run_command

SCENARIO = """apiVersion: twinfleet/v1
kind: Scenario
metadata: {name: two-fleets}
clock: {mode: accelerated, speed: 60}
warmup: 1m
stages: [{duration: 2m, target: 50%}, {duration: 2m, target: 1500}]
groups:
  - {name: rooms, count: 1_000, report_every: 10s}
  - {name: meters, model: smart-meter, count: 1_000, report_every: 1m, network: {latency: 80ms}}
steps: [{at: 90s, set_desired: {group: rooms, state: {set_point: 20}}}]
faults: [{name: cut, at: 2m, duration: 30s, action: disconnect, groups: [rooms]}]
thresholds: {reports_lost: ["count == 0"]}
"""


def run_and_read(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run_command(arguments)
    told = capsys.readouterr()
    return code, told.out, told.err


def test_a_plan_tells_counts_rates_course_and_memory_and_runs_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    plan = plan_of(parse_scenario(SCENARIO))
    assert (plan.duration_s, plan.wall_s, plan.device_count) == (240, 4.0, 2000)
    assert plan.reports_per_s == pytest.approx(100 + 1000 / 60)
    # Half of them come within two minutes, half of the rest within the next two: on average a quarter, then 5/8.
    assert plan.reports_due == pytest.approx((250 * 120 + 625 * 120) * (1 / 10 + 1 / 60), rel=0.01)
    rooms, meters = plan.groups
    # What a network keeps of each device comes on top of what its model has.
    assert 50 < rooms.bytes_per_twin < 300
    assert plan.memory_bytes == 1000 * (rooms.bytes_per_twin + meters.bytes_per_twin)
    assert [(moment.at_s, moment.text.split(":")[0]) for moment in plan.course] == [
        (0, "stage 1"),
        (60, "end of the warm-up"),
        (90, "set desired set_point = 20 of group rooms"),
        (120, "stage 2"),
        (120, "fault cut begins"),
        (150, "fault cut ends"),
        (240, "end"),
    ]
    file = tmp_path / "two.yaml"
    file.write_text(SCENARIO)
    code, out, _ = run_and_read(capsys, "scenario", "plan", str(file), "--set", "groups[rooms].count=2_000")
    assert (code, "3,000 simulated" in out, "0:04 of real time" in out) == (0, True, True)
    code, out, _ = run_and_read(capsys, "scenario", "plan", str(file), "-o", "json")
    assert msgspec.json.decode(out)["plans"][0]["reports_due"] == plan.reports_due
    assert list(tmp_path.iterdir()) == [file]


def test_scenarios_are_validated_with_all_mistakes_of_all_files(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(SCENARIO)
    bad.write_text(SCENARIO.replace("warmup", "warmpu").replace("1_000,", "0,", 1))
    code, out, _ = run_and_read(capsys, "scenario", "validate", str(good), "first-light")
    assert (code, out.count("nothing is wrong with it")) == (0, 2)
    code, out, err = run_and_read(capsys, "scenario", "validate", str(good), str(bad))
    assert (code, out) == (2, "")
    assert f"{bad}:5:1: warmpu: unknown key; did you mean 'warmup'?" in err
    assert f"{bad}:8:26: groups[0].count: must be from 1" in err
    code, _, err = run_and_read(capsys, "scenario", "validate", "firts-light")
    assert (code, "did you mean 'first-light'" in err) == (2, True)


def test_the_library_is_listed_with_what_each_scenario_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run_and_read(capsys, "scenario", "list", "-o", "json")
    listed = msgspec.json.decode(out)["scenarios"]
    assert code == 0
    assert all(each["goal"] and each["method"] and each["expected"] for each in listed), listed
    assert "first-light" in run_and_read(capsys, "scenario", "list")[1]


def test_the_schema_of_scenario_files_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run_and_read(capsys, "scenario", "schema")
    schema = msgspec.json.decode(out)
    assert (code, schema["title"]) == (0, "twinfleet scenario")
    assert "asap" in schema["properties"]["clock"]["properties"]["mode"]["description"]


FRAME = Frame(
    "two-fleets",
    "running",
    90,
    240,
    2.0,
    simulated_count=2000,
    connected_ratio=0.98,
    faults=("cut",),
    planned_stage="stage 1 of 2 to 50% within 120 s",
    latencies=lambda: {"latency": "80 ms, p(99) 1.2 s"},
    judge=lambda: (3, 4),
)


@pytest.mark.parametrize("kind", [LineProgress, TerminalProgress])
def test_a_person_sees_stage_devices_latencies_faults_and_verdicts_so_far(
    kind: type[LineProgress | TerminalProgress],
) -> None:
    console = Console(file=StringIO(), width=120, force_terminal=kind is TerminalProgress)
    with kind(console) as progress:
        progress.show(FRAME)
    assert isinstance(console.file, StringIO)
    text = console.file.getvalue()
    for words in (
        "stage 1 of 2 to 50%",
        "98.0% connected",
        "p(99) 1.2 s",
        "cut",
        "3 of 4 thresholds hold so far",
    ):
        assert words in text
