"""How many shadow requests of each thing the bridge holds, and the answer to one too many.

A request is in flight from its arrival at the bridge until the broker has taken its answer over.
"""

from __future__ import annotations

from typing import Any, Final

from twins.messages import SHADOW_OPERATION, Publish, Request
from twins.shadow import client_token_of, encode_json
from twins.topics import shadow_prefix

# The device shadow service's own number; its page on error messages names it for the code 429.
SHADOW_REQUESTS_MAX: Final = 10
# The page gives no text for this code. This one is what a device of the service was answered, as its owner shows in
# issue 307 of aws/aws-iot-device-sdk-python-v2.
_MESSAGE: Final = "TOO_MANY_REQUESTS"
_VERB: Final = {operation: verb for verb, operation in SHADOW_OPERATION.items()}


class ShadowRequests:
    """The shadow requests in flight, counted by thing."""

    def __init__(self) -> None:
        self._count_of: dict[str, int] = {}

    def begin(self, thing_name: str, *, is_bounded: bool) -> bool:
        """Count a request of a thing; False (and not counted) if it is bounded and the thing has its ten."""
        count = self._count_of.get(thing_name, 0)
        if is_bounded and count >= SHADOW_REQUESTS_MAX:
            return False
        self._count_of[thing_name] = count + 1
        return True

    def end(self, thing_name: str) -> None:
        """Count a request no more."""
        count = self._count_of[thing_name] - 1
        if count:
            self._count_of[thing_name] = count
        else:
            del self._count_of[thing_name]


def too_many_requests(request: Request, now_s: float) -> Publish:
    """Return the answer to a shadow request that is one too many of its thing.

    It echoes the client token, or the SDK would wait a minute for it: the only payloads that the bridge reads.
    """
    body: dict[str, Any] = {"code": 429, "message": _MESSAGE, "timestamp": int(now_s)}
    token = client_token_of(request.payload)
    if token is not None:
        body["clientToken"] = token
    prefix = shadow_prefix(request.thing_name, request.name)
    return Publish(f"{prefix}/{_VERB[request.operation]}/rejected", encode_json(body))
