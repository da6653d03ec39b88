"""Serves an application on sockets of its own, inside a running event loop: plain, or with mutual TLS."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from actors.errors import PortInUse, WorldError
from actors.gateway.devices import CLIENT_CERTIFICATE, TLS_EXTENSION
from actors.processes import loopback_addresses

# The queue of connections not yet accepted: a fleet that reconnects at once; Linux cuts it to its own limit.
_BACKLOG: Final = 2048
# Beyond it connections are refused with 503: each costs some 50 kB, with TLS.
_CONNECTION_COUNT_MAX: Final = 2000
# Clients reuse a connection for a burst of requests; an idle one is not worth its memory.
_KEEP_ALIVE_S: Final = 15
# What is being answered at the stop gets this long; `down` waits about 10 s in all.
_STOP_TIMEOUT_S: Final = 3
# A free port for one family may be taken for the other.
_PORT_ATTEMPTS: Final = 20


@dataclass(frozen=True, slots=True)
class MutualTls:
    """The files of a listener that knows its clients by their certificates."""

    certificate_file: Path
    key_file: Path
    ca_file: Path
    # Told of each client that did not pass: such a one never becomes a request that could be counted.
    refused: Callable[[], None] | None = None

    def context(self) -> ssl.SSLContext:
        """Return a context that refuses clients without a certificate of the authority."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self.certificate_file, self.key_file)
        context.load_verify_locations(cafile=self.ca_file)
        context.verify_mode = ssl.CERT_REQUIRED
        if self.refused is not None:
            context.sslobject_class = _handshakes_that_tell(self.refused)
        return context


def _handshakes_that_tell(refused: Callable[[], None]) -> type[ssl.SSLObject]:
    """Return asyncio's side of a TLS connection that calls `refused` where the handshake fails."""

    class Handshake(ssl.SSLObject):
        def do_handshake(self) -> None:
            try:
                super().do_handshake()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise
            except ssl.SSLError:
                refused()
                raise

    return Handshake


class _CertificateProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol that also hands the client's certificate to the application."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        ssl_object = self.transport.get_extra_info("ssl_object")
        if ssl_object is not None:
            encoded = ssl_object.getpeercert(binary_form=True)
            # ASGI's `extensions` are for what a server offers beyond the standard.
            self.scope["extensions"] = {TLS_EXTENSION: {CLIENT_CERTIFICATE: encoded}}


class _EmbeddedServer(uvicorn.Server):
    """uvicorn's server as a guest: it tells when it listens and leaves the process's signals alone."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_listening.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    """One application on one port of the loopback addresses, from `start` to `stop`."""

    def __init__(self, app: ASGIApp, *, port: int, option: str, tls: MutualTls | None = None) -> None:
        """`port` 0 takes a free one; `option` is the command-line option that PortInUse names."""
        self._sockets = bind_loopback(port, option=option)
        self.port: Final = int(self._sockets[0].getsockname()[1])
        self.url: Final = f"{'http' if tls is None else 'https'}://127.0.0.1:{self.port}"
        config = uvicorn.Config(
            app,
            http=_CertificateProtocol,
            ws="none",
            lifespan="off",
            # The process has its own logging; a line a request would drown it.
            log_config=None,
            access_log=False,
            # Nobody stands in front: what a client says of its address counts for nothing.
            proxy_headers=False,
            server_header=False,
            backlog=_BACKLOG,
            limit_concurrency=_CONNECTION_COUNT_MAX,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_STOP_TIMEOUT_S,
            ssl_context_factory=None if tls is None else lambda _config, _default: tls.context(),
        )
        self._server = _EmbeddedServer(config)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Return when connections are answered."""
        self._task = asyncio.create_task(self._server.serve(sockets=self._sockets))
        listening = asyncio.create_task(self._server.is_listening.wait())
        await asyncio.wait({self._task, listening}, return_when=asyncio.FIRST_COMPLETED)
        listening.cancel()
        if self._task.done():
            self._close_sockets()
            # Raises what went wrong.
            await self._task

    async def stop(self) -> None:
        """Return when what was being answered is answered, or has been given up, and the port is free."""
        self._server.should_exit = True
        if self._task is not None:
            await self._task
        self._close_sockets()

    def _close_sockets(self) -> None:
        for bound in self._sockets:
            bound.close()


def bind_loopback(port: int, *, option: str) -> list[socket.socket]:
    """Return listening-to-be sockets on one port of every loopback address; 0 takes a free port.

    PortInUse, naming the command-line option, if something else listens there.
    """
    addresses = loopback_addresses()
    for attempt in range(_PORT_ATTEMPTS):
        try:
            return _bind_all(addresses, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise WorldError(
                    f"cannot listen on port {port}: {error}; choose another with {option}"
                ) from None
            if port or attempt == _PORT_ATTEMPTS - 1:
                raise PortInUse(addresses[0], port, option) from None
    raise AssertionError("the last attempt returns or raises")


def _bind_all(addresses: Sequence[str], port: int) -> list[socket.socket]:
    bound: list[socket.socket] = []
    try:
        for address in addresses:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            listener = socket.socket(family, socket.SOCK_STREAM)
            bound.append(listener)
            # So that a restarted platform gets its port back while old connections fade.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind((address, port))
            # The other families get the port that the first one found.
            port = int(listener.getsockname()[1])
    except OSError:
        for listener in bound:
            listener.close()
        raise
    return bound
