"""Many devices at once: from a file of things into the platform, batch by batch, so that it can be done again.

What is there already with the same description is left alone; so a run that was cut off goes on where it stopped. With
a directory for credentials, each key is made here and lies on the disk before its signing request is sent: whenever
the run is cut off, the next one finds the key and gets the certificate that was made for it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from actors.pki import csr_for_key_file, generate_key_and_csr
from actors.registry.things import ADDITION_COUNT_MAX
from twinfleet.client import OperatorClient
from twinfleet.credentials import RESERVED_NAME, CredentialFiles, make_certificate_file, make_key_file
from twinfleet.errors import UsageFault
from twinfleet.things_file import FileSummary, ThingRow, ThingsFile

# The platform takes bodies up to 128 KiB.
_BODY_BYTES_MAX: Final = 120_000
# Told one by one at the end; more are counted.
_REFUSED_TOLD_MAX: Final = 100
_TEMPORARY: Final = ".twinfleet-*"


class Progress(Protocol):
    """Whoever is told how far a run has come."""

    def __call__(self, done: int, total: int) -> None:
        """Take the number of things dealt with, and of all."""
        ...


@dataclass
class Tally:
    """What became of the things of a file."""

    total: int
    created_count: int = 0
    present_count: int = 0
    refused_count: int = 0
    duration_s: float = 0.0
    refused: list[dict[str, Any]] = field(default_factory=list)

    @property
    def done_count(self) -> int:
        """Return how many things have been dealt with."""
        return self.created_count + self.present_count + self.refused_count

    def refuse(self, row: ThingRow, detail: str) -> None:
        """Count a thing that could not be created."""
        self.refused_count += 1
        if len(self.refused) < _REFUSED_TOLD_MAX:
            self.refused.append({"line": row.line, "thing_name": row.description.name, "detail": detail})

    def document(self) -> dict[str, Any]:
        """Return the tally as JSON says it."""
        return {
            "total": self.total,
            "created": self.created_count,
            "present": self.present_count,
            "refused": self.refused_count,
            "duration_s": round(self.duration_s, 3),
            "refusals": self.refused,
        }


@dataclass(frozen=True)
class Credentials:
    """Where keys and certificates go: NAME.key and NAME.pem for each device, and one ca.pem."""

    directory: Path
    ca_pem: str

    def prepare(self) -> None:
        """Make the directory and write ca.pem; FilesInTheWay if that cannot be."""
        files = CredentialFiles.in_directory(self.directory, RESERVED_NAME)
        # The authority's own file, and that a file can be written at all; a device may have any name.
        CredentialFiles(self.directory / ".none", self.directory / ".none", files.ca).check(self.ca_pem)
        # What a run that was cut off has not put in its place.
        for left in self.directory.glob(_TEMPORARY):
            left.unlink(missing_ok=True)
        if not files.ca.exists():
            make_certificate_file(files.ca, self.ca_pem)

    def csr_for(self, name: str) -> str:
        """Return a signing request for the device's key, which is made if it is not there."""
        key = self._files(name).key
        if key.exists():
            return csr_for_key_file(key, name)
        pair = generate_key_and_csr(name)
        make_key_file(key, pair.private_key_pem)
        return pair.csr_pem

    def keep(self, name: str, certificate_pem: str) -> None:
        """Write a device's certificate; the same one may be there already."""
        path = self._files(name).certificate
        if not path.exists() or path.read_text(encoding="utf-8") != certificate_pem:
            make_certificate_file(path, certificate_pem)

    def _files(self, name: str) -> CredentialFiles:
        return CredentialFiles.in_directory(self.directory, name)


def create_from_file(
    client: OperatorClient, file: ThingsFile, *, credentials: Credentials | None, progress: Progress
) -> Tally:
    """Register every thing of a file and return what became of them; UsageFault before anything, if a line is bad."""
    summary = file.check()
    _check_places(client, file, summary)
    if credentials is not None:
        if line := summary.things.get(RESERVED_NAME):
            text = f"with --out, {RESERVED_NAME}.pem is the authority's; give this device another name"
            raise UsageFault(f"{file.path}:{line}: {text}\nnothing was sent")
        credentials.prepare()
    tally = Tally(len(summary.things))
    begun_s = time.monotonic()
    progress(0, tally.total)
    for batch in _batches(file, credentials):
        _send(client, batch, tally, credentials)
        tally.duration_s = time.monotonic() - begun_s
        progress(tally.done_count, tally.total)
    return tally


def _check_places(client: OperatorClient, file: ThingsFile, summary: FileSummary) -> None:
    places: list[tuple[str, dict[str, int], Callable[[str], str]]] = [
        ("thing type", summary.types, lambda name: f"/thing-types/{name}"),
        ("thing group", summary.groups, lambda name: f"/thing-groups/{name}"),
    ]
    faults = [
        f"{file.path}:{line}: there is no {kind} {name!r}; create it first"
        for kind, named, path_of in places
        for name, line in named.items()
        if not client.exists(path_of(name))
    ]
    if faults:
        raise UsageFault("\n".join(faults) + "\nnothing was sent")


def _batches(
    file: ThingsFile, credentials: Credentials | None
) -> Iterator[list[tuple[ThingRow, dict[str, Any]]]]:
    """Give rows with their requests, as many at a time as one body may hold."""
    batch: list[tuple[ThingRow, dict[str, Any]]] = []
    size = 0
    for row in file.rows():
        request = row.request()
        if credentials is not None:
            request["csr"] = credentials.csr_for(row.description.name)
        length = len(msgspec.json.encode(request)) + 1
        if batch and (len(batch) >= ADDITION_COUNT_MAX or size + length > _BODY_BYTES_MAX):
            yield batch
            batch, size = [], 0
        batch.append((row, request))
        size += length
    if batch:
        yield batch


def _send(
    client: OperatorClient,
    batch: list[tuple[ThingRow, dict[str, Any]]],
    tally: Tally,
    credentials: Credentials | None,
) -> None:
    if credentials is not None:
        # A key whose certificate is registered must not be lost with the machine's power.
        os.sync()
    answer = client.create_things([request for _, request in batch])
    for (row, _), result in zip(batch, answer.content["results"], strict=True):
        if result["outcome"] == "refused":
            tally.refuse(row, result["detail"])
            continue
        if credentials is not None:
            credentials.keep(row.description.name, result["certificate_pem"])
        if result["outcome"] == "created":
            tally.created_count += 1
        else:
            tally.present_count += 1
