"""Commands over HTTP: sent to one thing, to several, or to all that a fleet query asks for; and what became of them.

What a device gets is `{"action": ..., "parameters": ...}`. The queue, and all that is remembered, is the twin's.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, HTTPException, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from actors.errors import DescriptionError
from actors.fleet import Fleet, assign_request, assigned_request
from actors.gateway.authentication import caller_of
from actors.gateway.problems import answer, document
from actors.gateway.searching import FleetSearch
from actors.gateway.shadow_routes import check_thing_name
from actors.registry.registry import Registry
from twins.assignments import AskCommands, SendCommand
from twins.commands import CommandOrder
from twins.query import parse

# Things that one request may reach: some seconds of work.
THING_COUNT_MAX: Final = 10_000
# The service's default; and a week, for devices that are seldom there.
TIMEOUT_S: Final = 10
TIMEOUT_MAX_S: Final = 7 * 86_400
# What a device can be expected to take at once; the service's limit.
PAYLOAD_BYTES_MAX: Final = 32_768
_ACTION_LENGTH_MAX: Final = 128
_PAGE: Final = 500
# Names that an entry of the audit log holds.
_NAMED_MAX: Final = 20
# What the ids of executions are computed from where the client gave a token; drawn once.
_TOKENS: Final = uuid.UUID("0c5f6f0e-3f0a-4b7a-9a86-0d6f3c1b9d11")


class CommandRequest(BaseModel):
    """A command; of `thing`, `things` and `query` exactly one says to whom. `token` makes a repetition harmless."""

    model_config = ConfigDict(extra="forbid", strict=True)

    action: Annotated[str, Field(min_length=1, max_length=_ACTION_LENGTH_MAX)]
    parameters: Any = None
    thing: str | None = None
    things: Annotated[list[str], Field(min_length=1, max_length=THING_COUNT_MAX)] | None = None
    query: str | None = None
    timeout_s: Annotated[int, Field(ge=1, le=TIMEOUT_MAX_S)] = TIMEOUT_S
    token: Annotated[str, Field(min_length=1, max_length=64)] | None = None

    def payload(self) -> bytes:
        """Return what the device gets."""
        parameters = {} if self.parameters is None else {"parameters": self.parameters}
        payload = msgspec.json.encode({"action": self.action, **parameters})
        if len(payload) > PAYLOAD_BYTES_MAX:
            problem = f"have {len(payload)} bytes with the action, {PAYLOAD_BYTES_MAX} at most"
            raise DescriptionError("parameters", problem)
        return payload


class CommandOffice:
    """Sends commands, and says in the audit log who had them sent."""

    def __init__(self, fleet: Fleet, registry: Registry) -> None:
        self._fleet = fleet
        self._registry = registry
        self._search = FleetSearch(fleet, registry)

    async def send(self, body: CommandRequest, *, by: str) -> list[dict[str, Any]]:
        """Return what became of a command at each of its things, in their order; each has an execution of its own."""
        names = await self._names(body)
        payload = body.payload()
        listed = " ".join(names[:_NAMED_MAX]) + (
            f" and {len(names) - _NAMED_MAX} more" * (len(names) > _NAMED_MAX)
        )
        await self._registry.note("command.send", f"{body.action} {listed}", by=by)
        found: list[dict[str, Any]] = []
        for start in range(0, len(names), _PAGE):
            part = names[start : start + _PAGE]
            requests = [
                assign_request(
                    name,
                    SendCommand(
                        CommandOrder(
                            execution_id(body.token, name),
                            body.action,
                            payload,
                            "application/json",
                            body.timeout_s,
                        )
                    ),
                )
                for name in part
            ]
            for name, reply in zip(part, await self._fleet.ask_many(requests), strict=True):
                told = msgspec.json.decode(reply.payload)
                refused = {"status": "REFUSED", "reason": told.get("message")}
                found.append({"thingName": name, **(told if reply.status == 200 else refused)})
        return found

    async def _names(self, body: CommandRequest) -> list[str]:
        given = [each for each in (body.thing, body.things, body.query) if each is not None]
        if len(given) != 1:
            raise DescriptionError("the command", "needs exactly one of thing, things and query")
        if body.query is not None:
            return await self._matching(body.query)
        names = [body.thing] if body.thing is not None else list(dict.fromkeys(body.things or ()))
        for name in names:
            check_thing_name(name)
        registered: set[str] = set()
        for start in range(0, len(names), _PAGE):
            registered.update(await self._registry.things.find(names[start : start + _PAGE]))
        missing = next((name for name in names if name not in registered), None)
        if missing is not None:
            raise HTTPException(404, f"no thing {missing!r} is registered; nothing was sent")
        return names

    async def _matching(self, text: str) -> list[str]:
        query, names = parse(text), []
        token: str | None = ""
        while token is not None:
            page = await self._search.page(query, after=token, limit=_PAGE)
            names += [thing.name for thing in page.things]
            token = page.next_token
            if len(names) > THING_COUNT_MAX:
                problem = (
                    f"asks for more than {THING_COUNT_MAX} things, which one command may not reach; narrow it"
                )
                raise DescriptionError(f"query {text!r}", problem)
        return names


def command_routes(fleet: Fleet, registry: Registry) -> APIRouter:
    """Return the routes of commands."""
    router = APIRouter(prefix="/v1/commands", tags=["commands"])
    office = CommandOffice(fleet, registry)

    @router.post("", status_code=201, summary="Send a command to one thing, to several, or by query")
    async def send_command(body: CommandRequest, request: Request) -> Response:
        found = await office.send(body, by=caller_of(request).name)
        if body.thing is not None and found[0]["status"] == "REFUSED":
            raise HTTPException(429, str(found[0]["reason"]))
        return document({"executions": found}, status=201)

    @router.get("/{thing}", summary="List the commands of a thing, the latest first")
    async def list_commands(thing: str) -> Response:
        check_thing_name(thing)
        return answer(await fleet.ask(assigned_request(thing, AskCommands())))

    @router.get("/{thing}/{execution}", summary="Tell what became of a command")
    async def show_command(thing: str, execution: str) -> Response:
        check_thing_name(thing)
        reply = await fleet.ask(assigned_request(thing, AskCommands(execution)))
        if reply.status != 200:
            return answer(reply)
        found: Sequence[dict[str, Any]] = msgspec.json.decode(reply.payload)["executions"]
        return document(found[0])

    return router


def execution_id(token: str | None, thing: str) -> str:
    """Return the id of an execution on a thing: the same whenever it comes with the same token."""
    return str(uuid.uuid4() if token is None else uuid.uuid5(_TOKENS, f"{thing}/{token}"))
