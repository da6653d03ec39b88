"""The parts of the script `dev` that decide something."""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
from pathlib import Path

DEV = Path(__file__).parents[2] / "dev"


def answer_of(function: str, data_dir: Path) -> str:
    """Return what a function of the script prints when it is called alone."""
    found = re.search(rf"^{function}\(\) {{$.*?^}}$", DEV.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None
    script = f"set -euo pipefail\nDATA=$1\n{found[0]}\n{function} || true"
    command = ["bash", "-c", script, "bash", str(data_dir)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()


def test_a_stale_file_with_the_id_of_a_living_process_is_no_platform(tmp_path: Path) -> None:
    assert answer_of("running_platform", tmp_path) == ""
    (tmp_path / "endpoints.json").write_text(json.dumps({"pid": os.getpid(), "version": "1"}))
    assert answer_of("running_platform", tmp_path) == ""
    # Its holder was killed: the file stays, the lock does not.
    (tmp_path / "lock").write_text(str(os.getpid()))
    assert answer_of("running_platform", tmp_path) == ""


def test_a_platform_that_holds_its_directory_runs(tmp_path: Path) -> None:
    (tmp_path / "endpoints.json").write_text(json.dumps({"pid": os.getpid(), "version": "1"}))
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert answer_of("running_platform", tmp_path) == str(os.getpid())
