"""The options that many commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer


class OutputFormat(StrEnum):
    """How an answer is printed: in columns for people, or as the wire's JSON for programs."""

    TABLE = "table"
    JSON = "json"


DEFAULT_DATA_DIR: Final = Path(".twinfleet")

DataDir = Annotated[
    Path, typer.Option("--data-dir", metavar="DIR", help="The data directory of the platform.")
]
Output = Annotated[
    OutputFormat, typer.Option("--output", "-o", help="Columns for people, or JSON as on the wire.")
]


def example(*lines: str) -> str:
    """Return the end of a command's help: lines that can be copied as they stand."""
    # What begins with \b keeps its lines.
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)
