"""What is told over MQTT when the registry changes: the topics and bodies of AWS IoT's registry events.

Published after a change is durable, through the bridge, at most once: whoever was away, or a bridge that was, misses
them, and the change stands all the same. They are news, not the record; the record is the registry and its stream.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Literal

import msgspec

from actors.gateway.arns import ACCOUNT, group_arn, thing_arn
from actors.registry.records import ThingGroupRecord, ThingRecord, ThingTypeRecord, new_id
from twins.clock import Clock
from twins.messages import Publish

Announce = Callable[[Sequence[Publish]], None]
Operation = Literal["CREATED", "UPDATED", "DELETED"]
_TOPIC: Final = "$aws/events"


class RegistryEvents:
    """Tells what has changed, each method one change; `announce` must not wait for the broker."""

    def __init__(self, announce: Announce, clock: Clock) -> None:
        self._announce = announce
        self._clock = clock

    def things_created(self, things: Iterable[ThingRecord], groups: dict[str, ThingGroupRecord]) -> None:
        """Tell of new things, of their types, and of the groups (by name) to which they belong from the start."""
        messages = []
        for thing in things:
            messages.append(self._thing("CREATED", thing))
            if thing.thing_type:
                messages.append(self._association("CREATED", thing, thing.thing_type))
            messages += [self._membership("ADDED", thing, groups[name]) for name in thing.groups]
        self._announce(messages)

    def thing_updated(self, before: ThingRecord, after: ThingRecord) -> None:
        """Tell of a thing's other attributes or type."""
        messages = [self._thing("UPDATED", after)]
        if before.thing_type != after.thing_type:
            if before.thing_type:
                messages.append(self._association("DELETED", after, before.thing_type))
            if after.thing_type:
                messages.append(self._association("CREATED", after, after.thing_type))
        self._announce(messages)

    def thing_deleted(self, thing: ThingRecord, groups: Iterable[ThingGroupRecord]) -> None:
        """Tell that a thing is gone, and with it from its groups."""
        messages = [self._membership("REMOVED", thing, group) for group in groups]
        if thing.thing_type:
            messages.append(self._association("DELETED", thing, thing.thing_type))
        self._announce([*messages, self._thing("DELETED", thing)])

    def memberships(
        self, operation: Literal["ADDED", "REMOVED"], things: Iterable[ThingRecord], group: ThingGroupRecord
    ) -> None:
        """Tell which things joined or left a static group."""
        self._announce([self._membership(operation, thing, group) for thing in things])

    def type_changed(self, operation: Operation, record: ThingTypeRecord) -> None:
        """Tell of a thing type that came, changed (its deprecation is a change) or went."""
        body = {
            "thingTypeId": record.type_id,
            "thingTypeName": record.name,
            "isDeprecated": bool(record.deprecated_at_s),
            "deprecationDate": record.deprecated_at_s * 1000 or None,
            "searchableAttributes": record.searchable_attributes,
            "description": record.description or None,
        }
        self._announce([self._event("THING_TYPE_EVENT", operation, f"thingType/{record.name}", body)])

    def group_changed(
        self, operation: Operation, group: ThingGroupRecord, ancestors: Sequence[ThingGroupRecord]
    ) -> None:
        """Tell of a thing group that came, changed or went, and of its place below its parent."""
        parent = ancestors[-1] if ancestors else None
        body = {
            "thingGroupId": group.group_id,
            "thingGroupName": group.name,
            "versionNumber": group.version,
            "parentGroupName": parent.name if parent else None,
            "parentGroupId": parent.group_id if parent else None,
            "description": group.description or None,
            "rootToParentThingGroups": [
                {"groupArn": group_arn(one.name), "groupId": one.group_id} for one in ancestors
            ],
            "attributes": group.attributes,
            "dynamicGroupMappingId": group.group_id if group.is_dynamic else None,
        }
        messages = [self._event("THING_GROUP_EVENT", operation, f"thingGroup/{group.name}", body)]
        if parent is not None and operation != "UPDATED":
            messages.append(self._hierarchy("ADDED" if operation == "CREATED" else "REMOVED", parent, group))
        self._announce(messages)

    def _thing(self, operation: Operation, thing: ThingRecord) -> Publish:
        body = {
            "thingId": thing.thing_id,
            "thingName": thing.name,
            "versionNumber": thing.version,
            "thingTypeName": thing.thing_type or None,
            "attributes": thing.attributes,
        }
        return self._event("THING_EVENT", operation, f"thing/{thing.name}", body)

    def _association(self, operation: Operation, thing: ThingRecord, thing_type: str) -> Publish:
        body = {
            "eventId": new_id(),
            "eventType": "THING_TYPE_ASSOCIATION_EVENT",
            "operation": operation,
            "thingId": thing.thing_id,
            "thingName": thing.name,
            "thingTypeName": thing_type,
            "timestamp": self._now_ms(),
        }
        topic = f"{_TOPIC}/thingTypeAssociation/thing/{thing.name}/{thing_type}"
        return Publish(topic, msgspec.json.encode(body))

    def _membership(self, operation: str, thing: ThingRecord, group: ThingGroupRecord) -> Publish:
        body = {
            "groupArn": group_arn(group.name),
            "groupId": group.group_id,
            "thingArn": thing_arn(thing.name),
            "thingId": thing.thing_id,
            # The same when it begins and when it ends, without being kept anywhere.
            "membershipId": str(uuid.uuid5(uuid.UUID(group.group_id), thing.thing_id)),
        }
        place = f"thingGroupMembership/thingGroup/{group.name}/thing/{thing.name}"
        return self._event("THING_GROUP_MEMBERSHIP_EVENT", operation, place, body)

    def _hierarchy(self, operation: str, parent: ThingGroupRecord, child: ThingGroupRecord) -> Publish:
        body = {
            "thingGroupId": parent.group_id,
            "thingGroupName": parent.name,
            "childGroupId": child.group_id,
            "childGroupName": child.name,
        }
        place = f"thingGroupHierarchy/thingGroup/{parent.name}/childThingGroup/{child.name}"
        return self._event("THING_GROUP_HIERARCHY_EVENT", operation, place, body)

    def _event(self, kind: str, operation: str, place: str, body: dict[str, Any]) -> Publish:
        head = {
            "eventType": kind,
            "eventId": new_id(),
            "timestamp": self._now_ms(),
            "operation": operation,
            "accountId": ACCOUNT,
        }
        return Publish(f"{_TOPIC}/{place}/{operation.lower()}", msgspec.json.encode(head | body))

    def _now_ms(self) -> int:
        return int(self._clock.now_s() * 1000)
