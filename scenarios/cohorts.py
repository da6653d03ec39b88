"""How parts of a simulated fleet fared by the end of a run: by group, model and attribute; and the worst devices.

Asks the twins themselves, in SQL, as an assertion does.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from actors.asking import ask_fleet
from actors.errors import OperatorError
from actors.fleet import Fleet
from scenarios.result import CohortRecord, WorstDevice
from scenarios.spec import TICK_S, GroupSpec, Scenario
from scenarios.workloads import groups_of
from twins.model import Group

# Beyond, reading every twin costs more than the report is worth; metrics tell of the whole fleet in any case.
_DEVICE_COUNT_MAX: Final = 5_000_000
# An attribute with more values is no cohort but a property of single devices.
_VALUE_COUNT_MAX: Final = 50
_WORST_COUNT: Final = 10
_SQL_TIMEOUT_S: Final = 60.0


async def survey(
    scenario: Scenario, fleet: Fleet, virtual_s: float
) -> tuple[tuple[CohortRecord, ...], tuple[WorstDevice, ...], str]:
    """Return the cohorts of a fleet and its worst devices, and why there are none where that is so."""
    device_count = sum(group.count for group in scenario.groups)
    if device_count > _DEVICE_COUNT_MAX:
        return (
            (),
            (),
            f"cohorts are not told apart: {device_count:,} devices are more than {_DEVICE_COUNT_MAX:,}",
        )
    cohorts: list[CohortRecord] = []
    worst: list[WorstDevice] = []
    now_s = scenario.start_s + virtual_s
    try:
        for spec, group in zip(scenario.groups, groups_of(scenario), strict=True):
            for by, expression in _dimensions(spec):
                rows = await _rows(fleet, _cohort_sql(spec, group, expression, now_s))
                cohorts += [_cohort(spec, by, row) for row in rows]
            worst += [_worst(spec, row) for row in await _rows(fleet, _worst_sql(spec, group, now_s))]
    except OperatorError as error:
        return (), (), f"cohorts are not told apart: {error}"
    worst.sort(key=lambda each: (each.version, -each.silent_s))
    return tuple(cohorts), tuple(worst[:_WORST_COUNT]), ""


def _dimensions(spec: GroupSpec) -> Iterator[tuple[str, str]]:
    yield "group", "'" + spec.name.replace("'", "''") + "'"
    yield "model", "model"
    for name, choice in spec.attributes.items():
        if len(choice.values) <= _VALUE_COUNT_MAX:
            yield name, f'"{name}"'


async def _rows(fleet: Fleet, sql: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = (await ask_fleet(fleet, sql, timeout_s=_SQL_TIMEOUT_S)).to_pylist()
    return rows


def _which(group: Group) -> str:
    """Return the condition that a twin is of a group: names of one pattern are of no other."""
    prefix, suffix = (text.replace("'", "''") for text in (group.pattern.prefix, group.pattern.suffix))
    begin, others = len(group.pattern.prefix) + 1, len(group.pattern.prefix) + len(group.pattern.suffix)
    is_number = f"try_cast(substr(name, {begin}, length(name) - {others}) as bigint) is not null"
    return f"starts_with(name, '{prefix}') and ends_with(name, '{suffix}') and {is_number}"


def _silence(group: Group, now_s: float) -> str:
    """Return the expression of how long a twin has not changed: one that never did, for the whole run.

    Real ones, as on the wire, live by the wall clock.
    """
    now = f"(case when origin = 'real' then {int(time.time())} else {int(now_s)} end)::bigint"
    return f"coalesce({now} - updated_at::bigint, {int(now_s) - group.start_s})"


def _cohort_sql(spec: GroupSpec, group: Group, expression: str, now_s: float) -> str:
    settable = [field.name for field in spec.model.fields if field.is_settable]
    differs = " or ".join(
        f"(desired_{name} is not null and desired_{name} is distinct from reported_{name})"
        for name in settable
    )
    return f"""
        select {expression} as value, count(*) as devices, avg(connected::int) as connected,
               avg(version) as version_avg, min(version) as version_min,
               sum(({differs or "false"})::int) as deltas, max({_silence(group, now_s)}) as silent_s
        from twins where {_which(group)} group by 1 order by 1
    """


def _cohort(spec: GroupSpec, by: str, row: Mapping[str, Any]) -> CohortRecord:
    return CohortRecord(
        group=spec.name,
        by=by,
        value=str(row["value"]),
        device_count=int(row["devices"]),
        connected_ratio=float(row["connected"] or 0.0),
        version_avg=float(row["version_avg"] or 0.0),
        version_min=int(row["version_min"] or 0),
        delta_count=int(row["deltas"] or 0),
        silent_s_max=float(row["silent_s"] or 0.0),
    )


def _worst_sql(spec: GroupSpec, group: Group, now_s: float) -> str:
    attributes = "".join(f', "{name}"' for name in spec.attributes)
    return f"""
        select name, connected, version, {_silence(group, now_s)} as silent_s{attributes}
        from twins where {_which(group)} order by version, updated_at nulls first, name limit {_WORST_COUNT}
    """


def _worst(spec: GroupSpec, row: Mapping[str, Any]) -> WorstDevice:
    return WorstDevice(
        thing_name=row["name"],
        group=spec.name,
        is_connected=bool(row["connected"]),
        version=int(row["version"] or 0),
        silent_s=max(0.0, float(row["silent_s"] or 0.0)) * TICK_S,
        attributes={name: str(row[name]) for name in spec.attributes},
    )
