"""Provisioning in the registry: the templates, and the ownership tokens of certificates that wait for their thing.

A template is kept as the document that it came as. A token is kept as its hash only, beside the certificate that it is
for; it counts once it has been handed over to the device that asked, until it is used or its time is over.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from typing import Final

import msgspec

from actors.errors import RecordExists, RecordNotFound
from actors.registry.store import RegistryStore, encode, store_errors

# AWS IoT's: a device that does not come back within an hour begins anew.
TOKEN_LIFE_S: Final = 3_600
# 256 bits.
_SECRET_BYTES: Final = 32
# Digits of a time in seconds, so that the order of the texts is that of the times until the year 33658.
_TIME_DIGITS: Final = 12
_KIND: Final = "provisioning template"


class TemplateRecord(msgspec.Struct, frozen=True):
    """A provisioning template: its document, and its pre-provisioning hook ('' for none)."""

    name: str
    body: str
    created_at_s: int
    hook: str = ""


class TokenRecord(msgspec.Struct, frozen=True):
    """The ownership token of a certificate; `claim` is the name of the claim with which it was asked for."""

    certificate_id: str
    claim: str
    token_hash: str
    expires_at_s: int
    is_handed_over: bool = False

    def proves(self, token: str, *, claim: str, now_s: float) -> bool:
        """Tell whether `token`, shown by a device with `claim`, is this one and counts at present."""
        is_same = hmac.compare_digest(_hash(token), self.token_hash)
        return is_same and self.is_handed_over and claim == self.claim and now_s < self.expires_at_s


def new_token(certificate_id: str, claim: str, *, now_s: float) -> tuple[TokenRecord, str]:
    """Return the record of a new token, and the token itself, which nobody keeps; it names its certificate."""
    token = f"{certificate_id}.{secrets.token_urlsafe(_SECRET_BYTES)}"
    return TokenRecord(certificate_id, claim, _hash(token), int(now_s) + TOKEN_LIFE_S), token


def certificate_of_token(token: str) -> str:
    """Return the certificate id that a token names; of what is no token, a text that is no certificate's id."""
    return token.partition(".")[0]


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


class Templates:
    """The provisioning templates; see `RegistryStore` for what every method may raise."""

    def __init__(self, store: RegistryStore) -> None:
        self._store = store

    async def get(self, name: str) -> TemplateRecord:
        """Return a template; RecordNotFound if there is none of that name."""
        record = await self._store.read(self._store.key("template", name), TemplateRecord)
        if record is None:
            raise RecordNotFound(_KIND, name)
        return record

    async def all(self) -> list[TemplateRecord]:
        """Return all templates in name order."""
        names = [name async for name in self._store.all_names("templates")]
        return await self._store.read_all("template", names, TemplateRecord)

    async def add(self, record: TemplateRecord, *, by: str) -> None:
        """Keep a new template; RecordExists if its name is taken."""
        key = self._store.key("template", record.name)
        commands = [["SET", key, encode(record)], ["ZADD", self._store.key("templates"), "0", record.name]]
        if await self._store.change("template.create", record.name, commands, conditions=[(key, "")], by=by):
            raise RecordExists(_KIND, record.name)

    async def remove(self, name: str, *, by: str) -> TemplateRecord:
        """Forget a template and return what it was; RecordNotFound if there is none."""
        record = await self.get(name)
        commands = [
            ["DEL", self._store.key("template", name)],
            ["ZREM", self._store.key("templates"), name],
        ]
        await self._store.change("template.delete", name, commands, by=by)
        return record


class Tokens:
    """The ownership tokens that were given out and not used; see `RegistryStore` for what every method may raise."""

    def __init__(self, store: RegistryStore) -> None:
        self._store = store

    async def of_certificate(self, certificate_id: str) -> TokenRecord | None:
        """Return the token of a certificate, None if it has none, or none any more."""
        return await self._store.read(self._store.key("token", certificate_id), TokenRecord)

    async def count(self, claim: str) -> int:
        """Return how many were given out to devices with a claim."""
        with store_errors():
            return int(await self._store.client.zcard(self._store.key("tokens_of", claim)))

    async def expired(self, now_s: float) -> list[TokenRecord]:
        """Return those whose time is over, the oldest first."""
        # The first name that is not expired.
        end = f"{int(now_s) + 1:0{_TIME_DIGITS}d}"
        with store_errors():
            names = await self._store.client.zrangebylex(self._store.key("tokens"), "-", f"({end}")
        return await self._records(names)

    async def not_handed_over(self) -> list[TokenRecord]:
        """Return those of which nobody knows whether they have reached the device that asked."""
        names = [name async for name in self._store.all_names("tokens")]
        return [record for record in await self._records(names) if not record.is_handed_over]

    async def add(self, record: TokenRecord, *, by: str) -> None:
        """Keep a new token; its certificate must have none."""
        commands = [
            ["SET", self._store.key("token", record.certificate_id), encode(record)],
            ["ZADD", self._store.key("tokens"), "0", _place(record)],
            ["ZADD", self._store.key("tokens_of", record.claim), "0", record.certificate_id],
        ]
        await self._store.change("token.create", record.certificate_id, commands, by=by)

    async def hand_over(self, record: TokenRecord, *, by: str) -> None:
        """Let a token count from now on."""
        changed = msgspec.structs.replace(record, is_handed_over=True)
        command = ["SET", self._store.key("token", record.certificate_id), encode(changed)]
        await self._store.change("token.hand_over", record.certificate_id, [command], by=by)

    async def remove(self, record: TokenRecord, *, by: str) -> None:
        """Forget a token; done twice, nothing changes."""
        commands = [
            ["DEL", self._store.key("token", record.certificate_id)],
            ["ZREM", self._store.key("tokens"), _place(record)],
            ["ZREM", self._store.key("tokens_of", record.claim), record.certificate_id],
        ]
        await self._store.change("token.delete", record.certificate_id, commands, by=by)

    async def _records(self, names: Sequence[str | bytes]) -> list[TokenRecord]:
        certificate_ids = [str(name).partition(":")[2] for name in names]
        return await self._store.read_all("token", certificate_ids, TokenRecord)


def _place(record: TokenRecord) -> str:
    return f"{record.expires_at_s:0{_TIME_DIGITS}d}:{record.certificate_id}"
