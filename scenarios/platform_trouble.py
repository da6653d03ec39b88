"""Faults of a running platform: real processes are killed, stopped and restarted while an auditor drives load.

Owns when a blow falls, how long it lasts, and when all is served again. Signals and processes are those of
`actors.platform_processes`; what the platform accepted and lost is the auditor's to say. Only the platform of this
machine is struck, only through its operators' API on loopback, and only for an admin.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx
import psutil

from actors.errors import WorldError
from actors.platform_processes import (
    COMPONENTS,
    SMALL_DISK_BYTES_MAX,
    fill_disk,
    is_small_disk,
    processes_below,
    processes_of,
    send,
)
from actors.settings import Endpoints
from scenarios.audit_progress import STEADY_S, AuditProgress, Operation, between, percentile_s, steady_at_s
from scenarios.auditor import AuditResult, AuditSettings, audit
from scenarios.auditor_operator import operator_api
from scenarios.errors import FaultImpossible
from scenarios.history import Fault as FaultEvent
from scenarios.history import Outcome, encode_event
from scenarios.relay import Relay
from scenarios.result import FaultPhase, FaultRecord, Judgement
from scenarios.spec import CHECKS, PlatformFault, Scenario, WireFault
from scenarios.trouble import AUDITED_CHECK, Moment, TroubleReport
from scenarios.wire_trouble import WireTrouble, is_loopback

# The auditor's load: enough that every part is asked many times a second, little beside what a scenario brings.
_THING_COUNT: Final = 4
_RATE: Final = 40.0
# Both by MQTT and by HTTP.
_WAY_COUNT: Final = 2 * _THING_COUNT
# So many accepted updates tell how quick the platform is when nothing is broken.
_ACCEPTED_BEFORE: Final = 40
_LOAD_TIMEOUT_S: Final = 60.0
# A platform that does not serve every thing again by then does not come back by itself.
_RECOVERY_TIMEOUT_S: Final = 120.0
_SETTLE_S: Final = 90.0
# Each part may take as long to save what it holds when it is told to end.
_END_TIMEOUT_S: Final = 10.0
# The load ends when it is told to: longer than any scenario that somebody waits for.
_LOAD_DURATION_S: Final = 7 * 86_400.0
# How often it is looked whether a platform is whole, and how soon a component that is to stay away is killed again.
_LOOK_S: Final = 0.1
_ADMIN_ONLY: Final = "/v1/keys"
# What holds acknowledgements: after its fault the broker may hand requests out again that were carried out.
_REDELIVERING: Final = ("broker", "bridge", "node")


@dataclass
class _Blow:
    """A fault under way; times are of `time.monotonic`, 0 where it has not come so far."""

    fault: PlatformFault | WireFault
    began: Moment
    struck_s: float = 0.0
    over_s: float = 0.0
    over: Moment | None = None
    served_s: float | None = None
    struck: str = ""
    paused: list[psutil.Process] = field(default_factory=list)
    ended: list[psutil.Process] = field(default_factory=list)


class PlatformTrouble:
    """The troublemaker of the platform of a data directory on this machine."""

    def __init__(self, endpoints: Endpoints, data_dir: Path, relay: Relay | None = None) -> None:
        """Make it; `endpoints` are those that devices use, which lead through `relay` if there is one."""
        self._endpoints = endpoints
        self._data_dir = data_dir
        self._wire = None if relay is None else WireTrouble(relay)
        self._seed = 0
        self._now: Callable[[], Moment] = lambda: Moment(0.0, 0.0)
        self._blows: list[_Blow] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._whole: dict[str, int] = {}
        self._stop = asyncio.Event()
        self._audit: asyncio.Task[AuditResult] | None = None
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._progress: AuditProgress | None = None
        self._faults_file = Path()
        self._api: httpx.AsyncClient | None = None

    # The beginning

    async def begin(self, scenario: Scenario, now: Callable[[], Moment]) -> None:
        """See that the platform may be broken, and let the auditor's load begin; FaultImpossible if it may not."""
        faults = [each for each in scenario.faults if isinstance(each, PlatformFault)]
        if self._wire is None and not faults and AUDITED_CHECK not in scenario.checks:
            return
        self._seed, self._now = scenario.seed, now
        self._api = operator_api(self._endpoints)
        if faults:
            await self._require_right(faults)
        self._whole = self._count()
        self._directory = tempfile.TemporaryDirectory(prefix="twinfleet-audit-")
        history = Path(self._directory.name) / "history.jsonl"
        self._faults_file = Path(self._directory.name) / "faults.jsonl"
        self._faults_file.touch()
        self._progress = AuditProgress(history)
        settings = AuditSettings(
            self._data_dir,
            history,
            thing_count=_THING_COUNT,
            duration_s=_LOAD_DURATION_S,
            rate=_RATE,
            seed=self._seed,
            settle_s=_SETTLE_S,
            others=(self._faults_file,),
            endpoints=self._endpoints,
        )
        self._audit = asyncio.create_task(audit(settings, self._stop, lambda _: None))
        await self._until_load()

    async def _require_right(self, faults: Sequence[PlatformFault]) -> None:
        named = f"fault {faults[0].name!r}"
        host = urlsplit(self._endpoints.api.url).hostname or ""
        if not is_loopback(host):
            raise FaultImpossible(f"{named}: the platform answers at {host}; only one on loopback is broken")
        running = processes_below(self._endpoints.pid)
        if not processes_of("redis", running):
            raise FaultImpossible(
                f"{named}: no process of a platform runs below process {self._endpoints.pid} here; "
                "run the scenario on the machine where `twinfleet up` runs"
            )
        assert self._api is not None
        try:
            answer = await self._api.get(_ADMIN_ONLY)
        except httpx.HTTPError as error:
            raise WorldError(f"the platform does not answer: {error!r}") from None
        if answer.status_code in (401, 403):
            raise FaultImpossible(
                f"{named}: only an admin may break a platform, and {self._endpoints.operator_token_file} is not one's"
            )
        if any(each.action == "disk_full" for each in faults) and not is_small_disk(self._data_dir):
            raise FaultImpossible(
                f"{named}: {self._data_dir} lies on a file system of more than {SMALL_DISK_BYTES_MAX >> 20} MiB, which "
                "others may need; start the platform with --data-dir on a small one of its own, for example a tmpfs"
            )

    async def _until_load(self) -> None:
        assert self._progress is not None
        deadline_s = time.monotonic() + _LOAD_TIMEOUT_S
        while not self._progress.is_served(0.0, way_count=_WAY_COUNT) or (
            self._progress.accepted_count < _ACCEPTED_BEFORE
        ):
            self._require_audit()
            if time.monotonic() > deadline_s:
                raise WorldError(f"the auditor's things are not served within {_LOAD_TIMEOUT_S:g} s")
            await asyncio.sleep(_LOOK_S)

    def _require_audit(self) -> None:
        """Raise what ended the audit, if anything has."""
        if self._audit is not None and self._audit.done() and not self._stop.is_set():
            self._audit.result()

    def _count(self) -> dict[str, int]:
        running = processes_below(self._endpoints.pid)
        return {component: len(processes_of(component, running)) for component in COMPONENTS}

    # Blows

    def strike(self, fault: PlatformFault | WireFault) -> None:
        """Let a fault begin; it goes on beside the run."""
        blow = _Blow(fault, self._now())
        self._blows.append(blow)
        self._tasks.append(asyncio.create_task(self._carry_out(blow)))

    @property
    def active(self) -> Sequence[str]:
        """Return the names of the faults from whose blow the platform has not recovered yet."""
        pairs = zip(self._blows, self._tasks, strict=True)
        return tuple(blow.fault.name for blow, task in pairs if not task.done())

    async def _carry_out(self, blow: _Blow) -> None:
        fault = blow.fault
        blow.struck_s = time.monotonic()
        again_count = 0
        try:
            if isinstance(fault, WireFault):
                await self._disturb(fault)
            else:
                again_count = await self._strike(blow, fault)
        finally:
            blow.over_s, blow.over = time.monotonic(), self._now()
            self._mend(blow)
        try:
            blow.served_s = await self._until_served(blow)
        finally:
            part = _part(fault)
            event = FaultEvent(
                blow.struck_s,
                part,
                fault.action,
                redelivers=part in _REDELIVERING,
                until_s=time.monotonic(),
            )
            for _ in range(1 + again_count):
                self._note(event)
            self._note(FaultEvent(blow.over_s, part, "mended"))

    async def _disturb(self, fault: WireFault) -> None:
        if self._wire is None:
            raise FaultImpossible(f"fault {fault.name!r}: no relay stands between devices and broker")
        await self._wire.carry_out(fault)

    async def _strike(self, blow: _Blow, fault: PlatformFault) -> int:
        """Break processes for as long as the fault lasts, and return how often they were broken again."""
        self._hit(blow, fault)
        if fault.action == "kill" and fault.duration_s:
            return await self._keep_down(fault, until_s=blow.struck_s + fault.duration_s)
        if fault.action == "restart":
            await _until_ended(blow.ended)
        else:
            await asyncio.sleep(fault.duration_s)
        return 0

    def _hit(self, blow: _Blow, fault: PlatformFault) -> None:
        if fault.action == "disk_full":
            fill_disk(self._ballast)
            blow.struck = "its file system was filled"
            return
        targets = self._targets(fault)
        number = {"kill": signal.SIGKILL, "restart": signal.SIGTERM, "pause": signal.SIGSTOP}[fault.action]
        for process in targets:
            send(process, number)
        if fault.action == "pause":
            blow.paused = targets
        else:
            blow.ended = list(targets)
        pids = ", ".join(str(process.pid) for process in targets)
        blow.struck = (
            f"process {pids} got {number.name}" if targets else f"no process of {fault.component} ran"
        )

    def _targets(self, fault: PlatformFault) -> list[psutil.Process]:
        found = processes_of(fault.component, processes_below(self._endpoints.pid))
        if not fault.count or fault.count >= len(found):
            return found
        return random.Random(f"{self._seed}/{fault.name}").sample(found, fault.count)

    async def _keep_down(self, fault: PlatformFault, *, until_s: float) -> int:
        """Kill whatever comes back until then, and return how many that were."""
        count = 0
        while time.monotonic() < until_s:
            await asyncio.sleep(min(_LOOK_S, max(0.0, until_s - time.monotonic())))
            running = processes_of(fault.component, processes_below(self._endpoints.pid))
            # Of several processes, the others may live.
            allowed = max(0, self._whole[fault.component] - fault.count) if fault.count else 0
            for process in running[allowed:]:
                send(process, signal.SIGKILL)
                count += 1
        return count

    def _mend(self, blow: _Blow) -> None:
        while blow.paused:
            send(blow.paused.pop(), signal.SIGCONT)
        if blow.fault.action == "disk_full":
            self._ballast.unlink(missing_ok=True)

    @property
    def _ballast(self) -> Path:
        return self._data_dir / "ballast"

    def _note(self, event: FaultEvent) -> None:
        with self._faults_file.open("ab", buffering=0) as file:
            file.write(encode_event(event))

    # Recovery

    async def _until_served(self, blow: _Blow) -> float | None:
        """Return when every thing was served again by a platform that is whole; None if that does not come about."""
        assert self._progress is not None
        whole_since_s: float | None = None
        deadline_s = time.monotonic() + _RECOVERY_TIMEOUT_S
        while time.monotonic() < deadline_s:
            if not await self._is_whole(blow):
                whole_since_s = None
            elif whole_since_s is None:
                whole_since_s = time.monotonic()
            if whole_since_s is not None:
                served_s = self._progress.served_at_s(whole_since_s, way_count=_WAY_COUNT)
                if served_s is not None:
                    return served_s
            await asyncio.sleep(_LOOK_S)
        return None

    async def _is_whole(self, blow: _Blow) -> bool:
        """Tell whether what ran runs again, but for the very processes that were ended, and the platform serves."""
        if self._count() != self._whole or any(map(_lives, blow.ended)):
            return False
        assert self._api is not None
        try:
            return (await self._api.get("/readyz")).is_success
        except httpx.HTTPError:
            return False

    # The end

    async def end(self, rest: Callable[[float], Awaitable[None]]) -> TroubleReport:
        """Return what came of all faults once each is over and recovered from, or its patience is."""
        if self._audit is None:
            return TroubleReport()
        while not all(task.done() for task in self._tasks):
            self._require_audit()
            await rest(_LOOK_S)
        for task in self._tasks:
            task.result()
        # Whether answers are as quick as before is known only when some more have come.
        steady_s = max((blow.served_s or 0.0 for blow in self._blows), default=0.0) + 2 * STEADY_S
        while time.monotonic() < steady_s:
            await rest(_LOOK_S)
        self._stop.set()
        while not self._audit.done():
            await rest(_LOOK_S)
        result = self._audit.result()
        report = TroubleReport(
            tuple(self._record(blow) for blow in self._blows),
            _judged(result),
            result.accepted,
            result.unknown,
            tuple(f"{blow.fault.name}: {blow.struck}" for blow in self._blows if blow.struck),
        )
        await self.abandon()
        return report

    async def abandon(self) -> None:
        """Mend what is broken still, and leave nothing behind; nothing happens after `end`."""
        self._stop.set()
        for task in [*self._tasks, *([self._audit] if self._audit else [])]:
            task.cancel()
            # Whatever it was about to say, nobody asks any more.
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task
        for blow in self._blows:
            self._mend(blow)
        if self._api is not None:
            await self._api.aclose()
            self._api = None
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None

    def _record(self, blow: _Blow) -> FaultRecord:
        assert self._progress is not None
        self._progress.read()
        fault, over = blow.fault, blow.over or blow.began
        operations = self._progress.operations
        later = [each.struck_s for each in self._blows if each.struck_s > blow.struck_s]
        before = between(operations, 0.0, min(each.struck_s for each in self._blows))
        during = between(operations, blow.struck_s, blow.over_s)
        end_s = min(later, default=float("inf"))
        steady_s = None
        if blow.served_s is not None:
            steady_s = steady_at_s(before, between(operations, blow.served_s, end_s))
        disturbed = between(operations, blow.over_s, blow.served_s or float("inf"))
        phases = (("before", before), ("during", during), ("after", disturbed))
        return FaultRecord(
            name=fault.name,
            layer="wire" if isinstance(fault, WireFault) else "platform",
            action=fault.action,
            target=_target(fault),
            virtual_begin_s=blow.began.virtual_s,
            virtual_end_s=over.virtual_s,
            wall_begin_s=blow.began.wall_s,
            wall_end_s=over.wall_s,
            recovery_s=None if blow.served_s is None else blow.served_s - blow.over_s,
            steady_s=None if steady_s is None else steady_s - blow.over_s,
            phases=tuple(FaultPhase(name, _values(part)) for name, part in phases),  # type: ignore[arg-type]  # literals
            detail=blow.struck,
        )


def _judged(result: AuditResult) -> Judgement:
    found = result.contradiction
    counts = f"{result.accepted:,} accepted, {result.refused:,} refused, {result.unknown:,} unknown"
    if not found and not result.accepted:
        return Judgement(AUDITED_CHECK, "NO_DATA", CHECKS[AUDITED_CHECK], "nothing was accepted")
    first = found.splitlines()[0] if found else f"{counts}, no contradiction"
    return Judgement(AUDITED_CHECK, "FAIL" if found else "PASS", CHECKS[AUDITED_CHECK], first, found)


def _values(operations: Sequence[Operation]) -> dict[str, float]:
    """Return what the auditor's requests of one phase tell of it; times are of those that were accepted."""
    values = {
        "audit_sent": float(len(operations)),
        "audit_accepted": float(sum(each.outcome is Outcome.OK for each in operations)),
        "audit_unknown": float(sum(each.outcome is Outcome.INFO for each in operations)),
    }
    for percent in (50, 99):
        seconds = percentile_s(operations, percent)
        if seconds is not None:
            values[f"answer_ms_p{percent}"] = seconds * 1000
    return values


async def _until_ended(processes: Sequence[psutil.Process]) -> None:
    """Return when processes have ended that were asked to; whoever takes too long is killed."""
    deadline_s = time.monotonic() + _END_TIMEOUT_S
    while any(map(_lives, processes)):
        if time.monotonic() > deadline_s:
            for process in processes:
                send(process, signal.SIGKILL)
        await asyncio.sleep(_LOOK_S)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _part(fault: PlatformFault | WireFault) -> str:
    return "wire" if isinstance(fault, WireFault) else fault.component


def _target(fault: PlatformFault | WireFault) -> str:
    """Return what a fault strikes, in a few words."""
    if isinstance(fault, WireFault):
        return "connections between devices and broker"
    share = "every " if not fault.count else f"{fault.count} of " if fault.count > 1 else ""
    return f"{share}{fault.component}"
