"""Behaviours of pinned twins: how one is found, when it is called, and what is told of one that fails."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.behaviors import Obedient, TwinStep, call_behavior, due_step, load_behavior, report_request
from actors.errors import BehaviorUnusable
from actors.fleet import LocalFleet, pin_request, unpin_request
from twins.handover import DEFAULT_BEHAVIOR, PinState
from twins.messages import TickOrder
from twins.model import Group
from twins.shipped import model_named

_MODULES = {
    "tf_fine": "class Boiler:\n    every_s = 5\n    def step(self, twin):\n        return None\n",
    "tf_broken": "1 / 0\n",
    "tf_syntax": "def\n",
    "tf_leaves": "raise SystemExit(3)\n",
    "tf_needs": "import tf_nowhere\n",
    "tf_picky": "class Boiler:\n    def __init__(self, size):\n        pass\n",
    "tf_lazy": "class Boiler:\n    pass\n",
    "tf_never": "class Boiler:\n    every_s = 0\n    def step(self, twin):\n        return None\n",
}


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give a directory with behaviours, good and bad."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name, text in _MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    yield tmp_path
    for name in _MODULES:
        sys.modules.pop(name, None)


def state(**more: Any) -> PinState:
    known: dict[str, Any] = {
        "behavior": "tf_fine:Boiler",
        "origin": "simulated",
        "is_taken_over": False,
        "now_s": 100.0,
        "stepped_s": None,
        "desired": {"a": 1, "b": [2]},
        "reported": {"b": [2], "c": 3},
        "attributes": {},
        "memory": {},
    }
    return PinState(**known | more)


def step_of(**more: Any) -> TwinStep:
    found = due_step(Obedient(), "lamp", state(**more))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("tf_nowhere:Boiler", "tf_nowhere.py"),
        ("tf_needs:Boiler", "No module named 'tf_nowhere'"),
        ("tf_broken:Boiler", "ZeroDivisionError"),
        ("tf_syntax:Boiler", "SyntaxError"),
        ("tf_leaves:Boiler", "SystemExit: 3"),
        ("tf_fine:Kettle", "Kettle"),
        ("tf_picky:Boiler", "size"),
        ("tf_lazy:Boiler", "no method step"),
        ("tf_never:Boiler", "every_s is 0"),
    ],
)
def test_a_behaviour_that_cannot_be_made_says_why(directory: Path, name: str, told: str) -> None:
    with pytest.raises(BehaviorUnusable) as refusal:
        load_behavior(name, directory)
    assert str(refusal.value).startswith(f"behavior {name}: ")
    assert told in str(refusal.value)


def test_a_behaviour_of_an_installed_module_is_found() -> None:
    assert isinstance(load_behavior(DEFAULT_BEHAVIOR), Obedient)


@pytest.mark.parametrize(
    ("stepped_s", "is_taken_over", "elapsed_s"),
    [(None, False, 0.0), (95.0, False, 5.0), (60.0, False, 40.0), (95.5, False, None), (60.0, True, None)],
)
def test_a_behaviour_is_called_as_often_as_it_wants(
    directory: Path, stepped_s: float | None, is_taken_over: bool, elapsed_s: float | None
) -> None:
    behavior = load_behavior("tf_fine:Boiler", directory)
    found = due_step(behavior, "lamp", state(stepped_s=stepped_s, is_taken_over=is_taken_over))
    assert (None if found is None else found.elapsed_s) == elapsed_s


def test_an_obedient_device_reports_what_is_desired_and_not_reported() -> None:
    assert call_behavior(Obedient(), "x:Y", step_of()) == {"reported": {"a": 1}}
    assert call_behavior(Obedient(), "x:Y", step_of(desired={"b": [2]})) == {}
    assert call_behavior(Obedient(), "x:Y", step_of(origin="real")) == {}


async def test_the_example_of_the_readme_heats_water(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    [example] = re.findall(r"```python\n(class Boiler:.*?)```", readme, re.DOTALL)
    (directory / "tf_heating.py").write_text(example)
    monkeypatch.syspath_prepend(str(directory))
    fleet = LocalFleet(shard_count=2)
    await fleet.create_group(Group("hall", model_named("thermostat"), "hall-{i}", 20, 1, 1_767_225_600))
    assert (await fleet.ask(pin_request("hall-7", "tf_heating:Boiler"))).status == 200
    twin = fleet.twin("hall-7")
    await twin.update_desired({"set_point": 55})
    await fleet.tick([TickOrder("hall", 0, 1)])
    reported = (await twin.shadow())["state"]["reported"]
    assert reported == {"temperature": 40.0, "set_point": 55, "power": 9000}
    for tick in range(1, 3601, 10):
        await fleet.tick([TickOrder("hall", tick, 10)])
    document = await twin.shadow()
    # 15 K of 837 kJ each at 9 kW less the losses take 23 minutes; then the water stays about as warm as is desired.
    assert 54 < document["state"]["reported"]["temperature"] < 56
    assert document["version"] == 1 + 1 + 360
    assert (await fleet.ask(unpin_request("hall-7"))).status == 200
    sys.modules.pop("tf_heating")


class Failing:
    """Answers what it is told to answer, or raises it."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def step(self, twin: TwinStep) -> Any:
        if isinstance(self._answer, BaseException):
            raise self._answer
        twin.memory["kept"] = self._answer
        return self._answer


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (KeyError("room"), "step raised KeyError: 'room'"),
        (SystemExit(1), "step raised SystemExit: 1"),
        ([1], "step returned list"),
        ({"reported": {"a": object()}}, "not JSON"),
        ({"reported": {"a": 10**30}}, ""),
    ],
)
def test_what_a_behaviour_does_wrong_is_told(answer: Any, told: str) -> None:
    step = step_of()

    def answered() -> bytes:
        given = call_behavior(Failing(answer), "x:Y", step)
        return report_request("x:Y", state(), step, given).payload

    if not told:
        assert answered()
        return
    with pytest.raises(BehaviorUnusable) as refusal:
        answered()
    assert told in str(refusal.value)
