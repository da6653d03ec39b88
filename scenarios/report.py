"""Reports of a run: summary.json for programs, junit.xml for test systems, report.html for people.

Each is made from the `RunResult` alone, so all three say the same.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import jinja2
import msgspec

from scenarios.checks import shown
from scenarios.metrics import metric_of
from scenarios.plots import Band, Line, Plot, Points, format_time, svg_of, thin
from scenarios.result import Judgement, RunResult

# Raised by one whenever a program that reads summary.json would have to change.
SUMMARY_SCHEMA: Final = 1
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
    ("tick_lag", "p(99)", "or less behind its time, for 99 of 100 ticks"),
)


def write_reports(result: RunResult, reports_dir: Path) -> Path:
    """Write all reports of a run into a directory of their own below `reports_dir`, and return it."""
    directory = reports_dir / result.run_id
    directory.mkdir(parents=True)
    (directory / "summary.json").write_bytes(summary_json(result))
    (directory / "junit.xml").write_bytes(junit_xml(result))
    (directory / "report.html").write_text(report_html(result), encoding="utf-8")
    return directory


def summary_json(result: RunResult) -> bytes:
    """Return the result as JSON, in the versioned form that programs may rely on."""
    fields: dict[str, Any] = msgspec.to_builtins(result)
    head = {"schema": SUMMARY_SCHEMA, "verdict": result.verdict, "exit_code": result.exit_code}
    return msgspec.json.format(msgspec.json.encode(head | fields), indent=2) + b"\n"


def junit_xml(result: RunResult) -> bytes:
    """Return the result as JUnit XML: a test case per threshold, check, assertion and step, and one for the run."""
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
    environment.filters.update(moment=_moment, span=format_time)
    sections = {
        "Thresholds": result.thresholds,
        "Checks": result.checks,
        "Assertions": result.assertions,
    }
    return environment.get_template(_TEMPLATE).render(
        result=result,
        headlines=_headlines(result),
        failures=_failures(result),
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
    return [judgement for judgement in (*judged, *steps) if judgement.outcome != "PASS"]


def plots_of(result: RunResult) -> list[Plot]:
    """Return the plots of a run; those without a point are shown by nobody."""
    windows, x_max = result.windows, float(result.duration_s)

    def series(pick: Any, values: Sequence[float | None]) -> Points:
        points = [(float(w.virtual_s), v) for w, v in zip(windows, values, strict=True) if v is not None]
        return thin(points, pick)

    virtual = "virtual time"
    reports = series(fmean, [window.reports_per_s for window in windows])
    connected = series(min, [window.connected_ratio for window in windows])
    deltas = series(max, [float(window.delta_outstanding) for window in windows])
    lags = series(max, [window.lag_ms for window in windows])
    plots = [
        Plot("Reports per second of virtual time", virtual, "count", [Line("arrived", reports)], x_max=x_max),
        Plot(
            "Connected share of the simulated fleet",
            virtual,
            "percent",
            [Line("connected", connected)],
            x_max=x_max,
            from_zero=False,
        ),
        Plot("Twins with an outstanding delta", virtual, "count", [Line("delta", deltas)], x_max=x_max),
        Plot("Ticks behind their intended time", virtual, "ms", [Line("lag", lags)], x_max=x_max),
    ]
    for device in result.devices:
        plots += _device_plots(result, device.thing_name)
    return plots


def _device_plots(result: RunResult, thing_name: str) -> list[Plot]:
    points = [point for point in result.device_points if point.thing_name == thing_name]
    bands = [
        Band(hold.wall_s, hold.wall_s + hold.duration_s, f"held for {hold.duration_s:.3f} s: {hold.awaited}")
        for hold in result.holds
    ]
    plots = []
    for name in dict.fromkeys(point.field for point in points):
        lines = [
            Line(
                section,
                [(p.wall_s, p.value) for p in points if p.field == name and p.section == section],
                colour=colour,
                is_step=True,
                is_dashed=section == "desired",
            )
            for section, colour in (("reported", "line-1"), ("desired", "line-2"))
        ]
        plots.append(
            Plot(
                f"{thing_name}: {name}, desired and reported",
                "wall time; shaded: virtual time was held",
                "value",
                [line for line in lines if line.points],
                bands,
                from_zero=False,
            )
        )
    return plots


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
