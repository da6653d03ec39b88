"""The managed broker and store on the real programs: who gets in, and what survives."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from gmqtt import Client
from gmqtt.mqtt.constants import MQTTv311

from actors.broker import MosquittoBroker, end_session, reload_broker
from actors.broker_log import ConfigurationReloaded, HandshakeFailed, parse_line
from actors.errors import BrokerError, PlatformNotRunning, PortInUse, ProcessEnded
from actors.pki import CertificateAuthority, generate_key_and_csr
from actors.processes import loopback_addresses, wait_until
from actors.settings import DataDirectory, PlatformSettings, is_process_alive, write_atomically
from actors.store import RedisServer
from tests.integration.broker_stage import (
    DEADLINE_S,
    Connection,
    bridge,
    device,
    device_context,
    is_admitted,
    tls_context,
    until,
)
from tests.integration.raw_mqtt import CONNACK, PING, PUBACK, Connect, RawSession, publish
from tests.integration.running_broker import Site, make_site
from twins.topics import is_sendable, publishing_problem

# ---- who gets in ---------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_the_common_name_is_user_name_and_client_id_whatever_the_device_says(site: Site) -> None:
    async with device(site, "sensor-1"):
        assert wait_until(lambda: "as sensor-1 (p5, c1" in site.log(), timeout_s=DEADLINE_S)
    assert "u'sensor-1'" in site.log()
    assert "as any-id" not in site.log()


@pytest.mark.parametrize("host", loopback_addresses())
def test_a_device_is_served_on_every_loopback_address(site: Site, host: str) -> None:
    assert is_admitted(site, device_context(site, "sensor-2"), host=host)[0]


def foreign_pair(directory: Path, name: str) -> tuple[str, str]:
    """Return a certificate for `name` of an authority that is not the platform's."""
    request = generate_key_and_csr(name)
    issued = CertificateAuthority.open_or_create(directory).issue_for_thing(request.csr_pem, name)
    return issued.certificate_pem, request.private_key_pem


def test_a_certificate_of_another_authority_is_refused(site: Site, tmp_path: Path) -> None:
    certificate_pem, key_pem = foreign_pair(tmp_path / "other", "sensor-1")
    assert not is_admitted(site, tls_context(site, certificate_pem=certificate_pem, key_pem=key_pem))[0]


def test_a_certificate_of_an_impostor_that_bears_the_authoritys_name_is_refused(
    site: Site, self_made: Callable[..., tuple[str, str]]
) -> None:
    certificate_pem, key_pem = self_made("sensor-1", issuer_of=site.authority.ca_file)
    assert not is_admitted(site, tls_context(site, certificate_pem=certificate_pem, key_pem=key_pem))[0]


def test_a_self_signed_certificate_is_refused(site: Site, self_made: Callable[..., tuple[str, str]]) -> None:
    certificate_pem, key_pem = self_made("sensor-1", issuer_of=None)
    assert not is_admitted(site, tls_context(site, certificate_pem=certificate_pem, key_pem=key_pem))[0]


def test_a_client_without_a_certificate_is_refused(site: Site) -> None:
    assert not is_admitted(site, tls_context(site))[0]


def test_the_servers_own_certificate_does_not_serve_as_a_devices(site: Site) -> None:
    context = tls_context(
        site,
        certificate_pem=site.authority.server_certificate_file.read_text(),
        key_pem=site.authority.server_key_file.read_text(),
    )
    assert not is_admitted(site, context)[0]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_revoked_device_is_refused_after_a_reload_also_when_it_resumes_its_tls_session(
    site: Site, version: ssl.TLSVersion
) -> None:
    request = generate_key_and_csr("stolen")
    issued = site.authority.issue_for_thing(request.csr_pem, "stolen")
    context = tls_context(site, certificate_pem=issued.certificate_pem, key_pem=request.private_key_pem)
    context.maximum_version = version
    admitted, session = is_admitted(site, context)
    assert admitted
    assert session is not None
    site.authority.revoke([issued.serial])
    site.broker.reload()
    assert not is_admitted(site, context, session=session)[0]
    assert not is_admitted(site, context)[0]
    assert is_admitted(site, device_context(site, "honest"))[0]


@pytest.mark.asyncio
@pytest.mark.parametrize("thing_name", ["leaver", "leaver-" + "x" * 100])
async def test_a_revoked_devices_open_session_is_ended_and_cannot_come_back(
    site: Site, thing_name: str
) -> None:
    request = generate_key_and_csr(thing_name)
    issued = site.authority.issue_for_thing(request.csr_pem, thing_name)
    context = tls_context(site, certificate_pem=issued.certificate_pem, key_pem=request.private_key_pem)
    topic = f"$aws/things/{issued.common_name}/shadow/update"
    async with (
        bridge(site) as service,
        device(site, thing_name, context=context) as leaver,
        device(site, "dev-b") as other,
    ):
        await service.subscribe("$aws/things/#")
        leaver.publish(topic)
        await service.receive(topic)
        site.authority.revoke([issued.serial])
        site.broker.reload()
        # What a revocation list alone does not do.
        assert leaver.client.is_connected
        end_session(site.settings.data_dir, issued.common_name)
        async with asyncio.timeout(2.0):
            await until(lambda: not leaver.client.is_connected)
        assert not is_admitted(site, context)[0]
        # gmqtt connects again by itself, and sends what it could not.
        leaver.publish(topic, b"from beyond")
        assert other.client.is_connected
        other.publish("$aws/things/dev-b/shadow/get")
        await service.receive("$aws/things/dev-b/shadow/get")
        assert (topic, b"from beyond") not in service.received


@pytest.mark.asyncio
async def test_a_session_that_is_kept_for_a_device_away_is_ended_too(site: Site) -> None:
    answer = "$aws/things/sleeper/shadow/get/accepted"
    context = device_context(site, "sleeper")
    client = Client("any-id", clean_session=False)
    sleeper = Connection(client)
    async with asyncio.timeout(DEADLINE_S):
        await client.connect("localhost", site.broker.port, ssl=context, version=MQTTv311)
    await sleeper.subscribe(answer)
    await client.disconnect()
    async with bridge(site) as service:
        service.publish(answer, b"for the one before")
        await service.subscribe("telemetry/+/#")
    end_session(site.settings.data_dir, "sleeper")
    successor = Client("any-id", clean_session=False)
    heard = Connection(successor)
    async with asyncio.timeout(DEADLINE_S):
        await successor.connect("localhost", site.broker.port, ssl=context, version=MQTTv311)
    try:
        await heard.subscribe(answer)
        async with bridge(site) as service:
            service.publish(answer, b"for this one")
            await heard.receive(answer)
        assert heard.received == [(answer, b"for this one")]
    finally:
        await successor.disconnect()


def test_ending_a_session_without_a_broker_is_an_error_to_try_again(tmp_path: Path) -> None:
    DataDirectory(tmp_path).prepare()
    with pytest.raises(BrokerError, match="try again") as refusal:
        end_session(tmp_path, "nobody")
    assert refusal.value.retryable


def test_a_reload_from_another_process_finds_the_broker(site: Site) -> None:
    command = "import sys, pathlib; from actors.broker import reload_broker; reload_broker(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", command, str(site.settings.data_dir)], check=True, timeout=60)
    assert site.broker.is_alive()


def test_a_reload_is_nobodys_failed_handshake(site: Site) -> None:
    before = len(site.log())
    for _ in range(3):
        site.broker.reload()
    # The end of a connection may be told after the reload.
    assert wait_until(
        lambda: "app.probe" in site.log()[before:].rpartition("Reloading")[2], timeout_s=DEADLINE_S
    )
    events = [parse_line(line) for line in site.log()[before:].splitlines()]
    assert sum(isinstance(event, ConfigurationReloaded) for event in events) == 3
    assert not [event for event in events if isinstance(event, HandshakeFailed)]


def test_a_reload_without_a_broker_says_that_none_runs(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path)
    directory.prepare()
    with pytest.raises(PlatformNotRunning):
        reload_broker(tmp_path)
    # The pid of something else: this very test.
    write_atomically(directory.mosquitto / "pid", str(os.getpid()).encode())
    with pytest.raises(PlatformNotRunning):
        reload_broker(tmp_path)


def test_a_broken_revocation_list_is_reported_by_the_reload_that_met_it(own_site: Site) -> None:
    crl = own_site.authority.crl_file
    good = crl.read_bytes()
    crl.write_bytes(b"no list")
    with pytest.raises(BrokerError, match="could not reload"):
        own_site.broker.reload()
    crl.write_bytes(good)
    own_site.broker.reload()


def test_the_internal_listener_wants_the_password(site: Site) -> None:
    internal = site.broker.internal
    body = b"\x00\x04MQTT\x04\xc2\x00\x0a" + b"".join(
        len(text).to_bytes(2, "big") + text for text in (b"x", internal.user_name.encode(), b"wrong")
    )
    with socket.create_connection((internal.host, internal.port), timeout=DEADLINE_S) as connection:
        connection.sendall(bytes([0x10, len(body)]) + body)
        # Return code 5: not authorized.
        assert connection.recv(4) == b"\x20\x02\x00\x05"


@pytest.mark.parametrize(
    "character",
    [
        *("\x01", "\x1f", " ", "~", "\x7f", "\x9f", "\xa0", "\ud7ff", "\ue000"),
        *("\ufdcf", "\ufdd0", "\ufdef", "\ufdf0", "\ufeff", "\ufffd", "\ufffe"),
        *("\U0001fffd", "\U0001fffe", "\U00020000", "\U0010fffd", "\U0010ffff"),
    ],
)
def test_the_broker_ends_a_connection_for_the_very_texts_that_we_do_not_send(
    site: Site, character: str
) -> None:
    internal = site.broker.internal
    connect = Connect(b"app.texts", user_name=internal.user_name, password=internal.password)
    with socket.create_connection((internal.host, internal.port), timeout=DEADLINE_S) as link:
        session = RawSession(link)
        session.send(connect.encode())
        session.send(publish(f"texts/{character}", packet_id=1) + PING)
        answers = [session.next_packet() for _ in range(2)]
    kinds = [None if answer is None else answer.kind for answer in answers]
    assert kinds == [CONNACK, PUBACK if is_sendable(character) else None]
    assert (publishing_problem(f"texts/{character}") == "") is is_sendable(character)


# ---- what survives, and what does not ------------------------------------------------------------------------------


@pytest.mark.asyncio
@pytest.mark.parametrize("is_killed", [False, True])
async def test_a_request_that_waits_for_the_bridge_survives_a_restart_of_the_broker(
    own_site: Site, is_killed: bool
) -> None:
    context = device_context(own_site, "dev-a")
    before, after = "$aws/things/dev-a/shadow/update", "$aws/things/dev-a/shadow/get"
    async with bridge(own_site, is_clean=False) as service:
        await service.subscribe("$aws/things/+/shadow/+")
    saved = own_site.directory.mosquitto / "mosquitto.db"
    async with device(own_site, "dev-a", context=context) as dev_a:
        dev_a.publish(before)
        await until(lambda: saved.exists() and before.encode() in saved.read_bytes())
    if is_killed:
        os.kill(own_site.broker.pid, signal.SIGKILL)
    own_site.broker.stop()
    # As another `up` would: with nothing but the data directory.
    again = MosquittoBroker(own_site.settings)
    again.start()
    try:
        restarted = replace(own_site, broker=again)
        assert (again.internal, again.port) == (own_site.broker.internal, own_site.broker.port)
        # The device is back before the bridge.
        async with device(restarted, "dev-a", context=context) as dev_a:
            dev_a.publish(after)
            await until(lambda: after.encode() in saved.read_bytes())
        async with bridge(restarted, is_clean=False) as service:
            await service.receive(after)
            assert service.topics() == [before, after]
    finally:
        again.stop()


def test_nothing_listens_beyond_loopback(site: Site, store: RedisServer) -> None:
    for pid in (site.broker.pid, store.pid):
        listening = [
            c.laddr for c in psutil.Process(pid).net_connections("inet") if c.status == psutil.CONN_LISTEN
        ]
        assert listening
        assert {address.ip for address in listening} <= {"127.0.0.1", "::1"}


_PARENT = """
import pathlib, sys, signal
from actors.broker import MosquittoBroker
from actors.store import RedisServer
from actors.pki import CertificateAuthority
from actors.settings import DataDirectory, PlatformSettings
directory = DataDirectory(pathlib.Path(sys.argv[1]))
directory.prepare()
settings = PlatformSettings(data_dir=directory.path, mqtt_port=0)
CertificateAuthority.open_or_create(directory.pki)
with directory.lock():
    store, broker = RedisServer(settings), MosquittoBroker(settings)
    store.start()
    broker.start()
    print(store.pid, broker.pid, flush=True)
    signal.pause()
"""


def test_the_children_end_with_a_parent_that_is_killed_and_the_next_one_can_start(tmp_path: Path) -> None:
    data_dir = tmp_path / "site"
    command = [sys.executable, "-c", _PARENT, str(data_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2
        assert all(is_process_alive(pid) for pid in pids)
        parent.kill()
    with DataDirectory(data_dir).lock():
        again = make_site(data_dir)
        again.broker.start()
        again.broker.stop()
    assert wait_until(lambda: not any(is_process_alive(pid) for pid in pids), timeout_s=DEADLINE_S)


def test_a_child_that_outlived_its_parent_is_ended_before_the_next_one_uses_its_files(
    own_site: Site, store: RedisServer, tmp_path: Path
) -> None:
    store_settings = PlatformSettings(data_dir=tmp_path / "store")
    pairs = ((store, RedisServer(store_settings)), (own_site.broker, MosquittoBroker(own_site.settings)))
    for leftover, server in pairs:
        server.start()
        assert not is_process_alive(leftover.pid)
        server.stop()


def test_a_port_in_use_is_named_with_the_option_that_changes_it(site: Site, tmp_path: Path) -> None:
    other = make_site(tmp_path / "other")
    broker = MosquittoBroker(replace(other.settings, mqtt_port=site.broker.port))
    with pytest.raises(PortInUse, match=f"port {site.broker.port} .*--mqtt-port"):
        broker.start()
    assert not broker.is_alive()


def test_a_broker_that_ends_at_start_says_what_its_log_says(tmp_path: Path) -> None:
    site = make_site(tmp_path / "site")
    site.authority.crl_file.write_bytes(b"no list")
    with pytest.raises(ProcessEnded, match=r"(?s)mosquitto\.log.*crl"):
        site.broker.start()
