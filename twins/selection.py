"""Which devices a fault hits: drawn from (seed, name of the fault, device) alone, in a program or for some rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from twins.draws import draw_key, draws
from twins.faults import Fault, Select
from twins.model import Attribute, Group
from twins.program import Builder, Op, Register

# Devices looked at together while an exact number of them is chosen.
_CHUNK: Final = 1 << 16
_WORDS: Final = 1 << 32


def attribute_bounds(attribute: Attribute) -> NDArray[np.float32]:
    """Return where in [0, 1) the stretch of each value ends, but for the last."""
    weights = attribute.weights or (1.0,) * len(attribute.values)
    total = math.fsum(weights)
    return np.array([math.fsum(weights[: i + 1]) / total for i in range(len(weights) - 1)], np.float32)


def drawn_attribute(group: Group, attribute: Attribute, indices: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """Return which value each device has of an attribute, as its position."""
    words = draws(group.seed, f"{group.name}/start/attribute/{attribute.name}", 0, indices=indices)
    share = (words >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)
    return np.searchsorted(attribute_bounds(attribute), share, side="right").astype(np.uint8)


def write_selection(b: Builder, group: Group, fault: Fault, rows: Register) -> Register:
    """Write which of the rows a fault hits."""
    select, mask = fault.select, rows
    for name, positions in _wanted(group, select).items():
        value = b.emit(Op.LD1, f"attribute.{name}")
        same = b.emit(Op.MFILL, 0)
        for position in positions:
            same = b.emit(Op.MOR, same, b.emit(Op.IEQ_K, value, position))
        mask = b.emit(Op.MAND, mask, same)
    first, last = _range(group, select)
    if (first, last) != (0, group.count - 1):
        place = b.emit(Op.ISUB_K, b.emit(Op.NUMBERS), first)
        mask = b.emit(Op.MAND, mask, b.emit(Op.ILT_K, place, max(last - first + 1, 0)))
    bound = threshold(group, fault)
    if bound < _WORDS:
        key = draw_key(group.seed, _stream(group, fault), 0)
        drawn = b.draw(lambda _: (int(key[0]), int(key[1])))
        mask = b.emit(Op.MAND, mask, b.emit(Op.ILT_K, drawn, bound))
    return mask


def selected(
    group: Group, fault: Fault, indices: NDArray[np.uint32], attributes: Mapping[str, NDArray[Any]]
) -> NDArray[np.bool_]:
    """Return which of some devices a fault hits; `attributes` are their values' positions."""
    first, last = _range(group, fault.select)
    mask = (indices >= first) & (indices <= last)
    for name, positions in _wanted(group, fault.select).items():
        mask &= np.isin(attributes[name], positions)
    bound = threshold(group, fault)
    if bound < _WORDS:
        mask &= draws(group.seed, _stream(group, fault), 0, indices=indices) < np.uint32(bound)
    return mask


def threshold(group: Group, fault: Fault) -> int:
    """Return below which drawn word a device is hit, if the rest of the selection holds; 2**32: all are."""
    if fault.select.count:
        return _exact_threshold(group, fault)
    return round(fault.select.percent / 100 * _WORDS)


def selected_share(group: Group, fault: Fault) -> float:
    """Return about which share of the group a fault hits."""
    if fault.select.count:
        return min(fault.select.count / group.count, 1.0)
    share = fault.select.percent / 100
    for name, positions in _wanted(group, fault.select).items():
        attribute = next(each for each in group.attributes if each.name == name)
        weights = attribute.weights or (1.0,) * len(attribute.values)
        share *= math.fsum(weights[position] for position in positions) / math.fsum(weights)
    first, last = _range(group, fault.select)
    return share * max(last - first + 1, 0) / group.count


@lru_cache(maxsize=256)
def _exact_threshold(group: Group, fault: Fault) -> int:
    """Return the word below which exactly as many candidates draw as are wanted (all of them, if there are fewer).

    Every shard comes to the same: it goes through the candidates of the whole fleet, wherever they live. Draws under
    one key are a permutation of the devices' numbers, so no two are equal.
    """
    count = fault.select.count
    first, last = _range(group, fault.select)
    wanted = _wanted(group, fault.select)
    found = np.zeros(0, np.uint32)
    for start in range(first, last + 1, _CHUNK):
        indices = np.arange(start, min(start + _CHUNK, last + 1), dtype=np.int64).astype(np.uint32)
        for attribute in group.attributes:
            if attribute.name in wanted:
                values = drawn_attribute(group, attribute, indices)
                indices = indices[np.isin(values, wanted[attribute.name])]
        words = draws(group.seed, _stream(group, fault), 0, indices=indices)
        found = np.concatenate([found, words])
        if len(found) > count:
            found = np.partition(found, count)[: count + 1]
    return _WORDS if len(found) <= count else int(found.max())


def _stream(group: Group, fault: Fault) -> str:
    return f"{group.name}/fault/{fault.name}"


def _range(group: Group, select: Select) -> tuple[int, int]:
    last = group.count - 1
    return select.first, last if select.last < 0 else min(select.last, last)


def _wanted(group: Group, select: Select) -> dict[str, list[int]]:
    """Return the positions of the values that are wanted, by attribute."""
    values = {attribute.name: attribute.values for attribute in group.attributes}
    wanted: dict[str, list[int]] = {}
    for name, value in select.where:
        wanted.setdefault(name, []).append(values[name].index(value))
    return wanted
