"""The devices' listener: mutual TLS on a real socket, certificates held against a real registry."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from actors.gateway.arns import thing_arn
from actors.gateway.server import HttpServer, MutualTls
from actors.pki import CertificateAuthority, KeyAndRequest, generate_key_and_csr
from tests.integration.running_gateway import BEARER, Gateway, assert_problem

DEADLINE_S = 10.0


class DeviceSite:
    """A device listener and the devices that ask it."""

    def __init__(self, gateway: Gateway, server: HttpServer, directory: Path) -> None:
        self.gateway = gateway
        self.server = server
        self._directory = directory

    async def enrol(self, name: str) -> httpx.AsyncClient:
        pair = generate_key_and_csr(name)
        async with self.gateway.client() as operator:
            body = {"name": name, "model": "thermostat", "csr": pair.csr_pem}
            created = (await operator.post("/v1/things", json=body)).json()
        return self.client_with(created["certificate_pem"], pair)

    def client_with(self, certificate_pem: str, pair: KeyAndRequest) -> httpx.AsyncClient:
        both = self._directory / "device.pem"
        both.write_text(certificate_pem + pair.private_key_pem)
        context = ssl.create_default_context(cafile=str(self.gateway.authority.ca_file))
        context.load_cert_chain(both)
        return httpx.AsyncClient(base_url=self.server.url, verify=context)


@pytest.fixture
async def device_site(gateway: Gateway, tmp_path: Path) -> AsyncIterator[DeviceSite]:
    authority = gateway.authority
    tls = MutualTls(authority.server_certificate_file, authority.server_key_file, authority.ca_file)
    server = HttpServer(gateway.device_app, port=0, option="--device-port", tls=tls)
    await server.start()
    yield DeviceSite(gateway, server, tmp_path)
    await server.stop()


@pytest.mark.parametrize("name", ["lamp", "a:b", "n" * 128, "g" * 64])
async def test_a_device_changes_its_own_shadow(device_site: DeviceSite, name: str) -> None:
    async with await device_site.enrol(name) as device:
        path = f"/things/{name.replace(':', '%3A')}/shadow"
        reported = {"state": {"reported": {"temperature": 20.5}}}
        assert (await device.post(path, json=reported)).status_code == 200
        assert (await device.get(path)).json()["state"] == reported["state"]
        named = await device.post(f"{path}?name=config", json=reported)
        assert named.status_code == 200
        assert (await device.delete(path)).status_code == 200
    assert await device_site.gateway.fleet.twin(name).shadow("config")


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_a_device_may_not_touch_another_thing(device_site: DeviceSite, method: str) -> None:
    async with await device_site.enrol("lamp") as lamp, await device_site.enrol("bell") as bell:
        await bell.post("/things/bell/shadow", json={"state": {"reported": {"temperature": 1}}})
        for path in ("/things/bell/shadow", "/things/bell%2Fshadow", "/things/nobody/shadow?name=x"):
            refused = await lamp.request(method, path, content=b'{"state":{"desired":{"temperature":9}}}')
            assert refused.status_code in (403, 404)
        assert_problem(await lamp.request(method, "/things/bell/shadow"), 403, "ForbiddenException")
        document = (await bell.get("/things/bell/shadow")).json()
    assert (document["version"], document["state"]) == (1, {"reported": {"temperature": 1}})


async def test_a_device_takes_its_own_jobs_and_no_others(device_site: DeviceSite) -> None:
    async with await device_site.enrol("lamp") as lamp, await device_site.enrol("bell") as bell:
        async with device_site.gateway.client() as operator:
            job = {"targets": [thing_arn("lamp")], "document": '{"say":"hello"}'}
            assert (await operator.put("/jobs/hello", json=job)).status_code == 200
        await device_site.gateway.platform.coordinator.step()
        pending = (await lamp.get("/things/lamp/jobs")).json()
        assert [each["jobId"] for each in pending["queuedJobs"]] == ["hello"]
        started = (await lamp.put("/things/lamp/jobs/$next", json={})).json()["execution"]
        assert (started["jobId"], started["jobDocument"]) == ("hello", '{"say":"hello"}')
        for method, path in (
            ("GET", "jobs"),
            ("GET", "jobs/hello"),
            ("PUT", "jobs/$next"),
            ("POST", "jobs/hello"),
        ):
            refused = await bell.request(method, f"/things/lamp/{path}", content=b'{"status":"FAILED"}')
            assert_problem(refused, 403, "ForbiddenException")
        done = await lamp.post("/things/lamp/jobs/hello", json={"status": "SUCCEEDED"})
        assert done.status_code == 200
        again = await lamp.post("/things/lamp/jobs/hello", json={"status": "FAILED"})
        assert_problem(again, 409, "InvalidStateTransitionException")
        for path in ("/jobs", "/jobs/hello", "/v1/commands/lamp", "/commands"):
            assert_problem(await lamp.get(path), 404, "ResourceNotFoundException")


async def test_devices_have_no_operators_api(device_site: DeviceSite) -> None:
    async with await device_site.enrol("lamp") as lamp:
        for path in ("/v1/things", "/v1/cluster", "/metrics", "/openapi.json", "/healthz"):
            refused = await lamp.get(path, headers=BEARER)
            assert_problem(refused, 404, "ResourceNotFoundException")


@pytest.mark.parametrize("character", ["%00", "%01", "%7F", "%C2%85", "%EF%BF%BE", "%EF%B7%90"])
async def test_a_topic_for_which_the_broker_would_end_the_bridge_is_refused(
    device_site: DeviceSite, character: str
) -> None:
    async with await device_site.enrol("lamp") as lamp:
        refused = await lamp.post(f"/topics/telemetry/lamp/{character}", content=b"{}")
        assert_problem(refused, 400, "InvalidRequestException")
        for name in ("contentType", "responseTopic"):
            refused = await lamp.post(f"/topics/telemetry/lamp/a?{name}={character}", content=b"{}")
            assert_problem(refused, 400, "InvalidRequestException")
    assert device_site.gateway.platform.published == []


async def test_a_device_without_a_certificate_gets_no_tls(device_site: DeviceSite) -> None:
    context = ssl.create_default_context(cafile=str(device_site.gateway.authority.ca_file))
    async with httpx.AsyncClient(base_url=device_site.server.url, verify=context) as nobody:
        with pytest.raises(httpx.TransportError):
            await nobody.get("/things/lamp/shadow")


async def test_a_device_of_another_authority_gets_no_tls(device_site: DeviceSite, tmp_path: Path) -> None:
    await device_site.enrol("lamp")
    other = CertificateAuthority.open_or_create(tmp_path / "other")
    pair = generate_key_and_csr("lamp")
    issued = other.issue_for_thing(pair.csr_pem, "lamp")
    async with device_site.client_with(issued.certificate_pem, pair) as impostor:
        with pytest.raises(httpx.TransportError):
            await impostor.get("/things/lamp/shadow")


async def test_a_revoked_device_is_refused_even_on_its_open_connection(device_site: DeviceSite) -> None:
    async with await device_site.enrol("lamp") as lamp, device_site.gateway.client() as operator:
        body = {"state": {"reported": {"temperature": 1}}}
        assert (await lamp.post("/things/lamp/shadow", json=body)).status_code == 200
        assert (await operator.delete("/v1/things/lamp")).status_code == 200
        assert_problem(await lamp.get("/things/lamp/shadow"), 403, "ForbiddenException")
        async with await device_site.enrol("lamp") as successor:
            assert (await successor.post("/things/lamp/shadow", json=body)).status_code == 200
            assert_problem(await lamp.get("/things/lamp/shadow"), 403, "ForbiddenException")


async def test_the_first_use_over_https_retires_the_certificate_before(device_site: DeviceSite) -> None:
    pair = generate_key_and_csr("lamp")
    async with await device_site.enrol("lamp") as old, device_site.gateway.client() as operator:
        body = {"state": {"reported": {"temperature": 1}}}
        made = (await operator.post("/v1/things/lamp/certificates", json={"csr": pair.csr_pem})).json()
        assert (await old.post("/things/lamp/shadow", json=body)).status_code == 200
        async with device_site.client_with(made["certificate_pem"], pair) as new:
            assert (await new.post("/things/lamp/shadow", json=body)).status_code == 200
            async with asyncio.timeout(DEADLINE_S):
                while (await old.get("/things/lamp/shadow")).status_code == 200:
                    await asyncio.sleep(0.01)
            assert_problem(await old.get("/things/lamp/shadow"), 403, "ForbiddenException")
            assert (await new.get("/things/lamp/shadow")).status_code == 200
        listed = (await operator.get("/v1/things/lamp/certificates")).json()["certificates"]
    assert [one["status"] for one in listed] == ["INACTIVE", "ACTIVE"]


async def test_a_certificate_that_was_never_registered_opens_nothing(device_site: DeviceSite) -> None:
    pair = generate_key_and_csr("ghost")
    for common_name in ("ghost", "app.viewer", "claim.batch"):
        issued = device_site.gateway.authority.issue_from_csr(pair.csr_pem, common_name)
        async with device_site.client_with(issued.certificate_pem, pair) as ghost:
            assert_problem(await ghost.get("/things/ghost/shadow"), 403, "ForbiddenException")


async def test_many_devices_at_once_each_see_their_own_certificate(device_site: DeviceSite) -> None:
    names = [f"device-{letter}" for letter in "abcdefgh"]
    devices = [await device_site.enrol(name) for name in names]

    async def report(name: str, device: httpx.AsyncClient) -> int:
        codes = set()
        async with device:
            for _ in range(5):
                body = {"state": {"reported": {"temperature": 1}}}
                codes.add((await device.post(f"/things/{name}/shadow", json=body)).status_code)
        return max(codes)

    async with asyncio.timeout(DEADLINE_S):
        answers = await asyncio.gather(*(report(n, d) for n, d in zip(names, devices, strict=True)))
    assert set(answers) == {200}
