"""An operator of an audit: over HTTP he wishes numbered values of devices, reads shadows, and notes the answers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx
import msgspec

from actors.errors import WorldError
from actors.settings import Endpoints
from scenarios.auditor_clients import Client, Recorder, fields_of

# A shard actor that does not answer is given up after five seconds by the gateway.
_ANSWER_TIMEOUT_S: Final = 10.0
# Below it nothing was done and nothing will be; from it on nobody knows.
_UNKNOWN_FROM: Final = 500


class ShadowRead(NamedTuple):
    """A shadow as it was read."""

    version: int
    values: dict[str, int]
    is_agreed: bool


def operator_api(endpoints: Endpoints) -> httpx.AsyncClient:
    """Return a client of the operators' API; the caller closes it. WorldError if the operators' token can't be read."""
    token_file = Path(endpoints.operator_token_file)
    try:
        token = token_file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise WorldError(
            f"{token_file} cannot be read: {error}; run as the user who started the platform"
        ) from None
    return httpx.AsyncClient(
        base_url=endpoints.api.url,
        headers={"Authorization": f"Bearer {token}"},
        timeout=_ANSWER_TIMEOUT_S,
        # The platform is on this machine: a proxy of the environment has no business in between.
        trust_env=False,
    )


class AuditedOperator:
    """One operator, who does one thing after the other."""

    def __init__(self, name: str, recorder: Recorder, api: httpx.AsyncClient) -> None:
        self.name: Final = name
        self._client = Client(name, recorder, is_direct=True)
        self._api = api

    async def wish(self, thing_name: str, shadow_name: str) -> None:
        """Write the next number into a desired section."""
        desired = {self.name: self._client.next_number()}
        number = self._client.begin(thing_name, shadow_name, fields_of({"desired": desired}))
        answer = await self._ask("POST", thing_name, shadow_name, number, {"state": {"desired": desired}})
        if answer is not None:
            self._client.accepted(number, answer["version"])

    async def read(self, thing_name: str, shadow_name: str) -> ShadowRead | None:
        """Return a shadow; None where it could not be read."""
        number = self._client.begin(thing_name, shadow_name, {})
        answer = await self._ask("GET", thing_name, shadow_name, number)
        if answer is None:
            return None
        state, version = answer["state"], answer["version"]
        values = fields_of(state)
        self._client.accepted(number, version, values)
        return ShadowRead(version, values, not state.get("delta"))

    async def _ask(
        self, method: str, thing_name: str, shadow_name: str, number: int, body: object = None
    ) -> dict[str, Any] | None:
        try:
            answer = await self._api.request(
                method,
                f"/things/{thing_name}/shadow",
                params={"name": shadow_name} if shadow_name else {},
                content=None if body is None else msgspec.json.encode(body),
            )
        except httpx.HTTPError as error:
            self._client.unknown(number, f"{type(error).__name__}: {error}")
            return None
        except asyncio.CancelledError:
            self._client.unknown(number, "given up")
            raise
        if answer.is_success:
            return msgspec.json.decode(answer.content, type=dict[str, Any])
        detail = f"status {answer.status_code}: {answer.text[:200]}"
        if answer.status_code < _UNKNOWN_FROM:
            self._client.refused(number, detail)
        else:
            self._client.unknown(number, detail)
        return None
