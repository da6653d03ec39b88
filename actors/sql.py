"""SQL over Arrow tables through a DuckDB that is locked: no files, no network, no settings, one question at a time.

Owns how a question is kept to reading the tables that it was given, and what it needs of them. Which tables and rows a
caller may see is the caller's decision. The engine runs in this process, on one thread of its own while a question
lasts; `sql_process` runs it in a process that may be killed.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import duckdb
import msgspec
import pyarrow as pa

from actors.errors import AnswerTooLate, OperatorError

# Enough to group a million twins by text; a question that needs more is one to be asked differently.
_MEMORY_MAX: Final = "512MB"
_CONFIG: Final[dict[str, str | bool | int | float | list[str]]] = {
    "enable_external_access": False,
    # Python variables of the caller are no tables.
    "python_enable_replacements": False,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
    "memory_limit": _MEMORY_MAX,
    # Nothing spills to disk, so a question cannot fill it.
    "temp_directory": "",
    # One core for the one who asks; the other cores serve devices.
    "threads": 1,
}
_READING: Final = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)
_EXPLAIN: Final = re.compile(r"\s*explain\s+(analyze\s+)?", re.IGNORECASE)
# Functions in `from` that read no table; others may, whatever is written in their arguments.
_TABLELESS: Final = frozenset({"range", "generate_series", "unnest", "repeat"})


@dataclass(frozen=True)
class SqlPlan:
    """What a question reads: names of tables and columns in small letters; None: any that there are."""

    tables: frozenset[str] | None
    columns: frozenset[str] | None

    def reads(self, table: str) -> bool:
        """Tell whether a table may be read."""
        return self.tables is None or table in self.tables


@dataclass
class _Reading:
    """What a parsed question was found to name."""

    tables: set[str] = field(default_factory=set)
    aliases: set[str] = field(default_factory=set)
    columns: set[str] = field(default_factory=set)
    unqualified: set[str] = field(default_factory=set)
    has_whole_rows: bool = False
    has_unknown_tables: bool = False

    def note(self, node: Mapping[str, Any]) -> None:
        kind = node.get("type")
        if kind == "BASE_TABLE":
            self.tables.add(node["table_name"].lower())
            self.aliases.update((node["table_name"].lower(), node["alias"].lower()))
        elif kind == "COLUMN_REF":
            names = [name.lower() for name in node["column_names"]]
            self.columns.update(names)
            self.unqualified.update(names if len(names) == 1 else ())
        elif kind == "JOIN":
            self.columns.update(name.lower() for name in node["using_columns"])
            self.has_whole_rows |= node["ref_type"] == "NATURAL"
        elif kind == "TABLE_FUNCTION":
            self.has_unknown_tables |= node["function"]["function_name"].lower() not in _TABLELESS
        elif kind in ("STAR", "SHOW_REF"):
            self.has_whole_rows = True

    def plan(self) -> SqlPlan:
        # A table's name where a column could stand is a row as a whole.
        is_whole = (
            self.has_whole_rows or self.has_unknown_tables or not self.aliases.isdisjoint(self.unqualified)
        )
        tables = None if self.has_unknown_tables else frozenset(self.tables)
        return SqlPlan(tables, None if is_whole else frozenset(self.columns))


class SqlEngine:
    """A locked DuckDB with nothing in it, for one question after the other; to make one takes as long as a question."""

    def __init__(self) -> None:
        self._database = duckdb.connect(":memory:", config=_CONFIG)
        self._database.execute("SET lock_configuration = true")

    def session(self) -> SqlSession:
        """Return a session for one question; what is registered there is seen there only, and goes with it."""
        return SqlSession(self._database.cursor())

    def close(self) -> None:
        """Let go of everything."""
        self._database.close()


class SqlSession:
    """A fresh connection for one question: `plan` says what it reads, `answer` gives what it says of these tables."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection

    def close(self) -> None:
        """Let go of the tables."""
        self._connection.close()

    def plan(self, sql: str) -> SqlPlan:
        """Return what one SELECT or EXPLAIN reads; OperatorError if it is something else, or can't be read."""
        try:
            self._statement(sql)
            # What is explained is read as well.
            question = _EXPLAIN.sub("", sql, count=1)
            [[encoded]] = self._connection.execute(
                "SELECT json_serialize_sql(?::VARCHAR)", [question]
            ).fetchall()
        except duckdb.Error as error:
            raise OperatorError(str(error)) from None
        parsed: dict[str, Any] = msgspec.json.decode(encoded)
        if parsed["error"]:
            return SqlPlan(None, None)
        reading = _Reading()
        for node in _nodes(parsed["statements"]):
            reading.note(node)
        return reading.plan()

    def answer(self, sql: str, tables: Mapping[str, pa.Table], *, timeout_s: float, row_max: int) -> pa.Table:
        """Return the answer to one SELECT or EXPLAIN over `tables`.

        OperatorError carries DuckDB's message, or says that the answer has more than `row_max` rows; AnswerTooLate that
        it takes longer than `timeout_s`.
        """
        for name, table in tables.items():
            self._connection.register(name, table)
        is_late = threading.Event()

        def interrupt() -> None:
            is_late.set()
            self._connection.interrupt()

        timer = threading.Timer(timeout_s, interrupt)
        timer.daemon = True
        timer.start()
        try:
            return self._answer(sql, row_max)
        except duckdb.Error as error:
            if is_late.is_set():
                raise AnswerTooLate(timeout_s) from None
            raise OperatorError(str(error)) from None
        finally:
            timer.cancel()
            # The connection must not close under an interrupt that has just begun.
            timer.join()

    def _statement(self, sql: str) -> duckdb.Statement:
        statements = self._connection.extract_statements(sql)
        if len(statements) != 1:
            raise OperatorError(f"exactly one statement is wanted, not {len(statements)}")
        if statements[0].type not in _READING:
            raise OperatorError(f"only SELECT and EXPLAIN are allowed, not {statements[0].type.name}")
        return statements[0]

    def _answer(self, sql: str, row_max: int) -> pa.Table:
        reader = self._connection.sql(self._statement(sql)).to_arrow_reader()
        batches = []
        row_count = 0
        for batch in reader:
            row_count += batch.num_rows
            if row_count > row_max:
                raise OperatorError(f"the answer has more than {row_max} rows; aggregate, or add a LIMIT")
            batches.append(batch)
        return pa.Table.from_batches(batches, schema=reader.schema)


def run_sql(sql: str, tables: Mapping[str, pa.Table], *, timeout_s: float, row_max: int) -> pa.Table:
    """Return the answer to one SELECT or EXPLAIN over `tables`, as `SqlSession.answer`."""
    with contextlib.closing(SqlEngine()) as engine, contextlib.closing(engine.session()) as session:
        return session.answer(sql, tables, timeout_s=timeout_s, row_max=row_max)


def plan_sql(sql: str) -> SqlPlan:
    """Return what a question reads, as `SqlSession.plan`."""
    with contextlib.closing(SqlEngine()) as engine, contextlib.closing(engine.session()) as session:
        return session.plan(sql)


def _nodes(statements: Sequence[Any]) -> Iterator[Mapping[str, Any]]:
    """Yield every object of a parsed question; not by recursion, because questions nest as deep as they like."""
    waiting: list[Any] = list(statements)
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield value
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
