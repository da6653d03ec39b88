"""Runs the benchmarks and prints a readable line for each, or one JSON object a line with --json."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import sys

from tests.bench.result import BenchResult

NAMES = (
    "sim",
    "hundred_million",
    "shadow",
    "ingest",
    "latency",
    "turns",
    "recovery",
    "journal",
    "rollout",
    "sql",
    "certificates",
    "connections",
    "message_rate",
)
# Those that can be told how many twins or devices.
TWIN_COUNTED = ("recovery", "hundred_million", "sql", "connections")


def main() -> None:
    """Run the benchmark that is named, or all."""
    parser = argparse.ArgumentParser(
        prog="./dev bench", description=__doc__, epilog="example: ./dev bench sim --json"
    )
    parser.add_argument("name", nargs="?", choices=NAMES, help="one benchmark; without it, all")
    parser.add_argument("--json", action="store_true", help="print one JSON object for each result")
    parser.add_argument(
        "--twins", type=int, help="for recovery, hundred_million, sql and connections: how many"
    )
    arguments = parser.parse_args()
    for name in [arguments.name] if arguments.name else NAMES:
        if not arguments.json:
            print(f"{name}: measuring ...", file=sys.stderr, flush=True)
        options = {"twin_count": arguments.twins} if name in TWIN_COUNTED and arguments.twins else {}
        results: list[BenchResult] = importlib.import_module(f"tests.bench.{name}").measure(**options)
        for result in results:
            if arguments.json:
                print(json.dumps(dataclasses.asdict(result)), flush=True)
            else:
                print(result.sentence(), flush=True)


if __name__ == "__main__":
    main()
