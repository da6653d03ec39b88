"""One device's executions of commands: what may become of each, in which order they go out, and when it is too late.

Owns statuses and who may change them, the answers of devices with their limits, and the queue of what waits until the
device listens. It follows AWS IoT's commands, and goes beyond them where a device is offline: a command waits for it
until it expires, and goes out in its place.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from twins.errors import ExecutionError
from twins.messages import Delivery, Publish
from twins.topics import command_topic, matches

CREATED: Final = "CREATED"
IN_PROGRESS: Final = "IN_PROGRESS"
SUCCEEDED: Final = "SUCCEEDED"
FAILED: Final = "FAILED"
REJECTED: Final = "REJECTED"
TIMED_OUT: Final = "TIMED_OUT"
STATUSES: Final = (CREATED, IN_PROGRESS, SUCCEEDED, FAILED, REJECTED, TIMED_OUT)
NO_RESPONSE: Final = "$NO_RESPONSE_FROM_DEVICE"

_ANSWERS: Final = frozenset({IN_PROGRESS, SUCCEEDED, FAILED, REJECTED, TIMED_OUT})
# Who may bring an execution from which status to which.
TRANSITIONS: Final[Mapping[str, Mapping[str, frozenset[str]]]] = {
    "device": {CREATED: _ANSWERS, IN_PROGRESS: _ANSWERS},
    "timer": {CREATED: frozenset({TIMED_OUT}), IN_PROGRESS: frozenset({TIMED_OUT})},
    # What the platform took for lost, and the device did all the same.
    "late": {TIMED_OUT: _ANSWERS - {IN_PROGRESS}},
}

# The service's limits; a name of a result may hold what its model says.
_REASON_CODE: Final = re.compile(r"[A-Z0-9_-]{1,64}")
_REASON_LENGTH_MAX: Final = 1024
_RESULT_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,32}")
_EXECUTION_ID: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")
# Commands of one thing that may wait or be under way: more than a person sends, few enough for a small device.
OPEN_COUNT_MAX: Final = 100
# Executions of one thing that are remembered when they are over.
HISTORY_COUNT_MAX: Final = 100
# MQTT 5, 3.3.2.3: message expiry, content type.
_EXPIRY: Final = b"\x02"
_CONTENT_TYPE: Final = b"\x03"
_FORMATS: Final = {"application/json": "/json", "application/cbor": "/cbor"}


class CommandOrder(msgspec.Struct, frozen=True):
    """Send a command to a thing: the payload as it is, to be answered within `timeout_s`."""

    execution_id: str
    command: str
    payload: bytes
    content_type: str
    timeout_s: int


class CommandExecution(msgspec.Struct):
    """One device's execution of one command; times in POSIX seconds, 0 for not yet.

    `is_sent`: it has gone out since the device began to listen to such.
    """

    order: CommandOrder
    created_at_s: float
    updated_at_s: float
    status: str = CREATED
    started_at_s: float = 0.0
    completed_at_s: float = 0.0
    reason_code: str = ""
    reason_description: str = ""
    result: dict[str, dict[str, Any]] = {}
    is_sent: bool = False

    @property
    def is_open(self) -> bool:
        """Tell whether an answer is still expected."""
        return self.status in (CREATED, IN_PROGRESS)

    @property
    def deadline_s(self) -> float:
        """Return when it is too late for the device."""
        return self.created_at_s + self.order.timeout_s

    def move(self, to: str, *, by: str, now_s: float) -> None:
        """Change the status, in place; ExecutionError if `by` (a key of `TRANSITIONS`) may not do that."""
        if to not in TRANSITIONS[by].get(self.status, frozenset()):
            kind = "InvalidStateTransition" if self.is_open else "TerminalStateReached"
            raise ExecutionError(kind, f"An execution that is {self.status} cannot become {to}")
        if to == IN_PROGRESS:
            self.started_at_s = self.started_at_s or now_s
        else:
            self.completed_at_s = now_s
        self.status, self.updated_at_s = to, now_s

    def expire(self, now_s: float) -> None:
        """Time it out, in place, if it is too late by now."""
        if self.is_open and now_s >= self.deadline_s:
            self.move(TIMED_OUT, by="timer", now_s=now_s)
            self.reason_code = NO_RESPONSE
            self.reason_description = "the device did not answer in time"

    def describe(self) -> dict[str, Any]:
        """Return all of it, as JSON has it."""
        reason = {"reasonCode": self.reason_code, "reasonDescription": self.reason_description}
        return {
            "executionId": self.order.execution_id,
            "command": self.order.command,
            "status": self.status,
            "statusReason": {key: text for key, text in reason.items() if text} or None,
            "result": self.result,
            "createdAt": self.created_at_s,
            "startedAt": self.started_at_s or None,
            "completedAt": self.completed_at_s or None,
            "lastUpdatedAt": self.updated_at_s,
            "executionTimeoutSeconds": self.order.timeout_s,
        }


class CommandQueue(msgspec.Struct):
    """The commands of one thing, open and over, in the order in which they were sent.

    `is_listening` since the device subscribed on its present connection: what is sent then reaches it in order.
    """

    executions: dict[str, CommandExecution] = {}
    is_listening: bool = False

    def send(self, order: CommandOrder, thing_name: str, now_s: float) -> list[Publish]:
        """Take a command in, in place, and return what goes out now; the same execution again changes nothing.

        ExecutionError if too many are open.
        """
        if order.execution_id in self.executions:
            return []
        if sum(each.is_open for each in self.executions.values()) >= OPEN_COUNT_MAX:
            text = (
                f"{OPEN_COUNT_MAX} commands wait for {thing_name} or are under way; wait until some are over"
            )
            raise ExecutionError("RequestThrottled", text)
        # A float whatever the clock gave: that is what a snapshot gives back.
        self.executions[order.execution_id] = CommandExecution(order, float(now_s), float(now_s))
        over = [name for name, each in self.executions.items() if not each.is_open]
        for name in over[: max(0, len(over) - HISTORY_COUNT_MAX)]:
            del self.executions[name]
        return self._go_out(thing_name, now_s)

    def listen(self, topic_filters: Sequence[str], thing_name: str, now_s: float) -> list[Publish]:
        """Note that the device listens to filters, in place, and return what has waited for it, in its order.

        What it has been sent and not answered goes out again: it may have come before it listened.
        """
        self.is_listening = True
        for each in self.executions.values():
            topic = _request_topic(each.order, thing_name)
            each.is_sent = each.is_sent and not any(matches(one, topic) for one in topic_filters)
        return self._go_out(thing_name, now_s)

    def stop_listening(self) -> None:
        """Note that the device has come or gone, in place: what it was sent before may not have reached it."""
        self.is_listening = False
        for each in self.executions.values():
            each.is_sent = False

    def _go_out(self, thing_name: str, now_s: float) -> list[Publish]:
        if not self.is_listening:
            return []
        found = []
        for each in self.executions.values():
            left_s = int(each.deadline_s - now_s)
            # The broker keeps a message for whole seconds, of which there must be one.
            if each.status == CREATED and not each.is_sent and left_s >= 1:
                each.is_sent = True
                found.append(_request(each.order, thing_name, left_s))
        return found

    def expire(self, now_s: float) -> None:
        """Time out what is too late, in place."""
        for each in self.executions.values():
            each.expire(now_s)

    def timer_s(self) -> float:
        """Return when the next of the open ones is too late; infinity if none is open."""
        return min(
            (each.deadline_s for each in self.executions.values() if each.is_open), default=float("inf")
        )

    def find(self, execution_id: str) -> CommandExecution:
        """Return an execution; ExecutionError (ResourceNotFound) if there is none."""
        found = self.executions.get(execution_id)
        if found is None:
            text = f"There is no command execution {execution_id[:70]!r} of this thing"
            raise ExecutionError("ResourceNotFound", text)
        return found


def _request_topic(order: CommandOrder, thing_name: str) -> str:
    return f"{command_topic(thing_name, order.execution_id)}/request{_FORMATS.get(order.content_type, '')}"


def _request(order: CommandOrder, thing_name: str, expiry_s: int) -> Publish:
    content_type = order.content_type.encode()
    properties = _EXPIRY + expiry_s.to_bytes(4, "big")
    if content_type:
        properties += _CONTENT_TYPE + len(content_type).to_bytes(2, "big") + content_type
    return Publish(_request_topic(order, thing_name), order.payload, Delivery(1, False, properties))


# Answers of devices


class _Reason(msgspec.Struct, frozen=True, rename="camel"):
    reason_code: str
    reason_description: str = ""


class CommandAnswer(msgspec.Struct, frozen=True, rename="camel"):
    """What a device says of an execution, or of how it went."""

    status: str
    status_reason: _Reason | None = None
    result: dict[str, dict[str, Any]] | None = None


_decode_any: Final = msgspec.json.Decoder().decode
_decode_answer: Final = msgspec.json.Decoder(CommandAnswer).decode


def parse_answer(payload: bytes) -> CommandAnswer:
    """Return a device's answer; ExecutionError (InvalidJson or InvalidRequest) if it is none."""
    try:
        payload.decode()
        _decode_any(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ExecutionError("InvalidJson", "The payload is not JSON in UTF-8") from None
    try:
        answer = _decode_answer(payload)
    except msgspec.DecodeError as error:
        raise ExecutionError("InvalidRequest", str(error)) from None
    if answer.status not in _ANSWERS:
        raise ExecutionError("InvalidRequest", f"status must be one of {', '.join(sorted(_ANSWERS))}")
    reason = answer.status_reason
    if reason is not None and not _REASON_CODE.fullmatch(reason.reason_code):
        text = "statusReason.reasonCode has 1 to 64 of capital letters, digits, _ and -"
        raise ExecutionError("InvalidRequest", text)
    if reason is not None and len(reason.reason_description) > _REASON_LENGTH_MAX:
        text = f"statusReason.reasonDescription has at most {_REASON_LENGTH_MAX} characters"
        raise ExecutionError("InvalidRequest", text)
    for name, value in (answer.result or {}).items():
        _check_result(name, value)
    return answer


def _check_result(name: str, value: Mapping[str, Any]) -> None:
    if not _RESULT_NAME.fullmatch(name):
        text = f"result: {name[:40]!r} is no name: 1 to 32 of letters, digits, _ and -"
        raise ExecutionError("InvalidRequest", text)
    key, content = next(iter(value.items()), ("", None))
    is_text = key in ("s", "bin") and isinstance(content, str) and (key == "s" or _is_base64(content))
    if len(value) != 1 or not (is_text or (key == "b" and isinstance(content, bool))):
        text = f'result.{name} must be one of {{"s": text}}, {{"b": true or false}} and {{"bin": Base64}}'
        raise ExecutionError("InvalidRequest", text)


def _is_base64(text: str) -> bool:
    try:
        base64.b64decode(text, validate=True)
    except ValueError:
        return False
    return True


def require_execution_id(text: str) -> None:
    """Refuse, with ExecutionError (InvalidTopic), what may not stand for an execution in a topic."""
    if not _EXECUTION_ID.fullmatch(text):
        problem = f"{text[:70]!r} is no execution id: 1 to 64 of letters, digits, _ and -"
        raise ExecutionError("InvalidTopic", problem)


def take_answer(execution: CommandExecution, answer: CommandAnswer, now_s: float) -> None:
    """Carry out what a device says, in place; ExecutionError if the execution is over.

    What the device has told already may be told again: its answer may have been lost on the way. What the platform
    has given up (`NO_RESPONSE`) the device may still tell of.
    """
    if execution.status == answer.status and answer.status not in (IN_PROGRESS, TIMED_OUT):
        return
    is_late = execution.status == TIMED_OUT and execution.reason_code == NO_RESPONSE
    execution.move(answer.status, by="late" if is_late else "device", now_s=now_s)
    reason = answer.status_reason
    execution.reason_code = "" if reason is None else reason.reason_code
    execution.reason_description = "" if reason is None else reason.reason_description
    if answer.result is not None:
        execution.result = answer.result
