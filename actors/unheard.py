"""Counts what devices tried to publish and nobody heard: what the broker's access list forbids.

mosquitto drops such a message without a line in its log, but it says on `$SYS` how many it has received in all. The
bridge hears every message that passes the access list, its own and the events session's included, and all of it in one
order: when a value of the broker's count arrives, everything that was received before the broker wrote it has been
heard. What is missing then was refused.

Exact are messages at QoS 0 and 1 that are not to be retained. mosquitto 2.0 leaves those to be retained, and those at
QoS 2, out of its count of messages but not out of that of bytes; where they are forbidden, only their payload shows.

Too little is counted for a while when messages at QoS 0 overtake in a full queue, and for good by one for each message
that is heard and was not received as one: a will, and a permitted message at QoS 2. Not counted is what happens while
the bridge is away, until it has caught up. Counted although permitted: topics of a thing's own that are no requests
(`.../shadow/any`), malformed or oversized messages, what the broker dropped because the bridge's queue was full (which
its log tells), and payloads at QoS 2 that wait for their sender to release them.
"""

from __future__ import annotations

import re
from typing import Final

from twins.topics import REQUEST_FILTERS

# How many messages the broker has received since its start, and how many bytes of payload.
MESSAGES_TOPIC: Final = "$SYS/broker/publish/messages/received"
BYTES_TOPIC: Final = "$SYS/broker/publish/bytes/received"
# What others than devices, operators' applications and the bridge publish: the events session, and claims.
OVERHEARD_FILTERS: Final = (
    "$aws/events/#",
    "$aws/certificates/#",
    "$aws/provisioning-templates/#",
    "twinfleet/events/marker",
)
_IS_REQUEST: Final = re.compile(
    "|".join(re.escape(each).replace(r"\+", "[^/]*").replace(r"/\#", "(?:/.*)?") for each in REQUEST_FILTERS),
    re.DOTALL,
).fullmatch


class UnheardPublishes:
    """How much more the broker has received than the bridge can account for, in messages or in bytes."""

    def __init__(self) -> None:
        # Never falls.
        self.count = 0
        # What was missing where counting began, less what was counted before.
        self._base: int | None = None

    def interrupt(self) -> None:
        """Begin anew with the next value: what happens until then is not counted."""
        self._base = None

    def received(self, total: int, *, accounted: int, is_late: bool) -> None:
        """Take a total that the broker has received, with what was heard or published by ourselves until now.

        `is_late`: the total may have waited behind messages, so that some that came after it are accounted for already.
        That counts too little for the time being; begun with, it would count too much for ever.
        """
        missing = total - accounted
        if self._base is not None:
            self.count = max(self.count, missing - self._base)
        elif not is_late:
            self._base = missing - self.count


def is_heard(topic: str) -> bool:
    """Tell whether the bridge hears what it publishes on a topic itself, as operators ask it to."""
    return _IS_REQUEST(topic) is not None
