"""Access keys over HTTP: made, listed and deleted by an admin. The secret is shown when it is made and never again."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict

from actors.gateway.authentication import Identity, caller_of
from actors.gateway.problems import document
from actors.registry.access_keys import AccessKeyRecord, Role


class AccessKeyRequest(BaseModel):
    """An access key to be made; the name is for people and the audit log."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    role: Role


def key_routes(identity: Identity) -> APIRouter:
    """Return the routes of access keys."""
    router = APIRouter(prefix="/v1/keys", tags=["keys"])
    keys = identity.keys

    @router.post("", status_code=201, summary="Make an access key; its secret is shown only here")
    async def create_key(body: AccessKeyRequest, request: Request) -> Response:
        record, secret = await identity.new_key(body.name, body.role, by=caller_of(request).name)
        return document(_key_view(record) | {"secret_access_key": secret}, status=201)

    @router.get("", summary="List the access keys")
    async def list_keys() -> Response:
        return document({"keys": [_key_view(record) for record in await keys.all()]})

    @router.delete("/{name}", summary="Delete an access key: from now on its signatures are refused")
    async def delete_key(name: str, request: Request) -> Response:
        return document(_key_view(await keys.remove(name, by=caller_of(request).name)))

    return router


def _key_view(record: AccessKeyRecord) -> dict[str, Any]:
    return {
        "access_key_id": record.access_key_id,
        "name": record.name,
        "role": record.role,
        "status": record.status,
        "created_at": record.created_at_s,
    }
