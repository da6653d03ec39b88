"""Repeat histories: `python -m tests.simulation.protocol --seed 1234` tells what happened in one.

With `--seeds N` it runs N of them from there, and tells of the first contradiction and what happened how often.
`--bug NAME` plants a bug beforehand.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import Counter

import pytest

from scenarios.history import describe_event
from tests.simulation.protocol.bugs import PLANTS
from tests.simulation.protocol.world import Result, run_history


def main() -> int:
    """Run what the command line says; 1 if there was a contradiction."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.protocol", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the history to tell, or the first of many")
    parser.add_argument("--seeds", type=int, default=1, help="how many histories to run")
    parser.add_argument("--bug", choices=sorted(PLANTS), help="a bug to plant")
    arguments = parser.parse_args()
    # What goes wrong is meant to, and stands in the history.
    logging.disable(logging.CRITICAL)
    with pytest.MonkeyPatch.context() as patches:
        if arguments.bug is not None:
            PLANTS[arguments.bug](patches)
        return _run(range(arguments.seed, arguments.seed + arguments.seeds))


def _run(seeds: range) -> int:
    started_s = time.perf_counter()
    counts: Counter[str] = Counter()
    for seed in seeds:
        result = run_history(seed)
        counts += result.counts
        if result.contradiction is not None or len(seeds) == 1:
            _tell(result)
        if result.contradiction is not None:
            return 1
    rate = len(seeds) / (time.perf_counter() - started_s)
    sys.stdout.write(f"{len(seeds)} histories without a contradiction, {rate:.0f} a second\n")
    sys.stdout.writelines(f"{count:8} {name}\n" for name, count in counts.most_common())
    return 0


def _tell(result: Result) -> None:
    sys.stdout.writelines(f"{describe_event(event)}\n" for event in result.events)
    sys.stdout.write(f"\nseed {result.seed}, trace {result.trace}\n")
    sys.stdout.write(f"{result.contradiction or 'no contradiction'}\n")


if __name__ == "__main__":
    sys.exit(main())
