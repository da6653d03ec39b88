"""Thing types and thing groups on AWS IoT's control plane: paths, bodies and answers of boto3's `iot` client."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request, Response

from actors.errors import DescriptionError, RecordNotFound
from actors.gateway.arns import group_arn, name_in_arn, type_arn
from actors.gateway.authentication import caller_of
from actors.gateway.grouping import GroupChange, GroupDescription, GroupOffice, TypeOffice
from actors.gateway.iot_bodies import MembershipBody, ThingGroupBody, ThingTypeBody, given, read_body
from actors.gateway.iot_things import PAGE_SIZE_MAX, ExpectedVersion, MaxResults, NextToken
from actors.gateway.problems import document
from actors.gateway.searching import INDEX_NAME, QUERY_VERSION, FleetSearch, check_index
from actors.registry.records import ThingGroupRecord, ThingTypeRecord
from actors.registry.registry import Registry
from twins.query import parse

Recursive = Annotated[bool | None, Query()]
_NO_QUERY: Final = "a static group has none; create a dynamic thing group"


def iot_type_routes(types: TypeOffice, registry: Registry) -> APIRouter:
    """Return the routes of thing types."""
    router = APIRouter(tags=["AWS IoT: thing types"])

    @router.post("/thing-types/{name}", summary="CreateThingType")
    async def create_thing_type(name: str, request: Request) -> Response:
        body = await _type_body(request)
        properties = body.thing_type_properties
        record = await types.create(
            name,
            description=properties.thing_type_description or "",
            searchable_attributes=properties.searchable_attributes or [],
            by=caller_of(request).name,
        )
        return document(
            {"thingTypeName": name, "thingTypeArn": type_arn(name), "thingTypeId": record.type_id}
        )

    @router.get("/thing-types/{name}", summary="DescribeThingType")
    async def describe_thing_type(name: str) -> Response:
        record = await registry.types.get(name)
        return document({"thingTypeId": record.type_id, **_type_view(record)})

    @router.patch("/thing-types/{name}", summary="UpdateThingType")
    async def update_thing_type(name: str, request: Request) -> Response:
        properties = (await _type_body(request)).thing_type_properties
        await types.update(
            name,
            description=properties.thing_type_description,
            searchable_attributes=properties.searchable_attributes,
            by=caller_of(request).name,
        )
        return document({})

    @router.delete("/thing-types/{name}", summary="DeleteThingType")
    async def delete_thing_type(name: str, request: Request) -> Response:
        await types.delete(name, by=caller_of(request).name)
        return document({})

    @router.post("/thing-types/{name}/deprecate", summary="DeprecateThingType")
    async def deprecate_thing_type(name: str, request: Request) -> Response:
        body = await _type_body(request)
        await types.deprecate(name, is_undone=body.undo_deprecate, by=caller_of(request).name)
        return document({})

    @router.get("/thing-types", summary="ListThingTypes")
    async def list_thing_types(
        next_token: NextToken = "",
        max_results: MaxResults = PAGE_SIZE_MAX,
        name: Annotated[str, Query(alias="thingTypeName")] = "",
    ) -> Response:
        if name:
            # As every listing that is filtered, it may be empty.
            with suppress(RecordNotFound):
                return document({"thingTypes": [_type_view(await registry.types.get(name))]})
            return document({"thingTypes": []})
        found, after = await registry.types.page(after=next_token, limit=max_results)
        return document({"thingTypes": [_type_view(record) for record in found], **given(nextToken=after)})

    return router


def iot_group_routes(groups: GroupOffice, registry: Registry, search: FleetSearch) -> APIRouter:
    """Return the routes of static and dynamic thing groups and of who belongs to them."""
    router = APIRouter(tags=["AWS IoT: thing groups"])
    for path, is_dynamic in (("/thing-groups", False), ("/dynamic-thing-groups", True)):
        _changing_routes(router, groups, path, is_dynamic=is_dynamic)
    _reading_routes(router, registry, search)
    _membership_routes(router, groups, registry, search)
    return router


def _changing_routes(router: APIRouter, groups: GroupOffice, path: str, *, is_dynamic: bool) -> None:
    kind = "DynamicThingGroup" if is_dynamic else "ThingGroup"

    @router.post(f"{path}/{{name}}", summary=f"Create{kind}", name=f"Create{kind}")
    async def create_group(name: str, request: Request) -> Response:
        body = await _group_body(request, is_dynamic=is_dynamic)
        if is_dynamic and not body.query_string:
            raise DescriptionError("queryString", "is missing; say which things belong to the group")
        properties = body.thing_group_properties
        payload = properties.attribute_payload
        attributes = {} if payload is None else payload.attributes
        wanted = GroupDescription(
            name,
            parent=body.parent_group_name,
            description=properties.thing_group_description or "",
            attributes={key: value for key, value in attributes.items() if value},
            query=body.query_string or "",
        )
        record = await groups.create(wanted, by=caller_of(request).name)
        created = {
            "thingGroupName": name,
            "thingGroupArn": group_arn(name),
            "thingGroupId": record.group_id,
        }
        return document(created | _query_view(record))

    @router.patch(f"{path}/{{name}}", summary=f"Update{kind}", name=f"Update{kind}")
    async def update_group(name: str, request: Request) -> Response:
        body = await _group_body(request, is_dynamic=is_dynamic)
        payload = body.thing_group_properties.attribute_payload
        change = GroupChange(
            description=body.thing_group_properties.thing_group_description,
            attributes=None if payload is None else payload.attributes,
            is_merge=payload is not None and payload.merge,
            query=body.query_string,
        )
        record = await groups.update(
            name,
            change,
            is_dynamic=is_dynamic,
            expected_version=body.expected_version,
            by=caller_of(request).name,
        )
        return document({"version": record.version})

    @router.delete(f"{path}/{{name}}", summary=f"Delete{kind}", name=f"Delete{kind}")
    async def delete_group(name: str, request: Request, expected_version: ExpectedVersion = None) -> Response:
        by = caller_of(request).name
        await groups.delete(name, is_dynamic=is_dynamic, expected_version=expected_version, by=by)
        return document({})


def _reading_routes(router: APIRouter, registry: Registry, search: FleetSearch) -> None:
    @router.get("/thing-groups/{name}", summary="DescribeThingGroup")
    async def describe_thing_group(name: str) -> Response:
        group = await registry.groups.get(name)
        return document(_group_view(group, await registry.groups.ancestors(group)))

    @router.get("/thing-groups", summary="ListThingGroups")
    async def list_thing_groups(
        next_token: NextToken = "",
        max_results: MaxResults = PAGE_SIZE_MAX,
        parent: Annotated[str, Query(alias="parentGroup")] = "",
        prefix: Annotated[str, Query(alias="namePrefixFilter")] = "",
        recursive: Recursive = None,
    ) -> Response:
        names = await _listed_groups(registry, parent, is_recursive=recursive is not False)
        wanted = [name for name in names if name.startswith(prefix)]
        return _group_page("thingGroups", wanted, next_token, max_results)

    @router.get("/thing-groups/{name}/things", summary="ListThingsInThingGroup")
    async def list_things_in_group(
        name: str,
        recursive: Recursive = None,
        next_token: NextToken = "",
        max_results: MaxResults = PAGE_SIZE_MAX,
    ) -> Response:
        group = await registry.groups.get(name)
        if group.is_dynamic:
            page = await search.page(parse(group.query), after=next_token, limit=max_results)
            names, after = [thing.name for thing in page.things], page.next_token
        else:
            places = [name, *(await registry.groups.descendants(name) if recursive else [])]
            # One more than asked tells whether another page follows.
            found = await registry.things.members(places, after=next_token, limit=max_results + 1)
            names = found[:max_results]
            after = names[-1] if len(found) > max_results else None
        return document({"things": names, **given(nextToken=after)})


def _membership_routes(
    router: APIRouter, groups: GroupOffice, registry: Registry, search: FleetSearch
) -> None:
    @router.put("/thing-groups/addThingToThingGroup", summary="AddThingToThingGroup")
    async def add_thing_to_group(request: Request) -> Response:
        body = await read_body(request, MembershipBody)
        await groups.move(_thing_of(body), joined=[_group_of(body)], by=caller_of(request).name)
        return document({})

    @router.put("/thing-groups/removeThingFromThingGroup", summary="RemoveThingFromThingGroup")
    async def remove_thing_from_group(request: Request) -> Response:
        body = await read_body(request, MembershipBody)
        await groups.move(_thing_of(body), left=[_group_of(body)], by=caller_of(request).name)
        return document({})

    @router.put("/thing-groups/updateThingGroupsForThing", summary="UpdateThingGroupsForThing")
    async def update_groups_for_thing(request: Request) -> Response:
        body = await read_body(request, MembershipBody)
        await groups.move(
            _thing_of(body),
            joined=body.thing_groups_to_add,
            left=body.thing_groups_to_remove,
            by=caller_of(request).name,
        )
        return document({})

    @router.get("/things/{thing}/thing-groups", summary="ListThingGroupsForThing")
    async def list_groups_for_thing(
        thing: str, next_token: NextToken = "", max_results: MaxResults = PAGE_SIZE_MAX
    ) -> Response:
        record = await registry.things.get(thing)
        names = [*record.groups, *await search.dynamic_groups_of(record)]
        return _group_page("thingGroups", names, next_token, max_results)


async def _listed_groups(registry: Registry, parent: str, *, is_recursive: bool) -> list[str]:
    if parent:
        await registry.groups.get(parent)
        return await (registry.groups.descendants if is_recursive else registry.groups.children)(parent)
    if is_recursive:
        return await registry.groups.names()
    return await registry.groups.roots()


def _group_page(member: str, names: list[str], next_token: str, max_results: int) -> Response:
    left = sorted(name for name in names if name > next_token)
    more = {"nextToken": left[max_results - 1]} if len(left) > max_results else {}
    page = [{"groupName": name, "groupArn": group_arn(name)} for name in left[:max_results]]
    return document({member: page, **more})


async def _type_body(request: Request) -> ThingTypeBody:
    body = await read_body(request, ThingTypeBody)
    if body.thing_type_properties.mqtt5_configuration:
        raise DescriptionError("mqtt5Configuration", "is not supported; leave it out")
    return body


async def _group_body(request: Request, *, is_dynamic: bool) -> ThingGroupBody:
    body = await read_body(request, ThingGroupBody)
    if is_dynamic:
        check_index(body.index_name, body.query_version)
    elif body.query_string is not None:
        raise DescriptionError("queryString", _NO_QUERY)
    return body


def _thing_of(body: MembershipBody) -> str:
    return _named(body.thing_name, body.thing_arn, "thing")


def _group_of(body: MembershipBody) -> str:
    return _named(body.thing_group_name, body.thing_group_arn, "thinggroup")


def _named(name: str, arn: str, kind: str) -> str:
    named = name_in_arn(arn, kind) if arn else name
    if not named or (name and named != name):
        raise DescriptionError(kind, "say which one, by its name or by its ARN")
    return named


def _type_view(record: ThingTypeRecord) -> dict[str, Any]:
    return {
        "thingTypeName": record.name,
        "thingTypeArn": type_arn(record.name),
        "thingTypeProperties": {
            "searchableAttributes": record.searchable_attributes,
            **given(thingTypeDescription=record.description),
        },
        "thingTypeMetadata": {
            "deprecated": bool(record.deprecated_at_s),
            "creationDate": record.created_at_s,
            **given(deprecationDate=record.deprecated_at_s or None),
        },
    }


def _group_view(group: ThingGroupRecord, ancestors: list[ThingGroupRecord]) -> dict[str, Any]:
    above = [{"groupName": one.name, "groupArn": group_arn(one.name)} for one in ancestors]
    return {
        "thingGroupName": group.name,
        "thingGroupId": group.group_id,
        "thingGroupArn": group_arn(group.name),
        "version": group.version,
        "thingGroupProperties": {
            "attributePayload": {"attributes": group.attributes},
            **given(thingGroupDescription=group.description),
        },
        "thingGroupMetadata": {
            "creationDate": group.created_at_s,
            "rootToParentThingGroups": above,
            **given(parentGroupName=group.parent),
        },
        **_query_view(group),
        # Membership is computed when it is asked for: there is never an index to be built first.
        **({"status": "ACTIVE"} if group.is_dynamic else {}),
    }


def _query_view(group: ThingGroupRecord) -> dict[str, Any]:
    if not group.is_dynamic:
        return {}
    return {"indexName": INDEX_NAME, "queryString": group.query, "queryVersion": QUERY_VERSION}
