"""The auditor against a platform that nobody breaks: what it writes down, what it prints, and its exit codes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from scenarios.history import Answered, Event, Observed, Outcome, Sent, Settled, read_history, write_history
from tests.integration.running_platform import (
    COMMAND_TIMEOUT_S,
    RunningPlatform,
    environment_of,
    run_twinfleet,
    until,
)
from twinfleet.cli import run_command

# Some dozen updates of each thing; the rest of the time is for the end.
DURATION = "3s"


def test_a_platform_that_nobody_breaks_holds(platform: RunningPlatform, tmp_path: Path) -> None:
    history = tmp_path / "history.jsonl"
    options = ["--things", "3", "--duration", DURATION, "--history", str(history)]
    found = platform.run("audit", "run", *options)
    assert found.returncode == 0, found
    assert found.stdout.splitlines()[-1] == "no contradiction"
    events = read_history(history)
    sent = [event for event in events if isinstance(event, Sent)]
    accepted = [event for event in events if isinstance(event, Answered) and event.outcome is Outcome.OK]
    ends = [event for event in events if isinstance(event, Settled)]
    observed = [event for event in events if isinstance(event, Observed)]
    # Devices and operators, in classic and named shadows, updates and questions.
    assert {each.is_direct for each in sent} == {True, False}
    assert {each.shadow_name for each in sent} == {"", "config"}
    assert {bool(each.values) for each in sent} == {True, False}
    assert {each.topic for each in observed} == {"documents", "delta"}
    assert len(accepted) > len(sent) * 0.9
    assert len({(end.thing_name, end.shadow_name) for end in ends}) == 6
    assert all(end.follower == end.thing_name for end in ends)
    # It takes its things with it.
    assert platform.run("device", "describe", ends[0].thing_name).returncode == 1


def test_a_history_outlives_the_auditor_and_is_judged_later(
    platform: RunningPlatform, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    history = tmp_path / "history.jsonl"
    command = [sys.executable, "-m", "twinfleet", "audit", "run", "--data-dir", str(platform.data_dir)]
    with subprocess.Popen(
        [*command, "--things", "1", "--duration", "1h", "--history", str(history)],
        env=environment_of(platform.data_dir),
        stderr=subprocess.DEVNULL,
    ) as auditor:
        try:
            until(
                lambda: history.exists() and history.read_bytes().count(b'"ok"') > 10, "updates are accepted"
            )
        finally:
            auditor.send_signal(signal.SIGKILL)
        auditor.wait(COMMAND_TIMEOUT_S)
    # Its things have not been read at the end, which the rules do not take for granted.
    assert run_command(["audit", "check", str(history)]) == 1
    judged = capsys.readouterr().out
    assert judged.startswith("contradiction: an accepted update is missing: nobody read audit-")


def test_a_contradiction_is_printed_with_its_history(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events: list[Event] = [
        Sent(1.0, "lamp", 1, "lamp", values={"reported.lamp": 1}),
        Answered(2.0, "lamp", 1, Outcome.OK, 1),
        Sent(3.0, "lamp", 2, "lamp", values={"reported.lamp": 2}),
        Answered(4.0, "lamp", 2, Outcome.OK, 2),
    ]
    mine, others = tmp_path / "mine.jsonl", tmp_path / "others.jsonl"
    write_history(mine, events)
    write_history(others, [Settled(5.0, "lamp", "", 1, {"reported.lamp": 1})])
    assert run_command(["audit", "check", str(mine), str(others)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("contradiction: ")
    assert any("lamp #2: ok version 2" in line for line in lines)
    assert "finally lamp has version 1" in lines[-1]


def test_without_a_platform_nothing_is_judged(tmp_path: Path) -> None:
    found = run_twinfleet("audit", "run", data_dir=tmp_path / "nowhere")
    assert (found.returncode, found.stdout) == (3, "")
    assert "no platform runs on" in found.stderr


def test_counts_are_told_to_programs(platform: RunningPlatform) -> None:
    found = platform.run("audit", "run", "--things", "1", "--duration", "1s", "-o", "json")
    assert found.returncode == 0, found
    result = json.loads(found.stdout)
    # An answer may come twice, and after nothing was known for a while.
    assert 0 < result["operations"] <= result["accepted"] + result["refused"] + result["unknown"]
    assert result["contradiction"] == ""
