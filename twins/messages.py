"""What goes into a shard and what comes out, and how both travel: requests, batches, outcomes, tick orders.

Everything here is a frozen structure that encodes to MessagePack; payloads stay the bytes that the device sent. What
holds only texts and bytes is kept out of the garbage collector's sight, which would else go through all of it often.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from itertools import zip_longest
from typing import Any, Final

import msgspec

from twins.faults import Fault
from twins.link import Network
from twins.model import Attribute, DeviceModel, Group
from twins.model_rules import check_model
from twins.shipped import model_named


class Operation(IntEnum):
    """What a request asks of one thing's twin."""

    SHADOW_GET = 1
    SHADOW_UPDATE = 2
    SHADOW_DELETE = 3
    TELEMETRY = 4
    TELEMETRY_GET = 5
    SHADOW_LIST = 6
    REGISTER = 7
    UNREGISTER = 8
    CONNECTIVITY = 9
    DESCRIBE = 10
    DEFENDER = 11
    ANNOUNCE_DELTA = 12
    GIVE_BACK = 13
    PIN = 14
    UNPIN = 15
    PIN_STATE = 16
    PIN_REPORT = 17
    # Of devices: `name` is what stands behind `jobs/` in the topic, or the execution's id.
    JOB_READ = 18
    JOB_CHANGE = 19
    COMMAND_ANSWER = 20
    # Of the platform; see `assignments`.
    ASSIGN = 21
    ASSIGNED = 22


SHADOW_OPERATION: Final = {
    "get": Operation.SHADOW_GET,
    "update": Operation.SHADOW_UPDATE,
    "delete": Operation.SHADOW_DELETE,
}
# Operations that leave no trace in a shard: they need no journal.
READ_ONLY: Final = frozenset(
    {
        Operation.SHADOW_GET,
        Operation.TELEMETRY_GET,
        Operation.SHADOW_LIST,
        Operation.DESCRIBE,
        Operation.ANNOUNCE_DELTA,
        Operation.PIN_STATE,
        Operation.JOB_READ,
        Operation.ASSIGNED,
    }
)


class Request(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One request for one thing.

    `name` is the shadow's name (empty: the classic shadow) or the telemetry stream. `is_direct`: the answer goes to
    the caller as a `Reply`, not to the thing's reply topics; what the request changes is announced there all the same.
    """

    operation: Operation
    thing_name: str
    payload: bytes = b""
    name: str = ""
    is_direct: bool = False


class Places(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where the requests of a batch stand in their broker's order, one place for each (0: none, it never comes again).

    A place is the same when a request is delivered again, and later ones have higher places, as long as `memory` is the
    same. `doubtful` are positions of requests that come again from a broker that may have forgotten what followed them.
    """

    memory: int
    places: list[int]
    doubtful: list[int] = []


class Batch(msgspec.Struct, frozen=True, array_like=True):
    """Requests for one shard in their order; `sequence` counts per `source` and names the batch when it is resent.

    A source is `<name>/<start>`, where `start` rises each time that who bears the name starts anew; or has no start.
    """

    source: str
    sequence: int
    requests: list[Request]
    places: Places | None = None


def is_succeeded(source: str, known: dict[str, Any]) -> bool:
    """Tell whether a later start of who bears the name of a source is among the known ones, the last heard last."""
    if source == next(reversed(known), source):
        # Nobody was heard after it: as nearly always.
        return False
    name, start = _start_of(source)
    return any(
        known_name == name and known_start > start for known_name, known_start in map(_start_of, known)
    )


def _start_of(source: str) -> tuple[str, int]:
    name, _, start = source.rpartition("/")
    return (name, int(start)) if start.isdecimal() else (source, 0)


class Delivery(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How a message is to be published: at QoS 0 or 1, retained or not, with MQTT 5 properties as they are encoded."""

    qos: int = 1
    is_retained: bool = False
    properties: bytes = b""


class Publish(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A message for the broker; without a `delivery` at QoS 1, not retained, without properties."""

    topic: str
    payload: bytes
    delivery: Delivery | None = None


class Reply(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The answer to a direct request: an HTTP-like status and the body as on the wire."""

    status: int
    payload: bytes


class Outcome(msgspec.Struct, frozen=True, array_like=True):
    """What a batch brought about: messages in their order, and one reply for each direct request in its order."""

    publishes: list[Publish]
    replies: list[Reply]


class Registration(msgspec.Struct, frozen=True):
    """The payload of `Operation.REGISTER`: what the registry knows that the twin needs."""

    model: str
    attributes: dict[str, str] = {}


class Connectivity(msgspec.Struct, frozen=True, gc=False):
    """Whether a real thing is connected, and since when (`timestamp`, POSIX ms); the payload of CONNECTIVITY.

    `disconnect_reason` is the wire's word, '' while connected. `session` names the connection, `version` counts the
    connections of the thing: what an older one has to say comes too late.
    """

    connected: bool
    timestamp: int
    disconnect_reason: str = ""
    session: str = ""
    version: int = 0

    def follows(self, present: Connectivity | None) -> bool:
        """Tell whether this is news to who knows `present`: of a later session, or the end of the same one."""
        if present is None:
            return True
        return (self.version, not self.connected) > (present.version, not present.connected)


class Listening(msgspec.Struct, frozen=True):
    """The payload of `Operation.ANNOUNCE_DELTA`: which filters a thing has subscribed to, and since when (POSIX s)."""

    topic_filters: list[str]
    since_s: float


class TickOrder(msgspec.Struct, frozen=True, array_like=True):
    """Run ticks `first_tick` to `first_tick + tick_count - 1` of a simulated group.

    `desired` are values that an operator wishes for every device of the group, applied before the first of the ticks:
    numbers as `model.Field.as_number` gives them.
    `faults` are those that may be felt in these ticks, also such as are over: devices may still be coming back.
    """

    group: str
    first_tick: int
    tick_count: int
    desired: dict[str, float] = {}
    faults: list[Fault] = []


class TickSummary(msgspec.Struct, frozen=True, array_like=True):
    """Counts of what happened in some ticks; summaries of different shards or ticks add up.

    `device_ticks` devices lived through a tick each; `reports_due` of them had a report to send; the link delivered
    `reports_arrived`, `reports_offline` were not sent because the device was offline. `connected_count` and
    `delta_count` (twins whose desired and reported state differ) describe the end of the last tick.

    Of reports that did not simply arrive, `reports_lost` never will, `reports_refused` arrived damaged,
    `reports_silent` were not sent because the device hangs or is not there by plan, `reports_dropped` were kept by a
    device and had to make room; `reports_in_flight` and `reports_buffered` describe the end of the last tick. From a
    group's first tick on
    due = arrived + offline + lost + refused + silent + dropped + in flight + buffered.

    Of those that arrived, `reports_delayed` did so in a later tick than they were meant for, `reports_reordered` after
    a newer one, and `reports_misdated` bore a wrong time. `reports_duplicated` came once more, `reports_resent`
    were sent once more, and `connect_attempts` were made to get a connection in storms. `latency` counts reports that
    arrived by how long they took from the moment they were meant for, in the buckets of
    `program.HISTOGRAM_BUCKETS` (milliseconds); it is empty where no network is declared.
    """

    device_ticks: int = 0
    reports_due: int = 0
    reports_arrived: int = 0
    reports_offline: int = 0
    connected_count: int = 0
    delta_count: int = 0
    reports_lost: int = 0
    reports_refused: int = 0
    reports_silent: int = 0
    reports_dropped: int = 0
    reports_in_flight: int = 0
    reports_buffered: int = 0
    reports_delayed: int = 0
    reports_reordered: int = 0
    reports_misdated: int = 0
    reports_duplicated: int = 0
    reports_resent: int = 0
    connect_attempts: int = 0
    latency: list[int] = []

    def __add__(self, other: TickSummary) -> TickSummary:
        mine, theirs = msgspec.structs.astuple(self), msgspec.structs.astuple(other)
        sums: list[Any] = [a + b for a, b in zip(mine[:-1], theirs[:-1], strict=True)]
        sums.append([a + b for a, b in zip_longest(self.latency, other.latency, fillvalue=0)])
        return TickSummary(*sums)

    def then(self, later: TickSummary) -> TickSummary:
        """Return the summary of these ticks followed by `later` ones of the same devices."""
        present = {name: getattr(later, name) for name in _GAUGES}
        return msgspec.structs.replace(self + later, **present)

    @property
    def reports_accounted(self) -> int:
        """Return how many reports are known to have arrived, or why they have not."""
        return (
            self.reports_arrived
            + self.reports_offline
            + self.reports_lost
            + self.reports_refused
            + self.reports_silent
            + self.reports_dropped
            + self.reports_in_flight
            + self.reports_buffered
        )


class GroupOrder(msgspec.Struct, frozen=True):
    """Create a simulated group (its fields as in `model.Group`).

    The model travels as its definition, so that a journal that is read again makes the same devices, whatever has
    become of the model's file or of this program meanwhile. Orders of earlier versions have a name there.
    """

    name: str
    model: str | DeviceModel = ""
    thing_name: str = ""
    count: int = 0
    seed: int = 0
    start_s: int = 0
    tick_s: int = 1
    report_every_ticks: int = 10
    attributes: list[tuple[str, tuple[str, ...], tuple[float, ...]]] = []
    network: Network | None = None

    @property
    def model_name(self) -> str:
        """Return what the model is called."""
        return self.model if isinstance(self.model, str) else self.model.name

    @classmethod
    def of(cls, group: Group) -> GroupOrder:
        """Return the order that creates `group`."""
        return cls(
            group.name,
            group.model,
            group.thing_name,
            group.count,
            group.seed,
            group.start_s,
            group.tick_s,
            group.report_every_ticks,
            [(attribute.name, attribute.values, attribute.weights) for attribute in group.attributes],
            group.network,
        )

    def group(self) -> Group:
        """Return the group that this order describes; ModelError if it describes none, or its model is not sound."""
        model = model_named(self.model) if isinstance(self.model, str) else self.model
        check_model(model)
        attributes: Sequence[Attribute] = tuple(Attribute(*parts) for parts in self.attributes)
        return Group(
            self.name,
            model,
            self.thing_name,
            self.count,
            self.seed,
            self.start_s,
            self.tick_s,
            self.report_every_ticks,
            attributes,
            self.network,
        )


def encode(message: msgspec.Struct | Sequence[msgspec.Struct]) -> bytes:
    """Return a message, or a list of messages, as MessagePack."""
    return _ENCODER.encode(message)


# What a summary says of the end of its ticks.
_GAUGES: Final = ("connected_count", "delta_count", "reports_in_flight", "reports_buffered")
_ENCODER: Final = msgspec.msgpack.Encoder()
decode_outcome: Final = msgspec.msgpack.Decoder(Outcome).decode
