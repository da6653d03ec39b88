"""One device's executions of jobs: what may become of each, what waits, and what the device is told.

Owns the statuses and who may change them, the requests of devices with their limits, the timers, and what
`notify` and `notify-next` say. It follows AWS IoT's jobs service; where its documentation leaves a rule open, that is
said. What a job is across the fleet, and where these records are kept, is not known here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import msgspec

from twins.errors import ExecutionError, InvalidRequest
from twins.shadow import CLIENT_TOKEN_BYTES_MAX, encode_json

QUEUED: Final = "QUEUED"
IN_PROGRESS: Final = "IN_PROGRESS"
SUCCEEDED: Final = "SUCCEEDED"
FAILED: Final = "FAILED"
TIMED_OUT: Final = "TIMED_OUT"
REJECTED: Final = "REJECTED"
REMOVED: Final = "REMOVED"
CANCELED: Final = "CANCELED"
STATUSES: Final = (QUEUED, IN_PROGRESS, SUCCEEDED, FAILED, TIMED_OUT, REJECTED, REMOVED, CANCELED)
PENDING: Final = frozenset({QUEUED, IN_PROGRESS})

# Who may bring an execution from which status to which: spelled as on the wire, but for who.
_BY_DEVICE: Final = frozenset({IN_PROGRESS, SUCCEEDED, FAILED, REJECTED})
TRANSITIONS: Final[Mapping[str, Mapping[str, frozenset[str]]]] = {
    # A device may end what it has not begun.
    "device": {QUEUED: _BY_DEVICE, IN_PROGRESS: _BY_DEVICE},
    "timer": {IN_PROGRESS: frozenset({TIMED_OUT})},
    "cancel": {QUEUED: frozenset({CANCELED})},
    "force": {QUEUED: frozenset({CANCELED}), IN_PROGRESS: frozenset({CANCELED})},
    # The thing is gone, or no target any more.
    "remove": {QUEUED: frozenset({REMOVED}), IN_PROGRESS: frozenset({REMOVED})},
    # A further attempt of what the device could not do.
    "retry": {FAILED: frozenset({QUEUED}), TIMED_OUT: frozenset({QUEUED})},
}

# The service's limits.
TIMEOUT_MINUTES_MAX: Final = 10_080
_DETAIL_KEY: Final = re.compile(r"[a-zA-Z0-9:_-]{1,128}")
_DETAIL_LENGTH_MAX: Final = 1024
# The other characters of Unicode's class C: they can't be looked up here without a table of all characters.
_CONTROL: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ud800-\udfff\ufeff]"
)
_JOB_ID: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")
NEXT: Final = "$next"
# Executions of each kind that `notify` names.
_NOTIFIED_MAX: Final = 10
# A stand-in for "never"; a real time is always smaller.
NEVER_S: Final = float("inf")


class JobDefinition(msgspec.Struct, frozen=True):
    """What a job asks of every device: its document (JSON), and its in-progress timer (0: none).

    `retries` say how many further attempts follow one that ends so: by FAILED or TIMED_OUT.
    """

    job_id: str
    document: bytes
    in_progress_minutes: int = 0
    retries: dict[str, int] = {}


class Execution(msgspec.Struct):
    """One device's execution of one job; times in whole seconds, 0 for not yet. `place` is its order of arrival.

    `step_deadline_s` and `deadline_s` are when the step and the in-progress timer end, 0 without one.
    """

    job_id: str
    place: int
    queued_at_s: int
    updated_at_s: int
    status: str = QUEUED
    version: int = 1
    number: int = 1
    started_at_s: int = 0
    details: dict[str, str] = {}
    step_deadline_s: int = 0
    deadline_s: int = 0
    is_forced: bool = False

    @property
    def is_pending(self) -> bool:
        """Tell whether the device has still to do with it."""
        return self.status in PENDING

    def timer_s(self) -> float:
        """Return when the earlier of its timers ends; `NEVER_S` if none runs."""
        ends = [end for end in (self.step_deadline_s, self.deadline_s) if end]
        return min(ends) if ends and self.status == IN_PROGRESS else NEVER_S

    def state(self) -> dict[str, Any]:
        """Return the wire's `executionState`."""
        return {"status": self.status, "statusDetails": self.details, "versionNumber": self.version}

    def summary(self) -> dict[str, Any]:
        """Return it as it stands in a list of pending executions."""
        started = {"startedAt": self.started_at_s} if self.started_at_s else {}
        return {
            "jobId": self.job_id,
            "queuedAt": self.queued_at_s,
            **started,
            "lastUpdatedAt": self.updated_at_s,
            "versionNumber": self.version,
            "executionNumber": self.number,
        }

    def describe(self, now_s: float) -> dict[str, Any]:
        """Return all of it but the job's document."""
        left_s = self.timer_s() - now_s
        details = {"statusDetails": self.details} if self.details else {}
        timer = {} if left_s == NEVER_S else {"approximateSecondsBeforeTimedOut": max(0, round(left_s))}
        return {**self.summary(), "status": self.status, **details, **timer}

    def move(self, to: str, *, by: str, now_s: int) -> None:
        """Change the status, in place; ExecutionError if `by` (a key of `TRANSITIONS`) may not do that."""
        if to not in TRANSITIONS[by].get(self.status, frozenset()):
            text = f"An execution that is {self.status} cannot become {to}"
            raise ExecutionError("InvalidStateTransition", text, self.state())
        self.status = to
        self.version += 1
        self.updated_at_s = now_s
        if to != IN_PROGRESS:
            self.step_deadline_s = self.deadline_s = 0

    def begin(self, definition: JobDefinition, now_s: int) -> None:
        """Note the beginning of an execution that has just become IN_PROGRESS, in place."""
        self.started_at_s = now_s
        if definition.in_progress_minutes:
            self.deadline_s = now_s + 60 * definition.in_progress_minutes

    def set_step_timer(self, minutes: int | None, now_s: int) -> None:
        """Set the step timer (None: leave it; -1: end it), in place; the in-progress timer goes on beside it."""
        if minutes is not None:
            self.step_deadline_s = 0 if minutes == -1 else now_s + 60 * minutes

    def expire(self, now_s: int) -> bool:
        """Time the execution out, in place, if a timer has ended; tell whether one had."""
        if self.timer_s() > now_s:
            return False
        self.move(TIMED_OUT, by="timer", now_s=now_s)
        return True

    def try_again(self, now_s: int) -> None:
        """Begin a further attempt, in place: another execution number, queued anew."""
        self.move(QUEUED, by="retry", now_s=now_s)
        self.number += 1
        self.version = 1
        self.queued_at_s, self.started_at_s, self.details = now_s, 0, {}


def pending(executions: Mapping[str, Execution]) -> list[Execution]:
    """Return the executions that a device has still to do with, the next one first."""
    found = [each for each in executions.values() if each.is_pending]
    return sorted(found, key=lambda each: (each.status == QUEUED, each.queued_at_s, each.place))


def pending_body(executions: Mapping[str, Execution]) -> dict[str, Any]:
    """Return the two lists of pending executions, as on `get/accepted`."""
    lists: dict[str, Any] = {"inProgressJobs": [], "queuedJobs": []}
    for each in pending(executions):
        lists["queuedJobs" if each.status == QUEUED else "inProgressJobs"].append(each.summary())
    return lists


class Watch:
    """What was pending before a change, so that the device can be told afterwards what became of it."""

    def __init__(self, executions: Mapping[str, Execution]) -> None:
        self._executions = executions
        self._ids, self._head = self._present()

    def _present(self) -> tuple[frozenset[tuple[str, int]], tuple[str, int] | None]:
        names = [(each.job_id, each.number) for each in pending(self._executions)]
        return frozenset(names), names[0] if names else None

    def notify(self, now_s: int) -> bytes | None:
        """Return the body of `notify`; None if the set of pending executions is what it was."""
        if self._present()[0] == self._ids:
            return None
        jobs: dict[str, list[Any]] = {}
        for each in pending(self._executions):
            jobs.setdefault(each.status, []).append(each.summary())
        named = {status: summaries[:_NOTIFIED_MAX] for status, summaries in jobs.items()}
        return encode_json({"timestamp": now_s, "jobs": named})

    def notify_next(self, definitions: Mapping[str, JobDefinition], now_s: int) -> bytes | None:
        """Return the body of `notify-next`; None if the next execution is the one that it was."""
        if self._present()[1] == self._head:
            return None
        body: dict[str, Any] = {"timestamp": now_s}
        for each in pending(self._executions)[:1]:
            document = msgspec.Raw(definitions[each.job_id].document)
            body["execution"] = {**each.describe(now_s), "jobDocument": document}
        return encode_json(body)


# Requests of devices


def check_details(details: Mapping[str, str] | None) -> None:
    """Refuse, with ExecutionError, status details beyond the service's limits."""
    for key, value in (details or {}).items():
        if not _DETAIL_KEY.fullmatch(key):
            text = f"statusDetails: {key[:40]!r} is no name: 1 to 128 of letters, digits, :, _ and -"
            raise ExecutionError("InvalidRequest", text)
        if not 1 <= len(value) <= _DETAIL_LENGTH_MAX or _CONTROL.search(value):
            text = (
                f"statusDetails.{key}: 1 to {_DETAIL_LENGTH_MAX} characters, none of them a control character"
            )
            raise ExecutionError("InvalidRequest", text)


def check_step_timer(minutes: int | None) -> None:
    """Refuse, with ExecutionError, what is no step timer."""
    if minutes is not None and minutes != -1 and not 1 <= minutes <= TIMEOUT_MINUTES_MAX:
        text = f"stepTimeoutInMinutes must be from 1 to {TIMEOUT_MINUTES_MAX}, or -1 to end the timer"
        raise ExecutionError("InvalidRequest", text)


class StartNext(msgspec.Struct, frozen=True, rename="camel"):
    """The payload of `start-next`."""

    status_details: dict[str, str] | None = None
    step_timeout_in_minutes: int | None = None
    client_token: str | None = None

    def __post_init__(self) -> None:
        check_details(self.status_details)
        check_step_timer(self.step_timeout_in_minutes)


class Describe(msgspec.Struct, frozen=True, rename="camel"):
    """The payload of `JOB/get`."""

    execution_number: int | None = None
    include_job_document: bool = True
    client_token: str | None = None


class Update(msgspec.Struct, frozen=True, rename="camel"):
    """The payload of `JOB/update`."""

    status: str
    status_details: dict[str, str] | None = None
    expected_version: int | None = None
    execution_number: int | None = None
    include_job_execution_state: bool = False
    include_job_document: bool = False
    step_timeout_in_minutes: int | None = None
    client_token: str | None = None

    def __post_init__(self) -> None:
        if self.status not in _BY_DEVICE:
            text = f"status must be one of {', '.join(sorted(_BY_DEVICE))}"
            raise ExecutionError("InvalidRequest", text)
        check_details(self.status_details)
        check_step_timer(self.step_timeout_in_minutes)


_decode_any: Final = msgspec.json.Decoder().decode
_JobRequest = TypeVar("_JobRequest", StartNext, Describe, Update)
_decoders: Final[Mapping[type, Callable[[bytes], Any]]] = {
    kind: msgspec.json.Decoder(kind).decode for kind in (StartNext, Describe, Update)
}


def parse_request(payload: bytes, kind: type[_JobRequest]) -> _JobRequest:
    """Return a device's request; ExecutionError (InvalidJson or InvalidRequest) if it is none of its kind."""
    try:
        payload.decode()
        if not isinstance(_decode_any(payload or b"{}"), dict):
            raise ExecutionError("InvalidRequest", "The payload must be a JSON object")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ExecutionError("InvalidJson", "The payload is not JSON in UTF-8") from None
    try:
        request: _JobRequest = _decoders[kind](payload or b"{}")
    except msgspec.DecodeError as error:
        raise ExecutionError("InvalidRequest", str(error)) from None
    if len((request.client_token or "").encode()) > CLIENT_TOKEN_BYTES_MAX:
        raise ExecutionError("InvalidRequest", f"clientToken has at most {CLIENT_TOKEN_BYTES_MAX} bytes")
    return request


def is_job_id(text: str) -> bool:
    """Tell whether `text` may name a job."""
    return _JOB_ID.fullmatch(text) is not None


def require_job_id(text: str, *, may_be_next: bool = False) -> None:
    """Refuse, with ExecutionError (InvalidTopic), what may not stand for a job in a topic."""
    if not is_job_id(text) and not (may_be_next and text == NEXT):
        raise ExecutionError(
            "InvalidTopic", f"{text[:70]!r} is no job id: 1 to 64 of letters, digits, _ and -"
        )


def find(executions: Mapping[str, Execution], job_id: str, number: int | None = None) -> Execution:
    """Return an execution; ExecutionError (ResourceNotFound) if there is none of that job and number."""
    found = executions.get(job_id)
    if found is None or number not in (None, found.number):
        which = "" if number is None else f" number {number}"
        raise ExecutionError(
            "ResourceNotFound", f"There is no execution{which} of job {job_id!r} for this thing"
        )
    return found


def start_next(
    executions: Mapping[str, Execution],
    request: StartNext,
    definitions: Mapping[str, JobDefinition],
    now_s: int,
) -> Execution | None:
    """Return the next execution, begun now, in place, unless it had begun; None if nothing is pending."""
    head = next(iter(pending(executions)), None)
    if head is not None and head.status == QUEUED:
        head.move(IN_PROGRESS, by="device", now_s=now_s)
        head.begin(definitions[head.job_id], now_s)
        head.details = request.status_details or head.details
        head.set_step_timer(request.step_timeout_in_minutes, now_s)
    return head


def update(execution: Execution, request: Update, definition: JobDefinition, now_s: int) -> None:
    """Carry out a device's update, in place; ExecutionError if it builds on another version, or may not be.

    Open: whether status details are merged or replaced; they are replaced.
    """
    if request.expected_version not in (None, execution.version):
        text = f"The version is {execution.version}, not {request.expected_version}"
        raise ExecutionError("VersionMismatch", text, execution.state())
    begins = execution.status == QUEUED
    execution.move(request.status, by="device", now_s=now_s)
    if begins and request.status == IN_PROGRESS:
        execution.begin(definition, now_s)
    if request.status_details is not None:
        execution.details = request.status_details
    if request.status == IN_PROGRESS:
        execution.set_step_timer(request.step_timeout_in_minutes, now_s)


def retries_left(execution: Execution, definition: JobDefinition) -> bool:
    """Tell whether a further attempt is to follow an execution that has just ended."""
    return execution.number <= definition.retries.get(execution.status, 0)


def check_definition(definition: JobDefinition) -> None:
    """Refuse, with InvalidRequest, what no device could be given."""
    if not is_job_id(definition.job_id):
        raise InvalidRequest("a job id has 1 to 64 letters, digits, underscores and hyphens")
