"""What the tests of the managed broker share: connections of devices, of the bridge, and of who may do everything."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from gmqtt import Client
from gmqtt.mqtt.constants import MQTTv311

from actors.pki import generate_key_and_csr
from tests.integration.running_broker import Site

# A local broker answers in milliseconds; a loaded machine gets the rest.
DEADLINE_S = 10.0


def tls_context(site: Site, *, certificate_pem: str = "", key_pem: str = "") -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(site.authority.ca_file))
    if certificate_pem:
        pair = site.settings.data_dir / "client.pem"
        pair.write_text(certificate_pem + key_pem)
        context.load_cert_chain(pair)
        pair.unlink()
    return context


def device_context(site: Site, thing_name: str) -> ssl.SSLContext:
    request = generate_key_and_csr(thing_name)
    issued = site.authority.issue_for_thing(request.csr_pem, thing_name)
    return tls_context(site, certificate_pem=issued.certificate_pem, key_pem=request.private_key_pem)


def is_admitted(
    site: Site, context: ssl.SSLContext, *, host: str = "127.0.0.1", session: ssl.SSLSession | None = None
) -> tuple[bool, ssl.SSLSession | None]:
    """Tell whether an MQTT CONNECT over TLS is answered with success, and give the TLS session to resume."""
    connect = b"\x10\x0f\x00\x04MQTT\x04\x02\x00\x0a\x00\x03abc"
    try:
        with (
            socket.create_connection((host, site.broker.port), timeout=DEADLINE_S) as plain,
            context.wrap_socket(plain, server_hostname=host, session=session) as connection,
        ):
            connection.sendall(connect)
            answer = connection.recv(4)
            return answer == b"\x20\x02\x00\x00", connection.session
    except (ssl.SSLError, ConnectionError):
        return False, None


class Connection:
    """An MQTT connection that keeps what it receives."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.received: list[tuple[str, bytes]] = []
        self._granted: list[int] = []
        client.on_message = self._on_message
        client.on_subscribe = lambda _client, packet_id, _qos, _properties: self._granted.append(packet_id)

    def _on_message(self, _client: object, topic: str, payload: bytes, _qos: int, _properties: object) -> int:
        self.received.append((topic, bytes(payload)))
        return 0

    async def subscribe(self, topic_filter: str) -> None:
        packet_id = self.client.subscribe(topic_filter, qos=1)
        await until(lambda: packet_id in self._granted)

    def publish(self, topic: str, payload: bytes = b"{}") -> None:
        self.client.publish(topic, payload, qos=1)

    async def receive(self, topic: str) -> None:
        await until(lambda: topic in self.topics())

    def topics(self) -> list[str]:
        return [topic for topic, _ in self.received]


async def until(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        # The condition lies with another process, which sets no event of ours.
        while not is_true():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def device(
    site: Site, thing_name: str, *, will_message: object = None, context: ssl.SSLContext | None = None
) -> AsyncIterator[Connection]:
    client = Client("any-id", clean_session=True, will_message=will_message)
    connection = Connection(client)
    async with asyncio.timeout(DEADLINE_S):
        await client.connect("localhost", site.broker.port, ssl=context or device_context(site, thing_name))
    try:
        yield connection
    finally:
        await client.disconnect()


@asynccontextmanager
async def bridge(
    site: Site, *, client_id: str = "app.bridge", is_clean: bool = True
) -> AsyncIterator[Connection]:
    client = Client(client_id, clean_session=is_clean)
    connection = Connection(client)
    client.set_auth_credentials(site.broker.internal.user_name, site.broker.internal.password)
    async with asyncio.timeout(DEADLINE_S):
        # 3.1.1: a session that is not clean is kept without further ado.
        await client.connect(site.broker.internal.host, site.broker.internal.port, version=MQTTv311)
    try:
        yield connection
    finally:
        await client.disconnect()


@asynccontextmanager
async def service(site: Site) -> AsyncIterator[Connection]:
    """Give a connection that may hear and say everything, as the platform's parts together may."""
    acl = site.directory.mosquitto / "internal.acl"
    kept = acl.read_bytes()
    rights = "topic readwrite #\ntopic readwrite $aws/#\n"
    acl.write_bytes(f"user {site.broker.internal.user_name}\n{rights}".encode())
    site.broker.reload()
    try:
        async with bridge(site, client_id="app.service") as connection:
            yield connection
    finally:
        acl.write_bytes(kept)
        site.broker.reload()
