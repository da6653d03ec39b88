"""The log file's reader: each line once, in order, whatever becomes of the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.broker_log_reader import BrokerLogReader, LogPosition

TIME = b"2026-11-23T17:20:03+0000: "
START = TIME + b"mosquitto version 2.0.11 starting"
ALL = 1000


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "mosquitto.log"


def write(log: Path, *lines: bytes) -> None:
    with log.open("ab") as file:
        file.write(b"".join(line + b"\n" for line in lines))


def test_the_first_reader_begins_with_the_brokers_last_start(log: Path) -> None:
    write(log, b"before", START, b"old", START, b"a", b"b")
    reader = BrokerLogReader(log, None)
    assert reader.lines(ALL) == [START, b"a", b"b"]
    assert reader.lines(ALL) == []
    write(log, b"c")
    assert reader.lines(ALL) == [b"c"]


def test_a_file_that_does_not_say_when_the_broker_began_is_read_from_its_start(log: Path) -> None:
    write(log, b"a", TIME + b"lamp x mosquitto version 2.0.11 starting")
    assert len(BrokerLogReader(log, None).lines(ALL)) == 2


def test_the_last_start_is_found_far_back(log: Path) -> None:
    # More than one step of the search, with the start of the broker across the border between two.
    write(log, b"x" * 999, START, *[b"y" * 1023] * 1024)
    assert BrokerLogReader(log, None).lines(1) == [START]


def test_a_line_that_arrives_brings_those_before_it_and_none_twice(log: Path) -> None:
    write(log, START, b"a", b"b", b"c")
    reader = BrokerLogReader(log, None)
    assert reader.lines_through(b"b") == [START, b"a", b"b"]
    assert reader.lines_through(b"a") == []
    assert reader.lines_through(b"c") == [b"c"]
    # The end of another line is no line.
    write(log, b"another d")
    assert reader.lines_through(b"d") == []
    assert reader.lines_through(b"another d") == [b"another d"]


def test_equal_lines_are_told_apart_by_their_place(log: Path) -> None:
    write(log, START, b"same", b"same")
    reader = BrokerLogReader(log, None)
    assert reader.lines_through(START) == [START]
    assert reader.lines_through(b"same") == [b"same"]
    assert reader.lines_through(b"same") == [b"same"]
    assert reader.lines_through(b"same") == []


def test_lines_come_a_few_at_a_time_and_the_position_moves_with_them(log: Path) -> None:
    write(log, START, b"a", b"b")
    reader = BrokerLogReader(log, None)
    assert reader.lines(2) == [START, b"a"]
    position = reader.position
    assert position is not None
    assert reader.lines(2) == [b"b"]
    again = LogPosition.parse(position.text())
    assert again == position
    assert BrokerLogReader(log, again).lines(ALL) == [b"b"]


def test_a_line_that_is_being_written_waits(log: Path) -> None:
    write(log, START)
    with log.open("ab") as file:
        file.write(b"half")
    reader = BrokerLogReader(log, None)
    assert reader.lines(ALL) == [START]
    write(log, b" and the rest")
    assert reader.lines(ALL) == [b"half and the rest"]


def test_the_rest_of_a_file_that_was_set_aside_comes_first(log: Path) -> None:
    write(log, START, b"a")
    reader = BrokerLogReader(log, None)
    assert reader.lines_through(b"a") == [START, b"a"]
    position = reader.position
    write(log, b"b")
    log.replace(log.with_suffix(".log.old"))
    write(log, START, b"c", START, b"d")
    assert reader.lines_through(b"c") == [b"b", START, b"c"]
    later = BrokerLogReader(log, position)
    assert [*later.lines(ALL), *later.lines(ALL)] == [b"b", START, b"c", START, b"d"]
    assert later.lines(ALL) == []


def test_a_position_in_a_file_that_is_gone_means_the_last_start(log: Path) -> None:
    write(log, b"older", START, b"a")
    assert BrokerLogReader(log, LogPosition(1, 5)).lines(ALL) == [START, b"a"]


def test_a_file_that_was_emptied_is_read_from_its_start(log: Path) -> None:
    write(log, START, b"a", b"b")
    reader = BrokerLogReader(log, None)
    assert len(reader.lines(ALL)) == 3
    log.write_bytes(b"")
    write(log, b"c")
    assert reader.lines_through(b"c") == [b"c"]


def test_without_a_file_the_line_that_arrives_is_all_there_is(log: Path) -> None:
    reader = BrokerLogReader(log, None)
    assert reader.lines(ALL) == []
    assert reader.lines_through(b"a") == [b"a"]
    assert reader.position is None


@pytest.mark.parametrize("text", ["", "5", ":", "a:1", "1:-1", "1:x"])
def test_a_text_that_holds_no_position_gives_none(text: str) -> None:
    assert LogPosition.parse(text) is None


def test_line_by_line_and_a_thousand_at_once_are_the_same_lines(log: Path) -> None:
    lines = [START, *(TIME + b"line %d" % number for number in range(50))]
    write(log, *lines)
    reader = BrokerLogReader(log, None)
    found = reader.lines_through(lines[3])
    found += reader.lines(2)
    found += [each for line in lines[6:20] for each in reader.lines_through(line)]
    # One far ahead, one that was read, the rest.
    found += reader.lines_through(lines[30]) + reader.lines_through(lines[20]) + reader.lines(ALL)
    assert found == lines
    position = reader.position
    assert position is not None
    assert position.offset == log.stat().st_size
