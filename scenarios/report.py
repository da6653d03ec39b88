"""Reports of a run: summary.json for programs, junit.xml for test systems, report.html for people.

Each is made from the `RunResult` alone, so all three say the same.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import jinja2
import msgspec

from scenarios.checks import number, shown
from scenarios.errors import SummaryUnreadable
from scenarios.metrics import metric_of
from scenarios.plots import format_time, svg_of
from scenarios.report_plots import plots_of
from scenarios.result import FaultRecord, Judgement, RunResult, judged_recoveries

# Raised by one whenever a program that reads summary.json would have to change.
SUMMARY_SCHEMA: Final = 2
_TEMPLATE: Final = "report.html.j2"
# What XML 1.0 cannot carry, even escaped.
_NOT_XML: Final = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# The numbers that the head of the report shows, where they were measured.
_HEADLINES: Final = (
    ("reports", "count", "reports of simulated devices arrived"),
    ("reports_lost", "count", "reports were lost"),
    ("connected_ratio", "avg", "of the simulated fleet was connected"),
    ("device_round_trip", "p(95)", "or less from a real report to its answer, for 95 of 100"),
    ("delta_to_reported", "max", "at most, from a desired change to the real device's report"),
    ("audit_accepted", "count", "updates and reads of the auditor accepted"),
    ("tick_lag", "p(99)", "or less behind its time, for 99 of 100 ticks"),
)


def write_reports(result: RunResult, reports_dir: Path) -> Path:
    """Write all reports of a run into a directory of their own below `reports_dir`, and return it."""
    directory = reports_dir / result.run_id
    directory.mkdir(parents=True)
    (directory / "summary.json").write_bytes(summary_json(result))
    write_views(result, directory)
    return directory


def write_views(result: RunResult, directory: Path) -> None:
    """Write what is made from the summary of a run into a directory, over what is there."""
    (directory / "junit.xml").write_bytes(junit_xml(result))
    (directory / "report.html").write_text(report_html(result), encoding="utf-8")


def summary_json(result: RunResult) -> bytes:
    """Return the result as JSON, in the versioned form that programs may rely on."""
    fields: dict[str, Any] = msgspec.to_builtins(result)
    head = {"schema": SUMMARY_SCHEMA, "verdict": result.verdict, "exit_code": result.exit_code}
    return msgspec.json.format(msgspec.json.encode(head | fields), indent=2) + b"\n"


def summary_schema() -> dict[str, Any]:
    """Return the JSON Schema of summary.json."""
    schema: dict[str, Any] = msgspec.json.schema(RunResult)
    body = schema["$defs"]["RunResult"]
    body["description"] = f"The summary of a run of twinfleet, version {SUMMARY_SCHEMA} of its form."
    body["properties"] = {
        "schema": {"const": SUMMARY_SCHEMA},
        "exit_code": {"type": "integer", "description": "what `twinfleet run` exits with"},
        **body["properties"],
    }
    body["required"] = ["schema", "exit_code", *body["required"]]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def read_summary(file: Path) -> RunResult:
    """Return the result of which a summary.json tells, or the one in a directory; SummaryUnreadable if it's none."""
    file = file / "summary.json" if file.is_dir() else file
    try:
        content = msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
        version = content.pop("schema", None)
        if version != SUMMARY_SCHEMA:
            raise SummaryUnreadable(
                file, f"its form is version {version}, this program reads {SUMMARY_SCHEMA}"
            )
        content.pop("exit_code", None)
        return msgspec.convert(content, RunResult)
    except OSError as error:
        raise SummaryUnreadable(file, error.strerror or str(error)) from None
    except msgspec.MsgspecError as error:
        raise SummaryUnreadable(file, f"is no summary of a run: {error}") from None


def junit_xml(result: RunResult) -> bytes:
    """Return the result as JUnit XML: a test case for everything that was judged, recoveries too, and for the run."""
    suite = ET.Element("testsuite", name=_xml(result.scenario), timestamp=_moment(result.started_at))
    properties = ET.SubElement(suite, "properties")
    for name in ("seed", "digest", "version", "command", "fleet", "clock"):
        ET.SubElement(properties, "property", name=name, value=_xml(str(getattr(result, name))))
    kinds = (("threshold", result.thresholds), ("check", result.checks), ("assertion", result.assertions))
    for kind, judgements in kinds:
        for judgement in judgements:
            case = _case(suite, kind, judgement.name)
            if judgement.outcome != "PASS":
                text = f"expected {judgement.expected}, found {judgement.actual}"
                _failure(case, judgement.outcome, text, judgement.detail)
    for step in result.steps:
        case = _case(suite, "step", f"{format_time(step.at_s)}: {step.name}")
        case.set("time", f"{step.held_s:.3f}")
        if step.outcome != "PASS":
            _failure(case, step.outcome, step.detail, "")
    for fault in result.faults:
        _recovery_case(suite, fault)
    run = _case(suite, "run", "the run came to a verdict")
    if result.verdict not in ("PASS", "FAIL"):
        ET.SubElement(run, "error", type=result.verdict, message=_xml(result.reason))
    suite.set("tests", str(len(suite) - 1))
    suite.set("failures", str(len(suite.findall("testcase/failure"))))
    suite.set("errors", str(len(suite.findall("testcase/error"))))
    suite.set("time", f"{result.wall_s:.3f}")
    suites = ET.Element("testsuites")
    suites.append(suite)
    ET.indent(suites)
    encoded: bytes = ET.tostring(suites, encoding="utf-8", xml_declaration=True)
    return encoded


def _recovery_case(suite: ET.Element, fault: FaultRecord) -> None:
    case = _case(suite, "recovery", f"recovered from {fault.name}")
    if fault.recovery_s is not None:
        case.set("time", f"{fault.recovery_s:.3f}")
    elif fault.outcome == "FAIL":
        _failure(
            case, fault.outcome, f"not served again after {fault.action} of {fault.target}", fault.detail
        )
    else:
        ET.SubElement(case, "skipped", message="the run ended before anything was known")


def _case(suite: ET.Element, kind: str, name: str) -> ET.Element:
    return ET.SubElement(suite, "testcase", classname=f"{suite.get('name')}.{kind}", name=_xml(name))


def _failure(case: ET.Element, kind: str, message: str, detail: str) -> None:
    ET.SubElement(case, "failure", type=kind, message=_xml(message)).text = _xml(detail)


def _xml(text: str) -> str:
    return _NOT_XML.sub("�", text)


def report_html(result: RunResult) -> str:
    """Return the result as one HTML page that needs nothing else: no script, no network."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(moment=_moment, span=format_time, seconds=_seconds, phase_rows=_phase_rows)
    sections = {
        "Thresholds": result.thresholds,
        "Checks": result.checks,
        "Assertions": result.assertions,
    }
    return environment.get_template(_TEMPLATE).render(
        result=result,
        headlines=_headlines(result),
        failures=_failures(result),
        several_groups=len({cohort.group for cohort in result.cohorts}) > 1,
        sections={title: judgements for title, judgements in sections.items() if judgements},
        plots=[(plot, svg) for plot in plots_of(result) if (svg := svg_of(plot))],
        metrics=[
            (
                name,
                metric_of(name).meaning,
                {kind: shown(name, kind, value) for kind, value in values.items()},
            )
            for name, values in result.metrics.items()
        ],
    )


def _headlines(result: RunResult) -> list[tuple[str, str]]:
    headlines = []
    if result.simulated_count:
        headlines.append((f"{result.simulated_count:,}", "simulated devices"))
    if result.devices:
        transport = (
            "over MQTT" if result.devices[0].transport == "mqtt" else "played in-process, not real ones"
        )
        headlines.append(
            (str(len(result.devices)), f"real device{'s' * (len(result.devices) > 1)}, {transport}")
        )
    if result.faults:
        known = [fault.recovery_s for fault in result.faults if fault.recovery_s is not None]
        few = f"{len(known)} of {len(result.faults)}"
        slowest = f", the slowest in {_seconds(max(known))}" if known else ""
        headlines.append((few, f"faults recovered from{slowest}"))
    for name, statistic, meaning in _HEADLINES:
        value = result.metrics.get(name, {}).get(statistic)
        if value is not None:
            headlines.append((shown(name, statistic, value), meaning))
    return headlines


def _failures(result: RunResult) -> list[Judgement]:
    judged: Sequence[Judgement] = (*result.thresholds, *result.checks, *result.assertions)
    steps = [
        Judgement(f"{format_time(step.at_s)}: {step.name}", step.outcome, "", step.detail)
        for step in result.steps
    ]
    recoveries = [
        Judgement(
            f"recovered from {each.name}", each.outcome, "served again", "not served again", each.detail
        )
        for each in judged_recoveries(result.faults)
    ]
    return [judgement for judgement in (*judged, *steps, *recoveries) if judgement.outcome != "PASS"]


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _seconds(seconds: float | None) -> str:
    """Return a time for people: milliseconds below a second."""
    if seconds is None:
        return "unknown"
    return f"{seconds * 1000:.0f} ms" if 0 < seconds < 1 else f"{number(round(seconds, 1))} s"


# What is told of the phases of a fault, in this order.
_PHASE_WORDS: Final[Mapping[str, str]] = {
    "connected_ratio_min": "connected, at least",
    "reports_per_s": "reports /s",
    "reports_lost_per_s": "reports lost /s",
    "reports_kept_max": "reports under way or kept, at most",
    "delta_outstanding_max": "twins with a delta, at most",
    "latency_ms_p99_max": "latency, 99 of 100",
    "audit_sent": "requests of the auditor",
    "audit_accepted": "of these accepted",
    "audit_unknown": "of these unanswered",
    "answer_ms_p50": "answers, median",
    "answer_ms_p99": "answers, 99 of 100",
}


def _phase_rows(fault: FaultRecord) -> list[tuple[str, list[str]]]:
    """Return what was measured before, during and after a fault, a row each; what was always 0 is left out."""
    rows = []
    for name, word in _PHASE_WORDS.items():
        values = [phase.values.get(name) for phase in fault.phases]
        if any(values):
            rows.append((word, ["" if value is None else _measured(name, value) for value in values]))
    return rows


def _measured(name: str, value: float) -> str:
    if "_ms_" in name:
        return _seconds(value / 1000)
    return f"{value:.1%}" if "_ratio" in name else number(round(value, 1))
