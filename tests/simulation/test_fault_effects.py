"""What each fault of simulated devices does shows in a metric, or in the twins, and does not where it is left out."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping
from typing import Final

import pytest

from actors.fleet import LocalFleet
from scenarios.devices import LocalDevices
from scenarios.engine import RunOptions, conduct
from scenarios.reading import parse_scenario
from twins.faults import TROUBLES

SCENARIO: Final = """
apiVersion: twinfleet/v1
kind: Scenario
metadata: {name: effects}
seed: 3
duration: 2m
groups: [{name: rooms, count: 200, report_every: 5s, network: {latency: 20ms}}]
"""
# By action: its parameters, and what holds in two minutes with this fault in the second of them, and not without it.
# Of 200 devices that report every five seconds about 4,700 reports arrive; few are ever offline.
EFFECTS: Final[Mapping[str, tuple[str, str]]] = {
    "latency": ("latency: 700ms", "report_latency: p(95) > 600"),
    "jitter": ("jitter: 800ms", "report_latency: p(95) > 300"),
    "loss": ("percent: 50", "reports_lost: count > 800"),
    "duplicate": ("percent: 50", "reports_duplicated: count > 800"),
    "reorder": ("percent: 50", "reports_reordered: count > 400"),
    "corrupt": ("percent: 50", "reports_refused: count > 800"),
    "bandwidth": ("rate: 100", "report_latency: p(95) > 900"),
    "partition": ("direction: up", "reports_lost: count > 1500"),
    "disconnect": ("", "connected_ratio: min < 0.1"),
    "flap": ("interval: 10s", "connected_ratio: min < 0.1"),
    "crash": ("restart_after: 20s", "connected_ratio: min < 0.1"),
    "reboot": ("restart_after: 20s", "connected_ratio: min < 0.1"),
    "power_cut": ("spread: 10s", "connected_ratio: min < 0.1"),
    "cert_expiry": ("renew_after: 1h", "connected_ratio: min < 0.6"),
    "reconnect_storm": ("rate: 20", "connect_attempts: count > 400"),
    "duplicate_id": ("", "connected_ratio: min < 0.7"),
    "hang": ("", "reports_silent: count > 1500"),
    "battery_drain": (
        "field: battery, rate: 2",
        "twins: reported_battery < 45",
    ),
    "sensor_drift": (
        "field: temperature, rate: 0.2",
        "twins: reported_temperature > 27",
    ),
    "sensor_spike": (
        "field: temperature, value: 15, percent: 100",
        "twins: reported_temperature > 30",
    ),
    "sensor_missing": (
        "field: temperature",
        "twins: reported_temperature_at < reported_humidity_at - 30",
    ),
    "malformed_payload": ("percent: 50", "reports_refused: count > 800"),
    "clock_skew": ("offset: 1h", "reports_misdated: count > 1500"),
    "bad_time_server": ("offset: 24h", "reports_misdated: count > 1500"),
}


# Most of the 200 devices, for what is asked of the twins in SQL.
MOST: Final = 150


def judged(expectation: str) -> str:
    """Return an expectation as scenarios write it."""
    metric, condition = expectation.split(": ")
    if metric == "twins":
        sql = f"select count(*) from twins where {condition}"
        return f"assertions: [{{name: effect, sql: {sql}, expect: '> {MOST}'}}]\n"
    return f"thresholds: {{{metric}: ['{condition}']}}\n"


async def is_met(expectation: str, fault: str, fleet: LocalFleet, *, duration: str = "2m") -> bool:
    """Run the scenario with a fault, or without one, and tell whether the expectation was met."""
    faults = f"faults: [{{name: fault, at: 1m, duration: 1m, {fault}}}]\n" if fault else ""
    scenario = parse_scenario(SCENARIO.replace("2m", duration) + faults + judged(expectation))
    result = await conduct(scenario, fleet, LocalDevices(fleet), RunOptions(keep_fleet=True))
    assert result.verdict in ("PASS", "FAIL"), result.reason
    return result.verdict == "PASS"


@pytest.fixture(scope="module")
def without_fault() -> Mapping[str, bool]:
    """Return which expectations are met by one run without any fault."""
    scenario = parse_scenario(SCENARIO)
    expectations = dict.fromkeys(expectation for _, expectation in EFFECTS.values())
    several = [parse_scenario(SCENARIO + judged(each)) for each in expectations]
    scenario = dataclasses.replace(
        scenario,
        thresholds=tuple(one for each in several for one in each.thresholds),
        assertions=tuple(
            dataclasses.replace(one, name=f"{one.name} {number}")
            for number, each in enumerate(several)
            for one in each.assertions
        ),
    )
    fleet = LocalFleet(1)
    result = asyncio.run(conduct(scenario, fleet, LocalDevices(fleet), RunOptions()))
    measured = iter(one.outcome == "PASS" for one in result.thresholds)
    asked = iter(one.outcome == "PASS" for one in result.assertions)
    return {each: next(asked if each.startswith("twins: ") else measured) for each in expectations}


@pytest.mark.parametrize("action", EFFECTS)
async def test_a_fault_has_its_effect_and_without_it_there_is_none(
    action: str, without_fault: Mapping[str, bool]
) -> None:
    parameters, expectation = EFFECTS[action]
    fault = f"action: {action}{', ' if parameters else ''}{parameters}"
    assert await is_met(expectation, fault, LocalFleet(1))
    assert not without_fault[expectation]


async def test_a_stuck_sensor_stays_at_what_it_said_and_another_does_not() -> None:
    async def temperatures(fault: str, duration: str) -> list[float]:
        fleet = LocalFleet(1)
        await is_met("reports: count > 0", fault, fleet, duration=duration)
        return list((await fleet.twins_table(["reported_temperature"]))["reported_temperature"].to_pylist())

    before = await temperatures("", "1m")
    stuck = await temperatures("action: sensor_stuck, field: temperature", "2m")
    moving = await temperatures("", "2m")
    assert sum(a == b for a, b in zip(before, stuck, strict=True)) > MOST
    assert sum(a == b for a, b in zip(before, moving, strict=True)) < len(before) - MOST


def test_every_action_has_its_effect_in_a_test() -> None:
    assert EFFECTS.keys() | {"sensor_stuck"} == TROUBLES.keys()
