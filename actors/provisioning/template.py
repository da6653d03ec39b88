"""Provisioning templates: what becomes of a device that comes with a claim, as a JSON document of AWS IoT's language.

Pure. A document is read once, strictly: every mistake is an error that names its place in the document. What is left
for a device's own request is a parameter that it does not give, or a value that may be nobody's name.

Read are Parameters (of Type String, with Default), Mappings, Resources (one AWS::IoT::Thing, one AWS::IoT::Certificate,
any number of AWS::IoT::Policy, which change nothing here: every device may use its own topics, and no others) and
DeviceConfiguration; and the functions Ref, Fn::Join, Fn::Select, Fn::Split, Fn::Sub and Fn::FindInMap.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

from actors.errors import DescriptionError, ProvisioningRefused

# AWS IoT's bounds, of the whole document and of the name.
TEMPLATE_LENGTH_MAX: Final = 10_240
_TEMPLATE_NAME: Final = re.compile(r"[0-9A-Za-z_-]{1,36}")
CERTIFICATE_ID_PARAMETER: Final = "AWS::IoT::Certificate::Id"
# Functions inside functions: people write three or four; the interpreter's own limit is far above.
_DEPTH_MAX: Final = 20
# What a function may make of a device's parameters: room for the longest name with its parts, no more.
_VALUE_LENGTH_MAX: Final = 4_096
# `${Name}`, and `${!Name}`, which stands for the text `${Name}` itself.
_SUB_VARIABLE: Final = re.compile(r"\$\{(!?)([^}]+)\}")

AttributeOverride = Literal["DO_NOTHING", "REPLACE", "MERGE", "FAIL"]
Override = Literal["DO_NOTHING", "REPLACE", "FAIL"]


@dataclass(frozen=True, slots=True)
class Overrides:
    """What happens to a thing that is there already; FAIL refuses the device, the default leaves the thing as it is."""

    attributes: AttributeOverride = "DO_NOTHING"
    thing_type: Override = "DO_NOTHING"
    groups: AttributeOverride = "DO_NOTHING"


@dataclass(frozen=True, slots=True)
class ProvisionedThing:
    """What a template says of one device: the thing that it becomes, and what it is told."""

    thing_name: str
    attributes: Mapping[str, str]
    thing_type: str
    groups: tuple[str, ...]
    device_configuration: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Scope:
    """What the functions of one evaluation see."""

    parameters: Mapping[str, str]
    mappings: Mapping[str, Mapping[str, Mapping[str, str]]]


_Text = Callable[[_Scope], str]
_Texts = Callable[[_Scope], Sequence[str]]


@dataclass(frozen=True)
class ProvisioningTemplate:
    """A template that was read; `notes` say what of it counts for nothing here."""

    defaults: Mapping[str, str | None]
    mappings: Mapping[str, Mapping[str, Mapping[str, str]]]
    overrides: Overrides
    notes: tuple[str, ...]
    _thing_name: _Text
    _attributes: Mapping[str, _Text]
    _thing_type: _Text | None
    _groups: _Texts
    _device_configuration: Mapping[str, _Text]

    @classmethod
    def parse(cls, body: str) -> ProvisioningTemplate:
        """Return the template of a document; DescriptionError names the place of the first mistake."""
        if len(body) > TEMPLATE_LENGTH_MAX:
            raise DescriptionError(
                "template", f"has {len(body)} characters; {TEMPLATE_LENGTH_MAX} at most, as on AWS IoT"
            )
        try:
            document = msgspec.json.decode(body)
        except (msgspec.DecodeError, RecursionError) as error:
            raise DescriptionError("template", f"is no JSON: {error}") from None
        return _parse(document)

    def evaluate(self, parameters: Mapping[str, str], *, certificate_id: str) -> ProvisionedThing:
        """Return what becomes of a device with these parameters; others than the template's own are ignored.

        ProvisioningRefused (400) names a parameter that is missing, or why no value comes out.
        """
        values = {CERTIFICATE_ID_PARAMETER: certificate_id}
        for name, default in self.defaults.items():
            value = parameters.get(name, default)
            if name == CERTIFICATE_ID_PARAMETER:
                continue
            if value is None:
                raise _refused(f"Missing required parameter: {name}")
            values[name] = value
        scope = _Scope(values, self.mappings)
        return ProvisionedThing(
            thing_name=self._thing_name(scope),
            attributes={name: value(scope) for name, value in self._attributes.items()},
            thing_type=self._thing_type(scope) if self._thing_type is not None else "",
            groups=tuple(dict.fromkeys(self._groups(scope))),
            device_configuration={name: value(scope) for name, value in self._device_configuration.items()},
        )


def check_template_name(name: str) -> None:
    """Refuse, with DescriptionError, what may name no template."""
    if not _TEMPLATE_NAME.fullmatch(name):
        raise DescriptionError(
            "template name", f"{name!r} is none; take 1 to 36 of letters, digits, underscore and hyphen"
        )


def _refused(text: str) -> ProvisioningRefused:
    return ProvisioningRefused(400, "InvalidParameters", text)


def _wrong(path: str, problem: str) -> DescriptionError:
    return DescriptionError(f"template: {path}" if path else "template", problem)


# The document, from the outside in. Each function gets what stands at `path`.


def _parse(document: Any) -> ProvisioningTemplate:
    root = _object("", document, known=("Parameters", "Mappings", "Resources", "DeviceConfiguration"))
    defaults = _parameters(root.get("Parameters", {}))
    mappings = _mappings(root.get("Mappings", {}))
    reader = _Reader(frozenset({*defaults, CERTIFICATE_ID_PARAMETER}), mappings)
    if "Resources" not in root:
        raise _wrong("", "needs Resources, with an AWS::IoT::Thing and an AWS::IoT::Certificate")
    things, notes = _resources(root["Resources"])
    path, thing = things
    properties_path = f"{path}.Properties"
    properties = _object(
        properties_path,
        thing.get("Properties"),
        known=("ThingName", "AttributePayload", "ThingTypeName", "ThingGroups", "BillingGroup"),
    )
    if "ThingName" not in properties:
        raise _wrong(properties_path, 'needs ThingName, such as {"Ref": "SerialNumber"}')
    if "BillingGroup" in properties:
        notes.append(
            f"{properties_path}.BillingGroup: there are no billing groups here; it counts for nothing"
        )
    type_name = properties.get("ThingTypeName")
    return ProvisioningTemplate(
        defaults=defaults,
        mappings=mappings,
        overrides=_overrides(f"{path}.OverrideSettings", thing.get("OverrideSettings", {})),
        notes=tuple(notes),
        _thing_name=reader.text(f"{properties_path}.ThingName", properties["ThingName"]),
        _attributes=reader.texts_by_name(
            f"{properties_path}.AttributePayload", properties.get("AttributePayload", {})
        ),
        _thing_type=None if type_name is None else reader.text(f"{properties_path}.ThingTypeName", type_name),
        _groups=reader.texts(f"{properties_path}.ThingGroups", properties.get("ThingGroups", [])),
        _device_configuration=reader.texts_by_name(
            "DeviceConfiguration", root.get("DeviceConfiguration", {})
        ),
    )


def _parameters(value: Any) -> dict[str, str | None]:
    defaults: dict[str, str | None] = {}
    for name, declared in _object("Parameters", value).items():
        path = f"Parameters.{name}"
        parameter = _object(path, declared, known=("Type", "Default"))
        if parameter.get("Type") != "String":
            raise _wrong(f"{path}.Type", f'must be "String", not {parameter.get("Type")!r}')
        default = parameter.get("Default")
        if default is not None and not isinstance(default, str):
            raise _wrong(f"{path}.Default", f"must be a string, not {default!r}")
        defaults[name] = default
    return defaults


def _mappings(value: Any) -> dict[str, dict[str, dict[str, str]]]:
    found: dict[str, dict[str, dict[str, str]]] = {}
    for name, table in _object("Mappings", value).items():
        found[name] = {}
        for first, row in _object(f"Mappings.{name}", table).items():
            path = f"Mappings.{name}.{first}"
            found[name][first] = {
                second: _string(f"{path}.{second}", cell) for second, cell in _object(path, row).items()
            }
    return found


def _resources(value: Any) -> tuple[tuple[str, dict[str, Any]], list[str]]:
    """Return the thing, with its path, and notes; exactly one thing and one certificate must be there."""
    things: list[tuple[str, dict[str, Any]]] = []
    certificates = 0
    notes = []
    for name, declared in _object("Resources", value).items():
        path = f"Resources.{name}"
        resource = _object(path, declared, known=("Type", "Properties", "OverrideSettings"))
        match resource.get("Type"):
            case "AWS::IoT::Thing":
                things.append((path, resource))
            case "AWS::IoT::Certificate":
                certificates += 1
                _check_certificate(path, resource)
            case "AWS::IoT::Policy":
                _object(
                    f"{path}.Properties", resource.get("Properties"), known=("PolicyName", "PolicyDocument")
                )
                notes.append(f"{path}: policies count for nothing here; a device may use its own topics only")
            case other:
                kinds = "AWS::IoT::Thing, AWS::IoT::Certificate and AWS::IoT::Policy"
                raise _wrong(f"{path}.Type", f"{other!r} is unknown; there are {kinds}")
    if len(things) != 1 or certificates != 1:
        problem = f"must hold one AWS::IoT::Thing and one AWS::IoT::Certificate, not {len(things)} and {certificates}"
        raise _wrong("Resources", problem)
    return things[0], notes


def _check_certificate(path: str, resource: Mapping[str, Any]) -> None:
    properties = _object(f"{path}.Properties", resource.get("Properties"), known=("CertificateId", "Status"))
    if properties.get("CertificateId") != {"Ref": CERTIFICATE_ID_PARAMETER}:
        problem = (
            f'must be {{"Ref": "{CERTIFICATE_ID_PARAMETER}"}}: the certificate that the device was given'
        )
        raise _wrong(f"{path}.Properties.CertificateId", problem)
    status = properties.get("Status", "ACTIVE")
    if not isinstance(status, str) or status.upper() != "ACTIVE":
        problem = "must be ACTIVE: the device comes back with this certificate"
        raise _wrong(f"{path}.Properties.Status", problem)
    settings = _object(f"{path}.OverrideSettings", resource.get("OverrideSettings", {}), known=("Status",))
    _one_of(f"{path}.OverrideSettings.Status", settings.get("Status", "REPLACE"), Override)


def _overrides(path: str, value: Any) -> Overrides:
    settings = _object(path, value, known=("AttributePayload", "ThingTypeName", "ThingGroups"))

    def setting(name: str, kind: Any) -> Any:
        return _one_of(f"{path}.{name}", settings.get(name, "DO_NOTHING"), kind)

    return Overrides(
        attributes=setting("AttributePayload", AttributeOverride),
        thing_type=setting("ThingTypeName", Override),
        groups=setting("ThingGroups", AttributeOverride),
    )


def _one_of(path: str, value: Any, kind: Any) -> Any:
    words = kind.__args__
    if value not in words:
        raise _wrong(path, f"must be one of {', '.join(words)}, not {value!r}")
    return value


def _object(path: str, value: Any, *, known: Sequence[str] | None = None) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(path, f"must be an object, not {_shown(value)}")
    for key in value:
        if known is not None and key not in known:
            raise _wrong(f"{path}.{key}" if path else key, f"is unknown; there are {', '.join(known)}")
    return value


def _string(path: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _wrong(path, f"must be a string, not {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    return "missing" if value is None else msgspec.json.encode(value).decode()[:60]


class _Reader:
    """Turns the values of a document into functions of a device's parameters."""

    def __init__(
        self, parameters: frozenset[str], mappings: Mapping[str, Mapping[str, Mapping[str, str]]]
    ) -> None:
        self._parameters = parameters
        self._mappings = mappings

    def texts_by_name(self, path: str, value: Any) -> dict[str, _Text]:
        """Return what each member of an object says."""
        return {name: self.text(f"{path}.{name}", member) for name, member in _object(path, value).items()}

    def text(self, path: str, value: Any, depth: int = 0) -> _Text:
        """Return what a string, or a function that gives one, says."""
        if isinstance(value, str):
            return lambda _: value
        name, argument = self._function(path, value, depth)
        path = f"{path}.{name}"
        match name:
            case "Ref":
                return self._parameter(path, _string(path, argument))
            case "Fn::Join":
                return self._join(path, argument, depth)
            case "Fn::Select":
                return self._select(path, argument, depth)
            case "Fn::FindInMap":
                return self._find_in_map(path, argument, depth)
            case "Fn::Sub":
                return self._substitute(path, argument, depth)
        raise _wrong(path, "gives a list, and a string is needed here")

    def texts(self, path: str, value: Any, depth: int = 0) -> _Texts:
        """Return what a list, or Fn::Split, which gives one, says."""
        if isinstance(value, list):
            members = [self.text(f"{path}[{index}]", one, depth) for index, one in enumerate(value)]
            return lambda scope: [member(scope) for member in members]
        name, argument = self._function(path, value, depth)
        if name != "Fn::Split":
            raise _wrong(f"{path}.{name}", "gives a string, and a list is needed here")
        path = f"{path}.{name}"
        delimiter, source = self._arguments(path, argument, 2)
        separator = _string(f"{path}[0]", delimiter)
        if not separator:
            raise _wrong(f"{path}[0]", "must not be empty")
        text = self.text(f"{path}[1]", source, depth + 1)
        return lambda scope: text(scope).split(separator)

    def _function(self, path: str, value: Any, depth: int) -> tuple[str, Any]:
        if depth >= _DEPTH_MAX:
            raise _wrong(path, f"functions stand in each other more than {_DEPTH_MAX} deep")
        if not isinstance(value, dict) or len(value) != 1:
            raise _wrong(path, f"must be a string or one function, not {_shown(value)}")
        ((name, argument),) = value.items()
        known = ("Ref", "Fn::Join", "Fn::Select", "Fn::Split", "Fn::Sub", "Fn::FindInMap")
        if name not in known:
            raise _wrong(f"{path}.{name}", f"is no function; there are {', '.join(known)}")
        return name, argument

    def _parameter(self, path: str, name: str) -> _Text:
        if name not in self._parameters:
            raise _wrong(path, f"{name!r} is not among Parameters; declare it there")
        return lambda scope: scope.parameters[name]

    @staticmethod
    def _arguments(path: str, value: Any, count: int) -> list[Any]:
        if not isinstance(value, list) or len(value) != count:
            raise _wrong(path, f"must be a list of {count}, not {_shown(value)}")
        return value

    def _join(self, path: str, argument: Any, depth: int) -> _Text:
        delimiter, members = self._arguments(path, argument, 2)
        separator = _string(f"{path}[0]", delimiter)
        texts = self.texts(f"{path}[1]", members, depth + 1)
        return lambda scope: _bounded(path, separator.join(texts(scope)))

    def _select(self, path: str, argument: Any, depth: int) -> _Text:
        position, members = self._arguments(path, argument, 2)
        if isinstance(position, str) and position.isascii() and position.isdecimal():
            position = int(position)
        if not isinstance(position, int) or isinstance(position, bool) or position < 0:
            raise _wrong(f"{path}[0]", f"must be a position from 0, not {_shown(argument[0])}")
        index = position
        texts = self.texts(f"{path}[1]", members, depth + 1)
        if isinstance(members, list) and index >= len(members):
            raise _wrong(f"{path}[0]", f"is {index}, and the list has {len(members)}")

        def select(scope: _Scope) -> str:
            found = texts(scope)
            if index >= len(found):
                raise _refused(f"{path}: there is no part {index} of what the parameters give")
            return found[index]

        return select

    def _find_in_map(self, path: str, argument: Any, depth: int) -> _Text:
        names = self._arguments(path, argument, 3)
        mapping = _string(f"{path}[0]", names[0])
        if mapping not in self._mappings:
            raise _wrong(f"{path}[0]", f"{mapping!r} is not among Mappings; declare it there")
        first, second = (self.text(f"{path}[{index}]", names[index], depth + 1) for index in (1, 2))

        def find(scope: _Scope) -> str:
            keys = first(scope), second(scope)
            found = scope.mappings[mapping].get(keys[0], {}).get(keys[1])
            if found is None:
                raise _refused(f"{path}: {mapping} has no entry for {keys[0]!r}, {keys[1]!r}")
            return found

        return find

    def _substitute(self, path: str, argument: Any, depth: int) -> _Text:
        if isinstance(argument, str):
            argument = [argument, {}]
        template, given = self._arguments(path, argument, 2)
        text = _string(f"{path}[0]", template)
        variables = {
            name: self.text(f"{path}[1].{name}", value, depth + 1)
            for name, value in _object(f"{path}[1]", given).items()
        }
        for is_plain, name in _SUB_VARIABLE.findall(text):
            if not is_plain and name not in variables:
                variables[name] = self._parameter(f"{path}[0]", name)

        def substitute(scope: _Scope) -> str:
            # Each once, however often it stands in the text: inside each other they would take forever.
            values = {name: variable(scope) for name, variable in variables.items()}

            def filled(found: re.Match[str]) -> str:
                return f"${{{found[2]}}}" if found[1] else values[found[2]]

            return _bounded(path, _SUB_VARIABLE.sub(filled, text))

        return substitute


def _bounded(path: str, text: str) -> str:
    if len(text) > _VALUE_LENGTH_MAX:
        raise _refused(f"{path}: the parameters give a text of more than {_VALUE_LENGTH_MAX} characters")
    return text
