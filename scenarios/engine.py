"""The conductor of a run: virtual time tick by tick, steps at their times, pacing by the wall clock, a verdict.

The only module that decides when something happens. It drives any `Fleet` and any `DeviceHost`, so the same scenario
is a simulation in one process and a run against a platform.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from actors.errors import WorldError
from actors.fleet import Fleet
from scenarios.checks import judge_assertion, judge_threshold, verdict_of
from scenarios.cohorts import survey
from scenarios.devices import DeviceHost
from scenarios.errors import Aborted, DeviceFailed, Interrupted, LoadFailed, NameTaken
from scenarios.fault_windows import fault_records
from scenarios.observer import Observer
from scenarios.progress import Frame, Progress, SilentProgress
from scenarios.result import (
    CohortRecord,
    FaultRecord,
    Hold,
    Judgement,
    Outcome,
    RunResult,
    StepRecord,
    Verdict,
    WorstDevice,
    judged_recoveries,
)
from scenarios.spec import (
    CHECKS,
    TICK_S,
    Assertion,
    FaultSpec,
    PlatformFault,
    Scenario,
    SetDesired,
    Step,
    WaitFor,
    WireFault,
)
from scenarios.steps import set_desired, wait_for
from scenarios.trouble import AUDITED_CHECK, Moment, NoTrouble, Troublemaker
from scenarios.wire_fleet import WireFleet
from scenarios.workloads import groups_of, orders_for, stage_text, window_end, window_ticks
from twins.errors import ModelError
from twins.messages import Operation, Request

# While an assertion may still come true it is asked again after so much virtual time.
_RECHECK_S: Final = 10
_NOT_FOUND: Final = 404


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What a run needs to know beside its scenario.

    `fleet` names the kind of fleet in the report, `command` is what repeats the run. Setting `interrupt` ends the run
    cleanly, with a report. `keep_fleet` leaves groups and things where they are.
    """

    fleet: str = "local"
    command: str = ""
    version: str = ""
    keep_fleet: bool = False
    interrupt: asyncio.Event = field(default_factory=asyncio.Event)
    progress: Progress = field(default_factory=SilentProgress)
    trouble: Troublemaker = field(default_factory=NoTrouble)


async def conduct(scenario: Scenario, fleet: Fleet, devices: DeviceHost, options: RunOptions) -> RunResult:
    """Run a scenario to its verdict and return everything about it; NameTaken where it clashes with the fleet."""
    with options.progress:
        return await _Conductor(scenario, fleet, devices, options).run()


class _Conductor:
    """One run."""

    def __init__(self, scenario: Scenario, fleet: Fleet, devices: DeviceHost, options: RunOptions) -> None:
        self._scenario = scenario
        self._fleet = fleet
        self._devices = devices
        self._options = options
        self._observer = Observer(scenario)
        self._groups: list[str] = []
        self._tick = 0
        self._began_s = 0.0
        self._held_s = 0.0
        self._stage = "setting up"
        self._steps: list[StepRecord] = []
        self._holds: list[Hold] = []
        self._assertions: list[Judgement] = []
        self._digest = ""
        self._trouble = options.trouble
        self._faults: list[FaultRecord] = []
        self._audit: Judgement | None = None
        self._cohorts: tuple[CohortRecord, ...] = ()
        self._worst: tuple[WorstDevice, ...] = ()

    async def run(self) -> RunResult:
        """Set up, run, judge and clean up."""
        started_at = time.time()
        try:
            verdict, reason = await self._run_to_verdict()
        finally:
            # Also after NameTaken, or when this very task is cancelled.
            self._stage = "cleaning up"
            await self._clean_up()
        return self._result(verdict, reason, started_at)

    async def _run_to_verdict(self) -> tuple[Verdict, str]:
        scenario = self._scenario
        try:
            await self._set_up()
            self._stage = "running"
            await self._play()
            # Of the run as ordered, whatever the assertions wait for afterwards.
            self._digest = await self._fleet.digest()
            await self._end_trouble()
            self._cohorts, self._worst, why_not = await survey(scenario, self._fleet, self._tick * TICK_S)
            if why_not:
                self._observer.note(why_not)
            self._stage = "judging"
            await self._judge_assertions()
        except Aborted as end:
            self._digest = await self._fleet.digest()
            return "ABORTED", str(end)
        except Interrupted as interruption:
            # Whoever stops a run may have stopped its fleet too.
            with contextlib.suppress(WorldError):
                self._digest = self._digest or await self._fleet.digest()
            return "INTERRUPTED", str(interruption)
        except (WorldError, ModelError, DeviceFailed, LoadFailed) as error:
            # ModelError: somebody else deleted a group of ours.
            return "INCONCLUSIVE", f"the system under test broke, so it was not judged: {error}"
        return verdict_of(self._outcomes(), has_run=bool(scenario.groups or scenario.devices))

    # The course of a run

    async def _set_up(self) -> None:
        self._show()
        scenario = self._scenario
        for group in groups_of(self._scenario):
            for thing_name in (group.pattern.name(0), group.pattern.name(group.count - 1)):
                reply = await self._fleet.ask(Request(Operation.SHADOW_GET, thing_name, is_direct=True))
                if reply.status != _NOT_FOUND:
                    raise NameTaken("thing", thing_name, f"group {group.name!r} would create it")
            try:
                await self._fleet.create_group(group)
            except ModelError as error:
                raise NameTaken("group", group.name, str(error)) from None
            self._groups.append(group.name)
        self._observer.begin()
        for device in self._scenario.devices:
            speed = self._scenario.clock.speed
            await self._devices.start(device, speed=speed, listener=self._observer.on_event)
        await self._trouble.begin(scenario, lambda: Moment(self._tick * TICK_S, self._observer.wall_s))
        self._observer.begin()
        self._began_s = time.perf_counter()

    async def _play(self) -> None:
        scenario = self._scenario
        while self._tick < scenario.duration_s:
            if self._tick == scenario.warmup_s:
                self._observer.count(is_counting=True)
            await self._pace(self._tick)
            for fault in scenario.faults:
                if isinstance(fault, PlatformFault | WireFault) and fault.at_s == self._tick:
                    self._trouble.strike(fault)
            for step in scenario.steps:
                if step.at_s == self._tick:
                    await self._take(step)
            begin = self._tick
            await self._run_window(window_end(scenario, begin))
            if reason := self._observer.abort_watch.on_window(begin * TICK_S, self._tick * TICK_S):
                raise Aborted(f"abort_on: {reason}")
        await self._pace(self._tick)
        if isinstance(self._fleet, WireFleet):
            self._observer.on_settled(await self._fleet.settle())
            self._take_wire_news()
            self._observer.note_wire()
        self._observer.count(is_counting=False)

    def _take_wire_news(self) -> None:
        if isinstance(self._fleet, WireFleet):
            self._observer.on_wire(self._fleet.take_news())

    async def _run_window(self, end: int) -> None:
        orders = orders_for(self._scenario, self._tick, end - self._tick)
        if orders:
            was_broken = bool(self._trouble.active)
            if isinstance(self._fleet, WireFleet):
                self._fleet.intend(self._intended_s(self._tick))
            summaries = await self._fleet.tick(orders)
            self._take_wire_news()
            lag_ms = None
            if (intended_s := self._intended_s(end)) is not None:
                lag_ms = max(0.0, (time.perf_counter() - intended_s) * 1000)
            is_broken = was_broken or bool(self._trouble.active)
            self._observer.on_window(orders, summaries, lag_ms=lag_ms, is_broken=is_broken)
        self._tick = end
        self._observer.on_time(end * TICK_S)
        await self._devices.play(end * TICK_S)
        self._show()
        # With `asap` and a fleet in this process nothing above need ever have waited.
        await self._rest(0)

    async def _take(self, step: Step) -> None:
        action, observer = step.action, self._observer
        began_s, wall_s = time.perf_counter(), observer.wall_s
        held_s = 0.0
        if isinstance(action, WaitFor):
            outcome, detail = await self._hold(action)
            held_s = time.perf_counter() - began_s
            self._held_s += held_s
            self._holds.append(
                Hold(step.at_s, wall_s, held_s, action.thing_name, str(action), outcome == "PASS")
            )
        elif action.group is not None:
            outcome, detail = "PASS", "rides on the group's next ticks"
        else:
            outcome, detail = await self._ask(action)
        self._steps.append(StepRecord(step.at_s, wall_s, str(action), outcome, detail, held_s))

    async def _ask(self, action: SetDesired) -> tuple[Outcome, str]:
        self._observer.on_asked(action.thing_name or "", action.state)
        return await set_desired(action, self._fleet)

    async def _hold(self, action: WaitFor) -> tuple[Outcome, str]:
        async def rest(seconds: float) -> None:
            self._show(hold=str(action))
            await self._rest(seconds)

        return await wait_for(action, self._fleet, self._devices, virtual_s=self._tick * TICK_S, rest=rest)

    async def _end_trouble(self) -> None:
        """Wait until what was broken is served again, and take in what came of every fault."""
        self._stage = "recovering"

        async def rest(seconds: float) -> None:
            self._show(
                hold=f"until the platform has recovered from {', '.join(self._trouble.active) or 'all'}"
            )
            await self._rest(seconds)

        observer = self._observer
        report = await self._trouble.end(rest)
        self._audit = report.audit
        self._faults = sorted(
            [*self._simulated_faults(), *report.faults], key=lambda each: each.virtual_begin_s
        )
        for each in self._faults:
            observer.on_fault(each)
        if report.accepted is not None and report.unknown is not None:
            observer.on_audit(report.accepted, report.unknown)
        for text in report.notes:
            observer.note(text)

    def _simulated_faults(self) -> list[FaultRecord]:
        """Return the faults of simulated devices that have begun, as far as the run has come."""
        scenario, end_s = self._scenario, self._tick * TICK_S
        return fault_records(
            [each for each in scenario.faults if isinstance(each, FaultSpec) and each.at_s < end_s],
            self._observer.windows,
            end_s=end_s,
            device_count=sum(group.count for group in scenario.groups),
        )

    # Time

    def _intended_s(self, tick: int) -> float | None:
        """Return when this tick should begin by the performance counter, or None with `asap`."""
        speed = self._scenario.clock.speed
        return None if speed is None else self._began_s + tick * TICK_S / speed + self._held_s

    async def _pace(self, tick: int) -> None:
        intended_s = self._intended_s(tick)
        if intended_s is not None:
            await self._rest(max(0.0, intended_s - time.perf_counter()))

    async def _rest(self, seconds: float) -> None:
        """Let wall time pass; Interrupted if the run is asked to stop meanwhile."""
        interrupt = self._options.interrupt
        if seconds <= 0:
            await asyncio.sleep(0)
        else:
            try:
                async with asyncio.timeout(seconds):
                    await interrupt.wait()
            except TimeoutError:
                return
        if interrupt.is_set():
            raise Interrupted(self._tick * TICK_S)

    # The verdict

    async def _judge_assertions(self) -> None:
        """Judge all assertions now, and those that may still come true again, as time goes on, until they do."""
        scenario = self._scenario
        judged: dict[str, Judgement] = {}
        open_assertions: list[Assertion] = list(scenario.assertions)
        while open_assertions:
            for assertion in open_assertions:
                self._show()
                judged[assertion.name] = await judge_assertion(assertion, self._fleet)
            past_s = self._tick - scenario.duration_s
            open_assertions = [
                assertion
                for assertion in open_assertions
                if judged[assertion.name].outcome != "PASS" and past_s < assertion.within_s
            ]
            if open_assertions:
                latest = scenario.duration_s + max(assertion.within_s for assertion in open_assertions)
                await self._run_on(min(self._tick + _RECHECK_S, latest))
        self._assertions = [judged[assertion.name] for assertion in scenario.assertions]

    async def _run_on(self, until: int) -> None:
        longest = window_ticks(self._scenario.clock, self._scenario.duration_s)
        while self._tick < until:
            await self._pace(self._tick)
            await self._run_window(min(self._tick + longest, until))
        await self._pace(self._tick)

    def _thresholds(self) -> list[Judgement]:
        measurements = self._observer.measurements
        return [judge_threshold(threshold, measurements) for threshold in self._scenario.thresholds]

    def _checks(self) -> list[Judgement]:
        return [
            (self._audit or Judgement(name, "NO_DATA", CHECKS[name], "the audit did not come to its end"))
            if name == AUDITED_CHECK
            else self._observer.invariants.judge(name)
            for name in self._scenario.checks
        ]

    def _outcomes(self) -> list[Outcome]:
        judgements = [*self._thresholds(), *self._checks(), *self._assertions]
        recoveries = [each.outcome for each in judged_recoveries(self._faults)]
        return [*(one.outcome for one in judgements), *(step.outcome for step in self._steps), *recoveries]

    # The end

    async def _clean_up(self) -> None:
        self._show()
        await self._trouble.abandon()
        try:
            await self._devices.stop(keep=self._options.keep_fleet)
            for name in [] if self._options.keep_fleet else self._groups:
                await self._fleet.delete_group(name)
        except (WorldError, DeviceFailed, LoadFailed) as error:
            self._observer.note(f"cleaning up: {error}")

    def _show(self, *, hold: str = "") -> None:
        observer = self._observer
        last = observer.windows[-1] if observer.windows else None
        wall_s = observer.wall_s if self._began_s else 0.0
        self._options.progress.show(
            Frame(
                scenario=self._scenario.name,
                stage=self._stage,
                virtual_s=self._tick * TICK_S,
                duration_s=self._scenario.duration_s,
                wall_s=wall_s,
                simulated_count=sum(group.count for group in self._scenario.groups),
                connected_ratio=last.connected_ratio if last else None,
                delta_outstanding=last.delta_outstanding if last else 0,
                report_count=observer.report_count,
                reports_per_s=observer.report_count / wall_s if wall_s else 0.0,
                lag_ms=last.lag_ms if last else None,
                hold=hold,
                failed_count=sum(step.outcome != "PASS" for step in self._steps)
                + sum(one.outcome == "FAIL" for one in (*self._checks(), *self._assertions)),
                faults=self._active_faults(),
                planned_stage=stage_text(self._scenario, self._tick) if self._stage == "running" else "",
                latencies=self._observer.latencies_so_far,
                judge=self._holding,
                devices={
                    device.thing_name: observer.device_values.get(device.thing_name, {})
                    for device in self._scenario.devices
                },
            )
        )

    def _holding(self) -> tuple[int, int]:
        """Return how many thresholds hold so far, and how many there are."""
        judged = self._thresholds()
        return sum(one.outcome == "PASS" for one in judged), len(judged)

    def _active_faults(self) -> tuple[str, ...]:
        """Return the names of the faults that are on, and of those of the platform that are not recovered from yet."""
        simulated = [
            each.name
            for each in self._scenario.faults
            if isinstance(each, FaultSpec) and each.fault.is_on(self._tick)
        ]
        return (*simulated, *self._trouble.active)

    def _result(self, verdict: Verdict, reason: str, started_at: float) -> RunResult:
        scenario, options, observer = self._scenario, self._options, self._observer
        return RunResult(
            run_id=_run_id(scenario.name, started_at),
            scenario=scenario.name,
            file=scenario.file,
            verdict=verdict,
            reason=reason,
            seed=scenario.seed,
            version=options.version,
            digest=self._digest,
            command=options.command,
            fleet=options.fleet,
            shard_count=self._fleet.shard_count,
            clock=str(scenario.clock),
            started_at=started_at,
            ended_at=time.time(),
            duration_s=scenario.duration_s,
            virtual_s=self._tick * TICK_S,
            simulated_count=sum(group.count for group in scenario.groups),
            description=scenario.description,
            labels=scenario.labels,
            devices=tuple(
                observer.device_record(device.thing_name, device.model, self._devices.transport)
                for device in scenario.devices
            ),
            metrics=observer.measurements.statistics(),
            thresholds=tuple(self._thresholds()),
            checks=tuple(self._checks()),
            assertions=tuple(self._assertions),
            steps=tuple(self._steps),
            holds=tuple(self._holds),
            # Of a run that did not come to its end, what is known: nobody waited for the platform to recover.
            faults=tuple(self._faults or self._simulated_faults()),
            cohorts=self._cohorts,
            worst_devices=self._worst,
            latencies=observer.latencies(),
            windows=observer.sampled_windows(),
            device_points=tuple(observer.device_points),
            notes=tuple(observer.notes),
        )


def _run_id(name: str, started_at: float) -> str:
    """Return a name for the run's directory: it sorts by time, tells the scenario, and is never taken."""
    moment = datetime.fromtimestamp(started_at, UTC).strftime("%Y%m%dT%H%M%SZ")
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "run"
    return f"{moment}-{plain}-{secrets.token_hex(2)}"
