"""Faults of a running platform: real processes are killed, stopped and restarted while an auditor drives load.

Owns when a blow falls, how long it lasts, and when all is served again. Signals and processes are those of
`actors.platform_processes`; what the platform accepted and lost is the auditor's to say. Only the platform of this
machine is struck, only through its operators' API on loopback, and only for an admin.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx

from actors.errors import WorldError
from actors.platform_processes import (
    COMPONENTS,
    SMALL_DISK_BYTES_MAX,
    is_small_disk,
    processes_below,
    processes_of,
)
from actors.settings import Endpoints
from scenarios.audit_progress import STEADY_S, AuditProgress, Operation, between, percentile_s, steady_at_s
from scenarios.auditor import AuditResult, AuditSettings, audit
from scenarios.auditor_operator import operator_api
from scenarios.errors import FaultImpossible
from scenarios.history import Fault as FaultEvent
from scenarios.history import Outcome, encode_event
from scenarios.platform_blows import Blow, PlatformBlows
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
# The load ends when it is told to: longer than any scenario that somebody waits for.
_LOAD_DURATION_S: Final = 7 * 86_400.0
# How often it is looked whether a platform is whole.
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
    struck: Blow = field(default_factory=Blow)


class PlatformTrouble:
    """The troublemaker of the platform of a data directory on this machine."""

    def __init__(self, endpoints: Endpoints, data_dir: Path, relay: Relay | None = None) -> None:
        """Make it; `endpoints` are those that devices use, which lead through `relay` if there is one."""
        self._endpoints = endpoints
        self._data_dir = data_dir
        self._wire = None if relay is None else WireTrouble(relay)
        self._strikes = PlatformBlows(endpoints.pid, data_dir, seed=0)
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
        self._now = now
        self._strikes = PlatformBlows(self._endpoints.pid, self._data_dir, seed=scenario.seed)
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
            seed=scenario.seed,
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
        try:
            if isinstance(fault, PlatformFault):
                await self._strikes.carry_out(fault, blow.struck)
            elif self._wire is not None:
                await self._wire.carry_out(fault)
        finally:
            blow.over_s, blow.over = time.monotonic(), self._now()
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
            for _ in range(1 + blow.struck.again_count):
                self._note(event)
            self._note(FaultEvent(blow.over_s, part, "mended"))

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
        if self._count() != self._whole or not blow.struck.has_ended_all:
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
            tuple(f"{blow.fault.name}: {blow.struck.text}" for blow in self._blows if blow.struck.text),
        )
        await self.abandon()
        return report

    async def abandon(self) -> None:
        """Mend what is broken still, and leave nothing behind; nothing happens after `end`."""
        self._stop.set()
        tasks = [*self._tasks, *([self._audit] if self._audit else [])]
        for task in tasks:
            # What it has broken it mends.
            task.cancel()
        # Whatever they were about to say, nobody asks any more.
        await asyncio.gather(*tasks, return_exceptions=True)
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
            detail=blow.struck.text,
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


def _part(fault: PlatformFault | WireFault) -> str:
    return "wire" if isinstance(fault, WireFault) else fault.component


def _target(fault: PlatformFault | WireFault) -> str:
    """Return what a fault strikes, in a few words."""
    if isinstance(fault, WireFault):
        return "connections between devices and broker"
    share = "every " if not fault.count else f"{fault.count} of " if fault.count > 1 else ""
    return f"{share}{fault.component}"
