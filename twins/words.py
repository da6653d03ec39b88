"""What people write in files, and what they are told of it: durations, the nearest valid word, enumerations."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from typing import Final

# As a pattern that JSON Schema understands, too.
DURATION_PATTERN: Final = r"^[0-9][0-9_]*(\.[0-9]+)?(ms|s|m|h|d)$"
_DURATION: Final = re.compile(DURATION_PATTERN.removesuffix("$") + r"\Z", re.ASCII)
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def duration_s(text: str) -> float | None:
    """Return the seconds of a duration written like 10s, 2m, 1h, 7d or 250ms; None where it is none."""
    found = _DURATION.match(text)
    if found is None:
        return None
    number = text.removesuffix(found[2])
    return float(number.replace("_", "")) * _SECONDS[found[2]]


def one_of(words: Collection[str]) -> str:
    """Return the words as an enumeration with `or`."""
    *firsts, last = words
    return f"{', '.join(firsts)} or {last}" if firsts else last


def nearest(word: str, words: Collection[str]) -> str:
    """Return `; did you mean 'x'?` for the nearest of `words`, or nothing where none is near."""
    # 0.5 still finds transposed and missing letters, also in words of four letters.
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
