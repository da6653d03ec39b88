"""Faults of the wire between real devices and the broker, carried out by a relay that their connections go through.

Owns what each action of a `WireFault` does to the relay, and that several at once add up.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import reduce
from ipaddress import ip_address
from typing import Final

from actors.settings import Endpoints
from scenarios.errors import FaultImpossible
from scenarios.relay import Conditions, Direction, Relay
from scenarios.spec import Scenario, WireFault

_BOTH: Final[frozenset[Direction]] = frozenset(("up", "down"))


def conditions_of(fault: WireFault) -> Conditions:
    """Return what a relay does all the time while a fault lasts; what comes and goes is `WireTrouble`'s."""
    match fault.action:
        case "partition":
            return Conditions(held=_BOTH if fault.direction == "both" else frozenset((fault.direction,)))
        case "disconnect":
            return Conditions(is_down=True)
    return Conditions(fault.latency_s, fault.jitter_s, fault.percent / 100, fault.rate)


class WireTrouble:
    """Lets faults happen on one relay."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._active: dict[str, Conditions] = {}

    async def carry_out(self, fault: WireFault) -> None:
        """Let a fault happen and return when it is over, or this is cancelled: then it is mended too."""
        until_s = time.monotonic() + fault.duration_s
        try:
            match fault.action:
                case "flap":
                    await self._flap(fault, until_s)
                case "reset_peer":
                    await self._reset(fault, until_s)
                case _:
                    self._set(fault.name, conditions_of(fault))
                    await asyncio.sleep(fault.duration_s)
        finally:
            self._set(fault.name, Conditions())

    async def _flap(self, fault: WireFault, until_s: float) -> None:
        is_down = True
        while (left_s := until_s - time.monotonic()) > 0:
            self._set(fault.name, Conditions(is_down=is_down))
            await asyncio.sleep(min(left_s, fault.interval_s))
            is_down = not is_down

    async def _reset(self, fault: WireFault, until_s: float) -> None:
        while (left_s := until_s - time.monotonic()) > 0:
            self._relay.reset_all()
            await asyncio.sleep(min(left_s, fault.interval_s or left_s))

    def _set(self, name: str, conditions: Conditions) -> None:
        self._active[name] = conditions
        self._relay.apply(reduce(Conditions.and_also, self._active.values()))


@asynccontextmanager
async def wire_for(scenario: Scenario, endpoints: Endpoints) -> AsyncIterator[tuple[Endpoints, Relay | None]]:
    """Give the endpoints that real devices are to use: a relay's, if the scenario has faults on the wire.

    FaultImpossible where the broker does not answer on loopback: nobody else's connections are led astray.
    """
    named = next((each.name for each in scenario.faults if isinstance(each, WireFault)), None)
    if named is None:
        yield endpoints, None
        return
    mqtts = endpoints.mqtts
    if not is_loopback(mqtts.host):
        raise FaultImpossible(
            f"fault {named!r}: devices connect to {mqtts.host}; only on loopback a relay is put between"
        )
    relay = Relay(mqtts.host, mqtts.port, seed=scenario.seed)
    port = await relay.start(mqtts.host)
    try:
        yield dataclasses.replace(endpoints, mqtts=dataclasses.replace(mqtts, port=port)), relay
    finally:
        await relay.close()


def is_loopback(host: str) -> bool:
    """Tell whether a host, by name or address, is this very machine and nobody else can reach it."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
