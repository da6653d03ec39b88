"""Which code carries out block programs: NumPy's, until compiled code has been prepared; both give the same bytes."""

from __future__ import annotations

import importlib
from typing import Final, Protocol

from twins.arena import Arena
from twins.interpreter import Effects, Interpreter, Rows
from twins.program import Moment, Program

# To read compiled code takes half a second, once a process (to compile it, once a machine, some ten): below, NumPy is
# done before.
COMPILED_FROM_COUNT: Final = 200_000


class Runner(Protocol):
    """Carries out block programs: `interpreter.Interpreter` or `kernels.Kernels`."""

    def run(self, program: Program, moment: Moment, arena: Arena, rows: Rows) -> Effects:
        """Carry out a program for all rows whose turn it is, in place."""
        ...


_PREPARED: Final[list[Runner]] = []


def prepare_compiled() -> bool:
    """Make compiled code ready for this process, and return whether there is any: it takes Numba, which is optional.

    May be called from a thread of its own, and again.
    """
    if not _PREPARED:
        try:
            kernels = importlib.import_module("twins.kernels")
        except ImportError:
            return False
        kernels.compile_now()
        _PREPARED.append(kernels.Kernels())
    return True


def runner() -> Runner:
    """Return compiled code if it has been prepared, else NumPy's."""
    return _PREPARED[0] if _PREPARED else Interpreter()
