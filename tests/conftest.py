"""What holds for all tests: unit and property tests reach no network; real parts of a kind share a worker."""

from __future__ import annotations

import re
import socket
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import ray
from hypothesis.internal import constants_ast
from hypothesis.internal.conjecture import providers
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

_OFFLINE = tuple(Path(__file__).parent / name for name in ("unit", "property"))
# As node ids begin.
_WITH_THEIR_OWN = ("tests/contract/", "tests/chaos/")
_REAL_PARTS = ("tests/integration/", *_WITH_THEIR_OWN)
# What a test file says that starts a whole platform of its own, and what one that uses any, or Ray.
_OWN_PLATFORM = re.compile(r"\bplatform_on\(|\bRunningPlatform\.start\(")
_ANY_PLATFORM = re.compile(r"\brunning_platform\b|\battack_scene\b|\bray\b")

# The same examples on every machine and in every run: a failure is repeated by running the test again.
hypothesis.settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("repeatable")
# It would also try what is written in modules of ours that happen to be loaded: other examples in each worker.
providers._get_local_constants = constants_ast.Constants


class NetworkRefusedError(Exception):
    """A test that must do without the network tried to use it."""


def _refuse(*_: Any, **__: Any) -> None:
    raise NetworkRefusedError("tests in unit/ and property/ reach no network and start no Ray")


class _PairsOnlySocket(socket.socket):
    """A socket that stays on this machine: asyncio's event loop wakes itself up through a connected pair."""

    def __init__(self, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None) -> None:  # noqa: A002 - the name is the standard library's
        if fileno is None:
            _refuse()
        super().__init__(family, type, proto, fileno)


class _RealPartsTogether(LoadScopeScheduling):  # type: ignore[misc]  # xdist ships no types
    """Keeps the tests of each kind of real parts in one worker, and spreads the others."""

    def _split_scope(self, nodeid: str) -> str:
        if not nodeid.startswith(_REAL_PARTS):
            return nodeid
        # Those of the contract share a Ray, those of chaos a platform of their own.
        if nodeid.startswith(_WITH_THEIR_OWN):
            return "contract and chaos"
        return _group_of(nodeid.partition("::")[0])


@cache
def _group_of(file: str) -> str:
    """Return the group of an integration test; a platform mostly waits, so that two may run side by side."""
    text = (Path(__file__).parents[1] / file).read_text(encoding="utf-8")
    if _OWN_PLATFORM.search(text):
        return "platforms of their own"
    return "the shared platform" if _ANY_PLATFORM.search(text) else "real parts"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Give xdist the order of work; its own groups rename tests, which pytest 9.2 ignores."""
    return _RealPartsTogether(config, log)


@pytest.fixture(autouse=True)
def _offline(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make sockets and Ray raise in the tests of unit/ and property/; a pair of connected sockets is let through."""
    if any(request.node.path.is_relative_to(directory) for directory in _OFFLINE):
        monkeypatch.setattr(socket, "socket", _PairsOnlySocket)
        monkeypatch.setattr(socket, "create_connection", _refuse)
        monkeypatch.setattr(ray, "init", _refuse)
