"""What faults of simulated devices did, read off the windows of a run: before, during, after, and when it was over.

Pure. A window belongs to where its end lies; windows end where faults begin and end, so none is of two phases.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from scenarios.result import FaultPhase, FaultRecord, WindowSample
from scenarios.spec import TICK_S, FaultSpec

# A fleet is as it was before when it is so within these: shares of it, and of its reports.
_CONNECTED_SLACK: Final = 0.005
_LOST_SLACK: Final = 0.005
# Reports that are under way or kept vary from window to window.
_KEPT_FACTOR: Final = 1.5
_KEPT_SLACK_RATIO: Final = 0.001
# What was so long before a fault is what it was usually.
_BEFORE_S: Final = 300


def fault_records(
    specs: Sequence[FaultSpec], windows: Sequence[WindowSample], *, end_s: float, device_count: int
) -> list[FaultRecord]:
    """Return the faults of simulated devices as they happened in these windows, which end at `end_s` of virtual time.

    What was disturbed by one fault is no measure of what is usual before the next.
    """
    records: list[FaultRecord] = []
    disturbed: set[int] = set()
    for spec in sorted(specs, key=lambda each: each.at_s):
        calm = [each for each in windows if each.virtual_s not in disturbed]
        record = fault_record(spec, windows, calm, end_s=end_s, device_count=device_count)
        records.append(record)
        back_s = float("inf") if record.recovery_s is None else record.virtual_end_s + record.recovery_s
        disturbed |= {each.virtual_s for each in windows if record.virtual_begin_s < each.virtual_s <= back_s}
    return records


def fault_record(
    spec: FaultSpec,
    windows: Sequence[WindowSample],
    calm: Sequence[WindowSample],
    *,
    end_s: float,
    device_count: int,
) -> FaultRecord:
    """Return one fault as it happened; of the windows before it those that are `calm` tell what is usual."""
    fault = spec.fault
    begin_s = float(fault.first_tick * TICK_S)
    over_s = min(begin_s + fault.tick_count * TICK_S, end_s)
    before = [each for each in calm if begin_s - _BEFORE_S < each.virtual_s <= begin_s]
    during = [each for each in windows if begin_s < each.virtual_s <= over_s]
    after = [each for each in windows if each.virtual_s > over_s]
    # Of what lasts to the end, and of what began before anything was known, nothing can be said.
    known = before if fault.first_tick + fault.tick_count <= end_s else []
    back = next((each for each in after if known and _is_as(each, known, device_count)), None)
    is_felt = any(not _is_as(each, known, device_count) for each in during) if known else False
    disturbed = after if back is None else after[: after.index(back) + 1]
    phases = (("before", before), ("during", during), ("after", disturbed))
    return FaultRecord(
        name=fault.name,
        layer="simulated",
        action=fault.action,
        target=_target(spec),
        virtual_begin_s=begin_s,
        virtual_end_s=over_s,
        wall_begin_s=_wall_at(windows, begin_s),
        wall_end_s=_wall_at(windows, over_s),
        # Known to the length of a window, at the end of which all was as before again.
        recovery_s=None if back is None else (back.virtual_s - over_s) * is_felt,
        phases=tuple(FaultPhase(name, _values(part)) for name, part in phases),  # type: ignore[arg-type]  # literals
    )


def _is_as(window: WindowSample, before: Sequence[WindowSample], device_count: int) -> bool:
    """Tell whether a window is as those before the fault: as connected, losing and keeping no more."""
    connected = sum(each.connected_ratio for each in before) / len(before)
    lost = max(_lost_share(each) for each in before)
    kept = max(each.reports_kept for each in before)
    return (
        window.connected_ratio >= connected - _CONNECTED_SLACK
        and _lost_share(window) <= lost + _LOST_SLACK
        and window.reports_kept <= kept * _KEPT_FACTOR + device_count * _KEPT_SLACK_RATIO
    )


def _lost_share(window: WindowSample) -> float:
    sent = window.reports_per_s + window.reports_lost_per_s
    return window.reports_lost_per_s / sent if sent else 0.0


def _values(windows: Sequence[WindowSample]) -> dict[str, float]:
    if not windows:
        return {}
    latencies = [each.latency_ms_p99 for each in windows if each.latency_ms_p99 is not None]
    values = {
        "reports_per_s": sum(each.reports_per_s for each in windows) / len(windows),
        "reports_lost_per_s": sum(each.reports_lost_per_s for each in windows) / len(windows),
        "connected_ratio_min": min(each.connected_ratio for each in windows),
        "delta_outstanding_max": float(max(each.delta_outstanding for each in windows)),
        "reports_kept_max": float(max(each.reports_kept for each in windows)),
    }
    return values | ({"latency_ms_p99_max": max(latencies)} if latencies else {})


def _wall_at(windows: Sequence[WindowSample], virtual_s: float) -> float:
    """Return the wall time at which virtual time came to here."""
    return next((each.wall_s for each in windows if each.virtual_s >= virtual_s), 0.0) if virtual_s else 0.0


def _target(spec: FaultSpec) -> str:
    """Return whom a fault hits, in a few words."""
    select = spec.fault.select
    share = (
        f"{select.count} of " if select.count else f"{select.percent:g} % of " if select.percent < 100 else ""
    )
    where = ", ".join(f"{name}:{value}" for name, value in select.where)
    return f"{share}{', '.join(spec.groups)}" + (f" where {where}" if where else "")
