"""Things on AWS IoT's control plane: the paths, bodies and answers of boto3's `iot` client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, HTTPException, Query, Request, Response

from actors.errors import DescriptionError, RecordExists, ThingExists, ThingNotFound
from actors.gateway.arns import certificate_arn, name_in_arn, thing_arn
from actors.gateway.authentication import caller_of
from actors.gateway.enrolment import DeviceOffice, ThingChange
from actors.gateway.iot_bodies import ThingBody, given, read_body
from actors.gateway.platform_view import PlatformView
from actors.gateway.problems import document
from actors.registry.records import ThingDescription, ThingRecord
from actors.registry.registry import Registry

# AWS IoT's bound. It names no default; with the largest, who does not ask for pages gets most.
PAGE_SIZE_MAX: Final = 250
# Read at once while things are looked through.
_WALK_PAGE: Final = 500
# The endpoints by which devices reach the platform; the others of AWS IoT are services that are not here.
_DEVICE_ENDPOINTS: Final = ("iot:Data-ATS", "iot:Data", "")

NextToken = Annotated[str, Query(alias="nextToken")]
MaxResults = Annotated[int, Query(alias="maxResults", ge=1, le=PAGE_SIZE_MAX)]
ExpectedVersion = Annotated[int | None, Query(alias="expectedVersion")]


def iot_thing_routes(devices: DeviceOffice, registry: Registry, *, platform: PlatformView) -> APIRouter:
    """Return the routes of things, of their principals, and of the endpoint of devices."""
    router = APIRouter(tags=["AWS IoT: things"])

    @router.get("/endpoint", summary="DescribeEndpoint")
    async def describe_endpoint(kind: Annotated[str, Query(alias="endpointType")] = "") -> Response:
        if kind not in _DEVICE_ENDPOINTS:
            problem = f"{kind!r} is not offered; ask for iot:Data-ATS, where devices connect with MQTT"
            raise HTTPException(400, problem)
        mqtts = platform.endpoints.mqtts
        return document({"endpointAddress": f"{mqtts.host}:{mqtts.port}"})

    @router.post("/things/{thing}", summary="CreateThing")
    async def create_thing(thing: str, request: Request) -> Response:
        body = await read_body(request, ThingBody)
        attributes = body.attribute_payload.attributes if body.attribute_payload else {}
        description = ThingDescription(
            thing,
            attributes={key: value for key, value in attributes.items() if value},
            thing_type=body.thing_type_name or "",
        )
        try:
            enrolment = await devices.create(description, by=caller_of(request).name)
        except ThingExists as error:
            raise RecordExists("thing", thing, error.reason) from None
        record = enrolment.thing
        return document(
            {"thingName": thing, "thingArn": thing_arn(thing), "thingId": record.thing_id},
        )

    @router.get("/things/{thing}", summary="DescribeThing")
    async def describe_thing(thing: str) -> Response:
        record = await registry.things.get(thing)
        described = {"defaultClientId": thing, "thingId": record.thing_id, **_thing_view(record)}
        return document(described)

    @router.patch("/things/{thing}", summary="UpdateThing")
    async def update_thing(thing: str, request: Request) -> Response:
        body = await read_body(request, ThingBody)
        if body.remove_thing_type and body.thing_type_name:
            raise DescriptionError("removeThingType", "contradicts thingTypeName; keep one of them")
        payload = body.attribute_payload
        change = ThingChange(
            attributes=None if payload is None else payload.attributes,
            is_merge=payload is not None and payload.merge,
            thing_type="" if body.remove_thing_type else body.thing_type_name or None,
        )
        await devices.update(
            thing, change, expected_version=body.expected_version, by=caller_of(request).name
        )
        return document({})

    @router.delete("/things/{thing}", summary="DeleteThing")
    async def delete_thing(
        thing: str, request: Request, expected_version: ExpectedVersion = None
    ) -> Response:
        # As the service does: what is wanted is so already.
        with suppress(ThingNotFound):
            await devices.delete(thing, expected_version=expected_version, by=caller_of(request).name)
        return document({})

    _listing_routes(router, registry)
    return router


def _listing_routes(router: APIRouter, registry: Registry) -> None:
    @router.get("/things", summary="ListThings")
    async def list_things(
        request: Request, next_token: NextToken = "", max_results: MaxResults = PAGE_SIZE_MAX
    ) -> Response:
        wanted = _ThingFilter.of(request)
        found: list[ThingRecord] = []
        # One more than asked tells whether another page follows.
        async for thing in _walk(registry, wanted.thing_type, after=next_token):
            if wanted.takes(thing):
                found.append(thing)
                if len(found) > max_results:
                    break
        more = {"nextToken": found[max_results - 1].name} if len(found) > max_results else {}
        return document({"things": [_thing_view(thing) for thing in found[:max_results]], **more})

    @router.get("/things/{thing}/principals", summary="ListThingPrincipals")
    async def list_thing_principals(
        thing: str, next_token: NextToken = "", max_results: MaxResults = PAGE_SIZE_MAX
    ) -> Response:
        record = await registry.things.get(thing)
        return page_of("principals", map(certificate_arn, record.certificate_ids), next_token, max_results)

    @router.get("/principals/things", summary="ListPrincipalThings")
    async def list_principal_things(
        principal: Annotated[str, Header(alias="x-amzn-principal")],
    ) -> Response:
        certificate_id = name_in_arn(principal, "cert")
        certificate = await registry.certificates.get(certificate_id)
        if certificate is None:
            raise HTTPException(404, f"there is no certificate {certificate_id!r}")
        names = [certificate.thing_name] if certificate.thing_name else []
        # A certificate outlives its thing, and the list is of things.
        return document({"things": list(await registry.things.find(names))})


class _ThingFilter:
    """What ListThings asks for."""

    def __init__(self, thing_type: str, attribute: str, value: str | None, *, is_prefix: bool) -> None:
        self.thing_type = thing_type
        self._attribute = attribute
        self._value = value
        self._is_prefix = is_prefix

    @classmethod
    def of(cls, request: Request) -> _ThingFilter:
        query = request.query_params
        attribute, value = query.get("attributeName", ""), query.get("attributeValue")
        if value is not None and not attribute:
            raise DescriptionError("attributeValue", "says nothing without attributeName; name the attribute")
        is_prefix = query.get("usePrefixAttributeValue", "").lower() == "true"
        return cls(query.get("thingTypeName", ""), attribute, value, is_prefix=is_prefix)

    def takes(self, thing: ThingRecord) -> bool:
        if not self._attribute:
            return True
        held = thing.attributes.get(self._attribute)
        if held is None or self._value is None:
            return held is not None
        return held.startswith(self._value) if self._is_prefix else held == self._value


async def _walk(registry: Registry, thing_type: str, *, after: str) -> AsyncIterator[ThingRecord]:
    cursor: str | None = after
    while cursor is not None:
        page = await registry.things.page(after=cursor, limit=_WALK_PAGE, thing_type=thing_type)
        for thing in page.things:
            yield thing
        cursor = page.next_cursor


def page_of(member: str, values: Any, next_token: str, max_results: int) -> Response:
    """Return a page of texts as a list under `member`, in their order; the token is the last one given."""
    texts = sorted(values)
    left = [text for text in texts if text > next_token]
    more = {"nextToken": left[max_results - 1]} if len(left) > max_results else {}
    return document({member: left[:max_results], **more})


def _thing_view(thing: ThingRecord) -> dict[str, Any]:
    return {
        "thingName": thing.name,
        "thingArn": thing_arn(thing.name),
        "attributes": thing.attributes,
        "version": thing.version,
        **given(thingTypeName=thing.thing_type),
    }
