"""Fleet queries in a shard, where a real device has the place of a simulated one; and parts that are put together."""

from __future__ import annotations

import pytest

from twins.errors import QueryError
from twins.fleet_answer import FleetAnswer, FleetQuestion, answer_question
from twins.messages import Batch, Operation, Request, TickOrder
from twins.model import Attribute, Group
from twins.shard import Shard
from twins.shipped import model_named

START_S = 1_767_225_600
NOW_S = START_S + 100


@pytest.fixture(scope="module")
def shard() -> Shard:
    """Return ten simulated homes, of which the first is in the hands of a real device."""
    made = Shard(0, 1)
    site = Attribute("site", ("ber",))
    thermostat = model_named("thermostat")
    made.create_group(Group("homes", thermostat, "home-{i}", 10, 1, START_S, attributes=(site,)))
    made.tick(TickOrder("homes", 0, 10))
    registration = b'{"model": "thermostat", "attributes": {"site": "rom", "serial": "7"}}'
    report = b'{"state": {"reported": {"temperature": 77, "extra": 1}}}'
    requests = [
        Request(Operation.REGISTER, "home-0", registration),
        Request(Operation.SHADOW_UPDATE, "home-0", report),
    ]
    made.apply(Batch("", 0, requests), NOW_S)
    return made


@pytest.mark.parametrize(
    ("query", "real", "simulated_count"),
    [
        ("*", ["home-0"], 9),
        ("origin:real", ["home-0"], 0),
        ("origin:simulated", [], 9),
        ("attributes.site:rom", ["home-0"], 0),
        ("attributes.serial:7", ["home-0"], 0),
        ("shadow.reported.temperature>=77", ["home-0"], 0),
        ("shadow.reported.extra:1", ["home-0"], 0),
        ("NOT shadow.reported.extra:*", [], 9),
        ("thingName:home-? AND connectivity.connected:false AND attributes.site:rom", ["home-0"], 0),
    ],
)
def test_a_real_device_in_a_simulated_place_counts_as_real(
    shard: Shard, query: str, real: list[str], simulated_count: int
) -> None:
    answers = [
        answer_question(
            shard, FleetQuestion(query, name_count_max=20, has_real=of_real, has_simulated=not of_real), NOW_S
        )
        for of_real in (True, False)
    ]
    assert (answers[0].count, answers[0].names) == (len(real), real)
    assert answers[1].count == simulated_count
    assert answer_question(shard, FleetQuestion(query), NOW_S).count == len(real) + simulated_count


def test_names_are_the_first_after_one_and_parts_keep_their_order() -> None:
    question = FleetQuestion("*", group_by="model", name_count_max=3)
    parts = [FleetAnswer(count=2, names=["b", "d"]), FleetAnswer(count=3, names=["a", "c", "e"])]
    for part in parts:
        part.groups["lamp"] = part.count
    whole = FleetAnswer.of(question, parts)
    assert (whole.count, whole.names, whole.groups) == (5, ["a", "b", "c"], {"lamp": 5})
    assert FleetAnswer.of(question, []).count == 0


def test_only_what_is_in_a_column_has_statistics(shard: Shard) -> None:
    with pytest.raises(QueryError, match="has no statistics"):
        answer_question(shard, FleetQuestion("*", field="thingTypeName"), NOW_S)
    answer = answer_question(
        shard, FleetQuestion("*", field="shadow.reported.no_such", group_by="model"), NOW_S
    )
    assert (len(answer.values), answer.groups) == (0, {"thermostat": 10})
