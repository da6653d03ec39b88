"""Hosts of a scenario's real devices: on a running platform, a process each; in this process, for want of a platform.

Owns registering, starting, stopping and deleting them. What was seen is told to a listener, in order, per device.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import httpx
import msgspec

from actors.errors import WorldError
from actors.fleet import LocalFleet
from actors.pki import generate_key_and_csr
from actors.settings import Endpoints, process_environment, write_atomically
from scenarios.brain import DeviceBrain, DeviceEvent, Reaction
from scenarios.errors import DeviceFailed, NameTaken
from scenarios.spec import DeviceSpec
from twins.messages import SHADOW_OPERATION, Operation, Publish, Registration, Request
from twins.shipped import model_named
from twins.topics import ShadowTopic, parse

# Starting an interpreter and a TLS handshake takes a second; ten times that on a machine that is also starting Ray.
_START_TIMEOUT_S: Final = 15.0
# A device says goodbye within a round trip; after that it is killed.
_STOP_TIMEOUT_S: Final = 5.0
# Registering signs a certificate and may rewrite and reload the broker's access list.
_API_TIMEOUT_S: Final = 15.0
_CREATED: Final = 201
_CONFLICT: Final = 409
_REJECTED_FROM: Final = 400

Listener = Callable[[str, DeviceEvent], None]


class DeviceHost(Protocol):
    """Whoever gives a scenario its real devices."""

    @property
    def transport(self) -> Literal["mqtt", "in-process"]:
        """Return how these devices reach their twins."""
        ...

    async def start(self, device: DeviceSpec, *, speed: float | None, listener: Listener) -> None:
        """Register and start a device and return when it is connected; NameTaken or DeviceFailed if that fails."""
        ...

    async def play(self, virtual_s: float) -> None:
        """Let devices that have no time of their own live until this virtual time."""
        ...

    async def stop(self, *, keep: bool) -> None:
        """End all devices, and delete their things unless `keep`."""
        ...


class NoDevices:
    """A host for scenarios without real devices."""

    transport: Final = "in-process"

    async def start(self, device: DeviceSpec, *, speed: float | None, listener: Listener) -> None:
        """Refuse: there is nowhere to run it."""
        raise DeviceFailed(device.thing_name, "this run has no host for real devices")

    async def play(self, virtual_s: float) -> None:
        """Do nothing."""

    async def stop(self, *, keep: bool) -> None:
        """Do nothing."""


@dataclass(slots=True)
class _LocalDevice:
    spec: DeviceSpec
    brain: DeviceBrain
    listener: Listener
    # Deltas that came since the device was last played.
    inbox: list[Publish] = field(default_factory=list)


class LocalDevices:
    """Devices that are played in this process, in virtual time, through `LocalFleet`: the same brain, no wire."""

    transport: Final = "in-process"

    def __init__(self, fleet: LocalFleet) -> None:
        self._fleet = fleet
        self._devices: list[_LocalDevice] = []

    async def start(self, device: DeviceSpec, *, speed: float | None, listener: Listener) -> None:
        """Register a device with the fleet and connect it."""
        probe = Request(Operation.SHADOW_GET, device.thing_name, is_direct=True)
        if (await self._fleet.ask(probe)).status < _REJECTED_FROM:
            raise NameTaken("thing", device.thing_name)
        registration = msgspec.json.encode(Registration(device.model, dict(device.attributes)))
        request = Request(Operation.REGISTER, device.thing_name, registration, is_direct=True)
        reply = await self._fleet.ask(request)
        if reply.status >= _REJECTED_FROM:
            raise DeviceFailed(
                device.thing_name, f"registration answered {reply.status}: {reply.payload.decode()}"
            )
        brain = DeviceBrain(
            device.thing_name, model_named(device.model), report_every_s=device.report_every_s
        )
        local = _LocalDevice(device, brain, listener)
        self._devices.append(local)
        self._fleet.listen(f"{brain.prefix}/update/delta", local.inbox.append)
        await self._apply(local, brain.on_connected(0.0), 0.0)

    async def play(self, virtual_s: float) -> None:
        """Let every device hear the deltas that have come, and send the reports that are due by now."""
        for local in self._devices:
            await self._hear(local, virtual_s)
            while (due_s := local.brain.next_due_s) is not None and due_s <= virtual_s:
                await self._apply(local, local.brain.on_timer(due_s), due_s)
                await self._hear(local, due_s)

    async def stop(self, *, keep: bool) -> None:
        """Forget the devices, and their twins unless `keep`."""
        for local in self._devices:
            if not keep:
                await self._fleet.ask(Request(Operation.UNREGISTER, local.spec.thing_name, is_direct=True))
        self._devices.clear()

    async def _hear(self, local: _LocalDevice, now_s: float) -> None:
        while local.inbox:
            message = local.inbox.pop(0)
            await self._apply(local, local.brain.on_message(message.topic, message.payload, now_s), now_s)

    async def _apply(self, local: _LocalDevice, reaction: Reaction, now_s: float) -> None:
        for event in reaction.events:
            local.listener(local.spec.thing_name, event)
        for message in reaction.messages:
            topic = parse(message.topic)
            if not isinstance(topic, ShadowTopic):
                raise DeviceFailed(local.spec.thing_name, f"{message.topic} is no topic of a shadow")
            operation = SHADOW_OPERATION[topic.operation]
            asked_s = time.perf_counter()
            reply = await self._fleet.ask(
                Request(operation, topic.thing_name, message.payload, is_direct=True)
            )
            verb = "rejected" if reply.status >= _REJECTED_FROM else "accepted"
            # Only the time that the answer took is real here, so only that is added to the virtual time.
            answered_s = now_s + time.perf_counter() - asked_s
            answer = local.brain.on_message(f"{message.topic}/{verb}", reply.payload, answered_s)
            await self._apply(local, answer, answered_s)


@dataclass(slots=True)
class _RunningDevice:
    spec: DeviceSpec
    listener: Listener
    directory: Path
    process: Process | None = None
    reader: asyncio.Task[None] | None = None
    connected: asyncio.Event = field(default_factory=asyncio.Event)
    is_stopping: bool = False
    last_message: str = ""


class PlatformDevices:
    """Devices on a running platform: registered over its API, each a process with a key that never leaves it."""

    transport: Final = "mqtt"

    def __init__(self, endpoints: Endpoints) -> None:
        self._endpoints = endpoints
        self._devices: list[_RunningDevice] = []
        token = _operator_token(Path(endpoints.operator_token_file))
        self._directory = tempfile.TemporaryDirectory(prefix="twinfleet-devices-")
        self._api = httpx.AsyncClient(
            base_url=endpoints.api.url,
            headers={"Authorization": f"Bearer {token}"},
            timeout=_API_TIMEOUT_S,
            # The platform is on this machine: a proxy of the environment has no business in between.
            trust_env=False,
        )

    async def start(self, device: DeviceSpec, *, speed: float | None, listener: Listener) -> None:
        """Register a device, start its process and wait until it is connected."""
        directory = Path(self._directory.name) / device.thing_name
        directory.mkdir(mode=0o700)
        await self._register(device, directory)
        running = _RunningDevice(device, listener, directory)
        self._devices.append(running)
        await self._launch(running, speed or 1.0)
        try:
            await asyncio.wait_for(running.connected.wait(), _START_TIMEOUT_S)
        except TimeoutError:
            reason = running.last_message or _tail(directory / "errors")
            problem = f"did not connect within {_START_TIMEOUT_S:g} s: {reason or 'it said nothing'}"
            raise DeviceFailed(device.thing_name, problem) from None

    async def _register(self, device: DeviceSpec, directory: Path) -> None:
        key = generate_key_and_csr(device.thing_name)
        body = {
            "name": device.thing_name,
            "model": device.model,
            "attributes": dict(device.attributes),
            "csr": key.csr_pem,
        }
        try:
            answer = await self._api.post("/v1/things", json=body)
        except httpx.HTTPError as error:
            raise DeviceFailed(
                device.thing_name, f"cannot be registered at {self._api.base_url}: {error!r}"
            ) from None
        if answer.status_code == _CONFLICT:
            raise NameTaken("thing", device.thing_name)
        if answer.status_code != _CREATED:
            problem = f"registration answered {answer.status_code}: {answer.text[:500]}"
            raise DeviceFailed(device.thing_name, problem)
        registered: dict[str, Any] = answer.json()
        write_atomically(directory / "key.pem", key.private_key_pem.encode())
        write_atomically(directory / "certificate.pem", registered["certificate_pem"].encode())
        write_atomically(directory / "ca.pem", registered["ca_pem"].encode())

    async def _launch(self, running: _RunningDevice, speed: float) -> None:
        spec, directory = running.spec, running.directory
        options = {
            "thing-name": spec.thing_name,
            "model": spec.model,
            "host": self._endpoints.mqtts.host,
            "port": self._endpoints.mqtts.port,
            "ca": directory / "ca.pem",
            "certificate": directory / "certificate.pem",
            "key": directory / "key.pem",
            "report-every-s": spec.report_every_s / speed,
            "speed": speed,
        }
        arguments = [f"--{name}={value}" for name, value in options.items()]
        with (directory / "errors").open("wb") as errors:
            running.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "scenarios.wire",
                *arguments,
                stdin=PIPE,
                stdout=PIPE,
                stderr=errors,
                env=_environment(),
                # A Ctrl-C in the terminal is the conductor's to handle: devices end when it says so.
                start_new_session=True,
            )
        running.reader = asyncio.create_task(_listen(running))

    async def play(self, virtual_s: float) -> None:
        """Do nothing: these devices live by their own clocks."""

    async def stop(self, *, keep: bool) -> None:
        """End the processes and delete the things; one that cannot be deleted does not hold up the others."""
        failures: list[str] = []
        for running in self._devices:
            await _end(running)
            if not keep:
                failures += await self._delete(running.spec.thing_name)
        self._devices.clear()
        await self._api.aclose()
        self._directory.cleanup()
        if failures:
            raise DeviceFailed(failures[0], f"could not be deleted: {'; '.join(failures[1:])}")

    async def _delete(self, thing_name: str) -> list[str]:
        try:
            answer = await self._api.delete(f"/v1/things/{thing_name}")
        except httpx.HTTPError as error:
            return [thing_name, repr(error)]
        return [thing_name, answer.text[:500]] if answer.is_error else []


def _operator_token(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        problem = f"the operators' token in {file} cannot be read: {error}"
        raise WorldError(f"{problem}; run this as the user who started the platform") from None


async def _listen(running: _RunningDevice) -> None:
    """Tell the listener every event that the process writes, and its end where nobody asked for that."""
    process = running.process
    if process is None or process.stdout is None:
        return
    while line := await process.stdout.readline():
        try:
            event = msgspec.json.decode(line, type=DeviceEvent)
        except msgspec.DecodeError as error:
            event = DeviceEvent("failed", message=f"wrote what is no event: {error}")
        if event.message:
            running.last_message = event.message
        running.listener(running.spec.thing_name, event)
        if event.kind == "connected":
            running.connected.set()
    exit_code = await process.wait()
    if not running.is_stopping:
        running.last_message = f"its process ended with {exit_code}: {_tail(running.directory / 'errors')}"
        running.listener(running.spec.thing_name, DeviceEvent("failed", message=running.last_message))


async def _end(running: _RunningDevice) -> None:
    running.is_stopping = True
    process, reader = running.process, running.reader
    if process is None or reader is None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(asyncio.shield(reader), _STOP_TIMEOUT_S)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await reader
    if process.stdin is not None:
        process.stdin.close()


def _tail(file: Path) -> str:
    """Return the last line of a file, which of an interpreter's last words is the one that says why."""
    lines = file.read_text(encoding="utf-8", errors="replace").strip().splitlines() if file.exists() else []
    return lines[-1] if lines else ""


def _environment() -> dict[str, str]:
    """Return this process's environment, in which the device finds the package wherever it was started from."""
    environment = process_environment()
    here = str(Path(__file__).resolve().parent.parent)
    paths = [here, environment.get("PYTHONPATH", "")]
    return {**environment, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
