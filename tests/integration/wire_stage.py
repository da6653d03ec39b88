"""A stage for devices of scenarios: a real broker, and in place of the platform behind it a fleet in this process.

Everything that a device touches is real; the API has the calls that registering and deleting devices need.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import http.server
import json
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import gmqtt

from actors.broker import MosquittoBroker
from actors.fleet import LocalFleet
from actors.pki import CertificateAuthority
from actors.settings import (
    DataDirectory,
    Endpoints,
    MqttsEndpoint,
    PlatformSettings,
    RayEndpoint,
    UrlEndpoint,
)
from actors.wall_clock import WallClock
from twins.messages import SHADOW_OPERATION, Operation, Publish, Request
from twins.topics import REQUEST_FILTERS, ShadowTopic, parse

TOKEN = "the-operators-token-of-these-tests"


class _Api(http.server.BaseHTTPRequestHandler):
    """Registers and deletes things as the gateway's API does."""

    authority: CertificateAuthority
    names: set[str]
    # An authority that the broker does not know, and the things whose certificates are of it.
    stranger: CertificateAuthority
    strangers: set[str]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self._answer(401, {"detail": "who are you?"})
        elif self.path == "/v1/things/batch":
            self._answer(200, {"results": [self._register(thing) for thing in body["things"]]})
        elif self.path == "/v1/things/batch-delete":
            self.names.difference_update(body["things"])
            self._answer(200, {"deleted": body["things"]})
        elif body["name"] in self.names:
            self._answer(409, {"detail": "there is one already"})
        else:
            self.names.add(body["name"])
            issued = self.authority.issue_for_thing(body["csr"], body["name"])
            answer = {"thing_name": body["name"], "certificate_pem": issued.certificate_pem}
            self._answer(201, answer | {"ca_pem": self.authority.certificate_pem()})

    def _register(self, thing: dict[str, Any]) -> dict[str, Any]:
        if thing["name"] in self.names:
            detail = f"thing {thing['name']!r} is registered already, with another certificate"
            return {"thing_name": thing["name"], "outcome": "refused", "detail": detail}
        self.names.add(thing["name"])
        authority = self.stranger if thing["name"] in self.strangers else self.authority
        issued = authority.issue_for_thing(thing["csr"], thing["name"])
        answer = {"thing_name": thing["name"], "outcome": "created"}
        return answer | {"certificate_pem": issued.certificate_pem}

    def do_DELETE(self) -> None:
        self.names.discard(self.path.rpartition("/")[2])
        self._answer(204, None)

    def _answer(self, status: int, body: Any) -> None:
        content = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""


@dataclasses.dataclass(frozen=True)
class Site:
    """A running broker, its authority, and the endpoints of the platform that it would belong to."""

    broker: MosquittoBroker
    endpoints: Endpoints
    names: set[str]
    # Things whose certificates come from an authority that the broker does not know.
    strangers: set[str]


@contextlib.contextmanager
def running_wire_site(path: Path) -> Iterator[Site]:
    """Give a broker that runs and the API beside it; both have ended afterwards."""
    directory = DataDirectory(path)
    directory.prepare()
    settings = PlatformSettings(data_dir=directory.path, mqtt_port=0, device_port=0, api_port=0)
    authority = CertificateAuthority.open_or_create(directory.pki)
    directory.operator_token_file.write_text(TOKEN)
    broker = MosquittoBroker(settings)
    broker.start()
    names: set[str] = set()
    strangers: set[str] = set()
    stranger = CertificateAuthority.open_or_create(directory.path / "stranger" / "pki")
    known = {"authority": authority, "names": names, "stranger": stranger, "strangers": strangers}
    handler = type("Api", (_Api,), known)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    nowhere = UrlEndpoint("http://127.0.0.1:1")
    endpoints = Endpoints(
        pid=os.getpid(),
        version="test",
        mqtts=MqttsEndpoint("127.0.0.1", broker.port),
        api=UrlEndpoint(f"http://127.0.0.1:{server.server_port}"),
        metrics=nowhere,
        ca=str(directory.pki / "ca.pem"),
        operator_token_file=str(directory.operator_token_file),
        redis=nowhere,
        ray=RayEndpoint("", "", ""),
    )
    yield Site(broker, endpoints, names, strangers)
    server.shutdown()
    server.server_close()
    broker.stop()


@asynccontextmanager
async def serving(site: Site) -> AsyncIterator[LocalFleet]:
    """Give a fleet that answers devices through the broker, one message after the other."""
    fleet = LocalFleet(4, clock=WallClock())
    internal = site.broker.internal
    client = gmqtt.Client("app.bridge-of-a-test")
    client.set_auth_credentials(internal.user_name, internal.password)
    inbox: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()

    def on_message(_client: Any, topic: str, payload: bytes, _qos: int, _properties: Any) -> int:
        inbox.put_nowait((topic, payload))
        return 0

    def publish(message: Publish) -> None:
        client.publish(message.topic, message.payload, qos=1)

    async def answer() -> None:
        while True:
            topic, payload = await inbox.get()
            asked = parse(topic)
            if not isinstance(asked, ShadowTopic):
                continue
            operation = SHADOW_OPERATION[asked.operation]
            reply = await fleet.ask(Request(operation, asked.thing_name, payload, asked.shadow_name))
            if reply.status >= 400:
                publish(Publish(f"{topic}/rejected", reply.payload))
            elif operation is Operation.SHADOW_GET:
                publish(Publish(f"{topic}/accepted", reply.payload))

    client.on_message = on_message
    fleet.listen("$aws/#", publish)
    await client.connect(internal.host, internal.port)
    client.subscribe([gmqtt.Subscription(topic, qos=1) for topic in REQUEST_FILTERS])
    answering = asyncio.create_task(answer())
    try:
        yield fleet
    finally:
        answering.cancel()
        # A test may have killed the broker.
        with contextlib.suppress(OSError, AttributeError):
            await client.disconnect()
