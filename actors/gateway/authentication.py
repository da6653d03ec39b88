"""Who asks the operators' API: the holder of the operators' token, or of an access key, and whether the role suffices.

Plain ASGI, so that it also covers paths that no route serves. It stands behind the limit of the body, because a
signature covers the body.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from actors.errors import SignatureRefused, WorldError
from actors.gateway.middleware import replay
from actors.gateway.problems import problem, world_problem
from actors.gateway.roles import is_allowed, least_role
from actors.gateway.signature import UNKNOWN_KEY, HttpRequest, Signature, check_signature, signature_of
from actors.registry.access_keys import (
    AccessKeyRecord,
    AccessKeys,
    Role,
    new_access_key_id,
    new_secret,
)
from actors.vault import Vault
from twins.clock import Clock

_SCOPE_KEY: Final = "twinfleet.caller"
_TOKEN_HOLDER: Final = "operator"
# AWS IoT's data plane has one word for all that is wrong with a signature.
_DATA_SERVICES: Final = frozenset({"iotdata", "iotdevicegateway"})
_FORBIDDEN: Final = "ForbiddenException"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends a request, for the audit log, and what he may do.

    `service` is the one for which the request was signed, '' for one with the operators' token. It tells apart the
    services of AWS that share a path here.
    """

    name: str
    role: Role
    service: str = ""


def caller_of(connection: HTTPConnection) -> Caller:
    """Return who sent a request to the operators' API."""
    caller: Caller = connection.scope[_SCOPE_KEY]
    return caller


def _context(access_key_id: str) -> bytes:
    return b"access key " + access_key_id.encode()


class Identity:
    """Gives out access keys, and tells who has sent a request, by his token or his signature."""

    def __init__(self, token: str, keys: AccessKeys, *, vault: Vault, clock: Clock) -> None:
        self._token_hash = _hash(token)
        self.keys: Final = keys
        self._vault = vault
        self._clock = clock

    async def new_key(self, name: str, role: Role, *, by: str) -> tuple[AccessKeyRecord, str]:
        """Return a new access key and its secret; raises as `AccessKeys.add`."""
        access_key_id, secret = new_access_key_id(), new_secret()
        sealed = self._vault.seal(secret.encode(), _context(access_key_id))
        record = AccessKeyRecord(access_key_id, name, role, sealed, int(self._clock.now_s()))
        await self.keys.add(record, by=by)
        return record, secret

    def bearer(self, scope: Scope) -> Caller | None:
        """Return the holder of the operators' token, None if the request does not carry it."""
        scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        # Of hashes, so that not even the length shows in the time that it takes.
        has_token = scheme.lower() == "bearer" and hmac.compare_digest(_hash(given.strip()), self._token_hash)
        return Caller(_TOKEN_HOLDER, "admin") if has_token else None

    async def signer(self, scope: Scope, body: bytes) -> Caller | None:
        """Return who signed the request, None if nobody did; SignatureRefused if the signature proves nothing."""
        request = HttpRequest(
            scope["method"], scope["raw_path"], scope["query_string"], headers=scope["headers"], body=body
        )
        signature = signature_of(request)
        if signature is None:
            return None
        try:
            record = await self._verified(signature, request)
        except SignatureRefused as refusal:
            if signature.service in _DATA_SERVICES:
                raise SignatureRefused(_FORBIDDEN, str(refusal)) from None
            raise
        return Caller(record.name, record.role, signature.service)

    async def _verified(self, signature: Signature, request: HttpRequest) -> AccessKeyRecord:
        record = await self.keys.find(signature.access_key_id)
        if record is None:
            text = f"there is no access key {signature.access_key_id!r}; `twinfleet key create` makes one"
            raise SignatureRefused(UNKNOWN_KEY, text)
        secret = self._vault.unseal(record.sealed_secret, _context(record.access_key_id)).decode()
        check_signature(signature, request, secret, now_s=self._clock.now_s())
        return record


class Authentication:
    """Lets only requests of a known caller with a sufficient role pass, except to `open_paths`."""

    def __init__(self, app: ASGIApp, identity: Identity, open_paths: Collection[str]) -> None:
        self._app = app
        self._identity = identity
        self._open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, whose body comes in one piece."""
        if scope["type"] != "http" or scope["path"] in self._open_paths:
            await self._app(scope, receive, send)
            return
        answer: ASGIApp = self._app
        try:
            caller, receive = await self._caller(scope, receive)
        except SignatureRefused as refusal:
            answer = problem(403, str(refusal), headers={"x-amzn-ErrorType": refusal.error_type})
        except WorldError as error:
            answer = world_problem(error)
        else:
            if caller is None:
                answer = _unknown()
            elif not is_allowed(caller.role, least_role(scope["method"], scope["path"])):
                answer = _role_missing(caller, scope)
            scope[_SCOPE_KEY] = caller
        await answer(scope, receive, send)

    async def _caller(self, scope: Scope, receive: Receive) -> tuple[Caller | None, Receive]:
        caller = self._identity.bearer(scope)
        if caller is not None:
            return caller, receive
        body = (await receive()).get("body", b"")
        return await self._identity.signer(scope, body), replay(body, receive)


def _unknown() -> ASGIApp:
    return problem(
        401,
        "send the operator's token (the file is named by operator_token_file in endpoints.json) as "
        "`Authorization: Bearer TOKEN`, or sign the request with an access key (`twinfleet key create`)",
        headers={"WWW-Authenticate": 'Bearer realm="twinfleet"'},
    )


def _role_missing(caller: Caller, scope: Scope) -> ASGIApp:
    needed = least_role(scope["method"], scope["path"])
    text = f"{scope['method']} {scope['path']} needs the role {needed}; {caller.name!r} is {caller.role}"
    return problem(403, f"{text}: use another access key")


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
