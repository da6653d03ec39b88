"""What a real device of a scenario does, apart from how its messages travel: a state machine of messages and events.

It reports on time, reads its shadow whenever it connects, obeys every delta that it can, and tells what it has seen.
It reads no clock: time is what the caller says, in seconds of one clock that never goes back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec

from twins.model import Counter, Decay, DeviceModel, Field, RandomWalk
from twins.topics import shadow_prefix

# A reply that has not come after so long will not come: ten times the slowest that a scenario would accept.
REPLY_TIMEOUT_S: Final = 30.0
# Below mosquitto's default window of 20 messages in flight: gmqtt raises where the broker's window is exceeded.
PENDING_MAX: Final = 15

EventKind = Literal[
    "connected", "accepted", "delta", "obeyed", "rejected", "unanswered", "disconnected", "failed"
]


class DeviceEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something that a device has seen; one line of JSON where it travels between processes.

    `accepted`: a report with its `state`, `version` and round trip `latency_ms`, from the time at which the report was
    due; `obeyed` the same for the report that followed a delta. `delta`: the wished `state`. `message` says why.
    """

    kind: EventKind
    version: int = 0
    latency_ms: float = 0.0
    state: dict[str, Any] = {}
    message: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """Something to be published at QoS 1."""

    topic: str
    payload: bytes


@dataclass(slots=True)
class Reaction:
    """What a device does and tells in answer to something."""

    messages: list[Message] = field(default_factory=list)
    events: list[DeviceEvent] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Pending:
    """A report without an answer yet; `intended_s` is when it was due."""

    intended_s: float
    state: Mapping[str, Any]
    is_obeying: bool


class DeviceBrain:
    """One device: its values, its next report, and what it waits for. All methods work in place."""

    def __init__(
        self, thing_name: str, model: DeviceModel, *, report_every_s: float, speed: float = 1.0
    ) -> None:
        self.prefix: Final = shadow_prefix(thing_name)
        self.values: dict[str, Any] = {item.name: first_value(item) for item in model.fields}
        self._room_time_constant_s = _room_time_constant_s(model)
        self._settable = {item.name: item for item in model.fields if item.is_settable}
        self._report_every_s = report_every_s
        self._speed = speed
        self._next_report_s: float | None = None
        self._started_s: float | None = None
        self._pending: dict[str, _Pending] = {}
        self._token_count = 0
        self._delta_version = 0

    @property
    def filters(self) -> tuple[str, ...]:
        """Return the topics that the device must be subscribed to before `on_connected`."""
        return tuple(
            f"{self.prefix}/{answer}"
            for answer in (
                "get/accepted",
                "get/rejected",
                "update/accepted",
                "update/rejected",
                "update/delta",
            )
        )

    @property
    def next_due_s(self) -> float | None:
        """Return when `on_timer` wants to be called next, or None before the first connection."""
        return self._next_report_s

    def on_connected(self, now_s: float) -> Reaction:
        """Ask for the shadow: what was missed stands there; and report at once."""
        if self._next_report_s is None:
            self._next_report_s = self._started_s = now_s
        return Reaction([Message(f"{self.prefix}/get", b"")], [DeviceEvent("connected")])

    def on_timer(self, now_s: float) -> Reaction:
        """Report if it is time; a report that is late counts from the time at which it was due."""
        reaction = self._give_up(now_s)
        due_s = self._next_report_s
        if due_s is None or now_s < due_s or len(self._pending) >= PENDING_MAX:
            return reaction
        periods = int((now_s - due_s) / self._report_every_s) + 1
        self._next_report_s = due_s + periods * self._report_every_s
        self._live_on(now_s)
        reaction.messages.append(self._report(dict(self.values), due_s, is_obeying=False))
        return reaction

    def on_message(self, topic: str, payload: bytes, now_s: float) -> Reaction:
        """Take in what came on one of the `filters`; anything that is not JSON is told as an event."""
        try:
            body = msgspec.json.decode(payload, type=dict[str, Any])
        except msgspec.DecodeError as error:
            return Reaction([], [DeviceEvent("failed", message=f"{topic}: {error}")])
        match topic.removeprefix(f"{self.prefix}/"):
            case "update/accepted":
                return self._accepted(body, now_s)
            case "update/rejected":
                self._pending.pop(str(body.get("clientToken")), None)
                return Reaction([], [_rejection("update", body)])
            case "update/delta":
                return self._obey(body.get("state", {}), int(body.get("version", 0)), now_s)
            case "get/accepted":
                state = body.get("state", {})
                return self._obey(state.get("delta", {}), int(body.get("version", 0)), now_s)
            case "get/rejected":
                # A device that never reported has no shadow.
                return Reaction() if body.get("code") == 404 else Reaction([], [_rejection("get", body)])
        return Reaction()

    def on_disconnected(self, reason: str) -> Reaction:
        """Note that the connection is gone; what has no answer yet is asked for again by reporting."""
        lost = [DeviceEvent("unanswered", message="the connection ended first")] * len(self._pending)
        self._pending.clear()
        return Reaction([], [DeviceEvent("disconnected", message=reason), *lost])

    def _accepted(self, body: Mapping[str, Any], now_s: float) -> Reaction:
        # A second delivery of a reply has no one waiting for it, nor has the answer to an operator's update.
        pending = self._pending.pop(str(body.get("clientToken")), None)
        if pending is None:
            return Reaction()
        event = DeviceEvent(
            "obeyed" if pending.is_obeying else "accepted",
            version=int(body.get("version", 0)),
            latency_ms=(now_s - pending.intended_s) * 1000,
            state=dict(pending.state),
        )
        return Reaction([], [event])

    def _obey(self, wished: Mapping[str, Any], version: int, now_s: float) -> Reaction:
        # At least once and in any order: an older wish has been overtaken.
        if not wished or version < self._delta_version:
            return Reaction()
        self._delta_version = version
        reaction = Reaction([], [DeviceEvent("delta", version=version, state=dict(wished))])
        answer = {name: value for name, value in wished.items() if self._can_be(name, value)}
        # Every report that leaves a difference announces it again; what is on its way need not be sent twice.
        on_its_way = any(pending.is_obeying and pending.state == answer for pending in self._pending.values())
        # With too many in flight the next report will bring this delta again.
        if answer and not on_its_way and len(self._pending) < PENDING_MAX:
            self.values.update(answer)
            reaction.messages.append(self._report(answer, now_s, is_obeying=True))
        return reaction

    def _can_be(self, name: str, value: Any) -> bool:
        settable = self._settable.get(name)
        if settable is None:
            return False
        if settable.dtype == "choice":
            return isinstance(value, str) and value in settable.choices
        if isinstance(value, bool) or settable.dtype == "bool":
            return isinstance(value, bool) and settable.dtype == "bool"
        return isinstance(value, (int, float)) and settable.minimum <= value <= settable.maximum

    def _report(self, state: Mapping[str, Any], intended_s: float, *, is_obeying: bool) -> Message:
        self._token_count += 1
        token = str(self._token_count)
        self._pending[token] = _Pending(intended_s, state, is_obeying)
        body = {"state": {"reported": state}, "clientToken": token}
        return Message(f"{self.prefix}/update", msgspec.json.encode(body))

    def _give_up(self, now_s: float) -> Reaction:
        late = [token for token, one in self._pending.items() if now_s - one.intended_s > REPLY_TIMEOUT_S]
        for token in late:
            del self._pending[token]
        text = f"no answer within {REPLY_TIMEOUT_S:g} s"
        return Reaction([], [DeviceEvent("unanswered", message=text)] * len(late))

    def _live_on(self, now_s: float) -> None:
        """Let the values become those of this moment, in place: the room follows the set point."""
        if not self._room_time_constant_s or self._started_s is None:
            return
        uptime_s = int((now_s - self._started_s) * self._speed)
        elapsed_s = uptime_s - self.values["uptime"]
        share = elapsed_s / (self._room_time_constant_s + elapsed_s)
        temperature = self.values["temperature"]
        temperature += (self.values["set_point"] - temperature) * share
        self.values.update(temperature=round(temperature, 2), uptime=uptime_s)


def first_value(field: Field) -> Any:
    """Return what a new device reports of a field: counters at their beginning, stores full, the rest in the middle."""
    if field.dtype == "choice":
        return field.choices[0]
    if field.dtype == "bool":
        return field.start.low == 1.0
    value = (field.start.low + field.start.high) / 2
    if isinstance(field.generator, Counter):
        value = field.minimum
    elif isinstance(field.generator, Decay):
        value = field.maximum
    return round(value, field.decimals) if field.column_dtype.kind == "f" else int(value)


def _room_time_constant_s(model: DeviceModel) -> float:
    """Return how fast a device's temperature follows its set point, 0 for one of another kind."""
    fields = {field.name: field for field in model.fields}
    if not {"temperature", "set_point", "uptime"} <= fields.keys():
        return 0.0
    generator = fields["temperature"].generator
    return generator.time_constant_s if isinstance(generator, RandomWalk) else 0.0


def _rejection(request: str, body: Mapping[str, Any]) -> DeviceEvent:
    return DeviceEvent("rejected", message=f"{request}: {body.get('code')} {body.get('message', '')}")
