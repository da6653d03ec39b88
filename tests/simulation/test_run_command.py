"""`twinfleet run` as a process: what it prints, its exit codes, and Ctrl-C."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "scenarios" / "library"
# An interpreter that imports everything, on a machine that is busy with other tests.
DEADLINE_S = 60.0
SMALL = """
apiVersion: twinfleet/v1
kind: Scenario
metadata: {name: small}
duration: %s
clock: {mode: %s}
groups: [{name: rooms, count: 300}]
checks: [every_report_accounted_for]
"""


def start(data_dir: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "twinfleet",
        "run",
        "--fleet",
        "local",
        "--data-dir",
        str(data_dir),
        *arguments,
    ]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, errors = process.communicate(timeout=DEADLINE_S)
    return process.returncode, out, errors


def written(tmp_path: Path, *, duration: str = "1m", mode: str = "asap") -> Path:
    file = tmp_path / "small.yaml"
    file.write_text(SMALL % (duration, mode))
    return file


def test_a_run_that_passes_prints_digest_verdict_and_report_and_exits_with_0(tmp_path: Path) -> None:
    code, out, errors = finish(start(tmp_path, str(written(tmp_path)), "--seed", "7", "--shards", "3"))
    assert code == 0, errors
    digest = re.search(r"^digest: ([0-9a-f]{64})$", out, re.MULTILINE)
    report = re.search(r"^report: (.*)$", out, re.MULTILINE)
    assert digest is not None
    assert report is not None
    assert "verdict: PASS" in out
    assert "running: " in errors
    summary = msgspec.json.decode(Path(report[1]).with_name("summary.json").read_bytes())
    assert (summary["digest"], summary["seed"], summary["shard_count"]) == (digest[1], 7, 3)
    assert summary["command"].endswith("--seed 7 --fleet local --shards 3")
    assert finish(start(tmp_path, str(written(tmp_path)), "--seed", "7"))[1].startswith(digest[0])


def test_a_run_that_fails_says_what_failed_and_exits_with_1(tmp_path: Path) -> None:
    code, out, _ = finish(start(tmp_path, str(LIBRARY / "negative" / "fleet-does-not-obey.yaml")))
    assert code == 1
    assert "FAIL: reports: count > 24_000: expected count > 24_000, found count = 23," in out


def test_an_invalid_scenario_is_refused_before_anything_starts(tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(SMALL.replace("groups", "gruops") % ("1m", "asap"))
    code, out, errors = finish(start(tmp_path / "data", str(file)))
    assert (code, out) == (2, "")
    assert f"{file}:7:1: gruops: unknown key; did you mean 'groups'?" in errors
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_with_a_report_and_130(number: signal.Signals, tmp_path: Path) -> None:
    process = start(tmp_path, str(written(tmp_path, duration="1h", mode="realtime")))
    assert process.stderr is not None
    while not process.stderr.readline().startswith("running"):
        assert process.poll() is None
    process.send_signal(number)
    code, out, _ = finish(process)
    assert code == 130
    assert "verdict: INTERRUPTED" in out
    assert len(list(tmp_path.glob("reports/*/report.html"))) == 1
