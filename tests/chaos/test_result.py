"""RESULT.json says what was run: pieces of one commit come together, and nothing that failed is left out."""

from __future__ import annotations

import subprocess
from pathlib import Path

import msgspec
import pytest

from tests.chaos.plans import FAULTS, STORM
from tests.chaos.result import RESULT, ResultFile, ResultRefused, read_result
from tests.chaos.trial import TrialResult

KILLED = TrialResult(
    "kill store", 3, kills=2, recoveries_s={"kill store": [1.5, 0.5]}, took_s=8.0, operations=9, accepted=7
)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Give a repository whose files are those of its commit."""
    root = tmp_path / "clone"
    (root / "actors").mkdir(parents=True)
    git(root, "init", "--quiet")
    change(root, "first")
    git(root, "add", "--all")
    commit(root)
    return root


def git(root: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.com"]
    answer = subprocess.run(
        ["git", *identity, *arguments], cwd=root, check=True, capture_output=True, text=True
    )
    return answer.stdout.strip()


def change(root: Path, text: str) -> None:
    (root / "actors" / "part.py").write_text(text)


def commit(root: Path) -> None:
    git(root, "commit", "--quiet", "--all", "--message", "a change")


def test_pieces_of_one_commit_come_together_with_every_trial(clone: Path, tmp_path: Path) -> None:
    path = tmp_path / "RESULT.json"
    failed = msgspec.structs.replace(KILLED, contradiction="an accepted update is missing")
    storm = TrialResult(
        STORM, 0, kills=1, recoveries_s={"kill store": [4.0], "disk full": [2.0]}, took_s=90.0
    )
    ResultFile(path, "./dev chaos --add --seed 3", adds=True, root=clone).add(failed)
    piece = ResultFile(path, "./dev chaos --add", adds=True, root=clone)
    piece.add(KILLED)
    piece.add(storm)
    found = read_result(path)
    assert found.commit == git(clone, "rev-parse", "HEAD")
    assert found.commands == ["./dev chaos --add --seed 3", "./dev chaos --add"]
    assert found.trials == [failed, KILLED, storm]
    assert (found.failed, found.contradictions, found.kills, found.accepted) == (1, 1, 5, 14)
    # The same seed twice is one seed; what nobody has tried has none.
    killed = found.faults["kill store"]
    assert (killed.seeds, killed.storms, killed.blows, killed.accepted_alone) == (1, 1, 5, 14)
    assert (killed.recovery_s_median, killed.recovery_s_max) == (1.5, 4.0)
    assert found.seeds_min == 0
    assert found.storms == 1


def test_a_new_run_begins_anew(clone: Path, tmp_path: Path) -> None:
    path = tmp_path / "RESULT.json"
    ResultFile(path, "first", adds=False, root=clone).add(KILLED)
    assert ResultFile(path, "second", adds=False, root=clone).add(KILLED).trial_count == 1


def test_a_piece_of_another_commit_or_of_none_is_refused(clone: Path, tmp_path: Path) -> None:
    path = tmp_path / "RESULT.json"
    file = ResultFile(path, "first", adds=True, root=clone)
    file.add(KILLED)
    change(clone, "second")
    for attempt in (
        lambda: file.add(KILLED),
        lambda: ResultFile(path, "more", adds=True, root=clone),
        lambda: ResultFile(path, "more", adds=False, root=clone),
    ):
        with pytest.raises(ResultRefused, match="commit your changes first"):
            attempt()
    commit(clone)
    with pytest.raises(ResultRefused, match="is of commit"):
        ResultFile(path, "more", adds=True, root=clone)
    (clone / "actors" / "new.py").touch()
    with pytest.raises(ResultRefused, match="commit your changes first"):
        ResultFile(path, "more", adds=False, root=clone)


def test_what_the_committed_result_counts_is_what_its_trials_are() -> None:
    found = read_result(RESULT)
    assert found == found.counted()
    assert all(trial.recoveries_s.keys() <= FAULTS.keys() for trial in found.trials)
