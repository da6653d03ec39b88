"""Commands on AWS IoT's control plane: the paths, bodies and answers of boto3's `iot` and `iot-jobs-data` clients.

A command is a payload under a name; starting it sends the payload, byte for byte, to one thing. Both services share
`POST /command-executions`: the signature says which one is asked.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, HTTPException, Query, Request, Response

from actors.errors import DescriptionError, RecordExists, ThingNotFound
from actors.fleet import Fleet, assign_request, assigned_request
from actors.gateway.arns import command_arn, name_in_arn, thing_arn
from actors.gateway.authentication import caller_of
from actors.gateway.command_routes import PAYLOAD_BYTES_MAX, TIMEOUT_MAX_S, TIMEOUT_S, execution_id
from actors.gateway.iot_bodies import given, read_body
from actors.gateway.iot_things import PAGE_SIZE_MAX, MaxResults, NextToken
from actors.gateway.problems import answer, document
from actors.registry.commands import CommandRecord
from actors.registry.registry import Registry
from twins.assignments import AskCommands, SendCommand
from twins.clock import Clock
from twins.commands import CommandOrder
from twins.jobs import is_job_id
from twins.topics import is_sendable

_DATA_PLANE: Final = "iot-jobs-data"
# The service's bound of a content type.
_CONTENT_TYPE_LENGTH_MAX: Final = 128


class _Payload(msgspec.Struct, frozen=True, rename="camel"):
    content: str
    content_type: str = ""


class _CommandBody(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """What CreateCommand says; what is not kept here is refused by its name."""

    payload: _Payload
    namespace: str = "AWS-IoT"
    display_name: str = ""
    description: str = ""


class _StartBody(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """What StartCommandExecution says."""

    target_arn: str
    command_arn: str
    execution_timeout_seconds: int = TIMEOUT_S
    client_token: str | None = None


class _ListBody(msgspec.Struct, frozen=True, rename="camel"):
    """What ListCommandExecutions asks; the executions of one thing."""

    target_arn: str = ""
    command_arn: str = ""
    status: str = ""
    sort_order: str = "DESCENDING"


class CommandDesk:
    """Keeps commands, and starts and shows their executions."""

    def __init__(self, fleet: Fleet, registry: Registry, clock: Clock) -> None:
        self.commands: Final = registry.commands
        self._fleet = fleet
        self._registry = registry
        self._clock = clock

    async def create(self, name: str, body: _CommandBody, *, by: str) -> None:
        """Keep a new command; DescriptionError says what is wrong with it."""
        if not is_job_id(name):
            problem = "take 1 to 64 letters, digits, underscores and hyphens"
            raise DescriptionError(f"command id {name!r}", problem)
        if body.namespace != "AWS-IoT":
            raise DescriptionError("namespace", "must be AWS-IoT")
        _check_payload(body.payload)
        record = CommandRecord(
            name,
            body.payload.content,
            body.payload.content_type,
            self._clock.now_s(),
            body.display_name,
            body.description,
        )
        try:
            await self.commands.add(record, by=by)
        except RecordExists:
            raise HTTPException(409, f"command {name!r} exists already; delete it first") from None

    async def start(self, body: _StartBody, *, by: str) -> Response:
        """Send a command to a thing, and return the answer of StartCommandExecution."""
        record = await self.commands.get(name_in_arn(body.command_arn, "command"))
        thing = await self._thing(body.target_arn)
        if not 1 <= body.execution_timeout_seconds <= TIMEOUT_MAX_S:
            raise DescriptionError("executionTimeoutSeconds", f"must be from 1 to {TIMEOUT_MAX_S}")
        order = CommandOrder(
            execution_id(body.client_token, thing),
            record.name,
            base64.b64decode(record.content),
            record.content_type,
            body.execution_timeout_seconds,
        )
        await self._registry.note("command.send", f"{record.name} {thing}", by=by)
        reply = await self._fleet.ask(assign_request(thing, SendCommand(order)))
        return answer(reply) if reply.status != 200 else document({"executionId": order.execution_id})

    async def _thing(self, arn: str) -> str:
        name = name_in_arn(arn, "thing")
        try:
            await self._registry.things.get(name)
        except ThingNotFound as error:
            raise HTTPException(404, str(error)) from None
        return name

    async def executions(self, arn: str, execution: str = "") -> list[dict[str, Any]]:
        """Return the executions of the thing of an ARN, the latest first; one of them if it is named."""
        thing = await self._thing(arn)
        reply = await self._fleet.ask(assigned_request(thing, AskCommands(execution)))
        if reply.status != 200:
            raise HTTPException(reply.status, msgspec.json.decode(reply.payload)["message"])
        found: list[dict[str, Any]] = msgspec.json.decode(reply.payload)["executions"]
        return found


def iot_command_routes(desk: CommandDesk) -> APIRouter:
    """Return the routes of commands and their executions."""
    router = APIRouter(tags=["AWS IoT: commands"])

    @router.put("/commands/{command}", summary="CreateCommand")
    async def create_command(command: str, request: Request) -> Response:
        body = await read_body(request, _CommandBody)
        await desk.create(command, body, by=caller_of(request).name)
        return document({"commandId": command, "commandArn": command_arn(command)})

    @router.get("/commands", summary="ListCommands")
    async def list_commands(next_token: NextToken = "", max_results: MaxResults = PAGE_SIZE_MAX) -> Response:
        # One more than asked tells whether another page follows.
        found = await desk.commands.page(after=next_token, limit=max_results + 1)
        more = {"nextToken": found[max_results - 1].name} if len(found) > max_results else {}
        return document({"commands": [_summary(each) for each in found[:max_results]], **more})

    @router.get("/commands/{command}", summary="GetCommand")
    async def get_command(command: str) -> Response:
        record = await desk.commands.get(command)
        payload = {"content": record.content, "contentType": record.content_type}
        described = given(description=record.description)
        return document({**_summary(record), "namespace": "AWS-IoT", "payload": payload, **described})

    @router.delete("/commands/{command}", summary="DeleteCommand")
    async def delete_command(command: str, request: Request) -> Response:
        await desk.commands.remove(command, by=caller_of(request).name)
        return document({})

    @router.post("/command-executions", summary="StartCommandExecution, or ListCommandExecutions")
    async def start_or_list(
        request: Request, next_token: NextToken = "", max_results: MaxResults = PAGE_SIZE_MAX
    ) -> Response:
        if caller_of(request).service == _DATA_PLANE:
            return await desk.start(await read_body(request, _StartBody), by=caller_of(request).name)
        body = await read_body(request, _ListBody)
        return await _list_executions(desk, body, after=next_token, limit=max_results)

    @router.get("/command-executions/{execution}", summary="GetCommandExecution")
    async def get_execution(
        execution: str,
        target: Annotated[str, Query(alias="targetArn")],
        *,
        include_result: Annotated[bool, Query(alias="includeResult")] = False,
    ) -> Response:
        [found] = await desk.executions(target, execution)
        result = {
            name: {kind.upper(): content for kind, content in value.items()}
            for name, value in found["result"].items()
        }
        shown = {"result": result} if include_result else {}
        timeout = {"executionTimeoutSeconds": found["executionTimeoutSeconds"]}
        return document(
            {**_execution(found), **given(statusReason=found["statusReason"]), **timeout, **shown}
        )

    return router


async def _list_executions(desk: CommandDesk, body: _ListBody, *, after: str, limit: int) -> Response:
    if not body.target_arn:
        raise DescriptionError("targetArn", "is missing; executions are listed for one thing")
    found = [
        each
        for each in await desk.executions(body.target_arn)
        if body.status in ("", each["status"]) and body.command_arn in ("", command_arn(each["command"]))
    ]
    if body.sort_order == "ASCENDING":
        found.reverse()
    first = next((at for at, each in enumerate(found, 1) if each["executionId"] == after), 0)
    page = found[first : first + limit]
    more = {"nextToken": page[-1]["executionId"]} if len(found) > first + limit else {}
    return document({"commandExecutions": [_execution(each) for each in page], **more})


def _execution(found: dict[str, Any]) -> dict[str, Any]:
    times = {name: found[name] for name in ("createdAt", "startedAt", "completedAt")}
    return {
        "executionId": found["executionId"],
        "commandArn": command_arn(found["command"]),
        "targetArn": thing_arn(found["thingName"]),
        "status": found["status"],
        "lastUpdatedAt": found["lastUpdatedAt"],
        **given(**times),
    }


def _summary(record: CommandRecord) -> dict[str, Any]:
    return {
        "commandId": record.name,
        "commandArn": command_arn(record.name),
        "createdAt": record.created_at_s,
        "lastUpdatedAt": record.created_at_s,
        "deprecated": False,
        "pendingDeletion": False,
        **given(displayName=record.display_name),
    }


def _check_payload(payload: _Payload) -> None:
    try:
        content = base64.b64decode(payload.content, validate=True)
    except binascii.Error:
        raise DescriptionError("payload.content", "must be Base64") from None
    if not 1 <= len(content) <= PAYLOAD_BYTES_MAX:
        raise DescriptionError(
            "payload.content", f"has {len(content)} bytes; 1 to {PAYLOAD_BYTES_MAX} are allowed"
        )
    if len(payload.content_type) > _CONTENT_TYPE_LENGTH_MAX or not is_sendable(payload.content_type):
        problem = f"has at most {_CONTENT_TYPE_LENGTH_MAX} characters, none of them a control character"
        raise DescriptionError("payload.contentType", problem)
