"""QA: the scenario language, the engine that conducts a run, verdicts and reports; and the auditor.

Reading order (a module imports only modules that stand before it in this list):
`errors` · `history` · `audit_progress` · `audit_rules` · `source` · `model_files` · `load_histogram` · `metrics` ·
`spec` · `stages` · `workloads` · `troubles` · `wire_words` · `scenario_form` · `layers` · `reading` · `result` ·
`fault_windows` · `cohorts` · `checks` · `trouble` · `relay` · `brain` · `device_link` · `wire` · `devices` ·
`load_orders` · `load_link` · `load_device` · `load_fleet` · `load_registrar` · `load_process` · `load_crew` ·
`wire_fleet` · `abort` · `observer` · `steps` · `progress` · `engine` · `plots` · `report_plots` · `report` ·
`comparison` · `interruption` · `auditor_clients` · `auditor_device` · `auditor_operator` · `auditor` ·
`wire_trouble` · `platform_blows` · `platform_trouble` · `running` · `planning` · `shipped`

`reading` turns a file into the frozen objects of `spec`; `running` takes a scenario from its file to its reports.
`auditor` drives a running platform and remembers what it was told; `audit_rules` judge that.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from scenarios.result import RunResult


def run(
    file: Path | str,
    *,
    seed: int | None = None,
    overrides: Sequence[str] = (),
    fleet: Literal["local", "ray"] = "local",
    data_dir: Path | str = ".twinfleet",
) -> RunResult:
    """Run the scenario of a file and return its result; its reports go to `data_dir/reports`.

    `local` runs it in this process, real devices played in it; `ray` on the platform of the data directory.
    `overrides` are `KEY=VALUE`, as of `--set`. `errors.ScenarioInvalid` holds every mistake of the file; Ctrl-C ends
    the run with a report. Not to be called where an event loop runs.
    """
    # Whoever imports a part of the package, as each process of a device does, need not wait for all of it.
    from scenarios.running import run_file  # noqa: PLC0415

    return run_file(Path(file), seed=seed, overrides=overrides, fleet=fleet, data_dir=Path(data_dir))
