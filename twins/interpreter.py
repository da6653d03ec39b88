"""Carries out block programs with NumPy, one operation on one block after another: the reference for `kernels`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from twins.arena import Arena
from twins.draws import INDEX_MULTIPLIER, fill_draws
from twins.errors import InvariantError
from twins.program import (
    CELL_ROWS,
    HISTOGRAM_BUCKETS,
    HISTOGRAM_FIRST,
    HISTOGRAM_SHIFT,
    Moment,
    Op,
    Program,
)

# 16,384 rows at a time: a dozen registers of them fit a 1 MiB second-level cache.
BLOCK_CELLS: Final = 512
_ROW_SPREAD: Final = np.arange(CELL_ROWS, dtype=np.uint32) * np.uint32(INDEX_MULTIPLIER)
_LOW_HALF: Final = np.uint32(0xFFFF)
_HALF_BITS: Final = np.uint32(16)
_PER_HALF: Final = np.float32(2.0**-16)
# Undoes what spreads the numbers of devices.
_INVERSE: Final = np.uint32(pow(INDEX_MULTIPLIER, -1, 1 << 32))
# The greatest float32 below 2**32, and below 2**31.
_WORD_MAX: Final = np.float32(4294967040.0)
_SIGNED_MAX: Final = np.float32(2147483520.0)


@dataclass(frozen=True)
class Rows:
    """Whose turn it is: `cells` (ascending numbers of cells) of a fleet of `count` devices.

    `cell_spread` holds, for every cell of the fleet, its first device's number multiplied out as `draws` wants it.
    """

    cells: NDArray[np.int64]
    cell_spread: NDArray[np.uint32]
    count: int


@dataclass(frozen=True)
class Effects:
    """What a run brought about beside its writing: `counts` and `lists` (rows, ascending) by the program's names."""

    counts: Mapping[str, int]
    lists: Mapping[str, NDArray[np.int64]]


class Interpreter:
    """Runs programs on an arena; its registers are used again from block to block."""

    def __init__(self) -> None:
        self._words = np.empty((0, BLOCK_CELLS, CELL_ROWS), np.uint32)
        self._masks = np.empty((0, BLOCK_CELLS, CELL_ROWS), np.bool_)

    def run(self, program: Program, moment: Moment, arena: Arena, rows: Rows) -> Effects:
        """Carry out a program for all rows whose turn it is, in place."""
        if len(self._words) < program.word_count:
            self._words = np.empty((program.word_count, BLOCK_CELLS, CELL_ROWS), np.uint32)
        if len(self._masks) < program.mask_count:
            self._masks = np.empty((program.mask_count, BLOCK_CELLS, CELL_ROWS), np.bool_)
        counts = [0] * len(program.count_names)
        lists: list[list[NDArray[np.int64]]] = [[] for _ in program.list_names]
        job = _Job(*program.shared(moment), program.tables, arena, rows, counts, lists)
        code = [(Op(row[0]), *row[1:]) for row in program.code.tolist()]
        with np.errstate(all="ignore"):
            for start in range(0, len(rows.cells), BLOCK_CELLS):
                cells = rows.cells[start : start + BLOCK_CELLS]
                block = _Block(job, self._words[:, : len(cells)], self._masks[:, : len(cells)], cells)
                for op, *operands in code:
                    _HANDLERS[op](block, *operands)
        return Effects(
            dict(zip(program.count_names, counts, strict=True)),
            {
                name: np.concatenate(parts) if parts else np.zeros(0, np.int64)
                for name, parts in zip(program.list_names, lists, strict=True)
            },
        )


@dataclass(frozen=True)
class _Job:
    """What all blocks of a run share."""

    floats: NDArray[np.float32]
    words: NDArray[np.uint32]
    tables: NDArray[np.float32]
    arena: Arena
    rows: Rows
    counts: list[int]
    lists: list[list[NDArray[np.int64]]]


class _Block:
    """Some cells, and everything that an operation on them works with: w, f, s and m are the registers."""

    def __init__(
        self, job: _Job, words: NDArray[np.uint32], masks: NDArray[np.bool_], cells: NDArray[np.int64]
    ) -> None:
        self.w = words
        self.f = words.view(np.float32)
        self.s = words.view(np.int32)
        self.m = masks
        self.floats, self.shared_words, self.tables = job.floats, job.words, job.tables
        self.arena, self.rows = job.arena, job.rows
        self.counts, self.lists = job.counts, job.lists
        self.cells = cells
        is_run = int(cells[-1]) - int(cells[0]) == len(cells) - 1
        self._where: Any = slice(int(cells[0]), int(cells[-1]) + 1) if is_run else cells

    def load(self, whole: NDArray[Any], place: int) -> NDArray[Any]:
        """Return the block of a column that begins at `place`: a view where the cells are consecutive, else a copy."""
        taken: NDArray[Any] = self._column(whole, place)[self._where]
        return taken

    def store(
        self, whole: NDArray[Any], place: int, values: Any, mask: NDArray[np.bool_] | None = None
    ) -> None:
        """Write values over the block of a column, where a mask holds if one is given."""
        column = self._column(whole, place)
        if mask is None:
            column[self._where] = values
            return
        kept = column[self._where]
        np.copyto(kept, values, where=mask, casting="unsafe")
        if not isinstance(self._where, slice):
            column[self._where] = kept

    def _column(self, whole: NDArray[Any], place: int) -> NDArray[Any]:
        return whole[place : place + len(self.rows.cell_spread) * CELL_ROWS].reshape(-1, CELL_ROWS)

    def numbers(self) -> NDArray[np.int64]:
        """Return the rows of the block, (cells, CELL_ROWS)."""
        found: NDArray[np.int64] = self.cells[:, None] * CELL_ROWS + np.arange(CELL_ROWS)
        return found


_Handler = Callable[..., None]


def _binary(function: Callable[..., Any]) -> _Handler:
    def handle(b: _Block, d: int, x: int, y: int, *_: int) -> None:
        function(b.f[x], b.f[y], out=b.f[d])

    return handle


def _binary_k(function: Callable[..., Any]) -> _Handler:
    def handle(b: _Block, d: int, x: int, k: int, *_: int) -> None:
        function(b.f[x], b.floats[k], out=b.f[d])

    return handle


def _lesser(x: Any, y: Any, *, out: NDArray[np.float32]) -> None:
    """Fill `out` with x where x < y, else with y: which of two zeros is defined, unlike in np.minimum."""
    is_less = np.less(x, y)
    out[...] = y
    np.copyto(out, x, where=is_less)


def _greater(x: Any, y: Any, *, out: NDArray[np.float32]) -> None:
    is_greater = np.greater(x, y)
    out[...] = y
    np.copyto(out, x, where=is_greater)


def _divide_k(b: _Block, d: int, x: int, k: int, *_: int) -> None:
    if b.floats[k] == 0:
        b.f[d][...] = 0
    else:
        np.divide(b.f[x], b.floats[k], out=b.f[d])


def _affine(b: _Block, d: int, x: int, factor: int, summand: int, *_: int) -> None:
    np.multiply(b.f[x], b.floats[factor], out=b.f[d])
    np.add(b.f[d], b.floats[summand], out=b.f[d])


def _clip(b: _Block, d: int, x: int, low: int, high: int, *_: int) -> None:
    _greater(b.f[x], b.floats[low], out=b.f[d])
    _lesser(b.f[d].copy(), b.floats[high], out=b.f[d])


def _follow(b: _Block, d: int, x: int, toward: int, share: int, *_: int) -> None:
    np.subtract(b.f[toward], b.f[x], out=b.f[d])
    np.multiply(b.f[d], b.floats[share], out=b.f[d])
    np.add(b.f[x], b.f[d], out=b.f[d])


def _scaled(b: _Block, d: int, x: int, y: int, factor: int, *_: int) -> None:
    np.multiply(b.f[y], b.floats[factor], out=b.f[d])
    np.add(b.f[x], b.f[d], out=b.f[d])


def _compare(function: Callable[..., Any], bank: str) -> _Handler:
    def handle(b: _Block, d: int, x: int, y: int, *_: int) -> None:
        values = getattr(b, bank)
        function(values[x], values[y], out=b.m[d])

    return handle


def _compare_k(function: Callable[..., Any], bank: str, shared: str) -> _Handler:
    def handle(b: _Block, d: int, x: int, k: int, *_: int) -> None:
        function(getattr(b, bank)[x], getattr(b, shared)[k], out=b.m[d])

    return handle


def _masks(function: Callable[..., Any]) -> _Handler:
    def handle(b: _Block, d: int, x: int, y: int, *_: int) -> None:
        function(b.m[x], b.m[y], out=b.m[d])

    return handle


def _and_not(x: Any, y: Any, *, out: NDArray[np.bool_]) -> None:
    np.greater(x, y, out=out)


def _words(function: Callable[..., Any]) -> _Handler:
    def handle(b: _Block, d: int, x: int, y: int, *_: int) -> None:
        function(b.w[x], b.w[y], out=b.w[d])

    return handle


def _words_k(function: Callable[..., Any]) -> _Handler:
    def handle(b: _Block, d: int, x: int, k: int, *_: int) -> None:
        function(b.w[x], b.shared_words[k], out=b.w[d])

    return handle


def _fill(b: _Block, d: int, k: int, *_: int) -> None:
    b.f[d][...] = b.floats[k]


def _fill_word(b: _Block, d: int, k: int, *_: int) -> None:
    b.w[d][...] = b.shared_words[k]


def _fill_mask(b: _Block, d: int, value: int, *_: int) -> None:
    b.m[d][...] = value != 0


def _select(b: _Block, d: int, mask: int, x: int, y: int, *_: int) -> None:
    b.w[d][...] = b.w[y]
    np.copyto(b.w[d], b.w[x], where=b.m[mask])


def _step(b: _Block, d: int, x: int, y: int, k: int, *_: int) -> None:
    np.add(b.w[x], b.f[y] >= b.floats[k], out=b.w[d], casting="unsafe")


def _draw(b: _Block, d: int, first: int, second: int, *_: int) -> None:
    spread = b.rows.cell_spread[b.cells][:, None] + _ROW_SPREAD
    key = (b.shared_words[first], b.shared_words[second])
    fill_draws(spread, key, out=b.w[d], scratch=np.empty_like(spread))


def _unit(b: _Block, d: int, x: int, *_: int) -> None:
    np.multiply((b.w[x] >> np.uint32(8)).astype(np.float32), np.float32(2.0**-24), out=b.f[d])


def _low(b: _Block, d: int, x: int, *_: int) -> None:
    np.multiply((b.w[x] & _LOW_HALF).astype(np.float32), _PER_HALF, out=b.f[d])


def _high(b: _Block, d: int, x: int, *_: int) -> None:
    np.multiply((b.w[x] >> _HALF_BITS).astype(np.float32), _PER_HALF, out=b.f[d])


def _triangle(b: _Block, d: int, x: int, *_: int) -> None:
    difference = (b.w[x] & _LOW_HALF) - (b.w[x] >> _HALF_BITS)
    np.multiply(difference.view(np.int32).astype(np.float32), _PER_HALF, out=b.f[d])


def _lookup(b: _Block, d: int, x: int, start: int, *_: int) -> None:
    np.take(b.tables[start:], b.w[x], out=b.f[d], mode="clip")


def _to_word(b: _Block, d: int, x: int, *_: int) -> None:
    b.w[d][...] = np.clip(b.f[x], np.float32(0), _WORD_MAX)


def _to_signed(b: _Block, d: int, x: int, *_: int) -> None:
    b.s[d][...] = np.floor(np.clip(b.f[x], -_SIGNED_MAX, _SIGNED_MAX) + np.float32(0.5))


def _from_half(b: _Block, d: int, x: int, *_: int) -> None:
    b.f[d][...] = b.w[x].astype(np.uint16).view(np.float16)


def _to_half(b: _Block, d: int, x: int, *_: int) -> None:
    b.w[d][...] = b.f[x].astype(np.float16).view(np.uint16)


def _unary(source: str, target: str) -> _Handler:
    def handle(b: _Block, d: int, x: int, *_: int) -> None:
        getattr(b, target)[d][...] = getattr(b, source)[x]

    return handle


def _load(whole: str, dtype: Any, bank: str) -> _Handler:
    def handle(b: _Block, d: int, place: int, *_: int) -> None:
        getattr(b, bank)[d][...] = b.load(getattr(b.arena, whole), place).view(dtype)

    return handle


def _load_mask(b: _Block, d: int, place: int, *_: int) -> None:
    np.not_equal(b.load(b.arena.bytes, place), 0, out=b.m[d])


def _load_bit(b: _Block, d: int, place: int, bit: int, *_: int) -> None:
    np.not_equal(b.load(b.arena.halves, place) & np.uint16(1 << bit), 0, out=b.m[d])


def _rows(b: _Block, d: int, *_: int) -> None:
    np.less(b.numbers(), b.rows.count, out=b.m[d])


def _numbers(b: _Block, d: int, *_: int) -> None:
    np.add(b.rows.cell_spread[b.cells][:, None], _ROW_SPREAD, out=b.w[d])
    np.multiply(b.w[d], _INVERSE, out=b.w[d])


def _store(whole: str, bank: str, *, is_masked: bool = False) -> _Handler:
    dtype = {"words": np.uint32, "halves": np.uint16, "bytes": np.uint8}[whole]

    def handle(b: _Block, _d: int, place: int, x: int, mask: int, *_: int) -> None:
        values = getattr(b, bank)[x].astype(dtype, copy=False)
        b.store(getattr(b.arena, whole), place, values, b.m[mask] if is_masked else None)

    return handle


def _store_k(whole: str) -> _Handler:
    def handle(b: _Block, _d: int, place: int, k: int, mask: int, *_: int) -> None:
        target = getattr(b.arena, whole)
        b.store(target, place, target.dtype.type(b.shared_words[k]), b.m[mask])

    return handle


def _increment(whole: str) -> _Handler:
    def handle(b: _Block, _d: int, place: int, mask: int, *_: int) -> None:
        target = getattr(b.arena, whole)
        b.store(target, place, b.load(target, place) + b.m[mask].astype(target.dtype))

    return handle


def _combine(function: Callable[..., Any]) -> _Handler:
    def handle(b: _Block, _d: int, place: int, x: int, mask: int, *_: int) -> None:
        present = b.load(b.arena.words, place).view(np.float32)
        combined = np.empty_like(present)
        function(b.f[x], present, out=combined)
        b.store(b.arena.words.view(np.float32), place, combined, b.m[mask])

    return handle


def _count(b: _Block, _d: int, mask: int, number: int, *_: int) -> None:
    b.counts[number] += int(np.count_nonzero(b.m[mask]))


def _emit(b: _Block, _d: int, mask: int, number: int, *_: int) -> None:
    found = b.numbers()[b.m[mask]]
    if len(found):
        b.lists[number].append(found)


def _take(b: _Block, _d: int, x: int, mask: int, number: int, *_: int) -> None:
    found = b.w[x][b.m[mask]]
    if len(found):
        b.lists[number].append(found.astype(np.int64))


def _histogram(b: _Block, _d: int, x: int, mask: int, number: int, *_: int) -> None:
    buckets = bucket_of(b.w[x][b.m[mask]].view(np.float32))
    for bucket, count in enumerate(np.bincount(buckets, minlength=HISTOGRAM_BUCKETS).tolist()):
        b.counts[number + bucket] += count


def bucket_of(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return in which bucket of a histogram each value of 0 or more is counted."""
    bits = values.view(np.uint32) >> np.uint32(HISTOGRAM_SHIFT)
    bounded: NDArray[np.int64] = np.clip(bits.astype(np.int64) - HISTOGRAM_FIRST, 0, HISTOGRAM_BUCKETS - 1)
    return bounded


_HANDLERS: Final[Mapping[Op, _Handler]] = {
    Op.FADD: _binary(np.add),
    Op.FSUB: _binary(np.subtract),
    Op.FMUL: _binary(np.multiply),
    Op.FDIV: _binary(np.divide),
    Op.FMIN: _binary(_lesser),
    Op.FMAX: _binary(_greater),
    Op.FADD_K: _binary_k(np.add),
    Op.FSUB_K: _binary_k(np.subtract),
    Op.FMUL_K: _binary_k(np.multiply),
    Op.FDIV_K: _divide_k,
    Op.FMIN_K: _binary_k(_lesser),
    Op.FMAX_K: _binary_k(_greater),
    Op.FABS: lambda b, d, x, *_: np.abs(b.f[x], out=b.f[d]),
    Op.AFFINE: _affine,
    Op.CLIP: _clip,
    Op.FOLLOW: _follow,
    Op.SCALED: _scaled,
    Op.FILL: _fill,
    Op.IFILL: _fill_word,
    Op.FLT: _compare(np.less, "f"),
    Op.FLE: _compare(np.less_equal, "f"),
    Op.FEQ: _compare(np.equal, "f"),
    Op.FLT_K: _compare_k(np.less, "f", "floats"),
    Op.FLE_K: _compare_k(np.less_equal, "f", "floats"),
    Op.FEQ_K: _compare_k(np.equal, "f", "floats"),
    Op.FGT_K: _compare_k(np.greater, "f", "floats"),
    Op.FGE_K: _compare_k(np.greater_equal, "f", "floats"),
    Op.IEQ_K: _compare_k(np.equal, "w", "shared_words"),
    Op.ILT_K: _compare_k(np.less, "w", "shared_words"),
    Op.ILT: _compare(np.less, "w"),
    Op.MAND: _masks(np.logical_and),
    Op.MOR: _masks(np.logical_or),
    Op.MXOR: _masks(np.logical_xor),
    Op.MANDN: _masks(_and_not),
    Op.MNOT: lambda b, d, x, *_: np.logical_not(b.m[x], out=b.m[d]),
    Op.MFILL: _fill_mask,
    Op.SELECT: _select,
    Op.NUMBER: _unary("m", "f"),
    Op.IADD: _words(np.add),
    Op.ISUB: _words(np.subtract),
    Op.IADD_K: _words_k(np.add),
    Op.ISUB_K: _words_k(np.subtract),
    Op.IAND_K: _words_k(np.bitwise_and),
    Op.STEP: _step,
    Op.DRAW: _draw,
    Op.UNIT: _unit,
    Op.LOW: _low,
    Op.HIGH: _high,
    Op.TRIANGLE: _triangle,
    Op.LOOKUP: _lookup,
    Op.U2F: _unary("w", "f"),
    Op.I2F: _unary("s", "f"),
    Op.F2U: _to_word,
    Op.F2I: _to_signed,
    Op.H2F: _from_half,
    Op.F2H: _to_half,
    Op.LD4: _load("words", np.uint32, "w"),
    Op.LD2: _load("halves", np.uint16, "w"),
    Op.LD2S: _load("halves", np.int16, "s"),
    Op.LD1: _load("bytes", np.uint8, "w"),
    Op.LD1S: _load("bytes", np.int8, "s"),
    Op.LDM: _load_mask,
    Op.LDB: _load_bit,
    Op.ROWS: _rows,
    Op.NUMBERS: _numbers,
    Op.ST4: _store("words", "w"),
    Op.ST2: _store("halves", "w"),
    Op.ST1: _store("bytes", "w"),
    Op.STM: _store("bytes", "m"),
    Op.ST4_W: _store("words", "w", is_masked=True),
    Op.ST2_W: _store("halves", "w", is_masked=True),
    Op.ST1_W: _store("bytes", "w", is_masked=True),
    Op.STM_W: _store("bytes", "m", is_masked=True),
    Op.ST4_KW: _store_k("words"),
    Op.ST2_KW: _store_k("halves"),
    Op.INC4_W: _increment("words"),
    Op.INC2_W: _increment("halves"),
    Op.FADD4_W: _combine(np.add),
    Op.FMIN4_W: _combine(_lesser),
    Op.FMAX4_W: _combine(_greater),
    Op.COUNT: _count,
    Op.EMIT: _emit,
    Op.TAKE: _take,
    Op.HISTOGRAM: _histogram,
}
if _HANDLERS.keys() != set(Op):
    raise InvariantError(f"operations without a handler: {set(Op) - _HANDLERS.keys()}")
