"""Changes classes of a platform under test as they are imported; Python imports this module by its name at its start.

The platform is started with this directory in PYTHONPATH, which all its processes inherit, and with the directory that
TWINFLEET_SEAMS names. What stands in that directory decides, at any time, what is changed:

- `clock`: seconds by which the platform's clock is ahead (negative: behind).
- `bug`: the name of a bug that is planted, one of `stage.BUGS`. It must be found out.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_DIRECTORY = os.environ.get("TWINFLEET_SEAMS", "")


def _seam(name: str) -> str:
    try:
        # Every process of the platform comes by here; pathlib would cost each of them its import.
        with open(f"{_DIRECTORY}/{name}", encoding="utf-8") as file:  # noqa: PTH123
            return file.read()
    except FileNotFoundError:
        return ""


def _change_clock(module: ModuleType) -> None:
    tell = module.WallClock.now_s

    def now_s(self: Any) -> float:
        return float(tell(self)) + float(_seam("clock") or 0)

    module.WallClock.now_s = now_s


def _plant_bugs(module: ModuleType) -> None:
    journal, fenced, encode = module.Journal, module.ShardFenced, module._encode
    append, read, taken_over = journal.append, journal.read, journal.taken_over

    def buggy_append(self: Any, records: Sequence[tuple[int, Any]]) -> list[int]:
        bug = _seam("bug")
        if bug == "ack before journal":
            # What came before is written now, what comes now is written with what comes next.
            kept, self.kept = getattr(self, "kept", []), list(records)
            if kept:
                append(self, kept)
            return [len(encode(record)) for _, record in records]
        if bug == "no fencing":
            try:
                return list(append(self, records))
            except fenced:
                for shard in {number for number, _ in records}:
                    self.open(shard, is_predecessor_gone=True)
        return list(append(self, records))

    def buggy_read(self: Any, shard: int, *, after: str = "0-0") -> Any:
        entries = read(self, shard, after=after)
        return iter(list(entries)[:-1]) if _seam("bug") == "lost tail" else entries

    def buggy_taken_over(self: Any, shards: Sequence[int]) -> list[int]:
        return [] if _seam("bug") == "no fencing" else list(taken_over(self, shards))

    journal.append = buggy_append
    journal.taken_over = buggy_taken_over
    journal.read = buggy_read


def _plant_no_lease(module: ModuleType) -> None:
    keeper = module.ShardKeeper
    settle = keeper.settle

    def buggy_settle(self: Any) -> list[Any]:
        """Serve whatever has become of the store, and of the shards."""
        return [] if _seam("bug") == "no lease" else list(settle(self))

    keeper.settle = buggy_settle


_CHANGES: dict[str, Callable[[ModuleType], None]] = {
    "actors.wall_clock": _change_clock,
    "actors.journal": _plant_bugs,
    "actors.shard_keeper": _plant_no_lease,
}


class _Changer(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads the modules that are changed as they would be loaded without it, and changes them then."""

    def __init__(self) -> None:
        self._loaders: dict[str, Any] = {}

    def find_spec(self, name: str, path: Sequence[str] | None, _target: Any = None) -> ModuleSpec | None:
        if name not in _CHANGES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None:
            self._loaders[name], spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        self._loaders[module.__name__].exec_module(module)
        _CHANGES[module.__name__](module)


if _DIRECTORY:
    sys.meta_path.insert(0, _Changer())
