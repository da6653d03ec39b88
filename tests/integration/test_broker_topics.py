"""The managed broker on the real program: who publishes and hears what."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator

import pytest

from actors.broker import AccessList, write_acl
from actors.pki import generate_key_and_csr
from tests.integration.broker_stage import (
    DEADLINE_S,
    bridge,
    device,
    device_context,
    service,
    tls_context,
    until,
)
from tests.integration.running_broker import Site

REQUESTS = ("get", "update", "delete")
REPLIES = (
    *(f"{r}/{a}" for r in REQUESTS for a in ("accepted", "rejected")),
    "update/delta",
    "update/documents",
)


@pytest.mark.asyncio
@pytest.mark.parametrize("part", ["shadow", "shadow/name/config"])
async def test_a_device_publishes_its_requests_and_receives_its_answers(site: Site, part: str) -> None:
    async with bridge(site) as service, device(site, "dev-a") as dev_a:
        await service.subscribe("$aws/things/#")
        for reply in REPLIES:
            await dev_a.subscribe(f"$aws/things/dev-a/{part}/{reply}")
        for request in REQUESTS:
            dev_a.publish(f"$aws/things/dev-a/{part}/{request}")
        await service.receive(f"$aws/things/dev-a/{part}/delete")
        assert service.topics() == [f"$aws/things/dev-a/{part}/{request}" for request in REQUESTS]
        for reply in REPLIES:
            service.publish(f"$aws/things/dev-a/{part}/{reply}")
        await dev_a.receive(f"$aws/things/dev-a/{part}/update/documents")
        assert dev_a.topics() == [f"$aws/things/dev-a/{part}/{reply}" for reply in REPLIES]


@pytest.mark.asyncio
async def test_telemetry_reaches_the_bridge(site: Site) -> None:
    async with bridge(site) as service, device(site, "dev-a") as dev_a:
        await service.subscribe("telemetry/+/#")
        dev_a.publish("telemetry/dev-a/climate")
        await service.receive("telemetry/dev-a/climate")


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "topic",
    [
        *(f"$aws/things/dev-b/shadow/{request}" for request in REQUESTS),
        "$aws/things/dev-b/shadow/name/config/update",
        "telemetry/dev-b/climate",
        *(f"$aws/things/dev-a/shadow/{reply}" for reply in REPLIES),
        "$aws/things/dev-a/shadow/name/config/update/documents",
    ],
)
async def test_a_device_publishes_on_nothing_but_its_own_request_topics(site: Site, topic: str) -> None:
    """Every connection that could hear the forgery listens: the bridge, the forged device, and the forger itself."""
    async with bridge(site) as service, device(site, "dev-b") as dev_b, device(site, "dev-a") as dev_a:
        await service.subscribe("$aws/things/#")
        await service.subscribe("telemetry/+/#")
        for listener, name in ((dev_a, "dev-a"), (dev_b, "dev-b")):
            for part in ("shadow", "shadow/name/config"):
                for reply in REPLIES:
                    await listener.subscribe(f"$aws/things/{name}/{part}/{reply}")
        dev_a.publish(topic)
        # One connection keeps its order: once this has arrived, the forgery would have too.
        dev_a.publish("$aws/things/dev-a/shadow/name/last/get")
        await service.receive("$aws/things/dev-a/shadow/name/last/get")
        service.publish("$aws/things/dev-a/shadow/get/accepted", b"the service's")
        service.publish("$aws/things/dev-b/shadow/get/accepted", b"the service's")
        for listener, name in ((dev_a, "dev-a"), (dev_b, "dev-b")):
            answer = f"$aws/things/{name}/shadow/get/accepted"
            await listener.receive(answer)
            assert listener.received == [(answer, b"the service's")]
        # The bridge hears what it says itself, too.
        heard = [heard for heard, payload in service.received if payload != b"the service's"]
        assert heard == ["$aws/things/dev-a/shadow/name/last/get"]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "topic_filter",
    [
        "$aws/things/dev-b/shadow/#",
        "$aws/things/+/shadow/#",
        "$aws/#",
        # This broker delivers the next one, and the last one so soon, to nobody at all: here for the day it does.
        "$share/g/$aws/#",
        "$share/g/telemetry/#",
        "telemetry/dev-b/#",
        "telemetry/#",
        "#",
        "+/+/+",
        "$SYS/#",
    ],
)
async def test_a_device_hears_nothing_but_its_own_answers(site: Site, topic_filter: str) -> None:
    async with bridge(site) as service, device(site, "dev-a") as dev_a, device(site, "dev-b") as dev_b:
        await service.subscribe("$aws/things/#")
        await service.subscribe("telemetry/+/#")
        await dev_a.subscribe(topic_filter)
        await dev_a.subscribe("$aws/things/dev-a/shadow/get/accepted")
        # Each reaches who may hear it, so that its silence at dev-a means something.
        dev_b.publish("telemetry/dev-b/climate")
        dev_b.publish("$aws/things/dev-b/shadow/update")
        await service.receive("$aws/things/dev-b/shadow/update")
        await dev_b.subscribe("$aws/things/dev-b/shadow/update/documents")
        service.publish("$aws/things/dev-b/shadow/update/documents")
        await dev_b.receive("$aws/things/dev-b/shadow/update/documents")
        service.publish("$aws/things/dev-a/shadow/get/accepted")
        await dev_a.receive("$aws/things/dev-a/shadow/get/accepted")
        assert set(dev_a.topics()) == {"$aws/things/dev-a/shadow/get/accepted"}


@pytest.mark.asyncio
async def test_a_will_reaches_the_devices_own_request_topics_only(site: Site) -> None:
    async with bridge(site) as service:
        await service.subscribe("$aws/things/#")
        for topic in (b"$aws/things/dev-b/shadow/update", b"$aws/things/dev-a/shadow/update"):
            # MQTT 3.1.1, 3.1.2: clean session, will at QoS 1; no client id, will topic, will message.
            body = (
                b"\x00\x04MQTT\x04\x0e\x00\x0a\x00\x00"
                + len(topic).to_bytes(2, "big")
                + topic
                + b"\x00\x02{}"
            )
            with (
                socket.create_connection(("localhost", site.broker.port), timeout=DEADLINE_S) as plain,
                device_context(site, "dev-a").wrap_socket(plain, server_hostname="localhost") as connection,
            ):
                connection.sendall(bytes([0x10, len(body)]) + body)
                connection.recv(4)
        await service.receive("$aws/things/dev-a/shadow/update")
        assert service.topics() == ["$aws/things/dev-a/shadow/update"]


@pytest.mark.asyncio
async def test_a_long_named_device_works_after_its_entry_is_written_and_reloaded(site: Site) -> None:
    thing_name = "plant-7:line-3:" + "x" * 100
    request = generate_key_and_csr(thing_name)
    issued = site.authority.issue_for_thing(request.csr_pem, thing_name)
    assert issued.common_name == issued.certificate_id
    context = tls_context(site, certificate_pem=issued.certificate_pem, key_pem=request.private_key_pem)
    topic = f"$aws/things/{thing_name}/shadow/update"
    async with bridge(site) as service, device(site, thing_name, context=context) as long_named:
        await service.subscribe("$aws/things/#")
        await long_named.subscribe(f"{topic}/accepted")
        long_named.publish(topic, b"too early")
        # Its own name's pattern lets this through, and tells that the one before has been dropped.
        long_named.publish(f"$aws/things/{issued.common_name}/shadow/get")
        await service.receive(f"$aws/things/{issued.common_name}/shadow/get")
        write_acl(site.settings.data_dir, AccessList([(issued.common_name, thing_name)]))
        site.broker.reload()
        long_named.publish(topic, b"in time")
        await service.receive(topic)
        assert (topic, b"too early") not in service.received
        service.publish(f"{topic}/accepted")
        await long_named.receive(f"{topic}/accepted")


CERTIFICATE_REQUESTS = ("$aws/certificates/create/json", "$aws/certificates/create-from-csr/json")
PROVISIONING = (*CERTIFICATE_REQUESTS, "$aws/provisioning-templates/lamps/provision/json")
SHADOWS = ("$aws/things/dev-a/shadow", "$aws/things/dev-a/shadow/name/config")


def holder_context(site: Site, common_name: str) -> ssl.SSLContext:
    request = generate_key_and_csr(common_name)
    issued = site.authority.issue_from_csr(request.csr_pem, common_name)
    return tls_context(site, certificate_pem=issued.certificate_pem, key_pem=request.private_key_pem)


@pytest.fixture
def access(site: Site) -> Iterator[AccessList]:
    """Make the broker know one application of each role and two claims, until the test is over."""
    made = AccessList(
        observers=["app.wall"],
        operators=["app.desk"],
        claims=["claim.one", "claim.two"],
        provisioning_claim="claim.one",
    )
    write_acl(site.settings.data_dir, made)
    site.broker.reload()
    yield made
    write_acl(site.settings.data_dir, AccessList())
    site.broker.reload()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("name", "heard"),
    [
        ("app.wall", {"update/documents"}),
        ("app.desk", {reply for reply in REPLIES if not reply.startswith("delete")}),
    ],
)
async def test_an_application_hears_what_its_role_may(
    site: Site, access: AccessList, name: str, heard: set[str]
) -> None:
    expected = [f"{shadow}/{reply}" for shadow in SHADOWS for reply in REPLIES if reply in heard]
    async with (
        service(site) as answering,
        device(site, name, context=holder_context(site, name)) as application,
        device(site, "dev-a") as dev_a,
    ):
        for topic_filter in ("$aws/#", "$aws/things/+/shadow/#", "$SYS/#", "telemetry/#", "#"):
            await application.subscribe(topic_filter)
        await answering.subscribe("$aws/things/#")
        # What nobody but the platform hears.
        dev_a.publish("telemetry/dev-a/climate", b"private")
        dev_a.publish("$aws/things/dev-a/shadow/update", b"private")
        await answering.receive("$aws/things/dev-a/shadow/update")
        for claim_topic in PROVISIONING:
            answering.publish(f"{claim_topic}/accepted", b"private")
        for shadow in SHADOWS:
            for reply in REPLIES:
                answering.publish(f"{shadow}/{reply}")
        last = "$aws/events/presence/connected/dev-a"
        answering.publish(last)
        await application.receive(last)
        # Overlapping subscriptions may bring a message once for each.
        assert list(dict.fromkeys(application.topics())) == [*expected, last]


@pytest.mark.asyncio
@pytest.mark.parametrize(("name", "sent"), [("app.wall", ()), ("app.desk", ("get", "update"))])
async def test_an_application_publishes_what_its_role_may(
    site: Site, access: AccessList, name: str, sent: tuple[str, ...]
) -> None:
    async with (
        service(site) as answering,
        device(site, name, context=holder_context(site, name)) as application,
        device(site, "dev-a") as dev_a,
    ):
        await answering.subscribe("$aws/#")
        await answering.subscribe("telemetry/#")
        for shadow in SHADOWS:
            for operation in (*REQUESTS, *REPLIES):
                application.publish(f"{shadow}/{operation}")
        for topic in (*PROVISIONING, "$aws/events/presence/connected/dev-a", "telemetry/dev-a/climate"):
            application.publish(topic)
        # Its own name's pattern lets this through, and tells that those before have been dropped.
        application.publish(f"$aws/things/{name}/shadow/get")
        await answering.receive(f"$aws/things/{name}/shadow/get")
        allowed = [
            f"{shadow}/{operation}" for shadow in SHADOWS for operation in REQUESTS if operation in sent
        ]
        assert answering.topics() == [*allowed, f"$aws/things/{name}/shadow/get"]
        assert dev_a.topics() == []


@pytest.mark.asyncio
async def test_a_claim_asks_for_certificates_and_only_the_one_at_its_turn_hears_the_answers(
    site: Site, access: AccessList
) -> None:
    async with (
        service(site) as answering,
        device(site, "claim.one", context=holder_context(site, "claim.one")) as first,
        device(site, "claim.two", context=holder_context(site, "claim.two")) as second,
    ):
        for request in PROVISIONING:
            await answering.subscribe(request)
        await answering.subscribe("$aws/things/#")
        for claim in (first, second):
            await claim.subscribe("$aws/#")
            for topic in (
                f"{SHADOWS[0]}/update",
                "$aws/events/x",
                *(f"{one}/accepted" for one in PROVISIONING),
            ):
                claim.publish(topic)
            for request in PROVISIONING:
                claim.publish(request)
        await until(lambda: len(answering.received) >= 2 * len(PROVISIONING))
        assert sorted(answering.topics()) == sorted(2 * PROVISIONING)
        for request in PROVISIONING:
            for outcome in ("accepted", "rejected"):
                answering.publish(f"{request}/{outcome}")
        answering.publish(f"{SHADOWS[0]}/update/documents")
        last = [f"$aws/things/{name}/shadow/get/accepted" for name in ("claim.one", "claim.two")]
        for topic in last:
            answering.publish(topic)
        await first.receive(last[0])
        await second.receive(last[1])
        answers = [f"{request}/{outcome}" for request in PROVISIONING for outcome in ("accepted", "rejected")]
        assert first.topics() == [*answers, last[0]]
        assert second.topics() == [last[1]]
