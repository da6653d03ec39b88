"""Block programs: compiled code gives the very bytes of the reference, whatever the values and whichever the rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from twins.arena import Arena
from twins.draws import draws, fill_draws, spread_indices
from twins.errors import InvariantError
from twins.interpreter import Effects, Interpreter, Rows
from twins.kernels import Kernels
from twins.program import CELL_ROWS, Builder, Moment, Op, Register, Shared

CELL_COUNT = 1200
COUNT = CELL_COUNT * CELL_ROWS - 7
LAYOUT: dict[str, np.dtype[Any]] = {
    **{name: np.dtype(np.float32) for name in ("x", "y", "small", "out", "sum")},
    **{name: np.dtype(np.uint32) for name in ("word", "place", "out_word", "stamp")},
    **{name: np.dtype(np.uint16) for name in ("half", "short", "out_short", "count")},
    **{name: np.dtype(np.uint8) for name in ("byte", "flag", "other", "out_byte", "out_flag")},
}
MOMENT = Moment(3, 1_700_000_030, 30)
# All that arithmetic may meet: zeros of both signs, the greatest and the least, what rounds to even.
EDGES = np.array(
    [
        0.0,
        -0.0,
        1.0,
        -1.0,
        0.5,
        1.5,
        2.5,
        -2.5,
        3e38,
        -3e38,
        1e-45,
        65504.0,
        65520.0,
        6e-8,
        2.0**24,
        4294967040.0,
    ],
    np.float32,
)
K, L = Shared.of(0.75), Shared.of(20.5)


def filled() -> Arena:
    arena = Arena(LAYOUT, CELL_COUNT * CELL_ROWS)
    generator = np.random.default_rng(1)
    for name, column in arena.columns.items():
        values = generator.integers(0, 256, column.nbytes, dtype=np.uint8).view(column.dtype)
        if name in ("x", "y", "sum"):
            values = (generator.standard_normal(len(column)) * 10.0 ** generator.integers(-3, 5)).astype(
                np.float32
            )
            values[:: 7 if name == "x" else 5] = generator.choice(
                EDGES, len(values[:: 7 if name == "x" else 5])
            )
        elif name == "small":
            values = generator.uniform(-300, 300, len(column)).astype(np.float32)
        elif name in ("flag", "other"):
            values &= np.uint8(1)
        elif name == "place":
            values %= np.uint32(5)
        column[:] = values
    return arena


def rows_of(cells: NDArray[np.int64]) -> Rows:
    spread = spread_indices(np.arange(CELL_COUNT, dtype=np.uint32) * np.uint32(CELL_ROWS) + np.uint32(512))
    return Rows(cells, spread, COUNT)


CELLS = {
    "all": np.arange(CELL_COUNT, dtype=np.int64),
    "some": np.flatnonzero(np.arange(CELL_COUNT) % 7 == 3).astype(np.int64),
    "the last": np.array([CELL_COUNT - 1], np.int64),
    "none": np.zeros(0, np.int64),
}


def both(write: Callable[[Builder], None], cells: NDArray[np.int64]) -> tuple[Arena, Effects]:
    """Run a program both ways, and return what the reference made if the other made the same."""
    reference, compiled = filled(), filled()
    builder = Builder(reference.place)
    write(builder)
    program = builder.build()
    effects = Interpreter().run(program, MOMENT, reference, rows_of(cells))
    others = Kernels().run(program, MOMENT, compiled, rows_of(cells))
    for name, column in reference.columns.items():
        assert column.tobytes() == compiled.columns[name].tobytes(), name
    assert effects.counts == others.counts
    for name, found in effects.lists.items():
        assert found.tolist() == others.lists[name].tolist()
    return reference, effects


def _word(op: Op, *operands: Any) -> Callable[[Builder], None]:
    """Return a writer of a program whose one operation gives a word, loading its operands by column name."""

    def write(b: Builder) -> None:
        b.do(Op.ST4, "out_word", b.emit(op, *(_loaded(b, operand) for operand in operands)))

    return write


def _mask(op: Op, *operands: Any) -> Callable[[Builder], None]:
    def write(b: Builder) -> None:
        mask = b.emit(op, *(_loaded(b, operand) for operand in operands))
        b.do(Op.STM, "out_flag", mask)
        b.count("found", mask)
        b.collect("found", mask)

    return write


def _write(op: Op, *operands: Any) -> Callable[[Builder], None]:
    def write(b: Builder) -> None:
        b.do(op, operands[0], *(_loaded(b, operand) for operand in operands[1:]))

    return write


_LOADS = {"byte": Op.LD1, "half": Op.LD2, "flag": Op.LDM, "other": Op.LDM}


def _loaded(b: Builder, operand: Any) -> Any:
    return b.emit(_LOADS.get(operand, Op.LD4), operand) if isinstance(operand, str) else operand


def column(name: str) -> Any:
    """Return a column as an operand that is a place, not a register."""
    return type("Place", (), {"name": name})()


CASES: dict[Op, Callable[[Builder], None]] = {
    **{op: _word(op, "x", "y") for op in (Op.FADD, Op.FSUB, Op.FMUL, Op.FMIN, Op.FMAX)},
    Op.FDIV: lambda b: b.do(Op.ST4, "out", b.register(b.divide(b.emit(Op.LD4, "x"), b.emit(Op.LD4, "y")))),
    **{op: _word(op, "x", K) for op in (Op.FADD_K, Op.FSUB_K, Op.FMUL_K, Op.FDIV_K, Op.FMIN_K, Op.FMAX_K)},
    Op.FABS: _word(Op.FABS, "x"),
    Op.AFFINE: _word(Op.AFFINE, "x", K, L),
    Op.CLIP: _word(Op.CLIP, "x", K, L),
    Op.FOLLOW: _word(Op.FOLLOW, "x", "y", K),
    Op.SCALED: _word(Op.SCALED, "x", "y", K),
    Op.FILL: _word(Op.FILL, L),
    Op.IFILL: _word(Op.IFILL, lambda moment: moment.time_s),
    **{op: _mask(op, "x", "y") for op in (Op.FLT, Op.FLE, Op.FEQ)},
    **{op: _mask(op, "small", L) for op in (Op.FLT_K, Op.FLE_K, Op.FEQ_K, Op.FGT_K, Op.FGE_K)},
    Op.IEQ_K: _mask(Op.IEQ_K, "place", 3),
    Op.ILT_K: _mask(Op.ILT_K, "word", 1 << 31),
    Op.ILT: _mask(Op.ILT, "word", "stamp"),
    **{op: _mask(op, "flag", "other") for op in (Op.MAND, Op.MOR, Op.MXOR, Op.MANDN)},
    Op.MNOT: _mask(Op.MNOT, "flag"),
    Op.MFILL: _mask(Op.MFILL, 1),
    Op.SELECT: _word(Op.SELECT, "flag", "x", "y"),
    Op.NUMBER: _word(Op.NUMBER, "flag"),
    **{op: _word(op, "word", "stamp") for op in (Op.IADD, Op.ISUB)},
    **{op: _word(op, "word", 0xFFFF0FF7) for op in (Op.IADD_K, Op.ISUB_K, Op.IAND_K)},
    Op.STEP: _word(Op.STEP, "word", "small", L),
    Op.DRAW: _word(Op.DRAW, 12345, 0xDEADBEEF),
    **{op: _word(op, "word") for op in (Op.UNIT, Op.LOW, Op.HIGH, Op.TRIANGLE, Op.U2F, Op.I2F)},
    Op.LOOKUP: lambda b: b.do(Op.ST4, "out", b.lookup(b.emit(Op.LD4, "place"), [1.5, -2.0, 0.25, 9.0, 1e9])),
    Op.F2U: _word(Op.F2U, "x"),
    Op.F2I: _word(Op.F2I, "x"),
    Op.H2F: _word(Op.H2F, "half"),
    Op.F2H: _word(Op.F2H, "x"),
    Op.ROWS: _mask(Op.ROWS),
    Op.LD4: lambda b: b.do(Op.ST4, "out_word", b.emit(Op.LD4, "word")),
    Op.LD2: lambda b: b.do(Op.ST4, "out_word", b.emit(Op.LD2, "half")),
    Op.LD2S: lambda b: b.do(Op.ST4, "out_word", b.emit(Op.LD2S, "half")),
    Op.LD1: lambda b: b.do(Op.ST4, "out_word", b.emit(Op.LD1, "byte")),
    Op.LD1S: lambda b: b.do(Op.ST4, "out_word", b.emit(Op.LD1S, "byte")),
    Op.LDM: lambda b: b.do(Op.STM, "out_flag", b.emit(Op.LDM, "byte")),
    Op.LDB: lambda b: b.do(Op.STM, "out_flag", b.emit(Op.LDB, "half", 15)),
    Op.ST4: _write(Op.ST4, "out_word", "word"),
    Op.ST2: _write(Op.ST2, "out_short", "word"),
    Op.ST1: _write(Op.ST1, "out_byte", "word"),
    Op.STM: _write(Op.STM, "out_flag", "flag"),
    Op.ST4_W: _write(Op.ST4_W, "out_word", "word", "flag"),
    Op.ST2_W: _write(Op.ST2_W, "out_short", "word", "flag"),
    Op.ST1_W: _write(Op.ST1_W, "out_byte", "word", "flag"),
    Op.STM_W: _write(Op.STM_W, "out_flag", "other", "flag"),
    Op.ST4_KW: _write(Op.ST4_KW, "stamp", lambda moment: moment.time_s, "flag"),
    Op.ST2_KW: _write(Op.ST2_KW, "short", 0x803F, "flag"),
    Op.INC4_W: _write(Op.INC4_W, "word", "flag"),
    Op.INC2_W: _write(Op.INC2_W, "count", "flag"),
    **{op: _write(op, "sum", "x", "flag") for op in (Op.FADD4_W, Op.FMIN4_W, Op.FMAX4_W)},
    Op.COUNT: _mask(Op.MOR, "flag", "other"),
    Op.EMIT: _mask(Op.MAND, "flag", "other"),
    Op.NUMBERS: _word(Op.NUMBERS),
    Op.TAKE: lambda b: b.take("taken", b.emit(Op.LD4, "word"), b.emit(Op.LDM, "flag")),
    Op.HISTOGRAM: lambda b: b.histogram(
        "sizes", b.emit(Op.FABS, b.emit(Op.LD4, "x")), b.emit(Op.LDM, "flag")
    ),
}


def test_every_operation_has_a_case() -> None:
    assert CASES.keys() == set(Op)


@pytest.mark.parametrize("which", CELLS)
@pytest.mark.parametrize("op", CASES, ids=lambda op: op.name)
def test_compiled_code_gives_the_bytes_of_the_reference(op: Op, which: str) -> None:
    before = filled()
    after, effects = both(CASES[op], CELLS[which])
    if which == "all":
        changed = [name for name in LAYOUT if after.columns[name].tobytes() != before.columns[name].tobytes()]
        assert changed or effects.counts or effects.lists
    if which == "none":
        assert after.bytes.tobytes() == before.bytes.tobytes()


@pytest.mark.parametrize("which", ["some", "the last"])
@pytest.mark.parametrize("op", CASES, ids=lambda op: op.name)
def test_rows_whose_turn_it_is_not_stay_as_they_are(op: Op, which: str) -> None:
    before = filled()
    after, _ = both(CASES[op], CELLS[which])
    others = np.setdiff1d(np.arange(CELL_COUNT), CELLS[which])
    for name, values in after.columns.items():
        kept, had = (each.reshape(-1, CELL_ROWS)[others] for each in (values, before.columns[name]))
        assert kept.tobytes() == had.tobytes(), name


def test_all_float16_numbers_go_there_and_back() -> None:
    arena = Arena(
        {"half": np.dtype(np.uint16), "out": np.dtype(np.uint16), "as_float": np.dtype(np.float32)}, 65536
    )
    arena.columns["half"][:] = np.arange(65536)
    builder = Builder(arena.place)
    number = builder.emit(Op.H2F, builder.emit(Op.LD2, "half"))
    builder.do(Op.ST4, "as_float", number)
    builder.do(Op.ST2, "out", builder.emit(Op.F2H, number))
    rows = Rows(np.arange(2048, dtype=np.int64), np.zeros(2048, np.uint32), 65536)
    halves = np.arange(65536).astype(np.uint16).view(np.float16)
    is_number = ~np.isnan(halves)
    for runner in (Interpreter(), Kernels()):
        arena.columns["out"][:] = 1
        runner.run(builder.build(), MOMENT, arena, rows)
        assert np.array_equal(arena.columns["as_float"][is_number], halves[is_number].astype(np.float32))
        assert np.array_equal(arena.columns["out"][is_number], np.arange(65536)[is_number])


def test_a_draw_is_the_draw_of_that_device() -> None:
    arena, _ = both(_word(Op.DRAW, 11, 22), CELLS["all"])
    numbers = np.arange(CELL_COUNT * CELL_ROWS, dtype=np.uint32) + np.uint32(512)
    out = np.empty_like(numbers)
    fill_draws(spread_indices(numbers), (np.uint32(11), np.uint32(22)), out=out, scratch=np.empty_like(out))
    assert np.array_equal(arena.columns["out_word"], out)
    assert len(np.unique(draws(1, "a", 0, indices=numbers))) > 0.99 * len(numbers)


def test_what_nobody_needs_is_left_out_and_registers_are_used_again() -> None:
    arena = filled()
    builder = Builder(arena.place)
    value: Any = builder.emit(Op.LD4, "x")
    builder.emit(Op.LD4, "y")
    for _ in range(50):
        value = builder.add(value, K)
    builder.do(Op.ST4, "out", value)
    program = builder.build()
    assert len(program.code) == 52
    assert program.word_count == 2


def test_shared_numbers_are_computed_once_and_those_that_never_change_before() -> None:
    builder = Builder(filled().place)
    waves = [Shared(lambda moment: np.float32(math.sqrt(moment.tick))) for _ in range(2)]
    total = builder.multiply(
        builder.add(waves[0], Shared.of(2)), builder.subtract(Shared.of(5), Shared.of(1))
    )
    assert isinstance(total, Shared)
    assert total.fixed is None
    assert total.compute(Moment(9, 0, 0)) == 20
    builder.do(Op.ST4, "out", builder.add(builder.emit(Op.LD4, "x"), total))
    program = builder.build()
    floats, _ = program.shared(Moment(9, 0, 0))
    assert floats.tolist() == [20]


def test_division_by_nothing_is_nothing() -> None:
    def write(b: Builder) -> None:
        b.do(Op.ST4, "out", b.register(b.divide(b.emit(Op.LD4, "x"), b.emit(Op.LD4, "y"))))

    arena, _ = both(write, CELLS["all"])
    by_zero = arena.columns["y"] == 0
    assert by_zero.any()
    assert not arena.columns["out"][by_zero].any()
    assert Builder(arena.place).divide(K, Shared.of(0)).compute(MOMENT) == 0  # type: ignore[union-attr]


@pytest.mark.parametrize("operation", ["<", "<=", ">", ">=", "==", "!="])
@pytest.mark.parametrize("sides", ["xy", "xk", "kx", "kk"])
def test_comparisons_hold_on_both_sides(operation: str, sides: str) -> None:
    def write(b: Builder) -> None:
        a, c = (L if side == "k" else b.emit(Op.LD4, {"x": "small", "y": "y"}[side]) for side in sides)
        b.do(Op.STM, "out_flag", b.compare(operation, a, c))

    arena, _ = both(write, CELLS["all"])
    values = [
        np.full(CELL_COUNT * CELL_ROWS, 20.5, np.float32)
        if side == "k"
        else arena.columns[{"x": "small", "y": "y"}[side]]
        for side in sides
    ]
    compare = {"<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal, "==": np.equal}
    expected = np.not_equal(*values) if operation == "!=" else compare[operation](*values)
    assert np.array_equal(arena.columns["out_flag"] != 0, expected)


def test_a_register_of_the_other_bank_is_our_mistake() -> None:
    builder = Builder(filled().place)
    builder.do(Op.STM, "out_flag", builder.emit(Op.LD4, "x"))
    with pytest.raises(InvariantError):
        builder.build()


def test_a_column_that_is_not_there_is_our_mistake() -> None:
    with pytest.raises(InvariantError, match="nowhere"):
        filled().place("nowhere")
    assert isinstance(Builder(filled().place).emit(Op.LD4, "x"), Register)
