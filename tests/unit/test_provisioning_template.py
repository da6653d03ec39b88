"""Provisioning templates: what is read, what is refused with its place, and what becomes of a device's parameters."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from actors.errors import DescriptionError, ProvisioningRefused
from actors.provisioning.template import (
    CERTIFICATE_ID_PARAMETER,
    TEMPLATE_LENGTH_MAX,
    Overrides,
    ProvisionedThing,
    ProvisioningTemplate,
    check_template_name,
)

CERTIFICATE = {
    "Type": "AWS::IoT::Certificate",
    "Properties": {"CertificateId": {"Ref": CERTIFICATE_ID_PARAMETER}, "Status": "Active"},
}
DOCUMENT: dict[str, Any] = {
    "Parameters": {
        "Serial": {"Type": "String"},
        "Place": {"Type": "String", "Default": "ber/hall"},
    },
    "Mappings": {"Urls": {"ber": {"url": "https://ber.example"}, "muc": {"url": "https://muc.example"}}},
    "Resources": {
        "thing": {
            "Type": "AWS::IoT::Thing",
            "Properties": {"ThingName": {"Ref": "Serial"}},
        },
        "certificate": CERTIFICATE,
    },
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """Return the document with another value at a path of keys."""
    document = copy.deepcopy(DOCUMENT)
    *parents, last = path.split("/")
    place = document
    for key in parents:
        place = place.setdefault(key, {})
    place[last] = value
    return document


def parse(document: Any) -> ProvisioningTemplate:
    return ProvisioningTemplate.parse(json.dumps(document))


def evaluated(document: Any, **parameters: str) -> ProvisionedThing:
    return parse(document).evaluate(parameters, certificate_id="c0ffee")


def name_of(expression: Any, **parameters: str) -> str:
    """Return the thing name that an expression gives."""
    document = changed("Resources/thing/Properties/ThingName", expression)
    return evaluated(document, **{"Serial": "s1", **parameters}).thing_name


REF = {"Ref": "Serial"}
PLACE_PARTS = {"Fn::Split": ["/", {"Ref": "Place"}]}


@pytest.mark.parametrize(
    ("expression", "name"),
    [
        ("lamp", "lamp"),
        (REF, "s1"),
        ({"Ref": CERTIFICATE_ID_PARAMETER}, "c0ffee"),
        ({"Fn::Join": ["-", ["lamp", REF, "x"]]}, "lamp-s1-x"),
        ({"Fn::Join": ["_", PLACE_PARTS]}, "ber_hall"),
        ({"Fn::Join": ["", []]}, ""),
        ({"Fn::Select": [1, ["a", REF]]}, "s1"),
        ({"Fn::Select": ["0", PLACE_PARTS]}, "ber"),
        ({"Fn::FindInMap": ["Urls", {"Fn::Select": [0, PLACE_PARTS]}, "url"]}, "https://ber.example"),
        ({"Fn::Sub": "lamp-${Serial}"}, "lamp-s1"),
        ({"Fn::Sub": ["${a}-${Serial}", {"a": {"Fn::Select": [1, PLACE_PARTS]}}]}, "hall-s1"),
        ({"Fn::Sub": "${!Serial}${Serial}"}, "${Serial}s1"),
    ],
)
def test_a_function_gives_its_value(expression: Any, name: str) -> None:
    assert name_of(expression) == name


def test_a_variable_is_worked_out_once_however_often_it_stands_in_a_text() -> None:
    expression: dict[str, object] = {"Ref": "Serial"}
    # Each of these says its inner one ten times: worked out each time, that is more than a lifetime.
    for _ in range(18):
        expression = {"Fn::Sub": ["${A}" * 10, {"A": expression}]}
    assert name_of(expression, Serial="") == ""


def test_what_a_parameter_holds_is_never_read_as_a_function() -> None:
    assert name_of({"Fn::Sub": "${Serial}"}, Serial="${Place}${!Place}") == "${Place}${!Place}"
    assert name_of(REF, Serial='{"Ref": "Place"}') == '{"Ref": "Place"}'


def test_a_template_says_all_of_a_thing() -> None:
    document = changed(
        "Resources/thing/Properties",
        {
            "ThingName": REF,
            "AttributePayload": {"place": {"Ref": "Place"}, "maker": "us"},
            "ThingTypeName": {"Fn::Join": ["", ["type-", REF]]},
            "ThingGroups": ["lamps", {"Ref": "Place"}, "lamps"],
        },
    )
    document["DeviceConfiguration"] = {"serial": REF}
    assert evaluated(document, Serial="s1", Place="muc") == ProvisionedThing(
        thing_name="s1",
        attributes={"place": "muc", "maker": "us"},
        thing_type="type-s1",
        groups=("lamps", "muc"),
        device_configuration={"serial": "s1"},
    )


def test_what_counts_for_nothing_is_noted() -> None:
    document = changed("Resources/policy", {"Type": "AWS::IoT::Policy", "Properties": {"PolicyName": "p"}})
    document["Resources"]["thing"]["Properties"]["BillingGroup"] = "b"
    notes = parse(document).notes
    assert [note.partition(":")[0] for note in notes] == [
        "Resources.policy",
        "Resources.thing.Properties.BillingGroup",
    ]


def test_overrides_say_what_happens_to_a_thing_that_is_there() -> None:
    assert parse(DOCUMENT).overrides == Overrides("DO_NOTHING", "DO_NOTHING", "DO_NOTHING")
    settings = {"AttributePayload": "MERGE", "ThingTypeName": "REPLACE", "ThingGroups": "FAIL"}
    document = changed("Resources/thing/OverrideSettings", settings)
    assert parse(document).overrides == Overrides("MERGE", "REPLACE", "FAIL")


THING_NAME = "Resources/thing/Properties/ThingName"


def deep(levels: int) -> Any:
    """Return functions that stand in each other."""
    expression: Any = "x"
    for _ in range(levels):
        expression = {"Fn::Join": ["", [expression]]}
    return expression


@pytest.mark.parametrize(
    ("document", "place"),
    [
        (changed("Extra", {}), "Extra"),
        ([], "template"),
        (changed("Parameters", []), "Parameters"),
        (changed("Parameters/Serial/Type", "Number"), "Parameters.Serial.Type"),
        (changed("Parameters/Serial/Default", 1), "Parameters.Serial.Default"),
        (changed("Parameters/Serial/Typ", "String"), "Parameters.Serial.Typ"),
        (changed("Mappings/Urls/ber/url", 1), "Mappings.Urls.ber.url"),
        (changed("Resources/thing/Type", "AWS::IoT::Things"), "Resources.thing.Type"),
        (changed("Resources/thing/Propertys", {}), "Resources.thing.Propertys"),
        (changed("Resources/thing/Properties", None), "Resources.thing.Properties"),
        (changed("Resources/thing/Properties", {}), "Resources.thing.Properties"),
        (changed("Resources/second", DOCUMENT["Resources"]["thing"]), "Resources"),
        (changed("Resources/certificate", DOCUMENT["Resources"]["thing"]), "Resources"),
        (changed("Resources/certificate/Properties/CertificateId", "c1"), "CertificateId"),
        (changed("Resources/certificate/Properties/Status", "INACTIVE"), "Properties.Status"),
        (changed("Resources/certificate/OverrideSettings", {"Status": "MERGE"}), "OverrideSettings.Status"),
        (changed("Resources/thing/OverrideSettings", {"ThingTypeName": "MERGE"}), "ThingTypeName"),
        (changed("DeviceConfiguration/url", {}), "DeviceConfiguration.url"),
        (changed(THING_NAME, 7), "ThingName"),
        (changed(THING_NAME, {"Ref": "Serail"}), "ThingName.Ref"),
        (changed(THING_NAME, {"Ref": "Serial", "Fn::Sub": "x"}), "ThingName"),
        (changed(THING_NAME, {"Fn::Base64": "x"}), "ThingName.Fn::Base64"),
        (changed(THING_NAME, {"Fn::Join": ["-"]}), "ThingName.Fn::Join"),
        (changed(THING_NAME, {"Fn::Join": [1, []]}), "ThingName.Fn::Join[0]"),
        (changed(THING_NAME, {"Fn::Join": ["", REF]}), "ThingName.Fn::Join[1].Ref"),
        (changed(THING_NAME, PLACE_PARTS), "ThingName.Fn::Split"),
        (changed(THING_NAME, {"Fn::Select": [-1, ["a"]]}), "ThingName.Fn::Select[0]"),
        (changed(THING_NAME, {"Fn::Select": [True, ["a", "b"]]}), "ThingName.Fn::Select[0]"),
        (changed(THING_NAME, {"Fn::Select": [1, ["a"]]}), "ThingName.Fn::Select[0]"),
        (changed(THING_NAME, {"Fn::Select": [0, {"Fn::Split": ["", REF]}]}), "Fn::Split[0]"),
        (changed(THING_NAME, {"Fn::FindInMap": ["Url", "a", "b"]}), "Fn::FindInMap[0]"),
        (changed(THING_NAME, {"Fn::Sub": "${Nobody}"}), "Fn::Sub[0]"),
        (changed(THING_NAME, deep(25)), "deep"),
    ],
)
def test_a_mistake_is_told_with_its_place(document: Any, place: str) -> None:
    with pytest.raises(DescriptionError) as caught:
        parse(document)
    assert place in str(caught.value)


@pytest.mark.parametrize("body", ["", "{", "[" * 100_000, "x" * (TEMPLATE_LENGTH_MAX + 1), '"' + "{" * 9000])
def test_what_is_no_document_is_refused(body: str) -> None:
    with pytest.raises(DescriptionError):
        ProvisioningTemplate.parse(body)


@pytest.mark.parametrize(
    ("expression", "parameters", "text"),
    [
        (REF, {}, "Serial"),
        ({"Fn::Select": [2, PLACE_PARTS]}, {"Serial": "s"}, "part 2"),
        ({"Fn::FindInMap": ["Urls", REF, "url"]}, {"Serial": "nowhere"}, "nowhere"),
        ({"Fn::Join": ["", [REF, REF]]}, {"Serial": "x" * 4000}, "4096"),
    ],
)
def test_parameters_that_give_no_value_are_refused(
    expression: Any, parameters: dict[str, str], text: str
) -> None:
    document = changed(THING_NAME, expression)
    with pytest.raises(ProvisioningRefused) as caught:
        evaluated(document, **parameters)
    assert (caught.value.status, caught.value.error_code) == (400, "InvalidParameters")
    assert text in caught.value.problem


def test_a_device_cannot_say_which_certificate_it_has() -> None:
    document = changed(f"Parameters/{CERTIFICATE_ID_PARAMETER}", {"Type": "String"})
    document["Resources"]["thing"]["Properties"]["ThingName"] = {"Ref": CERTIFICATE_ID_PARAMETER}
    assert evaluated(document, Serial="s", **{CERTIFICATE_ID_PARAMETER: "forged"}).thing_name == "c0ffee"


def test_parameters_that_a_template_does_not_know_are_for_its_hook() -> None:
    assert evaluated(DOCUMENT, Serial="s", Secret="for the hook").thing_name == "s"


@pytest.mark.parametrize("name", ["", "a b", "x" * 37, "ä", "a/b"])
def test_a_name_that_is_no_templates_is_refused(name: str) -> None:
    with pytest.raises(DescriptionError):
        check_template_name(name)
