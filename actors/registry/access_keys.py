"""The access keys of the registry: with which a program signs its requests, and what it may do with them.

Owns their records; the secrets arrive sealed. One process writes, so what it remembers is what is true.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import Final, Literal

import msgspec

from actors.errors import AccessKeyExists, AccessKeyNotFound, DescriptionError
from actors.registry.store import RegistryStore, encode
from twins.sharding import is_name

Role = Literal["viewer", "operator", "admin"]

# As AWS's: clients and their secret scanners know the form. 16 of 32 letters are 80 bits, so that none comes twice.
_ID_PREFIX: Final = "AKIA"
_ID_ALPHABET: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_ID_LENGTH: Final = 16
# AWS's secrets have 40 characters, too: 240 bits.
_SECRET_BYTES: Final = 30
# A machine or a person has one or two; all are kept in memory.
COUNT_MAX: Final = 10_000
# Who else stands in the audit log: the holder of the operators' token, and the platform itself.
_RESERVED_NAMES: Final = frozenset({"operator", "platform"})


class AccessKeyRecord(msgspec.Struct, frozen=True):
    """An access key; `sealed_secret` is what the vault made of its secret."""

    access_key_id: str
    name: str
    role: Role
    sealed_secret: bytes
    created_at_s: int
    status: Literal["ACTIVE"] = "ACTIVE"


def new_access_key_id() -> str:
    """Return a random id of 20 characters."""
    return _ID_PREFIX + "".join(secrets.choice(_ID_ALPHABET) for _ in range(_ID_LENGTH))


def new_secret() -> str:
    """Return a random secret of 40 characters."""
    return secrets.token_urlsafe(_SECRET_BYTES)


class AccessKeys:
    """The access keys; see `RegistryStore` for what every method may raise."""

    def __init__(self, store: RegistryStore) -> None:
        self._store = store
        # By id; None until somebody asks.
        self._known: dict[str, AccessKeyRecord] | None = None
        # A change and a reading do not overlap: what was read before a key was deleted would count after it.
        self._turn = asyncio.Lock()

    async def all(self) -> list[AccessKeyRecord]:
        """Return all access keys in name order."""
        names = [name async for name in self._store.all_names("access_keys")]
        return await self._store.read_all("access_key", names, AccessKeyRecord)

    async def find(self, access_key_id: str) -> AccessKeyRecord | None:
        """Return the key of that id, None if there is none; from memory, so only in the process that writes."""
        known = self._known
        if known is None:
            async with self._turn:
                known = await self._by_id()
        return known.get(access_key_id)

    async def _by_id(self) -> dict[str, AccessKeyRecord]:
        """Return the keys by their ids; for whoever has the turn."""
        if self._known is None:
            self._known = {record.access_key_id: record for record in await self.all()}
        return self._known

    async def add(self, record: AccessKeyRecord, *, by: str) -> None:
        """Keep a new access key; AccessKeyExists if its name is taken, DescriptionError if it may not be one."""
        if not is_name(record.name) or record.name in _RESERVED_NAMES:
            allowed = (
                "1 to 128 of letters, digits, colon, underscore and hyphen, other than operator, platform"
            )
            raise DescriptionError("access key name", f"{record.name!r} is none; take {allowed}")
        async with self._turn:
            if len(await self._by_id()) >= COUNT_MAX:
                raise DescriptionError("access key", f"{COUNT_MAX} exist, which is the most; delete some")
            await self._keep(record, by)

    async def _keep(self, record: AccessKeyRecord, by: str) -> None:
        key = self._store.key("access_key", record.name)
        commands = [
            ["SET", key, encode(record)],
            ["ZADD", self._store.key("access_keys"), "0", record.name],
        ]
        # Until the store has answered, whether it is kept is unknown.
        self._known = None
        if await self._store.change(
            "access_key.create", record.name, commands, conditions=[(key, "")], by=by
        ):
            raise AccessKeyExists(record.name)

    async def remove(self, name: str, *, by: str) -> AccessKeyRecord:
        """Forget an access key, from now on, and return what it was; AccessKeyNotFound if there is none."""
        key = self._store.key("access_key", name)
        async with self._turn:
            record = await self._store.read(key, AccessKeyRecord)
            if record is None:
                raise AccessKeyNotFound(name)
            commands = [["DEL", key], ["ZREM", self._store.key("access_keys"), name]]
            try:
                await self._store.change("access_key.delete", name, commands, by=by)
            finally:
                self._known = None
        return record
