"""Where faults of platform and wire are refused before anything is broken, and what those of the wire do to a relay."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from actors.settings import Endpoints, MqttsEndpoint, RayEndpoint, UrlEndpoint
from scenarios.errors import FaultImpossible
from scenarios.platform_trouble import PlatformTrouble
from scenarios.reading import load_scenario, parse_scenario
from scenarios.relay import Conditions, Relay
from scenarios.spec import WireFault
from scenarios.trouble import Moment
from scenarios.wire_trouble import WireTrouble, conditions_of, wire_for

LIBRARY = Path(__file__).parents[2] / "scenarios" / "library" / "chaos"
HEAD = "apiVersion: twinfleet/v1\nkind: Scenario\nmetadata: {name: test}\nduration: 1m\n"
KILL = HEAD + "faults: [{name: outage, at: 9s, action: kill, component: shard}]\n"
SLOW = (
    HEAD
    + "faults: [{name: slow, at: 9s, duration: 1s, action: latency, latency: 1s, between: [devices, broker]}]\n"
)


def endpoints(tmp_path: Path, *, host: str = "127.0.0.1") -> Endpoints:
    token = tmp_path / "operator.token"
    token.write_text("secret")
    return Endpoints(
        # No process has a number that large, and so none is below it.
        pid=2**31 - 1,
        version="1",
        mqtts=MqttsEndpoint(host, 1),
        api=UrlEndpoint(f"http://{host}:1"),
        metrics=UrlEndpoint(f"http://{host}:1/metrics"),
        ca="ca.pem",
        operator_token_file=str(token),
        redis=UrlEndpoint("redis://127.0.0.1:1"),
        ray=RayEndpoint("127.0.0.1:1", "ray.token", "twinfleet"),
    )


@pytest.mark.parametrize(
    ("host", "words"),
    [("10.1.2.3", "only one on loopback"), ("127.0.0.1", "no process of a platform runs below")],
)
async def test_only_a_platform_of_this_machine_is_struck(host: str, words: str, tmp_path: Path) -> None:
    trouble = PlatformTrouble(endpoints(tmp_path, host=host), tmp_path)
    with pytest.raises(FaultImpossible, match=words):
        await trouble.begin(parse_scenario(KILL), lambda: Moment(0, 0))
    await trouble.abandon()


async def test_a_relay_is_put_between_on_loopback_only_and_only_where_it_is_wanted(tmp_path: Path) -> None:
    away = endpoints(tmp_path, host="10.1.2.3")
    with pytest.raises(FaultImpossible, match="only on loopback"):
        async with wire_for(parse_scenario(SLOW), away):
            pass
    async with wire_for(parse_scenario(KILL), away) as (through, relay):
        assert (through, relay) == (away, None)


def fault(action: Any, duration_s: float = 0.2, **more: Any) -> WireFault:
    return WireFault("fault", action, 0, duration_s, **more)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("latency, latency: 300ms, jitter: 100ms", fault("latency", 1.5, latency_s=0.3, jitter_s=0.1)),
        ("loss, percent: 5", fault("loss", 1.5, percent=5)),
        ("bandwidth, rate: 4000", fault("bandwidth", 1.5, rate=4000)),
        ("partition, direction: up", fault("partition", 1.5, direction="up")),
        ("disconnect", fault("disconnect", 1.5)),
        ("reset_peer, every: 500ms", fault("reset_peer", 1.5, interval_s=0.5)),
        ("flap, interval: 1s", fault("flap", 1.5, interval_s=1)),
    ],
)
def test_a_fault_of_the_wire_is_read_as_it_is_written(text: str, read: WireFault) -> None:
    written = (
        f"faults: [{{name: fault, at: 9s, duration: 1500ms, action: {text}, between: [devices, broker]}}]\n"
    )
    assert parse_scenario(HEAD + written).faults == (dataclasses.replace(read, at_s=9),)


@pytest.mark.parametrize(
    ("one", "conditions"),
    [
        (fault("latency", latency_s=0.3, jitter_s=0.1), Conditions(latency_s=0.3, jitter_s=0.1)),
        (fault("jitter", jitter_s=0.1), Conditions(jitter_s=0.1)),
        (fault("loss", percent=5), Conditions(loss_ratio=0.05)),
        (fault("bandwidth", rate=4000), Conditions(rate=4000)),
        (fault("partition"), Conditions(held=frozenset(("up", "down")))),
        (fault("partition", direction="up"), Conditions(held=frozenset(("up",)))),
        (fault("disconnect"), Conditions(is_down=True)),
    ],
    ids=lambda value: value.action if isinstance(value, WireFault) else "",
)
async def test_a_fault_of_the_wire_lasts_and_is_over(one: WireFault, conditions: Conditions) -> None:
    relay = Relay("127.0.0.1", 1)
    assert conditions_of(one) == conditions
    lasting = asyncio.create_task(WireTrouble(relay).carry_out(one))
    await until(lambda: relay.conditions == conditions)
    await lasting
    assert relay.conditions == Conditions()


async def until(is_true: Any) -> None:
    async with asyncio.timeout(30):
        while not is_true():
            await asyncio.sleep(0)


async def test_two_faults_of_the_wire_add_up_and_one_that_is_broken_off_is_mended() -> None:
    relay = Relay("127.0.0.1", 1)
    trouble = WireTrouble(relay)
    slow = asyncio.create_task(trouble.carry_out(fault("latency", 600.0, latency_s=1.0)))
    narrow = asyncio.create_task(
        trouble.carry_out(dataclasses.replace(fault("bandwidth", 600.0, rate=9.0), name="narrow"))
    )
    await until(lambda: relay.conditions == Conditions(latency_s=1.0, rate=9.0))
    slow.cancel()
    await asyncio.gather(slow, return_exceptions=True)
    assert relay.conditions == Conditions(rate=9.0)
    narrow.cancel()
    await asyncio.gather(narrow, return_exceptions=True)
    assert relay.conditions == Conditions()


async def test_who_flaps_is_down_and_up_by_turns() -> None:
    relay = Relay("127.0.0.1", 1)
    lasting = asyncio.create_task(WireTrouble(relay).carry_out(fault("flap", 600.0, interval_s=0.01)))
    for is_down in (True, False, True, False):
        await until(lambda is_down=is_down: relay.conditions.is_down is is_down)
    lasting.cancel()
    await asyncio.gather(lasting, return_exceptions=True)
    assert not relay.conditions.is_down


@pytest.mark.parametrize(
    "name", ["broker-restart", "shard-kill", "redis-kill", "bridge-kill", "flaky-uplink"]
)
def test_scenarios_that_break_a_platform_can_be_read_and_say_what_they_are_for(name: str) -> None:
    file = LIBRARY / f"{name}.yaml"
    scenario = load_scenario(file)
    assert scenario.name == name
    assert "no_acknowledged_update_lost" in scenario.checks
    head = file.read_text().partition("apiVersion")[0]
    assert [word in head for word in ("Goal.", "Method.", "Expected.")] == [True] * 3
    recoveries = {
        threshold.metric for threshold in scenario.thresholds if "recovery_time" in threshold.metric
    }
    each = {f"recovery_time{{fault:{fault.name}}}" for fault in scenario.faults}
    assert recoveries in ({"recovery_time"}, each)
