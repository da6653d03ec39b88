"""The locked SQL engine: what it answers, and that it does nothing but answer."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from actors.errors import OperatorError
from actors.sql import SqlEngine, SqlPlan, plan_sql, run_sql

TWINS = pa.table({"name": ["a", "b", "c"], "reported_temperature": [19.0, 21.0, None]})


def ask(sql: str, *, timeout_s: float = 20.0, row_max: int = 1000) -> list[tuple[object, ...]]:
    table = run_sql(sql, {"twins": TWINS}, timeout_s=timeout_s, row_max=row_max)
    return [tuple(row.values()) for row in table.to_pylist()]


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("select count(*) from twins", [(3,)]),
        ("select avg(reported_temperature) from twins", [(20.0,)]),
        ("with x as (select name from twins order by name) select * from x limit 1", [("a",)]),
        ("from twins select reported_temperature where name = 'b';", [(21.0,)]),
        ("select name from twins where name = 'z'", []),
    ],
)
def test_a_question_gets_its_answer(sql: str, rows: list[tuple[object, ...]]) -> None:
    assert ask(sql) == rows


def test_explain_is_allowed() -> None:
    assert len(ask("explain select * from twins")) == 1


@pytest.mark.parametrize(
    "sql",
    [
        "select * from read_csv('/etc/passwd')",
        "select * from read_text('/etc/passwd')",
        "select * from '/etc/passwd'",
        "select * from glob('/*')",
        "select * from read_parquet('https://example.invalid/x.parquet')",
        "select getenv('HOME')",
        "select * from TWINS_OF_ANOTHER",
    ],
)
def test_a_question_reads_nothing_but_its_tables(sql: str) -> None:
    with pytest.raises(OperatorError):
        ask(sql)


def test_a_variable_of_the_caller_is_no_table() -> None:
    secret = pa.table({"token": ["s3cret"]})
    assert secret.num_rows == 1
    with pytest.raises(OperatorError, match="secret"):
        ask("select * from secret")


@pytest.mark.parametrize(
    "sql",
    [
        "copy twins to '{file}'",
        "copy (select 1) to '{file}' (format csv)",
        "explain analyze copy twins to '{file}'",
        "attach '{file}' as other",
        "export database '{file}'",
        "install httpfs",
        "load httpfs",
        "set threads = 8",
        "set enable_external_access = true",
        "reset memory_limit",
        "pragma database_list",
        "call pragma_version()",
        "create table t (a int)",
        "create view v as select 1",
        "insert into twins values ('x', 1)",
        "delete from twins",
        "drop view twins",
        "use memory",
        "begin transaction",
        "select 1; select 2",
        "select 1; copy twins to '{file}'",
        "",
        "-- nothing",
    ],
)
def test_anything_but_one_question_is_refused_and_writes_nothing(sql: str, tmp_path: Path) -> None:
    with pytest.raises(OperatorError):
        ask(sql.format(file=tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_is_told_in_duckdbs_own_words() -> None:
    with pytest.raises(OperatorError, match='"reported_temperature"'):
        ask("select reported_temprature from twins")


def test_an_endless_question_ends_at_its_time_limit() -> None:
    with pytest.raises(OperatorError, match=r"no answer within 0\.2 s"):
        ask("select sum(sin(range)) from range(100000000000)", timeout_s=0.2)


def test_an_answer_beyond_the_row_limit_is_refused_not_cut_off() -> None:
    assert len(ask("select * from range(100)", row_max=100)) == 100
    with pytest.raises(OperatorError, match="more than 100 rows"):
        ask("select * from range(101)", row_max=100)


def test_a_question_cannot_take_all_memory() -> None:
    with pytest.raises(OperatorError, match=r"(?i)memory"):
        ask("select list(range) from range(1000000000)")


def test_nothing_of_a_question_is_left_for_the_next_one() -> None:
    engine = SqlEngine()
    first = engine.session()
    assert first.answer("select name from twins", {"twins": TWINS}, timeout_s=20, row_max=9).num_rows == 3
    for session in (engine.session(), engine.session()):
        with pytest.raises(OperatorError, match="twins"):
            session.answer("select name from twins", {}, timeout_s=20, row_max=9)
    first.close()
    left = engine.session().answer(
        "select view_name from duckdb_views() where not internal", {}, timeout_s=20, row_max=9
    )
    assert left.num_rows == 0
    engine.close()


@pytest.mark.parametrize(
    ("sql", "tables", "columns"),
    [
        ("select count(*) from twins where origin = 'real'", {"twins"}, {"origin"}),
        ("select COUNT( * ) from twins", {"twins"}, set()),
        ("select avg(2 * Reported_Temperature) from Twins", {"twins"}, {"reported_temperature"}),
        ('select "Name" from main.twins', {"twins"}, {"name"}),
        ("explain select name from twins", {"twins"}, {"name"}),
        ("select site, count(*) as n from twins group by site order by n", {"twins"}, {"site", "n"}),
        ("select a.x from twins a join things b using (name)", {"twins", "things"}, {"a", "x", "name"}),
        ("select 1 from twins where exists (select y from things)", {"twins", "things"}, {"y"}),
        ("select 1", set(), set()),
        ("select x from range(3) r(x)", set(), {"x"}),
        ("select t.* from twins t", {"twins"}, None),
        ("select t from twins t", {"twins"}, None),
        ("select name from twins natural join things", {"twins", "things"}, None),
        ("select columns('reported_.*') from twins", {"twins"}, None),
        ("describe twins", {"twins"}, None),
        ("summarize twins", {"twins"}, None),
        ("from twins limit 3", {"twins"}, None),
        ("select * from query_table('twins')", None, None),
        ("select name from query('select name, origin from twins')", None, None),
    ],
)
def test_what_a_question_reads_is_known_beforehand(
    sql: str, tables: set[str] | None, columns: set[str] | None
) -> None:
    assert plan_sql(sql) == SqlPlan(
        None if tables is None else frozenset(tables), None if columns is None else frozenset(columns)
    )


@pytest.mark.parametrize(
    "sql", ["selec", "copy twins to 'x'", "select 1; select 2", "", "pivot twins on name"]
)
def test_what_is_no_question_is_refused_before_anything_is_read(sql: str) -> None:
    with pytest.raises(OperatorError):
        plan_sql(sql)
