"""The loops of block programs, compiled (Numba): all in one file, beside which the compiled code is kept.

Every operation runs over a block that fits the second-level cache, in a loop that the compiler makes into vector
instructions; a result never overlaps an operand (`Builder.build` sees to that), without which it would not. No
fast-math: floats are added in the order that stands here.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numba
import numpy as np
from numba import float32, int32, int64, uint8, uint16, uint32

from twins.draws import INDEX_MULTIPLIER
from twins.program import (
    CELL_ROWS,
    HISTOGRAM_BUCKETS,
    HISTOGRAM_FIRST,
    HISTOGRAM_SHIFT,
    Op,
)

# 4,096 rows: a dozen registers of them fit the second-level cache, and what an operation costs besides is little then.
BLOCK_CELLS: Final = 128
_compiled = numba.njit(nogil=True, error_model="numpy")
_MULTIPLIER: Final = np.uint32(INDEX_MULTIPLIER)
# Undoes what spreads the numbers of devices.
_INVERSE: Final = np.uint32(pow(INDEX_MULTIPLIER, -1, 1 << 32))
_PER_HALF: Final = np.float32(2.0**-16)
_PER_24_BITS: Final = np.float32(2.0**-24)
_WORD_MAX: Final = np.float32(4294967040.0)
_SIGNED_MAX: Final = np.float32(2147483520.0)
_HALF: Final = np.float32(0.5)
# Bit patterns of float32, for conversion to and from float16: infinity; 2**16, the first that is none in float16; the
# least normal float16; and numbers whose addition aligns a subnormal one.
_INFINITY_BITS: Final = np.uint32(255 << 23)
_HALF_MAX_BITS: Final = np.uint32((127 + 16) << 23)
_HALF_NORMAL_BITS: Final = np.uint32(113 << 23)
_ALIGN_BITS: Final = np.uint32(((127 - 15) + (23 - 10) + 1) << 23)
_ALIGN: Final = np.float32(0.5)
_UNALIGN: Final = np.float32(2.0**-14)


@numba.njit(nogil=True, error_model="numpy", cache=True)
def execute(code: Any, shared: Any, registers: Any, columns: Any, rows: Any, effects: Any) -> None:
    """Carry out `code` block by block."""
    cells = rows[0]
    for start in range(0, len(cells), BLOCK_CELLS):
        block = cells[start : min(start + BLOCK_CELLS, len(cells))]
        for step in range(code.shape[0]):
            op, d, a, b, c = code[step]
            if op < Op.FLT:
                _float_step((op, d, a, b, c), shared, registers, len(block) * CELL_ROWS)
            elif op < Op.IADD:
                _mask_step((op, d, a, b, c), shared, registers, len(block) * CELL_ROWS)
            elif op == Op.DRAW:
                _draw(registers[0][d], block, rows[1], shared[1][a], shared[1][b])
            elif op < Op.UNIT:
                _word_step((op, d, a, b, c), shared, registers, len(block) * CELL_ROWS)
            elif op < Op.LD4:
                _conversion_step((op, d, a, b, c), shared, registers, len(block) * CELL_ROWS)
            elif op < Op.ROWS:
                _load_step((op, d, a, b), registers, columns, block)
            elif op == Op.ROWS:
                _rows(registers[3][d], block, rows[2])
            elif op == Op.NUMBERS:
                _numbers(registers[0][d], block, rows[1])
            elif op < Op.COUNT:
                _store_step((op, a, b, c), shared, registers, columns, block)
            elif op == Op.COUNT:
                _count(registers[3][a], len(block) * CELL_ROWS, effects[0], b)
            elif op == Op.EMIT:
                _emit(registers[3][a], block, effects[1][b], effects[2], b)
            elif op == Op.TAKE:
                _take(registers[0][a], registers[3][b], len(block), effects[1][c], effects[2], c)
            else:
                _histogram(registers[0][a], registers[3][b], len(block) * CELL_ROWS, effects[0], c)


# Floats


@_compiled
def _float_step(step, shared, registers, n):
    op, d, a, b, c = step
    floats = registers[1]
    out, x = floats[d][:n], floats[a][:n]
    if op <= Op.FMAX:
        _binary(op, out, x, floats[b][:n])
    elif op <= Op.FMAX_K:
        _binary_k(op, out, x, shared[0][b])
    elif op == Op.FABS:
        for i in range(n):
            out[i] = abs(x[i])
    elif op == Op.AFFINE:
        factor, summand = shared[0][b], shared[0][c]
        for i in range(n):
            out[i] = x[i] * factor + summand
    elif op == Op.CLIP:
        low, high = shared[0][b], shared[0][c]
        for i in range(n):
            raised = max(low, x[i])
            out[i] = min(high, raised)
    elif op == Op.FOLLOW:
        y, share = floats[b][:n], shared[0][c]
        for i in range(n):
            out[i] = x[i] + (y[i] - x[i]) * share
    elif op == Op.SCALED:
        y, factor = floats[b][:n], shared[0][c]
        for i in range(n):
            out[i] = x[i] + y[i] * factor
    elif op == Op.FILL:
        value = shared[0][a]
        for i in range(n):
            out[i] = value
    else:
        words, word = registers[0][d][:n], shared[1][a]
        for i in range(n):
            words[i] = word


@_compiled
def _binary(op, out, x, y):
    if op == Op.FADD:
        for i in range(len(out)):
            out[i] = x[i] + y[i]
    elif op == Op.FSUB:
        for i in range(len(out)):
            out[i] = x[i] - y[i]
    elif op == Op.FMUL:
        for i in range(len(out)):
            out[i] = x[i] * y[i]
    elif op == Op.FDIV:
        for i in range(len(out)):
            out[i] = x[i] / y[i]
    elif op == Op.FMIN:
        for i in range(len(out)):
            out[i] = min(y[i], x[i])
    else:
        for i in range(len(out)):
            out[i] = max(y[i], x[i])


@_compiled
def _binary_k(op, out, x, k):
    if op == Op.FADD_K:
        for i in range(len(out)):
            out[i] = x[i] + k
    elif op == Op.FSUB_K:
        for i in range(len(out)):
            out[i] = x[i] - k
    elif op == Op.FMUL_K:
        for i in range(len(out)):
            out[i] = x[i] * k
    elif op == Op.FDIV_K:
        if k == float32(0):
            for i in range(len(out)):
                out[i] = float32(0)
        else:
            for i in range(len(out)):
                out[i] = x[i] / k
    elif op == Op.FMIN_K:
        for i in range(len(out)):
            out[i] = min(k, x[i])
    else:
        for i in range(len(out)):
            out[i] = max(k, x[i])


# Masks


@_compiled
def _mask_step(step, shared, registers, n):
    op, d, a, b, c = step
    words, floats, masks = registers[0], registers[1], registers[3]
    if op <= Op.FEQ:
        _compare(op, masks[d][:n], floats[a][:n], floats[b][:n])
    elif op <= Op.FGE_K:
        _compare_k(op, masks[d][:n], floats[a][:n], shared[0][b])
    elif op <= Op.ILT:
        _compare_words(op, masks[d][:n], words[a][:n], words[b if op == Op.ILT else 0][:n], shared[1], b)
    elif op <= Op.MFILL:
        _combine_masks(op, masks[d][:n], masks[a if op != Op.MFILL else 0][:n], masks[b][:n], a)
    elif op == Op.SELECT:
        out, mask, x, y = words[d][:n], masks[a][:n], words[b][:n], words[c][:n]
        for i in range(n):
            # Both are read before one is chosen: a loop with a branch is not made into vector instructions.
            if_so, if_not = x[i], y[i]
            out[i] = if_so if mask[i] else if_not
    else:
        numbers, mask = floats[d][:n], masks[a][:n]
        for i in range(n):
            numbers[i] = float32(mask[i])


@_compiled
def _compare(op, out, x, y):
    if op == Op.FLT:
        for i in range(len(out)):
            out[i] = uint8(x[i] < y[i])
    elif op == Op.FLE:
        for i in range(len(out)):
            out[i] = uint8(x[i] <= y[i])
    else:
        for i in range(len(out)):
            out[i] = uint8(x[i] == y[i])


@_compiled
def _compare_k(op, out, x, k):
    if op == Op.FLT_K:
        for i in range(len(out)):
            out[i] = uint8(x[i] < k)
    elif op == Op.FLE_K:
        for i in range(len(out)):
            out[i] = uint8(x[i] <= k)
    elif op == Op.FEQ_K:
        for i in range(len(out)):
            out[i] = uint8(x[i] == k)
    elif op == Op.FGT_K:
        for i in range(len(out)):
            out[i] = uint8(x[i] > k)
    else:
        for i in range(len(out)):
            out[i] = uint8(x[i] >= k)


@_compiled
def _compare_words(op, out, x, y, shared_words, b):
    if op == Op.IEQ_K:
        k = shared_words[b]
        for i in range(len(out)):
            out[i] = uint8(x[i] == k)
    elif op == Op.ILT_K:
        k = shared_words[b]
        for i in range(len(out)):
            out[i] = uint8(x[i] < k)
    else:
        for i in range(len(out)):
            out[i] = uint8(x[i] < y[i])


@_compiled
def _combine_masks(op, out, x, y, value):
    if op == Op.MAND:
        for i in range(len(out)):
            out[i] = x[i] & y[i]
    elif op == Op.MOR:
        for i in range(len(out)):
            out[i] = x[i] | y[i]
    elif op == Op.MXOR:
        for i in range(len(out)):
            out[i] = x[i] ^ y[i]
    elif op == Op.MANDN:
        for i in range(len(out)):
            out[i] = x[i] & (y[i] ^ uint8(1))
    elif op == Op.MNOT:
        for i in range(len(out)):
            out[i] = x[i] ^ uint8(1)
    else:
        for i in range(len(out)):
            out[i] = uint8(value != 0)


# Words


@_compiled
def _word_step(step, shared, registers, n):
    op, d, a, b, c = step
    words = registers[0]
    out, x = words[d][:n], words[a][:n]
    if op == Op.IADD:
        y = words[b][:n]
        for i in range(n):
            out[i] = uint32(x[i] + y[i])
    elif op == Op.ISUB:
        y = words[b][:n]
        for i in range(n):
            out[i] = uint32(x[i] - y[i])
    elif op == Op.IADD_K:
        k = shared[1][b]
        for i in range(n):
            out[i] = uint32(x[i] + k)
    elif op == Op.ISUB_K:
        k = shared[1][b]
        for i in range(n):
            out[i] = uint32(x[i] - k)
    elif op == Op.IAND_K:
        k = shared[1][b]
        for i in range(n):
            out[i] = x[i] & k
    else:
        floats, bound = registers[1][b][:n], shared[0][c]
        for i in range(n):
            out[i] = uint32(x[i] + uint32(floats[i] >= bound))


@_compiled
def _draw(out, cells, cell_spread, first, second):
    # As draws.fill_draws: the shifts and multipliers of one permutation.
    for cell in range(len(cells)):
        place = out[cell * CELL_ROWS : (cell + 1) * CELL_ROWS]
        base = uint32(cell_spread[cells[cell]] + first)
        for i in range(CELL_ROWS):
            word = uint32(base + uint32(uint32(i) * _MULTIPLIER))
            word = uint32(uint32(word ^ (word >> uint32(16))) * uint32(0x21F0AAAD))
            word = uint32(word ^ second)
            word = uint32(uint32(word ^ (word >> uint32(15))) * uint32(0xD35A2D97))
            place[i] = uint32(word ^ (word >> uint32(16)))


# Conversions


@_compiled
def _conversion_step(step, shared, registers, n):
    op, d, a, b, c = step
    words, floats, signed = registers[0], registers[1], registers[2]
    out, x = floats[d][:n], words[a][:n]
    if op <= Op.TRIANGLE:
        _of_draw(op, out, x, signed[d][:n])
    elif op == Op.LOOKUP:
        table = shared[2][b:]
        for i in range(n):
            out[i] = table[min(int64(x[i]), len(table) - 1)]
    elif op == Op.U2F:
        for i in range(n):
            out[i] = float32(x[i])
    elif op == Op.I2F:
        y = signed[a][:n]
        for i in range(n):
            out[i] = float32(y[i])
    elif op == Op.F2U:
        y, z = words[d][:n], floats[a][:n]
        for i in range(n):
            y[i] = uint32(min(max(z[i], float32(0)), _WORD_MAX))
    elif op == Op.F2I:
        y, z = signed[d][:n], floats[a][:n]
        for i in range(n):
            y[i] = int32(math.floor(min(max(z[i], -_SIGNED_MAX), _SIGNED_MAX) + _HALF))
    elif op == Op.H2F:
        _from_half(words[d][:n], out, x)
    else:
        _to_half(words[d][:n], out, x, floats[a][:n])


@_compiled
def _of_draw(op, out, x, scratch):
    if op == Op.UNIT:
        for i in range(len(out)):
            out[i] = float32(x[i] >> uint32(8)) * _PER_24_BITS
    elif op == Op.LOW:
        for i in range(len(out)):
            out[i] = float32(x[i] & uint32(0xFFFF)) * _PER_HALF
    elif op == Op.HIGH:
        for i in range(len(out)):
            out[i] = float32(x[i] >> uint32(16)) * _PER_HALF
    else:
        for i in range(len(out)):
            out[i] = float32(int32((x[i] & uint32(0xFFFF)) - (x[i] >> uint32(16)))) * _PER_HALF


@_compiled
def _from_half(bits, out, x):
    # After F. Giesen's description of the conversion: shift the bits into place, mend the exponent.
    for i in range(len(out)):
        half = x[i] & uint32(0xFFFF)
        word = uint32((half & uint32(0x7FFF)) << uint32(13))
        exponent = word & uint32(0x7C00 << 13)
        word = uint32(word + uint32((127 - 15) << 23))
        if exponent == uint32(0x7C00 << 13):
            word = uint32(word + uint32((128 - 16) << 23))
        bits[i] = word
        if exponent == uint32(0):
            bits[i] = uint32(word + uint32(1 << 23))
            out[i] = out[i] - _UNALIGN
        bits[i] = bits[i] | uint32((half & uint32(0x8000)) << uint32(16))


@_compiled
def _to_half(bits, out, x, floats):
    # After F. Giesen's description of the conversion, rounding to nearest, to even.
    for i in range(len(out)):
        word = x[i]
        sign = word & uint32(0x80000000)
        word = uint32(word ^ sign)
        if word >= _HALF_MAX_BITS:
            half = uint32(0x7E00) if word > _INFINITY_BITS else uint32(0x7C00)
        elif word < _HALF_NORMAL_BITS:
            out[i] = abs(floats[i]) + _ALIGN
            half = uint32(bits[i] - _ALIGN_BITS)
        else:
            odd = (word >> uint32(13)) & uint32(1)
            half = uint32(uint32(word + uint32(((15 - 127) << 23) + 0xFFF & 0xFFFFFFFF)) + odd) >> uint32(13)
        bits[i] = uint32(half | (sign >> uint32(16)))


# Columns


@_compiled
def _numbers(out, cells, cell_spread):
    for cell in range(len(cells)):
        place = out[cell * CELL_ROWS : (cell + 1) * CELL_ROWS]
        first = uint32(cell_spread[cells[cell]] * _INVERSE)
        for i in range(CELL_ROWS):
            place[i] = uint32(first + uint32(i))


@_compiled
def _is_run(cells):
    return cells[-1] - cells[0] == len(cells) - 1


@_compiled
def _load_step(step, registers, columns, cells):
    op, d, place, bit = step
    is_run = _is_run(cells)
    size = len(cells) * CELL_ROWS if is_run else CELL_ROWS
    for part in range(1 if is_run else len(cells)):
        first, start = part * CELL_ROWS, place + cells[part] * CELL_ROWS
        stop = start + size
        if op == Op.LD4:
            _copy(registers[0][d][first : first + size], columns[2][start:stop])
        elif op == Op.LD2:
            _copy(registers[0][d][first : first + size], columns[1][start:stop])
        elif op == Op.LD2S:
            _copy(registers[2][d][first : first + size], columns[1][start:stop].view(np.int16))
        elif op == Op.LD1:
            _copy(registers[0][d][first : first + size], columns[0][start:stop])
        elif op == Op.LD1S:
            _copy(registers[2][d][first : first + size], columns[0][start:stop].view(np.int8))
        elif op == Op.LDM:
            _test(registers[3][d][first : first + size], columns[0][start:stop], uint8(255))
        else:
            _test(registers[3][d][first : first + size], columns[1][start:stop], uint16(1 << bit))


@_compiled
def _copy(out, x):
    for i in range(len(out)):
        out[i] = x[i]


@_compiled
def _test(out, x, bits):
    for i in range(len(out)):
        out[i] = uint8((x[i] & bits) != 0)


@_compiled
def _rows(out, cells, count):
    for i in range(len(cells) * CELL_ROWS):
        out[i] = uint8(1)
    for cell in range(len(cells)):
        # In the last cell of a fleet alone are rows that are no devices.
        for i in range(max(count - cells[cell] * CELL_ROWS, 0), CELL_ROWS):
            out[cell * CELL_ROWS + i] = uint8(0)


@_compiled
def _store_step(step, shared, registers, columns, cells):
    op, place, a, mask_number = step
    is_run = _is_run(cells)
    size = len(cells) * CELL_ROWS if is_run else CELL_ROWS
    words, floats, masks = registers[0], registers[1], registers[3]
    for part in range(1 if is_run else len(cells)):
        first, start = part * CELL_ROWS, place + cells[part] * CELL_ROWS
        last, stop = first + size, start + size
        if op <= Op.STM:
            _plain_store(op, columns, start, stop, words, masks, a, first, last)
        elif op == Op.ST4_W:
            _store(columns[2][start:stop], words[a][first:last], masks[mask_number][first:last])
        elif op == Op.ST2_W:
            _store(columns[1][start:stop], words[a][first:last], masks[mask_number][first:last])
        elif op == Op.ST1_W:
            _store(columns[0][start:stop], words[a][first:last], masks[mask_number][first:last])
        elif op == Op.STM_W:
            _store(columns[0][start:stop], masks[a][first:last], masks[mask_number][first:last])
        elif op == Op.ST4_KW:
            _store_k(columns[2][start:stop], shared[1][a], masks[mask_number][first:last])
        elif op == Op.ST2_KW:
            _store_k(columns[1][start:stop], uint16(shared[1][a]), masks[mask_number][first:last])
        elif op == Op.INC4_W:
            _increment(columns[2][start:stop], masks[a][first:last])
        elif op == Op.INC2_W:
            _increment(columns[1][start:stop], masks[a][first:last])
        else:
            _combine(op, columns[3][start:stop], floats[a][first:last], masks[mask_number][first:last])


@_compiled
def _plain_store(op, columns, start, stop, words, masks, a, first, last):
    if op == Op.ST4:
        _copy(columns[2][start:stop], words[a][first:last])
    elif op == Op.ST2:
        _copy(columns[1][start:stop], words[a][first:last])
    elif op == Op.ST1:
        _copy(columns[0][start:stop], words[a][first:last])
    else:
        _copy(columns[0][start:stop], masks[a][first:last])


@_compiled
def _store(out, x, mask):
    for i in range(len(out)):
        value, present = x[i], out[i]
        out[i] = value if mask[i] else present


@_compiled
def _store_k(out, k, mask):
    for i in range(len(out)):
        present = out[i]
        out[i] = k if mask[i] else present


@_compiled
def _increment(out, mask):
    for i in range(len(out)):
        out[i] += mask[i]


@_compiled
def _combine(op, out, x, mask):
    if op == Op.FADD4_W:
        for i in range(len(out)):
            present = out[i]
            out[i] = x[i] + present if mask[i] else present
    elif op == Op.FMIN4_W:
        for i in range(len(out)):
            present = out[i]
            out[i] = x[i] if mask[i] and x[i] < present else present
    else:
        for i in range(len(out)):
            present = out[i]
            out[i] = x[i] if mask[i] and x[i] > present else present


# What a run tells


@_compiled
def _count(mask, n, counts, number):
    total = int64(0)
    for i in range(n):
        total += int64(mask[i])
    counts[number] += total


@_compiled
def _emit(mask, cells, found, lengths, number):
    length = lengths[number]
    # Most cells have nothing to list: eight rows are looked at together.
    eights = mask.view(np.uint64)
    for cell in range(len(cells)):
        first = cell * (CELL_ROWS // 8)
        if eights[first] | eights[first + 1] | eights[first + 2] | eights[first + 3]:
            for i in range(CELL_ROWS):
                if mask[cell * CELL_ROWS + i]:
                    found[length] = cells[cell] * CELL_ROWS + i
                    length += 1
    lengths[number] = length


@_compiled
def _take(values, mask, cell_count, found, lengths, number):
    length = lengths[number]
    eights = mask.view(np.uint64)
    for cell in range(cell_count):
        first = cell * (CELL_ROWS // 8)
        if eights[first] | eights[first + 1] | eights[first + 2] | eights[first + 3]:
            for i in range(cell * CELL_ROWS, (cell + 1) * CELL_ROWS):
                if mask[i]:
                    found[length] = values[i]
                    length += 1
    lengths[number] = length


@_compiled
def _histogram(values, mask, n, counts, number):
    last = int64(HISTOGRAM_BUCKETS - 1)
    for i in range(n):
        bucket = int64(values[i] >> uint32(HISTOGRAM_SHIFT)) - int64(HISTOGRAM_FIRST)
        counts[number + min(max(bucket, int64(0)), last)] += int64(mask[i])
