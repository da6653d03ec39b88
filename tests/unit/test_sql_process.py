"""The process of the SQL engine: what it answers and in which forms, and what becomes of it when it does not obey."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.errors import AnswerTooLate, OperatorError, SqlEngineError
from actors.settings import is_process_alive
from actors.sql import SqlPlan
from actors.sql_process import SqlProcess
from actors.sql_worker import Result

TWINS = pa.table(
    {
        "name": ["a", "b", "c"],
        "site": pa.array(["ber", "ams", "ber"]).dictionary_encode(),
        "reported_temperature": [19.0, 21.0, None],
    }
)
# Loaded machines are slow; none of these tests waits for as long.
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def engine() -> Iterator[SqlProcess]:
    process = SqlProcess()
    yield process
    process.close()


def ask(engine: SqlProcess, sql: str, *, timeout_s: float = PATIENCE_S) -> Result:
    return engine.answer(sql, {"twins": TWINS}, form="json", timeout_s=timeout_s, row_max=1000)


def test_a_plan_and_an_answer_come_from_another_process(engine: SqlProcess) -> None:
    assert engine.plan("select name from twins") == SqlPlan(frozenset({"twins"}), frozenset({"name"}))
    result = ask(engine, "select site, count(*) as n from twins group by site order by site")
    assert json.loads(result.content) == [["ams", 1], ["ber", 2]]
    assert (result.row_count, result.schema[1]) == (2, ("n", "int64"))
    assert engine.pid not in (0, os.getpid())


ONE_OF_EACH = """select 1::hugeint * 100000000000000000000 as big, 1.50::decimal(5, 2) as price, true as yes,
    date '2026-01-02' as day, timestamp '2026-01-02 03:04:05' as at, interval 90 minutes as pause, [1, 2] as list,
    {'a': 1.5} as object, map {'k': 'v'} as map, 'nan'::double as nan, null as none, 'x, "y"' as text"""


def test_json_says_numbers_as_numbers_and_the_rest_as_text(engine: SqlProcess) -> None:
    [row] = json.loads(ask(engine, ONE_OF_EACH).content)
    assert row[:3] == [100000000000000000000, 1.5, True]
    assert row[3:5] == ["2026-01-02", "2026-01-02T03:04:05"]
    assert row[5] == [0, 0, 90 * 60 * 10**9]
    assert row[6:] == [[1, 2], {"a": 1.5}, [["k", "v"]], None, None, 'x, "y"']


def test_csv_has_a_heading_and_quotes(engine: SqlProcess) -> None:
    sql = (
        'select name as "a, b", reported_temperature, \'x "y"\' as text, true as yes, [1] as list from twins'
    )
    content = engine.answer(sql, {"twins": TWINS}, form="csv", timeout_s=PATIENCE_S, row_max=9).content
    assert content.decode().splitlines() == [
        '"a, b",reported_temperature,text,yes,list',
        'a,19.0,"x ""y""",true,[1]',
        'b,21.0,"x ""y""",true,[1]',
        'c,,"x ""y""",true,[1]',
    ]


def test_arrow_is_a_stream_of_what_was_asked(engine: SqlProcess) -> None:
    sql = "select * from twins order by name"
    content = engine.answer(sql, {"twins": TWINS}, form="arrow", timeout_s=PATIENCE_S, row_max=9).content
    assert pa.ipc.open_stream(content).read_all().to_pylist() == TWINS.to_pylist()


def test_an_endless_question_ends_and_its_process_goes_on(engine: SqlProcess) -> None:
    ask(engine, "select 1")
    pid = engine.pid
    with pytest.raises(AnswerTooLate, match=r"no answer within 0\.2 s"):
        ask(engine, "select sum(sin(range)) from range(100000000000)", timeout_s=0.2)
    assert json.loads(ask(engine, "select 2").content) == [[2]]
    assert engine.pid == pid


@pytest.mark.parametrize(
    ("sql", "told"),
    [
        ("select list(range) from range(1000000000)", "(?i)memory"),
        ("select repeat('x', 3900000000)", "(?i)memory|allocat"),
        ("select repeat('x', 100000) from range(1000)", "more than 64 MB"),
        ("select * from range(1001)", "more than 1000 rows"),
        ("select date 'infinity'", "can't be written as json"),
    ],
)
def test_a_question_takes_its_share_and_no_more(engine: SqlProcess, sql: str, told: str) -> None:
    with pytest.raises(OperatorError, match=told):
        ask(engine, sql)
    assert json.loads(ask(engine, "select count(*) from twins").content) == [[3]]


def test_a_process_that_does_not_obey_is_killed_and_another_one_answers(engine: SqlProcess) -> None:
    ask(engine, "select 1")
    pid, count = engine.pid, engine.death_count
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(AnswerTooLate):
        ask(engine, "select 1", timeout_s=0.1)
    assert not is_process_alive(pid)
    assert engine.death_count == count + 1
    assert json.loads(ask(engine, "select 2").content) == [[2]]


def test_a_process_that_dies_over_a_question_is_told_and_another_one_answers(engine: SqlProcess) -> None:
    ask(engine, "select 1")
    pid = engine.pid
    killer = threading.Timer(0.3, os.kill, (pid, signal.SIGKILL))
    killer.start()
    with pytest.raises(SqlEngineError):
        ask(engine, "select sum(sin(range)) from range(100000000000)")
    killer.join()
    assert json.loads(ask(engine, "select 2").content) == [[2]]


def test_a_process_that_died_while_nobody_asked_is_replaced(engine: SqlProcess) -> None:
    ask(engine, "select 1")
    pid = engine.pid
    os.kill(pid, signal.SIGKILL)
    deadline_s = time.monotonic() + PATIENCE_S
    # Until all its threads are gone: its first may be dead long before.
    options = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while os.waitid(os.P_PID, pid, options) is None and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert json.loads(ask(engine, "select 2").content) == [[2]]


def test_the_process_ends_with_its_parents_connection() -> None:
    engine = SqlProcess()
    ask(engine, "select 1")
    pid = engine.pid
    engine.close()
    assert not is_process_alive(pid)
    assert engine.pid == 0


# Locked down: what is asked for is refused, and nothing is read, written or reached.

ATTEMPTS = [
    # Files and the network
    "select * from read_csv('{file}')",
    "select * from read_text('{file}')",
    "select * from read_blob('{file}')",
    "select * from read_parquet('{file}')",
    "select * from read_json('{file}')",
    "select * from '{file}'",
    "select * from glob('{file}*')",
    "select * from sniff_csv('{file}')",
    "select * from read_csv('https://example.invalid/x.csv')",
    "select * from 's3://bucket/x.parquet'",
    "copy twins to '{file}.out'",
    "copy (select 1) to '{file}.out' (format csv)",
    "copy twins from '{file}'",
    "explain analyze copy twins to '{file}.out'",
    "export database '{file}.out'",
    "import database '{file}'",
    "attach '{file}.db' as other",
    "attach ':memory:' as other",
    "detach memory",
    # Settings, extensions, secrets, the process
    "set enable_external_access = true",
    "set lock_configuration = false",
    "set memory_limit = '100GB'",
    "set threads = 64",
    "set temp_directory = '{file}.tmp'",
    "set python_enable_replacements = true",
    "set autoinstall_known_extensions = true",
    "reset memory_limit",
    "pragma memory_limit = '100GB'",
    "pragma enable_profiling = 'json'",
    "install httpfs",
    "load httpfs",
    "load '{file}'",
    "create secret (type s3, key_id 'x', secret 'y')",
    "select getenv('PATH')",
    "call pragma_version()",
    # More than one question, and anything that is none
    "select 1; select 2",
    "select 1; copy twins to '{file}.out'",
    "select 1; set lock_configuration = false; select * from '{file}'",
    "create table t (a int)",
    "create view v as select 1",
    "create macro m() as 1",
    "insert into twins values ('x', 'y', 1)",
    "update twins set name = 'x'",
    "delete from twins",
    "drop view twins",
    "alter table twins rename to x",
    "prepare p as select 1",
    "execute p",
    "begin transaction",
    "checkpoint",
    "vacuum",
    "use memory",
    "",
    "-- nothing",
    # Tables of others, variables of the program
    "select * from connection",
    "select * from TWINS_OF_ANOTHER",
    "select * from session",
]


@pytest.mark.parametrize("sql", ATTEMPTS)
def test_every_attempt_to_leave_the_tables_is_refused(engine: SqlProcess, sql: str, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("a,b\n1,2\n")
    died = engine.death_count
    # To say what a question reads is no answer to it.
    with contextlib.suppress(OperatorError):
        engine.plan(sql.format(file=file))
    with pytest.raises(OperatorError):
        ask(engine, sql.format(file=file))
    assert list(tmp_path.iterdir()) == [file]
    assert engine.death_count == died


def test_the_process_can_write_no_file_and_knows_no_secret(engine: SqlProcess) -> None:
    ask(engine, "select 1")
    limits = Path(f"/proc/{engine.pid}/limits").read_text(encoding="ascii")
    size = next(line for line in limits.splitlines() if line.startswith("Max file size"))
    assert size.split()[3:5] == ["0", "0"]
    environment = Path(f"/proc/{engine.pid}/environ").read_bytes().decode().split("\0")
    assert {line.partition("=")[0] for line in environment if line} == {"PYTHONPATH", "TZ", "LC_ALL"}


WORDS = [
    "select",
    "from",
    "where",
    "group",
    "by",
    "order",
    "having",
    "limit",
    "with",
    "recursive",
    "as",
    "union",
    "all",
    "join",
    "natural",
    "left",
    "on",
    "using",
    "twins",
    "name",
    "site",
    "reported_temperature",
    "*",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ",",
    ".",
    ";",
    "=",
    "<",
    ">",
    "+",
    "-",
    "/",
    "||",
    "::",
    "->",
    "'a'",
    '"b"',
    "$1",
    "?",
    "#",
    "1",
    "1e999",
    "count",
    "avg",
    "list",
    "unnest",
    "range",
    "struct",
    "case",
    "when",
    "then",
    "else",
    "end",
    "in",
    "exists",
    "not",
    "null",
    "is",
    "like",
    "cast",
    "try_cast",
    "describe",
    "summarize",
    "pivot",
    "explain",
    "analyze",
    "values",
    "table",
    "columns",
    "exclude",
    "replace",
    "qualify",
    "over",
    "partition",
    "copy",
    "to",
    "attach",
    "set",
    "install",
    "load",
    "pragma",
    "'/etc/passwd'",
    "'/tmp/x'",
    "read_csv",
    "glob",
    "query_table",
    "getenv",
]
questions = st.lists(st.sampled_from(WORDS), max_size=14).map(" ".join)
near_questions = questions.map(lambda words: f"select {words} from twins")


@settings(max_examples=1000)
@given(questions | near_questions | st.text(max_size=40))
def test_random_questions_neither_crash_nor_open_files(engine: SqlProcess, sql: str) -> None:
    before = engine.death_count
    with contextlib.suppress(OperatorError):
        engine.plan(sql)
        ask(engine, sql, timeout_s=5.0)
    assert engine.death_count == before
    links = [link for link in Path(f"/proc/{engine.pid}/fd").iterdir() if int(link.name) > 2]
    open_files = [str(link.readlink()) for link in links]
    assert all(
        file.startswith(("/dev/", "/memfd:", "socket:", "pipe:", "anon_inode:")) for file in open_files
    )
