"""The places of devices' messages in their broker's order, as far as a shard must know them.

A broker that was killed may deliver a message again that was carried out, and have forgotten others that came after it
and were carried out, too. Who takes messages from the broker gives each its place there, the same whenever it comes
again, and says of which that is to be feared. The shard knows the place of what it carried out last, of each shadow and
of each stream: what stands before that comes too late.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from twins.messages import Operation, Places, Request

# How far back a message may stand that is delivered again: what a broker takes in within the two seconds that it may
# forget, at 20,000 messages a second.
PLACES_REMEMBERED: Final = 40_000
# Operations that change what a device's later message might have changed before; others may be carried out at any time.
_KINDS: Final = {
    Operation.SHADOW_UPDATE: "shadow",
    Operation.SHADOW_DELETE: "shadow",
    Operation.TELEMETRY: "telemetry",
    Operation.DEFENDER: "defender",
}
# By the operation's number: a look-up by the operation itself would have its hash computed in Python each time.
_KIND: Final = tuple(_KINDS.get(number) for number in range(max(Operation) + 1))  # type: ignore[call-overload]  # equal
# Kind, thing, and name of the shadow or stream.
Subject = tuple[str, str, str]


class LastPlaces(msgspec.Struct):
    """The last place of each subject, those that were named last at the end; all from one memory of places.

    Those that are too old to matter are forgotten, so there are at most PLACES_REMEMBERED.
    """

    memory: int = 0
    of_subject: dict[Subject, int] = {}

    def late(self, requests: Sequence[Request], places: Places) -> set[int]:
        """Note the places of requests that are about to be carried out; return the positions of those that are late."""
        if places.memory != self.memory:
            self.memory, self.of_subject = places.memory, {}
        late: set[int] = set()
        known = self.of_subject
        doubtful = set(places.doubtful)
        place = 0
        for position, (request, place) in enumerate(zip(requests, places.places, strict=True)):
            kind = _KIND[request.operation]
            if kind is None or not place:
                continue
            subject = (kind, request.thing_name, request.name)
            last = known.pop(subject, 0)
            known[subject] = max(last, place)
            if place < last and position in doubtful:
                late.add(position)
        self._forget(place)
        return late

    def _forget(self, newest: int) -> None:
        known = self.of_subject
        while known:
            oldest = next(iter(known))
            if known[oldest] > newest - PLACES_REMEMBERED:
                return
            del known[oldest]
