"""Fixtures of the contract tests: every test of the contract runs once for each kind of fleet."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator

import pytest

from actors.fleet import Fleet, LocalFleet
from actors.ray_fleet import RayFleet
from tests.contract.fleets import ray_fleet, running_ray
from twins.model import Attribute, Group
from twins.shipped import model_named

START_S = 1_767_225_600
_NUMBERS = itertools.count()
_SITES = Attribute("site", ("berlin", "paris"), (0.5, 0.5))


@pytest.fixture(scope="package")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Make this process the driver of a Ray head, for all tests of the contract."""
    with running_ray(tmp_path_factory.mktemp("ray")):
        yield


@pytest.fixture(scope="package")
def two_actors(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayFleet]:
    """Give the fleet on two shard actors that all tests of the contract share."""
    with ray_fleet(tmp_path_factory.mktemp("two"), 2) as fleet:
        yield fleet


@pytest.fixture(params=["local", "ray"])
def fleet(request: pytest.FixtureRequest) -> Fleet:
    """Give a fleet of each kind; other tests may have left twins in it."""
    if request.param == "local":
        return LocalFleet(shard_count=4)
    shared: RayFleet = request.getfixturevalue("two_actors")
    return shared


@pytest.fixture
def prefix() -> str:
    """Return a beginning of names that no other test uses."""
    return f"contract{'abcdefghijklmnopqrstuvwxyz'[next(_NUMBERS) % 26]}{next(_NUMBERS)}x"


@pytest.fixture
async def homes(fleet: Fleet, prefix: str) -> AsyncIterator[Group]:
    """Yield a simulated group of 600 thermostats, removed after the test."""
    group = Group(
        f"{prefix}homes", model_named("thermostat"), f"{prefix}-{{i}}", 600, 5, START_S, attributes=(_SITES,)
    )
    await fleet.create_group(group)
    yield group
    await fleet.delete_group(group.name)
