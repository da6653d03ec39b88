"""A whole platform is backed up while it works, and another one, made from the backup, takes its place."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.boto3_clients import boto3_client
from tests.integration.raw_mqtt import Connect, RawClient
from tests.integration.running_platform import RunningPlatform, platform_on, run_twinfleet, until
from tests.integration.running_s3 import ENVIRONMENT, S3Server, running_s3

DEVICE = "lamp"
RETAINED = f"telemetry/{DEVICE}/state"
SIMULATED = "hall-000017"


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with pytest.MonkeyPatch.context() as patches, running_s3(tmp_path_factory.mktemp("s3")) as server:
        for name, value in ENVIRONMENT.items():
            patches.setenv(name, value)
        yield server


@pytest.fixture(scope="module")
def platform(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPlatform]:
    """Give a platform that has its snapshots in a bucket."""
    arguments = ("--shards", "4", "--snapshots", s3.uri("snapshots"))
    with platform_on(tmp_path_factory.mktemp("first") / "data", *arguments) as started:
        yield started


@pytest.fixture(scope="module")
def files(platform: RunningPlatform, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("device")
    platform.enrol(DEVICE, directory)
    return directory


class Operator:
    """Sets a growing number for a device, in a thread of its own, until it is left."""

    def __init__(self, platform: RunningPlatform) -> None:
        self.accepted = 0
        self._platform = platform
        self._stop = threading.Event()
        self._thread = ThreadPoolExecutor(1)

    def __enter__(self) -> Operator:
        self._running = self._thread.submit(self._run)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._running.result()
        self._thread.shutdown()

    def _run(self) -> None:
        with self._platform.api() as api:
            while not self._stop.is_set():
                body = {"state": {"desired": {"number": self.accepted + 1}}}
                assert api.post(f"/things/{DEVICE}/shadow", json=body).status_code == 200
                self.accepted += 1


def shadow(platform: RunningPlatform, thing_name: str) -> Any:
    with platform.api() as api:
        answer = api.get(f"/things/{thing_name}/shadow")
    assert answer.status_code == 200, answer.text
    return answer.json()


def registered(api: httpx.Client) -> Any:
    """Return all that an operator sees of the registry."""
    paths = (
        f"/v1/things/{DEVICE}",
        f"/v1/things/{DEVICE}/certificates",
        "/v1/keys",
        "/v1/fleets",
        "/thing-groups",
    )
    return {path: api.get(path).json() for path in paths}


def test_a_platform_restored_from_a_backup_serves_everything(
    platform: RunningPlatform, s3: S3Server, files: Path, tmp_path: Path
) -> None:
    key = platform.json("key", "create", "dashboard", "--role", "operator")
    platform.done("fleet", "create", "hall", "--model", "thermostat", "--count", "100")
    with platform.api() as api:
        retained = api.post(
            f"/topics/{RETAINED}", params={"retain": "true", "qos": 1}, content=b'{"on":true}'
        )
        assert retained.status_code == 200, retained.text
        assert api.post("/thing-groups/rooms", json={}).status_code == 200
        named = {"state": {"desired": {"mode": "eco"}}}
        assert api.post(f"/things/{DEVICE}/shadow", params={"name": "config"}, json=named).status_code == 200
        known = registered(api)
    # The broker writes its file every second or two.
    database = platform.directory.mosquitto / "mosquitto.db"
    until(
        lambda: database.exists() and RETAINED.encode() in database.read_bytes(), "what is retained is saved"
    )
    backup, key_file = tmp_path / "b", tmp_path / "backup.key"

    with Operator(platform) as operator:
        until(lambda: operator.accepted > 10, "the operator is at work")
        before = operator.accepted
        created = platform.run("backup", "create", "--out", str(backup), "--key-file", str(key_file))
        after = operator.accepted
    assert created.returncode == 0, created
    assert f"{key_file} is new" in created.stdout
    # At work all the time.
    assert after > before
    verified = platform.run("backup", "verify", str(backup), "--key-file", str(key_file))
    assert verified.returncode == 0, verified
    assert "1 access key, 1 certificate, 1 fleet, 1 thing, 1 thing group" in verified.stdout
    version = shadow(platform, DEVICE)["version"]
    assert platform.stop() == 0
    assert "platform.id" in s3.names("snapshots")

    # Of the stopped platform, which has just written its shards down.
    stopped = (
        "--out",
        str(tmp_path / "stopped"),
        "--key-file",
        str(key_file),
        "--snapshots",
        s3.uri("snapshots"),
    )
    answer = platform.run("backup", "create", *stopped, "-o", "json")
    assert answer.returncode == 0, answer
    shards = json.loads(answer.stdout)["shards"]
    written = [f"shard-{number}.{shard['snapshot']}.snapshot" for number, shard in enumerate(shards)]
    assert set(written) <= set(s3.names("snapshots"))
    assert sum(shard["twin_count"] for shard in shards) == 101

    data_dir = tmp_path / "restored"
    answer = run_twinfleet("backup", "restore", str(backup), "--key-file", str(key_file), data_dir=data_dir)
    assert answer.returncode == 0, answer
    with platform_on(data_dir, "--shards", "4") as again:
        document = shadow(again, DEVICE)
        assert before <= document["state"]["desired"]["number"] <= after + 1
        assert document["version"] == document["state"]["desired"]["number"] <= version
        assert "thermostat" in json.dumps(again.json("twin", "describe", SIMULATED))
        with again.api() as api:
            assert registered(api) == known
            config = api.get(f"/things/{DEVICE}/shadow", params={"name": "config"}).json()
            assert config["state"]["desired"] == {"mode": "eco"}
        expect_served(again, files, key, version=document["version"])


def expect_served(platform: RunningPlatform, files: Path, key: Any, *, version: int) -> None:
    """Let an operator by the key, and the device by its certificate, do something to a shadow of that version."""
    data = boto3_client("iot-data", platform.endpoints.api.url, key)
    assert data.get_retained_message(topic=RETAINED)["payload"] == b'{"on":true}'
    data.update_thing_shadow(thingName=DEVICE, payload=b'{"state":{"desired":{"number":0}}}')
    assert shadow(platform, DEVICE)["version"] == version + 1
    device = RawClient.of(
        platform.endpoints.mqtts.port,
        files / "ca.pem",
        certificate=files / f"{DEVICE}.pem",
        key=files / f"{DEVICE}.key",
    )
    prefix = f"$aws/things/{DEVICE}/shadow"
    with device.session(Connect()) as session:
        session.subscribe(f"{prefix}/get/accepted")
        session.publish(f"{prefix}/get", b"")
        answered = session.next_message()
    assert json.loads(answered.payload)["version"] == version + 1
