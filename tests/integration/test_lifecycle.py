"""How a platform begins and ends: what it keeps, what it leaves behind, and what it says when it cannot start."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from awsiot import iotshadow

from actors.actor_settings import HostSettings
from actors.journal import Journal
from actors.processes import find_tool
from actors.registry.registry import Registry
from actors.settings import DataDirectory, PlatformSettings
from actors.shard_actor import ShardHost
from actors.store import RedisServer
from actors.wall_clock import WallClock
from tests.integration.presence_stage import raw_client, until_connected
from tests.integration.raw_mqtt import Connect
from tests.integration.running_platform import (
    DEADLINE_S,
    FREE_PORTS,
    START_TIMEOUT_S,
    STOP_TIMEOUT_S,
    TWINFLEET,
    RunningPlatform,
    platform_on,
    processes_of,
    run_twinfleet,
    until,
)
from tests.integration.sdk_device import over_mqtt5

SHARD_COUNT: Final = 16
DEVICE: Final = "keeper"
FLEET: Final = "standing"
# Whatever JSON can hold and a careless store would change.
ODD: Final[dict[str, Any]] = {
    "set_point": "a text where the model says number",
    "temperature": 20.1,
    "large": 2**53 + 1,
    "small": 5e-324,
    "text": '\u0000 ü \U0001f321 " \\ \u2028',
    "empty": "",
    "list": [[], {}, [True, 1, "1", 1.5]],
    "object": {"timestamp": 1, "desired": {"reported": {}}, "a.b": {"": 0}},
    "truth": True,
}


class Keepsakes:
    """What was accepted of a platform's clients, with what they were told, to be compared later."""

    def __init__(self) -> None:
        self._documents: dict[str, dict[str, Any]] = {}
        self._fleet_version = 0

    def add_shadow(self, platform: RunningPlatform, path: str, state: dict[str, Any]) -> None:
        """Change a shadow and remember the document."""
        with platform.api() as api:
            accepted = api.post(path, json={"state": state})
            assert accepted.status_code == 200, accepted.text
            self._documents[path] = _kept(api.get(path).json())

    def add_telemetry(self, platform: RunningPlatform, files: Path) -> None:
        """Send telemetry as the device, and a shadow update after it, and remember both."""
        path = f"/v1/twins/{DEVICE}/telemetry"
        with over_mqtt5(DEVICE, files, platform) as device, platform.api() as api:
            before = api.get(path).json()["streams"].get("room", {}).get("level", {}).get("count", 0)
            for value in (1, 2.5):
                device.publish(f"telemetry/{DEVICE}/room", json.dumps({"level": value}).encode())
            state = iotshadow.ShadowState(reported=ODD)
            update = iotshadow.UpdateShadowRequest(thing_name=DEVICE, state=state)
            assert device.shadows.update_shadow(update).result(DEADLINE_S).state.reported == ODD

            def count() -> int:
                return int(api.get(path).json()["streams"].get("room", {}).get("level", {}).get("count", 0))

            until(lambda: count() == before + 2, "both values of telemetry")
            self._documents[path] = _kept(api.get(path).json())
            own = f"/things/{DEVICE}/shadow"
            self._documents[own] = _kept(api.get(own).json())

    def note_fleet(self, platform: RunningPlatform, thing_name: str) -> None:
        """Remember how far the standing fleet is, once it has reported again."""
        until(lambda: platform.version_of(thing_name) > self._fleet_version, "the standing fleet reports")
        self._fleet_version = platform.version_of(thing_name)

    def expect_all(self, get: Callable[[str], dict[str, Any]]) -> None:
        """Fail unless everything is as it was; `get` returns the document at a path."""
        for path, document in self._documents.items():
            found = _kept(get(path))
            assert found == document, path
            assert json.dumps(found, sort_keys=True) == json.dumps(document, sort_keys=True), path


def _kept(document: dict[str, Any]) -> dict[str, Any]:
    """Return a document without the time at which it was asked for."""
    return {name: value for name, value in document.items() if name not in ("timestamp", "now")}


def get_over_http(platform: RunningPlatform) -> Callable[[str], dict[str, Any]]:
    def get(path: str) -> dict[str, Any]:
        with platform.api() as api:
            document: dict[str, Any] = api.get(path).json()
            return document

    return get


def expect_everything(platform: RunningPlatform, keepsakes: Keepsakes, files: Path, thing_name: str) -> None:
    """Fail unless documents, the registry, the device's certificate and the standing fleet are as they were."""
    keepsakes.expect_all(get_over_http(platform))
    described = platform.json("device", "describe", DEVICE)
    assert described["attributes"] == {"room": "hall"}
    assert platform.json("fleet", "list")["fleets"][0]["name"] == FLEET
    with over_mqtt5(DEVICE, files, platform) as device:
        got = device.shadows.get_shadow(iotshadow.GetShadowRequest(thing_name=DEVICE)).result(DEADLINE_S)
        assert got.state.reported == ODD
    keepsakes.note_fleet(platform, thing_name)


# What it keeps. Three starts take most of the time.


@pytest.mark.timeout(300)
def test_nothing_accepted_is_lost_however_the_platform_ends(tmp_path: Path) -> None:
    data_dir, files, keepsakes = tmp_path / "data", tmp_path / "files", Keepsakes()
    with platform_on(data_dir) as platform:
        platform.done("device", "create", DEVICE, "--attribute", "room=hall", "--out", str(files))
        fleet = platform.json("fleet", "create", FLEET, "--count", "20", "--report-every", "1s")
        thing_name = fleet["thing_name"].format(i=7)
        keepsakes.add_shadow(platform, f"/things/{DEVICE}/shadow?name=odd", {"reported": ODD, "desired": ODD})
        keepsakes.add_telemetry(platform, files)
        keepsakes.note_fleet(platform, thing_name)
        expect_a_second_one_to_be_refused(platform)
        with contextlib.suppress(OSError), raw_client(platform, DEVICE, files).session(Connect(b"x")):
            connection = until_connected(platform, DEVICE, True)
            assert f"(process {platform.process.pid}) has stopped" in platform.done("down")
        assert platform.process.wait(STOP_TIMEOUT_S) == 0, platform.output()
        platform.expect_nothing_left()
        assert not platform.directory.endpoints_file.exists()
    with platform_on(data_dir) as platform:
        # Nobody has told the twin that its device went with the broker.
        ended = until_connected(platform, DEVICE, False)
        assert ended["disconnect_reason"] == "SERVER_INITIATED_DISCONNECT"
        assert (ended["session"], ended["version"]) == (connection["session"], connection["version"])
        expect_everything(platform, keepsakes, files, thing_name)
        keepsakes.add_telemetry(platform, files)
        keepsakes.add_shadow(platform, f"/things/{DEVICE}/shadow?name=odd", {"desired": {"list": None}})
        assert platform.stop(signal.SIGINT) == 0, platform.output()
    with platform_on(data_dir) as platform:
        expect_everything(platform, keepsakes, files, thing_name)
        keepsakes.add_telemetry(platform, files)
        for number in range(32):
            keepsakes.add_shadow(platform, f"/things/late-{number}/shadow", {"desired": {"number": number}})
        platform.process.kill()
        platform.process.wait(STOP_TIMEOUT_S)
        platform.expect_nothing_left()
    expect_all_in_the_store(data_dir, keepsakes)


def expect_a_second_one_to_be_refused(platform: RunningPlatform) -> None:
    second = run_twinfleet("up", *FREE_PORTS, data_dir=platform.data_dir)
    assert second.returncode == 1
    assert f"{platform.data_dir} is held by process {platform.process.pid}" in second.stderr
    assert platform.json("status")["is_ready"] is True


def expect_all_in_the_store(data_dir: Path, keepsakes: Keepsakes) -> None:
    """Fail unless the store alone holds every document: a host of all shards reads it as shard actors do."""
    store = RedisServer(PlatformSettings(data_dir=data_dir))
    store.start()
    try:
        host = ShardHost(lambda _: None)
        log_file = str(data_dir / "logs" / "host.log")
        settings = HostSettings(
            0,
            tuple(range(SHARD_COUNT)),
            SHARD_COUNT,
            store.url,
            str(data_dir / "snapshots"),
            # More than there is, so that nothing is written down here.
            1 << 30,
            log_file,
            is_predecessor_gone=True,
        )
        host.open(msgspec.msgpack.encode(settings))

        def get(path: str) -> dict[str, Any]:
            _, kind, thing_name, *_ = path.removeprefix("/v1").partition("?")[0].split("/")
            return (
                host.telemetry(thing_name)
                if kind == "twins"
                else host.shadow(thing_name, path.partition("=")[2])
            )

        keepsakes.expect_all(get)
        assert asyncio.run(registered(store.url)) == (1, [FLEET])
    finally:
        store.stop()


async def registered(redis_url: str) -> tuple[int, list[str]]:
    registry = await Registry.open(redis_url, WallClock(), is_writer=False)
    try:
        return await registry.things.count(), [fleet.group.name for fleet in await registry.fleets.all()]
    finally:
        await registry.close()


# What it leaves when it is told to end before it is ready


@pytest.mark.parametrize(
    ("number", "step", "program"),
    [
        (signal.SIGINT, "starting Redis and mosquitto", "redis-server"),
        (signal.SIGTERM, "starting Ray", "raylet"),
        (signal.SIGINT, "starting shards, bridge and gateway", "ray::ShardActor"),
    ],
)
def test_a_signal_during_the_start_leaves_nothing_behind(
    tmp_path: Path, number: signal.Signals, step: str, program: str
) -> None:
    platform = RunningPlatform.start(tmp_path / "data")
    try:

        def is_there() -> bool:
            assert platform.process.poll() is None, platform.output()
            return step in platform.output() and program in platform.child_names()

        until(is_there, f"{program} runs", timeout_s=START_TIMEOUT_S)
        platform.process.send_signal(number)
        platform.process.wait(STOP_TIMEOUT_S)
    finally:
        platform.end()
    platform.expect_nothing_left()
    assert "ready" not in platform.output().splitlines()
    assert not platform.directory.endpoints_file.exists()


# What it says when it cannot start


def expect_refusal(
    data_dir: Path, *arguments: str, program: Sequence[str] = TWINFLEET, **environment: str
) -> str:
    """Return the one line with which `up` refuses to start; nothing of it may be left."""
    answer = run_twinfleet("up", *arguments, data_dir=data_dir, program=program, **environment)
    assert answer.returncode in (1, 2), answer
    lines = answer.stderr.splitlines()
    assert len(lines) == 1, answer
    assert lines[0].startswith("twinfleet: ")
    assert processes_of(data_dir) == []
    assert not (data_dir / "endpoints.json").exists()
    return lines[0]


def test_a_directory_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path)
    directory.format_file.write_text("99\n")
    message = expect_refusal(tmp_path, *FREE_PORTS)
    assert str(directory.format_file) in message
    assert "'99'" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["format"]


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("option", ["--mqtt-port", "--device-port", "--api-port"])
def test_a_port_in_use_is_named_with_its_option(tmp_path: Path, taken_port: int, option: str) -> None:
    options = dict(zip(FREE_PORTS[::2], FREE_PORTS[1::2], strict=True)) | {option: str(taken_port)}
    message = expect_refusal(tmp_path / "data", *(word for pair in options.items() for word in pair))
    assert f"port {taken_port} on 127.0.0.1 is in use" in message
    assert f"{option} PORT" in message


def test_another_number_of_shards_than_the_stored_one_is_refused(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    DataDirectory(data_dir).prepare()
    store = RedisServer(PlatformSettings(data_dir=data_dir))
    store.start()
    journal = Journal.at(store.url)
    journal.require_shard_count(16)
    journal.close()
    store.stop()
    message = expect_refusal(data_dir, *FREE_PORTS, "--shards", "8")
    assert "this data has 16 shards, 8 were asked for" in message
    assert "--shards 16" in message


def test_a_missing_broker_is_named_with_the_way_to_get_it(tmp_path: Path) -> None:
    # Only the store is to be had: PATH has nothing else, and the places beside PATH are moved away.
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "redis-server").symlink_to(find_tool("redis-server", package="redis-server").path)
    without = (
        "import sys; from pathlib import Path; from actors import processes; "
        "processes._SYSTEM_DIRECTORIES = (); processes._CHECKOUT_TOOLS = Path('/nonexistent'); "
        "from twinfleet.cli import main; main()"
    )
    message = expect_refusal(tmp_path / "data", *FREE_PORTS, program=("-c", without), PATH=str(programs))
    assert "mosquitto is not installed" in message
    assert "./dev setup" in message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("shard_cuont: 8\n", "shard_cuont: unknown setting; did you mean shard_count?"),
        ("shard_count: many\n", "shard_count: must be a whole number, not 'many'"),
        ("mqtt_port: true\n", "mqtt_port: must be a whole number, not True"),
        ("shard_count: 0\n", "shard_count: must be from 1 to 1024, not 0"),
        ("shard_count: 2\nshard_actor_count: 4\n", "shard_actor_count: 4 actors for 2 shards"),
        ("- shard_count\n", "must hold lines of `setting: value`"),
    ],
)
def test_a_bad_settings_file_is_named_with_its_key(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    message = expect_refusal(tmp_path)
    assert message.startswith(f"twinfleet: {file}: {says}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["settings.yaml"]
