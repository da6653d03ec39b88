"""A real S3 service on loopback: moto's server as a process of its own, and a relay before it that can fail."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import boto3

from actors.processes import LOOPBACK, free_port, wait_until

BUCKET: Final = "fleet"
_REGION: Final = "us-east-1"
# moto takes a second to import what it needs.
_START_TIMEOUT_S: Final = 60.0
_CHUNK_BYTES: Final = 1 << 16
# What programs of AWS are told by; without the last, they ask around for credentials that nobody has.
ENVIRONMENT: Final = {
    "AWS_ACCESS_KEY_ID": "tests",
    "AWS_SECRET_ACCESS_KEY": "tests",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class S3Server:
    """A running service with one bucket, reached through a relay; what it keeps dies with its process."""

    def __init__(self, log_file: Path) -> None:
        self._log_file = log_file
        self._port = free_port()
        self._relay = _Relay(self._port)
        self.start()

    def start(self) -> None:
        """Start the service, with nothing in it but the bucket."""
        with self._log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "moto.server", "-H", LOOPBACK, "-p", str(self._port)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        assert wait_until(self._answers, timeout_s=_START_TIMEOUT_S), self._log_file.read_text()
        self.client().create_bucket(Bucket=BUCKET)

    def _answers(self) -> bool:
        assert self._process.poll() is None, self._log_file.read_text()
        with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, self._port)):
            return True
        return False

    def client(self) -> Any:
        """Return boto3's client of the service, past the relay."""
        return boto3.client(
            "s3",
            endpoint_url=f"http://{LOOPBACK}:{self._port}",
            region_name=_REGION,
            aws_access_key_id="tests",
            aws_secret_access_key="tests",
        )

    def uri(self, path: str) -> str:
        """Return the URI of what lies below a path in the bucket."""
        query = {"endpoint_override": f"{LOOPBACK}:{self._relay.port}", "scheme": "http", "region": _REGION}
        return f"s3://{BUCKET}/{path}?{urlencode(query)}"

    def names(self, path: str) -> list[str]:
        """Return the names of the objects below a path in the bucket."""
        found = self.client().list_objects_v2(Bucket=BUCKET, Prefix=f"{path}/").get("Contents", [])
        names = [entry["Key"].removeprefix(f"{path}/") for entry in found]
        # Arrow leaves an empty object where a directory was, once it removes something from it.
        return [name for name in names if name]

    def kill_after(self, byte_count: int) -> threading.Event:
        """Kill the service once so many more bytes have been sent to it; the event says that it is done."""
        return self._relay.break_after(byte_count, self.kill)

    def cut_after(self, byte_count: int) -> threading.Event:
        """Make the service unreachable once so many more bytes have been sent to it, until `mend`."""
        return self._relay.break_after(byte_count, lambda: None)

    def mend(self) -> None:
        """Let connections through to the service again."""
        self._relay.is_broken = False

    def kill(self) -> None:
        """Kill the service; what it kept is gone."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End service and relay."""
        self.kill()
        self._relay.close()


class _Relay:
    """Passes connections on to a port, until it breaks: then it cuts them all, and lets none through."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self.is_broken = False
        self._left_bytes = math.inf
        self._also: Callable[[], None] = lambda: None
        self._broke = threading.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, LOOPBACK, 0))
        self.port: Final = int(self._server.sockets[0].getsockname()[1])
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay")
        self._thread.start()

    def break_after(self, byte_count: int, also: Callable[[], None]) -> threading.Event:
        """Break, and do something else, once so many more bytes went to the port; the event says that it is done."""
        self._also, self._broke = also, threading.Event()
        self._left_bytes = byte_count
        return self._broke

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with contextlib.suppress(OSError):
            if not self.is_broken:
                far_reader, far_writer = await asyncio.open_connection(LOOPBACK, self._target_port)
                self._writers.add(far_writer)
                await asyncio.gather(self._send(reader, far_writer), self._answer(far_reader, writer))
        writer.transport.abort()

    async def _send(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(_CHUNK_BYTES):
            self._left_bytes -= len(chunk)
            if self._left_bytes <= 0:
                self._break()
            writer.write(chunk)
            await writer.drain()
        writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(_CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()
        writer.transport.abort()

    def _break(self) -> None:
        self._left_bytes, self.is_broken = math.inf, True
        self._also()
        self._cut()
        self._broke.set()

    def _cut(self) -> None:
        while self._writers:
            self._writers.pop().transport.abort()

    def close(self) -> None:
        """Accept no more, and cut what is open."""
        asyncio.run_coroutine_threadsafe(self._finish(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _finish(self) -> None:
        self._server.close()
        self._cut()
        serving = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*serving, return_exceptions=True)


@contextlib.contextmanager
def running_s3(directory: Path) -> Iterator[S3Server]:
    """Give a running service."""
    server = S3Server(directory / "s3.log")
    try:
        yield server
    finally:
        server.close()
