"""The managed store and child processes on the real programs: what is kept, what ends, what is found."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
from contextlib import closing
from pathlib import Path

import pytest
import redis

from actors.errors import StoreError, ToolMissing
from actors.processes import (
    ManagedProcess,
    find_tool,
    free_port,
    loopback_addresses,
    open_file_count_max,
    wait_until,
)
from actors.store import RedisServer, require_durable

# A local server answers in milliseconds; a loaded machine gets the rest.
DEADLINE_S = 10.0


# ---- the store -----------------------------------------------------------------------------------------------------


def test_the_store_keeps_what_it_acknowledged_when_it_is_killed(store: RedisServer) -> None:
    with redis.Redis.from_url(store.url) as client:
        client.xadd("journal", {"batch": b"x" * 60_000}, id="1-1")
    os.kill(store.pid, signal.SIGKILL)
    assert wait_until(lambda: not store.is_alive(), timeout_s=DEADLINE_S)
    store.start()
    with redis.Redis.from_url(store.url) as client:
        assert client.xlen("journal") == 1


def test_the_store_wants_its_password(store: RedisServer) -> None:
    with (
        redis.Redis(host="127.0.0.1", port=store.port) as client,
        pytest.raises(redis.AuthenticationError),
    ):
        client.ping()


@pytest.mark.parametrize(
    ("setting", "value"),
    [("appendonly", "no"), ("appendfsync", "everysec"), ("maxmemory-policy", "allkeys-lru")],
)
def test_a_store_that_would_lose_what_it_acknowledged_is_refused(
    store: RedisServer, setting: str, value: str
) -> None:
    require_durable(store.url)
    with redis.Redis.from_url(store.url) as client:
        client.config_set(setting, value)
    with pytest.raises(StoreError, match=f"{setting} is '{value}', set it to"):
        require_durable(store.url)


def test_a_store_that_cannot_be_asked_is_a_clear_error() -> None:
    with pytest.raises(StoreError, match="cannot be asked"):
        require_durable(f"redis://127.0.0.1:{free_port()}/0")


# ---- processes -----------------------------------------------------------------------------------------------------


def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    command = "trap '' TERM; echo ready; while :; do sleep 0.1; done"
    process = ManagedProcess.start(
        "deaf", ["sh", "-c", command], log_file=tmp_path / "deaf.log", environment={}
    )
    assert process.wait_until(lambda: "ready" in process.log_tail(), timeout_s=DEADLINE_S)
    # A session of its own: a terminal's Ctrl-C does not reach it.
    assert os.getsid(process.pid) == process.pid
    process.stop(timeout_s=0.1)
    assert not process.is_alive()


def test_a_child_may_open_as_many_files_as_the_system_lets_it(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    try:
        process = ManagedProcess.start(
            "many", ["sh", "-c", "ulimit -n; sleep 60"], log_file=tmp_path / "many.log", environment={}
        )
        assert process.wait_until(lambda: process.log_tail() != "", timeout_s=DEADLINE_S)
        assert process.log_tail() == str(open_file_count_max())
        process.stop(timeout_s=DEADLINE_S)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_children_are_started_from_the_main_thread_only(tmp_path: Path) -> None:
    async def start() -> None:
        log_file = tmp_path / "log"
        await asyncio.to_thread(ManagedProcess.start, "x", ["true"], log_file=log_file, environment={})

    with pytest.raises(RuntimeError, match="main thread"):
        asyncio.run(start())


def test_a_free_port_can_be_listened_on_at_every_loopback_address() -> None:
    port = free_port()
    for host in loopback_addresses():
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with closing(socket.socket(family)) as server:
            server.bind((host, port))


def test_a_missing_program_is_named_with_its_package(tmp_path: Path) -> None:
    with pytest.raises(ToolMissing, match="apt-get install mosquitto"):
        find_tool("mosquitto-of-tomorrow", package="mosquitto", tool_directories=[tmp_path])


def test_a_program_of_an_unpacked_package_is_found_with_its_libraries(tmp_path: Path) -> None:
    program = tmp_path / "usr" / "sbin" / "unpacked-broker"
    program.parent.mkdir(parents=True)
    program.touch(mode=0o755)
    libraries = [tmp_path / part / "x86_64-linux-gnu" for part in ("usr/lib", "lib")]
    for library in libraries:
        library.mkdir(parents=True)
    tool = find_tool("unpacked-broker", package="mosquitto", tool_directories=[tmp_path])
    assert tool.path == program
    assert tool.environment["LD_LIBRARY_PATH"].split(":")[:2] == list(map(str, libraries))
