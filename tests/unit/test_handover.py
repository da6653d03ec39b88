"""Simulated twins in other hands: taken over by real devices and given back, pinned to behaviours and unpinned."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tests.asking import NOW_S, get, update
from twins.messages import Batch, Connectivity, Operation, Outcome, Reply, Request, TickOrder, TickSummary
from twins.model import Attribute, Group
from twins.shadow import encode_json
from twins.shard import Shard
from twins.shipped import model_named
from twins.simulated import SimulatedFleet
from twins.snapshot import dump_shard, load_shard

COUNT = 600
PERIOD = 10
SITES = Attribute("site", ("berlin", "paris"), (0.5, 0.5))
GROUP = Group("homes", model_named("thermostat"), "home-{i}", COUNT, 3, NOW_S, attributes=(SITES,))
THING = "home-7"


@pytest.fixture
def shard() -> Shard:
    return new_shard()


def new_shard() -> Shard:
    shard = Shard(0, 1)
    shard.create_group(GROUP)
    return shard


def homes(shard: Shard) -> SimulatedFleet:
    return shard.fleets["homes"]


def run(shard: Shard, ticks: int = 3 * PERIOD, **desired: float) -> TickSummary:
    return shard.tick(TickOrder("homes", homes(shard).next_tick, ticks, desired))


def ask(shard: Shard, operation: Operation, body: Any = None, *, thing: str = THING) -> Reply:
    payload = b"" if body is None else encode_json(body)
    [reply] = shard.apply(
        Batch("", 0, [Request(operation, thing, payload, is_direct=True)]), NOW_S + 5
    ).replies
    return reply


def done(shard: Shard, operation: Operation, body: Any = None, *, thing: str = THING) -> dict[str, Any]:
    reply = ask(shard, operation, body, thing=thing)
    assert reply.status == 200, reply.payload
    found: dict[str, Any] = json.loads(reply.payload)
    return found


def take_over(shard: Shard, *, thing: str = THING, **attributes: str) -> None:
    done(shard, Operation.REGISTER, {"model": "thermostat", "attributes": attributes}, thing=thing)


def connect(shard: Shard, version: int) -> None:
    done(shard, Operation.CONNECTIVITY, Connectivity(True, version, "", "s", version))


def row_of(shard: Shard, thing: str = THING) -> dict[str, Any]:
    """Return what a question finds of a twin, None where a column has nothing."""
    found: dict[str, Any] = {}
    for part in shard.select(None):
        names = [part["name"].cell(row) for row in range(len(part["name"].values))]
        if thing in names:
            found = {name: column.cell(names.index(thing)) for name, column in part.items()}
    return found


def device(shard: Shard, thing: str = THING) -> dict[str, Any]:
    found = shard.fleets["homes"]
    row = found.table.row(int(thing.removeprefix("home-")))
    return {name: column[row] for name, column in [*found.state.items(), ("connected", found.connected)]}


# Taken over


def test_a_thing_takes_the_row_of_a_simulated_device_over_with_its_shadow(shard: Shard) -> None:
    run(shard)
    before = get(shard, thing=THING)
    assert before is not None
    take_over(shard, site="oslo", floor="2")
    assert get(shard, thing=THING) == before
    found = done(shard, Operation.DESCRIBE)
    assert (found["origin"], found["connectivity"]) == ("real", None)
    assert found["attributes"] == {"site": "oslo", "floor": "2"}
    row = row_of(shard)
    assert (row["origin"], row["site"], row["floor"], row["connected"]) == ("real", "oslo", "2", None)
    other = row_of(shard, "home-8")
    assert (other["origin"], other["floor"]) == ("simulated", None)
    assert other["site"] in ("berlin", "paris")
    connect(shard, 1)
    assert row_of(shard)["connected"] == np.True_
    assert done(shard, Operation.DESCRIBE)["connectivity"]["connected"] is True


def test_the_simulation_leaves_a_row_alone_that_is_taken_over(shard: Shard) -> None:
    run(shard)
    take_over(shard)
    before, state = get(shard, thing=THING), device(shard)
    summary = run(shard, 4 * PERIOD)
    assert get(shard, thing=THING) == before
    assert device(shard) == state
    assert summary.device_ticks == 4 * PERIOD * (COUNT - 1)
    assert summary.reports_due == 4 * (COUNT - 1)
    assert summary.connected_count == np.count_nonzero(homes(shard).connected) - state["connected"]


def test_a_real_devices_reports_count_on_the_version_of_the_simulated_one(shard: Shard) -> None:
    run(shard)
    take_over(shard)
    document = get(shard, thing=THING)
    assert document is not None
    update(shard, {"state": {"reported": {"temperature": "broken", "extra": [1]}}}, thing=THING)
    run(shard)
    after = get(shard, thing=THING)
    assert after is not None
    assert after["version"] == document["version"] + 1
    # What no column holds stays as well.
    assert after["state"]["reported"] == {
        **document["state"]["reported"],
        "temperature": "broken",
        "extra": [1],
    }


def test_a_row_that_is_given_back_goes_on_from_the_state_of_its_device(shard: Shard) -> None:
    run(shard)
    take_over(shard)
    update(shard, {"state": {"reported": {"temperature": 55.5}}}, thing=THING)
    run(shard)
    state, document = device(shard), get(shard, thing=THING)
    assert document is not None
    assert done(shard, Operation.GIVE_BACK) == {"thingName": THING, "origin": "simulated"}
    assert (row_of(shard)["origin"], device(shard)) == ("simulated", state)
    homes(shard).connected[7] = 1
    run(shard, PERIOD)
    after = get(shard, thing=THING)
    assert after is not None
    assert after["version"] == document["version"] + 1
    assert after["state"]["reported"]["temperature"] < 30
    # Done twice, nothing changes.
    done(shard, Operation.GIVE_BACK)
    assert homes(shard).held.keys() == {7}


def test_a_later_connection_takes_the_row_over_again(shard: Shard) -> None:
    take_over(shard)
    connect(shard, 3)
    done(shard, Operation.GIVE_BACK)
    # What is told again of the session that was open when the row was given back.
    connect(shard, 3)
    assert row_of(shard)["origin"] == "simulated"
    # The registry tells it again what it was registered with.
    take_over(shard, site="oslo")
    assert row_of(shard)["origin"] == "simulated"
    connect(shard, 4)
    assert (row_of(shard)["origin"], row_of(shard)["site"]) == ("real", "oslo")


def test_a_thing_that_is_deleted_gives_its_row_back(shard: Shard) -> None:
    run(shard)
    take_over(shard)
    connect(shard, 1)
    update(shard, {"state": {"desired": {"a": 1}}}, thing=THING, name="config")
    before = get(shard, thing=THING)
    done(shard, Operation.UNREGISTER)
    assert (row_of(shard)["origin"], shard.connectivity) == ("simulated", {})
    assert get(shard, thing=THING) == before
    assert get(shard, thing=THING, name="config") is not None
    connect(shard, 2)
    assert row_of(shard)["origin"] == "simulated"


def test_a_thing_stays_when_the_fleet_goes_whose_row_it_has(shard: Shard) -> None:
    run(shard)
    take_over(shard, site="oslo")
    take_over(shard, thing="home-9")
    done(shard, Operation.GIVE_BACK, thing="home-9")
    before = get(shard, thing=THING)
    shard.delete_group("homes")
    assert get(shard, thing=THING) == before
    row = row_of(shard)
    assert (row["origin"], row["model"], row["site"]) == ("real", "thermostat", "oslo")
    assert row_of(shard, "home-9")["origin"] == "real"
    assert shard.twin_count() == 2


@pytest.mark.parametrize("model", ["untyped", "thermostat"])
def test_a_thing_without_a_model_of_its_own_has_that_of_the_row(shard: Shard, model: str) -> None:
    assert ask(shard, Operation.REGISTER, {"model": model}).status == 200
    assert done(shard, Operation.DESCRIBE)["model"] == "thermostat"


def test_what_was_not_taken_over_cannot_be_given_back(shard: Shard) -> None:
    done(shard, Operation.REGISTER, {"model": "thermostat"}, thing="lamp")
    for thing, status, text in (
        (THING, 400, "is simulated"),
        ("lamp", 400, "no simulated place"),
        ("nobody", 404, "No twin"),
    ):
        reply = ask(shard, Operation.GIVE_BACK, thing=thing)
        assert (reply.status, text in reply.payload.decode()) == (status, True)


def test_a_wish_for_the_whole_fleet_reaches_the_real_device_among_it(shard: Shard) -> None:
    run(shard)
    take_over(shard)
    shard.tick(TickOrder("homes", homes(shard).next_tick, 2, {"set_point": 25.5}))
    [message] = shard.announcements
    assert message.topic == f"$aws/things/{THING}/shadow/update/delta"
    assert json.loads(message.payload)["state"] == {"set_point": 25.5}
    document = get(shard, thing=THING)
    assert document is not None
    assert document["state"]["delta"] == {"set_point": 25.5}


# The digest


def digest_after(*steps: Any) -> list[tuple[str, int, bytes]]:
    shard = new_shard()
    for step in steps:
        step(shard)
    return shard.digest_leaves()


def speak(shard: Shard) -> None:
    update(
        shard,
        {"state": {"reported": {"temperature": 3.5, "x": 1}, "desired": {"set_point": 19.5}}},
        thing=THING,
    )


def give_back(shard: Shard) -> None:
    done(shard, Operation.GIVE_BACK)


def test_the_digest_does_not_depend_on_what_a_real_device_says_and_when() -> None:
    quiet = digest_after(take_over, run, run, give_back, run)
    assert digest_after(take_over, speak, run, run, give_back, run) == quiet
    assert digest_after(take_over, run, speak, run, give_back, run) == quiet
    # Nor on when its row is taken over or given back.
    assert digest_after(take_over, run, speak, give_back, run, run) == quiet
    assert digest_after(run, run, take_over, run) == quiet
    assert digest_after(run, run, run) != quiet
    # A twin that is the simulation's for good counts with what is desired of it.
    other = {"state": {"desired": {"set_point": 19.5}}}
    assert digest_after(take_over, run, lambda shard: update(shard, other, thing="home-8"), run, run) != quiet


# Pinned


@pytest.fixture
def pinned(shard: Shard) -> Shard:
    run(shard)
    assert done(shard, Operation.PIN, {"behavior": "heating:Boiler"})["behavior"] == "heating:Boiler"
    return shard


def report(after_s: float | None, at_s: float, **more: Any) -> dict[str, Any]:
    return {
        "behavior": "heating:Boiler",
        "after_s": after_s,
        "at_s": at_s,
        "state": {},
        "memory": {},
        **more,
    }


def test_a_behaviour_gets_the_state_of_its_twin_in_the_time_of_its_fleet(pinned: Shard) -> None:
    update(pinned, {"state": {"desired": {"set_point": 24.5}}}, thing=THING)
    state = done(pinned, Operation.PIN_STATE)
    document = get(pinned, thing=THING)
    assert document is not None
    assert state["desired"] == {"set_point": 24.5}
    assert state["reported"] == document["state"]["reported"]
    assert (state["now_s"], state["stepped_s"], state["memory"]) == (NOW_S + 3 * PERIOD, None, {})
    assert (state["origin"], state["is_taken_over"]) == ("simulated", False)
    assert set(state["attributes"]) == {"site"}
    assert done(pinned, Operation.DESCRIBE)["pin"] == {"behavior": "heating:Boiler", "stepped_at": None}


def test_what_a_behaviour_answers_is_kept_once_with_what_it_remembers(pinned: Shard) -> None:
    before = get(pinned, thing=THING)
    assert before is not None
    answer = report(None, NOW_S + 30, state={"reported": {"temperature": 70.5}}, memory={"burns": 1})
    done(pinned, Operation.PIN_REPORT, answer)
    state = done(pinned, Operation.PIN_STATE)
    assert (state["stepped_s"], state["memory"]) == (NOW_S + 30, {"burns": 1})
    # Another one that was called with the same state comes too late.
    assert ask(pinned, Operation.PIN_REPORT, answer).status == 409
    after = get(pinned, thing=THING)
    assert after is not None
    assert after["version"] == before["version"] + 1
    assert after["state"]["reported"]["temperature"] == 70.5
    assert after["metadata"]["reported"]["temperature"] == {"timestamp": NOW_S + 3 * PERIOD}
    run(pinned)
    again = get(pinned, thing=THING)
    assert again is not None
    assert again["version"] == after["version"]


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"behavior": "heating:Other"}, 409),
        ({"after_s": 3.0}, 409),
        ({"state": {"reported": {"a": [None]}}}, 400),
        ({"state": {"planned": {}}}, 400),
        ({"state": {"reported": {"a": "x" * 9000}}}, 413),
        ({"memory": {"a": "x" * 70_000}}, 413),
        ({"memory": None}, 400),
    ],
)
def test_an_answer_that_may_not_be_changes_nothing(
    pinned: Shard, changes: dict[str, Any], status: int
) -> None:
    before = dump_shard(pinned)
    assert ask(pinned, Operation.PIN_REPORT, report(None, 1.0) | changes).status == status
    assert dump_shard(pinned) == before


def test_a_behaviour_rests_while_a_real_device_has_the_row(pinned: Shard) -> None:
    take_over(pinned)
    state = done(pinned, Operation.PIN_STATE)
    assert (state["origin"], state["is_taken_over"]) == ("real", True)
    answer = report(None, 1.0, state={"reported": {"temperature": 70.5}})
    assert ask(pinned, Operation.PIN_REPORT, answer).status == 409
    done(pinned, Operation.GIVE_BACK)
    assert done(pinned, Operation.PIN_STATE)["is_taken_over"] is False
    before = get(pinned, thing=THING)
    run(pinned)
    assert get(pinned, thing=THING) == before


def test_a_twin_that_is_unpinned_goes_on_from_what_its_behaviour_reported(pinned: Shard) -> None:
    answer = report(None, 1.0, state={"reported": {"temperature": 28.25, "humidity": 10**400}})
    done(pinned, Operation.PIN_REPORT, answer)
    done(pinned, Operation.UNPIN)
    assert device(pinned)["temperature"] == 28.25
    assert device(pinned)["humidity"] == 100
    assert ask(pinned, Operation.PIN_STATE).status == 404
    assert ask(pinned, Operation.UNPIN).status == 400
    homes(pinned).connected[7] = 1
    run(pinned, PERIOD)
    document = get(pinned, thing=THING)
    assert document is not None
    assert 26 < document["state"]["reported"]["temperature"] < 30


def test_the_digest_leaves_out_what_is_or_was_pinned() -> None:
    def pin(shard: Shard) -> None:
        done(shard, Operation.PIN, {"behavior": "heating:Boiler"})

    def step(shard: Shard) -> None:
        done(shard, Operation.PIN_REPORT, report(None, 1.0, state={"reported": {"temperature": 28.25}}))

    def unpin(shard: Shard) -> None:
        done(shard, Operation.UNPIN)

    assert digest_after(pin, run, step, unpin, run) == digest_after(run, pin, run)


def test_a_twin_is_pinned_to_one_behaviour_at_a_time(pinned: Shard) -> None:
    done(pinned, Operation.PIN, {"behavior": "heating:Boiler"})
    reply = ask(pinned, Operation.PIN, {"behavior": "heating:Other"})
    assert (reply.status, b"unpin it first" in reply.payload) == (400, True)
    for name in ("", "Boiler", "heating.Boiler", "heating:", "os;x:Y", "a:b.c"):
        reply = ask(pinned, Operation.PIN, {"behavior": name}, thing="home-8")
        assert (reply.status, b"module:Class" in reply.payload) == (400, True)
    assert ask(pinned, Operation.PIN, thing="nobody").status == 404


def test_a_behaviour_may_desire_of_a_real_device_and_not_report_for_it(shard: Shard) -> None:
    done(shard, Operation.REGISTER, {"model": "thermostat"}, thing="lamp")
    done(shard, Operation.PIN, {"behavior": "heating:Boiler"}, thing="lamp")
    assert done(shard, Operation.PIN_STATE, thing="lamp")["origin"] == "real"
    reply = ask(shard, Operation.PIN_REPORT, report(None, 1.0, state={"reported": {"a": 1}}), thing="lamp")
    assert (reply.status, b"reports itself" in reply.payload) == (400, True)
    done(shard, Operation.PIN_REPORT, report(None, 1.0, state={"desired": {"a": 1}}), thing="lamp")
    document = get(shard)
    assert document is not None
    assert document["state"]["desired"] == {"a": 1}
    done(shard, Operation.UNREGISTER, thing="lamp")
    assert shard.handover.pins == {}


# Written down


def test_all_of_it_stands_in_a_snapshot(pinned: Shard) -> None:
    take_over(pinned, thing="home-20", site="oslo")
    take_over(pinned, thing="home-21")
    done(pinned, Operation.GIVE_BACK, thing="home-21")
    done(pinned, Operation.PIN_REPORT, report(None, 1.0, memory={"burns": 1}))
    again = load_shard(dump_shard(pinned))
    assert dump_shard(again) == dump_shard(pinned)
    for shard in (again, pinned):
        run(shard)
    assert dump_shard(again) == dump_shard(pinned)
    assert again.digest_leaves() == pinned.digest_leaves()


# In mid-tick


def begun(shard: Shard) -> None:
    shard.begin(TickOrder("homes", homes(shard).next_tick, 20))
    for _ in range(5):
        assert shard.ticking.advance()


def outcome_in_mid_tick(shard: Shard, request: Request) -> Outcome:
    begun(shard)
    return shard.apply(Batch("", 0, [request]), NOW_S)


def test_a_question_is_answered_in_the_middle_of_ticks(shard: Shard) -> None:
    run(shard)
    outcome = outcome_in_mid_tick(shard, Request(Operation.SHADOW_GET, THING))
    assert len(outcome.publishes) == 1
    assert shard.ticking.is_at("homes")
    assert not shard.ticking.is_at("offices")
    while shard.ticking.advance():
        pass
    summary = shard.ticking.take("homes")
    other = new_shard()
    run(other)
    assert run(other, 20) == summary
    assert other.digest_leaves() == shard.digest_leaves()
    assert shard.ticking.take("homes") is None


@pytest.mark.parametrize("what", ["request", "order", "snapshot", "columns", "digest", "deletion"])
def test_whatever_changes_or_shows_a_whole_shard_waits_for_whole_ticks(shard: Shard, what: str) -> None:
    def act(shard: Shard) -> Any:
        if what == "request":
            return update(shard, {"state": {"desired": {"set_point": 23.5}}}, thing=THING)
        if what == "order":
            return shard.tick(TickOrder("homes", homes(shard).next_tick, 3, {"set_point": 24.0}))
        if what == "snapshot":
            return dump_shard(shard)
        if what == "columns":
            return str(
                [(name, list(column.values)) for part in shard.select(None) for name, column in part.items()]
            )
        return shard.delete_group("homes") if what == "deletion" else shard.digest_leaves()

    order = TickOrder("homes", 0, 20)
    shard.begin(order)
    for _ in range(5):
        assert shard.ticking.advance()
    other = new_shard()
    whole = other.tick(order)
    if what == "order":
        # It begins where the first one ends.
        while shard.ticking.advance():
            pass
        assert shard.ticking.take("homes") == whole
    assert act(shard) == act(other)
    if what != "order":
        assert shard.ticking.take("homes") == whole
    assert not shard.ticking.is_at("homes")
    assert dump_shard(shard) == dump_shard(other)
