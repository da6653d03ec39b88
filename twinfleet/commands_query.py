"""`twinfleet sql` and `twinfleet query`: questions about the whole fleet."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated, Any, Final

import typer

from twinfleet.client import OperatorClient
from twinfleet.documents import compact
from twinfleet.options import DEFAULT_DATA_DIR, DataDir, Output, OutputFormat
from twinfleet.printing import print_document, print_line, print_table


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
    """Ask a question in SQL over the tables twins, telemetry_recent, things, jobs, job_executions and processes.

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


def query(
    text: Annotated[str, typer.Argument(metavar="QUERY", help="A fleet query; `*` is every twin.")],
    *,
    of: Annotated[
        str, typer.Option(metavar="FIELD", help="Give statistics and percentiles of a field.")
    ] = "",
    by: Annotated[str, typer.Option(metavar="FIELD", help="Count the twins for each value of a field.")] = "",
    names: Annotated[int, typer.Option(min=0, max=10_000, metavar="N", help="Give the first N names.")] = 0,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Count the twins that a fleet query matches, and more of them as it is asked for.

    Fields are those of the query: shadow.reported.temperature, attributes.site, model, connectivity.connected.
    """
    asked = {"field": of, "group_by": by, "names": names}
    given = {name: value for name, value in asked.items() if value}
    document = OperatorClient.of(data_dir).query({"query": text, **given})
    if output is OutputFormat.JSON:
        print_document(document)
        return
    content = document.content
    print_line(f"{content['count']} twins, {content['age_ms']} ms old")
    if of:
        statistics = content["statistics"]
        percentiles = {f"p{each}": value for each, value in statistics.pop("percentiles", {}).items()}
        print_line("")
        print_table((of, ""), [(name, _cell(value)) for name, value in {**statistics, **percentiles}.items()])
    if by:
        print_line("")
        print_table((by, "TWINS"), [(_cell(each["value"]), each["count"]) for each in content["buckets"]])
        if content["bucket_count"] > len(content["buckets"]):
            print_line(f"and {content['bucket_count'] - len(content['buckets'])} further values")
    if names:
        print_line("")
        for name in content["names"]:
            print_line(name)


def _cell(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else compact(value)
