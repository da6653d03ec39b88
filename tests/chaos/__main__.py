"""`./dev chaos`: many seeds of each fault at full size, and RESULT.json, which tells what came of them."""

from __future__ import annotations

import argparse
import datetime as dt
import itertools
import shutil
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
from tests.chaos.faults import FAULTS
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
    parser.add_argument("--fault", action="append", choices=list(FAULTS), help="this fault only")
    parser.add_argument("--short", action="store_true", help="the size of ./dev test")
    options = parser.parse_args()
    faults = options.fault or list(FAULTS)
    seeds = range(options.seeds) if options.seed is None else [options.seed]
    results = []
    size = SHORT if options.short else FULL
    shutil.rmtree(HISTORIES, ignore_errors=True)
    for result in run_all(faults, seeds, size):
        results.append(result)
        print(line_of(result, size), flush=True)
    failed = [result for result in results if not result.holds]
    if options.fault is None and options.seed is None and not options.short:
        RESULT.write_bytes(msgspec.json.format(msgspec.json.encode(summary(results, size)), indent=2) + b"\n")
        print(f"written: {RESULT}")
    print(f"{len(results)} trials, {len(failed)} of them failed")
    sys.exit(bool(failed))


def run_all(faults: Sequence[str], seeds: Sequence[int], size: Size) -> Iterator[TrialResult]:
    """Give the result of each trial, one after the other on one platform."""
    with (
        tempfile.TemporaryDirectory(prefix="twinfleet-chaos-") as directory,
        stage_in(Path(directory)) as stage,
    ):
        for seed, name in itertools.product(seeds, faults):
            if name == "disk full" and not stage.has_small_disk:
                print("disk full: left out, because no small file system may be mounted here")
                continue
            place = HISTORIES / f"{name}-{seed}".replace(" ", "-")
            result = Trial(stage, FAULTS[name], seed, size=size, directory=place).run()
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
        "faults": {
            name: _fault_summary([each for each in results if each.fault == name])
            for name in dict.fromkeys(result.fault for result in results)
        },
    }


def _fault_summary(results: Sequence[TrialResult]) -> dict[str, Any]:
    recoveries_s = [each for result in results for each in result.recoveries_s]
    return {
        "trials": len(results),
        "blows": sum(result.blows for result in results),
        "accepted": sum(result.accepted for result in results),
        # The longest time, once it was mended, in which some thing was not served over MQTT, or not over HTTP.
        "recovery_s_median": round(statistics.median(recoveries_s), 2) if recoveries_s else None,
        "recovery_s_max": round(max(recoveries_s), 2) if recoveries_s else None,
        "contradictions": sum(bool(result.contradiction) for result in results),
    }


if __name__ == "__main__":
    main()
