"""The client of the operators' API: one method per question, each answered with the document as on the wire.

Built on the standard library: importing a full HTTP client alone takes longer than a command may.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from actors.settings import Endpoints
from twinfleet.errors import PlatformUnreachable, Refused

# The longest answers: a fleet of millions is made, the broker reads a long revocation list again.
_ANSWER_TIMEOUT_S: Final = 120.0
# A request that may be repeated is: a shard or a store that restarts is back within seconds.
_ATTEMPTS: Final = 3
_PAUSE_S: Final = 1.0
_PLACEMENT: Final = "/v1/cluster/placement"


@dataclass(frozen=True)
class Document:
    """An answer of the platform: the bytes as they came."""

    raw: bytes

    @cached_property
    def content(self) -> dict[str, Any]:
        """Return what the bytes say."""
        return msgspec.json.decode(self.raw, type=dict[str, Any])


class OperatorClient:
    """Asks the platform of one data directory, as its operator."""

    def __init__(self, url: str, token: str) -> None:
        self._url = urlsplit(url)
        self._token = token

    @classmethod
    def of(cls, data_dir: Path) -> OperatorClient:
        """Return a client for the platform that runs on `data_dir`; PlatformNotRunning if none does."""
        endpoints = Endpoints.read(data_dir)
        return cls(endpoints.api.url, _read(Path(endpoints.operator_token_file)).strip())

    def cluster(self) -> Document:
        """Return the state of the platform's processes."""
        return self._ask("GET", "/v1/cluster")

    def placement(self) -> Document:
        """Return which shard actor on which node serves each shard, and what has yet to move."""
        return self._ask("GET", _PLACEMENT)

    def move_shard(self, shard: int, target: str) -> Document:
        """Have a shard moved to a node or one of its shard actors; return the placement with what has yet to move."""
        return self._ask("POST", f"{_PLACEMENT}/shards/{shard}", body={"target": target})

    def drain_node(self, node: str) -> Document:
        """Have all shards moved off a node; return the placement with what has yet to move."""
        return self._ask("POST", f"{_PLACEMENT}/drained/{quote(node, safe='')}")

    def fill_node(self, node: str) -> Document:
        """Give a drained node its share of the shards again; return the placement with what has yet to move."""
        return self._ask("DELETE", f"{_PLACEMENT}/drained/{quote(node, safe='')}")

    def shadow(self, thing_name: str, shadow_name: str = "") -> Document:
        """Return a shadow document."""
        return self._ask("GET", _shadow_path(thing_name), query={"name": shadow_name})

    def twin(self, thing_name: str) -> Document:
        """Return everything that a twin is."""
        return self._ask("GET", f"/v1/twins/{quote(thing_name, safe='')}")

    def give_back(self, thing_name: str) -> Document:
        """Give a simulated device's row back to the simulation."""
        return self._ask("POST", f"/v1/twins/{quote(thing_name, safe='')}/give-back")

    def pin(self, thing_name: str, behavior: str) -> Document:
        """Give a twin an actor of its own that runs a behaviour; '' for the one of a device that obeys."""
        body = {"behavior": behavior} if behavior else {}
        return self._ask("PUT", f"/v1/pins/{quote(thing_name, safe='')}", body=body)

    def unpin(self, thing_name: str) -> Document:
        """Fold a pinned twin back into its shard."""
        return self._ask("DELETE", f"/v1/pins/{quote(thing_name, safe='')}")

    def update_desired(self, thing_name: str, desired: Mapping[str, Any], shadow_name: str = "") -> Document:
        """Merge `desired` into a shadow and return the accepted document."""
        body = {"state": {"desired": desired}}
        return self._ask("POST", _shadow_path(thing_name), query={"name": shadow_name}, body=body)

    def create_thing(self, name: str, model: str, *, attributes: Mapping[str, str], csr_pem: str) -> Document:
        """Register a device and return its certificate; safe to repeat, because the same key gets the same one."""
        body = {"name": name, "model": model, "attributes": attributes, "csr": csr_pem}
        return self._ask_again("/v1/things", body)

    def create_things(self, things: Sequence[Mapping[str, Any]]) -> Document:
        """Register many devices and return what became of each; safe to repeat, as `create_thing`."""
        return self._ask_again("/v1/things/batch", {"things": things})

    def exists(self, path: str) -> bool:
        """Tell whether there is something at a path of the API."""
        try:
            self._ask("GET", path)
        except Refused as refusal:
            if refusal.status != 404:
                raise
            return False
        return True

    def things(self, *, cursor: str, limit: int) -> Document:
        """Return a page of the registered things, in name order, after the name `cursor`."""
        return self._ask("GET", "/v1/things", query={"cursor": cursor, "limit": str(limit)})

    def thing(self, name: str) -> Document:
        """Return what the registry knows of a thing."""
        return self._ask("GET", f"/v1/things/{quote(name, safe='')}")

    def delete_thing(self, name: str) -> Document:
        """Revoke a device's certificates, remove its twin and forget it."""
        return self._ask("DELETE", f"/v1/things/{quote(name, safe='')}")

    def create_fleet(
        self, name: str, model: str | Mapping[str, Any], *, count: int, seed: int, report_every_s: int | None
    ) -> Document:
        """Create a standing simulated fleet of a shipped model, or of one as data, and return its description."""
        body = {"name": name, "model": model, "count": count, "seed": seed, "report_every_s": report_every_s}
        return self._ask("POST", "/v1/fleets", body=body)

    def fleets(self) -> Document:
        """Return the standing fleets."""
        return self._ask("GET", "/v1/fleets")

    def delete_fleet(self, name: str) -> Document:
        """Remove a standing fleet with all its twins."""
        return self._ask("DELETE", f"/v1/fleets/{quote(name, safe='')}")

    def thing_certificates(self, name: str) -> Document:
        """Return the certificates of a thing, old before new."""
        return self._ask("GET", _certificates_path(name))

    def rotate_thing_certificate(self, name: str, *, csr_pem: str) -> Document:
        """Return a further certificate of a thing; safe to repeat, because the same key gets the same one."""
        return self._ask_again(_certificates_path(name), {"csr": csr_pem})

    def revoke_thing_certificates(self, name: str, certificate_id: str = "") -> Document:
        """Revoke a certificate of a thing, or all, and return them."""
        path = _certificates_path(name)
        return self._ask("DELETE", f"{path}/{quote(certificate_id, safe='')}" if certificate_id else path)

    def create_application_certificate(self, name: str, role: str, *, csr_pem: str) -> Document:
        """Return an application's certificate; safe to repeat, because the same key gets the same one."""
        body = {"name": name, "role": role, "csr": csr_pem}
        return self._ask_again("/v1/certificates/applications", body)

    def application_certificates(self) -> Document:
        """Return the certificates of applications."""
        return self._ask("GET", "/v1/certificates", query={"kind": "application"})

    def revoke_application_certificate(self, name: str) -> Document:
        """Revoke an application's certificate."""
        return self._ask("DELETE", f"/v1/certificates/applications/{quote(name, safe='')}")

    def create_template(self, name: str, body: str, *, hook: str) -> Document:
        """Create a provisioning template and return it."""
        content = {"name": name, "body": body, "hook": hook}
        return self._ask("POST", "/v1/provisioning/templates", body=content)

    def templates(self) -> Document:
        """Return the provisioning templates, without their text."""
        return self._ask("GET", "/v1/provisioning/templates")

    def template(self, name: str) -> Document:
        """Return a provisioning template."""
        return self._ask("GET", f"/v1/provisioning/templates/{quote(name, safe='')}")

    def delete_template(self, name: str) -> Document:
        """Delete a provisioning template that no claim names."""
        return self._ask("DELETE", f"/v1/provisioning/templates/{quote(name, safe='')}")

    def create_claim(self, name: str, template: str, *, csr_pem: str) -> Document:
        """Return a claim certificate; safe to repeat, because the same key gets the same one."""
        body = {"name": name, "template": template, "csr": csr_pem}
        return self._ask_again("/v1/provisioning/claims", body)

    def claims(self) -> Document:
        """Return the claim certificates."""
        return self._ask("GET", "/v1/provisioning/claims")

    def revoke_claim(self, name: str) -> Document:
        """Revoke a claim certificate."""
        return self._ask("DELETE", f"/v1/provisioning/claims/{quote(name, safe='')}")

    def create_key(self, name: str, role: str) -> Document:
        """Make an access key and return it with its secret, which no later answer shows."""
        return self._ask("POST", "/v1/keys", body={"name": name, "role": role})

    def keys(self) -> Document:
        """Return the access keys, without their secrets."""
        return self._ask("GET", "/v1/keys")

    def delete_key(self, name: str) -> Document:
        """Delete an access key."""
        return self._ask("DELETE", f"/v1/keys/{quote(name, safe='')}")

    def sql(self, sql: str, *, media_type: str, timeout_s: float, row_max: int) -> Document:
        """Return the answer to a question in SQL, in the form of a media type."""
        body = {"sql": sql, "timeout_s": timeout_s, "row_max": row_max}
        return self._ask("POST", "/v1/sql", body=body, accept=media_type)

    def query(self, body: Mapping[str, Any]) -> Document:
        """Return the answer to a fleet query; the body is that of POST /v1/query."""
        return self._ask("POST", "/v1/query", body=body)

    def create_job(self, job_id: str, body: Mapping[str, Any]) -> Document:
        """Begin a job; the body is that of AWS IoT's CreateJob. Safe to repeat: the same job is there once."""
        return self._ask("PUT", _job_path(job_id), body=body)

    def jobs(self, token: str = "") -> Document:
        """Return a page of the jobs, from where a token says."""
        return self._ask("GET", "/jobs", query={"nextToken": token})

    def job(self, job_id: str) -> Document:
        """Return a job and how far it is."""
        return self._ask("GET", _job_path(job_id))

    def job_executions(self, job_id: str) -> Document:
        """Return the first executions of a job."""
        return self._ask("GET", f"{_job_path(job_id)}/things")

    def cancel_job(self, job_id: str, *, force: bool, comment: str) -> Document:
        """Cancel a job."""
        query = {"force": "true"} if force else {}
        return self._ask("PUT", f"{_job_path(job_id)}/cancel", query=query, body={"comment": comment})

    def delete_job(self, job_id: str, *, force: bool) -> Document:
        """Delete a job with its executions."""
        return self._ask("DELETE", _job_path(job_id), query={"force": "true"} if force else {})

    def send_command(self, body: Mapping[str, Any]) -> Document:
        """Send a command; the body is that of POST /v1/commands. Safe to repeat, because it gets a token."""
        return self._ask_again("/v1/commands", {"token": uuid.uuid4().hex, **body})

    def commands(self, thing_name: str) -> Document:
        """Return the commands of a thing, the latest first."""
        return self._ask("GET", f"/v1/commands/{quote(thing_name, safe='')}")

    def command(self, thing_name: str, execution_id: str) -> Document:
        """Return what became of a command."""
        return self._ask("GET", f"/v1/commands/{quote(thing_name, safe='')}/{quote(execution_id, safe='')}")

    def _ask_again(self, path: str, body: object) -> Document:
        """Return the answer to a POST that may be repeated, and is while a part of the platform restarts."""
        for _ in range(_ATTEMPTS - 1):
            try:
                return self._ask("POST", path, body=body)
            except PlatformUnreachable:
                time.sleep(_PAUSE_S)
            except Refused as refusal:
                if refusal.status not in (429, 503):
                    raise
                time.sleep(_PAUSE_S)
        return self._ask("POST", path, body=body)

    def _ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        accept: str = "application/json",
    ) -> Document:
        given = {key: value for key, value in (query or {}).items() if value}
        target = f"{path}?{urlencode(given)}" if given else path
        headers = {"Authorization": f"Bearer {self._token}", "Connection": "close", "Accept": accept}
        content = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            content = msgspec.json.encode(body)
        kind = HTTPSConnection if self._url.scheme == "https" else HTTPConnection
        connection = kind(self._url.hostname or "", self._url.port, timeout=_ANSWER_TIMEOUT_S)
        try:
            connection.request(method, target, body=content, headers=headers)
            response = connection.getresponse()
            raw = response.read()
        except (OSError, HTTPException) as error:
            text = f"the platform at {self._url.geturl()} does not answer ({type(error).__name__}: {error})"
            raise PlatformUnreachable(f"{text}; look at `twinfleet status`, or start it again") from None
        finally:
            connection.close()
        if response.status >= 400:
            raise Refused(response.status, _detail(response.status, raw))
        return Document(raw)


def read_ca(data_dir: Path) -> str:
    """Return the certificate of the authority of the platform that runs on `data_dir`."""
    return _read(Path(Endpoints.read(data_dir).ca))


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        text = f"{file} cannot be read: {error.strerror}; run as the user who started the platform"
        raise PlatformUnreachable(text) from None


def _shadow_path(thing_name: str) -> str:
    return f"/things/{quote(thing_name, safe='')}/shadow"


def _job_path(job_id: str) -> str:
    return f"/jobs/{quote(job_id, safe='')}"


def _certificates_path(thing_name: str) -> str:
    return f"/v1/things/{quote(thing_name, safe='')}/certificates"


def _detail(status: int, raw: bytes) -> str:
    try:
        return str(msgspec.json.decode(raw, type=dict[str, Any])["detail"])
    except (msgspec.DecodeError, KeyError):
        return f"the platform answers with status {status} and no reason; is something else on its port?"
