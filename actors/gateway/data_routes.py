"""Publishing and retained messages over HTTP, with paths and bodies as on AWS IoT's data plane.

The same for operators and devices; who may publish what is the caller's to say.
"""

from __future__ import annotations

import base64
import binascii
import uuid
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final
from urllib.parse import unquote_to_bytes

import msgspec
from fastapi import APIRouter, HTTPException, Query, Request, Response
from pydantic import BaseModel, Field

from actors.errors import DescriptionError
from actors.gateway.messaging import Messaging, Retained
from actors.gateway.problems import document
from actors.mqtt_properties import MessageProperties
from twins.messages import Delivery, Publish
from twins.topics import is_reserved, parse, publishing_problem

# AWS IoT's bound of a page; its default is not documented.
_PAGE_SIZE_MAX: Final = 200
_PAGE_SIZE: Final = 50
_PAYLOAD_FORMATS: Final = {None: None, "UNSPECIFIED_BYTES": False, "UTF8_DATA": True}

# Refuses, with HTTPException, a topic on which the sender of a request may not publish.
MayPublish = Callable[[Request, str], Awaitable[None]]


class PublishQuery(BaseModel):
    """What the query says of a message that is to be published."""

    qos: Annotated[int, Field(ge=0, le=1)] = 0
    retain: bool = False
    content_type: Annotated[str, Field(alias="contentType")] = ""
    response_topic: Annotated[str, Field(alias="responseTopic")] = ""
    expiry_s: Annotated[int | None, Field(alias="messageExpiry")] = None


def publish_routes(messaging: Messaging, may_publish: MayPublish) -> APIRouter:
    """Return the route that publishes a message."""
    router = APIRouter(tags=["messages"])

    @router.post("/topics/{topic:path}", summary="Publish a message")
    async def publish(request: Request, query: Annotated[PublishQuery, Query()]) -> Response:
        topic = _topic_of(request, "/topics/")
        await may_publish(request, topic)
        payload = await request.body()
        properties = _properties(query, request, payload).encode()
        await messaging.publish(Publish(topic, payload, Delivery(query.qos, query.retain, properties)))
        return document({"message": "OK", "traceId": str(uuid.uuid4())})

    return router


def retained_routes(messaging: Messaging) -> APIRouter:
    """Return the routes that show what is retained."""
    router = APIRouter(tags=["messages"])

    @router.get("/retainedMessage", summary="List the retained messages in the order of their topics")
    async def list_retained(
        limit: Annotated[int, Query(alias="maxResults", ge=1, le=_PAGE_SIZE_MAX)] = _PAGE_SIZE,
        after: Annotated[str, Query(alias="nextToken")] = "",
    ) -> Response:
        page = await messaging.retained_page(after=after, limit=limit)
        more = {"nextToken": page.next_topic} if page.next_topic else {}
        return document({"retainedTopics": [_summary(found) for found in page.messages], **more})

    @router.get("/retainedMessage/{topic:path}", summary="Get the message that is retained on a topic")
    async def get_retained(request: Request) -> Response:
        topic = _topic_of(request, "/retainedMessage/")
        fault = publishing_problem(topic)
        if fault:
            raise HTTPException(400, f"topic {topic!r}: {fault}")
        found = None if is_reserved(topic) else await messaging.retained(topic)
        if found is None:
            raise HTTPException(404, f"no message is retained on topic {topic!r}")
        return document(_view(found))

    return router


async def operators_may_publish(request: Request, topic: str) -> None:
    """Refuse what nobody may publish over HTTP: reserved topics that are no request of a thing."""
    if is_reserved(topic) and parse(topic) is None:
        text = f"topic {topic!r} is reserved; of these only the requests of a thing can be published on"
        raise HTTPException(403, text)


def _topic_of(request: Request, prefix: str) -> str:
    """Return the topic that follows `prefix`, decoded strictly: the framework would replace what is no UTF-8."""
    encoded: bytes = request.scope["raw_path"]
    try:
        return unquote_to_bytes(encoded).decode().removeprefix(prefix)
    except UnicodeDecodeError:
        raise HTTPException(400, "the topic must be UTF-8, percent-encoded") from None


def _properties(query: PublishQuery, request: Request, payload: bytes) -> MessageProperties:
    named = request.headers.get("x-amz-mqtt5-payload-format-indicator")
    if named not in _PAYLOAD_FORMATS:
        raise DescriptionError("payloadFormatIndicator", "must be UNSPECIFIED_BYTES or UTF8_DATA")
    is_utf8 = _PAYLOAD_FORMATS[named]
    if is_utf8 and not _is_utf8(payload):
        raise DescriptionError("payloadFormatIndicator", "says UTF8_DATA, which the payload is not")
    correlation_data = request.headers.get("x-amz-mqtt5-correlation-data", "")
    return MessageProperties(
        is_utf8=is_utf8,
        expiry_s=query.expiry_s,
        content_type=query.content_type,
        response_topic=query.response_topic,
        correlation_data=_from_base64(correlation_data, "correlationData"),
        user_properties=_user_properties(request.headers.get("x-amz-mqtt5-user-properties", "")),
    )


def _is_utf8(payload: bytes) -> bool:
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True


def _user_properties(encoded: str) -> tuple[tuple[str, str], ...]:
    """Return the pairs of the header: Base64 of a JSON array of objects, whose members are the pairs."""
    if not encoded:
        return ()
    try:
        objects = msgspec.json.decode(
            _from_base64(encoded, "userProperties"), type=list[dict[str, str]] | dict[str, str]
        )
    except msgspec.DecodeError:
        problem = 'must be Base64 of a JSON array of objects with texts, as [{"unit": "celsius"}]'
        raise DescriptionError("userProperties", problem) from None
    listed = [objects] if isinstance(objects, dict) else objects
    return tuple(pair for each in listed for pair in each.items())


def _from_base64(encoded: str, subject: str) -> bytes:
    try:
        return base64.b64decode(encoded, validate=True)
    except binascii.Error:
        raise DescriptionError(subject, "must be Base64") from None


def _summary(found: Retained) -> dict[str, Any]:
    message = found.message
    return {
        "topic": message.topic,
        "payloadSize": len(message.payload),
        "qos": message.qos,
        "lastModifiedTime": found.modified_ms,
    }


def _view(found: Retained) -> dict[str, Any]:
    message = found.message
    view: dict[str, Any] = {
        "topic": message.topic,
        "payload": base64.b64encode(message.payload).decode(),
        "qos": message.qos,
        "lastModifiedTime": found.modified_ms,
    }
    if message.user_properties:
        pairs = msgspec.json.encode([{key: value} for key, value in message.user_properties])
        view["userProperties"] = base64.b64encode(pairs).decode()
    return view
