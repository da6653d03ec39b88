"""Block programs compiled (Numba): the bytes of `interpreter`, several times as fast. Optional, and compiled once."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from twins.arena import Arena
from twins.interpreter import Effects, Rows
from twins.kernel_loops import BLOCK_CELLS, execute
from twins.program import CELL_ROWS, Builder, Moment, Op, Program

# Cells a call: lists have room for all rows of a call, and other threads wait no longer than one (some milliseconds).
_CALL_CELLS: Final = 16_384


class Kernels:
    """Runs programs on an arena by compiled code; the first run compiles it, or reads what was compiled before."""

    def run(self, program: Program, moment: Moment, arena: Arena, rows: Rows) -> Effects:
        """Carry out a program for all rows whose turn it is, in place; as `Interpreter.run` does."""
        floats, words = program.shared(moment)
        registers = np.empty((program.word_count, BLOCK_CELLS * CELL_ROWS), np.uint32)
        masks = np.empty((program.mask_count, BLOCK_CELLS * CELL_ROWS), np.uint8)
        counts = np.zeros(len(program.count_names), np.int64)
        room = min(_CALL_CELLS, len(rows.cells)) * CELL_ROWS if program.list_names else 0
        found = np.empty((len(program.list_names), room), np.int64)
        lists: list[list[NDArray[np.int64]]] = [[] for _ in program.list_names]
        for start in range(0, len(rows.cells), _CALL_CELLS):
            lengths = np.zeros(len(program.list_names), np.int64)
            execute(
                program.code,
                (floats, words, program.tables),
                (registers, registers.view(np.float32), registers.view(np.int32), masks),
                (arena.bytes, arena.halves, arena.words, arena.words.view(np.float32)),
                (rows.cells[start : start + _CALL_CELLS], rows.cell_spread, rows.count),
                (counts, found, lengths),
            )
            for number, length in enumerate(lengths.tolist()):
                if length:
                    lists[number].append(found[number, :length].copy())
        return Effects(
            dict(zip(program.count_names, counts.tolist(), strict=True)),
            {
                name: np.concatenate(parts) if parts else np.zeros(0, np.int64)
                for name, parts in zip(program.list_names, lists, strict=True)
            },
        )


def compile_now() -> None:
    """Compile all operations, or read what was compiled before; the first run would do so too."""
    arena = Arena({"any": np.dtype(np.uint32)}, CELL_ROWS)
    builder = Builder(arena.place)
    builder.count("rows", builder.emit(Op.ROWS))
    rows = Rows(np.zeros(1, np.int64), np.zeros(1, np.uint32), CELL_ROWS)
    Kernels().run(builder.build(), Moment(0, 0, 0), arena, rows)
