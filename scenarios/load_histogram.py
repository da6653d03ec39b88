"""Histograms of durations that any number of processes may fill and add up: percentiles of the whole, never averages.

Buckets are those of HdrHistogram: a power of two each is cut into 32 of one width, so a value is known to 1/32 (3 %),
from a microsecond to days.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

# Bits of a value that its bucket keeps: 2**5 buckets to each doubling.
_KEPT_BITS: Final = 5
_FIRST: Final = 1 << _KEPT_BITS


class Histogram:
    """How many durations fell into each bucket; methods work in place. Durations are in seconds, and at least 0."""

    def __init__(self, counts: Mapping[int, int] | None = None) -> None:
        """Begin with the counts of another, by bucket, or with none."""
        self.counts: dict[int, int] = dict(counts or {})

    def add(self, duration_s: float, count: int = 1) -> None:
        """Take in a duration, `count` times; what is below 0 counts as 0."""
        bucket = bucket_of(max(0, int(duration_s * 1e6)))
        self.counts[bucket] = self.counts.get(bucket, 0) + count

    def merge(self, counts: Mapping[int, int]) -> None:
        """Add the counts of another one."""
        for bucket, count in counts.items():
            self.counts[bucket] = self.counts.get(bucket, 0) + count

    def take(self) -> dict[int, int]:
        """Return the counts, and begin anew."""
        counts, self.counts = self.counts, {}
        return counts

    @property
    def count(self) -> int:
        """Return how many durations there are."""
        return sum(self.counts.values())

    def quantile_s(self, share: float) -> float:
        """Return the least duration that this share of all does not exceed, to 3 % above; NaN if there are none."""
        rank, seen = max(1, math.ceil(share * self.count)), 0
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            if seen >= rank:
                return bucket_end(bucket) / 1e6
        return math.nan

    def mean_s(self) -> float:
        """Return the mean of the middles of the buckets; NaN if there are none."""
        if not self.counts:
            return math.nan
        total = sum(
            (bucket_end(bucket - 1) + bucket_end(bucket)) / 2 * count for bucket, count in self.counts.items()
        )
        return total / self.count / 1e6

    def bounds_s(self) -> tuple[float, float]:
        """Return the lower end of the least bucket in use and the upper end of the greatest; NaN if there are none."""
        if not self.counts:
            return math.nan, math.nan
        return bucket_end(min(self.counts) - 1) / 1e6, bucket_end(max(self.counts)) / 1e6


def bucket_of(value: int) -> int:
    """Return the bucket of a value: small ones have one each, then 32 to each doubling."""
    shift = max(0, value.bit_length() - _KEPT_BITS - 1)
    return (shift << _KEPT_BITS) + (value >> shift)


def bucket_end(bucket: int) -> int:
    """Return the first value above a bucket's own; 0 of the bucket before the first."""
    following = bucket + 1
    shift = max(0, (following >> _KEPT_BITS) - 1)
    return (following - (shift << _KEPT_BITS)) << shift
