"""Two seeds of every fault, short and in a row; `./dev chaos` runs more of them, at full size, and each alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.auditing import SHORT
from tests.chaos.plans import STORM, faults_of
from tests.chaos.stage import Stage
from tests.chaos.trial import Trial, line_of


# Each fault takes some seconds; one that is not survived is waited for.
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [0, 1])
def test_what_was_accepted_is_there_and_every_thing_is_served_again(
    stage: Stage, tmp_path: Path, seed: int
) -> None:
    result = Trial(stage, STORM, seed, size=SHORT, directory=tmp_path).run()
    assert result.holds, line_of(result, SHORT)
    assert result.recoveries_s.keys() == {fault.name for fault in faults_of(STORM, stage, is_full=False)}
    assert result.accepted > 0
