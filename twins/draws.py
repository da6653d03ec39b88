"""Counter-based random numbers: a draw is a function of (seed, stream, tick, device) and of nothing else.

No order of evaluation, no number of shards and no restart can change a draw. The hash is a keyed form of the
two-round multiply-xorshift permutation known as lowbias32 (Chris Wellons, "Prospecting for Hash Functions", public
domain); keys come from splitmix64 (Steele, Lea, Flood 2014). Not for cryptography.
"""

from __future__ import annotations

import zlib
from typing import Final

import numpy as np
from numpy.typing import NDArray

_MASK64: Final = (1 << 64) - 1
# Multiplier that spreads consecutive device indices over 32 bits (2**32 / golden ratio, odd).
INDEX_MULTIPLIER: Final = 0x9E3779B1
_ROUND_1: Final = np.uint32(0x21F0AAAD)
_ROUND_2: Final = np.uint32(0xD35A2D97)
_SHIFT_16: Final = np.uint32(16)
_SHIFT_15: Final = np.uint32(15)


def _splitmix64(state: int) -> int:
    state = (state + 0x9E3779B97F4A7C15) & _MASK64
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK64
    return state ^ (state >> 31)


def draw_key(seed: int, stream: str, tick: int) -> tuple[np.uint32, np.uint32]:
    """Return the two 32-bit keys under which all devices draw from `stream` at `tick`."""
    first, second = key_at(stream_state(seed, stream), tick)
    return np.uint32(first), np.uint32(second)


def stream_state(seed: int, stream: str) -> int:
    """Return what the keys of a stream are made of at each tick, by `key_at`."""
    return _splitmix64((seed & _MASK64) ^ (zlib.crc32(stream.encode()) << 32))


def key_at(state: int, tick: int) -> tuple[int, int]:
    """Return the two 32-bit keys of a stream at a tick, as `draw_key` does."""
    state = _splitmix64(state ^ (tick & _MASK64))
    return state & 0xFFFFFFFF, state >> 32


def spread_indices(indices: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Return the devices' indices multiplied out over 32 bits: the per-device input of `fill_draws`."""
    return indices.astype(np.uint32) * np.uint32(INDEX_MULTIPLIER)


def fill_draws(
    spread: NDArray[np.uint32],
    key: tuple[np.uint32, np.uint32],
    *,
    out: NDArray[np.uint32],
    scratch: NDArray[np.uint32],
) -> None:
    """Fill `out`, in place, with one uniform 32-bit draw a device.

    `spread` comes from `spread_indices`; `out` and `scratch` have its shape and must not overlap it.
    """
    np.add(spread, key[0], out=out)
    np.right_shift(out, _SHIFT_16, out=scratch)
    np.bitwise_xor(out, scratch, out=out)
    np.multiply(out, _ROUND_1, out=out)
    np.bitwise_xor(out, key[1], out=out)
    np.right_shift(out, _SHIFT_15, out=scratch)
    np.bitwise_xor(out, scratch, out=out)
    np.multiply(out, _ROUND_2, out=out)
    np.right_shift(out, _SHIFT_16, out=scratch)
    np.bitwise_xor(out, scratch, out=out)


def draws(seed: int, stream: str, tick: int, *, indices: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Return one uniform 32-bit draw for each device of `indices` (any shape)."""
    out = np.empty(indices.shape, np.uint32)
    fill_draws(spread_indices(indices), draw_key(seed, stream, tick), out=out, scratch=np.empty_like(out))
    return out
