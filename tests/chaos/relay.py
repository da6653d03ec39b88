"""Stands between a node and its store: `python -m tests.chaos.relay ADDRESS HOST PORT` prints the port that it takes.

Whoever stops its process (SIGSTOP) cuts the node off from the store, and from nothing else: connections stay, new ones
seem to be made, and no answer comes. What was sent meanwhile arrives when it goes on, as after a partition.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import Final

_PIECE_BYTES: Final = 1 << 16


async def relay(address: str, host: str, port: int) -> None:
    """Carry bytes both ways between whoever connects to a free port of `address` and the server, until cancelled."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            store_reader, store_writer = await asyncio.open_connection(host, port)
            await asyncio.gather(_carry(reader, store_writer), _carry(store_reader, writer))
        writer.close()

    server = await asyncio.start_server(serve, address, 0)
    print(server.sockets[0].getsockname()[1], flush=True)  # noqa: T201 - for whoever has started it
    await server.serve_forever()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry bytes one way until their sender has ended, and tell the receiver so."""
    try:
        while piece := await reader.read(_PIECE_BYTES):
            writer.write(piece)
            await writer.drain()
    finally:
        writer.close()


if __name__ == "__main__":
    asyncio.run(relay(sys.argv[1], sys.argv[2], int(sys.argv[3])))
