"""What happens to every request before its route: it is counted, its body is bounded, and so is how many are served.

Plain ASGI, so that it also covers paths that no route serves.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from actors.gateway.problems import problem, too_many_requests
from actors.metrics import GatewayMetrics

# AWS IoT's limit of a payload. No body of the operators' API comes near it.
BODY_BYTES_MAX: Final = 128 * 1024
# A body of that size over a bad mobile connection (50 kbit/s takes 21 s).
_BODY_TIMEOUT_S: Final = 30.0
# Requests of one listener that are served at a time. The gateway answers some thousand a second, so that this many are
# half a second's; and a shard actor that hangs takes 64 of them, see `ray_fleet`, so that some may hang at once.
REQUEST_COUNT_MAX: Final = 512
# Probes are answered also while all else is refused: that is when they matter.
PROBE_COUNT_MAX: Final = 16


class RequestMetrics:
    """Counts and times every request of a listener, by the template of its route."""

    def __init__(self, app: ASGIApp, metrics: GatewayMetrics, listener: str) -> None:
        self._app = app
        self._metrics = metrics
        self._listener = listener

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # What the client sees if the application answers nothing.
        status = 500
        begun_s = time.perf_counter()

        async def noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting_status)
        finally:
            self._metrics.count_request(
                self._listener,
                # A path that no route serves is the client's choice of words, and no label.
                getattr(scope.get("route"), "path", "none"),
                method=scope["method"],
                status=status,
                duration_s=time.perf_counter() - begun_s,
            )


class BodyLimit:
    """Reads the body before the application does and refuses one that is too long or too slow.

    A body within bounds is at most 128 KiB, therefore it is simply kept; of a longer one, nothing is.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        app = self._app
        if scope["type"] == "http":
            try:
                async with asyncio.timeout(_BODY_TIMEOUT_S):
                    body = await _read_body(scope, receive)
            except _ClientGone:
                return
            except _BodyTooLarge:
                app = _refusal(413, f"The payload exceeds the maximum size allowed ({BODY_BYTES_MAX} bytes)")
            except TimeoutError:
                app = _refusal(408, f"the body did not arrive within {_BODY_TIMEOUT_S:.0f} s; send it again")
            else:
                receive = replay(body, receive)
        await app(scope, receive, send)


class InFlightLimit:
    """Refuses a request with 429 while too many of the listener's are being served; `probes` are paths counted apart.

    For after the body has come and the client is known: nobody takes up a place by being slow, and no stranger does.
    """

    def __init__(self, app: ASGIApp, probes: Collection[str] = ()) -> None:
        self._app = app
        self._probes = frozenset(probes)
        self._counts = {False: 0, True: 0}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_probe = scope["path"] in self._probes
        count_max = PROBE_COUNT_MAX if is_probe else REQUEST_COUNT_MAX
        if self._counts[is_probe] >= count_max:
            refusal = too_many_requests(f"{count_max} requests are being served already; try again")
            await refusal(scope, receive, send)
            return
        self._counts[is_probe] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._counts[is_probe] -= 1


class _ClientGone(Exception):
    """The client has closed the connection before its body was complete."""


class _BodyTooLarge(Exception):
    """The body is longer than any may be."""


async def _read_body(scope: Scope, receive: Receive) -> bytes:
    declared = Headers(scope=scope).get("content-length", "0")
    if declared.isascii() and declared.isdigit() and int(declared) > BODY_BYTES_MAX:
        raise _BodyTooLarge
    body = bytearray()
    is_complete = False
    while not is_complete:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _ClientGone
        body += message.get("body", b"")
        if len(body) > BODY_BYTES_MAX:
            raise _BodyTooLarge
        is_complete = not message.get("more_body", False)
    return bytes(body)


def _refusal(status: int, text: str) -> ASGIApp:
    # The connection is closed, or the rest of the body would still have to be read.
    return problem(status, text, headers={"Connection": "close"})


def replay(body: bytes, receive: Receive) -> Receive:
    """Return a source of messages that gives `body` in one piece, then what `receive` gives."""
    is_handed_over = False

    async def replayed() -> Message:
        nonlocal is_handed_over
        if is_handed_over:
            return await receive()
        is_handed_over = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed
