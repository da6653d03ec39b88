"""Whoever breaks what a run stands on, as the engine sees him; and one who breaks nothing, for want of a platform."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from scenarios.errors import FaultImpossible
from scenarios.result import FaultRecord, Judgement
from scenarios.spec import PlatformFault, Scenario, WireFault

# The check that needs an auditor, who needs a platform.
AUDITED_CHECK: Final = "no_acknowledged_update_lost"


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment of a run in both of its times, in seconds since its start."""

    virtual_s: float
    wall_s: float


@dataclass(frozen=True, slots=True)
class TroubleReport:
    """What came of all faults of the platform; `audit` is the auditor's judgement, None where there was none.

    `accepted` and `unknown` are how many of the auditor's requests the platform carried out, and of how many nobody
    knows what became of them; None without an auditor.
    """

    faults: Sequence[FaultRecord] = ()
    audit: Judgement | None = None
    accepted: int | None = None
    unknown: int | None = None
    notes: Sequence[str] = field(default_factory=tuple)


class Troublemaker(Protocol):
    """Strikes a platform while a scenario runs on it, and watches it recover."""

    async def begin(self, scenario: Scenario, now: Callable[[], Moment]) -> None:
        """Prepare for the faults and checks of a scenario; FaultImpossible where they cannot be."""
        ...

    def strike(self, fault: PlatformFault | WireFault) -> None:
        """Let a fault begin; it goes on beside the run."""
        ...

    @property
    def active(self) -> Sequence[str]:
        """Return the names of the faults from whose blow the platform has not recovered yet."""
        ...

    async def end(self, rest: Callable[[float], Awaitable[None]]) -> TroubleReport:
        """Return what came of all faults once each is over and recovered from, or its patience is; `rest` waits."""
        ...

    async def abandon(self) -> None:
        """Mend what is broken still, and leave nothing behind; nothing happens after `end`."""
        ...


class NoTrouble:
    """Nobody: a fleet in this process has no process that could be killed."""

    async def begin(self, scenario: Scenario, now: Callable[[], Moment]) -> None:
        """Refuse what takes a platform."""
        each = next((each for each in scenario.faults if isinstance(each, PlatformFault | WireFault)), None)
        if isinstance(each, PlatformFault):
            what = f"fault {each.name!r} ({each.action} {each.component}) strikes processes of a running platform"
        elif isinstance(each, WireFault):
            what = (
                f"fault {each.name!r} ({each.action}) strikes connections to the broker of a running platform"
            )
        elif AUDITED_CHECK in scenario.checks:
            what = f"check {AUDITED_CHECK!r} audits a running platform"
        else:
            return
        raise FaultImpossible(
            f"{what}, and there is none; start one (`twinfleet up`) and run the scenario without `--fleet local`"
        )

    def strike(self, fault: PlatformFault | WireFault) -> None:
        """Never be asked to: `begin` has refused."""
        raise FaultImpossible(f"fault {fault.name!r} needs a running platform")

    @property
    def active(self) -> Sequence[str]:
        """Return nothing."""
        return ()

    async def end(self, rest: Callable[[float], Awaitable[None]]) -> TroubleReport:
        """Return an empty report."""
        return TroubleReport()

    async def abandon(self) -> None:
        """Do nothing."""
