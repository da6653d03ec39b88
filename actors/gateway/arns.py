"""The resource names (ARNs) by which clients of AWS IoT know things, groups, types and certificates."""

from __future__ import annotations

from typing import Final

from actors.errors import DescriptionError

# Clients take both apart and compare them, so they must look like AWS's; there is one platform, and nobody's account.
REGION: Final = "local"
ACCOUNT: Final = "000000000000"
_PREFIX: Final = f"arn:aws:iot:{REGION}:{ACCOUNT}:"


def thing_arn(name: str) -> str:
    """Return the ARN of a thing."""
    return f"{_PREFIX}thing/{name}"


def group_arn(name: str) -> str:
    """Return the ARN of a thing group."""
    return f"{_PREFIX}thinggroup/{name}"


def type_arn(name: str) -> str:
    """Return the ARN of a thing type."""
    return f"{_PREFIX}thingtype/{name}"


def certificate_arn(certificate_id: str) -> str:
    """Return the ARN of a certificate."""
    return f"{_PREFIX}cert/{certificate_id}"


def template_arn(name: str) -> str:
    """Return the ARN of a provisioning template."""
    return f"{_PREFIX}provisioningtemplate/{name}"


def job_arn(job_id: str) -> str:
    """Return the ARN of a job."""
    return f"{_PREFIX}job/{job_id}"


def command_arn(name: str) -> str:
    """Return the ARN of a command."""
    return f"{_PREFIX}command/{name}"


def name_in_arn(arn: str, kind: str) -> str:
    """Return what an ARN names; DescriptionError if it is none of a `kind` (thing, thinggroup, cert) here."""
    start = f"{_PREFIX}{kind}/"
    name = arn.removeprefix(start)
    if name == arn or not name:
        raise DescriptionError("ARN", f"{arn!r} is none of a {kind} here; they begin with {start}")
    return name
