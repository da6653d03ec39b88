"""Who is connected: announced on `$aws/events/presence` and `.../subscriptions`, and told to the twins of things.

A consumer of the broker's events. What a batch of events changes is worked out when it settles: certificates are looked
up, sessions get their identifier and version, and all of it is kept in Redis in one step, together with what is to be
told and with how far the log was read. Then it is told; a process that dies in between tells it after its next start,
with the same identifiers and versions. So each event of the broker counts once, and is announced at least once.

The `clientId` of a thing's session is the thing's name, whatever its certificate's common name is; of an application or
a claim it is the common name. A client's versions grow for as long as the store lives. While an old and a new
certificate of one thing overlap, both may be connected: each has a version of its own, and the twin believes the
newest.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, Final

import msgspec
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from actors.broker_log import CLIENT_INITIATED, BrokerEvent
from actors.mqtt_events import EventConsumer
from actors.registry.certificates import Certificates
from actors.registry.records import CertificateRecord
from actors.registry.store import store_errors
from actors.sessions import OpenSessions, SessionChange, SessionClosed, SessionOpened, TopicsChanged
from twins.messages import Connectivity, Operation, Publish, Reply, Request

# A local store answers in well under a millisecond; beyond this it hangs, and its callers must not.
_ANSWER_TIMEOUT_S: Final = 5.0
# Changes that are kept and told at once: more when a broker with many sessions has died.
_CHUNK_MAX: Final = 1_000
# As many as one SUBSCRIBE of AWS IoT may have.
_TOPICS_PER_EVENT_MAX: Final = 8
_EVENTS_TOPIC: Final = "$aws/events"


class Session(msgspec.Struct, frozen=True):
    """An open session: whose it is, under which names it is told, and from which port it came."""

    client_id: str
    # '' for applications and claims.
    thing_name: str
    # The certificate's id; '' where the certificate is not registered (any more).
    principal: str
    identifier: str
    version: int
    address: str
    source_port: int


class _News(msgspec.Struct):
    """What is kept and not told yet."""

    publishes: list[Publish] = []
    requests: list[Request] = []

    def __bool__(self) -> bool:
        return bool(self.publishes or self.requests)


class PresenceStore:
    """What presence must not forget, in one hash of the platform's Redis; methods raise StoreError."""

    def __init__(self, url: str, *, prefix: str = "twinfleet:") -> None:
        self._key = f"{prefix}presence"
        self._client: redis.asyncio.Redis = redis.asyncio.Redis.from_url(
            url,
            socket_timeout=_ANSWER_TIMEOUT_S,
            socket_connect_timeout=_ANSWER_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        )

    async def read(self) -> dict[str, bytes]:
        """Return all that is kept."""
        with store_errors():
            return {
                key.decode(): value async for key, value in self._client.hscan_iter(self._key, count=1000)
            }

    async def write(self, changes: Mapping[str, bytes | None]) -> None:
        """Keep all changes or none; None removes. Done twice, nothing changes."""
        kept = {name: value for name, value in changes.items() if value is not None}
        removed = [name for name, value in changes.items() if value is None]
        with store_errors():
            async with self._client.pipeline(transaction=True) as pipeline:
                if kept:
                    pipeline.hset(self._key, items=[each for pair in kept.items() for each in pair])
                if removed:
                    pipeline.hdel(self._key, *removed)
                await pipeline.execute()

    async def close(self) -> None:
        """Let go of the connections to Redis."""
        await self._client.aclose()


class Presence(EventConsumer):
    """Tells who came and went. `open` comes first."""

    def __init__(
        self,
        store: PresenceStore,
        certificates: Certificates,
        *,
        publish: Callable[[Sequence[Publish]], Awaitable[None]],
        ask_many: Callable[[Sequence[Request]], Awaitable[list[Reply]]],
    ) -> None:
        """Prepare; `publish` reaches the broker, `ask_many` the twins."""
        self._store = store
        self._certificates = certificates
        self._publish = publish
        self._ask_many = ask_many
        self._sessions: dict[str, Session] = {}
        self._versions: dict[str, int] = {}
        self._open = OpenSessions({})
        # As it is kept: whoever came with MQTT 5 last.
        self._fifth: set[str] = set()
        self._changes: list[SessionChange] = []
        self._was_told = False
        self._news = _News()

    async def open(self) -> str:
        """Read what is kept, and return how far the log was read ('' where nothing is kept)."""
        kept = await self._store.read()
        for name, value in kept.items():
            kind, _, key = name.partition(":")
            if kind == "session":
                self._sessions[key] = msgspec.json.decode(value, type=Session)
            elif kind == "version":
                self._versions[key] = int(value)
            elif kind == "fifth":
                self._fifth.add(key)
        if "news" in kept:
            self._news = msgspec.msgpack.decode(kept["news"], type=_News)
        ports = {name: each.source_port for name, each in self._sessions.items()}
        self._open = OpenSessions(ports, fifth=self._fifth)
        return kept.get("position", b"").decode()

    def session_of(self, common_name: str) -> Session | None:
        """Return the open session of a common name, as of the last batch that has settled."""
        return self._sessions.get(common_name)

    def thing_of(self, common_name: str) -> str | None:
        """Return the thing for which a common name has an open session, as of the last batch; None for none."""
        session = self._sessions.get(common_name)
        return None if session is None else session.thing_name or None

    def away(self, ahead: Iterable[BrokerEvent]) -> list[str]:
        """Return the common names of MQTT 5 that are not connected, after the events `ahead` of those told so far."""
        return self._open.after(ahead).away()

    async def on_broker_event(self, event: BrokerEvent) -> None:
        """Note what an event changes, until `settle`."""
        self._was_told = True
        self._changes += self._open.take(event)

    async def settle(self, position: str) -> None:
        """Keep and tell all that has changed; `position` is kept with the last of it."""
        await self._tell()
        while self._changes:
            chunk = self._changes[:_CHUNK_MAX]
            is_last = len(chunk) == len(self._changes)
            await self._keep(chunk, position if is_last else None)
            del self._changes[:_CHUNK_MAX]
            await self._tell()
            self._was_told = not is_last
        if self._was_told:
            await self._write({"position": position.encode()})
            self._was_told = False

    async def _keep(self, changes: Sequence[SessionChange], position: str | None) -> None:
        """Work out what follows from the changes and keep it; nothing here has changed before it is kept."""
        draft = _Draft(self._sessions, self._versions)
        names = list({each.common_name for each in changes if isinstance(each, SessionOpened)})
        certificates = await self._certificates.of_common_names(names)
        for _, same in groupby(changes, key=_grouping):
            draft.apply(list(same), certificates)
        kept: dict[str, bytes | None] = dict(draft.kept)
        kept["news"] = msgspec.msgpack.encode(draft.news)
        if position is not None:
            kept["position"] = position.encode()
        await self._write(kept)
        self._sessions, self._versions, self._news = draft.sessions, draft.versions, draft.news

    async def _write(self, changes: Mapping[str, bytes | None]) -> None:
        """Keep changes, and with them who came with MQTT 5 last: never behind the position."""
        fifth = self._open.fifth
        came: dict[str, bytes | None] = {f"fifth:{name}": b"" for name in fifth - self._fifth}
        ended: dict[str, bytes | None] = {f"fifth:{name}": None for name in self._fifth - fifth}
        await self._store.write({**changes, **came, **ended})
        self._fifth = fifth

    async def _tell(self) -> None:
        """Tell what is kept and not told yet; if that fails, all of it is told again."""
        news = self._news
        if not news:
            return
        await self._publish(news.publishes)
        if news.requests:
            await self._ask_many(news.requests)
        await self._store.write({"news": None})
        self._news = _News()


class _Draft:
    """Sessions and versions as they become, what of them has to be kept, and what is to be told."""

    def __init__(self, sessions: Mapping[str, Session], versions: Mapping[str, int]) -> None:
        self.sessions = dict(sessions)
        self.versions = dict(versions)
        self.kept: dict[str, bytes | None] = {}
        self.news = _News()

    def apply(self, same: Sequence[SessionChange], certificates: Mapping[str, CertificateRecord]) -> None:
        """Apply one change, or changes of topics of one client that follow each other."""
        first = same[0]
        if isinstance(first, SessionOpened):
            self._opened(first, certificates.get(first.common_name))
        elif isinstance(first, SessionClosed):
            self._closed(first)
        else:
            self._topics([each for each in same if isinstance(each, TopicsChanged)])

    def _opened(self, change: SessionOpened, certificate: CertificateRecord | None) -> None:
        thing_name = certificate.thing_name if certificate is not None else ""
        client_id = thing_name or change.common_name
        version = self.versions.get(client_id, 0) + 1
        session = Session(
            client_id,
            thing_name,
            certificate.certificate_id if certificate is not None else "",
            str(uuid.uuid4()),
            version,
            change.address,
            change.source_port,
        )
        self.versions[client_id] = version
        self.kept[f"version:{client_id}"] = str(version).encode()
        self.sessions[change.common_name] = session
        self.kept[f"session:{change.common_name}"] = msgspec.json.encode(session)
        self._presence(session, change.at_s, "connected", {"ipAddress": change.address})
        self._connectivity(session, change.at_s, "")

    def _closed(self, change: SessionClosed) -> None:
        session = self.sessions.pop(change.common_name, None)
        if session is None:
            return
        self.kept[f"session:{change.common_name}"] = None
        why = {
            "clientInitiatedDisconnect": change.reason == CLIENT_INITIATED,
            "disconnectReason": change.reason,
        }
        self._presence(session, change.at_s, "disconnected", why)
        self._connectivity(session, change.at_s, change.reason)

    def _topics(self, changes: Sequence[TopicsChanged]) -> None:
        session = self.sessions.get(changes[0].common_name)
        if session is None:
            return
        kind = "subscribed" if changes[0].is_subscribed else "unsubscribed"
        for start in range(0, len(changes), _TOPICS_PER_EVENT_MAX):
            part = changes[start : start + _TOPICS_PER_EVENT_MAX]
            body = _event(session, part[0].at_s, kind) | {"topics": [each.topic_filter for each in part]}
            topic = f"{_EVENTS_TOPIC}/subscriptions/{kind}/{session.client_id}"
            self.news.publishes.append(Publish(topic, msgspec.json.encode(body)))

    def _presence(self, session: Session, at_s: float, kind: str, more: Mapping[str, Any]) -> None:
        body = _event(session, at_s, kind) | {"versionNumber": session.version, **more}
        topic = f"{_EVENTS_TOPIC}/presence/{kind}/{session.client_id}"
        self.news.publishes.append(Publish(topic, msgspec.json.encode(body)))

    def _connectivity(self, session: Session, at_s: float, reason: str) -> None:
        if session.thing_name:
            state = Connectivity(not reason, int(at_s * 1000), reason, session.identifier, session.version)
            payload = msgspec.json.encode(state)
            request = Request(Operation.CONNECTIVITY, session.thing_name, payload, is_direct=True)
            self.news.requests.append(request)


def _event(session: Session, at_s: float, kind: str) -> dict[str, Any]:
    return {
        "clientId": session.client_id,
        "timestamp": int(at_s * 1000),
        "eventType": kind,
        "sessionIdentifier": session.identifier,
        "principalIdentifier": session.principal,
    }


def _grouping(change: SessionChange) -> tuple[type, str, bool]:
    return (
        type(change),
        change.common_name,
        isinstance(change, TopicsChanged) and change.is_subscribed,
    )
