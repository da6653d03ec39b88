"""One piece of memory for all columns of a fleet, so that a block program finds each of them by a number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from twins.errors import InvariantError

# A cache line: columns begin on one.
_ALIGNMENT: Final = 64


class Arena:
    """Columns of `rows` rows each in one buffer, all zero at first; memory is taken up as it is written to.

    `columns` are views by name. `bytes`, `halves` and `words` are the whole buffer as items of 1, 2 and 4 bytes.
    """

    def __init__(self, layout: Mapping[str, np.dtype[Any]], rows: int) -> None:
        places: dict[str, int] = {}
        size = 0
        for name, dtype in layout.items():
            places[name] = size
            size += -(-rows * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
        self.bytes: NDArray[np.uint8] = np.zeros(size, np.uint8)
        self.halves: NDArray[np.uint16] = self.bytes.view(np.uint16)
        self.words: NDArray[np.uint32] = self.bytes.view(np.uint32)
        self.columns: dict[str, NDArray[Any]] = {
            name: self.bytes[places[name] : places[name] + rows * dtype.itemsize].view(dtype)
            for name, dtype in layout.items()
        }
        self._places = places

    def place(self, name: str) -> int:
        """Return where a column begins, counted in its own items; InvariantError if there is no such column."""
        if name not in self._places:
            raise InvariantError(f"there is no column {name!r}; columns: {', '.join(self._places)}")
        return self._places[name] // self.columns[name].dtype.itemsize
