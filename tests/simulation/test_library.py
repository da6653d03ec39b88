"""Every scenario of the library that needs no platform, at a small size: it ends as its opening says it does.

The size is set as a user would set it: with `--set`. Those that need a platform are run by `tests/chaos`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import pytest

from scenarios.planning import plan_of
from scenarios.reading import load_scenario
from scenarios.running import run_locally
from scenarios.shipped import KINDS, shipped_scenarios

# What makes each small and quick; a scenario without an entry is so already.
SMALL: Final[Mapping[str, Sequence[str]]] = {
    "first-light": (
        "groups[0].count=1_000",
        "clock.speed=1_000",
        "thresholds={reports_lost: [count == 0], device_errors: [count == 0]}",
        "assertions=[{name: obeyed, sql: select avg((reported_set_point = 19.5)::int) from twins, expect: '> 0.9'}]",
    ),
    "ten-lines": ("groups[0].count=500", "duration=1m"),
    "every-model": ("duration=20m", *(f"groups[{position}].count=60" for position in range(7))),
    "ramp-up": ("groups[0].count=1_000", "groups[0].report_every=20s"),
    "steady-rate": ("groups[0].count=200", "clock={mode: accelerated, speed: 200}"),
    "mixed-fleet": (
        "duration=20m",
        "groups[doors].count=300",
        "groups[meters].count=100",
        "groups[rooms].count=200",
        "groups[vehicles].count=200",
    ),
    "week-of-rooms": ("groups[0].count=50", "duration=30m"),
    "week-of-meters": ("groups[0].count=100", "duration=1h"),
    "carrier-outage": (),
    "million-carrier-outage": ("groups[0].count=2_000",),
    "power-cut-herd": ("groups[0].count=600", "faults[thundering-herd].rate=15"),
    "certificate-expiry-wave": ("groups[devices].count=300", "groups[others].count=100"),
    "device-never-gets-there": (),
    "fleet-does-not-obey": (),
    "reports-go-missing": ("groups[careless].count=200", "groups[careful].count=200"),
}
SHIPPED: Final = {each.name: each for each in shipped_scenarios()}
IN_PROCESS: Final = [
    name for name, each in SHIPPED.items() if not plan_of(load_scenario(each.file)).needs_platform
]


def test_every_scenario_that_needs_no_platform_has_a_small_size_here() -> None:
    assert sorted(SMALL) == sorted(IN_PROCESS)


@pytest.mark.parametrize("name", IN_PROCESS)
def test_a_scenario_of_the_library_ends_as_it_says(name: str, tmp_path: Path) -> None:
    shipped = SHIPPED[name]
    # One shard: the digest does not depend on their number, and small fleets in many of them take long.
    result = run_locally(load_scenario(shipped.file, SMALL.get(name, ())), 1, reports_dir=tmp_path)
    verdict = "FAIL" if shipped.kind == "negative" else "PASS"
    judged = (*result.thresholds, *result.checks, *result.assertions)
    assert result.verdict == verdict, [(one.name, one.actual) for one in judged if one.outcome != "PASS"]
    assert len(list(tmp_path.glob("*/report.html"))) == 1


def test_there_are_scenarios_of_every_kind_each_with_goal_method_and_expected_result() -> None:
    counts = {kind: sum(each.kind == kind for each in SHIPPED.values()) for kind in KINDS}
    assert all(counts[kind] >= least for kind, least in zip(KINDS, (3, 3, 2, 5, 3), strict=True)), counts
    assert all(each.goal and each.method and each.expected for each in SHIPPED.values())
