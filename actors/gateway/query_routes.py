"""POST /v1/query: a fleet query over all twins, with counts, statistics, buckets and names."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Annotated, Any, Final

import numpy as np
from fastapi import APIRouter, Response
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from actors.errors import AnswerTooLate
from actors.fleet import Fleet, FleetReading
from actors.gateway.problems import document
from actors.gateway.searching import FleetSearch, needs_registry
from actors.gateway.sql_routes import TIMEOUT_MAX_S, TIMEOUT_S
from twins.fleet_answer import FleetAnswer, FleetQuestion
from twins.query import parse

_PERCENTILES: Final = (1.0, 5.0, 25.0, 50.0, 75.0, 95.0, 99.0)
# Of each kind, what a person looks at, and what a program gets at most; who wants all of it asks in SQL.
_BUCKET_COUNT: Final = 100
_BUCKET_COUNT_MAX: Final = 10_000
_NAME_COUNT_MAX: Final = 10_000
Percentile = Annotated[float, Field(ge=0, le=100)]


class QueryRequest(BaseModel):
    """A fleet query; `field` asks for statistics of a numeric field, `group_by` for how many have each value of one.

    `names` asks for so many names, the first in order after `after`. `timeout_s` bounds how long the answer takes, and
    with that how old it may be.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    query: str
    field: str = ""
    percentiles: Annotated[list[Percentile], Field(max_length=100)] = list(_PERCENTILES)
    group_by: str = ""
    buckets: Annotated[int, Field(ge=1, le=_BUCKET_COUNT_MAX)] = _BUCKET_COUNT
    names: Annotated[int, Field(ge=0, le=_NAME_COUNT_MAX)] = 0
    after: str = ""
    timeout_s: Annotated[float, Field(gt=0, le=TIMEOUT_MAX_S)] = TIMEOUT_S

    def question(self, *, has_real: bool) -> FleetQuestion:
        """Return what the shards are asked."""
        return FleetQuestion(
            self.query, self.field, self.group_by, self.names, after=self.after, has_real=has_real
        )


def query_routes(fleet: Fleet, search: FleetSearch) -> APIRouter:
    """Return the route of fleet queries."""
    router = APIRouter(tags=["questions"])

    async def read(body: QueryRequest) -> FleetReading:
        # What only the registry knows is asked of it, and then of registered things as a whole.
        asks_registry = needs_registry(parse(body.query))
        question = body.question(has_real=not asks_registry)
        reading = await fleet.answer(question)
        if not asks_registry:
            return reading
        registered = FleetReading(await search.answer(question), {})
        return FleetReading.of(question, [reading, registered])

    @router.post("/v1/query", summary="Ask a fleet query over all twins: counts, statistics, buckets, names")
    async def ask_query(body: QueryRequest) -> Response:
        begun_s = time.monotonic()
        try:
            reading = await asyncio.wait_for(read(body), body.timeout_s)
        except TimeoutError:
            raise AnswerTooLate(body.timeout_s) from None
        age_ms = math.ceil(1000 * (time.monotonic() - begun_s))
        shards = [{"shard": shard, "read_at": at} for shard, at in sorted(reading.read_at.items())]
        return document({**_view(body, reading.answer), "age_ms": age_ms, "shards": shards})

    return router


def _view(body: QueryRequest, answer: FleetAnswer) -> dict[str, Any]:
    view: dict[str, Any] = {"count": answer.count}
    if body.field:
        view["statistics"] = _statistics(answer.values, body.percentiles)
    if body.group_by:
        largest = sorted(answer.groups.items(), key=lambda pair: (-pair[1], str(pair[0])))
        view["buckets"] = [{"value": value, "count": count} for value, count in largest[: body.buckets]]
        view["bucket_count"] = len(largest)
    if body.names:
        view["names"] = answer.names
    return view


def _statistics(values: NDArray[np.float64], percentiles: list[float]) -> dict[str, Any]:
    """Return the statistics of some numbers; each percentile is one of them: the least that as many do not exceed."""
    if not len(values):
        return {"count": 0}
    found = np.percentile(values, percentiles, method="inverted_cdf").tolist()
    return {
        "count": len(values),
        "min": float(values.min()),
        "max": float(values.max()),
        "mean": float(values.mean()),
        "sum": float(values.sum()),
        "deviation": float(values.std()),
        "percentiles": {f"{each:g}": value for each, value in zip(percentiles, found, strict=True)},
    }
