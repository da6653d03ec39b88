"""Block programs: what happens to every device of a fleet in a tick, as a short list of operations on columns.

A program works on a block of some cells of a fleet at a time, each operation on the whole block, so that everything in
between stays in the cache. `Builder` writes one; `interpreter` carries it out with NumPy, which is the reference, and
`kernels` by compiled code that gives the same bytes.

Registers hold one value a row. There are two banks: words (32 bits: a float32, or an unsigned integer) and masks (a
truth value). What is the same for all devices of a fleet is no register but shared: a number that is computed once
a tick.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, auto
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from twins.errors import InvariantError

# A cell is the unit in which devices come due. A power of two, so that a cell never crosses a block of names; 32 rows
# of a 4-byte column are two cache lines.
CELL_ROWS: Final = 32


class Op(IntEnum):
    """The operations, by number; `_SIGNATURES` says what each works on."""

    FADD = 0
    FSUB = auto()
    FMUL = auto()
    FDIV = auto()
    FMIN = auto()
    FMAX = auto()
    FADD_K = auto()
    FSUB_K = auto()
    FMUL_K = auto()
    FDIV_K = auto()
    FMIN_K = auto()
    FMAX_K = auto()
    FABS = auto()
    AFFINE = auto()
    CLIP = auto()
    FOLLOW = auto()
    SCALED = auto()
    FILL = auto()
    IFILL = auto()
    FLT = auto()
    FLE = auto()
    FEQ = auto()
    FLT_K = auto()
    FLE_K = auto()
    FEQ_K = auto()
    FGT_K = auto()
    FGE_K = auto()
    IEQ_K = auto()
    ILT_K = auto()
    ILT = auto()
    MAND = auto()
    MOR = auto()
    MXOR = auto()
    MANDN = auto()
    MNOT = auto()
    MFILL = auto()
    SELECT = auto()
    NUMBER = auto()
    IADD = auto()
    ISUB = auto()
    IADD_K = auto()
    ISUB_K = auto()
    IAND_K = auto()
    STEP = auto()
    DRAW = auto()
    UNIT = auto()
    LOW = auto()
    HIGH = auto()
    TRIANGLE = auto()
    LOOKUP = auto()
    U2F = auto()
    I2F = auto()
    F2U = auto()
    F2I = auto()
    H2F = auto()
    F2H = auto()
    LD4 = auto()
    LD2 = auto()
    LD2S = auto()
    LD1 = auto()
    LD1S = auto()
    LDM = auto()
    LDB = auto()
    ROWS = auto()
    NUMBERS = auto()
    ST4 = auto()
    ST2 = auto()
    ST1 = auto()
    STM = auto()
    ST4_W = auto()
    ST2_W = auto()
    ST1_W = auto()
    STM_W = auto()
    ST4_KW = auto()
    ST2_KW = auto()
    INC4_W = auto()
    INC2_W = auto()
    FADD4_W = auto()
    FMIN4_W = auto()
    FMAX4_W = auto()
    COUNT = auto()
    EMIT = auto()
    TAKE = auto()
    HISTOGRAM = auto()


# What an operation gives ("w" a word, "m" a mask, "-" nothing), then what it takes: w and m registers, k a shared
# float, u a shared word, i a number that stands in the code, o the place of a column.
_SIGNATURES: Final[Mapping[Op, str]] = {
    **dict.fromkeys((Op.FADD, Op.FSUB, Op.FMUL, Op.FDIV, Op.FMIN, Op.FMAX), "www"),
    **dict.fromkeys((Op.FADD_K, Op.FSUB_K, Op.FMUL_K, Op.FDIV_K, Op.FMIN_K, Op.FMAX_K), "wwk"),
    Op.FABS: "ww",
    # a * k1 + k2, each rounded
    Op.AFFINE: "wwkk",
    # at least k1, at most k2
    Op.CLIP: "wwkk",
    # from a towards b by the share k: a + (b - a) * k
    Op.FOLLOW: "wwwk",
    # a, and b times the factor k
    Op.SCALED: "wwwk",
    Op.FILL: "wk",
    Op.IFILL: "wu",
    **dict.fromkeys((Op.FLT, Op.FLE, Op.FEQ), "mww"),
    **dict.fromkeys((Op.FLT_K, Op.FLE_K, Op.FEQ_K, Op.FGT_K, Op.FGE_K), "mwk"),
    **dict.fromkeys((Op.IEQ_K, Op.ILT_K), "mwu"),
    Op.ILT: "mww",
    **dict.fromkeys((Op.MAND, Op.MOR, Op.MXOR, Op.MANDN), "mmm"),
    Op.MNOT: "mm",
    Op.MFILL: "mi",
    Op.SELECT: "wmww",
    # 1.0 or 0.0
    Op.NUMBER: "wm",
    Op.IADD: "www",
    Op.ISUB: "www",
    Op.IADD_K: "wwu",
    Op.ISUB_K: "wwu",
    Op.IAND_K: "wwu",
    # a, and 1 more where the float b is at least k
    Op.STEP: "wwwk",
    # a uniform 32-bit word a device, under two keys
    Op.DRAW: "wuu",
    # of a drawn word: a float in [0, 1) from its upper 24 bits, from its lower and from its upper half, and a
    # triangular one in (-1, 1) from the difference of its halves
    Op.UNIT: "ww",
    Op.LOW: "ww",
    Op.HIGH: "ww",
    Op.TRIANGLE: "ww",
    # the entry of a table at position a; the table begins at i
    Op.LOOKUP: "wwi",
    # from unsigned and signed integers to floats, and back: cut off below 0, and rounded to the nearest
    Op.U2F: "ww",
    Op.I2F: "ww",
    Op.F2U: "ww",
    Op.F2I: "ww",
    # from float16 to float32 and back
    Op.H2F: "ww",
    Op.F2H: "ww",
    # columns of 4, 2 and 1 bytes; S means that the value is signed
    **dict.fromkeys((Op.LD4, Op.LD2, Op.LD2S, Op.LD1, Op.LD1S), "wo"),
    # masks from a column of truth values, and from bit i of a column of 2 bytes
    Op.LDM: "mo",
    Op.LDB: "moi",
    # the rows that are devices, not what fills the last cell
    Op.ROWS: "m",
    # the devices' numbers in the whole fleet
    Op.NUMBERS: "w",
    **dict.fromkeys((Op.ST4, Op.ST2, Op.ST1), "-ow"),
    Op.STM: "-om",
    # _W writes only where a mask holds
    **dict.fromkeys((Op.ST4_W, Op.ST2_W, Op.ST1_W), "-owm"),
    Op.STM_W: "-omm",
    **dict.fromkeys((Op.ST4_KW, Op.ST2_KW), "-oum"),
    **dict.fromkeys((Op.INC4_W, Op.INC2_W), "-om"),
    **dict.fromkeys((Op.FADD4_W, Op.FMIN4_W, Op.FMAX4_W), "-owm"),
    # how often a mask holds, added to count i; the rows where it holds, appended to list i
    Op.COUNT: "-mi",
    Op.EMIT: "-mi",
    # a word where a mask holds, appended to list i
    Op.TAKE: "-wmi",
    # how many floats, where a mask holds, fall into each of HISTOGRAM_BUCKETS, added to the counts from i on
    Op.HISTOGRAM: "-wmi",
}
# Four buckets to each power of two, the first of what is below 1.25, the last of all that is above 1.75 * 2**21: from
# a millisecond to an hour. They are read off the bits of a float32: its exponent and the first two of its fraction.
HISTOGRAM_BUCKETS: Final = 88
HISTOGRAM_SHIFT: Final = 21
HISTOGRAM_FIRST: Final = 127 << 2
# The operation, its result, and three operands at most.
CODE_WIDTH: Final = 5


@dataclass(frozen=True)
class Moment:
    """When a tick is: `tick` counts from 0, `time_s` is its virtual time, `elapsed_s` what passed since tick 0."""

    tick: int
    time_s: int
    elapsed_s: int


@dataclass(frozen=True)
class Shared:
    """A float that all devices share: `fixed` for good, or computed for each moment."""

    compute: Callable[[Moment], np.float32]
    fixed: np.float32 | None = None

    @classmethod
    def of(cls, value: float) -> Shared:
        """Return a number that never changes."""
        number = np.float32(value)
        return cls(lambda _: number, number)


@dataclass(frozen=True, eq=False)
class Register:
    """A value a row; `kind` is what its bits mean."""

    kind: Literal["float", "word", "mask"]


Operand = Register | Shared


@dataclass
class _Step:
    op: Op
    result: Register | None
    operands: tuple[Any, ...]


@dataclass(frozen=True)
class Program:
    """A program ready to run.

    `code` is (steps, CODE_WIDTH) int64: operation, result, operands. `floats` and `words` make what is shared,
    `tables` the entries of all tables, one after another. The program needs `word_count` and `mask_count` registers.
    """

    code: NDArray[np.int64]
    floats: tuple[Shared, ...]
    words: tuple[int | Callable[[Moment], int], ...]
    tables: NDArray[np.float32]
    word_count: int
    mask_count: int
    count_names: tuple[str, ...]
    list_names: tuple[str, ...]

    def shared(self, moment: Moment) -> tuple[NDArray[np.float32], NDArray[np.uint32]]:
        """Return the shared floats and words of a moment."""
        floats, words = self._fixed[0].copy(), self._fixed[1].copy()
        for position, compute in self._moving_floats:
            floats[position] = compute(moment)
        for position, make in self._moving_words:
            words[position] = make(moment) & 0xFFFFFFFF
        return floats, words

    # A tick of few devices takes about as long as it takes to make what they share.

    @cached_property
    def _fixed(self) -> tuple[NDArray[np.float32], NDArray[np.uint32]]:
        floats = [0.0 if shared.fixed is None else shared.fixed for shared in self.floats]
        words = [word & 0xFFFFFFFF if isinstance(word, int) else 0 for word in self.words]
        return np.array(floats, np.float32), np.array(words, np.uint32)

    @cached_property
    def _moving_floats(self) -> tuple[tuple[int, Callable[[Moment], np.float32]], ...]:
        return tuple((i, shared.compute) for i, shared in enumerate(self.floats) if shared.fixed is None)

    @cached_property
    def _moving_words(self) -> tuple[tuple[int, Callable[[Moment], int]], ...]:
        return tuple((i, word) for i, word in enumerate(self.words) if not isinstance(word, int))


@dataclass
class Builder:
    """Writes a program, operation by operation; `place` gives where a column is, as `arena.Arena.place` does."""

    place: Callable[[str], int]
    _steps: list[_Step] = field(default_factory=list)
    _floats: dict[int, Shared] = field(default_factory=dict)
    _fixed: dict[bytes, Shared] = field(default_factory=dict)
    _words: list[int | Callable[[Moment], int]] = field(default_factory=list)
    _tables: list[float] = field(default_factory=list)
    _table_of: dict[tuple[float, ...], int] = field(default_factory=dict)
    _counts: list[str] = field(default_factory=list)
    _lists: list[str] = field(default_factory=list)

    # Operations as they stand in `Op`

    def emit(self, op: Op, *operands: Any, kind: Literal["float", "word"] | None = None) -> Register:
        """Add an operation that gives a value, and return it; `kind` says what its bits are where that is left open."""
        if op is Op.SELECT:
            kind = operands[1].kind
        result = Register("mask" if _SIGNATURES[op][0] == "m" else kind or _KINDS.get(op, "float"))
        self._steps.append(_Step(op, result, operands))
        return result

    def do(self, op: Op, *operands: Any) -> None:
        """Add an operation that writes, counts or lists."""
        self._steps.append(_Step(op, None, operands))

    def count(self, name: str, mask: Register) -> None:
        """Count the rows in which a mask holds, under a name."""
        self.do(Op.COUNT, mask, self._number_of(name, self._counts))

    def collect(self, name: str, mask: Register) -> None:
        """List the rows in which a mask holds, under a name."""
        self.do(Op.EMIT, mask, self._number_of(name, self._lists))

    def take(self, name: str, value: Register, mask: Register) -> None:
        """List a value of the rows in which a mask holds, as words, under a name."""
        self.do(Op.TAKE, value, mask, self._number_of(name, self._lists))

    def histogram(self, name: str, value: Register, mask: Register) -> None:
        """Count the values of the rows in which a mask holds by size, as counts `name.0`, `name.1` ..."""
        first = self._number_of(f"{name}.0", self._counts)
        for bucket in range(1, HISTOGRAM_BUCKETS):
            self._number_of(f"{name}.{bucket}", self._counts)
        self.do(Op.HISTOGRAM, value, mask, first)

    @staticmethod
    def _number_of(name: str, names: list[str]) -> int:
        if name not in names:
            names.append(name)
        return names.index(name)

    def lookup(self, position: Register, values: Sequence[float]) -> Register:
        """Return the entries of a table at the given positions (words below its length)."""
        key = tuple(values)
        if key not in self._table_of:
            self._table_of[key] = len(self._tables)
            self._tables.extend(key)
        return self.emit(Op.LOOKUP, position, self._table_of[key])

    # Arithmetic on floats, shared ones or registers

    def register(self, value: Operand) -> Register:
        """Return a value as a register."""
        return value if isinstance(value, Register) else self.emit(Op.FILL, value)

    def add(self, a: Operand, b: Operand) -> Operand:
        """Return a + b."""
        return self._arithmetic(Op.FADD, a, b, is_symmetric=True)

    def subtract(self, a: Operand, b: Operand) -> Operand:
        """Return a - b."""
        return self._arithmetic(Op.FSUB, a, b)

    def multiply(self, a: Operand, b: Operand) -> Operand:
        """Return a * b."""
        return self._arithmetic(Op.FMUL, a, b, is_symmetric=True)

    def divide(self, a: Operand, b: Operand) -> Operand:
        """Return a / b; by 0 it is 0, so that no infinity comes into a column."""
        zero = Shared.of(0.0)
        if isinstance(b, Shared):
            return self._arithmetic(Op.FDIV, a, b)
        is_zero = self.emit(Op.FEQ_K, b, zero)
        quotient = self.emit(Op.FDIV, self.register(a), b)
        return self.emit(Op.SELECT, is_zero, self.register(zero), quotient)

    def minimum(self, a: Operand, b: Operand) -> Operand:
        """Return the lesser of a and b."""
        return self._arithmetic(Op.FMIN, a, b, is_symmetric=True)

    def maximum(self, a: Operand, b: Operand) -> Operand:
        """Return the greater of a and b."""
        return self._arithmetic(Op.FMAX, a, b, is_symmetric=True)

    def absolute(self, a: Operand) -> Operand:
        """Return |a|."""
        if isinstance(a, Shared):
            return _of_shared(np.abs, a)
        return self.emit(Op.FABS, a)

    def affine(self, a: Operand, factor: float, summand: float) -> Operand:
        """Return a * factor + summand."""
        if isinstance(a, Shared):
            return self.add(self.multiply(a, Shared.of(factor)), Shared.of(summand))
        return self.emit(Op.AFFINE, a, Shared.of(factor), Shared.of(summand))

    def _arithmetic(self, op: Op, a: Operand, b: Operand, *, is_symmetric: bool = False) -> Operand:
        if isinstance(a, Shared) and isinstance(b, Shared):
            return _of_shared(_FUNCTIONS[op], a, b)
        if isinstance(a, Shared) and is_symmetric:
            a, b = b, a
        if isinstance(b, Shared) and isinstance(a, Register):
            return self.emit(_WITH_SHARED[op], a, b)
        return self.emit(op, self.register(a), self.register(b))

    def add_scaled(self, a: Operand, b: Operand, factor: Operand) -> Operand:
        """Return a + b * factor."""
        if isinstance(a, Register) and isinstance(b, Register) and isinstance(factor, Shared):
            return self.emit(Op.SCALED, a, b, factor)
        return self.add(a, self.multiply(b, factor))

    def blend(self, a: Register, b: Operand, share: float) -> Register:
        """Return a moved towards b by a share of the distance."""
        if isinstance(b, Shared):
            return self.emit(
                Op.AFFINE, a, Shared.of(1.0 - share), _of_shared(np.multiply, b, Shared.of(share))
            )
        return self.emit(Op.FOLLOW, a, b, Shared.of(share))

    # Decisions

    def compare(self, operation: str, a: Operand, b: Operand) -> Register:
        """Return where `a operation b` holds, for < <= > >= == != on floats."""
        if operation == "!=":
            return self.emit(Op.MNOT, self.compare("==", a, b))
        if isinstance(a, Shared):
            if isinstance(b, Shared):
                a = self.register(a)
            else:
                return self.compare(_MIRRORED[operation], b, a)
        if isinstance(b, Shared):
            return self.emit(_COMPARED[operation], a, b)
        if operation in (">", ">="):
            return self.compare(_MIRRORED[operation], b, a)
        return self.emit({"<": Op.FLT, "<=": Op.FLE, "==": Op.FEQ}[operation], a, b)

    def select(self, mask: Register, a: Operand, b: Operand) -> Register:
        """Return a where the mask holds, else b."""
        return self.emit(Op.SELECT, mask, self.register(a), self.register(b))

    # Draws

    def draw(self, key: Callable[[Moment], tuple[int, int]]) -> Register:
        """Return a word a device, drawn under the two keys of the moment."""
        # Both words come from one computation, which is the dearest of a tick of few devices.
        known: dict[int, tuple[int, int]] = {}

        def word(number: int) -> Callable[[Moment], int]:
            def make(moment: Moment) -> int:
                if moment.tick not in known:
                    known.clear()
                    known[moment.tick] = key(moment)
                return known[moment.tick][number]

            return make

        return self.emit(Op.DRAW, word(0), word(1))

    # The program

    def build(self) -> Program:
        """Return the program: without what nobody needs, and with as few registers as it takes."""
        steps = self._needed()
        last_use = {
            id(operand): number
            for number, step in enumerate(steps)
            for operand in step.operands
            if isinstance(operand, Register)
        }
        free: dict[bool, list[int]] = {True: [], False: []}
        used = {True: 0, False: 0}
        where: dict[int, int] = {}
        code = np.zeros((len(steps), CODE_WIDTH), np.int64)
        for number, step in enumerate(steps):
            is_mask = step.result is not None and step.result.kind == "mask"
            if step.result is not None:
                # Before its operands are given up: an operation never writes over what it reads.
                if not free[is_mask]:
                    free[is_mask].append(used[is_mask])
                    used[is_mask] += 1
                where[id(step.result)] = free[is_mask].pop()
            code[number] = self._encode(step, where)
            for operand in {id(each): each for each in step.operands if isinstance(each, Register)}.values():
                if last_use[id(operand)] == number:
                    free[operand.kind == "mask"].append(where[id(operand)])
        return Program(
            code,
            tuple(self._floats.values()),
            tuple(self._words),
            np.array(self._tables or [0.0], np.float32),
            max(used[False], 1),
            max(used[True], 1),
            tuple(self._counts),
            tuple(self._lists),
        )

    def _needed(self) -> list[_Step]:
        """Return the steps that write something, and those that they need, in order."""
        needed: set[int] = set()
        kept = []
        for step in reversed(self._steps):
            if step.result is None or id(step.result) in needed:
                kept.append(step)
                needed.update(id(operand) for operand in step.operands if isinstance(operand, Register))
        return kept[::-1]

    def _encode(self, step: _Step, where: Mapping[int, int]) -> list[int]:
        signature = _SIGNATURES[step.op]
        if len(step.operands) != len(signature) - 1:
            raise InvariantError(f"{step.op.name} takes {len(signature) - 1} operands")
        row = [int(step.op), 0 if step.result is None else where[id(step.result)]]
        for letter, operand in zip(signature[1:], step.operands, strict=True):
            row.append(self._encode_operand(letter, operand, where))
        return row + [0] * (CODE_WIDTH - len(row))

    def _encode_operand(self, letter: str, operand: Any, where: Mapping[int, int]) -> int:
        if letter in "wm":
            if not isinstance(operand, Register) or (operand.kind == "mask") != (letter == "m"):
                raise InvariantError("an operation was given a register of the other bank, or none")
            return where[id(operand)]
        if letter == "k":
            return self._float(operand)
        if letter == "u":
            self._words.append(operand if callable(operand) else int(operand))
            return len(self._words) - 1
        return self.place(operand) if letter == "o" else int(operand)

    def _float(self, shared: Shared) -> int:
        if shared.fixed is not None:
            shared = self._fixed.setdefault(shared.fixed.tobytes(), shared)
        self._floats.setdefault(id(shared), shared)
        return list(self._floats).index(id(shared))


def _of_shared(function: Callable[..., Any], *operands: Shared) -> Shared:
    """Return a function of shared numbers, as another: computed in single precision, as a register's would be."""

    def compute(moment: Moment) -> np.float32:
        return np.float32(function(*(operand.compute(moment) for operand in operands)))

    if all(operand.fixed is not None for operand in operands):
        return Shared.of(float(np.float32(function(*(operand.fixed for operand in operands)))))
    return Shared(compute)


def _divide(a: np.float32, b: np.float32) -> np.float32:
    return np.float32(0) if b == 0 else np.float32(a / b)


# What the bits of a result mean, where they are no float.
_KINDS: Final[Mapping[Op, Literal["float", "word"]]] = dict.fromkeys(
    (
        *(
            Op.IFILL,
            Op.IADD,
            Op.ISUB,
            Op.IADD_K,
            Op.ISUB_K,
            Op.IAND_K,
            Op.STEP,
            Op.DRAW,
            Op.F2U,
            Op.F2I,
            Op.F2H,
        ),
        *(Op.LD2, Op.LD2S, Op.LD1, Op.LD1S, Op.NUMBERS),
    ),
    "word",
)
_FUNCTIONS: Final[Mapping[Op, Callable[..., Any]]] = {
    Op.FADD: np.add,
    Op.FSUB: np.subtract,
    Op.FMUL: np.multiply,
    Op.FDIV: _divide,
    Op.FMIN: np.minimum,
    Op.FMAX: np.maximum,
}
_WITH_SHARED: Final[Mapping[Op, Op]] = {
    Op.FADD: Op.FADD_K,
    Op.FSUB: Op.FSUB_K,
    Op.FMUL: Op.FMUL_K,
    Op.FDIV: Op.FDIV_K,
    Op.FMIN: Op.FMIN_K,
    Op.FMAX: Op.FMAX_K,
}
_COMPARED: Final[Mapping[str, Op]] = {
    "<": Op.FLT_K,
    "<=": Op.FLE_K,
    "==": Op.FEQ_K,
    ">": Op.FGT_K,
    ">=": Op.FGE_K,
}
_MIRRORED: Final[Mapping[str, str]] = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "==", "!=": "!="}
