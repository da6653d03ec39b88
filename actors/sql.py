"""SQL over Arrow tables through a DuckDB that is locked: no files, no network, no settings, one question at a time.

Owns how a question is kept to reading the tables that it was given. Which tables and rows a caller may see is the
caller's decision. The engine runs in this process, on one thread of its own while a question lasts.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Collection, Mapping
from typing import Final

import duckdb
import pyarrow as pa

from actors.errors import OperatorError

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
_WORD: Final = re.compile(r"\w+")


def run_sql(sql: str, tables: Mapping[str, pa.Table], *, timeout_s: float, row_max: int) -> pa.Table:
    """Return the answer to one SELECT or EXPLAIN over `tables`.

    OperatorError carries DuckDB's message, or says that the answer took longer than `timeout_s` or has more than
    `row_max` rows.
    """
    with duckdb.connect(":memory:", config=_CONFIG) as connection:
        for name, table in tables.items():
            connection.register(name, table)
        connection.execute("SET lock_configuration = true")
        is_late = threading.Event()

        def interrupt() -> None:
            is_late.set()
            connection.interrupt()

        timer = threading.Timer(timeout_s, interrupt)
        timer.daemon = True
        timer.start()
        try:
            return _answer(connection, sql, row_max)
        except duckdb.Error as error:
            if is_late.is_set():
                problem = f"no answer within {timeout_s:g} s; ask for less, or allow more time"
                raise OperatorError(problem) from None
            raise OperatorError(str(error)) from None
        finally:
            timer.cancel()
            # The connection must not close under an interrupt that has just begun.
            timer.join()


def _answer(connection: duckdb.DuckDBPyConnection, sql: str, row_max: int) -> pa.Table:
    statements = connection.extract_statements(sql)
    if len(statements) != 1:
        raise OperatorError(f"exactly one statement is wanted, not {len(statements)}")
    if statements[0].type not in _READING:
        raise OperatorError(f"only SELECT and EXPLAIN are allowed, not {statements[0].type.name}")
    reader = connection.sql(statements[0]).to_arrow_reader()
    batches = []
    row_count = 0
    for batch in reader:
        row_count += batch.num_rows
        if row_count > row_max:
            raise OperatorError(f"the answer has more than {row_max} rows; aggregate, or add a LIMIT")
        batches.append(batch)
    return pa.Table.from_batches(batches, schema=reader.schema)


def referenced_columns(sql: str, available: Collection[str]) -> list[str]:
    """Return those of the `available` columns that the question may need, in their order: all if it holds a `*`.

    A name counts wherever it stands as a word, whatever its case; too many columns cost time, too few an answer.
    `count(*)` needs no column by name, so it asks for the first one alone: a table without columns has no rows.
    """
    without_count = re.sub(r"count\s*\(\s*\*\s*\)", "count()", sql, flags=re.IGNORECASE)
    words = {word.lower() for word in _WORD.findall(without_count)}
    is_unbounded = "*" in without_count or "select" not in words or bool(words & _WHOLE_ROW_WORDS)
    return [name for name in available if is_unbounded or name.lower() in words] or list(available)[:1]


# Forms that read whole rows without naming a column, as in `select columns(...)` or `describe twins`.
_WHOLE_ROW_WORDS: Final = frozenset(
    {"columns", "describe", "summarize", "natural", "pivot", "unpivot", "table"}
)
