"""`./dev chaos`: many seeds of each fault at full size, and RESULT.json, which tells what came of them."""

from __future__ import annotations

import argparse
import datetime as dt
import itertools
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from actors.settings import DataDirectory
from tests.chaos.auditing import FULL, SHORT, Size
from tests.chaos.plans import FAULTS, PLANS, faults_of
from tests.chaos.stage import stage_in
from tests.chaos.trial import Trial, TrialResult, line_of

RESULT: Final = Path(__file__).with_name("RESULT.json")
# The histories of the last run, and the platform's logs beside those of trials that failed.
HISTORIES: Final = Path(".twinfleet/chaos")


def main() -> None:
    """Run what the command line asks for; exit code 1 if anything did not hold."""
    parser = argparse.ArgumentParser(prog="./dev chaos", description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, metavar="N", help="seeds 0 to N-1 of each fault")
    parser.add_argument("--seed", type=int, metavar="S", help="this seed only")
    parser.add_argument(
        "--fault", "--plan", dest="plan", action="append", choices=list(PLANS), help="this one only"
    )
    parser.add_argument("--short", action="store_true", help="the size of ./dev test")
    options = parser.parse_args()
    # So that whoever ends this ends the platform, too, which has a session of its own.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    plans = options.plan or list(PLANS)
    seeds = range(options.seeds) if options.seed is None else [options.seed]
    results = []
    size = SHORT if options.short else FULL
    shutil.rmtree(HISTORIES, ignore_errors=True)
    for result in run_all(plans, seeds, size):
        results.append(result)
        print(line_of(result, size), flush=True)
    failed = [result for result in results if not result.holds]
    if options.plan is None and options.seed is None and not options.short:
        RESULT.write_bytes(msgspec.json.format(msgspec.json.encode(summary(results, size)), indent=2) + b"\n")
        print(f"written: {RESULT}")
    print(f"{len(results)} trials, {len(failed)} of them failed")
    sys.exit(bool(failed))


def run_all(plans: Sequence[str], seeds: Sequence[int], size: Size) -> Iterator[TrialResult]:
    """Give the result of each trial, one after the other on one platform."""
    with (
        tempfile.TemporaryDirectory(prefix="twinfleet-chaos-") as directory,
        stage_in(Path(directory)) as stage,
    ):
        for seed, plan in itertools.product(seeds, plans):
            if not faults_of(plan, stage, is_full=size.is_full):
                print(f"{plan}: left out, because this machine does not allow it")
                continue
            place = HISTORIES / f"{plan}-{seed}".replace(" ", "-")
            result = Trial(stage, plan, seed, size=size, directory=place).run()
            if not result.holds:
                shutil.copytree(DataDirectory(stage.data_dir).logs, place / "logs")
            yield result


def summary(results: Sequence[TrialResult], size: Size) -> dict[str, Any]:
    """Return what the whole suite came to."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, cwd=RESULT.parent
    )
    return {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip(),
        "command": "./dev chaos " + " ".join(sys.argv[1:]),
        "seeds": len({result.seed for result in results}),
        "trials": len(results),
        "operations": sum(result.operations for result in results),
        "accepted": sum(result.accepted for result in results),
        "unknown": sum(result.unknown for result in results),
        "kills": sum(result.kills for result in results),
        "contradictions": sum(bool(result.contradiction) for result in results),
        "failures": [line_of(result, size) for result in results if not result.holds],
        "faults": {name: _fault_summary(name, results) for name in FAULTS},
    }


def _fault_summary(name: str, results: Sequence[TrialResult]) -> dict[str, Any]:
    """Return how often a fault struck, alone and in storms, and how long it took until every thing was served again."""
    trials = [result for result in results if name in result.recoveries_s]
    recoveries_s = [each for result in trials for each in result.recoveries_s[name]]
    return {
        "trials": len(trials),
        "blows": len(recoveries_s),
        "recovery_s_median": round(statistics.median(recoveries_s), 2) if recoveries_s else None,
        "recovery_s_max": round(max(recoveries_s), 2) if recoveries_s else None,
        "contradictions": sum(bool(result.contradiction) for result in trials),
    }


if __name__ == "__main__":
    main()
