"""The whole platform as operators and devices meet it: its files, commands, API, doors and processes."""

from __future__ import annotations

import ipaddress
import itertools
import json
import socket
import ssl
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from actors.pki import CertificateAuthority, generate_key_and_csr
from actors.settings import is_process_alive
from tests.integration.running_platform import (
    COMMAND_TIMEOUT_S,
    DEADLINE_S,
    RunningPlatform,
    environment_of,
    run_twinfleet,
    until,
)
from twinfleet import __version__

# MQTT 3.1.1: CONNECT with a clean session, no user name, the client id "abc"; and the CONNACK that accepts it.
_CONNECT = b"\x10\x0f\x00\x04MQTT\x04\x02\x00\x0a\x00\x03abc"
_ACCEPTED = b"\x20\x02\x00\x00"
_NUMBERS = itertools.count()


@pytest.fixture
def name() -> str:
    """Return a thing name that no other test uses."""
    return f"thing-{next(_NUMBERS)}"


def mode(path: Path | str) -> int:
    return stat.S_IMODE(Path(path).stat().st_mode)


# Files


def test_the_endpoints_are_what_is_documented(platform: RunningPlatform) -> None:
    file = platform.directory.endpoints_file
    found = json.loads(file.read_text())
    wanted: dict[str, set[str]] = {
        "mqtts": {"host", "port"},
        "api": {"url"},
        "https_devices": {"url"},
        "metrics": {"url"},
        "redis": {"url"},
        "ray": {"address", "token_file", "namespace"},
    }
    assert set(found) == {"pid", "version", "ca", "operator_token_file", "snapshots", "key_file", *wanted}
    assert {name: set(found[name]) for name in wanted} == wanted
    assert (found["pid"], found["version"]) == (platform.process.pid, __version__)
    assert mode(file) == 0o600


def test_secrets_are_for_their_owner_only(platform: RunningPlatform) -> None:
    directory = platform.directory
    assert Path(platform.endpoints.ray.token_file) == directory.ray_token_file
    for secret in (
        directory.ray_token_file,
        directory.operator_token_file,
        directory.redis_password_file,
        directory.pki / "ca.key",
        directory.pki / "server.key",
    ):
        assert mode(secret) == 0o600, secret
    assert mode(directory.path) == mode(platform.ray_directory()) == 0o700


def test_ray_writes_nothing_into_the_home_directory_and_tells_nobody(platform: RunningPlatform) -> None:
    home = Path(environment_of(platform.data_dir)["HOME"])
    assert list(home.iterdir()) == []
    told = [
        environment.get("RAY_USAGE_STATS_ENABLED")
        for process in platform.processes()
        if process.name() in ("gcs_server", "raylet") and (environment := process.environ())
    ]
    assert told == ["0", "0"]
    assert list(platform.ray_directory().rglob("usage_stats.json")) == []


# Commands


def test_status_shows_every_process(platform: RunningPlatform) -> None:
    cluster = platform.json("status")
    assert cluster["is_ready"] is True
    table = platform.done("status")
    for process in cluster["processes"]:
        assert f"{process['role']}" in table
        assert str(process["pid"]) in table
    assert f"mqtts://127.0.0.1:{platform.endpoints.mqtts.port}" in table


def test_a_twin_is_set_and_got(platform: RunningPlatform, name: str) -> None:
    missing = platform.run("twin", "get", name)
    assert (missing.returncode, missing.stdout) == (1, "")
    assert f"No shadow exists with name: '{name}'" in missing.stderr
    accepted = platform.json("twin", "set", name, "set_point=21.5", "mode.night=true", "label=hall")
    assert accepted["version"] == 1
    document = platform.json("twin", "get", name)
    assert document["state"]["desired"] == {"set_point": 21.5, "mode": {"night": True}, "label": "hall"}
    assert document["state"]["delta"] == document["state"]["desired"]
    platform.done("twin", "set", name, "level=1", "--shadow", "config")
    assert platform.json("twin", "get", name, "--shadow", "config")["state"]["desired"] == {"level": 1}
    assert "set_point" in platform.done("twin", "get", name)


def test_a_twin_is_watched(platform: RunningPlatform, name: str) -> None:
    platform.done("twin", "set", name, "level=1")
    command = [sys.executable, "-m", "twinfleet", "twin", "watch", name, "--count", "2", "-o", "json"]
    with subprocess.Popen(
        [*command, "--data-dir", str(platform.data_dir)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment_of(platform.data_dir),
    ) as watch:
        try:
            assert watch.stdout is not None
            assert json.loads(watch.stdout.readline())["version"] == 1
            platform.done("twin", "set", name, "level=2")
            second = json.loads(watch.stdout.readline())
            assert (second["version"], second["state"]["desired"]) == (2, {"level": 2})
            assert watch.wait(COMMAND_TIMEOUT_S) == 0
        finally:
            watch.kill()


def test_a_device_comes_is_described_and_goes(platform: RunningPlatform, name: str, tmp_path: Path) -> None:
    options = ["--attribute", "room=hall", "--attribute", "floor=2", "--out", str(tmp_path)]
    created = platform.json("device", "create", name, *options)
    assert created["thing_name"] == name
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [f"{name}.pem", f"{name}.key", "ca.pem"]
    )
    assert mode(tmp_path / f"{name}.key") == 0o600
    things = platform.json("device", "list", "--limit", "1000")["things"]
    described = platform.json("device", "describe", name)
    certificates = described.pop("certificates")
    assert described in things
    assert described["attributes"] == {"room": "hall", "floor": "2"}
    assert (described["model"], described["origin"], described["status"]) == ("thermostat", "real", "ACTIVE")
    assert [(one["certificate_id"], one["status"]) for one in certificates] == [
        (created["certificate_id"], "ACTIVE")
    ]
    device = tls_of(platform, tmp_path / f"{name}.pem", tmp_path / f"{name}.key")
    assert is_admitted(platform, device)
    platform.done("twin", "set", name, "set_point=20")
    assert platform.json("device", "delete", name) == {"thing_name": name}
    assert not is_admitted(platform, device)
    assert name not in [
        thing["thing_name"] for thing in platform.json("device", "list", "--limit", "1000")["things"]
    ]
    assert platform.run("twin", "get", name).returncode == 1
    gone = platform.run("device", "describe", name)
    assert (gone.returncode, gone.stdout) == (1, "")
    assert f"no thing '{name}' is registered" in gone.stderr


def test_a_standing_fleet_reports_in_real_time(platform: RunningPlatform) -> None:
    options = ["--model", "thermostat", "--count", "50", "--seed", "7", "--report-every", "1s"]
    created = platform.json("fleet", "create", "hall", *options)
    listed = platform.json("fleet", "list")["fleets"]
    assert created in listed
    assert (created["count"], created["seed"], created["report_every_s"]) == (50, 7, 1)
    things = [created["thing_name"].format(i=index) for index in (0, 49)]
    until(lambda: max(map(platform.version_of, things)) >= 2, "a simulated device reports twice")
    reporting = max(things, key=platform.version_of)
    reported = platform.json("twin", "get", reporting)["state"]["reported"]
    assert set(reported) >= {"temperature", "humidity", "battery", "set_point"}
    assert platform.json("device", "describe", reporting)["fleet"] == "hall"
    platform.done("twin", "set", reporting, "set_point=27")
    until(
        lambda: platform.json("twin", "get", reporting)["state"]["reported"]["set_point"] == 27,
        "a simulated device obeys",
    )
    with platform.api() as api:
        processes = api.get("/v1/cluster").json()["processes"]
        assert sum(process["twin_count"] for process in processes) >= 50
    assert platform.json("fleet", "delete", "hall") == {"name": "hall"}
    assert "hall" not in [fleet["name"] for fleet in platform.json("fleet", "list")["fleets"]]
    assert platform.version_of(reporting) == 0


# A minute of 300 thermostats and one real device, in two seconds.
SCENARIO = """
apiVersion: twinfleet/v1
kind: Scenario
metadata: {name: together}
seed: 11
duration: 60s
clock: {mode: accelerated, speed: 30}
groups: [{name: together, count: 300}]
devices: [{name: together-real, report_every: 6s}]
steps:
  - {at: 20s, set_desired: {thing: together-real, state: {set_point: 23.5}}}
  - {at: 20s, wait_for: {thing: together-real, reported: {set_point: 23.5}, delta: empty}}
  - {at: 30s, set_desired: {group: together, state: {set_point: 19.5}}}
checks: [version_never_decreases, every_report_accounted_for]
thresholds:
  device_deltas: ["count >= 1"]
  device_errors: ["count == 0"]
"""


def test_a_scenario_passes_on_the_platform_with_the_digest_of_one_process(
    platform: RunningPlatform, tmp_path: Path
) -> None:
    file = tmp_path / "together.yaml"
    file.write_text(SCENARIO)
    on_platform = platform.run("run", str(file))
    assert on_platform.returncode == 0, on_platform
    in_process = run_twinfleet("run", str(file), "--fleet", "local", data_dir=tmp_path / "local")
    assert in_process.returncode == 0, in_process
    digests = [answer.stdout.splitlines()[0] for answer in (on_platform, in_process)]
    assert digests[0] == digests[1]
    assert digests[0].startswith("digest: ")
    report = Path(on_platform.stdout.splitlines()[-1].removeprefix("report: "))
    assert sorted(path.name for path in report.parent.iterdir()) == [
        "junit.xml",
        "report.html",
        "summary.json",
    ]
    assert json.loads((report.parent / "summary.json").read_text())["digest"] == digests[0].removeprefix(
        "digest: "
    )
    # It takes its things with it.
    assert platform.run("device", "describe", "together-real").returncode == 1
    assert "together" not in platform.done("fleet", "list")


# The operators' API


def test_shadows_are_read_and_written_over_http(platform: RunningPlatform, name: str) -> None:
    with platform.api() as api:
        path = f"/things/{name}/shadow"
        missing = api.get(path)
        assert (missing.status_code, missing.headers["content-type"]) == (404, "application/problem+json")
        for query in ("", "?name=config"):
            posted = api.post(path + query, json={"state": {"desired": {"a": 1}, "reported": {"a": 2}}})
            assert (posted.status_code, posted.json()["version"]) == (200, 1)
            assert api.get(path + query).json()["state"]["delta"] == {"a": 1}
            conflict = api.post(path + query, json={"state": {"reported": {"a": 1}}, "version": 9})
            assert (conflict.status_code, conflict.json()["detail"]) == (409, "Version conflict")
        names = api.get(f"/api/things/shadow/ListNamedShadowsForThing/{name}")
        assert names.json()["results"] == ["config"]
        assert api.delete(path).json()["version"] == 1
        assert api.get(path).status_code == 404
        assert api.get(f"{path}?name=config").status_code == 200


def test_things_are_listed_over_http(platform: RunningPlatform, name: str, tmp_path: Path) -> None:
    platform.enrol(name, tmp_path)
    with platform.api() as api:
        page = api.get("/v1/things", params={"limit": 1000}).json()
        names = [thing["thing_name"] for thing in page["things"]]
        assert name in names
        assert names == sorted(names)
        assert api.get("/v1/things/nobody").status_code == 404


def test_the_cluster_lists_each_process_once(platform: RunningPlatform) -> None:
    with platform.api() as api:
        processes = api.get("/v1/cluster").json()["processes"]
    roles = sorted(process["role"] for process in processes)
    assert "ray" in roles
    assert [role for role in roles if role != "ray"] == [
        "bridge",
        "broker",
        "gateway",
        "job_coordinator",
        "shard_actor",
        "shard_actor",
        "store",
        "supervisor",
    ]
    pids = {process["pid"] for process in processes}
    assert len(pids) == len(processes)
    assert pids <= {process.pid for process in platform.processes()}
    shards = sorted(shard for process in processes for shard in process["shards"])
    assert shards == list(range(16))
    for process in processes:
        assert process["state"] == "ready"
        assert process["queue_length"] >= 0
        assert process["twin_count"] >= 0
        assert is_process_alive(process["pid"])


def test_probes_are_open_and_the_rest_is_not(platform: RunningPlatform) -> None:
    with httpx.Client(base_url=platform.endpoints.api.url, timeout=DEADLINE_S) as stranger:
        assert stranger.get("/healthz").json() == {"status": "ok"}
        assert stranger.get("/readyz").json() == {"status": "ready", "reasons": []}
        for path in ("/v1/cluster", "/v1/things", "/things/any/shadow", "/v1/fleets"):
            assert stranger.get(path).status_code == 401
            assert stranger.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 401


def test_metrics_can_be_parsed_and_name_no_device(
    platform: RunningPlatform, name: str, tmp_path: Path
) -> None:
    platform.enrol(name, tmp_path)
    platform.done("twin", "set", name, "set_point=20")
    answer = httpx.get(platform.endpoints.metrics.url, timeout=DEADLINE_S)
    assert answer.status_code == 200
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    assert families
    assert all(family.startswith(("twinfleet_", "process_", "python_")) for family in families)
    labels = {
        value for family in families.values() for sample in family.samples for value in sample.labels.values()
    }
    assert not [label for label in labels if name in label]
    assert name not in answer.text
    assert families["twinfleet_http_requests"].type == "counter"


# Doors


def tls_of(platform: RunningPlatform, certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=platform.endpoints.ca)
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    return context


def is_admitted(platform: RunningPlatform, context: ssl.SSLContext) -> bool:
    """Tell whether the broker answers a CONNECT over TLS with success."""
    mqtts = platform.endpoints.mqtts
    try:
        with (
            socket.create_connection((mqtts.host, mqtts.port), timeout=DEADLINE_S) as plain,
            context.wrap_socket(plain, server_hostname=mqtts.host) as connection,
        ):
            connection.sendall(_CONNECT)
            return connection.recv(4) == _ACCEPTED
    except (ssl.SSLError, ConnectionError):
        return False


def is_answered(platform: RunningPlatform, context: ssl.SSLContext) -> bool:
    """Tell whether the devices' HTTPS listener answers at all."""
    https = platform.endpoints.https_devices
    assert https is not None
    try:
        httpx.get(f"{https.url}/things/impostor/shadow", verify=context, timeout=DEADLINE_S)
    except (httpx.TransportError, ssl.SSLError):
        return False
    return True


@pytest.mark.parametrize("door", [is_admitted, is_answered], ids=["mqtt", "https"])
@pytest.mark.parametrize("kind", ["another authority's", "forged", "self-signed", "none"])
def test_a_stranger_is_refused(
    platform: RunningPlatform,
    self_made: Callable[..., tuple[str, str]],
    tmp_path: Path,
    kind: str,
    door: Callable[[RunningPlatform, ssl.SSLContext], bool],
) -> None:
    certificate, key = tmp_path / "impostor.pem", tmp_path / "impostor.key"
    if kind == "none":
        assert not door(platform, tls_of(platform, None, None))
        return
    if kind == "another authority's":
        pair = generate_key_and_csr("impostor")
        other = CertificateAuthority.open_or_create(tmp_path / "pki")
        issued = other.issue_for_thing(pair.csr_pem, "impostor")
        pem, key_pem = issued.certificate_pem, pair.private_key_pem
    else:
        issuer = Path(platform.endpoints.ca) if kind == "forged" else None
        pem, key_pem = self_made("impostor", issuer_of=issuer)
    certificate.write_text(pem)
    key.write_text(key_pem)
    assert not door(platform, tls_of(platform, certificate, key))


@pytest.mark.parametrize("door", [is_admitted, is_answered], ids=["mqtt", "https"])
def test_a_device_of_the_platform_is_not(
    platform: RunningPlatform,
    name: str,
    tmp_path: Path,
    door: Callable[[RunningPlatform, ssl.SSLContext], bool],
) -> None:
    platform.enrol(name, tmp_path)
    assert door(platform, tls_of(platform, tmp_path / f"{name}.pem", tmp_path / f"{name}.key"))


# Processes


def sockets_of(process: psutil.Process) -> list[Any]:
    try:
        return list(process.net_connections("inet"))
    except psutil.NoSuchProcess:
        return []


def test_nothing_listens_beyond_loopback(platform: RunningPlatform) -> None:
    processes = platform.processes()
    names = {process.name() for process in processes}
    # The list is not blind: these do listen.
    assert {"mosquitto", "redis-server", "gcs_server", "raylet"} <= names
    listening = [
        (process.name(), connection.laddr)
        for process in processes
        for connection in sockets_of(process)
        if connection.status == psutil.CONN_LISTEN or connection.type == socket.SOCK_DGRAM
    ]
    ports = {address.port for _, address in listening}
    assert {platform.endpoints.mqtts.port, int(platform.endpoints.ray.address.rpartition(":")[2])} <= ports
    beyond = []
    for process_name, local in listening:
        address = ipaddress.ip_address(local.ip)
        # Ray's sockets of both families show IPv4 addresses inside IPv6 ones.
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        if not address.is_loopback:
            beyond.append((process_name, local))
    assert beyond == []
