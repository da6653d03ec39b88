"""Scenarios as the command line shows them. What it imports takes time, so commands import it when they run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from scenarios.errors import ScenarioInvalid
from scenarios.planning import Plan, plan_of
from scenarios.reading import load_scenarios
from scenarios.shipped import shipped_file, shipped_scenarios
from scenarios.spec import Scenario
from twinfleet.errors import UsageFault
from twins.words import nearest


def library_rows() -> list[tuple[str, str, str]]:
    """Return the scenarios that come along: kind, name, goal."""
    return [(each.kind, each.name, each.goal) for each in shipped_scenarios()]


def library_summaries() -> list[dict[str, str]]:
    """Return the same for programs, with method, expected result and file."""
    return [
        {
            "kind": each.kind,
            "name": each.name,
            "file": str(each.file),
            "goal": each.goal,
            "method": each.method,
            "expected": each.expected,
        }
        for each in shipped_scenarios()
    ]


def scenario_file(name: str) -> Path:
    """Return the file that a name stands for: a path, or a scenario of the library; UsageFault if it is neither."""
    file = Path(name)
    if file.exists() or file.suffix or file.name != name:
        return file
    shipped = shipped_file(name)
    if shipped is None:
        names = [each.name for each in shipped_scenarios()]
        advice = nearest(name, names) or "; see `twinfleet scenario list`"
        raise UsageFault(f"there is no file and no scenario {name!r}{advice}")
    return shipped


def read(name: str, sets: Sequence[str]) -> tuple[Scenario, ...]:
    """Return the scenario of a file or name, or those of its matrix; UsageFault holds every mistake."""
    try:
        return load_scenarios(scenario_file(name), sets)
    except ScenarioInvalid as error:
        raise UsageFault(str(error)) from None


def read_all(names: Sequence[str], sets: Sequence[str]) -> dict[str, tuple[Scenario, ...]]:
    """Return the scenarios of some files, by their names; UsageFault holds every mistake in any of them."""
    found: dict[str, tuple[Scenario, ...]] = {}
    problems: list[str] = []
    for name in names:
        try:
            found[name] = read(name, sets)
        except UsageFault as error:
            problems.append(str(error))
    if problems:
        raise UsageFault("\n".join(problems))
    return found


def summary(scenario: Scenario) -> dict[str, Any]:
    """Return what a scenario is, in a few words for programs."""
    return {
        "name": scenario.name,
        "file": scenario.file,
        "seed": scenario.seed,
        "duration_s": scenario.duration_s,
        "device_count": sum(group.count for group in scenario.groups),
        "cell": dict(scenario.cell),
    }


def plans(name: str, sets: Sequence[str]) -> list[Plan]:
    """Return what a scenario will ask for, or each run of its matrix; UsageFault holds every mistake."""
    return [plan_of(scenario) for scenario in read(name, sets)]


def plan_lines(plan: Plan) -> Iterator[str]:
    """Return a plan as lines for people."""
    wall = (
        "as fast as it can be computed" if plan.wall_s is None else f"{time_text(plan.wall_s)} of real time"
    )
    yield f"{plan.scenario}: {time_text(plan.duration_s)} of virtual time, {wall}, seed {plan.seed}"
    yield (
        f"devices: {plan.device_count:,} simulated, {plan.real_device_count:,} real; "
        f"up to {plan.reports_per_s:,.0f} reports a virtual second, {plan.reports_due:,} in all"
    )
    yield f"memory: about {plan.memory_bytes / 1e6:,.4g} MB for the twins"
    for group in plan.groups:
        yield (
            f"  {group.name}: {group.count:,} of {group.model} every {group.report_every_s} s ({group.path}), "
            f"{group.bytes_per_twin} bytes each"
        )
    yield "runs on: " + (
        f"a platform only ({plan.needs_platform})" if plan.needs_platform else "a platform, or --fleet local"
    )
    yield "judged: " + ", ".join(f"{count} {kind}" for kind, count in plan.judged.items() if count)
    yield "course:"
    for moment in plan.course:
        yield f"  {time_text(moment.at_s):>9}  {moment.text}"


def time_text(seconds: float) -> str:
    """Return a time as minutes and seconds, with hours where it has any."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
