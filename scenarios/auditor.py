"""The auditor: drives devices and operators against a running platform, and judges what they were told.

It knows nothing of the platform but its doors: MQTT with certificates for devices, HTTP for operators. What is broken
meanwhile is somebody else's business; the auditor only asks in the end, when all is quiet, and holds everybody to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import secrets
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase
from time import monotonic
from typing import Any, Final

import httpx
import msgspec

from actors.errors import WorldError
from actors.pki import generate_key_and_csr
from actors.settings import Endpoints, write_atomically
from scenarios.audit_rules import Contradiction, first_contradiction
from scenarios.auditor_clients import Recorder
from scenarios.auditor_device import SHADOW_NAMES, AuditedDevice
from scenarios.auditor_operator import AuditedOperator, ShadowRead, operator_api
from scenarios.device_link import LinkSettings
from scenarios.history import Outcome, Settled, in_order, read_history

# Of four updates one is an operator's, who also reads as often as he writes.
_OPERATOR_SHARE: Final = 0.25
_OPERATOR_COUNT: Final = 2
# Long enough for every fault: the session of a device that is away must outlive it.
_SESSION_EXPIRY_S: Final = 3600
# A handshake takes milliseconds; a machine that is also starting Ray takes longer.
_CONNECT_TIMEOUT_S: Final = 30.0
# How often it is looked whether all is quiet; what is under way takes milliseconds.
_LOOK_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """What an audit does; the load has `rate` operations a second in all, and ends after `duration_s`.

    `settle_s` is how long the platform may take afterwards until all is quiet. `others` are histories of other
    recorders, who tell for example what was broken on purpose. `endpoints` are where clients connect, if that is not
    where the data directory says: through a relay, for example.
    """

    data_dir: Path
    history: Path
    thing_count: int = 4
    duration_s: float = 30.0
    rate: float = 40.0
    seed: int = 0
    settle_s: float = 60.0
    others: Sequence[Path] = ()
    keeps_things: bool = False
    endpoints: Endpoints | None = None


class AuditResult(msgspec.Struct, frozen=True):
    """What an audit has counted and found; `contradiction` is '' where there is none."""

    history: str
    things: int
    connects: int
    operations: int
    accepted: int
    refused: int
    unknown: int
    contradiction: str = ""


async def audit(settings: AuditSettings, stop: asyncio.Event, tell: Callable[[str], None]) -> AuditResult:
    """Drive load until its time is over or `stop` is set, wait until all is quiet, and judge.

    `tell` gets a line for each step. PlatformNotRunning if there is no platform, WorldError if it does not take the
    load on or cannot be read at the end; the history tells what happened until then.
    """
    endpoints = settings.endpoints or Endpoints.read(settings.data_dir)
    recorder = Recorder(settings.history)
    try:
        async with operator_api(endpoints) as api:
            stage = _Stage(settings, endpoints, api, recorder)
            async with stage.devices() as devices:
                operators = [
                    AuditedOperator(f"operator-{number + 1}", recorder, api)
                    for number in range(_OPERATOR_COUNT)
                ]
                tell(f"load on {', '.join(device.name for device in devices)}")
                await _drive(settings, devices, operators, stop)
                tell("load has ended; waiting until all is quiet")
                await _settle(settings, devices, operators[0], api, recorder)
    finally:
        recorder.close()
    found = judge([settings.history, *settings.others])
    return AuditResult(
        str(settings.history),
        len(devices),
        sum(device.connect_count for device in devices),
        recorder.sent_count,
        recorder.counts[Outcome.OK],
        recorder.counts[Outcome.FAIL],
        recorder.counts[Outcome.INFO],
        str(found or ""),
    )


def judge(histories: Sequence[Path]) -> Contradiction | None:
    """Return the first contradiction of a history that several recorders may have written; None if there is none."""
    return first_contradiction(in_order(event for path in histories for event in read_history(path)))


class _Stage:
    """Registers the devices of an audit and keeps them connected."""

    def __init__(
        self, settings: AuditSettings, endpoints: Endpoints, api: httpx.AsyncClient, recorder: Recorder
    ) -> None:
        self._settings = settings
        self._endpoints = endpoints
        self._api = api
        self._recorder = recorder

    @asynccontextmanager
    async def devices(self) -> AsyncIterator[list[AuditedDevice]]:
        """Give devices that are registered and connected; they are deleted afterwards unless they shall stay."""
        # A run meets no thing of an earlier one.
        run = secrets.token_hex(3)
        names = [f"audit-{run}-{_letters(number)}" for number in range(self._settings.thing_count)]
        ended = asyncio.Event()
        with tempfile.TemporaryDirectory(prefix="twinfleet-audit-") as directory:
            links = await self._register(names, Path(directory))
            devices = [
                AuditedDevice(self._recorder, link, draws=random.Random(f"{self._settings.seed}/{number}"))
                for number, link in enumerate(links)
            ]
            lives = [asyncio.create_task(device.live(ended)) for device in devices]
            try:
                await _until_connected(devices)
                yield devices
            finally:
                ended.set()
                await asyncio.gather(*lives)
        if not self._settings.keeps_things:
            await self._delete(names)

    async def _delete(self, names: Sequence[str]) -> None:
        for name in names:
            # What is left of an audit is in nobody's way.
            with contextlib.suppress(httpx.HTTPError):
                await self._api.delete(f"/v1/things/{name}")

    async def _register(self, names: Sequence[str], directory: Path) -> list[LinkSettings]:
        pairs = {name: generate_key_and_csr(name) for name in names}
        things = [{"name": name, "csr": pair.csr_pem, "model": "thermostat"} for name, pair in pairs.items()]
        links = []
        for number, result in enumerate(await self._created(things)):
            name = result["thing_name"]
            certificate, key = directory / f"{name}.pem", directory / f"{name}.key"
            write_atomically(certificate, result["certificate_pem"].encode())
            write_atomically(key, pairs[name].private_key_pem.encode())
            mqtts = self._endpoints.mqtts
            links.append(
                LinkSettings(
                    name,
                    mqtts.host,
                    mqtts.port,
                    self._endpoints.ca,
                    str(certificate),
                    str(key),
                    session_expiry_s=_SESSION_EXPIRY_S * (number % 2),
                )
            )
        return links

    async def _created(self, things: Sequence[dict[str, str]]) -> list[dict[str, Any]]:
        """Return what the platform says of new things, each with its certificate; it may take some attempts."""
        deadline_s = monotonic() + _CONNECT_TIMEOUT_S
        while True:
            try:
                answer = await self._api.post("/v1/things/batch", json={"things": things})
                problem = f"{answer.status_code} {answer.text[:500]}"
                results: list[dict[str, Any]] = answer.json()["results"] if answer.is_success else []
            except httpx.HTTPError as error:
                problem, results = repr(error), []
            if len(results) == len(things) and all("certificate_pem" in result for result in results):
                return results
            if monotonic() > deadline_s:
                raise WorldError(f"devices cannot be registered: {problem}")
            await asyncio.sleep(_LOOK_S)


def _letters(number: int) -> str:
    """Return a number in letters: things whose names differ in their last digits only live in one shard."""
    high, low = divmod(number, len(ascii_lowercase))
    return (ascii_lowercase[high - 1] if high else "") + ascii_lowercase[low]


async def _until_connected(devices: Sequence[AuditedDevice]) -> None:
    deadline_s = monotonic() + _CONNECT_TIMEOUT_S
    while missing := [device.name for device in devices if not device.connect_count]:
        if monotonic() > deadline_s:
            raise WorldError(f"{', '.join(missing)} did not connect within {_CONNECT_TIMEOUT_S:g} s")
        await asyncio.sleep(_LOOK_S)


# Load


async def _drive(
    settings: AuditSettings,
    devices: Sequence[AuditedDevice],
    operators: Sequence[AuditedOperator],
    stop: asyncio.Event,
) -> None:
    draws = random.Random(settings.seed)
    async with asyncio.TaskGroup() as load:
        tasks = [load.create_task(_report(devices, settings.rate * (1 - _OPERATOR_SHARE)))]
        pause_s = len(operators) / (settings.rate * _OPERATOR_SHARE)
        tasks += [load.create_task(_operate(each, devices, draws, pause_s)) for each in operators]
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), settings.duration_s)
        for task in tasks:
            task.cancel()


async def _report(devices: Sequence[AuditedDevice], rate: float) -> None:
    """Let the devices take turns, `rate` reports a second in all; what they can't send in time is left out."""
    for device in itertools.cycle(devices):
        device.update()
        await asyncio.sleep(1 / rate)


async def _operate(
    operator: AuditedOperator, devices: Sequence[AuditedDevice], draws: random.Random, pause_s: float
) -> None:
    """Let an operator go from device to device: he wishes something of one of its shadows, and reads it."""
    for device in itertools.cycle(draws.sample(devices, len(devices))):
        shadow_name = draws.choice(SHADOW_NAMES)
        await operator.wish(device.name, shadow_name)
        await operator.read(device.name, shadow_name)
        await asyncio.sleep(pause_s)


# The end


async def _settle(
    settings: AuditSettings,
    devices: Sequence[AuditedDevice],
    operator: AuditedOperator,
    api: httpx.AsyncClient,
    recorder: Recorder,
) -> None:
    """Wait until nothing is under way any more, and write down what every shadow is then."""
    deadline_s = monotonic() + settings.settle_s
    for device in devices:
        device.conclude()
    before: dict[tuple[str, str], ShadowRead] = {}
    while True:
        reads = await _read_all(devices, operator) if await _is_ready(api) else {}
        is_over = monotonic() > deadline_s
        is_quiet = len(reads) == len(devices) * len(SHADOW_NAMES) and reads == before
        if is_over or (is_quiet and all(device.agrees for device in devices) and _agree(reads)):
            break
        if is_quiet and not _agree(reads):
            # A wish that no device has heard of: the delta of its next report will tell.
            for device in devices:
                device.conclude()
        for device in devices:
            device.insist()
        before = reads
        await asyncio.sleep(_LOOK_S)
    if len(reads) < len(devices) * len(SHADOW_NAMES):
        raise WorldError(f"the shadows could not be read within {settings.settle_s:g} s after the load")
    for (name, shadow_name), read in reads.items():
        recorder.note(Settled(monotonic(), name, shadow_name, read.version, read.values, follower=name))


def _agree(reads: dict[tuple[str, str], ShadowRead]) -> bool:
    return all(read.is_agreed for read in reads.values())


async def _is_ready(api: httpx.AsyncClient) -> bool:
    try:
        return (await api.get("/readyz")).is_success
    except httpx.HTTPError:
        return False


async def _read_all(
    devices: Sequence[AuditedDevice], operator: AuditedOperator
) -> dict[tuple[str, str], ShadowRead]:
    """Return every shadow that can be read."""
    reads = {}
    for device in devices:
        for shadow_name in SHADOW_NAMES:
            read = await operator.read(device.name, shadow_name)
            if read is not None:
                reads[device.name, shadow_name] = read
    return reads
