"""Payloads of the platform's own requests, as they are read, and what a refusal says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec

from twins.errors import ExecutionError, InvalidRequest, RequestError, TwinNotFound
from twins.handover import PinOrder, PinReport
from twins.messages import SHADOW_OPERATION, Connectivity, Listening, Operation, Registration, Request
from twins.shadow import client_token_of, encode_json
from twins.topics import command_topic, jobs_prefix, shadow_prefix

_Decoded = TypeVar("_Decoded")


def decoded(decode: Callable[[bytes], _Decoded], payload: bytes) -> _Decoded:
    """Return what a payload of the platform's own holds; InvalidRequest if it is another."""
    try:
        return decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(str(error)) from None


decode_registration: Final = msgspec.json.Decoder(Registration).decode
decode_connectivity: Final = msgspec.json.Decoder(Connectivity).decode
decode_listening: Final = msgspec.json.Decoder(Listening).decode
decode_pin: Final = msgspec.json.Decoder(PinOrder).decode
decode_pin_report: Final = msgspec.json.Decoder(PinReport).decode


def rejection(error: RequestError, request: Request, now_s: int) -> bytes:
    """Return the body of `rejected`, or of a direct request's refusal."""
    if request.operation is Operation.COMMAND_ANSWER and not request.is_direct:
        kind = error.kind if isinstance(error, ExecutionError) else "InvalidRequest"
        return encode_json({"error": kind, "errorMessage": error.message, "executionId": request.name})
    if request.operation in _OF_JOBS or isinstance(error, ExecutionError):
        return _execution_rejection(error, request, now_s)
    body: dict[str, Any] = {"code": error.code, "message": error.message}
    # The service leaves the time out where there is no shadow.
    if error.code != 404:
        body["timestamp"] = now_s
    token = client_token_of(request.payload)
    if token is not None:
        body["clientToken"] = token
    return encode_json(body)


def _execution_rejection(error: RequestError, request: Request, now_s: int) -> bytes:
    """Return the refusal of what concerns a job's execution; a direct one says what kind of error it is."""
    # What is no error of its own is a payload that could not be read.
    kind = error.kind if isinstance(error, ExecutionError) else _KINDS.get(error.code, "InvalidJson")
    body: dict[str, Any] = {"code": kind, "message": error.message, "timestamp": now_s}
    if request.is_direct:
        body = {"code": error.code, "message": error.message, "kind": kind}
    elif isinstance(error, ExecutionError) and error.state is not None:
        body["executionState"] = error.state
    token = client_token_of(request.payload)
    if token is not None and request.operation in _OF_JOBS:
        body["clientToken"] = token
    return encode_json(body)


_KINDS: Final = {404: "ResourceNotFound", 409: "InvalidRequest"}
_OF_JOBS: Final = frozenset({Operation.JOB_READ, Operation.JOB_CHANGE})
_SHADOW_VERB: Final = {operation: verb for verb, operation in SHADOW_OPERATION.items()}


def shadow_topic(request: Request) -> str:
    """Return the topic of a request on a shadow; its answers stand below it."""
    return f"{shadow_prefix(request.thing_name, request.name)}/{_SHADOW_VERB[request.operation]}"


def refusal_topic(request: Request) -> str:
    """Return the topic on which a device hears that its request is refused; '' if it does not."""
    if request.operation in _SHADOW_VERB:
        return f"{shadow_topic(request)}/rejected"
    if request.operation in _OF_JOBS:
        return f"{jobs_prefix(request.thing_name)}/{request.name}/rejected"
    if request.operation is Operation.COMMAND_ANSWER:
        return f"{command_topic(request.thing_name, request.name)}/response/rejected/json"
    return ""


_OF_DEVICES: Final = frozenset(
    {
        *SHADOW_OPERATION.values(),
        *_OF_JOBS,
        Operation.TELEMETRY,
        Operation.DEFENDER,
        Operation.COMMAND_ANSWER,
    }
)


def require_caller(request: Request) -> None:
    """Refuse, with TwinNotFound, what the device of a thing sent before the thing was unregistered.

    It was on its way through broker and bridge, and would make a twin again. Operators may do as they like.
    """
    if not request.is_direct and request.operation in _OF_DEVICES:
        raise TwinNotFound.of(request.thing_name)
