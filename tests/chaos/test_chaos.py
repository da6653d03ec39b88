"""Two seeds of each fault, short; `./dev chaos` runs more of them, at full size."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.auditing import SHORT
from tests.chaos.faults import FAULTS
from tests.chaos.stage import Stage
from tests.chaos.trial import Trial, line_of


# A trial takes some seconds; one that fails waits for each of its steps.
@pytest.mark.timeout(400)
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", FAULTS)
def test_what_was_accepted_is_there_and_every_thing_is_served_again(
    stage: Stage, tmp_path: Path, name: str, seed: int
) -> None:
    if name == "disk full" and not stage.has_small_disk:
        pytest.skip("no small file system may be mounted here")
    result = Trial(stage, FAULTS[name], seed, size=SHORT, directory=tmp_path).run()
    assert result.holds, line_of(result, SHORT)
    assert result.accepted > 0
