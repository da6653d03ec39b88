"""The life of certificates on the whole platform: exchanged, revoked, and those of applications."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from awsiot import iotshadow
from cryptography.hazmat.primitives.serialization import load_der_private_key, load_pem_private_key

from actors.processes import wait_until
from tests.integration.raw_mqtt import Connect, RawClient, RawSession
from tests.integration.running_platform import DEADLINE_S, RunningPlatform, platform_on
from tests.integration.sdk_device import Device, over_mqtt3, over_mqtt5

# From the answer of a revocation to the end of what it is against.
ENDED_WITHIN_S: Final = 2.0


def client_of(platform: RunningPlatform, directory: Path, name: str) -> RawClient:
    return RawClient.of(
        platform.endpoints.mqtts.port,
        directory / "ca.pem",
        certificate=directory / f"{name}.pem",
        key=directory / f"{name}.key",
    )


def statuses(platform: RunningPlatform, name: str) -> list[str]:
    with platform.api() as api:
        answer = api.get(f"/v1/things/{name}/certificates")
    assert answer.status_code == 200, answer.text
    return [one["status"] for one in answer.json()["certificates"]]


def report(session: RawSession, name: str, temperature: float) -> int:
    """Send a report on the session and return the version that it was accepted as."""
    session.subscribe(f"$aws/things/{name}/shadow/update/accepted")
    body = {"state": {"reported": {"temperature": temperature}}}
    session.publish(f"$aws/things/{name}/shadow/update", json.dumps(body).encode())
    return int(json.loads(session.next_message().payload)["version"])


def expect_closed(session: RawSession) -> None:
    """Fail unless the broker closes the connection in time."""
    session.link.settimeout(ENDED_WITHIN_S)
    assert session.is_closed()


@pytest.mark.parametrize("over", [over_mqtt5, over_mqtt3])
def test_a_device_exchanges_its_certificate_while_it_is_connected(
    platform: RunningPlatform, tmp_path: Path, over: Callable[..., Any]
) -> None:
    name = f"exchanged-{over.__name__}"
    platform.enrol(name, tmp_path)
    new = tmp_path / "new"
    old_client = client_of(platform, tmp_path, name)
    with old_client.session(Connect(b"any")) as old:
        printed = platform.done("device", "rotate", name, "--out", str(new))
        assert "works until this one is first used" in printed
        assert statuses(platform, name) == ["ACTIVE", "ACTIVE"]
        assert report(old, name, 20.5) == 1
        with over(name, new, platform) as device:
            answer = device.shadows.update_shadow(
                iotshadow.UpdateShadowRequest(
                    thing_name=name, state=iotshadow.ShadowState(reported={"temperature": 21.5})
                )
            ).result(DEADLINE_S)
            assert answer.version == 2
            # Its first use was when it connected.
            old.link.settimeout(DEADLINE_S)
            assert old.is_closed()
            assert statuses(platform, name) == ["INACTIVE", "ACTIVE"]
            assert not old_client.is_admitted(Connect(b"any"))
            assert device.shadows.get_shadow(iotshadow.GetShadowRequest(thing_name=name)).result(DEADLINE_S)
    assert statuses(platform, name) == ["INACTIVE", "ACTIVE"]


def test_a_rotation_replaces_no_file_and_asks_for_nothing_then(
    platform: RunningPlatform, tmp_path: Path
) -> None:
    platform.enrol("unrotated", tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    answer = platform.run("device", "rotate", "unrotated", "--out", str(tmp_path))
    assert answer.returncode == 1
    assert "unrotated.pem is there already" in answer.stderr
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert statuses(platform, "unrotated") == ["ACTIVE"]


def test_all_sessions_of_a_revoked_device_end_and_its_twin_stays(
    platform: RunningPlatform, tmp_path: Path
) -> None:
    name = "revoked"
    platform.enrol(name, tmp_path)
    new = tmp_path / "new"
    platform.done("device", "rotate", name, "--out", str(new))
    first, second = client_of(platform, tmp_path, name), client_of(platform, new, name)
    with first.session(Connect(b"any")) as old:
        assert report(old, name, 20.5) == 1
        with platform.api() as api:
            answer = api.delete(f"/v1/things/{name}/certificates")
        expect_closed(old)
    assert [one["status"] for one in answer.json()["certificates"]] == ["REVOKED", "REVOKED"]
    for client in (first, second):
        assert not client.is_admitted(Connect(b"any"))
    assert platform.version_of(name) == 1
    # It may come back with a new one, which bears its name again.
    again = tmp_path / "again"
    assert "works until" not in platform.done("device", "rotate", name, "--out", str(again))
    listed = platform.json("device", "certificates", name)["certificates"]
    assert [(one["status"], one["common_name"] == name) for one in listed] == [
        ("REVOKED", True),
        ("REVOKED", False),
        ("ACTIVE", True),
    ]
    with client_of(platform, again, name).session(Connect(b"any")) as back:
        assert report(back, name, 21.5) == 2
        printed = platform.done("device", "revoke", name, "--certificate", listed[2]["certificate_id"])
        expect_closed(back)
    assert printed == f"{listed[2]['certificate_id']} is revoked\n"
    assert "REVOKED" in platform.done("device", "certificates", name)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("device revoke nobody-here", "no thing 'nobody-here' is registered"),
        ("device certificates nobody-here", "no thing 'nobody-here' is registered"),
        ("device rotate nobody-here --out OUT", "no thing 'nobody-here' is registered"),
        ("device revoke known --certificate abc", "certificate 'abc' of thing 'known' is not registered"),
        ("certificate revoke nobody-here", "application 'nobody-here' is not registered"),
        ("certificate create bridge --role operator --out OUT", "app.bridge: is the platform's own user"),
        ("certificate create events --role observer --out OUT", "app.events: is the platform's own user"),
        ("certificate create probe-7 --role observer --out OUT", "app.probe-7: is the platform's own user"),
        ("certificate create a.b --role observer --out OUT", "may hold letters"),
    ],
)
def test_what_cannot_be_is_said(platform: RunningPlatform, tmp_path: Path, command: str, said: str) -> None:
    if " known " in command:
        (tmp_path / "known").mkdir()
        platform.enrol("known", tmp_path / "known")
    answer = platform.run(*command.replace("OUT", str(tmp_path / "out")).split())
    assert answer.returncode == 1, answer
    assert said in answer.stderr
    assert not list((tmp_path / "out").glob("*.key"))


def create_application(platform: RunningPlatform, directory: Path, name: str, role: str) -> RawClient:
    platform.done("certificate", "create", name, "--role", role, "--out", str(directory))
    assert stat.S_IMODE((directory / f"{name}.key").stat().st_mode) == 0o600
    return client_of(platform, directory, name)


def test_an_observer_hears_documents_and_events_and_changes_nothing(
    platform: RunningPlatform, tmp_path: Path
) -> None:
    platform.enrol("observed", tmp_path)
    observer = create_application(platform, tmp_path, "wall", "observer")
    device = client_of(platform, tmp_path, "observed")
    with observer.session(Connect(b"any")) as wall:
        wall.subscribe("$aws/things/+/shadow/update/documents", "$aws/events/presence/connected/+")
        with device.session(Connect(b"any")) as link:
            assert report(link, "observed", 20.5) == 1
            topics: set[str] = set()
            while len(topics) < 2:
                message = wall.next_message()
                # Other tests' devices are heard as well.
                if "observed" in message.topic:
                    topics.add(message.topic)
            body = b'{"state":{"desired":{"set_point":30}}}'
            wall.publish("$aws/things/observed/shadow/update", body)
            wall.publish("telemetry/observed/climate", b'{"temperature":99}')
            wall.messages()
            # The bridge has dealt with all before this.
            assert report(link, "observed", 21.5) == 2
    assert topics == {
        "$aws/things/observed/shadow/update/documents",
        "$aws/events/presence/connected/observed",
    }
    taken = platform.run("certificate", "create", "wall", "--role", "operator", "--out", str(tmp_path / "x"))
    assert taken.returncode == 1
    assert "application 'wall' has a certificate that is in force" in taken.stderr


def test_an_operator_steers_with_the_sdk_until_it_is_revoked(
    platform: RunningPlatform, tmp_path: Path
) -> None:
    platform.enrol("steered", tmp_path)
    operator = create_application(platform, tmp_path, "desk", "operator")
    device = client_of(platform, tmp_path, "steered")
    with device.session(Connect(b"any")) as link:
        link.subscribe("$aws/things/steered/shadow/update/delta")
        with over_mqtt5("desk", tmp_path, platform) as desk:
            assert set_point(desk, "steered", 23.5).version == 1
            got = desk.shadows.get_shadow(iotshadow.GetShadowRequest(thing_name="steered")).result(DEADLINE_S)
            assert got.state.desired == {"set_point": 23.5}
        assert json.loads(link.next_message().payload)["state"] == {"set_point": 23.5}
        with operator.session(Connect(b"any")) as session:
            # What is a device's alone: to delete a shadow, and to report telemetry.
            session.publish("$aws/things/steered/shadow/delete", b"{}")
            session.publish("telemetry/steered/climate", b'{"temperature":99}')
            session.messages()
            platform.done("certificate", "revoke", "desk")
            expect_closed(session)
    assert not operator.is_admitted(Connect(b"any"))
    assert platform.version_of("steered") == 1
    with platform.api() as api:
        assert api.get("/v1/twins/steered/telemetry").json().get("streams", {}) == {}
    row = next(line for line in platform.done("certificate", "list").splitlines() if line.startswith("desk"))
    assert row.split()[1:3] == ["operator", "REVOKED"]


def set_point(device: Device, thing_name: str, value: float) -> Any:
    request = iotshadow.UpdateShadowRequest(
        thing_name=thing_name, state=iotshadow.ShadowState(desired={"set_point": value})
    )
    return device.shadows.update_shadow(request).result(DEADLINE_S)


def test_the_authoritys_key_is_not_readable_on_disk(platform: RunningPlatform) -> None:
    key_file = platform.directory.pki / "ca.key"
    content = key_file.read_bytes()
    for load in (load_pem_private_key, load_der_private_key):
        with pytest.raises(ValueError, match=r"."):
            load(content, password=None)
    for file in (key_file, platform.directory.path / "vault.key"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    plain = [file for file in platform.directory.pki.iterdir() if b"PRIVATE KEY" in file.read_bytes()]
    # The servers read this one themselves.
    assert [file.name for file in plain] == ["server.key"]


def test_a_revocation_outlives_the_platform_and_its_revocation_list(tmp_path: Path) -> None:
    """Slower than others, because the platform is started twice."""
    files = tmp_path / "files"
    files.mkdir()
    with platform_on(tmp_path / "data") as platform:
        for name in ("stolen", "honest"):
            platform.enrol(name, files)
        stolen = client_of(platform, files, "stolen")
        assert stolen.is_admitted(Connect(b"any"))
        platform.done("device", "revoke", "stolen")
        assert not stolen.is_admitted(Connect(b"any"))
        list_file = platform.directory.pki / "crl.pem"
        assert platform.stop() == 0
    list_file.write_bytes(b"no list")
    with platform_on(tmp_path / "data") as platform:
        assert not client_of(platform, files, "stolen").is_admitted(Connect(b"any"))
        assert client_of(platform, files, "honest").is_admitted(Connect(b"any"))
        assert statuses(platform, "stolen") == ["REVOKED"]
        # While it runs, too: whatever makes the broker read the list again.
        list_file.unlink()
        long_name = "n" * 100
        platform.enrol(long_name, files)
        assert not client_of(platform, files, "stolen").is_admitted(Connect(b"any"))
        assert client_of(platform, files, long_name).is_admitted(Connect(b"any"))
        assert wait_until(list_file.exists, timeout_s=DEADLINE_S)
