"""Fleet queries over the registered things: what the registry knows of them and, where a query asks, what twins do.

Nothing is indexed beforehand, so an answer is never stale. A query that shards can answer is answered by them; for
others, things are walked in name order, in pages, and twins are asked only where that is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from actors.errors import DescriptionError
from actors.fleet import Fleet, describe_request, reply_document
from actors.registry.records import ThingRecord
from actors.registry.registry import Registry
from twins.description import indexed
from twins.fleet_answer import FleetAnswer, FleetQuestion, answer_documents
from twins.query import Query, matches, parse
from twins.query_terms import ANY_FIELD

# The one index there is, and the version of its queries, by AWS IoT's names.
INDEX_NAME: Final = "AWS_Things"
QUERY_VERSION: Final = "2017-09-30"
# Things read at once: a twin's answer has some kilobytes.
_WALK_PAGE: Final = 500
# Twins asked for one answer, some seconds of work; beyond that the answer is a page with a token to go on from.
_TWINS_ASKED_MAX: Final = 20_000
# Fields that only the registry knows.
_REGISTRY_FIELDS: Final = frozenset({"thingId", "thingTypeName", "thingGroupNames", ANY_FIELD})
# Parts of a document that only the twin knows.
_TWIN_PARTS: Final = ("shadow", "connectivity", "deviceDefender")


@dataclass(frozen=True)
class SearchPage:
    """Things that a query asks for, in name order; `next_token` is where to go on, None at the end."""

    things: list[ThingRecord]
    next_token: str | None


class FleetSearch:
    """Answers fleet queries."""

    def __init__(self, fleet: Fleet, registry: Registry) -> None:
        self._fleet = fleet
        self._registry = registry

    async def page(self, query: Query, *, after: str, limit: int) -> SearchPage:
        """Return up to `limit` things that a query asks for, of those whose names follow `after`.

        There may be more even if there are fewer than `limit`: `next_token` tells.
        """
        asks_twins = needs_twins(query)
        if asks_twins and not needs_registry(query):
            return await self._page_of_shards(query, after=after, limit=limit)
        found: list[ThingRecord] = []
        examined = 0
        cursor: str | None = after
        while cursor is not None:
            page = await self._registry.things.page(after=cursor, limit=_WALK_PAGE)
            documents = await self.documents(page.things, with_twins=asks_twins)
            for thing, document in zip(page.things, documents, strict=True):
                if matches(query, document):
                    found.append(thing)
                    # One more than asked tells whether another page follows.
                    if len(found) > limit:
                        return SearchPage(found[:limit], found[limit - 1].name)
            cursor = page.next_cursor
            examined += len(page.things)
            if asks_twins and examined >= _TWINS_ASKED_MAX:
                return SearchPage(found, cursor)
        return SearchPage(found, None)

    async def _page_of_shards(self, query: Query, *, after: str, limit: int) -> SearchPage:
        """Return a page as `page` does, where the shards know all that is asked."""
        found: list[ThingRecord] = []
        cursor: str | None = after
        while cursor is not None and len(found) <= limit:
            # Also such twins as the registry does not know, or not any more.
            question = FleetQuestion(str(query), name_count_max=limit + 1, after=cursor, has_simulated=False)
            names = (await self._fleet.answer(question)).answer.names
            registered = await self._registry.things.find(names)
            found += [registered[name] for name in names if name in registered]
            cursor = names[-1] if len(names) > limit else None
        return SearchPage(found[:limit], found[limit - 1].name if len(found) > limit else None)

    async def answer(self, question: FleetQuestion) -> FleetAnswer:
        """Return the answer of the registered things to a fleet query, from a document of each."""
        query = parse(question.query)
        parts, cursor = [], ""
        asks_twins = needs_twins(query) or any(
            asked.partition(".")[0] in _TWIN_PARTS for asked in (question.field, question.group_by)
        )
        while True:
            page = await self._registry.things.page(after=cursor, limit=_WALK_PAGE)
            documents = await self.documents(page.things, with_twins=asks_twins)
            parts.append(answer_documents(question, [each for each in documents if matches(query, each)]))
            if page.next_cursor is None:
                return FleetAnswer.of(question, parts)
            cursor = page.next_cursor

    async def dynamic_groups_of(self, thing: ThingRecord) -> list[str]:
        """Return the names of the dynamic groups whose queries ask for a thing, in order."""
        groups = [(group.name, parse(group.query)) for group in await self._registry.groups.dynamic()]
        if not groups:
            return []
        with_twins = any(needs_twins(query) for _, query in groups)
        (document,) = await self.documents([thing], with_twins=with_twins)
        return [name for name, query in groups if matches(query, document)]

    async def documents(self, things: Sequence[ThingRecord], *, with_twins: bool) -> list[dict[str, Any]]:
        """Return the documents of things as `twins.query.matches` reads them, with what only twins know or without."""
        documents = [_registry_part(thing) for thing in things]
        if with_twins:
            asked = [describe_request(thing.name) for thing in things]
            replies = await self._fleet.ask_many(asked)
            for document, reply in zip(documents, replies, strict=True):
                # Between the registry's answer and the twin's, a thing may go.
                if reply.status == 200:
                    document.update(indexed(reply_document(reply)))
        return documents


def needs_twins(query: Query) -> bool:
    """Tell whether a query asks for what only the twins know."""
    return any(query.needs(part) for part in _TWIN_PARTS)


def needs_registry(query: Query) -> bool:
    """Tell whether a query asks for what only the registry knows."""
    return not query.fields().isdisjoint(_REGISTRY_FIELDS)


def check_index(index_name: str | None, query_version: str | None) -> None:
    """Refuse, with DescriptionError, an index or a version of the query grammar that is not here."""
    if index_name not in (None, "", INDEX_NAME):
        raise DescriptionError(f"index {index_name!r}", f"is not here; ask {INDEX_NAME}")
    if query_version not in (None, "", QUERY_VERSION):
        raise DescriptionError(f"query version {query_version!r}", f"is not here; ask with {QUERY_VERSION}")


def _registry_part(thing: ThingRecord) -> dict[str, Any]:
    return {
        "thingName": thing.name,
        "thingId": thing.thing_id,
        "thingTypeName": thing.thing_type or None,
        "thingGroupNames": thing.groups,
        "attributes": thing.attributes,
        "model": thing.model,
        "origin": "real",
    }
