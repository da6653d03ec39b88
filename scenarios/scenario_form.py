"""The table of the scenario language: from it a file is read, and the JSON Schema for editors is made.

Each word stands here once, with its form and what it means. What values mean together is the business of `reading`;
links and faults have their part of the table in `troubles`.
"""

from __future__ import annotations

from typing import Any, Final

from scenarios.metrics import CATALOGUE, LABELS
from scenarios.spec import API_VERSION, CHECKS, DEFAULT_TIMEOUT_S, Stage
from scenarios.troubles import FAULT_FORM, NAME, NETWORK_FORM
from scenarios.wire_words import PATH_FORM, WIRE_FORM
from twins.forms import (
    Anything,
    ByType,
    Duration,
    Key,
    ListOf,
    Made,
    MapOf,
    Number,
    Record,
    Share,
    Text,
    Words,
)
from twins.model_reading import MODEL_FORM

_SEED_MAX: Final = 2**63 - 1
_COUNT: Final = Number(1, 2**32 - 1, is_whole=True)
# A million seconds in one: beyond, pacing is below what a clock can tell.
_SPEED_MAX: Final = 1e6
_LIST_MAX: Final = 10_000
_SECONDS: Final = Duration(is_whole=True)
_LONG_TEXT: Final = Text(length_max=10_000)
_THING_NAME: Final = Text(
    r"^[A-Za-z0-9:_-]{1,128}$", "1 to 128 letters, digits, colons, underscores and hyphens", 128
)
_TEXTS: Final = MapOf(Text())
_STATE: Final = Anything({"type": "object", "minProperties": 1})

_METADATA: Final = Record(
    {
        "name": Key(NAME, "What the scenario is called, in reports and in names of runs.", is_needed=True),
        "description": Key(_LONG_TEXT, "What it is for, in a sentence or two.", ""),
        "labels": Key(_TEXTS, "Labels to find and sort its runs by: {suite: nightly}.", None),
    }
)
_CLOCK: Final = Record(
    {
        "mode": Key(
            Words(("asap", "realtime", "accelerated")),
            "asap: as fast as it can be computed; realtime: a second in a second; accelerated: `speed` seconds in one.",
            is_needed=True,
        ),
        "speed": Key(Number(0.01, _SPEED_MAX), "Virtual seconds in a second, with mode accelerated.", None),
    }
)
_CHOICE: Final = ByType(
    "a text, or a mapping with choice",
    text=Made(Text(), lambda text: ((text,), ())),
    mapping=Record(
        {
            "choice": Key(ListOf(Text(), 1, 255), "The values.", is_needed=True),
            "weights": Key(ListOf(Number(0), 1, 255), "How likely each is; evenly without.", ()),
        },
        lambda values: (values["choice"], values["weights"]),
    ),
    stand_in=((), ()),
)


def _inline_model_schema() -> dict[str, Any]:
    schema = MODEL_FORM.schema()
    return {**schema, "required": ["fields"]}


_MODEL: Final = ByType(
    "the name of a shipped model, the path of a model file, or a model",
    text=Text(),
    mapping=Anything(_inline_model_schema()),
    stand_in="",
)
_GROUP: Final = Record(
    {
        "name": Key(NAME, "What steps, faults and labels call the group.", is_needed=True),
        "model": Key(
            _MODEL, "A shipped device model, a file beside this one, or a model written here.", "thermostat"
        ),
        "count": Key(_COUNT, "How many devices.", is_needed=True),
        "thing_name": Key(
            Text(length_max=160), "Their names: sensor-{i:06d}. Without it: NAME-{i:06d}.", None
        ),
        "report_every": Key(Duration(is_whole=True, minimum_s=1), "How often each reports.", None),
        "attributes": Key(
            MapOf(_CHOICE),
            "What each draws once, for life: {site: {choice: [ams, ber], weights: [5, 3]}}.",
            None,
        ),
        "network": Key(
            NETWORK_FORM, "The link between devices and twins; without it all arrives at once.", None
        ),
        "path": Key(PATH_FORM, "The group's way to its twins; without it, the scenario's.", None),
    }
)
_DEVICE: Final = Record(
    {
        "name": Key(_THING_NAME, "What steps call the device.", is_needed=True),
        "thing_name": Key(_THING_NAME, "Its thing's name, where that differs.", None),
        "model": Key(Text(), "A shipped device model.", "thermostat"),
        "report_every": Key(Duration(minimum_s=0.1), "How often it reports, in virtual time.", 10.0),
        "attributes": Key(_TEXTS, "Its thing's attributes.", None),
    }
)
_STAGE: Final = Record(
    {
        "duration": Key(Duration(is_whole=True, minimum_s=1), "How long the stage lasts.", is_needed=True),
        "target": Key(
            ByType(
                "a share like 20%, or a number of devices",
                text=Made(Share(), lambda share: (share * 100, None)),
                number=Made(Number(0, 2**32 - 1, is_whole=True), lambda count: (None, int(count))),
                stand_in=(100.0, None),
            ),
            "How many devices are there at its end: 20% of each group, or a number of all.",
            is_needed=True,
        ),
    },
    lambda values: Stage(values["duration"], *values["target"]),
)
_STEP: Final = Record(
    {
        "at": Key(_SECONDS, "When, in virtual time.", is_needed=True),
        "set_desired": Key(
            Record(
                {
                    "group": Key(NAME, "A group, all of whose devices are told.", None),
                    "thing": Key(NAME, "Or one thing, by a live request.", None),
                    "state": Key(_STATE, "What is desired: {set_point: 21.5}.", is_needed=True),
                }
            ),
            "Set what is desired, of a group or of a thing.",
            None,
        ),
        "wait_for": Key(
            Record(
                {
                    "thing": Key(NAME, "The real device that is waited for.", is_needed=True),
                    "reported": Key(_STATE, "What its twin must have been reported.", None),
                    "delta": Key(Words(("empty",)), "Wait until nothing is desired that is not so.", None),
                    "timeout": Key(Duration(minimum_s=0.1), "For how long, in real time.", DEFAULT_TIMEOUT_S),
                }
            ),
            "Hold virtual time until a real device is as wanted.",
            None,
        ),
    }
)
_ASSERTION: Final = Record(
    {
        "name": Key(NAME, "What is claimed, in words.", is_needed=True),
        "sql": Key(_LONG_TEXT, "A question over the tables twins and telemetry_recent.", is_needed=True),
        "expect": Key(
            Anything({"type": ["string", "number", "boolean", "null"]}),
            "What its first value must be: 0, '> 0'.",
            is_needed=True,
        ),
        "within": Key(_SECONDS, "For how long after the end it may still come true.", 0),
    }
)
_LABELS_PATTERN: Final = "|".join(LABELS)


class _Thresholds(MapOf):
    """Conditions by metric, with or without labels."""

    def schema(self) -> dict[str, Any]:
        """Return the schema, which knows the metrics."""
        conditions = self.form.schema()
        labelled = rf"^({'|'.join(CATALOGUE)})\{{({_LABELS_PATTERN}):[^{{}}]+\}}$"
        return {
            "type": "object",
            "properties": {
                name: {**conditions, "description": metric.meaning} for name, metric in CATALOGUE.items()
            },
            "patternProperties": {labelled: conditions},
            "additionalProperties": False,
        }


SCENARIO_FORM: Final = Record(
    {
        "apiVersion": Key(Words((API_VERSION,)), "The version of this language.", is_needed=True),
        "kind": Key(Words(("Scenario",)), "What this file describes.", is_needed=True),
        "metadata": Key(_METADATA, "What the scenario is called, and what it is for.", is_needed=True),
        "include": Key(
            ListOf(Text(), 0),
            "Other files, relative to this one, whose values stand where this has none.",
            None,
        ),
        "matrix": Key(
            MapOf(ListOf(Anything({"type": ["string", "number", "boolean"]}))),
            "A run for every combination of values: {seed: [1, 2, 3], 'groups[0].count': [1000, 10000]}.",
            None,
        ),
        "seed": Key(Number(0, _SEED_MAX, is_whole=True), "What all luck is drawn from.", 0),
        "start": Key(Text(), "The virtual time at which it begins, like 2026-01-01T00:00:00Z.", None),
        "clock": Key(_CLOCK, "How virtual time follows the wall clock; asap without.", None),
        "path": Key(
            PATH_FORM,
            "engine: simulated devices live in their twins, by the million; wire: each has an MQTT connection.",
            "engine",
        ),
        "wire": Key(WIRE_FORM, "How devices on the wire connect.", None),
        "duration": Key(
            Duration(is_whole=True, minimum_s=1),
            "How long it lasts; without it, as long as its stages.",
            None,
        ),
        "warmup": Key(_SECONDS, "The time at the beginning that thresholds leave out.", 0),
        "groups": Key(ListOf(_GROUP, 0, _LIST_MAX), "Simulated fleets.", ()),
        "devices": Key(ListOf(_DEVICE, 0, _LIST_MAX), "Real devices: a process and a certificate each.", ()),
        "stages": Key(
            ListOf(_STAGE, 0), "How many of the groups' devices are there, stage by stage; without, all.", ()
        ),
        "steps": Key(ListOf(_STEP, 0, _LIST_MAX), "What is done at which time.", ()),
        "faults": Key(ListOf(FAULT_FORM, 0, _LIST_MAX), "What goes wrong, and when.", ()),
        "checks": Key(ListOf(Words(tuple(CHECKS)), 0), "What must hold at all times.", ()),
        "thresholds": Key(
            _Thresholds(ListOf(Text())), "Conditions on metrics: {reports_lost: ['count == 0']}.", None
        ),
        "assertions": Key(ListOf(_ASSERTION, 0), "What must be so at the end, asked in SQL.", ()),
        "abort_on": Key(
            ListOf(
                Record(
                    {
                        "metric": Key(Text(), "A metric, as in thresholds.", is_needed=True),
                        "condition": Key(Text(), "What ends the run: 'min < 50%'.", is_needed=True),
                        "for": Key(_SECONDS, "How long it must hold without a break.", 0),
                    }
                ),
                0,
            ),
            "What ends the run before its time, with exit code 4.",
            (),
        ),
    },
)


def scenario_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of scenario files.

    What it refuses is wrong; what it accepts may still be: a name that nothing has, a step after the end.
    """
    schema = SCENARIO_FORM.schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "twinfleet scenario",
        "description": "A run of a fleet: who takes part, what is done, what goes wrong, and what must hold.",
        **schema,
    }
