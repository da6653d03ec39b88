"""The three reports say the same, and need nothing but themselves."""

from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import msgspec
import pytest

from scenarios.errors import SummaryUnreadable
from scenarios.plots import Band, Line, Plot, format_time, format_value, svg_of, thin
from scenarios.report import (
    junit_xml,
    read_summary,
    report_html,
    summary_json,
    summary_schema,
    write_reports,
    write_views,
)
from scenarios.report_plots import plots_of
from scenarios.result import (
    CohortRecord,
    DevicePoint,
    DeviceRecord,
    FaultPhase,
    FaultRecord,
    Hold,
    Judgement,
    LatencySample,
    Note,
    RunResult,
    StepRecord,
    Verdict,
    WindowSample,
    WorstDevice,
)

HOSTILE = "<script>alert('x')</script> & \x00\x1b[31m"
PASSED = RunResult(
    run_id="20260101T000000Z-first-light-abcd",
    scenario="first-light",
    file="first-light.yaml",
    verdict="PASS",
    reason="all 4 expectations were met",
    seed=7,
    version="1.2.3",
    digest="ab" * 32,
    command="twinfleet run first-light.yaml --seed 7",
    fleet="ray",
    shard_count=16,
    clock="accelerated, speed 30",
    started_at=1_767_225_600.0,
    ended_at=1_767_225_620.5,
    duration_s=600,
    virtual_s=600,
    simulated_count=100_000,
    devices=(DeviceRecord("real-device", "thermostat", "mqtt"),),
    metrics={"reports": {"count": 5_951_303.0, "rate": 9918.0}, "tick_lag": {"p(99)": 12.0}},
    thresholds=(Judgement("reports: count > 5", "PASS", "count > 5", "count = 5,951,303"),),
    checks=(Judgement("version_never_decreases", "PASS", "never goes back", "62 replies"),),
    assertions=(Judgement("all obeyed", "PASS", "0", "0", "select count(*) from twins"),),
    steps=(StepRecord(120, 4.0, "wait until real-device reports 23.5", "PASS", "version 9", 0.25),),
    holds=(Hold(120, 4.0, 0.25, "real-device", "wait until real-device reports 23.5", is_fulfilled=True),),
    windows=tuple(WindowSample(tick, tick / 30, 9900.0, 0.99, 5, 1.5) for tick in range(3, 601, 3)),
    device_points=(
        DevicePoint("real-device", "reported", "set_point", 20.0, 0.1, 3.0),
        DevicePoint("real-device", "desired", "set_point", 23.5, 4.0, 120.0),
        DevicePoint("real-device", "reported", "set_point", 23.5, 4.1, 120.0),
    ),
)
FAILED = dataclasses.replace(
    PASSED,
    verdict="FAIL",
    reason="3 of 4 expectations were not met",
    scenario=HOSTILE,
    thresholds=(Judgement("tick_lag: max < 2s", "NO_DATA", "max < 2s", "no samples"),),
    assertions=(Judgement("all obeyed", "FAIL", "0", HOSTILE, "select 1"),),
    steps=(StepRecord(120, 4.0, "wait", "FAIL", HOSTILE, 10.0),),
    notes=(Note(1.0, HOSTILE),),
)


class _Page(HTMLParser):
    """Collects what a browser would fetch, and whether every element is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "data", "srcset")]
        if tag not in ("meta", "br", "link", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page_of(result: RunResult) -> tuple[_Page, str]:
    text, page = report_html(result), _Page()
    page.feed(text)
    return page, text


@pytest.mark.parametrize("result", [PASSED, FAILED], ids=["passed", "failed"])
def test_the_page_fetches_nothing_and_runs_nothing(result: RunResult) -> None:
    page, text = page_of(result)
    assert page.open == []
    assert page.addresses == []
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not re.search(r"https?://|@import|url\(|javascript:", text)
    assert "default-src 'none'" in text


def test_the_page_has_what_a_manager_and_an_engineer_look_for() -> None:
    _, text = page_of(PASSED)
    assert text.index("PASS") < text.index("<h2>")
    for wanted in (
        "All 4 expectations were met",
        "5,951,303",
        "ab" * 32,
        "1.2.3",
        "twinfleet run first-light.yaml --seed 7",
        "<dd>7</dd>",
        "prefers-color-scheme: dark",
        "MQTT over TLS",
        "0.250 s",
    ):
        assert wanted in text


def test_a_failed_run_says_at_the_top_what_was_not_met() -> None:
    _, text = page_of(FAILED)
    assert text.index("What was not met") < text.index("How it went")
    assert "NO_DATA" in text


def test_a_device_that_was_played_in_process_is_never_shown_as_a_real_one() -> None:
    played = (DeviceRecord("real-device", "thermostat", "in-process"),)
    _, text = page_of(dataclasses.replace(PASSED, devices=played))
    assert "played in-process, not real ones" in text
    assert "nothing went over a wire" in text
    assert "MQTT over TLS" not in text


def test_the_page_of_a_run_that_hardly_began_is_whole() -> None:
    empty = dataclasses.replace(
        PASSED,
        verdict="INCONCLUSIVE",
        digest="",
        metrics={},
        thresholds=(),
        checks=(),
        assertions=(),
        steps=(),
        holds=(),
        windows=(),
        device_points=(),
        devices=(),
    )
    page, text = page_of(empty)
    assert page.open == []
    assert "none: the run did not come so far" in text
    assert "<svg" not in text


def test_the_summary_has_a_version_and_everything_that_repeats_the_run() -> None:
    summary = msgspec.json.decode(summary_json(PASSED))
    assert (summary["schema"], summary["verdict"], summary["exit_code"]) == (2, "PASS", 0)
    assert (summary["digest"], summary["seed"], summary["version"]) == ("ab" * 32, 7, "1.2.3")
    assert summary["holds"][0]["duration_s"] == 0.25
    [device] = summary["devices"]
    assert (device["thing_name"], device["model"], device["transport"]) == (
        "real-device",
        "thermostat",
        "mqtt",
    )


def test_junit_has_a_case_for_everything_that_was_judged() -> None:
    suite = ET.fromstring(junit_xml(PASSED)).find("testsuite")
    assert suite is not None
    kinds = [case.get("classname", "").rpartition(".")[2] for case in suite.findall("testcase")]
    assert kinds == ["threshold", "check", "assertion", "step", "run"]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("5", "0", "0")


def test_junit_tells_failures_apart_and_survives_any_text() -> None:
    suite = ET.fromstring(junit_xml(FAILED)).find("testsuite")
    assert suite is not None
    assert [failure.get("type") for failure in suite.iter("failure")] == ["NO_DATA", "FAIL", "FAIL"]
    assert suite.get("failures") == "3"


@pytest.mark.parametrize(
    ("verdict", "count"),
    [("FAIL", 0), ("INCONCLUSIVE", 1), ("ABORTED", 1), ("INTERRUPTED", 1), ("NOTHING_RAN", 1)],
)
def test_a_run_without_a_verdict_is_an_error_in_junit(verdict: Verdict, count: int) -> None:
    tree = ET.fromstring(junit_xml(dataclasses.replace(PASSED, verdict=verdict)))
    assert len(list(tree.iter("error"))) == count


def test_all_reports_lie_in_the_directory_of_the_run(tmp_path: Path) -> None:
    directory = write_reports(PASSED, tmp_path / "reports")
    assert directory == tmp_path / "reports" / PASSED.run_id
    assert sorted(file.name for file in directory.iterdir()) == ["junit.xml", "report.html", "summary.json"]


def test_holds_are_shaded_in_the_plot_of_the_real_device() -> None:
    plot = plots_of(PASSED)[-1]
    assert [line.label for line in plot.lines] == ["reported", "desired"]
    assert [(band.start, band.end) for band in plot.bands] == [(4.0, 4.25)]
    assert svg_of(plot).count('class="band"') == 1


def test_a_plot_stays_inside_its_frame_whatever_its_values() -> None:
    for values in ([0.0], [5.0, 5.0], [-3.0, 4e9], [1e-7, 2e-7], [0.98, 0.9801]):
        line = Line("it", [(float(x), y) for x, y in enumerate(values)])
        svg = svg_of(Plot("it", "time", "value", [line], [Band(0, 1e9, "all")], from_zero=False))
        heights = [float(y) for y in re.findall(r'd="M[0-9.]+ ([0-9.-]+)', svg)]
        assert all(0 <= y <= 190 for y in heights)
        assert "nan" not in svg


def test_a_plot_without_points_is_not_drawn() -> None:
    assert svg_of(Plot("it", "time", "value", [Line("it", [])])) == ""


def test_texts_in_a_plot_are_escaped() -> None:
    assert "<script>" not in svg_of(
        Plot(HOSTILE, HOSTILE, "value", [Line("a", [(0, 1)])], [Band(0, 1, HOSTILE)])
    )


def test_thinning_keeps_the_extremes_that_it_is_asked_to_keep() -> None:
    points = [(float(x), 100.0 if x == 5000 else 1.0) for x in range(10_000)]
    thinned = thin(points, max)
    assert len(thinned) <= 600
    assert max(y for _, y in thinned) == 100.0
    assert thin(points[:600], max) == points[:600]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0"),
        (0.5, "0.5 s"),
        (20, "20 s"),
        (120, "2 min"),
        (90, "1:30 min"),
        (3600, "1 h"),
        (5400, "1:30 h"),
    ],
)
def test_times_are_shown_as_people_write_them(seconds: float, text: str) -> None:
    assert format_time(seconds) == text


def test_values_on_axes_are_short() -> None:
    assert format_value(12_500, "count") == "12.5k"
    assert format_value(0.9975, "percent") == "99.75%"
    assert format_value(1500, "ms") == "1.5 s"
    assert format_value(5, "ms") == "5 ms"


FAULTED = dataclasses.replace(
    PASSED,
    faults=(
        FaultRecord(
            name="outage",
            layer="simulated",
            action="disconnect",
            target=f"80 % of rooms {HOSTILE}",
            virtual_begin_s=100,
            virtual_end_s=160,
            wall_begin_s=3.3,
            wall_end_s=5.3,
            recovery_s=8.0,
            phases=(
                FaultPhase("before", {"connected_ratio_min": 0.98}),
                FaultPhase("during", {}),
                FaultPhase("after", {}),
            ),
        ),
        FaultRecord(
            "killed",
            "platform",
            "kill",
            "broker",
            300,
            300,
            10,
            10,
            None,
            None,
            detail="process 7 got SIGKILL",
        ),
        FaultRecord("lasting", "simulated", "loss", "rooms", 500, 600, 16, 20),
    ),
    cohorts=(CohortRecord("rooms", "site", "ber", 1000, 0.97, 30.5, 13, 4, 177),),
    worst_devices=(WorstDevice("rooms-000867", "rooms", False, 13, 177, {"site": "ber"}),),
    latencies=tuple(LatencySample(at / 2, 9, 5.0, 20.0, 30.0, 40.0) for at in range(1, 41)),
)


def test_faults_are_numbered_shaded_and_told_with_what_they_did() -> None:
    page, text = page_of(FAULTED)
    assert page.open == []
    assert page.addresses == []
    assert text.index("What was not met") < text.index("recovered from killed") < text.index("How it went")
    assert text.index("How it went") < text.index("<h2>Faults</h2>")
    load = next(plot for plot in plots_of(FAULTED) if plot.title.startswith("Load"))
    assert [(band.kind, band.start, band.end, band.mark) for band in load.bands] == [
        ("recovering", 160, 168, ""),
        ("fault", 100, 160, "1"),
        ("fault", 300, 300, "2"),
        ("fault", 500, 600, "3"),
    ]
    for wanted in (
        "8 s",
        "connected, at least",
        "98.0%",
        "not seen",
        "process 7 got SIGKILL",
        "1 of 3",
        "rooms-000867",
    ):
        assert wanted in text


def test_a_long_run_of_a_real_device_is_drawn_by_its_changes() -> None:
    points = tuple(
        DevicePoint("real-device", "reported", "set_point", 20.0 + (at >= 9_000), at / 3, float(at))
        for at in range(12_000)
    )
    long = dataclasses.replace(PASSED, device_points=points, holds=())
    [line] = plots_of(long)[-1].lines
    assert line.points == [(0.0, 20.0), (3000.0, 21.0), (11_999 / 3, 21.0)]
    assert len(report_html(long)) < 100_000


def test_a_recovery_is_a_case_in_junit() -> None:
    suite = ET.fromstring(junit_xml(FAULTED)).find("testsuite")
    assert suite is not None
    cases = [case for case in suite.findall("testcase") if case.get("classname", "").endswith(".recovery")]
    assert [[kind.tag for kind in case] for case in cases] == [[], ["failure"], ["skipped"]]
    assert cases[0].get("time") == "8.000"


@pytest.mark.parametrize("result", [PASSED, FAILED, FAULTED], ids=["passed", "failed", "faulted"])
def test_a_summary_fits_its_schema_and_gives_the_result_again(result: RunResult, tmp_path: Path) -> None:
    schema = summary_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    summary = msgspec.json.decode(summary_json(result))
    jsonschema.validate(summary, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(summary | {"schema": 1}, schema)
    file = tmp_path / "summary.json"
    file.write_bytes(summary_json(result))
    assert read_summary(file) == read_summary(tmp_path) == result
    write_views(read_summary(file), tmp_path)
    assert (tmp_path / "report.html").read_text() == report_html(result)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        ("{", "no summary"),
        ('{"schema": 1}', "version 1"),
        ('{"schema": 2}', "no summary"),
    ],
)
def test_what_is_no_summary_is_refused(content: str | None, words: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "summary.json").write_text(content)
    with pytest.raises(SummaryUnreadable, match=words):
        read_summary(tmp_path)
