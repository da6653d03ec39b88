"""The platform that the tests of this directory share: each of them breaks it, and leaves it serving."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.stage import Stage, stage_in


@pytest.fixture(scope="package")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Give a platform to be broken; other tests are not to find themselves in its network."""
    with stage_in(tmp_path_factory.mktemp("chaos")) as made:
        yield made
