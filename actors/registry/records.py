"""The records that the registry keeps, and the rules for what may be one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from actors.errors import DescriptionError
from actors.pki import is_certificate_id
from twins.messages import GroupOrder
from twins.model import model_named
from twins.sharding import is_thing_name

# AWS IoT takes as many for a thing of a type.
ATTRIBUTE_COUNT_MAX: Final = 50
# The bounds of AWS IoT's control plane.
_ATTRIBUTE_NAME: Final = re.compile(r"[a-zA-Z0-9_.,@/:#-]{1,128}")
_ATTRIBUTE_VALUE: Final = re.compile(r"[a-zA-Z0-9_.,@/:#=\[\]-]{0,800}")
# `-` and the longest number of a fleet (2**32 devices, 10 digits) must still fit a thing name of 128.
FLEET_NAME_LENGTH_MAX: Final = 117


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


def new_thing(name: str, model: str, attributes: Mapping[str, str], *, now_s: float) -> ThingRecord:
    """Return the record of a thing that is about to be registered; raises as `check_thing`."""
    check_thing(name, model, attributes)
    return ThingRecord(name, model, dict(attributes), int(now_s), [])
