"""`./dev chaos`: many seeds of each fault at full size, and RESULT.json, which tells what came of them."""

from __future__ import annotations

import argparse
import itertools
import shlex
import shutil
import signal
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from actors.settings import DataDirectory
from tests.chaos.auditing import FULL, SHORT, Size
from tests.chaos.plans import PLANS, faults_of
from tests.chaos.result import RESULT, ResultFile, ResultRefused
from tests.chaos.stage import BUGS, stage_in
from tests.chaos.trial import Trial, TrialResult, line_of

# The histories of the last run, and the platform's logs beside those of trials that failed.
HISTORIES: Final = Path(".twinfleet/chaos")
_WIDTH: Final = 110
_EPILOG: Final = f"""\
FAULT is one of:
{textwrap.fill(", ".join(PLANS), _WIDTH, initial_indent="  ", subsequent_indent="  ")}

What a seed repeats: the order of the faults in a storm, how many updates are accepted before each blow, which process
of several it strikes, which way the clock jumps, and what the auditor's clients draw: whom they write to, and how long
their connections last. What it does not: real processes and their timing, so what exactly is under way when a fault
strikes, and the names of the things (each trial has new ones), so which shards serve them. A rare failure may take
several runs of its seed.

What the machine does not allow is left out, and the result says so: a full disk takes a small file system and a
partition a network of its own, both of which take root, or `unshare --user --map-root-user --net --mount ./dev chaos`.

examples:
  ./dev chaos                                          20 seeds of everything, which takes hours; writes RESULT.json
  ./dev chaos --fault 'kill store' --seed 7            repeats one trial
  ./dev chaos --fault 'node without store' --seed 0 --short --bug 'no lease'
                                                       whether the suite sees what is wrong: this must fail
  ./dev chaos --add --seeds 2 --fault partition        a piece of a whole run: added to RESULT.json, if that is of this
                                                       commit
"""


def main() -> None:
    """Run what the command line asks for; exit code 1 if anything did not hold, 2 if it cannot be done."""
    parser = _parser()
    options = parser.parse_args()
    plans = options.plan or list(PLANS)
    seeds = range(options.seeds) if options.seed is None else [options.seed]
    size = SHORT if options.short else FULL
    if options.short and options.add:
        parser.error("--add is for full size: RESULT.json tells of nothing else; leave --short out")
    if options.bug and options.add:
        parser.error("--add is for what the platform does as it is: leave --bug out")
    is_whole = options.plan is None and options.seed is None and not (options.short or options.bug)
    file = None
    if options.add or is_whole:
        try:
            file = ResultFile(RESULT, shlex.join(["./dev", "chaos", *sys.argv[1:]]), adds=options.add)
        except ResultRefused as problem:
            parser.error(str(problem))
    # So that whoever ends this ends the platform, too, which has a session of its own.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    shutil.rmtree(HISTORIES, ignore_errors=True)
    trial_count = failed_count = 0
    for result in run_all(plans, seeds, size, bug=options.bug):
        print(line_of(result, size), flush=True)
        trial_count += 1
        failed_count += not result.holds
        if file is not None:
            file.add(result)
    if file is not None:
        print(f"written: {RESULT}")
    print(f"{trial_count} trials, {failed_count} of them failed")
    sys.exit(bool(failed_count))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="./dev chaos",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--seeds", type=int, default=20, metavar="N", help="seeds 0 to N-1 of each fault (default: 20)"
    )
    parser.add_argument("--seed", type=int, metavar="S", help="this seed only")
    parser.add_argument(
        *("--fault", "--plan"),
        dest="plan",
        action="append",
        choices=list(PLANS),
        metavar="FAULT",
        help="this one only; may be given several times",
    )
    parser.add_argument("--short", action="store_true", help="the size of ./dev test")
    parser.add_argument(
        "--bug",
        default="",
        choices=BUGS,
        metavar="BUG",
        help=f"plant a bug beforehand, which is to be found out: one of {', '.join(map(repr, BUGS))}",
    )
    parser.add_argument(
        "--add", action="store_true", help="add the trials to RESULT.json, of the same commit"
    )
    return parser


def run_all(
    plans: Sequence[str], seeds: Sequence[int], size: Size, *, bug: str = ""
) -> Iterator[TrialResult]:
    """Give the result of each trial, one after the other on one platform."""
    with (
        tempfile.TemporaryDirectory(prefix="twinfleet-chaos-") as directory,
        stage_in(Path(directory)) as stage,
        stage.planted(bug),
    ):
        for seed, plan in itertools.product(seeds, plans):
            if not faults_of(plan, stage, is_full=size.is_full):
                print(f"{plan}: left out, because this machine does not allow it")
                continue
            place = HISTORIES / f"{plan}-{seed}".replace(" ", "-")
            result = Trial(stage, plan, seed, size=size, directory=place).run()
            if not result.holds:
                _keep_logs(stage.data_dir, place / "logs")
                _keep_logs(stage.node_dir, place / "node-logs")
            yield result


def _keep_logs(data_dir: Path, place: Path) -> None:
    logs = DataDirectory(data_dir).logs
    if logs.is_dir():
        shutil.copytree(logs, place, dirs_exist_ok=True)


if __name__ == "__main__":
    main()
