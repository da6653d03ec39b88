"""Payloads of the platform's own requests, as they are read, and what a refusal says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec

from twins.errors import InvalidRequest, RequestError, TwinNotFound
from twins.handover import PinOrder, PinReport
from twins.messages import SHADOW_OPERATION, Connectivity, Listening, Operation, Registration, Request
from twins.shadow import client_token_of, encode_json

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
    body: dict[str, Any] = {"code": error.code, "message": error.message}
    # The service leaves the time out where there is no shadow.
    if error.code != 404:
        body["timestamp"] = now_s
    token = client_token_of(request.payload)
    if token is not None:
        body["clientToken"] = token
    return encode_json(body)


_OF_DEVICES: Final = frozenset({*SHADOW_OPERATION.values(), Operation.TELEMETRY, Operation.DEFENDER})


def require_caller(request: Request) -> None:
    """Refuse, with TwinNotFound, what the device of a thing sent before the thing was unregistered.

    It was on its way through broker and bridge, and would make a twin again. Operators may do as they like.
    """
    if not request.is_direct and request.operation in _OF_DEVICES:
        raise TwinNotFound.of(request.thing_name)
