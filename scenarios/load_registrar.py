"""Devices by the thousand as things of a platform: a key each, made here, and a certificate from its authority.

Keys never leave the machine that simulates the devices; what is written is one PEM file for each, certificate and key.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import httpx

from actors.pki import KeyAndRequest, generate_key_and_csr
from scenarios.errors import DeviceFailed, NameTaken
from scenarios.load_orders import Registrar
from twins.shipped import MODELS

# With a signing request each is some 700 bytes, and the platform takes bodies up to 128 KiB.
_BATCH_COUNT: Final = 150
# The platform signs and stores a batch in a fraction of a second; it may have several to do.
_API_TIMEOUT_S: Final = 120.0
# Things of one request to delete them: their certificates are revoked together.
_DELETED_AT_ONCE: Final = 500
_OK: Final = 200
# How the platform refuses a thing that is there.
_TAKEN: Final = "is registered already"

Described = tuple[str, Mapping[str, str]]


async def register_devices(
    devices: Sequence[Described], model: str, registrar: Registrar, directory: Path
) -> AsyncIterator[str]:
    """Register devices, names and attributes, write NAME.pem for each into the directory, and give each name then.

    NameTaken if one was there before, DeviceFailed if one is refused. A model that did not come along with the platform
    is unknown there: its devices are registered without one.
    """
    known_model = model if model in MODELS else "untyped"
    async with _client(registrar) as client:
        for batch in _batches(devices):
            # Signing is done by the platform meanwhile; making keys holds up nobody, for nothing is connected yet.
            keys = [generate_key_and_csr(name) for name, _ in batch]
            things = [
                {"name": name, "model": known_model, "attributes": dict(attributes), "csr": key.csr_pem}
                for (name, attributes), key in zip(batch, keys, strict=True)
            ]
            results = await _post(client, things)
            # Those that are refused come last: what was created has to be known to whoever cleans up.
            pairs = sorted(zip(results, keys, strict=True), key=lambda pair: pair[0]["outcome"] != "created")
            for result, key in pairs:
                _keep(result, key, directory)
                yield result["thing_name"]


async def delete_things(names: Sequence[str], registrar: Registrar) -> None:
    """Delete things, those that are there; DeviceFailed if the platform can't."""
    async with _client(registrar) as client:
        for first in range(0, len(names), _DELETED_AT_ONCE):
            part = names[first : first + _DELETED_AT_ONCE]
            try:
                answer = await client.post("/v1/things/batch-delete", json={"things": part})
            except httpx.HTTPError as error:
                raise DeviceFailed(part[0], f"could not be deleted at {client.base_url}: {error!r}") from None
            if answer.is_error:
                raise DeviceFailed(part[0], f"could not be deleted: {answer.text[:500]}")


def _client(registrar: Registrar) -> httpx.AsyncClient:
    token = Path(registrar.token_file).read_text(encoding="utf-8").strip()
    return httpx.AsyncClient(
        base_url=registrar.url,
        headers={"Authorization": f"Bearer {token}"},
        timeout=_API_TIMEOUT_S,
        # The platform is on this machine: a proxy of the environment has no business in between.
        trust_env=False,
    )


def _batches(devices: Sequence[Described]) -> Iterator[Sequence[Described]]:
    for first in range(0, len(devices), _BATCH_COUNT):
        yield devices[first : first + _BATCH_COUNT]


async def _post(client: httpx.AsyncClient, things: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    name = things[0]["name"]
    try:
        answer = await client.post("/v1/things/batch", json={"things": things})
    except httpx.HTTPError as error:
        raise DeviceFailed(name, f"cannot be registered at {client.base_url}: {error!r}") from None
    if answer.status_code != _OK:
        raise DeviceFailed(name, f"registration answered {answer.status_code}: {answer.text[:500]}")
    results: list[dict[str, Any]] = answer.json()["results"]
    return results


def _keep(result: Mapping[str, Any], key: KeyAndRequest, directory: Path) -> None:
    name, detail = result["thing_name"], result.get("detail", "")
    if result["outcome"] == "present" or _TAKEN in detail:
        raise NameTaken("thing", name)
    if result["outcome"] != "created":
        raise DeviceFailed(name, f"was refused: {detail}")
    write_credentials(directory, name, result["certificate_pem"], key.private_key_pem)


def write_credentials(directory: Path, name: str, certificate_pem: str, key_pem: str) -> None:
    """Write a device's certificate and key into NAME.pem, readable by its owner only."""
    # Not synced to disk: it is worth nothing after the run.
    descriptor = os.open(directory / f"{name}.pem", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write((certificate_pem + key_pem).encode())
