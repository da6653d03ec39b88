"""What a report tells of the parts of a fleet: by group, model and attribute, and its worst devices."""

from __future__ import annotations

from actors.fleet import LocalFleet
from scenarios.devices import LocalDevices
from scenarios.engine import RunOptions, conduct
from scenarios.reading import parse_scenario

SCENARIO = """
apiVersion: twinfleet/v1
kind: Scenario
metadata: {name: cohorts}
seed: 5
duration: 2m
groups:
  - {name: rooms, count: 300, report_every: 5s, attributes: {site: {choice: [ams, ber]}}}
  # Their names begin like those of the others, and are not theirs.
  - {name: rooms-b, count: 20, report_every: 5s, thing_name: "rooms-b-{i}"}
steps:
  - {at: 30s, set_desired: {group: rooms, state: {set_point: 25}}}
faults:
  - {name: outage, at: 20s, duration: 100s, action: disconnect, select: {where: "attributes.site:ber"}}
"""


async def test_cohorts_and_worst_devices_tell_whom_an_outage_hit() -> None:
    fleet = LocalFleet(3)
    result = await conduct(parse_scenario(SCENARIO), fleet, LocalDevices(fleet), RunOptions())
    cohorts = {(one.group, one.by, one.value): one for one in result.cohorts}
    assert cohorts.keys() == {
        ("rooms", "group", "rooms"),
        ("rooms", "model", "thermostat"),
        ("rooms", "site", "ams"),
        ("rooms", "site", "ber"),
        ("rooms-b", "group", "rooms-b"),
        ("rooms-b", "model", "thermostat"),
    }
    ams, ber = (cohorts["rooms", "site", site] for site in ("ams", "ber"))
    assert ams.device_count + ber.device_count == cohorts["rooms", "group", "rooms"].device_count == 300
    assert cohorts["rooms-b", "group", "rooms-b"].device_count == 20
    assert ams.connected_ratio > 0.9
    assert (ber.connected_ratio, ber.delta_count) == (0.0, ber.device_count)
    assert ber.version_avg < ams.version_avg / 2
    assert ber.silent_s_max >= 80
    assert len(result.worst_devices) == 10
    # Some others were offline of their own accord.
    assert sum(one.attributes["site"] == "ber" for one in result.worst_devices) >= 6
    assert [one.version for one in result.worst_devices] == sorted(
        one.version for one in result.worst_devices
    )
    assert not result.worst_devices[0].is_connected


async def test_a_device_that_never_said_a_word_is_silent_for_the_whole_run() -> None:
    text = SCENARIO.replace("at: 20s, duration: 100s", "at: 0s, duration: 120s").replace(
        "set_desired: {group: rooms,", "set_desired: {group: rooms-b,"
    )
    fleet = LocalFleet(1)
    result = await conduct(parse_scenario(text), fleet, LocalDevices(fleet), RunOptions())
    worst = result.worst_devices[0]
    assert (worst.version, worst.silent_s, worst.is_connected) == (0, 120, False)
    assert {one.silent_s_max for one in result.cohorts if one.value == "ber"} == {120}
