"""A shard: many twins behind one deterministic state machine. Requests, orders and a time go in, outcomes come out.

The shard does no I/O and reads no clock; the same inputs in the same order give the same state and the same bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

from twins.assignments import Assignments
from twins.columns import QueryColumn, select_tables
from twins.defender import Report, answer_report
from twins.description import describe_connectivity, describe_pin, describe_shadow, describe_simulated
from twins.errors import InvalidRequest, InvariantError, ModelError, Overtaken, RequestError, TwinNotFound
from twins.messages import (
    READ_ONLY,
    Batch,
    Connectivity,
    Operation,
    Outcome,
    Publish,
    Reply,
    Request,
    TickOrder,
    TickSummary,
    is_succeeded,
)
from twins.model import UNTYPED, Group
from twins.packed import PackedMapping, pack_shadows, unpack_shadows
from twins.payloads import (
    decode_connectivity,
    decode_listening,
    decode_pin,
    decode_pin_report,
    decode_registration,
    decoded,
    refusal_topic,
    rejection,
    require_caller,
    shadow_topic,
)
from twins.places import LastPlaces
from twins.shadow import (
    Announcement,
    ShadowDocument,
    check_simple_request,
    decode_payload,
    encode_json,
    parse_update,
    require_shadow,
)
from twins.shipped import MODELS, model_named
from twins.simulated import SimulatedFleet
from twins.simulation import Simulation
from twins.table import NamedRows
from twins.topics import defender_topic, delta_topic, matches, shadow_prefix
from twins.window import WINDOW_S, ThingTelemetry

# Shadows of real things kept unpacked, so that a busy device is not taken apart and put together at every message.
_UNPACKED_MAX: Final = 4096
# Sources of batches whose last outcome is remembered: a bridge, its last incarnation, and some to spare.
_SOURCES_MAX: Final = 4
# The service names no limit; this one keeps a single device from filling the memory (some 20 MB).
_NAMED_SHADOW_COUNT_MAX: Final = 10_000
# Deltas that one subscription by wildcard brings again; a device with more shadows gets the others by asking for them.
_ANNOUNCED_MAX: Final = 25
# Shadows whose last delta is remembered as published: those of the last second or so, which is what it takes to hear
# of a subscription.
_RECENT_DELTAS_MAX: Final = 4096
# Names of unregistered things that are remembered, a few megabytes: whatever a device sent before it was cut off is
# heard long before so many others of its shard have gone.
_UNREGISTERED_MAX: Final = 10_000


class Shard:
    """The twins of one shard; `number` of `count` shards. All methods work in place."""

    def __init__(self, number: int, count: int) -> None:
        self.number = number
        self.count = count
        self._simulation = Simulation(number, count)
        self.ticking = self._simulation.ticking
        self.fleets = self._simulation.fleets
        self.handover = self._simulation.handover
        self.tables: dict[str, NamedRows] = {}
        self.model_of: dict[str, str] = {}
        self.named_shadows: PackedMapping[str, dict[str, ShadowDocument]] = PackedMapping(
            pack_shadows, unpack_shadows
        )
        self.telemetry: PackedMapping[str, ThingTelemetry] = PackedMapping(
            ThingTelemetry.pack, ThingTelemetry.unpack
        )
        # Of registered things: whether they are connected, and what they last reported of themselves.
        self.connectivity: dict[str, Connectivity] = {}
        self.reports: dict[str, Report] = {}
        # Things that were unregistered and not registered again since, as keys, the last ones last.
        self.unregistered: dict[str, None] = {}
        self.assignments = Assignments()
        self.refused_telemetry_count = 0
        self.last_outcomes: dict[str, tuple[int, Outcome]] = {}
        self.last_places = LastPlaces()
        # What ticks have brought about that devices should hear of; whoever orders the ticks takes it out.
        self.announcements: list[Publish] = []
        self._unpacked: dict[str, ShadowDocument] = {}
        # Things whose unpacked shadow has changed since it was written into its row.
        self._unwritten: set[str] = set()
        # When the latest deltas were published, by thing and shadow; not a part of what a shard remembers for good.
        self._delta_at_s: dict[tuple[str, str], float] = {}
        self._now_s = 0.0

    # Requests

    def apply(self, batch: Batch, now_s: float) -> Outcome:
        """Apply a batch and return what it brings about; a batch that was the source's last is answered from memory.

        A source without a name takes no part in that.
        """
        known = self.last_outcomes.get(batch.source)
        if known is not None and batch.sequence <= known[0]:
            return known[1] if batch.sequence == known[0] else Outcome([], [])
        if self.ticking.is_busy and any(each.operation not in READ_ONLY for each in batch.requests):
            self.ticking.finish()
        outcome = Outcome([], [])
        whole_s = int(now_s)
        self._now_s = now_s
        late = self.last_places.late(batch.requests, batch.places) if batch.places is not None else ()
        for position, request in enumerate(batch.requests):
            self._serve(request, whole_s, outcome, is_late=position in late)
        if batch.source:
            self.last_outcomes.pop(batch.source, None)
            self.last_outcomes[batch.source] = (batch.sequence, outcome)
            if len(self.last_outcomes) > _SOURCES_MAX:
                del self.last_outcomes[next(iter(self.last_outcomes))]
        return outcome

    def has_successor(self, source: str) -> bool:
        """Tell whether who bears the name of a source has started again since, and been heard.

        Batches of the earlier start come too late then: what they hold was delivered again to the later one, and may
        have been followed by more.
        """
        return is_succeeded(source, self.last_outcomes)

    def _serve(self, request: Request, now_s: int, outcome: Outcome, *, is_late: bool) -> None:
        """Serve one request: the one place where request errors are caught."""
        try:
            if is_late:
                raise Overtaken
            if request.thing_name in self.unregistered:
                require_caller(request)
            body = _HANDLERS[request.operation](self, request, now_s, outcome)
        except RequestError as error:
            if request.operation is Operation.TELEMETRY:
                self.refused_telemetry_count += 1
            body = rejection(error, request, now_s)
            if request.is_direct:
                outcome.replies.append(Reply(error.code, body))
            elif topic := refusal_topic(request):
                outcome.publishes.append(Publish(topic, body))
            return
        if request.is_direct:
            outcome.replies.append(Reply(200, body))

    def _update(self, request: Request, now_s: int, outcome: Outcome) -> bytes:
        update = parse_update(request.payload)
        document = self._document(request.thing_name, request.name)
        if document is None:
            if request.name:
                self._make_room_for_shadow(request.thing_name, now_s)
            document = ShadowDocument()
            announcement = document.update(update, now_s)
            self._adopt(request, document)
        else:
            announcement = document.update(update, now_s)
        if not request.name:
            self._store(request.thing_name, document, update.state)
        self._announce(request, announcement, outcome)
        return announcement.accepted

    def _announce(self, request: Request, announcement: Announcement, outcome: Outcome) -> None:
        topic = f"{shadow_prefix(request.thing_name, request.name)}/update"
        outcome.publishes.append(Publish(f"{topic}/accepted", announcement.accepted))
        if announcement.delta is not None:
            self._publish_delta(request.thing_name, request.name, announcement.delta, outcome)
        outcome.publishes.append(Publish(f"{topic}/documents", announcement.documents))

    def _publish_delta(self, thing_name: str, shadow_name: str, delta: bytes, outcome: Outcome) -> None:
        outcome.publishes.append(Publish(delta_topic(thing_name, shadow_name), delta))
        recent = self._delta_at_s
        recent.pop((thing_name, shadow_name), None)
        recent[thing_name, shadow_name] = self._now_s
        if len(recent) > _RECENT_DELTAS_MAX:
            del recent[next(iter(recent))]

    def _announce_delta(self, request: Request, now_s: int, outcome: Outcome) -> bytes:
        """Publish again, as they are now, the deltas that a device has begun to listen to after they were published."""
        listening = decoded(decode_listening, request.payload)
        thing_name, first = request.thing_name, len(outcome.publishes)
        for name in ("", *self.named_shadows.get(thing_name, ())):
            topic = delta_topic(thing_name, name)
            if self._delta_at_s.get((thing_name, name), 0.0) >= listening.since_s:
                continue
            if not any(matches(each, topic) for each in listening.topic_filters):
                continue
            document = self._document(thing_name, name)
            delta = document.delta(now_s) if document is not None else None
            if delta is not None:
                self._publish_delta(thing_name, name, delta, outcome)
            if len(outcome.publishes) - first == _ANNOUNCED_MAX:
                break
        return b"{}"

    def _get(self, request: Request, now_s: int, outcome: Outcome) -> bytes:
        token = check_simple_request(request.payload)
        document = require_shadow(
            self._document(request.thing_name, request.name), request.thing_name, request.name
        )
        return self._accept(request, document.document(now_s), token, outcome)

    def _delete(self, request: Request, now_s: int, outcome: Outcome) -> bytes:
        token = check_simple_request(request.payload)
        document = require_shadow(
            self._document(request.thing_name, request.name), request.thing_name, request.name
        )
        body = document.delete(now_s)
        if not request.name:
            self._store(request.thing_name, document, None)
        return self._accept(request, body, token, outcome)

    def _accept(self, request: Request, body: dict[str, Any], token: str | None, outcome: Outcome) -> bytes:
        if token is not None:
            body["clientToken"] = token
        encoded = encode_json(body)
        if not request.is_direct or request.operation is Operation.SHADOW_DELETE:
            outcome.publishes.append(Publish(f"{shadow_topic(request)}/accepted", encoded))
        return encoded

    def _list_shadows(self, request: Request, now_s: int, _: Outcome) -> bytes:
        shadows = self.named_shadows.get(request.thing_name, {})
        names = sorted(name for name, document in shadows.items() if document.exists)
        return encode_json({"results": names, "timestamp": now_s})

    def _take_telemetry(self, request: Request, now_s: int, _: Outcome) -> bytes:
        values = decode_payload(request.payload)
        telemetry = self.telemetry.get(request.thing_name) or ThingTelemetry()
        telemetry.add(request.name, values, now_s)
        self.telemetry[request.thing_name] = telemetry
        return b""

    def _get_telemetry(self, request: Request, now_s: int, _: Outcome) -> bytes:
        streams: dict[str, Any] = {}
        if (found := self._simulated(request.thing_name)) is not None:
            fleet, row = found
            streams.update(fleet.telemetry(row, fleet.time_s(max(fleet.next_tick - 1, 0))))
        telemetry = self.telemetry.get(request.thing_name)
        if telemetry is not None:
            streams.update(telemetry.describe(now_s))
        return encode_json({"window_s": WINDOW_S, "timestamp": now_s, "streams": streams})

    def _register(self, request: Request, now_s: int, _: Outcome) -> bytes:
        registration = decoded(decode_registration, request.payload)
        thing_name = request.thing_name
        present = self.model_of.get(thing_name)
        if present is None and self.handover.register(thing_name, registration):
            return b"{}"
        try:
            model = model_named(registration.model)
        except ModelError as error:
            raise InvalidRequest(str(error)) from None
        self.unregistered.pop(thing_name, None)
        if present is not None and present != model.name:
            self._write_row(thing_name)
            document = self.tables[present].load(self.tables[present].row_of[thing_name])
            self.tables[present].remove(thing_name)
            self.model_of[thing_name] = model.name
            self._table(thing_name).store(self._table(thing_name).add(thing_name), document, None)
        self.model_of[thing_name] = model.name
        table = self._table(thing_name)
        table.attributes[table.add(thing_name)] = dict(registration.attributes)
        return b"{}"

    def _unregister(self, request: Request, now_s: int, _: Outcome) -> bytes:
        self._unwritten.discard(request.thing_name)
        model = self.model_of.pop(request.thing_name, None)
        if model is not None:
            self.tables[model].remove(request.thing_name)
            self.unregistered[request.thing_name] = None
            if len(self.unregistered) > _UNREGISTERED_MAX:
                del self.unregistered[next(iter(self.unregistered))]
        # A simulated device goes on from here, with the shadows that the real one leaves.
        shadows = () if self.handover.unregister(request.thing_name) else (self._unpacked, self.named_shadows)
        if model is not None:
            self.handover.pins.pop(request.thing_name, None)
            self.assignments.unregister(request.thing_name, self._now_s)
        for kept in (*shadows, self.telemetry, self.connectivity, self.reports):
            kept.pop(request.thing_name, None)
        return b"{}"

    def _note_connectivity(self, request: Request, now_s: int, _: Outcome) -> bytes:
        """Note who came or went. The end of a session may be heard after its thing is gone: then there is no twin."""
        news = decoded(decode_connectivity, request.payload)
        thing_name = request.thing_name
        if self._is_registered(thing_name) and news.follows(self.connectivity.get(thing_name)):
            self.connectivity[thing_name] = news
            self.assignments.came_or_went(thing_name)
            if news.connected:
                self.handover.connect(thing_name)
        return b"{}"

    def _is_registered(self, thing_name: str) -> bool:
        return thing_name in self.model_of or thing_name in self.handover.takeovers

    def _take_report(self, request: Request, now_s: int, outcome: Outcome) -> bytes:
        thing_name = request.thing_name
        if not self._is_registered(thing_name):
            raise TwinNotFound.of(thing_name)
        last = self.reports.get(thing_name)
        answer = answer_report(thing_name, request.payload, style=request.name, last=last, now_s=self._now_s)
        if answer.report is not None:
            self.reports[thing_name] = answer.report
        topic = f"{defender_topic(thing_name, request.name)}/{answer.verdict}"
        outcome.publishes.append(Publish(topic, answer.body))
        return answer.body

    def _describe(self, request: Request, now_s: int, _: Outcome) -> bytes:
        thing_name = request.thing_name
        model = self._model(thing_name)
        found = self._simulated(thing_name)
        document: dict[str, Any] = {"thingName": thing_name, "timestamp": now_s}
        if found is not None:
            document |= describe_simulated(*found)
        if found is None or self.handover.is_real(thing_name):
            document |= {"origin": "real", "model": model, "attributes": self._attributes(thing_name)}
            document["connectivity"] = describe_connectivity(self.connectivity.get(thing_name))
        document["pin"] = describe_pin(self.handover.pins.get(thing_name))
        document["shadow"] = describe_shadow(self._document(thing_name, ""), now_s)
        named = self.named_shadows.get(thing_name, {})
        document["namedShadows"] = {
            name: describe_shadow(shadow, now_s) for name, shadow in sorted(named.items()) if shadow.exists
        }
        report = self.reports.get(thing_name)
        document["defender"] = None if report is None else report.describe()
        return encode_json(document)

    def _model(self, thing_name: str) -> str:
        """Return the model of a twin; TwinNotFound where there is none."""
        found = self._simulated(thing_name)
        if found is None and thing_name not in self.model_of:
            raise TwinNotFound.of(thing_name)
        return self.model_of[thing_name] if found is None else found[0].table.model.name

    def _attributes(self, thing_name: str) -> dict[str, str]:
        found = self._simulated(thing_name)
        if found is not None:
            own: dict[str, str] = describe_simulated(*found)["attributes"]
            return {**own, **self.handover.attributes(thing_name)}
        table = self._table(thing_name)
        return table.attributes.get(table.row_of[thing_name], {})

    def _serve_assignment(self, request: Request, now_s: int, outcome: Outcome) -> bytes:
        return self.assignments.serve(request, self._now_s, outcome)

    # Other hands

    def _give_back(self, request: Request, now_s: int, _: Outcome) -> bytes:
        if request.thing_name in self.model_of:
            raise InvalidRequest(f"{request.thing_name} has no simulated place to give back")
        self.handover.give_back(request.thing_name)
        return encode_json({"thingName": request.thing_name, "origin": "simulated"})

    def _pin(self, request: Request, now_s: int, _: Outcome) -> bytes:
        self._model(request.thing_name)
        order = decoded(decode_pin, request.payload or b"{}")
        self.handover.pin(request.thing_name, order)
        return encode_json({"thingName": request.thing_name, "behavior": order.behavior})

    def _unpin(self, request: Request, now_s: int, _: Outcome) -> bytes:
        self._model(request.thing_name)
        document = self._document(request.thing_name, "") or ShadowDocument()
        self.handover.unpin(request.thing_name, document.reported)
        return encode_json({"thingName": request.thing_name})

    def _pin_state(self, request: Request, now_s: int, _: Outcome) -> bytes:
        thing_name = request.thing_name
        self._model(thing_name)
        state = self.handover.state(
            thing_name,
            self._document(thing_name, ""),
            attributes=self._attributes(thing_name),
            now_s=self._now_s,
        )
        return encode_json(state)

    def _take_pin_report(self, request: Request, now_s: int, outcome: Outcome) -> bytes:
        """Take in what a behaviour has answered; a simulated device reports in the time of its fleet."""
        report = decoded(decode_pin_report, request.payload)
        pin = self.handover.check_report(request.thing_name, report)
        if report.state:
            found = self._simulated(request.thing_name)
            at_s = now_s if found is None else found[0].time_s(found[0].next_tick)
            update = encode_json({"state": report.state})
            self._update(Request(Operation.SHADOW_UPDATE, request.thing_name, update), at_s, outcome)
        self.handover.pins[request.thing_name] = pin
        return b"{}"

    # Where a shadow lives

    def _simulated(self, thing_name: str) -> tuple[SimulatedFleet, int] | None:
        """Return where a simulated device lives; None for a real thing, unless that has a simulated one's place."""
        return None if thing_name in self.model_of else self._simulation.find(thing_name)

    def _table(self, thing_name: str) -> NamedRows:
        model = self.model_of.setdefault(thing_name, UNTYPED.name)
        table = self.tables.get(model)
        if table is None:
            table = self.tables[model] = NamedRows(model_named(model))
        return table

    def _document(self, thing_name: str, shadow_name: str) -> ShadowDocument | None:
        if shadow_name:
            return self.named_shadows.get(thing_name, {}).get(shadow_name)
        document = self._unpacked.get(thing_name)
        if document is not None:
            return document
        # A real thing comes first, should a fleet be given its name later. One that has the place of a simulated one
        # is not in `model_of`.
        if thing_name not in self.model_of:
            found = self._simulated(thing_name)
            return None if found is None else found[0].table.load(found[1])
        table = self._table(thing_name)
        document = table.load(table.row_of[thing_name])
        self._unpack(thing_name, document)
        return document

    def _unpack(self, thing_name: str, document: ShadowDocument) -> None:
        if len(self._unpacked) >= _UNPACKED_MAX:
            oldest = next(iter(self._unpacked))
            self._write_row(oldest)
            del self._unpacked[oldest]
        self._unpacked[thing_name] = document

    def _write_row(self, thing_name: str) -> None:
        if thing_name in self._unwritten:
            table = self._table(thing_name)
            table.store(table.row_of[thing_name], self._unpacked[thing_name], None)
            self._unwritten.remove(thing_name)

    def write_rows(self) -> None:
        """Bring the columns of real things up to date, in place: whoever reads columns calls this first."""
        self.ticking.finish()
        # In an order of their own: a set's differs from process to process, and with it a snapshot's bytes.
        for thing_name in sorted(self._unwritten):
            self._write_row(thing_name)

    def _adopt(self, request: Request, document: ShadowDocument) -> None:
        """Make room for a shadow that has not been there before."""
        if request.name:
            self.named_shadows.setdefault(request.thing_name, {})[request.name] = document
        else:
            self._table(request.thing_name).add(request.thing_name)
            self._unpack(request.thing_name, document)

    def _store(self, thing_name: str, document: ShadowDocument, changed: Mapping[str, Any] | None) -> None:
        if thing_name in self._unpacked:
            self._unwritten.add(thing_name)
            return
        found = self._simulated(thing_name)
        if found is None:
            raise InvariantError(f"the shadow of {thing_name} is neither unpacked nor simulated")
        fleet, row = found
        fleet.table.store(row, document, changed)
        fleet.has_desired = fleet.has_desired or bool(document.desired)

    def _make_room_for_shadow(self, thing_name: str, now_s: int) -> None:
        """Forget named shadows that were deleted long ago; InvalidRequest if the thing has too many even so."""
        shadows = self.named_shadows.get(thing_name, {})
        for name in [name for name, document in shadows.items() if document.is_forgotten(now_s)]:
            del shadows[name]
        if len(shadows) >= _NAMED_SHADOW_COUNT_MAX:
            raise InvalidRequest(f"A thing may have {_NAMED_SHADOW_COUNT_MAX} named shadows at most")

    # Simulated fleets

    def check_group(self, group: Group) -> None:
        """Raise ModelError if this shard could not create its part of a simulated group."""
        self._simulation.check(group, self.model_of)

    def create_group(self, group: Group) -> None:
        """Create this shard's part of a simulated group; ModelError if another group or thing has its names."""
        self.check_group(group)
        self._simulation.create(group)

    def has_work(self, order: TickOrder) -> bool:
        """Tell whether a tick order concerns this shard; ModelError if it can't be carried out."""
        return self._simulation.has_work(order)

    def delete_group(self, name: str) -> None:
        """Remove this shard's part of a simulated group, if it is there; things registered as its devices stay."""
        self.ticking.finish()
        fleet = self.fleets.get(name)
        if fleet is None:
            return
        left = {
            thing_name: (takeover, self._document(thing_name, ""))
            for thing_name, takeover in self.handover.leave(fleet).items()
        }
        del self.fleets[name]
        for thing_name, (takeover, document) in left.items():
            # A model that is described in a file goes with its fleet.
            model = fleet.table.model
            self.model_of[thing_name] = model.name if MODELS.get(model.name) == model else UNTYPED.name
            table = self._table(thing_name)
            row = table.add(thing_name)
            table.attributes[row] = dict(takeover.attributes)
            if document is not None:
                table.store(row, document, None)

    def tick(self, order: TickOrder) -> TickSummary:
        """Run the ordered ticks of this shard's part of a group; ModelError if there is no such group."""
        self.begin(order)
        self.ticking.finish()
        return self.ticking.take(order.group) or TickSummary()

    def begin(self, order: TickOrder) -> None:
        """Take on an order of ticks, which `ticking` works off; ModelError, as `tick`. Reading is fine meanwhile."""
        outcome = Outcome(self.announcements, [])
        for thing_name, delta in self._simulation.begin(order):
            self._publish_delta(thing_name, "", delta, outcome)

    # Questions

    def twin_count(self) -> int:
        """Return the number of twins, real and simulated; may be asked from another thread."""
        real = sum(table.count for table in list(self.tables.values()))
        return real + sum(fleet.table.count for fleet in list(self.fleets.values()))

    def select(self, wanted: Collection[str] | None) -> Iterator[dict[str, QueryColumn]]:
        """Return the wanted columns (None: all) of each table of twins in this shard; see `columns.select_tables`."""
        self.write_rows()
        sources: list[NamedRows | SimulatedFleet] = [*self.tables.values(), *self.fleets.values()]
        return select_tables(sources, wanted, connectivity=self.connectivity, taken=self.handover.taken())

    def digest_leaves(self) -> list[tuple[str, int, bytes]]:
        """Return (name pattern, block, SHA-256) for each block of simulated twins; see `digest`."""
        return self._simulation.digest_leaves()


# By the operation's number: a look-up by the operation itself would have its hash computed in Python each time.
_HANDLERS: Final[tuple[Any, ...]] = tuple(
    {
        Operation.SHADOW_GET: Shard._get,
        Operation.SHADOW_UPDATE: Shard._update,
        Operation.SHADOW_DELETE: Shard._delete,
        Operation.TELEMETRY: Shard._take_telemetry,
        Operation.TELEMETRY_GET: Shard._get_telemetry,
        Operation.SHADOW_LIST: Shard._list_shadows,
        Operation.REGISTER: Shard._register,
        Operation.UNREGISTER: Shard._unregister,
        Operation.CONNECTIVITY: Shard._note_connectivity,
        Operation.DESCRIBE: Shard._describe,
        Operation.DEFENDER: Shard._take_report,
        Operation.ANNOUNCE_DELTA: Shard._announce_delta,
        Operation.GIVE_BACK: Shard._give_back,
        Operation.PIN: Shard._pin,
        Operation.UNPIN: Shard._unpin,
        Operation.PIN_STATE: Shard._pin_state,
        Operation.PIN_REPORT: Shard._take_pin_report,
        Operation.JOB_READ: Shard._serve_assignment,
        Operation.JOB_CHANGE: Shard._serve_assignment,
        Operation.COMMAND_ANSWER: Shard._serve_assignment,
        Operation.ASSIGN: Shard._serve_assignment,
        Operation.ASSIGNED: Shard._serve_assignment,
    }.get(number)  # type: ignore[call-overload]  # an IntEnum's member equals its number
    for number in range(max(Operation) + 1)
)
