"""A load process: `python -m scenarios.load_process`, which has thousands of simulated devices' connections.

Orders come on standard input and are answered on standard output, a line of JSON each; see `load_orders`. It ends when
its standard input does, which it does when its parent dies, however it dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Final

import psutil
import uvloop

from actors.processes import open_file_count_max
from scenarios.errors import DeviceFailed, NameTaken
from scenarios.load_fleet import LoadFleet
from scenarios.load_orders import (
    Answer,
    Begin,
    ConnectAll,
    CreateGroup,
    DeleteGroup,
    LoadSettings,
    Order,
    Settle,
    Tick,
    decode_order,
    encode_line,
)
from scenarios.load_registrar import delete_things, register_devices

# An order holds models and faults, which are some kilobytes each.
_LINE_BYTES_MAX: Final = 16 << 20
_NOT_BEGUN: Final = "the first order must say who this process is"


class _Worker:
    """One process's devices, and the orders that they get."""

    def __init__(self) -> None:
        self._settings: LoadSettings | None = None
        self._fleet: LoadFleet | None = None
        self._names: set[str] = set()
        # The things that this process has registered, by group.
        self._created: dict[str, set[str]] = {}
        self._process = psutil.Process()

    async def obey(self, order: Order) -> Answer:
        """Carry out an order and return what came of it."""
        answer = Answer()
        try:
            await self._carry_out(order)
        except NameTaken as taken:
            answer.taken = taken.name
        except (DeviceFailed, OSError) as error:
            answer.error = str(error)
        fleet = self._fleet
        if fleet is not None:
            answer.news = fleet.take_news()
            answer.summaries = {name: fleet.summary(name) for name in self._names}
        answer.processor_s = time.process_time()
        answer.memory_bytes = self._process.memory_info().rss
        return answer

    async def _carry_out(self, order: Order) -> None:
        if isinstance(order, Begin):
            self._settings = order.settings
            self._fleet = LoadFleet(order.settings)
            return
        fleet, settings = self._fleet, self._settings
        if fleet is None or settings is None:
            raise DeviceFailed("", _NOT_BEGUN)
        match order:
            case CreateGroup():
                await self._create(fleet, order, Path(settings.directory))
            case ConnectAll():
                await fleet.connect_all(order.timeout_s)
            case Tick():
                for each in order.orders:
                    fleet.tick(each, begins_s=order.begins_s, tick_s=order.tick_s)
            case Settle():
                await fleet.settle(order.timeout_s)
            case DeleteGroup():
                await self._delete(fleet, order)

    async def _create(self, fleet: LoadFleet, order: CreateGroup, directory: Path) -> None:
        group = order.group.group()
        devices = fleet.create(group)
        self._names.add(group.name)
        if order.registrar is not None:
            created = self._created[group.name] = set()
            async for name in register_devices(devices, group.model.name, order.registrar, directory):
                created.add(name)

    async def _delete(self, fleet: LoadFleet, order: DeleteGroup) -> None:
        self._names.discard(order.name)
        fleet.delete(order.name)
        created = self._created.pop(order.name, set())
        if order.registrar is not None:
            await delete_things(sorted(created), order.registrar)

    def close(self) -> None:
        """End all connections."""
        if self._fleet is not None:
            self._fleet.close()


async def _run() -> None:
    loop = asyncio.get_running_loop()
    # A Ctrl-C in the terminal is the conductor's to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    reader = asyncio.StreamReader(limit=_LINE_BYTES_MAX)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
    worker = _Worker()
    try:
        while line := await reader.readline():
            answer = await worker.obey(decode_order(line))
            sys.stdout.buffer.write(encode_line(answer) + b"\n")
            sys.stdout.buffer.flush()
    finally:
        worker.close()


def main() -> None:
    """Obey orders until there are no more."""
    # The usual limit of 1024 is for programs that use select(); here every device has a connection.
    limit = open_file_count_max()
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    with contextlib.suppress(BrokenPipeError):
        uvloop.run(_run())


if __name__ == "__main__":
    main()
