"""The fence around unit and property tests."""

from __future__ import annotations

import asyncio
import socket

import pytest
import ray


def test_a_unit_test_gets_no_socket() -> None:
    with pytest.raises(Exception, match="reach no network"):
        socket.socket()
    with pytest.raises(Exception, match="reach no network"):
        socket.create_connection(("127.0.0.1", 9))


def test_a_unit_test_starts_no_ray() -> None:
    with pytest.raises(Exception, match="start no Ray"):
        ray.init()


async def test_an_event_loop_runs_all_the_same() -> None:
    await asyncio.sleep(0)
