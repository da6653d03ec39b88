"""`twinfleet sql`: questions about the whole fleet."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated, Any, Final

import typer

from twinfleet.client import OperatorClient
from twinfleet.documents import compact
from twinfleet.options import DEFAULT_DATA_DIR, DataDir
from twinfleet.printing import print_line, print_table


class AnswerFormat(StrEnum):
    """How an answer is printed: in columns for people, else as the wire has it."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    ARROW = "arrow"


# What the platform is asked for; a table is made of JSON.
_MEDIA_TYPES: Final = {
    AnswerFormat.TABLE: "application/json",
    AnswerFormat.JSON: "application/json",
    AnswerFormat.CSV: "text/csv",
    AnswerFormat.ARROW: "application/vnd.apache.arrow.stream",
}


def sql(
    question: Annotated[
        str, typer.Argument(metavar="SELECT", help="One SELECT; `-` reads it from the input.")
    ],
    *,
    timeout: Annotated[
        float,
        typer.Option(min=0.001, max=30.0, metavar="S", help="How long it may take, and how old be, at most."),
    ] = 2.0,
    rows: Annotated[
        int, typer.Option(min=1, max=1_000_000, metavar="N", help="How many rows it may have at most.")
    ] = 10_000,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    output: Annotated[
        AnswerFormat, typer.Option("--output", "-o", help="Columns for people; else as on the wire.")
    ] = AnswerFormat.TABLE,
) -> None:
    """Ask a question in SQL over the tables twins, telemetry_recent, things and processes.

    `describe twins` lists the columns. What is read is never older than --timeout when it is printed.
    """
    text = sys.stdin.read() if question == "-" else question
    answer = OperatorClient.of(data_dir).sql(
        text, media_type=_MEDIA_TYPES[output], timeout_s=timeout, row_max=rows
    )
    if output is AnswerFormat.JSON:
        sys.stdout.write(answer.raw.decode() + "\n")
    elif output is not AnswerFormat.TABLE:
        # Bytes as they came: Arrow is no text.
        sys.stdout.buffer.write(answer.raw)
    else:
        content = answer.content
        print_table(
            [column["name"] for column in content["columns"]],
            [[_cell(value) for value in row] for row in content["rows"]],
        )
        print_line(f"{content['row_count']} rows, {content['age_ms']} ms old")
    sys.stdout.flush()


def _cell(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else compact(value)
