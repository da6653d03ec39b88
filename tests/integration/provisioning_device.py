"""Devices that come with a claim, as the AWS IoT Device SDK's own samples do it, unmodified, over MQTT 5 or 3.1.1."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from awscrt import mqtt5, mqtt_request_response
from awsiot import V2ServiceException, iotidentity, mqtt5_client_builder, mqtt_connection_builder

from tests.integration.running_platform import DEADLINE_S, RunningPlatform

# What a device allows an operation: the service's answer takes far less, and a session that was ended far more.
_OPERATION_TIMEOUT_S = 8
_CLIENT_OPTIONS = mqtt_request_response.ClientOptions(
    max_request_response_subscriptions=4,
    max_streaming_subscriptions=1,
    operation_timeout_in_seconds=_OPERATION_TIMEOUT_S,
)
TEMPLATE = {
    "Parameters": {"SerialNumber": {"Type": "String"}, "Place": {"Type": "String", "Default": "hall"}},
    "Mappings": {
        "Urls": {"hall": {"url": "https://hall.example"}, "attic": {"url": "https://attic.example"}}
    },
    "Resources": {
        "thing": {
            "Type": "AWS::IoT::Thing",
            "Properties": {
                "ThingName": {"Fn::Join": ["-", ["lamp", {"Ref": "SerialNumber"}]]},
                "AttributePayload": {"place": {"Ref": "Place"}},
            },
            "OverrideSettings": {"AttributePayload": "MERGE"},
        },
        "certificate": {
            "Type": "AWS::IoT::Certificate",
            "Properties": {"CertificateId": {"Ref": "AWS::IoT::Certificate::Id"}, "Status": "Active"},
        },
        "policy": {"Type": "AWS::IoT::Policy", "Properties": {"PolicyName": "lamps"}},
    },
    "DeviceConfiguration": {"url": {"Fn::FindInMap": ["Urls", {"Ref": "Place"}, "url"]}},
}


class Refused(Exception):
    """The claim's connection was not let in, or was ended."""


@dataclass(frozen=True)
class ClaimFiles:
    """A claim for a template, and where its files are."""

    name: str
    template: str
    directory: Path


def new_claim(
    platform: RunningPlatform, directory: Path, name: str, *, hook: str = "", template: str = ""
) -> ClaimFiles:
    """Return a claim made with the command line, for a template of its own, or for one that is there."""
    if not template:
        template = f"for-{name}"
        file = directory / f"{template}.json"
        file.write_text(json.dumps(TEMPLATE))
        arguments = ["--hook", hook] if hook else []
        platform.done("provisioning", "template", "create", template, "--file", str(file), *arguments)
    platform.done("provisioning", "claim", "create", name, "--template", template, "--out", str(directory))
    return ClaimFiles(name, template, directory)


@contextlib.contextmanager
def identity_over_mqtt5(
    files: ClaimFiles, platform: RunningPlatform
) -> Iterator[iotidentity.IotIdentityClientV2]:
    """Give the identity client of one connection that is not made again; Refused if it is not let in."""
    connected: Future[None] = Future()
    stopped: Future[None] = Future()

    def succeed(_: Any) -> None:
        # It connects again by itself when it is thrown off.
        if not connected.done():
            connected.set_result(None)

    def fail(failure: Any) -> None:
        if not connected.done():
            connected.set_exception(Refused(str(failure.exception)))

    client = mqtt5_client_builder.mtls_from_path(
        str(files.directory / f"{files.name}.pem"),
        str(files.directory / f"{files.name}.key"),
        endpoint=platform.endpoints.mqtts.host,
        port=platform.endpoints.mqtts.port,
        ca_filepath=str(files.directory / "ca.pem"),
        client_id=f"{files.name}-device",
        on_lifecycle_connection_success=succeed,
        on_lifecycle_connection_failure=fail,
        on_lifecycle_stopped=lambda _: stopped.set_result(None),
    )
    client.start()
    try:
        connected.result(DEADLINE_S)
        yield iotidentity.IotIdentityClientV2(client, _CLIENT_OPTIONS)
    finally:
        client.stop(mqtt5.DisconnectPacket())
        stopped.result(DEADLINE_S)


@contextlib.contextmanager
def identity_over_mqtt3(
    files: ClaimFiles, platform: RunningPlatform
) -> Iterator[iotidentity.IotIdentityClientV2]:
    """Give the identity client of a connection with MQTT 3.1.1; Refused if it is not let in."""
    connection = mqtt_connection_builder.mtls_from_path(
        str(files.directory / f"{files.name}.pem"),
        str(files.directory / f"{files.name}.key"),
        endpoint=platform.endpoints.mqtts.host,
        port=platform.endpoints.mqtts.port,
        ca_filepath=str(files.directory / "ca.pem"),
        client_id=f"{files.name}-device",
        # As the SDK does unless told otherwise.
        clean_session=False,
        keep_alive_secs=30,
    )
    try:
        connection.connect().result(DEADLINE_S)
    except Exception as error:  # noqa: BLE001 - the SDK's errors have no common parent of their own
        raise Refused(str(error)) from None
    try:
        yield iotidentity.IotIdentityClientV2(connection, _CLIENT_OPTIONS)
    finally:
        connection.disconnect().result(DEADLINE_S)


def create_keys(identity: iotidentity.IotIdentityClientV2) -> Any:
    """Return the SDK's answer to a request for a certificate and its key."""
    request = iotidentity.CreateKeysAndCertificateRequest()
    return identity.create_keys_and_certificate(request).result(DEADLINE_S)


def register(identity: iotidentity.IotIdentityClientV2, template: str, token: str, **parameters: str) -> Any:
    """Return the SDK's answer to a request to become a thing."""
    request = iotidentity.RegisterThingRequest(
        template_name=template, certificate_ownership_token=token, parameters=parameters
    )
    return identity.register_thing(request).result(DEADLINE_S)


def refusal(
    identity: iotidentity.IotIdentityClientV2, template: str, token: str, **parameters: str
) -> tuple[int, str]:
    """Return status and code of the refusal that a request to become a thing must get."""
    with pytest.raises(V2ServiceException) as caught:
        register(identity, template, token, **parameters)
    error = caught.value.modeled_error
    assert isinstance(error, iotidentity.V2ErrorResponse), caught.value.inner_error
    assert error.error_message
    return error.status_code, error.error_code


def write_files(answer: Any, name: str, ca_from: Path, directory: Path, *, key_pem: str = "") -> None:
    """Write what a device was given as `sdk_device` reads it."""
    directory.mkdir(exist_ok=True)
    (directory / f"{name}.pem").write_text(answer.certificate_pem)
    (directory / f"{name}.key").write_text(key_pem or answer.private_key)
    (directory / "ca.pem").write_text((ca_from / "ca.pem").read_text())


def provision_in_the_end(
    files: ClaimFiles, platform: RunningPlatform, serial: str, *, pause_s: float, deadline_s: float
) -> tuple[Any, Any, int]:
    """Return what a device that tries until it succeeds is given: certificate, thing, and how often it tried."""
    end_s = time.monotonic() + deadline_s
    attempt_count = 0
    while True:
        attempt_count += 1
        try:
            with identity_over_mqtt5(files, platform) as identity:
                certificate = create_keys(identity)
                token = certificate.certificate_ownership_token
                return (
                    certificate,
                    register(identity, files.template, token, SerialNumber=serial),
                    attempt_count,
                )
        except (Refused, V2ServiceException):
            if time.monotonic() > end_s:
                raise
        time.sleep(pause_s)
