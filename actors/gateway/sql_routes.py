"""POST /v1/sql: a question in SQL, answered as JSON, CSV or an Arrow stream, as the header Accept asks for."""

from __future__ import annotations

import math
from typing import Annotated, Final

import msgspec
from fastapi import APIRouter, HTTPException, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from actors.gateway.sql_desk import SqlAnswer, SqlDesk
from actors.sql_worker import AnswerForm

# An answer is never older than this, unless who asks allows it; a million twins take a tenth of it.
TIMEOUT_S: Final = 2.0
TIMEOUT_MAX_S: Final = 30.0
# What a person looks at, and what a program gets at most.
_ROW_MAX: Final = 10_000
_ROW_MAX_MAX: Final = 1_000_000
_MEDIA_TYPES: Final[dict[str, AnswerForm]] = {
    "application/json": "json",
    "text/csv": "csv",
    "application/vnd.apache.arrow.stream": "arrow",
}


class SqlRequest(BaseModel):
    """One SELECT or EXPLAIN; `timeout_s` bounds how long its answer takes, and with that how old it may be."""

    model_config = ConfigDict(extra="forbid", strict=True)

    sql: str
    timeout_s: Annotated[float, Field(gt=0, le=TIMEOUT_MAX_S)] = TIMEOUT_S
    row_max: Annotated[int, Field(ge=1, le=_ROW_MAX_MAX)] = _ROW_MAX


def sql_routes(desk: SqlDesk) -> APIRouter:
    """Return the route of questions in SQL."""
    router = APIRouter(tags=["questions"])

    @router.post(
        "/v1/sql", summary="Ask a question in SQL over twins, telemetry_recent, things, jobs and processes"
    )
    async def ask_sql(body: SqlRequest, request: Request) -> Response:
        media_type = _accepted(request.headers.get("accept", "*/*"))
        answer = await desk.ask(
            body.sql, form=_MEDIA_TYPES[media_type], timeout_s=body.timeout_s, row_max=body.row_max
        )
        # For the forms that have no place for it.
        headers = {
            "Twinfleet-Age-Ms": str(_age_ms(answer)),
            "Twinfleet-Row-Count": str(answer.result.row_count),
        }
        if answer.read_at:
            headers["Twinfleet-Read-At"] = f"{min(answer.read_at.values()):.3f}"
        content = _document(answer) if media_type == "application/json" else answer.result.content
        return Response(content, media_type=media_type, headers=headers)

    return router


def _accepted(accept: str) -> str:
    """Return the first media type of an Accept header that there is; 406 if there is none."""
    for entry in accept.split(","):
        wanted = entry.partition(";")[0].strip().lower()
        for media_type in _MEDIA_TYPES:
            if wanted in (media_type, "*/*", media_type.partition("/")[0] + "/*"):
                return media_type
    raise HTTPException(406, f"answers come as {', '.join(_MEDIA_TYPES)}; none of them is accepted")


def _age_ms(answer: SqlAnswer) -> int:
    return math.ceil(answer.age_s * 1000)


def _document(answer: SqlAnswer) -> bytes:
    """Return the answer with what is known of it; the rows are JSON already."""
    result = answer.result
    return msgspec.json.encode(
        {
            "columns": [{"name": name, "type": kind} for name, kind in result.schema],
            "rows": msgspec.Raw(result.content),
            "row_count": result.row_count,
            "age_ms": _age_ms(answer),
            "shards": [{"shard": shard, "read_at": at} for shard, at in sorted(answer.read_at.items())],
        }
    )
