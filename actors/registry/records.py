"""The records that the registry keeps, and the rules for what may be one."""

from __future__ import annotations

import re
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

import msgspec

from actors.broker_log import is_reserved_name
from actors.errors import DescriptionError
from twins.messages import GroupOrder
from twins.model import UNTYPED
from twins.sharding import is_certificate_id, is_name
from twins.shipped import MODELS, model_named

# AWS IoT takes as many for a thing of a type.
ATTRIBUTE_COUNT_MAX: Final = 50
# The bounds of AWS IoT's control plane.
_ATTRIBUTE_NAME: Final = re.compile(r"[a-zA-Z0-9_.,@/:#-]{1,128}")
_ATTRIBUTE_VALUE: Final = re.compile(r"[a-zA-Z0-9_.,@/:#=\[\]-]{0,800}")
# AWS IoT's: of a description, and of the attributes that a type names as worth searching.
_DESCRIPTION_LENGTH_MAX: Final = 2028
SEARCHABLE_ATTRIBUTE_COUNT_MAX: Final = 3
# What the ids of older records are computed from; drawn once.
_THINGS_WITHOUT_ID: Final = uuid.UUID("5b1ce8a5-2c0c-4a63-9d1f-0a1f6a4c7d52")
# `-` and the longest number of a fleet (2**32 devices, 10 digits) must still fit a thing name of 128.
FLEET_NAME_LENGTH_MAX: Final = 117
CertificateStatus = Literal["ACTIVE", "INACTIVE", "REVOKED", "PENDING_ACTIVATION"]
CertificateKind = Literal["thing", "application", "claim"]


class ThingRecord(msgspec.Struct, frozen=True):
    """A registered thing. A DELETING one has lost its certificates and waits for the rest of its removal.

    `version` counts the changes of type and attributes, from 1; who belongs to which group and which certificate is
    no part of it. `groups` are the static ones, in name order. `thing_id` is a UUID that outlives every change.
    """

    name: str
    model: str
    attributes: dict[str, str]
    created_at_s: int
    certificate_ids: list[str]
    status: Literal["ACTIVE", "DELETING"] = "ACTIVE"
    thing_type: str = ""
    version: int = 1
    groups: list[str] = []
    thing_id: str = ""

    def __post_init__(self) -> None:
        if not self.thing_id:
            # Kept by a version without ids: it has the same one at every reading.
            identity = uuid.uuid5(_THINGS_WITHOUT_ID, f"{self.name}/{self.created_at_s}")
            msgspec.structs.force_setattr(self, "thing_id", str(identity))


class ThingTypeRecord(msgspec.Struct, frozen=True):
    """A thing type: what things of one kind have in common. Deprecated, it takes no new things."""

    name: str
    type_id: str
    created_at_s: int
    description: str = ""
    searchable_attributes: list[str] = []
    # Seconds since the epoch; 0 while it is not deprecated.
    deprecated_at_s: int = 0


class ThingGroupRecord(msgspec.Struct, frozen=True):
    """A thing group: static, or with a query, which then says who belongs to it; `parent` is '' for a root."""

    name: str
    group_id: str
    created_at_s: int
    parent: str = ""
    description: str = ""
    attributes: dict[str, str] = {}
    version: int = 1
    query: str = ""

    @property
    def is_dynamic(self) -> bool:
        """Tell whether a query says who belongs to it."""
        return bool(self.query)


class CertificateRecord(msgspec.Struct, frozen=True):
    """A certificate of a thing, an application or a claim; `serial` in decimal digits, wider than 64 bits.

    `thing_name` is '' while there is no thing. `replaces` is the id of the certificate that retires when this one is
    first used, '' where there is none or it has retired.
    """

    certificate_id: str
    thing_name: str
    common_name: str
    serial: str
    pem: str
    created_at_s: int
    not_after_s: int
    # PENDING_ACTIVATION: given to a device that has not said yet which thing it is; INACTIVE: retired.
    status: CertificateStatus = "ACTIVE"
    kind: CertificateKind = "thing"
    # What follows `app.` or `claim.`; '' for things.
    name: str = ""
    role: Literal["", "observer", "operator"] = ""
    template: str = ""
    replaces: str = ""

    @property
    def is_in_force(self) -> bool:
        """Tell whether its holder may do what a principal of its kind may."""
        return self.status == "ACTIVE"

    @property
    def is_barred(self) -> bool:
        """Tell whether it stands on the revocation list."""
        return self.status in ("INACTIVE", "REVOKED")


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
    check_name(name, "thing name")
    if is_certificate_id(name):
        problem = f"{name!r} looks like a certificate id, 64 hexadecimal digits; take a name that does not"
        raise DescriptionError("thing name", problem)
    if is_reserved_name(name):
        problem = f"{name!r} is a word of the broker's log, which tells who connects; take another name"
        raise DescriptionError("thing name", problem)
    model_named(model)
    check_attributes(attributes)


def check_name(name: str, subject: str) -> None:
    """Refuse, with DescriptionError, what may name no thing, thing type or thing group; `subject` says which."""
    if not is_name(name):
        problem = f"{name!r} is none; take 1 to 128 of letters, digits, colon, underscore and hyphen"
        raise DescriptionError(subject, problem)


def check_attributes(attributes: Mapping[str, str]) -> None:
    """Refuse, with DescriptionError, what may not be the attributes of a thing or of a group."""
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


def check_thing_type(record: ThingTypeRecord) -> None:
    """Refuse, with DescriptionError, what may be no thing type."""
    check_name(record.name, "thing type name")
    _check_description(record.description)
    if len(record.searchable_attributes) > SEARCHABLE_ATTRIBUTE_COUNT_MAX:
        problem = (
            f"{len(record.searchable_attributes)} are too many; {SEARCHABLE_ATTRIBUTE_COUNT_MAX} at most"
        )
        raise DescriptionError("searchable attributes", problem)
    check_attributes(dict.fromkeys(record.searchable_attributes, ""))


def check_thing_group(record: ThingGroupRecord) -> None:
    """Refuse, with DescriptionError, what may be no thing group; whether its query can be read is not asked."""
    check_name(record.name, "thing group name")
    _check_description(record.description)
    check_attributes(record.attributes)


def _check_description(text: str) -> None:
    if len(text) > _DESCRIPTION_LENGTH_MAX or not text.isprintable():
        problem = f"at most {_DESCRIPTION_LENGTH_MAX} printable characters on one line"
        raise DescriptionError("description", problem)


def check_fleet_name(name: str) -> None:
    """Refuse, with DescriptionError, a name that cannot begin the thing names of a standing fleet."""
    if not is_name(name) or len(name) > FLEET_NAME_LENGTH_MAX:
        allowed = f"1 to {FLEET_NAME_LENGTH_MAX} of letters, digits, colon, underscore and hyphen"
        raise DescriptionError("fleet name", f"{name!r} is none; take {allowed}")


def new_id() -> str:
    """Return an id that nothing else has."""
    return str(uuid.uuid4())


@dataclass(frozen=True)
class ThingDescription:
    """What is said of a thing that is to be registered; without a `model`, its type says which device model it has."""

    name: str
    model: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    thing_type: str = ""
    groups: Collection[str] = ()

    @property
    def device_model(self) -> str:
        """Return the device model: the one named, else that which the thing type names, if it names one."""
        return self.model or (self.thing_type if self.thing_type in MODELS else UNTYPED.name)

    def check(self) -> None:
        """Refuse what breaks the rules, as `check_thing`; whether type and groups exist is not asked here."""
        check_thing(self.name, self.device_model, self.attributes)
        if self.thing_type:
            check_name(self.thing_type, "thing type name")
        for group in self.groups:
            check_name(group, "thing group name")

    def record(self, *, now_s: float) -> ThingRecord:
        """Return the record of the thing, with an id of its own; raises as `check`."""
        self.check()
        return ThingRecord(
            self.name,
            self.device_model,
            dict(self.attributes),
            int(now_s),
            [],
            thing_type=self.thing_type,
            groups=sorted(set(self.groups)),
            thing_id=new_id(),
        )

    def describes(self, thing: ThingRecord) -> bool:
        """Tell whether a registered thing is what is described; a model or a group that is not named may be any."""
        return (
            self.model in ("", thing.model)
            and self.attributes == thing.attributes
            and self.thing_type == thing.thing_type
            and set(self.groups) <= set(thing.groups)
        )


def new_thing(name: str, model: str, attributes: Mapping[str, str], *, now_s: float) -> ThingRecord:
    """Return the record of a thing that is about to be registered; raises as `check_thing`."""
    return ThingDescription(name, model, attributes).record(now_s=now_s)
