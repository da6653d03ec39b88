"""What must hold of every history, whatever died in it: pure checks that share nothing with the platform's code.

Each rule takes the evidence of a history and returns the first contradiction that it finds, with the operations that
make it up, or None. `first_contradiction` asks all of them. A rule claims nothing that the history does not show: what
nobody saw is no contradiction.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, NamedTuple

from scenarios.history import (
    Answered,
    Event,
    Fault,
    Observed,
    Outcome,
    Sent,
    Settled,
    describe_event,
    in_order,
)

# Thing name and shadow name.
Shadow = tuple[str, str]


class Contradiction(NamedTuple):
    """What can't be, and the events that make it so, in their order."""

    rule: str
    text: str
    events: tuple[Event, ...]

    def __str__(self) -> str:
        return "\n".join([f"{self.rule}: {self.text}", *map(describe_event, self.events)])


class Operation:
    """One operation of a client with all its answers; `outcome` is the best that is known of it."""

    __slots__ = ("answers", "known_before", "outcome", "sent")

    def __init__(self, sent: Sent, known_before: Sighting | None) -> None:
        self.sent = sent
        # The highest version of its shadow that anybody had seen when it was sent.
        self.known_before = known_before
        self.answers: list[Answered] = []
        self.outcome = Outcome.INFO

    def add(self, answer: Answered) -> None:
        """Take an answer: that it was carried out is certain from then on; that it was refused, until then."""
        self.answers.append(answer)
        if answer.outcome is Outcome.OK or self.outcome is Outcome.INFO:
            self.outcome = answer.outcome

    @property
    def shadow(self) -> Shadow:
        """Return whose shadow it concerns."""
        return self.sent.thing_name, self.sent.shadow_name

    def may_follow(self, other: Operation) -> bool:
        """Tell whether it may have been carried out after another operation of the same client, and rightly so.

        What went through the broker is carried out in the order in which it was sent. What went directly has no order
        while it is under way: it may be carried out until its answer is there, and without an answer, at any time.
        """
        if self.sent.number >= other.sent.number:
            return True
        answered_s = [each.at_s for each in self.answers if each.outcome is Outcome.OK]
        return self.sent.is_direct and not (answered_s and answered_s[0] < other.sent.at_s)

    @property
    def events(self) -> tuple[Event, ...]:
        """Return all that the history says of it."""
        return (self.sent, *self.answers)


class Sighting(NamedTuple):
    """A version of a shadow as one event shows it; `operation` is the update that was told to have made it."""

    version: int
    values: dict[str, int]
    is_whole: bool
    event: Event
    operation: Operation | None = None


@dataclass(slots=True)
class Evidence:
    """A history, sorted by what the rules ask for."""

    operations: dict[tuple[str, int], Operation] = field(default_factory=dict)
    # By shadow and version, in the order of the history.
    sightings: dict[Shadow, dict[int, list[Sighting]]] = field(default_factory=dict)
    # By shadow and field, in the order in which they were sent.
    writes: dict[tuple[Shadow, str], list[Operation]] = field(default_factory=dict)
    pushes: dict[tuple[Shadow, str, str], list[Observed]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    ends: list[Settled] = field(default_factory=list)
    # The first answer or end that tells of an older version than somebody knew when it was asked for.
    stale: tuple[Sighting, Sighting] | None = None
    _newest: dict[Shadow, Sighting] = field(default_factory=dict)

    @classmethod
    def of(cls, events: Iterable[Event]) -> Evidence:
        """Return the evidence of a history; its events must stand in their order."""
        evidence = cls()
        for event in events:
            match event:
                case Sent():
                    evidence._send(event)
                case Answered():
                    evidence._answer(event)
                case Observed():
                    shadow = event.thing_name, event.shadow_name
                    evidence.pushes.setdefault((shadow, event.observer, event.topic), []).append(event)
                    evidence._see(shadow, Sighting(event.version, event.values, event.is_whole, event))
                case Fault():
                    evidence.faults.append(event)
                case Settled():
                    shadow = event.thing_name, event.shadow_name
                    evidence.ends.append(event)
                    sighting = Sighting(event.version, event.values, True, event)
                    evidence._require_not_before(sighting, evidence._newest.get(shadow))
                    evidence._see(shadow, sighting)
        return evidence

    def _send(self, sent: Sent) -> None:
        shadow = sent.thing_name, sent.shadow_name
        operation = Operation(sent, self._newest.get(shadow))
        self.operations[sent.client, sent.number] = operation
        for name in sent.values:
            self.writes.setdefault((shadow, name), []).append(operation)

    def _answer(self, answer: Answered) -> None:
        operation = self.operations[answer.client, answer.number]
        operation.add(answer)
        if answer.outcome is not Outcome.OK or not answer.version:
            return
        is_get = not operation.sent.values
        sighting = Sighting(
            answer.version,
            answer.values if is_get else operation.sent.values,
            is_get,
            answer,
            None if is_get else operation,
        )
        self._require_not_before(sighting, operation.known_before)
        self._see(operation.shadow, sighting)

    def _require_not_before(self, sighting: Sighting, known: Sighting | None) -> None:
        """Note an answer that is older than what was known when it was asked for; an update makes a newer one."""
        if known is None or self.stale is not None:
            return
        if sighting.version < known.version or (
            sighting.operation is not None and sighting.version == known.version
        ):
            self.stale = known, sighting

    def _see(self, shadow: Shadow, sighting: Sighting) -> None:
        self.sightings.setdefault(shadow, {}).setdefault(sighting.version, []).append(sighting)
        newest = self._newest.get(shadow)
        if newest is None or sighting.version > newest.version:
            self._newest[shadow] = sighting

    def redeliveries(self, until_s: float, *, since_s: float = float("-inf")) -> int:
        """Return how many faults in a time may have made requests come again."""
        return sum(
            fault.redelivers and fault.at_s <= until_s and since_s <= max(fault.at_s, fault.until_s)
            for fault in self.faults
        )


def accepted_updates_are_there(evidence: Evidence) -> Contradiction | None:
    """Find an update that was accepted and is missing at the end, or a value at the end that nobody sent."""
    rule = "an accepted update is missing"
    ends: dict[Shadow, list[Settled]] = {}
    for end in evidence.ends:
        ends.setdefault((end.thing_name, end.shadow_name), []).append(end)
    for (shadow, name), operations in evidence.writes.items():
        accepted = [each for each in operations if each.outcome is Outcome.OK]
        last = max(accepted, key=lambda each: each.sent.values[name], default=None)
        if last is not None and shadow not in ends:
            return Contradiction(
                rule, f"nobody read {shadow[0]} at the end, so nothing is known of {name}", last.events
            )
        sent = {each.sent.values[name]: each for each in operations}
        for end in ends.get(shadow, ()):
            value = end.values.get(name)
            if value is not None and value not in sent:
                return Contradiction(rule, f"{name} is {value} at the end, which nobody sent", (end,))
            if last is not None and (value is None or not sent[value].may_follow(last)):
                text = f"{name} is {value} at the end, but {last.sent.values[name]} was accepted"
                return Contradiction(rule, text, (*last.events, end))
    return None


def ends_agree(evidence: Evidence) -> Contradiction | None:
    """Find two readings at the end that differ: of who served the shadow, and of who read its past back, perhaps."""
    first: dict[Shadow, Settled] = {}
    for end in evidence.ends:
        other = first.setdefault((end.thing_name, end.shadow_name), end)
        if (other.version, other.values) != (end.version, end.values):
            return Contradiction(
                "what was read at the end differs",
                f"{end.thing_name} has version {other.version}, and {end.version}",
                (other, end),
            )
    return None


def versions_do_not_go_back(evidence: Evidence) -> Contradiction | None:
    """Find an answer older than what was known when it was asked for, or a message that comes after a newer one.

    Messages may come twice, so only the first of each version must come in order. What a direct operation announces
    comes when it comes, before or after what others bring about.
    """
    rule = "a version went back"
    if evidence.stale is not None:
        known, stale = evidence.stale
        text = f"version {stale.version} was told to somebody who asked when {known.version} was known"
        asked = [_sent(evidence, stale.event)] if isinstance(stale.event, Answered) else []
        return Contradiction(rule, text, _in_order(known.event, *asked, stale.event))
    for (shadow, observer, topic), heard in evidence.pushes.items():
        newest: Observed | None = None
        seen: set[int] = set()
        for event in heard:
            if event.version in seen or _may_be_direct(evidence, shadow, event.version):
                continue
            seen.add(event.version)
            if newest is not None and event.version < newest.version:
                text = f"{observer} heard {topic} of version {event.version} first after {newest.version}"
                return Contradiction(rule, text, (newest, event))
            newest = event
    return None


def _sent(evidence: Evidence, answer: Answered) -> Event:
    return evidence.operations[answer.client, answer.number].sent


def _may_be_direct(evidence: Evidence, shadow: Shadow, version: int) -> bool:
    """Tell whether a version may have been made by a direct operation."""
    makers = [each.operation for each in evidence.sightings[shadow][version] if each.operation is not None]
    if makers:
        return any(each.sent.is_direct for each in makers)
    return any(
        each.sent.is_direct and each.shadow == shadow and each.outcome is Outcome.INFO
        for each in evidence.operations.values()
    )


def versions_are_made_once(evidence: Evidence) -> Contradiction | None:
    """Find a version that two updates made, or that has two contents: an update was applied under two epochs."""
    rule = "a version was made twice"
    for (thing_name, _), versions in evidence.sightings.items():
        for version, sightings in versions.items():
            if len(sightings) == 1:
                continue
            makers = [each for each in sightings if each.operation is not None]
            other = next((each for each in makers if each.operation is not makers[0].operation), None)
            if other is not None:
                text = f"version {version} of {thing_name} was accepted for two updates"
                events = [event for each in (makers[0], other) for event in _operation_events(each)]
                return Contradiction(rule, text, _in_order(*events))
            found = _disagreement(sightings)
            if found is not None:
                one, two, name = found
                text = (
                    f"{name} in version {version} of {thing_name} is {one.values.get(name)} to one, "
                    f"{two.values.get(name)} to another"
                )
                return Contradiction(rule, text, (one.event, two.event))
    return None


def _operation_events(sighting: Sighting) -> tuple[Event, ...]:
    return sighting.operation.events if sighting.operation is not None else (sighting.event,)


def _disagreement(sightings: Sequence[Sighting]) -> tuple[Sighting, Sighting, str] | None:
    """Find two sightings of one version, and a field that is not the same in them."""
    whole = next((each for each in sightings if each.is_whole), None)
    told: dict[str, Sighting] = {} if whole is None else dict.fromkeys(whole.values, whole)
    for each in sightings:
        if each.is_whole and whole is not None and each.values.keys() != whole.values.keys():
            return whole, each, min(each.values.keys() ^ whole.values.keys())
        for name, value in each.values.items():
            first = told.setdefault(name, each if whole is None else whole)
            if first.values.get(name) != value:
                return first, each, name
    return None


def order_is_kept(evidence: Evidence) -> Contradiction | None:
    """Find a field whose value steps back from one version to a later one.

    A fault after which requests come again allows one such step; what comes again then comes in order, leaving
    nothing out that had been accepted.
    """
    for (shadow, name), operations in evidence.writes.items():
        found = _broken_order(evidence, name, operations, list(_history_of(evidence, shadow, name)))
        if found is not None:
            return found
    return None


def _broken_order(
    evidence: Evidence, name: str, operations: Sequence[Operation], history: Sequence[Sighting]
) -> Contradiction | None:
    rule = "the order of a client's updates was not kept"
    writer = {each.sent.values[name]: each for each in operations}
    highest, step_count = 0, 0
    for previous, sighting in pairwise(history):
        before, value = previous.values[name], sighting.values[name]
        highest = max(highest, before)
        if value < before and not _may_follow(writer, value, before):
            step_count += 1
            if step_count > evidence.redeliveries(sighting.event.at_s):
                text = f"{name} went from {before} back to {value}"
                return Contradiction(rule, text, _in_order(previous.event, sighting.event))
        elif step_count and before < min(highest, value) and sighting.version == previous.version + 1:
            left_out = _accepted_between(operations, name, before, value)
            if left_out is not None:
                text = f"{name} came again from {before} to {value} without {left_out.sent.values[name]}"
                return Contradiction(rule, text, _in_order(previous.event, *left_out.events, sighting.event))
    return None


def _history_of(evidence: Evidence, shadow: Shadow, name: str) -> Iterator[Sighting]:
    """Give one sighting of each version in which a field was seen, by version."""
    versions = evidence.sightings.get(shadow, {})
    for version in sorted(versions):
        found = next((each for each in versions[version] if name in each.values), None)
        if found is not None:
            yield found


def _may_follow(writer: Mapping[int, Operation], value: int, before: int) -> bool:
    """Tell whether a value may rightly come after a greater one; of values that nobody sent another rule tells."""
    return value in writer and before in writer and writer[value].may_follow(writer[before])


def _accepted_between(operations: Sequence[Operation], name: str, low: int, high: int) -> Operation | None:
    return next(
        (each for each in operations if each.outcome is Outcome.OK and low < each.sent.values[name] < high),
        None,
    )


def deltas_converge(evidence: Evidence) -> Contradiction | None:
    """Find a shadow whose device applied every delta and has not reported at the end what is desired."""
    rule = "a device and its shadow do not agree"
    for end in evidence.ends:
        if not end.follower:
            continue
        for name, wanted in end.values.items():
            section, _, key = name.partition(".")
            reported = end.values.get(f"reported.{key}")
            if section == "desired" and reported != wanted:
                text = f"{key} is {wanted} in desired and {reported} in reported"
                events = [
                    event
                    for place in (name, f"reported.{key}")
                    for each in evidence.writes.get(((end.thing_name, end.shadow_name), place), ())
                    if each.sent.values[place] == wanted
                    for event in each.events
                ]
                return Contradiction(rule, text, (*_in_order(*events), end))
    return None


def refusals_leave_no_trace(evidence: Evidence) -> Contradiction | None:
    """Find a value in a shadow whose every update was refused.

    A fault after which requests come again excuses the update that was under way: refused once, it may be carried out
    the second time, and carried out once, be refused the second time because of its version.
    """
    rule = "a refused update left a trace"
    for (shadow, name), operations in evidence.writes.items():
        refused = {each.sent.values[name]: each for each in operations if each.outcome is Outcome.FAIL}
        for each in operations:
            if each.outcome is not Outcome.FAIL:
                refused.pop(each.sent.values[name], None)
        if not refused:
            continue
        for sightings in evidence.sightings.get(shadow, {}).values():
            for sighting in sightings:
                operation = refused.get(sighting.values.get(name, -1))
                if operation is None:
                    continue
                until_s = max(sighting.event.at_s, operation.answers[-1].at_s)
                if not evidence.redeliveries(until_s, since_s=operation.sent.at_s):
                    text = f"{name} is {sighting.values[name]} in version {sighting.version}"
                    return Contradiction(rule, text, (*operation.events, sighting.event))
    return None


RULES: Final = (
    accepted_updates_are_there,
    ends_agree,
    versions_do_not_go_back,
    versions_are_made_once,
    order_is_kept,
    deltas_converge,
    refusals_leave_no_trace,
)


def first_contradiction(events: Iterable[Event]) -> Contradiction | None:
    """Return the first contradiction of a history, whose events must stand in their order; None where there is none."""
    evidence = Evidence.of(events)
    for rule in RULES:
        found = rule(evidence)
        if found is not None:
            return found
    return None


def _in_order(*events: Event) -> tuple[Event, ...]:
    return tuple(in_order({id(event): event for event in events}.values()))
