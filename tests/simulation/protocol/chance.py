"""What goes wrong in one history, and how often: all drawn from its seed.

Each history has some kinds of fault and is spared the others (swarm testing): a history with everything at once seldom
gets anywhere.
"""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Final

# How often a thing happens each time that it could, where a history has it at all.
ODDS: Final = {
    # At a command to the store, whose history is dense in them: a batch takes one or two.
    "slow command": 0.15,
    "crash at a command": 0.03,
    "pause at a command": 0.04,
    "lost command": 0.04,
    "late command": 0.04,
    "lost reply": 0.04,
    # At a snapshot; once in a history.
    "snapshot damaged": 0.3,
    # On the way between bridge and shards.
    "lost call": 0.08,
    "lost answer": 0.08,
    "repeated call": 0.08,
    "slow call": 0.1,
    "slow route": 0.7,
    # A second; these are drawn beforehand, for all of the history.
    "host killed": 0.1,
    "shard moved elsewhere": 0.25,
    "host declared dead": 0.15,
    "bridge killed": 0.12,
    "connection cut": 0.25,
    "broker killed": 0.12,
    "broker and bridge killed": 0.12,
    "store down": 0.08,
    "store full": 0.08,
}


class Chance:
    """The luck of one history."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.counts: Counter[str] = Counter()
        self.is_healed = False
        draw = self.random.random
        # Some histories have none, few have most.
        share = draw() * 0.6
        # Where there is little else, what there is may come thick.
        strength = self.random.choice((0.5, 1.0, 1.0, 3.0))
        self.odds = {name: odds * strength for name, odds in ODDS.items() if draw() < share}

    def happens(self, name: str) -> bool:
        """Tell whether a thing happens this time, and count it."""
        odds = self.odds.get(name)
        if odds is None or self.random.random() >= odds:
            return False
        self.counts[name] += 1
        return True

    def between(self, low: float, high: float) -> float:
        """Return a number from a range."""
        return low + (high - low) * self.random.random()

    def count(self, name: str, number: int = 1) -> None:
        """Count something that should happen sometimes."""
        if number:
            self.counts[name] += number

    def heal(self) -> None:
        """Let nothing go wrong from now on."""
        self.odds = {}
        self.is_healed = True
