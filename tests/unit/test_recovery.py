"""When a platform serves again, and steadily, by the auditor's history; and what windows tell of simulated faults."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from scenarios.audit_progress import AuditProgress, Operation, between, percentile_s, steady_at_s
from scenarios.fault_windows import fault_records
from scenarios.history import Answered, Outcome, Sent, encode_event
from scenarios.result import FaultRecord, WindowSample
from scenarios.spec import FaultSpec
from twins.faults import Fault, Select


def operation(sent_s: float, took_s: float = 0.01, outcome: Outcome = Outcome.OK) -> Operation:
    return Operation(sent_s, sent_s + took_s, outcome)


def steady(*slow: tuple[float, float], unknown: tuple[float, ...] = (), end_s: float = 20.0) -> float | None:
    """Return when answers are steady of one operation every 100 ms from 10 s on, some slow and some without answer."""
    before = [operation(at / 10) for at in range(100)]
    times = dict(slow)
    after = [
        operation(at / 10, times.get(at / 10, 0.01), Outcome.INFO if at / 10 in unknown else Outcome.OK)
        for at in range(100, int(end_s * 10))
    ]
    return steady_at_s(before, after)


def test_answers_are_steady_from_the_first_on_where_none_is_slow() -> None:
    assert steady() == 10.0


def test_answers_are_steady_only_after_the_slow_ones_and_those_that_never_came() -> None:
    assert steady((10.0, 5.0), (10.1, 0.5), (10.2, 4.0)) == pytest.approx(10.3)
    assert steady(unknown=(10.0, 10.1, 10.2, 10.3)) == pytest.approx(10.4)


def test_one_late_answer_among_many_is_no_disturbance() -> None:
    assert steady((12.0, 5.0)) == 10.0


def test_answers_are_not_steady_where_nobody_watched_for_long_enough_or_nothing_was_answered_before() -> None:
    assert steady(end_s=12.0) is None
    assert steady_at_s([operation(1, outcome=Outcome.INFO)], [operation(at) for at in range(9)]) is None


def test_a_percentile_is_of_accepted_operations_only() -> None:
    some = [operation(0, 0.1), operation(1, 0.3), operation(2, 9.0, Outcome.FAIL), operation(3, 0.2)]
    assert percentile_s(some, 50) == pytest.approx(0.2)
    assert percentile_s(some[2:3], 50) is None
    assert between(some, 1, 3) == some[1:3]


def test_everything_is_served_again_when_the_last_thing_is_in_both_ways(tmp_path: Path) -> None:
    history = tmp_path / "history.jsonl"
    progress = AuditProgress(history)

    def update(at_s: float, client: str, number: int, *, is_direct: bool, took_s: float = 0.5) -> bytes:
        sent = Sent(at_s, client, number, "lamp", "", {f"reported.{client}": number}, is_direct=is_direct)
        return encode_event(sent) + encode_event(Answered(at_s + took_s, client, number, Outcome.OK, 1))

    history.write_bytes(
        update(1.0, "lamp", 1, is_direct=False)
        + update(2.0, "operator", 1, is_direct=True)
        + update(5.0, "lamp", 2, is_direct=False)
    )
    assert progress.served_at_s(0.0, way_count=2) == 2.5
    assert progress.served_at_s(4.0, way_count=2) is None
    # A line that is written only in part is left for the next look.
    later = update(6.0, "operator", 2, is_direct=True, took_s=0.25)
    with history.open("ab") as file:
        file.write(later[:-5])
    assert progress.served_at_s(4.0, way_count=2) is None
    with history.open("ab") as file:
        file.write(later[-5:])
    assert progress.served_at_s(4.0, way_count=2) == 6.25
    assert progress.accepted_count == 4


OUTAGE = FaultSpec(Fault("outage", "disconnect", 100, 50, select=Select(percent=80.0)), ("rooms",))


def window(end_s: int, *, connected: float = 0.98, kept: int = 0, lost: float = 0.0) -> WindowSample:
    return WindowSample(end_s, end_s / 10, 100.0, connected, 0, None, lost, kept, latency_ms_p99=50.0 + kept)


def course(troubled: Mapping[str, float], *, away_until_s: int, end_s: int = 300) -> list[WindowSample]:
    """Return windows of 5 s in which the fleet is as `troubled` says from 100 s on."""
    return [
        window(end, **(troubled if 100 < end <= away_until_s else {}))  # type: ignore[arg-type]  # whole numbers are whole
        for end in range(5, end_s + 1, 5)
    ]


def recorded(windows: list[WindowSample], *, end_s: float) -> FaultRecord:
    [record] = fault_records([OUTAGE], windows, end_s=end_s, device_count=1000)
    return record


@pytest.mark.parametrize("troubled", [{"connected": 0.4}, {"kept": 900}, {"lost": 20.0}])
def test_a_simulated_fleet_has_recovered_when_all_is_as_it_was(troubled: dict[str, float]) -> None:
    record = recorded(course(troubled, away_until_s=175), end_s=300)
    assert (record.virtual_begin_s, record.virtual_end_s, record.recovery_s) == (100, 150, 30)
    assert (record.wall_begin_s, record.wall_end_s) == (10, 15)
    assert record.target == "80 % of rooms"
    phases = {phase.name: phase.values for phase in record.phases}
    assert phases["before"]["connected_ratio_min"] == 0.98
    assert phases["during"] != phases["before"]
    assert phases["after"]["reports_kept_max"] == troubled.get("kept", 0)
    assert record.outcome == "PASS"


def test_a_fault_that_nobody_felt_takes_no_time_to_recover_from() -> None:
    assert recorded(course({}, away_until_s=0), end_s=300).recovery_s == 0


def test_nothing_is_known_of_a_fleet_that_does_not_come_back_or_whose_fault_lasts_to_the_end() -> None:
    away = course({"connected": 0.4}, away_until_s=300)
    assert recorded(away, end_s=300).outcome == "NO_DATA"
    short = course({"connected": 0.4}, away_until_s=140, end_s=140)
    record = recorded(short, end_s=140)
    assert (record.recovery_s, record.virtual_end_s) == (None, 140)


def test_what_one_fault_has_disturbed_is_no_measure_for_the_next() -> None:
    later = FaultSpec(Fault("later", "loss", 180, 10), ("rooms",))
    windows = [*course({"kept": 900}, away_until_s=175, end_s=200), window(205, kept=900), window(210)]
    first, second = fault_records([later, OUTAGE], windows, end_s=210, device_count=1000)
    assert (first.name, second.name) == ("outage", "later")
    before = second.phases[0].values
    assert (before["reports_kept_max"], second.recovery_s) == (0, 0)
