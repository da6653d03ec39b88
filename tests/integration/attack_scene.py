"""Who takes part in an attack: alice, a live device with traffic of her own, and what may not have changed for her."""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.raw_mqtt import Connect, RawClient, RawSession
from tests.integration.running_platform import DEADLINE_S, RunningPlatform, until

ALICE: Final = "alice"
MALLORY: Final = "mallory"
_SHADOW: Final = f"$aws/things/{ALICE}/shadow"
# Everything that her access list lets through, so that anything forged would reach her; each topic matches once.
_ALICE_HEARS: Final = ("$aws/#", "#")
# The longest that a device may be silent; her session outlasts every test.
_ALICE_KEEP_ALIVE_S: Final = 1200
# The broker tells its totals every two seconds, and only when they have changed.
_TOTALS_S: Final = 5.0


def metric(platform: RunningPlatform, name: str, **labels: str) -> float:
    """Return the value of a metric, added up over the labels that are not given; 0 for one without samples."""
    text = httpx.get(platform.endpoints.metrics.url, timeout=DEADLINE_S).text
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def settled(platform: RunningPlatform, name: str) -> None:
    """Return when a metric has not changed for longer than the broker takes to tell its totals (2 s), twice over."""
    value, since_s = -1.0, time.monotonic()

    def is_settled() -> bool:
        nonlocal value, since_s
        found = metric(platform, name)
        if found != value:
            value, since_s = found, time.monotonic()
        return time.monotonic() - since_s > _TOTALS_S

    until(is_settled, f"{name} settles")


@contextlib.contextmanager
def counted(platform: RunningPlatform, count: int, name: str, **labels: str) -> Iterator[None]:
    """Fail unless a metric grows by exactly `count` over what is done meanwhile."""
    before = metric(platform, name, **labels)
    yield
    found = 0.0

    def has_grown() -> bool:
        nonlocal found
        found = metric(platform, name, **labels) - before
        return found >= count

    with contextlib.suppress(AssertionError):
        until(has_grown, name)
    assert found == count, f"{name} {labels} grew by {found}, not by {count}"


class Alice:
    """The victim: a device that reports over one connection that nothing may disturb, and an operator who looks on."""

    def __init__(self, platform: RunningPlatform, session: RawSession, api: httpx.Client) -> None:
        self._platform = platform
        self._session = session
        self._api = api
        self._numbers = itertools.count(1)

    def report(self) -> None:
        """Report a new value; fail unless she is answered, and hears nothing else."""
        number = next(self._numbers)
        self._ask(
            "update", {"state": {"reported": {"secret": number}}}, "accepted", "documents", number=number
        )

    def speak(self) -> None:
        """Do all that a device does, and have an operator talk to it: who can overhear her has something to hear."""
        number = next(self._numbers)
        self._session.publish(f"telemetry/{ALICE}/climate", b'{"secret": %d}' % number)
        self._ask("get", {}, "accepted", number=number)
        reported = {"state": {"reported": {"secret": number}}}
        for name in ("config", "passing"):
            self._ask(f"name/{name}/update", reported, "accepted", "documents", number=number)
        self._ask("name/passing/delete", {}, "accepted", number=number)
        desired = {"state": {"desired": {"mode": number}}, "clientToken": f"alice-{number}"}
        self._api.post(f"/things/{ALICE}/shadow", json=desired).raise_for_status()
        self._hear([f"{_SHADOW}/update/{kind}" for kind in ("accepted", "delta", "documents")], number)
        self._ask("update", {"state": {"reported": {"mode": number}}}, "accepted", "documents", number=number)

    def _ask(self, request: str, body: Mapping[str, Any], *answers: str, number: int) -> None:
        topic = f"{_SHADOW}/{request}"
        self._session.publish(topic, json.dumps({**body, "clientToken": f"alice-{number}"}).encode())
        self._hear([f"{topic}/{answer}" for answer in answers], number)

    def _hear(self, topics: Sequence[str], number: int) -> None:
        """Receive one message on each of the topics, and nothing else."""
        heard = [self._session.next_message() for _ in topics] + self._session.messages()
        assert sorted(message.topic for message in heard) == sorted(topics), heard
        assert {json.loads(message.payload).get("clientToken") for message in heard} == {f"alice-{number}"}

    def everything(self) -> dict[str, Any]:
        """Return what the platform knows of her."""
        shadow = self._api.get(f"/things/{ALICE}/shadow").json()
        shadow.pop("timestamp", None)
        telemetry = self._api.get(f"/v1/twins/{ALICE}/telemetry")
        names = self._api.get(f"/api/things/shadow/ListNamedShadowsForThing/{ALICE}").json()
        return {"shadow": shadow, "names": names["results"], "telemetry": _lasting(telemetry.json())}

    @contextlib.contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Fail unless what is done meanwhile leaves her twin, her connection and the platform as they were."""
        before = self.everything()
        yield
        assert self._api.get("/readyz").status_code == 200, self._api.get("/readyz").text
        assert self._session.messages() == [], "alice heard something"
        assert self.everything() == before
        version = before["shadow"].get("version", 0)
        self.report()
        assert self.everything()["shadow"]["version"] == version + 1


def _lasting(telemetry: dict[str, Any]) -> dict[str, Any]:
    """Return what changes in a description of telemetry only when telemetry comes, not with time."""
    return {
        stream: {name: field.get("value") for name, field in fields.items() if isinstance(field, dict)}
        for stream, fields in telemetry.get("streams", {}).items()
    }


@dataclass(frozen=True)
class Scene:
    """A platform, its devices alice and mallory, and the files of mallory's certificate."""

    platform: RunningPlatform
    alice: Alice
    mallory: RawClient
    files: Path

    @property
    def port(self) -> int:
        """The port of the devices' MQTT listener."""
        return self.platform.endpoints.mqtts.port

    def client(self, name: str = "") -> RawClient:
        """Return a client with the certificate `name`.pem, or with none."""
        return client_of(self.platform, self.files, name)

    def https(self, client: RawClient) -> httpx.Client:
        """Return a client of the devices' HTTPS listener with the certificate of another; the caller closes it."""
        endpoint = self.platform.endpoints.https_devices
        assert endpoint is not None
        return httpx.Client(base_url=endpoint.url, verify=client.context, timeout=DEADLINE_S)


def client_of(platform: RunningPlatform, files: Path, name: str = "") -> RawClient:
    """Return a client of the devices' MQTT listener with the certificate `name`.pem in `files`, or with none."""
    pair = (files / f"{name}.pem", files / f"{name}.key") if name else (None, None)
    return RawClient.of(platform.endpoints.mqtts.port, files / "ca.pem", certificate=pair[0], key=pair[1])


@contextlib.contextmanager
def scene_on(platform: RunningPlatform, files: Path) -> Iterator[Scene]:
    """Give a scene in which alice is connected, has a history and is looked after."""
    for name in (ALICE, MALLORY):
        platform.enrol(name, files)
    connect = Connect(keep_alive_s=_ALICE_KEEP_ALIVE_S)
    with client_of(platform, files, ALICE).session(connect) as session, platform.api() as api:
        session.subscribe(*_ALICE_HEARS)
        alice = Alice(platform, session, api)
        alice.report()
        alice.speak()
        yield Scene(platform, alice, client_of(platform, files, MALLORY), files)
