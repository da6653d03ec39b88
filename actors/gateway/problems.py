"""Refusals and failures as answers: RFC 9457 problem documents that clients of AWS IoT can read as well.

A problem carries `type`, `title`, `status` and `detail` for the one world, and `message`, `code` and the
header `x-amzn-ErrorType` for the other. The only place where errors become HTTP statuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from actors.errors import (
    AccessKeyExists,
    AccessKeyNotFound,
    CertificateNameTaken,
    CertificateNotFound,
    FleetExists,
    FleetNotFound,
    OperatorError,
    Overloaded,
    RecordExists,
    RecordInUse,
    RecordNotFound,
    RecordVersionConflict,
    ThingExists,
    ThingNotFound,
    WorldError,
)
from twins.errors import ModelError, QueryError, RequestError
from twins.messages import Reply

# AWS IoT's names; its SDKs choose the exception by them.
_ERROR_TYPES: Final[Mapping[int, str]] = {
    400: "InvalidRequestException",
    401: "UnauthorizedException",
    403: "ForbiddenException",
    404: "ResourceNotFoundException",
    405: "MethodNotAllowedException",
    409: "ConflictException",
    413: "RequestEntityTooLargeException",
    415: "UnsupportedDocumentEncodingException",
    429: "ThrottlingException",
    500: "InternalFailureException",
    503: "ServiceUnavailableException",
    504: "GatewayTimeoutException",
}
_OPERATOR_STATUSES: Final[Mapping[type[OperatorError], int]] = {
    ThingNotFound: 404,
    FleetNotFound: 404,
    CertificateNotFound: 404,
    CertificateNameTaken: 409,
    AccessKeyNotFound: 404,
    AccessKeyExists: 409,
    ThingExists: 409,
    FleetExists: 409,
    RecordNotFound: 404,
    RecordExists: 409,
    RecordVersionConflict: 409,
    RecordInUse: 409,
}
# Errors for which the names of AWS IoT tell more than the status.
_NAMED_ERRORS: Final[Mapping[type[Exception], str]] = {
    RecordExists: "ResourceAlreadyExistsException",
    RecordVersionConflict: "VersionConflictException",
    RecordInUse: "DeleteConflictException",
    QueryError: "InvalidQueryException",
}
# Errors of job and command executions (see `twins.errors.EXECUTION_ERRORS`) that have names of their own.
_EXECUTION_ERRORS: Final[Mapping[str, str]] = {
    "VersionConflict": "VersionConflictException",
    "InvalidStateTransition": "InvalidStateTransitionException",
    "TerminalStateReached": "TerminalStateException",
}
# A shard or a store that restarts is back within seconds.
_RETRY_AFTER_S: Final = 1


def problem(
    status: int,
    detail: str,
    *,
    headers: Mapping[str, str] | None = None,
    members: Mapping[str, Any] | None = None,
) -> Response:
    """Return the answer for a refusal or failure; `members` stand beside the standard ones in the document."""
    document = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        **(members or {}),
        "code": status,
        "message": detail,
    }
    all_headers = {"Cache-Control": "no-store", **(headers or {})}
    if status in _ERROR_TYPES:
        all_headers.setdefault("x-amzn-ErrorType", _ERROR_TYPES[status])
    return Response(
        msgspec.json.encode(document),
        status_code=status,
        headers=all_headers,
        media_type="application/problem+json",
    )


def answer(reply: Reply) -> Response:
    """Return a shard's reply as an answer: its body as it is, or a problem document if it is a refusal."""
    if reply.status < 400:
        return Response(reply.payload, status_code=reply.status, media_type="application/json")
    body = msgspec.json.decode(reply.payload, type=dict[str, Any])
    beside: dict[str, Any] = {key: body[key] for key in ("timestamp", "clientToken") if key in body}
    named = _EXECUTION_ERRORS.get(body.get("kind", ""))
    headers = {} if named is None else {"x-amzn-ErrorType": named}
    return problem(reply.status, str(body["message"]), members=beside, headers=headers)


def world_problem(error: WorldError) -> Response:
    """Return the answer for a part of the platform that does not do its part."""
    if isinstance(error, Overloaded):
        return too_many_requests(str(error))
    headers = {"Retry-After": str(_RETRY_AFTER_S)} if error.retryable else {}
    return problem(503, str(error), headers=headers)


def too_many_requests(detail: str) -> Response:
    """Return the answer to a request that was not carried out, because too many are being served."""
    return problem(429, detail, headers={"Retry-After": str(_RETRY_AFTER_S)})


def document(content: Any, *, status: int = 200) -> Response:
    """Return an answer that carries `content` as JSON."""
    return Response(msgspec.json.encode(content), status_code=status, media_type="application/json")


def install_problems(app: FastAPI) -> None:
    """Make `app` answer every refusal and failure with a problem document, in place."""
    app.add_exception_handler(HTTPException, _http_problem)
    app.add_exception_handler(RequestValidationError, _validation_problem)
    app.add_exception_handler(RequestError, _request_problem)
    app.add_exception_handler(ModelError, _model_problem)
    app.add_exception_handler(OperatorError, _operator_problem)
    app.add_exception_handler(WorldError, _world_problem)
    # The one request-error boundary: the server logs what is raised beyond it.
    app.add_exception_handler(Exception, _failure)


# The framework hands each handler the errors for which it was installed.


async def _http_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = str(error.detail)
    if detail == HTTPStatus(error.status_code).phrase:
        detail = f"{request.method} {request.url.path}: {detail.lower()}"
    return problem(error.status_code, detail, headers=error.headers)


async def _validation_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    texts = []
    for fault in error.errors():
        place = ".".join(str(part) for part in fault["loc"] if part != "body")
        texts.append(f"{place}: {fault['msg']}" if place else str(fault["msg"]))
    return problem(400, "; ".join(texts))


async def _request_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return problem(error.code, error.message, headers=_named(error))


async def _model_problem(request: Request, error: Exception) -> Response:
    return problem(400, str(error))


async def _operator_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, OperatorError)
    return problem(_OPERATOR_STATUSES.get(type(error), 400), str(error), headers=_named(error))


def _named(error: Exception) -> dict[str, str]:
    name = _NAMED_ERRORS.get(type(error))
    return {} if name is None else {"x-amzn-ErrorType": name}


async def _world_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, WorldError)
    return world_problem(error)


async def _failure(request: Request, error: Exception) -> Response:
    # What went wrong stands in the log; its text could hold what this caller must not see.
    return problem(500, "the platform failed to answer; its log says why")
