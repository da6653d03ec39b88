"""A device of an audit: it reports numbered updates over MQTT, does what operators wish, and writes down what it hears.

It follows the recipe of the documents for a device that must not miss anything: after every connect it subscribes, gets
its shadows, and applies every delta that is not older than the last. Every second device asks the broker to keep its
session, and all break their connection now and then without a farewell.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from scenarios.auditor_clients import Client, Recorder, fields_of
from scenarios.device_link import LINK_ERRORS, DeviceLink, LinkSettings
from twins.topics import shadow_prefix

SHADOW_NAMES: Final = ("", "config")
_VERBS: Final = (
    "get/accepted",
    "get/rejected",
    "update/accepted",
    "update/rejected",
    "update/delta",
    "update/documents",
)
# Below the ten that a thing may have in flight: what lost its answer still counts at the bridge for a while.
_IN_FLIGHT_MAX: Final = 4
# An answer takes milliseconds. One that comes later all the same is written down, too.
_ANSWER_TIMEOUT_S: Final = 5.0
# Every so many updates one names the version that it expects: it must be carried out once or not at all.
_VERSIONED_EVERY: Final = 5
# How long a connection lasts before the device breaks it, in seconds.
_LINK_LIFE_S: Final = (4.0, 12.0)
_RETRY_S: Final = (0.05, 0.5)
# How often the device looks whether an answer is overdue, or agreement is missing.
_LOOK_S: Final = 0.2
# A shadow that has not come to agree is reported again so often when the load is over.
_INSIST_EVERY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class _Request:
    number: int
    due_s: float
    # The wishes that a report has copied; None: a get.
    wishes: Mapping[str, int] | None


@dataclass(slots=True)
class _Shadow:
    """What a device knows of one of its shadows."""

    version: int = 0
    # The version of the last delta that was applied, and the wishes of all of them.
    delta_version: int = 0
    wishes: dict[str, int] = field(default_factory=dict)
    agreed: dict[str, int] | None = None
    reported_at_s: float = 0.0


class AuditedDevice:
    """One device. `live` keeps it connected; when it says what nobody has asked for is its conductor's to decide."""

    def __init__(self, recorder: Recorder, link_settings: LinkSettings, *, draws: random.Random) -> None:
        self.name: Final = link_settings.thing_name
        self.connect_count = 0
        self._client = Client(self.name, recorder, is_direct=False)
        self._link_settings = link_settings
        self._draws = draws
        self._link: DeviceLink | None = None
        # By client token: all requests, because an answer may be late and may come twice; and those without one.
        self._requests: dict[str, _Request] = {}
        self._open: set[str] = set()
        self._shadows = {shadow_name: _Shadow() for shadow_name in SHADOW_NAMES}
        self._topics = {
            f"{shadow_prefix(self.name, shadow_name)}/{verb}": (shadow_name, verb)
            for shadow_name in SHADOW_NAMES
            for verb in _VERBS
        }

    async def live(self, ended: asyncio.Event) -> None:
        """Be connected, again and again, until `ended` is set; what is due is sent by `update` and `insist`."""
        while not ended.is_set():
            link = DeviceLink(self._link_settings, self._heard)
            with contextlib.suppress(*LINK_ERRORS):
                await link.open(list(self._topics))
                await self._serve(link, ended)
            self._link = None
            if ended.is_set():
                await link.close()
            else:
                link.drop()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), self._draws.uniform(*_RETRY_S))

    async def _serve(self, link: DeviceLink, ended: asyncio.Event) -> None:
        self.connect_count += 1
        self._link = link
        for shadow_name in SHADOW_NAMES:
            self._send(shadow_name, None)
        end_s = time.monotonic() + self._draws.uniform(*_LINK_LIFE_S)
        while not (ended.is_set() or link.lost.is_set() or time.monotonic() > end_s):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(link.lost.wait(), _LOOK_S)
            self._give_up_overdue()

    # What the device says

    def update(self) -> None:
        """Report the next number in one of the shadows, if the device is connected and not too much is in flight."""
        shadow_name = self._draws.choice(SHADOW_NAMES)
        self._report(shadow_name)

    def insist(self) -> None:
        """Report again where the platform may not know yet that a wish was granted; for when the load is over."""
        now_s = time.monotonic()
        for shadow_name, shadow in self._shadows.items():
            if shadow.agreed != shadow.wishes and now_s - shadow.reported_at_s > _INSIST_EVERY_S:
                self._report(shadow_name, is_urgent=True)

    def conclude(self) -> None:
        """Let a last report of each shadow be due, whose delta tells of every wish that was not heard."""
        for shadow in self._shadows.values():
            shadow.agreed = None

    @property
    def agrees(self) -> bool:
        """Tell whether every wish that was heard has been reported, and the report accepted."""
        return all(shadow.agreed == shadow.wishes for shadow in self._shadows.values())

    def _report(self, shadow_name: str, *, is_urgent: bool = False) -> None:
        shadow = self._shadows[shadow_name]
        number = self._client.next_number()
        is_versioned = not is_urgent and shadow.version > 0 and number % _VERSIONED_EVERY == 0
        body: dict[str, Any] = {"state": {"reported": {self.name: number, **shadow.wishes}}}
        if is_versioned:
            body["version"] = shadow.version
        self._send(shadow_name, body, wishes=dict(shadow.wishes))

    def _send(
        self, shadow_name: str, body: dict[str, Any] | None, *, wishes: Mapping[str, int] | None = None
    ) -> None:
        if self._link is None or len(self._open) >= _IN_FLIGHT_MAX:
            return
        now_s = time.monotonic()
        if body is not None:
            self._shadows[shadow_name].reported_at_s = now_s
        number = self._client.begin(self.name, shadow_name, {} if body is None else fields_of(body["state"]))
        token = f"{self.name}:{number}"
        self._requests[token] = _Request(number, now_s + _ANSWER_TIMEOUT_S, wishes)
        self._open.add(token)
        verb = "get" if body is None else "update"
        payload = msgspec.json.encode({**(body or {}), "clientToken": token})
        try:
            self._link.publish(f"{shadow_prefix(self.name, shadow_name)}/{verb}", payload)
        except (OSError, OverflowError):
            self._link.lost.set()

    def _give_up_overdue(self) -> None:
        now_s = time.monotonic()
        for token in [token for token in self._open if self._requests[token].due_s < now_s]:
            self._open.discard(token)
            self._client.unknown(self._requests[token].number, f"no answer within {_ANSWER_TIMEOUT_S:g} s")

    # What the device hears

    def _heard(self, topic: str, payload: bytes) -> None:
        shadow_name, verb = self._topics[topic]
        self._take(shadow_name, verb, msgspec.json.decode(payload, type=dict[str, Any]))

    def _take(self, shadow_name: str, verb: str, body: dict[str, Any]) -> None:
        match verb:
            case "update/accepted" | "get/accepted":
                self._accepted(shadow_name, body)
            case "update/rejected" | "get/rejected":
                self._rejected(verb, body)
            case "update/documents":
                current = body["current"]
                self._observe(shadow_name, "documents", current["version"], fields_of(current["state"]))
            case "update/delta":
                wishes = fields_of({"desired": body["state"]})
                self._observe(shadow_name, "delta", body["version"], wishes)
                self._apply(shadow_name, body["version"], body["state"])

    def _observe(self, shadow_name: str, topic: str, version: int, values: Mapping[str, int]) -> None:
        shadow = self._shadows[shadow_name]
        shadow.version = max(shadow.version, version)
        self._client.observed(self.name, shadow_name, topic, version, values)

    def _accepted(self, shadow_name: str, body: dict[str, Any]) -> None:
        request = self._request_of(body)
        if request is None:
            return
        version = body["version"]
        shadow = self._shadows[shadow_name]
        shadow.version = max(shadow.version, version)
        if request.wishes is None:
            self._client.accepted(request.number, version, fields_of(body["state"]))
            self._apply(shadow_name, version, body["state"].get("delta", {}))
        else:
            self._client.accepted(request.number, version)
            shadow.agreed = dict(request.wishes)

    def _rejected(self, verb: str, body: dict[str, Any]) -> None:
        request = self._request_of(body)
        if request is not None:
            self._client.refused(request.number, f"{verb}: {body.get('code')} {body.get('message', '')}")

    def _request_of(self, body: dict[str, Any]) -> _Request | None:
        """Return what an answer answers; None where it is an operator's."""
        token = str(body.get("clientToken"))
        self._open.discard(token)
        return self._requests.get(token)

    def _apply(self, shadow_name: str, version: int, delta: Mapping[str, int]) -> None:
        """Grant the wishes of a delta, unless it is older than the last one, and report at once."""
        shadow = self._shadows[shadow_name]
        if not delta or version < shadow.delta_version:
            return
        shadow.delta_version = version
        known = dict(shadow.wishes)
        shadow.wishes.update(delta)
        if shadow.wishes != known:
            self._report(shadow_name, is_urgent=True)
