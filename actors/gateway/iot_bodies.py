"""The bodies of AWS IoT's control plane, as stock clients send them, and how they are read.

What a client may say there and this platform does not keep (tags, billing groups, MQTT 5 properties of a type) is
refused rather than forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
from fastapi import HTTPException, Request

from actors.errors import DescriptionError

_Body = TypeVar("_Body", bound=msgspec.Struct)


class AttributePayload(msgspec.Struct, frozen=True):
    """Attributes, in the place of those that are there or laid over them."""

    attributes: dict[str, str] = {}
    merge: bool = False


class ThingBody(msgspec.Struct, frozen=True, rename="camel"):
    """What CreateThing and UpdateThing say."""

    thing_type_name: str | None = None
    attribute_payload: AttributePayload | None = None
    expected_version: int | None = None
    remove_thing_type: bool = False
    billing_group_name: str | None = None


class ThingTypeProperties(msgspec.Struct, frozen=True, rename="camel"):
    """What can be said of a thing type."""

    thing_type_description: str | None = None
    searchable_attributes: list[str] | None = None
    mqtt5_configuration: dict[str, Any] | None = msgspec.field(default=None, name="mqtt5Configuration")


class ThingTypeBody(msgspec.Struct, frozen=True, rename="camel"):
    """What CreateThingType, UpdateThingType and DeprecateThingType say."""

    thing_type_properties: ThingTypeProperties = ThingTypeProperties()
    undo_deprecate: bool = False
    tags: list[dict[str, str]] | None = None


class ThingGroupProperties(msgspec.Struct, frozen=True, rename="camel"):
    """What can be said of a thing group."""

    thing_group_description: str | None = None
    attribute_payload: AttributePayload | None = None


class ThingGroupBody(msgspec.Struct, frozen=True, rename="camel"):
    """What the calls that create and update static and dynamic thing groups say."""

    parent_group_name: str = ""
    thing_group_properties: ThingGroupProperties = ThingGroupProperties()
    expected_version: int | None = None
    index_name: str | None = None
    query_string: str | None = None
    query_version: str | None = None
    tags: list[dict[str, str]] | None = None


class MembershipBody(msgspec.Struct, frozen=True, rename="camel"):
    """What the calls say that move a thing in and out of thing groups."""

    thing_group_name: str = ""
    thing_group_arn: str = ""
    thing_name: str = ""
    thing_arn: str = ""
    thing_groups_to_add: list[str] = []
    thing_groups_to_remove: list[str] = []
    override_dynamic_groups: bool = False


class SearchBody(msgspec.Struct, frozen=True, rename="camel"):
    """What SearchIndex asks."""

    query_string: str
    index_name: str | None = None
    next_token: str = ""
    max_results: int | None = None
    query_version: str | None = None


async def read_body(request: Request, kind: type[_Body]) -> _Body:
    """Return the body of a request; refused with status 400 if it is not of that kind. No body is an empty object."""
    try:
        body = msgspec.json.decode(await request.body() or b"{}", type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HTTPException(400, f"the body is not as it should be: {error}") from None
    for name in ("tags", "billing_group_name"):
        if getattr(body, name, None):
            raise DescriptionError(name, "are not kept here; leave them out")
    return body


def given(**members: object) -> Mapping[str, object]:
    """Return the members of an answer that have something to say: AWS leaves the others out."""
    return {name: value for name, value in members.items() if value not in (None, "")}
