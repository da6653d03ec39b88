"""What the platform knows of things, certificates and standing fleets, kept in its Redis.

Owns the records, their rules and how they change. One process writes: the gateway. Every change is one script
in Redis that checks what it builds on, appends to the stream `registry` who changed what and when, and writes
the records and their indexes; it happens whole or not at all. Whoever opens the registry begins a new epoch
in that stream, and from then on the store refuses the changes of an older writer.

Not here: keys and signatures (`pki`), twins (`fleet`), and in which order they change together (`gateway`).
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal, TypeVar

import msgspec
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from actors.errors import (
    DescriptionError,
    FleetExists,
    FleetNotFound,
    StoreError,
    ThingExists,
    ThingNotFound,
)
from actors.pki import IssuedCertificate, is_certificate_id
from actors.store_errors import is_fenced, store_error
from twins.clock import Clock
from twins.errors import InvariantError
from twins.messages import GroupOrder
from twins.model import model_named
from twins.sharding import NamePattern, is_thing_name

_Record = TypeVar("_Record")

# A local store answers in well under a millisecond; beyond this it hangs, and its callers must not.
_ANSWER_TIMEOUT_S: Final = 5.0
# AWS IoT takes as many for a thing of a type.
ATTRIBUTE_COUNT_MAX: Final = 50
# The bounds of AWS IoT's control plane.
_ATTRIBUTE_NAME: Final = re.compile(r"[a-zA-Z0-9_.,@/:#-]{1,128}")
_ATTRIBUTE_VALUE: Final = re.compile(r"[a-zA-Z0-9_.,@/:#=\[\]-]{0,800}")
# `-` and the longest number of a fleet (2**32 devices, 10 digits) must still fit a thing name of 128.
FLEET_NAME_LENGTH_MAX: Final = 117
# Names that Redis hands over at once while a whole index is walked.
_WALK_PAGE: Final = 1000

# KEYS[1]: the stream. ARGV: entry id; the entry's fields and values; pairs of key and the content it must
# have ('' for none); the writing commands. Answers 0, or the number of the first condition that does not
# hold. The append goes first: it is what refuses an older epoch, and a refused script has written nothing.
_COMMIT: Final = """
for position, condition in ipairs(cjson.decode(ARGV[3])) do
    if (redis.call('GET', condition[1]) or '') ~= condition[2] then return position end
end
redis.call('XADD', KEYS[1], ARGV[1], unpack(cjson.decode(ARGV[2])))
for _, command in ipairs(cjson.decode(ARGV[4])) do redis.call(unpack(command)) end
return 0
"""


class ThingRecord(msgspec.Struct, frozen=True):
    """A registered thing. A DELETING one has lost its certificates and waits for the rest of its removal."""

    name: str
    model: str
    attributes: dict[str, str]
    created_at_s: int
    certificate_ids: list[str]
    status: Literal["ACTIVE", "DELETING"] = "ACTIVE"


class CertificateRecord(msgspec.Struct, frozen=True):
    """A certificate of a thing; `serial` in decimal digits, because it is wider than 64 bits."""

    certificate_id: str
    thing_name: str
    common_name: str
    serial: str
    pem: str
    created_at_s: int
    not_after_s: int
    status: Literal["ACTIVE", "REVOKED"] = "ACTIVE"


class FleetRecord(msgspec.Struct, frozen=True):
    """A standing simulated fleet. Its group exists in the shards for certain only while it is ACTIVE."""

    group: GroupOrder
    created_at_s: int
    status: Literal["CREATING", "ACTIVE", "DELETING"] = "CREATING"


class ThingPage(msgspec.Struct, frozen=True):
    """Things in name order; `next_cursor` gets the page after this one, None if this is the last."""

    things: list[ThingRecord]
    next_cursor: str | None


def check_thing(name: str, model: str, attributes: Mapping[str, str]) -> None:
    """Refuse, with DescriptionError or ModelError, what may not be registered as a thing."""
    if not is_thing_name(name):
        problem = f"{name!r} is none; take 1 to 128 of letters, digits, colon, underscore and hyphen"
        raise DescriptionError("thing name", problem)
    # The device of another thing, with a long name, has its certificate's id for a user name, and every user name may
    # write the topics of the thing of that name: so there must be no such thing.
    if is_certificate_id(name):
        problem = f"{name!r} looks like a certificate id, 64 hexadecimal digits; take a name that does not"
        raise DescriptionError("thing name", problem)
    model_named(model)
    if len(attributes) > ATTRIBUTE_COUNT_MAX:
        raise DescriptionError(
            "attributes",
            f"{len(attributes)} are too many; {ATTRIBUTE_COUNT_MAX} at most",
        )
    for key, value in attributes.items():
        if not _ATTRIBUTE_NAME.fullmatch(key):
            problem = "a name is 1 to 128 of letters, digits and _.,@/:#-"
            raise DescriptionError(f"attribute {key!r}", problem)
        if not _ATTRIBUTE_VALUE.fullmatch(value):
            problem = "a value is at most 800 of letters, digits and _.,@/:#=[]-"
            raise DescriptionError(f"attribute {key!r}", problem)


def check_fleet_name(name: str) -> None:
    """Refuse, with DescriptionError, a name that cannot begin the thing names of a standing fleet."""
    if not is_thing_name(name) or len(name) > FLEET_NAME_LENGTH_MAX:
        allowed = f"1 to {FLEET_NAME_LENGTH_MAX} of letters, digits, colon, underscore and hyphen"
        raise DescriptionError("fleet name", f"{name!r} is none; take {allowed}")


class Registry:
    """The registry of one platform, open for reading, and for changing while no later writer has opened it.

    Every method raises StoreError when Redis does not answer or refuses; after a change that failed so,
    whether it was kept is unknown, and the same change may be tried again.
    """

    def __init__(self, client: redis.asyncio.Redis, clock: Clock, *, prefix: str) -> None:
        self._client = client
        self._clock = clock
        self._stream = f"{prefix}registry"
        self._commit = client.register_script(_COMMIT)
        self._epoch = 0
        self._sequence = 0

    @classmethod
    async def open(
        cls, url: str, clock: Clock, *, prefix: str = "twinfleet:", is_writer: bool = True
    ) -> Registry:
        """Return the registry kept in the Redis at `url`; with `is_writer`, this process is now its one writer."""
        client: redis.asyncio.Redis = redis.asyncio.Redis.from_url(
            url,
            decode_responses=True,
            socket_timeout=_ANSWER_TIMEOUT_S,
            socket_connect_timeout=_ANSWER_TIMEOUT_S,
            # A change that Redis made before the connection broke must not be made a second time.
            retry=Retry(NoBackoff(), 0),
        )
        registry = cls(client, clock, prefix=prefix)
        if is_writer:
            try:
                await registry._begin_epoch()
            except StoreError:
                await registry.close()
                raise
        return registry

    async def close(self) -> None:
        """Let go of the connections to Redis."""
        await self._client.aclose()

    async def thing(self, name: str) -> ThingRecord:
        """Return a registered thing; ThingNotFound if there is none of that name."""
        record = await self._read(self._key("thing", name), ThingRecord)
        if record is None:
            raise ThingNotFound(name)
        return record

    async def things(self, *, after: str = "", limit: int = 100) -> ThingPage:
        """Return up to `limit` things in name order, those that follow the name `after` ('': from the first)."""
        # One more than asked tells whether another page follows.
        names = await self._names_after("things", after, limit + 1)
        found = await self._read_all("thing", names[:limit], ThingRecord)
        return ThingPage(found, names[limit - 1] if len(names) > limit else None)

    async def thing_count(self) -> int:
        """Return how many things are registered."""
        with _store_errors():
            return int(await self._client.zcard(self._key("things")))

    async def first_thing_of(self, pattern: NamePattern, count: int) -> str | None:
        """Return the first registered name that one of `count` devices of the pattern would have; None if free."""
        after = pattern.prefix
        while names := await self._names_after("things", after, _WALK_PAGE):
            for name in names:
                if not name.startswith(pattern.prefix):
                    return None
                index = pattern.index(name)
                if index is not None and index < count:
                    return name
            after = names[-1]
        return None

    async def certificates(self, thing: ThingRecord) -> list[CertificateRecord]:
        """Return the certificates of a thing, in the order of their issue."""
        return await self._read_all("certificate", thing.certificate_ids, CertificateRecord)

    async def certificate(self, certificate_id: str) -> CertificateRecord | None:
        """Return the certificate of that id, revoked or not, also of a thing long removed; None if unknown."""
        return await self._read(self._key("certificate", certificate_id), CertificateRecord)

    async def acl_entries(self) -> dict[str, str]:
        """Return the thing name for each common name that is a certificate id instead of a thing name."""
        with _store_errors():
            found: dict[str, str] = await _awaited(self._client.hgetall(self._key("acl")))
        return found

    async def add_thing(
        self,
        thing: ThingRecord,
        certificate: IssuedCertificate,
        *,
        by: str = "operator",
    ) -> CertificateRecord:
        """Register a thing together with its certificate, and return the certificate's record.

        ThingExists if the name is taken; DescriptionError if the certificate's key is known already.
        """
        record = CertificateRecord(
            certificate_id=certificate.certificate_id,
            thing_name=thing.name,
            common_name=certificate.common_name,
            serial=str(certificate.serial),
            pem=certificate.certificate_pem,
            created_at_s=thing.created_at_s,
            not_after_s=int(certificate.expires_at_s),
        )
        thing_key = self._key("thing", thing.name)
        certificate_key = self._key("certificate", record.certificate_id)
        commands = [
            [
                "SET",
                thing_key,
                _encode(msgspec.structs.replace(thing, certificate_ids=[record.certificate_id])),
            ],
            ["SET", certificate_key, _encode(record)],
            ["ZADD", self._key("things"), "0", thing.name],
        ]
        if record.common_name != thing.name:
            commands.append(["HSET", self._key("acl"), record.common_name, thing.name])
        conditions = [(thing_key, ""), (certificate_key, "")]
        failed = await self._change("thing.create", thing.name, commands, conditions=conditions, by=by)
        if failed == 1:
            raise ThingExists(
                thing.name,
                "is registered already; delete it first, or choose another name",
            )
        if failed:
            problem = "its key has been certified before; make a new key for each device"
            raise DescriptionError("the certificate signing request", problem)
        return record

    async def begin_removal(self, name: str, *, by: str = "operator") -> list[CertificateRecord]:
        """Mark a thing DELETING and its certificates REVOKED, and return these; done twice, nothing changes."""
        key = self._key("thing", name)
        # A change builds on the very text that it read, whatever version of this program wrote it.
        text = await self._text(key)
        if not text:
            raise ThingNotFound(name)
        thing = _decode(text, ThingRecord, key=key)
        revoked = [
            msgspec.structs.replace(certificate, status="REVOKED")
            for certificate in await self.certificates(thing)
        ]
        if thing.status == "DELETING":
            return revoked
        commands = [
            ["SET", key, _encode(msgspec.structs.replace(thing, status="DELETING"))],
            ["ZADD", self._key("removals"), "0", name],
        ]
        for certificate in revoked:
            certificate_key = self._key("certificate", certificate.certificate_id)
            commands.append(["SET", certificate_key, _encode(certificate)])
            commands.append(["HDEL", self._key("acl"), certificate.common_name])
        conditions = [(key, text)]
        if await self._change("thing.revoke", name, commands, conditions=conditions, by=by):
            raise ThingNotFound(name)
        return revoked

    async def removals(self) -> list[str]:
        """Return the names of the things whose removal has begun and not ended."""
        return [name async for name in self._all_names("removals")]

    async def remove_thing(self, name: str, *, by: str = "operator") -> None:
        """Forget a thing that is DELETING; its revoked certificates stay known. ThingNotFound if there is none."""
        if (await self.thing(name)).status != "DELETING":
            raise InvariantError(f"thing {name!r} is to be forgotten while its certificates are in force")
        commands = [
            ["DEL", self._key("thing", name)],
            ["ZREM", self._key("things"), name],
            ["ZREM", self._key("removals"), name],
        ]
        await self._change("thing.delete", name, commands, by=by)

    async def fleet(self, name: str) -> FleetRecord:
        """Return a standing fleet; FleetNotFound if there is none of that name."""
        record = await self._read(self._key("fleet", name), FleetRecord)
        if record is None:
            raise FleetNotFound(name)
        return record

    async def fleets(self) -> list[FleetRecord]:
        """Return all standing fleets in name order."""
        names = [name async for name in self._all_names("fleets")]
        return await self._read_all("fleet", names, FleetRecord)

    async def add_fleet(self, fleet: FleetRecord, *, by: str = "operator") -> None:
        """Keep a new standing fleet; FleetExists if the name is taken."""
        name = fleet.group.name
        key = self._key("fleet", name)
        commands = [
            ["SET", key, _encode(fleet)],
            ["ZADD", self._key("fleets"), "0", name],
        ]
        if await self._change("fleet.create", name, commands, conditions=[(key, "")], by=by):
            raise FleetExists(name, "exists already; delete it first, or choose another name")

    async def set_fleet_status(
        self, name: str, status: Literal["ACTIVE", "DELETING"], *, by: str = "operator"
    ) -> FleetRecord:
        """Change the status of a standing fleet and return the changed record; FleetNotFound if there is none."""
        key = self._key("fleet", name)
        text = await self._text(key)
        if not text:
            raise FleetNotFound(name)
        fleet = _decode(text, FleetRecord, key=key)
        changed = msgspec.structs.replace(fleet, status=status)
        if changed != fleet:
            commands = [["SET", key, _encode(changed)]]
            action = f"fleet.{status.lower()}"
            if await self._change(action, name, commands, conditions=[(key, text)], by=by):
                raise FleetNotFound(name)
        return changed

    async def remove_fleet(self, name: str, *, by: str = "operator") -> None:
        """Forget a standing fleet; forgetting one that is not there changes nothing."""
        commands = [
            ["DEL", self._key("fleet", name)],
            ["ZREM", self._key("fleets"), name],
        ]
        await self._change("fleet.delete", name, commands, by=by)

    def _key(self, kind: str, name: str | None = None) -> str:
        return f"{self._stream}:{kind}" if name is None else f"{self._stream}:{kind}:{name}"

    async def _begin_epoch(self) -> None:
        with _store_errors():
            newest = await self._client.xrevrange(self._stream, count=1)
        self._epoch = int(str(newest[0][0]).partition("-")[0]) + 1 if newest else 1
        await self._change("registry.open", "", [], by="platform")

    async def _change(
        self,
        action: str,
        subject: str,
        commands: Sequence[Sequence[str]],
        *,
        conditions: Sequence[tuple[str, str]] = (),
        by: str,
    ) -> int:
        """Commit one change; return 0, or the number (from 1) of the condition that does not hold."""
        if self._epoch == 0:
            raise InvariantError("the registry was opened for reading only")
        entry_id = f"{self._epoch}-{self._sequence}"
        self._sequence += 1
        at = f"{self._clock.now_s():.3f}"
        fields = ["at", at, "by", by, "action", action, "subject", subject]
        parts = [msgspec.json.encode(part).decode() for part in (fields, conditions, commands)]
        with _store_errors():
            return int(await self._commit(keys=[self._stream], args=[entry_id, *parts]))

    async def _read(self, key: str, kind: type[_Record]) -> _Record | None:
        text = await self._text(key)
        return _decode(text, kind, key=key) if text else None

    async def _text(self, key: str) -> str:
        with _store_errors():
            return str(await self._client.get(key) or "")

    async def _read_all(self, kind_of_key: str, names: Sequence[str], kind: type[_Record]) -> list[_Record]:
        if not names:
            return []
        keys = [self._key(kind_of_key, name) for name in names]
        with _store_errors():
            texts = await self._client.mget(keys)
        # What was removed since its name was read is left out.
        return [
            _decode(str(text), kind, key=key)
            for key, text in zip(keys, texts, strict=True)
            if text is not None
        ]

    async def _names_after(self, index: str, after: str, limit: int) -> list[str]:
        start = f"({after}" if after else "-"
        with _store_errors():
            names = await self._client.zrangebylex(self._key(index), start, "+", start=0, num=limit)
        return [str(name) for name in names]

    async def _all_names(self, index: str) -> AsyncIterator[str]:
        after = ""
        while names := await self._names_after(index, after, _WALK_PAGE):
            for name in names:
                yield name
            after = names[-1]


def new_thing(name: str, model: str, attributes: Mapping[str, str], *, now_s: float) -> ThingRecord:
    """Return the record of a thing that is about to be registered; raises as `check_thing`."""
    check_thing(name, model, attributes)
    return ThingRecord(name, model, dict(attributes), int(now_s), [])


def _encode(record: msgspec.Struct) -> str:
    return msgspec.json.encode(record).decode()


def _decode(text: str, kind: type[_Record], *, key: str) -> _Record:
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.DecodeError as error:
        raise StoreError(f"{key} in Redis is damaged ({error}); restore Redis from a backup") from None


async def _awaited(answer: Any) -> Any:
    # redis-py types some answers as "either awaited or not".
    return await answer


@contextmanager
def _store_errors() -> Iterator[None]:
    try:
        yield
    except RedisError as error:
        if is_fenced(error):
            problem = "another process has opened the registry for writing since; restart the platform"
            raise StoreError(problem) from error
        raise store_error(error, "the registry") from error
