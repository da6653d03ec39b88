"""`twinfleet report` and `twinfleet diff`, by their exit codes and what they print."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from scenarios.report import write_reports
from scenarios.result import RunResult
from tests.unit.test_report import FAILED, PASSED
from twinfleet.cli import run_command

LATER = dataclasses.replace(FAILED, run_id="20260102T000000Z-first-light-abcd", scenario=PASSED.scenario)


def recorded(data_dir: Path, *results: RunResult) -> list[Path]:
    return [write_reports(result, data_dir / "reports") for result in results]


def test_the_reports_of_the_last_run_are_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, last = recorded(tmp_path, PASSED, LATER)
    was = (last / "report.html").read_text()
    for directory in (first, last):
        for name in ("report.html", "junit.xml"):
            (directory / name).unlink()
    assert run_command(["report", "--data-dir", str(tmp_path)]) == 1
    assert (last / "report.html").read_text() == was
    assert (last / "junit.xml").exists()
    assert not (first / "report.html").exists()
    out = capsys.readouterr().out
    assert "verdict: FAIL" in out
    assert f"report: {last / 'report.html'}" in out


@pytest.mark.parametrize("way", ["name", "directory", "summary"])
def test_a_run_is_known_by_its_name_its_directory_or_its_summary(way: str, tmp_path: Path) -> None:
    first, _ = recorded(tmp_path, PASSED, LATER)
    (first / "report.html").unlink()
    run = {"name": first.name, "directory": str(first), "summary": str(first / "summary.json")}[way]
    assert run_command(["report", run, "--data-dir", str(tmp_path)]) == 0
    assert (first / "report.html").exists()


def test_the_schema_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["report", "--schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["$defs"]["RunResult"]["properties"]["schema"] == {"const": 2}


def test_a_run_that_is_not_there_or_that_nobody_can_read_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["report", "--data-dir", str(tmp_path)]) == 2
    assert run_command(["report", "nightly", "--data-dir", str(tmp_path)]) == 2
    [directory] = recorded(tmp_path, PASSED)
    (directory / "summary.json").write_text("{}")
    assert run_command(["report", "--data-dir", str(tmp_path)]) == 2
    assert run_command(["diff", str(directory), str(directory)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 4
    for words, error in zip(
        ("twinfleet run FILE", "nightly", "version None", "version None"), errors, strict=True
    ):
        assert words in error


def test_what_got_worse_is_told_and_ends_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, last = map(str, recorded(tmp_path, PASSED, LATER))
    assert run_command(["diff", first, last]) == 1
    assert "worse  all obeyed" in capsys.readouterr().out
    assert run_command(["diff", last, first, "-o", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"all obeyed": "better"}.items() <= {one["name"]: one["course"] for one in found}.items()


def test_several_runs_may_stand_on_a_side_and_the_same_differ_in_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded(tmp_path, PASSED, LATER)
    both = str(tmp_path / "reports")
    assert run_command(["diff", both, both]) == 0
    assert "0 worse, 0 better" in capsys.readouterr().out
