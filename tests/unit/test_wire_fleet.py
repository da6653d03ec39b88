"""What a fleet on the wire makes of a scenario's orders, and how many processes it takes."""

from __future__ import annotations

from typing import Any

import pytest

from scenarios.load_crew import process_count_for
from scenarios.wire_fleet import as_json
from twins.model import DeviceModel
from twins.shipped import MODELS


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.name)
def test_what_is_desired_of_a_group_is_asked_of_each_twin_as_it_was_written(model: DeviceModel) -> None:
    for field in model.fields:
        if not field.is_settable:
            continue
        values: tuple[Any, ...] = (field.minimum, field.maximum)
        if field.dtype in ("bool", "choice"):
            values = (False, True) if field.dtype == "bool" else field.choices
        for value in values:
            found = as_json(field, field.as_number(value))
            assert found == value
            assert isinstance(found, bool) == (field.dtype == "bool")


def test_load_processes_are_as_many_as_descriptors_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scenarios.load_crew.open_file_count_max", lambda: 20_000)
    assert process_count_for(1) == 1
    assert process_count_for(18_000) == 1
    assert process_count_for(20_000) == 2
    assert process_count_for(100_000) == 6
    assert process_count_for(100, wanted=3) == 3
