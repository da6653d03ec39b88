"""Fixtures of the contract tests: every test runs once for each fleet in `fleets.FLEETS`."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator

import pytest

from actors.fleet import Fleet
from tests.contract.fleets import FLEETS
from twins.model import Attribute, Group

START_S = 1_767_225_600
_NUMBERS = itertools.count()
_SITES = Attribute("site", ("berlin", "paris"), (0.5, 0.5))


@pytest.fixture(params=sorted(FLEETS))
async def fleet(request: pytest.FixtureRequest) -> AsyncIterator[Fleet]:
    """Yield a fleet of each kind; other tests may have left twins in it."""
    async with FLEETS[request.param]() as opened:
        yield opened


@pytest.fixture
def prefix() -> str:
    """Return a beginning of names that no other test uses."""
    return f"contract{'abcdefghijklmnopqrstuvwxyz'[next(_NUMBERS) % 26]}{next(_NUMBERS)}x"


@pytest.fixture
async def homes(fleet: Fleet, prefix: str) -> AsyncIterator[Group]:
    """Yield a simulated group of 600 thermostats, removed after the test."""
    group = Group(f"{prefix}homes", "thermostat", f"{prefix}-{{i}}", 600, 5, START_S, attributes=(_SITES,))
    await fleet.create_group(group)
    yield group
    await fleet.delete_group(group.name)
